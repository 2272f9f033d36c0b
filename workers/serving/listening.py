"""How a process of serving listens: HTTP and gRPC in one loop, until a signal; then it drains."""

import asyncio
import logging
import resource
import signal
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import uvloop
from django.conf import settings

from workers.serving.listener import Listener

if TYPE_CHECKING:  # it needs the settings, which are not set up yet
    from workers.serving.calls import CallServer

MAX_CALLS = 4096
# Bodies that are on their way in, of all callers together, in bodies of the largest size.
HELD_SHARE = 8
STOP_SECONDS = 20.0

logger = logging.getLogger("workers.serving")


async def listen(pages: Any, calls: "CallServer", *, refuse_new: Callable[[], None]) -> None:
    """Answer until a signal says to stop; then finish the calls that are there.

    Raises:
        TimeoutError: some did not end in time.
        OSError: an address is taken.

    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    host = settings.BIND
    await calls.start(host, settings.GRPC_PORT)
    server = Listener(pages, max_connections=MAX_CALLS)
    await server.start(host, settings.INFER_PORT)
    logger.info(
        "Models answer on %s, ports %d and %d", host, settings.INFER_PORT, settings.GRPC_PORT
    )
    await stopping.wait()
    refuse_new()
    ended = await asyncio.gather(
        calls.stop(STOP_SECONDS), server.stop(STOP_SECONDS), return_exceptions=True
    )
    for problem in ended:
        if problem is not None:
            raise problem


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
