"""Resumable uploads: begun, finished, given up; the bytes themselves move in `registry.stream`."""

import re
import uuid
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from registry.errors import Conflict, NotFound, TooLarge
from registry.models import Actor, Upload
from registry.permissions import require_scope
from registry.services.audit import record_event
from registry.services.blobs import record_blob
from registry.services.texts import check_text, invalid_field
from registry.storage import Stored, default_storage

_MAX_OPEN_UPLOADS = 1000


def begin_upload(*, actor: Actor, length: int, filename: str = "", sha256: str = "") -> Upload:
    """Begin an upload of `length` bytes; it expires when it is not finished in time.

    Raises:
        TooLarge: more bytes than this installation takes.
        Conflict: the actor has too many uploads open.

    """
    require_scope(actor, "write")
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
    if (
        Upload.objects.owned_by(actor).filter(completed_at=None, expires_at__gt=now).count()
        >= _MAX_OPEN_UPLOADS
    ):
        raise Conflict(
            "You have {limit} unfinished uploads; finish or end some.", limit=_MAX_OPEN_UPLOADS
        )
    upload = Upload.objects.create(
        id=uuid.uuid4(),
        user_id=actor.person_id,
        filename=check_text("filename", filename, max_length=1024),
        length_bytes=length,
        sha256=sha256.lower(),
        expires_at=now + timedelta(seconds=settings.UPLOAD_EXPIRES_SECONDS),
    )
    default_storage().begin_upload(str(upload.pk))
    return upload


def find_upload(actor: Actor, upload_id: str) -> Upload:
    """Find an upload of the actor's own that has not expired, to go on with it.

    Raises:
        Denied: the token may not write.
        NotFound: there is none.

    """
    require_scope(actor, "write")
    try:
        key = uuid.UUID(upload_id)
    except ValueError:
        key = uuid.UUID(int=0)
    found = (
        Upload.objects.owned_by(actor)
        .select_related("blob")
        .filter(pk=key, expires_at__gt=timezone.now())
        .first()
    )
    if found is None:
        raise NotFound("You have no upload {upload!r}; it may have expired.", upload=upload_id)
    return found


def complete_upload(*, actor: Actor, upload: Upload, stored: Stored) -> Upload:
    """Record the blob that a finished upload became, after the storage hashed and kept it.

    Raises:
        NotFound: somebody gave the upload up at the same moment.

    """
    blob = record_blob(stored)
    with transaction.atomic():
        row = Upload.objects.select_for_update().filter(pk=upload.pk).first()
        if row is None:
            raise NotFound("This upload was given up meanwhile.", code="upload_not_found")
        if row.completed_at is None:
            row.blob = blob
            row.completed_at = timezone.now()
            row.save(update_fields=["blob", "completed_at"])
            record_event(
                actor,
                "upload.complete",
                target=row.filename or str(row.pk),
                sha256=blob.sha256,
                size_bytes=blob.size_bytes,
            )
    return row


def cancel_upload(*, actor: Actor, upload: Upload) -> None:
    """Give an upload up; what had arrived is deleted (a finished one only forgets its id)."""
    require_scope(actor, "write")
    default_storage().discard_upload(str(upload.pk))
    Upload.objects.owned_by(actor).filter(pk=upload.pk).delete()


def expire_uploads() -> int:
    """Delete uploads whose time is over, with their bytes; returns how many."""
    expired = Upload.objects.filter(expires_at__lte=timezone.now())
    storage, count = default_storage(), 0
    for upload in expired.iterator():
        if upload.blob_id is None:
            storage.discard_upload(str(upload.pk))
        upload.delete()
        count += 1
    # What a process that died left behind has no row, or none any more.
    storage.sweep_spool(older_than_seconds=settings.UPLOAD_EXPIRES_SECONDS)
    return count
