"""What changed from one version to another: files, tags, sizes, numbers."""

from collections.abc import Mapping
from typing import Any

from registry.api.v1 import wire
from registry.models import Actor, Evaluation, Tag, Version, is_better


def compare_versions(actor: Actor, before: Version, after: Version) -> dict[str, Any]:
    """Say what changed, as far as `actor` may see it."""
    return {
        "before": wire.version_name(before),
        "after": wire.version_name(after),
        "files": _compare_files(before, after),
        "tags": _compare_tags(before, after),
        "parameters_count": {
            "before": before.parameters_count,
            "after": after.parameters_count,
        },
        "size_bytes": {"before": before.size_bytes, "after": after.size_bytes},
        "metrics": _compare_metrics(actor, before, after),
    }


def _split(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], ...]:
    """Give the keys that came, went, changed and stayed."""
    shared = before.keys() & after.keys()
    changed = {key for key in shared if before[key] != after[key]}
    return (
        sorted(after.keys() - shared),
        sorted(before.keys() - shared),
        sorted(changed),
        sorted(shared - changed),
    )


def _compare_files(before: Version, after: Version) -> dict[str, Any]:
    files = wire.files_of({before.revision_id, after.revision_id})
    old = {file["path"]: file for file in files.get(before.revision_id, [])}
    new = {file["path"]: file for file in files.get(after.revision_id, [])}
    came, went, changed, stayed = _split(old, new)
    return {
        "added": [new[path] for path in came],
        "removed": [old[path] for path in went],
        "changed": [{"path": path, "before": old[path], "after": new[path]} for path in changed],
        "unchanged_count": len(stayed),
    }


def _compare_tags(before: Version, after: Version) -> dict[str, Any]:
    old, new = (
        dict(Tag.objects.filter(version=version).values_list("key", "value"))
        for version in (before, after)
    )
    came, went, changed, _ = _split(old, new)
    return {
        "added": {key: new[key] for key in came},
        "removed": {key: old[key] for key in went},
        "changed": {key: {"before": old[key], "after": new[key]} for key in changed},
    }


def measured_changes(
    actor: Actor, before: Version | None, after: Version | None
) -> list[dict[str, Any]]:
    """Set what was measured of one version beside the other's, and say which is better."""
    return [
        {**change, "better": is_better(change["metric"], change["before"], change["after"])}
        for change in _compare_metrics(actor, before, after, measured=True)
    ]


def _compare_metrics(
    actor: Actor, before: Version | None, after: Version | None, *, measured: bool = False
) -> list[dict[str, Any]]:
    """Set the newest number of each metric, split and dataset beside its counterpart."""
    rows = (
        Evaluation.objects.filter(version__in=[one for one in (before, after) if one])
        .select_related("dataset_version__repository__namespace")
        .defer("details")
        .order_by("pk")
    )
    if measured:
        rows = rows.filter(measured=True)
    seen = visible_datasets(actor, rows)
    found: dict[tuple[str, str, str, str | None], dict[int, float]] = {}
    for row in rows:
        dataset = row.dataset_version
        named = dataset.ref if dataset is not None and dataset.pk in seen else None
        values = found.setdefault((row.metric, row.unit, row.split, named), {})
        values[row.version_id] = row.value
    return [
        {
            "metric": metric,
            "unit": unit,
            "split": split,
            "dataset": dataset,
            "before": values.get(before.pk) if before else None,
            "after": values.get(after.pk) if after else None,
        }
        for (metric, unit, split, dataset), values in found.items()
    ]


def visible_datasets(actor: Actor, rows: Any) -> frozenset[int]:
    """Give those dataset versions behind some evaluations that `actor` may see."""
    ids = {row.dataset_version_id for row in rows if row.dataset_version_id is not None}
    seen = Version.objects.visible_to(actor).filter(pk__in=ids) if ids else Version.objects.none()
    return frozenset(seen.values_list("pk", flat=True))
