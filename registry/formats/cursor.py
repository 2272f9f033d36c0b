"""Walks through a file that may be huge and may lie, reading a bounded part of it."""

import struct
from typing import Any

from registry.formats.facts import ReadRange, malformed

WINDOW_BYTES = 64 * 1024


class Cursor:
    """A position in a file; every read is checked against the end and against a budget."""

    def __init__(self, read: ReadRange, size: int, *, what: str, budget: int) -> None:
        self._read = read
        self._window = b""
        self._window_start = 0
        self._budget = budget
        self.what = what
        self.size = size
        self.position = 0

    @property
    def exhausted(self) -> bool:
        """Whether the budget, and not the file, came to its end."""
        return self._budget < 0

    def take(self, count: int) -> bytes:
        self._require(count)
        offset = self.position - self._window_start
        if not (offset >= 0 and offset + count <= len(self._window)):
            self._fill(max(count, WINDOW_BYTES))
            offset = 0
        self.position += count
        return self._window[offset : offset + count]

    def skip(self, count: int) -> None:
        self._require(count)
        self.position += count

    def unpack(self, layout: str) -> Any:
        """Read one number of a `struct` layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def _require(self, count: int) -> None:
        if count < 0 or count > self.size - self.position:
            raise malformed(
                "The {what} file ends too early: {count} bytes expected at byte "
                "{position} of {size}.",
                what=self.what,
                count=count,
                position=self.position,
                size=self.size,
            )

    def _fill(self, count: int) -> None:
        count = min(count, self.size - self.position)
        self._budget -= count
        if self._budget < 0:
            raise malformed("The header of the {what} file is too large to check.", what=self.what)
        self._window = self._read(self.position, self.position + count)
        self._window_start = self.position
        if len(self._window) < count:
            raise malformed("The {what} file ends too early.", what=self.what)
