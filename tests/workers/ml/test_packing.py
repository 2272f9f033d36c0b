"""Linear layers packed in 8 or 4 bits: exact bits, plain files that open again, refusals."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from registry.errors import RegistryError
from tests.workers.ml.little import (
    LSTM,
    compress_recipe,
    infer_recipe,
    read_state,
    run_job,
    train_recipe,
    write_encoder,
    write_program,
    write_texts,
)
from workers.ml.compress.pack import pack_linear
from workers.ml.formats import load_module, open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.packed import PackedLinear


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    return run_job(tmp_path_factory.mktemp("trained"), train_recipe(epochs=6), dataset=digits).files


@pytest.fixture(scope="module")
def packed(tmp_path_factory, trained, digits):
    recipe = compress_recipe(method="pack_linear")
    return run_job(tmp_path_factory.mktemp("packed"), recipe, model=trained, dataset=digits)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(wide=24, deep=64, *, bias=True):
    layer = nn.Linear(deep, wide, bias=bias)
    with torch.no_grad():
        layer.weight.copy_(drawn(wide, deep))
    return nn.Sequential(layer).eval()


def refusal(*args, **kwargs):
    with pytest.raises(RegistryError) as caught:
        run_job(*args, **kwargs)
    return caught.value


@pytest.mark.parametrize("bias", [True, False])
def test_eight_bits_round_each_output_by_its_largest_weight(bias):
    module = linear(bias=bias)
    before, x = module[0].weight.detach().clone(), drawn(5, 64, seed=1)
    pack_linear(module, bits=8)
    layer = module[0]
    assert layer.numbers.dtype == torch.int8
    steps = layer.scales
    # Of the 256 numbers the outer ones reach half a step less than the largest weight.
    assert torch.allclose(steps.squeeze(1), before.abs().amax(1) / 127.5, rtol=1e-5)
    assert bool(((layer.weight - before).abs() <= 0.501 * steps).all())
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(module(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group", [32, 64])
def test_four_bits_have_a_scale_and_a_zero_for_each_group(group):
    module = linear()
    before, x = module[0].weight.detach().clone(), drawn(5, 64, seed=1)
    (told,) = pack_linear(module, bits=4, group=group).layers
    layer = module[0]
    assert (layer.numbers.dtype, tuple(layer.numbers.shape)) == (torch.uint8, (24, 32))
    assert tuple(layer.scales.shape) == (24, 64 // group)
    steps = layer.scales.float().repeat_interleave(group, 1)
    # The scale has eight bits itself, so the outer numbers may lie a little further off.
    assert bool(((layer.weight - before).abs() <= 0.6 * steps).all())
    lost = ((layer.weight - before) ** 2).sum() / (before**2).sum()
    assert told.weight_error == pytest.approx(float(lost), rel=1e-3)
    assert 0.001 < told.weight_error < 0.02
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.allclose(module(x), expected, rtol=1e-5, atol=1e-5)


def test_two_numbers_share_a_byte_the_first_in_its_upper_half():
    module = linear(wide=1, deep=32, bias=False)
    with torch.no_grad():
        module[0].weight.copy_(torch.arange(32).remainder(16).float()[None])
    pack_linear(module, bits=4, group=32)
    layer = module[0]
    # The weights 0 to 15 are the numbers 0 to 15, with a step of one and the zero at zero.
    assert layer.numbers[0, :8].tolist() == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    assert (layer.scales.tolist(), layer.zeros.tolist()) == ([[1.0]], [[0]])
    assert layer.whole_numbers()[0, :16].tolist() == list(range(16))


def test_what_the_kernel_of_a_gpu_takes_stands_for_the_same_weights():
    """Its numbers mean `(number - 8) * scale + middle`, in tiles that only a GPU can make."""
    module = linear()
    pack_linear(module, bits=4, group=32)
    layer = module[0]
    both = layer.scales_and_middles()
    assert tuple(both.shape) == (1024 // 32, 24, 2)
    scales, middles = both[:2].float().transpose(0, 1).unbind(-1)
    halves = torch.stack([layer.numbers >> 4, layer.numbers & 15], -1).flatten(1).float()
    meant = (halves - 8) * scales.repeat_interleave(32, 1) + middles.repeat_interleave(32, 1)
    assert torch.allclose(meant, layer.weight, atol=2e-2 * float(layer.weight.abs().max()))


def test_a_layer_whose_inputs_fill_no_groups_is_left_and_named():
    module = nn.Sequential(nn.Linear(64, 12), nn.Linear(12, 3), nn.Conv1d(1, 1, 3))
    done = pack_linear(module, bits=4, group=32)
    assert [layer.layer for layer in done.layers] == ["0"]
    assert done.left["1"].detail == "its 12 inputs are no multiple of 32"
    assert type(module[1]) is nn.Linear
    assert "Conv1d" in done.left["2"].detail


def test_a_packed_cnn_answers_as_before_and_tells_its_price(trained, digits, packed):
    assert packed.metric("agreement_with_parent")["value"] > 0.95
    assert packed.metric("stored_bytes")["details"]["times_smaller"] > 2
    count = packed.metric("parameters")
    assert count["value"] == count["details"]["parent"]["value"]
    assert packed.metric("nonzero")["value"] <= count["value"]
    (told,) = packed.report["summary"]["steps"]
    assert {layer["layer"] for layer in told["layers"]} == {"hidden", "classes"}
    assert all(layer["bits"] == 8 and 0 < layer["weight_error"] < 1e-3 for layer in told["layers"])
    state = load_file(packed.files / "model.safetensors")
    before = load_file(trained / "model.safetensors")
    assert (state["hidden.numbers"].dtype, "hidden.weight" in state) == (torch.int8, False)
    assert torch.equal(state["first.weight"], before["first.weight"])
    card = (packed.files / "README.md").read_text()
    assert "base_model_relation: quantized" in card


def test_a_packed_version_opens_without_torchao(packed, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    module, _ = load_module(open_model(packed.files))
    assert isinstance(module.hidden, PackedLinear)


def test_it_predicts_and_is_profiled_and_is_coded(tmp_path, packed, digits):
    said = run_job(tmp_path / "infer", infer_recipe(), model=packed.files, dataset=digits)
    assert said.metric("accuracy")["value"] == packed.metric("accuracy")["value"]
    profile = {
        "kind": "profile",
        "model": "alice/tiny@1",
        "dataset": "alice/little@1",
        "steps": [{}],
    }
    layers = run_job(tmp_path / "profile", profile, model=packed.files, dataset=digits).report
    (hidden,) = [layer for layer in layers["summary"]["layers"] if layer["name"].endswith("hidden")]
    state = load_file(packed.files / "model.safetensors")
    assert hidden["parameters"] == state["hidden.numbers"].numel()
    assert hidden["macs"] == state["hidden.numbers"].numel()
    code = compress_recipe(method="code")
    coded = run_job(tmp_path / "code", code, model=packed.files, dataset=digits)
    assert coded.metric("agreement_with_parent")["value"] == 1
    assert (coded.files / "model.myz").is_file()


def test_the_same_recipe_gives_the_same_bytes(tmp_path, trained, digits, packed):
    recipe = compress_recipe(method="pack_linear")
    again = run_job(tmp_path, recipe, model=trained, dataset=digits)
    for name in ("model.safetensors", "config.json"):
        assert (again.files / name).read_bytes() == (packed.files / name).read_bytes()


def test_a_text_classifier_keeps_its_table_and_its_lstm(tmp_path):
    texts = write_texts(tmp_path / "texts")
    trained = run_job(tmp_path / "train", train_recipe(LSTM), dataset=texts).files
    recipe = compress_recipe(method="pack_linear")
    small = run_job(tmp_path / "pack", recipe, model=trained, dataset=texts)
    (told,) = small.report["summary"]["steps"]
    assert [layer["layer"] for layer in told["layers"]] == ["classes"]
    assert any("LSTM" in why for why in told["left"].values())


def test_an_encoder_is_followed_closely(tmp_path):
    texts, encoder = write_texts(tmp_path / "texts"), write_encoder(tmp_path / "encoder")
    recipe = compress_recipe(method="pack_linear")
    small = run_job(tmp_path / "pack", recipe, model=encoder, dataset=texts)
    assert small.metric("cosine_to_parent")["value"] > 0.999
    names = read_state(small.files / "model.safetensors")
    assert any(name.endswith("attention.self.query.numbers") for name in names)
    said = run_job(tmp_path / "infer", infer_recipe(), model=small.files, dataset=texts)
    assert said.metric("throughput")["value"] > 0


def test_an_exported_program_is_packed_under_its_own_names(tmp_path, digits):
    program = tmp_path / "program"
    write_program(program, digits)
    recipe = compress_recipe(method="pack_linear")
    small = run_job(tmp_path / "pack", recipe, model=program, dataset=digits)
    assert small.metric("agreement_with_parent")["value"] > 0.9
    assert any(name.endswith(".numbers") for name in read_state(small.files / "model.safetensors"))


def test_four_bits_open_and_answer_on_a_cpu(tmp_path, trained, digits):
    """A GPU makes them; who has none runs them all the same."""
    module, _ = load_module(open_model(trained))
    pack_linear(module, bits=4, group=32)
    folder = tmp_path / "four"
    folder.mkdir()
    save_file(dict(module.state_dict()), folder / "model.safetensors")
    config = json.loads((trained / "config.json").read_text())
    layers = [name for name, part in module.named_modules() if isinstance(part, PackedLinear)]
    config["structure"] = [{"change": "packed", "layers": layers}]
    (folder / "config.json").write_text(json.dumps(config))
    runtime = load_runtime(open_model(folder), device="cpu", threads=1)
    assert runtime.engine.module.hidden.bits == 4
    said = run_job(tmp_path / "infer", infer_recipe(), model=folder, dataset=digits)
    whole = run_job(tmp_path / "before", infer_recipe(), model=trained, dataset=digits)
    apart = said.metric("accuracy")["value"] - whole.metric("accuracy")["value"]
    assert abs(apart) <= 0.1


def test_four_bits_are_refused_on_a_cpu_and_eight_without_torchao(
    tmp_path, trained, digits, monkeypatch
):
    four = compress_recipe(method="pack_linear", bits=4)
    error = refusal(tmp_path / "four", four, model=trained, dataset=digits)
    assert error.reason == "no_int4"
    assert "this job would run on cpu. Use quantize_weights" in error.detail
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = compress_recipe(method="pack_linear")
    error = refusal(tmp_path / "none", recipe, model=trained, dataset=digits)
    assert error.reason == "missing_library"
    assert "torchao is not installed on this worker" in error.detail


@pytest.mark.parametrize(
    "recipe",
    [
        compress_recipe(),
        compress_recipe(method="pack_linear"),
        compress_recipe(method="fine_tune", epochs=1),
        {**train_recipe(), "model": "alice/tiny@1", "architecture": None},
        {
            "kind": "search",
            "model": "alice/tiny@1",
            "dataset": "alice/little@1",
            "steps": [{"method": "search", "max_accuracy_loss": 0.1, "budget_minutes": 1}],
        },
    ],
    ids=["int8", "again", "fine-tune", "train", "search"],
)
def test_packed_weights_are_changed_no_more(tmp_path, packed, digits, recipe):
    error = refusal(tmp_path, recipe, model=packed.files, dataset=digits)
    assert error.reason == "already_quantized"
    assert "choose the version that it was made from" in error.detail


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"hidden.numbers": (8, 5)}, "weights_mismatch"),
        ({"hidden.numbers": (9, 64)}, "weights_mismatch"),
        ({"hidden.scales": (8, 3)}, "weights_mismatch"),
        ({"hidden.scales": (1, 1)}, "weights_mismatch"),
        ({"classes.zeros": (4, 1)}, "weights_mismatch"),
    ],
)
def test_a_file_whose_numbers_do_not_fit_is_refused(tmp_path, packed, changed, code):
    state = load_file(packed.files / "model.safetensors")
    for name, shape in changed.items():
        kind = state[name].dtype if name in state else torch.uint8
        state[name] = torch.zeros(math.prod(shape), dtype=kind).reshape(shape)
    folder = tmp_path / "odd"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_bytes((packed.files / "config.json").read_bytes())
    with pytest.raises(RegistryError) as caught:
        load_module(open_model(folder))
    assert caught.value.reason == code


def test_a_recipe_ends_with_what_is_packed():
    from registry.recipes import parse_recipe  # noqa: PLC0415 - of this test alone

    recipe = compress_recipe(method="pack_linear")
    steps = [*recipe["steps"], {"method": "code"}]
    assert len(parse_recipe({**recipe, "steps": steps}).steps) == 2
    with pytest.raises(RegistryError, match=r"put fine_tune before pack_linear"):
        parse_recipe({**recipe, "steps": [*recipe["steps"], {"method": "fine_tune"}]})
