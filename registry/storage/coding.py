"""Weights of two bytes, coded without loss: each byte of the numbers by itself.

The upper bytes hold sign and exponent, which in weights are nearly always the same few; the lower
ones are as good as random. Apart, the former take a third of their room, which nothing that looks
at both would find. The coded form of a piece, all numbers little-endian:

    offset  bytes
    0       8     magic `MYPLANES`
    8       4     length of the plain bytes
    12      1     width of a number: 2
    13      3     zero
    16      8     for each block of 1 MiB, the length of each of its two frames
            then  the frames: zstd with a checksum, lower bytes first

Each block can be read alone. Nothing is given but what has the length and the checksum that it
should have.
"""

import os
import struct
from collections.abc import Sequence
from itertools import accumulate

from registry.storage.files import unreadable
from registry.storage.objects import StoredBlocks

WIDTH = 2
BLOCK_BYTES = 1 << 20
# Less than that is not worth the work of reading it.
_WORTH = 0.95
_MAGIC = b"MYPLANES"
_HEAD = struct.Struct("<8sIB3x")
_FRAMES = struct.Struct("<II")
_LEVEL = 1


class NotAsCoded(Exception):  # noqa: N818 - what it means, the caller decides
    """The coded bytes are not those that were written."""


def encode(plain: bytes) -> bytes | None:
    """Code a piece; None where it would gain too little."""
    import zstandard  # noqa: PLC0415 - only where weights are coded

    coder = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    lengths, frames = [], []
    for start in range(0, len(plain), BLOCK_BYTES):
        block = plain[start : start + BLOCK_BYTES]
        pair = [coder.compress(block[at::WIDTH]) for at in range(WIDTH)]
        lengths.append(_FRAMES.pack(*map(len, pair)))
        frames += pair
    coded = b"".join([_HEAD.pack(_MAGIC, len(plain), WIDTH), *lengths, *frames])
    return coded if len(coded) <= _WORTH * len(plain) else None


def decode(coded: bytes, size_bytes: int) -> bytes:
    """Give the plain bytes of a piece; raise NotAsCoded."""
    table = _read_table(coded, len(coded), size_bytes)
    return b"".join(
        _decode_block(coded[start : start + sum(pair)], pair, _length(number, size_bytes))
        for number, (start, pair) in enumerate(table)
    )


class CodedBlocks(StoredBlocks):
    """A range of the plain bytes of a coded piece of the blob `sha256`, block by block."""

    def __init__(self, sha256: str, descriptor: int, size_bytes: int, start: int, end: int) -> None:
        self._sha256 = sha256
        self._descriptor = descriptor
        self._size = size_bytes
        self._start = start
        self._end = end
        # At most so much of a table, whatever the file says.
        most = _HEAD.size + _FRAMES.size * _count(size_bytes)
        try:
            length = os.fstat(descriptor).st_size
            self._table = _read_table(self._read(most, 0), length, size_bytes)
        except BaseException:
            self.close()
            raise

    @property
    def left_bytes(self) -> int:
        """Say how much of the range was not given yet."""
        return max(0, self._end - self._start)

    def __next__(self) -> bytes:
        if not self.left_bytes or self._descriptor < 0:
            self.close()
            raise StopIteration
        number, skipped = divmod(self._start, BLOCK_BYTES)
        at, pair = self._table[number]
        raw = self._read(sum(pair), at)
        block = _decode_block(raw, pair, _length(number, self._size))
        block = block[skipped : skipped + self.left_bytes]
        self._start += len(block)
        return block

    def fill(self, target: memoryview) -> int:
        filled = 0
        while filled < len(target) and self.left_bytes:
            end, self._end = self._end, min(self._end, self._start + len(target) - filled)
            block = next(self)
            self._end = end
            target[filled : filled + len(block)] = block
            filled += len(block)
        return filled

    def _read(self, size: int, at: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, at)
        except OSError as error:
            raise unreadable(self._sha256, error) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


Frames = tuple[int, int]


def _read_table(head: bytes, length: int, size_bytes: int) -> Sequence[tuple[int, Frames]]:
    """Give where the frames of each block begin, and their lengths, out of a file of a length."""
    begin = _HEAD.size + _FRAMES.size * _count(size_bytes)
    if len(head) < begin or _HEAD.unpack_from(head) != (_MAGIC, size_bytes, WIDTH):
        raise NotAsCoded
    pairs = list(_FRAMES.iter_unpack(head[_HEAD.size : begin]))
    starts = list(accumulate((sum(pair) for pair in pairs), initial=begin))
    if starts[-1] != length:
        raise NotAsCoded
    return list(zip(starts, pairs, strict=False))


def _decode_block(raw: bytes, pair: Frames, length: int) -> bytes:
    import zstandard  # noqa: PLC0415 - only where weights are coded

    coder, plain, start = zstandard.ZstdDecompressor(), bytearray(length), 0
    if len(raw) != sum(pair):
        raise NotAsCoded
    for at, size in enumerate(pair):
        wanted = len(range(at, length, WIDTH))
        frame = raw[start : start + size]
        try:
            # Asked first: a frame that says it is longer is not opened at all.
            if zstandard.frame_content_size(frame) != wanted:
                raise NotAsCoded
            part = coder.decompress(frame, max_output_size=wanted)
        except zstandard.ZstdError:
            raise NotAsCoded from None
        if len(part) != wanted:
            raise NotAsCoded
        plain[at::WIDTH] = part
        start += size
    return bytes(plain)


def _count(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES)


def _length(number: int, size_bytes: int) -> int:
    return min(BLOCK_BYTES, size_bytes - number * BLOCK_BYTES)
