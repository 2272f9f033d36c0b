"""Triton's own gRPC client, and others in its form, in a process of its own: host:port."""

import asyncio
import queue
import sys

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
from tritonclient.grpc import aio, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

MODEL = "lab/double"
URL = sys.argv[1]


def tensor(array, datatype, *, name="x"):
    one = client.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array)
    return one


def refusal(call, *args, **more):
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def check_what_there_is(server):
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready(MODEL)
    assert not server.is_model_ready("lab/nothing")
    assert server.get_server_metadata().name == "modelyard"
    assert list(server.get_model_metadata(MODEL, "3").inputs[0].shape) == [-1, 2]
    assert server.get_model_config(MODEL, as_json=True)["config"]["max_batch_size"] == 32
    assert server.get_model_repository_index().models[0].name == MODEL
    assert server.get_inference_statistics(MODEL).model_stats[0].inference_stats.success.count == 5
    assert not server.get_system_shared_memory_status().regions
    assert not server.get_cuda_shared_memory_status().regions
    server.unload_model(MODEL)
    assert not server.is_model_ready(MODEL)
    server.load_model(MODEL)
    assert server.is_model_ready(MODEL)


def check_tensors(server):
    values = np.array([[1.5, -2], [3, 4]], "f4")
    for packed in (None, "gzip", "deflate"):
        found = server.infer(
            MODEL,
            [tensor(values, "FP32")],
            request_id="7",
            compression_algorithm=packed,
            parameters={"a": "b", "c": 1, "d": True, "e": 0.5},
            priority=3,
            timeout=1_000_000,
            client_timeout=30,
        )
        assert np.array_equal(found.as_numpy("y"), values * 2)
        assert found.get_response().id == "7"
        assert found.get_response().parameters["modelyard_version"].string_param == "3"
    texts = np.array(["a", "", "多"], object)
    assert list(server.infer(MODEL, [tensor(texts, "BYTES")]).as_numpy("y")) == [
        one.encode() for one in texts
    ]
    half = np.array([1.5], "f2")
    assert server.infer(MODEL, [tensor(half, "FP16")]).as_numpy("y")[0] == 3


def check_typed_contents(stub):
    for datatype, field, values in (
        ("FP32", "fp32_contents", [1.5, -2]),
        ("FP64", "fp64_contents", [1.5, -2]),
        ("INT8", "int_contents", [1, -2]),
        ("INT32", "int_contents", [1, -2]),
        ("INT64", "int64_contents", [1, -(2**40)]),
        ("UINT8", "uint_contents", [1, 2]),
        ("UINT64", "uint64_contents", [1, 2**60]),
    ):
        answer = stub.ModelInfer(typed(datatype, field, values))
        assert list(getattr(answer.outputs[0].contents, field)) == [2 * one for one in values]
        assert not answer.raw_output_contents
    answer = stub.ModelInfer(typed("BOOL", "bool_contents", [True, False]))
    assert list(answer.outputs[0].contents.bool_contents) == [True, False]
    answer = stub.ModelInfer(typed("BYTES", "bytes_contents", [b"a", b"\xff"]))
    assert list(answer.outputs[0].contents.bytes_contents) == [b"a", b"\xff"]


def typed(datatype, field, values, *, name="x", shape=None):
    message = pb.ModelInferRequest(model_name=MODEL)
    one = message.inputs.add(name=name, datatype=datatype, shape=shape or [len(values)])
    getattr(one.contents, field).extend(values)
    return message


def check_refusals(server, stub):
    values = [tensor(np.ones((1, 2), "f4"), "FP32")]
    token = {"authorization": "Bearer my_token"}
    assert refusal(server.infer, "lab/nothing", values)[0] == "NOT_FOUND"
    assert refusal(server.infer, MODEL, values, model_version="4")[0] == "NOT_FOUND"
    assert refusal(server.infer, "lab/secret", values)[0] == "NOT_FOUND"
    server.infer("lab/secret", values, headers=token)
    bad = {"authorization": "Bearer other"}
    assert refusal(server.infer, MODEL, values, headers=bad)[0] == "UNAUTHENTICATED"
    assert refusal(server.infer, "lab/refused", values)[0] == "PERMISSION_DENIED"
    assert refusal(server.infer, "lab/busy", values)[0] == "RESOURCE_EXHAUSTED"
    assert refusal(server.infer, "lab/broken", values)[0] == "INTERNAL"
    assert refusal(server.load_model, MODEL, config="{}")[0] == "INVALID_ARGUMENT"
    assert refusal(server.get_log_settings)[0] == "UNIMPLEMENTED"
    assert refusal(server.infer, "lab/slow", values, client_timeout=0.2)[0] == "DEADLINE_EXCEEDED"
    for message in bad_messages():
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, (caught.value, message)
        assert caught.value.details()


