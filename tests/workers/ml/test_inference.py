"""Batch inference: every row once, in order, whatever stops it on the way."""

import json

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
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
from workers.ml.data import open_dataset
from workers.ml.infer import parquet
from workers.ml.infer.batch import spans_of
from workers.ml.interrupt import Interrupted
from workers.ml.job import Part


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
    inputs = {"model": model, "dataset": digits, "named": False}
    result = run_job(tmp_path / "job", infer_recipe(), **inputs)
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


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("part", [(0, 1), (1, 3)])
def test_what_is_done_and_taken_away_is_done_again(tmp_path, digits, model, part, form):
    """A worker that cannot store the result of a process sends its job back as it is."""
    recipe = infer_recipe(shards=part[1], format=form)
    job, inputs = tmp_path / "job", {"model": model, "dataset": digits, "part": part}

    def predictions():
        (file,) = run_job(job, recipe, **inputs).files.glob("predictions.*")
        return file.read_bytes()

    assert predictions() == predictions()


@pytest.mark.parametrize("left", [None, b"", b'{"split": "test", "row": 0}\n'])
def test_a_count_of_rows_that_are_not_there_is_not_believed(tmp_path, digits, model, left):
    inputs = {"model": model, "dataset": digits}
    whole = run_job(tmp_path / "whole", infer_recipe(), **inputs)
    with pytest.raises(Interrupted):
        run_job(tmp_path / "job", infer_recipe(), interrupt=StopAfter(1), **inputs)
    file = tmp_path / "job" / "checkpoints" / "predictions.jsonl"
    file.unlink() if left is None else file.write_bytes(left)
    assert lines(run_job(tmp_path / "job", infer_recipe(), **inputs)) == lines(whole)


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


@given(
    counts=st.dictionaries(
        st.sampled_from(["test", "train", "validation"]), st.integers(0, 50), min_size=1
    ),
    of=st.integers(1, 64),
)
def test_parts_are_every_row_once_in_order(counts, of):
    spans = [span for at in range(of) for span in spans_of(counts, Part(at, of))]
    rows = [(span.split, row) for span in spans for row in range(span.start, span.stop)]
    assert rows == [(name, row) for name, count in counts.items() for row in range(count)]
    sizes = [sum(s.stop - s.start for s in spans_of(counts, Part(at, of))) for at in range(of)]
    assert max(sizes) - min(sizes) <= 1


def test_parts_put_together_are_the_whole(tmp_path, digits, model):
    recipe = infer_recipe(split=None, shards=3)
    inputs = {"model": model, "dataset": digits}
    whole = run_job(tmp_path / "whole", infer_recipe(split=None), **inputs)
    parts = []
    for at in range(3):
        done = run_job(tmp_path / f"part{at}", recipe, part=(at, 3), **inputs)
        assert [path.name for path in done.files.iterdir()] == ["predictions.jsonl"]
        parts.append(
            {
                "path": str(done.files / "predictions.jsonl"),
                "summary": done.report["summary"],
            }
        )
    joined = run_job(tmp_path / "joined", recipe, parts=parts, **inputs)
    kept = ("split", "row", "label", "actual")
    found, expected = (
        [{name: row[name] for name in kept} for row in lines(result)] for result in (joined, whole)
    )
    assert found == expected
    assert joined.metric("accuracy")["value"] == whole.metric("accuracy")["value"]
    assert joined.metric("accuracy")["n"] == 160
    assert joined.report["summary"]["parts"] == 3
    assert (joined.files / "dataset.json").read_text() == (whole.files / "dataset.json").read_text()


def test_more_parts_than_rows(tmp_path, digits, model):
    recipe = infer_recipe(max_rows=2, shards=5)
    empty = run_job(tmp_path / "part", recipe, part=(0, 5), model=model, dataset=digits)
    assert (empty.files / "predictions.jsonl").read_bytes() == b""


