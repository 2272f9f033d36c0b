"""Search by meaning: the repositories whose cards lie nearest to what somebody looks for.

Vectors only add to what words find and put it in order; where there are none, because the database
has no pgvector or the encoder is away, a search goes on by its words.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from django.db import OperationalError, connection, transaction
from django.db.models import Case, F, FloatField, Func, OuterRef, Subquery, Value, When
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast, Coalesce, Ln
from django.db.models.lookups import GreaterThan

from registry.encoder import vector_of
from registry.lexicon import english_of
from registry.models import CardVector
from registry.models.catalog import RepositoryQuerySet
from registry.models.vectors import TABLE, HalfVector
from registry.query_language import Asked
from registry.readings import what_stands

logger = logging.getLogger(__name__)

# So many of the nearest join what words find, and none that is much farther than the very nearest.
NEAREST: Final = 50
LEAST_COSINE: Final = 0.15
LEAST_SHARE: Final = 0.5
# What a point of each is worth; measured on the relevance set (python -m benchmarks relevance).
WEIGHTS: Final[Mapping[str, float]] = {
    "cosine": 1.0,
    "covered": 0.35,
    "words": 0.1,
    "name": 0.03,
    "downloads": 0.002,
    "quality": 0.01,
    "cost": 0.001,
}
# What words count for where a row has only some of them: half a need is easily another one.
SOME_WORDS: Final = 0.3
_STATEMENT_MILLISECONDS: Final = 300
_LOOKED_FOR_SECONDS: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Meant:
    """The vector of what was asked, and the cosines of the nearest that the asker may see."""

    encoder: str
    vector: str
    near: Mapping[int, float]

    def cosine(self, repository_id: str = "pk") -> Combinable:
        """Give the cosine of any row's card to what was asked; 0 where it has no vector yet."""
        return Coalesce(
            Subquery(
                CardVector.objects.filter(repository_id=OuterRef(repository_id))
                .filter(encoder=self.encoder)
                .values(cosine=1.0 - _distance(self.vector))
            ),
            Value(0.0),
            output_field=FloatField(),
        )


def meant_by(asked: Asked, among: RepositoryQuerySet) -> Meant | None:
    """Find what lies near the words of a query, of what may be found at all."""
    need = _need_of(asked)
    found = vector_of(need) if need else None
    if found is None or not can_compare():
        return None
    near = nearest(found.vector, found.encoder, among.filter(what_stands(asked)))
    return None if near is None else Meant(encoder=found.encoder, vector=found.vector, near=near)


def is_by_words_alone(asked: Asked) -> bool:
    """Say whether nobody can tell just now what these words mean, for the encoder is away.

    To be asked after a search: what was found out for that is remembered.
    """
    need = _need_of(asked)
    return bool(need) and can_compare() and vector_of(need) is None


def _need_of(asked: Asked) -> str:
    """Put the words of a query into English; empty where none of them is a word."""
    english = english_of(asked.text)
    return english if any(map(str.isalpha, english)) else ""


def blend(
    meant: Meant,
    *,
    name_match: Combinable,
    covered: Combinable,
    words: Combinable,
    downloads: Combinable,
    is_loose: bool,
) -> Combinable:
    """Weigh words and meaning against each other; an exact name stands before all.

    Every part is a number of the row alone, so that a page goes on where the one before ended.
    Between equals, what is used more, better by what was measured, and smaller comes first.
    """
    trust = SOME_WORDS if is_loose else 1.0
    exact = Case(When(GreaterThan(name_match, 2), then=Value(10.0)), default=Value(0.0))
    small = Case(
        When(parameters_count__gt=0, then=Ln(F("parameters_count") * 1.0)), default=Value(18.0)
    )
    return (
        exact
        + Value(WEIGHTS["cosine"]) * meant.cosine()
        + Value(trust * WEIGHTS["covered"]) * covered
        + Value(trust * WEIGHTS["words"]) * words
        + Value(WEIGHTS["name"]) * name_match
        + Value(WEIGHTS["downloads"]) * downloads
        + Value(WEIGHTS["quality"]) * Coalesce(F("quality"), Value(0.0))
        - Value(WEIGHTS["cost"]) * small
    ) * 1_000_000.0


def nearest(
    vector: str, encoder: str, among: RepositoryQuerySet, *, count: int = NEAREST
) -> dict[int, float] | None:
    """Give the cosines of the nearest of `among` by their keys; nothing where it takes too long."""
    rows = (
        CardVector.objects.filter(encoder=encoder, repository__in=among.order_by().values("pk"))
        .annotate(distance=_distance(vector))
        .order_by("distance")
        .values_list("repository_id", "distance")
    )
    try:
        with hurried():
            found = list(rows[:count])
    except OperationalError as error:
        logger.warning("Vectors were left out of a search: %s", error)
        return None
    cosines = {key: 1.0 - distance for key, distance in found}
    least = max(LEAST_COSINE, LEAST_SHARE * max(cosines.values(), default=0.0))
    return {key: cosine for key, cosine in cosines.items() if cosine >= least}


def _distance(vector: str) -> Func:
    return Func(
        F("embedding"),
        Cast(Value(vector), HalfVector()),
        template="(%(expressions)s)",
        arg_joiner=" <=> ",
        output_field=FloatField(),
    )


@contextmanager
def hurried() -> Iterator[None]:
    """Have scans of the index go on past what a filter drops, and give statements little time."""
    local = {"hnsw.iterative_scan": "strict_order", "hnsw.ef_search": "100"}
    if not connection.in_atomic_block:
        local["statement_timeout"] = str(_STATEMENT_MILLISECONDS)
    with transaction.atomic():
        with connection.cursor() as cursor:
            for name, value in local.items():
                cursor.execute("SELECT set_config(%s, %s, true)", [name, value])
        yield


class _Table:
    """Whether the database has the vectors' table; looked for again where it had none."""

    def __init__(self) -> None:
        self._has: dict[Any, bool] = {}
        self._looked = 0.0

    def is_there(self) -> bool:
        name = connection.settings_dict["NAME"]
        now = time.monotonic()
        if not self._has.get(name) and (
            name not in self._has or now - self._looked > _LOOKED_FOR_SECONDS
        ):
            with connection.cursor() as cursor:
                cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [TABLE])
                self._has[name] = cursor.fetchone()[0]
            self._looked = now
        return self._has[name]

    def forget(self) -> None:
        self._has.clear()


_table = _Table()


def forget_table() -> None:
    """Look again whether the database holds vectors."""
    _table.forget()


def can_compare() -> bool:
    """Say whether the database holds vectors."""
    return _table.is_there()
