"""Webhooks: made, changed, tried; and what couriers do with the deliveries that wait."""

import base64
import hashlib
import hmac
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import orjson
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.crypto import salted_hmac

from registry import queue
from registry.errors import Conflict, NotFound, Text
from registry.fetch import check_url
from registry.models import (
    Actor,
    AuditAction,
    Delivery,
    DeliveryState,
    Namespace,
    Repository,
    Role,
    Webhook,
)
from registry.permissions import allowed, require
from registry.services.announcements import EVENTS, PING, payload_of
from registry.services.audit import record_event
from registry.services.texts import check_text, invalid_field

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public beginning of every secret
# How long after each failed attempt the next one comes; after the last one it is given up.
RETRY_SECONDS = (10, 60, 300, 1800, 7200, 21600)
# A webhook with so many deliveries given up in a row is switched off.
MAX_FAILURES = 10
_MAX_WEBHOOKS = 20
_KEPT_DAYS = 30
# Longer than any call takes: a courier that died lets go after so long.
_HOLD_SECONDS = 60
_GONE = 410
_COURIER = Actor(username="courier", door="worker")


# --- What people do ------------------------------------------------------------------------------


def managed_by(actor: Actor) -> QuerySet[Webhook]:
    """Give the webhooks that the actor may see: those of places that they maintain or own."""
    rows = Webhook.objects.select_related("namespace", "repository__namespace", "created_by")
    if actor.is_anonymous or "write" not in actor.scopes:
        return rows.none()
    if not actor.is_admin:
        owned, held = (actor.namespaces_as(role) for role in (Role.OWNER, Role.MAINTAINER))
        granted = actor.repositories_as(Role.MAINTAINER)
        of_repository = Q(repository__isnull=False)
        rows = rows.filter(
            Q(namespace_id__in=owned)
            | of_repository & (Q(namespace_id__in=held) | Q(repository_id__in=granted))
        )
    if actor.limited_namespace_id is not None:
        rows = rows.filter(namespace_id=actor.limited_namespace_id)
    if actor.limited_repository_id is not None:
        rows = rows.filter(repository_id=actor.limited_repository_id)
    return rows


def find_webhook(actor: Actor, webhook_id: int) -> Webhook:
    """Find a webhook that the actor may manage.

    Raises:
        NotFound: there is none, or it is not theirs to know of.

    """
    found = managed_by(actor).filter(pk=webhook_id).first()
    if found is None:
        raise NotFound(
            "You manage no webhook {webhook}.", code="webhook_not_found", webhook=webhook_id
        )
    return found


def secret_of(webhook: Webhook) -> str:
    """Derive the secret that signs a webhook's deliveries; it is stored nowhere."""
    return SECRET_PREFIX + base64.b64encode(_keys_of(webhook)[0]).decode()


def _keys_of(webhook: Webhook) -> list[bytes]:
    """Derive the key of a webhook from each secret key of the installation, the present one first.

    A receiver may still hold a secret that it was given under an older one.
    """
    name = f"{webhook.pk}:{webhook.generation}"
    secrets = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return [
        salted_hmac("modelyard.webhook", name, secret=secret, algorithm="sha256").digest()
        for secret in secrets
    ]


def create_webhook(
    *,
    actor: Actor,
    namespace: Namespace,
    url: object,
    events: Sequence[str],
    repository: Repository | None = None,
) -> Webhook:
    """Tell `url` what happens in a namespace, or to one repository of it.

    Raises:
        Invalid: the address may not be called, or there is no such event.
        Conflict: the namespace has as many webhooks as it may.

    """
    _require_management(actor, namespace, repository)
    address, wanted = _check_address(url), _check_events(events)
    with transaction.atomic():
        Namespace.objects.select_for_update().get(pk=namespace.pk)
        if Webhook.objects.filter(namespace=namespace).count() >= _MAX_WEBHOOKS:
            raise Conflict(
                "{namespace} has {limit} webhooks; delete one first.",
                namespace=namespace.slug,
                limit=_MAX_WEBHOOKS,
            )
        webhook = Webhook.objects.create(
            namespace=namespace,
            repository=repository,
            url=address,
            events=wanted,
            created_by_id=actor.person_id,
        )
        _record(actor, AuditAction.WEBHOOK_CREATE, webhook, events=wanted)
    return webhook


def change_webhook(*, actor: Actor, webhook: Webhook, changes: Mapping[str, object]) -> Webhook:
    """Change a webhook's address or events, or switch it on or off."""
    _require_management(actor, webhook.namespace, webhook.repository)
    with transaction.atomic():
        row = Webhook.objects.select_for_update(of=("self",)).get(pk=webhook.pk)
        row.namespace, row.repository = webhook.namespace, webhook.repository
        if "url" in changes:
            row.url = _check_address(changes["url"])
        if "events" in changes:
            events = changes["events"]
            assert isinstance(events, list)
            row.events = _check_events(events)
        if "is_active" in changes:
            row.is_active = bool(changes["is_active"])
            row.inactive_reason, row.failures_count, row.busy_until = "", 0, None
            if not row.is_active:
                _give_up([row.pk], Text("The webhook was switched off."))
        row.updated_at = timezone.now()
        row.save()
        _record(actor, AuditAction.WEBHOOK_CHANGE, row, fields=sorted(changes))
    return row