def test_parquet_says_what_json_lines_say(tmp_path, digits, model):
    inputs = {"model": model, "dataset": digits}
    plain = lines(run_job(tmp_path / "plain", infer_recipe(), **inputs))
    result = run_job(tmp_path / "job", infer_recipe(format="parquet"), **inputs)
    assert pq.read_table(result.files / "predictions.parquet").to_pylist() == plain
    assert "predictions.jsonl" not in {path.name for path in result.files.iterdir()}
    assert "`predictions.parquet`" in (result.files / "README.md").read_text()
    again = run_job(tmp_path / "again", infer_recipe(format="parquet"), **inputs)
    name = "predictions.parquet"
    assert (again.files / name).read_bytes() == (result.files / name).read_bytes()
    # And what a job has written, a job can read.
    (split,) = open_dataset(result.files, "alice/predictions@1").splits.values()
    (rows,) = split.batches(["label", "row", "score"], 64)
    assert rows["label"] == [row["label"] for row in plain]
    assert rows["row"].tolist() == list(range(40))
    assert rows["score"].dtype == np.float64


# --- answers and labels that are odd --------------------------------------------------------------

ODD = [[np.nan, 0.0, 1.0], [np.inf, 0.0, 1.0], [0.0, -np.inf, 1.0]]
PLAIN = [[3.0, 0.0, 1.0], [0.0, 3.0, 1.0]]


def write_echo(folder, *, labels=(), op="Identity"):
    """Write a graph that answers the column x as it is, or as probabilities."""
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps({"labels": list(labels)}))
    return folder


def write_rows(folder, rows, *, labels=None, names=None):
    folder.mkdir()
    columns = {"x": np.array(rows, np.float32)}
    if labels is not None:
        columns["label"] = np.array(labels)
    save_file(columns, folder / "test.safetensors")
    if names is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    return folder


def test_a_label_that_is_no_class_is_left_open(tmp_path):
    model = write_echo(tmp_path / "model", labels=["cat", "dog", "owl"])
    dataset = write_rows(tmp_path / "rows", [*PLAIN, *PLAIN], labels=[0, -1, 7, 1])
    result = run_job(tmp_path / "job", infer_recipe(), model=model, dataset=dataset)
    assert [row["actual"] for row in lines(result)] == ["cat", None, None, "dog"]
    assert (result.metric("accuracy")["value"], result.metric("accuracy")["n"]) == (1, 2)
    assert result.report["summary"]["rows_of_no_class"] == 2
    assert "2 labels that are no class of the model" in result.report["message"]


@pytest.mark.parametrize("labels", [[-1, -1], [0.5, 0.25], [[0, 1], [1, 0]]])
def test_a_column_without_any_class_ends_no_job(tmp_path, labels):
    model = write_echo(tmp_path / "model", labels=["cat", "dog", "owl"])
    dataset = write_rows(tmp_path / "rows", PLAIN, labels=labels)
    result = run_job(tmp_path / "job", infer_recipe(), model=model, dataset=dataset)
    assert [row["actual"] for row in lines(result)] == [None, None]
    assert [metric["metric"] for metric in result.report["metrics"]] == ["throughput"]
    assert result.report["summary"]["rows_of_no_class"] == 2


@pytest.mark.parametrize("shards", [1, 2])
def test_scores_that_are_not_finite_are_null_and_counted(tmp_path, shards):
    model = write_echo(tmp_path / "model", labels=["cat", "dog", "owl"])
    dataset = write_rows(tmp_path / "rows", [*ODD, *PLAIN], labels=[0, 0, 2, 0, 0])
    inputs = {"model": model, "dataset": dataset}
    recipe = infer_recipe(shards=shards)
    parts = []
    for at in range(shards if shards > 1 else 0):
        done = run_job(tmp_path / f"part{at}", recipe, part=(at, shards), **inputs)
        file = str(done.files / "predictions.jsonl")
        parts.append({"path": file, "summary": done.report["summary"]})
    result = run_job(tmp_path / "job", recipe, parts=parts, **inputs)
    rows = lines(result)
    assert [row["label"] for row in rows] == [None, None, "owl", "cat", "dog"]
    assert [row["label_index"] for row in rows] == [None, None, 2, 0, 1]
    assert [row["score"] is None for row in rows] == [True, True, False, False, False]
    # A row without an answer is no right one, whatever stands first.
    assert (result.metric("accuracy")["value"], result.metric("accuracy")["n"]) == (0.4, 5)
    assert result.report["summary"]["rows_not_finite"] == 2
    assert "2 rows with answers that are not finite" in result.report["message"]


