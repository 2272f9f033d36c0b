"""People, the namespaces they own, and what they hold in their hands: roles, grants, tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

from django.apps import apps
from django.contrib.auth.models import AbstractUser
from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Lower, Now
from django.utils import timezone

SLUG_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,62}[A-Za-z0-9])?$"


class Role(models.TextChoices):
    """What a person may do in a namespace; each role includes the ones before it."""

    READER = "reader"
    CONTRIBUTOR = "contributor"
    MAINTAINER = "maintainer"
    OWNER = "owner"


ROLE_RANK: Mapping[str, int] = MappingProxyType({role: rank for rank, role in enumerate(Role, 1)})


def _with_role(held: Mapping[int, str], least: Role) -> list[int]:
    return [place for place, role in held.items() if ROLE_RANK[role] >= ROLE_RANK[least]]


@dataclass(frozen=True, kw_only=True)
class Actor:
    """On whose behalf something happens: a person or a token, through which door.

    `roles` maps namespace ids to roles, `grants` repository ids to roles. A token narrows the
    person it stands for: to its `scopes`, to one namespace, or to one repository.
    """

    user_id: int | None = None
    username: str = ""
    is_admin: bool = False
    roles: Mapping[int, str] = field(default_factory=dict, hash=False)
    grants: Mapping[int, str] = field(default_factory=dict, hash=False)
    scopes: frozenset[str] = frozenset({"read", "write", "jobs", "admin"})
    token_id: int | None = None
    limited_namespace_id: int | None = None
    limited_repository_id: int | None = None
    door: str = ""
    request_id: str = ""
    ip: str | None = None

    @property
    def is_anonymous(self) -> bool:
        return self.user_id is None

    @property
    def is_limited(self) -> bool:
        """Whether a token keeps the person to one namespace or one repository."""
        return self.limited_namespace_id is not None or self.limited_repository_id is not None

    def namespaces_as(self, least: Role) -> list[int]:
        """Give the namespaces in which the actor has at least this role."""
        return _with_role(self.roles, least)

    def repositories_as(self, least: Role) -> list[int]:
        """Give the repositories on which the actor was given at least this role."""
        return _with_role(self.grants, least)

    @property
    def without_visit(self) -> "Actor":
        """Leave out where a request came in: equal for all who may see and do the same."""
        return replace(self, door="", request_id="", ip=None)

    @property
    def person_id(self) -> int:
        """Give the person's id where a check has already sent anonymous actors away."""
        assert self.user_id is not None
        return self.user_id


ANONYMOUS = Actor(scopes=frozenset({"read"}))


class User(AbstractUser):
    """A person who signs in; what they own hangs on their namespace."""

    class Meta:
        db_table = "registry_user"
        constraints = [
            models.UniqueConstraint(Lower("username"), name="user_username_unique_without_case")
        ]


class NamespaceQuerySet(models.QuerySet["Namespace"]):
    def live(self) -> Self:
        return self.filter(deleted_at=None)

    def visible_to(self, actor: Actor) -> Self:
        """Keep those that exist for `actor`.

        An organisation exists for its members and for whoever sees something in it; a person for
        everybody who signed in.
        """
        found = self.live()
        if "read" not in actor.scopes:
            found = found.filter(pk__in=list(actor.roles))
        elif not actor.is_admin:
            seen = models.Q(pk__in=list(actor.roles)) | models.Q(_holds_something_for(actor))
            if not actor.is_anonymous:
                seen |= models.Q(kind=Namespace.Kind.PERSON)
            found = found.filter(seen)
        if actor.limited_namespace_id is not None:
            found = found.filter(pk=actor.limited_namespace_id)
        if actor.limited_repository_id is not None:
            found = found.filter(repositories=actor.limited_repository_id)
        return found


def _holds_something_for(actor: Actor) -> models.Exists:
    repositories: Any = apps.get_model("registry", "Repository")
    own = repositories.objects.filter(namespace=models.OuterRef("pk"))
    return models.Exists(own.visible_to(actor))


