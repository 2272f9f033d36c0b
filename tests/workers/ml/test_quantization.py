"""Quantization: exact bits, honest errors, the same bytes twice, and refusals by name."""

import json

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from registry.errors import Invalid, RegistryError
from tests.workers.ml.little import (
    run_job,
    train_recipe,
    write_cnn,
    write_encoder,
    write_lstm,
    write_texts,
)
from workers.ml.bit_packing import pack, unpack
from workers.ml.compress import blocks
from workers.ml.compress.fixed_point import choose_p, snap, to_fixed_point, to_integer, to_real
from workers.ml.compress.quantize import Static, quantize_with_ranges
from workers.ml.compress.weight_only import Options, quantize_weights
from workers.ml.graphs import inspect_onnx
from workers.ml.infer.engines import OnnxEngine


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    return run_job(tmp_path_factory.mktemp("trained"), train_recipe(epochs=6), dataset=digits).files


def recipe(step, *, dataset=True, **more):
    named = {"dataset": "alice/little@1"} if dataset else {}
    return {"kind": "compress", "model": "alice/tiny@1", **named, "steps": [step], **more}


def refusal(*args, **kwargs):
    with pytest.raises(RegistryError) as caught:
        run_job(*args, **kwargs)
    return caught.value


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(path, nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def product(path, weight, **kwargs):
    """Write x @ weight."""
    inputs, outputs = weight.shape
    return save(
        path,
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", inputs])],
        [("y", ["n", outputs])],
        {"w": weight},
        **kwargs,
    )


def run(file, **feeds):
    return OnnxEngine(file, device="cpu", threads=1).run(feeds)["y"]


# --- the arithmetic of blocks ---------------------------------------------------------------------


@given(
    st.sampled_from([2, 4, 8]),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_codes_come_out_of_their_bytes_as_they_went_in(bits, rows, seed):
    width = 8 * np.random.default_rng(seed).integers(1, 9)
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, width), dtype=np.uint8)
    packed = pack(codes, bits)
    assert packed.nbytes == codes.size * bits // 8
    assert (unpack(packed, bits) == codes).all()


def test_codes_that_fill_no_whole_bytes_are_refused():
    with pytest.raises(ValueError, match="whole bytes"):
        pack(np.zeros((2, 3), np.uint8), 4)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_is_within_half_a_step_where_nothing_is_cut(bits, symmetric):
    weight = torch.from_numpy(drawn(6, 50))
    grid = blocks.fit(weight, bits=8, block=16, symmetric=symmetric)
    rounded = blocks.decode(blocks.encode(weight, grid), grid)
    step = grid.scale_NB.abs().repeat_interleave(16, dim=1)[:, :50]
    # The larger side is exact; the other may reach one step beyond the last code.
    assert bool(((rounded - weight).abs() <= step * (1.01 if symmetric else 0.51)).all())
    coarse = blocks.fit(weight, bits=bits, block=16, symmetric=symmetric)
    codes = blocks.encode(weight, coarse)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= 2**bits - 1


def test_a_matrix_of_zeros_stays_zeros():
    weight = torch.zeros(3, 40)
    for symmetric in (True, False):
        grid = blocks.fit(weight, bits=4, block=16, symmetric=symmetric, half=True)
        assert not blocks.decode(blocks.encode(weight, grid), grid).any()


def test_the_search_for_a_range_never_costs_error():
    weight = torch.from_numpy(drawn(8, 64))
    weight[0, 0] = 12.0  # an extreme that is worth cutting off
    searched = blocks.fit(weight, bits=4, block=64, symmetric=False)
    scale, zero = blocks._range(*[blocks._blocks(weight, 64)[0]], 4, symmetric=False, shrink=1.0)
    plain = blocks.Grid(4, 64, scale, zero)
    error = [
        blocks.weight_error(weight, blocks.decode(blocks.encode(weight, grid), grid))
        for grid in (searched, plain)
    ]
    assert error[0] < error[1]


