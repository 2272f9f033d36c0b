"""What an ONNX file holds, read without running anything; what its nodes are given."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from registry.errors import Invalid

_QUANTIZATION_SUFFIXES = ("_scale", "_zero_point")


@dataclass(frozen=True)
class Contents:
    """What an ONNX file holds."""

    parameters: int
    operators: dict[str, int]
    weight_bytes: dict[str, int]


def inspect_onnx(file: Path) -> Contents:
    """Count parameters, operators and the bytes of weights by type, without running anything."""
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf raises its own DecodeError
        raise Invalid(
            "{file} is no ONNX model: {problem}",
            code="malformed_file",
            file=file.name,
            problem=error,
        ) from error
    parameters = 0
    weight_bytes: Counter[str] = Counter()
    packed = _packed(model.graph)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise Invalid(
                "{file} keeps weights in other files; save it as one file.",
                code="unsupported_format",
                file=file.name,
            )
        count = 1
        for size in tensor.dims:
            count *= size
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        weight_bytes[kind] += _bytes(count, tensor.data_type)
        count = packed.get(tensor.name, count)
        # Scales belong to the format; bare numbers and shapes belong to the graph.
        learned = tensor.dims and kind != "INT64"
        if learned and not tensor.name.endswith(_QUANTIZATION_SUFFIXES):
            parameters += count
    operators = Counter(node.op_type for node in model.graph.node)
    return Contents(parameters, dict(operators), dict(weight_bytes))


def _packed(graph: onnx.GraphProto) -> dict[str, int]:
    """Tell how many weights each tensor holds that has several in a byte."""
    elements = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        numbers = {part.name: part.i for part in node.attribute}
        if node.op_type == "MatMulNBits":
            # Its blocks are filled up: what they hold is told by the operator.
            found[node.input[1]] = numbers["K"] * numbers["N"]
        elif node.op_type == "GatherBlockQuantized" and node.input[0] in elements:
            found[node.input[0]] = elements[node.input[0]] * 8 // numbers.get("bits", 4)
    return found


def _bytes(count: int, data_type: int) -> int:
    if data_type in {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}:
        return -(-count // 2)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def rename_inputs(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give nodes something by another name, those of inner graphs too."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = names[name]
        for found in node.attribute:
            for inner in (*found.graphs, *([found.g] if found.HasField("g") else [])):
                rename_inputs(inner, names)
