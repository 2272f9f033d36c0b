"""The tensors of files as numbers, read piece by piece: nothing holds a whole one in memory."""

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid, Text
from registry.formats import onnx, safetensors
from registry.formats.bounded_json import parse_json
from registry.formats.facts import malformed
from registry.formats.weights import Chosen
from workers.ml import myz

Raw = NDArray[np.uint8]
Numbers = NDArray[np.float64]
ReadRange = Callable[[int, int], bytes]

_MAX_TENSORS: Final = 1_000_000
_MAX_SCALES: Final = 1 << 24
_BYTES: Final = 2
_MATRIX: Final = 2
# So many dimensions has what is moved over an image; its first one counts what it finds.
_KERNEL: Final = 4
# Fields in which numbers are written one by one, of which types, and how long they may be.
_LISTED: Final = frozenset({5, 7})
_OF_LISTS: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "I32", "I64", "F16", "BF16"})
_LISTED_BYTES: Final = 4096
# How a quantizer names what it makes of a weight.
_QUANTIZED: Final = "_quantized"
TURNED: Final = "_Transposed"
# Of matrices that lie turned, a whole one is held; a larger one stays under the name that it has.
_TURNED_BYTES: Final = 64 << 20
_EXTERNAL: Final = 1
_TENSOR_BITS: Final = {**safetensors.DTYPE_BITS, "C128": 128, "U4": 4, "I4": 4, "U2": 2, "I2": 2}
# Those that numpy reads as they are; complex ones count as pairs.
_PLAIN: Final = {
    "BOOL": "u1",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<f4",
    "C128": "<f8",
}


