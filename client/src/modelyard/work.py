"""Runs many small pieces of a transfer in threads, and stops them all when one fails."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from modelyard.errors import Interrupted

_LOOK_SECONDS = 0.2
_STOP_SECONDS = 2.0


def run_all(tasks: Iterable[Callable[[], None]], workers: int, stop: threading.Event) -> None:
    """Run the tasks; raise the first error, or what interrupts the caller.

    The others are told to stop, and given a moment to note how far they came. One that waits for
    a server that says nothing is left behind; it can do no harm any more.
    """
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="transfer")
    futures = [pool.submit(_run, task, stop) for task in tasks]
    try:
        pending = set(futures)
        failed = False
        while pending and not failed:
            # A wait without end would keep Ctrl-C out on some systems.
            done, pending = wait(pending, timeout=_LOOK_SECONDS, return_when=FIRST_EXCEPTION)
            failed = any(future.exception() is not None for future in done)
    finally:
        if any(not future.done() for future in futures):
            stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait(futures, timeout=_STOP_SECONDS)
    problems = [
        problem
        for future in futures
        if future.done() and not future.cancelled() and (problem := future.exception())
    ]
    # Those that were only told to stop say nothing about why.
    for problem in sorted(problems, key=lambda one: isinstance(one, Interrupted)):
        raise problem


def _run(task: Callable[[], None], stop: threading.Event) -> None:
    if stop.is_set():
        raise Interrupted("Stopped.")
    task()
