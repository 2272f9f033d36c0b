"""What nobody can bring back any more goes: deleted rows after their time, then unused bytes.

Nothing here relies on timing. Bytes are removed inside the transaction that holds their lock (see
`registry.services.blobs`) and has just deleted their row, with every foreign key checked at once;
who records the same bytes waits, and then looks whether they are still there. The time for which
unused bytes are kept is for those who are still reading them.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import ProtectedError, Sum
from django.utils import timezone

from registry.models import (
    Actor,
    Alias,
    Artifact,
    AuditAction,
    Blob,
    Evaluation,
    Job,
    LineageEdge,
    Ref,
    Repository,
    Revision,
    Version,
    Visibility,
)
from registry.models.catalog import VersionQuerySet
from registry.services.audit import record_event
from registry.services.blobs import try_lock_bytes
from registry.services.savings import recount_savings
from registry.storage import default_storage

logger = logging.getLogger(__name__)

COLLECTOR = Actor(username="garbage collector", door="beat")
_ASKED_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """One thing that goes, or would: a repository, a version, a blob, or bytes without a row."""

    kind: str
    name: str
    size_bytes: int | None
    since: datetime


def collect_garbage(
    *,
    dry_run: bool = False,
    undo: timedelta | None = None,
    keep: timedelta | None = None,
    strays: bool = True,
) -> Iterator[Garbage]:
    """Remove what is past its time, and give what went; with `dry_run` only give it.

    `undo` is how long deleted repositories and versions can be brought back, `keep` how long bytes
    stay once nothing refers to them. `strays` also looks through the storage for bytes without a
    row, which a process that died has left.
    """
    now = timezone.now()
    undo = timedelta(days=settings.UNDO_DAYS) if undo is None else undo
    keep = timedelta(seconds=settings.COLLECT_AFTER_SECONDS) if keep is None else keep
    yield from _purge_deleted(now - undo, dry_run=dry_run)
    if not dry_run:
        _release_parts(now - undo)
        _condemn_unreferenced()
    yield from _sweep_condemned(now - keep, dry_run=dry_run)
    if strays:
        yield from _sweep_strays(now - keep, dry_run=dry_run)
        segments = default_storage().segments
        if segments is None or dry_run:
            return
        # What was coded anew gives its room back here.
        if segments.sweep(before=(now - keep).timestamp()):
            recount_savings()


# --- Rows ----------------------------------------------------------------------------------------


def _purge_deleted(before: datetime, *, dry_run: bool) -> Iterator[Garbage]:
    repositories = Repository.objects.filter(deleted_at__lte=before).select_related("namespace")
    for repository in repositories.order_by("deleted_at"):
        assert repository.deleted_at is not None
        size = repository.versions.aggregate(total=Sum("size_bytes"))["total"] or 0
        if dry_run or _tried(partial(_purge_repository, repository, before)):
            yield Garbage(
                kind=repository.kind,
                name=repository.full_name,
                size_bytes=size,
                since=repository.deleted_at,
            )
    versions = Version.objects.filter(deleted_at__lte=before, repository__deleted_at=None)
    for version in versions.select_related("repository__namespace").order_by("deleted_at"):
        assert version.deleted_at is not None
        if dry_run or _tried(partial(_purge_version, version, before)):
            yield Garbage(
                kind="version",
                name=version.ref,
                size_bytes=version.size_bytes,
                since=version.deleted_at,
            )


def _release_parts(before: datetime) -> None:
    """Let go what parts left for jobs that ended long ago without having been put together."""
    kept = Job.objects.exclude(made=None)
    kept.filter(parent__finished_at__lte=before).update(made=None)


def _purge_repository(repository: Repository, before: datetime) -> bool:
    row = Repository.objects.select_for_update(of=("self",)).get(pk=repository.pk)
    if row.deleted_at is None or row.deleted_at > before:
        return False
    _drop_versions(Version.objects.filter(repository=row))
    Ref.objects.filter(repository=row).delete()
    Revision.objects.filter(repository=row).update(parent=None)
    Revision.objects.filter(repository=row).delete()
    row.delete()
    record_event(
        COLLECTOR,
        AuditAction.of_kind(repository.kind, "purge"),
        namespace=repository.namespace,
        target=repository.full_name,
    )
    return True


def _purge_version(version: Version, before: datetime) -> bool:
    Repository.objects.select_for_update(of=("self",)).get(pk=version.repository_id)
    row = Version.objects.filter(pk=version.pk).first()
    if row is None or row.deleted_at is None or row.deleted_at > before:
        return False
    revision = row.revision
    _drop_versions(Version.objects.filter(pk=row.pk))
    if not revision.versions.exists():
        # The snapshot stays as a link between its neighbours; its files go.
        Ref.objects.filter(revision=revision).update(revision=_living_revision(revision))
        Artifact.objects.filter(revision=revision).delete()
        Revision.objects.filter(pk=revision.pk).update(message="")
    record_event(
        COLLECTOR, AuditAction.VERSION_PURGE, repository=version.repository, target=version.ref
    )
    return True


def _living_revision(revision: Revision) -> Revision:
    """Find what a branch is to show once this snapshot has no files any more."""
    latest = (
        Version.objects.filter(repository=revision.repository_id)
        .main_line()
        .usable()
        .order_by("-number")
        .select_related("revision")
        .first()
    )
    if latest is not None:
        return latest.revision
    return Revision.objects.filter(repository=revision.repository_id).earliest("pk")


def _drop_versions(versions: VersionQuerySet) -> None:
    """Delete versions and what hangs on them; what others remember of open ones stays as text."""
    _close_jobs(versions)
    Alias.objects.filter(version__in=versions).delete()
    LineageEdge.objects.filter(parent__in=versions).delete()
    measured = Evaluation.objects.filter(dataset_version__in=versions)
    for row in measured.select_related("dataset_version__repository__namespace"):
        assert row.dataset_version is not None
        if row.dataset_version.repository.visibility == Visibility.PUBLIC:
            row.details = {**row.details, "dataset": row.dataset_version.ref}
        row.dataset_version = None
        row.save(update_fields=["details", "dataset_version"])
    versions.delete()


def _close_jobs(versions: VersionQuerySet) -> None:
    """Let the jobs that read these versions stay closed to those who never saw them."""
    hidden = versions.exclude(repository__visibility=Visibility.PUBLIC)
    reads = Job.inputs.through.objects.filter(version__in=hidden)
    readers = Job.objects.filter(pk__in=reads.values("job"))
    readers.exclude(namespace__in=hidden.values("repository__namespace")).update(
        lost_hidden_input=True
    )


def _tried(purge: Callable[[], bool]) -> bool:
    """Purge one thing in its own transaction; one that cannot go must not keep the others."""
    try:
        with transaction.atomic():
            return purge()
    except ProtectedError as error:
        logger.error("Something deleted cannot be purged: %s", error)  # noqa: TRY400 - said in full
        return False


# --- Bytes ---------------------------------------------------------------------------------------


def _condemn_unreferenced() -> None:
    """Note since when nothing refers to a blob; take the note back where something does again."""
    condemned = Blob.objects.exclude(condemned_at=None)
    unused = Blob.objects.unreferenced()
    condemned.exclude(pk__in=unused.values("pk")).update(condemned_at=None)
    unused.filter(condemned_at=None).update(condemned_at=timezone.now())


def _sweep_condemned(before: datetime, *, dry_run: bool) -> Iterator[Garbage]:
    old = Blob.objects.unreferenced().filter(condemned_at__lte=before).order_by("condemned_at")
    for blob in old.iterator():
        assert blob.condemned_at is not None
        if dry_run or _sweep_blob(blob.sha256, before):
            yield Garbage(
                kind="blob",
                name=blob.sha256,
                size_bytes=blob.size_bytes,
                since=blob.condemned_at,
            )


def _sweep_blob(sha256: str, before: datetime) -> bool:
    """Remove one blob, row and bytes, unless anybody has a use for it by now."""
    storage = default_storage()
    try:
        with transaction.atomic():
            if not try_lock_bytes(sha256):
                return False
            # First the lock, then the question: one statement would answer as of before the lock.
            row = (
                Blob.objects.select_for_update(skip_locked=True, of=("self",))
                .filter(sha256=sha256)
                .first()
            )
            unused = Blob.objects.unreferenced().filter(sha256=sha256, condemned_at__lte=before)
            if row is None or not unused.exists() or _is_fresh(sha256, before):
                return False
            with connection.cursor() as cursor:
                # The database itself refuses here, before a byte is gone, should a table refer to
                # the blob that nobody thought of.
                cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            row.delete()
            storage.delete(sha256)
            return True
    except (ProtectedError, IntegrityError) as error:
        logger.error("The blob %s cannot be collected: %s", sha256, error)  # noqa: TRY400 - as above
        return False


def _is_fresh(sha256: str, before: datetime) -> bool:
    """Say whether the bytes were put here lately: somebody is about to record them."""
    put_at = default_storage().modified_at(sha256)
    return put_at is not None and put_at > before.timestamp()


def _sweep_strays(before: datetime, *, dry_run: bool) -> Iterator[Garbage]:
    """Remove bytes that have no row, left by a process that died before it wrote one."""
    storage = default_storage()
    for batch in _batches(storage.inventory()):
        known = set(
            Blob.objects.filter(sha256__in=[sha256 for sha256, _ in batch]).values_list(
                "sha256", flat=True
            )
        )
        for sha256, put_at in batch:
            if sha256 in known or put_at > before.timestamp():
                continue
            if dry_run or _sweep_stray(sha256, before):
                yield Garbage(
                    kind="stray",
                    name=sha256,
                    size_bytes=None,
                    since=datetime.fromtimestamp(put_at, UTC),
                )


def _sweep_stray(sha256: str, before: datetime) -> bool:
    with transaction.atomic():
        if not try_lock_bytes(sha256):
            return False
        if Blob.objects.filter(sha256=sha256).exists() or _is_fresh(sha256, before):
            return False
        default_storage().delete(sha256)
    return True


def _batches(found: Iterator[tuple[str, float]]) -> Iterable[list[tuple[str, float]]]:
    while batch := list(islice(found, _ASKED_AT_ONCE)):
        yield batch
