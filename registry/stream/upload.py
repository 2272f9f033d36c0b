"""Resumable uploads by tus 1.0.0, with these extensions of it.

creation, creation-with-upload, checksum, concatenation, expiration, termination
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from email.utils import format_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings

from registry.errors import Conflict, Denied, Invalid, NotFound, RegistryError, TooLarge
from registry.formats import inspect
from registry.models import Actor, Upload
from registry.services.uploads import (
    begin_final_upload,
    begin_upload,
    cancel_upload,
    complete_upload,
    find_upload,
    is_complete,
    part_ids,
)
from registry.storage import Sink, default_storage
from registry.stream.exchange import ClientGone, Exchange
from registry.stream.threads import in_database, on_disk, settled

VERSION = "1.0.0"
MEDIA_TYPE = "application/offset+octet-stream"
FINAL: Final = "final;"
EXTENSIONS = (
    "creation",
    "creation-with-upload",
    "checksum",
    "concatenation",
    "expiration",
    "termination",
)
ALGORITHMS = ("sha256", "sha1")
TAKEOVER_SECONDS = 10.0

_NUMBER = re.compile(r"[0-9]{1,18}")
_METADATA_KEY = re.compile(r"[^\s,]{1,100}")


class WrongTusVersion(RegistryError):  # noqa: N818 - as in registry.errors
    code = "wrong_tus_version"
    status = 412
    title = "Another version of the upload protocol"


class WrongMediaType(RegistryError):  # noqa: N818 - as in registry.errors
    code = "unsupported_media_type"
    status = 415
    title = "The body is of a kind that this address does not take"


class UploadBusy(RegistryError):  # noqa: N818 - as in registry.errors
    code = "upload_busy"
    status = 423
    title = "Another request is writing to this upload"


class WrongChecksum(RegistryError):  # noqa: N818 - as in registry.errors
    code = "checksum_mismatch"
    status = 460
    title = "The bytes arrived changed"


class Checksum(NamedTuple):
    """What the client says the digest of this request's body is."""

    algorithm: str
    digest: bytes


class Writer(NamedTuple):
    """A task that writes to an upload; `over` is set once it has let go of the file."""

    task: asyncio.Task[Any]
    over: asyncio.Event


# Who is writing to which upload in this process: a client that comes back after a broken line must
# not wait until its old, dead connection is noticed.
_writers: dict[str, Writer] = {}


def offer() -> list[tuple[str, str]]:
    return [
        ("tus-resumable", VERSION),
        ("tus-version", VERSION),
        ("tus-max-size", str(settings.MAX_UPLOAD_BYTES)),
        ("tus-extension", ",".join(EXTENSIONS)),
        ("tus-checksum-algorithm", ",".join(ALGORITHMS)),
    ]


async def answer_options(exchange: Exchange, _where: Mapping[str, str]) -> None:
    await exchange.respond(204, offer())


async def answer_creation(exchange: Exchange, actor: Actor, _where: Mapping[str, str]) -> None:
    _require_version(exchange)
    metadata = read_metadata(exchange.headers.get("upload-metadata", ""))
    concat = exchange.headers.get("upload-concat", "").strip()
    if concat.startswith(FINAL):
        upload = await _join(exchange, actor, concat.removeprefix(FINAL), metadata)
        offset = upload.length_bytes
    elif concat in {"", "partial"}:
        upload, offset = await _begin(exchange, actor, metadata, partial=bool(concat))
    else:
        raise Invalid("Upload-Concat is either partial, or final; and the addresses of the parts.")
    await exchange.respond(
        201,
        [
            ("location", f"{exchange.path.rstrip('/')}/{upload.pk}"),
            ("upload-offset", str(offset)),
            *_standing(upload),
        ],
    )