class Namespace(models.Model):
    """The first half of a name: a person's or an organisation's.

    A deleted one keeps its row, so that nobody else can ever stand under its name.
    """

    class Kind(models.TextChoices):
        PERSON = "person"
        ORGANISATION = "organisation"

    slug = models.CharField(max_length=64, validators=[RegexValidator(SLUG_PATTERN)])
    kind = models.CharField(max_length=16, choices=Kind, default=Kind.ORGANISATION)
    display_name = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)
    # What an administrator allows here; null is the installation's default, 0 no limit.
    quota_bytes = models.BigIntegerField(null=True, blank=True)
    quota_versions = models.BigIntegerField(null=True, blank=True)
    quota_jobs = models.BigIntegerField(null=True, blank=True)
    quota_deployments = models.BigIntegerField(null=True, blank=True)
    # What is used of it; only `registry.services.quotas` writes these, with the row locked.
    used_bytes = models.BigIntegerField(default=0, db_default=0)
    used_versions = models.BigIntegerField(default=0, db_default=0)
    # Whether weights of 16 bits are to be coded where they lie.
    compress_weights = models.BooleanField(default=False, db_default=False)
    # What its files share with one another; `registry.services.savings` counts.
    saved_bytes = models.BigIntegerField(default=0, db_default=0)

    objects = NamespaceQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(Lower("slug"), name="namespace_slug_unique_without_case"),
            models.CheckConstraint(
                condition=models.Q(slug__regex=SLUG_PATTERN), name="namespace_slug_has_no_dots"
            ),
            *(
                models.CheckConstraint(
                    condition=models.Q(**{f"quota_{what}": None})
                    | models.Q(**{f"quota_{what}__gte": 0}),
                    name=f"namespace_quota_{what}_not_negative",
                )
                for what in ("bytes", "versions", "jobs", "deployments")
            ),
        ]

    def __str__(self) -> str:
        return self.slug


class Membership(models.Model):
    """A person's role in a namespace."""

    namespace = models.ForeignKey(Namespace, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["namespace", "user"], name="membership_once_per_namespace"
            ),
            models.CheckConstraint(
                condition=models.Q(role__in=Role.values), name="membership_role_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} is {self.role} of {self.namespace_id}"


class Grant(models.Model):
    """A role on one repository, on top of what the namespace gives."""

    repository = models.ForeignKey(
        "registry.Repository", on_delete=models.CASCADE, related_name="grants"
    )
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="grants")
    role = models.CharField(max_length=16, choices=Role)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["repository", "user"], name="grant_once_per_user"),
            models.CheckConstraint(
                condition=models.Q(role__in=Role.values), name="grant_role_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} is {self.role} of repository {self.repository_id}"


class TokenQuerySet(models.QuerySet["Token"]):
    def live(self) -> "TokenQuerySet":
        return self.filter(
            models.Q(expires_at=None) | models.Q(expires_at__gt=Now()),
            revoked_at=None,
            user__is_active=True,
        )

    def with_places(self, actor: Actor) -> Self:
        """Read what tokens are limited to; a repository as far as `actor` may see it now."""
        repositories: Any = apps.get_model("registry", "Repository")
        seen = repositories.objects.visible_to(actor).select_related("namespace")
        return self.select_related("namespace").prefetch_related(
            models.Prefetch("repository", queryset=seen)
        )


class Token(models.Model):
    """A secret that programs send; only its SHA-256 is kept, so it is shown once."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=16)
    digest = models.CharField(max_length=64, unique=True)
    scopes = ArrayField(models.CharField(max_length=16))
    namespace = models.ForeignKey(Namespace, null=True, blank=True, on_delete=models.CASCADE)
    repository = models.ForeignKey(
        "registry.Repository", null=True, blank=True, on_delete=models.CASCADE
    )
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = TokenQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}...)"
