"""What a namespace may hold and run at once, and how much of that it uses.

What counts: the versions that are there (a deleted one counts again when it is brought back), and
the bytes of their files and of the files that somebody had exported of them, each content once
however many versions hold it. What the registry makes of files by itself counts for nobody.

The counters stand in the namespace's row and change in the transaction of what they count, which
locks the row last, after its repository: so nobody waits for long, and the next one who locks it
sees all that was counted before.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import (
    BigIntegerField,
    Count,
    Exists,
    F,
    Max,
    OuterRef,
    QuerySet,
    Subquery,
    Sum,
    Value,
)
from django.db.models.functions import Coalesce

from registry.errors import Denied, NamespaceFull, Text
from registry.models import (
    Actor,
    Artifact,
    AuditAction,
    Blob,
    Deployment,
    Derivative,
    Job,
    JobState,
    Namespace,
    Purpose,
    Repository,
    Version,
)
from registry.models.artifacts import BlobQuerySet, DerivativeQuerySet
from registry.models.catalog import VersionQuerySet
from registry.permissions import require, require_scope
from registry.services.audit import record_event
from registry.services.texts import invalid_field

BYTES, VERSIONS, JOBS, DEPLOYMENTS = "bytes", "versions", "jobs", "deployments"
QUOTAS = (BYTES, VERSIONS, JOBS, DEPLOYMENTS)
# More than anybody means, and what the database can hold.
MAX_LIMIT = 1 << 60

logger = logging.getLogger(__name__)


class Quota(NamedTuple):
    """One thing that a namespace may have so much of."""

    used: int
    # What holds: None is no limit.
    limit: int | None
    # What an administrator set here: None is the installation's default, 0 no limit.
    own: int | None

    @property
    def is_full(self) -> bool:
        return self.limit is not None and self.used >= self.limit


def read_quotas(*, actor: Actor, namespace: Namespace) -> Mapping[str, Quota]:
    """Say what a namespace may have and has, by the names of `QUOTAS`; for its members."""
    require(actor, "read", namespace)
    return _quotas(Namespace.objects.get(pk=namespace.pk))


def _quotas(row: Namespace) -> Mapping[str, Quota]:
    used = {
        BYTES: row.used_bytes,
        VERSIONS: row.used_versions,
        JOBS: running_jobs(row),
        DEPLOYMENTS: _count_deployments(row),
    }
    return {what: Quota(used[what], limit_of(row, what), _own(row, what)) for what in QUOTAS}


def _own(namespace: Namespace, what: str) -> int | None:
    own: int | None = getattr(namespace, f"quota_{what}")
    return own


def limit_of(namespace: Namespace, what: str) -> int | None:
    """Give the limit that holds in a namespace, None where there is none."""
    own = _own(namespace, what)
    default: int = getattr(settings, f"QUOTA_{what.upper()}")
    return (default if own is None else own) or None


def running_jobs(namespace: Namespace) -> int:
    return Job.objects.filter(namespace=namespace, state=JobState.RUNNING).count()


def _count_deployments(namespace: Namespace) -> int:
    return Deployment.objects.filter(endpoint__namespace=namespace).count()


def require_deployment_place(namespace: Namespace) -> None:
    """Pass when one more deployment may be in a namespace; nobody else adds one meanwhile.

    Raises:
        NamespaceFull: there are as many as may be.

    """
    row = _lock(namespace)
    _require_deployments(row, beside=_count_deployments(row), more=1)


def _require_deployments(namespace: Namespace, *, beside: int, more: int) -> None:
    limit = limit_of(namespace, DEPLOYMENTS)
    if limit is not None and more and beside + more > limit:
        raise NamespaceFull(
            "{namespace} has {used} of the {limit} deployments that it may have. Undeploy what "
            "nobody calls, or ask an administrator for a larger quota.",
            code="deployments_quota_exceeded",
            namespace=namespace.slug,
            used=beside,
            limit=limit,
        )


def full_of_jobs() -> QuerySet[Job, int]:
    """Select the namespaces in which as many jobs run as may."""
    return _full().values_list("namespace_id", flat=True)


def _full() -> QuerySet[Any, Any]:
    own, default = F("namespace__quota_jobs"), Value(settings.QUOTA_JOBS, BigIntegerField())
    running = Job.objects.filter(state=JobState.RUNNING).order_by().values("namespace_id")
    counted = running.annotate(running=Count("pk"), limit=Coalesce(Max(own), default))
    return counted.filter(limit__gt=0, running__gte=F("limit"))


def why_waiting(jobs: Iterable[Job]) -> Mapping[uuid.UUID, Text]:
    """Say of those jobs that wait for others of their namespace to end that they do."""
    full = {row["namespace_id"]: row for row in _full()}
    return {
        job.pk: Text(
            "Waits: {running} of {limit} jobs of {namespace} run.",
            running=full[job.namespace_id]["running"],
            limit=full[job.namespace_id]["limit"],
            namespace=job.namespace.slug,
        )
        for job in jobs
        if job.state == JobState.QUEUED and job.namespace_id in full
    }


def hold_job_place(namespace_id: int) -> bool:
    """Give whether a namespace may run one more job; nobody else starts one there meanwhile.

    The answer holds until the transaction ends, for whoever starts a job asks here first.
    """
    found = Namespace.objects.get(pk=namespace_id)
    if limit_of(found, JOBS) is None:
        return True
    row = _lock(found)
    limit = limit_of(row, JOBS)
    return limit is None or running_jobs(row) < limit


def may_set_quotas(actor: Actor) -> bool:
    return actor.is_admin and not actor.is_limited


@transaction.atomic
def set_quotas(
    *, actor: Actor, namespace: Namespace, changes: Mapping[str, int | None]
) -> Mapping[str, Quota]:
    """Set some of a namespace's quotas: None for the installation's default, 0 for no limit.

    A quota below what is used takes nothing away; it only lets nothing more in.

    Raises:
        Unauthenticated, Denied: the actor does not administer the installation.

    """
    require_scope(actor, "admin")
    if not may_set_quotas(actor):
        raise Denied("Only an administrator of the installation may set quotas.")
    for what, value in changes.items():
        if value is not None and not 0 <= value <= MAX_LIMIT:
            raise invalid_field(
                what, "out_of_range", "A quota is between 0 and {limit}.", limit=MAX_LIMIT
            )
    row = _lock(namespace)
    before = {what: _own(row, what) for what in changes}
    for what, value in changes.items():
        setattr(row, f"quota_{what}", value)
    row.save(update_fields=[f"quota_{what}" for what in changes])
    record_event(
        actor,
        AuditAction.NAMESPACE_QUOTA,
        namespace=row,
        target=row.slug,
        before=before,
        after=dict(changes),
    )
    return _quotas(row)


# --- Counting ------------------------------------------------------------------------------------


def take_room(namespace: Namespace, versions: VersionQuerySet) -> None:
    """Count versions that are there from now on; their rows are written, their repository locked.

    Raises:
        NamespaceFull: they do not fit, so the transaction is to be undone.

    """
    row = _lock(namespace)
    _take(row, versions)


def free_room(namespace: Namespace, versions: VersionQuerySet) -> None:
    """Count versions no more, which have just been deleted with their repository locked."""
    row = _lock(namespace)
    _free(row, versions)


def move_room(source: Namespace, repository: Repository) -> None:
    """Count a repository where it is now, which has just moved there from `source`, locked.

    Raises:
        NamespaceFull: its versions do not fit there, or what is deployed of it.

    """
    # Both rows in one order, for somebody may be moving something the other way.
    target = repository.namespace
    rows = _lock_all({source.pk, target.pk})
    versions = Version.objects.live().filter(repository=repository)
    _free(rows[source.pk], versions)
    _take(rows[target.pk], versions)
    # Its endpoints have moved with it.
    moved = Deployment.objects.filter(endpoint__repository=repository).count()
    beside = _count_deployments(target) - moved
    _require_deployments(rows[target.pk], beside=beside, more=moved)


def require_room(namespace: Namespace, *, size_bytes: int = 0, versions: int = 0) -> None:
    """Pass while it looks as if so much would fit, before work is spent on it.

    Raises:
        NamespaceFull: it would not.

    """
    _require_fit(Namespace.objects.get(pk=namespace.pk), size_bytes, versions)


def holds_bytes(namespace: Namespace, sha256: str) -> bool:
    """Say whether bytes are counted in a namespace, so that a file of them takes nothing more."""
    if not (sha256.isascii() and sha256.isalnum()):
        return False
    blob = Blob.objects.filter(sha256=sha256.lower()).first()
    return blob is not None and _holds(namespace, blob, Derivative.objects.exported())


def take_export(made: Derivative) -> None:
    """Count a file that was just exported of a version, whose repository is locked.

    Raises:
        NamespaceFull: it does not fit, so the transaction is to be undone.

    """
    row = _lock(made.version.repository.namespace)
    size_bytes = _weigh_export(row, made)
    _require_fit(row, size_bytes, 0)
    row.used_bytes += size_bytes
    row.save(update_fields=["used_bytes"])


def free_export(made: Derivative) -> None:
    """Count an exported file no more, which is about to be deleted with its repository locked."""
    row = _lock(made.version.repository.namespace)
    row.used_bytes = max(0, row.used_bytes - _weigh_export(row, made))
    row.save(update_fields=["used_bytes"])


def _weigh_export(namespace: Namespace, made: Derivative) -> int:
    """Give the bytes of an exported file, where nothing else in a namespace holds them."""
    if not _counted(namespace).filter(pk=made.version_id).exists():
        return 0  # it counts once its version is brought back
    beside = Derivative.objects.exported().exclude(pk=made.pk)
    return 0 if _holds(namespace, made.blob, beside) else made.blob.size_bytes


def _holds(namespace: Namespace, blob: Blob, exported: DerivativeQuerySet) -> bool:
    present = _counted(namespace)
    files = Artifact.objects.filter(blob=blob, revision__versions__in=present)
    return files.exists() or exported.filter(blob=blob, version__in=present).exists()


def _lock(namespace: Namespace) -> Namespace:
    return _lock_all({namespace.pk})[namespace.pk]


def _lock_all(keys: Iterable[int]) -> dict[int, Namespace]:
    """Lock rows against each other's counting, not against those who merely refer to them."""
    rows = Namespace.objects.select_for_update(no_key=True, of=("self",)).filter(pk__in=keys)
    return {row.pk: row for row in rows.order_by("pk")}


