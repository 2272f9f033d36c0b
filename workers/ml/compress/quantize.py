"""Dynamic int8 quantization through ONNX Runtime.

Weights are stored in 8 bits and activations scaled while the model runs, so no calibration data
is needed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxruntime.quantization import QuantType, quantize_dynamic

from registry import recipes
from registry.errors import Invalid
from workers.ml.compress.bench import Bench
from workers.ml.graphs import inspect_onnx

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


def quantize_dynamic_step(step: recipes.QuantizeDynamic, bench: Bench) -> Mapping[str, Any]:
    """Quantize what is on the bench, exporting it first where it is a module still."""
    source = bench.need_file()
    target = bench.new_file("model.onnx")
    quantize(step, source, target)
    bench.file = target
    return {}


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
