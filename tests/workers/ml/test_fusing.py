"""Fusing: fewer operators and bytes, and the same answers."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from registry.errors import Invalid, RegistryError
from tests.workers.ml.little import run_job, write_cnn, write_encoder
from workers.ml.compress import fuse as module_under_test
from workers.ml.compress.fuse import fold_batch_norms, fuse
from workers.ml.graphs import inspect_onnx

RECIPE = {"kind": "compress", "model": "alice/tiny@1", "steps": [{"method": "fuse"}]}


def settle(module):
    """Give batch norms statistics that are not those of a new one."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    return module.eval()


def test_folded_batch_norms_change_nothing_but_the_count():
    torch.manual_seed(0)
    module = settle(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 6),
            nn.BatchNorm1d(6),
        )
    )
    x = torch.randn(5, 3, 9, 9)
    expected = module(x)
    folded, names = fold_batch_norms(module)
    assert names == ["1", "6"]
    assert torch.allclose(folded(x), expected, atol=1e-5)
    assert isinstance(folded[1], nn.Identity)
    assert isinstance(module[1], nn.BatchNorm2d)


class Shared(nn.Module):
    """A layer whose answer is seen by somebody else too, and one that is used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.twice = nn.Linear(4, 4)
        self.last = nn.BatchNorm1d(4)

    def forward(self, x):
        h = self.first(x)
        return self.last(self.twice(self.twice(self.norm(h)))) + h


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.norm(self.layer(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("make", [Shared, Branching])
def test_what_cannot_be_folded_safely_stays(make):
    module = settle(make())
    x = torch.randn(6, 4)
    folded, names = fold_batch_norms(module)
    assert names == []
    assert torch.equal(folded(x), module(x))


def graph(path, nodes, constants, *, width=16):
    made = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 4


def probes():
    return [{"x": drawn(4, 16, seed=9)}]


def test_identities_duplicates_and_constants_go(tmp_path):
    source = graph(
        tmp_path / "model.onnx",
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Add", ["w", "v"], ["sum"]),
            helper.make_node("MatMul", ["same", "sum"], ["a"]),
            helper.make_node("MatMul", ["same", "sum"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        {"w": drawn(16, 16), "v": drawn(16, 16, seed=1)},
    )
    done = fuse(source, tmp_path / "small.onnx", level="basic", probes=probes())
    assert inspect_onnx(tmp_path / "small.onnx").operators == {"MatMul": 1, "Add": 1}
    assert (done.nodes_before, done.nodes_after) == (5, 2)
    assert done.bytes_after < done.bytes_before
    assert done.largest_difference < 1e-6


def test_layers_with_equal_weights_are_stored_once(tmp_path):
    weight = drawn(16, 16)
    source = graph(
        tmp_path / "model.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Tanh", ["h"], ["t"]),
            helper.make_node("MatMul", ["t", "v"], ["y"]),
        ],
        {"w": weight, "v": weight.copy()},
    )
    done = fuse(source, tmp_path / "small.onnx", probes=probes())
    assert done.shared_tensors == 1
    assert done.bytes_before - done.bytes_after > 900
    fuse(source, tmp_path / "whole.onnx", share=False, probes=probes())
    assert inspect_onnx(tmp_path / "whole.onnx").weight_bytes["FLOAT"] == 2 * 1024


@pytest.mark.parametrize("wrong", [drawn(16, 16, seed=5), np.full((16, 16), np.nan, np.float32)])
def test_a_result_that_answers_otherwise_is_refused(tmp_path, monkeypatch, wrong):
    source = graph(
        tmp_path / "model.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": drawn(16, 16)},
    )
    other = graph(
        tmp_path / "other.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": wrong},
    )
    monkeypatch.setattr(
        module_under_test,
        "_optimise",
        lambda source, target, level: target.write_bytes(other.read_bytes()),
    )
    with pytest.raises(Invalid, match="answers otherwise") as caught:
        fuse(source, tmp_path / "small.onnx", probes=probes())
    assert caught.value.reason == "not_equal"


def test_a_file_with_an_unknown_operator_is_refused(tmp_path):
    source = graph(
        tmp_path / "model.onnx",
        [helper.make_node("Wonder", ["x"], ["y"], domain="somewhere.else")],
        {},
    )
    with pytest.raises(Invalid) as caught:
        fuse(source, tmp_path / "small.onnx", probes=probes())
    assert caught.value.reason == "cannot_fuse"
    assert "Wonder" in caught.value.detail


@pytest.mark.slow
def test_an_encoder_is_fused_into_fewer_operators_the_same_each_time(tmp_path):
    model = write_encoder(tmp_path / "model")
    recipe = {**RECIPE, "steps": [{"method": "fuse", "level": "extended"}]}
    made = [run_job(tmp_path / name, recipe, model=model) for name in ("first", "second")]
    (notes,) = made[0].report["summary"]["steps"]
    assert notes["nodes_after"] < notes["nodes_before"]
    assert made[0].metric("cosine_to_parent")["value"] > 0.999999
    files = [(result.files / "model.onnx").read_bytes() for result in made]
    assert files[0] == files[1]
    assert str(tmp_path).encode() not in files[0]


def test_a_quantized_model_is_not_fused(tmp_path):
    model = write_cnn(tmp_path / "model")
    steps = [{"method": "quantize_weights"}, {"method": "fuse"}]
    with pytest.raises(RegistryError) as caught:
        run_job(tmp_path / "job", {**RECIPE, "steps": steps}, model=model)
    assert caught.value.reason == "already_quantized"


def test_a_fused_model_can_be_quantized(tmp_path):
    model = write_cnn(tmp_path / "model")
    steps = [{"method": "fuse"}, {"method": "quantize_weights", "bits": 8}]
    result = run_job(tmp_path / "job", {**RECIPE, "steps": steps}, model=model)
    assert result.metric("cosine_to_parent")["value"] > 0.999
    assert "MatMulNBits" in result.report["summary"]["operators"]
