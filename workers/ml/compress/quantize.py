"""8-bit quantization through ONNX Runtime: dynamic, and static with calibrated ranges.

Dynamic quantization scales activations while the model runs and needs no data; static quantization
measures their ranges beforehand, on rows of the dataset.
"""

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    TensorData,
    create_calibrator,
    quantize_dynamic,
    quantize_static,
    save_tensors_data,
)

from registry import recipes
from registry.errors import Invalid
from workers.ml.compress.activations import Rows, calibration_rows
from workers.ml.compress.bench import Bench
from workers.ml.compress.layers import Graph, excluded, refuse_quantized
from workers.ml.compress.weight_only import round_rest
from workers.ml.graphs import inspect_onnx
from workers.ml.infer.feeders import Feeds

_MATRIX_OPS = ["MatMul", "Gemm", "Attention", "LSTM"]
_PRODUCTS = ["MatMul", "Gemm", "Conv"]


def quantize_dynamic_step(step: recipes.QuantizeDynamic, bench: Bench) -> Mapping[str, Any]:
    """Quantize what is on the bench, exporting it first where it is a module still."""
    source = bench.need_file()
    target = bench.new_file("model.onnx")
    quantize(step, source, target)
    bench.file = target
    return {}


def quantize(step: recipes.QuantizeDynamic, source: Path, target: Path) -> None:
    """Write an int8 copy of an ONNX file."""
    refuse_quantized(source)
    before = inspect_onnx(source)
    operators = [*_MATRIX_OPS, *(["Gather"] if step.embeddings else [])]
    left_out: list[str] = []
    if step.exclude:
        graph = Graph(source)
        found = sorted(excluded(_called(graph), step.exclude))
        # The quantizer makes a MatMul and an Add of each Gemm before it looks.
        left_out = [*found, *(f"{name}_MatMul" for name in found)]
        source = target.with_name("flat.onnx")  # where every node has a name
        graph.save(source)
    _run(step, source, target, operators, QuantType.QInt8, left_out)
    if step.convolutions and "Conv" in before.operators:
        # Unsigned weights: ONNX Runtime's integer convolution is several times slower on signed.
        _run(step, target, target, ["Conv"], QuantType.QUInt8, left_out)
    after = inspect_onnx(target)
    if sum(after.weight_bytes.get(kind, 0) for kind in ("INT8", "UINT8")) == 0:
        raise Invalid(
            "Nothing in this model can be quantized; its operators are {operators}.",
            code="nothing_to_quantize",
            operators=", ".join(sorted(before.operators)),
        )


def _called(graph: Graph) -> dict[str, list[str]]:
    """Give for each node all that it is called: by itself, and by its weight."""
    return {node.name: [node.name] for node in graph.nodes} | {
        name: list(called) for name, called in graph.names().items()
    }


def _run(
    step: recipes.QuantizeDynamic,
    source: Path,
    target: Path,
    operators: list[str],
    weight_type: QuantType,
    left_out: list[str],
) -> None:
    with _quietly():
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=operators,
            per_channel=step.per_channel,
            reduce_range=step.reduce_range,
            weight_type=weight_type,
            nodes_to_exclude=left_out,
        )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Run ONNX Runtime's quantizer without its advice; say its errors in our words."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantizer advises on the root logger, and prints
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except Invalid:
        raise
    except Exception as error:  # the quantizer raises bare exceptions on graphs it does not know
        raise Invalid(
            "ONNX Runtime cannot quantize this model: {problem}",
            code="cannot_quantize",
            problem=error,
        ) from error
    finally:
        root.setLevel(level)


# --- static -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Static:
    """How a model is quantized with calibrated ranges."""

    calibration: str = "minmax"
    percentile: float = 99.99
    per_channel: bool = True
    reduce_range: bool = True
    operators: str = "products"
    format: str = "qdq"
    exclude: Sequence[str] = ()


def quantize_static_step(step: recipes.QuantizeStatic, bench: Bench) -> Mapping[str, Any]:
    """Quantize what is on the bench by ranges of the training split."""
    source = bench.need_file()
    refuse_quantized(source)
    options = Static(
        calibration=step.calibration,
        percentile=step.percentile,
        per_channel=step.per_channel,
        reduce_range=step.reduce_range,
        operators=step.operators,
        format=step.format,
        exclude=step.exclude,
    )
    target = bench.new_file("model.onnx")
    rows = calibration_rows(bench, step.calibration_rows, source)
    quantize_with_ranges(source, target, options, rows)
    if step.embeddings:
        round_rest(target)
    bench.file = target
    return {"left_in_float32": _left(Graph(target))}


