"""Bytes that arrived become blobs, and are looked into once, by their headers only."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection, transaction

from registry.errors import Invalid, NotFound, Saying, Text, Unavailable, unpack
from registry.formats import INSPECTOR, SAFE_FORMATS, Facts, inspect
from registry.models import (
    Actor,
    Artifact,
    Blob,
    Derivative,
    DirectUpload,
    Inspection,
    Layout,
    Repository,
    Upload,
    Verdict,
    ending_of,
)
from registry.permissions import allowed
from registry.services.texts import invalid_field
from registry.storage import Stored, default_storage

# Formats that jobs and serving open themselves; see ADR 0004.
RUNNABLE = frozenset({"safetensors", "onnx", "myz"})
# Formats that the sandbox can turn into one of those; see ADR 0018.
CONVERTIBLE = frozenset({"torch-zip", "torch-legacy", "torchscript", "pt2", "npz"})
# The inspector that looks inside, in the sandbox, and only annotates.
SANDBOX_INSPECTOR = "sandbox-1"
# Among the facts of a file that was taken in once and would be refused today.
_REFUSED = "refused"
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def record_blob(stored: Stored) -> Blob:
    """Keep the row of bytes that the storage holds; the same bytes are one row.

    The garbage collector takes the same lock: either it finds this row, or it had taken the bytes
    before and they are missed here.

    Raises:
        Unavailable: the bytes were collected at this very moment; sent again they stay.

    """
    with transaction.atomic():
        lock_bytes(stored.sha256)
        blob, _ = Blob.objects.get_or_create(
            sha256=stored.sha256,
            defaults={"size_bytes": stored.size_bytes, "git_sha1": stored.git_sha1 or ""},
        )
        if blob.condemned_at is not None:
            blob.condemned_at = None
            blob.save(update_fields=["condemned_at"])
        storage = default_storage()
        if not storage.exists(stored.sha256):
            raise collected_meanwhile()
        if blob.layout == Layout.SEGMENTED and storage.is_whole(stored.sha256):
            # What was in pieces was damaged, and has just been healed.
            blob.layout = Layout.WHOLE
            blob.save(update_fields=["layout"])
    return blob


def hold_blobs(blobs: Iterable[Blob]) -> None:
    """Keep blobs from being collected until the transaction that is to refer to them ends.

    Raises:
        Unavailable: one of them was collected just now.

    """
    wanted = sorted({blob.pk for blob in blobs})
    with connection.cursor() as cursor:
        # A shared lock, as PostgreSQL itself takes it for a foreign key, only earlier: ours are
        # checked when the transaction ends.
        cursor.execute("SELECT id FROM registry_blob WHERE id = ANY(%s) FOR KEY SHARE", [wanted])
        found = cursor.fetchall()
    if len(found) != len(wanted):
        raise collected_meanwhile()


def lock_bytes(sha256: str) -> None:
    """Let nobody else record or collect these bytes until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_lock_number(sha256)])


def try_lock_bytes(sha256: str) -> bool:
    """Take the same lock where nobody has it; give whether it was free."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_lock_number(sha256)])
        row = cursor.fetchone()
    return bool(row[0])


def _lock_number(sha256: str) -> int:
    """Make a number for PostgreSQL of a digest; two that share one only wait for each other."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), "big", signed=True)


def collected_meanwhile() -> Unavailable:
    return Unavailable(
        "The bytes were unused and were removed at this very moment; send the file again.",
        code="bytes_collected",
    )


def inspect_blob(path: str, blob: Blob) -> Inspection:
    """Return what the headers of a blob say, reading them at most once for each inspector.

    Raises:
        Invalid: the file is malformed, or `path` has the extension of another format.

    """
    inspector = _inspector_of(path)
    known = Inspection.objects.filter(blob=blob, inspector=inspector).first()
    if known is not None and _REFUSED not in known.facts:
        return known
    storage = default_storage()
    facts = inspect(
        path,
        blob.size_bytes,
        lambda start, end: storage.read(blob.sha256, start=start, end=end),
    )
    row, _ = Inspection.objects.get_or_create(
        blob=blob,
        inspector=inspector,
        defaults={
            "format": facts.format,
            "verdict": _verdict(facts),
            "facts": facts.to_json(),
            **_findings([Saying.of(finding) for finding in facts.findings]),
        },
    )
    return row


def inspect_kept(path: str, blob: Blob) -> Inspection:
    """Return what the present readers say of a file that was taken in before, by older ones maybe.

    What they would refuse today is held: it is there, but nothing opens it.
    """
    inspector = _inspector_of(path)
    known = Inspection.objects.filter(blob=blob, inspector=inspector).first()
    if known is not None:
        return known
    try:
        return inspect_blob(path, blob)
    except Invalid as refusal:
        return _hold_refused(blob, path, refusal)


def _hold_refused(blob: Blob, path: str, refusal: Invalid) -> Inspection:
    earlier = Inspection.objects.by_readers(path).filter(blob=blob).order_by("-pk").first()
    why = Text("Its reader refuses it today: {reason}", reason=refusal)
    row, _ = Inspection.objects.get_or_create(
        blob=blob,
        inspector=_inspector_of(path),
        defaults={
            "format": earlier.format if earlier else "opaque",
            "verdict": Verdict.QUARANTINED,
            "facts": {_REFUSED: True},
            **_findings([Saying.of(why)]),
        },
    )
    return row


