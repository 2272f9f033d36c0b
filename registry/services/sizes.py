"""How large what a recipe makes will be, reckoned from the header of what it is made from.

Each weight has a kind, a number of bits and a share of zeros, all as ranges; a step of a recipe
moves these. Nothing is opened, so what a step finds only in the weights stays a wide range.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from registry import recipes
from registry.formats.safetensors import DTYPE_BITS
from registry.services.headers import ModelHead, Shape

Sort = Literal["table", "matrix", "convolution", "recurrent", "vector"]
_GRAPH_BITS: Final[Mapping[str, int]] = {
    "float64": 64,
    "float16": 16,
    "bfloat16": 16,
    "int64": 64,
    "int16": 16,
    "uint16": 16,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "int4": 4,
    "uint4": 4,
}
_FLOATS: Final = frozenset({"F16", "BF16", "F32", "F64", "float16", "bfloat16", "float32"})
# What a graph takes beside its weights, for each of its tensors, and a card with its report.
_NODE_BYTES: Final = 4_000
_CARD_BYTES: Final = 24_000


class Range(NamedTuple):
    """From the least to the most."""

    low: float
    high: float

    def times(self, other: "Range") -> "Range":
        return Range(self.low * other.low, self.high * other.high)


_WHOLE: Final = Range(1.0, 1.0)
_NOUGHT: Final = Range(0.0, 0.0)


def _exactly(number: float) -> Range:
    return Range(number, number)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Some weights that steps treat alike."""

    sort: Sort
    shape: tuple[int, ...]
    count: Range
    bits: Range
    zeros: Range = _NOUGHT
    values: float | None = None
    """How many bits tell its values apart, where these are few."""


@dataclass(frozen=True)
class Size:
    """What comes out: bytes of the whole version, and bits that each number takes on average."""

    size_bytes: Range
    bits: Range
    count: int


def result_of(recipe: recipes.CompressRecipe, head: ModelHead) -> Size | None:
    """Reckon the files of a compression; None where the header tells too little."""
    weights = _weights_of(head)
    if not weights:
        return None
    before = sum(group.count.high for group in weights)
    graph, coded = bool(head.is_graph), False
    for step in recipe.steps:
        weights = [_moved(step, group, head) for group in weights]
        graph = graph or makes_graph(step)
        coded = coded or isinstance(step, recipes.Code)
    if coded:
        weights = [_coded(group) for group in weights]
    each = [group.count.times(group.bits) for group in weights]
    bits = Range(sum(one.low for one in each), sum(one.high for one in each))
    nodes = _NODE_BYTES * len(weights) if graph else 200 * len(weights)
    return Size(
        Range(
            0.95 * bits.low / 8 + 0.8 * head.beside_bytes,
            1.05 * bits.high / 8 + head.beside_bytes + nodes + _CARD_BYTES,
        ),
        Range(bits.low / before, bits.high / before),
        int(before),
    )


def trained_size(architecture: recipes.Architecture, classes: int | None) -> Range:
    """Reckon the files of a newly trained model; its vocabulary may come out smaller."""
    fewest, most = (2, 1000) if classes is None else (classes, classes)
    smallest, words = architecture, 0
    if isinstance(architecture, recipes.TextClassifier):
        words = architecture.vocabulary_size
        smallest = architecture.model_copy(update={"vocabulary_size": 16})
    return Range(
        4.0 * recipes.count_parameters(smallest, classes=fewest),
        4.2 * recipes.count_parameters(architecture, classes=most) + 24 * words + 2 * _CARD_BYTES,
    )


def _weights_of(head: ModelHead) -> list[Weights]:
    tensors = head.tensors
    if tensors is None:
        tensors = [Shape("weights", name, (count, 1)) for name, count in head.dtypes.items()]
    return [
        Weights(
            sort=_sort_of(tensor, is_graph=bool(head.is_graph)),
            shape=tensor.shape,
            count=_exactly(math.prod(tensor.shape)),
            bits=_bits_of(tensor.dtype),
        )
        for tensor in tensors
    ]


def _bits_of(dtype: str) -> Range:
    bits = DTYPE_BITS.get(dtype, _GRAPH_BITS.get(dtype, 32))
    # Half floats are computed with, and may be kept, in 32 bits.
    return Range(bits, max(bits, 32)) if dtype in _FLOATS else _exactly(bits)