def replace_secret(*, actor: Actor, webhook: Webhook) -> Webhook:
    """Give a webhook another secret; what waits is signed with the new one."""
    _require_management(actor, webhook.namespace, webhook.repository)
    with transaction.atomic():
        row = Webhook.objects.select_for_update(of=("self",)).get(pk=webhook.pk)
        row.namespace, row.repository = webhook.namespace, webhook.repository
        row.generation += 1
        row.updated_at = timezone.now()
        row.save(update_fields=["generation", "updated_at"])
        _record(actor, AuditAction.WEBHOOK_SECRET, row)
    return row


def take_along(actor: Actor, repository: Repository) -> None:
    """Let the webhooks of a locked repository that has moved come with it, switched off.

    Those who look after it now decide whether the address of others goes on hearing of it.
    """
    moved = Webhook.objects.select_for_update(of=("self",)).filter(repository=repository)
    reason = Text("What it tells of has moved to another namespace; switch it on to go on.")
    rows = list(moved.order_by("pk"))
    _give_up([row.pk for row in rows], reason)
    for row in rows:
        row.namespace, row.repository = repository.namespace, repository
        if row.is_active:
            row.is_active, row.inactive_reason = False, reason.detail
        row.updated_at = timezone.now()
        row.save(update_fields=["namespace", "is_active", "inactive_reason", "updated_at"])
        _record(actor, AuditAction.WEBHOOK_STOP, row, reason=reason.detail)


@transaction.atomic
def delete_webhook(*, actor: Actor, webhook: Webhook) -> None:
    """Delete a webhook with its log; what waits is not sent."""
    _require_management(actor, webhook.namespace, webhook.repository)
    _record(actor, AuditAction.WEBHOOK_DELETE, webhook)
    webhook.delete()


@transaction.atomic
def send_test(*, actor: Actor, webhook: Webhook) -> Delivery:
    """Send a message that says only that the webhook works."""
    _require_management(actor, webhook.namespace, webhook.repository)
    content = {"namespace": webhook.namespace.slug, "actor": actor.username}
    return _add_delivery(webhook, PING, payload_of(PING, content))


@transaction.atomic
def redeliver(*, actor: Actor, webhook: Webhook, delivery_id: int) -> Delivery:
    """Send the message of an earlier delivery again.

    Raises:
        NotFound: the webhook's log has no such delivery (any more).

    """
    _require_management(actor, webhook.namespace, webhook.repository)
    earlier = Delivery.objects.filter(webhook=webhook, pk=delivery_id).first()
    if earlier is None:
        raise NotFound(
            "This webhook has no delivery {delivery}.",
            code="delivery_not_found",
            delivery=delivery_id,
        )
    return _add_delivery(webhook, earlier.event, earlier.payload)


def _add_delivery(webhook: Webhook, event: str, payload: Mapping[str, object]) -> Delivery:
    if not webhook.is_active:
        raise Conflict("This webhook is switched off; switch it on first.", code="webhook_off")
    # Somebody waits for this one: a webhook that rests after failures is woken.
    Webhook.objects.filter(pk=webhook.pk).update(busy_until=None)
    delivery = Delivery.objects.create(webhook=webhook, event=event, payload=payload)
    transaction.on_commit(queue.wake_couriers)
    return delivery


def _require_management(actor: Actor, namespace: Namespace, repository: Repository | None) -> None:
    """Pass for maintainers of the repository, or owners of the namespace where it is about all."""
    if repository is None:
        require(actor, "own", namespace)
    elif not allowed(actor, "own", namespace):
        require(actor, "maintain", repository)


def _check_address(url: object) -> str:
    text = check_text("url", url, max_length=2000)
    check_url(text)
    return text


def _check_events(events: Sequence[str]) -> list[str]:
    if unknown := sorted(set(events) - set(EVENTS)):
        raise invalid_field(
            "events",
            "bad_choice",
            "There is no event {event!r}; there are {events}.",
            event=unknown[0],
            events=", ".join(EVENTS),
        )
    if not events:
        raise invalid_field("events", "required", "Choose from {events}.", events=", ".join(EVENTS))
    return sorted(set(events))


def _record(actor: Actor, action: AuditAction, webhook: Webhook, **data: object) -> None:
    record_event(
        actor,
        action,
        namespace=webhook.namespace,
        repository=webhook.repository,
        # The rest of an address may be somebody's secret.
        target=urlsplit(webhook.url).hostname or "",
        webhook=webhook.pk,
        **data,
    )


