"""Bytes and what is known about them: blobs, the paths they have, verdicts, uploads."""

import re
import uuid
from pathlib import PurePosixPath
from typing import Self

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import Exists, OuterRef, Q
from django.db.models.fields.reverse_related import ForeignObjectRel
from django.utils import timezone

from registry.models.access import Actor, User
from registry.models.catalog import Revision, Version


class Layout(models.TextChoices):
    """How a blob lies in the storage, as far as is known here; the storage itself knows better."""

    # Not looked at yet, or to be looked at again.
    WHOLE = "whole"
    # Looked at: it stays whole while no other blob shares enough with it.
    SEEN = "seen"
    SEGMENTED = "segmented"


# Smaller ones stay whole: there is little to save, and files are what most of them are.
MIN_SEGMENTED_BYTES = 1 << 20


class BlobQuerySet(models.QuerySet["Blob"]):
    def unreferenced(self) -> Self:
        """Keep the blobs that no row of any table refers to."""
        rows = self
        for relation in Blob.references():
            pointing = relation.related_model._base_manager.filter(  # noqa: SLF001 - all rows
                **{relation.remote_field.name: OuterRef("pk")}
            )
            rows = rows.filter(~Exists(pointing))
        return rows


class Blob(models.Model):
    """Unique bytes by SHA-256; the digest is always of the plain bytes, whatever the layout.

    `condemned_at` is when the garbage collector first found that nothing refers to them.
    """

    sha256 = models.CharField(max_length=64, unique=True)
    size_bytes = models.BigIntegerField()
    # Git's id of the same bytes, for files small enough not to be a Git LFS object.
    git_sha1 = models.CharField(max_length=40, blank=True)
    layout = models.CharField(max_length=16, default=Layout.WHOLE)
    created_at = models.DateTimeField(default=timezone.now)
    condemned_at = models.DateTimeField(null=True, blank=True)

    objects = BlobQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(sha256__regex=r"^[0-9a-f]{64}$"), name="blob_sha256_is_hex"
            ),
            models.CheckConstraint(condition=Q(size_bytes__gte=0), name="blob_size_not_negative"),
        ]
        indexes = [
            models.Index(
                fields=["condemned_at"],
                condition=~Q(condemned_at=None),
                name="blob_condemned",
            ),
            # For those whose turn comes, oldest first.
            models.Index(
                fields=["created_at"],
                condition=Q(layout=Layout.WHOLE, size_bytes__gte=MIN_SEGMENTED_BYTES),
                name="blob_to_segment",
            ),
        ]

    def __str__(self) -> str:
        return self.sha256[:12]

    @classmethod
    def references(cls) -> list[ForeignObjectRel]:
        """Find every relation that keeps bytes alive, in whatever table.

        What is deleted together with a blob (CASCADE) only says something about it.
        """
        return [
            relation
            for relation in cls._meta.get_fields(include_hidden=True)
            if isinstance(relation, ForeignObjectRel) and relation.on_delete is not models.CASCADE
        ]


class Outline(models.Model):
    """Where a blob can be cut, and what each piece is; see ADR 0031.

    It only helps to find out what blobs share: what lies where, the storage knows by itself.
    """

    blob = models.OneToOneField(
        Blob, on_delete=models.CASCADE, related_name="outline", primary_key=True
    )
    # As registry.storage.pack_pieces writes them.
    pieces = models.BinaryField()
    # The smallest digests of pieces, cut to numbers: blobs that share much have some in common.
    sketch = ArrayField(models.BigIntegerField())

    class Meta:
        indexes = [GinIndex(fields=["sketch"], name="outline_sketch")]

    def __str__(self) -> str:
        return f"outline of blob {self.blob_id}"


class Tally(models.Model):
    """A number of the whole installation that takes time to count."""

    SAVED_BYTES = "saved_bytes"

    name = models.CharField(max_length=32, primary_key=True)
    value = models.BigIntegerField(default=0)
    counted_at = models.DateTimeField(default=timezone.now)

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


