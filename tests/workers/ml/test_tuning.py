"""Tuning: real processes of real models, and how one of several settings is chosen."""

import json

import pytest

from registry.errors import Invalid
from tests.workers.ml.little import Result, run_process, write_cnn, write_job
from tests.workers.serving import yard
from workers.ml import environment
from workers.ml.tuning import Setting, Tried, choose, is_slower, threads_to_try


def recipe(**step):
    given = {"threads": [1], "batch_sizes": [1, 4], "repetitions": 3, "budget_minutes": 10, **step}
    return {"kind": "tune", "model": "alice/tiny@1", "steps": [given]}


def tuned(folder, model, **step):
    """Run the job as a worker does: in a process of its own, which starts those of the model."""
    path = write_job(folder, recipe(**step), model=model)
    code, events, log = run_process(path)
    return code, Result(folder / "out", events), log


@pytest.fixture
def graph(tmp_path):
    def write(content):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(content)
        return folder

    return write


def test_every_setting_is_measured_and_one_is_chosen(tmp_path):
    model = write_cnn(tmp_path / "model")
    code, result, log = tuned(tmp_path / "job", model)
    assert code == 0, log
    said = result.report["summary"]
    assert said["device_class"] == environment.class_of_cpu()
    settings = [(one["runtime"], one["threads"], one["batch_size"]) for one in said["tried"]]
    # The export that a serving process would make, and torch itself.
    assert settings == [(way, 1, rows) for way in ("onnxruntime", "torch") for rows in (1, 4)]
    for one in said["tried"]:
        assert one["rounds"] == 3
        assert one["low"] <= one["rows_per_second"] <= one["high"]
        assert one["batch_ms"] <= one["p95_ms"] < one["wait_ms"]
    (chosen,) = [one for one in said["tried"] if one["chosen"]]
    assert said["chosen"]["max_batch_size"] == chosen["batch_size"]
    assert said["chosen"]["runtime"] == chosen["runtime"]
    assert not (result.files / "work").exists()
    assert [*result.files.iterdir()] == []
    last = [one for one in result.events if one["event"] == "progress"][-1]
    assert (last["done"], last["total"], last["step"]) == (12, 12, "tune")


def test_an_onnx_file_is_not_run_by_torch(tmp_path, graph):
    model = graph(yard.gather())
    code, result, _ = tuned(tmp_path / "job", model)
    assert code == 0
    said = result.report["summary"]
    assert {one["runtime"] for one in said["tried"]} == {"onnxruntime"}
    code, result, _ = tuned(tmp_path / "other", model, runtimes=["torch"])
    assert code == 2
    (error,) = [one for one in result.events if one["event"] == "error"]
    assert error["code"] == "cannot_be_served"
    assert "which torch does not run" in error["detail"]


def test_rows_that_change_each_other_are_not_joined(tmp_path, graph):
    code, result, log = tuned(tmp_path / "job", graph(yard.normalising()), batch_sizes=[2, 4])
    assert code == 0, log
    said = result.report["summary"]
    assert said["batchable"] is False
    assert said["chosen"]["max_batch_size"] == 1
    joined = [one for one in said["tried"] if one["batch_size"] > 1]
    assert all("never joined" in one["reason"] for one in joined)


def test_a_model_that_does_not_answer_is_ended_and_the_rest_reported(tmp_path, graph):
    sizes = {"batch_sizes": [1, 2, 64, 128], "patience_seconds": 5}
    code, result, log = tuned(tmp_path / "job", graph(yard.looping_beyond(8)), **sizes)
    assert code == 0, log
    said = {one["batch_size"]: one for one in result.report["summary"]["tried"]}
    assert "No answer within 5 s" in said[64]["reason"]
    assert "reason" in said[128]
    assert said[1]["rounds"] == said[2]["rounds"] == 3
    assert result.report["summary"]["chosen"]["max_batch_size"] in {1, 2}


def test_a_model_that_never_answers_is_said_so(tmp_path, graph):
    code, result, _ = tuned(tmp_path / "job", graph(yard.looping_beyond(0)), patience_seconds=0.2)
    assert code == 2
    (error,) = [one for one in result.events if one["event"] == "error"]
    assert error["code"] == "nothing_measured"
    assert "No answer within" in error["detail"]
    report = json.loads((result.out / "report.json").read_text())
    assert len(report["summary"]["tried"]) == 2
    assert "chosen" not in report["summary"]


# --- Choosing -------------------------------------------------------------------------------------


def measured(threads, rows, *seconds, runtime="onnxruntime"):
    one = Tried(Setting(runtime, threads, rows))
    one.rounds = dict(enumerate(seconds))
    one.samples = [*seconds]
    return one


NOISE = (1.0, 1.3, 0.9, 2.0, 1.1, 1.0, 1.6, 0.95, 1.2)


def noisy(threads, rows, seconds, **more):
    """Measure a setting on a machine that is busy in some rounds, for all alike."""
    return measured(threads, rows, *(seconds * factor for factor in NOISE), **more)


def test_what_a_busy_machine_slows_for_all_alike_is_told_apart_all_the_same():
    assert is_slower(noisy(1, 8, 0.0105), noisy(2, 8, 0.0100))
    assert not is_slower(noisy(1, 8, 0.0100), noisy(2, 8, 0.0100))


def test_of_settings_as_good_the_one_with_the_fewest_threads_is_best():
    tried = [noisy(2, 16, 0.0159), noisy(1, 16, 0.016), noisy(1, 64, 0.064), noisy(1, 1, 0.004)]
    choice = choose(tried, "throughput", None)
    assert choice.best.setting == ("onnxruntime", 1, 16)
    assert len(choice.alike) == 3


def test_more_threads_are_taken_where_they_are_worth_it():
    tried = [noisy(1, 16, 0.016), noisy(2, 16, 0.009), noisy(2, 16, 0.02, runtime="torch")]
    choice = choose(tried, "throughput", None)
    assert choice.best.setting == ("onnxruntime", 2, 16)
    assert choice.alike == {choice.best.setting}


def test_a_limit_counts_the_batch_before_and_the_own():
    tried = [measured(1, rows, *[0.001 * rows**0.5] * 5) for rows in (1, 16, 64)]
    assert choose(tried, "throughput", None).best.setting.batch_size == 64
    # Two batches of 16 take 8 ms, of 64 16 ms.
    assert choose(tried, "throughput", 8.1).best.setting.batch_size == 16
    nothing = choose(tried, "throughput", 1.0)
    assert (nothing.best.setting.batch_size, nothing.within_limit) == (1, False)


def test_the_quickest_answer_is_chosen_by_one_row_and_its_batch_by_what_comes_out():
    tried = [
        *(measured(1, rows, *[0.001 * rows] * 5) for rows in (1, 8)),
        measured(2, 1, *[0.0006] * 5),
        measured(2, 8, *[0.0024] * 5),
        measured(2, 16, *[0.0048] * 5),
    ]
    choice = choose(tried, "latency", None)
    assert choice.best.setting == ("onnxruntime", 2, 8)


def test_few_rounds_tell_only_large_differences_apart():
    assert not is_slower(measured(1, 1, 0.0105), measured(2, 1, 0.0100))
    assert is_slower(measured(1, 1, 0.0150), measured(2, 1, 0.0100))


def test_no_more_threads_are_tried_than_there_are_cores():
    notes = []
    assert threads_to_try((), 6, notes) == [1, 2, 4]
    assert threads_to_try((4, 1, 64), 4, notes) == [1, 4]
    assert len(notes) == 1
    with pytest.raises(Invalid, match=r"has 2 core\(s\)"):
        threads_to_try((64,), 2, notes)
