"""Bytes by the SHA-256 that this server computed, on a local disk or in an S3 bucket.

Callers name a digest and never see a path, nor whether the bytes are encrypted where they lie. This
module must not know models, requests or people.

    blobs/ab/abcd…           plain bytes
    incoming/{upload}        what a client writes itself, in a bucket only: see `Incoming`
    sealed/ab/abcd…          the same, encrypted: see `registry.encryption.container`
    keys/ab/abcd….{file id}  the wrapped key of one such container
"""

import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Never, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from django.conf import settings

from registry.encryption import (
    SETTING,
    DataKey,
    Header,
    KeyRing,
    Sealed,
    Sidecar,
    new_header,
    parse_master_keys,
    plain_bytes_of,
    seal_file,
)
from registry.encryption.container import BATCH, HEADER_BYTES, SEALED_BLOCK_BYTES, damaged
from registry.encryption.keys import missing_key
from registry.errors import (
    Conflict,
    Invalid,
    NotFound,
    RegistryError,
    StorageFull,
    Text,
    Unavailable,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

logger = logging.getLogger(__name__)

# What one read gives: enough to be worth a change of thread, little enough for many slow readers.
BLOCK_BYTES = 2 * 1024 * 1024
# What one read without a change of thread gives: it stays in the processor's cache until sent.
READY_BYTES = 256 * 1024
GIT_SHA1_BYTES = 10 * 1024 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UPLOAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP})
_GONE = frozenset({"404", "NoSuchKey", "NotFound", "412", "PreconditionFailed"})
_NO_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
_COPY_BYTES = 256 * 1024 * 1024
_RUNNING_DIGESTS = 256
_FLUSH_BYTES = 32 * 1024 * 1024
_SIDECAR_BYTES = 64 * 1024
# What opening an object of a bucket brings along: the header of a container, or a whole sidecar.
_HEAD_BYTES = 4096


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
        with _out_of_space():
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

    def append_file(self, path: Path) -> None:
        """Append a file without bringing it through this process; the sink then has no digest."""
        self.digest = None
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        # The kernel copies (or, where the file system can, only refers to) no bytes in this mode.
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_APPEND)
        with _out_of_space(), path.open("rb", buffering=0) as source:
            while copied := _copy_on(source.fileno(), self._descriptor, self.offset):
                self.offset += copied

    def commit(self) -> int:
        """Make everything written so far survive a power cut and give the new length."""
        self._settle()
        with _out_of_space():
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


class UnsealedBlocks(Blocks):
    """The plain bytes of a container; the first are decrypted before anybody asks for them."""

    def __init__(self, stored: StoredBlocks, sealed: Sealed, start: int, end: int) -> None:
        self._stored = stored
        self._unsealing = sealed.unseal(stored.fill, start, end)
        self._first = b""
        try:
            self._first = self._take(BATCH)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> bytes:
        first, self._first = self._first, b""
        block = first or self._take(BATCH)
        if not block:
            self.close()
            raise StopIteration
        return block

    def ready(self) -> bytes:
        if self._first or not self._stored.at_hand(self._unsealing.next_sealed_bytes):
            first, self._first = self._first, b""
            return first
        return self._take(1)

    def close(self) -> None:
        self._stored.close()

    def _take(self, blocks: int) -> bytes:
        try:
            return bytes(self._unsealing.look(blocks))
        except RegistryError as error:
            logger.error("%s", error.detail)  # noqa: TRY400 - its words say all there is
            raise


