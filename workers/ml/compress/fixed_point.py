"""Fixed point: each weight x as the whole number round(x * 2^p), with one p for a tensor.

A tensor's p comes from its own numbers: the largest that lets the largest weight fit, or the one
with the least squared error, where cutting off a few extremes buys everybody else a finer step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import nn

from registry import recipes
from registry.errors import Invalid
from workers.ml.bit_packing import pack, pad_last
from workers.ml.compress.bench import Bench
from workers.ml.compress.layers import MICROSOFT, SMALLEST, Graph, excluded, refuse_quantized

# How much finer than the largest weight allows the search may go.
_FINER = 4


@dataclass(frozen=True)
class Fixed:
    """What became of one tensor."""

    tensor: str
    bits: int
    p: int
    """The number of binary places after the point; negative where weights are large."""
    relative_error: float
    """Squared error as a share of the squared weights."""
    largest_error: float
    cut: int
    """How many weights were too large for the grid and got its end."""


def fixed_point_step(step: recipes.FixedPoint, bench: Bench) -> Mapping[str, Any]:
    """Round the weights of what is on the bench; as a module where it is to stay one."""
    if step.keep_module:
        module = bench.need_module("Fixed point that stays a torch model")
        done = snap(module, bits=step.bits, choose=step.choose, exclude=step.exclude)
    else:
        source = bench.need_file()
        target = bench.new_file("model.onnx")
        done = to_fixed_point(
            source, target, bits=step.bits, choose=step.choose, exclude=step.exclude
        )
        bench.file = target
    return {"tensors": [asdict(found) for found in done]}


def choose_p(values: NDArray[np.floating[Any]], bits: int, choose: str) -> int:
    """Choose p for a tensor: `largest` lets every weight fit, `least_error` minimises the error."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 0
    # round(largest * 2^p) must not pass 2^(bits-1) - 1.
    p = math.floor(math.log2((2 ** (bits - 1) - 1) / largest))
    if choose == "largest":
        return p
    errors = {
        tried: float(((to_real(to_integer(values, bits, tried), tried) - values) ** 2).sum())
        for tried in range(p, p + _FINER + 1)
    }
    return min(errors, key=lambda tried: (errors[tried], tried))


def to_integer(values: NDArray[np.floating[Any]], bits: int, p: int) -> NDArray[np.int32]:
    """Give round(x * 2^p), ties to even, cut to what `bits` with a sign hold."""
    scaled = np.rint(np.ldexp(values.astype(np.float64), p))
    return np.clip(scaled, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int32)


def to_real(integers: NDArray[np.integer[Any]], p: int) -> NDArray[np.float64]:
    """Give x = n / 2^p, exactly."""
    return np.asarray(np.ldexp(integers.astype(np.float64), -p))


def snap(
    module: nn.Module, *, bits: int, choose: str = "least_error", exclude: Sequence[str] = ()
) -> list[Fixed]:
    """Move the matrices of a module onto the grid, in place; vectors, such as biases, stay.

    Raises:
        Invalid: it has none.

    """
    named = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.dim() >= 2 and parameter.numel() >= SMALLEST
    }
    left_out = excluded({name: [name] for name in named}, exclude)
    done = []
    for name, parameter in named.items():
        if name not in left_out and parameter.is_floating_point():
            values = parameter.detach().cpu().numpy()
            p = choose_p(values, bits, choose)
            integers = to_integer(values, bits, p)
            done.append(_tell(name, values, integers, bits, p))
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(to_real(integers, p)).to(parameter.dtype))
    if not done:
        raise _nothing()
    return done


def to_fixed_point(
    source: Path,
    target: Path,
    *,
    bits: int,
    choose: str = "least_error",
    exclude: Sequence[str] = (),
) -> list[Fixed]:
    """Write a copy of an ONNX file with its constant float32 matrices as integers.

    A DequantizeLinear with the scale 2^-p gives each back to who uses it; up to 4 bits are stored
    in half a byte, up to 8 in one, more in two.

    Raises:
        Invalid: it is quantized already, or has no matrix.

    """
    refuse_quantized(source)
    graph = Graph(source)
    layers = list(graph.layers())
    left_out = excluded(graph.names(), exclude)
    done: dict[str, Fixed] = {}
    made: list[onnx.NodeProto] = []
    for layer in layers:
        if layer.name in left_out:
            continue
        if layer.weight not in done:
            values = graph.read(layer.weight)
            p = choose_p(values, bits, choose)
            integers = to_integer(values, bits, p)
            done[layer.weight] = _tell(layer.weight, values, integers, bits, p)
            made.append(_restore(graph, layer.weight, integers, bits, p))
        graph.node(layer.name).input[layer.position] = f"{layer.weight}_real"
    if not done:
        raise _nothing()
    graph.put_first(made)
    graph.import_domain(MICROSOFT)
    graph.save(target)
    return list(done.values())


def _restore(
    graph: Graph, name: str, integers: NDArray[np.int32], bits: int, p: int
) -> onnx.NodeProto:
    stored = f"{name}_fixed"
    if bits <= 4:
        # Raw bytes: as a list of numbers, the file would take one or two bytes for a pair.
        nibbles = pad_last((integers & 15).reshape(-1), 2)
        packed = pack(nibbles, 4).tobytes()
        kind = onnx.TensorProto.INT4
        graph.add_tensor(helper.make_tensor(stored, kind, integers.shape, packed, raw=True))
    else:
        graph.add(stored, integers.astype(np.int8 if bits <= 8 else np.int16))
    scale = graph.add(f"{name}_scale", np.array(np.ldexp(1.0, -p), np.float32))
    # Of ONNX Runtime's own domain: ONNX has 4 and 16 bits only from opset 21 on.
    return helper.make_node(
        "DequantizeLinear",
        [stored, scale],
        [f"{name}_real"],
        name=f"{name}_restore",
        domain=MICROSOFT if bits <= 4 or bits > 8 else "",
    )


def _tell(name: str, values: NDArray[Any], integers: NDArray[np.int32], bits: int, p: int) -> Fixed:
    lost = to_real(integers, p) - values
    whole = float((values.astype(np.float64) ** 2).sum())
    scaled = np.rint(np.ldexp(values.astype(np.float64), p))
    return Fixed(
        tensor=name,
        bits=bits,
        p=p,
        relative_error=float((lost**2).sum()) / whole if whole else 0.0,
        largest_error=float(np.abs(lost).max(initial=0.0)),
        cut=int((scaled != integers).sum()),
    )


def _nothing() -> Invalid:
    return Invalid(
        "This model has no float32 matrix to round to fixed point.", code="nothing_to_quantize"
    )
