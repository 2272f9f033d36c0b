"""What a model costs, counted and not timed: multiplications, non-zero weights, bytes on the wire.

Plain functions of a file or a module. Multiplications are counted for the inputs that are given,
so that a text's length counts; multiply by nothing to compare two models fed the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import zstandard
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from registry.errors import Invalid
from workers.ml.bit_packing import unpack
from workers.ml.infer.engines import TorchEngine
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.runtime import Runtime
from workers.ml.infer.sessions import first_line
from workers.ml.packed import packed_layers

WIRE_LEVEL = 3
_BLOCK_BYTES = 1 << 20

# Where a node keeps its weights, and of each kind which input counts.
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}
_MATRICES = {
    "MatMul",
    "FusedMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "MatMulNBits",
    "Gemm",
    "FusedGemm",
    "QGemm",
}
_RECURRENT = {"LSTM": 4, "DynamicQuantizeLSTM": 4, "GRU": 3, "RNN": 1}
_ATTENTION = {"Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention"}
# What multiplies and is not counted here, or holds nodes of its own.
_OPAQUE = {"Einsum", "If", "Loop", "Scan"}
# Which input is the zero point of which, and the axis it runs along where it has many values.
_ZERO_POINTS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "DequantizeLinear": ((0, 2, 1),),
    "MatMulInteger": ((1, 3, -1),),
    "MatMulIntegerToFloat": ((1, 5, -1),),
    "DynamicQuantizeMatMul": ((1, 3, -1),),
    "ConvInteger": ((1, 3, 0),),
    "QLinearMatMul": ((3, 5, -1),),
    "QLinearConv": ((3, 5, 0),),
    "QGemm": ((3, 5, 0),),
    "DynamicQuantizeLSTM": ((1, 9, -1), (2, 11, -1)),
}
# What a packed table has where its node does not say so.
_TABLE_DEFAULTS = {"bits": 4, "quantize_axis": 1, "block_size": 128}
_SCALES = ("_scale", "_zero_point")


@dataclass
class Macs:
    """Multiply-accumulates, in all and by layer, and the operators that none were counted for."""

    by_layer: dict[str, int] = field(default_factory=dict)
    not_counted: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.by_layer.values())


def count_macs(runtime: Runtime, feeds: Feeds) -> Macs:
    """Count the multiply-accumulates that a loaded model does for these inputs."""
    if isinstance(runtime.engine, TorchEngine):
        return module_macs(runtime.engine, feeds)
    return graph_macs(runtime.folder.weights, feeds)


def module_macs(engine: TorchEngine, feeds: Feeds) -> Macs:
    """Count what a torch module multiplies, from the shapes of the products it runs.

    Fused kernels hide their products: recurrent layers and attention run in their plain form.
    """
    counter = FlopCounterMode(display=False)
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), _without_mkldnn(), plain, counter:
        tensors = [
            torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in engine.input_names
        ]
        engine.module(*(tensor.to(engine.device) for tensor in tensors))
    flops = counter.get_flop_counts()
    root = type(engine.module).__name__
    names = {name: name.removeprefix(f"{root}.") for name in flops if name not in {"Global", root}}
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    by_layer = {names[name]: sum(flops[name].values()) // 2 for name in leaves}
    rest = counter.get_total_flops() // 2 - sum(by_layer.values())
    if rest:
        by_layer["(between layers)"] = rest
    return Macs({name: macs for name, macs in by_layer.items() if macs})


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Keep recurrent layers in products that can be seen (`flags` also warns of Intel GPUs)."""
    switch: Callable[..., tuple[Any, ...]] = torch.backends.mkldnn.set_flags
    (enabled, *_rest) = switch(_enabled=False)
    try:
        yield
    finally:
        switch(_enabled=enabled)


