"""Vectors of cards: what is new or changed is read to the encoder, batch by batch.

It may end anywhere and goes on where it was: beside each vector stand the digest of the text that
was read and when. Nothing is written where the encoder is away.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from django.db import transaction
from django.db.models import Exists, OuterRef

from registry.encoder import Encoded, EncoderAway, encode
from registry.lexicon import english_of, pieces_of
from registry.meaning import can_compare
from registry.models import CardVector, Kind, Repository

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 16
_BATCH_SECONDS: Final = 60.0
_CARD_CHARACTERS: Final = 4000
# Rows are read in the order in which they changed. What a transaction changed and kept to itself
# for less than this is not missed.
_SLACK: Final = timedelta(hours=1)


def encode_cards(*, seconds: float = 12, everything: bool = False) -> int:
    """Give vectors to cards that have none or an older one, for so long; say how many went.

    With `everything` it looks at all rows, and finds those that were loaded with older times.
    """
    until = time.monotonic() + seconds
    if not can_compare():
        return 0
    try:
        encoder = encode(["model"], seconds=_BATCH_SECONDS).encoder
    except EncoderAway as away:
        logger.debug("Cards wait for their vectors: %s", away)
        return 0
    count = 0
    for kind in Kind.values:
        for rows in _changed(kind, encoder, everything=everything):
            if time.monotonic() >= until:
                return count
            try:
                count += _encode(rows, encoder)
            except EncoderAway as away:
                logger.warning("The encoder went away: %s", away)
                return count
    return count


def text_of(repository: Repository) -> str:
    """Give what a card says of a model to somebody who reads English."""
    said = [
        pieces_of(repository.name),
        repository.task.replace("-", " "),
        repository.summary,
        ", ".join(repository.labels),
        repository.card_text[:_CARD_CHARACTERS],
    ]
    return english_of(". ".join(part for part in said if part))


def _changed(kind: str, encoder: str, *, everything: bool) -> Iterator[Sequence[Repository]]:
    living = Repository.objects.filter(kind=kind, deleted_at=None)
    is_read = Exists(
        CardVector.objects.filter(
            repository_id=OuterRef("pk"), encoder=encoder, read_at__gte=OuterRef("updated_at")
        )
    )
    rows = living.exclude(is_read)
    last = living.filter(is_read).order_by("-updated_at", "-pk").first()
    if last is not None and not everything:
        rows = rows.filter(updated_at__gte=last.updated_at - _SLACK)
    after: tuple[datetime, int] | None = None
    while True:
        left = rows
        if after is not None:
            left = left.filter(updated_at__gte=after[0]).exclude(
                updated_at=after[0], pk__lte=after[1]
            )
        found = list(left.order_by("updated_at", "pk")[:_AT_ONCE])
        if found:
            yield found
        if len(found) < _AT_ONCE:
            return
        after = (found[-1].updated_at, found[-1].pk)


def _encode(rows: Sequence[Repository], encoder: str) -> int:
    """Encode what says something else than it did, and write down that the rest does not."""
    texts = {row.pk: text_of(row) for row in rows}
    digests = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}
    read_at = {row.pk: row.updated_at for row in rows}
    same = {
        known.pk
        for known in CardVector.objects.filter(pk__in=texts, encoder=encoder).defer("embedding")
        if known.digest == digests[known.pk]
    }
    for key in same:
        CardVector.objects.filter(pk=key).update(read_at=read_at[key])
    changed = [key for key in texts if key not in same]
    if changed:
        encoded = encode([texts[key] for key in changed], seconds=_BATCH_SECONDS)
        _keep(changed, encoded, digests, read_at)
    return len(rows)


def _keep(
    keys: Sequence[int],
    encoded: Encoded,
    digests: Mapping[int, str],
    read_at: Mapping[int, datetime],
) -> None:
    with transaction.atomic():
        # Somebody may have purged one meanwhile.
        rows = Repository.objects.filter(pk__in=keys).order_by("pk")
        left = set(rows.select_for_update(of=("self",), no_key=True).values_list("pk", flat=True))
        CardVector.objects.bulk_create(
            [
                CardVector(
                    repository_id=key,
                    encoder=encoded.encoder,
                    digest=digests[key],
                    read_at=read_at[key],
                    embedding=vector,
                )
                for key, vector in zip(keys, encoded.vectors, strict=True)
                if key in left
            ],
            update_conflicts=True,
            unique_fields=["repository"],
            update_fields=["encoder", "digest", "read_at", "embedding"],
        )
