"""The gRPC form of the protocol: each call as a function of the data plane, and their server."""

import asyncio
import math
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from registry.errors import Invalid, NotFound, TooLarge
from registry.models import Actor
from workers.serving.budget import Bounds, Holding
from workers.serving.calls import CallServer, Handler, Refusal, Rpc
from workers.serving.codec import (
    MAX_JSON_BYTES,
    MAX_PARAMETERS,
    Asked,
    pack_numbers,
    read_version,
    refuse_unknown_output,
    unpack_numbers,
)
from workers.serving.messages import (
    BYTES,
    MAX_TENSORS,
    Data,
    InferRequest,
    InferResponse,
    Tensor,
    check_tensors,
    pack_strings,
    unpack_strings,
)
from workers.serving.plane import Plane
from workers.serving.protos import inference_pb2 as pb
from workers.serving.protos.model_config_pb2 import ModelConfig

SERVICE = "inference.GRPCInferenceService"
# The call with many messages each way.
STREAM = "ModelStreamInfer"
# How many calls of one stream are under way; their answers come in the order of the calls.
STREAM_WINDOW = 32
# Messages without tensors are small; those that are not raw take Python much more than their bytes.
MAX_PLAIN_BYTES = 1024 * 1024
MAX_TYPED_BYTES = MAX_JSON_BYTES
# Up to this size a message is read at once; larger ones are looked through before.
_SMALL_BYTES = 4096
# From this size on, typed values are read beside the loop.
_THREAD_FROM_BYTES = 64 * 1024
# Inputs, outputs and raw tensors, the parameters, and what is said once.
_MAX_FIELDS = 3 * MAX_TENSORS + MAX_PARAMETERS + 8
_RAW_FIELD = 7

M = TypeVar("M", bound=Message)

# In which field the typed contents of a datatype are; FP16 and BF16 have none.
_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, and until when they wait."""

    plane: Plane
    actor: Actor
    deadline: float


async def _server_live(call: Call, _: pb.ServerLiveRequest) -> Message:
    return pb.ServerLiveResponse(live=call.plane.live())


async def _server_ready(call: Call, _: pb.ServerReadyRequest) -> Message:
    return pb.ServerReadyResponse(ready=call.plane.ready())


async def _server_metadata(call: Call, _: pb.ServerMetadataRequest) -> Message:
    return pb.ServerMetadataResponse(**call.plane.server_metadata())


async def _model_ready(call: Call, asked: pb.ModelReadyRequest) -> Message:
    try:
        version = read_version(asked.version)
        ready = await call.plane.model_ready(call.actor, asked.name, version)
    except NotFound:
        # As elsewhere: what does not exist is not ready, and that is no error.
        ready = False
    return pb.ModelReadyResponse(ready=ready)


async def _model_metadata(call: Call, asked: pb.ModelMetadataRequest) -> Message:
    version = read_version(asked.version)
    found = await call.plane.model_metadata(call.actor, asked.name, version)
    specs = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=found.name,
        versions=found.versions,
        platform=found.platform,
        inputs=[specs(name=o.name, datatype=o.datatype, shape=o.shape) for o in found.inputs],
        outputs=[specs(name=o.name, datatype=o.datatype, shape=o.shape) for o in found.outputs],
    )


async def _model_config(call: Call, asked: pb.ModelConfigRequest) -> Message:
    version = read_version(asked.version)
    config = await call.plane.model_config(call.actor, asked.name, version)
    return pb.ModelConfigResponse(config=ParseDict(config, ModelConfig()))


async def _model_statistics(call: Call, asked: pb.ModelStatisticsRequest) -> Message:
    version = read_version(asked.version)
    found = await call.plane.statistics(call.actor, asked.name or None, version)
    return ParseDict({"model_stats": found}, pb.ModelStatisticsResponse())


async def _repository_index(call: Call, asked: pb.RepositoryIndexRequest) -> Message:
    found = await call.plane.index(call.actor, ready_only=asked.ready)
    return ParseDict({"models": found}, pb.RepositoryIndexResponse())


async def _load(call: Call, asked: pb.RepositoryModelLoadRequest) -> Message:
    if asked.parameters:
        refuse_load_parameters()
    await call.plane.load(call.actor, asked.model_name)
    return pb.RepositoryModelLoadResponse()


async def _unload(call: Call, asked: pb.RepositoryModelUnloadRequest) -> Message:
    await call.plane.unload(call.actor, asked.model_name)
    return pb.RepositoryModelUnloadResponse()


def refuse_load_parameters() -> None:
    """Refuse files and configurations that come with a call: versions are made in the registry.

    Raises:
        Invalid: always.

    """
    raise Invalid(
        "A model is loaded as its version is; register files as a new version and deploy it.",
        code="load_parameters",
    )


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request for tensors: its message without the raw ones, which lie in the bytes that came."""

    message: pb.ModelInferRequest
    raw: Sequence[Data]
    typed_bytes: int


