"""What all calls may hold in memory together while they come in: one budget for every protocol.

Bytes are counted as they come, or when a call says how many will; who sends them slowly is given up
where most of the budget is held.
"""

import asyncio
import ctypes
import os
import time
from dataclasses import dataclass, field
from typing import TypeAlias

from registry.errors import Unavailable

Task: TypeAlias = "asyncio.Task[object]"

LOOK_SECONDS = 0.05
# Where so much of the budget is held, a body has to come at so many bytes a second, after a while
# in which it may begin.
CROWDED_SHARE = 0.75
BEGIN_SECONDS = 4.0
LEAST_RATE = 256 * 1024
# So much a connection takes before its client does; there are only so many calls.
SMALL_ANSWER = 64 * 1024
# What the allocator keeps of large messages is given back so often at most, while none are there.
GIVE_BACK_SECONDS = 5.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


BUSY = "busy"


def busy() -> Unavailable:
    return Unavailable("Too much is being sent at once; try again soon.", code=BUSY)


@dataclass(slots=True)
class Arrival:
    """A body on its way in: since when, and how much of it is there."""

    since: float = field(default_factory=time.monotonic)
    size: int = 0

    def is_slow(self, now: float) -> bool:
        return self.size < (now - self.since - BEGIN_SECONDS) * LEAST_RATE


@dataclass(slots=True)
class Bounds:
    """How large a body may be, and how many bytes of bodies a process holds at once."""

    body_bytes: int
    held_bytes: int
    held: int = 0
    # Of answers over gRPC that wait for their clients, and these alone: who takes none keeps
    # nobody's requests away.
    waiting: int = 0
    _arriving: dict[Task, Arrival] = field(default_factory=dict)
    _given_up: set[Task] = field(default_factory=set)
    _beside: int = 0

    def take(self, size: int) -> None:
        """Count bytes that are about to be held.

        Raises:
            Unavailable: there are too many already.

        """
        if self.held + size > self.held_bytes:
            raise busy()
        self.held += size

    def wait(self, size: int) -> None:
        """Count an answer that waits for its client.

        Raises:
            Unavailable: so much waits already, which is as much as may come in.

        """
        if self.waiting + size > self.held_bytes:
            raise busy()
        self.waiting += size

    # --- who takes too long -----------------------------------------------------------------------

    def arriving(self) -> "Arriving":
        """Watch over a body that the current task reads."""
        return Arriving(self)

    def begin(self, task: Task) -> Arrival:
        arrival = self._arriving[task] = Arrival()
        return arrival

    def finish(self, task: Task) -> bool:
        """Forget a body; say whether it was given up."""
        del self._arriving[task]
        if task not in self._given_up:
            return False
        self._given_up.discard(task)
        return True

    def look_at_arrivals(self, now: float) -> None:
        """Give bodies up that come slowly, where most of the budget is held."""
        if self.held <= self.held_bytes * CROWDED_SHARE:
            return
        for task, arrival in self._arriving.items():
            if arrival.is_slow(now) and task not in self._given_up:
                self._given_up.add(task)
                task.cancel()

    async def watch(self) -> None:
        """Give slow bodies up for ever, and free memory back to the system."""
        self._beside = own_bytes()
        given_back_at = 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look_at_arrivals(time.monotonic())
            idle = not self.held and own_bytes() > self._beside + self.held_bytes // 2
            if idle and time.monotonic() - given_back_at > GIVE_BACK_SECONDS:
                await asyncio.to_thread(give_back_memory)
                given_back_at = time.monotonic()


class Arriving:
    """While a body is read; made for each call, and so without a generator behind it.

    Raises:
        Unavailable: it came too slowly, and others need the room.

    """

    __slots__ = ("_bounds", "_task")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds

    def __enter__(self) -> Arrival:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        return self._bounds.begin(task)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        given_up = self._bounds.finish(self._task)
        if given_up and kind is asyncio.CancelledError:
            self._task.uncancel()
            raise busy() from None


@dataclass(slots=True)
class Holding:
    """What one call holds of the budget, until it is released."""

    bounds: Bounds
    held: int = 0
    waiting: int = 0

    def hold(self, more: int) -> None:
        """Count more bytes for this call.

        Raises:
            Unavailable: all calls hold too many together.

        """
        if more > 0:
            self.bounds.take(more)
            self.held += more

    def turn_to_answer(self, size: int) -> None:
        """Give back what the request held, for it is answered; from now on the answer counts.

        Raises:
            Unavailable: too many answers wait for their clients.

        """
        self.release()
        if size > SMALL_ANSWER:
            self.bounds.wait(size)
            self.waiting = size

    def release(self) -> None:
        self.bounds.held -= self.held
        self.bounds.waiting -= self.waiting
        self.held = self.waiting = 0


def give_back_memory() -> None:
    """Have the allocator give free memory back to the system, as far as it can."""
    allocator = ctypes.CDLL(None)
    if hasattr(allocator, "malloc_trim"):
        allocator.malloc_trim(0)


def own_bytes() -> int:
    """Give the memory of this process that it shares with nobody and no file."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - twenty times a second
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * _PAGE_BYTES
