"""Profiles: every layer with its weights, products and time, and what changing it alone costs."""

import numpy as np
import pytest
import torch

from registry.errors import RegistryError
from tests.workers.ml.little import (
    run_job,
    train_recipe,
    write_cnn,
    write_digits,
    write_encoder,
    write_lstm,
    write_texts,
)
from workers.ml import profile
from workers.ml.formats import load_module, open_model, save_module


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), train=400)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    return run_job(tmp_path_factory.mktemp("t"), train_recipe(epochs=3), dataset=digits).files


@pytest.fixture(scope="module")
def exported(tmp_path_factory, trained):
    recipe = {"kind": "compress", "model": "alice/tiny@1", "steps": [{"method": "export_onnx"}]}
    return run_job(tmp_path_factory.mktemp("onnx"), recipe, model=trained).files


def profile_recipe(*, dataset=True, **step):
    named = {"dataset": "alice/little@1"} if dataset else {}
    steps = [{"repetitions": 5, **step}]
    return {"kind": "profile", "model": "alice/tiny@1", **named, "steps": steps}


def layers_of(result):
    return {layer["name"]: layer for layer in result.report["summary"]["layers"]}


def test_each_layer_of_a_module_has_its_weights_products_and_time(tmp_path, trained):
    result = run_job(tmp_path / "job", profile_recipe(dataset=False), model=trained)
    layers = layers_of(result)
    assert {name: layer["parameters"] for name, layer in layers.items() if layer["kind"]} == {
        "first": 2 * 9 + 2,
        "second": 4 * 2 * 9 + 4,
        "hidden": 4 * 12 * 12 * 8 + 8,
        "classes": 8 * 4 + 4,
    }
    assert layers["hidden"]["bytes"] == 4 * layers["hidden"]["parameters"]
    assert layers["second"]["macs"] == 4 * 24 * 24 * 2 * 9
    assert sum(layer["share"] for layer in layers.values()) == pytest.approx(1)
    assert all(layer["milliseconds"] > 0 for layer in layers.values())
    assert any(layer["bottleneck"] for layer in layers.values())
    assert not layers["(other operators)"]["bottleneck"]
    assert result.metric("macs_per_row")["value"] == sum(x["macs"] for x in layers.values())
    assert not list(result.files.iterdir()), "a profile makes no files"


def test_a_graph_is_profiled_as_the_runtime_runs_it(tmp_path, exported):
    result = run_job(tmp_path / "job", profile_recipe(dataset=False), model=exported)
    assert result.report["summary"]["engine"] == "onnxruntime/cpu"
    kinds = sorted(layer["kind"] for layer in layers_of(result).values())
    assert kinds == ["", "FusedConv", "FusedConv", "FusedGemm", "Gemm"]
    assert result.metric("macs_per_row")["value"] == 58280


@pytest.mark.parametrize("form", ["module", "graph"])
def test_every_layer_is_tried_smaller(tmp_path, digits, trained, exported, form):
    model = trained if form == "module" else exported
    result = run_job(tmp_path / "job", profile_recipe(), model=model, dataset=digits)
    said = result.report["summary"]["sensitivity"]
    assert (said["measure"], said["rows"], said["split"]) == ("accuracy", 40, "train")
    assert said["tried"] == 4
    weighted = [layer for layer in layers_of(result).values() if layer["parameters"]]
    assert all(set(layer["sensitivity"]) == {"int8", "pruned"} for layer in weighted)
    for layer in weighted:
        assert layer["divergence"]["int8"] < layer["divergence"]["pruned"], layer["name"]
        assert abs(layer["sensitivity"]["int8"]) <= 0.05


def test_pruning_what_is_zero_already_costs_nothing(tmp_path, digits, trained):
    folder = open_model(trained)
    module, _parameters = load_module(folder)
    with torch.no_grad():
        flat = module.hidden.weight.view(-1)
        flat[torch.argsort(flat.abs())[: flat.numel() // 2]] = 0
    (tmp_path / "half").mkdir()
    save_module(module, folder.config, tmp_path / "half")
    recipe = profile_recipe(max_layers=1)
    result = run_job(tmp_path / "job", recipe, model=tmp_path / "half", dataset=digits)
    hidden = layers_of(result)["hidden"]
    assert (hidden["sensitivity"]["pruned"], hidden["divergence"]["pruned"]) == (0, 0)
    assert layers_of(result)["second"]["sensitivity"] == {}, "one layer was asked for"


def test_the_model_is_as_it_was_after_its_layers_were_changed(tmp_path, digits, trained):
    recipe = profile_recipe(max_rows=8)
    first = run_job(tmp_path / "1", recipe, model=trained, dataset=digits)
    again = run_job(tmp_path / "2", recipe, model=trained, dataset=digits)
    for name, layer in layers_of(first).items():
        assert layers_of(again)[name]["divergence"] == layer["divergence"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [write_lstm, write_encoder])
def test_texts_are_profiled(tmp_path, make):
    texts = write_texts(tmp_path / "texts")
    result = run_job(tmp_path / "job", profile_recipe(), model=make(tmp_path / "m"), dataset=texts)
    said = result.report["summary"]["sensitivity"]
    assert said["measure"] == ("accuracy" if make is write_lstm else "cosine")
    assert any("Embedding" in layer["kind"] for layer in layers_of(result).values())


def test_rounding_keeps_one_scale_for_each_output():
    weight = np.array([[100.0, 1.0], [0.25, 0.5]], np.float32)
    by_row = profile.rounded(weight, 0)
    assert by_row[1] == pytest.approx([0.25, 0.5], rel=0.01)
    assert profile.rounded(weight, -1)[1, 0] == 0
    assert profile.rounded(np.zeros((2, 2), np.float32), 0).any() == np.False_


def test_halving_drops_the_half_that_is_nearest_to_zero():
    weight = np.array([[3.0, -1.0], [0.5, -4.0]])
    assert profile.halved(weight, 0).tolist() == [[3.0, 0.0], [0.0, -4.0]]
    assert weight[0, 1] == -1, "the weight itself stays"


@pytest.mark.parametrize(
    ("step", "reason"), [({"split": "dev"}, "missing_split"), ({"label_column": "x"}, "")]
)
def test_a_dataset_that_does_not_fit_is_refused(tmp_path, digits, trained, step, reason):
    with pytest.raises(RegistryError) as caught:
        run_job(tmp_path / "job", profile_recipe(**step), model=trained, dataset=digits)
    assert reason in caught.value.reason


def test_an_untrained_model_can_be_profiled_too(tmp_path, digits):
    model = write_cnn(tmp_path / "model")
    result = run_job(tmp_path / "job", profile_recipe(), model=model, dataset=digits)
    assert result.report["message"].startswith("alice/tiny@1 profiled")