async def _begin(
    exchange: Exchange, actor: Actor, metadata: Mapping[str, str], *, partial: bool
) -> tuple[Upload, int]:
    length = _length(exchange)
    checksum = _checksum(exchange)
    with_body = exchange.headers.get("content-type", "") == MEDIA_TYPE
    upload = await in_database(
        begin_upload,
        actor=actor,
        length=length,
        filename=_filename(metadata),
        sha256=metadata.get("sha256", ""),
        partial=partial,
        namespace=metadata.get("namespace", ""),
        total=_total(metadata),
    )
    offset = 0
    if with_body:
        offset = await _receive(exchange, actor, upload, 0, checksum)
    elif length == 0:
        await _complete(actor, upload)
    return upload, offset


async def _join(
    exchange: Exchange, actor: Actor, addresses: str, metadata: Mapping[str, str]
) -> Upload:
    """Make one upload of the finished parts that the client names, by path or full address."""
    if "upload-length" in exchange.headers or exchange.has_body:
        raise Invalid("A final upload has the length and the bytes of its parts; send neither.")
    parts = [urlsplit(address).path.rstrip("/").rpartition("/")[2] for address in addresses.split()]
    upload = await in_database(
        begin_final_upload,
        actor=actor,
        parts=parts,
        filename=_filename(metadata),
        sha256=metadata.get("sha256", ""),
    )
    if upload.completed_at is None:
        await _complete(actor, upload)
    return upload


async def answer_head(exchange: Exchange, actor: Actor, where: Mapping[str, str]) -> None:
    _require_version(exchange)
    upload = await in_database(find_upload, actor, where["upload"])
    await _interrupt_writer(str(upload.pk))
    offset = upload.length_bytes
    if not _is_over(upload):
        offset = await on_disk(default_storage().upload_offset, str(upload.pk))
        if offset == upload.length_bytes or upload.concat == Upload.Concat.FINAL:
            # All bytes came, and the process died before it could say so.
            await _complete(actor, upload)
            offset = upload.length_bytes
    await exchange.respond(
        200,
        [
            *await _concat(exchange, upload),
            ("upload-offset", str(offset)),
            ("upload-length", str(upload.length_bytes)),
            ("cache-control", "no-store"),
            *_standing(upload),
        ],
    )


async def answer_patch(exchange: Exchange, actor: Actor, where: Mapping[str, str]) -> None:
    _require_version(exchange)
    if exchange.headers.get("content-type", "") != MEDIA_TYPE:
        raise WrongMediaType(
            "Send the bytes with Content-Type: {media_type}.", media_type=MEDIA_TYPE
        )
    offset = _number(exchange, "upload-offset")
    checksum = _checksum(exchange)
    upload = await in_database(find_upload, actor, where["upload"])
    if upload.concat == Upload.Concat.FINAL:
        raise Denied(
            "A final upload takes no bytes; it has those of its parts.", code="final_upload"
        )
    if not _is_over(upload):
        offset = await _receive(exchange, actor, upload, offset, checksum)
    elif offset != upload.length_bytes:
        raise Conflict("This upload is complete.", code="upload_complete")
    await exchange.respond(204, [("upload-offset", str(offset)), *_standing(upload)])


async def answer_delete(exchange: Exchange, actor: Actor, where: Mapping[str, str]) -> None:
    _require_version(exchange)
    upload = await in_database(find_upload, actor, where["upload"])
    await _interrupt_writer(str(upload.pk))
    await in_database(cancel_upload, actor=actor, upload=upload)
    await exchange.respond(204, [("tus-resumable", VERSION)])


def read_metadata(header: str) -> dict[str, str]:
    """Read `Upload-Metadata`: keys with base64 values, separated by commas."""
    if len(header) > 16 * 1024:
        raise Invalid("Upload-Metadata is longer than 16384 characters.")
    metadata: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, value = pair.strip().partition(" ")
        if not _METADATA_KEY.fullmatch(key) or key in metadata:
            raise Invalid(
                "Upload-Metadata has the key {key!r} twice or with a bad name.", key=key[:80]
            )
        try:
            metadata[key] = base64.b64decode(value.strip(), validate=True).decode("utf-8")
        except ValueError:
            raise Invalid(
                "The value of {key!r} in Upload-Metadata is no base64 text.", key=key
            ) from None
    return metadata


