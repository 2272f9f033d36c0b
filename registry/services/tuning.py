"""What tunings found: kept with the version, one for each kind of machine, and read again.

Deployments whose options leave it open go by them (`registry.routes`), and so do exports.
"""

from collections.abc import Mapping
from typing import Any, Final, get_args

from django.db import transaction
from django.utils import timezone

from registry import queue
from registry.errors import Invalid
from registry.models import Actor, Job, Tuning, Version
from registry.permissions import require
from registry.recipes import MAX_BATCH_SIZE, MAX_THREADS
from registry.recipes.tuning import TunedRuntime
from registry.serving_options import Tuned

RUNTIMES: Final[tuple[str, ...]] = get_args(TunedRuntime)
_LONGEST_CLASS = 200


def keep_tuning(*, actor: Actor, version: Version, job: Job, said: object) -> Tuning:
    """Keep what a job found best for a version on a kind of machine, in place of the last finding.

    Serving processes hear of it, and load anew what leaves it open.

    Raises:
        Denied: the actor does not maintain the model.
        Invalid: the job does not say what it found, or what no deployment may have.

    """
    require(actor, "maintain", version.repository)
    summary = said if isinstance(said, Mapping) else {}
    chosen = _chosen(summary)
    device_class = str(summary.get("device_class") or "")[:_LONGEST_CLASS]
    if chosen is None or not device_class:
        raise Invalid("The job does not say which setting is best.", code="bad_report")
    row, _ = Tuning.objects.update_or_create(
        version=version,
        device_class=device_class,
        defaults={
            "runtime": chosen.runtime,
            "threads": chosen.threads,
            "max_batch_size": chosen.max_batch_size,
            "summary": dict(summary),
            "job": job,
            "created_by_id": actor.user_id,
            "measured_at": timezone.now(),
        },
    )
    transaction.on_commit(queue.announce_routes)
    return row


def tunings_of(version: Version) -> list[Tuning]:
    """List what was found best for a version, the newest first."""
    rows = Tuning.objects.filter(version=version).select_related("created_by")
    return list(rows.order_by("-measured_at", "-pk"))


def tuned_for_export(version: Version) -> Tuning | None:
    """Give what was found last for ONNX Runtime on a CPU, which is what exports are run by."""
    rows = Tuning.objects.filter(version=version, runtime="onnxruntime")
    rows = rows.exclude(summary__device="cuda")
    return rows.order_by("-measured_at", "-pk").first()


def _chosen(summary: Mapping[str, Any]) -> Tuned | None:
    """Read what a job chose: its process has opened a stranger's file, and may say anything."""
    said = summary.get("chosen")
    if not isinstance(said, Mapping):
        return None
    threads, rows = said.get("threads"), said.get("max_batch_size")
    runtime = said.get("runtime")
    if not isinstance(threads, int) or not isinstance(rows, int) or runtime not in RUNTIMES:
        return None
    fits = 1 <= threads <= MAX_THREADS and 1 <= rows <= MAX_BATCH_SIZE
    return Tuned(int(threads), int(rows), runtime) if fits else None
