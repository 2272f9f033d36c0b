"""Tuning: real processes of real models, and how one of several settings is chosen."""

import json
import shutil

import pytest

from registry.errors import Invalid, Text
from tests.workers.ml.little import (
    Result,
    run_process,
    write_cnn,
    write_encoder,
    write_job,
    write_lstm,
)
from tests.workers.serving import yard
from workers.ml import environment
from workers.ml.texts import load_tokenizer
from workers.ml.tuning import Setting, Tried, choose, is_slower, threads_to_try
from workers.ml.workload import Workload


def recipe(**step):
    given = {"threads": [1], "batch_sizes": [1, 4], "repetitions": 3, "budget_minutes": 10, **step}
    return {"kind": "tune", "model": "alice/tiny@1", "steps": [given]}


def tuned(folder, model, **step):
    """Run the job as a worker does: in a process of its own, which starts those of the model."""
    path = write_job(folder, recipe(**step), model=model)
    code, events, log = run_process(path)
    return code, Result(folder / "out", events), log


def asked_for(turn):
    """Give the rows of all requests, each of which has one."""
    asked = [json.loads(part.data.tobytes()) for batch in turn for part in batch.parts]
    return [row for (row,) in asked]


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_machine_code_is_measured_beside_the_rest(tmp_path):
    model = write_cnn(tmp_path / "model")
    runtimes = ["aotinductor", "onnxruntime"]
    code, result, log = tuned(tmp_path / "job", model, runtimes=runtimes, batch_sizes=[4])
    assert code == 0, log
    said = result.report["summary"]
    assert [one["runtime"] for one in said["tried"]] == runtimes
    assert all(one["rounds"] == 3 for one in said["tried"])


def test_what_cannot_be_compiled_is_noted(tmp_path):
    model = write_lstm(tmp_path / "model")
    runtimes = ["aotinductor", "torch"]
    code, result, log = tuned(tmp_path / "job", model, runtimes=runtimes, batch_sizes=[4])
    assert code == 0, log
    said = result.report["summary"]
    assert [one["runtime"] for one in said["tried"]] == ["torch"]
    assert any("could not compile it" in one["detail"] for one in said["warnings"])


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


def test_an_encoder_is_given_texts_which_its_own_process_tokenises(tmp_path):
    model = write_encoder(tmp_path / "model")
    step = {"text_words": [3, 9, 60], "runtimes": ["onnxruntime"]}
    code, result, log = tuned(tmp_path / "job", model, **step)
    assert code == 0, log
    said = result.report["summary"]
    assert [one["rounds"] for one in said["tried"]] == [3, 3]
    # Three texts alone, and three batches of four have each length as often; both are cut at 40.
    workload = Workload([], "wordpieces", "text", words=[3, 9, 60], free=16, seed=0)
    tokenizer = load_tokenizer(model, max_length=40, pad_id=0)
    texts = [text for rows in (1, 4) for text in asked_for(workload.turn(rows))]
    assert len(texts) == 15
    counts = [len(tokenizer.encode(text).ids) for text in texts]
    assert said["workload"] == {
        "kind": "texts",
        "seed": 0,
        "words": [3, 9, 60],
        "tokens": {"least": min(counts), "mean": float(f"{sum(counts) / 15:.4g}"), "most": 40},
    }


def test_a_classifier_of_texts_is_given_the_field_that_it_takes(tmp_path):
    code, result, log = tuned(tmp_path / "job", write_lstm(tmp_path / "model"), runtimes=["torch"])
    assert code == 0, log
    said = result.report["summary"]
    assert said["workload"] == {"kind": "fields", "seed": 0, "words": [6, 12, 24, 48]}
    assert {one["rounds"] for one in said["tried"]} == {3}


def test_a_graph_that_takes_strings_is_given_texts(tmp_path, graph):
    code, result, log = tuned(tmp_path / "job", graph(yard.shouting()))
    assert code == 0, log
    said = result.report["summary"]
    assert (said["workload"]["kind"], said["batchable"]) == ("strings", True)
    assert [one["rounds"] for one in said["tried"]] == [3, 3]


# --- What a model is given ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 64])
def test_a_turn_has_each_length_of_text_equally_often(rows):
    workload = Workload([], "wordpieces", "text", words=[2, 5, 30, 80], free=1, seed=7)
    turn = workload.turn(rows)
    assert {len(batch.parts) for batch in turn} == {rows}
    found = [len(text.split()) for text in asked_for(turn)]
    counts = {length: found.count(length) for length in (2, 5, 30, 80)}
    assert set(counts.values()) == {len(turn) * rows // 4}
    assert len(turn) == {1: 4, 2: 2, 3: 4, 4: 1, 6: 2, 64: 1}[rows]


def test_the_same_seed_makes_the_same_texts_and_another_makes_others():
    def made(seed):
        fed = Workload([], "words", "review", words=[4, 9], free=1, seed=seed)
        return asked_for(fed.turn(3))

    assert made(1) == made(1) != made(2)
    assert all(list(one) == ["review"] for one in made(1))


# --- Choosing -------------------------------------------------------------------------------------


def measured(threads, rows, *seconds, runtime="onnxruntime"):
    one = Tried(Setting(runtime, threads, rows))
    one.rounds = dict(enumerate(seconds))
    one.samples = [*seconds]
    return one


def test_a_setting_that_crashed_in_one_round_is_not_chosen():
    crashed = measured(1, 64, 0.001)
    assert crashed.has_lasted
    crashed.reason = Text("It ran out of memory.")
    assert not crashed.has_lasted
    assert not Tried(Setting("onnxruntime", 1, 8)).has_lasted


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
