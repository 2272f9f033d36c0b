"""What every report of a compression counts, compares, keeps to look at, refuses and warns of."""

import math

import numpy as np
import onnx
import pytest
import torch
import zstandard
from onnx import TensorProto, helper, numpy_helper

from registry.errors import Invalid, unpack
from tests.workers.ml.little import (
    LSTM,
    compress_recipe,
    run_job,
    train_recipe,
    write_cnn,
    write_digits,
    write_encoder,
    write_lstm,
    write_texts,
)
from workers.ml import compare, cost
from workers.ml.compress.weight_only import Options, quantize_weights
from workers.ml.data import Labels
from workers.ml.evaluate import Predictions, Where, accuracy, agreement
from workers.ml.formats import open_model
from workers.ml.guards import refuse_guessing, still_falling, warnings_of
from workers.ml.infer.runtime import load_runtime
from workers.ml.probes import NOWHERE, probe_rows
from workers.ml.statistics import probabilities

WHERE = Where("test", "a/b@1", "cpu")
CNN_MACS = {
    "first": 2 * 26 * 26 * 1 * 9,
    "second": 4 * 24 * 24 * 2 * 9,
    "hidden": 4 * 12 * 12 * 8,
    "classes": 8 * 4,
}


def loaded(folder):
    runtime = load_runtime(open_model(folder), device="cpu", threads=1)
    return runtime, runtime.feeder.feeds(probe_rows(runtime, 1), NOWHERE)


def exported(tmp_path, model, method="export_onnx"):
    recipe = {"kind": "compress", "model": "alice/tiny@1", "steps": [{"method": method}]}
    return run_job(tmp_path / method, recipe, model=model).files


# --- multiply-accumulates -------------------------------------------------------------------------


def test_products_of_a_module_are_counted_layer_by_layer(tmp_path):
    runtime, feeds = loaded(write_cnn(tmp_path / "cnn"))
    assert cost.count_macs(runtime, feeds).by_layer == CNN_MACS


@pytest.mark.parametrize("method", ["export_onnx", "quantize_dynamic"])
def test_a_graph_multiplies_as_often_as_the_module_it_came_from(tmp_path, method):
    runtime, feeds = loaded(exported(tmp_path, write_cnn(tmp_path / "cnn"), method))
    macs = cost.count_macs(runtime, feeds)
    assert list(macs.by_layer.values()) == list(CNN_MACS.values())
    assert macs.not_counted == []


@pytest.mark.parametrize("method", [None, "export_onnx", "quantize_dynamic"])
def test_a_recurrent_layer_is_counted_by_the_words_it_reads(tmp_path, method):
    model = write_lstm(tmp_path / "lstm")
    runtime, feeds = loaded(exported(tmp_path, model, method) if method else model)
    words = feeds["tokens"].shape[1]
    assert cost.count_macs(runtime, feeds).total == words * 4 * 8 * (8 + 8) + 8 * 3


@pytest.mark.slow
def test_attention_is_counted_alike_in_a_module_and_a_graph(tmp_path):
    model = write_encoder(tmp_path / "encoder")
    runtime, feeds = loaded(model)
    length = feeds["input_ids"].shape[1]
    one = 4 * length * 32 * 32 + 2 * length * 32 * 64 + 2 * length * length * 32
    pooler = 32 * 32
    assert cost.count_macs(runtime, feeds).total == 2 * one + pooler
    graph, feeds = loaded(exported(tmp_path, model))
    assert cost.count_macs(graph, feeds).total == 2 * one, "an export leaves the pooler out"


def graph_of(tmp_path, nodes, weights, shape=("N", 4)):
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    file = tmp_path / "made.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), file)
    return file


def test_what_cannot_be_counted_is_named(tmp_path):
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")
    file = graph_of(tmp_path, [node], {"w": np.ones((4, 2), np.float32)})
    macs = cost.graph_macs(file, {"x": np.ones((1, 4), np.float32)})
    assert (macs.total, macs.not_counted) == (0, ["Einsum"])


def test_a_graph_that_does_not_run_is_refused(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    file = graph_of(tmp_path, [node], {"w": np.ones((3, 2), np.float32)}, shape=("N", "M"))
    with pytest.raises(Invalid) as caught:
        cost.graph_macs(file, {"x": np.ones((1, 4), np.float32)})
    assert caught.value.reason == "cannot_count"


# --- weights and bytes ----------------------------------------------------------------------------


def test_zeros_of_a_module_are_not_counted(tmp_path):
    runtime, _feeds = loaded(write_cnn(tmp_path / "cnn"))
    module = runtime.engine.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1)
        module.hidden.weight[:, :100] = 0
    whole = sum(parameter.numel() for parameter in module.parameters())
    assert cost.count_nonzero(runtime) == whole - 8 * 100


