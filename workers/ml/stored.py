"""A tensor as it lies in a file, and the numbers that it stands for, read piece by piece."""

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from registry.formats import safetensors
from registry.formats.facts import malformed

Raw = NDArray[np.uint8]
Numbers = NDArray[np.float64]
ReadRange = Callable[[int, int], bytes]

MOST_OPEN: Final = 256
TENSOR_BITS: Final = {**safetensors.DTYPE_BITS, "C128": 128, "U4": 4, "I4": 4, "U2": 2, "I2": 2}
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
    # It is made of what the file has under this dtype; `read` gives it as float32.
    is_computed: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_numeric(self) -> bool:
        known = self.dtype in _PLAIN or self.dtype == "BF16" or self.dtype in _tables()
        return self.is_computed or (known and not self.is_opaque)

    @property
    def width(self) -> int:
        return TENSOR_BITS[self._dtype_read] // 8

    @property
    def _dtype_read(self) -> str:
        return "F32" if self.is_computed else self.dtype

    def raw(self, start: int, end: int) -> Raw:
        """Give the bytes of the elements from `start` to before `end`."""
        data = self.read(start * self.width, end * self.width)
        if len(data) != (end - start) * self.width:
            raise malformed("The tensor {name!r} is cut short.", name=self.name[:200])
        return np.frombuffer(data, np.uint8)

    def numbers(self, raw: Raw, at: int) -> Numbers:
        """Turn the bytes of the elements from `at` on into numbers."""
        numbers = _decode(raw, self._dtype_read)
        return numbers if self.scaled is None else self.scaled.apply(numbers, at)

    def between(self, start: int, end: int) -> Numbers:
        """Give the numbers from `start` to before `end`."""
        return self.numbers(self.raw(start, end), start)


def computed(
    name: str, dtype: str, shape: tuple[int, ...], compute: Callable[[int, int], Numbers]
) -> Stored:
    """Make a tensor of what `compute` gives of its elements from one to before another."""
    elements = math.prod(shape)

    def read(start: int, end: int) -> bytes:
        return compute(start // 4, min(elements, end // 4)).astype("<f4").tobytes()

    return Stored(name, dtype, shape, 4 * elements, read, is_computed=dtype != "F32")


class OpenFiles:
    """Files that are read in ranges, of which only the last used ones stay open.

    A version may have more files than a process may open. No page of one stays mapped, so that
    memory stays flat.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._handles: OrderedDict[Path, int] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def reader(self, path: Path) -> ReadRange:
        def read(start: int, end: int) -> bytes:
            return os.pread(self._handle(path), max(0, end - start), start)

        return read

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def _handle(self, path: Path) -> int:
        handle = self._handles.get(path)
        if handle is not None:
            self._handles.move_to_end(path)
            return handle
        while len(self._handles) >= self._most:
            os.close(self._handles.popitem(last=False)[1])
        handle = self._handles[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return handle


def within(read: ReadRange, low: int, high: int) -> ReadRange:
    return lambda start, end: read(low + start, min(high, low + end))


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
