"""A file of a local disk, and a range of it."""

import os
from pathlib import Path

from registry.encryption.container import damaged
from registry.errors import Text, Unavailable
from registry.storage.objects import READY_BYTES, StoredBlocks, StoredObject


class LocalObject(StoredObject):
    """A file that was opened; who removes or replaces it leaves it to us."""

    def __init__(self, path: Path) -> None:
        self._sha256 = path.name.partition(".")[0]
        self._file = path.open("rb", buffering=0)
        found = os.fstat(self._file.fileno())
        self.size_bytes = found.st_size
        self.modified_at = found.st_mtime

    def read(self, start: int, end: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), max(0, end - start), start)
        except OSError as error:
            raise unreadable(self._sha256, error) from error

    def blocks(self, start: int, end: int, step: int) -> StoredBlocks:
        return FileBlocks(self._sha256, os.dup(self._file.fileno()), start, end, step)

    def close(self) -> None:
        self._file.close()


class FileBlocks(StoredBlocks):
    """A range of an open file, which is the blob `sha256` or a part of it."""

    def __init__(self, sha256: str, descriptor: int, start: int, end: int, step: int) -> None:
        self._sha256 = sha256
        self._descriptor = descriptor
        self._start = start
        self._end = end
        self._step = step

    @property
    def left_bytes(self) -> int:
        """Say how much of the range was not given yet."""
        return max(0, self._end - self._start)

    def __next__(self) -> bytes:
        if self._start >= self._end or self._descriptor < 0:
            self.close()
            raise StopIteration
        block = self._read(min(self._step, self._end - self._start))
        if not block:
            self.close()
            raise Unavailable("The stored bytes end too early.", code="stored_bytes_damaged")
        self._start += len(block)
        return block

    def fill(self, target: memoryview) -> int:
        if self._descriptor < 0:
            return 0
        wanted = target[: self._end - self._start]
        filled = 0
        while filled < len(wanted):
            try:
                count = os.preadv(self._descriptor, [wanted[filled:]], self._start)
            except OSError as error:
                raise unreadable(self._sha256, error) from error
            if not count:
                break
            filled += count
            self._start += count
        return filled

    def at_hand(self, size: int) -> bool:
        size = min(size, self._end - self._start)
        return size > 0 and _is_in_memory(self._descriptor, self._start + size - 1)

    def ready(self) -> bytes:
        size = min(READY_BYTES, self._end - self._start)
        if not self.at_hand(size):
            return b""
        block = self._read(size)
        self._start += len(block)
        return block

    def _read(self, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, self._start)
        except OSError as error:
            raise unreadable(self._sha256, error) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def unreadable(sha256: str, error: OSError) -> Unavailable:
    """Say of a blob what the disk says of it: bytes that it does not give are as good as others."""
    return damaged(sha256, Text("they cannot be read: {reason}", reason=error.strerror))


def only_damage(sha256: str, error: Unavailable | OSError) -> Unavailable:
    """Give what is wrong with this one blob; raise what will be wrong with the next one too."""
    if isinstance(error, OSError):
        return unreadable(sha256, error)
    if error.reason != "stored_bytes_damaged":
        raise error
    return error


def _is_in_memory(descriptor: int, position: int) -> bool:
    """Tell whether the page cache has this byte; the kernel reads ahead, so those before it too."""
    try:
        return os.preadv(descriptor, [bytearray(1)], position, os.RWF_NOWAIT) == 1
    except OSError:
        # It does not, or this file system cannot tell.
        return False