def test_a_quantized_zero_is_its_zero_point(tmp_path):
    weight = np.full((4, 3), 128, np.uint8)
    weight[0] = [1, 128, 0]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero_point"], ["real"], axis=1),
        helper.make_node("MatMul", ["x", "real"], ["y"]),
    ]
    per_tensor = {"w_scale": np.array(0.1, np.float32), "w_zero_point": np.array(128, np.uint8)}
    file = graph_of(tmp_path, nodes, {"w": weight, **per_tensor})
    assert dict(cost.graph_nonzero(file)) == {"w": 2}
    by_column = {
        "w_scale": np.full(3, 0.1, np.float32),
        "w_zero_point": np.array([1, 128, 128], np.uint8),
    }
    file = graph_of(tmp_path, nodes, {"w": weight, **by_column})
    assert dict(cost.graph_nonzero(file)) == {"w": 1 + 3}


def test_four_bit_blocks_are_counted_number_by_number(tmp_path):
    packed = np.full((2, 1, 8), 0x88, np.uint8)  # eight is zero
    packed[0, 0, 0] = 0x8F
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain="com.microsoft",
        K=16,
        N=2,
        bits=4,
        block_size=16,
    )
    file = graph_of(tmp_path, [node], {"w": packed, "s": np.ones(2, np.float32)}, shape=("N", 16))
    assert dict(cost.graph_nonzero(file))["w"] == 1
    assert cost.graph_macs(file, {"x": np.ones((1, 16), np.float32)}).total == 2 * 16


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers_of_any_few_bits_are_counted_one_by_one(tmp_path, bits, symmetric):
    drawn = np.random.default_rng(bits)
    # Minus one, nought and one stay what they are, or at least nought and not nought.
    weights = {
        "w": drawn.integers(-1, 2, (320, 6)).astype(np.float32),
        "table": drawn.integers(-1, 2, (20, 160)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["row"], axis=1, keepdims=0),
        helper.make_node("Gather", ["table", "row"], ["z"]),
    ]
    file = graph_of(tmp_path, nodes, weights, shape=("N", 320))
    options = Options(bits=bits, table_bits=bits, block=32, symmetric=symmetric)
    quantize_weights(file, tmp_path / "few.onnx", options)
    found = dict(cost.graph_nonzero(tmp_path / "few.onnx"))
    assert len(found) == 2
    for name, weight in weights.items():
        (count,) = (count for told, count in found.items() if told.startswith(name))
        assert count == np.count_nonzero(weight)


def test_wire_bytes_are_those_of_zstd_at_level_three(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(100_000) + np.random.default_rng(0).bytes(1000))
    assert cost.wire_bytes(file) == pytest.approx(
        len(zstandard.ZstdCompressor(level=3).compress(file.read_bytes())), abs=16
    )
    assert 1000 < cost.wire_bytes(file) < 1200


# --- answers beside the parent's ------------------------------------------------------------------


def test_divergence_is_that_of_the_probabilities():
    parent, child = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert compare.divergence(child, parent)[0] == pytest.approx(expected)
    assert compare.divergence(parent, parent)[0] == 0
    scores = np.log(np.array([[1.0, 3.0]]))
    assert probabilities(scores)[0] == pytest.approx([0.25, 0.75])
    assert probabilities(parent) is not None
    assert (probabilities(parent) == parent).all()


def test_the_class_that_lost_most_is_found_with_its_rows():
    actual = np.array([0] * 10 + [1] * 4)
    parent, child = actual.copy(), actual.copy()
    child[:2] = 1
    child[10:12] = 0
    labels = Labels(["many", "few"])
    found = accuracy(Predictions(actual, {"this": child}), "this", labels, WHERE)
    worst = compare.worst_class(actual, child, parent, labels, found)
    assert (worst.details["class"], worst.n, worst.value) == ("few", 4, -0.5)
    assert worst.details["parent"]["value"] == 1
    assert worst.low < -0.5 < worst.high


def test_the_accuracy_change_is_bounded_by_the_rows_that_turned():
    actual = np.zeros(100, int)
    parent, child = actual.copy(), actual.copy()
    child[:3] = 1
    parent[5] = 1
    predictions = Predictions(actual, {"this": child, "parent": parent})
    found = accuracy(predictions, "this", Labels(["a", "b"]), WHERE)
    change = compare.accuracy_change(found, agreement(predictions, "this", "parent", WHERE))
    assert change.value == pytest.approx(-0.02)
    assert -0.09 < change.low < -0.02 < change.high < 0.03


def test_rows_that_differ_are_kept_before_rows_that_agree():
    differences = compare.Differences(Labels(["no", "yes"]))
    actual = np.array([0, 0, 1, 1])
    child = np.array([[0, 5], [5, 0], [0, 5], [0, 5]])
    parent = np.array([[5, 0], [0, 5], [0, 5], [0, 5]])
    texts = {"text": ["x" * 900, "b", "c", "d"]}
    differences.add(texts, np.arange(10, 14), actual, child, parent)
    lost, won, *same = differences.sample()
    assert (lost["row"], lost["outcome"], lost["label"]) == (10, "lost", "no")
    assert lost["parent"] == {"answer": "no", "score": 0.9933}
    assert lost["child"]["answer"] == "yes"
    assert len(lost["input"]["text"]) == 400
    assert won["outcome"] == "won"
    assert [row["outcome"] for row in same] == ["same", "same"]


