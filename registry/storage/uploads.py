"""Uploads in progress: parts of files in the spool, until they become blobs."""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.encryption import KeyRing
from registry.errors import Conflict, StorageFull
from registry.storage.blobs import Blobs
from registry.storage.names import UPLOAD_ID, no_upload
from registry.storage.spool import Sink, Stored, git_sha1, out_of_space, require_match, sync_folder

if TYPE_CHECKING:
    from registry.storage.incoming import Incoming
    from registry.storage.segments import Segments


_RUNNING_DIGESTS = 256


class Storage(Blobs):
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

    @property
    def segments(self) -> "Segments | None":
        """Give what puts blobs together of pieces that others have too, where the store can."""
        return None

    def begin_upload(self, upload_id: str) -> None:
        """Make room for an upload; doing it twice changes nothing."""
        with out_of_space():
            self._part(upload_id).touch(mode=0o600)
            sync_folder(self._uploads)

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
            raise no_upload(upload_id) from None
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
                    raise no_upload(part) from None
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
                raise no_upload(upload_id) from None
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
            raise no_upload(upload_id)
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
        if not UPLOAD_ID.fullmatch(upload_id):
            raise no_upload(upload_id)
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
        with out_of_space(), temporary.open("w") as file:
            json.dump(note, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync_folder(path.parent)

    def _finished(self, upload_id: str) -> Stored | None:
        stored = self._read_note(upload_id).get("stored")
        return Stored(**stored) if stored else None

    def _trusted_bytes(self, upload_id: str) -> int:
        """Leave out what a process that died had written but not yet verified."""
        trusted = self._read_note(upload_id).get("trusted_bytes")
        try:
            size = self._part(upload_id).stat().st_size
        except FileNotFoundError:
            raise no_upload(upload_id) from None
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
            require_match(stored.sha256, stored.size_bytes, sha256=sha256, size_bytes=None)
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
        return Stored(digest.hexdigest(), size, git_sha1(part, size))
