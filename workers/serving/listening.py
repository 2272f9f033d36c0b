"""How a process of serving listens: HTTP and gRPC in one loop, until a signal; then it drains."""

import asyncio
import logging
import resource
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import grpc.aio
import uvloop
from django.conf import settings

from workers.serving.listener import Listener

MAX_CALLS = 4096
# Bodies that are on their way in, of all callers together, in bodies of the largest size.
HELD_SHARE = 8
STOP_SECONDS = 20.0

logger = logging.getLogger("workers.serving")


async def listen(pages: Any, calls: grpc.aio.Server, *, refuse_new: Callable[[], None]) -> None:
    """Answer until a signal says to stop; then finish the calls that are there.

    Raises:
        TimeoutError: some did not end in time.

    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    host = settings.BIND
    calls.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{settings.GRPC_PORT}")
    await calls.start()
    server = Listener(pages, max_connections=MAX_CALLS)
    await server.start(host, settings.INFER_PORT)
    logger.info(
        "Models answer on %s, ports %d and %d", host, settings.INFER_PORT, settings.GRPC_PORT
    )
    await stopping.wait()
    refuse_new()
    await calls.stop(STOP_SECONDS)
    await server.stop(STOP_SECONDS)


def run(serving: Coroutine[Any, Any, None]) -> int:
    """Run a process of serving in its loop; give its exit status."""
    allow_connections()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving)
    except TimeoutError:
        logger.warning("Calls were cut off: they did not end in %g s.", STOP_SECONDS)
        return 1
    return 0


def allow_connections() -> None:
    """Have room for the files of all callers; the usual limit is below their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CALLS if hard == resource.RLIM_INFINITY else min(hard, 4 * MAX_CALLS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
