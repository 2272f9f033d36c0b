"""Models on a GPU: what the sandbox hands them, and the same answers where there is one."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf.json_format import ParseDict

from registry.errors import Unavailable
from tests.workers.ml import little
from tests.workers.serving import yard as y
from tests.workers.serving.test_versions import PATIENT, files_of, images, torch_says
from workers.devices import gpu_of_server
from workers.serving import process
from workers.serving.messages import Tensor
from workers.serving.protos.model_config_pb2 import ModelConfig, ModelInstanceGroup

HAS_GPU = torch.cuda.is_available()


@pytest.mark.parametrize("said", ["-1", "cpu", "0x1", "1000"])
def test_a_device_is_a_number(said):
    with pytest.raises(Unavailable, match="number of a GPU"):
        gpu_of_server(said)


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")
def test_a_device_that_is_not_there_is_named():
    assert gpu_of_server("") is None
    with pytest.raises(Unavailable, match="GPU 3"):
        gpu_of_server("3")


@pytest.mark.parametrize(("gpu", "shown"), [(None, ""), (0, "0")])
def test_a_model_sees_the_device_of_its_server_and_no_other(yard, gpu, shown):
    """Without CUDA in ONNX Runtime it computes on the CPU all the same."""
    yard.route("a/double", yard.version("a/double", 1, y.linear()))

    async def go():
        async with yard.plane(gpu=gpu) as plane:
            _, (answer,) = await y.ask(plane, "a/double", y.floats([[3.0]]))
            (served,) = plane.fleet.all
            process = Path("/proc") / str(served.process.pid)
            seen = dict(
                one.split("=", 1)
                for one in (process / "environ").read_text().split("\0")
                if "=" in one
            )
            limits = (process / "limits").read_text().splitlines()
            return answer.tolist(), seen, limits

    answer, seen, limits = asyncio.run(go())
    assert answer == [[6.0]]
    assert seen["CUDA_VISIBLE_DEVICES"] == shown
    (space,) = [one for one in limits if one.startswith("Max address space")]
    # CUDA reserves far more of it than there is memory.
    assert space.split()[3] == "unlimited"


def group_of(yard, gpu):
    yard.route("a/double", yard.version("a/double", 1, y.linear()))

    async def go():
        async with yard.plane(gpu=gpu) as plane:
            config = await plane.model_config(y.ALICE, "a/double", "")
            (group,) = ParseDict(config, ModelConfig()).instance_group
            return ModelInstanceGroup.Kind.Name(group.kind), [*group.gpus]

    return asyncio.run(go())


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")
@pytest.mark.parametrize("gpu", [None, 2])
def test_a_config_says_that_a_model_computes_on_the_cpu_where_it_does(yard, gpu):
    """Also on a server of a GPU whose runtime was not built for one."""
    assert group_of(yard, gpu) == ("KIND_CPU", [])


@pytest.mark.parametrize("runtime", ["onnxruntime/cuda", "torch/cuda"])
def test_a_config_says_which_gpu_a_model_computes_on(yard, monkeypatch, runtime):
    """What its process says it runs on is all that a machine without one lacks."""
    read = process.read_described
    monkeypatch.setattr(process, "read_described", lambda said: read({**said, "runtime": runtime}))
    assert group_of(yard, 2) == ("KIND_GPU", [2])
    # No server without one believes it.
    assert group_of(yard, None) == ("KIND_CPU", [])


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("runtime", ["auto", "torch"])
def test_a_model_on_the_gpu_answers_as_on_the_cpu(tmp_path, yard, runtime):
    folder = little.write_cnn(tmp_path / "cnn")
    image = images(5)
    expected = torch_says(folder, {"image": image})
    yard.route("a/cnn", yard.version("a/cnn", 1, files_of(folder), runtime=runtime, **PATIENT))

    async def go():
        async with yard.plane(gpu=0) as plane:
            await plane.load(y.ALICE, "a/cnn")
            tensor = Tensor("image", "UINT8", image.shape, image.tobytes())
            response, (logits,) = await y.ask(plane, "a/cnn", tensor)
            config = await plane.model_config(y.ALICE, "a/cnn", "")
            (group,) = config["instance_group"]
            return response.parameters["modelyard_runtime"], logits, group

    used, logits, group = asyncio.run(go())
    assert np.allclose(logits, expected, atol=1e-3)
    if runtime == "torch":
        assert used.endswith("cuda")
    on_gpu = used.endswith("cuda")
    said = ("KIND_GPU", [0]) if on_gpu else ("KIND_CPU", [])
    assert (group["kind"], group["gpus"]) == said
