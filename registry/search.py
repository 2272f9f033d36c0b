"""Discovery: one query over repositories, filters, facet counts and keyset pages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, reduce
from operator import or_
from typing import Any

from django.conf import settings
from django.contrib.postgres.search import SearchRank
from django.core.exceptions import EmptyResultSet
from django.db import OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import (
    BigIntegerField,
    Case,
    F,
    IntegerField,
    OuterRef,
    Q,
    Subquery,
    Value,
    When,
)
from django.db.models.expressions import Combinable
from django.db.models.functions import Cast, Left, Ln, Lower, Round
from psycopg.errors import QueryCanceled

from registry.errors import FieldError, Invalid, Unavailable
from registry.meaning import Meant, blend, meant_by
from registry.models import Actor, Namespace, Repository, Tag, Version
from registry.models.catalog import LISTED_CHARACTERS, RepositoryQuerySet
from registry.narrowing import measured_rarely, narrow, narrow_measured
from registry.pages import Page, check_limit, decode_cursor, encode_cursor, order_of
from registry.query_language import Asked, parse
from registry.readings import AS_WRITTEN, BY_MEANING, Reading, has_word, readings

# Facets and the total are exact up to here; past it they say "at least".
COUNTED = 10_000
_FACET_VALUES = 20
_OWNERS_NAMED = 60
_COUNTED_BY = ("task", "library", "license", "formats", "namespace_id")
_STATEMENT_SECONDS = 1.0
# Enough to remember each row that a word is in. With less, pages are remembered, and every row on
# them is read and looked through again.
_WORK_MEMORY = "32MB"
# So few, of what fields alone narrow, are read by their keys: in the order that is asked for, the
# database might look for them along an index of all.
_FEW = 1000
# A measurement that holds of so many versions is where to begin.
_RARE = 5000
# For counts beside what many measurements find; without them there are still the rows.
_FACET_SECONDS = 0.3
# Relevance is told apart among so many of what matches, those most downloaded: where all that
# match could be counted, and where they could not.
_RANKED = 1000
# So many are asked for a word before all that are ranked.
_LOOKED_AT = 20
_RANKED_OF_MANY = 300
# Of a word in the card, among the terms, as a stem, and in the name and what stands beside it.
_WEIGHTS = [0.2, 0.6, 0.6, 1.0]

# The order of a cursor that vectors had a part in.
_BY_MEANING = "meaning"

SORTS = ("relevance", "updated", "created", "downloads", "name", "size", "quality")
_FIELDS = (
    "id",
    "name",
    "summary",
    "task",
    "library",
    "license",
    "base_model",
    "visibility",
    "labels",
    "formats",
    "latest_number",
    "parameters_count",
    "size_bytes",
    "downloads_count",
    "quality",
    "quality_metric",
    "created_at",
    "updated_at",
)


@dataclass(frozen=True, kw_only=True)
class SearchQuery:
    """What somebody looks for; empty fields do not narrow."""

    q: str = ""
    task: str = ""
    library: str = ""
    license: str = ""
    format: str = ""
    owner: str = ""
    label: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    min_params: int | None = None
    max_params: int | None = None
    max_bytes: int | None = None
    sort: str = ""
    limit: int | None = None
    cursor: str = ""

    @cached_property
    def asked(self) -> Asked:
        """Read `q`; raises Invalid."""
        return parse(self.q)

    @property
    def narrows(self) -> bool:
        """Say whether it asks for anything at all."""
        filters = (self.task, self.library, self.license, self.format, self.owner, self.label)
        bounds = (self.min_params, self.max_params, self.max_bytes)
        return bool(
            self.asked.words
            or self.asked.narrowings
            or self.tags
            or any(filters)
            or any(bound is not None for bound in bounds)
        )

    @property
    def order(self) -> str:
        return self.sort or ("relevance" if self.asked.text else "updated")


def search_repositories(
    actor: Actor, kind: str, query: SearchQuery, *, with_facets: bool | None = None
) -> Page:
    """Find repositories the actor may see.

    Words that find nothing are taken for mistyped ones, and then any of them will do; `reading`
    of the page says so where it was needed. Facets come with the first page unless `with_facets`
    says otherwise.

    Raises:
        Invalid: the query, a filter, the sort order or the cursor is not understood, or the
            answer takes longer than a second.

    """
    check_query(query)
    limit = check_limit(query.limit)
    if with_facets is None:
        with_facets = not query.cursor
    visible = Repository.objects.visible_to(actor).filter(kind=kind)
    plain = narrow(_narrow(visible, query), query.asked.narrowings)
    narrowed = narrow_measured(plain, query.asked.narrowings)
    meant = _meant(query, narrowed)
    # Of what is ranked no more is looked at.
    keys = _RANKED + 1 if query.order == "relevance" and not meant else COUNTED
    with _bounded(is_narrow=bool(query.asked.words or query.asked.narrowings)):
        rows: list[dict[str, Any]] = []
        for reading in readings(query.asked, visible, narrowed, with_meaning=meant is not None):
            matches = found = narrowed.filter(reading.condition)
            read = _read(
                plain, narrowed, reading.condition, query, keys=keys, with_facets=with_facets
            )
            few = read.few if read else None
            if not _is_answer(query, reading, found, few, meant):
                continue
            if few is not None:
                matches = plain.of_keys(few)
            ordered = _ordered(matches, found, query, reading, few, meant)
            rows = list(ordered.values(*_FIELDS, *_extra(query), owner=_owner())[: limit + 1])
            if rows or (matches.exists() if few is None else few):
                # What this order leaves out is found all the same, and so is what came before.
                break
        else:
            if read or reading.unproved:
                # What was passed over may have found something.
                read = _Read(few=[], facets=_facets_of(()))
        facets = {}
        if with_facets and read and not meant:
            facets = read.facets
        elif with_facets:
            if meant:
                by_words = reading.condition if few is None else Q(pk__in=few)
                matches = narrowed.filter(by_words | Q(pk__in=list(meant.near)))
            is_long = few is None and narrowed is not plain
            facets = _count(matches, query, least=len(rows) if is_long else None)
        more = len(rows) > limit
        rows = _with_tags(rows[:limit])
    order = _BY_MEANING if meant else query.order
    next_cursor = _cursor_after(rows[-1], order) if more else None
    otherwise = reading.how != AS_WRITTEN and bool(rows)
    said = {"how": reading.how, "q": reading.text} if otherwise else None
    return Page(rows, next_cursor, facets, said)


def _meant(query: SearchQuery, among: RepositoryQuerySet) -> Meant | None:
    """Find what lies near the words, where relevance is asked for and something can say so.

    Raises:
        Unavailable: the pages before this one were in an order that cannot be made now.

    """
    if query.order != "relevance" or order_of(query.cursor) == "relevance":
        return None
    meant = meant_by(query.asked, among)
    if meant is None and order_of(query.cursor) == _BY_MEANING:
        raise Unavailable(
            "What this page was ordered by cannot be reached just now. Start without the cursor.",
            code="order_unavailable",
        )
    return meant


def _is_answer(
    query: SearchQuery,
    reading: Reading,
    found: RepositoryQuerySet,
    few: list[int] | None,
    meant: Meant | None,
) -> bool:
    """Say whether to go on with this reading.

    What is near is no answer yet where words find nothing: they may be mistyped. A cursor is read
    as rows are ordered, and refused there if it is none.
    """
    if few == [] and reading.how != BY_MEANING:
        return bool(query.cursor) and not meant
    # One of the first has the words, most of the time.
    of_keys = Repository.objects.of_keys
    first = [found] if few is None else [of_keys(few[:_LOOKED_AT]), of_keys(few[:_RANKED])]
    return all(any(has_word(word, rows) for rows in first) for word in reading.unproved)


@contextmanager
def _bounded(*, is_narrow: bool) -> Iterator[None]:
    """Give every statement a second, or less where the installation allows none so much.

    Raises:
        Invalid: one took longer, and somebody could ask for less.

    """
    if connection.in_atomic_block:
        # Somebody's transaction, with limits of its own.
        yield
        return
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                limit = min(_STATEMENT_SECONDS, settings.STATEMENT_SECONDS)
                _set_until_the_end(
                    cursor, statement_timeout=_ms(limit), work_mem=_WORK_MEMORY, jit="off"
                )
            yield
    except OperationalError as error:
        if not is_narrow or not isinstance(error.__cause__, QueryCanceled):
            raise
        raise Invalid(
            "This search takes longer than a second. Use longer or rarer words, or narrow it by"
            " a field such as task:translation.",
            code="search_too_broad",
        ) from error


def _set_until_the_end(cursor: CursorWrapper, **values: str) -> None:
    """Set parameters of the database until this transaction ends."""
    parts = ", ".join("set_config(%s, %s, true)" for _ in values)
    cursor.execute(f"SELECT {parts}", [text for pair in values.items() for text in pair])


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms"


def check_query(query: SearchQuery) -> None:
    """Pass when a query is one that can be answered.

    Raises:
        Invalid: what is asked for, a filter or the sort order is not understood.

    """
    if query.order not in SORTS:
        raise _invalid(
            "sort", "{sort!r} is not one of {choices}.", sort=query.sort, choices=", ".join(SORTS)
        )
    if query.order == "relevance" and not query.asked.text:
        raise _invalid("sort", "Sorting by relevance needs words to look for in q.")
    texts = [query.q, query.task, query.library, query.license, query.format, query.owner]
    texts += [query.label, *query.tags, *query.tags.values()]
    if any("\0" in text or not _encodable(text) for text in texts):
        raise _invalid("q", "A filter holds a character that no text here can hold.")
    for name in ("min_params", "max_params", "max_bytes"):
        number = getattr(query, name)
        if number is not None and not 0 <= number < 1 << 63:
            raise _invalid(name, "{name} must be a number from 0 to 2^63 - 1.", name=name)


def _encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _invalid(field: str, template: str, /, **values: Any) -> Invalid:
    problem = FieldError(field, "bad_filter", template, **values)
    return Invalid(template, code="bad_filter", errors=[problem], **values)


def _narrow(matches: RepositoryQuerySet, query: SearchQuery) -> RepositoryQuerySet:
    exact = {
        "task": query.task,
        "library": query.library,
        "license": query.license,
        "namespace__slug__iexact": query.owner,
    }
    matches = matches.filter(**{name: value for name, value in exact.items() if value})
    if query.format:
        matches = matches.filter(formats__contains=[query.format])
    if query.label:
        matches = matches.filter(labels__contains=[query.label])
    for key, value in query.tags.items():
        matches = matches.filter(
            pk__in=Tag.objects.filter(version=None, key=key, value=value).values("repository_id")
        )
    if query.min_params is not None:
        matches = matches.filter(parameters_count__gte=query.min_params)
    if query.max_params is not None:
        matches = matches.filter(parameters_count__lte=query.max_params)
    if query.max_bytes is not None:
        matches = matches.filter(size_bytes__lte=query.max_bytes)
    return matches


@dataclass(frozen=True, kw_only=True)
class _Read:
    """What matches, as far as it is counted.

    `few` are the keys of all of it, the most downloaded first; None where there is more. Of what
    is ranked there may be just the first of them, and one more than is ranked.
    """

    few: list[int] | None
    facets: dict[str, Any]


def _read(
    plain: RepositoryQuerySet,
    narrowed: RepositoryQuerySet,
    condition: Q,
    query: SearchQuery,
    *,
    keys: int,
    with_facets: bool,
) -> _Read | None:
    """Read all that match, where they are few, or where words would be as slow to ask again.

    Measurements are looked at last: for the few of which everything else is true, or, where these
    are many, for the few of which a measurement is.
    """
    if not query.narrows:
        return None
    most = COUNTED if query.asked.words else _FEW
    among = plain.filter(condition)
    if narrowed is not plain:
        found = among.whichever("pk", limit=most + 1)
        if len(found) <= most:
            among = narrowed.of_keys([key for (key,) in found])
        else:
            versions = measured_rarely(query.asked.narrowings, most=_RARE)
            if versions is None:
                return None
            having = Version.objects.filter(pk__in=versions).values("repository_id")
            among = narrowed.filter(condition, pk__in=having)
    return _read_counting(among, most=most, keys=keys, with_facets=with_facets)


def _read_counting(
    among: RepositoryQuerySet, *, most: int, keys: int, with_facets: bool
) -> _Read | None:
    """Read the `keys` first keys of all that match, and count facets, in one pass over it.

    None where there is more than `most`, and not even so much was to be counted. It is planned for
    as a whole (see `RepositoryQuerySet.whichever`); in rows, ten thousand matches take longer to
    send and to read than to find.
    """
    columns = _COUNTED_BY if with_facets else ()
    sample = among.order_by().values("downloads_count", "pk", *columns)
    try:
        inner, parameters = sample.query.sql_with_params()
    except EmptyResultSet:
        return _Read(few=[], facets=_facets_of(()) if with_facets else {})
    facets = f"{_grouped('few')}, f (name, value, n) AS ({_FACETS})" if with_facets else _TOTAL
    statement = f"""
        WITH found AS MATERIALIZED ({inner}),
        few AS MATERIALIZED (SELECT * FROM found LIMIT {most + 1}), {facets}
        SELECT name, value, n, NULL::bigint[] FROM f
        UNION ALL
        SELECT 'keys', '', 0, array_agg(pk ORDER BY downloads_count DESC, pk DESC) FROM (
            SELECT downloads_count, pk FROM few
            WHERE (SELECT count(*) FROM few) <= {most}
            ORDER BY downloads_count DESC, pk DESC LIMIT {keys}
        ) AS first
    """  # noqa: S608 - `inner` is Django's own SQL; the values travel as parameters
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        counted = cursor.fetchall()
    rows = [(name, value, n) for name, value, n, _ in counted if name != "keys"]
    total = next(n for name, _, n in rows if name == "total")
    if total > most and most < COUNTED:
        return None
    first: list[int] = next(found for name, *_, found in counted if name == "keys") or []
    few = None if total > most else first
    return _Read(few=few, facets=_facets_of(rows) if with_facets else {})


def _owner() -> Subquery:
    """Look up the names of owners for the rows of a page alone, and not for all it is cut from."""
    return Subquery(Namespace.objects.filter(pk=OuterRef("namespace_id")).values("slug"))


# --- Order and pages ---------------------------------------------------------------------------


def _extra(query: SearchQuery) -> Sequence[str]:
    return {"relevance": ("rank",), "name": ("name_lower",)}.get(query.order, ())


def _ordered(
    matches: RepositoryQuerySet,
    found: RepositoryQuerySet,
    query: SearchQuery,
    reading: Reading,
    few: list[int] | None,
    meant: Meant | None,
) -> RepositoryQuerySet:
    order, cursor = query.order, query.cursor
    if order == "relevance":
        return _by_relevance(matches, found, query, reading, few, meant)
    if order == "name":
        named = matches.annotate(name_lower=Lower("name")).order_by("name_lower", "id")
        if cursor:
            name, row_id = decode_cursor(cursor, order, str, int)
            named = named.filter(Q(name_lower__gt=name) | Q(name_lower=name, id__gt=row_id))
        return named
    if order == "size":
        sized = matches.exclude(size_bytes=None).order_by("size_bytes", "id")
        if cursor:
            size, row_id = decode_cursor(cursor, order, int, int)
            sized = sized.filter(Q(size_bytes__gt=size) | Q(size_bytes=size, id__gt=row_id))
        return sized
    if order == "quality":
        best = matches.exclude(quality=None).order_by("-quality", "-id")
        if cursor:
            quality, row_id = decode_cursor(cursor, order, float, int)
            best = best.filter(Q(quality__lt=quality) | Q(quality=quality, id__lt=row_id))
        return best
    column = {"updated": "updated_at", "created": "created_at", "downloads": "downloads_count"}[
        order
    ]
    newest = matches.order_by(f"-{column}", "-id")
    if cursor:
        value, row_id = decode_cursor(cursor, order, int, int)
        bound = value if order == "downloads" else _moment(value)
        newest = newest.filter(
            Q(**{f"{column}__lt": bound}) | Q(**{column: bound, "id__lt": row_id})
        )
    return newest


class _Rank(Cast):
    """A number to order by, alike to itself alone: to compare all it is made of takes long."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _by_relevance(
    matches: RepositoryQuerySet,
    found: RepositoryQuerySet,
    query: SearchQuery,
    reading: Reading,
    few: list[int] | None,
    meant: Meant | None,
) -> RepositoryQuerySet:
    """Order by how the name matches the whole text, then by words, where they stand, and downloads.

    Of very many matches the most downloaded are ranked, and those of exactly this name. With a
    meaning, its nearest are ranked with them, and words and meaning weigh against each other.
    """
    text = reading.text.lower()
    keys = few
    if keys is None:
        most_downloaded = matches.order_by("-downloads_count", "-id").values_list("pk", flat=True)
        keys = list(most_downloaded[:_RANKED_OF_MANY])
    if few is None or len(few) > _RANKED:
        named = found.alias(name_lower=Lower("name")).filter(name_lower=text).order_by()
        keys = [*keys[:_RANKED], *named.values_list("pk", flat=True)[:_RANKED]]
    if meant:
        keys = [*keys, *meant.near]
    ranked = Repository.objects.of_keys(keys)
    name_match = Case(
        When(name_lower=text, then=Value(3)),
        When(name_lower__startswith=text, then=Value(2)),
        When(name_lower__contains=text, then=Value(1)),
        default=Value(0),
        output_field=IntegerField(),
    )
    covered = sum(
        (Case(When(search_vector=part, then=Value(1)), default=Value(0)) for part in reading.parts),
        start=Value(0),
    )
    words = SearchRank(F("search_vector"), reduce(or_, reading.parts), weights=_WEIGHTS)
    downloads = Ln(F("downloads_count") + 1.0)
    score: Combinable = (
        name_match * 1_000_000 + covered * 100_000 + words * 50_000.0 + downloads * 1_000.0
    )
    if meant:
        score = blend(
            meant,
            name_match=name_match,
            covered=covered * 1.0 / len(reading.parts),
            words=words,
            downloads=downloads,
            is_loose=reading.how == BY_MEANING,
        )
    scored = ranked.alias(name_lower=Lower("name")).annotate(
        rank=_Rank(Round(score), BigIntegerField())
    )
    if query.cursor:
        rank, row_id = decode_cursor(query.cursor, _BY_MEANING if meant else "relevance", int, int)
        scored = scored.filter(Q(rank__lt=rank) | Q(rank=rank, id__lt=row_id))
    return scored.order_by("-rank", "-id")


