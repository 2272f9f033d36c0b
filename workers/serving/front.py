"""`python -m workers.serving.front`: one address before many serving processes."""

import asyncio
import os
import sys

import django

from workers.serving.listening import HELD_SHARE, MAX_CALLS, listen, run


async def serve() -> None:
    """Pass calls on until a signal says to stop; then finish what is there."""
    # Django is set up by now, which settings and addresses need.
    from django.conf import settings  # noqa: PLC0415

    from workers.serving.budget import Bounds  # noqa: PLC0415
    from workers.serving.passage import Front  # noqa: PLC0415

    limit = settings.SERVING_MAX_BYTES
    bounds = Bounds(limit, limit * HELD_SHARE)
    front = Front(bounds)
    loop = asyncio.get_running_loop()
    watching = [loop.create_task(front.watch()), loop.create_task(bounds.watch())]
    calls = front.serve_calls(max_calls=MAX_CALLS)
    await listen(front, calls, refuse_new=front.refuse_new)
    for task in watching:
        task.cancel()
    await front.close()


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    return run(serve())


if __name__ == "__main__":
    sys.exit(main())
