"""How a process of serving listens: HTTP and gRPC in one loop, until a signal; then it drains."""

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

import grpc.aio
from django.conf import settings
from granian.constants import Interfaces
from granian.server.embed import Server

MAX_CALLS = 4096
# Bodies that are on their way in, of all callers together, in bodies of the largest size.
HELD_SHARE = 8
STOP_SECONDS = 20.0

logger = logging.getLogger("workers.serving")


async def listen(pages: Any, calls: grpc.aio.Server, *, refuse_new: Callable[[], None]) -> None:
    """Answer until a signal says to stop; then finish the calls that are there.

    Raises:
        TimeoutError: some did not end in time; SystemExit: the HTTP server ended by itself.

    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    host = settings.BIND
    calls.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{settings.GRPC_PORT}")
    await calls.start()
    server = Server(
        pages,
        address=host,
        port=settings.INFER_PORT,
        interface=Interfaces.ASGINL,
        websockets=False,
        backlog=2048,
        backpressure=MAX_CALLS,
        log_enabled=False,
    )
    listening = loop.create_task(server.serve())
    waiting = loop.create_task(stopping.wait())
    logger.info(
        "Models answer on %s, ports %d and %d", host, settings.INFER_PORT, settings.GRPC_PORT
    )
    await asyncio.wait({listening, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if listening.done():
        listening.result()
        raise SystemExit("The HTTP server ended by itself.")
    refuse_new()
    await calls.stop(STOP_SECONDS)
    server.stop()
    async with asyncio.timeout(STOP_SECONDS):
        await listening
