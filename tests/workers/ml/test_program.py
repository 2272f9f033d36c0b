"""A user's own exported program: as plain data, as a module, and on the bench."""

import io
import json
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from registry.errors import Invalid
from tests.workers.ml.little import (
    Banded,
    compress_recipe,
    export_program,
    infer_recipe,
    read_state,
    run_job,
    write_digits,
    write_program,
)
from workers.ml.convert import PROGRAM, convert
from workers.ml.formats import load_program, open_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def program(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("program")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return folder, write_program(folder, digits)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), train=160, test=60)


def described(module, *example, **how):
    data = export_program(module.eval(), *example, **how)
    sink = io.BytesIO()
    said = convert(PROGRAM, io.BytesIO(data), len(data), sink, hints={})
    return said, sink.getvalue()


def loaded(folder, raw):
    folder.mkdir()
    (folder / "program.safetensors").write_bytes(raw)
    return load_program(open_model(folder))


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.norm = nn.LayerNorm(6)
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, tokens):
        x, _ = self.lstm(self.words(tokens))
        x = self.norm(x)
        x, _ = self.attend(x, x, x, need_weights=False)
        return self.out(nn.functional.gelu(x).mean(1))


def test_a_program_computes_the_same_from_its_description(tmp_path, program):
    module = program[1]
    image = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    again = load_program(open_model(program[0], trainable=True))
    assert torch.allclose(again(image), module(image), atol=1e-5)
    assert torch.allclose(again(image[:1]), module(image[:1]), atol=1e-5)
    kinds = {name: type(part).__name__ for name, part in again.named_modules()}
    assert kinds["features.0"] == "Conv2d"
    assert kinds["features.1"] == "BatchNorm2d"
    assert kinds["hidden"] == "Linear"
    assert again.state_dict().keys() == module.state_dict().keys()
    assert isinstance(again.turn, nn.Parameter)
    said, raw = described(Sequence(), torch.randint(0, 50, (2, 7)))
    assert said.format == "safetensors", said
    text = loaded(tmp_path / "text", raw)
    assert isinstance(text.lstm, nn.LSTM)
    tokens = torch.randint(0, 50, (3, 7))
    plain = Sequence().eval()
    plain.load_state_dict(text.state_dict())
    assert torch.allclose(text(tokens), plain(tokens), atol=1e-6)


def test_what_is_no_plain_program_is_named(tmp_path):
    class Two(nn.Module):
        def forward(self, x):
            return x + 1, x - 1

    class Drawn(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    said, _ = described(Two(), torch.zeros(2, 3))
    assert "2 things" in said.reason.detail
    said, _ = described(Drawn(), torch.zeros(2, 3))
    assert "aten.rand_like" in said.reason.detail
    said, _ = described(nn.Linear(3, 2), torch.zeros(2, 3), free=(None,))
    assert "dynamic_shapes" in said.reason.detail
    training = export_program(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), torch.zeros(2, 3))
    said = convert(PROGRAM, io.BytesIO(training), len(training), io.BytesIO(), hints={})
    assert "eval()" in said.reason.detail


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["steps"][0].update(op="aten.from_file.default"),
        lambda said: said["steps"][0].update(op="operator.attrgetter"),
        lambda said: said["steps"][0].update(op="builtins.eval"),
        lambda said: said["steps"][0].update(args=[{"ref": "nothing"}]),
        lambda said: said["steps"][0].update(args=[{"code": "print()"}]),
        lambda said: said["state"][0].update(name="forward"),
        lambda said: said["state"][0].update(name="_modules.x"),
        lambda said: said["state"][0].update(name='a"].b'),
        lambda said: said.update(output="nothing"),
        lambda said: said.update(steps="many"),
        lambda said: said.update(inputs=[]),
        lambda said: said["steps"][0].update(name=said["steps"][1]["name"]),
        lambda said: said["steps"].clear(),
    ],
)
def test_a_description_that_lies_is_refused(tmp_path, program, change):
    file = program[0] / "program.safetensors"
    with safe_open(file, framework="pt") as tensors:
        said = json.loads(tensors.metadata()["program"])
    change(said)
    folder = tmp_path / "lies"
    folder.mkdir()
    save_file(
        load_file(file), folder / "program.safetensors", metadata={"program": json.dumps(said)}
    )
    with pytest.raises(Invalid):
        load_program(open_model(folder))


def recipe(*steps, **more):
    return compress_recipe() | {"steps": [*steps], **more}