def _take(row: Namespace, versions: VersionQuerySet) -> None:
    size_bytes, count = _weigh(row, versions)
    _require_fit(row, size_bytes, count)
    row.used_bytes += size_bytes
    row.used_versions += count
    row.save(update_fields=["used_bytes", "used_versions"])


def _free(row: Namespace, versions: VersionQuerySet) -> None:
    size_bytes, count = _weigh(row, versions)
    # What the previous release wrote meanwhile was not counted.
    row.used_bytes = max(0, row.used_bytes - size_bytes)
    row.used_versions = max(0, row.used_versions - count)
    row.save(update_fields=["used_bytes", "used_versions"])


def _weigh(namespace: Namespace, versions: VersionQuerySet) -> tuple[int, int]:
    """Give the bytes that no other version of a namespace holds, and how many versions these are.

    Statements of their own after the lock: one that took the lock itself would see what was there
    before it waited.
    """
    others = _counted(namespace).exclude(pk__in=versions.values("pk"))
    blobs, size_bytes, count = _held_by(versions), 0, versions.count()
    if count == 1:
        blobs, size_bytes = _sift(blobs, others, versions.get())
    alone = blobs.exclude(Exists(_with_file(others))).exclude(Exists(_with_export(others)))
    return size_bytes + _size_of(alone), count