@pytest.mark.parametrize("order", [True, False])
def test_gptq_beats_rounding_to_the_nearest_in_the_outputs(order):
    weight = torch.from_numpy(drawn(24, 96))
    mixed = torch.from_numpy(drawn(300, 24, seed=1) @ drawn(24, 96, seed=2) + 0.1 * drawn(300, 96))
    curvature = (mixed.T @ mixed).double()
    codes, grid = blocks.gptq(
        weight, curvature, bits=4, block=32, symmetric=False, activation_order=order
    )
    nearest = blocks.decode(blocks.encode(weight, grid), grid)
    better = blocks.output_error(weight, blocks.decode(codes, grid), curvature)
    plain = blocks.output_error(weight, nearest, curvature)
    assert better < 0.5 * plain
    # And the share that is told is the one that is there.
    x = mixed.double()
    true = ((x @ (nearest - weight).double().T) ** 2).sum() / ((x @ weight.double().T) ** 2).sum()
    assert plain == pytest.approx(float(true), rel=1e-6)


def test_gptq_divides_what_is_too_wide_and_still_beats_the_nearest(monkeypatch):
    monkeypatch.setattr(blocks, "_WIDEST", 64)
    monkeypatch.setattr(blocks, "_PART", 32)
    weight = torch.from_numpy(drawn(8, 80))
    mixed = torch.from_numpy(drawn(200, 8, seed=1) @ drawn(8, 80, seed=2) + 0.1 * drawn(200, 80))
    curvature = (mixed.T @ mixed).double()
    codes, grid = blocks.gptq(weight, curvature, bits=4, block=16, symmetric=False)
    assert codes.shape == weight.shape
    nearest = blocks.decode(blocks.encode(weight, grid), grid)
    better = blocks.output_error(weight, blocks.decode(codes, grid), curvature)
    assert better < 0.8 * blocks.output_error(weight, nearest, curvature)


def test_gptq_needs_a_curvature_that_fits():
    weight = torch.zeros(2, 4)
    how = {"bits": 4, "block": 16, "symmetric": True}
    for curvature in (torch.eye(3), torch.full((4, 4), float("nan"))):
        with pytest.raises(ValueError, match="4 by 4"):
            blocks.gptq(weight, curvature, **how)


def test_gptq_works_with_fewer_rows_than_inputs_and_inputs_that_are_never_used():
    weight = torch.from_numpy(drawn(5, 64))
    x = torch.from_numpy(drawn(3, 64))
    x[:, 7] = 0
    codes, grid = blocks.gptq(weight, (x.T @ x).double(), bits=4, block=32, symmetric=False)
    rounded = blocks.decode(codes, grid)
    assert bool(torch.isfinite(rounded).all())
    assert float((rounded[:, 7] - weight[:, 7]).abs().max()) < 1.0


# --- weights alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("inputs", [64, 50])
def test_a_product_computes_with_exactly_the_rounded_weights(tmp_path, bits, symmetric, inputs):
    weight, x = drawn(inputs, 12), drawn(5, inputs, seed=1)
    source = product(tmp_path / "model.onnx", weight)
    target = tmp_path / "small.onnx"
    options = Options(bits, 16, symmetric=symmetric)
    (done,) = quantize_weights(source, target, options)
    as_linear = torch.from_numpy(weight.T.copy())
    grid = blocks.fit(as_linear, bits=bits, block=16, symmetric=symmetric, half=True)
    rounded = blocks.decode(blocks.encode(as_linear, grid), grid)
    np.testing.assert_allclose(run(target, x=x), x @ rounded.numpy().T, rtol=1e-4, atol=1e-4)
    assert done.bits == bits
    assert done.weight_error == pytest.approx(blocks.weight_error(as_linear, rounded))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("width", [32, 21])
def test_an_embedding_gives_exactly_the_rounded_rows(tmp_path, bits, symmetric, width):
    table = drawn(10, width)
    source = save(
        tmp_path / "model.onnx",
        [helper.make_node("Gather", ["w", "i"], ["y"])],
        [("i", TensorProto.INT64, ["n"])],
        [("y", ["n", width])],
        {"w": table},
    )
    options = Options(4, 16, symmetric=symmetric, table_bits=bits)
    quantize_weights(source, tmp_path / "small.onnx", options)
    grid = blocks.fit(torch.from_numpy(table), bits=bits, block=16, symmetric=symmetric, half=True)
    rounded = blocks.decode(blocks.encode(torch.from_numpy(table), grid), grid).numpy()
    order = np.array([3, 0, 9, 3])
    np.testing.assert_allclose(run(tmp_path / "small.onnx", i=order), rounded[order], atol=1e-6)


