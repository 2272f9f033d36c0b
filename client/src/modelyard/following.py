"""Follows a job as server-sent events, and picks the line up again when it breaks."""

import contextlib
import json
from collections.abc import Iterable, Iterator

from modelyard.answers import Event, read_as
from modelyard.errors import BadAnswer, ModelyardError, Unreachable
from modelyard.transport import Patience, Transport, is_passing

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
# The server says something at least every quarter of a minute.
_SILENCE_SECONDS = 60.0
_MAX_EVENT_CHARACTERS = 16 << 20


def follow(transport: Transport, address: str) -> Iterator[Event]:
    """Give every event once, until the job is finished and everything about it was told."""
    last_id = ""
    patience = Patience(transport.patience, transport.stop)
    while True:
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        finished = False
        problem: ModelyardError = Unreachable(f"{transport.url} ended the stream again and again.")
        try:
            with transport.open(
                "GET", address, headers=headers, read_timeout=_SILENCE_SECONDS
            ) as answer:
                if answer.status_code == 204:
                    return
                for number, event in read_events(_lines(answer.iter_bytes())):
                    last_id = number or last_id
                    patience.renew()
                    finished = finished or event["data"].get("state") in FINISHED
                    yield event
        except ModelyardError as error:
            if not is_passing(error):
                raise
            problem, finished = error, False
        if finished:
            return
        patience.wait(problem)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Split at line feeds alone: U+2028 and its like may stand in the data."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r").decode("utf-8", "replace") for line in whole)
        if len(rest) > _MAX_EVENT_CHARACTERS:
            raise BadAnswer("An event of the job is larger than any event should be.")


def read_events(lines: Iterable[str]) -> Iterator[tuple[str, Event]]:
    """Read a stream by the rules of the WHATWG; an event that was cut off does not count."""
    number, length = "", 0
    data: list[str] = []
    for line in lines:
        if line == "":
            if data:
                with contextlib.suppress(ValueError, RecursionError):
                    yield number, read_as(Event, json.loads("\n".join(data)))
            data, length = [], 0
            continue
        length += len(line)
        if length > _MAX_EVENT_CHARACTERS:
            raise BadAnswer("An event of the job is larger than any event should be.")
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            data.append(value)
        elif name == "id" and "\0" not in value:
            number = value if value.isascii() and value.isdecimal() else number
