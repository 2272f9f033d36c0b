"""What was deleted and can still be brought back; `registry.services.collection` ends that."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q, Sum
from django.utils import timezone

from registry.errors import Conflict, FieldError, NotFound
from registry.models import Actor, AuditAction, Kind, Namespace, Redirect, Repository, Version
from registry.pages import check_limit, decode_cursor, decode_moment, encode_cursor
from registry.permissions import require, require_scope
from registry.services.audit import record_event
from registry.services.catalog import check_name, lock_repository, refresh_search
from registry.services.namespaces import hold_namespaces
from registry.services.quotas import take_room
from registry.services.versions import find_latest

_ORDER = "deleted"


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """A repository, or one version of a repository that is still there."""

    id: int
    repository: Repository
    number: int | None
    size_bytes: int
    deleted_at: datetime

    @property
    def restorable_until(self) -> datetime:
        return self.deleted_at + timedelta(days=settings.UNDO_DAYS)


def list_deleted(
    actor: Actor, namespace: Namespace, *, limit: int | None = None, cursor: str = ""
) -> tuple[list[Deleted], str | None]:
    """List what was deleted in a namespace, the newest first, and the cursor of the next page.

    Raises:
        Denied: the actor does not maintain the namespace.

    """
    require(actor, "maintain", namespace)
    wanted = check_limit(limit)
    repositories = Repository.objects.deleted_for(actor).filter(namespace=namespace)
    versions = Version.objects.deleted_for(actor).filter(repository__namespace=namespace)
    if cursor:
        moment, number, pk = decode_cursor(cursor, _ORDER, str, int, int)
        at = decode_moment(moment)
        # A repository stands before versions that were deleted at the same moment.
        same = Q(deleted_at=at)
        rest = same & Q(pk__lt=pk)
        before = Q(deleted_at__lt=at)
        repositories = repositories.filter(before if number else before | rest)
        versions = versions.filter(before | (rest if number else same))
    repositories = repositories.select_related("namespace").order_by("-deleted_at", "-pk")
    versions = versions.select_related("repository__namespace").order_by("-deleted_at", "-pk")
    found = [
        *map(_repository_row, repositories[: wanted + 1]),
        *map(_version_row, versions[: wanted + 1]),
    ]
    found.sort(key=lambda row: (row.deleted_at, row.number is None, row.id), reverse=True)
    kept = found[:wanted]
    if len(found) <= wanted:
        return kept, None
    last = kept[-1]
    which = 0 if last.number is None else 1
    return kept, encode_cursor(_ORDER, last.deleted_at.isoformat(), which, last.id)


def _repository_row(repository: Repository) -> Deleted:
    assert repository.deleted_at is not None
    size = repository.versions.aggregate(total=Sum("size_bytes"))["total"] or 0
    return Deleted(
        id=repository.pk,
        repository=repository,
        number=None,
        size_bytes=size,
        deleted_at=repository.deleted_at,
    )


def _version_row(version: Version) -> Deleted:
    assert version.deleted_at is not None
    return Deleted(
        id=version.pk,
        repository=version.repository,
        number=version.number,
        size_bytes=version.size_bytes,
        deleted_at=version.deleted_at,
    )


def find_deleted_repository(
    actor: Actor, kind: str, namespace: str, name: str, *, deleted_id: int | None = None
) -> Repository:
    """Find a deleted repository by the name it had; of several the one deleted last, or this one.

    Raises:
        Unauthenticated: nobody is signed in.
        NotFound: none that the actor knows of had that name.

    """
    require_scope(actor, "admin")
    rows = Repository.objects.deleted_for(actor).select_related("namespace").filter(kind=kind)
    if deleted_id is not None:
        rows = rows.filter(pk=deleted_id)
    found = rows.named(namespace, name).order_by("-deleted_at", "-pk").first()
    if found is None:
        raise NotFound(
            "There is no deleted {kind} {name} that you may bring back.",
            code=f"{Kind(kind).value}_not_found",
            kind=Kind(kind).value,
            name=f"{namespace}/{name}",
        )
    return found


def restore_repository(
    *, actor: Actor, repository: Repository, name: object | None = None
) -> Repository:
    """Bring a deleted repository back with its versions, under its own name or another.

    Raises:
        Denied: the actor does not own it.
        NotFound: its time was over just now, or its namespace was deleted.
        Conflict: the name was taken meanwhile.
        NamespaceFull: the namespace has no room for it now.

    """
    require(actor, "own", repository)
    wanted = repository.name if name is None else check_name(name)
    try:
        with transaction.atomic():
            row = (
                Repository.objects.select_for_update(of=("self",))
                .select_related("namespace")
                .filter(pk=repository.pk)
                .first()
            )
            if row is None:
                raise NotFound(
                    "{name} was deleted too long ago; it is gone.",
                    code="repository_deleted",
                    name=repository.full_name,
                )
            if row.deleted_at is None:
                return row
            hold_namespaces(row.namespace)
            row.deleted_at = None
            row.name = wanted
            row.save(update_fields=["deleted_at", "name"])
            Redirect.objects.filter(
                kind=row.kind, namespace=row.namespace, name__iexact=wanted
            ).delete()
            refresh_search(row)
            take_room(row.namespace, Version.objects.live().filter(repository=row))
            record_event(
                actor,
                AuditAction.of_kind(row.kind, "restore"),
                repository=row,
                name_before=repository.full_name,
            )
    except IntegrityError as error:
        raise Conflict(
            "{name} was taken meanwhile; bring this one back under another name.",
            code="name_taken",
            errors=[FieldError("name", "name_taken", "Choose a name that is free.")],
            name=f"{repository.namespace.slug}/{wanted}",
        ) from error
    return row


def find_deleted_version(actor: Actor, repository: Repository, number: str) -> Version:
    """Find a deleted version by its number.

    Raises:
        Denied: the actor does not maintain the repository.
        NotFound: it has no such version, or it is not deleted.

    """
    require(actor, "maintain", repository)
    known = Version.objects.filter(repository=repository, deleted_at__isnull=False)
    found = known.filter(number=int(number[:9])).first() if number.isdecimal() else None
    if found is None:
        raise NotFound(
            "{repository} has no deleted version {version!r}.",
            code="version_not_found",
            repository=repository.full_name,
            version=number,
        )
    found.repository = repository
    return found


def restore_version(*, actor: Actor, version: Version) -> Version:
    """Bring a deleted version back under its number.

    Raises:
        NotFound: its time was over just now, or the repository was deleted.
        NamespaceFull: the namespace has no room for it now.

    """
    require(actor, "maintain", version.repository)
    with transaction.atomic():
        repository = lock_repository(version.repository)
        row = Version.objects.filter(pk=version.pk).select_related("revision", "job").first()
        if row is None:
            raise NotFound(
                "{name} was deleted too long ago; it is gone.",
                code="version_not_found",
                name=version.ref,
            )
        row.repository = repository
        if row.deleted_at is None:
            return row
        row.deleted_at = None
        row.updated_at = timezone.now()
        row.save(update_fields=["deleted_at", "updated_at"])
        find_latest(repository, back=row)
        take_room(repository.namespace, Version.objects.filter(pk=row.pk))
        record_event(actor, AuditAction.VERSION_RESTORE, repository=repository, target=row.ref)
    return row
