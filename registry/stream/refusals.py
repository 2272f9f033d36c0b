"""Refusals as problem documents, at every door of this package, in the door's language."""

import logging
from functools import partial

import orjson

from registry.api.problem import MEDIA_TYPE, Unexpected, english, problem_body, problem_headers
from registry.stream.exchange import Exchange
from registry.web.refusals import words_at

logger = logging.getLogger(__name__)


async def refuse(
    exchange: Exchange, error: BaseException, headers: tuple[tuple[str, str], ...] = ()
) -> None:
    """Answer with what went wrong; an error that nobody expected is logged in full."""
    at_page_door = not exchange.path.startswith("/api/")
    status, body = problem_body(
        error,
        request_id=exchange.request_id,
        instance=exchange.path,
        say=partial(words_at, exchange.path) if at_page_door else english,
    )
    if status == Unexpected.status:
        logger.error("request %s failed", exchange.request_id, exc_info=error)
    if exchange.status:
        # Too late to say: the answer has begun. Its missing end tells the client.
        return
    unread = exchange.has_body
    if unread:
        await exchange.drain()
    await exchange.respond(
        status,
        [
            ("content-type", MEDIA_TYPE),
            ("cache-control", "no-store"),
            *((name.lower(), value) for name, value in problem_headers(error).items()),
            *headers,
            *((("connection", "close"),) if unread else ()),
        ],
        orjson.dumps(body),
    )
