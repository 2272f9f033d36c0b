"""What serving processes last said of themselves, as far as it is about one endpoint."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from registry import queue
from registry.models import Endpoint

STATES = ("loading", "ready", "asleep", "failed")
_MAX_DETAIL = 500


@dataclass(frozen=True, kw_only=True)
class DeploymentStanding:
    """How a deployment is at one replica, and what that counted since it started."""

    deployment_id: int
    state: str
    detail: str
    requests: int
    failures: int
    total_us: int

    @property
    def mean_ms(self) -> float | None:
        """How long an answer took, on average."""
        return round(self.total_us / self.requests / 1000, 3) if self.requests else None


@dataclass(frozen=True, kw_only=True)
class Replica:
    """A serving process."""

    id: str
    device: str
    started_at: datetime | None
    standings: tuple[DeploymentStanding, ...]


def standing_of(endpoint: Endpoint) -> list[Replica]:
    """Say how the deployments of an endpoint are at each replica that was heard of lately."""
    wanted = set(endpoint.deployments.values_list("pk", flat=True))
    said = sorted(queue.read_replicas(), key=lambda status: str(status.get("id", "")))
    return [_replica(status, wanted) for status in said]


def _replica(status: Mapping[str, Any], wanted: Iterable[int]) -> Replica:
    started_at = status.get("started_at")
    return Replica(
        id=str(status.get("id", "")),
        device=str(status.get("device", "")),
        started_at=datetime.fromtimestamp(started_at, UTC) if started_at else None,
        standings=tuple(
            DeploymentStanding(
                deployment_id=one["id"],
                state=one["state"] if one.get("state") in STATES else "loading",
                detail=str(one.get("detail", ""))[:_MAX_DETAIL],
                requests=int(one.get("requests", 0)),
                failures=int(one.get("failures", 0)),
                total_us=int(one.get("total_us", 0)),
            )
            for one in status.get("deployments", [])
            if one.get("id") in wanted
        ),
    )
