"""What is opened as a model, and what never is."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from registry.errors import Invalid
from tests.workers.ml.little import read_state, write_cnn, write_lstm
from workers.ml.formats import load_module, open_model
from workers.ml.infer.runtime import load_runtime


def refusal(call, *args):
    with pytest.raises(Invalid) as caught:
        call(*args)
    return caught.value.reason, caught.value.detail


def load(path):
    return load_module(open_model(path))


class Trap:
    """Unpickling this leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "weights.ckpt"])
def test_a_pickle_is_named_and_never_opened(tmp_path, name):
    mark = tmp_path / "mark"
    version = tmp_path / "version"
    version.mkdir()
    (version / name).write_bytes(pickle.dumps(Trap(mark)))
    (version / "config.json").write_text('{"architecture": {"name": "digits_cnn"}}')
    code, detail = refusal(load, version)
    assert code == "unsupported_format"
    assert name in detail
    assert not mark.exists()


def test_a_pickle_renamed_to_safetensors_is_refused(tmp_path):
    mark = tmp_path / "mark"
    version = write_cnn(tmp_path / "version")
    (version / "model.safetensors").write_bytes(pickle.dumps(Trap(mark)))
    assert refusal(load, version)[0] == "malformed_file"
    assert not mark.exists()


def test_a_saved_model_loads_as_it_was(tmp_path):
    module, parameters = load(write_cnn(tmp_path, seed=5))
    again, _ = load(write_cnn(tmp_path, seed=5))
    assert parameters.channels == 2
    state = read_state(tmp_path / "model.safetensors")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"architecture": {"name": "bert"}}, "unknown_architecture"),
        ({"architecture": {"name": "digits_cnn", "channels": 3}}, "weights_mismatch"),
        ({"labels": ["a"]}, "bad_labels"),
        ({"labels": "ab"}, "bad_config"),
        ({"labels": ["a", "b"]}, "weights_mismatch"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, change, code):
    version = write_cnn(tmp_path)
    config = json.loads((version / "config.json").read_text())
    (version / "config.json").write_text(json.dumps({**config, **change}))
    assert refusal(load, version)[0] == code


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_damaged_config_is_refused(tmp_path, content):
    version = write_cnn(tmp_path)
    (version / "config.json").write_text(content)
    assert refusal(load, version)[0] == "bad_config"


@pytest.mark.parametrize("preprocessing", [None, [], {"columns": 3}, {"columns": {"text": 1}}])
def test_preprocessing_that_says_nothing_is_none(tmp_path, preprocessing):
    version = write_cnn(tmp_path)
    config = json.loads((version / "config.json").read_text())
    (version / "config.json").write_text(json.dumps({**config, "preprocessing": preprocessing}))
    assert open_model(version).columns == {}


def test_a_text_model_must_say_how_long_texts_may_be(tmp_path):
    version = write_lstm(tmp_path)
    config = json.loads((version / "config.json").read_text())
    (version / "config.json").write_text(json.dumps({**config, "preprocessing": 3}))
    with pytest.raises(Invalid, match="max_length"):
        load_runtime(open_model(version), device="cpu", threads=1)


def test_a_config_without_an_architecture_is_refused(tmp_path):
    version = write_cnn(tmp_path)
    (version / "config.json").write_text("{}")
    assert refusal(load, version)[0] == "unknown_architecture"
    (version / "config.json").unlink()
    assert refusal(load, version)[0] == "missing_config"


def test_a_header_that_lies_is_refused(tmp_path):
    version = write_cnn(tmp_path)
    content = (version / "model.safetensors").read_bytes()
    (version / "model.safetensors").write_bytes(content[:-8])
    code, detail = refusal(load, version)
    assert code == "malformed_file"
    assert "model.safetensors" in detail


def test_too_many_tensors_are_named(tmp_path):
    version = write_cnn(tmp_path)
    state = read_state(version / "model.safetensors")
    save_file({**state, "extra": torch.zeros(2)}, version / "model.safetensors")
    code, detail = refusal(load, version)
    assert code == "weights_mismatch"
    assert "'extra'" in detail


def test_a_link_out_of_the_version_is_not_followed(tmp_path):
    outside = write_cnn(tmp_path / "outside")
    version = tmp_path / "version"
    version.mkdir()
    (version / "model.safetensors").symlink_to(outside / "model.safetensors")
    (version / "config.json").write_bytes((outside / "config.json").read_bytes())
    assert refusal(load, version)[0] == "unsupported_format"


def test_an_empty_version_and_several_onnx_files_are_explained(tmp_path):
    assert "no files" in refusal(open_model, tmp_path)[1]
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"")
    assert "several ONNX files" in refusal(open_model, tmp_path)[1]
    (tmp_path / "model.onnx").write_bytes(b"")
    assert open_model(tmp_path).weights.name == "model.onnx"