def bad_messages():
    yield pb.ModelInferRequest(model_name=MODEL)
    yield typed("FP32", "fp32_contents", [1, 2], shape=[3])
    yield typed("FP32", "fp32_contents", [1, 2], shape=[10**9])
    yield typed("FP32", "fp32_contents", [1, 2], shape=[-1])
    yield typed("FP32", "fp32_contents", [1, 2], shape=[*[1] * 17, 2])
    yield typed("FP32", "fp64_contents", [1, 2])
    yield typed("FP31", "fp32_contents", [1, 2])
    yield typed("FP16", "fp32_contents", [1, 2])
    yield typed("INT8", "int_contents", [1, 300])
    yield typed("UINT8", "uint_contents", [1, 300])
    yield typed("FP32", "fp32_contents", [1, float("nan")])
    yield typed("FP32", "fp32_contents", [1, 2], name="")
    yield typed("FP32", "fp32_contents", [1, 2], name="x" * 1000)
    twice = typed("FP32", "fp32_contents", [1, 2])
    twice.inputs.add().CopyFrom(twice.inputs[0])
    yield twice
    both = typed("FP32", "fp32_contents", [1, 2])
    both.raw_input_contents.append(bytes(8))
    yield both
    for sizes in ((7,), (8, 8)):
        raw = pb.ModelInferRequest(model_name=MODEL)
        raw.inputs.add(name="x", datatype="FP32", shape=[2])
        raw.raw_input_contents.extend(bytes(size) for size in sizes)
        yield raw
    lying = pb.ModelInferRequest(model_name=MODEL)
    lying.inputs.add(name="x", datatype="BYTES", shape=[1])
    lying.raw_input_contents.append(b"\xff\xff\xff\xffab")
    yield lying
    many = pb.ModelInferRequest(model_name=MODEL)
    for at in range(100_000):
        many.inputs.add(name=f"x{at}", datatype="FP32", shape=[0])
    yield many
    shared = typed("FP32", "fp32_contents", [1, 2])
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    yield shared
    late = typed("FP32", "fp32_contents", [1, 2])
    late.parameters["timeout"].int64_param = -1
    yield late


def check_large_and_garbage(channel):
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for body, code in (
        (b"\xff" * 100, grpc.StatusCode.INVALID_ARGUMENT),
        (bytes(5_000_000), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (bytes(2**30), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            infer(body)
        assert caught.value.code() is code
    # A message that is small on the way and half a GB when unpacked.
    with pytest.raises(grpc.RpcError) as caught:
        infer(bytes(2**29), compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def check_stream(server):
    found = queue.Queue()
    server.start_stream(callback=lambda result, error: found.put((result, error)))
    for at in range(50):
        model = "lab/nothing" if at == 20 else MODEL
        array = np.full((1, 2), at, "f4")
        server.async_stream_infer(model, [tensor(array, "FP32")], request_id=str(at))
    for at in range(50):
        result, error = found.get(timeout=30)
        if at == 20:
            assert "lab/nothing" in error.message()
            continue
        assert error is None, error
        assert result.get_response().id == str(at)
        assert np.array_equal(result.as_numpy("y"), np.full((1, 2), 2 * at))
    server.stop_stream()


async def check_async(url):
    async with aio.InferenceServerClient(url) as server:
        assert await server.is_model_ready(MODEL)
        one = tensor(np.ones((1, 2), "f4"), "FP32")
        found = await asyncio.gather(*(server.infer(MODEL, [one]) for _ in range(50)))
        assert all(np.array_equal(each.as_numpy("y"), [[2, 2]]) for each in found)


with client.InferenceServerClient(URL) as direct, grpc.insecure_channel(URL) as raw_channel:
    check_what_there_is(direct)
    check_tensors(direct)
    raw_stub = service_pb2_grpc.GRPCInferenceServiceStub(raw_channel)
    check_typed_contents(raw_stub)
    check_refusals(direct, raw_stub)
    check_stream(direct)
    check_large_and_garbage(raw_channel)
    check_typed_contents(raw_stub)
asyncio.run(check_async(URL))
sys.stdout.write("done\n")