def graph_macs(file: Path, feeds: Feeds) -> Macs:
    """Count what an ONNX file multiplies; it is run once to learn every shape.

    Raises:
        Invalid: ONNX Runtime cannot run it with its values in the open.

    """
    model = onnx.load(file)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    counted = [node for node in model.graph.node if _multiplies(node)]
    shapes = {name: np.shape(value) for name, value in feeds.items()} | weights
    shapes |= _run_in_the_open(model, counted, shapes, feeds)
    macs = Macs(
        not_counted=sorted({node.op_type for node in model.graph.node} & _OPAQUE),
    )
    for at, node in enumerate(counted):
        name = node.name or f"{node.op_type}_{at}"
        macs.by_layer[name] = macs.by_layer.get(name, 0) + _node_macs(node, shapes)
    return macs


def _multiplies(node: onnx.NodeProto) -> bool:
    return (
        node.op_type in _CONVOLUTIONS
        or node.op_type in _MATRICES
        or node.op_type in _RECURRENT
        or node.op_type in _ATTENTION
        or node.op_type == "ConvTranspose"
    )


def _run_in_the_open(
    model: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    known: dict[str, tuple[int, ...]],
    feeds: Feeds,
) -> dict[str, tuple[int, ...]]:
    """Run the graph with the values beside these nodes as outputs; give their shapes."""
    outputs = {output.name for output in model.graph.output}
    wanted = {name for node in nodes for name in (*node.input, *node.output[:1]) if name}
    for name in sorted(wanted - outputs - known.keys()):
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, dict(feeds))
    except Exception as error:  # the library's own exception types are not exported
        raise Invalid(
            "The multiplications of {file} cannot be counted: {problem}",
            code="cannot_count",
            file="model.onnx",
            problem=first_line(error),
        ) from error
    return {name: np.shape(value) for name, value in zip(names, values, strict=True)}


def _node_macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    given = [shapes.get(name, ()) for name in node.input]
    made = shapes.get(node.output[0], ())
    asked = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type in _CONVOLUTIONS:
        weight = given[_CONVOLUTIONS[node.op_type]]
        return _product(made) * _product(weight[1:])
    if node.op_type == "ConvTranspose":
        return _product(given[0]) * _product(given[1][1:])
    if node.op_type in _RECURRENT:
        hidden = int(asked["hidden_size"])
        sequence, batch, size = given[0]
        ways = 2 if asked.get("direction") == b"bidirectional" else 1
        gates = _RECURRENT[node.op_type]
        return int(sequence * batch * ways * gates * hidden * (size + hidden))
    if node.op_type in _ATTENTION:
        return _attention_macs(node, given)
    inner = given[0][-2 if asked.get("transA") else -1]
    return _product(made) * int(inner)


