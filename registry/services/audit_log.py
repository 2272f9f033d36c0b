"""What people may read of the audit log: narrowed, and written out line by line."""

from collections.abc import Iterator
from datetime import datetime

import orjson
from django.db.models import QuerySet

from registry.models import Actor, Event
from registry.permissions import require, require_scope
from registry.services.namespaces import find_namespace

_BLOCK = 100


def audit_log(
    actor: Actor,
    *,
    namespace: str = "",
    action: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
) -> QuerySet[Event]:
    """Give the events that the actor may read; an action that ends in `.` stands for a family.

    Raises:
        NotFound: there is no such namespace.
        Denied: the actor does not maintain it, or the token may not write.

    """
    require_scope(actor, "write")
    rows = Event.objects.select_related("namespace")
    if namespace:
        space = find_namespace(actor, namespace)
        require(actor, "maintain", space)
        rows = rows.filter(namespace=space)
    else:
        rows = rows.audited_by(actor)
    if action:
        rows = rows.filter(**{"action__startswith" if action.endswith(".") else "action": action})
    if since is not None:
        rows = rows.filter(at__gte=since)
    if until is not None:
        rows = rows.filter(at__lt=until)
    return rows


def event_body(event: Event) -> dict[str, object]:
    return {
        "at": event.at,
        "action": event.action,
        "actor": event.actor,
        "token": event.token_id,
        "door": event.door,
        "ip": event.ip,
        "request_id": event.request_id,
        "namespace": event.namespace.slug if event.namespace else None,
        "target": event.target,
        "data": event.data,
    }


def json_lines(rows: QuerySet[Event]) -> Iterator[bytes]:
    """Write events out, oldest first, a block of rows at a time."""
    last = 0
    while block := list(rows.filter(pk__gt=last).order_by("pk")[:_BLOCK]):
        last = block[-1].pk
        yield b"".join(
            orjson.dumps({"id": event.pk, **event_body(event)}, option=orjson.OPT_APPEND_NEWLINE)
            for event in block
        )
