"""Uploads straight to the bucket: signed parts, one object, then a worker that checks and moves it.

The bytes pass no process of ours on their way in. So nothing is said of them before a worker has
hashed them: until then the upload is not complete, and no version can be made of it.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from registry import queue
from registry.authenticate import Visit, actor_for_user
from registry.errors import Conflict, Invalid, NotFound, RegistryError, pack
from registry.formats import inspect
from registry.models import Actor, AuditAction, DirectUpload, Upload
from registry.permissions import require_scope
from registry.services.texts import invalid_field
from registry.services.uploads import (
    add_upload,
    complete_upload,
    no_upload,
    record_loss,
    require_room_in,
    upload_key,
)
from registry.storage import Incoming, default_storage

SIGNED_SECONDS = 15 * 60
MAX_SIGNED = 100
# How long a worker has an upload to itself; a second one would only do the same again.
_LEASE = timedelta(minutes=10)
_PAUSE = timedelta(seconds=30)

logger = logging.getLogger(__name__)


class SignedPart(NamedTuple):
    """Where one PUT of a part goes."""

    number: int
    url: str
    size_bytes: int
    expires_at: datetime


def begin_direct_upload(
    *, actor: Actor, length: int, filename: str = "", sha256: str = "", namespace: str = ""
) -> DirectUpload:
    """Begin an upload whose parts the client sends to the bucket itself.

    Raises:
        Conflict: this installation keeps its files elsewhere, or too many uploads are open.
        TooLarge: more bytes than this installation takes.
        NamespaceFull: the file has no room in the namespace that it is for.

    """
    require_scope(actor, "write")
    incoming = _incoming()
    require_room_in(actor, namespace, size_bytes=length, sha256=sha256)
    if length < 1:
        raise invalid_field(
            "length", "too_small", "An empty file has no parts; send it as a resumable upload."
        )
    with transaction.atomic():
        upload = add_upload(actor, length, filename, sha256)
        return DirectUpload.objects.create(
            upload=upload,
            parts_id=incoming.begin(str(upload.pk)),
            part_bytes=_part_bytes(length),
        )


def _part_bytes(length: int) -> int:
    """Choose parts of whole MiB, as many as S3 takes at most."""
    mib = 1024 * 1024
    least = -(-length // Incoming.MAX_PARTS)
    return max(Incoming.PART_BYTES, -(-least // mib) * mib)


def parts_count(direct: DirectUpload) -> int:
    return -(-direct.upload.length_bytes // direct.part_bytes)


def find_direct_upload(actor: Actor, upload_id: str) -> DirectUpload:
    """Find a direct upload of the actor's own that has not expired.

    Raises:
        NotFound: there is none.

    """
    require_scope(actor, "write")
    found = (
        DirectUpload.objects.select_related("upload__blob")
        .filter(
            pk=upload_key(upload_id),
            upload__in=Upload.objects.owned_by(actor),
            upload__expires_at__gt=timezone.now(),
        )
        .first()
    )
    if found is None:
        raise no_upload(upload_id)
    return found


def list_direct_uploads(actor: Actor, *, limit: int = 50) -> list[DirectUpload]:
    """List the actor's direct uploads that have not expired, newest first."""
    rows = DirectUpload.objects.select_related("upload__blob").filter(
        upload__in=Upload.objects.owned_by(actor), upload__expires_at__gt=timezone.now()
    )
    return list(rows.order_by("-upload__created_at")[:limit])


def sign_parts(*, actor: Actor, direct: DirectUpload, numbers: Sequence[int]) -> list[SignedPart]:
    """Sign the addresses of some parts; each takes one PUT of its part's length, for a while.

    Raises:
        Conflict: the parts were put together already.

    """
    require_scope(actor, "write")
    incoming, count = _incoming(), parts_count(direct)
    _require_open(direct)
    if not 1 <= len(numbers) <= MAX_SIGNED:
        raise invalid_field(
            "numbers", "bad_count", "Ask for 1 to {limit} parts at once.", limit=MAX_SIGNED
        )
    if not all(1 <= number <= count for number in numbers):
        raise invalid_field(
            "numbers", "out_of_range", "The parts are numbered from 1 to {count}.", count=count
        )
    expires_at = timezone.now() + timedelta(seconds=SIGNED_SECONDS)
    return [
        SignedPart(
            number,
            incoming.sign_part(
                str(direct.pk),
                direct.parts_id,
                number=number,
                size_bytes=(size := _length_of(direct, number)),
                seconds=SIGNED_SECONDS,
            ),
            size,
            expires_at,
        )
        for number in dict.fromkeys(numbers)
    ]