def test_a_gemm_keeps_its_factors_and_its_bias(tmp_path):
    weight, x, bias = drawn(12, 32), drawn(4, 32, seed=1), drawn(12, seed=2)
    source = save(
        tmp_path / "model.onnx",
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)],
        [("x", TensorProto.FLOAT, ["n", 32])],
        [("y", ["n", 12])],
        {"w": weight, "b": bias},
    )
    quantize_weights(source, tmp_path / "small.onnx", Options(8, 16))
    expected = 0.5 * x @ weight.T + 2 * bias
    np.testing.assert_allclose(run(tmp_path / "small.onnx", x=x), expected, atol=0.06)


def test_bytes_fall_by_the_bits(tmp_path):
    source = product(tmp_path / "model.onnx", drawn(512, 256))
    sizes = {}
    for bits in (2, 4, 8):
        target = tmp_path / f"{bits}.onnx"
        quantize_weights(source, target, Options(bits, 128, symmetric=True))
        sizes[bits] = inspect_onnx(target).weight_bytes
        assert sizes[bits] == {"UINT8": 512 * 256 * bits // 8, "FLOAT16": 2 * 4 * 256}
        assert inspect_onnx(target).parameters == 512 * 256
        assert target.stat().st_size < sum(sizes[bits].values()) + 600


def test_scales_too_small_for_float16_stay_in_float32(tmp_path):
    weight = drawn(64, 8) * 1e-6
    quantize_weights(product(tmp_path / "model.onnx", weight), tmp_path / "s.onnx", Options(8, 16))
    assert "FLOAT16" not in inspect_onnx(tmp_path / "s.onnx").weight_bytes
    x = drawn(3, 64)
    np.testing.assert_allclose(run(tmp_path / "s.onnx", x=x), x @ weight, atol=1e-6)


WEIGHTS = {"method": "quantize_weights"}


@pytest.mark.parametrize("algorithm", [pytest.param("rtn", marks=pytest.mark.slow), "gptq"])
def test_a_cnn_keeps_its_answers_in_a_quarter_of_a_byte_per_bit(
    tmp_path, trained, digits, algorithm
):
    step = {**WEIGHTS, "bits": 4, "algorithm": algorithm, "block_size": 16}
    result = run_job(tmp_path / "job", recipe(step), model=trained, dataset=digits)
    assert result.metric("accuracy")["value"] > 0.85
    assert result.metric("agreement_with_parent")["value"] > 0.85
    (notes,) = result.report["summary"]["steps"]
    kinds = {layer["operator"]: layer["algorithm"] for layer in notes["layers"]}
    assert kinds["Conv"] == "rtn"
    assert {kinds.get("Gemm"), kinds.get("MatMul")} >= {algorithm}
    if algorithm == "gptq":
        told = [layer for layer in notes["layers"] if layer["output_error"] is not None]
        assert sum(layer["output_error"] for layer in told) < sum(
            layer["nearest_output_error"] for layer in told
        )
    parameters = result.metric("parameters")
    assert parameters["value"] == parameters["details"]["parent"]["value"]


def test_a_text_classifier_is_stored_in_few_bits_lstm_and_table_included(tmp_path):
    texts = write_texts(tmp_path / "texts")
    model = write_lstm(tmp_path / "model")
    step = {**WEIGHTS, "bits": 8, "block_size": 16}
    result = run_job(tmp_path / "job", recipe(step), model=model, dataset=texts)
    assert result.metric("agreement_with_parent")["value"] > 0.9
    operators = result.report["summary"]["operators"]
    assert operators["LSTM"] == 1
    assert operators["GatherBlockQuantized"] == 3
    # What is left are biases and the matrix of 3 classes.
    assert result.report["summary"]["weight_bytes_by_type"]["FLOAT"] < 500


@pytest.mark.slow
def test_an_encoder_is_followed_closely_in_8_bits(tmp_path):
    model = write_encoder(tmp_path / "model")
    step = {**WEIGHTS, "bits": 8, "integer_compute": True}
    result = run_job(tmp_path / "job", recipe(step, dataset=False), model=model)
    assert result.metric("cosine_to_parent")["value"] > 0.999


@pytest.mark.parametrize(
    "step",
    [
        {"method": "quantize_weights", "algorithm": "gptq"},
        {"method": "quantize_static", "calibration": "percentile"},
        pytest.param({"method": "fixed_point"}, marks=pytest.mark.slow),
    ],
)
def test_the_same_recipe_gives_the_same_bytes(tmp_path, trained, digits, step):
    made = [
        run_job(tmp_path / name, recipe(step), model=trained, dataset=digits).files / "model.onnx"
        for name in ("first", "second")
    ]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert str(tmp_path).encode() not in made[0].read_bytes()


@pytest.mark.parametrize("method", ["quantize_weights", "quantize_static", "fixed_point"])
def test_what_is_quantized_is_not_quantized_again(tmp_path, trained, digits, method):
    step = {"method": "quantize_weights"}
    small = run_job(tmp_path / "small", recipe(step), model=trained, dataset=digits).files
    said = refusal(tmp_path / "again", recipe({"method": method}), model=small, dataset=digits)
    assert said.reason == "already_quantized"
    assert "MatMulNBits" in said.detail


def test_layers_are_left_out_by_pattern(tmp_path):
    weight = drawn(32, 32)
    source = save(
        tmp_path / "model.onnx",
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "v"], ["y"], name="last"),
        ],
        [("x", TensorProto.FLOAT, ["n", 32])],
        [("y", ["n", 32])],
        {"w": weight, "v": weight},
    )
    done = quantize_weights(source, tmp_path / "small.onnx", Options(exclude=["la*"]))
    assert [layer.layer for layer in done] == ["first"]
    assert inspect_onnx(tmp_path / "small.onnx").operators["MatMul"] == 1
    with pytest.raises(Invalid, match=r"lats; this model has first, w; last, v") as caught:
        quantize_weights(source, tmp_path / "none.onnx", Options(exclude=["lats"]))
    assert caught.value.reason == "no_such_layer"


