"""Resumable uploads: begun, finished, given up; the bytes themselves move in `registry.stream`."""

import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from registry.errors import Conflict, NotFound, TooLarge
from registry.models import Actor, AuditAction, DirectUpload, Repository, Upload
from registry.permissions import allowed, require, require_scope
from registry.services.audit import record_event
from registry.services.blobs import record_blob
from registry.services.namespaces import find_namespace
from registry.services.quotas import holds_bytes, require_room
from registry.services.texts import check_text, invalid_field
from registry.storage import Stored, default_storage

_MAX_OPEN_UPLOADS = 1000
_RECORDED_AT_ONCE = 100
_CLOCK = Actor(username="clock", door="beat")


def begin_upload(
    *,
    actor: Actor,
    length: int,
    filename: str = "",
    sha256: str = "",
    partial: bool = False,
    namespace: str = "",
    total: int = 0,
) -> Upload:
    """Begin an upload of `length` bytes; it expires when it is not finished in time.

    A partial one is to be joined with others by `begin_final_upload`. Whoever names the `namespace`
    that the file is for hears now when it cannot fit there; of a part, the `total` is what counts.

    Raises:
        TooLarge: more bytes than this installation takes.
        Conflict: the actor has too many uploads open.
        NamespaceFull: the file has no room in the namespace.

    """
    require_scope(actor, "write")
    require_room_in(actor, namespace, size_bytes=max(length, total), sha256=sha256)
    concat = Upload.Concat.PARTIAL if partial else Upload.Concat.NONE
    upload = add_upload(actor, length, filename, sha256, concat)
    default_storage().begin_upload(str(upload.pk))
    return upload


def require_room_in(actor: Actor, namespace: str, *, size_bytes: int, sha256: str) -> None:
    """Pass when a file that is on its way to a namespace may fit there, or none is named.

    Bytes that are counted there already take nothing; that they are is only for those to know who
    read all that is in it.

    Raises:
        Denied: the actor may add nothing there.
        NamespaceFull: it would not fit.

    """
    if not namespace:
        return
    space = find_namespace(actor, namespace)
    places = [*actor.grants, actor.limited_repository_id or 0]
    granted = Repository.objects.visible_to(actor).filter(namespace=space, pk__in=places)
    if not any(allowed(actor, "write", one) for one in granted.select_related("namespace")):
        require(actor, "write", space)
    if allowed(actor, "read", space) and holds_bytes(space, sha256):
        size_bytes = 0
    require_room(space, size_bytes=size_bytes, versions=1)


def begin_final_upload(
    *, actor: Actor, parts: Sequence[str], filename: str = "", sha256: str = ""
) -> Upload:
    """Begin the upload that joins finished parts in this order; asked again, give the same one.

    Raises:
        NotFound: one of them is not the actor's, or expired.
        Invalid: one is named twice, or is no part.
        Conflict: one is unfinished, or joined into something else already.

    """
    require_scope(actor, "write")
    keys = [upload_key(part) for part in parts]
    if not 1 <= len(keys) <= _MAX_OPEN_UPLOADS:
        raise invalid_field(
            "parts", "bad_count", "Name between 1 and {limit} parts.", limit=_MAX_OPEN_UPLOADS
        )
    if len(set(keys)) < len(keys):
        raise invalid_field("parts", "repeated", "A part is named twice; a part counts once.")
    with transaction.atomic():
        rows = Upload.objects.owned_by(actor).filter(pk__in=keys, expires_at__gt=timezone.now())
        found = {row.pk: row for row in rows.order_by("pk").select_for_update()}
        ordered = [_as_part(found.get(key), key) for key in keys]
        if any(row.final_id for row in ordered):
            return _joined_already(ordered)
        for row in ordered:
            _require_finished(row)
        length = sum(row.length_bytes for row in ordered)
        final = add_upload(actor, length, filename, sha256, Upload.Concat.FINAL)
        default_storage().begin_upload(str(final.pk))
        for position, row in enumerate(ordered):
            row.final, row.position, row.expires_at = final, position, final.expires_at
        Upload.objects.bulk_update(ordered, ["final", "position", "expires_at"])
    return final


def _as_part(row: Upload | None, key: uuid.UUID) -> Upload:
    if row is None:
        raise no_upload(str(key))
    if row.concat != Upload.Concat.PARTIAL:
        raise invalid_field(
            "parts",
            "no_part",
            "The upload {upload} is no part; begin parts with Upload-Concat: partial.",
            upload=str(key),
        )
    return row