def _sort_of(tensor: Shape, *, is_graph: bool) -> Sort:
    if len(tensor.shape) < 2 or tensor.dtype not in _FLOATS:
        return "vector"
    if "weight_ih" in tensor.name or "weight_hh" in tensor.name:
        return "recurrent"
    if len(tensor.shape) == 2:
        return "table" if "embed" in tensor.name.lower() else "matrix"
    return "recurrent" if is_graph and len(tensor.shape) == 3 else "convolution"


def makes_graph(step: recipes.CompressStep) -> bool:
    """Say whether a step leaves an ONNX file, whatever the model was before."""
    if isinstance(step, recipes.FixedPoint):
        return not step.keep_module
    return isinstance(
        step,
        recipes.ExportOnnx
        | recipes.Fuse
        | recipes.QuantizeDynamic
        | recipes.QuantizeStatic
        | recipes.QuantizeWeights
        | recipes.TrainQuantized,
    )


# --- What each step does to weights of one kind --------------------------------------------------


def _moved(step: recipes.CompressStep, group: Weights, head: ModelHead) -> Weights:
    move = _MOVES.get(step.method)
    if move is None or (group.sort == "vector" and step.method != "distill"):
        return group
    return move(step, group, head)


def _rounded(group: Weights, bits: float, *, sure: bool = True) -> Weights:
    """Store weights in so many bits; where it is not sure, they may stay as they were."""
    high = bits * 1.03 if sure else group.bits.high
    return replace(group, bits=Range(min(bits, group.bits.low), high), values=bits)


def _quantize_dynamic(step: recipes.QuantizeDynamic, group: Weights, _head: ModelHead) -> Weights:
    if group.sort == "convolution":
        return _rounded(group, 8) if step.convolutions else group
    if group.sort == "table" and not step.embeddings:
        return group
    return _rounded(group, 8, sure=group.sort == "matrix")


def _quantize_static(step: recipes.QuantizeStatic, group: Weights, _head: ModelHead) -> Weights:
    if group.sort in {"table", "recurrent"} and not step.embeddings:
        return group
    return _rounded(group, 8, sure=group.sort == "matrix" and not step.exclude)


def _quantize_weights(step: recipes.QuantizeWeights, group: Weights, _head: ModelHead) -> Weights:
    bits: int = step.bits
    if group.sort == "table":
        if step.embeddings == "none":
            return group
        bits = step.bits if step.embeddings == "same" else int(step.embeddings)
    elif group.sort != "matrix" and not step.others:
        return group
    scale = (32 + (0 if step.symmetric else bits)) / step.block_size
    made = _rounded(group, bits + scale, sure=group.sort == "matrix" and not step.exclude)
    # Short rows fill a block only in part.
    return replace(made, bits=Range(bits, made.bits.high * 1.1), values=bits)


def _pack_linear(step: recipes.PackLinear, group: Weights, _head: ModelHead) -> Weights:
    if group.sort != "matrix":
        return group
    scale = 24 / step.group_size if step.bits == 4 else 0.0
    sure = step.bits == 8 and not step.exclude
    return replace(_rounded(group, step.bits + scale, sure=sure), values=step.bits)


def _fixed_point(step: recipes.FixedPoint, group: Weights, _head: ModelHead) -> Weights:
    if step.keep_module:
        return replace(group, values=step.bits)
    stored = next(bits for bits in (4, 8, 16) if step.bits <= bits)
    made = _rounded(group, stored, sure=group.sort == "matrix" and not step.exclude)
    return replace(made, values=step.bits)


def _train_quantized(step: recipes.TrainQuantized, group: Weights, _head: ModelHead) -> Weights:
    return _rounded(group, 8, sure=group.sort == "matrix" and not step.exclude)


def _prune(
    step: recipes.PruneMagnitude | recipes.PruneMovement, group: Weights, _head: ModelHead
) -> Weights:
    if group.sort == "table":
        return replace(group, zeros=Range(0, step.sparsity))
    least = 0.5 * step.sparsity if step.exclude or _is_global(step) else 0.98 * step.sparsity
    return replace(group, zeros=Range(least, max(step.sparsity, _is_global(step) and 0.999)))


def _is_global(step: recipes.PruneMagnitude | recipes.PruneMovement) -> bool:
    return isinstance(step, recipes.PruneMovement) or step.scope == "global"


