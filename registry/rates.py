"""How often a caller may ask: budgets that refill steadily, counted in Redis for all processes.

A budget of 6000 a minute is a bucket that holds 6000 and gains one every hundredth of a second; so
nobody waits for a minute to end, and no two minutes' worth fits around its turn. All that is kept
of a bucket is when it will be full again, under a key that is gone by then: callers who went away
take no memory.

Without Redis everybody passes. A limit protects others from one caller's haste, and no right hangs
on it; to refuse would turn a broker that is down, without which reading and registering go on,
into an installation that is down. (Sign-in is the opposite case: it counts guesses at passwords.)
"""

import hashlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Any, NamedTuple, cast

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from registry.errors import RateLimited

WINDOW_SECONDS = 60
REQUESTS, WRITES = "requests", "writes"

# Redis answers in a fraction of a millisecond; what takes longer is not waited for.
_TIMEOUT_SECONDS = 0.1
# After a failure nobody asks it again for so long.
_REST_SECONDS = 3.0
# How much of a budget is taken in advance at most, for how long, and for how many callers.
_ADVANCE_PART = 100
_ADVANCE_SECONDS = 1.0
_ADVANCES = 10_000
# One client's addresses in IPv6.
_NETWORK_BITS = 64

_SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local window = tonumber(ARGV[1])
local answer = {}
for i, key in ipairs(KEYS) do
    local step = window / tonumber(ARGV[2 * i])
    local full = math.max(now, tonumber(redis.call('GET', key) or now))
    local room = math.floor((now + window - full) / step + 0.000001)
    local taken = math.min(room, tonumber(ARGV[2 * i + 1]))
    if taken > 0 then
        full = full + taken * step
        redis.call('SET', key, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000))
    end
    table.insert(answer, math.max(0, taken))
    table.insert(answer, math.max(0, room - taken))
    table.insert(answer, taken > 0 and 0 or math.ceil(full + step - now - window))
    table.insert(answer, math.ceil(full - now))
