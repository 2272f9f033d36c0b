"""Pruning and sharing ONNX files: exact zeros, the other numbers as they were, nothing trained."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from registry.errors import Invalid
from registry.recipes import parse_recipe
from tests.workers.ml.little import compress_recipe, run_job, write_cnn, write_lstm
from workers.ml.compress.prune import sparsity_notes
from workers.ml.compress.sparse_graph import prune_graph, share_graph
from workers.ml.infer.engines import OnnxEngine

DRAWN = np.random.default_rng(0)


def write_graph(file):
    """Write a graph with each operator that has weights: turned both ways, shared, and a table."""
    weights = {
        "table": DRAWN.standard_normal((32, 8)),
        "matmul": DRAWN.standard_normal((8, 16)),
        "gemm": DRAWN.standard_normal((12, 16)),
        "gemm_in": DRAWN.standard_normal((12, 8)),
        "bias": DRAWN.standard_normal(12),
        "conv": DRAWN.standard_normal((4, 1, 1, 16)) * 3,
    }
    nodes = [
        helper.make_node("Gather", ["table", "row"], ["x"], name="look"),
        helper.make_node("MatMul", ["x", "matmul"], ["y"], name="first"),
        helper.make_node("Gemm", ["y", "gemm", "bias"], ["z"], name="second", transB=1),
        helper.make_node("Gemm", ["z", "gemm_in"], ["w"], name="third"),
        helper.make_node("MatMul", ["w", "matmul"], ["v"], name="again"),
        helper.make_node("Unsqueeze", ["v", "axes"], ["u"], name="wide"),
        helper.make_node("Conv", ["u", "conv"], ["out"], name="last"),
    ]
    held = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    held.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("row", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        held,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), file)
    return {name: weight.astype(np.float32) for name, weight in weights.items()}


def weights_of(file):
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer}


@pytest.fixture
def graph(tmp_path):
    return tmp_path / "in.onnx", write_graph(tmp_path / "in.onnx"), tmp_path / "out.onnx"


def run(file):
    (out,) = OnnxEngine(file, device="cpu", threads=1).run({"row": np.array([1, 5, 9])}).values()
    return out


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_exactly_the_smallest_weights_become_zero(graph, scope):
    source, before, target = graph
    prune_graph(source, target, sparsity=0.75, scope=scope)
    after = weights_of(target)
    pruned = ("matmul", "gemm", "gemm_in", "conv")
    assert np.array_equal(after["table"], before["table"])
    assert np.array_equal(after["bias"], before["bias"])
    for name in pruned:
        kept = after[name] != 0
        assert np.array_equal(after[name][kept], before[name][kept])
        if scope == "layer":
            assert (~kept).sum() == round(0.75 * kept.size)
    flat = np.concatenate([np.abs(before[name]).ravel() for name in pruned])
    zero = np.concatenate([after[name].ravel() == 0 for name in pruned])
    if scope == "global":
        assert zero.sum() == round(0.75 * zero.size)
        assert flat[zero].max() <= flat[~zero].min()
    assert run(target).shape == run(source).shape


def test_a_pattern_lies_along_the_inputs_of_each_layer(graph):
    source, _, target = graph
    prune_graph(source, target, sparsity=0.5, pattern=(2, 4), exclude=("last",))
    after = weights_of(target)
    for name, inputs in (("matmul", 0), ("gemm", 1), ("gemm_in", 0)):
        rows = np.moveaxis(after[name], inputs, -1).reshape(-1, 4)
        assert ((rows != 0).sum(1) == 2).all()
    assert (after["conv"] != 0).all()
    with pytest.raises(Invalid, match="does not divide the 1 inputs of last"):
        prune_graph(source, target, sparsity=0.5, pattern=(2, 4))
    with pytest.raises(Invalid, match="No layer is called nowhere"):
        prune_graph(source, target, sparsity=0.5, exclude=("nowhere",))


def test_each_weight_shares_few_values(graph):
    source, before, target = graph
    done = share_graph(source, target, bits=3, smallest=64)
    after = weights_of(target)
    assert done.keys() == {"table", "matmul", "gemm", "gemm_in", "conv"}
    for name in done:
        assert len(np.unique(after[name])) <= 8
        assert np.abs(after[name] - before[name]).max() < np.abs(before[name]).max()


def export(tmp_path, digits, steps=({"method": "export_onnx"},), **written):
    recipe = {**compress_recipe(dataset=None), "steps": list(steps)}
    del recipe["dataset"]
    return run_job(tmp_path / "exported", recipe, model=write_cnn(tmp_path / "model", **written))


def test_an_onnx_file_is_pruned_shared_and_coded_by_a_job(tmp_path, digits):
    exported = export(tmp_path, digits, hidden_size=32)
    steps = [
        {"method": "prune_magnitude", "sparsity": 0.8, "scope": "layer", "epochs": 0},
        {"method": "cluster", "bits": 4},
        {"method": "code"},
    ]
    recipe = {**compress_recipe(), "steps": steps}
    del recipe["dataset"]
    result = run_job(tmp_path / "job", recipe, model=exported.files)
    assert {file.name for file in result.files.glob("model.*")} == {"model.myz"}
    pruned, shared, _ = result.report["summary"]["steps"]
    assert pruned["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert shared["values"] <= 16 * shared["layers"]
    assert result.metric("stored_bytes")["details"]["times_smaller"] > 10
    assert result.metric("nonzero")["value"] < 0.3 * result.metric("parameters")["value"]
    # The same in one recipe, from the torch model.
    again = export(tmp_path / "one", digits, [{"method": "export_onnx"}, *steps], hidden_size=32)
    assert (again.files / "model.myz").read_bytes() == (result.files / "model.myz").read_bytes()


def test_the_weights_of_an_lstm_in_a_graph_are_pruned(tmp_path):
    recipe = {**compress_recipe(), "steps": [{"method": "export_onnx"}]}
    del recipe["dataset"]
    exported = run_job(tmp_path / "exported", recipe, model=write_lstm(tmp_path / "model"))
    recipe["steps"] = [{"method": "prune_magnitude", "pattern": "1:4", "epochs": 0}]
    result = run_job(tmp_path / "job", recipe, model=exported.files)
    assert result.report["summary"]["steps"][0]["sparsity"] == 0.75


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("operator", list(GATES))
@pytest.mark.parametrize("inputs", [8, 16])
def test_both_weights_of_a_recurrent_layer_keep_their_own_numbers(tmp_path, operator, inputs):
    rows = 16 * GATES[operator]
    before = {
        "weights_in": DRAWN.standard_normal((2, rows, inputs)).astype(np.float32),
        "weights_back": DRAWN.standard_normal((2, rows, 16)).astype(np.float32),
    }
    node = helper.make_node(
        operator, ["x", *before], ["y"], name="layer", hidden_size=16, direction="bidirectional"
    )
    graph = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", "rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in before.items()],
    )
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), source)
    given = {"x": np.ones((3, 2, inputs), np.float32)}
    for asked in ({"sparsity": 0.5}, {"sparsity": 0.5, "pattern": (2, 4)}):
        pruned = prune_graph(source, target, **asked)
        after = weights_of(target)
        for name, values in before.items():
            kept = after[name] != 0
            assert np.array_equal(after[name][kept], values[kept])
        zeros = sum(int((values == 0).sum()) for values in after.values())
        told = sparsity_notes(pruned)
        assert told["weights"] == sum(values.size for values in before.values())
        assert told["zeros"] == zeros == told["weights"] // 2
        assert told["sparsity_by_layer"].keys() == before.keys()
        OnnxEngine(target, device="cpu", threads=1).run(given)
    with pytest.raises(Invalid, match=f"does not divide the {inputs} inputs of layer"):
        prune_graph(source, target, sparsity=0.5, pattern=(1, 32))


def test_training_a_graph_is_refused_with_what_can_be_done(tmp_path, digits):
    exported = export(tmp_path, digits)
    for step in (
        {"method": "prune_magnitude", "epochs": 2},
        {"method": "cluster", "epochs": 2},
        {"method": "prune_magnitude", "epochs": 0, "embeddings": "frequency"},
    ):
        with pytest.raises(Invalid, match="Set its epochs to 0") as refused:
            run_job(
                tmp_path / "job",
                {**compress_recipe(), "steps": [step]},
                model=exported.files,
                dataset=digits,
            )
        assert refused.value.reason == "needs_module"
        assert not (tmp_path / "job" / "out" / "report.json").exists()
    quantized = export(tmp_path / "int8", digits, [{"method": "quantize_dynamic"}], hidden_size=32)
    recipe = {**compress_recipe(), "steps": [{"method": "prune_magnitude", "epochs": 0}]}
    del recipe["dataset"]
    with pytest.raises(Invalid, match="already"):
        run_job(tmp_path / "again", recipe, model=quantized.files)
    with pytest.raises(Invalid, match="before quantize_dynamic"):
        parse_recipe(
            {
                **compress_recipe(),
                "steps": [
                    {"method": "quantize_dynamic"},
                    {"method": "prune_magnitude", "epochs": 0},
                ],
            }
        )