def _joined_already(parts: Sequence[Upload]) -> Upload:
    """Give the upload that joins exactly these, for a client that did not hear the answer."""
    final = next(row.final for row in parts if row.final is not None)
    if final.expires_at > timezone.now() and part_ids(final) == [str(row.pk) for row in parts]:
        return final
    raise Conflict(
        "The part {upload} is in another upload already; a part counts once.",
        code="part_joined",
        upload=str(next(row.pk for row in parts if row.final_id)),
    )


def _require_finished(part: Upload) -> None:
    offset = default_storage().upload_offset(str(part.pk))
    if offset != part.length_bytes:
        raise Conflict(
            "The part {upload} has {offset} of its {length} bytes; send the rest first.",
            code="part_unfinished",
            upload=str(part.pk),
            offset=offset,
            length=part.length_bytes,
        )


def add_upload(
    actor: Actor,
    length: int,
    filename: str,
    sha256: str,
    concat: Upload.Concat = Upload.Concat.NONE,
) -> Upload:
    """Write the row of a new upload, however its bytes are to come."""
    if length < 0:
        raise invalid_field("length", "negative", "Upload-Length must not be negative.")
    if length > settings.MAX_UPLOAD_BYTES:
        raise TooLarge(
            "{length} bytes are more than one file may have here ({limit}).",
            length=length,
            limit=settings.MAX_UPLOAD_BYTES,
        )
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise invalid_field("sha256", "bad_digest", "sha256 must be 64 hexadecimal digits.")
    now = timezone.now()
    unfinished = Upload.objects.owned_by(actor).filter(completed_at=None, expires_at__gt=now)
    # The final upload counts for its parts.
    if unfinished.filter(final=None).count() >= _MAX_OPEN_UPLOADS:
        raise Conflict(
            "You have {limit} unfinished uploads; finish or end some.", limit=_MAX_OPEN_UPLOADS
        )
    return Upload.objects.create(
        id=uuid.uuid4(),
        user_id=actor.person_id,
        filename=check_text("filename", filename, max_length=1024),
        length_bytes=length,
        sha256=sha256.lower(),
        concat=concat,
        expires_at=now + timedelta(seconds=settings.UPLOAD_EXPIRES_SECONDS),
    )


def find_upload(actor: Actor, upload_id: str) -> Upload:
    """Find an upload of the actor's own that has not expired, to go on with it.

    Raises:
        Denied: the token may not write.
        NotFound: there is none.

    """
    require_scope(actor, "write")
    found = (
        Upload.objects.owned_by(actor)
        .select_related("blob", "final")
        .filter(pk=upload_key(upload_id), expires_at__gt=timezone.now(), direct=None)
        .first()
    )
    if found is None:
        raise no_upload(upload_id)
    return found


def finished_uploads(actor: Actor, upload_ids: Sequence[str]) -> dict[str, Upload]:
    """Find those of the actor's uploads that are finished, by the ids they were asked for with."""
    keys = {upload_id: upload_key(upload_id) for upload_id in upload_ids}
    rows = (
        Upload.objects.owned_by(actor)
        .select_related("blob")
        .filter(pk__in=keys.values(), expires_at__gt=timezone.now(), blob__isnull=False)
        .in_bulk()
    )
    return {upload_id: rows[key] for upload_id, key in keys.items() if key in rows}


def part_ids(final: Upload) -> list[str]:
    """List the parts of a final upload in their order."""
    return [str(key) for key in final.parts.order_by("position").values_list("pk", flat=True)]


def is_complete(upload: Upload) -> bool:
    """Say whether some request has finished the upload by now."""
    return Upload.objects.filter(pk=upload.pk, completed_at__isnull=False).exists()


def complete_upload(*, actor: Actor, upload: Upload, stored: Stored) -> Upload:
    """Record the blob that a finished upload became, after the storage hashed and kept it.

    Raises:
        NotFound: somebody gave the upload up at the same moment.

    """
    with transaction.atomic():
        blob = record_blob(stored)
        row = Upload.objects.select_for_update().filter(pk=upload.pk).first()
        if row is None:
            raise NotFound("This upload was given up meanwhile.", code="upload_not_found")
        if row.completed_at is None:
            row.blob = blob
            row.completed_at = timezone.now()
            row.save(update_fields=["blob", "completed_at"])
            _record_completion(actor, row)
    return row


