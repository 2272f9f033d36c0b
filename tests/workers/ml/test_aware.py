"""Training with rounding: what is learned is what is stored."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from registry.errors import Invalid, RegistryError
from tests.workers.ml.little import run_job, train_recipe
from workers.ml.compress.aware import Aware, finish, prepare
from workers.ml.graphs import inspect_onnx

STEP = {
    "method": "train_quantized",
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.002,
    "checkpoint_interval": 5,
}


def recipe(*steps, **more):
    return {
        "kind": "compress",
        "model": "alice/tiny@1",
        "dataset": "alice/little@1",
        "steps": list(steps),
        **more,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    return run_job(tmp_path_factory.mktemp("trained"), train_recipe(epochs=6), dataset=digits).files


def test_gradients_go_straight_through_the_rounding():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    aware = Aware(layer, 64)
    x = torch.randn(8, 6)
    aware(x).sum().backward()
    # Of y = x w the gradient of w is the sum of x, as the layer saw it: rounded.
    rounded = aware._round_input(x)
    assert torch.allclose(layer.weight.grad, rounded.sum(0).expand(4, 6), atol=1e-5)
    assert float((rounded - x).abs().max()) <= float(aware.high - aware.low) / 255 * 0.51


def test_ranges_follow_training_and_not_what_is_looked_at():
    aware = Aware(nn.Linear(2, 2), 127)
    with torch.no_grad():
        aware(torch.full((3, 2), 9.0))
    assert not bool(aware.seen)
    aware(torch.tensor([[1.0, -2.0]]))
    assert (float(aware.low), float(aware.high)) == (-2.0, 1.0)
    aware(torch.tensor([[5.0, -2.0]]))
    assert float(aware.high) == pytest.approx(1.0 + 0.05 * 4)


@pytest.mark.parametrize(("reduce_range", "limit"), [(True, 64), (False, 127)])
def test_what_was_trained_is_put_back_with_weights_on_the_grid(reduce_range, limit):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    assert prepare(module, reduce_range=reduce_range) == ["0", "3"]
    assert isinstance(module[0], Aware)
    module(torch.randn(5, 1, 4, 4)).sum().backward()
    learned = finish(module)
    assert isinstance(module[0], nn.Conv2d)
    assert set(learned) == {"0", "3"}
    for name, found in learned.items():
        weight = module[int(name)].weight.detach().numpy()
        assert (weight == found.weight).all()
        flat = weight.reshape(len(weight), -1)
        codes = flat / (np.abs(flat).max(1, keepdims=True) / limit)
        assert np.abs(codes - np.rint(codes)).max() < 1e-3
    assert learned["3"].low == 0.0  # what a ReLU gives


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(Invalid) as caught:
        prepare(nn.Sequential(nn.ReLU()))
    assert caught.value.reason == "nothing_to_quantize"


def test_a_cnn_is_stored_with_exactly_what_it_learned(tmp_path, trained, digits):
    result = run_job(tmp_path / "job", recipe(STEP), model=trained, dataset=digits)
    assert result.metric("accuracy")["value"] > 0.85
    assert result.metric("accuracy_of_dense_control")["value"] > 0.85
    (notes,) = result.report["summary"]["steps"]
    assert notes["layers"] == ["first", "second", "hidden", "classes"]
    contents = inspect_onnx(result.files / "model.onnx")
    assert contents.operators["QuantizeLinear"] >= 4
    channels = 2 + 4 + 8 + 4  # each with its zero point
    assert contents.weight_bytes["INT8"] == notes_weights(trained) + channels
    scales = {
        round(float(numpy_helper.to_array(tensor)), 9)
        for tensor in onnx.load(result.files / "model.onnx").graph.initializer
        if tensor.name.endswith("_scale") and not tensor.dims
    }
    for low, high in notes["input_ranges"].values():
        assert any(scale == pytest.approx((high - low) / 255, rel=1e-4) for scale in scales)
    config = (result.files / "config.json").read_text()
    assert "train_quantized" in config


def notes_weights(trained):
    from tests.workers.ml.little import read_state  # noqa: PLC0415 - beside its one use

    state = read_state(trained / "model.safetensors")
    return sum(tensor.numel() for name, tensor in state.items() if name.endswith("weight"))


@pytest.mark.slow
def test_zeros_stay_zero_and_bytes_repeat(tmp_path, trained, digits):
    prune = {"method": "prune_magnitude", "sparsity": 0.5, "epochs": 0}
    asked = recipe(prune, {**STEP, "control": False})
    made = [
        run_job(tmp_path / name, asked, model=trained, dataset=digits)
        for name in ("first", "second")
    ]
    files = [result.files / "model.onnx" for result in made]
    assert files[0].read_bytes() == files[1].read_bytes()
    zeros = sum(
        int((numpy_helper.to_array(tensor) == 0).sum())
        for tensor in onnx.load(files[0]).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    )
    assert zeros >= 0.5 * notes_weights(trained) - 2


def test_layers_are_left_out_and_an_onnx_file_is_refused(tmp_path, trained, digits):
    asked = recipe({**STEP, "epochs": 1, "exclude": ["classes"], "control": False})
    result = run_job(tmp_path / "job", asked, model=trained, dataset=digits)
    (notes,) = result.report["summary"]["steps"]
    assert notes["layers"] == ["first", "second", "hidden"]
    with pytest.raises(RegistryError) as caught:
        run_job(tmp_path / "again", recipe(STEP), model=result.files, dataset=digits)
    assert caught.value.reason == "needs_module"
