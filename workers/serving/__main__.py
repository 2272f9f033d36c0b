"""`python -m workers.serving`: the inference server, HTTP and gRPC in one process and one loop."""

import asyncio
import ctypes
import logging
import os
import signal
import sys

import django

MAX_CALLS = 4096
# Bodies that are on their way in, of all callers together.
_HELD_SHARE = 8
STOP_SECONDS = 20.0
# Names of glibc's, and its own limit of the first.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGEST_KEPT = 32 * 1024 * 1024

logger = logging.getLogger("workers.serving")


async def serve() -> None:
    """Answer until a signal says to stop; then finish what is there."""
    # Django is set up by now, which the tables need.
    from django.conf import settings  # noqa: PLC0415
    from granian.constants import Interfaces  # noqa: PLC0415
    from granian.server.embed import Server  # noqa: PLC0415

    from workers.serving.budget import Bounds  # noqa: PLC0415
    from workers.serving.dataplane import DataPlane  # noqa: PLC0415
    from workers.serving.rest import Rest  # noqa: PLC0415
    from workers.serving.rpc import serve_grpc  # noqa: PLC0415

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    plane = DataPlane()
    await plane.start()
    limit = settings.SERVING_MAX_BYTES
    bounds = Bounds(limit, limit * _HELD_SHARE)
    watching = loop.create_task(bounds.watch())
    rest = Rest(plane, bounds)
    calls = serve_grpc(plane, bounds, max_calls=MAX_CALLS)
    host = settings.BIND
    calls.add_insecure_port(f"{f'[{host}]' if ':' in host else host}:{settings.GRPC_PORT}")
    await calls.start()
    pages = Server(
        rest,
        address=host,
        port=settings.INFER_PORT,
        interface=Interfaces.ASGINL,
        websockets=False,
        backlog=2048,
        backpressure=MAX_CALLS,
        log_enabled=False,
    )
    listening = loop.create_task(pages.serve())
    waiting = loop.create_task(stopping.wait())
    logger.info(
        "Models answer on %s, ports %d and %d", host, settings.INFER_PORT, settings.GRPC_PORT
    )
    await asyncio.wait({listening, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if listening.done():
        listening.result()
        raise SystemExit("The HTTP server ended by itself.")
    plane.refuse_new()
    await calls.stop(STOP_SECONDS)
    pages.stop()
    async with asyncio.timeout(STOP_SECONDS):
        await listening
    watching.cancel()
    await plane.stop(grace_seconds=STOP_SECONDS)


def keep_memory() -> None:
    """Have large bodies reuse memory: to ask the system for clean pages each time costs more."""
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "mallopt"):
        allocator.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        allocator.mallopt(_TRIM_THRESHOLD, 8 * _LARGEST_KEPT)


def main() -> int:
    keep_memory()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    try:
        asyncio.run(serve())
    except TimeoutError:
        logger.warning("Calls were cut off: they did not end in %g s.", STOP_SECONDS)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
