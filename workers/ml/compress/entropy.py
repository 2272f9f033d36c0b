"""Entropy coding and sparse places over NumPy arrays: lossless, bounded, the same bytes each time.

Every decoder is told how much is to come out and gives exactly that, or raises `Invalid`. What the
parts do: canonical Huffman codes in lanes that are decoded side by side (Huffman, 1952); places of
values that are not zero as a mask of bits or as gaps (Han et al., Deep Compression, 2015); planes
of like bytes before the coder (Hershcovitch et al., ZipNN, 2024).
"""

import heapq
import struct
from typing import Any, Final, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

from registry.errors import Invalid
from registry.formats import myz
from registry.formats.facts import malformed

MAX_CODE_BITS: Final = 15
LONGEST_GAP: Final = 255
_SMALL: Final = 1 << 18
_LANE_BITS: Final = 12
_MANY_LANES_BITS: Final = 10
_BLOCK: Final = 1 << 20
_WINDOW_BITS: Final = 27
_ROTATED: Final = 0x80
_WIDTHS: Final = frozenset({2, 4, 8})
_PLANE_CODERS: Final = ("raw", "huffman", "zstd")

Bytes = NDArray[np.uint8]


class Coded(NamedTuple):
    """A coder's name and what it made of `size` bytes."""

    coder: str
    size: int
    data: bytes


# --- Huffman -------------------------------------------------------------------------------------


