"""A fine-tune as an adapter to its base: what it holds, what it loses, and the two files."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

from registry.errors import Invalid
from registry.recipes import parse_recipe
from tests.workers.ml.little import (
    compress_recipe,
    run_job,
    write_cnn,
    write_digits,
    write_encoder,
    write_lstm,
)

BASE = "alice/base@1"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, encoder):
    """Write a fine-tune whose linear layers have moved by rank two, and norms a little."""
    folder = write_encoder(tmp_path_factory.mktemp("tuned"))
    model = BertModel.from_pretrained(encoder)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".attention." in name and parameter.ndim == 2:
            wide, deep = parameter.shape
            parameter.data += 0.3 * torch.randn(wide, 2) @ torch.randn(2, deep)
        elif name == "embeddings.word_embeddings.weight":
            parameter.data += 0.3 * torch.randn(len(parameter), 2) @ torch.randn(2, 32)
        elif "layer.1.output" in name and parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def recipe(rank=2, **more):
    made = {
        **compress_recipe(),
        "steps": [{"method": "extract_lora", "base": BASE, "rank": rank}],
        **more,
    }
    del made["dataset"]
    return made


def apply_as_peft_does(base, files):
    """Add an adapter to a state dict by the rules of PEFT's LoRA layers."""
    config = json.loads((files / "adapter_config.json").read_text())
    tensors = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in load_file(files / "adapter_model.safetensors").items()
    }
    state = dict(base)
    for layer in config["target_modules"]:
        rank = config["rank_pattern"].get(layer, config["r"])
        scale = config["alpha_pattern"].get(layer, config["lora_alpha"]) / rank
        if f"{layer}.lora_A.weight" in tensors:
            up, down = (tensors.pop(f"{layer}.lora_{part}.weight") for part in "BA")
            state[f"{layer}.weight"] = state[f"{layer}.weight"] + scale * up @ down
        else:
            up, down = (tensors.pop(f"{layer}.lora_embedding_{part}") for part in "BA")
            state[f"{layer}.weight"] = state[f"{layer}.weight"] + scale * (up @ down).T
    for name, tensor in tensors.items():
        plain = name.replace(".base_layer.", ".")
        layer = plain.rpartition(".")[0]
        assert layer in (config["modules_to_save"] or []) or config["bias"] == "all"
        state[plain] = tensor
    return state


def test_base_and_adapter_are_the_fine_tune(tmp_path, encoder, tuned):
    result = run_job(tmp_path / "job", recipe(), model=tuned, others=(encoder,))
    assert {file.name for file in result.files.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    base = BertModel.from_pretrained(encoder).state_dict()
    whole = BertModel.from_pretrained(tuned).state_dict()
    again = apply_as_peft_does(base, result.files)
    assert again.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.allclose(again[name], tensor, atol=1e-5), name
    assert result.metric("cosine_to_parent")["value"] > 0.99999
    assert result.metric("stored_bytes")["details"]["times_smaller"] > 3
    (step,) = result.report["summary"]["steps"]
    assert step["worst_error"] < 1e-5
    card = (result.files / "README.md").read_text()
    assert "base_model_relation: adapter" in card
    assert "base_model: alice/base" in card
    assert "library_name: peft" in card


def test_a_lower_rank_loses_what_the_report_says(tmp_path, encoder, tuned):
    result = run_job(tmp_path / "job", recipe(rank=1), model=tuned, others=(encoder,))
    (step,) = result.report["summary"]["steps"]
    assert 0.05 < step["worst_error"] < 1
    assert result.metric("cosine_to_parent")["value"] < 0.9999


def test_a_base_that_may_not_be_named_is_not(tmp_path, encoder, tuned):
    result = run_job(tmp_path / "job", recipe(), model=tuned, others=(encoder,), named=False)
    for file in result.files.iterdir():
        assert b"alice/base" not in file.read_bytes()


def test_layers_of_other_kinds_are_kept_whole(tmp_path, digits):
    base, tuned = write_cnn(tmp_path / "base"), write_cnn(tmp_path / "tuned", seed=1)
    result = run_job(tmp_path / "job", recipe(rank=4), model=tuned, others=(base,))
    saved = json.loads((result.files / "adapter_config.json").read_text())["modules_to_save"]
    assert len(saved) == 2
    again = apply_as_peft_does(load_file(base / "model.safetensors"), result.files)
    whole = load_file(tuned / "model.safetensors")
    for name, tensor in whole.items():
        if name.rpartition(".")[0] in saved:
            assert torch.equal(again[name], tensor)


def test_what_has_no_base_is_refused(tmp_path, encoder, tuned):
    def refusal(name, **inputs):
        with pytest.raises(Invalid) as refused:
            run_job(tmp_path / name, recipe(), **inputs)
        return refused.value.reason

    assert refusal("same", model=encoder, others=(write_encoder(tmp_path / "copy"),)) == (
        "nothing_to_extract"
    )
    lstm = write_lstm(tmp_path / "lstm")
    wide = write_lstm(tmp_path / "wide", hidden_size=16)
    assert refusal("shape", model=lstm, others=(wide,)) == "cannot_merge"
    with pytest.raises(Invalid, match="put it last"):
        parse_recipe(recipe(steps=[*recipe()["steps"], {"method": "code"}]))


def test_the_base_is_a_reference_of_the_recipe():
    parsed = parse_recipe(recipe())
    assert parsed.references()["base"] == BASE
    assert parsed.field_of("base") == "steps.0.base"
    exact = parsed.resolved({"model": "alice/tiny@7", "base": "alice/base@3"})
    assert exact.steps[0].base == "alice/base@3"
    assert exact.model == "alice/tiny@7"
