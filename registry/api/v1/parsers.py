"""The one way JSON comes in: bounded in size and depth, without the holes of the standard one."""

from collections.abc import Mapping
from typing import IO, Any

from rest_framework.parsers import BaseParser

from registry.errors import Invalid, TooLarge, Unauthenticated
from registry.formats.bounded_json import read_json

MAX_BYTES = 10 << 20
MAX_DEPTH = 64

# Nobody without a token changes anything, so what they send is no more than a mistake.
MAX_ANONYMOUS_BYTES = 64 << 10


class StrictJSONParser(BaseParser):
    """Read a JSON body, or refuse it with words that name what is wrong."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,  # noqa: ARG002 - DRF's signature
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        asked = (parser_context or {}).get("request")
        if asked is not None and asked.auth.user_id is None:
            return parse_json(_read_from_anybody(stream))
        body = stream.read(MAX_BYTES + 1)
        if len(body) > MAX_BYTES:
            raise TooLarge(
                "A JSON body holds at most {limit} bytes; upload files instead.", limit=MAX_BYTES
            )
        return parse_json(body)


def _read_from_anybody(stream: IO[Any]) -> bytes:
    body: bytes = stream.read(MAX_ANONYMOUS_BYTES + 1)
    if len(body) > MAX_ANONYMOUS_BYTES:
        raise Unauthenticated(
            "Without a token a body holds at most {limit} bytes; "
            "send 'Authorization: Bearer my_…'.",
            limit=MAX_ANONYMOUS_BYTES,
        )
    return body


def parse_json(body: bytes) -> Any:
    """Parse JSON from outside, with whole numbers of 64 bits.

    Raises:
        Invalid: as `read_json` does, and for a larger number.

    """
    return read_json(body, max_depth=MAX_DEPTH, parse_int=_whole)


def _whole(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise Invalid(
            "The number {text} does not fit into 64 bits.", code="out_of_range", text=text[:40]
        )
    return int(text)