class Storage(ABC):
    """Blobs by digest, and uploads in progress.

    Whatever the blobs are kept in, bytes first arrive in the `spool`, a local folder, so that a
    partial blob is never visible and an upload goes on after `kill -9` of the process. With
    master keys, blobs are encrypted on the way from there to their place.
    """

    def __init__(self, spool: Path, *, keys: KeyRing | None = None) -> None:
        self.spool = spool
        self.keys = keys
        self._incoming = spool / "incoming"
        self._uploads = spool / "uploads"
        # Blobs are readable files, to be linked into the folders of jobs: the way in is closed.
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._incoming, self._uploads):
            folder.mkdir(exist_ok=True)
        self._digests: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._digests_lock = threading.Lock()

    @property
    def incoming(self) -> "Incoming | None":
        """Give what lets clients write to the store themselves, where it can."""
        return None

    # --- Objects by name: what a kind of store knows how to do ------------------------------------

    @abstractmethod
    def _check_store(self) -> None:
        """Raise Unavailable when objects cannot be reached right now."""

    @abstractmethod
    def _length(self, name: str) -> int:
        """Give the length of an object; raise Absent."""

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

    @abstractmethod
    def _touch(self, name: str) -> None:
        """Let an object count as put there just now, where that costs nothing."""

    @abstractmethod
    def _list(self, prefix: str) -> Iterator[tuple[str, float]]:
        """Give the names that begin with `prefix`, and when each was written."""

    # --- Blobs ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Unavailable when blobs cannot be reached, or not be decrypted, right now."""
        self._check_store()
        name, _ = next(self._list("keys/"), ("", 0.0))
        with suppress(Absent):
            if name and (key := self._sidecar(name).key_id) not in (self.keys or ()):
                raise missing_key(key)

    def size(self, sha256: str) -> int:
        """Give the length of a blob; raise NotFound for one that is not here."""
        for name in self._names(sha256):
            with suppress(Absent):
                length = self._length(name)
                return plain_bytes_of(length) if _is_sealed(name) else length
        raise _no_blob(sha256)

    def exists(self, sha256: str) -> bool:
        """Say whether a blob is here, with its key where it takes one."""
        if not _SHA256.fullmatch(sha256):
            return False
        for name in self._names(sha256):
            with suppress(Absent):
                if not _is_sealed(name):
                    self._length(name)
                    return True
                with closing(self._open(name)) as found:
                    header = _header_of(found, sha256)
                self._length(_key_name(header))
                return True
        return False

    def modified_at(self, sha256: str) -> float | None:
        """Give when the bytes were last put here, in seconds since 1970."""
        times = []
        for name in self._names(sha256)[:2]:
            with suppress(Absent), closing(self._open(name)) as found:
                times.append(found.modified_at)
        return max(times, default=None)

    def inventory(self) -> Iterator[tuple[str, float]]:
        """Give the digests of all that is here, and when they were put here; some come twice."""
        yield from self.plain_inventory()
        yield from self._inventory("sealed/")

    def plain_inventory(self) -> Iterator[tuple[str, float]]:
        """Give the same of what is stored plain."""
        return self._inventory("blobs/")

    def _inventory(self, folder: str) -> Iterator[tuple[str, float]]:
        for name, modified_at in self._list(folder):
            sha256 = name.rpartition("/")[2]
            if _SHA256.fullmatch(sha256):
                yield sha256, modified_at

    def delete(self, sha256: str) -> None:
        """Remove a blob; removing one that is not here is no error."""
        for name in self._names(sha256)[:2]:
            self._remove(name)
        for name, _ in list(self._list(f"keys/{sha256[:2]}/{sha256}.")):
            self._remove(name)

    def materialise(self, sha256: str, target: Path) -> None:
        """Put the bytes at `target`, read-only; an older file there is replaced."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in self._names(sha256):
            with suppress(Absent):
                if _is_sealed(name):
                    self._decrypt_to(sha256, name, target)
                else:
                    self._copy_out(name, target)
                return
        raise self._lost(sha256)

    def open(self, sha256: str, *, start: int = 0, end: int | None = None) -> Blocks:
        """Yield bytes `start` to `end` (exclusive) in blocks.

        Raises:
            NotFound: they are not here.
            Unavailable: they are encrypted and cannot be decrypted; a block that was tampered with
                says so when it is reached, and nothing of it is given.

        """
        for name in self._names(sha256):
            with suppress(Absent), closing(self._open(name)) as found:
                if _is_sealed(name):
                    return self._open_sealed(sha256, found, start, end)
                stop = found.size_bytes if end is None else min(end, found.size_bytes)
                if not 0 <= start < stop:
                    return HeldBlocks(b"")
                return found.blocks(start, stop, BLOCK_BYTES)
        raise self._lost(sha256)

    def read(self, sha256: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Give a small range at once, for headers."""
        return b"".join(self.open(sha256, start=start, end=end))

    def put(
        self, chunks: Iterable[bytes], *, sha256: str | None = None, size_bytes: int | None = None
    ) -> Stored:
        """Store the chunks under their digest, hashing them in the same pass."""
        sink = self.open_sink()
        try:
            for chunk in chunks:
                sink.write(chunk)
            return self.keep_sink(sink, sha256=sha256, size_bytes=size_bytes)
        finally:
            self.drop_sink(sink)

    def open_sink(self) -> Sink:
        """Begin a blob whose bytes come from elsewhere; end with `keep_sink`, then `drop_sink`."""
        return self._new_sink(hashlib.sha256())

    def _new_sink(self, digest: Any) -> Sink:
        path = self._incoming / uuid.uuid4().hex
        with _out_of_space():
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return Sink(path, descriptor, start=0, digest=digest)

    def keep_sink(
        self, sink: Sink, *, sha256: str | None = None, size_bytes: int | None = None
    ) -> Stored:
        sink.commit()
        digest: str = sink.digest.hexdigest()
        _require_match(digest, sink.offset, sha256=sha256, size_bytes=size_bytes)
        stored = Stored(digest, sink.offset, _git_sha1(sink.path, sink.offset))
        sink.close()
        self._keep(sink.path, digest)
        return stored

    def drop_sink(self, sink: Sink) -> None:
        """Close the sink and remove what was not kept."""
        sink.close()
        sink.path.unlink(missing_ok=True)

    # --- Encryption -------------------------------------------------------------------------------

    def encrypt(self, sha256: str) -> bool:
        """Encrypt a blob that is stored plain; give whether there was one.

        The plain bytes stay until `drop_plain`.
        """
        if self._has_sealed(sha256):
            return False
        copy = self._incoming / uuid.uuid4().hex
        try:
            self._copy_out(_plain_name(sha256), copy)
            self._seal(copy, sha256, verify=True)
        except Absent:
            return False
        finally:
            copy.unlink(missing_ok=True)
        return True

    def drop_plain(self, sha256: str) -> bool:
        """Remove the plain copy of a blob that is stored encrypted; give whether there was one."""
        name = _plain_name(sha256)
        try:
            self._length(name)
        except Absent:
            return False
        if not self._has_sealed(sha256):
            return False
        self._remove(name)
        return True

    def rotate_keys(self) -> Iterator[bool]:
        """Wrap every blob's key with the current master key; yield for each whether it changed.

        Safe beside readers and writers, and to repeat: a sidecar is replaced at once, and names a
        container that no other sidecar will ever name.
        """
        keys = self._require_keys()
        for name, _ in self._list("keys/"):
            sha256, _, file_id = name.rpartition("/")[2].partition(".")
            try:
                sidecar = self._sidecar(name)
            except Absent:
                continue
            changed = sidecar.key_id != keys.current.key_id
            if changed:
                context = bytes.fromhex(sha256) + bytes.fromhex(file_id)
                self._put_small(name, keys.rewrap(sidecar, context).to_bytes())
            yield changed

    def _keep(self, path: Path, sha256: str) -> None:
        """Move a complete, flushed file of the spool under its digest."""
        if self.keys is None:
            self._place(path, _plain_name(sha256))
            return
        if self._is_sealed_whole(sha256):
            self._touch(_sealed_name(sha256))
        else:
            self._seal(path, sha256)
        path.unlink()

    def _is_sealed_whole(self, sha256: str) -> bool:
        """Say whether every block of a container opens: then there is nothing to write again."""
        try:
            with (
                closing(self._open(_sealed_name(sha256))) as found,
                closing(self._open_sealed(sha256, found, 0, None)) as blocks,
            ):
                for _ in blocks:
                    pass
        except (Absent, Unavailable):
            return False
        return True

    def _seal(self, path: Path, sha256: str, *, verify: bool = False) -> None:
        """Encrypt a file of the spool to its place: first the key, then the container.

        Two that do so at once make two containers with two keys; whichever is last stays, and its
        key is there.
        """
        keys = self._require_keys()
        header = new_header(sha256=sha256, size_bytes=path.stat().st_size)
        key = DataKey.make(header)
        sink = self._new_sink(None)
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as source:
                look = digest.update if verify else None
                seal_file(source.fileno(), header, key.secret, sink.write, look)
            sink.commit()
            sink.close()
            if verify and digest.hexdigest() != sha256:
                raise damaged(sha256, Text("they have another digest by now"))
            self._put_small(_key_name(header), keys.wrap(key).to_bytes())
            self._place(sink.path, _sealed_name(sha256))
        finally:
            self.drop_sink(sink)

    def _decrypt_to(self, sha256: str, name: str, target: Path) -> None:
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with closing(self._open(name)) as found:
                blocks = self._open_sealed(sha256, found, 0, None)
                with closing(blocks), _out_of_space(), temporary.open("xb", buffering=0) as file:
                    for block in blocks:
                        file.write(block)
            temporary.chmod(0o444)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _open_sealed(self, sha256: str, found: StoredObject, start: int, end: int | None) -> Blocks:
        """Begin to decrypt; the first block comes at once, so that a refusal comes in time."""
        sealed = self._unlock(found, sha256)
        size = sealed.header.size_bytes
        end = size if end is None else min(end, size)
        if size == 0:
            sealed.check_empty(found.read(HEADER_BYTES, found.size_bytes))
        if not 0 <= start < end:
            return HeldBlocks(b"")
        stored = found.blocks(*sealed.span(start, end), SEALED_BLOCK_BYTES * BATCH)
        return UnsealedBlocks(stored, sealed, start, end)

    def _unlock(self, found: StoredObject, sha256: str) -> Sealed:
        header = _header_of(found, sha256)
        if self.keys is not None and (sealed := self.keys.known(header)):
            return sealed
        sidecar = self._sidecar(_key_name(header))
        if self.keys is None:
            raise missing_key(sidecar.key_id)
        return self.keys.open(header, sidecar)

    def _has_sealed(self, sha256: str) -> bool:
        try:
            with closing(self._open(_sealed_name(sha256))) as found:
                self._length(_key_name(_header_of(found, sha256)))
        except Absent:
            return False
        return True

    def _sidecar(self, name: str) -> Sidecar:
        with closing(self._open(name)) as found:
            raw = found.read(0, min(found.size_bytes, _SIDECAR_BYTES))
        return Sidecar.parse(raw, name.rpartition("/")[2].partition(".")[0])

    def _put_small(self, name: str, content: bytes) -> None:
        sink = self._new_sink(None)
        try:
            sink.write(content)
            sink.commit()
            sink.close()
            self._place(sink.path, name)
        finally:
            self.drop_sink(sink)

    def _require_keys(self) -> KeyRing:
        if self.keys is None:
            raise Unavailable(
                "{setting} names no master key, so nothing can be encrypted.",
                code="master_key_missing",
                setting=SETTING,
            )
        return self.keys

    def _names(self, sha256: str) -> tuple[str, str, str]:
        """Say where a blob may be, in the order to look; it may move while somebody looks."""
        plain, sealed = _plain_name(sha256), _sealed_name(sha256)
        return (plain, sealed, plain) if self.keys is None else (sealed, plain, sealed)

    def _lost(self, sha256: str) -> RegistryError:
        """Say why a blob that is in none of its places cannot be read."""
        with suppress(Absent), closing(self._open(_sealed_name(sha256))):
            return damaged(sha256, Text("the sidecar with its key is gone"))
        return _no_blob(sha256)

    # --- Uploads in progress ----------------------------------------------------------------------

    def begin_upload(self, upload_id: str) -> None:
        """Make room for an upload; doing it twice changes nothing."""
        with _out_of_space():
            self._part(upload_id).touch(mode=0o600)
            _sync_folder(self._uploads)

    def upload_offset(self, upload_id: str) -> int:
        """Give the number of bytes that arrived; raise NotFound for an upload not begun here."""
        finished = self._finished(upload_id)
        if finished is not None:
            return finished.size_bytes
        return self._trusted_bytes(upload_id)

    def open_upload(self, upload_id: str, offset: int, *, provisional: bool = False) -> Sink:
        """Go on with an upload at `offset`; end with `close_upload`.

        Bytes of a provisional sink count only once `close_upload(keep=True)` has returned; those
        of any other sink are kept as they arrive. Raise Conflict when another request is writing
        to the same upload or when the upload is not at `offset`.
        """
        part = self._part(upload_id)
        try:
            descriptor = os.open(part, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except FileNotFoundError:
            self._require_offset(upload_id, offset)
            raise _no_upload(upload_id) from None
        try:
            self._lock_upload(descriptor)
            self._require_offset(upload_id, offset)
            os.ftruncate(descriptor, offset)
            self._note(upload_id).unlink(missing_ok=True)
            if provisional:
                self._write_note(upload_id, {"trusted_bytes": offset})
        except BaseException:
            os.close(descriptor)
            raise
        return Sink(part, descriptor, start=offset, digest=self._take_digest(upload_id, offset))

    def close_upload(self, upload_id: str, sink: Sink, *, keep: bool) -> int:
        """Make the sink's bytes durable, or forget them; give the offset to go on from."""
        try:
            if keep:
                sink.commit()
                self._put_digest(upload_id, sink.offset, sink.digest)
            else:
                sink.rewind()
            self._note(upload_id).unlink(missing_ok=True)
        except StorageFull:
            sink.rewind()
            raise
        finally:
            sink.close()
        return sink.offset

    def append_upload(self, upload_id: str, offset: int, chunks: Iterable[bytes]) -> int:
        """Append at `offset` and give the new one; what arrived before a failure stays."""
        sink = self.open_upload(upload_id, offset)
        keep = True
        try:
            for chunk in chunks:
                sink.write(chunk)
        except StorageFull:
            keep = False
            raise
        finally:
            offset = self.close_upload(upload_id, sink, keep=keep)
        return offset

    def join_uploads(self, upload_id: str, parts: Iterable[str]) -> int:
        """Fill an upload with the bytes of others, in this order, and give its length.

        The whole counts once it is durable, and not before: until then it is begun anew each time.
        The parts stay until they are discarded.
        """
        sink = self.open_upload(upload_id, 0, provisional=True)
        keep = False
        try:
            for part in parts:
                try:
                    sink.append_file(self._part(part))
                except FileNotFoundError:
                    raise _no_upload(part) from None
            keep = True
        finally:
            length = self.close_upload(upload_id, sink, keep=keep)
        return length

    def read_upload(self, upload_id: str, start: int, end: int) -> bytes:
        """Give a small range of an upload, finished or not, to look into its header."""
        finished = self._finished(upload_id)
        try:
            with self._part(upload_id).open("rb") as part:
                part.seek(start)
                return part.read(max(0, end - start))
        except FileNotFoundError:
            if finished is None:
                raise _no_upload(upload_id) from None
        return self.read(finished.sha256, start=start, end=end)

    def finish_upload(self, upload_id: str, *, sha256: str | None = None) -> Stored:
        """Store the upload under its digest; safe to repeat until `discard_upload`."""
        try:
            with self._part(upload_id).open("rb") as part:
                self._lock_upload(part.fileno())
                return self._finish_locked(upload_id, sha256)
        except FileNotFoundError:
            finished = self._finished(upload_id)
        if finished is None or not self.exists(finished.sha256):
            raise _no_upload(upload_id)
        return finished

    def discard_upload(self, upload_id: str) -> None:
        """Forget an upload, finished or not; its blob, if it became one, stays."""
        with self._digests_lock:
            self._digests.pop(upload_id, None)
        self._part(upload_id).unlink(missing_ok=True)
        self._note(upload_id).unlink(missing_ok=True)

    def sweep_spool(self, *, older_than_seconds: float) -> int:
        """Remove what nobody has written to for so long; give how many files that were.

        Processes that died leave such files, and uploads whose owners are gone.
        """
        limit = time.time() - older_than_seconds
        removed = 0
        for path in (*self._incoming.iterdir(), *self._uploads.iterdir()):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < limit:
                    path.unlink()
                    removed += 1
        return removed

    def _part(self, upload_id: str) -> Path:
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise _no_upload(upload_id)
        return self._uploads / upload_id

    def _note(self, upload_id: str) -> Path:
        return self._part(upload_id).with_suffix(".json")

    def _read_note(self, upload_id: str) -> dict[str, Any]:
        try:
            note = json.loads(self._note(upload_id).read_bytes())
        except FileNotFoundError:
            return {}
        assert isinstance(note, dict)
        return note

    def _write_note(self, upload_id: str, note: dict[str, Any]) -> None:
        path = self._note(upload_id)
        temporary = path.with_suffix(".new")
        with _out_of_space(), temporary.open("w") as file:
            json.dump(note, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(path.parent)

    def _finished(self, upload_id: str) -> Stored | None:
        stored = self._read_note(upload_id).get("stored")
        return Stored(**stored) if stored else None

    def _trusted_bytes(self, upload_id: str) -> int:
        """Leave out what a process that died had written but not yet verified."""
        trusted = self._read_note(upload_id).get("trusted_bytes")
        try:
            size = self._part(upload_id).stat().st_size
        except FileNotFoundError:
            raise _no_upload(upload_id) from None
        return size if trusted is None else min(int(trusted), size)

    def _lock_upload(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                "Another request is writing to this upload; wait for it to end, then ask for the "
                "offset with HEAD.",
                code="upload_busy",
            ) from None

    def _require_offset(self, upload_id: str, offset: int) -> None:
        if self._finished(upload_id) is not None:
            raise Conflict("This upload is complete.", code="upload_complete")
        trusted = self._trusted_bytes(upload_id)
        if trusted != offset:
            raise Conflict(
                "The upload is at byte {trusted}, not {offset}; ask for its offset with HEAD and "
                "go on from there.",
                code="offset_mismatch",
                trusted=trusted,
                offset=offset,
            )

    def _finish_locked(self, upload_id: str, sha256: str | None) -> Stored:
        stored = self._finished(upload_id)
        if stored is None:
            stored = self._measure_upload(upload_id)
            _require_match(stored.sha256, stored.size_bytes, sha256=sha256, size_bytes=None)
            self._write_note(upload_id, {"stored": stored._asdict()})
        part = self._part(upload_id)
        if part.exists():
            self._keep(part, stored.sha256)
        return stored

    def _take_digest(self, upload_id: str, offset: int) -> Any:
        """Give the running digest of the first `offset` bytes when this process has it."""
        if offset == 0:
            return hashlib.sha256()
        with self._digests_lock:
            reached, digest = self._digests.pop(upload_id, (-1, None))
        return digest if reached == offset else None

    def _put_digest(self, upload_id: str, offset: int, digest: Any) -> None:
        if digest is None:
            return
        with self._digests_lock:
            self._digests[upload_id] = (offset, digest)
            while len(self._digests) > _RUNNING_DIGESTS:
                self._digests.popitem(last=False)

    def _measure_upload(self, upload_id: str) -> Stored:
        size = self._trusted_bytes(upload_id)
        part = self._part(upload_id)
        digest = self._take_digest(upload_id, size)
        if digest is None:
            with part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        return Stored(digest.hexdigest(), size, _git_sha1(part, size))


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
        with _out_of_space():
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                _sync_folder(target.parent.parent)
            path.rename(target)
            _sync_folder(target.parent)

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
            with _out_of_space():
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


class S3Storage(Storage):
    """Blobs as objects below `prefix/` of one bucket; the spool stays on a local disk."""

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str,
        endpoint: str | None,
        region: str | None,
        spool: Path,
        keys: KeyRing | None = None,
        public: str | None = None,
    ) -> None:
        super().__init__(spool, keys=keys)
        # Slow to import and not needed where blobs are on a local disk.
        import boto3  # noqa: PLC0415
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._client: S3Client
        self._signer: S3Client
        self._transfer = TransferConfig(
            multipart_threshold=16 * 1024 * 1024,
            multipart_chunksize=16 * 1024 * 1024,
            max_concurrency=4,
        )
        self._client, self._signer = (
            boto3.client(
                "s3",
                endpoint_url=address,
                region_name=region or os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
                config=Config(
                    # The older version would sign neither the headers nor the whole query.
                    signature_version="s3v4",
                    connect_timeout=5,
                    read_timeout=60,
                    retries={"max_attempts": 4, "mode": "standard"},
                    max_pool_connections=32,
                    # Servers other than Amazon's do not all know the newer trailing checksums.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if address else "auto"},
                ),
            )
            for address in (endpoint, public or endpoint)
        )
        self._for_clients = Incoming(self, self._client, self._signer, self._transfer)

    @property
    def incoming(self) -> "Incoming":
        return self._for_clients

    def look(self, name: str) -> tuple[bytes, int, float, str]:
        """Give the first bytes of an object, its length, its age and its tag."""
        with self.refusals(name):
            try:
                answer = self._client.get_object(
                    Bucket=self.bucket, Key=self.key(name), Range=f"bytes=0-{_HEAD_BYTES - 1}"
                )
                with closing(answer["Body"]) as body:
                    head = body.read()
                size = int(answer["ContentRange"].rpartition("/")[2])
                return head, size, answer["LastModified"].timestamp(), answer["ETag"]
            except self._client.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") not in {"InvalidRange", "416"}:
                    raise
            found = self._client.head_object(Bucket=self.bucket, Key=self.key(name))
            return b"", found["ContentLength"], found["LastModified"].timestamp(), found["ETag"]

    def fetch(self, name: str, start: int, end: int, step: int, *, tag: str) -> StoredBlocks:
        """Begin to read a range of the object that had this tag."""
        with self.refusals(name):
            answer = self._client.get_object(
                Bucket=self.bucket,
                Key=self.key(name),
                Range=f"bytes={start}-{end - 1}",
                IfMatch=tag,
            )
        return BodyBlocks(self, answer["Body"], step)

    def _check_store(self) -> None:
        with self.refusals():
            self._client.head_bucket(Bucket=self.bucket)

    def _length(self, name: str) -> int:
        with self.refusals(name):
            head = self._client.head_object(Bucket=self.bucket, Key=self.key(name))
            return head["ContentLength"]

    def _open(self, name: str) -> StoredObject:
        return S3Object(self, name)

    def _place(self, path: Path, name: str) -> None:
        size = path.stat().st_size
        with self.refusals(name):
            self._client.upload_file(str(path), self.bucket, self.key(name), Config=self._transfer)
        if self._length(name) != size:
            self._remove(name)
            raise Unavailable("The storage server kept fewer bytes than it was sent; try again.")
        path.unlink()

    def _copy_out(self, name: str, target: Path) -> None:
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with self.refusals(name), _out_of_space():
                self._client.download_file(
                    self.bucket, self.key(name), str(temporary), Config=self._transfer
                )
            temporary.chmod(0o444)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove(self, name: str) -> None:
        with self.refusals():
            self._client.delete_object(Bucket=self.bucket, Key=self.key(name))

    def _touch(self, name: str) -> None:
        """Leave it: a bucket knows no way that does not copy the object."""

    def _list(self, prefix: str) -> Iterator[tuple[str, float]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.key(prefix)
        )
        with self.refusals():
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"][len(self.prefix) :], item["LastModified"].timestamp()

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    @contextmanager
    def refusals(self, name: str | None = None) -> Iterator[None]:
        """Say what the storage server refused in our words; Absent for an object that is gone."""
        from boto3.exceptions import Boto3Error  # noqa: PLC0415
        from botocore.exceptions import (  # noqa: PLC0415
            BotoCoreError,
            ClientError,
            HTTPClientError,
        )

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if name is not None and code in _GONE:
                raise Absent(name) from None
            raise self._refusal(code) from error
        except Boto3Error as error:
            # A refused transfer arrives as text around the server's own code.
            raise self._refusal(str(error)) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise Unavailable(
                "The storage server of bucket {bucket} does not answer; try again.",
                bucket=self.bucket,
            ) from error

    def _refusal(self, code: str) -> RegistryError:
        if "StorageFull" in code or "InsufficientCapacity" in code or "QuotaExceeded" in code:
            return StorageFull("The bucket {bucket} is full.", bucket=self.bucket)
        return Unavailable(
            "The storage server refused ({reason}) for bucket {bucket}.",
            reason=code[:200],
            bucket=self.bucket,
        )


class Incoming:
    """Objects that clients write themselves, part by part, with addresses that we sign.

    Such an object is `incoming/{upload}`. It is no blob: nobody reads it but `keep`, which hashes
    it and moves it under its digest.
    """

    # What S3 takes: every part but the last has at least 5 MiB, and there are at most 10,000.
    MAX_PARTS = 10_000
    PART_BYTES = 16 * 1024 * 1024

    def __init__(
        self, storage: S3Storage, client: "S3Client", signer: "S3Client", transfer: Any
    ) -> None:
        self._storage = storage
        self._client = client
        self._signer = signer
        self._transfer = transfer

    def begin(self, upload_id: str) -> str:
        """Begin the parts of an upload; give the name that S3 has for them."""
        with self._storage.refusals():
            begun = self._client.create_multipart_upload(
                Bucket=self._storage.bucket, Key=self._key(upload_id)
            )
        return begun["UploadId"]

    def sign_part(
        self, upload_id: str, parts_id: str, *, number: int, size_bytes: int, seconds: int
    ) -> str:
        """Give the address at which one PUT of exactly so many bytes is taken, for some time."""
        return self._signer.generate_presigned_url(
            "upload_part",
            Params={
                "Bucket": self._storage.bucket,
                "Key": self._key(upload_id),
                "UploadId": parts_id,
                "PartNumber": number,
                "ContentLength": size_bytes,
            },
            ExpiresIn=seconds,
            HttpMethod="PUT",
        )

    def complete(self, upload_id: str, parts_id: str, tags: Sequence[str]) -> None:
        """Make one object of the parts, which have these tags in their order; safe to repeat.

        Raises:
            Invalid: a part has not arrived, is too small, or is not the one with this tag.

        """
        from botocore.exceptions import ClientError  # noqa: PLC0415

        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": at, "ETag": tag} for at, tag in enumerate(tags, 1)
        ]
        with self._storage.refusals():
            try:
                self._client.complete_multipart_upload(
                    Bucket=self._storage.bucket,
                    Key=self._key(upload_id),
                    UploadId=parts_id,
                    MultipartUpload={"Parts": parts},
                )
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code == "NoSuchUpload" and self._is_complete(upload_id):
                    return
                if code in {"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "InvalidRequest"}:
                    raise Invalid(
                        "The bucket does not have every part as it was named; send again those "
                        "whose ETag differs, then complete the upload.",
                        code="wrong_part",
                    ) from error
                if code == "NoSuchUpload":
                    raise _no_upload(upload_id) from error
                raise

    def read(self, upload_id: str, start: int, end: int) -> bytes:
        """Give a small range of what arrived, to look into its header."""
        return b"".join(self._open(upload_id).blocks(start, end, BLOCK_BYTES))

    def keep(self, upload_id: str, *, sha256: str | None, size_bytes: int) -> Stored:
        """Hash what arrived and store it under its digest; it stays until it is discarded.

        Raises:
            Invalid: it has another digest or length than was announced.

        """
        found = self._open(upload_id)
        _require_match("", found.size_bytes, sha256=None, size_bytes=size_bytes)
        blocks = found.blocks(0, found.size_bytes, BLOCK_BYTES)
        if self._storage.keys is not None:
            # It is read either way, and encrypting it is what the usual way in does.
            return self._storage.put(blocks, sha256=sha256, size_bytes=size_bytes)
        digest = hashlib.sha256()
        small = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
        arrived = 0
        for block in blocks:
            digest.update(block)
            arrived += len(block)
            if size_bytes <= GIT_SHA1_BYTES:
                small.update(block)
        _require_match(digest.hexdigest(), arrived, sha256=sha256, size_bytes=size_bytes)
        name = _plain_name(digest.hexdigest())
        with self._storage.refusals():
            self._client.copy(
                {"Bucket": self._storage.bucket, "Key": self._key(upload_id)},
                self._storage.bucket,
                self._storage.key(name),
                # What was hashed is what is copied: nothing else has this tag.
                ExtraArgs={"CopySourceIfMatch": found.tag},
                Config=self._transfer,
            )
        git_sha1 = small.hexdigest() if size_bytes <= GIT_SHA1_BYTES else None
        return Stored(digest.hexdigest(), size_bytes, git_sha1)

    def discard(self, upload_id: str, parts_id: str) -> None:
        """Forget what arrived, whether it is in parts or one object; safe to repeat."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        with self._storage.refusals():
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._storage.bucket, Key=self._key(upload_id), UploadId=parts_id
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                    raise
            self._client.delete_object(Bucket=self._storage.bucket, Key=self._key(upload_id))

    def sweep(self, *, older_than_seconds: float) -> int:
        """Remove what has lain here for so long; give how much that was.

        Whatever has a row is discarded with it: this is what a process that died left behind.
        """
        limit = time.time() - older_than_seconds
        folder = self._storage.key("incoming/")
        removed = 0
        with self._storage.refusals():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._storage.bucket, Prefix=folder
            )
            begun = [item for page in pages for item in page.get("Uploads", ())]
            pages_of_objects = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._storage.bucket, Prefix=folder
            )
            objects = [item for page in pages_of_objects for item in page.get("Contents", ())]
            for parts in begun:
                if parts["Initiated"].timestamp() < limit:
                    self._client.abort_multipart_upload(
                        Bucket=self._storage.bucket, Key=parts["Key"], UploadId=parts["UploadId"]
                    )
                    removed += 1
            for item in objects:
                if item["LastModified"].timestamp() < limit:
                    self._client.delete_object(Bucket=self._storage.bucket, Key=item["Key"])
                    removed += 1
        return removed

    def _open(self, upload_id: str) -> S3Object:
        try:
            return S3Object(self._storage, f"incoming/{upload_id}")
        except Absent:
            raise _no_upload(upload_id) from None

    def _is_complete(self, upload_id: str) -> bool:
        try:
            self._open(upload_id)
        except NotFound:
            return False
        return True

    def _key(self, upload_id: str) -> str:
        if not _UPLOAD_ID.fullmatch(upload_id):
            raise _no_upload(upload_id)
        return self._storage.key(f"incoming/{upload_id}")


class Location(NamedTuple):
    """A parsed `MODELYARD_STORAGE_URL`."""

    scheme: str
    path: Path | None
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None
    public: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a storage URL; raise ValueError with one line that says what is wrong."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            if parts.netloc or options or not path.is_absolute():
                _bad_url(url, "a local folder is written file:///absolute/path")
            return cls("file", path, "", "", None, None)
        if parts.scheme != "s3":
            _bad_url(url, "it must begin with file:/// or s3://")
        if not _BUCKET.fullmatch(parts.netloc):
            _bad_url(url, f"{parts.netloc!r} is no bucket name; write s3://bucket/prefix")
        unknown = sorted(options.keys() - {"endpoint", "public", "region"})
        if unknown:
            _bad_url(url, f"unknown option {unknown[0]!r}; known are endpoint, public and region")
        for option in ("endpoint", "public"):
            address = options.get(option)
            if address is not None and urlsplit(address).scheme not in {"http", "https"}:
                _bad_url(url, f"the {option} must begin with http:// or https://")
        prefix = unquote(parts.path).strip("/")
        return cls(
            "s3",
            None,
            parts.netloc,
            prefix,
            options.get("endpoint"),
            options.get("region"),
            options.get("public"),
        )


def storage_at(url: str, *, spool: Path, master_keys: str = "") -> Storage:
    """Open the storage that `url` names; `spool` is where bytes arrive before they go to S3."""
    location = Location.parse(url)
    wrappers = parse_master_keys(master_keys)
    keys = KeyRing(wrappers) if wrappers else None
    if location.path is not None:
        return LocalStorage(location.path, keys=keys)
    return S3Storage(
        bucket=location.bucket,
        prefix=location.prefix,
        endpoint=location.endpoint,
        region=location.region,
        spool=spool,
        keys=keys,
        public=location.public,
    )


def default_storage() -> Storage:
    """Give the storage of the settings, one per process."""
    spool = Path(settings.HOME_DIR) / "spool"
    return _opened(settings.STORAGE_URL, spool, settings.MASTER_KEYS)


@functools.cache
def _opened(url: str, spool: Path, master_keys: str) -> Storage:
    return storage_at(url, spool=spool, master_keys=master_keys)


@contextmanager
def _out_of_space() -> Iterator[None]:
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


def _is_in_memory(descriptor: int, position: int) -> bool:
    """Tell whether the page cache has this byte; the kernel reads ahead, so those before it too."""
    try:
        return os.preadv(descriptor, [bytearray(1)], position, os.RWF_NOWAIT) == 1
    except OSError:
        # It does not, or this file system cannot tell.
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _git_sha1(path: Path, size: int) -> str | None:
    """Name the bytes as git does; the page cache still holds such a small file."""
    if size > GIT_SHA1_BYTES:
        return None
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def _plain_name(sha256: str) -> str:
    return f"blobs/{_require_sha256(sha256)[:2]}/{sha256}"


def _sealed_name(sha256: str) -> str:
    return f"sealed/{_require_sha256(sha256)[:2]}/{sha256}"


def _key_name(header: Header) -> str:
    sha256 = header.digest.hex()
    return f"keys/{sha256[:2]}/{sha256}.{header.file_id.hex()}"


def _is_sealed(name: str) -> bool:
    return name.startswith("sealed/")


def _header_of(found: StoredObject, sha256: str) -> Header:
    raw = found.read(0, min(HEADER_BYTES, found.size_bytes))
    return Header.parse(raw, sha256=sha256, sealed_bytes=found.size_bytes)


def _require_sha256(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise _no_blob(sha256)
    return sha256


def _require_match(digest: str, size: int, *, sha256: str | None, size_bytes: int | None) -> None:
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


def _no_blob(sha256: str) -> NotFound:
    return NotFound("No stored bytes with sha256 {sha256}.", sha256=sha256[:64])


def _no_upload(upload_id: str) -> NotFound:
    return NotFound(
        "No upload {upload} in progress.", code="upload_not_found", upload=upload_id[:36]
    )


def _bad_url(url: str, reason: str) -> Never:
    shown = urlsplit(url)._replace(query="").geturl()
    raise ValueError(f"MODELYARD_STORAGE_URL {shown!r}: {reason}.")
