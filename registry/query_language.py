"""The language of the search box: words, phrases and fields such as `task:…` or `params:<50M`.

A query is a row of terms that all have to hold. `-` before a term turns it round; double quotes
keep words together and take a colon for what it is. Fields are narrowed by a value, by a bound
(`<`, `<=`, `>`, `>=`) or by a range (`1M..50M`). What is not understood is refused with the place
where it stands; nothing here knows of a database.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from difflib import get_close_matches
from typing import Final, NamedTuple, Never

from registry.errors import FieldError, Invalid

MAX_CHARACTERS: Final = 500
MAX_TERMS: Final = 32

# Fields whose value is compared as text, and those that are numbers, by the unit they are said in.
TEXT_FIELDS: Final = (
    "task", "library", "license", "format", "owner", "label", "name", "base", "device",
)  # fmt: skip
NUMBER_FIELDS: Final[Mapping[str, str]] = {
    "params": "count",
    "size": "bytes",
    "downloads": "count",
    "latency": "milliseconds",
    "memory": "bytes",
}
DATE_FIELDS: Final = ("created", "updated")
# Measured fields by the metric that they ask for; `metric.NAME` asks for any other.
METRICS: Final[Mapping[str, str]] = {
    "latency": "latency_p50_batch1",
    "memory": "peak_memory",
    "accuracy": "accuracy",
    "f1": "f1_macro",
    "cosine": "cosine_to_parent",
    "spearman": "spearman",
    "throughput": "throughput",
}
FIELDS: Final = tuple(
    dict.fromkeys((*TEXT_FIELDS, "tag", *NUMBER_FIELDS, *METRICS, *DATE_FIELDS, "metric"))
)
_SYNONYMS: Final = {"namespace": "owner", "parameters": "params", "licence": "license"}

_ONE: Final = Decimal(1)
_THOUSANDS: Final = {"": _ONE, "k": Decimal(10**3), "m": Decimal(10**6), "g": Decimal(10**9)}
_UNITS: Final[Mapping[str, Mapping[str, Decimal]]] = {
    "count": {**_THOUSANDS, "b": Decimal(10**9), "t": Decimal(10**12)},
    "bytes": {
        **_THOUSANDS,
        **{f"{prefix}b": scale for prefix, scale in _THOUSANDS.items()},
        "t": Decimal(10**12),
        "tb": Decimal(10**12),
        **{f"{prefix}ib": Decimal(1 << 10 * n) for n, prefix in enumerate("kmgt", 1)},
    },
    "milliseconds": {"": _ONE, "us": _ONE / 1000, "ms": _ONE, "s": Decimal(1000)},
    "number": {"": _ONE, "%": _ONE / 100},
}
_FIELD = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z0-9_.]+)?):", re.IGNORECASE)
_NUMBER = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?([a-z%]*)", re.IGNORECASE)
_METRIC_NAME = re.compile(r"[a-z0-9_.]{1,64}")
_OPERATORS: Final = ("<=", ">=", "<", ">", "=")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Values from `low` to `high`; a bound that is None is open."""

    low: float | None = None
    high: float | None = None
    with_low: bool = True
    with_high: bool = True


@dataclass(frozen=True, kw_only=True)
class Words:
    """A word, or several side by side; `position` is a character of the query, from 0."""

    text: str
    position: int
    negated: bool = False
    together: bool = False


