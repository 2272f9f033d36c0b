"""Follows a job as server-sent events: its state and history from the database, then live."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import orjson
from django.conf import settings
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from registry.errors import RegistryError, Unavailable
from registry.models import Actor, Job, JobEvent
from registry.queue import job_channel
from registry.services.jobs import find_job
from registry.stream.exchange import Exchange
from registry.stream.threads import in_database

# Also how long a revoked token can listen on.
TICK_SECONDS = 3.0
COMMENT_SECONDS = 15.0
PAGE = 500
MAX_LISTENERS = 500
RECONNECT_MS = 2000
_HEADERS = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-store"),
    ("x-accel-buffering", "no"),
    ("x-content-type-options", "nosniff"),
]

logger = logging.getLogger(__name__)


class Listeners:
    """How many follow jobs through this process; each holds a connection to the broker."""

    count = 0


async def answer_events(
    exchange: Exchange, identify: Callable[[], Actor], where: Mapping[str, str], *, replay: bool
) -> None:
    """Tell the state, then every event after `Last-Event-ID`, until the job or the client ends.

    Without `Last-Event-ID` (or `?after=`) the whole history comes first, or, where `replay` is
    false, only what happens from now on.
    """
    follower = Follower(exchange, identify, where["job"])
    job = await in_database(follower.look)
    after = _last_seen(exchange)
    if after is not None and job.is_finished and not await in_database(follower.newer, after):
        # Told everything already; 204 makes a browser stop asking again.
        await exchange.respond(204)
        return
    if Listeners.count >= MAX_LISTENERS:
        raise Unavailable("Too many follow jobs right now; try again later.")
    Listeners.count += 1
    following = asyncio.create_task(follower.follow(job, after, replay=replay))
    leaving = asyncio.create_task(exchange.gone())
    try:
        await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            await following
    finally:
        Listeners.count -= 1
        for task in (following, leaving):
            task.cancel()
        await asyncio.gather(following, leaving, return_exceptions=True)


class Follower:
    """One client that follows one job."""

    def __init__(self, exchange: Exchange, identify: Callable[[], Actor], job_id: str) -> None:
        self.exchange = exchange
        self.identify = identify
        self.job_id = job_id
        self.last_id = 0
        self._told: set[int] = set()
        self._silent_since = 0.0

    def look(self) -> Job:
        """Find the job as the client may see it now: a revoked token ends the stream."""
        return find_job(self.identify(), self.job_id)

    def newer(self, after: int) -> list[JobEvent]:
        rows = JobEvent.objects.filter(job_id=self.job_id, pk__gt=after)
        return list(rows.order_by("pk")[:PAGE])

    def newest_id(self) -> int:
        rows = JobEvent.objects.filter(job_id=self.job_id).order_by("-pk")
        return rows.values_list("pk", flat=True).first() or 0

    async def follow(self, job: Job, after: int | None, *, replay: bool) -> None:
        if after is None:
            after = 0 if replay else await in_database(self.newest_id)
        self.last_id = after
        await self.exchange.start(200, _HEADERS)
        await self.exchange.write(b"retry: %d\n\n" % RECONNECT_MS)
        # Listen before looking, so that nothing falls between the two.
        async with Redis.from_url(
            settings.REDIS_URL, socket_connect_timeout=2, socket_timeout=None
        ) as client:
            channel = client.pubsub(ignore_subscribe_messages=True)
            try:
                await self._follow(job, channel)
            finally:
                await channel.aclose()  # type: ignore[no-untyped-call]

    async def _follow(self, job: Job, channel: PubSub) -> None:
        listening = await self._listen(channel)
        job = await in_database(self.look)
        await self._tell(self.last_id, "state", _standing(job))
        while True:
            await self._tell_newer()
            if job.is_finished:
                break
            await self._hear(channel, listening=listening)
            try:
                job = await in_database(self.look)
            except RegistryError:
                break
            listening = listening or await self._listen(channel)
        await self.exchange.write(b"", more=False)

    async def _listen(self, channel: PubSub) -> bool:
        try:
            await channel.subscribe(job_channel(self.job_id))
        except (RedisError, OSError):
            # The database alone tells the same, a little later.
            logger.warning("no broker to follow job %s with; looking at its row", self.job_id)
            return False
        return True

    async def _hear(self, channel: PubSub, *, listening: bool) -> None:
        """Relay what the broker says, for as long as a tick lasts or until the job ends."""
        if not listening:
            await asyncio.sleep(TICK_SECONDS / 2)
            return
        loop = asyncio.get_running_loop()
        tick_ends = loop.time() + TICK_SECONDS
        while (left := tick_ends - loop.time()) > 0:
            try:
                message = await channel.get_message(timeout=left)
            except (RedisError, OSError):
                await asyncio.sleep(TICK_SECONDS / 2)
                return
            event = _parse(message)
            if event is None:
                continue
            if event["id"] not in self._told:
                await self._tell(event["id"], event["type"], event)
            if event["type"] == "state":
                return

    async def _tell_newer(self) -> None:
        """Tell what the database has and nobody heard."""
        told = False
        rows = await in_database(self.newer, self.last_id)
        while rows:
            for row in rows:
                self.last_id = max(self.last_id, row.pk)
                if row.pk not in self._told:
                    told = True
                    data = {"id": row.pk, "type": row.type, "data": row.data, "at": row.at}
                    await self._tell(row.pk, row.type, data)
            rows = await in_database(self.newer, self.last_id) if len(rows) == PAGE else []
        self._told = {number for number in self._told if number > self.last_id - PAGE}
        now = asyncio.get_running_loop().time()
        if told:
            self._silent_since = now
        elif now - self._silent_since >= COMMENT_SECONDS - TICK_SECONDS / 2:
            self._silent_since = now
            await self.exchange.write(b": still here\n\n")

    async def _tell(self, number: int, name: str, data: Mapping[str, Any]) -> None:
        self._told.add(number)
        await self.exchange.write(
            b"id: %d\nevent: %s\ndata: %s\n\n"
            % (number, name.encode(), orjson.dumps(data, option=orjson.OPT_UTC_Z))
        )


def _standing(job: Job) -> dict[str, Any]:
    """Say where the job stands, in the shape of an event."""
    result = job.result
    return {
        "id": None,
        "type": "state",
        "data": {
            "state": job.state,
            "progress": job.progress,
            "error": {"code": job.error_code, "detail": job.error_detail}
            if job.error_code
            else None,
            "result": {
                "namespace": result.repository.namespace.slug,
                "name": result.repository.name,
                "number": result.number,
            }
            if result
            else None,
        },
        "at": job.finished_at or job.started_at or job.created_at,
    }


def _parse(message: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if message is None or message.get("type") != "message":
        return None
    try:
        event = orjson.loads(message["data"])
    except orjson.JSONDecodeError:
        return None
    known = isinstance(event, dict) and isinstance(event.get("id"), int)
    return event if known and str(event.get("type")).isalpha() else None


def _last_seen(exchange: Exchange) -> int | None:
    asked = parse_qs(exchange.query.decode("latin-1")).get("after", [""])[-1]
    text = exchange.headers.get("last-event-id", asked)
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None