class Scaled(NamedTuple):
    """How the whole numbers of a quantized tensor become those that they stand for."""

    scales: Numbers
    zeros: Numbers
    channels: int
    inner: int

    def apply(self, numbers: Numbers, at: int) -> Numbers:
        if len(self.scales) == 1:
            return np.asarray((numbers - self.zeros[0]) * self.scales[0])
        channel = (np.arange(at, at + len(numbers)) // self.inner) % self.channels
        return np.asarray((numbers - self.zeros[channel]) * self.scales[channel])


@dataclass(frozen=True)
class Stored:
    """A named tensor where it lies: `read` gives some of its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    read: ReadRange
    scaled: Scaled | None = None
    # Its bytes are no row of elements: they can only be the same as others, or not.
    is_opaque: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_numeric(self) -> bool:
        known = self.dtype in _PLAIN or self.dtype == "BF16" or self.dtype in _tables()
        return known and not self.is_opaque

    @property
    def width(self) -> int:
        return _TENSOR_BITS[self.dtype] // 8

    def raw(self, start: int, end: int) -> Raw:
        """Give the bytes of the elements from `start` to before `end`."""
        data = self.read(start * self.width, end * self.width)
        if len(data) != (end - start) * self.width:
            raise malformed("The tensor {name!r} is cut short.", name=self.name[:200])
        return np.frombuffer(data, np.uint8)

    def numbers(self, raw: Raw, at: int) -> Numbers:
        """Turn the bytes of the elements from `at` on into numbers."""
        numbers = _decode(raw, self.dtype)
        return numbers if self.scaled is None else self.scaled.apply(numbers, at)


def _decode(raw: Raw, dtype: str) -> Numbers:
    if dtype == "BF16":
        whole = raw.view("<u2").astype(np.uint32) << 16
        return whole.view(np.float32).astype(np.float64)
    if dtype in _PLAIN:
        return raw.view(_PLAIN[dtype]).astype(np.float64)
    return np.asarray(_tables()[dtype][raw])


def _tables() -> Mapping[str, Numbers]:
    """Give what each byte of a small floating-point type stands for."""
    if not _TABLES:
        _TABLES.update(
            F8_E4M3=_small(4, 3, bias=7, nan=lambda code: (code & 0x7F) == 0x7F),
            F8_E5M2=_small(5, 2, bias=15, infinite=True),
            F8_E4M3FNUZ=_small(4, 3, bias=8, nan=lambda code: code == 0x80),
            F8_E5M2FNUZ=_small(5, 2, bias=16, nan=lambda code: code == 0x80),
            F8_E8M0=np.array([2.0 ** (code - 127) for code in range(255)] + [math.nan]),
        )
    return _TABLES


_TABLES: dict[str, Numbers] = {}


def _small(
    exponent_bits: int,
    mantissa_bits: int,
    *,
    bias: int,
    infinite: bool = False,
    nan: Callable[[int], bool] = lambda _code: False,
) -> Numbers:
    def value(code: int) -> float:
        sign = -1.0 if code & 0x80 else 1.0
        exponent = (code & 0x7F) >> mantissa_bits
        mantissa = code & ((1 << mantissa_bits) - 1)
        if infinite and exponent == (1 << exponent_bits) - 1:
            return math.nan if mantissa else sign * math.inf
        if nan(code):
            return math.nan
        if exponent == 0:
            return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
        return sign * (1 + mantissa / (1 << mantissa_bits)) * 2.0 ** (exponent - bias)

    return np.array([value(code) for code in range(256)])


# --- Opening files --------------------------------------------------------------------------------


def open_tensors(folder: Path, chosen: Chosen, scratch: Path) -> dict[str, Stored]:
    """Give the tensors of some files by their names; of two with one name, the first.

    A coded file is written out into `scratch` before.

    Raises:
        Invalid: a file is malformed.

    """
    found: dict[str, Stored] = {}
    for path in chosen.paths:
        for stored in _of_file(folder / path, chosen.format, scratch):
            if len(found) >= _MAX_TENSORS:
                raise malformed("The files hold more than {limit} tensors.", limit=_MAX_TENSORS)
            found.setdefault(stored.name, stored)
    return found


def _of_file(path: Path, format_name: str, scratch: Path) -> Iterator[Stored]:
    if format_name == "myz":
        scratch.mkdir(parents=True, exist_ok=True)
        path = myz.unpack(path, scratch)
        format_name = path.suffix.removeprefix(".")
    read = _reader(path)
    size = path.stat().st_size
    if format_name == "onnx":
        return iter(_of_graph(path, size, read))
    return _of_state(size, read)


def _reader(path: Path) -> ReadRange:
    """Read ranges of a file; no page of it stays mapped, so that memory stays flat."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(start: int, end: int) -> bytes:
        return os.pread(handle, max(0, end - start), start)

    return read


def _within(read: ReadRange, low: int, high: int) -> ReadRange:
    return lambda start, end: read(low + start, min(high, low + end))


def _of_state(size: int, read: ReadRange) -> Iterator[Stored]:
    safetensors.read_safetensors(size, read)  # refuses what is malformed
    (length,) = struct.unpack("<Q", read(0, 8))
    header = parse_json(read(8, 8 + length), what=Text("The safetensors header"), max_depth=8)
    for name, said in header.items():
        if name == "__metadata__":
            continue
        low, high = (8 + length + offset for offset in said["data_offsets"])
        shape = tuple(said["shape"])
        yield Stored(name, said["dtype"], shape, high - low, _within(read, low, high))


def _of_graph(path: Path, size: int, read: ReadRange) -> list[Stored]:
    onnx.read_onnx(size, read)  # refuses what is malformed
    walk = onnx.Walk(size, read)
    found: dict[str, Stored] = {}
    scaled: list[tuple[list[str], int]] = []
    for item in walk.fields(0, size):
        for part in walk.inner(item) if item.number == 7 else ():
            if part.number == 5 and (stored := _initializer(walk, part, path, read)):
                found.setdefault(stored.name, stored)
            elif part.number == 1 and (node := _dequantizer(walk, part)):
                scaled.append(node)
    for names, axis in [*scaled, *_rounded(found)]:
        _put_back(found, names, axis)
    return _turned_back(found)


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


def _initializer(walk: Any, part: Any, path: Path, read: ReadRange) -> Stored | None:
    fields, shape, listed, outside = _said_of(walk, part)
    dtype = myz.TYPES.get(fields[2].value if 2 in fields else 0)
    name = walk.text(fields[8]) if 8 in fields else ""
    if dtype is None or not name:
        return None
    elements = math.prod(shape)
    size = -(-elements * _TENSOR_BITS[dtype] // 8)
    if 14 in fields and fields[14].value == _EXTERNAL:
        return _outside(path, name, dtype, tuple(shape), size, outside)
    # Numbers that lie packed as they are in memory: raw ones, floats, doubles.
    for number, kind in ((9, dtype), (4, "F32"), (10, "F64")):
        held = fields.get(number)
        if held is not None and kind == dtype and held.wire == _BYTES:
            low, high = held.start, held.end
            if high - low == size:
                return Stored(name, dtype, tuple(shape), size, _within(read, low, high))
    if listed and len(listed) == elements <= _LISTED_BYTES and dtype in _OF_LISTS:
        return _listed(name, dtype, tuple(shape), listed)
    low, high = part.start, part.end
    whole = _within(read, low, high)
    return Stored(name, dtype, tuple(shape), high - low, whole, is_opaque=True)


def _listed(name: str, dtype: str, shape: tuple[int, ...], numbers: Sequence[int]) -> Stored:
    """Give a short tensor whose numbers are written one by one, as zero points often are."""
    width = _TENSOR_BITS[dtype] // 8
    data = b"".join((one % (1 << 8 * width)).to_bytes(width, "little") for one in numbers)
    return Stored(name, dtype, shape, len(data), lambda start, end: data[start:end])


def _entry(walk: Any, field: Any) -> tuple[str, str]:
    said = {part.number: walk.text(part) for part in walk.inner(field) if part.number in {1, 2}}
    return said.get(1, ""), said.get(2, "")


def _outside(
    path: Path,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    size: int,
    said: Mapping[str, str],
) -> Stored:
    """Find a weight that lies in a file beside the graph, and nowhere else."""
    folder = path.parent.resolve()
    beside = (folder / said.get("location", "")).resolve()
    offset, length = said.get("offset", "0"), said.get("length", str(size))
    if not beside.is_relative_to(folder) or not beside.is_file():
        raise Invalid(
            "The weight {name!r} lies in a file that is not there.",
            code="missing_file",
            name=name[:200],
        )
    if not offset.isdecimal() or not length.isdecimal() or int(length) != size:
        raise malformed("The weight {name!r} has no sensible place.", name=name[:200])
    low = int(offset[:18])
    return Stored(name, dtype, shape, size, _within(_reader(beside), low, low + size))


# --- Quantized weights of graphs ------------------------------------------------------------------


def _dequantizer(walk: Any, part: Any) -> tuple[list[str], int] | None:
    """Read a node that turns whole numbers back; give its inputs, and the axis of its scales."""
    inputs: list[str] = []
    operator, axis = "", 1
    for field in walk.inner(part):
        if field.number == 1:
            inputs.append(walk.text(field))
        elif field.number == 4:
            operator = walk.text(field)
        elif field.number == 5:
            name, value = "", 0
            for inner in walk.inner(field):
                if inner.number == 1:
                    name = walk.text(inner)
                elif inner.number == 3:
                    value = inner.value
            if name == "axis":
                axis = value - (1 << 64) if value >= 1 << 63 else value
            elif name == "block_size" and value:
                return None
    return (inputs, axis) if operator == "DequantizeLinear" and len(inputs) >= 2 else None


def _rounded(found: Mapping[str, Stored]) -> list[tuple[list[str], int]]:
    """Find weights that a graph multiplies as whole numbers, by the names of the quantizer.

    No node puts these back: it is their products that are scaled.
    """
    nodes = []
    for name, whole in found.items():
        base = name.removesuffix(_QUANTIZED)
        scale = found.get(f"{base}_scale")
        if base != name and scale is not None and scale.dtype == "F32":
            axis = -1 if len(whole.shape) < _KERNEL else 0
            nodes.append(([name, scale.name, f"{base}_zero_point"], axis))
    return nodes


def _put_back(found: dict[str, Stored], names: Sequence[str], axis: int) -> None:
    """Let a quantized weight stand under the name of the one that it was made of."""
    whole, scale = found.get(names[0]), found.get(names[1])
    zero = found.get(names[2]) if len(names) > 2 else None
    base = names[0].removesuffix(_QUANTIZED)
    if whole is None or scale is None or base in found or not whole.is_numeric:
        return
    scales = _all(scale)
    zeros = np.zeros(1) if zero is None else _all(zero)
    if scales is None or zeros is None or not len(scales):
        return
    place = axis + len(whole.shape) if axis < 0 else axis
    channels, inner = 1, 1
    if len(scales) > 1:
        if not 0 <= place < len(whole.shape) or whole.shape[place] != len(scales):
            return
        channels, inner = whole.shape[place], math.prod(whole.shape[place + 1 :])
    if len(zeros) not in {1, len(scales)}:
        return
    wide = np.broadcast_to(zeros, scales.shape)
    scaled = Scaled(scales, wide, channels, max(1, inner))
    for name in names[:3]:
        found.pop(name, None)
    found[base] = replace(whole, name=base, scaled=scaled)


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


def _all(stored: Stored) -> Numbers | None:
    if not stored.is_numeric or stored.elements > _MAX_SCALES:
        return None
    return stored.numbers(stored.raw(0, stored.elements), 0)