def _with_file(versions: VersionQuerySet) -> VersionQuerySet:
    """Narrow versions to those that have a blob of the query around among their files."""
    return versions.filter(revision__artifacts__blob=OuterRef("pk"))


def _with_export(versions: VersionQuerySet) -> VersionQuerySet:
    """Narrow them to those of which it was exported."""
    return versions.filter(derivatives__purpose=Purpose.EXPORTED, derivatives__blob=OuterRef("pk"))


def _sift(
    blobs: BlobQuerySet, others: VersionQuerySet, version: Version
) -> tuple[BlobQuerySet, int]:
    """Leave out the files of one version of which it is plain whether others have them.

    To ask a large namespace is dear, and mostly needless: the newest neighbour has a file too, or
    nobody has it anywhere. Give the rest, and the bytes of those that nobody has.
    """
    near = others.filter(repository_id=version.repository_id).order_by("-number").first()
    if near is not None:
        theirs = Artifact.objects.filter(revision_id=near.revision_id)
        blobs = blobs.exclude(pk__in=theirs.values("blob_id"))
    anywhere = Version.objects.exclude(pk=version.pk)
    # Values and no conditions: so they are looked up for each file and end at the first find.
    rows = blobs.annotate(
        elsewhere=Coalesce(
            *(
                Subquery(found.values("pk")[:1])
                for found in (_with_file(anywhere), _with_export(anywhere))
            )
        )
    )
    found = list(rows.values_list("pk", "size_bytes", "elsewhere"))
    alone = sum(size for _, size, elsewhere in found if elsewhere is None)
    shared = [blob for blob, _, elsewhere in found if elsewhere is not None]
    return Blob.objects.filter(pk__in=shared), alone


