"""`python -m workers.ml job.json`: what it says, how it ends, and what survives a kill."""

import json
import pickle
import signal

import pytest

from tests.workers.ml.little import (
    CNN,
    compress_recipe,
    equal,
    infer_recipe,
    read_events,
    read_state,
    run_job,
    run_process,
    start_process,
    train_recipe,
    write_cnn,
    write_job,
    write_texts,
)
from tests.workers.ml.test_formats import Trap

pytestmark = pytest.mark.slow
LONG = {"epochs": 60, "checkpoint_interval": 3, "validation_fraction": 0.0, "test_split": None}


def said(events, kind):
    return [event for event in events if event["event"] == kind]


def stop_at_checkpoint(path, number):
    """Start a job and send it a signal once it has written a checkpoint or two."""
    process = start_process(path)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if sum('"checkpoint"' in line for line in lines) == 2:
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=120)
    return process.returncode, read_events("".join(lines) + rest)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_job_that_was_ended_goes_on_and_ends_like_an_unbroken_one(tmp_path, digits, number):
    recipe = train_recipe({**CNN, "channels": 4, "dropout": 0.3}, **LONG)
    path = write_job(tmp_path / "job", recipe, dataset=digits)
    code, events = stop_at_checkpoint(path, number)
    assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not (tmp_path / "job" / "out" / "report.json").exists()
    reached = said(events, "checkpoint")[-1]["step"]
    code, events, log = run_process(path)
    assert code == 0, log
    resumed = int(said(events, "log")[1]["message"].removeprefix("Resumed after step ")[:-1])
    assert resumed >= reached
    if number == signal.SIGTERM:
        assert resumed == reached
    whole = run_job(tmp_path / "whole", recipe, dataset=digits)
    weights = "out/files/model.safetensors"
    assert equal(
        read_state(tmp_path / "job" / weights), read_state(whole.files / "model.safetensors")
    )


def test_only_events_are_on_stdout(tmp_path, digits):
    path = write_job(tmp_path / "job", train_recipe(epochs=1), dataset=digits)
    code, events, _ = run_process(path)
    assert code == 0
    assert {event["event"] for event in events} == {"progress", "metric", "checkpoint", "log"}
    assert json.loads((tmp_path / "job" / "out" / "report.json").read_text())["kind"] == "train"


def test_a_compression_says_nothing_but_events_either(tmp_path):
    path = write_job(
        tmp_path / "job", compress_recipe(dataset=None), model=write_cnn(tmp_path / "m")
    )
    code, events, log = run_process(path)
    assert code == 0, log
    assert events[-1]["event"] == "progress"
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"label_column": "target"}, "missing_column"),
        ({"learning_rate": float("nan")}, "invalid"),
        ({"epochs": 10**9}, "invalid"),
    ],
)
def test_a_refusal_is_an_event_and_exit_2(tmp_path, digits, change, code):
    path = write_job(tmp_path / "job", train_recipe(**change), dataset=digits)
    returned, events, _ = run_process(path)
    assert returned == 2
    (error,) = said(events, "error")
    assert error["code"] == code
    assert next(iter(change)) in error["detail"] or "'target'" in error["detail"]


def test_a_model_in_a_pickle_is_refused_unopened(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.pt").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    texts = write_texts(tmp_path / "texts")
    path = write_job(tmp_path / "job", infer_recipe(), model=model, dataset=texts)
    returned, events, _ = run_process(path)
    assert returned == 2
    assert said(events, "error")[0]["code"] == "unsupported_format"
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", ["", "{", "{}", '{"job_id": 1, "recipe": {}, "inputs": []}'])
def test_a_job_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    returned, events, _ = run_process(tmp_path / "job.json")
    assert returned == 2
    assert events[-1]["code"] == "bad_job"


def test_a_gpu_that_is_not_there_is_named(tmp_path, digits):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    path = write_job(tmp_path / "job", train_recipe(), dataset=digits, device="cuda")
    returned, events, _ = run_process(path)
    assert returned == 2
    assert events[-1]["code"] == "no_device"