class ArtifactQuerySet(models.QuerySet["Artifact"]):
    def readable_by(self, actor: Actor) -> Self:
        """Keep the files of versions that are there, and that `actor` may download."""
        return self.filter(
            revision__in=Version.objects.downloadable_by(actor).values("revision_id")
        )


class Artifact(models.Model):
    """A path inside a revision."""

    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="artifacts")
    path = models.CharField(max_length=1024)
    blob = models.ForeignKey(Blob, on_delete=models.PROTECT, related_name="artifacts")

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["revision", "path"], name="artifact_path_unique")
        ]

    def __str__(self) -> str:
        return self.path


class Verdict(models.TextChoices):
    """What an inspection concluded about bytes."""

    SAFE = "safe"
    OPAQUE = "opaque"
    QUARANTINED = "quarantined"


class InspectionQuerySet(models.QuerySet["Inspection"]):
    def by_readers(self, path: str | None = None) -> Self:
        """Keep what readers of headers found, of any generation; of the ending of `path` if given.

        What an older generation held stays held until the present one has looked.
        """
        if path is None:
            return self.filter(inspector__startswith="headers-")
        return self.filter(inspector__regex=f"^headers-[0-9]+{re.escape(ending_of(path))}$")

    def older_than(self, generation: int) -> Self:
        """Keep what readers of headers before this generation found."""
        names = [f"headers-{number}" for number in range(1, generation)]
        found = Q(inspector__in=names)
        for name in names:
            found |= Q(inspector__startswith=f"{name}.")
        return self.filter(found)


def ending_of(path: str) -> str:
    """Give the ending that readers of headers go by: some formats have no mark of their own."""
    return PurePosixPath(path).suffix.lower()[:16]


class Inspection(models.Model):
    """What a reader of headers found in a blob; a verdict belongs to bytes, not to versions."""

    blob = models.ForeignKey(Blob, on_delete=models.CASCADE, related_name="inspections")
    inspector = models.CharField(max_length=32)
    format = models.CharField(max_length=16)
    verdict = models.CharField(max_length=16, choices=Verdict)
    facts = models.JSONField(default=dict)
    findings = models.JSONField(default=list)
    # The same, each as registry.errors.pack writes it, or null where it has only its English.
    findings_said = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    objects = InspectionQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["blob", "inspector"], name="inspection_once_per_inspector"
            ),
            models.CheckConstraint(
                condition=Q(verdict__in=Verdict.values), name="inspection_verdict_known"
            ),
        ]
        indexes = [
            # For what older readers left, asked for by the beginning of their names.
            models.Index(
                fields=["inspector"], opclasses=["varchar_pattern_ops"], name="inspection_reader"
            )
        ]

    def __str__(self) -> str:
        return f"{self.format}: {self.verdict}"

    @property
    def reader(self) -> str:
        """Who looked, without the ending that the readers were asked about."""
        return self.inspector.partition(".")[0]


class Purpose(models.TextChoices):
    """What a derivative is for."""

    CONVERTED = "converted"
    EXPORTED = "exported"


class DerivativeQuerySet(models.QuerySet["Derivative"]):
    def converted(self) -> Self:
        return self.filter(purpose=Purpose.CONVERTED)

    def exported(self) -> Self:
        return self.filter(purpose=Purpose.EXPORTED)


class Derivative(models.Model):
    """A file made from a version (converted, compiled, tuned), beside its frozen manifest."""

    version = models.ForeignKey(Version, on_delete=models.CASCADE, related_name="derivatives")
    purpose = models.CharField(max_length=32, choices=Purpose)
    # The path of the file that it was made of.
    source_path = models.CharField(max_length=1024, blank=True)
    toolchain = models.CharField(max_length=200)
    path = models.CharField(max_length=1024)
    blob = models.ForeignKey(Blob, on_delete=models.PROTECT, related_name="derivatives")
    created_at = models.DateTimeField(default=timezone.now)

    objects = DerivativeQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["version", "purpose", "toolchain", "path"], name="derivative_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.purpose} of {self.version_id}"


