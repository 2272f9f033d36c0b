"""Batch inference: every row once, in order, whatever stops it on the way."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from registry.errors import RegistryError
from tests.workers.ml.little import (
    LSTM,
    infer_recipe,
    read_events,
    run_job,
    train_recipe,
    write_cnn,
    write_digits,
    write_lstm,
    write_texts,
)
from tests.workers.ml.test_compression import foreign_onnx
from tests.workers.ml.test_training import StopAfter
from workers.ml.interrupt import Interrupted


def lines(result):
    return read_events((result.files / "predictions.jsonl").read_text())


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits")


@pytest.fixture
def model(tmp_path):
    return write_cnn(tmp_path / "model")


def refusal(*args, **kwargs):
    with pytest.raises(RegistryError) as caught:
        run_job(*args, **kwargs)
    return caught.value.reason


def test_every_row_of_a_split_is_predicted(tmp_path, digits, model):
    result = run_job(tmp_path / "job", infer_recipe(), model=model, dataset=digits)
    rows = lines(result)
    assert [row["row"] for row in rows] == list(range(40))
    assert {row["split"] for row in rows} == {"test"}
    assert [row["actual"] for row in rows] == [str(at % 4) for at in range(40)]
    right = sum(row["label"] == row["actual"] for row in rows)
    assert result.metric("accuracy")["value"] == right / 40
    assert all(0.25 <= row["score"] <= 1 for row in rows)
    described = json.loads((result.files / "dataset.json").read_text())
    assert described["splits"] == {"predictions": 40}
    assert described["model"] == "alice/tiny@1"
    assert result.events[-1] == {"event": "checkpoint", "step": 40}


def test_inputs_that_are_not_public_are_named_in_no_file(tmp_path, digits, model):
    given = {"model": model, "dataset": digits, "named": False}
    result = run_job(tmp_path / "job", infer_recipe(), **given)
    texts = [path.read_text() for path in result.files.iterdir()] + [result.report["message"]]
    assert not any(word in text for text in texts for word in ("alice/tiny", "alice/little"))
    assert "predictions of a model that is not public" in result.report["message"]
    # The numbers still rest on the dataset, whose name only those hear who may.
    assert result.metric("accuracy")["dataset"] == "alice/little@1"


def test_all_splits_and_a_limit(tmp_path, digits, model):
    recipe = infer_recipe(split=None, max_rows=10)
    rows = lines(run_job(tmp_path / "job", recipe, model=model, dataset=digits))
    assert [(row["split"], row["row"]) for row in rows] == (
        [("test", at) for at in range(10)] + [("train", at) for at in range(10)]
    )


@pytest.mark.parametrize("stop", [1, 3, 9])
def test_a_stopped_run_writes_the_same_file(tmp_path, digits, model, stop):
    recipe = infer_recipe(split=None, batch_size=2)
    whole = run_job(tmp_path / "whole", recipe, model=model, dataset=digits)
    with pytest.raises(Interrupted):
        run_job(tmp_path / "job", recipe, interrupt=StopAfter(stop), model=model, dataset=digits)
    checkpoints = tmp_path / "job" / "checkpoints"
    with (checkpoints / "predictions.jsonl").open("ab") as half:
        half.write(b'{"half a line')
    resumed = run_job(tmp_path / "job", recipe, model=model, dataset=digits)
    name = "predictions.jsonl"
    assert (resumed.files / name).read_bytes() == (whole.files / name).read_bytes()
    assert resumed.metric("accuracy")["value"] == whole.metric("accuracy")["value"]
    assert not list(checkpoints.iterdir())


def test_batches_do_not_change_what_a_text_model_says(tmp_path):
    texts = write_texts(tmp_path / "texts")
    model = write_lstm(tmp_path / "model")
    one, many = (
        lines(
            run_job(tmp_path / str(size), infer_recipe(batch_size=size), model=model, dataset=texts)
        )
        for size in (1, 30)
    )
    assert [row["label"] for row in one] == [row["label"] for row in many]
    assert np.allclose([row["score"] for row in one], [row["score"] for row in many], atol=1e-5)


def test_a_dataset_without_labels_is_fine(tmp_path, model):
    digits = write_digits(tmp_path / "digits")
    save_file({"image": np.zeros((3, 28, 28), np.uint8)}, digits / "test.safetensors")
    result = run_job(tmp_path / "job", infer_recipe(), model=model, dataset=digits)
    assert "actual" not in lines(result)[0]
    assert [metric["metric"] for metric in result.report["metrics"]] == ["throughput"]


@pytest.mark.parametrize(
    ("step", "code"), [({"image_column": "x"}, "missing_column"), ({"split": "x"}, "missing_split")]
)
def test_what_is_not_there_is_refused(tmp_path, digits, model, step, code):
    assert refusal(tmp_path / "job", infer_recipe(**step), model=model, dataset=digits) == code


def test_an_image_model_refuses_texts(tmp_path, model):
    texts = write_texts(tmp_path / "texts")
    (texts / "test.csv").write_text("image,label\nhello,1\n")
    assert refusal(tmp_path / "job", infer_recipe(), model=model, dataset=texts) == "bad_column"


def test_a_text_model_refuses_images(tmp_path, digits):
    model = write_lstm(tmp_path / "model")
    recipe = infer_recipe(text_column="image")
    assert refusal(tmp_path / "job", recipe, model=model, dataset=digits) == "bad_column"


def test_an_onnx_model_from_elsewhere_takes_columns_by_name(tmp_path):
    dataset = tmp_path / "numbers"
    dataset.mkdir()
    inputs = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    save_file({"x": inputs}, dataset / "test.safetensors")
    model = foreign_onnx(tmp_path / "model")
    rows = lines(run_job(tmp_path / "job", infer_recipe(), model=model, dataset=dataset))
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    assert np.allclose([row["output"] for row in rows], inputs @ weight, atol=1e-4)


def test_the_words_that_a_model_was_trained_with_are_used(tmp_path):
    texts = write_texts(tmp_path / "texts")
    trained = run_job(tmp_path / "train", train_recipe(LSTM, epochs=12), dataset=texts)
    result = run_job(tmp_path / "job", infer_recipe(), model=trained.files, dataset=texts)
    assert result.metric("accuracy")["value"] == trained.metric("accuracy")["value"]


def test_an_evaluation_leaves_numbers_and_no_files(tmp_path, digits, model):
    recipe = {
        "kind": "evaluate",
        "model": "alice/tiny@1",
        "dataset": "alice/little@1",
        "steps": [{}],
    }
    result = run_job(tmp_path / "job", recipe, model=model, dataset=digits)
    assert result.metric("accuracy")["n"] == 40
    assert result.metric("latency_p50_batch32")["value"] > 0
    assert not list(result.files.iterdir())
