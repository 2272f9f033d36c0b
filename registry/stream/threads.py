"""Work that would block the event loop: database calls and disk calls, each in a bounded pool."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from django.db import close_old_connections

P = ParamSpec("P")
T = TypeVar("T")

_database = ThreadPoolExecutor(6, thread_name_prefix="stream-database")
_disk = ThreadPoolExecutor(16, thread_name_prefix="stream-disk")


def in_database(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run a call that uses the ORM; its connection goes back to the pool afterwards."""
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(_database, partial(_with_connection, call, *args, **kwargs))


def on_disk(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run a call that reads, writes or hashes."""
    return asyncio.get_running_loop().run_in_executor(_disk, partial(call, *args, **kwargs))


async def settled(future: asyncio.Future[T]) -> T:
    """Wait for a thread even when cancelled, so that nobody closes a file under its feet."""
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        # The thread's own error matters less than that we were told to stop.
        future.exception()
        raise asyncio.CancelledError
    return future.result()


def _with_connection(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    close_old_connections()
    try:
        return call(*args, **kwargs)
    finally:
        close_old_connections()
