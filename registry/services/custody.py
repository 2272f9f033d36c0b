"""Stored bytes looked after: encrypted when a master key came later, checked against digests."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from django.db import transaction
from django.db.models import QuerySet

from registry.errors import RegistryError, Text, Unavailable
from registry.models import Artifact, Blob, Layout
from registry.services.blobs import lock_bytes
from registry.storage import Storage, Treated, default_storage, only_damage, unreadable

_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Checked:
    """One blob that was read: what is wrong with it, if anything, and who would miss it."""

    sha256: str
    size_bytes: int
    problem: str = ""
    files: list[str] = field(default_factory=list)


def encrypt_blobs() -> Iterator[Treated]:
    """Encrypt what was stored plain; yield what became of each blob that was looked at.

    Safe beside readers and writers, and to break off and repeat: a blob is encrypted as a whole
    before its plain copy goes.
    """
    storage = default_storage()
    storage.require_keys()
    for sha256, _ in storage.plain_inventory():
        try:
            changed = _encrypt(storage, sha256)
        except (Unavailable, OSError) as error:
            yield Treated(sha256, problem=only_damage(sha256, error).detail)
        else:
            yield Treated(sha256, changed=changed)


def _encrypt(storage: Storage, sha256: str) -> bool:
    sealed = storage.encrypt(sha256)
    with transaction.atomic():
        # Who records the same bytes must not count on the copy that is about to go.
        lock_bytes(sha256)
        dropped = storage.drop_plain(sha256)
        if dropped:
            pieces = Blob.objects.filter(sha256=sha256, layout=Layout.SEGMENTED)
            pieces.update(layout=Layout.WHOLE)
    return sealed or dropped


def verify_blobs(*, sample: int | None = None) -> Iterator[Checked]:
    """Read every blob that has a row, or some picked at random, and compare what it is."""
    rows = Blob.objects.order_by("pk") if sample is None else Blob.objects.order_by("?")[:sample]
    for blob in rows.iterator():
        problem = _problem_of(blob)
        if problem and not Blob.objects.filter(pk=blob.pk).exists():
            continue  # collected meanwhile, as it should be
        yield Checked(
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            problem=problem,
            files=_files_of(blob) if problem else [],
        )


def _problem_of(blob: Blob) -> str:
    digest, size = hashlib.sha256(), 0
    try:
        for block in default_storage().open(blob.sha256):
            digest.update(block)
            size += len(block)
    except RegistryError as error:
        return error.detail
    except OSError as error:
        return unreadable(blob.sha256, error).detail
    if size != blob.size_bytes:
        return Text(
            "{found} bytes are stored, not {expected}.", found=size, expected=blob.size_bytes
        ).detail
    if digest.hexdigest() != blob.sha256:
        return Text("The stored bytes have sha256 {digest}.", digest=digest.hexdigest()).detail
    return ""


def _files_of(blob: Blob) -> list[str]:
    """Name some files of versions whose bytes these are."""
    found: QuerySet[Artifact] = blob.artifacts.select_related("revision__repository__namespace")
    names = []
    for artifact in found.order_by("pk")[:_NAMED]:
        versions = artifact.revision.versions.order_by("number").values_list("number", flat=True)
        repository = artifact.revision.repository.full_name
        names += [f"{repository}@{number}/{artifact.path}" for number in versions]
    return names