def _length_of(direct: DirectUpload, number: int) -> int:
    return min(direct.part_bytes, direct.upload.length_bytes - (number - 1) * direct.part_bytes)


def finish_direct_upload(
    *, actor: Actor, direct: DirectUpload, tags: Sequence[tuple[int, str]]
) -> DirectUpload:
    """Put the parts together, whose ETags are given by number, and let a worker check the whole.

    Asked again, it changes nothing.

    Raises:
        Invalid: a part is missing, named twice, or is not the one with that ETag.

    """
    require_scope(actor, "write")
    incoming = _incoming()
    if direct.received_at is None:
        incoming.complete(str(direct.pk), direct.parts_id, _in_order(direct, tags))
        now = timezone.now()
        with transaction.atomic():
            Upload.objects.filter(pk=direct.pk).update(
                expires_at=now + timedelta(seconds=settings.UPLOAD_EXPIRES_SECONDS)
            )
            DirectUpload.objects.filter(pk=direct.pk, received_at=None).update(received_at=now)
            transaction.on_commit(queue.wake_checks)
        direct.refresh_from_db()
    return direct


def _in_order(direct: DirectUpload, tags: Sequence[tuple[int, str]]) -> list[str]:
    count = parts_count(direct)
    named: Mapping[int, str] = dict(tags)
    if len(named) < len(tags):
        raise invalid_field("parts", "repeated", "A part is named twice; name each once.")
    missing = [number for number in range(1, count + 1) if number not in named]
    if missing:
        raise invalid_field(
            "parts",
            "part_missing",
            "Part {number} is missing; there are {count}.",
            number=missing[0],
            count=count,
        )
    if len(named) > count:
        raise invalid_field(
            "parts", "out_of_range", "The parts are numbered from 1 to {count}.", count=count
        )
    return [named[number] for number in range(1, count + 1)]


def _require_open(direct: DirectUpload) -> None:
    if direct.received_at is not None:
        raise Conflict("This upload is complete.", code="upload_complete")


def _incoming() -> Incoming:
    incoming = default_storage().incoming
    if incoming is None:
        raise Conflict(
            "The files of this installation are not in a bucket; send them as resumable uploads "
            "(tus) to /api/v1/uploads.",
            code="no_bucket",
        )
    return incoming


# --- What workers do -----------------------------------------------------------------------------


def check_received() -> int:
    """Check what clients have put into the bucket, one after the other; give how many."""
    if default_storage().incoming is None:
        return 0
    count = 0
    while (direct := _claim()) is not None:
        _check(direct)
        count += 1
    return count


def _claim() -> DirectUpload | None:
    with transaction.atomic():
        now = timezone.now()
        direct = (
            DirectUpload.objects.select_for_update(skip_locked=True, of=("self",))
            .select_related("upload__user")
            .filter(received_at__isnull=False, error_code="", upload__completed_at=None)
            .filter(Q(lease_expires_at=None) | Q(lease_expires_at__lt=now))
            .order_by("received_at", "pk")
            .first()
        )
        if direct is not None:
            direct.lease_expires_at = now + _LEASE
            direct.save(update_fields=["lease_expires_at"])
    return direct


def _check(direct: DirectUpload) -> None:
    """Hash one upload, look into its header, and move it; what is wrong with it is kept."""
    upload, incoming = direct.upload, _incoming()
    name = str(direct.pk)
    try:
        if upload.filename:
            inspect(
                upload.filename,
                upload.length_bytes,
                lambda start, end: incoming.read(name, start, end),
            )
        stored = incoming.keep(name, sha256=upload.sha256 or None, size_bytes=upload.length_bytes)
        visit = Visit(door="worker", request_id=name)
        complete_upload(actor=actor_for_user(upload.user, visit), upload=upload, stored=stored)
    except NotFound as error:
        # Given up meanwhile, or finished by a worker that was thought dead.
        logger.info("Upload %s was not checked: %s", name, error.detail)
        return
    except Invalid as error:
        _refuse(direct, error)
    except RegistryError as error:
        # Nothing is wrong with the file: the bucket does not answer, or a disk is full.
        logger.warning("Upload %s could not be checked: %s", name, error.detail)
        direct.lease_expires_at = timezone.now() + _PAUSE
        direct.save(update_fields=["lease_expires_at"])
        return
    incoming.discard(name, direct.parts_id)


@transaction.atomic
def _refuse(direct: DirectUpload, error: RegistryError) -> None:
    direct.error_code = error.reason
    direct.error_said = pack(error)
    direct.save(update_fields=["error_code", "error_said"])
    actor = actor_for_user(direct.upload.user, Visit(door="worker", request_id=str(direct.pk)))
    record_loss(actor, AuditAction.UPLOAD_REFUSE, direct.upload, code=error.reason)
