"""Who did what, when, from where, through which door; append-only."""

from typing import Self

from django.db import models
from django.utils import timezone

from registry.models.access import ROLE_RANK, Actor, Namespace, Role, User


class EventQuerySet(models.QuerySet["Event"]):
    def audited_by(self, actor: Actor) -> Self:
        """Keep the events of namespaces that the actor maintains; administrators see all."""
        if actor.is_admin and not (actor.limited_namespace_id or actor.limited_repository_id):
            return self
        least = ROLE_RANK[Role.MAINTAINER]
        held = [space for space, role in actor.roles.items() if ROLE_RANK[role] >= least]
        if actor.limited_repository_id is not None:
            return self.filter(namespace__in=held, repository_id=actor.limited_repository_id)
        if actor.limited_namespace_id is not None:
            held = [space for space in held if space == actor.limited_namespace_id]
        return self.filter(namespace__in=held)


class Event(models.Model):
    """One line of the audit log, written in the transaction of what it tells.

    The database refuses to change or delete one (migration `event_append_only`).
    """

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

    objects = EventQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["-at", "-id"], name="event_recent"),
            models.Index(fields=["repository_id", "-at"], name="event_of_repository"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}"