def read_call(body: Data) -> InferCall:
    """Read a request for tensors; what is raw is not copied, and bombs are found before.

    Raises:
        Invalid: it is none; TooLarge: it has more typed values than are read.

    """
    if len(body) <= _SMALL_BYTES:
        message = parse(pb.ModelInferRequest, body)
        return InferCall(message, message.raw_input_contents, 0)
    view = memoryview(body)
    rest: list[memoryview] = []
    raw: list[Data] = []
    place = kept = fields = 0
    while place < len(view):
        fields += 1
        if fields > _MAX_FIELDS:
            raise Invalid("A request has {limit} tensors at most.", limit=MAX_TENSORS)
        start = place
        number, kind, place, end = _read_field(view, place)
        if number == _RAW_FIELD and kind == _SIZED:
            rest.append(view[kept:start])
            raw.append(view[place:end])
            kept = end
        place = end
    rest.append(view[kept:])
    size = sum(map(len, rest))
    if size > MAX_TYPED_BYTES:
        raise TooLarge(
            "The message has {found} bytes beside raw_input_contents; {limit} are allowed.",
            found=size,
            limit=MAX_TYPED_BYTES,
        )
    return InferCall(parse(pb.ModelInferRequest, b"".join(rest)), raw, size)


_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5


def _read_field(view: memoryview, place: int) -> tuple[int, int, int, int]:
    """Give a field's number and kind, and where its content begins and ends."""
    tag, place = _read_varint(view, place)
    kind = tag & 7
    if kind == _VARINT:
        end = _read_varint(view, place)[1]
    elif kind == _SIZED:
        size, place = _read_varint(view, place)
        end = place + size
    else:
        end = place + {_FIXED64: 8, _FIXED32: 4}.get(kind, len(view) + 1)
    if end > len(view):
        raise Invalid("The message cannot be read as {kind}.", kind=pb.ModelInferRequest.__name__)
    return tag >> 3, kind, place, end


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for at, byte in enumerate(view[place : place + 10]):
        value |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return value, place + at + 1
    raise Invalid("The message cannot be read as {kind}.", kind=pb.ModelInferRequest.__name__)


async def _infer(call: Call, came: InferCall) -> Message:
    asked = came.message
    if came.typed_bytes > _THREAD_FROM_BYTES:
        # Not for who has no such model.
        call.plane.patience(call.actor, asked.model_name)
        body, raw = await asyncio.to_thread(_read_infer, came)
    else:
        body, raw = _read_infer(came)
    response = await call.plane.infer(
        InferRequest(
            model=asked.model_name,
            version=read_version(asked.model_version),
            id=body.id,
            inputs=body.inputs,
            outputs=body.outputs,
            parameters=body.parameters,
            actor=call.actor,
            deadline=min(call.deadline, time.monotonic() + body.timeout_seconds),
        )
    )
    return _write_infer(response, raw=raw)


def _read_infer(came: InferCall) -> tuple[Asked, bool]:
    """Give what a message asks, and whether its tensors are raw; the answer's are the same."""
    message, contents = came.message, came.raw
    count = max(len(message.inputs), len(message.outputs), len(contents))
    if not message.inputs:
        raise Invalid("The request has no inputs.")
    if count > MAX_TENSORS:
        raise Invalid("A request has {limit} tensors at most.", limit=MAX_TENSORS)
    raw = len(contents) > 0
    if raw and len(contents) != len(message.inputs):
        raise Invalid(
            "There are {inputs} inputs and {raw} raw_input_contents.",
            inputs=len(message.inputs),
            raw=len(contents),
        )
    inputs = []
    for at, one in enumerate(message.inputs):
        refuse_unknown_output(_parameters(one.parameters))
        if raw and one.HasField("contents"):
            raise Invalid("Input {name!r} has both contents and raw_input_contents.", name=one.name)
        data = contents[at] if raw else _pack_contents(one)
        inputs.append(Tensor(one.name, one.datatype, tuple(one.shape), data))
    check_tensors(inputs)
    names = [one.name for one in message.outputs]
    if len(set(names)) != len(names):
        raise Invalid("An output is asked for twice.")
    for wanted in message.outputs:
        refuse_unknown_output(_parameters(wanted.parameters))
    return Asked(inputs, message.id, names, _parameters(message.parameters)), raw