def _prune_structured(step: recipes.PruneStructured, group: Weights, _head: ModelHead) -> Weights:
    left = 1 - step.share
    if group.sort == "table":
        return replace(group, count=group.count.times(Range(left, 1)))
    # A layer may lose inputs and outputs, or one of them.
    return replace(group, count=group.count.times(Range(left**2, 1)))


def _svd(step: recipes.LowRank, group: Weights, _head: ModelHead) -> Weights:
    if group.sort != "matrix" or len(group.shape) != 2:
        return group
    least = 0.1
    if step.by == "ratio":
        least = 0.9 * step.ratio
    elif step.by == "rank":
        least = min(1.0, step.rank * sum(group.shape) / max(1, math.prod(group.shape)))
    most = 1.0 if step.by == "energy" or step.exclude else min(1.0, 1.1 * least)
    return replace(group, count=group.count.times(Range(least, most)))


def _extract_lora(step: recipes.ExtractLora, group: Weights, _head: ModelHead) -> Weights:
    """Keep two thin factors of what has changed, which may be nothing."""
    if len(group.shape) != 2:
        return replace(group, count=Range(0.0, group.count.high))
    wide, deep = group.shape
    thin = min(step.rank, wide, deep) * (wide + deep) / max(1, wide * deep)
    return replace(group, count=Range(0.0, thin * group.count.high))


def _distill(step: recipes.Distill, group: Weights, head: ModelHead) -> Weights:
    """Shrink all weights by what the student has less of."""
    depth = depth_of(head)
    if step.layers is not None and depth:
        inside = 1.0 if group.sort == "table" else min(1.0, step.layers / depth)
        return replace(group, count=group.count.times(Range(inside, min(1.0, 1.3 * inside))))
    student, teacher = student_parameters(step, head), head.version.parameters_count
    if student is None or not teacher:
        return group
    return replace(group, count=group.count.times(_exactly(student / teacher)))


def _cluster(step: recipes.Cluster, group: Weights, _head: ModelHead) -> Weights:
    return replace(group, values=step.bits) if group.count.high >= step.smallest else group


_MOVES: Final[Mapping[str, Callable[[Any, Weights, ModelHead], Weights]]] = {
    "quantize_dynamic": _quantize_dynamic,
    "quantize_static": _quantize_static,
    "quantize_weights": _quantize_weights,
    "pack_linear": _pack_linear,
    "fixed_point": _fixed_point,
    "train_quantized": _train_quantized,
    "prune_magnitude": _prune,
    "prune_movement": _prune,
    "prune_structured": _prune_structured,
    "svd": _svd,
    "extract_lora": _extract_lora,
    "distill": _distill,
    "cluster": _cluster,
}


def _coded(group: Weights) -> Weights:
    """Code weights without loss: zeros by where they stand, values by how often they come."""
    if group.values is None:
        value = Range(0.7 * group.bits.low, group.bits.high)
    else:
        value = Range(0.3 * group.values, min(group.bits.high, 1.1 * group.values + 0.5))
    most, least = group.zeros.high, group.zeros.low
    low = min(value.low, _entropy(most) + (1 - most) * value.low)
    high = min(group.bits.high, 1.2 * _entropy(least) + (1 - least) * value.high)
    return replace(group, bits=Range(min(low, high), high))


def _entropy(share: float) -> float:
    if not 0 < share < 1:
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


# --- Students ------------------------------------------------------------------------------------

_SIZES: Final = ("channels", "hidden_size", "embedding_size")
_ARCHITECTURE: Final[TypeAdapter[recipes.Architecture]] = TypeAdapter(recipes.Architecture)
_DEPTHS: Final = ("num_hidden_layers", "n_layers")


def depth_of(head: ModelHead) -> int | None:
    """Tell how many layers an encoder has, by its config.json."""
    if not head.is_encoder:
        return None
    found: Sequence[Any] = [head.config.get(key) for key in _DEPTHS]
    return next((depth for depth in found if type(depth) is int and depth > 0), None)


def student_parameters(step: recipes.Distill, head: ModelHead) -> int | None:
    """Count the parameters of the student that a step builds from sizes; None where it has none."""
    sizes = {name: size for name in _SIZES if (size := getattr(step, name)) is not None}
    if not sizes or not head.architecture:
        return None
    try:
        student = _ARCHITECTURE.validate_python({**head.architecture, **sizes})
    except ValidationError:
        return None
    return recipes.count_parameters(student, classes=len(head.labels))
