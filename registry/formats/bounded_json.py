"""JSON from strangers: bounded depth, no repeated key, no NUL, NaN or half of a character."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from registry.errors import Invalid, Text
from registry.formats.facts import malformed

MAX_DEPTH = 64

# Possessive, so that a long text leaves nothing behind to go back to.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_CURLY_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(data: bytes, *, what: Text, max_depth: int = MAX_DEPTH) -> Any:
    """Read JSON in a file; raise Invalid that names `what` and what is wrong with it."""
    try:
        return read_json(data, max_depth=max_depth)
    except Invalid as refusal:
        problem = Text(refusal.template, **refusal.values)
        raise malformed("{what} cannot be read. {problem}", what=what, problem=problem) from None


def read_json(
    data: bytes, *, max_depth: int = MAX_DEPTH, parse_int: Callable[[str], Any] = int
) -> Any:
    """Read JSON from outside.

    Raises:
        Invalid: it is no JSON, nests too deeply, repeats a key, or holds NaN, infinity, NUL or
            half of a surrogate pair; `reason` says which.

    """
    if _nests_deeper_than(max_depth, data):
        template = "The JSON is nested deeper than {limit} levels."
        raise Invalid(template, code="too_deep", limit=max_depth)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=parse_int,
        )
    except UnicodeDecodeError as error:
        template = "The JSON is not UTF-8 text (byte {byte})."
        raise Invalid(template, code="not_utf8", byte=error.start) from None
    except json.JSONDecodeError as error:
        raise Invalid(
            "This is not valid JSON: {problem} at line {line} column {column}.",
            code="malformed_json",
            problem=error.msg,
            line=error.lineno,
            column=error.colno,
        ) from None
    except (ValueError, RecursionError) as error:
        raise Invalid(
            "This is not valid JSON: {problem}.", code="malformed_json", problem=str(error)[:200]
        ) from None
    if b"\\u" in data:
        _check_characters(value)
    return value


def _nests_deeper_than(levels: int, data: bytes) -> bool:
    """Peel one level of brackets at a time; each pass runs at the speed of `bytes.replace`."""
    brackets = _STRINGS.sub(b"", data).translate(_CURLY_TO_SQUARE, _NOT_BRACKETS)
    for _ in range(levels):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return b"[" * (levels + 1) in brackets or b"[]" in brackets


def _check_characters(value: Any) -> None:
    """Look at every text of `value`: only an escape can bring in what UTF-8 and JSON refuse."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting.extend(item.keys())
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, str) and "\0" in item:
            template = "A text holds the character U+0000; remove it."
            raise Invalid(template, code="nul_character")
        elif isinstance(item, str) and _LONE_SURROGATE.search(item):
            template = "A text holds half a character (a lone surrogate); send whole ones."
            raise Invalid(template, code="lone_surrogate")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        key = Counter(name for name, _ in pairs).most_common(1)[0][0]
        shown = repr(key[:60].encode(errors="replace").decode())
        template = "The key {key} stands twice in one object."
        raise Invalid(template, code="duplicate_key", key=shown)
    return found


def _no_constant(name: str) -> Any:
    template = "{name} is not a JSON number; use null or leave it out."
    raise Invalid(template, code="not_finite", name=name)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Invalid("The number {text} is too large.", code="not_finite", text=text[:40])
    return number
