"""What people ask for and others decide: moves of protected aliases, access to what is closed."""

from typing import Self

from django.db import models
from django.db.models import Q
from django.utils import timezone

from registry.models.access import Actor, Namespace, Role, User
from registry.models.catalog import Kind, Repository, Version


class Decision(models.TextChoices):
    """Where something that was asked for stands."""

    OPEN = "open"
    APPROVED = "approved"
    DECLINED = "declined"
    WITHDRAWN = "withdrawn"
    # Only of requests for access: the asker goes on seeing it as open.
    IGNORED = "ignored"


class AliasProposal(models.Model):
    """Somebody asks to point a protected alias at another version, or to delete it."""

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="proposals")
    number = models.PositiveIntegerField()
    alias = models.CharField(max_length=255)
    # None asks to delete the alias.
    version = models.ForeignKey(
        Version, null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    message = models.TextField(blank=True)
    state = models.CharField(max_length=16, choices=Decision, default=Decision.OPEN)
    proposed_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    decided_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    note = models.TextField(blank=True)
    # What the alias pointed at when the proposal was approved; None where it was new.
    replaced = models.ForeignKey(
        Version, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    decided_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["repository", "number"], name="proposal_number_unique_per_repository"
            ),
            models.UniqueConstraint(
                fields=["repository", "alias", "version"],
                condition=Q(state=Decision.OPEN),
                nulls_distinct=False,
                name="proposal_open_once",
            ),
            models.CheckConstraint(
                condition=Q(state__in=[one for one in Decision.values if one != "ignored"]),
                name="proposal_state_known",
            ),
            models.CheckConstraint(
                condition=Q(state=Decision.OPEN, decided_at=None)
                | ~Q(state=Decision.OPEN) & ~Q(decided_at=None),
                name="proposal_decided_with_time",
            ),
        ]

    def __str__(self) -> str:
        return f"proposal {self.number} of {self.repository_id}"

    @property
    def is_open(self) -> bool:
        return self.state == Decision.OPEN


class AccessRequestQuerySet(models.QuerySet["AccessRequest"]):
    def asked_by(self, actor: Actor) -> Self:
        if actor.user_id is None or actor.is_limited:
            return self.none()
        return self.filter(user_id=actor.user_id)

    def decidable_by(self, actor: Actor) -> Self:
        """Keep requests of others for what exists and `actor` may share."""
        existing = self.filter(
            Q(namespace__isnull=False, namespace__deleted_at=None)
            | Q(repository__isnull=False, repository__deleted_at=None)
        )
        if "admin" not in actor.scopes or actor.is_anonymous:
            return self.none()
        existing = existing.exclude(user_id=actor.user_id)
        if not actor.is_admin:
            existing = existing.filter(
                Q(namespace__in=actor.namespaces_as(Role.OWNER))
                | Q(repository__namespace__in=actor.namespaces_as(Role.MAINTAINER))
                | Q(repository__in=actor.repositories_as(Role.MAINTAINER))
            )
        if actor.limited_namespace_id is not None:
            place = actor.limited_namespace_id
            existing = existing.filter(Q(namespace=place) | Q(repository__namespace=place))
        if actor.limited_repository_id is not None:
            existing = existing.filter(repository=actor.limited_repository_id)
        return existing


class AccessRequest(models.Model):
    """Somebody asks for a role on a namespace or a repository, by its name.

    The name is kept as it was asked for, whether or not it names anything: what the asker sees of
    their request must not say whether it does. The references say so to those who decide.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="access_requests")
    # "namespace", "model" or "dataset".
    kind = models.CharField(max_length=16)
    asked_namespace = models.CharField(max_length=64)
    asked_name = models.CharField(max_length=96, blank=True)
    namespace = models.ForeignKey(
        Namespace, null=True, blank=True, on_delete=models.CASCADE, related_name="access_requests"
    )
    repository = models.ForeignKey(
        Repository, null=True, blank=True, on_delete=models.CASCADE, related_name="access_requests"
    )
    role = models.CharField(max_length=16, choices=Role)
    message = models.TextField(blank=True)
    state = models.CharField(max_length=16, choices=Decision, default=Decision.OPEN)
    decided_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    note = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    decided_at = models.DateTimeField(null=True, blank=True)

    objects = AccessRequestQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=["namespace", *Kind.values]), name="access_request_kind_known"
            ),
            models.CheckConstraint(
                condition=Q(role__in=Role.values), name="access_request_role_known"
            ),
            models.CheckConstraint(
                condition=Q(state__in=Decision.values), name="access_request_state_known"
            ),
            models.CheckConstraint(
                condition=Q(namespace=None) | Q(repository=None),
                name="access_request_for_one_thing",
            ),
        ]
        indexes = [models.Index(fields=["user", "-id"], name="access_request_of_user")]

    def __str__(self) -> str:
        return f"{self.user_id} asks to be {self.role} of {self.asked_for}"

    @property
    def asked_for(self) -> str:
        return "/".join(part for part in (self.asked_namespace, self.asked_name) if part)

    @property
    def told(self) -> str:
        """Give the state as the asker sees it: what was ignored stays open for them."""
        return Decision.OPEN.value if self.state == Decision.IGNORED else self.state