def _cursor_after(row: Mapping[str, Any], order: str) -> str:
    if order in ("relevance", _BY_MEANING):
        return encode_cursor(order, row["rank"], row["id"])
    if order == "name":
        return encode_cursor(order, row["name_lower"], row["id"])
    if order == "size":
        return encode_cursor(order, row["size_bytes"], row["id"])
    if order == "downloads":
        return encode_cursor(order, row["downloads_count"], row["id"])
    if order == "quality":
        return encode_cursor(order, row["quality"], row["id"])
    return encode_cursor(order, _microseconds(row[f"{order}_at"]), row["id"])


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _microseconds(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _moment(microseconds: int) -> datetime:
    try:
        seconds, rest = divmod(microseconds, 1_000_000)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
    except (OverflowError, ValueError, OSError) as error:
        raise Invalid("The cursor is not one of ours.", code="bad_cursor") from error


# --- Beside the rows ---------------------------------------------------------------------------


def _count(matches: RepositoryQuerySet, query: SearchQuery, *, least: int | None) -> dict[str, Any]:
    """Count facets; where there are `least`, and maybe very many, not for long."""
    if least is None:
        return count_facets(matches, has_words=bool(query.asked.words))
    return _count_in_time(matches, least=least)


def _count_in_time(matches: RepositoryQuerySet, *, least: int) -> dict[str, Any]:
    """Count facets where that takes no long time; else say only that there are `least` at least."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('statement_timeout')")
            (before,) = cursor.fetchone()
            _set_until_the_end(cursor, statement_timeout=_ms(_FACET_SECONDS))
            facets = count_facets(matches)
            _set_until_the_end(cursor, statement_timeout=before)
            return facets
    except OperationalError as error:
        if not isinstance(error.__cause__, QueryCanceled):
            raise
        return {**_facets_of([("total", "", least)]), "total_is_exact": False}


def _grouped(source: str) -> str:
    """Group by each facet on its own; `ungrouped` has a bit for each that a row is not of."""
    columns = ", ".join(_COUNTED_BY)
    return f"""g AS (
        SELECT {columns}, count(*) AS n, grouping({columns}) AS ungrouped FROM {source}
        GROUP BY GROUPING SETS ((), (task), (library), (license), (formats), (namespace_id))
    )"""  # noqa: S608 - names of ours


_FACETS = f"""
    SELECT 'total', '', n FROM g WHERE ungrouped = b'11111'::int
    UNION ALL
    SELECT 'task', task, n FROM g WHERE ungrouped = b'01111'::int
    UNION ALL
    SELECT 'library', library, n FROM g WHERE ungrouped = b'10111'::int
    UNION ALL
    SELECT 'license', license, n FROM g WHERE ungrouped = b'11011'::int
    UNION ALL
    (SELECT 'format', f, sum(n)::bigint FROM g, unnest(formats) AS f
     WHERE ungrouped = b'11101'::int GROUP BY f)
    UNION ALL
    (SELECT 'owner', slug, n FROM (
        SELECT namespace_id, n FROM g WHERE ungrouped = b'11110'::int
        ORDER BY n DESC, namespace_id LIMIT {_OWNERS_NAMED}
     ) AS most JOIN registry_namespace AS o ON o.id = namespace_id
     ORDER BY n DESC, slug COLLATE "C" LIMIT {_FACET_VALUES})
"""  # noqa: S608 - numbers of ours
_TOTAL = "f (name, value, n) AS (SELECT 'total', '', count(*) FROM few)"


def count_facets(matches: RepositoryQuerySet, *, has_words: bool = False) -> dict[str, Any]:
    """Count values of task, library, license, format and owner among the matches.

    One pass over the index `repository_facets`, where the filters do not need the table itself;
    exact to `COUNTED` matches, past which `total_is_exact` is false. What words find is planned
    for as a whole (see `RepositoryQuerySet.whichever`).
    """
    sample = matches.order_by().values(*_COUNTED_BY)
    try:
        inner, parameters = sample.query.sql_with_params()
    except EmptyResultSet:
        return _facets_of(())
    materialized = "" if has_words else "NOT "
    statement = f"""
        WITH matches AS {materialized}MATERIALIZED ({inner}),
        few AS NOT MATERIALIZED (SELECT * FROM matches LIMIT {COUNTED + 1}), {_grouped("few")}
        {_FACETS}
    """  # noqa: S608 - `inner` is Django's own SQL; the values travel as parameters
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return _facets_of(cursor.fetchall())


def _facets_of(rows: Iterable[tuple[str, str, int]]) -> dict[str, Any]:
    facets: dict[str, Any] = {
        name: [] for name in ("task", "library", "license", "format", "owner")
    }
    total = 0
    for name, value, count in rows:
        if name == "total":
            total = count
        elif value:
            facets[name].append({"value": value, "count": count})
    for values in (values for values in facets.values() if isinstance(values, list)):
        values.sort(key=lambda entry: (-entry["count"], entry["value"]))
        del values[_FACET_VALUES:]
    facets["total"] = min(total, COUNTED)
    facets["total_is_exact"] = total <= COUNTED
    return facets


def _with_tags(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    tags: dict[int, dict[str, str]] = {row["id"]: {} for row in rows}
    for repository_id, key, value in Tag.objects.filter(
        repository_id__in=list(tags), version=None
    ).values_list("repository_id", "key", Left("value", LISTED_CHARACTERS)):
        tags[repository_id][key] = value
    for row in rows:
        row["namespace"] = row.pop("owner")
        row["tags"] = tags[row["id"]]
    return rows
