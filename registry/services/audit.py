"""The audit log's one writer; it runs in the transaction of what it records, and announces it."""

from typing import Any

from registry.models import Actor, AuditAction, Event, Namespace, Repository
from registry.services.announcements import announce_event


def record_event(
    actor: Actor,
    action: AuditAction,
    *,
    namespace: Namespace | None = None,
    repository: Repository | None = None,
    target: str = "",
    **data: Any,
) -> Event:
    """Write one line of the audit log: who did `action` to what, through which door."""
    if repository is not None:
        namespace = namespace or repository.namespace
        target = target or repository.full_name
    event = Event.objects.create(
        action=action,
        user_id=actor.user_id,
        actor=actor.username,
        token_id=actor.token_id,
        door=actor.door,
        ip=actor.ip,
        request_id=actor.request_id,
        namespace=namespace,
        repository_id=repository.pk if repository else None,
        target=target[:300],
        data=data,
    )
    announce_event(event, repository)
    return event
