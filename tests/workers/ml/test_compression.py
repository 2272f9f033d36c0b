"""Export and quantization: the same answers from fewer bytes, and the price beside them."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from registry.errors import Invalid, RegistryError
from tests.workers.ml.little import (
    LSTM,
    compress_recipe,
    infer_recipe,
    run_job,
    train_recipe,
    write_cnn,
    write_encoder,
    write_lstm,
    write_texts,
)
from workers.ml.export.lstm import with_onnx_lstm
from workers.ml.export.onnx import export_onnx, verify
from workers.ml.formats import open_model
from workers.ml.graphs import inspect_onnx
from workers.ml.infer.engines import OnnxEngine
from workers.ml.infer.runtime import load_runtime

EXPORT = {"kind": "compress", "model": "alice/tiny@1", "steps": [{"method": "export_onnx"}]}


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "texts")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    """Train a CNN whose answers are sure enough to survive rounding."""
    folder = tmp_path_factory.mktemp("trained")
    return run_job(folder, train_recipe(epochs=6), dataset=digits).files


def refusal(*args, **kwargs):
    with pytest.raises(RegistryError) as caught:
        run_job(*args, **kwargs)
    return caught.value.reason


def feeds_of(batch, length):
    drawn = np.random.default_rng(batch * length)
    tokens = drawn.integers(1, 20, (batch, length))
    tokens[0, length // 2 + 1 :] = 0
    return {"tokens": tokens}


@pytest.mark.parametrize("changes", [{}, {"bidirectional": True, "layers": 2}])
@pytest.mark.slow
def test_an_exported_lstm_computes_the_same_for_any_batch_and_length(tmp_path, changes):
    folder = open_model(write_lstm(tmp_path / "model", **changes))
    runtime = load_runtime(folder, device="cpu", threads=1)
    export_onnx(runtime.engine, feeds_of(3, 6), "logits", tmp_path / "model.onnx")
    engine = OnnxEngine(tmp_path / "model.onnx", device="cpu", threads=1)
    probes = [feeds_of(batch, length) for batch, length in [(1, 1), (2, 9), (7, 12), (1, 30)]]
    assert verify(runtime.engine, engine, probes).largest_absolute < 1e-5


@pytest.mark.parametrize(
    "odd", [{"num_layers": 2}, {"bidirectional": True}, {"batch_first": False}]
)
def test_another_lstm_is_refused_by_name(odd):
    layer = torch.nn.LSTM(4, 3, **{"batch_first": True, **odd})
    module = torch.nn.ModuleDict({"memory": layer})
    with pytest.raises(Invalid, match=r"memory.*one layer, one direction") as caught:
        with_onnx_lstm(module)
    assert caught.value.reason == "unsupported_operator"
    assert module["memory"] is layer


def test_an_export_that_disagrees_is_refused(tmp_path):
    runtimes = [
        load_runtime(
            open_model(write_cnn(tmp_path / str(seed), seed=seed)), device="cpu", threads=1
        )
        for seed in (0, 1)
    ]
    image = {"image": np.full((2, 28, 28), 99, np.uint8)}
    export_onnx(runtimes[1].engine, image, "logits", tmp_path / "other.onnx")
    engine = OnnxEngine(tmp_path / "other.onnx", device="cpu", threads=1)
    with pytest.raises(Invalid) as caught:
        verify(runtimes[0].engine, engine, [image])
    assert caught.value.reason == "export_failed"
    # A copy that answers no number is not as good as the model; one of a model that does is.
    ill = runtimes[0].engine
    with torch.no_grad():
        ill.module.classes.bias[1] = torch.nan
    export_onnx(ill, image, "logits", tmp_path / "ill.onnx")
    engine = OnnxEngine(tmp_path / "ill.onnx", device="cpu", threads=1)
    assert verify(ill, engine, [image]).largest_absolute < 1e-4
    with torch.no_grad():
        ill.module.classes.bias[1] = 0.0
    with pytest.raises(Invalid) as caught:
        verify(ill, engine, [image])
    assert caught.value.reason == "export_failed"


def test_an_exported_file_holds_no_path_of_this_machine(tmp_path, digits):
    result = run_job(tmp_path / "job", EXPORT, model=write_cnn(tmp_path / "model"))
    content = (result.files / "model.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b"workers/ml" not in content


def test_a_quantized_cnn_reports_its_price(tmp_path, trained, digits):
    result = run_job(tmp_path / "job", compress_recipe(), model=trained, dataset=digits)
    accuracy = result.metric("accuracy")
    assert accuracy["value"] > 0.85
    assert accuracy["n"] == 40
    assert accuracy["dataset"] == "alice/little@1"
    assert accuracy["details"]["parent"]["value"] > 0.9
    assert result.metric("agreement_with_parent")["value"] > 0.9
    parameters = result.metric("parameters")
    assert parameters["value"] == parameters["details"]["parent"]["value"]
    stored = result.metric("stored_bytes")
    assert stored["value"] == (result.files / "model.onnx").stat().st_size
    assert stored["details"]["parent"]["value"] == (trained / "model.safetensors").stat().st_size
    for name in ("latency_p50_batch1", "latency_p95_batch1", "latency_p50_batch32"):
        latency = result.metric(name)
        assert latency["value"] > 0
        assert {"parent", "onnx_float32", "cpu_flags", "threads"} <= latency["details"].keys()
    summary = result.report["summary"]
    assert summary["operators"]["MatMulInteger"] == 2
    assert summary["export"]["largest_relative_difference"] < 1e-4
    assert "accuracy" in result.report["message"]
    card = (result.files / "README.md").read_text()
    assert "base_model: alice/tiny\n" in card
    assert "| accuracy (test) |" in card
    assert not (result.out / "work").exists()


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path, trained, digits, real_footprint):
    result = run_job(tmp_path / "job", compress_recipe(), model=trained, dataset=digits)
    memory = result.metric("peak_memory")
    assert 0 < memory["value"] < 500_000_000
    assert memory["details"]["parent"]["value"] > 0


def test_a_variant_can_be_run_and_not_be_quantized_again(tmp_path, trained, digits):
    small = run_job(tmp_path / "small", compress_recipe(), model=trained, dataset=digits).files
    recipe = infer_recipe()
    predicted = run_job(tmp_path / "infer", recipe, model=small, dataset=digits)
    assert predicted.metric("accuracy")["value"] > 0.85
    assert refusal(tmp_path / "again", compress_recipe(), model=small, dataset=digits) == (
        "already_quantized"
    )
    assert refusal(tmp_path / "export", EXPORT, model=small) == "already_onnx"


@pytest.mark.slow
def test_an_exported_model_is_quantized_like_the_original(tmp_path, trained, digits):
    exported = run_job(tmp_path / "export", EXPORT, model=trained).files
    whole = run_job(tmp_path / "whole", compress_recipe(), model=trained, dataset=digits)
    staged = run_job(tmp_path / "staged", compress_recipe(), model=exported, dataset=digits)
    sizes = [(result.files / "model.onnx").stat().st_size for result in (whole, staged)]
    assert sizes[0] == sizes[1]
    assert staged.metric("latency_p50_batch1")["details"]["parent"]["engine"] == "onnxruntime/cpu"


@pytest.mark.slow
def test_convolutions_are_quantized_when_asked(tmp_path, trained, digits):
    result = run_job(
        tmp_path / "job", compress_recipe(convolutions=True), model=trained, dataset=digits
    )
    assert result.report["summary"]["operators"]["ConvInteger"] == 2
    assert "Conv" not in result.report["summary"]["operators"]
    assert result.metric("agreement_with_parent")["value"] > 0.8


@pytest.mark.parametrize("changes", [{}, {"bidirectional": True}])
@pytest.mark.slow
def test_a_text_classifier_is_quantized_with_its_embedding_and_lstm(tmp_path, texts, changes):
    lessons = train_recipe({**LSTM, **changes}, epochs=4)
    model = run_job(tmp_path / "train", lessons, dataset=texts).files
    result = run_job(tmp_path / "job", compress_recipe(), model=model, dataset=texts)
    operators = result.report["summary"]["operators"]
    assert operators["DynamicQuantizeLSTM"] == (2 if changes else 1)
    assert "LSTM" not in operators
    assert result.metric("agreement_with_parent")["value"] > 0.7
    assert (result.files / "vocabulary.json").exists()
    weights = result.report["summary"]["weight_bytes_by_type"]
    assert weights["INT8"] + weights.get("UINT8", 0) > 27 * 8


@pytest.mark.slow
def test_a_quantized_encoder_is_compared_with_its_parent_by_the_names_of_its_parts(tmp_path):
    model = write_encoder(tmp_path / "model")
    recipe = compress_recipe()
    del recipe["dataset"]
    result = run_job(tmp_path / "job", recipe, model=model)
    told = {one["name"]: one for one in result.report["summary"]["weights"]["tensors"]}
    query = told["encoder.layer.1.attention.self.query.weight"]
    assert (query["state"], query["dtype_after"]) == ("changed", "I8")
    assert 0.99 < query["cosine"] < 1
    matrices = [
        one for one in told.values() if len(one.get("shape_before") or one["shape_after"]) == 2
    ]
    # The pooler is no part of what gives a vector, and the numbers of the places are no weights.
    apart = {one["name"]: one["state"] for one in matrices if one["state"] in {"gone", "new"}}
    assert apart == {"pooler.dense.weight": "gone", "encoder.embeddings.position_ids": "new"}


@pytest.mark.slow
def test_without_a_dataset_fidelity_is_measured_on_noise(tmp_path, trained):
    recipe = compress_recipe()
    del recipe["dataset"]
    result = run_job(tmp_path / "job", recipe, model=trained)
    cosine = result.metric("cosine_to_parent")
    assert cosine["value"] > 0.9
    assert cosine["split"] == "built-in"
    assert cosine["low"] <= cosine["value"] <= cosine["high"]


def test_a_dataset_without_the_column_fails_before_the_work(tmp_path, trained, texts):
    assert refusal(tmp_path / "job", compress_recipe(), model=trained, dataset=texts) == (
        "missing_column"
    )
    assert not (tmp_path / "job" / "out" / "work").exists()


def foreign_onnx(path, *, op="MatMul", external=False, rank=2):
    """Write an ONNX file that knows nothing of our conventions."""
    weight = numpy_helper.from_array(
        np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32), "weight"
    )
    if external:
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../../etc/passwd")
        weight.ClearField("raw_data")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "weight"], ["y"])],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16][:rank])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16] if rank else None)],
        [weight],
    )
    path.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path / "model.onnx")
    return path


def test_an_onnx_file_from_elsewhere_is_quantized_and_compared(tmp_path):
    recipe = compress_recipe()
    del recipe["dataset"]
    result = run_job(tmp_path / "job", recipe, model=foreign_onnx(tmp_path / "model"))
    assert result.metric("cosine_to_parent")["value"] > 0.99
    assert "64 built-in random inputs" in result.metric("cosine_to_parent")["details"]["probes"]
    assert json.loads((result.files / "config.json").read_text())["compression"]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: foreign_onnx(path, op="Add"), "nothing_to_quantize"),
        (lambda path: foreign_onnx(path, external=True), "malformed_file"),
        (lambda path: foreign_onnx(path, op="Add", rank=0), "unsupported_input"),
    ],
)
def test_what_cannot_be_quantized_says_why(tmp_path, make, code):
    recipe = compress_recipe()
    del recipe["dataset"]
    assert refusal(tmp_path / "job", recipe, model=make(tmp_path / "model")) == code


def test_external_weights_are_not_followed(tmp_path):
    with pytest.raises(Invalid) as caught:
        inspect_onnx(foreign_onnx(tmp_path, external=True) / "model.onnx")
    assert caught.value.reason == "unsupported_format"


def test_a_damaged_onnx_file_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"\x80\x04not a model")
    recipe = compress_recipe()
    del recipe["dataset"]
    assert refusal(tmp_path / "job", recipe, model=tmp_path / "model") == "malformed_file"
