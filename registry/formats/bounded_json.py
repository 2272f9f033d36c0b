"""JSON from strangers: bounded depth and size, no duplicate keys, no NUL, no broken characters."""

import json
import math
import re
from typing import Any, Never

from registry.errors import Text
from registry.formats.facts import malformed

MAX_DEPTH = 64

_PARTS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(data: bytes, *, what: Text, max_depth: int = MAX_DEPTH) -> Any:
    """Read `data` strictly; raise Invalid that names `what` and what is wrong with it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(
            "{what} is not UTF-8 text (byte {byte}).", what=what, byte=error.start
        ) from None
    _check_depth(text, what, max_depth)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise malformed(
            "{what} is not valid JSON: {problem}.", what=what, problem=str(error)[:200]
        ) from None
    _check_strings(value, what)
    return value


def _check_depth(text: str, what: Text, max_depth: int) -> None:
    depth = 0
    for match in _PARTS.finditer(text):
        part = match.group()
        if part in "[{":
            depth += 1
            if depth > max_depth:
                raise malformed(
                    "{what} is nested deeper than {limit} levels.", what=what, limit=max_depth
                )
        elif part in "]}":
            depth -= 1


def _check_strings(value: Any, what: Text) -> None:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str) and ("\0" in item or _LONE_SURROGATE.search(item)):
            raise malformed("{what} has text with a NUL or half a character in it.", what=what)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)
    return result


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is too large")
    return number
