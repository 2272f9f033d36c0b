"""Workers: who is there, what they serve and which devices they offer."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.utils import timezone

from registry.models import Worker

# A worker that was not heard for so long is taken for gone.
LIVE_SECONDS = 60


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
    alive = timezone.now() - timedelta(seconds=LIVE_SECONDS)
    return Worker.objects.filter(seen_at__gt=alive, queues__contains="gpu").exists()
