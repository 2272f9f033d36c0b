"""One download never keeps the others of its process waiting."""

import asyncio

from registry.storage import default_storage
from registry.stream import download
from registry.stream.exchange import Exchange

SIZE = 32 * 1024 * 1024


def test_a_client_that_takes_everything_at_once_does_not_hold_the_loop():
    stored = default_storage().put([b"x" * SIZE])
    sent = []
    answered_after = []

    async def send(message):
        sent.append(len(message.get("body", b"")))

    async def other():
        answered_after.append(sum(sent))

    async def both():
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        exchange = Exchange(scope, receive=None, send=send)
        blocks = default_storage().open(stored.sha256, start=0, end=SIZE)
        asyncio.get_running_loop().call_later(0, lambda: asyncio.ensure_future(other()))
        await download.send_blocks(exchange, blocks)

    asyncio.run(both())
    assert sum(sent) == SIZE
    assert answered_after
    assert answered_after[0] < SIZE / 2