def _counted(namespace: Namespace) -> VersionQuerySet:
    return Version.objects.live().filter(
        repository__namespace=namespace, repository__deleted_at=None
    )


def _held_by(versions: VersionQuerySet) -> BlobQuerySet:
    files = Artifact.objects.filter(revision__versions__in=versions)
    exported = Derivative.objects.exported().filter(version__in=versions)
    held = files.order_by().values("blob_id").union(exported.order_by().values("blob_id"))
    return Blob.objects.filter(pk__in=held)


def _size_of(blobs: BlobQuerySet) -> int:
    return int(blobs.aggregate(total=Sum("size_bytes"))["total"] or 0)


def _require_fit(row: Namespace, size_bytes: int, versions: int) -> None:
    limit = limit_of(row, BYTES)
    if limit is not None and size_bytes and row.used_bytes + size_bytes > limit:
        raise NamespaceFull(
            "{namespace} holds {used} of the {limit} that it may hold, and this needs {asked} "
            "more. Delete versions and exported files that nobody needs, or ask an administrator "
            "for a larger quota.",
            code="bytes_quota_exceeded",
            namespace=row.slug,
            used=say_bytes(row.used_bytes),
            limit=say_bytes(limit),
            asked=say_bytes(size_bytes),
        )
    limit = limit_of(row, VERSIONS)
    if limit is not None and versions and row.used_versions + versions > limit:
        raise NamespaceFull(
            "{namespace} has {used} of the {limit} versions that it may have, and this needs "
            "{asked} more. Delete versions that nobody needs, or ask an administrator for a "
            "larger quota.",
            code="versions_quota_exceeded",
            namespace=row.slug,
            used=row.used_versions,
            limit=limit,
            asked=versions,
        )


def say_bytes(count: int) -> str:
    """Say a size as people read it, in decimal units; the same in every language."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):  # noqa: B007 - the last one is kept
        if size < 999.95:
            break
        size /= 1000
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def recount_usage() -> int:
    """Count every namespace anew; give how many counters were wrong.

    They stay right by themselves; this mends what another release has left uncounted while both
    ran.
    """
    wrong = 0
    for key in Namespace.objects.order_by("pk").values_list("pk", flat=True):
        with transaction.atomic():
            row = _lock_all({key})[key]
            present = _counted(row)
            found = _size_of(_held_by(present)), present.count()
            if found == (row.used_bytes, row.used_versions):
                continue
            logger.warning(
                "%s was counted as %d bytes, %d versions; it has %d and %d",
                row.slug,
                row.used_bytes,
                row.used_versions,
                *found,
            )
            row.used_bytes, row.used_versions = found
            row.save(update_fields=["used_bytes", "used_versions"])
            wrong += 1
    return wrong
