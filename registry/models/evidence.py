"""What is known of versions: measured numbers, where they came from, who signed them."""

import re

from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from registry.models.access import User
from registry.models.catalog import Version

# What says how good a model is, the first that a version has counts.
QUALITY_METRICS = ("accuracy", "f1_macro", "cosine_to_parent", "spearman")


class Evaluation(models.Model):
    """One number about one version, measured by a job or declared from outside; append-only."""

    version = models.ForeignKey(Version, on_delete=models.CASCADE, related_name="evaluations")
    dataset_version = models.ForeignKey(
        Version, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    metric = models.CharField(max_length=64)
    value = models.FloatField()
    unit = models.CharField(max_length=32, blank=True)
    split = models.CharField(max_length=64, blank=True)
    # How many rows the number rests on, and its 95 % confidence interval.
    n = models.BigIntegerField(null=True, blank=True)
    low = models.FloatField(null=True, blank=True)
    high = models.FloatField(null=True, blank=True)
    device = models.CharField(max_length=100, blank=True)
    details = models.JSONField(default=dict, blank=True)
    measured = models.BooleanField(default=False)
    job = models.ForeignKey(
        "registry.Job", null=True, blank=True, on_delete=models.SET_NULL, related_name="evaluations"
    )
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        indexes = [
            models.Index(fields=["version", "metric", "-created_at"], name="evaluation_of_version"),
            models.Index(fields=["metric", "value"], include=["version"], name="evaluation_value"),
        ]

    def __str__(self) -> str:
        return f"{self.metric}={self.value}"


_HIGHER = re.compile(
    r"accuracy|f1|precision|recall|auc|agreement|cosine|spearman|pearson|throughput|bleu|rouge"
    r"|exact_match|r2"
)
_LOWER = re.compile(r"latency|loss|error|perplexity|size|bytes|memory|seconds|rmse|mse|mae|wer|cer")


def is_better(metric: str, before: float | None, after: float | None) -> bool | None:
    """Say whether a number got better; None where it stayed, or nobody knows which way is up."""
    if before is None or after is None or before == after:
        return None
    if _LOWER.match(metric) or _LOWER.search(metric.rpartition("_")[2]):
        return after < before
    return after > before if _HIGHER.search(metric) else None


class LineageRole(models.TextChoices):
    """What the parent gave to the child."""

    WEIGHTS = "weights"
    DATA = "data"
    TEACHER = "teacher"
    CALIBRATION = "calibration"
    MERGED = "merged"


class LineageEdge(models.Model):
    """Version `child` came from version `parent`; a child is always the newer row: no cycles."""

    child = models.ForeignKey(Version, on_delete=models.CASCADE, related_name="parent_edges")
    parent = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="child_edges")
    role = models.CharField(max_length=16, choices=LineageRole)
    job = models.ForeignKey(
        "registry.Job", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    # The child repeats the parent: it was registered as the same files once more.
    restores = models.BooleanField(default=False, db_default=False)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["child", "parent", "role"], name="lineage_edge_unique"),
            # Rows are written once with the child, so a parent is always older than its child.
            models.CheckConstraint(
                condition=Q(child_id__gt=F("parent_id")), name="lineage_parent_is_older"
            ),
            models.CheckConstraint(
                condition=Q(role__in=LineageRole.values), name="lineage_role_known"
            ),
        ]
        indexes = [models.Index(fields=["parent", "-id"], name="lineage_newest_of_parent")]

    def __str__(self) -> str:
        return f"{self.parent_id} -> {self.child_id} ({self.role})"


class WeightDiff(models.Model):
    """What changed between the weights of two versions, kept by what both hold.

    It belongs to bytes, not to versions: the same two in another repository are answered by it,
    and whoever asks has to see both there. `key` is made of their digests.
    """

    key = models.CharField(max_length=64, unique=True)
    summary = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now)
    # A day's grain is enough to tell what nobody looks at any more.
    used_on = models.DateField(default=timezone.localdate)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(key__regex=r"^[0-9a-f]{64}$"), name="weight_diff_key_is_hex"
            )
        ]
        indexes = [models.Index(fields=["used_on"], name="weight_diff_use")]

    def __str__(self) -> str:
        return self.key[:12]


class Tuning(models.Model):
    """How a version is served best on machines of one kind, as a job measured it there last."""

    version = models.ForeignKey(Version, on_delete=models.CASCADE, related_name="tunings")
    # The processor and how many of its cores there were, or the GPU.
    device_class = models.CharField(max_length=200)
    runtime = models.CharField(max_length=16)
    threads = models.PositiveSmallIntegerField()
    max_batch_size = models.PositiveSmallIntegerField()
    # The rest of what was found out: the aim, and every setting that was tried with its numbers.
    summary = models.JSONField(default=dict)
    job = models.ForeignKey(
        "registry.Job", null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    measured_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["version", "device_class"], name="tuning_once_per_device_class"
            ),
            models.CheckConstraint(
                condition=Q(threads__gte=1) & Q(max_batch_size__gte=1),
                name="tuning_is_of_something",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.max_batch_size} rows on {self.device_class}"


class Signature(models.Model):
    """A signature over the files of a version: a Sigstore bundle in the OpenSSF format.

    This installation signs every version that is ready; people add their own beside it.
    """

    class Method(models.TextChoices):
        KEY = "key"
        CERTIFICATE = "certificate"
        SIGSTORE = "sigstore"

    version = models.ForeignKey(Version, on_delete=models.CASCADE, related_name="signatures")
    # True for the one that this installation made with its own key.
    own = models.BooleanField(default=False)
    method = models.CharField(max_length=16, choices=Method)
    # SHA-256 of the public key's PEM text, or of the certificate.
    fingerprint = models.CharField(max_length=64)
    identity = models.CharField(max_length=300, blank=True)
    issuer = models.CharField(max_length=300, blank=True)
    public_key = models.TextField(blank=True)
    bundle = models.TextField()
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["version", "own", "fingerprint"], name="signature_once_per_signer"
            ),
            models.CheckConstraint(
                condition=Q(fingerprint__regex=r"^[0-9a-f]{64}$"),
                name="signature_fingerprint_is_hex",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.method} {self.fingerprint[:12]} on {self.version_id}"