def _attention_macs(node: onnx.NodeProto, given: list[tuple[int, ...]]) -> int:
    if node.op_type in {"Attention", "QAttention"} and node.domain == "com.microsoft":
        batch, length, size = given[0]
        width = given[1][-1]
        return int(batch * length * (size * width + 2 * length * (width // 3)))
    keys = given[1] or given[0]
    return 2 * _product(given[0]) * int(keys[-2])


def _product(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


# --- weights that are not zero --------------------------------------------------------------------


def count_nonzero(runtime: Runtime) -> int:
    """Count the weights of a loaded model that are not zero."""
    if isinstance(runtime.engine, TorchEngine):
        module = runtime.engine.module
        layers = [(f"{name}.", part) for name, part in packed_layers(module)]
        rest = [
            tensor
            for name, tensor in tensors_of(module).items()
            if name.endswith(".bias") or not any(name.startswith(layer) for layer, _ in layers)
        ]
        whole = [part.whole_numbers() for _, part in layers]
        return sum(int(torch.count_nonzero(tensor)) for tensor in [*rest, *whole])
    return sum(count for _name, count in graph_nonzero(runtime.folder.weights))


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give a module's tensors, each that is shared once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor):
            found.setdefault(id(tensor), (name, tensor.detach()))
    return dict(found.values())


def graph_nonzero(file: Path) -> Iterator[tuple[str, int]]:
    """Yield each weight of an ONNX file with how many of its values do not stand for zero."""
    model = onnx.load(file)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    zeros = _zero_points(model, weights)
    products = {node.input[1]: node for node in model.graph.node if node.op_type == "MatMulNBits"}
    tables = {
        node.input[0]: node for node in model.graph.node if node.op_type == "GatherBlockQuantized"
    }
    for name, tensor in weights.items():
        if not tensor.dims or tensor.data_type == onnx.TensorProto.INT64 or name.endswith(_SCALES):
            continue
        values = numpy_helper.to_array(tensor)
        if name in products:
            yield name, _product_nonzero(values, products[name], weights)
        elif name in tables and values.dtype == np.uint8:
            yield name, _table_nonzero(values, tables[name], weights)
        else:
            yield name, int(np.count_nonzero(values != zeros.get(name, 0)))


def _zero_points(
    model: onnx.ModelProto, weights: dict[str, onnx.TensorProto]
) -> dict[str, NDArray[Any]]:
    found = {}
    for node in model.graph.node:
        for value_at, zero_at, axis in _ZERO_POINTS.get(node.op_type, ()):
            if len(node.input) <= zero_at or node.input[zero_at] not in weights:
                continue
            name = node.input[value_at]
            if name not in weights:
                continue
            zero = numpy_helper.to_array(weights[node.input[zero_at]])
            found[name] = _along(zero, tuple(weights[name].dims), _axis(node, axis))
    return found


def _axis(node: onnx.NodeProto, default: int) -> int:
    return next((int(item.i) for item in node.attribute if item.name == "axis"), default)


def _along(zero: NDArray[Any], dims: tuple[int, ...], axis: int) -> NDArray[Any]:
    if zero.size <= 1 or (zero == zero.flat[0]).all():
        return zero.reshape(-1)[:1].reshape(())
    shape = [1] * len(dims)
    shape[axis] = zero.size
    return zero.reshape(shape) if zero.size == dims[axis] else zero.reshape(-1)[:1].reshape(())


def _product_nonzero(
    values: NDArray[Any], node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]
) -> int:
    """Count in blocks of few bits: uint8 [outputs, blocks, bytes], the low bits of a byte first."""
    asked = {item.name: item.i for item in node.attribute}
    bits, outputs, inner = asked.get("bits", 4), asked["N"], asked["K"]
    numbers = unpack(values.reshape(outputs, values.shape[1], -1), bits)
    zero: Any = 1 << (bits - 1)
    if (zeros := _packed_zeros(node, weights)) is not None:
        by_row = zeros.reshape(outputs, -1)
        whole = unpack(by_row, bits) if by_row.dtype == np.uint8 else by_row
        zero = whole[:, : values.shape[1], None]
    return int(np.count_nonzero((numbers != zero).reshape(outputs, -1)[:, :inner]))


def _table_nonzero(
    values: NDArray[Any], node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]
) -> int:
    """Count in a table of few bits: uint8 [rows, ..., bytes], in blocks along one axis."""
    asked = {item.name: item.i for item in node.attribute}
    bits, axis, block = (asked.get(*item) for item in _TABLE_DEFAULTS.items())
    numbers = unpack(values, bits)
    zero: Any = 1 << (bits - 1)
    if (zeros := _packed_zeros(node, weights)) is not None:
        whole = unpack(zeros, bits).repeat(block, axis)
        zero = whole[tuple(slice(size) for size in numbers.shape)]
    return int(np.count_nonzero(numbers != zero))


def _packed_zeros(
    node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]
) -> NDArray[Any] | None:
    if len(node.input) <= 3 or node.input[3] not in weights:
        return None
    return numpy_helper.to_array(weights[node.input[3]])


# --- bytes ----------------------------------------------------------------------------------------


def wire_bytes(file: Path) -> int:
    """Tell what a download costs that compresses on the way: the bytes after zstd, level 3."""
    compressor = zstandard.ZstdCompressor(level=WIRE_LEVEL).compressobj()
    size = 0
    with file.open("rb") as source:
        while block := source.read(_BLOCK_BYTES):
            size += len(compressor.compress(block))
    return size + len(compressor.flush())