def record_uploads(*, actor: Actor, files: Mapping[str, Stored]) -> list[Upload]:
    """Keep files that arrived whole in one request as finished uploads of the actor's.

    Each file takes a lock on its digest until its transaction ends. They are taken in one order, so
    that two requests never wait for each other, and few at a time: a database has room for some
    thousands in all.
    """
    require_scope(actor, "write")
    now = timezone.now()
    names = {path: check_text("filename", path, max_length=1024) for path in files}
    paths = sorted(files, key=lambda path: files[path].sha256)
    made: dict[str, Upload] = {}
    for start in range(0, len(paths), _RECORDED_AT_ONCE):
        with transaction.atomic():
            some = {
                path: Upload(
                    id=uuid.uuid4(),
                    user_id=actor.person_id,
                    filename=names[path],
                    length_bytes=files[path].size_bytes,
                    blob=record_blob(files[path]),
                    completed_at=now,
                    expires_at=now + timedelta(seconds=settings.UPLOAD_EXPIRES_SECONDS),
                )
                for path in paths[start : start + _RECORDED_AT_ONCE]
            }
            for upload in Upload.objects.bulk_create(some.values()):
                _record_completion(actor, upload)
        made |= some
    return [made[path] for path in files]


def _record_completion(actor: Actor, upload: Upload) -> None:
    assert upload.blob is not None
    record_event(
        actor,
        AuditAction.UPLOAD_COMPLETE,
        target=upload.filename or str(upload.pk),
        sha256=upload.blob.sha256,
        size_bytes=upload.blob.size_bytes,
    )


def record_loss(actor: Actor, action: AuditAction, upload: Upload, **facts: Any) -> None:
    """Record that what arrived of an upload goes without having become a file."""
    record_event(
        actor,
        action,
        target=upload.filename or str(upload.pk),
        username=upload.user.username,
        length_bytes=upload.length_bytes,
        **facts,
    )


def cancel_upload(*, actor: Actor, upload: Upload) -> None:
    """Give an upload up; what had arrived is deleted (a finished one only forgets its id).

    The parts of one that was to join them are as they were before.

    Raises:
        Conflict: it is a part of another upload, which has to go first.

    """
    require_scope(actor, "write")
    with transaction.atomic():
        row = Upload.objects.owned_by(actor).select_for_update().filter(pk=upload.pk).first()
        if row is None:
            return
        if row.final_id is not None:
            raise Conflict(
                "This part belongs to the upload {upload}; end that one.",
                code="part_joined",
                upload=str(row.final_id),
            )
        if row.completed_at is None:
            row.parts.update(final=None, position=None)
            record_loss(actor, AuditAction.UPLOAD_CANCEL, row)
        direct = DirectUpload.objects.filter(pk=upload.pk).first()
        row.delete()
    _discard(upload, direct)


def expire_uploads() -> int:
    """Delete uploads whose time is over, with their bytes; returns how many."""
    expired = Upload.objects.filter(expires_at__lte=timezone.now()).select_related("direct", "user")
    storage, count = default_storage(), 0
    for upload in expired.iterator():
        if upload.blob_id is None:
            _discard(upload, getattr(upload, "direct", None))
        with transaction.atomic():
            if upload.blob_id is None:
                record_loss(_CLOCK, AuditAction.UPLOAD_EXPIRE, upload)
            upload.delete()
        count += 1
    # What a process that died left behind has no row, or none any more.
    storage.sweep_spool(older_than_seconds=settings.UPLOAD_EXPIRES_SECONDS)
    if storage.incoming is not None:
        storage.incoming.sweep(older_than_seconds=settings.UPLOAD_EXPIRES_SECONDS)
    return count


def _discard(upload: Upload, direct: DirectUpload | None) -> None:
    storage = default_storage()
    if direct is None:
        storage.discard_upload(str(upload.pk))
    elif storage.incoming is not None:
        storage.incoming.discard(str(upload.pk), direct.parts_id)


def upload_key(upload_id: str) -> uuid.UUID:
    """Read the id of an upload; what is none has the id that no upload has."""
    try:
        return uuid.UUID(upload_id)
    except ValueError:
        return uuid.UUID(int=0)


def no_upload(upload_id: str) -> NotFound:
    return NotFound("You have no upload {upload!r}; it may have expired.", upload=upload_id)
