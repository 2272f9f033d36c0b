"""Who did what, when, from where, through which door; append-only."""

from django.db import models
from django.utils import timezone

from registry.models.access import Namespace, User


class Event(models.Model):
    """One line of the audit log, written in the transaction of what it tells."""

    at = models.DateTimeField(default=timezone.now)
    action = models.CharField(max_length=64)
    user = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    # Names are kept as text too: the log outlives what it speaks of.
    actor = models.CharField(max_length=150, blank=True)
    token_id = models.BigIntegerField(null=True, blank=True)
    door = models.CharField(max_length=16, blank=True)
    ip = models.GenericIPAddressField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    namespace = models.ForeignKey(
        Namespace, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    repository_id = models.BigIntegerField(null=True, blank=True)
    target = models.CharField(max_length=300, blank=True)
    data = models.JSONField(default=dict, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["-at", "-id"], name="event_recent"),
            models.Index(fields=["repository_id", "-at"], name="event_of_repository"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"
