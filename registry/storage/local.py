"""Objects as files of a local folder; some blobs lie there in pieces."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from registry.encryption import KeyRing
from registry.errors import Unavailable
from registry.storage.files import LocalObject, unreadable
from registry.storage.names import is_segmented, segmented_name
from registry.storage.objects import BLOCK_BYTES, Absent, StoredObject
from registry.storage.segments import Segments
from registry.storage.spool import out_of_space, sync_folder
from registry.storage.uploads import Storage

_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP})
# What the disk says of one file, and not of all that this process does.
_NOT_GIVEN = frozenset({errno.EIO, errno.EISDIR, errno.ELOOP})


class LocalStorage(Storage):
    """Blobs as read-only files under `root`, written to its spool and moved by one rename."""

    has_pieces = True

    def __init__(self, root: Path, *, keys: KeyRing | None = None) -> None:
        super().__init__(root, keys=keys)
        self._root = root
        for folder in ("blobs", "sealed", "keys"):
            (root / folder).mkdir(exist_ok=True)
        self._segments = Segments(root)

    @property
    def segments(self) -> Segments:
        return self._segments

    def _check_store(self) -> None:
        folder = self._root / "blobs"
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise Unavailable("The storage folder {folder} cannot be written.", folder=folder)

    def _length(self, name: str) -> int:
        if is_segmented(name):
            with closing(self._open(name)) as found:
                return found.size_bytes
        try:
            return (self._root / name).stat().st_size
        except FileNotFoundError:
            raise Absent(name) from None

    def _written_at(self, name: str) -> float:
        if not is_segmented(name):
            return super()._written_at(name)
        try:
            return self._segments.written_at(name.rpartition("/")[2])
        except FileNotFoundError:
            raise Absent(name) from None

    def _open(self, name: str) -> StoredObject:
        try:
            if is_segmented(name):
                return self._segments.open(name.rpartition("/")[2])
            return LocalObject(self._root / name)
        except FileNotFoundError:
            raise Absent(name) from None
        except OSError as error:
            if error.errno not in _NOT_GIVEN:
                raise
            raise unreadable(name.rpartition("/")[2].partition(".")[0], error) from error

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
        if is_segmented(name):
            self._join_to(name, target)
            return
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

    def _join_to(self, name: str, target: Path) -> None:
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with (
                closing(self._open(name)) as found,
                closing(found.blocks(0, found.size_bytes, BLOCK_BYTES)) as blocks,
                out_of_space(),
                temporary.open("xb", buffering=0) as file,
            ):
                for block in blocks:
                    file.write(block)
            temporary.chmod(0o444)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove(self, name: str) -> None:
        if is_segmented(name):
            self._segments.remove(name.rpartition("/")[2])
            return
        (self._root / name).unlink(missing_ok=True)

    def _retire(self, name: str) -> None:
        if is_segmented(name):
            self._segments.retire(name.rpartition("/")[2])
            return
        super()._retire(name)

    def _touch(self, name: str) -> None:
        if is_segmented(name):
            self._segments.touch(name.rpartition("/")[2])
            return
        with suppress(FileNotFoundError):
            os.utime(self._root / name)

    def _list(self, prefix: str) -> Iterator[tuple[str, float]]:
        if is_segmented(prefix):
            yield from ((segmented_name(one), at) for one, at in self._segments.list())
            return
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
