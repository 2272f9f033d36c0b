"""Where models are served: endpoints, and the deployments behind them."""

from typing import Self

from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from registry.models.access import Actor, Namespace, User
from registry.models.catalog import NAME_PATTERN, Repository, Version

FULL_WEIGHT = 100


class DeploymentRole(models.TextChoices):
    """What a deployment is for: it serves, it tries itself on a part, it only watches."""

    LIVE = "live"
    CANARY = "canary"
    SHADOW = "shadow"


class EndpointQuerySet(models.QuerySet["Endpoint"]):
    def visible_to(self, actor: Actor) -> Self:
        """Keep the endpoints of models that exist for `actor`."""
        return self.filter(repository__in=Repository.objects.visible_to(actor))

    def named(self, namespace: str, name: str) -> Self:
        return self.alias(name_lower=Lower("name"), slug_lower=Lower("namespace__slug")).filter(
            slug_lower=namespace.lower(), name_lower=name.lower()
        )

    def with_names(self) -> Self:
        return self.select_related("namespace", "repository__namespace", "created_by")


class Endpoint(models.Model):
    """An address at which versions of one model answer; it lies in the model's namespace."""

    namespace = models.ForeignKey(Namespace, on_delete=models.PROTECT, related_name="endpoints")
    name = models.CharField(max_length=96)
    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="endpoints")
    # Whether a caller keeps to the deployment that answered first.
    sticky = models.BooleanField(default=False)
    # How the traffic was split before it last changed: {deployment: [role, weight, version]}.
    previous = models.JSONField(default=dict, blank=True)
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)

    objects = EndpointQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                "namespace", Lower("name"), name="endpoint_name_unique_without_case"
            ),
            models.CheckConstraint(
                condition=Q(name__regex=NAME_PATTERN), name="endpoint_name_is_plain"
            ),
        ]

    def __str__(self) -> str:
        return self.full_name

    @property
    def full_name(self) -> str:
        return f"{self.namespace.slug}/{self.name}"

    @property
    def etag(self) -> str:
        return f'"e{self.pk}-{int(self.updated_at.timestamp() * 1_000_000):x}"'


class Deployment(models.Model):
    """A version that serves at an endpoint: this one, or whichever an alias points at.

    One that is live with the weight 0 answers only who asks for its version by number.
    """

    endpoint = models.ForeignKey(Endpoint, on_delete=models.CASCADE, related_name="deployments")
    version = models.ForeignKey(
        Version, null=True, blank=True, on_delete=models.PROTECT, related_name="deployments"
    )
    alias = models.CharField(max_length=255, blank=True)
    role = models.CharField(max_length=8, choices=DeploymentRole, default=DeploymentRole.LIVE)
    weight = models.PositiveSmallIntegerField(default=0)
    # What is known of a canary that widens by itself (when its step began, what was counted until
    # then), or of a shadow (what it did beside the live version).
    trial = models.JSONField(
        default=dict, blank=True, db_default=models.Value({}, models.JSONField())
    )
    # registry.serving_options.ServingOptions, as JSON.
    options = models.JSONField(default=dict, blank=True)
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)

    # The version that answers now, where `deployments_of` has looked.
    serves: Version | None = None

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(version=None) & ~Q(alias="") | ~Q(version=None) & Q(alias=""),
                name="deployment_of_version_or_alias",
            ),
            models.CheckConstraint(
                condition=Q(role__in=DeploymentRole.values), name="deployment_role_known"
            ),
            models.CheckConstraint(
                condition=Q(weight__lte=FULL_WEIGHT), name="deployment_weight_in_percent"
            ),
            models.CheckConstraint(
                condition=~Q(role=DeploymentRole.SHADOW) | Q(weight=0),
                name="deployment_shadow_answers_nobody",
            ),
            models.UniqueConstraint(
                fields=["endpoint", "version"],
                condition=~Q(version=None),
                name="deployment_version_once",
            ),
            models.UniqueConstraint(
                fields=["endpoint", "alias"],
                condition=~Q(alias=""),
                name="deployment_alias_once",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role} deployment {self.pk}"
