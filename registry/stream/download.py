"""Answers a download: whole or a range, from the storage in blocks, the next one read ahead."""

import asyncio
import base64
import re
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

from registry.api.standing import standing_headers
from registry.models import Actor
from registry.services.transfers import Download, find_download
from registry.storage import Blocks, default_storage
from registry.stream.counting import downloads
from registry.stream.exchange import ClientGone, Exchange
from registry.stream.threads import in_database, on_disk, settled

_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", re.IGNORECASE)
# What one download sends before it lets the others of this process go on.
_TURN_BYTES = 2 * 1024 * 1024
CAN_RUN_CODE = "this file can run code when it is opened"
_QUARANTINED = f"quarantined; {CAN_RUN_CODE}"
_PLAIN_NAME = re.compile(r"[^A-Za-z0-9!#$&+.^_`|~ -]")


class Span(NamedTuple):
    """The bytes to send, end exclusive."""

    start: int
    end: int


async def answer_download(
    exchange: Exchange, actor: Actor, where: Mapping[str, str], *, part: str = "files"
) -> None:
    found = await in_database(
        find_download,
        actor=actor,
        kind=where["kind"].removesuffix("s"),
        namespace=where["namespace"],
        name=where["name"],
        version=where["version"],
        path=where["path"],
        part=part,
    )
    if _already_has(exchange, found):
        await exchange.respond(304, [("etag", found.etag), ("cache-control", "private, no-cache")])
        return
    size = found.size_bytes
    span = read_range(exchange.headers, exchange.method, found)
    if span is None:
        await exchange.respond(416, [("content-range", f"bytes */{size}"), *_headers(found)])
        return
    status = 200 if span == Span(0, size) else 206
    headers = [*_headers(found), ("content-length", str(span.end - span.start))]
    if status == 206:
        headers.append(("content-range", f"bytes {span.start}-{span.end - 1}/{size}"))
    if exchange.method == "HEAD":
        await exchange.respond(status, headers)
        return
    blocks = await on_disk(default_storage().open, found.sha256, start=span.start, end=span.end)
    # What cannot be read at all is refused before anything is promised.
    first = blocks.ready() or await on_disk(next, blocks, b"")
    if span.start == 0:
        downloads.add(found.repository_id, found.version_id)
    await exchange.start(status, headers)
    await while_connected(exchange, _send_all(exchange, first, blocks))


def read_range(headers: Mapping[str, str], method: str, found: Download) -> Span | None:
    """Read the Range header: the whole file without a usable one, None for one out of reach."""
    whole = Span(0, found.size_bytes)
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or method != "GET" or headers.get("if-range", found.etag) != found.etag:
        return whole
    first, last = match.groups()
    if first:
        start = int(first)
        end = int(last) + 1 if last else found.size_bytes
        if start >= end and last:
            return whole
    elif last:
        start, end = max(0, found.size_bytes - int(last)), found.size_bytes
    else:
        return whole
    if start >= found.size_bytes:
        return None
    return Span(start, min(end, found.size_bytes))


async def while_connected(exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
    """Send until done or until the client leaves; the server itself does not say that it left."""
    sending = asyncio.create_task(work)
    leaving = asyncio.create_task(exchange.gone())
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            raise ClientGone
        await sending
    finally:
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)


async def _send_all(exchange: Exchange, first: bytes, blocks: Blocks) -> None:
    if first:
        await exchange.write(first)
    await send_blocks(exchange, blocks)
    await exchange.write(b"", more=False)


async def send_blocks(exchange: Exchange, blocks: Blocks) -> None:
    """Send one stored file, or a part of one, and leave the answer open."""
    following = None
    try:
        # Files on a local disk are mostly in memory: to change threads for that costs a fifth.
        turn = 0
        while block := blocks.ready():
            await exchange.write(block)
            turn += len(block)
            if turn >= _TURN_BYTES:
                # The server takes what it has room for at once; others want their turn too.
                turn = 0
                await asyncio.sleep(0)
        following = on_disk(next, blocks, b"")
        while block := await asyncio.shield(following):
            following = on_disk(next, blocks, b"")
            await exchange.write(block)
    finally:
        if following is not None:
            await settled(following)
        await on_disk(blocks.close)


def _already_has(exchange: Exchange, found: Download) -> bool:
    sent = exchange.headers.get("if-none-match", "")
    known = {tag.strip().removeprefix("W/") for tag in sent.split(",")}
    return "*" in known or found.etag in known


def _headers(found: Download) -> list[tuple[str, str]]:
    """Say what the file is; it is always an attachment, so that no browser ever runs it here."""
    digest = base64.b64encode(bytes.fromhex(found.sha256)).decode("ascii")
    said = standing_headers(
        state=found.state,
        state_reason=found.state_reason,
        state_changed_at=found.state_changed_at,
    )
    warning = [("x-file-warning", _QUARANTINED)] if found.quarantined else []
    return [
        *warning,
        *((name.lower(), value) for name, value in said.items()),
        ("content-type", found.media_type),
        ("etag", found.etag),
        ("repr-digest", f"sha-256=:{digest}:"),
        ("accept-ranges", "bytes"),
        *as_attachment(found.filename),
    ]


def as_attachment(filename: str) -> list[tuple[str, str]]:
    """Say that an answer is a file to keep, for this reader alone, and nothing to run."""
    return [
        ("content-disposition", _disposition(filename)),
        ("cache-control", "private, no-cache"),
        ("vary", "Authorization, Cookie"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
        ("cross-origin-resource-policy", "same-origin"),
        ("referrer-policy", "no-referrer"),
    ]


def _disposition(filename: str) -> str:
    """Name the file in plain characters for old clients and in full for the others (RFC 6266)."""
    plain = _PLAIN_NAME.sub("_", filename)
    if plain == filename:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
