"""What an ONNX file holds, read without running anything."""

from collections import Counter
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
        weight_bytes[kind] += count * _item_bytes(tensor.data_type)
        # Scales belong to the format; bare numbers and shapes belong to the graph.
        learned = tensor.dims and kind != "INT64"
        if learned and not tensor.name.endswith(_QUANTIZATION_SUFFIXES):
            parameters += count
    operators = Counter(node.op_type for node in model.graph.node)
    return Contents(parameters, dict(operators), dict(weight_bytes))


def _item_bytes(data_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
