"""The one way JSON comes in: bounded in size and depth, without the holes of the standard one."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import IO, Any

from rest_framework.parsers import BaseParser

from registry.errors import Invalid, TooLarge

MAX_BYTES = 10 << 20
MAX_DEPTH = 64

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\Z)', re.DOTALL)
_CURLY_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class StrictJSONParser(BaseParser):
    """Read a JSON body, or refuse it with words that name what is wrong."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,  # noqa: ARG002 - DRF's signature
        parser_context: Mapping[str, Any] | None = None,  # noqa: ARG002 - DRF's signature
    ) -> Any:
        body = stream.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise TooLarge(
                "A JSON body holds at most {limit} bytes; upload files instead.", limit=MAX_BYTES
            )
        return parse_json(body)


def parse_json(body: bytes) -> Any:
    """Parse JSON from outside.

    Raises:
        Invalid: it is no JSON, nests too deeply, repeats a key, or holds NaN, infinity, NUL or
            half of a surrogate pair.

    """
    if _nests_deeper_than(MAX_DEPTH, body):
        raise _refusal("too_deep", "The JSON nests deeper than {limit} levels.", limit=MAX_DEPTH)
    try:
        parsed = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError as error:
        raise _refusal(
            "not_utf8", "The body is not UTF-8 at byte {byte}.", byte=error.start
        ) from error
    except json.JSONDecodeError as error:
        raise _refusal(
            "malformed_json",
            "The body is not JSON: {problem} at line {line} column {column}.",
            problem=error.msg,
            line=error.lineno,
            column=error.colno,
        ) from error
    except (ValueError, RecursionError) as error:
        raise _refusal("malformed_json", "The body is not JSON that can be read.") from error
    if b"\\u" in body:
        _refuse_bad_characters(parsed)
    return parsed


def _nests_deeper_than(levels: int, body: bytes) -> bool:
    """Peel one level of brackets at a time; each pass runs at the speed of `bytes.replace`."""
    brackets = _STRINGS.sub(b"", body).translate(_CURLY_TO_SQUARE, _NOT_BRACKETS)
    for _ in range(levels):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return b"[" * (levels + 1) in brackets or b"[]" in brackets


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _refusal("duplicate_key", "The key {key} stands there twice.", key=_shown(repeated))
    return found


def _refuse_constant(name: str) -> Any:
    raise _refusal(
        "not_finite", "{name} is not a JSON number; use null or leave it out.", name=name
    )


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise _refusal("not_finite", "The number {text} is too large.", text=text[:40])
    return number


def _whole(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise _refusal(
            "out_of_range", "The number {text} does not fit into 64 bits.", text=text[:40]
        )
    return int(text)


def _refuse_bad_characters(parsed: Any) -> None:
    try:
        text = json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _refusal(
            "lone_surrogate", "A text holds half of a surrogate pair; send whole characters."
        ) from error
    if b"\\u0000" in text and _holds_nul(parsed):
        raise _refusal("nul_character", "A text holds the character U+0000; remove it.")


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _holds_nul(one) for key, one in value.items())
    return isinstance(value, list) and any(map(_holds_nul, value))


def _shown(text: str) -> str:
    return repr(text[:60].encode(errors="replace").decode())


def _refusal(code: str, template: str, /, **values: Any) -> Invalid:
    return Invalid(template, code=code, **values)
