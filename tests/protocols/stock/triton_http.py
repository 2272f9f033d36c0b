"""Triton's own HTTP client, in a process of its own: triton_http.py host:port."""

import asyncio
import sys

import numpy as np
import pytest
import tritonclient.http as client
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

MODEL = "lab/double"
URL = sys.argv[1]
TOKEN = {"Authorization": "Bearer my_token"}


def tensor(array, datatype, *, name="x", binary=True):
    one = client.InferInput(name, list(array.shape), datatype)
    one.set_data_from_numpy(array, binary_data=binary)
    return one


def refusal(call, *args, **more):
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    return caught.value.status(), caught.value.message()


def check_what_there_is(server):
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready(MODEL)
    assert server.is_model_ready(MODEL, "3")
    assert not server.is_model_ready("lab/nothing")
    assert not server.is_model_ready("nothing")
    assert server.get_server_metadata()["name"] == "modelyard"
    metadata = server.get_model_metadata(MODEL, "3")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert server.get_model_config(MODEL)["input"][0]["dims"] == [2]
    assert server.get_model_repository_index()[0]["name"] == MODEL
    assert server.get_inference_statistics()["model_stats"][0]["inference_count"] == 6
    assert server.get_inference_statistics(MODEL, "3")["model_stats"][0]["version"] == "3"
    assert server.get_system_shared_memory_status() == []
    server.unload_model(MODEL)
    assert not server.is_model_ready(MODEL)
    server.load_model(MODEL)
    assert server.is_model_ready(MODEL)


def check_tensors(server):
    values = np.array([[1.5, -2], [3, 4]], "f4")
    for binary_in in (True, False):
        for outputs in (
            None,
            [client.InferRequestedOutput("y", binary_data=True)],
            [client.InferRequestedOutput("y", binary_data=False)],
        ):
            for packed in (None, "gzip", "deflate"):
                found = server.infer(
                    MODEL,
                    [tensor(values, "FP32", binary=binary_in)],
                    outputs=outputs,
                    request_id="7",
                    request_compression_algorithm=packed,
                    response_compression_algorithm=packed,
                    parameters={"mine": "a"},
                    timeout=1_000_000,
                )
                assert np.array_equal(found.as_numpy("y"), values * 2)
                assert found.get_response()["id"] == "7"
                assert found.get_response()["model_version"] == "3"
    large = np.arange(200_000, dtype="f4").reshape(-1, 2)
    found = server.infer(MODEL, [tensor(large, "FP32")], response_compression_algorithm="gzip")
    assert np.array_equal(found.as_numpy("y"), large * 2)
    for datatype, array in {
        "INT8": np.array([-3], "i1"),
        "UINT8": np.array([3], "u1"),
        "INT16": np.array([-3], "i2"),
        "UINT16": np.array([3], "u2"),
        "INT32": np.array([-3], "i4"),
        "UINT32": np.array([3], "u4"),
        "INT64": np.array([-(2**40)], "i8"),
        "UINT64": np.array([2**60], "u8"),
        "FP16": np.array([1.5], "f2"),
        "FP64": np.array([1.5], "f8"),
    }.items():
        found = server.infer(MODEL, [tensor(array, datatype)])
        assert np.array_equal(found.as_numpy("y"), array * 2), datatype
    truths = np.array([True, False])
    assert np.array_equal(server.infer(MODEL, [tensor(truths, "BOOL")]).as_numpy("y"), truths)
    texts = np.array(["a", "", "多"], object)
    for binary in (True, False):
        found = server.infer(MODEL, [tensor(texts, "BYTES", binary=binary)]).as_numpy("y")
        assert [one.decode() for one in found] == ["a", "", "多"]
    empty = np.zeros((0, 2), "f4")
    assert server.infer(MODEL, [tensor(empty, "FP32")]).as_numpy("y").shape == (0, 2)
    many = [tensor(values, "FP32", name=f"x{at}") for at in range(5)]
    wanted = [client.InferRequestedOutput("y3"), client.InferRequestedOutput("y1")]
    found = server.infer(MODEL, many, outputs=wanted)
    assert found.as_numpy("y3") is not None
    assert found.as_numpy("y0") is None


def check_versions_and_tokens(server):
    values = [tensor(np.ones((1, 2), "f4"), "FP32")]
    for version in ("3", "production", "@production"):
        server.infer(MODEL, values, model_version=version)
    assert refusal(server.infer, MODEL, values, model_version="4")[0] == "404"
    assert refusal(server.infer, MODEL, values, model_version="nowhere")[0] == "404"
    status, message = refusal(server.infer, "nothing", values)
    assert status == "404"
    assert "nothing" in message
    assert refusal(server.infer, "lab/secret", values)[0] == "404"
    server.infer("lab/secret", values, headers=TOKEN)
    bad = {"Authorization": "Bearer other"}
    assert refusal(server.infer, MODEL, values, headers=bad)[0] == "401"
    assert refusal(server.infer, "lab/refused", values)[0] == "403"
    assert refusal(server.infer, "lab/busy", values)[0] == "429"
    assert refusal(server.load_model, MODEL, config="{}")[0] == "400"
    assert refusal(server.infer, MODEL, values, outputs=[_classes()])[0] == "400"
    assert refusal(server.get_model_metadata, "lab/nothing")[0] == "404"


def _classes():
    return client.InferRequestedOutput("y", class_count=3)


def check_many_at_once(url):
    with client.InferenceServerClient(url, concurrency=8) as server:
        arrays = [np.full((1, at % 5 + 1), at, "f4") for at in range(200)]
        calls = [server.async_infer(MODEL, [tensor(one, "FP32")]) for one in arrays]
        for array, call in zip(arrays, calls, strict=True):
            assert np.array_equal(call.get_result().as_numpy("y"), array * 2)


async def check_async(url):
    async with aio.InferenceServerClient(url) as server:
        assert await server.is_model_ready(MODEL)
        one = tensor(np.ones((1, 2), "f4"), "FP32")
        found = await asyncio.gather(*(server.infer(MODEL, [one]) for _ in range(20)))
        assert all(np.array_equal(each.as_numpy("y"), [[2, 2]]) for each in found)


with client.InferenceServerClient(URL) as direct:
    check_what_there_is(direct)
    check_tensors(direct)
    check_versions_and_tokens(direct)
check_many_at_once(URL)
asyncio.run(check_async(URL))
sys.stdout.write("done\n")
