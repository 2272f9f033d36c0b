"""The ASGI application: streams are answered here, everything else by Django in threads."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from registry.stream.counting import downloads
from registry.stream.exchange import ClientGone, Exchange, Receive, Send
from registry.stream.refusals import refuse
from registry.stream.routes import answer_stream
from registry.stream.wsgi import ThreadedApplication

CLIENT_GONE = 499
REQUEST_INCOMPLETE = 408

access = logging.getLogger("modelyard.access")


class Dispatcher:
    """One per process."""

    def __init__(self, django: ThreadedApplication) -> None:
        self._django = django

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._answer(Exchange(scope, receive, send))

    async def _answer(self, exchange: Exchange) -> None:
        gone = False
        try:
            if not await answer_stream(exchange):
                await self._django.answer(exchange)
        except ClientGone:
            gone = True
            if not exchange.status:
                # It may only be slow, or break off its body: without an answer that is a 500.
                await exchange.respond(REQUEST_INCOMPLETE, [("connection", "close")])
        # The last place that can still say something.
        except Exception as error:  # noqa: BLE001
            try:
                await refuse(exchange, error)
            except ClientGone:
                gone = True
        finally:
            _log(exchange, gone=gone)


async def _live(receive: Receive, send: Send) -> None:
    """Run what belongs to the process and not to a request: the counts' way to the database."""
    await receive()
    counting = asyncio.create_task(downloads.run())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    counting.cancel()
    with suppress(asyncio.CancelledError):
        await counting
    await send({"type": "lifespan.shutdown.complete"})


def _log(exchange: Exchange, *, gone: bool) -> None:
    """Write one line; the query stays out of it, for it may hold what nobody should read."""
    access.info(
        '%s "%s %s" %d %d %d %.1fms %s',
        exchange.ip or "-",
        exchange.method,
        ascii(exchange.path)[1:-1],
        CLIENT_GONE if gone else exchange.status,
        exchange.received_bytes,
        exchange.sent_bytes,
        (time.perf_counter() - exchange.started_at) * 1000,
        exchange.request_id,
    )
