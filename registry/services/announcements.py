"""Tells webhooks what happened: deliveries are written in the transaction of what they tell."""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import transaction
from django.utils import timezone

from registry import queue
from registry.models import AuditAction, Delivery, Event, Job, Repository, Webhook

# Action of the audit log -> what subscribers call it.
OF_ACTION: Mapping[AuditAction, str] = {
    AuditAction.VERSION_CREATE: "version.created",
    AuditAction.VERSION_DESCRIBE: "version.changed",
    AuditAction.VERSION_SCREEN: "version.changed",
    AuditAction.VERSION_REINSPECT: "version.changed",
    AuditAction.VERSION_DELETE: "version.deleted",
    AuditAction.VERSION_RESTORE: "version.created",
    AuditAction.ALIAS_SET: "alias.moved",
    AuditAction.ALIAS_DELETE: "alias.deleted",
    AuditAction.ALIAS_PROPOSE: "approval.requested",
    AuditAction.ALIAS_APPROVE: "approval.decided",
    AuditAction.ALIAS_DECLINE: "approval.decided",
    AuditAction.ALIAS_WITHDRAW: "approval.decided",
    AuditAction.CANARY_WIDEN: "deployment.changed",
    AuditAction.CANARY_ROLL_BACK: "deployment.changed",
    AuditAction.DEPLOYMENT_CREATE: "deployment.changed",
    AuditAction.DEPLOYMENT_CHANGE: "deployment.changed",
    AuditAction.DEPLOYMENT_PROMOTE: "deployment.changed",
    AuditAction.DEPLOYMENT_DELETE: "deployment.changed",
    AuditAction.ENDPOINT_SPLIT: "deployment.changed",
    AuditAction.ENDPOINT_ROLL_BACK: "deployment.changed",
    AuditAction.ENDPOINT_DELETE: "deployment.changed",
}
# Families of actions after which requests for models may go elsewhere, or come from others.
_ROUTING = frozenset(
    {"access", "alias", "canary", "deployment", "endpoint", "grant", "member", "model", "namespace"}
    | {"token", "user", "version"}
)
# A version that is new serves nobody yet, and many are made in a row.
_NOT_ROUTING = frozenset({AuditAction.VERSION_CREATE, AuditAction.VERSION_EVALUATE})
PING = "ping"
JOB_FINISHED = "job.finished"
EVENTS = (
    "version.created",
    "version.changed",
    "version.deleted",
    "alias.moved",
    "alias.deleted",
    "approval.requested",
    "approval.decided",
    "deployment.changed",
    JOB_FINISHED,
)


def announce_event(event: Event, repository: Repository | None) -> None:
    """Write deliveries for a line of the audit log, where it is one that people subscribe to.

    Serving processes hear of what may change where requests go.
    """
    action = AuditAction(event.action)
    if action.family in _ROUTING and action not in _NOT_ROUTING:
        transaction.on_commit(queue.announce_routes)
    name = OF_ACTION.get(action)
    if name is None or repository is None:
        return
    listening = Webhook.objects.hearing(name, repository.namespace_id, repository.pk)
    if not (webhooks := list(listening)):
        return
    content = {
        "kind": repository.kind,
        "namespace": repository.namespace.slug,
        "name": repository.name,
        "target": event.target,
        "actor": event.actor,
        "action": event.action,
        **event.data,
    }
    _deliver(webhooks, name, content)


def announce_job(job: Job) -> None:
    """Write deliveries for a job that ended, however it ended."""
    result = job.result
    place = result.repository_id if result else None
    listening = Webhook.objects.hearing(JOB_FINISHED, job.namespace_id, place)
    if not (webhooks := list(listening.select_related("repository"))):
        return
    inputs = [version.repository for version in job.inputs.select_related("repository__namespace")]
    for webhook in webhooks:
        told = webhook.repository or job.namespace
        error: dict[str, str | None] | None = None
        if job.error_code:
            # The reason may name what the job read.
            names_no_other = all(one.may_be_named_in(told) for one in inputs)
            detail = job.error_detail if names_no_other else None
            error = {"code": job.error_code, "detail": detail}
        content = {
            "namespace": job.namespace.slug,
            "job": str(job.pk),
            "kind": job.kind,
            "state": str(job.state),
            "result": result.ref if result and result.repository.may_be_named_in(told) else None,
            "error": error,
        }
        _deliver([webhook], JOB_FINISHED, content)


def payload_of(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": name, "timestamp": timezone.now().isoformat(), "data": dict(content)}


def _deliver(webhooks: Sequence[Webhook], name: str, content: Mapping[str, Any]) -> None:
    payload = payload_of(name, content)
    Delivery.objects.bulk_create(
        Delivery(webhook=webhook, event=name, payload=payload) for webhook in webhooks
    )
    transaction.on_commit(queue.wake_couriers)