def test_a_model_without_weights_says_what_could_be_rounded(tmp_path):
    source = save(
        tmp_path / "model.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["n", 16])],
        [("y", ["n", 16])],
        {"w": drawn(16, 16)},
    )
    for make in (
        lambda target: quantize_weights(source, target, Options()),
        lambda target: to_fixed_point(source, target, bits=8),
        lambda target: quantize_with_ranges(source, target, Static(), lambda: iter(())),
    ):
        with pytest.raises(Invalid) as caught:
            make(tmp_path / "small.onnx")
        assert caught.value.reason == "nothing_to_quantize"


def test_gptq_without_a_dataset_says_what_can_be_done_without(tmp_path, trained):
    step = {**WEIGHTS, "algorithm": "gptq"}
    said = refusal(tmp_path / "job", recipe(step, dataset=False), model=trained)
    assert said.errors[0].code == "inconsistent"
    assert "rtn" in said.detail


# --- calibrated -----------------------------------------------------------------------------------

STATIC = {"method": "quantize_static", "calibration_rows": 64}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"calibration": "entropy"}, marks=pytest.mark.slow),
        pytest.param({"format": "qoperator"}, marks=pytest.mark.slow),
        pytest.param({"operators": "all", "per_channel": False}, marks=pytest.mark.slow),
    ],
)
def test_a_calibrated_cnn_keeps_its_answers(tmp_path, trained, digits, changes):
    result = run_job(tmp_path / "job", recipe({**STATIC, **changes}), model=trained, dataset=digits)
    assert result.metric("accuracy")["value"] > 0.85
    operators = result.report["summary"]["operators"]
    if changes.get("format") == "qoperator":
        assert operators["QLinearConv"] == 2
    else:
        assert operators["QuantizeLinear"] > 0
    (notes,) = result.report["summary"]["steps"]
    assert notes["left_in_float32"] == {}
    weights = result.report["summary"]["weight_bytes_by_type"]
    assert weights["INT8"] > 1000
    compared = result.report["summary"]["weights"]
    assert "gone" not in compared["counts"]
    assert 0 < compared["relative"] < 0.05


