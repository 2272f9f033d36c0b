"""Webhooks: whom to tell about what, and every telling with its fate."""

from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from registry.models.access import Namespace, User
from registry.models.catalog import Repository


class WebhookQuerySet(models.QuerySet["Webhook"]):
    def hearing(self, event: str, namespace_id: int, repository_id: int | None) -> Self:
        """Keep those that are to be told of `event` in a namespace, or about one repository."""
        place = Q(repository=None) | Q(repository_id=repository_id)
        return self.filter(
            place, namespace_id=namespace_id, is_active=True, events__contains=[event]
        )


class Webhook(models.Model):
    """An address that is told what happens in a namespace, or to one repository of it.

    Its secret is derived (`registry.services.webhooks.secret_of`), so there is none to leak here;
    `generation` grows when it is replaced.
    """

    namespace = models.ForeignKey(Namespace, on_delete=models.CASCADE, related_name="webhooks")
    repository = models.ForeignKey(
        Repository, null=True, blank=True, on_delete=models.CASCADE, related_name="webhooks"
    )
    url = models.CharField(max_length=2000)
    events = ArrayField(models.CharField(max_length=32))
    generation = models.PositiveIntegerField(default=1)
    is_active = models.BooleanField(default=True)
    # Why it was switched off without anybody asking.
    inactive_reason = models.TextField(blank=True)
    failures_count = models.PositiveIntegerField(default=0)
    # One courier at a time serves a webhook, and one that does not answer rests between tries, so
    # that it never holds the others up.
    busy_until = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    objects = WebhookQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(
                fields=["namespace"], condition=Q(is_active=True), name="webhook_listening"
            )
        ]

    def __str__(self) -> str:
        return f"{self.namespace_id}: {self.url}"


class DeliveryState(models.TextChoices):
    """Where a delivery stands."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


class Delivery(models.Model):
    """One message to one webhook, written in the transaction of what it tells."""

    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=32)
    payload = models.JSONField()
    state = models.CharField(max_length=16, choices=DeliveryState, default=DeliveryState.WAITING)
    attempts_count = models.PositiveIntegerField(default=0)
    # When a courier may take it (again).
    due_at = models.DateTimeField(default=timezone.now)
    # What came of the last attempt; an answer's body is never kept.
    status = models.PositiveIntegerField(null=True, blank=True)
    problem = models.TextField(blank=True)
    duration_ms = models.PositiveIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name_plural = "deliveries"
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=DeliveryState.values), name="delivery_state_known"
            )
        ]
        indexes = [
            models.Index(
                fields=["due_at"],
                condition=Q(state=DeliveryState.WAITING),
                name="delivery_due",
            ),
            models.Index(fields=["webhook", "-id"], name="delivery_of_webhook"),
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.webhook_id}: {self.state}"
