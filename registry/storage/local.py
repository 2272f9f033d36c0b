"""Objects as files of a local folder."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from registry.encryption import KeyRing
from registry.errors import Unavailable
from registry.storage.objects import READY_BYTES, Absent, StoredBlocks, StoredObject
from registry.storage.spool import out_of_space, sync_folder
from registry.storage.uploads import Storage

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP})


class LocalObject(StoredObject):
    """A file that was opened; who removes or replaces it leaves it to us."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        found = os.fstat(self._file.fileno())
        self.size_bytes = found.st_size
        self.modified_at = found.st_mtime

    def read(self, start: int, end: int) -> bytes:
        return os.pread(self._file.fileno(), max(0, end - start), start)

    def blocks(self, start: int, end: int, step: int) -> StoredBlocks:
        return FileBlocks(os.dup(self._file.fileno()), start, end, step)

    def close(self) -> None:
        self._file.close()


class FileBlocks(StoredBlocks):
    """A range of an open file."""

    def __init__(self, descriptor: int, start: int, end: int, step: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self._end = end
        self._step = step

    def __next__(self) -> bytes:
        if self._start >= self._end or self._descriptor < 0:
            self.close()
            raise StopIteration
        block = os.pread(self._descriptor, min(self._step, self._end - self._start), self._start)
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
            count = os.preadv(self._descriptor, [wanted[filled:]], self._start)
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
        block = os.pread(self._descriptor, size, self._start)
        self._start += len(block)
        return block

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


class LocalStorage(Storage):
    """Blobs as read-only files under `root`, written to its spool and moved by one rename."""

    def __init__(self, root: Path, *, keys: KeyRing | None = None) -> None:
        super().__init__(root, keys=keys)
        self._root = root
        for folder in ("blobs", "sealed", "keys"):
            (root / folder).mkdir(exist_ok=True)

    def _check_store(self) -> None:
        folder = self._root / "blobs"
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise Unavailable("The storage folder {folder} cannot be written.", folder=folder)

    def _length(self, name: str) -> int:
        try:
            return (self._root / name).stat().st_size
        except FileNotFoundError:
            raise Absent(name) from None

    def _open(self, name: str) -> StoredObject:
        try:
            return LocalObject(self._root / name)
        except FileNotFoundError:
            raise Absent(name) from None

    def _place(self, path: Path, name: str) -> None:
        target = self._root / name
        path.chmod(0o444)
        # The garbage collector leaves alone what was put here a moment ago.
        os.utime(path)
        with out_of_space():
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                sync_folder(target.parent.parent)
            path.rename(target)
            sync_folder(target.parent)

    def _copy_out(self, name: str, target: Path) -> None:
        source = self._root / name
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise Absent(name) from None
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            with out_of_space():
                shutil.copyfile(source, target)
            target.chmod(0o444)

    def _remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def _touch(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.utime(self._root / name)

    def _list(self, prefix: str) -> Iterator[tuple[str, float]]:
        folder, _, beginning = prefix.rpartition("/")
        try:
            entries = sorted(os.scandir(self._root / folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return
        for entry in entries:
            if not entry.name.startswith(beginning):
                continue
            name = f"{folder}/{entry.name}"
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._list(f"{name}/")
                else:
                    yield name, entry.stat().st_mtime


def _is_in_memory(descriptor: int, position: int) -> bool:
    """Tell whether the page cache has this byte; the kernel reads ahead, so those before it too."""
    try:
        return os.preadv(descriptor, [bytearray(1)], position, os.RWF_NOWAIT) == 1
    except OSError:
        # It does not, or this file system cannot tell.
        return False