def _filename(metadata: Mapping[str, str]) -> str:
    return metadata.get("filename") or metadata.get("name", "")


def _total(metadata: Mapping[str, str]) -> int:
    """Read how many bytes the whole file has that a part belongs to."""
    text = metadata.get("total", "0")
    if not _NUMBER.fullmatch(text):
        raise Invalid("The value of {key!r} in Upload-Metadata is no number of bytes.", key="total")
    return int(text)


# --- Moving the bytes ------------------------------------------------------------------------


async def _receive(
    exchange: Exchange, actor: Actor, upload: Upload, offset: int, checksum: Checksum | None
) -> int:
    """Append the body; give the new offset, or raise with the bytes so far kept."""
    upload_id = str(upload.pk)
    announced = exchange.announced_bytes
    if announced is not None and offset + announced > upload.length_bytes:
        raise TooLarge(
            "{total} bytes would arrive, and Upload-Length said {length}.",
            total=offset + announced,
            length=upload.length_bytes,
        )
    await _interrupt_writer(upload_id)
    task = asyncio.current_task()
    assert task is not None
    writer = _writers[upload_id] = Writer(task, asyncio.Event())
    try:
        offset = await _append(exchange, upload, offset, checksum)
    except asyncio.CancelledError:
        # Whoever still listens on the older connection gets an answer.
        raise UploadBusy("Another request took this upload over; ask for the offset.") from None
    finally:
        writer.over.set()
        if _writers.get(upload_id) is writer:
            del _writers[upload_id]
    if offset == upload.length_bytes:
        await _complete(actor, upload)
    return offset


async def _append(
    exchange: Exchange, upload: Upload, offset: int, checksum: Checksum | None
) -> int:
    storage = default_storage()
    upload_id = str(upload.pk)
    opening = on_disk(storage.open_upload, upload_id, offset, provisional=checksum is not None)
    try:
        sink = await settled(opening)
    except asyncio.CancelledError:
        if opening.exception() is None:
            # Left open, it would hold the upload's lock for as long as this process lives.
            sink = opening.result()
            await settled(on_disk(storage.close_upload, upload_id, sink, keep=checksum is None))
        raise
    except Conflict as refusal:
        raise _busy(refusal) from None
    digest = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
    keep = False
    try:
        await _pump(exchange, sink, upload.length_bytes, digest)
        keep = True
        if checksum is not None and digest is not None:
            keep = digest.digest() == checksum.digest
    except (ClientGone, asyncio.CancelledError):
        # An unfinished body cannot be checked; without a checksum every byte counts.
        keep = checksum is None
        raise
    finally:
        offset = await settled(on_disk(storage.close_upload, upload_id, sink, keep=keep))
    if checksum is not None and not keep:
        raise WrongChecksum(
            "The {algorithm} of the bytes is not the one announced; send them again.",
            algorithm=checksum.algorithm,
        )
    return offset


async def _pump(exchange: Exchange, sink: Sink, limit: int, digest: Any) -> None:
    """Write and hash one block in a thread while the next one arrives."""
    writing: asyncio.Future[None] | None = None
    start, expected = exchange.received_bytes, limit - sink.offset
    try:
        async for block in exchange.blocks():
            if exchange.received_bytes - start > expected:
                raise TooLarge("More bytes arrived than the {limit} of Upload-Length.", limit=limit)
            if writing is not None:
                await asyncio.shield(writing)
            writing = on_disk(_write, sink, block, digest)
    finally:
        if writing is not None:
            await settled(writing)


def _write(sink: Sink, block: list[bytes], digest: Any) -> None:
    for chunk in block:
        sink.write(chunk)
        if digest is not None:
            digest.update(chunk)