class Range(NamedTuple):
    """The smallest and the largest number that a tensor is taken to hold."""

    low: float
    high: float


def quantize_with_ranges(
    source: Path,
    target: Path,
    options: Static,
    rows: Rows,
    *,
    known: Mapping[str, Range] | None = None,
    only: Sequence[str] = (),
) -> None:
    """Write a copy of an ONNX file that computes in 8 bits.

    `rows` yields feeds of the model. `known` gives ranges of tensors by name, which then count for
    more than what the rows show; `only` names the nodes to quantize, all where it is empty.

    Raises:
        Invalid: it is quantized already, has nothing that can be, or ONNX Runtime fails at it.

    """
    refuse_quantized(source)
    graph = Graph(source)
    names = {node.name: node.op_type for node in graph.nodes}
    wanted = _PRODUCTS if options.operators == "products" else []
    if not any(kind in _PRODUCTS for kind in names.values()):
        raise Invalid(
            "Static quantization takes {wanted}, and this model has {operators}: "
            "quantize_dynamic takes LSTM and Attention too, quantize_weights all weights.",
            code="nothing_to_quantize",
            wanted=", ".join(_PRODUCTS),
            operators=", ".join(sorted(set(names.values()))),
        )
    left_out = excluded(_called(graph), options.exclude)
    flat = target.with_name("flat.onnx")
    graph.save(flat)
    ranges = target.with_name("ranges.json")
    with _quietly():
        _calibrate(flat, ranges, options, wanted, rows, known or {})
        quantize_static(
            flat,
            target,
            quant_format=QuantFormat.QDQ if options.format == "qdq" else QuantFormat.QOperator,
            op_types_to_quantize=wanted or None,
            per_channel=options.per_channel,
            reduce_range=options.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(only) or None,
            nodes_to_exclude=sorted(left_out),
            calibrate_method=_METHODS[options.calibration],
            calibration_cache_path=ranges,
            extra_options={
                # Products of two activations, as in attention, lose most and hold no weights.
                "MatMulConstBOnly": options.operators == "products",
                "OpTypesToExcludeOutputQuantization": (
                    ["MatMul", "Gemm"] if options.operators == "products" else []
                ),
            },
        )
    flat.unlink()
    ranges.unlink()
    # Written anew: the quantizer leaves names of itself and of steps in between.
    done = Graph(target)
    done.save(target)
    integer = {"QuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"}
    if not any(node.op_type in integer for node in done.nodes):
        raise Invalid(
            "Nothing in this model can be quantized; its operators are {operators}.",
            code="nothing_to_quantize",
            operators=", ".join(sorted(set(names.values()))),
        )


_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


def _left(graph: Graph) -> dict[str, int]:
    """Count the layers whose weights are float32 still."""
    return dict(sorted(Counter(layer.operator for layer in graph.layers()).items()))


class _OneBatch(CalibrationDataReader):  # type: ignore[misc]  # untyped there
    def __init__(self, feeds: Feeds) -> None:
        self._feeds: dict[str, Any] | None = dict(feeds)

    def get_next(self) -> dict[str, Any] | None:
        feeds, self._feeds = self._feeds, None
        return feeds


def _calibrate(
    model: Path,
    ranges: Path,
    options: Static,
    operators: list[str],
    rows: Rows,
    known: Mapping[str, Range],
) -> None:
    """Write the ranges of all activations, a batch at a time: all at once would fill the memory."""
    extra: dict[str, Any] = {}
    if options.calibration == "percentile":
        # Symmetric, its default, would give half the range of a ReLU to numbers that never come.
        extra = {"percentile": options.percentile, "symmetric": False}
    calibrator = create_calibrator(
        model,
        operators or None,
        augmented_model_path=str(model.with_name("augmented.onnx")),
        calibrate_method=_METHODS[options.calibration],
        extra_options=extra,
    )
    for feeds in rows():
        calibrator.collect_data(_OneBatch(feeds))
    found = calibrator.compute_data()
    for name, (low, high) in known.items():
        if name in found:
            found[name] = TensorData(lowest=np.float32(low), highest=np.float32(high))
    save_tensors_data(found, ranges)
    model.with_name("augmented.onnx").unlink()
