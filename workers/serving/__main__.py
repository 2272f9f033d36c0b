"""`python -m workers.serving`: the inference server, HTTP and gRPC in one process and one loop."""

import asyncio
import ctypes
import os
import sys

import django

STOP_SECONDS = 20.0
# Names of glibc's, and its own limit of the first.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGEST_KEPT = 32 * 1024 * 1024


async def serve() -> None:
    """Answer until a signal says to stop; then finish what is there."""
    # Django is set up by now, which the tables need.
    from django.conf import settings  # noqa: PLC0415

    from workers.serving.budget import Bounds  # noqa: PLC0415
    from workers.serving.dataplane import DataPlane  # noqa: PLC0415
    from workers.serving.listening import HELD_SHARE, MAX_CALLS, listen  # noqa: PLC0415
    from workers.serving.rest import Rest  # noqa: PLC0415
    from workers.serving.rpc import serve_calls  # noqa: PLC0415

    plane = DataPlane()
    await plane.start()
    limit = settings.SERVING_MAX_BYTES
    bounds = Bounds(limit, limit * HELD_SHARE)
    watching = asyncio.get_running_loop().create_task(bounds.watch())
    rest = Rest(plane, bounds)
    calls = serve_calls(plane, bounds, max_calls=MAX_CALLS)
    await listen(rest, calls, refuse_new=plane.refuse_new)
    watching.cancel()
    await rest.reader.close()
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
    from workers.serving.listening import run  # noqa: PLC0415 - needs the settings

    return run(serve())


if __name__ == "__main__":
    sys.exit(main())