def test_numbers_that_are_not_finite_are_null_and_counted(tmp_path):
    model = write_echo(tmp_path / "model")
    dataset = write_rows(tmp_path / "rows", [*ODD, *PLAIN])
    inputs = {"model": model, "dataset": dataset}
    result = run_job(tmp_path / "job", infer_recipe(), **inputs)
    expected = [[None, 0.0, 1.0], [None, 0.0, 1.0], [0.0, None, 1.0], *PLAIN]
    assert [row["output"] for row in lines(result)] == expected
    assert result.report["summary"]["rows_not_finite"] == 3
    table = run_job(tmp_path / "table", infer_recipe(format="parquet"), **inputs).files
    assert pq.read_table(table / "predictions.parquet")["output"].to_pylist() == expected


def test_a_group_of_nulls_alone_takes_the_numbers_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS_A_GROUP", 1)
    model = write_echo(tmp_path / "model")
    dataset = write_rows(tmp_path / "rows", [[np.nan] * 3, *PLAIN])
    recipe = infer_recipe(format="parquet")
    files = run_job(tmp_path / "job", recipe, model=model, dataset=dataset).files
    found = pq.read_table(files / "predictions.parquet")["output"].to_pylist()
    assert found == [[None] * 3, *PLAIN]


def test_what_answers_probabilities_is_scored_by_them(tmp_path):
    names = ["cat", "dog", "owl"]
    plain = write_echo(tmp_path / "plain", labels=names)
    sure = write_echo(tmp_path / "sure", labels=names, op="Softmax")
    dataset = write_rows(tmp_path / "rows", [*PLAIN, [np.nan] * 3])
    first, second = (
        [row["score"] for row in lines(run_job(tmp_path / name, infer_recipe(), **inputs))]
        for name, inputs in (
            ("1", {"model": plain, "dataset": dataset}),
            ("2", {"model": sure, "dataset": dataset}),
        )
    )
    assert first[:2] == pytest.approx(second[:2], abs=1e-5)
    assert first[2] is second[2] is None
    assert first[0] > 0.8


def test_numbers_of_a_dataset_are_its_own_names_for_a_model_too(tmp_path):
    model = write_echo(tmp_path / "model", labels=["cat", "dog", "owl"])
    names = ["dog", "cat", "owl"]
    dataset = write_rows(tmp_path / "rows", PLAIN, labels=[1, 0], names=names)
    result = run_job(tmp_path / "job", infer_recipe(), model=model, dataset=dataset)
    assert [row["actual"] for row in lines(result)] == ["cat", "dog"]
    recipe = {
        "kind": "evaluate",
        "model": "alice/tiny@1",
        "dataset": "alice/little@1",
        "steps": [{}],
    }
    measured = run_job(tmp_path / "measured", recipe, model=model, dataset=dataset)
    assert measured.metric("accuracy")["value"] == result.metric("accuracy")["value"] == 1


# --- answers as they are --------------------------------------------------------------------------


def write_graph(folder, nodes, outputs, *, inputs=(("x", TensorProto.FLOAT, ["n", 3]),)):
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node(op, taken, given, **more) for op, taken, given, more in nodes],
        "graph",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    (folder / "config.json").write_text("{}")
    return folder


def both_forms(folder, model, dataset, **recipe):
    """Run over a dataset into either form, whose rows must say the same."""
    inputs = {"model": model, "dataset": dataset}
    plain = run_job(folder / "plain", infer_recipe(**recipe), **inputs)
    table = run_job(folder / "table", infer_recipe(format="parquet", **recipe), **inputs)
    rows = pq.read_table(table.files / "predictions.parquet").to_pylist()
    names = {name for row in lines(plain) for name in row}
    assert rows == [{**dict.fromkeys(names), **row} for row in lines(plain)]
    return plain


@pytest.mark.parametrize("numbers", [[1e-9, 3e-7, 0.12345678], [0.1, 1e30, -65504.125]])
def test_floats_are_written_to_the_last_bit_and_no_further(tmp_path, numbers):
    model = write_echo(tmp_path / "model")
    dataset = write_rows(tmp_path / "rows", [numbers])
    found = both_forms(tmp_path, model, dataset)
    (row,) = lines(found)
    assert np.array(row["output"], np.float32).tolist() == np.float32(numbers).tolist()
    text = (found.files / "predictions.jsonl").read_text()
    assert "0.10000000149" not in text