async def _complete(actor: Actor, upload: Upload) -> None:
    """Look into the file, hash it, store it and write its row; safe to repeat at every step."""
    if upload.concat == Upload.Concat.PARTIAL:
        return
    parts: list[str] = []
    if upload.concat == Upload.Concat.FINAL:
        parts = await in_database(part_ids, upload)
    try:
        stored = await settled(on_disk(_keep, upload, parts))
    except NotFound:
        # Another request may have come to the end a moment earlier.
        if await in_database(is_complete, upload):
            return
        raise
    except Invalid:
        # These bytes will not get better: the client has to begin again.
        await in_database(cancel_upload, actor=actor, upload=upload)
        raise
    except Conflict as refusal:
        raise _busy(refusal) from None
    await in_database(complete_upload, actor=actor, upload=upload, stored=stored)
    for upload_id in (str(upload.pk), *parts):
        await on_disk(default_storage().discard_upload, upload_id)


def _keep(upload: Upload, parts: Sequence[str]) -> Any:
    storage = default_storage()
    upload_id = str(upload.pk)
    if parts and storage.upload_offset(upload_id) != upload.length_bytes:
        storage.join_uploads(upload_id, parts)
    inspect(
        upload.filename,
        upload.length_bytes,
        lambda start, end: storage.read_upload(upload_id, start, end),
    )
    return storage.finish_upload(upload_id, sha256=upload.sha256 or None)


def _is_over(upload: Upload) -> bool:
    """Say whether the bytes have moved on: into a blob, or into the upload that joins the parts."""
    final = upload.final
    return upload.completed_at is not None or (final is not None and final.completed_at is not None)


async def _concat(exchange: Exchange, upload: Upload) -> list[tuple[str, str]]:
    """Say what part an upload has in a concatenation, in the words it was begun with."""
    if upload.concat != Upload.Concat.FINAL:
        return [("upload-concat", upload.concat)] if upload.concat else []
    folder = exchange.path.rstrip("/").rpartition("/")[0]
    parts = " ".join(f"{folder}/{part}" for part in await in_database(part_ids, upload))
    return [("upload-concat", f"{FINAL}{parts}")]


def _busy(refusal: Conflict) -> RegistryError:
    """Say in tus's own word (423) that another request holds the upload, so that clients retry."""
    return (
        UploadBusy(refusal.template, **refusal.values)
        if refusal.reason == "upload_busy"
        else refusal
    )


async def _interrupt_writer(upload_id: str) -> None:
    """Stop an older request that still writes to this upload in this process."""
    writer = _writers.get(upload_id)
    if writer is None:
        return
    writer.task.cancel()
    with suppress(TimeoutError):
        async with asyncio.timeout(TAKEOVER_SECONDS):
            await writer.over.wait()


# --- Reading headers -------------------------------------------------------------------------


def _require_version(exchange: Exchange) -> None:
    if exchange.headers.get("tus-resumable") != VERSION:
        raise WrongTusVersion(
            "This server speaks tus {version}; send the header Tus-Resumable: {version}.",
            version=VERSION,
        )


def _length(exchange: Exchange) -> int:
    if "upload-defer-length" in exchange.headers:
        raise Invalid("The length must be known first; send Upload-Length.")
    return _number(exchange, "upload-length")


def _number(exchange: Exchange, name: str) -> int:
    text = exchange.headers.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise Invalid(
            "The header {header} must be a number of bytes, not {text!r}.",
            header=name.title(),
            text=text[:40],
        )
    return int(text)


def _checksum(exchange: Exchange) -> Checksum | None:
    header = exchange.headers.get("upload-checksum")
    if header is None:
        return None
    algorithm, _, value = header.strip().partition(" ")
    if algorithm not in ALGORITHMS:
        raise Invalid(
            "Upload-Checksum must be one of {algorithms}, not {algorithm!r}.",
            algorithms=", ".join(ALGORITHMS),
            algorithm=algorithm[:20],
        )
    try:
        return Checksum(algorithm, base64.b64decode(value.strip(), validate=True))
    except ValueError:
        raise Invalid("The digest in Upload-Checksum is no base64.") from None


def _standing(upload: Upload) -> list[tuple[str, str]]:
    expires = format_datetime(upload.expires_at.astimezone(UTC), usegmt=True)
    return [("tus-resumable", VERSION), ("upload-expires", expires)]
