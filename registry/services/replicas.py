"""What serving processes last said of themselves, as far as it is about one endpoint."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from registry import queue
from registry.models import Endpoint

STATES = ("loading", "ready", "asleep", "failed")
_MAX_TEXT = 500


class TrialCounts(NamedTuple):
    """What the traffic of an endpoint brought a deployment: named calls and bad input left out."""

    requests: int
    failures: int
    total_ns: int
    # The times of the answers in microseconds, squared and added up.
    squares: int


@dataclass(frozen=True, kw_only=True)
class DeploymentStanding:
    """How a deployment is at one replica, and what that counted since it started."""

    deployment_id: int
    # The number of the version that it serves there, which an alias may have left meanwhile.
    version: int
    state: str
    detail: str
    runtime: str
    memory_bytes: int
    pending: int
    requests: int
    failures: int
    total_ns: int
    # Of those, what the endpoint's traffic brought and what canaries are judged by.
    trial: TrialCounts
    # What it is served with; 0 where a process of the previous release does not say.
    threads: int = 0
    max_batch_size: int = 0

    @property
    def mean_ms(self) -> float | None:
        """How long an answer took, on average, from its arrival."""
        answered = self.requests - self.failures
        return round(self.total_ns / answered / 1_000_000, 3) if answered else None


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A serving process."""

    id: str
    host: str
    started_at: datetime | None
    standings: tuple[DeploymentStanding, ...]


def standing_of(endpoint: Endpoint) -> list[Replica]:
    """Say how the deployments of an endpoint are at each replica that was heard of lately."""
    said = queue.read_replicas()
    return read_standings(said, endpoint.deployments.values_list("pk", flat=True))


def read_standings(said: Iterable[Mapping[str, Any]], deployments: Iterable[int]) -> list[Replica]:
    """Take what serving processes say of some deployments out of all that they say."""
    wanted = set(deployments)
    ordered = sorted(said, key=lambda status: str(status.get("id", "")))
    return [_replica(status, wanted) for status in ordered]


def _replica(status: Mapping[str, Any], wanted: Collection[int]) -> Replica:
    started_at = status.get("started_at")
    return Replica(
        id=str(status.get("id", ""))[:_MAX_TEXT],
        host=str(status.get("host", ""))[:_MAX_TEXT],
        started_at=datetime.fromtimestamp(started_at, UTC) if started_at else None,
        standings=tuple(
            _standing(one) for one in status.get("models", []) if one.get("deployment_id") in wanted
        ),
    )


def _standing(said: Mapping[str, Any]) -> DeploymentStanding:
    succeeded, failed = int(said.get("success_count", 0)), int(said.get("fail_count", 0))
    return DeploymentStanding(
        deployment_id=said["deployment_id"],
        version=int(said.get("version", 0)),
        state=said["state"] if said.get("state") in STATES else "loading",
        detail=str(said.get("reason", ""))[:_MAX_TEXT],
        runtime=str(said.get("runtime", ""))[:_MAX_TEXT],
        threads=int(said.get("threads", 0)),
        max_batch_size=int(said.get("max_batch_size", 0)),
        memory_bytes=int(said.get("memory_bytes", 0)),
        pending=int(said.get("pending", 0)),
        requests=succeeded + failed,
        failures=failed,
        total_ns=int(said.get("success_ns", 0)),
        trial=_trial(said.get("trial", {})),
    )


def _trial(said: Mapping[str, Any]) -> TrialCounts:
    answered, failed = int(said.get("answered", 0)), int(said.get("failed", 0))
    return TrialCounts(
        requests=answered + failed,
        failures=failed,
        total_ns=int(said.get("ns", 0)),
        squares=int(said.get("squares", 0)),
    )