def test_a_program_is_pruned_fine_tuned_and_coded(tmp_path, program, digits):
    result = run_job(
        tmp_path / "job",
        recipe(
            {"method": "prune_magnitude", "sparsity": 0.8, "epochs": 4, "learning_rate": 0.01},
        ),
        model=program[0],
        dataset=digits,
    )
    assert result.metric("accuracy")["value"] > 0.7
    assert result.report["summary"]["steps"][0]["fine_tuning"]["epochs"] == 4
    assert result.report["summary"]["steps"][0]["sparsity"] == pytest.approx(0.8, abs=0.01)
    state = read_state(result.files / "model.safetensors")
    weights = torch.cat([state[f"{name}.weight"].flatten() for name in ("hidden", "classes")])
    assert (weights == 0).float().mean() > 0.7
    # The user's own class takes the weights back.
    own = Banded()
    own.load_state_dict(state)
    # And what came out is compressed further, as any version is.
    again = run_job(
        tmp_path / "again",
        recipe({"method": "cluster", "bits": 4}, {"method": "code"}),
        model=result.files,
        dataset=digits,
    )
    assert [file.name for file in sorted(again.files.glob("model.*"))] == ["model.myz"]
    assert again.metric("stored_bytes")["details"]["times_smaller"] > 3


@pytest.mark.parametrize(
    "step",
    [
        {"method": "quantize_dynamic"},
        {"method": "quantize_static"},
        {"method": "quantize_weights", "bits": 8},
        {"method": "train_quantized", "epochs": 1, "exclude": ["features.0"]},
        {"method": "export_onnx"},
    ],
)
def test_a_program_becomes_a_quantized_graph(tmp_path, program, digits, step):
    result = run_job(tmp_path / "job", recipe(step), model=program[0], dataset=digits)
    assert (result.files / "model.onnx").is_file()
    if step["method"] == "export_onnx":
        assert result.metric("agreement_with_parent")["value"] == 1.0


def test_low_rank_layers_of_a_program_load_again(tmp_path, program, digits):
    step = {"method": "svd", "by": "rank", "rank": 8}
    result = run_job(tmp_path / "job", recipe(step), model=program[0], dataset=digits)
    again = load_program(open_model(result.files))
    assert again.hidden.down.weight.shape == (8, 112)


def test_what_needs_an_architecture_is_refused_for_a_program(tmp_path, program, digits):
    for step in (
        {"method": "prune_structured", "epochs": 0},
        {"method": "distill", "hidden_size": 4},
    ):
        with pytest.raises(Invalid, match="written into its graph"):
            run_job(tmp_path / step["method"], recipe(step), model=program[0], dataset=digits)


def test_plain_columns_feed_a_program(tmp_path, digits):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    said, raw = described(module, torch.zeros(2, 6))
    assert said.format, said
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "program.safetensors").write_bytes(raw)
    (folder / "config.json").write_text('{"labels": ["no", "yes"]}')
    data = tmp_path / "data"
    data.mkdir()
    drawn = np.random.default_rng(0)
    for name in ("train", "test"):
        x = drawn.standard_normal((200, 6)).astype(np.float32)
        label = (x[:, 0] > x[:, 1]).astype(np.int64)
        save_file(
            {"input": torch.from_numpy(x), "label": torch.from_numpy(label)},
            data / f"{name}.safetensors",
        )
    step = {"method": "fine_tune", "epochs": 10, "learning_rate": 0.02}
    result = run_job(tmp_path / "job", recipe(step), model=folder, dataset=data)
    assert result.metric("accuracy")["value"] > 0.9


class Named(nn.Module):
    """A classifier whose author calls its input otherwise than the feeders do."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(28 * 28, 4)

    def forward(self, Picture_BHW):
        return self.out(Picture_BHW.flatten(1).float() / 255)


def write_named(folder, example):
    torch.manual_seed(0)
    folder.mkdir()
    data = export_program(Named().eval(), example)
    for kind, name in (("pt2", "model.onnx"), (PROGRAM, "program.safetensors")):
        with (folder / name).open("wb") as sink:
            assert convert(kind, io.BytesIO(data), len(data), sink, hints={}).format
    about = {"labels": list("0123"), "preprocessing": {"kind": "image"}}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def test_images_go_to_the_one_input_whatever_it_is_called(tmp_path, digits):
    folder = write_named(tmp_path / "named", torch.zeros(2, 28, 28, dtype=torch.uint8))
    step = {"method": "prune_magnitude", "sparsity": 0.5, "epochs": 4, "control": False}
    done = run_job(tmp_path / "job", compress_recipe(**step), model=folder, dataset=digits)
    assert done.metric("accuracy")["value"] > 0.4
    said = run_job(tmp_path / "infer", infer_recipe(), model=folder, dataset=digits)
    assert said.metric("throughput")["value"] > 0


def test_images_that_a_model_does_not_take_are_refused_by_name(tmp_path, digits):
    folder = write_named(tmp_path / "float", torch.zeros(2, 28, 28))
    with pytest.raises(Invalid) as caught:
        run_job(tmp_path / "job", infer_recipe(), model=folder, dataset=digits)
    assert caught.value.reason == "unsupported_input"
    assert "'picture_bhw' is float32" in caught.value.detail
    assert "let the model itself scale them" in caught.value.detail