def test_the_sample_of_rows_is_bounded():
    differences = compare.Differences(Labels(["no", "yes"]))
    for _batch in range(30):
        scores = np.array([[0, 5], [5, 0]])
        rows = {"image": np.zeros((2, 28, 28), np.uint8)}
        differences.add(rows, np.arange(2), np.array([0, 0]), scores, scores[::-1])
    assert len(differences.sample()) == 12 + 12
    assert differences.sample()[0]["input"]["image"]["width"] == 28


# --- guards ---------------------------------------------------------------------------------------


def test_a_result_that_only_guesses_fails_the_job(tmp_path):
    texts = write_texts(tmp_path / "texts")
    model = write_lstm(tmp_path / "model", bidirectional=True)
    with pytest.raises(Invalid) as caught:
        run_job(tmp_path / "job", compress_recipe(), model=model, dataset=texts)
    assert caught.value.reason == "no_better_than_guessing"
    assert "right on 33.3%" in caught.value.detail
    assert "no better than guessing either" in caught.value.detail


def test_a_split_of_one_class_says_nothing_of_guessing():
    actual = np.zeros(5, int)
    found = accuracy(Predictions(actual, {"this": actual}), "this", Labels(["a", "b"]), WHERE)
    refuse_guessing(found)


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([1.0, 0.5, 0.4], True),
        ([1.0, 0.5, 0.499], False),
        ([1.0, 0.4, 0.5], False),
        ([1.0], False),
        ([], False),
        ([1.0, None], False),
    ],
)
def test_a_loss_still_falls_when_its_last_is_clearly_the_lowest(losses, falls):
    assert still_falling([{"loss": loss} for loss in losses]) is falls


def test_a_warning_names_the_step_and_can_be_translated():
    falling = [{"loss": 1.0}, {"loss": 0.5}]
    steps = [
        {"method": "prune", "fine_tune": {"validation": falling}, "dense_control": {"steps": 3}},
        {"method": "quantize_dynamic", "validation": [{"loss": 1.0}, {"loss": 1.0}]},
        {"method": "prune", "dense_control": {"validation": falling}},
        {"method": "distill", "control": {"validation": falling}},
    ]
    own, control, scratch = warnings_of(steps)
    assert "Step 1 stopped training while" in own["detail"]
    assert "What step 3 is compared with stopped training" in control["detail"]
    assert "What step 4 is compared with stopped training" in scratch["detail"]
    for found in (own, control, scratch):
        assert found["code"] == "still_falling"
        assert unpack(found["said"]).detail == found["detail"]


# --- whole reports --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_has_every_number_beside_the_parents(tmp_path):
    digits = write_digits(tmp_path / "digits")
    model = run_job(tmp_path / "train", train_recipe(epochs=6), dataset=digits).files
    result = run_job(tmp_path / "job", compress_recipe(), model=model, dataset=digits)
    for name in (
        "nonzero",
        "macs_per_row",
        "wire_bytes_zstd3",
        "cpu_seconds_per_1000_rows",
        "latency_p50_batch8",
        "worst_class_recall_change",
    ):
        assert result.metric(name)["details"]["parent"]["value"] > 0, name
    assert result.metric("macs_per_row")["value"] == sum(CNN_MACS.values())
    assert result.metric("wire_bytes_zstd3")["value"] < result.metric("stored_bytes")["value"]
    change = result.metric("accuracy_change")
    assert change["low"] <= change["value"] <= change["high"]
    assert result.metric("kl_to_parent")["value"] >= 0
    assert result.metric("job_seconds")["value"] > 0
    assert {row["outcome"] for row in result.report["summary"]["compared"]} >= {"same"}
    assert "compared" not in str(result.report["metrics"]), "rows are for those who see the job"


@pytest.mark.slow
def test_an_encoder_keeps_texts_whose_neighbours_changed(tmp_path):
    texts = write_texts(tmp_path / "texts")
    model = write_encoder(tmp_path / "encoder")
    result = run_job(tmp_path / "job", compress_recipe(), model=model, dataset=texts)
    rows = result.report["summary"]["compared"]
    assert rows
    assert all(row["input"]["text"] and row["parent"]["answer"] for row in rows)
    cosines = [row["cosine"] for row in rows if row["outcome"] == "same"]
    assert cosines == sorted(cosines)


@pytest.mark.slow
def test_a_training_that_stopped_too_soon_warns(tmp_path):
    texts = write_texts(tmp_path / "texts")
    lessons = train_recipe(LSTM, epochs=2, validation_fraction=0.3, learning_rate=0.01)
    result = run_job(tmp_path / "train", lessons, dataset=texts)
    (warning,) = result.report["summary"]["warnings"]
    assert warning["code"] == "still_falling"
