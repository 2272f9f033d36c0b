"""Adds up what serving processes counted of shadows beside the live version."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction

from registry import queue
from registry.models import Deployment, DeploymentRole
from registry.routes import read_options
from registry.services.catalog import lock_repository
from registry.services.deployments import deployments_of
from registry.services.gate import COUNTED, counts_for

# So many processes are remembered, for those that fall silent for a moment.
_REMEMBERED = 100


def gather_evidence() -> int:
    """Add what serving processes counted of shadows to their rows; give how many rows changed.

    A worker calls this now and then.
    """
    said = queue.read_replicas()
    rows = Deployment.objects.filter(
        role=DeploymentRole.SHADOW, endpoint__repository__deleted_at=None
    ).select_related("endpoint__repository__namespace", "endpoint__namespace")
    return sum(_gather(row, said) for row in rows.order_by("pk"))


@transaction.atomic
def _gather(row: Deployment, said: Sequence[Mapping[str, Any]]) -> bool:
    endpoint = row.endpoint
    endpoint.repository = lock_repository(endpoint.repository)
    present = deployments_of(endpoint)
    shadow = next((one for one in present if one.pk == row.pk), None)
    if shadow is None or shadow.role != DeploymentRole.SHADOW or shadow.serves is None:
        return False
    answering = max(present, key=lambda one: one.weight)
    if not answering.weight or answering.serves is None:
        return False
    pair = [shadow.serves.pk, answering.serves.pk]
    kept: dict[str, Any] = shadow.trial if shadow.trial.get("pair") == pair else {"pair": pair}
    percent = read_options(shadow.options).shadow_time_percent
    kept = {**kept, **counts_for(kept, percent), "time_percent": percent}
    fresh = _add(kept, _counts_of(said, shadow.pk, pair, percent))
    if fresh == shadow.trial:
        return False
    shadow.trial = fresh
    shadow.save(update_fields=["trial"])
    return True


def _counts_of(
    said: Sequence[Mapping[str, Any]], deployment_id: int, pair: Sequence[int], percent: int
) -> dict[str, dict[str, int]]:
    """Give what each replica counted of a shadow beside one version, with one limit of time."""
    return {
        _place(str(status.get("id", "")), one): {name: int(one.get(name, 0)) for name in COUNTED}
        for status in said
        for model in status.get("models", [])
        if model.get("deployment_id") == deployment_id
        for one in model.get("shadow", [])
        if [one.get("version_id"), one.get("beside_version_id")] == list(pair)
        # A process of the previous release knows no limit, and counts nothing by it.
        and one.get("time_percent", percent) == percent
    }


def _place(replica: str, one: Mapping[str, Any]) -> str:
    """Name what counts by itself: each limit at each process."""
    percent = one.get("time_percent")
    return replica if percent is None else f"{replica}:{percent}"


def _add(kept: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Add what is new since the last look; a replica that began again counts from nothing."""
    seen: dict[str, Any] = dict(kept.get("seen", {}))
    total = {name: kept[name] for name in COUNTED}
    for replica, now in counts.items():
        before = seen.get(replica, {})
        if now["compared"] < before.get("compared", 0):
            before = {}
        for name in COUNTED:
            total[name] += max(0, now[name] - before.get(name, 0))
        seen[replica] = dict(now)
    seen = dict(list(seen.items())[-_REMEMBERED:])
    return {"pair": kept["pair"], "time_percent": kept["time_percent"], **total, "seen": seen}
