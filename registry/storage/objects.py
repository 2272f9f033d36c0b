"""What a kind of store knows how to do: objects by name, and ranges of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

# What one read gives: enough to be worth a change of thread, little enough for many slow readers.
BLOCK_BYTES = 2 * 1024 * 1024
# What one read without a change of thread gives: it stays in the processor's cache until sent.
READY_BYTES = 256 * 1024


class Absent(Exception):  # noqa: N818 - what it means, the caller decides
    """There is no object of that name, or it was replaced since it was opened."""


class Blocks(Iterator[bytes], ABC):
    """Bytes read in their order; let go of at their end, or by whoever stops earlier."""

    def ready(self) -> bytes:
        """Give the next bytes if memory holds them; nothing where they have to be waited for."""
        return b""

    @abstractmethod
    def close(self) -> None:
        """Let go of it; doing so twice changes nothing."""


class StoredBlocks(Blocks):
    """A range of one object, as it lies there."""

    @abstractmethod
    def fill(self, target: memoryview) -> int:
        """Read into `target` until it is full or the range ends; give how much."""

    def at_hand(self, _size: int) -> bool:
        """Tell whether so many of the next bytes come without waiting for a disk or a network."""
        return False


class HeldBlocks(StoredBlocks):
    """Bytes that came along when their object was opened."""

    def __init__(self, held: bytes) -> None:
        self._held = held

    def __next__(self) -> bytes:
        held, self._held = self._held, b""
        if not held:
            raise StopIteration
        return held

    def fill(self, target: memoryview) -> int:
        count = min(len(target), len(self._held))
        target[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def close(self) -> None:
        """Nothing is held open."""


class StoredObject(ABC):
    """One object of the store, opened: what it gives are the bytes it had then, or none."""

    size_bytes: int
    modified_at: float

    @abstractmethod
    def read(self, start: int, end: int) -> bytes:
        """Give a small range at once."""

    @abstractmethod
    def blocks(self, start: int, end: int, step: int) -> StoredBlocks:
        """Begin to read a range in blocks of `step` bytes; the object may be closed then."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it; doing so twice changes nothing."""


class Objects(ABC):
    """Objects by name."""

    # Whether blobs may lie here in pieces.
    has_pieces = False

    @abstractmethod
    def _check_store(self) -> None:
        """Raise Unavailable when objects cannot be reached right now."""

    @abstractmethod
    def _length(self, name: str) -> int:
        """Give the length of an object; raise Absent."""

    def _written_at(self, name: str) -> float:
        """Give when an object was put there, even if it cannot be read; raise Absent."""
        with closing(self._open(name)) as found:
            return found.modified_at

    @abstractmethod
    def _open(self, name: str) -> StoredObject:
        """Open an object; raise Absent."""

    @abstractmethod
    def _place(self, path: Path, name: str) -> None:
        """Move a complete, flushed file of the spool there; what was there is replaced at once."""

    @abstractmethod
    def _copy_out(self, name: str, target: Path) -> None:
        """Put an object at `target`, read-only; raise Absent."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Remove an object; removing one that is not there is no error."""

    def _retire(self, name: str) -> None:
        """Remove an object whose bytes are stored elsewhere too; who reads it may go on."""
        self._remove(name)

    @abstractmethod
    def _touch(self, name: str) -> None:
        """Let an object count as put there just now, where that costs nothing."""

    @abstractmethod
    def _list(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Give the names that begin with `prefix`, and when each was written."""
