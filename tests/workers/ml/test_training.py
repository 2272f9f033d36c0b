"""Training: it learns, it says how it goes, and it goes on as if it had never been stopped."""

import json

import pytest
import torch

from registry import recipes
from registry.errors import Invalid
from tests.workers.ml.little import (
    CNN,
    LSTM,
    equal,
    read_state,
    run_job,
    train_recipe,
    write_digits,
    write_texts,
)
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.interrupt import Interrupt, Interrupted
from workers.ml.train import loop
from workers.ml.train.optimize import learning_rate
from workers.ml.train.precision import choose_precision


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits")


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "texts")


class StopAfter(Interrupt):
    """Asks to stop once so many steps are done."""

    def __init__(self, steps):
        super().__init__()
        self._left = steps

    @property
    def requested(self):
        self._left -= 1
        return self._left < 0

    @requested.setter
    def requested(self, value):
        pass


def test_the_cnn_learns_and_reports(tmp_path, digits):
    result = run_job(tmp_path / "job", train_recipe(epochs=6), dataset=digits)
    accuracy = result.metric("accuracy")
    assert accuracy["value"] > 0.9
    assert accuracy["n"] == 40
    assert accuracy["low"] < accuracy["value"] <= accuracy["high"]
    assert accuracy["details"]["majority_class"] == 0.25
    assert sum(map(sum, accuracy["details"]["confusion"]["rows_actual"])) == 40
    assert result.metric("parameters")["value"] == 2 * 10 + 4 * 19 + 576 * 8 + 8 + 9 * 4
    losses = [value for _, value in result.curve("train_loss")]
    assert losses[-1] < losses[0] / 2
    assert len(result.curve("validation_accuracy")) == 6
    card = (result.files / "README.md").read_text()
    assert card.startswith("---\npipeline_tag: image-classification\n")
    assert "alice/little" in card
    config = json.loads((result.files / "config.json").read_text())
    assert config["signature"]["inputs"] == [
        {"name": "image", "dtype": "uint8", "shape": [-1, 28, 28]}
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_text_classifier_learns(tmp_path, suffix):
    dataset = write_texts(tmp_path / "texts", suffix=suffix)
    result = run_job(tmp_path / "job", train_recipe(LSTM, epochs=12), dataset=dataset)
    assert result.metric("accuracy")["value"] > 0.9
    config = json.loads((result.files / "config.json").read_text())
    words = json.loads((result.files / "vocabulary.json").read_text())
    assert config["labels"] == ["animals", "numbers", "weather"]
    assert config["architecture"]["vocabulary_size"] == len(words) == 2 + 24 + 3


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("architecture", [CNN, LSTM], ids=["cnn", "lstm"])
def test_a_stopped_run_ends_like_an_unbroken_one(tmp_path, digits, texts, optimizer, architecture):
    dataset = digits if architecture is CNN else texts
    recipe = train_recipe(
        {**architecture, "dropout": 0.3}, optimizer=optimizer, epochs=2, schedule="cosine"
    )
    whole = run_job(tmp_path / "whole", recipe, dataset=dataset)
    with pytest.raises(Interrupted):
        run_job(tmp_path / "broken", recipe, dataset=dataset, interrupt=StopAfter(17))
    resumed = run_job(tmp_path / "broken", recipe, dataset=dataset)
    assert any("Resumed after step" in event.get("message", "") for event in resumed.events)
    weights = "model.safetensors"
    assert equal(read_state(whole.files / weights), read_state(resumed.files / weights))
    assert whole.report["summary"]["validation"] == resumed.report["summary"]["validation"]
    assert whole.curve("train_loss")[-1] == resumed.curve("train_loss")[-1]


def test_a_run_is_repeated_by_its_seed(tmp_path, digits):
    first, second, other = (
        run_job(tmp_path / str(at), train_recipe(epochs=1, seed=seed), dataset=digits)
        for at, seed in enumerate([3, 3, 4])
    )
    weights = [read_state(result.files / "model.safetensors") for result in (first, second, other)]
    assert equal(weights[0], weights[1])
    assert not equal(weights[0], weights[2])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, digits):
    recipe = train_recipe(epochs=2)
    with pytest.raises(Interrupted):
        run_job(tmp_path / "job", recipe, dataset=digits, interrupt=StopAfter(22))
    newest = max((tmp_path / "job" / "checkpoints").glob("step-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:100])
    (tmp_path / "job" / "checkpoints" / "step-999.partial").write_bytes(b"half")
    result = run_job(tmp_path / "job", recipe, dataset=digits)
    assert any("Resumed after step 10." in event.get("message", "") for event in result.events)
    whole = run_job(tmp_path / "whole", recipe, dataset=digits)
    weights = "model.safetensors"
    assert equal(read_state(whole.files / weights), read_state(result.files / weights))


def test_only_the_last_two_checkpoints_are_kept(tmp_path, digits):
    run_job(tmp_path / "job", train_recipe(), dataset=digits)
    names = sorted(file.name for file in (tmp_path / "job" / "checkpoints").iterdir())
    assert names == ["step-000000000020.safetensors", "step-000000000021.safetensors"]


def test_the_checkpoint_of_another_recipe_is_refused(tmp_path, digits):
    run_job(tmp_path / "job", train_recipe(epochs=1), dataset=digits)
    with pytest.raises(Invalid) as caught:
        run_job(tmp_path / "job", train_recipe(epochs=2), dataset=digits)
    assert caught.value.reason == "bad_checkpoint"


def test_training_goes_on_from_a_version(tmp_path, texts):
    first = run_job(tmp_path / "first", train_recipe(LSTM, epochs=4), dataset=texts)
    (first.files / "README.md").write_text("---\nlicense: mit\n---\n")
    recipe = {**train_recipe(epochs=4), "architecture": None, "model": "alice/tiny@1"}
    second = run_job(tmp_path / "second", recipe, model=first.files, dataset=texts)
    assert second.metric("accuracy")["value"] >= first.metric("accuracy")["value"]
    assert "parent" in second.metric("accuracy")["details"]
    card = (second.files / "README.md").read_text()
    assert "base_model: alice/tiny" in card
    assert "license: mit" in card


def test_the_weights_of_the_best_epoch_are_kept(tmp_path, digits):
    result = run_job(
        tmp_path / "job",
        train_recipe(epochs=4, learning_rate=0.05, schedule="constant", optimizer="adam"),
        dataset=digits,
    )
    history = result.report["summary"]["validation"]
    best = min(history, key=lambda epoch: epoch["loss"])
    assert result.report["summary"]["best_epoch"] == best["epoch"]
    assert result.metric("validation_loss")["value"] == best["loss"]


def test_without_validation_the_last_weights_are_kept(tmp_path, digits):
    recipe = train_recipe(epochs=1, validation_fraction=0.0, test_split=None, clip_norm=None)
    result = run_job(tmp_path / "job", recipe, dataset=digits)
    assert result.report["summary"]["validation"] == []
    assert not [m for m in result.report["metrics"] if m["split"]]


def test_what_was_written_is_what_was_measured(tmp_path, digits):
    result = run_job(tmp_path / "job", train_recipe(), dataset=digits)
    runtime = load_runtime(open_model(result.files), device="cpu", threads=1)
    assert runtime.labels == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"label_column": "target"}, "missing_column"),
        ({"image_column": "pixels"}, "missing_column"),
        ({"train_split": "dev"}, "missing_split"),
        (
            {"learning_rate": 10.0, "optimizer": "sgd", "weight_decay": 1.0, "epochs": 20},
            "diverged",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, digits, change, code):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the code says which
        run_job(tmp_path / "job", train_recipe(**change), dataset=digits)
    assert caught.value.reason == code
    assert not (tmp_path / "job" / "out" / "report.json").exists()


