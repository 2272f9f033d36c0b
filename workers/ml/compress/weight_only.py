"""Weights in 2, 4 or 8 bits with a scale for each block; the arithmetic stays floating point.

Products become `MatMulNBits`, embedding tables `GatherBlockQuantized` (both of ONNX Runtime, on CPU
and CUDA), and the weights of convolutions and recurrent layers are unpacked by a
`GatherBlockQuantized` over all their rows, in each run: smaller files, not faster ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from registry import recipes
from registry.errors import Invalid
from workers.ml.bit_packing import pack, pad_last
from workers.ml.compress import blocks
from workers.ml.compress.activations import Rows, calibration_rows, curvatures
from workers.ml.compress.bench import Bench
from workers.ml.compress.layers import (
    MICROSOFT,
    Graph,
    Layer,
    attribute,
    excluded,
    refuse_quantized,
)
from workers.ml.graph_weights import TURNED
from workers.ml.graphs import inspect_onnx

_RECURRENT = {"LSTM", "GRU", "RNN"}
MAX_WIDTH = 16_384
"""GPTQ holds a curvature of width by width; wider layers are rounded to the nearest."""


@dataclass(frozen=True)
class Options:
    """How weights are rounded and stored."""

    bits: int = 4
    block: int = 32
    symmetric: bool = False
    gptq: bool = False
    damping: float = 0.01
    activation_order: bool = True
    table_bits: int = 0
    """Bits of embedding tables; 0 leaves them."""
    others: bool = True
    integer_compute: bool = False
    exclude: Sequence[str] = ()
    device: str = "cpu"
    """Where the rounding itself is computed."""


@dataclass(frozen=True)
class Rounded:
    """What became of one weight."""

    layer: str
    operator: str
    bits: int
    algorithm: str
    weight_error: float
    """Squared error as a share of the squared weights."""
    output_error: float | None = None
    """The same of the layer's outputs on the calibration rows."""
    nearest_output_error: float | None = None
    """What rounding to the nearest would have cost there."""


def quantize_weights_step(step: recipes.QuantizeWeights, bench: Bench) -> Mapping[str, Any]:
    """Round the weights of what is on the bench, exporting it first where it is a module still."""
    source = bench.need_file()
    gptq = step.algorithm == "gptq"
    tables = {"none": 0, "same": step.bits}.get(step.embeddings)
    options = Options(
        bits=step.bits,
        block=step.block_size,
        symmetric=step.symmetric,
        gptq=gptq,
        damping=step.damping,
        activation_order=step.activation_order,
        table_bits=int(step.embeddings) if tables is None else tables,
        others=step.others,
        integer_compute=step.integer_compute,
        exclude=step.exclude,
        device=bench.job.device,
    )
    target = bench.new_file("model.onnx")
    rows = calibration_rows(bench, step.calibration_rows, source) if gptq else None
    done = quantize_weights(source, target, options, rows=rows, threads=bench.job.threads)
    bench.file = target
    return {"layers": [asdict(found) for found in done]}


def quantize_weights(
    source: Path, target: Path, options: Options, *, rows: Rows | None = None, threads: int = 1
) -> list[Rounded]:
    """Write a copy of an ONNX file with its constant float32 weights in a few bits.

    `rows` yields feeds of the model, for GPTQ.

    Raises:
        Invalid: it is quantized already, or has no weight that can be rounded.

    """
    refuse_quantized(source)
    graph = Graph(source)
    layers = list(_chosen(graph, options))
    if not layers:
        found = inspect_onnx(source).operators
        raise Invalid(
            "No weight of this model can be stored in {bits} bits; its operators are {operators}. "
            "Constant float32 weights of MatMul, Gemm, Gather, Conv, LSTM, GRU and RNN can.",
            code="nothing_to_quantize",
            bits=options.bits,
            operators=", ".join(sorted(found)),
        )
    flat = target.with_name("flat.onnx")
    graph.save(flat)
    widths = {
        layer.input: graph.read(layer.weight).shape[_input_axis(graph, layer)]
        for layer in layers
        if layer.role == "product"
    }
    by_input: dict[str, list[Layer]] = {}
    rest: list[Layer] = []
    for layer in layers:
        if options.gptq and layer.role == "product" and widths[layer.input] <= MAX_WIDTH:
            by_input.setdefault(layer.input, []).append(layer)
        else:
            rest.append(layer)
    done: dict[tuple[str, int], Rounded] = {}
    writer = _Writer(graph, options)
    if by_input:
        assert rows is not None
        for name, curvature_KK in curvatures(flat, list(by_input), widths, rows, threads=threads):
            for layer in by_input[name]:
                done[layer.name, layer.position] = writer.write(layer, curvature_KK)
    for layer in rest:
        done[layer.name, layer.position] = writer.write(layer, None)
    graph.import_domain(MICROSOFT)
    graph.save(target)
    flat.unlink()
    return [done[layer.name, layer.position] for layer in layers]


