"""The weights of a graph as its own model has them: quantized ones, turned ones, gates of LSTMs.

A graph may keep a weight in whole numbers with scales, turned, in blocks of few bits, or with its
gates in another order. Where that can be told, it is given under the name, in the shape and with
the numbers that it was made of, so that it compares with them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from registry.errors import Invalid
from registry.formats import onnx
from registry.formats.facts import malformed
from workers.ml import myz
from workers.ml.bit_packing import unpack
from workers.ml.stored import (
    TENSOR_BITS,
    Numbers,
    OpenFiles,
    ReadRange,
    Scaled,
    Stored,
    computed,
    within,
)

TURNED: Final = "_Transposed"
"""What a quantizer puts after the name of a matrix that it has turned."""
GATES_OF_ONNX: Final = (0, 2, 3, 1)
"""Where ONNX has the gates of torch's LSTM: i, f, c, o are i, o, f, c there."""

_MAX_SCALES: Final = 1 << 20
WIDEST_ROW: Final = 1 << 22
"""How long rows are put back at most, for a whole one is read."""
_BYTES: Final = 2
_MATRIX: Final = 2
# So many dimensions has what is moved over an image; its first one counts what it finds.
_KERNEL: Final = 4
# Fields in which numbers are written one by one, of which types, and how long they may be.
_LISTED: Final = frozenset({5, 7})
_OF_LISTS: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "I32", "I64", "F16", "BF16"})
_LISTED_BYTES: Final = 4096
_FEW_BITS: Final = frozenset({"U4", "I4", "U2", "I2"})
# Of matrices that lie turned, a whole one is held; a larger one stays under the name that it has.
_TURNED_BYTES: Final = 64 << 20
_EXTERNAL: Final = 1
# How quantizers name what they make of a weight, and what a graph makes of that in each run.
_MADE: Final = ("_quantized", "_fixed")
_REMADE: Final = (*_MADE, "_real", "_unpacked")
# Of a node: which of its inputs are a weight, its scale and its zero point, and along which axis.
_QUANTIZED: Final = {
    "DequantizeLinear": ((0, 1, 2), 1),
    "QLinearConv": ((3, 4, 5), 0),
    "QLinearMatMul": ((3, 4, 5), -1),
    "QGemm": ((3, 4, 5), -1),
}
# And which is a bias, that the scales of this input and of the weight belong to.
_BIASED: Final = {"QLinearConv": (8, 1, 4), "QGemm": (6, 1, 4)}
_IN_BLOCKS: Final = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3)}
# Inputs that say of blocks what is not read here: the order of the columns.
_UNREAD: Final = {"MatMulNBits": (4,), "GatherBlockQuantized": ()}
_LSTMS: Final = frozenset({"LSTM", "DynamicQuantizeLSTM"})
_GATES: Final = 4
_LOOKED_AT: Final = frozenset({"Cast", *_QUANTIZED, *_IN_BLOCKS, *_LSTMS})
# Which inputs of a node say where and in which shape it works, and so are no weights.
_OF_SHAPE: Final = {
    "ConstantOfShape": (0,),
    "CumSum": (1,),
    "Expand": (1,),
    "Pad": (1, 3),
    "Reshape": (1,),
    "Resize": (3,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    **dict.fromkeys(
        [f"Reduce{what}" for what in ("L1", "L2", "Max", "Mean", "Min", "Prod", "Sum")], (1,)
    ),
}
# Such numbers are whole and few.
_SHAPE_TYPES: Final = frozenset({"I32", "I64"})
_MOST_DIMENSIONS: Final = 64
# So many names are remembered of a graph; of a larger one nothing is left out.
_MOST_USES: Final = 1 << 20
# Fields of an attribute that hold graphs, whose nodes use what is around them too.
_GRAPHS: Final = frozenset({6, 11})


class _Node(NamedTuple):
    operator: str
    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    numbers: Mapping[str, int]
    has_graphs: bool = False

    def named(self, places: Sequence[int]) -> list[str]:
        return [self.inputs[at] if at < len(self.inputs) else "" for at in places]


def of_graph(path: Path, size: int, files: OpenFiles) -> list[Stored]:
    """Give the weights of an ONNX file, read through `files` as what lies beside it.

    Raises:
        Invalid: it is malformed, or a weight lies in a file that is not there.

    """
    read = files.reader(path)
    onnx.read_onnx(size, read)  # refuses what is malformed
    walk = onnx.Walk(size, read)
    found: dict[str, Stored] = {}
    nodes: list[_Node] = []
    uses = _Uses()
    beside = _Beside(path, files)
    for item in walk.fields(0, size):
        for part in walk.inner(item) if item.number == 7 else ():
            if part.number == 5 and (stored := _initializer(walk, part, beside, read)):
                found.setdefault(stored.name, stored)
            elif part.number == 1:
                node = _node(walk, part)
                uses.add(node)
                if node.operator in _LOOKED_AT:
                    nodes.append(node)
    _put_all_back(found, nodes)
    # Only now: what was put back took its shape from there.
    return [stored for stored in _turned_back(found) if not uses.are_of_shape(stored)]


class _Uses:
    """What the initializers of a graph are used for."""

    def __init__(self) -> None:
        self._as_shape: set[str] = set()
        self._otherwise: set[str] = set()
        self._all_are_seen = True

    def add(self, node: _Node) -> None:
        if not self._all_are_seen:
            return
        places = _OF_SHAPE.get(node.operator, ())
        for at, name in enumerate(node.inputs):
            (self._as_shape if at in places else self._otherwise).add(name)
        is_too_much = len(self._as_shape) + len(self._otherwise) > _MOST_USES
        if node.has_graphs or is_too_much:
            self._all_are_seen = False

    def are_of_shape(self, stored: Stored) -> bool:
        """Say whether a tensor is nothing but a shape, axes or places, which exporters write."""
        return (
            self._all_are_seen
            and stored.dtype in _SHAPE_TYPES
            and len(stored.shape) <= 1
            and stored.elements <= _MOST_DIMENSIONS
            and stored.name in self._as_shape
            and stored.name not in self._otherwise
        )


def _put_all_back(found: dict[str, Stored], nodes: Sequence[_Node]) -> None:
    widened = {
        node.outputs[0]: node.inputs[0]
        for node in nodes
        if node.operator == "Cast" and node.inputs and node.outputs
    }
    # Scales and zero points go at last: several weights may share them.
    spent: set[str] = set()
    for node in nodes:
        if node.operator in _BIASED:
            _put_back_bias(found, node.named(_BIASED[node.operator]))
        if node.operator in _QUANTIZED and not node.numbers.get("block_size"):
            places, axis = _QUANTIZED[node.operator]
            spent |= _put_back(found, node.named(places), _axis_of(node, axis))
        if node.operator in _IN_BLOCKS and not any(node.named(_UNREAD[node.operator])):
            data, scale, zero = node.named(_IN_BLOCKS[node.operator])
            spent |= _put_blocks_back(found, node, [data, widened.get(scale, scale), zero])
    for names, axis in _rounded(found):
        spent |= _put_back(found, names, axis)
    for name in spent:
        found.pop(name, None)
    for node in nodes:
        if node.operator in _LSTMS:
            _order_gates(found, node)


def _node(walk: Any, part: Any) -> _Node:
    inputs: list[str] = []
    outputs: list[str] = []
    operator = name = ""
    numbers: dict[str, int] = {}
    has_graphs = False
    for field in walk.inner(part):
        if field.number == 1:
            inputs.append(walk.text(field))
        elif field.number == 2:
            outputs.append(walk.text(field))
        elif field.number == 3:
            name = walk.text(field)
        elif field.number == 4:
            operator = walk.text(field)
        elif field.number == 5:
            key, value = "", 0
            for inner in walk.inner(field):
                if inner.number == 1:
                    key = walk.text(inner)
                elif inner.number == 3:
                    value = inner.value
                has_graphs = has_graphs or inner.number in _GRAPHS
            numbers[key] = value - (1 << 64) if value >= 1 << 63 else value
    return _Node(operator, name, inputs, outputs, numbers, has_graphs)


class _Beside:
    """The files beside a graph."""

    def __init__(self, graph: Path, files: OpenFiles) -> None:
        self._folder = graph.parent.resolve()
        self._files = files

    def open(self, location: str, name: str) -> tuple[ReadRange, int]:
        """Give what reads a file, and how long it is.

        Raises:
            Invalid: the weight of this `name` would lie elsewhere, or nowhere.

        """
        path = (self._folder / location).resolve()
        if not path.is_relative_to(self._folder) or not path.is_file():
            raise Invalid(
                "The weight {name!r} lies in a file that is not there.",
                code="missing_file",
                name=name[:200],
            )
        return self._files.reader(path), path.stat().st_size


class _Said(NamedTuple):
    """What a graph says of an initializer: its fields, and those that may come more than once."""

    fields: dict[int, Any]
    shape: list[int]
    listed: list[int]
    outside: dict[str, str]


def _said_of(walk: Any, part: Any) -> _Said:
    said = _Said({}, [], [], {})
    for field in walk.inner(part):
        said.fields[field.number] = field
        if field.number == 1:
            said.shape.extend(walk.numbers(field))
        elif field.number in _LISTED and field.end - field.start <= _LISTED_BYTES:
            # What is longer than that is not looked at, so its end may be missing.
            if len(said.listed) <= _LISTED_BYTES:
                said.listed.extend(walk.numbers(field))
        elif field.number == 13:
            key, value = _entry(walk, field)
            said.outside[key] = value
    return said


def _initializer(walk: Any, part: Any, beside: _Beside, read: ReadRange) -> Stored | None:
    fields, shape, listed, outside = _said_of(walk, part)
    dtype = myz.TYPES.get(fields[2].value if 2 in fields else 0)
    name = walk.text(fields[8]) if 8 in fields else ""
    if dtype is None or not name:
        return None
    elements = math.prod(shape)
    size = -(-elements * TENSOR_BITS[dtype] // 8)
    if 14 in fields and fields[14].value == _EXTERNAL:
        return _outside(Stored(name, dtype, tuple(shape), size, read), outside, beside)
    # Numbers that lie packed as they are in memory: raw ones, floats, doubles.
    for number, kind in ((9, dtype), (4, "F32"), (10, "F64")):
        held = fields.get(number)
        if held is not None and kind == dtype and held.wire == _BYTES:
            low, high = held.start, held.end
            if high - low == size:
                stored = Stored(name, dtype, tuple(shape), size, within(read, low, high))
                return _of_few_bits(stored) if dtype in _FEW_BITS else stored
    if listed and len(listed) == elements <= _LISTED_BYTES and dtype in _OF_LISTS:
        return _listed(name, dtype, tuple(shape), listed)
    low, high = part.start, part.end
    whole = within(read, low, high)
    return Stored(name, dtype, tuple(shape), high - low, whole, is_opaque=True)


def _of_few_bits(packed: Stored) -> Stored:
    """Give whole numbers that share bytes, the first in the lowest bits."""
    bits = TENSOR_BITS[packed.dtype]
    per_byte, is_signed = 8 // bits, packed.dtype.startswith("I")

    def between(start: int, end: int) -> Numbers:
        first = start // per_byte
        data = np.frombuffer(packed.read(first, -(-end // per_byte)), np.uint8)
        codes = unpack(data, bits)[start - first * per_byte :][: end - start].astype(np.float64)
        if is_signed:
            codes[codes >= 1 << (bits - 1)] -= 1 << bits
        return codes

    return computed(packed.name, packed.dtype, packed.shape, between)


def _listed(name: str, dtype: str, shape: tuple[int, ...], numbers: Sequence[int]) -> Stored:
    """Give a short tensor whose numbers are written one by one, as zero points often are."""
    width = TENSOR_BITS[dtype] // 8
    data = b"".join((one % (1 << 8 * width)).to_bytes(width, "little") for one in numbers)
    return Stored(name, dtype, shape, len(data), lambda start, end: data[start:end])


def _entry(walk: Any, field: Any) -> tuple[str, str]:
    said = {part.number: walk.text(part) for part in walk.inner(field) if part.number in {1, 2}}
    return said.get(1, ""), said.get(2, "")


def _outside(weight: Stored, said: Mapping[str, str], beside: _Beside) -> Stored:
    """Find a weight that lies in a file beside the graph, and nowhere else."""
    read, held = beside.open(said.get("location", ""), weight.name)
    offset, length = said.get("offset", "0"), said.get("length", str(weight.size))
    low = int(offset[:18]) if offset.isdecimal() else held
    if not length.isdecimal() or int(length[:18]) != weight.size or low + weight.size > held:
        raise malformed("The weight {name!r} has no sensible place.", name=weight.name[:200])
    return replace(weight, read=within(read, low, low + weight.size))


# --- Weights that are quantized as a whole, or by channel -----------------------------------------


def _axis_of(node: _Node, usual: int) -> int:
    if node.operator == "QGemm" and node.numbers.get("transB"):
        return 0
    return node.numbers.get("axis", usual)


def _rounded(found: Mapping[str, Stored]) -> list[tuple[list[str], int]]:
    """Find weights that a graph multiplies as whole numbers, by the names of the quantizer.

    No node puts these back: it is their products that are scaled.
    """
    nodes = []
    for name, whole in found.items():
        base = _made_of(name)
        scale = found.get(f"{base}_scale")
        if base != name and scale is not None and scale.dtype == "F32":
            axis = -1 if len(whole.shape) < _KERNEL else 0
            zero = f"{base}_zero_point"
            nodes.append(([name, scale.name, zero if zero in found else ""], axis))
    return nodes


def _made_of(name: str, endings: Sequence[str] = _MADE) -> str:
    for ending in endings:
        name = name.removesuffix(ending)
    return name


def _put_back(found: dict[str, Stored], names: Sequence[str], axis: int) -> set[str]:
    """Let a quantized weight stand under the name of the one that it was made of.

    Gives the names of what says how, which is no weight itself.
    """
    whole, scale, zero = (found.get(name) for name in names)
    base = _made_of(names[0])
    if whole is None or scale is None or _is_missing(names[2], zero) or base in found:
        return set()
    if not whole.is_numeric or whole.scaled is not None:
        return set()
    place = axis + len(whole.shape) if axis < 0 else axis
    if scale.elements not in {1, *whole.shape[max(0, place) : place + 1]}:
        return set()
    scales = _all(scale)
    zeros = np.zeros(1) if zero is None else _all(zero)
    scaled = None if scales is None or zeros is None else _scaled(whole, scales, zeros, axis)
    if scaled is None:
        return set()
    del found[names[0]]
    found[base] = replace(whole, name=base, scaled=scaled)
    return set(names[1:])


def _is_missing(name: str, stored: Stored | None) -> bool:
    """Say whether a graph names something that no weight of it is."""
    return name != "" and stored is None


def _put_back_bias(found: dict[str, Stored], names: Sequence[str]) -> None:
    """Scale a bias as the products that it is added to; their scales stay where they are."""
    bias, *both = (found.get(name) for name in names)
    base = _made_of(names[0])
    if bias is None or base in found or not bias.is_numeric:
        return
    scales = [_all(one) for one in both if one is not None]
    if len(scales) == 2 and scales[0] is not None and scales[1] is not None:
        try:
            product = np.atleast_1d(scales[0] * scales[1])
        except ValueError:
            return
        scaled = _scaled(bias, product, np.zeros(1), -1)
        if scaled is not None:
            found[base] = replace(found.pop(names[0]), name=base, scaled=scaled)


def _scaled(whole: Stored, scales: Numbers, zeros: Numbers, axis: int) -> Scaled | None:
    if not len(scales) or len(zeros) not in {1, len(scales)}:
        return None
    place = axis + len(whole.shape) if axis < 0 else axis
    channels, inner = 1, 1
    if len(scales) > 1:
        if not 0 <= place < len(whole.shape) or whole.shape[place] != len(scales):
            return None
        channels, inner = whole.shape[place], math.prod(whole.shape[place + 1 :])
    return Scaled(scales, np.broadcast_to(zeros, scales.shape), channels, max(1, inner))


def _all(stored: Stored) -> Numbers | None:
    if not stored.is_numeric or stored.elements > _MAX_SCALES:
        return None
    return stored.numbers(stored.raw(0, stored.elements), 0)


# --- Weights in blocks of few bits, each with a scale ---------------------------------------------


def _put_blocks_back(found: dict[str, Stored], node: _Node, names: Sequence[str]) -> set[str]:
    """Let a packed matrix or table stand under the name of the one that it was made of.

    Gives the names of what says how. A row is a row of blocks, the first code of a byte in its
    lowest bits, as ONNX Runtime has it:
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    data, scale, zero = (found.get(name) for name in names)
    bits, block = node.numbers.get("bits", 4), node.numbers.get("block_size", 128)
    base = _packed_of(names[0], node, bits)
    if data is None or scale is None or _is_missing(names[2], zero) or base in found:
        return set()
    if bits not in {2, 4, 8} or not _is_bytes(data) or not (zero is None or _is_bytes(zero)):
        return set()
    helpers = {
        which: found.get(f"{base}_{which}")
        for which in ("rows", "shape", "start", "end")
        if base != names[0]
    }
    if node.operator == "MatMulNBits":
        rows, width = node.numbers.get("N", 0), node.numbers.get("K", 0)
    else:
        rows = data.shape[0] if len(data.shape) == _MATRIX else 0
        width = next(iter(_sizes(helpers.get("end"))), rows and data.shape[1] * 8 // bits)
    shape = _sizes(helpers.get("shape")) or (rows, width)
    blocks = _Blocks.of(data, scale, zero, bits=bits, block=block, rows=rows, width=width)
    if blocks is None or math.prod(shape) != rows * width:
        return set()
    del found[names[0]]
    found[base] = computed(base, f"U{bits}", shape, blocks.between)
    said = {one.name for one in helpers.values() if one is not None and one.dtype == "I64"}
    return {*names[1:], *said}


def _is_bytes(stored: Stored) -> bool:
    """Say whether it is bytes as they lie in the file, and nothing that was put back."""
    as_stored = not stored.is_computed and stored.scaled is None
    return stored.dtype == "U8" and stored.is_numeric and as_stored


def _packed_of(name: str, node: _Node, bits: int) -> str:
    """Give the name of what this was made of; a matrix has its outputs first by now."""
    base = name.removesuffix(f"_int{bits}")
    if node.operator == "MatMulNBits":
        base = base.removesuffix(f".{node.name}").removesuffix(".product")
    return base


def _sizes(stored: Stored | None) -> tuple[int, ...]:
    """Read what a graph says of a shape; nothing where it says nothing sensible."""
    if stored is None or stored.dtype != "I64" or stored.elements > _KERNEL + 1:
        return ()
    sizes = tuple(int(one) for one in stored.between(0, stored.elements))
    return sizes if min(sizes, default=0) > 0 else ()


class _Blocks(NamedTuple):
    """Rows of codes; so many bytes, scales and bytes of zero points belong to each."""

    data: Stored
    scales: Stored
    zeros: Stored | None
    bits: int
    block: int
    width: int
    row_bytes: int
    row_scales: int
    row_zeros: int

    @classmethod
    def of(
        cls,
        data: Stored,
        scales: Stored,
        zeros: Stored | None,
        *,
        bits: int,
        block: int,
        rows: int,
        width: int,
    ) -> "_Blocks | None":
        """Give None where the sizes do not belong together."""
        if min(rows, width, block) <= 0 or width > WIDEST_ROW or not scales.is_numeric:
            return None
        block = min(block, width)
        row_bytes, row_scales = data.elements // rows, scales.elements // rows
        row_zeros = -(-row_scales * bits // 8)
        fits = (
            row_bytes * rows == data.elements
            and row_scales * rows == scales.elements
            and row_bytes * 8 // bits >= width
            and (row_scales - 1) * block < width <= row_scales * block
            and (zeros is None or zeros.elements == rows * row_zeros)
        )
        if not fits:
            return None
        return cls(data, scales, zeros, bits, block, width, row_bytes, row_scales, row_zeros)

    def between(self, start: int, end: int) -> Numbers:
        """Give the weights from one to before another; whole rows are read."""
        first, last = start // self.width, -(-end // self.width)
        codes = self._codes(self.data, first, last, self.row_bytes)[:, : self.width]
        scales = self.scales.between(first * self.row_scales, last * self.row_scales)
        zeros: Any = 1 << (self.bits - 1)
        if self.zeros is not None:
            zeros = self._by_column(self._codes(self.zeros, first, last, self.row_zeros))
        steps = codes.astype(np.float64) - zeros
        numbers = (steps * self._by_column(scales.reshape(last - first, -1))).reshape(-1)
        before = first * self.width
        return np.asarray(numbers[start - before : end - before])

    def _codes(self, stored: Stored, first: int, last: int, row_bytes: int) -> Any:
        raw = stored.raw(first * row_bytes, last * row_bytes)
        return unpack(raw.reshape(last - first, row_bytes), self.bits)

    def _by_column(self, values: Any) -> Any:
        return values[:, : self.row_scales].repeat(self.block, axis=1)[:, : self.width]


# --- LSTMs ----------------------------------------------------------------------------------------


def _order_gates(found: dict[str, Stored], node: _Node) -> None:
    """Give the weights of an LSTM of one direction as torch's own layer has them."""
    names = [_made_of(name, _REMADE) for name in node.named((1, 2, 3))]
    layer = names[0].removesuffix(".w")
    taken = [found.get(name) for name in names]
    if names != [f"{layer}.{letter}" for letter in "wrb"] or None in taken:
        return
    made: list[Stored] = []
    turner = _Turner()
    *matrices, bias = (one for one in taken if one is not None)
    for matrix, which in zip(matrices, ("weight_ih_l0", "weight_hh_l0"), strict=True):
        if len(matrix.shape) != 1 + _MATRIX or matrix.shape[0] != 1 or not _can_move(matrix):
            return
        flat = replace(matrix, shape=matrix.shape[1:])
        if node.operator == "DynamicQuantizeLSTM":
            if flat.size > _TURNED_BYTES:
                return
            flat = turner.turn(flat, flat.name)
        if flat.shape[0] % _GATES:
            return
        made.append(_reordered(flat, f"{layer}.{which}", flat.shape, 0))
    gates = made[0].shape[0]
    if bias.shape != (1, 2 * gates) or not _can_move(bias):
        return
    made.append(_reordered(bias, f"{layer}.bias_ih_l0", (gates,), 0))
    made.append(_reordered(bias, f"{layer}.bias_hh_l0", (gates,), gates))
    if not any(one.name in found for one in made):
        for name in names:
            del found[name]
        found.update((one.name, one) for one in made)


def _can_move(stored: Stored) -> bool:
    """Say whether its numbers stay what they are as float32."""
    return stored.is_numeric and stored.dtype != "F64"


def _reordered(source: Stored, name: str, shape: tuple[int, ...], begin: int) -> Stored:
    """Give what lies from the element `begin` on, gate by gate in torch's order."""
    size = math.prod(shape) // _GATES

    def between(start: int, end: int) -> Numbers:
        parts = []
        for gate, place in enumerate(GATES_OF_ONNX):
            low, high = max(start, gate * size), min(end, (gate + 1) * size)
            if low < high:
                moved = begin + (place - gate) * size
                parts.append(source.between(low + moved, high + moved))
        return np.concatenate(parts) if parts else np.zeros(0)

    return computed(name, source.dtype, shape, between)


# --- Matrices that lie turned ---------------------------------------------------------------------


def _turned_back(found: Mapping[str, Stored]) -> list[Stored]:
    """Let a matrix that a quantizer turned stand under its own name, as it was before."""
    turner = _Turner()
    return [
        turner.turn(stored, base)
        if (base := name.removesuffix(TURNED)) != name
        and base not in found
        and len(stored.shape) == _MATRIX
        and stored.is_numeric
        and stored.size <= _TURNED_BYTES
        else stored
        for name, stored in found.items()
    ]


class _Turner:
    """Reads matrices whose rows are the columns of what is stored; holds the last one only."""

    def __init__(self) -> None:
        self._name = ""
        self._held = b""

    def turn(self, stored: Stored, name: str) -> Stored:
        rows, columns = stored.shape
        scaled = stored.scaled
        if scaled is not None and len(scaled.scales) > 1:
            by_column = (scaled.channels, scaled.inner) == (columns, 1)
            scaled = scaled._replace(inner=rows if by_column else 1)
        return replace(
            stored,
            name=name,
            shape=(columns, rows),
            scaled=scaled,
            read=lambda start, end: self._whole(stored)[start:end],
        )

    def _whole(self, stored: Stored) -> bytes:
        if self._name != stored.name:
            raw = stored.raw(0, stored.elements).reshape(*stored.shape, stored.width)
            self._name, self._held = stored.name, raw.transpose(1, 0, 2).tobytes()
        return self._held
