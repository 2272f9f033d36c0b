"""Background jobs: the row is the truth, the broker's message only wakes a worker."""

import uuid
from typing import Any, Final, Self

from django.db import models
from django.db.models import Prefetch, Q
from django.utils import timezone

from registry.models.access import Actor, Namespace, User
from registry.models.artifacts import Blob
from registry.models.catalog import Repository, Version

MADE_DIGESTS: Final = "made_digests"
"""Where a job's report keeps a digest of each variant that it made, to compare other runs with."""


class JobState(models.TextChoices):
    """Where a job stands; only `registry.services.jobs` moves it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobQuerySet(models.QuerySet["Job"]):
    def visible_to(self, actor: Actor) -> Self:
        """Keep the jobs of namespaces the actor belongs to, when all they name is visible too."""
        if "read" not in actor.scopes or actor.is_anonymous:
            return self.none()
        seen = self
        if not actor.is_admin:
            seen = seen.filter(Q(namespace_id__in=list(actor.roles)) | Q(created_by=actor.user_id))
            hidden = Repository.objects.exclude(
                pk__in=Repository.objects.visible_to(actor).values("pk")
            )
            seen = seen.exclude(Q(lost_hidden_input=True) & ~Q(created_by=actor.user_id))
            seen = seen.exclude(
                pk__in=Job.inputs.through.objects.filter(
                    version__repository__in=hidden.values("pk")
                ).values("job_id")
            )
        if actor.limited_namespace_id is not None:
            seen = seen.filter(namespace_id=actor.limited_namespace_id)
        if actor.limited_repository_id is not None:
            seen = seen.filter(inputs__repository_id=actor.limited_repository_id).distinct()
        return seen

    def whole(self) -> Self:
        """Leave out jobs that are parts of others."""
        return self.filter(part=None)

    def unfinished(self) -> Self:
        return self.filter(state__in=(JobState.QUEUED, JobState.RUNNING))

    def with_names(self, actor: Actor) -> Self:
        """Read what a job is shown with; of its result, what `actor` may see of it now."""
        results = Version.objects.visible_to(actor).select_related("repository__namespace")
        return self.select_related("namespace", "created_by").prefetch_related(
            Prefetch("result", queryset=results),
            Prefetch("versions", queryset=results.order_by("number")),
        )


class Job(models.Model):
    """One request to run a recipe.

    `fence` grows with every attempt and goes with every write of a worker, so that one that was
    thought dead cannot overwrite its successor. `lease_expires_at` is renewed while it runs.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    kind = models.CharField(max_length=32)
    recipe = models.JSONField()
    namespace = models.ForeignKey(Namespace, on_delete=models.PROTECT, related_name="jobs")
    inputs = models.ManyToManyField(Version, related_name="read_by_jobs", blank=True)
    # {role: id of the version}, for names go from one repository to another. Jobs that an earlier
    # release queued have none.
    input_ids = models.JSONField(
        default=dict, blank=True, db_default=models.Value({}, models.JSONField())
    )
    # {role: {ref, may_be_named}}: how the last attempt was told of them. Its files may say so.
    input_names = models.JSONField(
        default=dict, blank=True, db_default=models.Value({}, models.JSONField())
    )
    # Whether an input is gone for good that not everybody could see: the recipe still names it.
    lost_hidden_input = models.BooleanField(default=False, db_default=False)
    # The job that this one is a part of, its number among the parts, and the file that it left for
    # the whole, until that has been put together.
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.CASCADE, related_name="children"
    )
    part = models.PositiveSmallIntegerField(null=True, blank=True)
    made = models.ForeignKey(
        Blob, null=True, blank=True, on_delete=models.PROTECT, related_name="made_by_parts"
    )
    # The job that this one runs again, to compare what both made; it keeps nothing of its own.
    reproduces = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="reproductions"
    )
    state = models.CharField(max_length=16, choices=JobState, default=JobState.QUEUED)
    queue = models.CharField(max_length=16)
    priority = models.SmallIntegerField(default=0)
    attempts_count = models.PositiveIntegerField(default=0)
    max_attempts = models.PositiveIntegerField(default=3)
    fence = models.PositiveIntegerField(default=0)
    worker = models.CharField(max_length=200, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    # {done, total, unit, step}: the last progress line.
    progress = models.JSONField(default=dict, blank=True)
    report = models.JSONField(default=dict, blank=True)
    error_code = models.CharField(max_length=64, blank=True)
    error_detail = models.TextField(blank=True)
    # The template of error_detail and its values (registry.errors.pack), which pages translate.
    error_said = models.JSONField(null=True, blank=True)
    result = models.ForeignKey(
        Version, null=True, blank=True, on_delete=models.SET_NULL, related_name="result_of_jobs"
    )
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="jobs"
    )
    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(state__in=JobState.values), name="job_state_known"),
            models.CheckConstraint(
                condition=Q(part=None, parent=None) | ~Q(part=None) & ~Q(parent=None),
                name="job_part_has_parent",
            ),
            models.UniqueConstraint(fields=["parent", "part"], name="job_part_once"),
            models.CheckConstraint(
                condition=~Q(state=JobState.RUNNING) | Q(lease_expires_at__isnull=False),
                name="job_running_has_lease",
            ),
        ]
        indexes = [
            models.Index(
                fields=["queue", "-priority", "created_at"],
                condition=Q(state=JobState.QUEUED),
                name="job_waiting",
            ),
            models.Index(
                fields=["lease_expires_at"],
                condition=Q(state=JobState.RUNNING),
                name="job_leased",
            ),
            models.Index(fields=["-created_at", "-id"], name="job_recent"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"

    @property
    def results(self) -> list[Version]:
        """Give what the job was about: the recommended version, then the others that it made."""
        first = [self.result] if self.result else []
        return [*first, *(made for made in self.versions.all() if made.pk != self.result_id)]

    @property
    def reproduction(self) -> dict[str, Any] | None:
        """Say what running another job again gave, to those who see what that job made."""
        found = self.report.get("reproduction") if self.result else None
        return found if isinstance(found, dict) else None

    @property
    def shown_report(self) -> dict[str, Any]:
        """Give the report without what only those may read who see the result."""
        hidden = {MADE_DIGESTS} if self.result else {MADE_DIGESTS, "reproduction"}
        return {name: value for name, value in self.report.items() if name not in hidden}

    @property
    def is_finished(self) -> bool:
        return self.state in {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


class Attempt(models.Model):
    """One try of a worker at a job."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="attempts")
    fence = models.PositiveIntegerField()
    worker = models.CharField(max_length=200)
    device = models.CharField(max_length=100, blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=32, blank=True)
    detail = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job", "fence"], name="attempt_fence_unique_per_job")
        ]

    def __str__(self) -> str:
        return f"attempt {self.fence} of {self.job_id}"


class JobEvent(models.Model):
    """Something a job said: a state, progress, a metric, a line of its log."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    type = models.CharField(max_length=16)
    data = models.JSONField(default=dict)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [models.Index(fields=["job", "id"], name="job_event_in_order")]

    def __str__(self) -> str:
        return f"{self.type} of {self.job_id}"


class Worker(models.Model):
    """A worker process that is or was there: its queues, its devices, when it was last heard."""

    name = models.CharField(max_length=200, unique=True)
    queues = models.JSONField(default=list)
    devices = models.JSONField(default=list)
    # How far it can contain files that run code: {level, landlock, seccomp, user, network, lacks}.
    sandbox = models.JSONField(default=dict)
    started_at = models.DateTimeField(default=timezone.now)
    seen_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return self.name