def _findings(sayings: Sequence[Saying]) -> dict[str, list[Any]]:
    return {
        "findings": [one.detail for one in sayings],
        "findings_said": [one.said for one in sayings],
    }


def _inspector_of(path: str) -> str:
    """Name the readers that look at `path`.

    The ending is part of it: some formats have no magic, so the name asks for the check.
    """
    return f"{INSPECTOR}{ending_of(path)}"


def inspection_of(artifact: Artifact | Derivative) -> Inspection | None:
    """Give what readers found in a file, of the inspections its blob came with.

    Until the present readers have looked, what older ones found stands; what any of them holds back
    comes first, as `registry.services.transfers` has it.
    """
    ending = ending_of(artifact.path)
    rows = [
        row
        for row in artifact.blob.inspections.all()
        if row.inspector != SANDBOX_INSPECTOR and row.inspector == f"{row.reader}{ending}"
    ]
    return max(
        rows,
        key=lambda row: (row.verdict == Verdict.QUARANTINED, row.reader == INSPECTOR),
        default=None,
    )


def sandbox_inspection_of(artifact: Artifact) -> Inspection | None:
    """Give what the sandbox found in a file, of the inspections its blob came with."""
    rows = artifact.blob.inspections.all()
    return next((row for row in rows if row.inspector == SANDBOX_INSPECTOR), None)


def record_findings(
    blob: Blob, *, format_name: str, imports: Sequence[str], findings: Sequence[Saying]
) -> Inspection:
    """Keep what the sandbox saw inside a file that can run code; it stays quarantined."""
    row, _ = Inspection.objects.update_or_create(
        blob=blob,
        inspector=SANDBOX_INSPECTOR,
        defaults={
            "format": format_name,
            "verdict": Verdict.QUARANTINED,
            "facts": {"imports": list(imports)},
            **_findings(findings),
        },
    )
    return row


def _verdict(facts: Facts) -> str:
    if facts.executable:
        return Verdict.QUARANTINED
    return Verdict.SAFE if facts.format in SAFE_FORMATS else Verdict.OPAQUE


def find_readable_blob(actor: Actor, sha256: str) -> Blob:
    """Find bytes by digest among those the actor may read or has uploaded; nothing else exists.

    Raises:
        NotFound: unknown, or not theirs to know about.

    """
    digest = sha256.lower()
    # Asked for by digest at once: looking first whether there are such bytes at all would tell, by
    # the time that it takes, of bytes that the actor may not know about.
    if _DIGEST.fullmatch(digest) and (
        Upload.objects.owned_by(actor).filter(blob__sha256=digest).exists()
        or _may_reuse(actor, digest)
    ):
        blob = Blob.objects.filter(sha256=digest).first()
        if blob is not None:
            return blob
    raise NotFound(
        "There are no bytes {sha256!r} that you may read; upload the file first.",
        code="blob_not_found",
        sha256=sha256[:64],
    )


def _may_reuse(actor: Actor, digest: str) -> bool:
    """Say whether the actor may have these bytes: to read a file that runs code is not enough."""
    found = Artifact.objects.readable_by(actor).filter(blob__sha256=digest)
    readable = found.select_related("blob").first()
    if readable is None or not is_quarantined(readable.blob):
        return readable is not None
    repositories = Repository.objects.filter(
        pk__in=found.values("revision__repository")
    ).select_related("namespace")
    return any(allowed(actor, "write", repository) for repository in repositories)


def is_quarantined(blob: Blob) -> bool:
    """Say whether readers saw, under whatever name, that these bytes can run code."""
    held = Inspection.objects.by_readers().filter(verdict=Verdict.QUARANTINED)
    return held.filter(blob=blob).exists()


def find_uploaded_blob(actor: Actor, upload_id: str) -> Blob:
    """Find the blob that a finished upload of the actor became.

    Raises:
        NotFound: the actor has no such upload.
        Invalid: it is not finished yet.

    """
    mine = Upload.objects.owned_by(actor).select_related("blob", "direct")
    upload = mine.filter(pk=upload_id).first()
    if upload is None:
        raise NotFound("You have no upload {upload}.", code="upload_not_found", upload=upload_id)
    if upload.blob is None and hasattr(upload, "direct"):
        raise _unchecked(upload.direct)
    if upload.blob is None:
        raise invalid_field(
            "files",
            "upload_unfinished",
            "The upload {upload} is not finished; send the rest with PATCH first.",
            upload=upload_id,
        )
    return upload.blob


def _unchecked(direct: DirectUpload) -> Invalid:
    """Say why there is nothing to use yet of what a client put into the bucket."""
    if direct.error_said is not None:
        return invalid_field(
            "files",
            direct.error_code,
            "The upload {upload} cannot be used. {reason}",
            upload=str(direct.pk),
            reason=unpack(direct.error_said),
        )
    if direct.received_at is not None:
        return invalid_field(
            "files",
            "upload_unchecked",
            "The upload {upload} is still being checked; ask for it until its state is complete.",
            upload=str(direct.pk),
        )
    return invalid_field(
        "files",
        "upload_unfinished",
        "The upload {upload} is not finished; send its parts, then complete it.",
        upload=str(direct.pk),
    )
