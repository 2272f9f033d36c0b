"""Opaque cursors of keyset pages: what a client hands back to get the rows after the last one."""

import base64
import binascii
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from django.db.models import Model, QuerySet

from registry.errors import FieldError, Invalid

T = TypeVar("T", bound=Model)
MAX_LIMIT = 100
DEFAULT_LIMIT = 20
_LONGEST_CURSOR = 600


@dataclass(frozen=True)
class Page:
    """Some rows, the cursor of the rows after them, and counts beside them when asked for.

    `reading` says how the words of a search were taken, where not as they stand.
    """

    items: list[dict[str, Any]]
    next_cursor: str | None = None
    facets: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, str] | None = None


def encode_cursor(order: str, *key: str | float) -> str:
    """Write the sort order and the sort key of the last row as URL-safe text."""
    raw = json.dumps([order, *key], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def order_of(cursor: str) -> str:
    """Say for which order a cursor was made; nothing where it is none of ours."""
    if len(cursor) > _LONGEST_CURSOR:
        return ""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        order = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))[0]
    except (binascii.Error, UnicodeError, ValueError, RecursionError, LookupError, TypeError):
        return ""
    return order if isinstance(order, str) else ""


def decode_cursor(cursor: str, order: str, *types: type) -> list[Any]:
    """Read a cursor back into its sort key.

    Raises:
        Invalid: it was not made here, or for another sort order.

    """
    refusal = Invalid(
        "The cursor is not one of ours, or belongs to another sort order; start without it.",
        code="bad_cursor",
        errors=[FieldError("cursor", "bad_cursor", "Leave it out to start from the first page.")],
    )
    if len(cursor) > _LONGEST_CURSOR:
        raise refusal
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeError, ValueError, RecursionError) as error:
        raise refusal from error
    if not isinstance(key, list) or len(key) != len(types) + 1 or key[0] != order:
        raise refusal
    if not all(_fits(value, wanted) for value, wanted in zip(key[1:], types, strict=True)):
        raise refusal
    return key[1:]


def decode_moment(text: str) -> datetime:
    """Read a moment of a cursor, which we only ever write in UTC.

    Raises:
        Invalid: it was not made here; another zone can lie outside what the database knows.

    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min  # noqa: DTZ901 - has no zone, so it is refused below
    if moment.tzinfo != UTC:
        raise Invalid("The cursor is not one of ours; start without it.", code="bad_cursor")
    return moment


def newest_first(
    rows: QuerySet[T], order: str, limit: int, cursor: str
) -> tuple[list[T], str | None]:
    """Give a page of rows by their number of arrival, and the cursor of the next one."""
    if cursor:
        (last,) = decode_cursor(cursor, order, int)
        rows = rows.filter(pk__lt=last)
    found = list(rows.order_by("-pk")[: limit + 1])
    kept = found[:limit]
    more = len(found) > limit
    return kept, encode_cursor(order, kept[-1].pk) if more else None


def _fits(value: object, wanted: type) -> bool:
    """Say whether a database column can be compared with `value`."""
    if type(value) is not wanted:
        return False
    if isinstance(value, int):
        return -(1 << 63) <= value < 1 << 63
    if isinstance(value, str):
        return not any(
            character == "\0" or "\ud800" <= character <= "\udfff" for character in value
        )
    return True


def check_limit(limit: int | None) -> int:
    """Return how many rows a page holds."""
    if limit is None:
        return DEFAULT_LIMIT
    if not 1 <= limit <= MAX_LIMIT:
        raise Invalid(
            "limit is {limit}; it must be between 1 and {most}.",
            errors=[FieldError("limit", "out_of_range", "Choose 1 to {most}.", most=MAX_LIMIT)],
            limit=limit,
            most=MAX_LIMIT,
        )
    return limit