def round_rest(file: Path, *, bits: int = 8, block: int = 64) -> None:
    """Round in place what integer products leave: embedding tables and recurrent weights."""
    graph = Graph(file)
    rest = [
        layer for layer in graph.layers() if layer.role == "table" or layer.operator in _RECURRENT
    ]
    writer = _Writer(graph, Options(bits=bits, table_bits=bits, block=block))
    for layer in rest:
        writer.write(layer, None)
    if rest:
        graph.import_domain(MICROSOFT)
        graph.save(file)


def _chosen(graph: Graph, options: Options) -> Iterator[Layer]:
    layers = list(graph.layers())
    left_out = excluded(graph.names(), options.exclude)
    for layer in layers:
        wanted = {"product": True, "table": options.table_bits > 0, "other": options.others}
        if wanted[layer.role] and layer.name not in left_out:
            yield layer


def _input_axis(graph: Graph, layer: Layer) -> int:
    node = graph.node(layer.name)
    return 1 if layer.operator == "Gemm" and attribute(node, "transB", 0) else 0


class _Writer:
    """Puts rounded weights into a graph, each weight once, whoever uses it."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        self._device = options.device
        self._unpacked: dict[str, str] = {}

    def write(self, layer: Layer, curvature_KK: Tensor | None) -> Rounded:
        node = self.graph.node(layer.name)
        values = self.graph.read(layer.weight)
        if layer.role == "product":
            return self._product(layer, node, values, curvature_KK)
        if layer.role == "table":
            return self._table(layer, node, values)
        return self._other(layer, values)

    def _round(
        self, weight_NK: Tensor, bits: int, curvature_KK: Tensor | None, layer: Layer
    ) -> tuple[NDArray[Any], blocks.Grid, Rounded]:
        options = self.options
        how: dict[str, Any] = {
            "bits": bits,
            "block": options.block,
            "symmetric": options.symmetric,
            "half": True,
        }
        weight_NK = weight_NK.to(self._device)
        grid = blocks.fit(weight_NK, **how)
        codes_NK = blocks.encode(weight_NK, grid)
        nearest = output = None
        if curvature_KK is not None:
            curvature_KK = curvature_KK.to(self._device)
            nearest = blocks.output_error(weight_NK, blocks.decode(codes_NK, grid), curvature_KK)
            codes_NK, grid = blocks.gptq(
                weight_NK,
                curvature_KK,
                **how,
                damping=options.damping,
                activation_order=options.activation_order,
            )
        rounded_NK = blocks.decode(codes_NK, grid)
        if curvature_KK is not None:
            output = blocks.output_error(weight_NK, rounded_NK, curvature_KK)
        told = Rounded(
            layer=layer.name,
            operator=layer.operator,
            bits=bits,
            algorithm="rtn" if curvature_KK is None else "gptq",
            weight_error=blocks.weight_error(weight_NK, rounded_NK),
            output_error=output,
            nearest_output_error=nearest,
        )
        return codes_NK.cpu().numpy(), grid, told

    def _product(
        self,
        layer: Layer,
        node: onnx.NodeProto,
        values: NDArray[Any],
        curvature_KK: Tensor | None,
    ) -> Rounded:
        transposed = bool(_input_axis(self.graph, layer))
        weight_NK = torch.from_numpy(np.array(values if transposed else values.T))
        share = float(attribute(node, "alpha", 1.0)) if layer.operator == "Gemm" else 1.0
        weight_NK = weight_NK * share
        outputs, inputs = weight_NK.shape
        bits, block = self.options.bits, self.options.block
        codes_NK, grid, told = self._round(weight_NK, bits, curvature_KK, layer)
        weight = layer.weight if share == 1.0 else f"{layer.weight}_alpha"
        if not transposed:
            turned = weight.removesuffix(TURNED)
            weight = turned if turned != weight else f"{weight}{TURNED}"
        # The same weight may be rounded by another curvature, or turned round, elsewhere.
        own = curvature_KK is not None or layer.operator == "Gemm"
        name = f"{weight}.{layer.name if own else 'product'}"
        # Codes beyond the last input stand for zero.
        filled = pad_last(codes_NK, block)
        packed = pack(filled.reshape(outputs, -1, block), bits)
        given = [node.input[0], self.graph.add(f"{name}_int{bits}", packed)]
        made: list[onnx.NodeProto] = []
        given.append(self._scales(name, grid))
        if not self.options.symmetric:
            zeros = pad_last(grid.zero_NB.cpu().numpy().astype(np.uint8), 8 // bits)
            given.append(self.graph.add(f"{name}_zero_point", pack(zeros, bits)))
        bias = node.input[2] if len(node.input) > 2 else ""
        out = node.output[0]
        product = f"{out}_product" if bias else out
        compute: dict[str, Any] = {"accuracy_level": 4} if self.options.integer_compute else {}
        made.append(
            helper.make_node(
                "MatMulNBits",
                given,
                [product],
                name=layer.name,
                domain=MICROSOFT,
                K=inputs,
                N=outputs,
                bits=bits,
                block_size=block,
                **compute,
            )
        )
        if bias:
            made += self._bias(layer, node, product, bias, out)
        self.graph.replace(layer.name, made)
        return told

    def _bias(
        self, layer: Layer, node: onnx.NodeProto, product: str, bias: str, out: str
    ) -> list[onnx.NodeProto]:
        share = float(attribute(node, "beta", 1.0))
        made = []
        if share != 1.0:
            factor = self.graph.add(f"{layer.name}_beta", np.array(share, np.float32))
            made.append(
                helper.make_node("Mul", [bias, factor], [f"{out}_bias"], name=f"{layer.name}_beta")
            )
            bias = f"{out}_bias"
        made.append(helper.make_node("Add", [product, bias], [out], name=f"{layer.name}_bias"))
        return made

    def _table(self, layer: Layer, node: onnx.NodeProto, values: NDArray[Any]) -> Rounded:
        bits = self.options.table_bits
        weight_VD = torch.from_numpy(np.array(values))
        codes, grid, told = self._round(weight_VD, bits, None, layer)
        made = self._look_up(
            layer.weight,
            codes,
            grid,
            node.input[1],
            node.output[0],
            layer.name,
            width=len(values[0]),
        )
        self.graph.replace(layer.name, made)
        return told

    def _other(self, layer: Layer, values: NDArray[Any]) -> Rounded:
        """Unpack the whole weight, once for the graph, in the shape that the node takes."""
        bits = self.options.bits
        # Of an LSTM the gates are rows; of a convolution its outputs.
        rows = (
            values.shape[0] * values.shape[1] if layer.operator in _RECURRENT else values.shape[0]
        )
        weight_RC = torch.from_numpy(np.array(values)).reshape(rows, -1)
        codes, grid, told = self._round(weight_RC, bits, None, layer)
        name = layer.weight
        if name not in self._unpacked:
            every = self.graph.add(f"{name}_rows", np.arange(rows, dtype=np.int64))
            shape = self.graph.add(f"{name}_shape", np.array(values.shape, dtype=np.int64))
            flat, whole = f"{name}_flat", f"{name}_unpacked"
            made = self._look_up(
                name, codes, grid, every, flat, f"{name}_unpack", width=weight_RC.shape[1]
            )
            made.append(helper.make_node("Reshape", [flat, shape], [whole], name=f"{name}_reshape"))
            self.graph.put_first(made)
            self._unpacked[name] = whole
        self.graph.node(layer.name).input[layer.position] = self._unpacked[name]
        return told

    def _look_up(
        self,
        name: str,
        codes: NDArray[Any],
        grid: blocks.Grid,
        indices: str,
        out: str,
        node_name: str,
        *,
        width: int,
    ) -> list[onnx.NodeProto]:
        """Take rows of a packed table; a width that fills no whole bytes is filled up and cut."""
        bits = grid.bits
        filled = pad_last(codes, 8 // bits)
        cut = filled.shape[1] != width
        wide = f"{out}_wide" if cut else out
        given = [
            self.graph.add(f"{name}_int{bits}", pack(filled, bits)),
            indices,
            self._scales(name, grid),
        ]
        if not self.options.symmetric:
            zeros = pad_last(grid.zero_NB.cpu().numpy().astype(np.uint8), 8 // bits)
            given.append(self.graph.add(f"{name}_zero_point", pack(zeros, bits)))
        made = [
            helper.make_node(
                "GatherBlockQuantized",
                given,
                [wide],
                name=node_name,
                domain=MICROSOFT,
                bits=bits,
                block_size=grid.block,
                gather_axis=0,
                quantize_axis=1,
            )
        ]
        if cut:
            start = self.graph.add(f"{name}_start", np.array([0], np.int64))
            end = self.graph.add(f"{name}_end", np.array([width], np.int64))
            axis = self.graph.add("last_axis", np.array([-1], np.int64))
            made.append(
                helper.make_node("Slice", [wide, start, end, axis], [out], name=f"{node_name}_cut")
            )
        return made

    def _scales(self, name: str, grid: blocks.Grid) -> str:
        """Keep scales in 16 bits where that is exact; they are widened when the file is loaded."""
        scales = grid.scale_NB.cpu().numpy()
        if not grid.half:
            return self.graph.add(f"{name}_scale", scales)
        wide = f"{name}_scale_float32"
        if wide not in self._unpacked:
            half = self.graph.add(f"{name}_scale", scales.astype(np.float16))
            cast = helper.make_node(
                "Cast", [half], [wide], name=f"{name}_widen", to=onnx.TensorProto.FLOAT
            )
            self.graph.put_first([cast])
            self._unpacked[wide] = wide
        return wide