class Screening(models.Model):
    """What the sandbox is to do, or did, for a version with files that can run code.

    The row is the truth, as a job's is: a message only wakes a worker, and a lease that ran out
    lets another one begin again.
    """

    class State(models.TextChoices):
        WAITING = "waiting"
        RUNNING = "running"
        DONE = "done"
        # No worker here can contain such files; one that can takes it up again.
        REFUSED = "refused"

    version = models.OneToOneField(Version, on_delete=models.CASCADE, related_name="screening")
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    # Whether files are to be converted, or only looked into.
    converts = models.BooleanField(default=False)
    attempts_count = models.PositiveIntegerField(default=0)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    # What could not be converted, and why: {path: reason}.
    reasons = models.JSONField(default=dict)
    # The same, as `findings_said` of an inspection.
    reasons_said = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "running", "done", "refused"]),
                name="screening_state_known",
            )
        ]
        indexes = [
            models.Index(
                fields=["created_at"],
                condition=~Q(state="done"),
                name="screening_open",
            )
        ]

    def __str__(self) -> str:
        return f"{self.version_id}: {self.state}"


class UploadQuerySet(models.QuerySet["Upload"]):
    def owned_by(self, actor: Actor) -> Self:
        return self.filter(user_id=actor.user_id) if actor.user_id else self.none()


class Upload(models.Model):
    """A resumable upload; it becomes a blob only after the server itself hashed it.

    A file may also come in parts, at the same time; a final upload joins them and becomes the blob.
    """

    class Concat(models.TextChoices):
        NONE = ""
        PARTIAL = "partial"
        FINAL = "final"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="uploads")
    filename = models.CharField(max_length=1024, blank=True)
    length_bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64, blank=True)
    blob = models.ForeignKey(
        Blob, null=True, blank=True, on_delete=models.PROTECT, related_name="uploads"
    )
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()
    completed_at = models.DateTimeField(null=True, blank=True)
    concat = models.CharField(max_length=8, choices=Concat.choices, blank=True)
    final = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.CASCADE, related_name="parts"
    )
    position = models.PositiveIntegerField(null=True, blank=True)

    objects = UploadQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(length_bytes__gte=0), name="upload_length_not_negative"
            ),
            models.CheckConstraint(
                condition=Q(blob=None, completed_at=None) | ~Q(blob=None) & ~Q(completed_at=None),
                name="upload_complete_with_blob",
            ),
            models.CheckConstraint(
                condition=Q(final=None, position=None)
                | Q(concat="partial") & ~Q(final=None) & ~Q(position=None),
                name="upload_part_has_its_place",
            ),
            models.CheckConstraint(
                condition=~Q(concat="partial") | Q(blob=None), name="upload_part_is_no_blob"
            ),
            models.UniqueConstraint(fields=["final", "position"], name="upload_part_once"),
        ]
        indexes = [models.Index(fields=["expires_at"], name="upload_expiry")]

    def __str__(self) -> str:
        return str(self.id)


class DirectUpload(models.Model):
    """How an upload gets straight into the bucket: in parts, and then checked by a worker.

    Its upload is complete only when a worker has hashed and moved the bytes.
    """

    upload = models.OneToOneField(
        Upload, primary_key=True, on_delete=models.CASCADE, related_name="direct"
    )
    # What S3 calls the parts.
    parts_id = models.CharField(max_length=1024)
    part_bytes = models.BigIntegerField()
    # When the client had sent everything; until when a worker is at it.
    received_at = models.DateTimeField(null=True, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    error_code = models.CharField(max_length=64, blank=True)
    # The reason, as registry.errors.pack writes it.
    error_said = models.JSONField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["received_at"],
                condition=Q(received_at__isnull=False, error_code=""),
                name="direct_upload_received",
            )
        ]

    def __str__(self) -> str:
        return str(self.upload_id)

    @property
    def state(self) -> str:
        if self.error_code:
            return "failed"
        if self.upload.blob_id is not None:
            return "complete"
        return "receiving" if self.received_at is None else "checking"