@pytest.mark.slow
def test_layers_that_dynamic_quantization_leaves_stay_in_float32(tmp_path, trained, digits):
    plain = recipe({"method": "quantize_dynamic"})
    spared = recipe({"method": "quantize_dynamic", "exclude": ["hidden"]})
    types = []
    for name, asked in (("plain", plain), ("spared", spared)):
        done = run_job(tmp_path / name, asked, model=trained, dataset=digits)
        model = onnx.load(done.files / "model.onnx")
        kinds = [
            tensor.data_type for tensor in model.graph.initializer if "hidden.weight" in tensor.name
        ]
        types.append(TensorProto.FLOAT in kinds and TensorProto.INT8 not in kinds)
    assert types == [False, True]
    odd = recipe({"method": "quantize_dynamic", "exclude": ["hiden"]})
    assert refusal(tmp_path / "odd", odd, model=trained, dataset=digits).reason == "no_such_layer"


def test_excluded_layers_stay_in_float32(tmp_path, trained, digits):
    step = {**STATIC, "exclude": ["second"]}
    result = run_job(tmp_path / "job", recipe(step), model=trained, dataset=digits)
    (notes,) = result.report["summary"]["steps"]
    assert notes["left_in_float32"]["Conv"] >= 1


@pytest.mark.slow
def test_what_integer_products_leave_of_a_text_classifier_is_stored_in_8_bits(tmp_path):
    texts = write_texts(tmp_path / "texts")
    lstm = {"name": "text_classifier", "embedding_size": 8, "hidden_size": 8, "max_length": 12}
    asked = train_recipe(lstm, epochs=20)
    model = run_job(tmp_path / "train", asked, dataset=texts).files
    result = run_job(tmp_path / "job", recipe(STATIC), model=model, dataset=texts)
    assert result.metric("agreement_with_parent")["value"] > 0.9
    (notes,) = result.report["summary"]["steps"]
    assert notes["left_in_float32"] == {}
    operators = result.report["summary"]["operators"]
    assert operators["GatherBlockQuantized"] == 3
    assert operators["QuantizeLinear"] == 1


def test_calibration_without_a_dataset_is_refused(tmp_path, trained):
    said = refusal(tmp_path / "job", recipe(STATIC, dataset=False), model=trained)
    assert said.errors[0].code == "inconsistent"
    assert "quantize_dynamic" in said.detail


def test_a_model_that_static_quantization_cannot_take_is_told_what_can(tmp_path):
    texts = write_texts(tmp_path / "texts")
    source = save(
        tmp_path / "model.onnx",
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)],
        [("x", TensorProto.FLOAT, ["l", "n", 4])],
        [("y", ["l", 1, "n", 4])],
        {"w": drawn(1, 16, 4), "r": drawn(1, 16, 4)},
    )
    with pytest.raises(Invalid, match=r"LSTM.*quantize_dynamic") as caught:
        quantize_with_ranges(source, tmp_path / "small.onnx", Static(), lambda: iter(()))
    assert caught.value.reason == "nothing_to_quantize"
    assert texts.exists()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones((8, 15), np.float32), "x"),
        (np.ones((8, 16), np.int64), "x"),
        (np.full((8, 16), np.nan, np.float32), "finite"),
    ],
)
def test_calibration_rows_of_another_shape_or_type_are_refused(tmp_path, values, told):
    from safetensors.numpy import save_file  # noqa: PLC0415 - beside its one use

    model = tmp_path / "model"
    model.mkdir()
    product(model / "model.onnx", drawn(16, 16))
    data = tmp_path / "data"
    data.mkdir()
    save_file({"x": values}, data / "train.safetensors")
    save_file({"x": np.ones((8, 16), np.float32)}, data / "test.safetensors")
    said = refusal(tmp_path / "job", recipe(STATIC), model=model, dataset=data)
    assert said.reason == "bad_calibration"
    assert told in said.detail