def test_a_score_is_that_of_a_live_answer(tmp_path):
    model = write_echo(tmp_path / "model", labels=["cat", "dog", "owl"])
    dataset = write_rows(tmp_path / "rows", [[0.0, 1 / 3, 0.0]])
    (row,) = lines(both_forms(tmp_path, model, dataset))
    powers = np.exp(np.float32([0.0, 1 / 3, 0.0]).astype(np.float64) - float(np.float32(1 / 3)))
    assert row["score"] == powers.max() / powers.sum()


@pytest.mark.parametrize(
    ("kind", "dtype", "numbers"),
    [
        (TensorProto.INT64, np.int64, [2**53 + 1, -1, 0]),
        (TensorProto.UINT64, np.uint64, [2**64 - 1, 1, 0]),
        (TensorProto.BOOL, np.bool_, [True, False, True]),
    ],
)
def test_whole_numbers_stay_whole(tmp_path, kind, dtype, numbers):
    model = tmp_path / "model"
    many = {
        "value": helper.make_tensor("", kind, [3], np.array(numbers, dtype)),
    }
    nodes = [
        ("Constant", [], ["c"], many),
        ("Shape", ["x"], ["s"], {}),
        ("Expand", ["c", "s"], ["y"], {}),
    ]
    write_graph(model, nodes, [("y", kind, ["n", 3])])
    dataset = write_rows(tmp_path / "rows", PLAIN)
    rows = lines(both_forms(tmp_path, model, dataset))
    assert [row["output"] for row in rows] == [numbers, numbers]


def test_an_output_of_text_is_written_as_text(tmp_path):
    model = write_graph(
        tmp_path / "model",
        [("Cast", ["x"], ["y"], {"to": TensorProto.STRING})],
        [("y", TensorProto.STRING, ["n", 3])],
    )
    dataset = write_rows(tmp_path / "rows", PLAIN)
    first, _ = lines(both_forms(tmp_path, model, dataset))
    assert first["output"] == ["3", "0", "1"]


def test_every_output_is_written_under_its_name(tmp_path):
    model = write_graph(
        tmp_path / "model",
        [
            ("Neg", ["x"], ["y"], {}),
            ("ArgMax", ["x"], ["row"], {"axis": 1, "keepdims": 0}),
            ("ReduceSum", ["x"], ["all"], {"keepdims": 0}),
            ("Transpose", ["x"], ["state"], {}),
        ],
        [
            ("y", TensorProto.FLOAT, ["n", 3]),
            ("row", TensorProto.INT64, ["n"]),
            ("all", TensorProto.FLOAT, []),
            ("state", TensorProto.FLOAT, [3, "n"]),
        ],
    )
    dataset = write_rows(tmp_path / "rows", [*PLAIN, ODD[0]])
    found = both_forms(tmp_path, model, dataset, batch_size=2)
    assert lines(found)[:2] == [
        {"split": "test", "row": 0, "y": [-3.0, 0.0, -1.0], "output_row": 0},
        {"split": "test", "row": 1, "y": [0.0, -3.0, -1.0], "output_row": 1},
    ]
    assert lines(found)[2]["y"][0] is None
    assert found.report["summary"]["rows_not_finite"] == 1
    described = json.loads((found.files / "dataset.json").read_text())
    assert list(described["columns"]) == ["split", "row", "y", "output_row"]


def test_what_a_classifier_says_beside_its_classes_is_kept(tmp_path):
    model = write_graph(
        tmp_path / "model",
        [("Identity", ["x"], ["scores"], {}), ("Neg", ["x"], ["label"], {})],
        [("scores", TensorProto.FLOAT, ["n", 3]), ("label", TensorProto.FLOAT, ["n", 3])],
    )
    (model / "config.json").write_text(json.dumps({"labels": ["cat", "dog", "owl"]}))
    dataset = write_rows(tmp_path / "rows", PLAIN, labels=[0, 1])
    first, _ = lines(both_forms(tmp_path, model, dataset))
    assert (first["label"], first["actual"]) == ("cat", "cat")
    assert first["output_label"] == [-3.0, 0.0, -1.0]


def test_an_output_that_is_not_of_rows_is_refused(tmp_path):
    model = write_graph(
        tmp_path / "model",
        [("ReduceSum", ["x"], ["y"], {"keepdims": 0})],
        [("y", TensorProto.FLOAT, [])],
    )
    dataset = write_rows(tmp_path / "rows", PLAIN)
    assert refusal(tmp_path / "job", infer_recipe(), model=model, dataset=dataset) == "bad_config"


