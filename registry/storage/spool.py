"""Files on their way into the store: written, hashed and flushed before they count."""

import errno
import fcntl
import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import Invalid, StorageFull
from registry.storage.objects import BLOCK_BYTES

GIT_SHA1_BYTES = 10 * 1024 * 1024
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
_COPY_BYTES = 256 * 1024 * 1024
_FLUSH_BYTES = 32 * 1024 * 1024


class Stored(NamedTuple):
    """What a blob turned out to be; `git_sha1` only for blobs small enough to be no LFS object."""

    sha256: str
    size_bytes: int
    git_sha1: str | None


class Sink:
    """One file being written: hashed in the same pass, durable once `commit` has returned.

    Not safe for two threads at once; the calls may come from different threads one by one.
    """

    def __init__(self, path: Path, descriptor: int, *, start: int, digest: Any) -> None:
        self.path = path
        self.start = start
        self.offset = start
        self.digest = digest
        self._descriptor = descriptor
        self._flushed = start
        self._flusher: threading.Thread | None = None

    def write(self, block: bytes | memoryview) -> None:
        with out_of_space():
            view = memoryview(block)
            while view:
                written = os.write(self._descriptor, view)
                if self.digest is not None:
                    self.digest.update(view[:written])
                self.offset += written
                view = view[written:]
        if self.offset - self._flushed >= _FLUSH_BYTES and self._idle():
            self._flushed = self.offset
            # The disk works while the next blocks arrive, so that the last fsync has little left.
            self._flusher = threading.Thread(target=self._flush, name="storage-flush", daemon=True)
            self._flusher.start()

    def read(self, start: int, end: int) -> bytes:
        """Give a small range of what was written so far, for headers."""
        return os.pread(self._descriptor, end - start, start)

    def append_file(self, path: Path) -> None:
        """Append a file without bringing it through this process; the sink then has no digest."""
        self.digest = None
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        # The kernel copies (or, where the file system can, only refers to) no bytes in this mode.
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_APPEND)
        with out_of_space(), path.open("rb", buffering=0) as source:
            while copied := _copy_on(source.fileno(), self._descriptor, self.offset):
                self.offset += copied

    def commit(self) -> int:
        """Make everything written so far survive a power cut and give the new length."""
        self._settle()
        with out_of_space():
            os.fsync(self._descriptor)
        return self.offset

    def rewind(self) -> None:
        """Forget what this sink wrote."""
        self._settle()
        os.ftruncate(self._descriptor, self.start)
        self.offset = self.start
        self.digest = None

    def close(self) -> None:
        self._settle()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _idle(self) -> bool:
        return self._flusher is None or not self._flusher.is_alive()

    def _settle(self) -> None:
        if self._flusher is not None:
            self._flusher.join()
            self._flusher = None

    def _flush(self) -> None:
        # An error shows again at the fsync of `commit`, which is the one that promises something.
        with suppress(OSError):
            os.fdatasync(self._descriptor)


class Spool:
    """A local folder in which bytes arrive."""

    _incoming: Path

    def _new_sink(self, digest: Any) -> Sink:
        path = self._incoming / uuid.uuid4().hex
        with out_of_space():
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return Sink(path, descriptor, start=0, digest=digest)

    def drop_sink(self, sink: Sink) -> None:
        """Close the sink and remove what was not kept."""
        sink.close()
        sink.path.unlink(missing_ok=True)


@contextmanager
def out_of_space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull(
                "The server has no space left for this file; nothing of it was kept."
            ) from error
        raise


def _copy_on(source: int, target: int, at: int) -> int:
    """Copy from where `source` is to `at`; give how much, which is nothing at its end."""
    try:
        return os.copy_file_range(source, target, _COPY_BYTES, None, at)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    return os.pwrite(target, os.read(source, BLOCK_BYTES), at)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def git_sha1(path: Path, size: int) -> str | None:
    """Name the bytes as git does; the page cache still holds such a small file."""
    if size > GIT_SHA1_BYTES:
        return None
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def require_match(digest: str, size: int, *, sha256: str | None, size_bytes: int | None) -> None:
    if size_bytes is not None and size != size_bytes:
        raise Invalid(
            "{announced} bytes were announced and {found} arrived; send the file again.",
            code="digest_mismatch",
            announced=size_bytes,
            found=size,
        )
    if sha256 is not None and digest != sha256.lower():
        raise Invalid(
            "The bytes that arrived have sha256 {digest}, not {expected}; send the file again.",
            code="digest_mismatch",
            digest=digest,
            expected=sha256.lower(),
        )
