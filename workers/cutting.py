"""Decides where a stored file is cut into pieces that another file may have as well.

Safetensors files are cut at the borders of their tensors, so that a layer that was not trained is
the same piece wherever it lies in whichever file; all else where its content says so. Pieces of the
latter kind are whole numbers of the chunks that clients of Xet make: some of the borders between
these, picked by the same hash, so that they too do not depend on what lies before.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from registry.errors import Invalid
from registry.formats import read_borders
from registry.storage import MAX_PIECE_BYTES
from workers.gear import cut_chunks

ReadRange = Callable[[int, int], bytes]

# Smaller neighbours make one piece: a file in thousands of pieces is slow to read.
_SMALL_BYTES = 64 * 1024
# Every sixteenth border of a chunk ends a piece: one of 1 MiB, on average.
_BORDER = 0x0000_F000_0000_0000
_LONG_BYTES = 4 << 20
_HALVES = frozenset({"BF16", "F16"})


class Cut(NamedTuple):
    """Where a piece ends, and the width of the numbers in it if they are halves."""

    end: int
    width: int = 0


def cut(size: int, read: ReadRange) -> Iterator[Cut]:
    """Give where a file is to be cut, in order; the last cut is its end."""
    try:
        borders = read_borders(size, read)
    except Invalid:
        return _cut_by_content(size, read)
    return _cut_at_tensors(borders)


def _cut_at_tensors(borders: list[tuple[int, str]]) -> Iterator[Cut]:
    """Give each tensor for itself, small neighbours of one kind together, the header alone.

    Names and offsets in the header differ where weights do not.
    """
    header, width = borders[0][0], 0
    yield from _stretch(0, header, 0)
    start = begin = header
    for end, dtype in borders[1:]:
        mine = 2 if dtype in _HALVES else 0
        is_small = end - begin < _SMALL_BYTES
        if start < begin and not (is_small and mine == width and end - start <= _LONG_BYTES):
            yield Cut(begin, width)
            start = begin
        if not is_small:
            yield from _stretch(begin, end, mine)
            start = end
        begin, width = end, mine
    if start < begin:
        yield Cut(begin, width)


def _stretch(start: int, end: int, width: int) -> Iterator[Cut]:
    while end - start > MAX_PIECE_BYTES:
        start += MAX_PIECE_BYTES
        yield Cut(start, width)
    yield Cut(end, width)


def _cut_by_content(size: int, read: ReadRange) -> Iterator[Cut]:
    start = end = 0
    for end, value in cut_chunks(0, size, read):
        if (value and not value & _BORDER) or end - start >= _LONG_BYTES:
            yield Cut(end)
            start = end
    if start < end:
        yield Cut(end)
