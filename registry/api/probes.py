"""What operators and their machines look at: liveness, readiness part by part, numbers."""

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import orjson
import redis
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from registry.errors import RegistryError
from registry.metrics import exposition
from registry.models import Job, JobState, Tally, Worker
from registry.services.workers import LIVE_SECONDS
from registry.storage import default_storage

_BROKER_SECONDS = 1.0

logger = logging.getLogger(__name__)


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 - Django's signature
    """Say that the process answers; asks nobody else."""
    return _json({"status": "ok", "version": settings.VERSION}, 200)


@require_safe
def readyz(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 - Django's signature
    """Say which parts work; 503 when one is down that nothing goes on without."""
    parts = {
        "database": _check("database", _ask_database, required=True),
        "storage": _check("storage", _ask_storage, required=True),
        # Without the broker jobs wait and everything else goes on.
        "broker": _check("broker", _ask_broker, required=False),
    }
    if parts["database"]["ok"]:
        workers = _live_workers()
        parts["workers"] = _describe_workers(workers)
        parts["sandbox"] = _describe_sandbox(workers)
    down = any(part["required"] and not part["ok"] for part in parts.values())
    worse = any(not part["ok"] for part in parts.values())
    status = "unavailable" if down else "degraded" if worse else "ready"
    return _json({"status": status, "parts": parts}, 503 if down else 200)


def _check(name: str, ask: Callable[[], None], *, required: bool) -> dict[str, Any]:
    try:
        ask()
    except (DatabaseError, RegistryError, redis.RedisError, OSError) as error:
        logger.warning("the %s is not ready: %s", name, error)
        return {"ok": False, "required": required, "detail": type(error).__name__}
    return {"ok": True, "required": required, "detail": ""}


def _ask_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def _ask_storage() -> None:
    default_storage().check()


def _ask_broker() -> None:
    with redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=_BROKER_SECONDS,
        socket_connect_timeout=_BROKER_SECONDS,
    ) as client:
        client.ping()


def _live_workers() -> list[Worker]:
    since = timezone.now() - timedelta(seconds=LIVE_SECONDS)
    return list(Worker.objects.filter(seen_at__gt=since))


def _describe_workers(workers: Sequence[Worker]) -> dict[str, Any]:
    queues = sorted({queue for worker in workers for queue in worker.queues})
    return {
        "ok": bool(workers),
        "required": False,
        "detail": f"{len(workers)} alive, serving {', '.join(queues)}" if workers else "none alive",
    }


def _describe_sandbox(workers: Sequence[Worker]) -> dict[str, Any]:
    """Name the level in force; below the required one, files that can run code are refused."""
    said = [worker.sandbox for worker in workers if worker.sandbox]
    enough = [one for one in said if one["level"] != "insufficient"]
    details = {
        f"{one['level']}: Landlock {one['landlock']}, seccomp"
        + (", own user" if one["user"] else "")
        + (", own network" if one["network"] else "")
        for one in enough
    }
    lacking = {f"insufficient: lacks {one['lacks']}" for one in said if one not in enough}
    return {
        # Where no worker is alive, that part says so already.
        "ok": bool(enough) or not said,
        "required": False,
        "detail": "; ".join(sorted(details or lacking)) or "no worker says",
    }


class _Gauges(Collector):
    """Numbers of the whole installation, read when somebody asks."""

    def collect(self) -> Iterator[GaugeMetricFamily]:
        jobs = GaugeMetricFamily(
            "modelyard_jobs", "Jobs waiting and running.", labels=("queue", "state")
        )
        open_states = [JobState.QUEUED, JobState.RUNNING]
        counts = Job.objects.filter(state__in=open_states).values_list("queue", "state")
        for queue, state, count in counts.annotate(count=Count("pk")).order_by():
            jobs.add_metric((queue, state), count)
        yield jobs
        workers = GaugeMetricFamily("modelyard_workers", "Workers heard within a minute.")
        workers.add_metric((), len(_live_workers()))
        yield workers
        saved = GaugeMetricFamily(
            "modelyard_storage_saved_bytes",
            "Bytes that stored files do not take: what they share lies there once, weights coded.",
        )
        for tally in Tally.objects.filter(name=Tally.SAVED_BYTES):
            saved.add_metric((), tally.value)
        yield saved


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:  # noqa: ARG001 - Django's signature
    try:
        text, kind = exposition(_Gauges())
    except DatabaseError:
        text, kind = exposition()
    return HttpResponse(text, content_type=kind, headers={"Cache-Control": "no-store"})


def _json(body: dict[str, Any], status: int) -> HttpResponse:
    return HttpResponse(
        orjson.dumps(body),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
