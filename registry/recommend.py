"""Models that may serve in the place of another one, or suit a need, each with the reasons.

Alike is what lies near by the meaning of its card and does the same task; where there are no
vectors, what shares words with it. What the same people use, measured quality and size then
count, and are said. Nothing is told of what few people did.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import or_
from typing import Any, Final

from django.contrib.postgres.search import SearchQuery, SearchRank
from django.db import OperationalError
from django.db.models import Count, F

from registry.errors import Text
from registry.lexicon import long_words_in
from registry.meaning import can_compare, hurried, nearest
from registry.models import Actor, CardVector, Evaluation, Job, Repository
from registry.models.catalog import RepositoryQuerySet

MOST: Final = 6
# So many people have to have used both before anybody is told that some did.
LEAST_PEOPLE: Final = 5
_CONSIDERED: Final = 50
_PEOPLE: Final = 500
_WORDS: Final = 12
# What D, C, B and A of a `search_vector` count.
_WEIGHTS: Final = [0.1, 0.4, 0.4, 1.0]
# Cosines of cards from which on they say much the same, or something alike.
_MUCH, _SOMEWHAT = 0.7, 0.45
# Sizes closer than this are said to be none different.
_RATIO: Final = 1.2
_POINT: Final = 0.0005
# Of a search: among how many of the first rows something stands out, and how many it takes.
_FIRST: Final = 10
_WORTH_A_CHOICE: Final = 3


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A repository, how alike it is (from 0 to 1, and a little more for other merits), and why."""

    repository: Repository
    score: float
    reasons: Sequence[Text]
    by_meaning: bool = False
    """Whether what its card means was compared; else the words were."""


def similar_to(actor: Actor, repository: Repository) -> list[Similar]:
    """Find what may serve in its place among what the actor may see."""
    among = Repository.objects.visible_to(actor).filter(kind=repository.kind)
    among = among.exclude(pk=repository.pk)
    try:
        with hurried():
            return _similar(repository, among)
    except OperationalError:
        # It took too long; a page goes on without.
        return []


def _similar(repository: Repository, among: RepositoryQuerySet) -> list[Similar]:
    same_task = among.filter(task=repository.task) if repository.task else among
    by_vectors = _near(repository, same_task)
    alike = by_vectors if by_vectors is not None else _with_words(repository, same_task)
    has_vectors = by_vectors is not None
    people = _people_in_common(repository, among)
    rows = Repository.objects.select_related("namespace").filter(
        pk__in={*alike, *people}, latest_number__isnull=False
    )
    candidates = list(rows)
    gains = _gains(repository, candidates)
    found = [
        Similar(
            repository=row,
            score=alike.get(row.pk, 0.0)
            + 0.02 * math.log2(1 + people.get(row.pk, 0))
            + 0.5 * max(-0.2, min(0.2, gains.get(row.pk, 0.0)))
            + 0.02 * max(-3.0, min(3.0, math.log2(_ratio(repository, row)))),
            reasons=[
                *_of_likeness(repository, row, alike.get(row.pk), by_vectors=has_vectors),
                *_of_people(people.get(row.pk, 0)),
                *_of_cost(_ratio(repository, row), gains.get(row.pk)),
            ],
            by_meaning=has_vectors,
        )
        for row in candidates
    ]
    found.sort(key=lambda one: (-one.score, one.repository.pk))
    return found[:MOST]


# --- What is alike ------------------------------------------------------------------------------


def _near(repository: Repository, among: RepositoryQuerySet) -> dict[int, float] | None:
    """Give cosines of cards; nothing where this one has no vector."""
    own = (
        CardVector.objects.filter(pk=repository.pk).values_list("embedding", "encoder").first()
        if can_compare()
        else None
    )
    if own is None:
        return None
    found = nearest(own[0], own[1], among, count=_CONSIDERED)
    return found and {key: cosine for key, cosine in found.items() if cosine >= _SOMEWHAT}


def _with_words(repository: Repository, among: RepositoryQuerySet) -> dict[int, float]:
    """Give how much the texts of others have of this one's words, as shares of the best."""
    said = " ".join([repository.summary, *repository.labels])
    words = sorted(long_words_in(said), key=lambda word: (-len(word), word))[:_WORDS]
    if not words:
        return {}
    asked = reduce(or_, (SearchQuery(word, config="english") for word in words))
    ranked = (
        among.filter(search_vector=asked)
        .annotate(rank=SearchRank(F("search_vector"), asked, weights=_WEIGHTS))
        .order_by("-rank", "-downloads_count", "pk")
        .values_list("pk", "rank")[:_CONSIDERED]
    )
    found = dict(ranked)
    best = max(found.values(), default=0.0) or 1.0
    return {key: rank / best for key, rank in found.items()}


def _people_in_common(repository: Repository, among: RepositoryQuerySet) -> dict[int, int]:
    """Count who had jobs read this model and another one, where they are enough."""
    people = (
        Job.objects.filter(inputs__repository=repository, created_by__isnull=False)
        .order_by()
        .values_list("created_by", flat=True)
        .distinct()[:_PEOPLE]
    )
    if len(who := list(people)) < LEAST_PEOPLE:
        return {}
    counted = (
        Job.objects.filter(created_by__in=who, inputs__repository__in=among.values("pk"))
        .order_by()
        .values("inputs__repository")
        .annotate(people=Count("created_by", distinct=True))
        .filter(people__gte=LEAST_PEOPLE)
        .order_by("-people", "inputs__repository")
    )
    return dict(counted.values_list("inputs__repository", "people")[:_CONSIDERED])