# --- What couriers do ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Errand:
    """One delivery in a courier's hands: where to, what, and how it is signed."""

    delivery_id: int
    attempt: int
    url: str
    body: bytes
    headers: Mapping[str, str]


def claim_delivery() -> Errand | None:
    """Take the delivery that is due first, of a webhook that no other courier is calling."""
    with transaction.atomic():
        free = Q(webhook__busy_until=None) | Q(webhook__busy_until__lte=Now())
        delivery = (
            Delivery.objects.select_for_update(skip_locked=True, of=("self", "webhook"))
            .select_related("webhook")
            .filter(free, webhook__is_active=True, state=DeliveryState.WAITING, due_at__lte=Now())
            .order_by("due_at", "pk")
            .first()
        )
        if delivery is None:
            return None
        webhook = delivery.webhook
        delivery.attempts_count += 1
        delivery.save(update_fields=["attempts_count"])
        webhook.busy_until = timezone.now() + timedelta(seconds=_HOLD_SECONDS)
        webhook.save(update_fields=["busy_until"])
    body = orjson.dumps(delivery.payload)
    return Errand(
        delivery_id=delivery.pk,
        attempt=delivery.attempts_count,
        url=webhook.url,
        body=body,
        headers=_signed(webhook, delivery, body),
    )


def _signed(webhook: Webhook, delivery: Delivery, body: bytes) -> dict[str, str]:
    """Sign as https://www.standardwebhooks.com defines: id, time and body under HMAC-SHA256.

    With several keys there are several signatures, of which a receiver needs one.
    """
    sent_at = str(int(time.time()))
    name = f"msg_{delivery.pk}"
    signed = f"{name}.{sent_at}.".encode() + body
    signatures = [
        base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        for key in _keys_of(webhook)
    ]
    return {
        "Content-Type": "application/json",
        "User-Agent": f"Modelyard/{settings.VERSION}",
        "webhook-id": name,
        "webhook-timestamp": sent_at,
        "webhook-signature": " ".join(f"v1,{one}" for one in signatures),
    }


def end_delivery(
    errand: Errand, *, status: int | None = None, problem: str = "", duration_ms: int | None = None
) -> None:
    """Write down what came of an attempt, and when the next one is due."""
    with transaction.atomic():
        delivery = (
            Delivery.objects.select_for_update(of=("self", "webhook"))
            .select_related("webhook")
            .filter(pk=errand.delivery_id, attempts_count=errand.attempt)
            .first()
        )
        if delivery is None or delivery.state != DeliveryState.WAITING:
            return  # deleted meanwhile, or another courier took it over
        webhook, now = delivery.webhook, timezone.now()
        delivery.status, delivery.problem, delivery.duration_ms = status, problem, duration_ms
        webhook.busy_until = None
        if status is not None and 200 <= status < 300:
            delivery.state, delivery.ended_at = DeliveryState.DELIVERED, now
            webhook.failures_count = 0
        elif not webhook.is_active:
            delivery.state, delivery.ended_at = DeliveryState.FAILED, now
        elif status == _GONE or errand.attempt > len(RETRY_SECONDS):
            delivery.state, delivery.ended_at = DeliveryState.FAILED, now
            _count_failure(webhook, gone=status == _GONE)
        else:
            pause = timedelta(seconds=RETRY_SECONDS[errand.attempt - 1])
            delivery.due_at = now + pause
            webhook.busy_until = now + min(pause, timedelta(seconds=_HOLD_SECONDS))
        delivery.save()
        webhook.save(update_fields=["busy_until", "failures_count", "is_active", "inactive_reason"])


def _count_failure(webhook: Webhook, *, gone: bool) -> None:
    webhook.failures_count += 1
    if not gone and webhook.failures_count < MAX_FAILURES:
        return
    webhook.is_active = False
    reason = Text("Too many deliveries in a row could not be made.")
    if gone:
        reason = Text("The address answered 410 Gone.")
    webhook.inactive_reason = reason.detail
    _give_up([webhook.pk], reason)
    _record(_COURIER, AuditAction.WEBHOOK_STOP, webhook, reason=webhook.inactive_reason)


def _give_up(webhooks: Iterable[int], reason: Text) -> None:
    """Let what waits for webhooks that were just switched off not be sent."""
    Delivery.objects.filter(webhook__in=webhooks, state=DeliveryState.WAITING).update(
        state=DeliveryState.FAILED, ended_at=timezone.now(), problem=reason.detail
    )


def forget_deliveries() -> int:
    """Delete what ended a month ago from the logs; give how many rows that were."""
    limit = timezone.now() - timedelta(days=_KEPT_DAYS)
    return Delivery.objects.filter(ended_at__lt=limit).delete()[0]
