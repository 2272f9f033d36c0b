"""The replicas that a front knows: how each is, how much it does, and which takes the next call.

Serving processes report themselves in Redis; that they answer is seen by asking them. One that
fails what others answer is left out for a while, longer each time, as Envoy's outlier detection
does it; but never so many that the rest would break down.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.errors import Unavailable

# A replica is asked so often, waited for so long, and missed after so many silences.
CHECK_SECONDS = 0.5
CHECK_WAITS_SECONDS = 1.0
MISSED = 2
# Ejected after so many failures in a row, or after so large a share of so many calls.
FAILURES_IN_A_ROW = 5
FAILED_SHARE, LEAST_CALLS = 0.5, 20
INTERVAL_SECONDS = 10.0
# For so long, times the number of ejections that were not outlived yet.
EJECTED_SECONDS = 5.0
LONGEST_EJECTION_SECONDS = 300.0
# At most so many of them; one may always be.
EJECTED_SHARE = 0.5
# A model that is being loaded is said to be in the next report, or the one after it.
PROMISED_SECONDS = 4.0
# Neither in Redis nor answering for so long: it has gone.
FORGOTTEN_SECONDS = 10.0


@dataclass(slots=True, eq=False)
class Replica:
    """A serving process as this front sees it."""

    id: str
    host: str
    rest_port: int
    grpc_port: int
    # What it last said of itself: what waits there, and which models it has loaded.
    pending: int = 0
    loaded: frozenset[str] = frozenset()
    loading: frozenset[str] = frozenset()
    # Models that it told a caller it is loading, and until when that may last.
    promised: dict[str, float] = field(default_factory=dict)
    # Calls of this front that it has not answered.
    in_flight: int = 0
    is_up: bool = False
    missed: int = 0
    seen_at: float = 0.0
    in_a_row: int = 0
    calls: int = 0
    failures: int = 0
    counted_since: float = 0.0
    ejections: int = 0
    ejected_until: float = 0.0
    answered: int = 0
    # Set when it stops to answer: who waits for it asks another one.
    down: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def load(self) -> int:
        return self.in_flight + self.pending

    def is_loading(self, model: str, now: float) -> bool:
        return model in self.loading or now < self.promised.get(model, 0.0)

    def is_ejected(self, now: float) -> bool:
        return now < self.ejected_until


class Pool:
    """The replicas of one front."""

    def __init__(
        self,
        check: Callable[[Replica], Awaitable[bool]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._clock = clock
        self._known: dict[str, Replica] = {}
        self.retries = 0
        self.ejections = 0

    @property
    def all(self) -> list[Replica]:
        return [*self._known.values()]

    @property
    def up(self) -> list[Replica]:
        return [one for one in self._known.values() if one.is_up]

    # --- who there is -----------------------------------------------------------------------------

    def hear(self, said: Iterable[Mapping[str, Any]]) -> None:
        """Take note of what serving processes say of themselves; who says nothing may still be."""
        now = self._clock()
        for status in said:
            read = _read(status)
            if read is None:
                continue
            replica = self._known.get(read.id)
            if replica is None:
                replica = self._known[read.id] = read
                replica.counted_since = now
            replica.pending = read.pending
            replica.loaded, replica.loading = read.loaded, read.loading
            replica.promised = {one: at for one, at in replica.promised.items() if at > now}
            replica.seen_at = now

    async def check_all(self) -> None:
        """Ask every replica whether it answers."""
        await asyncio.gather(*(self._check_one(one) for one in self.all))
        now = self._clock()
        for one in self.all:
            if not one.is_up and now - one.seen_at > FORGOTTEN_SECONDS:
                del self._known[one.id]
            self._settle(one, now)

    async def _check_one(self, replica: Replica) -> None:
        try:
            async with asyncio.timeout(CHECK_WAITS_SECONDS):
                good = await self._check(replica)
        except TimeoutError:
            good = False
        if good:
            replica.missed = 0
            replica.seen_at = self._clock()
            if not replica.is_up:
                replica.is_up, replica.down = True, asyncio.Event()
            return
        replica.missed += 1
        if replica.missed >= MISSED:
            self.lose(replica)

    def lose(self, replica: Replica) -> None:
        """Send nothing more to a replica until it answers when it is asked."""
        replica.is_up = False
        replica.down.set()

    # --- which one --------------------------------------------------------------------------------

    def pick(self, model: str = "", *, beside: Collection[Replica] = ()) -> Replica:
        """Choose who takes a call: the less busy one of two, of those that have the model loaded.

        Where none has, one that is loading it: each of the others would do so for itself.

        Raises:
            Unavailable: no replica answers, or all that do were asked already.

        """
        now = self._clock()
        up = [one for one in self._known.values() if one.is_up and one not in beside]
        found = [one for one in up if not one.is_ejected(now)] or up
        if not found:
            raise Unavailable("No serving process answers; try again soon.", code="no_replica")
        if model:
            name = model.lower()
            found = (
                [one for one in found if name in one.loaded]
                or [one for one in found if one.is_loading(name, now)]
                or found
            )
        return min(_two_of(found), key=lambda one: one.load)

    def has_loaded(self, model: str, *, beside: Collection[Replica] = ()) -> bool:
        """Say whether another replica has a model loaded, as far as is known."""
        return any(model.lower() in one.loaded for one in self.up if one not in beside)

    def promise(self, replica: Replica, model: str, seconds: float) -> None:
        """Note that a replica is loading a model, which its own report may say only later.

        A load may end before its time, so the report alone counts from then on.
        """
        replica.promised[model.lower()] = self._clock() + min(seconds, PROMISED_SECONDS)

    # --- how they do ------------------------------------------------------------------------------

    def count(self, replica: Replica, *, failed: bool) -> None:
        """Note how a call went; a failure is the replica's, never one that the caller made."""
        replica.calls += 1
        replica.answered += not failed
        if not failed:
            replica.in_a_row = 0
            return
        replica.failures += 1
        replica.in_a_row += 1
        often = replica.calls >= LEAST_CALLS and replica.failures / replica.calls >= FAILED_SHARE
        if replica.in_a_row >= FAILURES_IN_A_ROW or often:
            self._eject(replica)

    def _eject(self, replica: Replica) -> None:
        now = self._clock()
        if replica.is_ejected(now):
            return
        ejected = sum(one.is_ejected(now) for one in self.all)
        if ejected >= max(1, int(len(self._known) * EJECTED_SHARE)):
            return
        replica.ejections += 1
        self.ejections += 1
        seconds = min(EJECTED_SECONDS * replica.ejections, LONGEST_EJECTION_SECONDS)
        replica.ejected_until = now + seconds
        self._begin_to_count(replica, now)

    def _settle(self, replica: Replica, now: float) -> None:
        """Begin a new interval; one without an ejection makes the next one shorter."""
        if replica.is_ejected(now) or now - replica.counted_since < INTERVAL_SECONDS:
            return
        if now - max(replica.ejected_until, 0.0) >= INTERVAL_SECONDS:
            replica.ejections = max(0, replica.ejections - 1)
        self._begin_to_count(replica, now)

    def _begin_to_count(self, replica: Replica, now: float) -> None:
        replica.counted_since = now
        replica.calls = replica.failures = replica.in_a_row = 0


def _two_of(found: Sequence[Replica]) -> Sequence[Replica]:
    return random.sample(found, 2) if len(found) > 2 else random.sample(found, len(found))


def _read(status: Mapping[str, Any]) -> Replica | None:
    """Read what one process says; what another release says may be less."""
    models = status.get("models", [])
    try:
        return Replica(
            id=str(status["id"]),
            host=str(status.get("address") or status["host"]),
            rest_port=int(status["rest_port"]),
            grpc_port=int(status["grpc_port"]),
            # Deployments of one version wait in one queue.
            pending=sum(
                {(one["endpoint"], one["version"]): int(one["pending"]) for one in models}.values()
            ),
            loaded=_in_state("ready", models),
            loading=_in_state("loading", models),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _in_state(state: str, models: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(str(one["endpoint"]).lower() for one in models if one["state"] == state)