def code_lengths(counts: NDArray[np.int64]) -> Bytes:
    """Give each symbol the length of its Huffman code, 0 where it does not occur.

    No code is longer than 15 bits: rare symbols are counted as less rare until that holds.
    """
    counts = counts.astype(np.int64)
    while True:
        lengths = _huffman_lengths(counts)
        if lengths.max(initial=0) <= MAX_CODE_BITS:
            return lengths
        counts = np.where(counts > 0, counts // 4 + 1, 0)


def _huffman_lengths(counts: NDArray[np.int64]) -> Bytes:
    lengths = np.zeros(len(counts), np.uint8)
    heap: list[tuple[int, int, tuple[int, ...]]] = [
        (int(count), symbol, (symbol,)) for symbol, count in enumerate(counts) if count
    ]
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
        return lengths
    heapq.heapify(heap)
    number = len(counts)
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        joined = first[2] + second[2]
        lengths[list(joined)] += 1
        heapq.heappush(heap, (first[0] + second[0], number, joined))
        number += 1
    return lengths


def canonical_codes(lengths: Bytes) -> NDArray[np.uint32]:
    """Give each symbol its code, in order of length, then symbol: the lengths say them all."""
    codes = np.zeros(len(lengths), np.uint32)
    code = 0
    for bits in range(1, int(lengths.max(initial=0)) + 1):
        for symbol in np.flatnonzero(lengths == bits):
            codes[symbol] = code
            code += 1
        code <<= 1
    return codes


def huffman_encode(symbols: Bytes) -> bytes:
    """Code bytes by how often each occurs.

    The result begins with the code's lengths (4 bits a symbol). The symbols follow in lanes of
    1,024 or 4,096, each of which begins at a byte and has its length before all of them.
    """
    if not len(symbols):
        return b""
    counts = np.bincount(symbols, minlength=256)
    last = int(np.flatnonzero(counts)[-1])
    lengths = code_lengths(counts[: last + 1])
    lane_bits = _lane_bits(len(symbols))
    codes = canonical_codes(lengths)
    lane = 1 << lane_bits
    sizes: list[NDArray[np.int64]] = []
    parts: list[bytes] = []
    for start in range(0, len(symbols), _BLOCK):
        found, coded = _encode_lanes(symbols[start : start + _BLOCK], lane, lengths, codes)
        sizes.append(found)
        parts.append(coded)
    # The last lane is what is left.
    table = np.concatenate(sizes)[:-1].astype("<u2").tobytes()
    return bytes([last, lane_bits]) + _pack_nibbles(lengths) + table + b"".join(parts)


def huffman_size(counts: NDArray[np.int64]) -> int:
    """Tell about how many bytes `huffman_encode` takes for symbols that occur so often."""
    total = int(counts.sum())
    if not total:
        return 0
    last = int(np.flatnonzero(counts)[-1])
    lengths = code_lengths(counts[: last + 1])
    lanes = -(-total >> _lane_bits(total))
    return int((counts[: last + 1] * lengths).sum()) // 8 + 3 + last // 2 + 5 * lanes // 2


def huffman_decode(data: bytes, count: int) -> Bytes:
    """Give back `count` symbols.

    Raises:
        Invalid: the data is not what `huffman_encode` makes of so many symbols.

    """
    if not count:
        _require(not data)
        return np.zeros(0, np.uint8)
    _require(len(data) > 2)
    symbols, lane_bits = data[0] + 1, data[1]
    _require(6 <= lane_bits <= 14)
    lane = 1 << lane_bits
    lanes = -(-count // lane)
    body = 2 + (symbols + 1) // 2
    start = body + 2 * (lanes - 1)
    _require(start < len(data))
    lengths = _unpack_nibbles(data[2:body], symbols)
    sizes = np.frombuffer(data, "<u2", lanes - 1, body).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    _require(int(starts[-1]) < len(data) - start)
    table, bits = _decoding_table(lengths)
    return _decode_lanes(data[start:], starts, count, lane, table, bits)


def _lane_bits(count: int) -> int:
    return _MANY_LANES_BITS if count >= _SMALL else _LANE_BITS


def _encode_lanes(
    symbols: Bytes, lane: int, lengths: Bytes, codes: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], bytes]:
    widths = lengths[symbols].astype(np.int64)
    ends = np.cumsum(widths)
    firsts = np.arange(0, len(symbols), lane)
    before = ends[firsts] - widths[firsts]
    bits = np.diff(np.append(before, ends[-1]))
    sizes = (bits + 7) // 8
    shift = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * 8 - before
    positions = ends - widths + np.repeat(shift, np.diff(np.append(firsts, len(symbols))))
    # A code reaches into three bytes at most; no two codes share a bit, so they can be added up.
    words = codes[symbols].astype(np.int64) << (24 - (positions & 7) - widths)
    places, total = positions >> 3, int(sizes.sum())
    out = np.zeros(total + 3, np.float64)
    for byte in range(3):
        part = (words >> (16 - 8 * byte)) & 0xFF
        out += np.bincount(places + byte, weights=part, minlength=total + 3)
    return sizes, out[:total].astype(np.uint8).tobytes()


def _decoding_table(lengths: Bytes) -> tuple[NDArray[np.uint16], int]:
    """Map what the next bits may be to a symbol and the length of its code."""
    bits = int(lengths.max(initial=0))
    used = np.flatnonzero(lengths)
    full = int((1 << (bits - lengths[used].astype(np.int64))).sum()) if bits else 0
    _require(bits > 0)
    _require(full == 1 << bits or (len(used) == 1 and bits == 1))
    order = used[np.argsort(lengths[used], kind="stable")]
    entries = order.astype(np.uint16) | (lengths[order].astype(np.uint16) << 8)
    table = np.repeat(entries, 1 << (bits - lengths[order].astype(np.int64)))
    # A lone symbol has one bit, of which only 0 is used.
    return np.pad(table, (0, (1 << bits) - len(table))), bits


def _decode_lanes(
    data: bytes,
    starts: NDArray[np.int64],
    count: int,
    lane: int,
    table: NDArray[np.uint16],
    bits: int,
) -> Bytes:
    """Take one symbol of each lane at a time."""
    padded = np.frombuffer(data + bytes(lane * MAX_CODE_BITS // 8 + 4), np.uint8).astype(np.uint32)
    windows = (padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]
    lanes = len(starts)
    in_last = count - (lanes - 1) * lane
    out = np.zeros((min(lane, count), lanes), np.uint8)
    positions = starts * 8
    mask, above = (1 << bits) - 1, 24 - bits
    ends = np.append(starts[1:], len(data)) * 8
    for step in range(out.shape[0]):
        if step == in_last:
            _require(int(ends[-1]) - 8 < int(positions[-1]) <= int(ends[-1]))
            positions, ends, out_row = positions[:-1], ends[:-1], out[step, :-1]
        else:
            out_row = out[step, : len(positions)]
        found = windows[positions >> 3]
        entries = table[(found >> (above - (positions & 7)).astype(np.uint32)) & mask]
        out_row[:] = entries & 0xFF
        positions = positions + (entries >> 8)
    _require(bool(((ends - 8 < positions) & (positions <= ends)).all()))
    return np.ascontiguousarray(out.T).reshape(-1)[:count]


def _pack_nibbles(lengths: Bytes) -> bytes:
    even = np.pad(lengths, (0, len(lengths) % 2))
    return ((even[::2] << 4) | even[1::2]).astype(np.uint8).tobytes()


def _unpack_nibbles(data: bytes, count: int) -> Bytes:
    pairs = np.frombuffer(data, np.uint8)
    return np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[:count]


# --- places of what is not zero ------------------------------------------------------------------


def mask_of(places: NDArray[np.int64], elements: int) -> Bytes:
    """Write the places as one bit for each of `elements`, the first in the highest bit."""
    mask = np.zeros(elements, np.bool_)
    mask[places] = True
    return np.packbits(mask)


def places_of_mask(mask: Bytes, elements: int, count: int) -> NDArray[np.int64]:
    """Give back the places that a mask marks.

    Raises:
        Invalid: it marks another number of them, or one beyond the end.

    """
    _require(len(mask) == -(-elements // 8))
    bits = np.unpackbits(mask)
    _require(not bits[elements:].any())
    places = np.flatnonzero(bits[:elements])
    _require(len(places) == count)
    return places


def gaps_of(places: NDArray[np.int64]) -> Bytes:
    """Write the places as how many zeros lie before each; 255 stands for so many and goes on."""
    zeros = np.diff(places, prepend=-1) - 1
    longer = zeros // LONGEST_GAP
    gaps = np.full(len(places) + int(longer.sum()), LONGEST_GAP, np.uint8)
    gaps[np.cumsum(longer + 1) - 1] = zeros % LONGEST_GAP
    return gaps


def places_of_gaps(gaps: Bytes, elements: int, count: int) -> NDArray[np.int64]:
    """Give back the places that gaps lead to.

    Raises:
        Invalid: they lead to another number of them, or beyond the end.

    """
    stops = gaps != LONGEST_GAP
    _require(int(stops.sum()) == count)
    _require(not len(gaps) or bool(stops[-1]))
    places: NDArray[np.int64] = np.cumsum(gaps.astype(np.int64) + stops)[stops] - 1
    _require(not count or int(places[-1]) < elements)
    return places


# --- streams of bytes ----------------------------------------------------------------------------


def encode(data: Bytes, *, width: int = 1, rotate: bool = False) -> list[Coded]:
    """Code bytes in every way that may be the smallest, best first.

    `width` is how many bytes a number has; for numbers of several bytes like bytes are put
    together. `rotate` moves the sign of a float to its other end, so that its exponent is a byte.
    The last way is always the raw bytes.
    """
    found = [Coded("raw", len(data), data.tobytes())]
    if not len(data):
        return found
    if width == 1:
        found += _coded_plane(data)
    else:
        found.append(Coded("zstd", len(data), _zstd(data.tobytes())))
        found.append(Coded("planes", len(data), _planes(data, width, rotate=rotate)))
    return sorted(found, key=lambda coded: len(coded.data))


def decode(coder: str, data: bytes, size: int) -> Bytes:
    """Give back `size` bytes.

    Raises:
        Invalid: the data is not what the coder makes of so many bytes.

    """
    if coder == "raw":
        _require(len(data) == size)
        return np.frombuffer(data, np.uint8)
    if coder == "huffman":
        return huffman_decode(data, size)
    if coder == "zstd":
        return _unzstd(data, size)
    _require(coder == "planes")
    return _from_planes(data, size)


def _coded_plane(data: Bytes) -> list[Coded]:
    """Code one plane of bytes; the long way of Huffman only where it may win.

    That is also where Zstandard comes to less than a reader allows.
    """
    found = [Coded("zstd", len(data), _zstd(data.tobytes()))]
    counts = np.bincount(data, minlength=256)
    may_win = huffman_size(counts) < min(len(data), len(found[0].data)) * 1.02 + 16
    if may_win or len(data) > myz.FACTOR * len(found[0].data):
        found.append(Coded("huffman", len(data), huffman_encode(data)))
    return found


def _planes(data: Bytes, width: int, *, rotate: bool) -> bytes:
    numbers = data.view(f"<u{width}")
    if rotate:
        numbers = (numbers << 1) | (numbers >> (8 * width - 1))
    rows = numbers.view(np.uint8).reshape(-1, width)
    parts = [bytes([width | (_ROTATED if rotate else 0)])]
    for number in range(width):
        plane = np.ascontiguousarray(rows[:, number])
        best = encode(plane)[0]
        parts.append(struct.pack("<BQ", _PLANE_CODERS.index(best.coder), len(best.data)))
        parts.append(best.data)
    return b"".join(parts)


def _from_planes(data: bytes, size: int) -> Bytes:
    _require(bool(data))
    width = data[0] & ~_ROTATED
    _require(width in _WIDTHS and size % width == 0)
    rows = np.empty((size // width, width), np.uint8)
    position = 1
    for number in range(width):
        _require(position + 9 <= len(data))
        coder, length = struct.unpack_from("<BQ", data, position)
        position += 9
        _require(coder < len(_PLANE_CODERS) and length <= len(data) - position)
        plane = data[position : position + length]
        rows[:, number] = decode(_PLANE_CODERS[coder], plane, size // width)
        position += length
    _require(position == len(data))
    numbers = rows.reshape(-1).view(f"<u{width}")
    if data[0] & _ROTATED:
        numbers = (numbers >> 1) | (numbers << (8 * width - 1))
    return numbers.view(np.uint8)


def _zstd(data: bytes) -> bytes:
    level = 19 if len(data) <= _SMALL else 6
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(data)


def _unzstd(data: bytes, size: int) -> Bytes:
    """Inflate one frame that says it holds exactly `size` bytes."""
    try:
        _require(zstandard.frame_content_size(data) == size)
        unpacking = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_BITS)
        plain: Any = unpacking.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError:
        raise _broken() from None
    _require(len(plain) == size)
    return np.frombuffer(plain, np.uint8)


def _require(holds: bool) -> None:  # noqa: FBT001 - reads as an assertion
    if not holds:
        raise _broken()


def _broken() -> Invalid:
    return malformed("The coded data is damaged.")