def _parameters(found: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    if not found:
        return {}
    if len(found) > MAX_PARAMETERS:
        raise Invalid("There are {limit} parameters at most.", limit=MAX_PARAMETERS)
    chosen = ((name, one, one.WhichOneof("parameter_choice")) for name, one in found.items())
    return {name: getattr(one, which) for name, one, which in chosen if which}


def _pack_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> Data:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise Invalid(
            "Input {name!r} of {datatype!r} has no typed contents; send raw_input_contents.",
            name=tensor.name,
            datatype=tensor.datatype[:40],
        )
    values = getattr(tensor.contents, field)
    # Before anything is allocated; that the right field was filled is seen by the same count.
    if min(tensor.shape, default=0) < 0 or math.prod(tensor.shape) != len(values):
        raise Invalid(
            "Input {name!r} has {found} values in {field}; its shape takes another number.",
            name=tensor.name,
            found=len(values),
            field=field,
        )
    if tensor.datatype == BYTES:
        return pack_strings(values)
    return pack_numbers(tensor.name, tensor.datatype, values)


def _write_infer(response: InferResponse, *, raw: bool) -> pb.ModelInferResponse:
    message = pb.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for name, value in response.parameters.items():
        _set_parameter(message.parameters[name], value)
    # A message has all its tensors in one form.
    raw = raw or any(one.datatype not in _CONTENTS for one in response.outputs)
    for tensor in response.outputs:
        said = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            message.raw_output_contents.append(bytes(tensor.data))
        elif tensor.datatype == BYTES:
            strings = unpack_strings(tensor.data, math.prod(tensor.shape))
            said.contents.bytes_contents.extend(strings)
        else:
            values = unpack_numbers(tensor.datatype, tensor.data)
            getattr(said.contents, _CONTENTS[tensor.datatype]).extend(values)
    return message


def _set_parameter(place: pb.InferParameter, value: Any) -> None:
    if isinstance(value, bool):
        place.bool_param = value
    elif isinstance(value, int):
        place.int64_param = value
    elif isinstance(value, float):
        place.double_param = value
    else:
        place.string_param = str(value)


async def _stream_one(call: Call, came: InferCall, holding: Holding) -> Message:
    """Answer one request of a stream; its error is an answer too, and the stream goes on."""
    try:
        response = await _infer(call, came)
        holding.turn_to_answer(response.ByteSize())
    # Of this request alone.
    except Exception as error:  # noqa: BLE001
        return pb.ModelStreamInferResponse(
            error_message=Refusal.of(error).detail,
            infer_response=pb.ModelInferResponse(id=came.message.id),
        )
    assert isinstance(response, pb.ModelInferResponse)
    return pb.ModelStreamInferResponse(infer_response=response)


async def stream_infer(
    identify: Callable[[], Awaitable[Call]], messages: AsyncIterable[tuple[Data, Holding]]
) -> AsyncGenerator[Message, None]:
    """Answer requests as they come, several at once and in their order.

    Who calls is found out for each, since a stream may outlive its token. What each holds of the
    budget, then what its answer does, is given back once that is taken.

    Raises:
        Unauthenticated: the token is no longer good; what was asked before is answered.

    """
    under_way: asyncio.Queue[tuple[asyncio.Task[Message], Holding] | None] = asyncio.Queue(
        STREAM_WINDOW
    )

    async def take_in() -> None:
        try:
            async for one, holding in messages:
                call, came = await _take_over(identify, one, holding)
                task = asyncio.create_task(_stream_one(call, came, holding))
                try:
                    await under_way.put((task, holding))
                except asyncio.CancelledError:
                    _give_up(task, holding)
                    raise
        finally:
            await under_way.put(None)

    reading = asyncio.create_task(take_in())
    try:
        while (under := await under_way.get()) is not None:
            task, holding = under
            try:
                yield await task
            finally:
                holding.release()
        await reading
    finally:
        reading.cancel()
        while not under_way.empty():
            if under := under_way.get_nowait():
                _give_up(*under)


def _give_up(task: asyncio.Task[Message], holding: Holding) -> None:
    task.cancel()
    holding.release()


async def _take_over(
    identify: Callable[[], Awaitable[Call]], body: Data, holding: Holding
) -> tuple[Call, InferCall]:
    try:
        return await identify(), read_call(body)
    except BaseException:
        holding.release()
        raise


async def _no_regions(_: Call, __: Any) -> Message:
    return pb.SystemSharedMemoryStatusResponse()


async def _no_cuda_regions(_: Call, __: Any) -> Message:
    return pb.CudaSharedMemoryStatusResponse()


@dataclass(frozen=True, slots=True)
class Unary:
    """A call with one message each way."""

    read: Callable[[Data], Any]
    answer: Callable[[Call, Any], Awaitable[Message]]


def parse(kind: type[M], body: Data) -> M:
    """Read a message.

    Raises:
        Invalid: it is none of that kind.

    """
    try:
        return kind.FromString(bytes(body))
    except DecodeError:
        raise Invalid("The message cannot be read as {kind}.", kind=kind.__name__) from None


def _plain(kind: type[Message], answer: Callable[[Call, Any], Awaitable[Message]]) -> Unary:
    """Make a call whose message has no tensors."""

    def read(body: Data) -> Message:
        if len(body) > MAX_PLAIN_BYTES:
            raise TooLarge(
                "The message has {found} bytes; {limit} are allowed.",
                found=len(body),
                limit=MAX_PLAIN_BYTES,
            )
        return parse(kind, body)

    return Unary(read, answer)


UNARY: Mapping[str, Unary] = {
    "ServerLive": _plain(pb.ServerLiveRequest, _server_live),
    "ServerReady": _plain(pb.ServerReadyRequest, _server_ready),
    "ServerMetadata": _plain(pb.ServerMetadataRequest, _server_metadata),
    "ModelReady": _plain(pb.ModelReadyRequest, _model_ready),
    "ModelMetadata": _plain(pb.ModelMetadataRequest, _model_metadata),
    "ModelInfer": Unary(read_call, _infer),
    "ModelConfig": _plain(pb.ModelConfigRequest, _model_config),
    "ModelStatistics": _plain(pb.ModelStatisticsRequest, _model_statistics),
    "RepositoryIndex": _plain(pb.RepositoryIndexRequest, _repository_index),
    "RepositoryModelLoad": _plain(pb.RepositoryModelLoadRequest, _load),
    "RepositoryModelUnload": _plain(pb.RepositoryModelUnloadRequest, _unload),
    "SystemSharedMemoryStatus": _plain(pb.SystemSharedMemoryStatusRequest, _no_regions),
    "CudaSharedMemoryStatus": _plain(pb.CudaSharedMemoryStatusRequest, _no_cuda_regions),
}
"""Calls by name; what is not here, as shared memory and tracing, is answered as unimplemented."""


def serve_calls(plane: Plane, bounds: Bounds, *, max_calls: int) -> CallServer:
    """Make the gRPC server of `plane`."""
    handlers: dict[str, Handler] = {
        f"/{SERVICE}/{name}": _unary(plane, one) for name, one in UNARY.items()
    }
    handlers[f"/{SERVICE}/{STREAM}"] = _stream(plane)
    return CallServer(handlers, bounds, max_calls=max_calls)


def _unary(plane: Plane, method: Unary) -> Handler:
    async def handle(rpc: Rpc) -> None:
        await _call(plane, rpc)
        body, holding = await rpc.first()
        try:
            # Messages may take long to come, and tokens be revoked meanwhile.
            call = await _call(plane, rpc)
            message = await method.answer(call, method.read(body))
            answer = message.SerializeToString()
            # Neither stays for as long as the client takes for the answer.
            del body, message
            holding.turn_to_answer(len(answer))
            await rpc.answer(answer)
        finally:
            holding.release()

    return handle


def _stream(plane: Plane) -> Handler:
    async def handle(rpc: Rpc) -> None:
        await _call(plane, rpc)
        async with aclosing(stream_infer(partial(_call, plane, rpc), rpc)) as answers:
            async for answer in answers:
                await rpc.write(answer.SerializeToString())
        rpc.end(None)

    return handle


async def _call(plane: Plane, rpc: Rpc) -> Call:
    said = rpc.head.authorization
    actor = await plane.identify(said, rpc.address if said is None else None)
    return Call(plane, actor, rpc.deadline)


def model_of(method: str, body: Data) -> str:
    """Give the model that a request for tensors names at its beginning, where clients write it."""
    if method != "ModelInfer":
        return ""
    with suppress(Invalid):
        number, kind, place, end = _read_field(memoryview(body), 0)
        if (number, kind) == (1, _SIZED):
            return bytes(body[place:end]).decode(errors="replace")
    return ""
