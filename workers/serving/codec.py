"""Tensors as JSON and as raw bytes behind it, read into messages and written from them."""

import math
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from registry.errors import Invalid, NotFound, TooLarge
from registry.formats.bounded_json import read_json
from workers.serving.messages import (
    BYTES,
    ITEM_BYTES,
    MAX_RANK,
    MAX_TENSORS,
    Data,
    InferResponse,
    Tensor,
    check_tensors,
    pack_strings,
    unpack_strings,
)

# Python needs about ten times the bytes of JSON for what it says, and all wait while it reads.
MAX_JSON_BYTES = 8 * 1024 * 1024
MAX_LISTS = 200_000
MAX_OBJECTS = 20_000
# Up to this size, a second look at JSON that may be bad is cheap.
MAX_DOUBTED_BYTES = 1024 * 1024
MAX_DEPTH = 32
# So many numbers, or bytes of them, are written at once.
LONG = 32_768
MAX_PARAMETERS = 64
MAX_TEXT_CHARACTERS = 1024

NUMPY: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""What numpy calls the datatypes; it has no BF16, which therefore travels as raw bytes only."""
# As `struct` calls them, whose long numbers have a letter of their own.
_CODES: Mapping[str, str] = {
    name: {"l": "q", "L": "Q"}.get(dtype.char, dtype.char) for name, dtype in NUMPY.items()
}
# So few numbers are written one by one.
_FEW = 1024

_TEXTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_GZIP = b"\x1f\x8b"
FED_PIECE_BYTES = 256 * 1024
UNPACKED_PIECE_BYTES = 1024 * 1024
# What a gzip file has around its content.
_GZIP_FRAME_BYTES = 18
_SHARED_MEMORY = "shared_memory_region"
# Characters of the longest machine integer, its sign included.
_LONGEST_WHOLE = 20


@dataclass(slots=True)
class Asked:
    """What the body of a call says, and in which form its outputs are wanted."""

    inputs: list[Tensor]
    id: str = ""
    outputs: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    # Where an output's own word is missing, `all_binary` counts.
    binary: dict[str, bool] = field(default_factory=dict)
    all_binary: bool = False

    @property
    def timeout_seconds(self) -> float:
        """How long the caller waits, as the parameter in microseconds says."""
        return timeout_of(self.parameters)


def load_json(data: Data, max_values: int | None = None) -> Any:
    """Read JSON from outside within the bounds of this module.

    Raises:
        TooLarge: it is long; Invalid: it is no JSON, deep, holds NaN or names a key twice.

    """
    if len(data) > MAX_JSON_BYTES:
        raise TooLarge(
            "The JSON has {found} bytes; {limit} are allowed. Send large tensors as binary.",
            found=len(data),
            limit=MAX_JSON_BYTES,
        )
    raw = bytes(data)
    if max_values is not None and _count_values(raw, max_values) > max_values:
        raise TooLarge("The JSON has more than {limit} values.", limit=max_values)
    if _is_crowded(raw) and (len(raw) > MAX_DOUBTED_BYTES or _is_crowded(_TEXTS.sub(b"", raw))):
        raise Invalid(
            "The JSON has more than {lists} lists or {objects} objects.",
            lists=MAX_LISTS,
            objects=MAX_OBJECTS,
        )
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        template = "This is not valid JSON: {problem}."
        raise Invalid(template, code="malformed_json", problem=str(error)[:200]) from None
    if _colons_of(value) == raw.count(b":") and b"\\u003" not in raw:
        return value
    if len(raw) > MAX_DOUBTED_BYTES:
        raise Invalid("The JSON names a key twice, or nests deeply or unevenly.")
    # Slower, and says precisely what is wrong, if anything is.
    return read_json(raw, max_depth=MAX_DEPTH, parse_int=_whole)


def _count_values(raw: bytes, enough: int) -> int:
    """Count the commas outside of texts, where there are many at all."""
    commas = raw.count(b",")
    if commas <= enough:
        return commas
    return sum(one.count(b",") for one in _TEXTS.split(raw))


def _is_crowded(raw: bytes) -> bool:
    return raw.count(b"[") > MAX_LISTS or raw.count(b"{") > MAX_OBJECTS


def _whole(text: str) -> int | float:
    # As the fast reader does: what no machine integer holds is a float.
    value = int(text) if len(text) <= _LONGEST_WHOLE else None
    return float(text) if value is None or not -(2**63) <= value < 2**64 else value


def _colons_of(value: Any) -> int:
    """Count the colons that it takes to write `value`: one a key, and those in its texts.

    There were more if a key stood twice. What lies too deep, or behind numbers in a list, is not
    counted, and so found out as well.
    """
    colons, level = 0, [value]
    for _ in range(MAX_DEPTH):
        following: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                colons += len(item) + "".join(item).count(":")
                following.extend(item.values())
            elif isinstance(item, str):
                colons += item.count(":")
            elif isinstance(item, list) and item and isinstance(item[0], str | list | dict):
                following.extend(item)
        level = [item for item in following if isinstance(item, str | list | dict)]
        if not level:
            return colons
    return -1


def read_version(text: str) -> str:
    """Read a version as paths and messages name it: a number, or an alias with or without its @.

    Raises:
        NotFound: nothing is ever called that.

    """
    if not text or (text.isascii() and text.isdigit() and len(text) <= 9):
        return text
    if len(text) > MAX_TEXT_CHARACTERS:
        raise NotFound("There is no version with so long a name.")
    return text if text.startswith("@") else f"@{text}"


def read_infer(body: memoryview, json_bytes: int | None) -> Asked:
    """Read a call of the REST protocol; `json_bytes` is the header's word on binary tensors.

    Raises:
        Invalid: it is not as the protocol says; TooLarge: beyond the bounds.

    """
    if json_bytes is not None and json_bytes > len(body):
        raise Invalid(
            "Inference-Header-Content-Length says {said} bytes; the body has {found}.",
            said=json_bytes,
            found=len(body),
        )
    split = len(body) if json_bytes is None else json_bytes
    message = _object(load_json(body[:split]), "The request")
    listed = _listed(message.get("inputs"), "inputs")
    if not listed:
        raise Invalid("The request has no inputs.")
    tail = _Tail(body[split:])
    asked = Asked(inputs=[_read_input(one, tail) for one in listed])
    tail.finish()
    check_tensors(asked.inputs)
    asked.id = _text(message.get("id", ""), "id")
    asked.parameters = _parameters(message.get("parameters"))
    asked.all_binary = asked.parameters.pop("binary_data_output", False) is True
    for wanted in _listed(message.get("outputs"), "outputs"):
        _read_wanted(asked, wanted)
    return asked


class _Tail:
    """The raw bytes behind the JSON, taken in the order of the inputs."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def take(self, name: str, size: Any) -> memoryview:
        left = len(self._data) - self._at
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= left:
            raise Invalid(
                "Input {name!r} says binary_data_size {size}; {left} bytes are left in the body.",
                name=name,
                size=str(size)[:40],
                left=left,
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def finish(self) -> None:
        if self._at != len(self._data):
            template = "{left} bytes behind the JSON belong to no input."
            raise Invalid(template, left=len(self._data) - self._at)


def _read_input(message: Any, tail: _Tail) -> Tensor:
    tensor = _object(message, "An input")
    name = _text(tensor.get("name"), "name of an input")
    datatype = _text(tensor.get("datatype"), "datatype of an input")
    shape = _shape(tensor.get("shape"), name)
    parameters = _parameters(tensor.get("parameters"))
    _refuse_shared_memory(parameters)
    if "binary_data_size" in parameters:
        if "data" in tensor:
            raise Invalid("Input {name!r} has both data and binary_data_size.", name=name)
        data: Data = tail.take(name, parameters["binary_data_size"])
    elif "data" in tensor:
        data = _pack_json(name, datatype, shape, tensor["data"])
    else:
        raise Invalid("Input {name!r} has no data.", name=name)
    return Tensor(name, datatype, shape, data)


def _read_wanted(asked: Asked, message: Any) -> None:
    wanted = _object(message, "An output")
    name = _text(wanted.get("name"), "name of an output")
    parameters = _parameters(wanted.get("parameters"))
    refuse_unknown_output(parameters)
    if name in asked.outputs:
        raise Invalid("Output {name!r} is asked for twice.", name=name)
    asked.outputs.append(name)
    if "binary_data" in parameters:
        asked.binary[name] = parameters["binary_data"] is True


def refuse_unknown_output(parameters: Mapping[str, Any]) -> None:
    """Refuse what outputs can be asked for elsewhere, and would come back wrong without a word.

    Raises:
        Invalid: it is asked for.

    """
    _refuse_shared_memory(parameters)
    if parameters.get("classification"):
        raise Invalid("Classes are not counted here; POST to /predict for labelled answers.")


def _refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    if _SHARED_MEMORY in parameters:
        raise Invalid("Shared memory is not offered; send the tensor in the request.")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Invalid("{what} is no JSON object.", what=what)
    return value


def _listed(value: Any, what: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise Invalid("{what} is no list.", what=what)
    if len(value) > MAX_TENSORS:
        template = "A request has {limit} {what} at most; {count} came."
        raise Invalid(template, limit=MAX_TENSORS, what=what, count=len(value))
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARACTERS:
        template = "The {what} is no text of at most {limit} characters."
        raise Invalid(template, what=what, limit=MAX_TEXT_CHARACTERS)
    return value


def _parameters(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_PARAMETERS:
        raise Invalid("Parameters are an object of at most {limit} values.", limit=MAX_PARAMETERS)
    for name, one in value.items():
        if not isinstance(one, str | int | float | bool) or len(str(name)) > MAX_TEXT_CHARACTERS:
            template = "Parameter {name!r} is no text, number or truth value."
            raise Invalid(template, name=str(name)[:80])
    return value


def timeout_of(parameters: Mapping[str, Any]) -> float:
    """Read the parameter `timeout`, which is in microseconds; without one it is infinite.

    Raises:
        Invalid: it is no such number.

    """
    value = parameters.get("timeout", 0)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Invalid("The parameter timeout is no number of microseconds.")
    return value / 1e6 if value else math.inf


def _shape(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 64 or not all(type(one) is int for one in value):
        raise Invalid("The shape of input {name!r} is no list of whole numbers.", name=name)
    return tuple(value)


def _pack_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> bytes:
    """Write what JSON says of a tensor, flat or nested like its shape, as its bytes."""
    if not isinstance(data, list):
        raise Invalid("The data of input {name!r} is no list.", name=name)
    values, nesting = _flatten(name, data)
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise Invalid(
            "Input {name!r} has {found} values; the shape {shape} takes another number.",
            name=name,
            found=len(values),
            shape=list(shape[:MAX_RANK]),
        )
    if len(nesting) > 1 and tuple(nesting) != shape:
        raise Invalid(
            "The data of input {name!r} nests as {found}; its shape is {shape}.",
            name=name,
            found=nesting,
            shape=list(shape[:MAX_RANK]),
        )
    kinds = set(map(type, values))
    if datatype == BYTES and kinds <= {str}:
        return pack_strings([one.encode() for one in values])
    wanted: dict[str, set[type]] = {"b": {bool}, "f": {int, float}}
    if not kinds <= wanted.get(_numpy(name, datatype).kind, {int}):
        template = "Input {name!r} has a value that is no {datatype}."
        raise Invalid(template, name=name, datatype=datatype)
    return pack_numbers(name, datatype, values)


def _flatten(name: str, data: list[Any]) -> tuple[list[Any], list[int]]:
    """Give the values of nested lists and the sizes of the levels."""
    level, sizes = data, [len(data)]
    while level and isinstance(level[0], list):
        lengths = set(map(len, level)) if set(map(type, level)) == {list} else set()
        if len(lengths) != 1 or len(sizes) >= MAX_RANK:
            template = "The data of input {name!r} is neither flat nor nested evenly."
            raise Invalid(template, name=name)
        sizes.append(lengths.pop())
        level = list(chain.from_iterable(level))
    return level, sizes


def pack_numbers(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    """Write numbers as the bytes of a datatype.

    Raises:
        Invalid: the datatype is none of numbers, or one of them is beyond it.

    """
    target = _numpy(name, datatype)
    try:
        # Several times as fast as an array for these, and as exact; a sum shows that none is NaN.
        if len(values) <= _FEW and (target.kind != "f" or math.isfinite(sum(values))):
            return struct.pack(f"<{len(values)}{_CODES[datatype]}", *values)
        with np.errstate(over="ignore"):
            wide = np.array(values, np.dtype("f8") if target.kind == "f" else target)
            found = wide.astype(target, copy=False)
        fits = target.kind != "f" or bool(np.isfinite(found).all())
    except (OverflowError, struct.error):
        fits = False
    if not fits:
        template = "Input {name!r} has a value beyond {datatype}."
        raise Invalid(template, name=name, datatype=datatype)
    return found.tobytes()


def unpack_numbers(datatype: str, data: Data) -> NDArray[Any]:
    """Look at the bytes of a datatype as numbers."""
    return np.frombuffer(data, NUMPY[datatype])


def _numpy(name: str, datatype: str) -> np.dtype[Any]:
    if datatype == "BF16":
        raise Invalid("Tensor {name!r}: BF16 has no written form; send it as raw bytes.", name=name)
    if datatype == BYTES:
        raise Invalid("The data of BYTES input {name!r} is no list of texts.", name=name)
    if datatype not in NUMPY:
        raise Invalid(
            "Tensor {name!r} has the unknown datatype {datatype!r}; known are {known}.",
            name=name,
            datatype=datatype[:40],
            known=", ".join([*ITEM_BYTES, BYTES]),
        )
    return NUMPY[datatype]


def write_infer(response: InferResponse, asked: Asked) -> tuple[list[Data], int | None]:
    """Write an answer of the REST protocol: its parts, and the length of the JSON before tensors.

    Raises:
        Invalid: an output has no form in JSON and was not asked for as binary.

    """
    outputs: list[dict[str, Any]] = []
    tail: list[Data] = []
    binary = False
    for tensor in response.outputs:
        said: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if asked.binary.get(tensor.name, asked.all_binary):
            binary = True
            said["parameters"] = {"binary_data_size": len(tensor.data)}
            tail.append(tensor.data)
        else:
            said["data"] = _json_values(tensor)
        outputs.append(said)
    message = {
        "model_name": response.model,
        "model_version": response.version,
        **({"id": response.id} if response.id else {}),
        "parameters": response.parameters,
        "outputs": outputs,
    }
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    return [head, *tail], len(head) if binary else None


def is_long(response: InferResponse) -> bool:
    """Say whether an answer takes long to write as JSON."""
    return any(len(one.data) > LONG for one in response.outputs)


def write_numbers(values: NDArray[Any]) -> NDArray[Any] | orjson.Fragment:
    """Write many numbers piece by piece, so that others have their turn in between."""
    if values.size <= LONG:
        return values
    pieces = (
        orjson.dumps(values[at : at + LONG], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        for at in range(0, len(values), LONG)
    )
    return orjson.Fragment(b"[" + b",".join(pieces) + b"]")


def _json_values(tensor: Tensor) -> NDArray[Any] | orjson.Fragment | list[str]:
    if tensor.datatype == BYTES:
        try:
            strings = unpack_strings(tensor.data, math.prod(tensor.shape))
            return [one.decode() for one in strings]
        except UnicodeDecodeError:
            raise _without_json(tensor) from None
    if tensor.datatype not in NUMPY:
        raise _without_json(tensor)
    # What is not finite is written as null, which clients read as NaN.
    return write_numbers(unpack_numbers(tensor.datatype, tensor.data))


def _without_json(tensor: Tensor) -> Invalid:
    return Invalid(
        "Output {name!r} holds {datatype} values that JSON cannot say; ask for binary data.",
        code="not_json",
        name=tensor.name,
        datatype=tensor.datatype,
    )


def dump(value: Any) -> bytes:
    """Write what is not a tensor as JSON."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


class Unpacking:
    """Undoes gzip or deflate piece by piece, up to a limit and no further."""

    def __init__(self, body: bytes, limit: int) -> None:
        self._limit, self._most = limit, limit
        if body.startswith(_GZIP):
            # It ends with its own size, so that a bomb is known before any of it is unpacked. What
            # is more than it says is broken.
            whole = len(body) >= _GZIP_FRAME_BYTES
            self._most = int.from_bytes(body[-4:], "little") if whole else 0
            if self._most > limit:
                raise self._too_large()
        # 32 more than the largest window: either of the two headers.
        self._stream = zlib.decompressobj(wbits=47)
        self._body, self._at = memoryview(body), 0
        self._size = 0

    def next(self) -> bytes:
        """Give the next piece, or nothing at the end.

        Raises:
            Invalid: it is neither, or ends too soon; TooLarge: it grows beyond the limit.

        """
        while not self._stream.eof:
            fed: Data = self._stream.unconsumed_tail
            if not fed and self._at >= len(self._body):
                break
            if not fed:
                fed = self._body[self._at : self._at + FED_PIECE_BYTES]
                self._at += len(fed)
            # No byte more would be no limit at all to zlib.
            wanted = min(UNPACKED_PIECE_BYTES, self._most - self._size + 1)
            try:
                found = self._stream.decompress(fed, wanted)
            except zlib.error:
                template = "The body is neither gzip nor deflate."
                raise Invalid(template, code="bad_encoding") from None
            self._size += len(found)
            if self._size > self._most:
                break
            if found:
                return found
        if self._size > self._most == self._limit:
            raise self._too_large()
        whole = self._stream.eof and not self._stream.unused_data and self._at >= len(self._body)
        if self._size > self._most or not whole:
            raise Invalid("The compressed body ends too soon or goes on.", code="bad_encoding")
        return b""

    def _too_large(self) -> TooLarge:
        return TooLarge("The body unpacks to more than {limit} bytes.", limit=self._limit)


def deflate(parts: Sequence[Data], coding: str) -> bytes:
    """Pack an answer as gzip or deflate, fast rather than small."""
    stream = zlib.compressobj(1, wbits=31 if coding == "gzip" else 15)
    return b"".join([*(stream.compress(part) for part in parts), stream.flush()])
