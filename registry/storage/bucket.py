"""One object of an S3 bucket, and a range of it."""

from typing import TYPE_CHECKING, Any

from registry.storage.objects import BLOCK_BYTES, HeldBlocks, StoredBlocks, StoredObject

if TYPE_CHECKING:
    from registry.storage.s3 import S3Storage


# What opening an object of a bucket brings along: the header of a container, or a whole sidecar.
HEAD_BYTES = 4096


class S3Object(StoredObject):
    """An object of a bucket; its tag makes sure that a later read meets the same bytes."""

    def __init__(self, storage: "S3Storage", name: str) -> None:
        self._storage = storage
        self._name = name
        self._head, self.size_bytes, self.modified_at, self.tag = storage.look(name)

    def read(self, start: int, end: int) -> bytes:
        if end <= len(self._head):
            return self._head[start:end]
        return b"".join(self.blocks(start, end, BLOCK_BYTES))

    def blocks(self, start: int, end: int, step: int) -> StoredBlocks:
        if end <= len(self._head):
            return HeldBlocks(self._head[start:end])
        return self._storage.fetch(self._name, start, end, step, tag=self.tag)

    def close(self) -> None:
        """Nothing is held between two reads."""


class BodyBlocks(StoredBlocks):
    """The body of an answer of the storage server, read as it is asked for."""

    def __init__(self, storage: "S3Storage", body: Any, step: int) -> None:
        self._storage = storage
        self._body = body
        self._step = step

    def __next__(self) -> bytes:
        with self._storage.refusals():
            block: bytes = self._body.read(self._step)
        if not block:
            self.close()
            raise StopIteration
        return block

    def fill(self, target: memoryview) -> int:
        filled = 0
        with self._storage.refusals():
            while filled < len(target) and (count := self._body.readinto(target[filled:])):
                filled += count
        return filled

    def close(self) -> None:
        self._body.close()
