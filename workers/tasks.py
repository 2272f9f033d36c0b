"""The Celery tasks and how a worker process begins and ends; task names are never changed."""

import logging
from typing import Any

from celery import shared_task
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down

from registry.queue import DEFAULT_QUEUE, WEBHOOK_QUEUE
from registry.services.canaries import review_canaries
from registry.services.collection import collect_garbage
from registry.services.direct import check_received
from registry.services.quotas import recount_usage
from registry.services.reinspection import reinspect_blobs
from registry.services.savings import recount_savings
from registry.services.shadows import gather_evidence
from registry.services.sign_ins import forget_sessions
from registry.services.signatures import sign_unsigned
from registry.services.uploads import expire_uploads
from registry.services.vectors import encode_cards
from registry.services.webhooks import forget_deliveries
from registry.services.weights import forget_unused
from registry.services.workers import forget_workers
from workers.courier import Couriers
from workers.folder import prune_folders
from workers.runner import GRACE_SECONDS
from workers.screening import Screener, prune_workshops
from workers.segmenting import Segmenter
from workers.slots import Slots

logger = logging.getLogger(__name__)

_slots: list[Slots] = []
_couriers: list[Couriers] = []
_screeners: list[Screener] = []
_segmenters: list[Segmenter] = []


def _threads() -> list[Slots | Couriers | Screener | Segmenter]:
    return [*_slots, *_couriers, *_screeners, *_segmenters]


@worker_ready.connect
def _begin(sender: Any, **_: object) -> None:
    queues = list(sender.app.amqp.queues.consume_from)
    if WEBHOOK_QUEUE in queues:
        _couriers.append(Couriers())
        _couriers[-1].start()
    slots = Slots(queues, count=sender.controller.concurrency)
    _slots.append(slots)
    slots.start()
    if DEFAULT_QUEUE in queues:
        screener = Screener()
        _screeners.append(screener)
        screener.start()
        segmenter = Segmenter()
        _segmenters.append(segmenter)
        segmenter.start()


@worker_shutting_down.connect
def _prepare_end(**_: object) -> None:
    for group in _threads():
        group.stop()


@worker_shutdown.connect
def _end(**_: object) -> None:
    for group in _threads():
        group.stop()
        group.join(GRACE_SECONDS + 5)


@shared_task(name="workers.run_job")
def run_job(job_id: str) -> None:  # noqa: ARG001 - which job it is the table decides
    """Look for waiting jobs: the one that the message names, or a more urgent one."""
    for slots in _slots:
        slots.wake()


@shared_task(name="workers.deliver_webhooks")
def deliver_webhooks() -> None:
    """Look for deliveries that are due."""
    for couriers in _couriers:
        couriers.wake()


@shared_task(name="workers.check_uploads")
def check_uploads() -> None:
    """Hash and move what clients have put into the bucket themselves."""
    check_received()


@shared_task(name="workers.review_canaries")
def review_canary_steps() -> None:
    """Add up what is known of shadows; widen or take back canaries that do so by themselves."""
    gather_evidence()
    review_canaries()


@shared_task(name="workers.reinspect")
def reinspect() -> None:
    """After an upgrade, look again at some of the files that older readers saw."""
    reinspect_blobs()


@shared_task(name="workers.encode_cards")
def encode_changed_cards(*, everything: bool = False) -> None:
    """Have the encoder give vectors to cards that are new or changed."""
    encode_cards(everything=everything)


@shared_task(name="workers.screen")
def screen(version_id: str) -> None:  # noqa: ARG001 - which version it is the table decides
    """Look for versions with files that can run code."""
    for screener in _screeners:
        screener.wake()


@shared_task(name="workers.clean_up")
def clean_up() -> None:
    """Remove what nobody waits for any more; sign what was left unsigned."""
    expire_uploads()
    forget_workers()
    forget_sessions()
    forget_deliveries()
    prune_folders()
    prune_workshops()
    forget_unused()
    sign_unsigned()


@shared_task(name="workers.collect_garbage")
def remove_garbage(*, strays: bool) -> None:
    """Remove what nobody can bring back any more."""
    for garbage in collect_garbage(strays=strays):
        logger.info("Collected %s %s (%s bytes)", garbage.kind, garbage.name, garbage.size_bytes)
    recount_usage()
    recount_savings()