@pytest.mark.parametrize("axis", ["k", None])
def test_a_further_output_that_is_not_of_rows_is_left_out(tmp_path, axis):
    model = write_graph(
        tmp_path / "model",
        [("Identity", ["x"], ["scores"], {}), ("Unique", ["x"], ["found"], {})],
        [("scores", TensorProto.FLOAT, ["n", 3]), ("found", TensorProto.FLOAT, [axis])],
    )
    (model / "config.json").write_text(json.dumps({"labels": ["cat", "dog", "owl"]}))
    dataset = write_rows(tmp_path / "rows", PLAIN)
    found = lines(run_job(tmp_path / "job", infer_recipe(), model=model, dataset=dataset))
    assert [list(row) for row in found] == [["split", "row", "label", "label_index", "score"]] * 2


def test_an_output_that_was_of_rows_at_first_keeps_its_column(tmp_path):
    """As many different numbers as rows, as long as there are such rows."""
    model = write_graph(
        tmp_path / "model",
        [("Identity", ["x"], ["y"], {}), ("Unique", ["x"], ["found"], {})],
        [("y", TensorProto.FLOAT, ["n", 3]), ("found", TensorProto.FLOAT, [None])],
    )
    rows = [[1, 1, 1]] * 8 + [[1, 2, 3]]
    dataset = write_rows(tmp_path / "rows", rows)
    recipe = infer_recipe(batch_size=1)
    with pytest.raises(Interrupted):
        run_job(tmp_path / "job", recipe, interrupt=StopAfter(1), model=model, dataset=dataset)
    found = lines(run_job(tmp_path / "job", recipe, model=model, dataset=dataset))
    assert [row["found"] for row in found] == [1.0] * 8 + [None]


def test_rows_of_another_release_are_computed_again(tmp_path):
    model = write_graph(
        tmp_path / "model",
        [
            ("Neg", ["x"], ["y"], {}),
            ("ArgMax", ["x"], ["best"], {"axis": 1, "keepdims": 0}),
        ],
        [("y", TensorProto.FLOAT, ["n", 3]), ("best", TensorProto.INT64, ["n"])],
    )
    dataset = write_rows(tmp_path / "rows", PLAIN)
    checkpoints = tmp_path / "job" / "checkpoints"
    checkpoints.mkdir(parents=True)
    line = b'{"split": "test", "row": 0, "output": [-3.0, 0.0, -1.0]}\n'
    (checkpoints / "predictions.jsonl").write_bytes(line)
    said = {"rows": 1, "rows_in_all": 1, "size_bytes": len(line)}
    (checkpoints / "predictions.json").write_text(json.dumps(said))
    result = run_job(tmp_path / "job", infer_recipe(), model=model, dataset=dataset)
    assert [list(row) for row in lines(result)] == [["split", "row", "y", "best"]] * 2


def test_parts_of_two_releases_are_not_put_together(tmp_path):
    model, rows = write_echo(tmp_path / "model"), write_rows(tmp_path / "rows", PLAIN)
    recipe, inputs = infer_recipe(shards=2), {"model": model, "dataset": rows}
    parts = []
    for at in range(2):
        done = run_job(tmp_path / f"part{at}", recipe, part=(at, 2), **inputs)
        path = str(done.files / "predictions.jsonl")
        parts.append({"path": path, "summary": done.report["summary"]})
    run_job(tmp_path / "joined", recipe, parts=parts, **inputs)
    del parts[0]["summary"]["predicted"]["format"]
    assert refusal(tmp_path / "mixed", recipe, parts=parts, **inputs) == "bad_part"


def test_labels_of_a_later_split_are_kept(tmp_path):
    model = write_echo(tmp_path / "model", labels=["cat", "dog", "owl"])
    dataset = write_rows(tmp_path / "rows", PLAIN)
    labelled = {"x": np.array(PLAIN, np.float32), "label": np.array([0, 2])}
    save_file(labelled, dataset / "train.safetensors")
    rows = lines(both_forms(tmp_path, model, dataset, split=None))
    assert [row.get("actual") for row in rows] == [None, None, "cat", "owl"]