end
return answer
"""
_SCRIPT_ID = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

logger = logging.getLogger(__name__)


class Budget(NamedTuple):
    """What is left of one budget after this request."""

    name: str
    limit: int
    left: int
    # Until one more fits, 0 where this one did; until the bucket is full.
    wait_seconds: float
    full_seconds: float


@dataclass(frozen=True)
class Standing:
    """How a caller stands after a request; without budgets nobody counts."""

    budgets: tuple[Budget, ...] = ()
    with_token: bool = False

    @property
    def headers(self) -> Mapping[str, str]:
        """Say it as draft-ietf-httpapi-ratelimit-headers does (as of its revision 11)."""
        if not self.budgets:
            return {}
        policies = (f'"{one.name}";q={one.limit};w={WINDOW_SECONDS}' for one in self.budgets)
        left = (
            f'"{one.name}";r={one.left};t={math.ceil(one.full_seconds)}' for one in self.budgets
        )
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}

    def require(self) -> None:
        """Pass while there was something left.

        Raises:
            RateLimited: there was not; it names the time after which there will be.

        """
        late = max(self.budgets, key=lambda one: one.wait_seconds, default=None)
        if late is None or not late.wait_seconds:
            return
        wait = math.ceil(late.wait_seconds)
        if late.name == WRITES:
            raise RateLimited(
                "This token changed more than {limit} things within a minute; go on in "
                "{retry_after} s.",
                limit=late.limit,
                retry_after=wait,
            )
        if self.with_token:
            raise RateLimited(
                "This token asked more than {limit} times within a minute; go on in "
                "{retry_after} s.",
                limit=late.limit,
                retry_after=wait,
            )
        raise RateLimited(
            "Your address asked more than {limit} times within a minute; go on in "
            "{retry_after} s, or send a token, which has a budget of its own.",
            limit=late.limit,
            retry_after=wait,
        )


def count_token(token_id: int, *, writes: bool) -> Standing:
    """Count one request with a token."""
    return Standing(_count(f"token:{token_id}", writes=writes), with_token=True)


def count_address(ip: str | None) -> Standing:
    """Count one request without a good token, for the address it comes from."""
    return Standing(_count(f"address:{network_of(ip)}", writes=False))


def key_of(caller: str, budget: str) -> str:
    return f"modelyard:rate:{budget}:{caller}"


def network_of(ip: str | None) -> str:
    """Take the addresses of one client for one: whoever has one of IPv6 has 2^64 of them."""
    try:
        named = ip_address(ip or "")
    except ValueError:
        return "unknown"
    if isinstance(named, IPv6Address):
        return f"{IPv6Address(int(named) >> _NETWORK_BITS << _NETWORK_BITS)}/{_NETWORK_BITS}"
    return str(named)


def _count(caller: str, *, writes: bool) -> tuple[Budget, ...]:
    limits = {REQUESTS: settings.RATE_REQUESTS, WRITES: settings.RATE_WRITES if writes else 0}
    counted = {name: limit for name, limit in limits.items() if limit}
    if not counted or _rest.resting:
        return ()
    budgets = {name: _advances.use(name, caller, limit) for name, limit in counted.items()}
    asked = {name: counted[name] for name, known in budgets.items() if known is None}
    try:
        budgets.update(_take(caller, asked) if asked else {})
    except (redis.RedisError, OSError) as error:
        _rest.begin(error)
        return ()
    return tuple(one for one in budgets.values() if one is not None)


def _take(caller: str, limits: Mapping[str, int]) -> dict[str, Budget]:
    """Take one request from each budget, and for a busy caller some in advance."""
    keys = [key_of(caller, name) for name in limits]
    wanted = [
        _advances.wanted(key, limit) for key, limit in zip(keys, limits.values(), strict=True)
    ]
    pairs = itertools.chain.from_iterable(zip(limits.values(), wanted, strict=True))
    said = _ask(len(keys), *keys, WINDOW_SECONDS * 1_000_000, *pairs)
    budgets = {}
    for at, (name, limit) in enumerate(limits.items()):
        taken, left, wait, full = said[4 * at : 4 * at + 4]
        ahead = max(0, taken - 1)
        budgets[name] = Budget(name, limit, left + ahead, wait / 1e6, full / 1e6)
        _advances.keep(keys[at], wanted[at] if taken else 1, ahead, budgets[name])
    return budgets


class _Advance(NamedTuple):
    """Requests that were taken from a budget before they came."""

    size: int
    ahead: int
    until: float
    last: Budget


class _Advances:
    """What this process has taken in advance for callers that are busy right now.

    A question to Redis is a change of process, which on a busy machine costs a fifth of a read. So
    who comes again at once gets some requests in advance, twice as many each time, up to a
    hundredth of the budget; who does not come within a second loses them. Small budgets are
    counted one by one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Advance] = {}

    def use(self, name: str, caller: str, limit: int) -> Budget | None:
        """Count a request against what was taken in advance, if there is some."""
        key = key_of(caller, name)
        with self._lock:
            known = self._known.get(key)
            if known is None or not known.ahead or known.last.limit != limit:
                return None
            if time.monotonic() >= known.until:
                return None
            last = known.last._replace(left=known.last.left - 1)
            self._known[key] = known._replace(ahead=known.ahead - 1, last=last)
            return last

    def wanted(self, key: str, limit: int) -> int:
        """Say how many to take: one, or more for a caller who used up the last advance in time."""
        with self._lock:
            known = self._known.get(key)
        if known is None or known.ahead or time.monotonic() >= known.until:
            return 1
        return max(1, min(2 * known.size, limit // _ADVANCE_PART))

    def keep(self, key: str, size: int, ahead: int, last: Budget) -> None:
        now = time.monotonic()
        with self._lock:
            if len(self._known) >= _ADVANCES:
                self._known = {one: had for one, had in self._known.items() if had.until > now}
            if len(self._known) < _ADVANCES:
                self._known[key] = _Advance(size, ahead, now + _ADVANCE_SECONDS, last)


_advances = _Advances()


class _Lines(threading.local):
    """A connection for each thread: half as dear as to take one of a pool for each request."""

    def __init__(self) -> None:
        # redis-py has no types for what its connections do.
        self.known: dict[str, Any] = {}

    def to(self, redis_url: str) -> Any:
        if redis_url not in self.known:
            pool = redis.ConnectionPool.from_url(
                redis_url,
                socket_timeout=_TIMEOUT_SECONDS,
                socket_connect_timeout=_TIMEOUT_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
            self.known[redis_url] = pool.make_connection()
        return self.known[redis_url]


_lines = _Lines()


def _ask(*arguments: str | int) -> list[int]:
    """Run the script in one round trip, on a connection that may have died with an earlier Redis.

    Sent again, a request that was counted counts twice, which is nothing to anybody.
    """
    line = _lines.to(settings.REDIS_URL)
    try:
        return _run(line, *arguments)
    except (redis.ConnectionError, OSError):
        line.disconnect()
        return _run(line, *arguments)
    except redis.RedisError:
        # What it has yet to say belongs to nobody.
        line.disconnect()
        raise


def _run(line: Any, *arguments: str | int) -> list[int]:
    line.connect()
    line.send_command("EVALSHA", _SCRIPT_ID, *arguments, check_health=False)
    try:
        said = line.read_response()
    except NoScriptError:
        line.send_command("EVAL", _SCRIPT, *arguments, check_health=False)
        said = line.read_response()
    return cast("list[int]", said)


class _Rest:
    """Remembers that Redis just failed, so that not every request waits for a timeout."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until = 0.0

    @property
    def resting(self) -> bool:
        return time.monotonic() < self._until

    def begin(self, error: Exception) -> None:
        with self._lock:
            self._until = time.monotonic() + _REST_SECONDS
        logger.warning("Requests are not counted for now: %s", error)


_rest = _Rest()