@dataclass(frozen=True, kw_only=True)
class Narrowing:
    """One field with what it has to be: a text, or a number within bounds.

    `detail` is the key of a tag or the metric of a measurement.
    """

    field: str
    position: int
    text: str = ""
    bounds: Bounds | None = None
    detail: str = ""
    negated: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a query says, in its order."""

    words: Sequence[Words] = ()
    narrowings: Sequence[Narrowing] = ()

    @property
    def text(self) -> str:
        """Give the words alone, as they would be typed."""
        return " ".join(one.text for one in self.words if not one.negated)


def parse(query: str) -> Asked:
    """Read a query.

    Raises:
        Invalid: it is too long, has too many terms, a quote without its end, an unknown field, or
            a value that its field cannot have; each with the position of the character.

    """
    if len(query) > MAX_CHARACTERS:
        _refuse(
            "Look for at most {limit} characters; this is {count}.",
            limit=MAX_CHARACTERS,
            count=len(query),
            at=MAX_CHARACTERS,
        )
    words: list[Words] = []
    narrowings: list[Narrowing] = []
    for term in _terms(query):
        if len(words) + len(narrowings) == MAX_TERMS:
            _refuse("Use at most {limit} words and fields.", limit=MAX_TERMS, at=term.start)
        if term.field:
            narrowings.append(_narrowing(term))
        elif term.text.strip():
            words.append(
                Words(
                    text=term.text.strip(),
                    position=term.start,
                    negated=term.negated,
                    together=term.quoted,
                )
            )
    return Asked(words=words, narrowings=narrowings)


def without(query: str, is_gone: Callable[[Narrowing], bool]) -> str:
    """Leave fields out of a query, and every other term as it was typed.

    Raises:
        Invalid: the query cannot be read.

    """
    kept, at = [], 0
    for term in _terms(query):
        if term.field and is_gone(_narrowing(term)):
            kept.append(query[at : term.start].strip())
            at = term.end
    kept.append(query[at:].strip())
    return " ".join(piece for piece in kept if piece)


# --- Terms --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Term:
    start: int
    field: str
    text: str
    text_start: int
    end: int
    negated: bool
    quoted: bool


def _terms(query: str) -> list[_Term]:
    found, at = [], 0
    while at < len(query):
        if query[at].isspace():
            at += 1
            continue
        start = at
        negated = query[at] == "-" and at + 1 < len(query) and not query[at + 1].isspace()
        at += negated
        field = ""
        if named := _FIELD.match(query, at):
            field, at = named[1], named.end()
        text, end, quoted = _value(query, at)
        found.append(
            _Term(
                start=start,
                field=field,
                text=text,
                text_start=at,
                end=end,
                negated=negated,
                quoted=quoted,
            )
        )
        at = end
    return found


def _value(query: str, at: int) -> tuple[str, int, bool]:
    """Read up to a space, or up to the closing quote; give where to go on."""
    if at < len(query) and query[at] == '"':
        return (*_quoted(query, at), True)
    pieces, end = [], at
    while end < len(query) and not query[end].isspace():
        # A tag's value may be quoted by itself, after the key and its equals sign.
        if query[end] == '"' and query[end - 1] == "=":
            text, end = _quoted(query, end)
            pieces.append(text)
            break
        pieces.append(query[end])
        end += 1
    return "".join(pieces), end, False


def _quoted(query: str, at: int) -> tuple[str, int]:
    end = query.find('"', at + 1)
    if end < 0:
        _refuse("The quote that begins at character {place} has no end.", place=at + 1, at=at)
    return query[at + 1 : end], end + 1


# --- Fields -------------------------------------------------------------------------------------


def _narrowing(term: _Term) -> Narrowing:
    name = term.field.lower()
    head, dot, rest = name.partition(".")
    head = _SYNONYMS.get(head, head)
    if head not in FIELDS or bool(dot) != (head == "metric"):
        _refuse_field(term, name)
    if not term.text.strip():
        _refuse(
            "{field} at character {place} needs a value, such as {example}.",
            field=f"{name}:",
            place=term.start + 1,
            example=_example(head),
            at=term.text_start,
        )
    if head == "tag":
        return _tag(term)
    if head in TEXT_FIELDS:
        return Narrowing(
            field=head, position=term.start, text=term.text.strip(), negated=term.negated
        )
    if head in DATE_FIELDS:
        bounds = _bounds(term, lambda text, at: _day(text, at, name))
    else:
        unit = NUMBER_FIELDS.get(head, "number")
        bounds = _bounds(term, lambda text, at: _number(text, at, name, unit))
    metric = METRICS.get(head, "")
    if head == "metric":
        metric = rest
        if not _METRIC_NAME.fullmatch(metric):
            _refuse_field(term, name)
    return Narrowing(
        field="metric" if metric else head,
        position=term.start,
        bounds=bounds,
        detail=metric,
        negated=term.negated,
    )


def _tag(term: _Term) -> Narrowing:
    key, equals, value = term.text.partition("=")
    if not key or (equals and not value):
        _refuse(
            "Write tag:key=value or tag:key at character {place}.",
            place=term.start + 1,
            at=term.text_start,
        )
    return Narrowing(field="tag", position=term.start, detail=key, text=value, negated=term.negated)


class _Literal(NamedTuple):
    """A number or a day as it was written: where it begins and ends, and what counts as near it."""

    first: float
    last: float
    near: Bounds


def _bounds(term: _Term, read: Callable[[str, int], _Literal]) -> Bounds:
    text, at = term.text, term.text_start
    low, dots, high = text.partition("..")
    if dots and (low or high):
        bounds = Bounds(
            low=read(low, at).first if low else None,
            high=read(high, at + len(low) + len(dots)).last if high else None,
        )
        if bounds.low is not None and bounds.high is not None and bounds.low > bounds.high:
            _refuse(
                "The range {range} at character {place} ends before it begins.",
                range=text,
                place=at + 1,
                at=at,
            )
        return bounds
    operator = next((one for one in _OPERATORS if text.startswith(one)), "")
    literal = read(text.removeprefix(operator), at + len(operator))
    return {
        "": literal.near,
        "=": Bounds(low=literal.first, high=literal.last),
        "<": Bounds(high=literal.first, with_high=False),
        "<=": Bounds(high=literal.last),
        ">": Bounds(low=literal.last, with_low=False),
        ">=": Bounds(low=literal.first),
    }[operator]


def _number(text: str, at: int, field: str, unit: str) -> _Literal:
    """Read `50M`; bare, it means what would be written so: 49.5 to 50.5 million."""
    units = _UNITS[unit]
    match = _NUMBER.fullmatch(text)
    if match is None or match[3].lower() not in units:
        _refuse(
            "{value} at character {place} is not a number for {field}; write {example}.",
            value=text or "\N{SPACE}",
            place=at + 1,
            field=f"{field}:",
            example=_example(field.partition(".")[0]),
            at=at,
        )
    scale = units[match[3].lower()]
    value = Decimal(f"{match[1]}.{match[2] or 0}") * scale
    half = Decimal(5).scaleb(-1 - len(match[2] or "")) * scale
    # Halves round up, so the upper bound itself is written as the next number.
    near = Bounds(low=float(value - half), high=float(value + half), with_high=False)
    return _Literal(float(value), float(value), near)


def _day(text: str, at: int, field: str) -> _Literal:
    """Read a day of UTC, as seconds since 1970."""
    try:
        day = datetime.combine(date.fromisoformat(text), time.min, UTC)
        first, last = day.timestamp(), (day + timedelta(days=1)).timestamp() - 1e-6
    except (ValueError, OverflowError):
        _refuse(
            "{value} at character {place} is not a day for {field}; write {example}.",
            value=text or "\N{SPACE}",
            place=at + 1,
            field=f"{field}:",
            example=_example(field),
            at=at,
        )
    return _Literal(first, last, Bounds(low=first, high=last))


_EXAMPLES: Final[Mapping[str, str]] = {
    "tag": "tag:team=nlp",
    "task": "task:text-classification",
    "params": "params:<50M",
    "size": "size:<=100MB",
    "downloads": "downloads:>1000",
    "latency": "latency:<5ms",
    "memory": "memory:<500MB",
    "accuracy": "accuracy:>0.95",
    "created": "created:>=2026-01-31",
    "updated": "updated:>=2026-01-31",
    "metric": "metric.rouge1:>0.4",
}


def _example(field: str) -> str:
    if field in _EXAMPLES:
        return _EXAMPLES[field]
    return f"{field}:name" if field in TEXT_FIELDS else f"{field}:>0.9"


def _refuse_field(term: _Term, name: str) -> Never:
    close = get_close_matches(name.partition(".")[0], FIELDS, n=1)
    if close:
        _refuse(
            "There is no field {field} at character {place}. Did you mean {example}?"
            " To look for the text itself, put it in double quotes.",
            field=f"{name}:",
            place=term.start + 1,
            example=_example(close[0]),
            at=term.start,
        )
    _refuse(
        "There is no field {field} at character {place}. The fields are {fields}."
        " To look for the text itself, put it in double quotes.",
        field=f"{name}:",
        place=term.start + 1,
        fields=", ".join(FIELDS),
        at=term.start,
    )


def _refuse(template: str, /, *, at: int, **values: str | int) -> Never:
    problem = FieldError("q", "bad_query", template, position=at, **values)
    raise Invalid(template, code="bad_query", errors=[problem], **values)
