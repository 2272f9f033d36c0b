"""Dynamic int8 quantization through ONNX Runtime.

Weights are stored in 8 bits and activations scaled while the model runs, so no calibration data
is needed.
"""

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from registry import recipes
from registry.errors import Invalid

_MATRIX_OPS = ["MatMul", "Gemm", "Attention", "LSTM"]
_INTEGER_OPS = {
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
}
_QUANTIZATION_SUFFIXES = ("_scale", "_zero_point")


@dataclass(frozen=True)
class Contents:
    """What an ONNX file holds."""

    parameters: int
    operators: dict[str, int]
    weight_bytes: dict[str, int]


def quantize(step: recipes.QuantizeDynamic, source: Path, target: Path) -> None:
    """Write an int8 copy of an ONNX file."""
    before = inspect_onnx(source)
    if done := sorted(_INTEGER_OPS & before.operators.keys()):
        raise Invalid(
            "The model is quantized already: it has {done}. "
            "Choose the version that it was made from.",
            code="already_quantized",
            done=", ".join(done),
        )
    operators = [*_MATRIX_OPS, *(["Gather"] if step.embeddings else [])]
    _run(step, source, target, operators, QuantType.QInt8)
    if step.convolutions and "Conv" in before.operators:
        # Unsigned weights: ONNX Runtime's integer convolution is several times slower on signed.
        _run(step, target, target, ["Conv"], QuantType.QUInt8)
    after = inspect_onnx(target)
    if sum(after.weight_bytes.get(kind, 0) for kind in ("INT8", "UINT8")) == 0:
        raise Invalid(
            "Nothing in this model can be quantized; its operators are {operators}.",
            code="nothing_to_quantize",
            operators=", ".join(sorted(before.operators)),
        )


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


def _run(
    step: recipes.QuantizeDynamic,
    source: Path,
    target: Path,
    operators: list[str],
    weight_type: QuantType,
) -> None:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer advises on the root logger
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=operators,
            per_channel=step.per_channel,
            reduce_range=step.reduce_range,
            weight_type=weight_type,
        )
    except Exception as error:  # the quantizer raises bare exceptions on graphs it does not know
        raise Invalid(
            "ONNX Runtime cannot quantize this model: {problem}",
            code="cannot_quantize",
            problem=error,
        ) from error
    finally:
        root.setLevel(level)


def _item_bytes(data_type: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
