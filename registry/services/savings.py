"""How much room files do not take, because what they share lies there once.

What is told of it is counted among what its reader may see: the rest would tell what others have.
So it is not asked how these files lie, which depends on everybody's, but how they would if there
were no others; and how old a file is says its version, for others may have had its bytes before.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone

from registry.models import (
    MIN_SEGMENTED_BYTES,
    Actor,
    Artifact,
    AuditAction,
    Blob,
    Layout,
    LineageEdge,
    Namespace,
    Outline,
    Tally,
    Version,
)
from registry.models.artifacts import BlobQuerySet
from registry.permissions import require
from registry.services.audit import record_event
from registry.services.segments import is_worth, shared_bytes
from registry.storage import Piece, default_storage, unpack_pieces

# How many versions before one are asked what it shares with them, and how many of its parents.
_NEAR = 3
# The largest files of these, and those of them that were cut.
_FILES = 500
_OUTLINES = 40
_ASKED_AT_ONCE = 100


class Shared(NamedTuple):
    """What a version has in common with another, and is stored once."""

    version: Version
    size_bytes: int


def find_shared(actor: Actor, version: Version) -> Shared | None:
    """Find the version before this one, or the parent of it, with which it shares the most."""
    if version.size_bytes < MIN_SEGMENTED_BYTES:
        return None
    parents = LineageEdge.objects.filter(child=version).values("parent")
    seen = Version.objects.visible_to(actor).select_related("repository__namespace")
    before = seen.filter(repository_id=version.repository_id, number__lt=version.number)
    others = {
        other.pk: other
        for other in (
            *before.order_by("-number")[:_NEAR],
            *seen.filter(pk__in=parents).order_by("-pk")[:_NEAR],
        )
    }
    if not others:
        return None
    held = _files_of({version.revision_id, *(one.revision_id for one in others.values())})
    cut = _cut_before()
    old = [one.revision_id for one in (version, *others.values()) if one.created_at <= cut]
    pieces = _pieces_of({key for revision in old for key in held[revision]})
    mine = held[version.revision_id]
    shared = [
        Shared(other, _common_bytes(mine, held[other.revision_id], pieces))
        for other in others.values()
    ]
    best = max(shared, key=lambda one: one.size_bytes)
    return best if best.size_bytes else None


def _files_of(revisions: Iterable[int]) -> dict[int, dict[int, int]]:
    """Give the blobs of revisions and their lengths, the largest ones."""
    rows = Artifact.objects.filter(revision__in=revisions).order_by("-blob__size_bytes")
    held: dict[int, dict[int, int]] = {revision: {} for revision in revisions}
    found = rows.values_list("revision_id", "blob_id", "blob__size_bytes")
    for revision, blob, size_bytes in found[:_FILES]:
        held[revision][blob] = size_bytes
    return held


def _pieces_of(blobs: Iterable[int]) -> dict[int, dict[bytes, int]]:
    """Give the pieces of those blobs that share enough with the others."""
    if not _are_put_together():
        return {}
    rows = Outline.objects.filter(blob__in=blobs).order_by("-blob__size_bytes")[:_OUTLINES]
    cut = {row.blob_id: unpack_pieces(bytes(row.pieces)) for row in rows}
    held = Counter(digest for pieces in cut.values() for digest in {one.sha256 for one in pieces})
    often = {digest for digest, count in held.items() if count > 1}
    return {
        blob: {one.sha256: one.size_bytes for one in pieces}
        for blob, pieces in cut.items()
        if _shares_enough(pieces, often)
    }


def _shares_enough(pieces: list[Piece], often: set[bytes]) -> bool:
    shared = shared_bytes(pieces, lambda one: one.sha256 in often)
    return is_worth(shared, sum(one.size_bytes for one in pieces))


def _are_put_together() -> bool:
    """Say whether blobs are in pieces here at all, and do not stay whole."""
    storage = default_storage()
    return storage.segments is not None and storage.keys is None


def _cut_before() -> datetime:
    return timezone.now() - timedelta(seconds=settings.SEGMENT_AFTER_SECONDS)


def _common_bytes(
    mine: dict[int, int], theirs: dict[int, int], pieces: dict[int, dict[bytes, int]]
) -> int:
    same = mine.keys() & theirs.keys()
    known = {digest for blob in theirs for digest in pieces.get(blob, ())}
    parts: dict[bytes, int] = {}
    for blob in mine.keys() - same:
        parts |= {key: size for key, size in pieces.get(blob, {}).items() if key in known}
    return sum(mine[blob] for blob in same) + sum(parts.values())


def read_savings(*, actor: Actor, namespace: Namespace) -> Namespace:
    """Give a namespace with what its files save, for its members."""
    require(actor, "read", namespace)
    return Namespace.objects.get(pk=namespace.pk)


@transaction.atomic
def set_compression(*, actor: Actor, namespace: Namespace, compress_weights: bool) -> Namespace:
    """Have weights of 16 bits coded where they lie, or no longer; readers see no difference.

    What is stored already is looked at again in the background; what is coded stays so.
    """
    require(actor, "own", namespace)
    row = Namespace.objects.select_for_update(no_key=True).get(pk=namespace.pk)
    row.compress_weights = compress_weights
    row.save(update_fields=["compress_weights"])
    if compress_weights:
        held = _blobs_of(row).filter(layout__in=[Layout.SEEN, Layout.SEGMENTED])
        Blob.objects.filter(pk__in=held.values("pk")).update(layout=Layout.WHOLE)
    record_event(
        actor,
        AuditAction.NAMESPACE_STORAGE,
        namespace=row,
        target=row.slug,
        compress_weights=compress_weights,
    )
    return row


def recount_savings() -> None:
    """Count anew what is saved, of every namespace that saves anything and of all together."""
    segments = default_storage().segments
    if segments is None:
        return
    in_pieces = Blob.objects.filter(layout=Layout.SEGMENTED)
    holding = Q(repositories__revisions__artifacts__blob__outline__isnull=False)
    for row in Namespace.objects.filter(holding | ~Q(saved_bytes=0)).distinct():
        saved = _count(row) if _are_put_together() else 0
        if saved != row.saved_bytes:
            Namespace.objects.filter(pk=row.pk).update(saved_bytes=saved)
    total = in_pieces.aggregate(total=Sum("size_bytes"))["total"] or 0
    Tally.objects.update_or_create(
        name=Tally.SAVED_BYTES,
        defaults={
            "value": max(0, total - segments.stored_bytes()),
            "counted_at": timezone.now(),
        },
    )


def _count(namespace: Namespace) -> int:
    """Compare the lengths of a namespace's files with those of their pieces, each once.

    How long a piece is where it lies coded stays out of it, and so does whether it does: that may
    depend on what others have.
    """
    old = _blobs_of(namespace, before=_cut_before())
    rows = Outline.objects.filter(blob__in=old.values("pk"))
    once, often = set[bytes](), set[bytes]()
    for pieces in _each_cut(rows):
        mine = {piece.sha256 for piece in pieces}
        often |= mine & once
        once |= mine
    lengths, sizes = 0, dict[bytes, int]()
    for pieces in _each_cut(rows):
        if _shares_enough(pieces, often):
            lengths += sum(piece.size_bytes for piece in pieces)
            sizes |= {piece.sha256: piece.size_bytes for piece in pieces}
    return lengths - sum(sizes.values())


def _each_cut(rows: QuerySet[Outline]) -> Iterator[list[Piece]]:
    for outline in rows.iterator(_ASKED_AT_ONCE):
        # Eight bytes of the digest are enough for a number that is only shown.
        yield [
            piece._replace(sha256=piece.sha256[:8])
            for piece in unpack_pieces(bytes(outline.pieces))
        ]


def _blobs_of(namespace: Namespace, *, before: datetime | None = None) -> BlobQuerySet:
    present = Version.objects.live().filter(
        repository__namespace=namespace, repository__deleted_at=None
    )
    if before is not None:
        present = present.filter(created_at__lte=before)
    held = Artifact.objects.filter(revision__versions__in=present)
    return Blob.objects.filter(pk__in=held.values("blob_id"))
