"""What a graph keeps in another form than its model is read as the runtime computes with it."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file

from registry.errors import RegistryError
from registry.formats.weights import Chosen
from tests.workers.ml.little import compress_recipe, run_job, write_lstm, write_texts
from workers.ml.compress.fixed_point import to_fixed_point
from workers.ml.compress.weight_only import Options, quantize_weights
from workers.ml.packed import PackedLinear, pack_halves
from workers.ml.stored import OpenFiles, Stored
from workers.ml.tensors import open_tensors

RNG = np.random.default_rng(3)
TURNED = {"transB": 1}


def saved(path: Path, nodes: list[Any], weights: dict[str, NDArray[Any]], width: int) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def read(path: Path, format_name: str = "onnx") -> dict[str, Stored]:
    chosen = Chosen(format_name, (path.name,))
    return open_tensors(path.parent, chosen, path.parent / "scratch", OpenFiles())


def numbers(stored: Stored) -> NDArray[Any]:
    """Read it in pieces that end anywhere, as a comparison does, only smaller."""
    cuts = sorted({0, stored.elements, *RNG.integers(0, stored.elements, 4).tolist()})
    parts = [stored.between(low, high) for low, high in pairwise(cuts)]
    return np.concatenate(parts).reshape(stored.shape)


def ran(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(answer)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_packed_matrix_is_what_the_runtime_multiplies_by(
    tmp_path: Path, operator: str, bits: int, *, symmetric: bool
) -> None:
    width, outputs = 70, 5
    weight = RNG.standard_normal((width, outputs)).astype("f4") + 0.3
    if operator == "Gemm":
        weight = np.ascontiguousarray(weight.T)
    node = helper.make_node(operator, ["x", "w"], ["y"], **({} if operator == "MatMul" else TURNED))
    plain = saved(tmp_path / "plain.onnx", [node], {"w": weight}, width)
    packed = tmp_path / "packed.onnx"
    quantize_weights(plain, packed, Options(bits=bits, block=16, symmetric=symmetric))
    found = read(packed)
    assert list(found) == ["w"]
    stored = found["w"]
    assert (stored.shape, stored.dtype) == (weight.shape, f"U{bits}")
    used = ran(packed, np.eye(width, dtype="f4"))
    read_back = numbers(stored).T if operator == "Gemm" else numbers(stored)
    assert read_back == pytest.approx(used, abs=1e-5)


@pytest.mark.parametrize(("bits", "width"), [(2, 7), (4, 33), (8, 16)])
def test_a_packed_table_is_what_the_runtime_looks_up(tmp_path: Path, bits: int, width: int) -> None:
    table = RNG.standard_normal((40, width)).astype("f4")
    every = np.arange(40, dtype="i8")
    nodes = [
        helper.make_node("Gather", ["w", "every"], ["rows"]),
        helper.make_node("MatMul", ["x", "rows"], ["y"]),
    ]
    plain = saved(tmp_path / "plain.onnx", nodes, {"w": table, "every": every}, 40)
    packed = tmp_path / "packed.onnx"
    quantize_weights(plain, packed, Options(bits=bits, table_bits=bits, block=16))
    stored = read(packed)["w"]
    assert stored.shape == table.shape
    assert numbers(stored) == pytest.approx(ran(packed, np.eye(40, dtype="f4")), abs=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_kernel_has_its_own_shape(tmp_path: Path, bits: int) -> None:
    kernel = RNG.standard_normal((30, 3, 3, 1)).astype("f4")
    shape = np.array([-1, 3, 3, 1], "i8")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["image"]),
        helper.make_node("Conv", ["image", "w"], ["moved"]),
        helper.make_node("Flatten", ["moved"], ["y"]),
    ]
    plain = saved(tmp_path / "plain.onnx", nodes, {"w": kernel, "shape": shape}, 9)
    packed = tmp_path / "packed.onnx"
    quantize_weights(plain, packed, Options(bits=bits, block=16))
    found = read(packed)
    assert {"w"} == set(found) - {"last_axis"}
    used = ran(packed, np.eye(9, dtype="f4")).T.reshape(kernel.shape)
    assert numbers(found["w"]) == pytest.approx(used, abs=1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8, 12])
def test_fixed_point_is_put_back(tmp_path: Path, bits: int) -> None:
    weight = RNG.standard_normal((15, 17)).astype("f4")
    plain = saved(
        tmp_path / "plain.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}, 15
    )
    fixed = tmp_path / "fixed.onnx"
    to_fixed_point(plain, fixed, bits=bits)
    found = read(fixed)
    assert list(found) == ["w"]
    assert numbers(found["w"]) == pytest.approx(ran(fixed, np.eye(15, dtype="f4")), abs=1e-6)


@pytest.mark.parametrize(
    "step",
    [
        {"method": "export_onnx"},
        {"method": "quantize_dynamic"},
        {"method": "quantize_weights", "bits": 4, "block_size": 16, "embeddings": "same"},
        {"method": "fixed_point"},
    ],
    ids=lambda step: step["method"],
)
def test_the_gates_of_an_lstm_are_compared_with_those_of_torch(
    tmp_path: Path, step: dict[str, Any]
) -> None:
    model, texts = write_lstm(tmp_path / "model"), write_texts(tmp_path / "texts")
    made = run_job(tmp_path / "job", compress_recipe(**step), model=model, dataset=texts).files
    found = read(made / "model.onnx")
    for name, weight in load_file(model / "model.safetensors").items():
        stored = found[name]
        assert stored.shape == weight.shape, name
        apart = np.abs(numbers(stored) - weight.numpy()).max()
        assert apart <= (0 if stored.dtype == "F32" else 0.05), name


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_layer_has_the_weight_that_it_computes_with(tmp_path: Path, bits: int) -> None:
    layer = PackedLinear(64, 3, bits=bits, groups=1 if bits == 8 else 4, bias=True)
    layer.scales.copy_(torch.rand_like(layer.scales.float()) + 0.1)
    if bits == 8:
        layer.numbers.copy_(torch.randint(-128, 128, (3, 64)))
    else:
        layer.numbers.copy_(pack_halves(torch.randint(0, 16, (3, 64))))
        assert layer.zeros is not None
        layer.zeros.copy_(torch.randint(0, 16, layer.zeros.shape))
    state = {f"fc.{name}": values for name, values in layer.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors", "safetensors")
    assert set(found) == {"fc.weight", "fc.bias"}
    assert numbers(found["fc.weight"]) == pytest.approx(layer.weight.numpy(), rel=1e-6)
    # Beside a weight of that name it is something else.
    save_file({**state, "fc.weight": torch.zeros(1)}, tmp_path / "b.safetensors")
    assert len(read(tmp_path / "b.safetensors", "safetensors")) == len(state) + 1


SIZES = st.sampled_from([-(1 << 62), -1, 0, 1, 2, 3, 4, 8, 16, 31, 1 << 40])
WEIGHTS = ["a_int4", "l.w", "l.r", "l.b", "a_scale", "a_end", "a_shape"]
NAMES = st.sampled_from(["", "a", "no", *WEIGHTS])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    operator=st.sampled_from(
        [
            "MatMulNBits",
            "GatherBlockQuantized",
            "LSTM",
            "DynamicQuantizeLSTM",
            "DequantizeLinear",
            "QLinearConv",
            "QGemm",
        ]
    ),
    inputs=st.lists(NAMES, max_size=9),
    said=st.dictionaries(
        st.sampled_from(["bits", "block_size", "N", "K", "axis", "transB"]), SIZES, max_size=5
    ),
    shapes=st.dictionaries(
        st.sampled_from(WEIGHTS),
        st.tuples(
            st.sampled_from(["u1", "i1", "i4", "i8", "f4", "f2"]),
            st.lists(st.integers(0, 8), max_size=3),
        ),
    ),
)
def test_a_graph_that_lies_of_its_weights_is_read_all_the_same(
    tmp_path: Path,
    operator: str,
    inputs: list[str],
    said: dict[str, int],
    shapes: dict[str, tuple[str, list[int]]],
) -> None:
    node = helper.make_node(operator, inputs, ["y"], **said)
    weights = {
        name: (RNG.integers(0, 9, shape)).astype(kind) for name, (kind, shape) in shapes.items()
    }
    path = saved(tmp_path / "odd.onnx", [node], weights, 3)
    try:
        found = read(path)
    except RegistryError:
        return
    for stored in found.values():
        if stored.is_numeric:
            assert len(stored.between(0, stored.elements)) == stored.elements


def blocks(inputs: list[str], **said: int) -> Any:
    given = {"N": 2, "K": 2, "bits": 8, "block_size": 2, **said}
    return helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", **given)


PACKED = {"w_int8": np.full((2, 1, 2), 130, "u1"), "w_scale": np.ones((2, 1), "f4")}


@pytest.mark.parametrize("block", [10**9, 1 << 62])
def test_a_block_is_no_longer_than_a_row(tmp_path: Path, block: int) -> None:
    node = blocks(["x", "w_int8", "w_scale"], block_size=block)
    found = read(saved(tmp_path / "a.onnx", [node], PACKED, 2))
    assert numbers(found["w"]) == pytest.approx(2.0)


def test_columns_in_another_order_are_left_as_they_are(tmp_path: Path) -> None:
    node = blocks(["x", "w_int8", "w_scale", "", "order"])
    weights = {**PACKED, "order": np.array([1, 0], "i4")}
    assert "w" not in read(saved(tmp_path / "a.onnx", [node], weights, 2))


def test_what_was_put_back_is_no_packed_data(tmp_path: Path) -> None:
    looked_up = {"bits": 8, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
    names = ("w_int8_int8", "w_int8")
    nodes = [
        helper.make_node(
            "GatherBlockQuantized", [name, "x", f"{name}_scale"], [f"{name}_out"], **looked_up
        )
        for name in names
    ]
    weights = {"w_int8_int8": np.full((2, 4), 130, "u1")}
    weights |= {f"{name}_scale": np.ones((2, 1), "f4") for name in names}
    found = read(saved(tmp_path / "a.onnx", nodes, weights, 2))
    assert numbers(found["w_int8"]) == pytest.approx(2.0)


def test_weights_may_share_their_scale_and_zero_point(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", [f"{name}_quantized", "s", "z"], [name])
        for name in ("a", "b")
    ]
    weights = {f"{name}_quantized": np.full((2, 2), 3, "u1") for name in ("a", "b")}
    weights |= {"s": np.array(0.5, "f4"), "z": np.array(5, "u1")}
    found = read(saved(tmp_path / "a.onnx", nodes, weights, 2))
    assert set(found) == {"a", "b"}
    for stored in found.values():
        assert numbers(stored) == pytest.approx(-1.0)


def test_a_weight_outside_is_no_larger_than_its_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(64))
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 1, 1 << 40])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    path = saved(tmp_path / "a.onnx", [helper.make_node("Identity", ["x"], ["y"])], {}, 2)
    model = onnx.load(path)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RegistryError, match="no sensible place"):
        read(path)


def test_a_product_that_is_scaled_is_none_of_the_weight(tmp_path: Path) -> None:
    weight = RNG.standard_normal((8, 16)).astype("f4")
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1, alpha=0.5)
    plain = saved(tmp_path / "plain.onnx", [node], {"w": weight}, 16)
    packed = tmp_path / "packed.onnx"
    quantize_weights(plain, packed, Options(bits=8, block=16))
    (found,) = read(packed)
    assert found == "w_alpha"
