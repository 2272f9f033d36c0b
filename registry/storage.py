"""Bytes by the SHA-256 that this server computed, on a local disk or in an S3 bucket.

Callers name a digest and never see a path. This module must not know models, requests or people.
"""

import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Never, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from django.conf import settings

from registry.errors import Conflict, Invalid, NotFound, RegistryError, StorageFull, Unavailable

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

# What one read gives: enough to be worth a change of thread, little enough for many slow readers.
BLOCK_BYTES = 2 * 1024 * 1024
GIT_SHA1_BYTES = 10 * 1024 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")
_UPLOAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP})
_RUNNING_DIGESTS = 256
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


class Storage(ABC):
    """Blobs by digest, and uploads in progress.

    Whatever the blobs are kept in, bytes first arrive in the `spool`, a local folder, so that a
    partial blob is never visible and an upload goes on after `kill -9` of the process.
    """

    def __init__(self, spool: Path) -> None:
        self.spool = spool
        self._incoming = spool / "incoming"
        self._uploads = spool / "uploads"
        # Blobs are readable files, to be linked into the folders of jobs: the way in is closed.
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (self._incoming, self._uploads):
            folder.mkdir(exist_ok=True)
        self._digests: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._digests_lock = threading.Lock()

    @abstractmethod
    def size(self, sha256: str) -> int:
        """Give the length of a blob; raise NotFound for one that is not here."""

    @abstractmethod
    def delete(self, sha256: str) -> None:
        """Remove a blob; removing one that is not here is no error."""

    @abstractmethod
    def check(self) -> None:
        """Raise Unavailable when blobs cannot be reached right now."""

    @abstractmethod
    def materialise(self, sha256: str, target: Path) -> None:
        """Put the bytes at `target`, read-only; an older file there is replaced."""

    @abstractmethod
    def _keep(self, path: Path, sha256: str) -> None:
        """Move a complete, flushed file of the spool under its digest."""

    @abstractmethod
    def _blocks(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        """Yield a range that lies inside the blob."""

    def exists(self, sha256: str) -> bool:
        try:
            self.size(sha256)
        except NotFound:
            return False
        return True

    def open(self, sha256: str, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) in blocks; raise NotFound before the first."""
        size = self.size(sha256)
        end = size if end is None else min(end, size)
        return self._blocks(sha256, start, end) if 0 <= start < end else iter(())

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
        path = self._incoming / uuid.uuid4().hex
        with _out_of_space():
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return Sink(path, descriptor, start=0, digest=hashlib.sha256())

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


class LocalStorage(Storage):
    """Blobs as read-only files under `root/blobs`, written to `root` and moved by one rename."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._blobs = root / "blobs"
        self._blobs.mkdir(exist_ok=True)

    def size(self, sha256: str) -> int:
        try:
            return self._path(sha256).stat().st_size
        except FileNotFoundError:
            raise _no_blob(sha256) from None

    def delete(self, sha256: str) -> None:
        self._path(sha256).unlink(missing_ok=True)

    def check(self) -> None:
        if not os.access(self._blobs, os.R_OK | os.W_OK | os.X_OK):
            raise Unavailable("The storage folder {folder} cannot be written.", folder=self._blobs)

    def materialise(self, sha256: str, target: Path) -> None:
        source = self._path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except FileNotFoundError:
            raise _no_blob(sha256) from None
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            with _out_of_space():
                shutil.copyfile(source, target)
            target.chmod(0o444)

    def _keep(self, path: Path, sha256: str) -> None:
        target = self._path(sha256)
        path.chmod(0o444)
        with _out_of_space():
            if not target.parent.is_dir():
                target.parent.mkdir(exist_ok=True)
                _sync_folder(self._blobs)
            path.rename(target)
            _sync_folder(target.parent)

    def _blocks(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        try:
            file = self._path(sha256).open("rb", buffering=0)
        except FileNotFoundError:
            raise _no_blob(sha256) from None
        with file:
            while start < end:
                block = os.pread(file.fileno(), min(BLOCK_BYTES, end - start), start)
                if not block:
                    raise Unavailable("The stored bytes of {sha256} end too early.", sha256=sha256)
                start += len(block)
                yield block

    def _path(self, sha256: str) -> Path:
        return self._blobs / _require_sha256(sha256)[:2] / sha256


class S3Storage(Storage):
    """Blobs as objects `prefix/blobs/ab/abcd…` of one bucket; the spool stays on a local disk."""

    def __init__(
        self, *, bucket: str, prefix: str, endpoint: str | None, region: str | None, spool: Path
    ) -> None:
        super().__init__(spool)
        # Slow to import and not needed where blobs are on a local disk.
        import boto3  # noqa: PLC0415
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._transfer = TransferConfig(
            multipart_threshold=16 * 1024 * 1024,
            multipart_chunksize=16 * 1024 * 1024,
            max_concurrency=4,
        )
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name=region or os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                retries={"max_attempts": 4, "mode": "standard"},
                max_pool_connections=32,
                # Servers other than Amazon's do not all know the newer trailing checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path" if endpoint else "auto"},
            ),
        )

    def size(self, sha256: str) -> int:
        with self._refusals(sha256):
            head = self._client.head_object(Bucket=self.bucket, Key=self._key(sha256))
            return head["ContentLength"]

    def delete(self, sha256: str) -> None:
        with self._refusals(sha256):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(sha256))

    def check(self) -> None:
        with self._refusals(None):
            self._client.head_bucket(Bucket=self.bucket)

    def materialise(self, sha256: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with self._refusals(sha256), _out_of_space():
                self._client.download_file(
                    self.bucket, self._key(sha256), str(temporary), Config=self._transfer
                )
            temporary.chmod(0o444)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _keep(self, path: Path, sha256: str) -> None:
        with self._refusals(sha256):
            self._client.upload_file(
                str(path), self.bucket, self._key(sha256), Config=self._transfer
            )
        if self.size(sha256) != path.stat().st_size:
            self.delete(sha256)
            raise Unavailable("The storage server kept fewer bytes than it was sent; try again.")
        path.unlink()

    def _blocks(self, sha256: str, start: int, end: int) -> Iterator[bytes]:
        with self._refusals(sha256):
            answer = self._client.get_object(
                Bucket=self.bucket, Key=self._key(sha256), Range=f"bytes={start}-{end - 1}"
            )
            with closing(answer["Body"]) as body:
                yield from body.iter_chunks(BLOCK_BYTES)

    def _key(self, sha256: str) -> str:
        return f"{self.prefix}blobs/{_require_sha256(sha256)[:2]}/{sha256}"

    @contextmanager
    def _refusals(self, sha256: str | None) -> Iterator[None]:
        from boto3.exceptions import Boto3Error  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError  # noqa: PLC0415

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if sha256 is not None and code in {"404", "NoSuchKey", "NotFound"}:
                raise _no_blob(sha256) from None
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


class Location(NamedTuple):
    """A parsed `MODELYARD_STORAGE_URL`."""

    scheme: str
    path: Path | None
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None

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
        unknown = sorted(options.keys() - {"endpoint", "region"})
        if unknown:
            _bad_url(url, f"unknown option {unknown[0]!r}; known are endpoint and region")
        endpoint = options.get("endpoint")
        if endpoint is not None and urlsplit(endpoint).scheme not in {"http", "https"}:
            _bad_url(url, "the endpoint must begin with http:// or https://")
        prefix = unquote(parts.path).strip("/")
        return cls("s3", None, parts.netloc, prefix, endpoint, options.get("region"))


def storage_at(url: str, *, spool: Path) -> Storage:
    """Open the storage that `url` names; `spool` is where bytes arrive before they go to S3."""
    location = Location.parse(url)
    if location.path is not None:
        return LocalStorage(location.path)
    return S3Storage(
        bucket=location.bucket,
        prefix=location.prefix,
        endpoint=location.endpoint,
        region=location.region,
        spool=spool,
    )


def default_storage() -> Storage:
    """Give the storage of the settings, one per process."""
    return _opened(settings.STORAGE_URL, Path(settings.HOME_DIR) / "spool")


@functools.cache
def _opened(url: str, spool: Path) -> Storage:
    return storage_at(url, spool=spool)


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
