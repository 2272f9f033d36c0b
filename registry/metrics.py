"""Prometheus numbers of the web process; labels are routes and codes, never names of things.

Several web processes share one folder of memory-mapped files (`PROMETHEUS_MULTIPROC_DIR`, which
whoever starts the server sets), so that any of them answers for all; a single one needs none.
"""

from typing import Any

from django.conf import settings
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_requests = Counter(
    "modelyard_http_requests_total",
    "Requests answered, by route, method and status.",
    ("route", "method", "status"),
)
_seconds = Histogram(
    "modelyard_http_request_seconds",
    "Time to answer a request, by route and method.",
    ("route", "method"),
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def observe_request(*, route: str, method: str, status: int, seconds: float) -> None:
    """Count one answered request; `route` is a pattern, so that no name becomes a label."""
    verb = method if method in _METHODS else "other"
    _requests.labels(route, verb, str(status)).inc()
    _seconds.labels(route, verb).observe(seconds)


def exposition(*collectors: Any) -> tuple[bytes, str]:
    """Write what Prometheus reads, with the gauges of `collectors` beside it, and its type."""
    if settings.METRICS_DIR:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=settings.METRICS_DIR)  # type: ignore[no-untyped-call] # registers itself
        text = generate_latest(registry)
    else:
        text = generate_latest(REGISTRY)
    beside = CollectorRegistry()
    for collector in collectors:
        beside.register(collector)
    return text + generate_latest(beside), CONTENT_TYPE_LATEST
