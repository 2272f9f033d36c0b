"""Whose turn it is, where one is served after the other: callers take turns, not their requests."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from registry.errors import DeadlineExceeded

if TYPE_CHECKING:
    # Who reads beside the server knows no Django.
    from registry.models import Actor

# Whoever has a thousand addresses does not get a thousand turns.
UNKNOWN_TURNS = 64


def turn_of(actor: "Actor") -> int:
    """Say whose turn a request takes: everybody has one, and all that are unknown a few together.

    Nobody could know which address shares one with them, so nobody can aim for somebody's turn.
    """
    return actor.user_id or -1 - hash(actor.ip) % UNKNOWN_TURNS


class Turns:
    """A lock that goes round among the callers who wait for it."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        # The next one is the first.
        self._order: deque[Hashable] = deque()
        self._is_taken = False
        self._taken_by: Hashable = None

    @asynccontextmanager
    async def turn(self, caller: Hashable, until: float) -> AsyncIterator[None]:
        """Wait for a caller's turn, and have it meanwhile.

        Raises:
            DeadlineExceeded: it did not come by then, on the clock of time.monotonic.

        """
        await self._take(caller, until)
        try:
            yield
        finally:
            self._hand_on()

    async def _take(self, caller: Hashable, until: float) -> None:
        if not self._is_taken:
            self._is_taken, self._taken_by = True, caller
            return
        turn = asyncio.get_running_loop().create_future()
        queue = self._waiting.get(caller)
        if queue is None:
            queue = self._waiting[caller] = deque()
            self._order.append(caller)
        queue.append(turn)
        try:
            async with asyncio.timeout(until - time.monotonic()):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # It came as its caller left.
                self._hand_on()
            if isinstance(error, TimeoutError):
                template = "The model did not answer before the deadline of the request."
                raise DeadlineExceeded(template) from None
            raise

    def _hand_on(self) -> None:
        """Give the turn to the caller who has waited longest since their last one."""
        if len(self._order) > 1 and self._order[0] == self._taken_by:
            self._order.rotate(-1)
        while self._order:
            caller = self._order.popleft()
            queue = self._waiting[caller]
            while queue and queue[0].done():
                queue.popleft()
            if not queue:
                del self._waiting[caller]
                continue
            turn = queue.popleft()
            if queue:
                self._order.append(caller)
            else:
                del self._waiting[caller]
            self._taken_by = caller
            turn.set_result(None)
            return
        self._is_taken = False
