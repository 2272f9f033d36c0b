"""Workers: who is there, what they serve and which devices they offer."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from registry.models import Worker

# A worker that was not heard for so long is taken for gone.
LIVE_SECONDS = 60
# The least compute capability of a GPU whose tensor cores multiply by weights of 4 bits in torch.
_INT4 = [8, 0]


def register_worker(
    *,
    name: str,
    queues: Sequence[str],
    devices: Sequence[dict[str, Any]],
    sandbox: Mapping[str, Any] | None = None,
) -> Worker:
    """Make a worker known, or say that it is still there."""
    worker, _ = Worker.objects.update_or_create(
        name=name,
        defaults={
            "queues": list(queues),
            "devices": [dict(device) for device in devices],
            "sandbox": dict(sandbox or {}),
            "seen_at": timezone.now(),
        },
    )
    return worker


def dismiss_worker(*, name: str) -> None:
    """Forget a worker that stopped in good order."""
    Worker.objects.filter(name=name).delete()


def forget_workers() -> int:
    """Forget workers that have not been heard for a day; give how many there were."""
    limit = timezone.now() - timedelta(days=1)
    return Worker.objects.filter(seen_at__lt=limit).delete()[0]


def sandbox_offered() -> bool:
    """Say whether a worker that is alive can contain files that run code."""
    alive = timezone.now() - timedelta(seconds=LIVE_SECONDS)
    enough = Worker.objects.filter(sandbox__level__in=["required", "full"])
    return enough.filter(seen_at__gt=alive).exists()


def gpu_offered() -> bool:
    """Say whether a worker that is alive serves the queue of GPU jobs."""
    return _gpu_workers().exists()


def device_without_int4(device: str) -> str:
    """Name what a job for this device would run on, where that multiplies by no 4-bit weights.

    Nothing where it does, or where nobody knows.
    """
    if device == "cpu":
        return "cpu"
    workers = list(_gpu_workers())
    if not workers:
        return "cpu" if device == "auto" else ""
    gpus = [gpu for worker in workers for gpu in worker.devices if gpu["kind"] == "gpu"]
    old = [str(gpu["name"]) for gpu in gpus if gpu.get("capability", _INT4) < _INT4]
    return ", ".join(dict.fromkeys(old)) if gpus and len(old) == len(gpus) else ""


def _gpu_workers() -> QuerySet[Worker]:
    alive = timezone.now() - timedelta(seconds=LIVE_SECONDS)
    return Worker.objects.filter(seen_at__gt=alive, queues__contains="gpu")