def test_the_cost_is_bounded(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(loop, "MAX_SAMPLES_SEEN", 200)
    with pytest.raises(Invalid) as caught:
        run_job(tmp_path / "job", train_recipe(), dataset=digits)
    assert caught.value.reason == "too_costly"
    assert "Train for fewer epochs" in caught.value.detail


def rates(total=100, per_epoch=10, **changes):
    step = recipes.Train(**{"learning_rate": 1.0, **changes})
    return [learning_rate(step, at, total=total, steps_per_epoch=per_epoch) for at in range(total)]


def test_schedules():
    assert set(rates(schedule="constant")) == {1.0}
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine[50] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    assert rates(schedule="linear")[75] == pytest.approx(0.25)
    stepped = rates(schedule="step", decay_epochs=4, decay_factor=0.1)
    assert (stepped[39], stepped[40], stepped[80]) == (1.0, 0.1, pytest.approx(0.01))
    warm = rates(schedule="constant", warmup_steps=4)
    assert warm[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    endless = rates(schedule="cosine", warmup_steps=10**5)
    assert endless == sorted(endless)


def test_precision_follows_the_device():
    for asked, device, expected in [
        ("auto", "cpu", torch.float32),
        ("float32", "cpu", torch.float32),
        ("float32", "cuda", torch.float32),
    ]:
        assert choose_precision(recipes.Train(precision=asked), device).dtype == expected


@pytest.mark.parametrize(
    ("flags", "expected"), [(("avx2",), "float32"), (("avx2", "amx_bf16"), "bfloat16")]
)
def test_mixed_precision_on_a_cpu_needs_the_instructions(monkeypatch, flags, expected):
    monkeypatch.setattr("workers.ml.train.precision.cpu_flags", lambda: flags)
    precision = choose_precision(recipes.Train(precision="mixed"), "cpu")
    assert precision.name == expected
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert str(product.dtype) == f"torch.{expected}"