# --- What is better or costs less ---------------------------------------------------------------


def _gains(repository: Repository, rows: Sequence[Repository]) -> dict[int, float]:
    """Give how much better each is by the same metric on the same rows, where both were measured.

    Numbers of two data sets say nothing about one another.
    """
    if not repository.quality_metric:
        return {}
    numbers: dict[int, dict[tuple[int, str], float]] = {}
    known = Evaluation.objects.filter(
        version__repository__in=[repository, *rows],
        version__number=F("version__repository__latest_number"),
        metric=repository.quality_metric,
        dataset_version__isnull=False,
    ).order_by("measured", "created_at", "pk")
    for key, dataset, split, value in known.values_list(
        "version__repository_id", "dataset_version_id", "split", "value"
    ):
        numbers.setdefault(key, {})[(dataset, split)] = value
    own = numbers.pop(repository.pk, {})
    return {
        key: theirs[same] - own[same]
        for key, theirs in numbers.items()
        if (same := next(iter(sorted(own.keys() & theirs.keys())), None)) is not None
    }


def _ratio(repository: Repository, row: Repository) -> float:
    """Say how many times smaller the row is: by weights where both say, else by bytes."""
    for own, theirs in (
        (repository.parameters_count, row.parameters_count),
        (repository.size_bytes, row.size_bytes),
    ):
        if own and theirs:
            return own / theirs
    return 1.0


# --- Reasons ------------------------------------------------------------------------------------


def _of_likeness(
    repository: Repository, row: Repository, likeness: float | None, *, by_vectors: bool
) -> list[Text]:
    reasons = []
    if repository.task and row.task == repository.task:
        reasons.append(Text("same task"))
    if likeness is None:
        return reasons
    if not by_vectors:
        reasons.append(Text("its card has words in common"))
    elif likeness >= _MUCH:
        reasons.append(Text("its card says much the same"))
    else:
        reasons.append(Text("its card says something alike"))
    return reasons


def _of_people(count: int) -> list[Text]:
    return [Text("people who used this one used it too")] if count else []


def _of_cost(ratio: float, gain: float | None) -> list[Text]:
    points = "" if gain is None else f"{abs(gain) * 100:.1f}"
    if ratio >= _RATIO:
        return [_smaller(_times(ratio), points, gain)]
    if ratio <= 1 / _RATIO:
        return [_larger(_times(1 / ratio), points, gain)]
    return [] if gain is None else [_as_large(points, gain)]


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"


def _smaller(times: str, points: str, gain: float | None) -> Text:
    if gain is None:
        return Text("{times} times smaller", times=times)
    if abs(gain) < _POINT:
        return Text("{times} times smaller and as good", times=times)
    if gain > 0:
        return Text("{times} times smaller and {points} points better", times=times, points=points)
    return Text("{times} times smaller at {points} points less", times=times, points=points)


def _larger(times: str, points: str, gain: float | None) -> Text:
    if gain is None:
        return Text("{times} times larger", times=times)
    if abs(gain) < _POINT:
        return Text("{times} times larger and as good", times=times)
    if gain > 0:
        return Text("{times} times larger and {points} points better", times=times, points=points)
    return Text("{times} times larger at {points} points less", times=times, points=points)


def _as_large(points: str, gain: float) -> Text:
    if abs(gain) < _POINT:
        return Text("as good at the same size")
    if gain > 0:
        return Text("{points} points better at the same size", points=points)
    return Text("{points} points less at the same size", points=points)


# --- What a search found ------------------------------------------------------------------------


def _merit(column: str, sign: int, row: Mapping[str, Any]) -> float:
    return sign * float(row[column])


@dataclass(frozen=True, kw_only=True)
class Suited:
    """A row of a search that stands out among those found first, and why."""

    row: Mapping[str, Any]
    reasons: Sequence[Text]


def suited_to_need(rows: Sequence[Mapping[str, Any]]) -> list[Suited]:
    """Pick from the first rows of a search by relevance: the closest, the best and the smallest.

    Better and smaller are told only among those that do the same task as the closest.
    """
    first = rows[:_FIRST]
    if len(first) < _WORTH_A_CHOICE:
        return []
    closest = first[0]
    peers = [row for row in first if row["task"] == closest["task"]]
    picked: dict[int, list[Text]] = {closest["id"]: [Text("closest to what you ask for")]}
    measured = [
        row
        for row in peers
        if row["quality"] is not None and row["quality_metric"] == closest["quality_metric"]
    ]
    for rows_known, column, sign, reason in (
        (measured, "quality", 1, Text("the best number of these")),
        (peers, "parameters_count", -1, Text("the smallest of these")),
        (peers, "downloads_count", 1, Text("downloaded most of these")),
    ):
        known = [row for row in rows_known if row[column] is not None]
        if len({row[column] for row in known}) > 1:
            best = max(known, key=partial(_merit, column, sign))
            picked.setdefault(best["id"], []).append(reason)
    if len(picked) < 2:
        return []
    by_key = {row["id"]: row for row in first}
    return [Suited(row=by_key[key], reasons=reasons) for key, reasons in picked.items()]