# --- fixed point ----------------------------------------------------------------------------------


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50),
    st.integers(4, 16),
)
@settings(max_examples=100, deadline=None)
def test_the_largest_weight_fits_and_no_finer_grid_would_let_it(values, bits):
    x = np.array(values, np.float32)
    p = choose_p(x, bits, "largest")
    integers = to_integer(x, bits, p)
    top = 2 ** (bits - 1) - 1
    assert np.abs(integers).max() <= top
    if np.abs(x).max() > 0:
        assert np.abs(to_real(integers, p) - x).max() <= 2.0 ** (-p - 1)
        assert np.abs(np.ldexp(x.astype(np.float64), p + 1)).max() > top
    least = choose_p(x, bits, "least_error")
    errors = [((to_real(to_integer(x, bits, q), q) - x) ** 2).sum() for q in (least, p)]
    assert errors[0] <= errors[1]


@pytest.mark.parametrize(
    ("bits", "kind", "size"), [(4, "INT4", 0.5), (8, "INT8", 1), (12, "INT16", 2)]
)
def test_fixed_point_is_stored_as_integers_and_scaled_by_a_power_of_two(tmp_path, bits, kind, size):
    weight, x = drawn(64, 32), drawn(4, 64, seed=1)
    source = product(tmp_path / "model.onnx", weight)
    (done,) = to_fixed_point(source, tmp_path / "small.onnx", bits=bits)
    contents = inspect_onnx(tmp_path / "small.onnx")
    assert contents.weight_bytes[kind] == 64 * 32 * size
    assert contents.parameters == 64 * 32
    assert (tmp_path / "small.onnx").stat().st_size < 64 * 32 * size + 500
    model = onnx.load(tmp_path / "small.onnx")
    (scale,) = [t for t in model.graph.initializer if t.name.endswith("_scale")]
    assert numpy_helper.to_array(scale) == 2.0**-done.p
    expected = x @ to_real(to_integer(weight, bits, done.p), done.p)
    np.testing.assert_allclose(run(tmp_path / "small.onnx", x=x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_snapped_module_computes_like_its_fixed_point_file(tmp_path, trained, digits):
    step = {"method": "fixed_point", "bits": 6, "keep_module": True}
    kept = run_job(tmp_path / "module", recipe(step), model=trained, dataset=digits)
    step = {"method": "fixed_point", "bits": 6}
    stored = run_job(tmp_path / "file", recipe(step), model=trained, dataset=digits)
    assert (kept.files / "model.safetensors").exists()
    assert kept.metric("accuracy")["value"] == stored.metric("accuracy")["value"]
    told = [result.report["summary"]["steps"][0]["tensors"] for result in (kept, stored)]
    assert sorted(tensor["p"] for tensor in told[0]) == sorted(tensor["p"] for tensor in told[1])


def test_fixed_point_names_what_it_cannot_take(tmp_path):
    with pytest.raises(Invalid) as caught:
        snap(torch.nn.LayerNorm(4), bits=8)
    assert caught.value.reason == "nothing_to_quantize"
    model = tmp_path / "model"
    model.mkdir()
    product(model / "model.onnx", drawn(16, 16))
    step = {"method": "fixed_point", "keep_module": True}
    said = refusal(tmp_path / "job", recipe(step, dataset=False), model=model)
    assert said.reason == "needs_module"


def test_the_parent_is_never_changed(tmp_path):
    model = write_cnn(tmp_path / "model")
    before = (model / "model.safetensors").read_bytes()
    step = {"method": "fixed_point", "bits": 4, "keep_module": True}
    result = run_job(tmp_path / "job", recipe(step, dataset=False), model=model)
    assert (model / "model.safetensors").read_bytes() == before
    assert json.loads((result.files / "config.json").read_text())["compression"][0]["bits"] == 4
