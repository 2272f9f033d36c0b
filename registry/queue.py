"""The broker: wakes workers and tells listeners what a job says; nobody else touches it.

Whatever is sent here may be lost. The job's row is the truth, workers look at it now and then by
themselves, and pages read it before they listen; so a broker that is down never fails a caller.
"""

import functools
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from celery import Celery
from django.conf import settings
from kombu.exceptions import OperationalError

RUN_JOB = "workers.run_job"
DELIVER_WEBHOOKS = "workers.deliver_webhooks"
CHECK_UPLOADS = "workers.check_uploads"
SCREEN = "workers.screen"
DEFAULT_QUEUE = "default"
# Served by workers that may reach the outside; no job ever runs on it.
WEBHOOK_QUEUE = "webhooks"

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 1.0
# After a failure nobody waits for the broker again for so long.
_REST_SECONDS = 3.0


class _Patience:
    """Remembers that the broker just failed, so that not every caller waits for a timeout."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._resting_until = 0.0

    @property
    def resting(self) -> bool:
        return time.monotonic() < self._resting_until

    def failed(self, what: str, error: Exception) -> None:
        with self._lock:
            self._resting_until = time.monotonic() + _REST_SECONDS
        logger.warning("The broker did not take %s: %s", what, error)


_patience = _Patience()


def broker_url(redis_url: str) -> str:
    """Say a redis-py address in Celery's words: a Unix socket is `redis+socket://` there."""
    url = urlsplit(redis_url)
    if url.scheme != "unix":
        return redis_url
    database = parse_qs(url.query).get("db", ["0"])[-1]
    login = f"{url.username or ''}:{url.password}@" if url.password else ""
    return f"redis+socket://{login}{url.path}?virtual_host={database}"


def wake(queue: str, job_id: object) -> bool:
    """Tell the workers of `queue` that a job waits; give whether the broker took it."""
    return _send(RUN_JOB, queue, [str(job_id)], f"the wake-up for job {job_id}")


def wake_couriers() -> bool:
    """Tell the couriers that a webhook is to be called; give whether the broker took it."""
    return _send(DELIVER_WEBHOOKS, WEBHOOK_QUEUE, [], "the wake-up for webhooks")


def wake_checks() -> bool:
    """Tell a worker that a client has put something into the bucket; beat does now and then too."""
    return _send(CHECK_UPLOADS, DEFAULT_QUEUE, [], "the wake-up for an upload")


def wake_screening(version_id: int) -> bool:
    """Tell the workers that a version's files wait for the sandbox."""
    what = f"the wake-up for version {version_id}"
    return _send(SCREEN, DEFAULT_QUEUE, [str(version_id)], what)


def _send(task: str, queue: str, arguments: Sequence[str], what: str) -> bool:
    if _patience.resting:
        return False
    try:
        _sender(settings.REDIS_URL).send_task(
            task, args=list(arguments), queue=queue, expires=600, ignore_result=True
        )
    except (OperationalError, redis.RedisError, OSError) as error:
        _patience.failed(what, error)
        return False
    return True


def job_channel(job_id: object) -> str:
    """Name the pub/sub channel on which a job is heard."""
    return f"modelyard:job:{job_id}"


def publish(job_id: object, events: Sequence[Mapping[str, Any]]) -> None:
    """Tell those who listen to a job what it just said."""
    if _patience.resting or not events:
        return
    channel = job_channel(job_id)
    try:
        with _client(settings.REDIS_URL).pipeline(transaction=False) as pipeline:
            for event in events:
                pipeline.publish(channel, json.dumps(event))
            pipeline.execute()
    except (redis.RedisError, OSError) as error:
        _patience.failed(f"events of job {job_id}", error)


# --- Serving -------------------------------------------------------------------------------------

ROUTES_CHANNEL = "modelyard:routes"
_REPLICAS = "modelyard:replicas"


def announce_routes() -> None:
    """Tell serving processes to read their routes now; they do now and then by themselves."""
    if _patience.resting:
        return
    try:
        _client(settings.REDIS_URL).publish(ROUTES_CHANNEL, "")
    except (redis.RedisError, OSError) as error:
        _patience.failed("a change of routes", error)


class RouteListener:
    """Hears `announce_routes`, for one thread of a serving process."""

    def __init__(self) -> None:
        self._channel: redis.client.PubSub | None = None

    def wait(self, seconds: float) -> bool:
        """Give whether routes were announced within `seconds`; without a broker, wait so long."""
        ends = time.monotonic() + seconds
        try:
            if self._channel is None:
                channel = _client(settings.REDIS_URL).pubsub()  # type: ignore[no-untyped-call]
                channel.subscribe(ROUTES_CHANNEL)
                self._channel = channel
            while (left := ends - time.monotonic()) > 0:
                message = self._channel.get_message(timeout=left)
                if message is not None and message["type"] == "message":
                    return True
        except (redis.RedisError, OSError) as error:
            logger.warning("The broker announces no routes: %s", error)
            self.close()
            time.sleep(max(0.0, ends - time.monotonic()))
        return False

    def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


def report_replica(replica_id: str, status: Mapping[str, Any], seconds: float) -> None:
    """Keep what a serving process says of itself, for so long.

    `status` has id, host, started_at (seconds of the epoch), memory_bytes and models: for each
    version of a deployment its deployment_id, version, state (loading, ready, asleep or failed),
    reason, runtime, memory_bytes, pending, and what it counted since the process started:
    success_count, success_ns, fail_count, and in trial what the endpoint's traffic brought of it:
    answered, ns, squares, failed.
    """
    if _patience.resting:
        return
    now = time.time()
    try:
        with _client(settings.REDIS_URL).pipeline(transaction=False) as pipeline:
            pipeline.set(_replica_key(replica_id), json.dumps(status), px=int(seconds * 1000))
            pipeline.zadd(_REPLICAS, {replica_id: now + seconds})
            pipeline.zremrangebyscore(_REPLICAS, "-inf", now)
            pipeline.execute()
    except (redis.RedisError, OSError) as error:
        _patience.failed(f"what replica {replica_id} says", error)


def read_replicas() -> list[dict[str, Any]]:
    """Read what serving processes last said of themselves; none while the broker is away."""
    if _patience.resting:
        return []
    try:
        client = _client(settings.REDIS_URL)
        names: Any = client.zrange(_REPLICAS, 0, -1)
        said: Any = client.mget([_replica_key(name.decode()) for name in names]) if names else []
    except (redis.RedisError, OSError) as error:
        _patience.failed("a question for replicas", error)
        return []
    return [json.loads(one) for one in said if one is not None]


def _replica_key(replica_id: str) -> str:
    return f"modelyard:replica:{replica_id}"


@functools.cache
def _sender(redis_url: str) -> Celery:
    """Make a sender of its own: the web process never loads the workers' tasks."""
    sender = Celery("modelyard-sender", set_as_current=False)
    sender.conf.update(
        broker_url=broker_url(redis_url),
        broker_connection_timeout=_TIMEOUT_SECONDS,
        broker_transport_options={
            "socket_timeout": _TIMEOUT_SECONDS,
            "socket_connect_timeout": _TIMEOUT_SECONDS,
            # A pooled connection may have died with an earlier broker: one more try, at once.
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
            "interval_max": 0,
        },
        task_publish_retry=True,
        task_publish_retry_policy={
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0,
            "interval_max": 0,
        },
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
    )
    return sender


@functools.cache
def _client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(
        redis_url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
    )
