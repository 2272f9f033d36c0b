"""What blobs have in common is stored once: those that share enough are put together of pieces.

It happens in the background, to bytes that are some time old. A blob is cut and each piece hashed;
the outline is kept. While nobody else has enough of these pieces it stays whole, which is the
fastest to read. When a blob comes that has, it is put together of pieces, and then the other one is
looked at again. See ADR 0031.

Nothing of what is kept here in the database has to be true for bytes to be safe.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Protocol

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from registry.errors import NotFound, StorageFull, Text, Unavailable
from registry.models import MIN_SEGMENTED_BYTES, Blob, Layout, Namespace, Outline, Version
from registry.services.blobs import lock_bytes
from registry.storage import (
    Piece,
    Segments,
    Uncoded,
    default_storage,
    pack_pieces,
    unpack_pieces,
)

logger = logging.getLogger(__name__)

_SKETCH = 64
# How many blobs that seem to share something are compared piece by piece.
_KIN = 50
# What has to be saved at least: so much of the blob, and not less than so many bytes.
_WORTH_SHARE = 1 / 20
_WORTH_BYTES = 1 << 20
# What coding is hoped to gain, so that it is tried: of bfloat16 a third, of float16 half of that.
_GAIN = 1 / 3
# How many blobs that are in pieces are coded between two looks at what is new.
_ANEW_AT_ONCE = 32


class CutLike(Protocol):
    """Where a piece ends, and the width of its numbers where they are halves."""

    @property
    def end(self) -> int: ...
    @property
    def width(self) -> int: ...


Cutter = Callable[[int, Callable[[int, int], bytes]], Iterator[CutLike]]
# Is told how many bytes were gone through; may wait, or raise to end the work.
WentOn = Callable[[int], None]


def segment_blobs(*, cut: Cutter, went_on: WentOn) -> int:
    """Look at each blob whose time has come; give how many were put together of pieces.

    It may end anywhere and goes on from there the next time. Where blobs are in a bucket, or
    encrypted, all of them stay whole.
    """
    storage = default_storage()
    segments = storage.segments
    if segments is None or storage.keys is not None or not settings.SEGMENT_AFTER_SECONDS:
        return 0
    before = timezone.now() - timedelta(seconds=settings.SEGMENT_AFTER_SECONDS)
    count = anew = 0
    with segments.turn() as mine:
        for blob in _due(before) if mine and segments.can_link() else ():
            try:
                if _is_only_in_pieces(blob, segments) and is_to_be_coded(blob):
                    # These can wait; what is whole still must not wait for all of them.
                    if anew < _ANEW_AT_ONCE:
                        anew += _code_anew(blob, segments, cut, went_on)
                else:
                    count += _look_at(blob, segments, cut, went_on)
            except NotFound:
                _find_out(blob, segments)
            except StorageFull as full:
                logger.warning("No room to put %s together: %s", blob.sha256, full)
                break
            except OSError as failure:
                # A bad sector in one file must not keep the others; it is tried again.
                logger.error("%s cannot be read: %s", blob.sha256, failure)  # noqa: TRY400 - as below
            except Unavailable as damage:
                logger.error("%s", damage)  # noqa: TRY400 - its words say all there is
                _note(blob, Layout.SEGMENTED if segments.has(blob.sha256) else Layout.SEEN)
    return count + anew


def _due(before: datetime) -> Iterator[Blob]:
    """Give the blobs to be looked at, oldest first; each once, whatever becomes of it."""
    rows = Blob.objects.filter(
        layout=Layout.WHOLE,
        size_bytes__gte=MIN_SEGMENTED_BYTES,
        created_at__lte=before,
        condemned_at=None,
    ).order_by("created_at", "pk")
    found = rows.first()
    while found is not None:
        yield found
        later = Q(created_at__gt=found.created_at) | Q(created_at=found.created_at, pk__gt=found.pk)
        found = rows.filter(later, created_at__gte=found.created_at).first()


def _look_at(blob: Blob, segments: Segments, cut: Cutter, went_on: WentOn) -> bool:
    """Put a blob together of pieces where that saves enough, or where it was so and was healed."""
    pieces = _pieces_of(blob, cut, went_on)
    if pieces is None:
        return False
    if _is_only_in_pieces(blob, segments):
        _note(blob, Layout.SEGMENTED)
        return False
    was_in_pieces = segments.has(blob.sha256)
    kin = _kin_of(blob, pieces)
    theirs = {piece.sha256 for others in kin.values() for piece in others}
    coded = is_to_be_coded(blob)
    shared = shared_bytes(
        pieces, lambda one: one.sha256 in theirs or segments.holds(one, coded=coded)
    )
    halves = sum(piece.size_bytes for piece in pieces if piece.width) if coded else 0
    if not was_in_pieces and not is_worth(shared + int(halves * _GAIN), blob.size_bytes):
        _note(blob, Layout.SEEN)
        return False
    draft = segments.draft(blob.sha256, pieces, went_on, coded=coded)
    try:
        gained = blob.size_bytes - segments.room_of(draft)
        if not was_in_pieces and not is_worth(max(shared, gained), blob.size_bytes):
            _note(blob, Layout.SEEN)
            return False
        with transaction.atomic():
            # Who records the same bytes must not count on the copy that is about to go, and who
            # collects them removes all there is.
            lock_bytes(blob.sha256)
            if not Blob.objects.select_for_update().filter(pk=blob.pk).exists():
                return False
            segments.adopt(draft)
            # Weights that were linked as they lay, plain, are coded the next time.
            _note(blob, Layout.WHOLE if was_in_pieces and coded else Layout.SEGMENTED)
    finally:
        segments.drop(draft)
    _call_again(pieces, kin)
    return True


def _code_anew(blob: Blob, segments: Segments, cut: Cutter, went_on: WentOn) -> bool:
    """Code the weights of a blob that was put together before anybody asked for that.

    A whole copy stands beside the pieces while these are replaced, so that whenever it ends, the
    blob is whole, or in pieces, or both.
    """
    pieces = _pieces_of(blob, cut, went_on)
    if pieces is None:
        return False
    willing = _willing_kin(blob, pieces)
    anew = _to_be_coded(segments.uncoded(blob.sha256), segments, willing)
    halves = sum(piece.size_bytes for piece in pieces if piece.sha256 in anew)
    if not is_worth(int(halves * _GAIN), blob.size_bytes):
        _note(blob, Layout.SEGMENTED)
        return False
    draft = segments.draft(blob.sha256, pieces, went_on, coded=True, anew=anew)
    copy = None
    try:
        gained = segments.room(blob.sha256) - segments.room_of(draft)
        if not is_worth(gained, blob.size_bytes):
            _note(blob, Layout.SEGMENTED)
            return False
        copy = segments.copy_whole(blob.sha256, went_on)
        with transaction.atomic():
            lock_bytes(blob.sha256)
            if not Blob.objects.select_for_update().filter(pk=blob.pk).exists():
                return False
            segments.place_whole(copy)
            segments.adopt(draft)
            _note(blob, Layout.SEGMENTED)
    finally:
        segments.drop(draft)
        if copy is not None:
            segments.drop(copy)
    for key, theirs in willing.items():
        if anew & {piece.sha256 for piece in theirs}:
            # They hold it plain still, or the room that it took is not free yet.
            Blob.objects.filter(pk=key, layout=Layout.SEGMENTED).update(layout=Layout.WHOLE)
    return True


def _willing_kin(blob: Blob, pieces: list[Piece]) -> dict[int, list[Piece]]:
    """Find blobs in pieces that have some in common, and whose holders want them coded too."""
    found = Outline.objects.filter(sketch__overlap=_sketch_of(pieces), blob__condemned_at=None)
    others = found.exclude(blob=blob).exclude(blob__layout=Layout.SEEN).select_related("blob")
    return {
        row.blob_id: unpack_pieces(bytes(row.pieces))
        for row in others.order_by("-blob")[:_KIN]
        if is_to_be_coded(row.blob)
    }


def _to_be_coded(
    plain: Iterable[Uncoded], segments: Segments, willing: dict[int, list[Piece]]
) -> frozenset[bytes]:
    """Choose what to code: what lies coded already, or what nobody else needs plain.

    Where others keep a piece plain, coding it would take more room, not less.
    """
    held = Counter(
        digest for theirs in willing.values() for digest in {piece.sha256 for piece in theirs}
    )
    return frozenset(
        one.piece.sha256
        for one in plain
        if segments.is_coded(one.piece) or one.others <= held[one.piece.sha256]
    )


def _pieces_of(blob: Blob, cut: Cutter, went_on: WentOn) -> list[Piece] | None:
    """Give the pieces of a blob, as they were remembered or by reading it; None if it is gone."""
    known = Outline.objects.filter(blob=blob).first()
    if known is not None:
        return unpack_pieces(bytes(known.pieces))
    pieces = _cut(blob, cut, went_on)
    with transaction.atomic():
        if not Blob.objects.select_for_update(no_key=True).filter(pk=blob.pk).exists():
            return None
        Outline.objects.update_or_create(
            blob=blob, defaults={"pieces": pack_pieces(pieces), "sketch": _sketch_of(pieces)}
        )
    return pieces


def _cut(blob: Blob, cut: Cutter, went_on: WentOn) -> list[Piece]:
    storage = default_storage()

    def read(start: int, end: int) -> bytes:
        return storage.read(blob.sha256, start=start, end=end)

    whole, pieces, start = hashlib.sha256(), list[Piece](), 0
    for border in cut(blob.size_bytes, read):
        content = read(start, border.end)
        whole.update(content)
        pieces.append(Piece(hashlib.sha256(content).digest(), len(content), border.width))
        start = border.end
        went_on(len(content))
    if whole.hexdigest() != blob.sha256:
        raise Unavailable(
            "The stored bytes of {sha256} are damaged: {reason}. Restore them from a backup, or "
            "upload the file again.",
            code="stored_bytes_damaged",
            sha256=blob.sha256,
            reason=Text("they have another digest by now"),
        )
    return pieces


def _sketch_of(pieces: Iterable[Piece]) -> list[int]:
    digests = sorted({piece.sha256[:8] for piece in pieces})[:_SKETCH]
    return [int.from_bytes(digest, "big", signed=True) for digest in digests]


def _kin_of(blob: Blob, pieces: list[Piece]) -> dict[int, list[Piece]]:
    """Find blobs that stayed whole so far and seem to share something; give their pieces."""
    found = Outline.objects.filter(sketch__overlap=_sketch_of(pieces), blob__condemned_at=None)
    others = found.exclude(blob=blob).exclude(blob__layout=Layout.SEGMENTED).order_by("-blob")
    return {row.blob_id: unpack_pieces(bytes(row.pieces)) for row in others[:_KIN]}


def is_to_be_coded(blob: Blob) -> bool:
    """Say whether all who have these bytes want weights coded: reading them takes longer then."""
    holding = Namespace.objects.filter(
        repositories__versions__in=Version.objects.live().filter(revision__artifacts__blob=blob)
    )
    wishes = set(holding.values_list("compress_weights", flat=True))
    return wishes == {True}


def shared_bytes(pieces: Iterable[Piece], is_there: Callable[[Piece], bool]) -> int:
    """Add up what need not be stored again: others have it, or this blob has it twice."""
    shared, mine = 0, set[bytes]()
    for piece in pieces:
        if piece.sha256 in mine or is_there(piece):
            shared += piece.size_bytes
        mine.add(piece.sha256)
    return shared


def is_worth(saved: int, size_bytes: int) -> bool:
    """Say whether so much is enough for a blob to be put together of pieces."""
    return saved >= max(_WORTH_BYTES, size_bytes * _WORTH_SHARE)


def _call_again(pieces: Iterable[Piece], kin: dict[int, list[Piece]]) -> None:
    """Have those looked at again that gain from a blob whose pieces are stored by now."""
    mine = {piece.sha256 for piece in pieces}
    gaining = [
        key
        for key, others in kin.items()
        if is_worth(
            sum(one.size_bytes for one in others if one.sha256 in mine),
            sum(one.size_bytes for one in others),
        )
    ]
    for key in gaining:
        # One at a time: collectors change many rows at once, in an order of their own.
        Blob.objects.filter(pk=key, layout=Layout.SEEN).update(layout=Layout.WHOLE)


def _is_only_in_pieces(blob: Blob, segments: Segments) -> bool:
    """Say whether nothing but its pieces are there, as they were: no copy that was sent to heal."""
    return segments.has(blob.sha256) and not default_storage().is_whole(blob.sha256)


def _find_out(blob: Blob, segments: Segments) -> None:
    """Note of a blob that is not stored whole what can be said of it."""
    if segments.has(blob.sha256):
        # A process that died had come so far, or the database is older than the disk.
        _note(blob, Layout.SEGMENTED)
    else:
        # Nothing is concluded from a disk that is not there today.
        logger.info("%s is not there to be looked at", blob.sha256)


def _note(blob: Blob, layout: Layout) -> None:
    Blob.objects.filter(pk=blob.pk).update(layout=layout)
