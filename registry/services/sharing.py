"""Who has access to a repository and why; grants on top of what its namespace gives; transfers."""

from dataclasses import dataclass

from django.db import IntegrityError, transaction
from django.utils import timezone

from registry.errors import AlreadyExists, Denied, Invalid, NotFound
from registry.models import (
    ROLE_RANK,
    Actor,
    AuditAction,
    Grant,
    Membership,
    Namespace,
    Redirect,
    Repository,
    Role,
)
from registry.permissions import require, require_scope, role_of
from registry.services.audit import record_event
from registry.services.catalog import check_etag, lock_repository, refresh_search
from registry.services.namespaces import find_user, hold_namespaces
from registry.services.placement import follow_model
from registry.services.quotas import move_room
from registry.services.texts import invalid_field
from registry.services.webhooks import take_along


@dataclass(frozen=True, kw_only=True)
class Access:
    """One person's role on a repository, and where it comes from."""

    username: str
    role: str
    by_namespace: str | None
    by_grant: str | None


def list_access(*, actor: Actor, repository: Repository) -> list[Access]:
    """List everybody with a role on a repository, the strongest first; for its maintainers."""
    require(actor, "maintain", repository)
    members = Membership.objects.filter(namespace=repository.namespace_id)
    by_namespace = dict(members.values_list("user__username", "role"))
    by_grant = dict(
        Grant.objects.filter(repository=repository).values_list("user__username", "role")
    )
    rows = []
    for username in by_namespace.keys() | by_grant.keys():
        ways = (by_namespace.get(username), by_grant.get(username))
        role = max((one for one in ways if one), key=lambda one: ROLE_RANK[one])
        rows.append(Access(username=username, role=role, by_namespace=ways[0], by_grant=ways[1]))
    return sorted(rows, key=lambda row: (-ROLE_RANK[row.role], row.username.lower()))


def set_grant(*, actor: Actor, repository: Repository, username: str, role: str) -> Grant:
    """Give a person a role on one repository, or change the one they were given.

    Nobody gives more than they have, or changes what somebody above them was given.
    """
    require(actor, "share", repository)
    if role not in ROLE_RANK:
        raise invalid_field(
            "role", "bad_role", "The role is one of {choices}.", choices=", ".join(Role.values)
        )
    user = find_user(username)
    with transaction.atomic():
        row = lock_repository(repository)
        present = Grant.objects.filter(repository=row, user=user).first()
        _require_rank(actor, row, role, present)
        grant, _ = Grant.objects.update_or_create(
            repository=row, user=user, defaults={"role": role}
        )
        record_event(
            actor, AuditAction.GRANT_SET, repository=row, username=user.username, role=role
        )
    return grant


def remove_grant(*, actor: Actor, repository: Repository, username: str) -> None:
    """Take a grant back; people may give up their own.

    Raises:
        NotFound: the person has none.

    """
    if username.lower() != actor.username.lower() or actor.is_anonymous:
        require(actor, "share", repository)
    else:
        require_scope(actor, "admin")
    with transaction.atomic():
        row = lock_repository(repository)
        grant = (
            Grant.objects.filter(repository=row, user__username__iexact=username)
            .select_related("user")
            .first()
            if "\0" not in username
            else None
        )
        if grant is None:
            raise NotFound(
                "{username!r} has no grant on {repository}.",
                code="grant_not_found",
                username=username,
                repository=row,
            )
        if grant.user_id != actor.user_id:
            _require_rank(actor, row, grant.role, grant)
        grant.delete()
        record_event(actor, AuditAction.GRANT_REMOVE, repository=row, username=grant.user.username)


def _require_rank(actor: Actor, repository: Repository, role: str, present: Grant | None) -> None:
    own = ROLE_RANK[role_of(actor, repository) or Role.READER]
    highest = max(ROLE_RANK[role], ROLE_RANK[present.role] if present else 0)
    if highest > own:
        raise Denied(
            "You cannot give or take a role above your own on {repository}.",
            code="above_own_role",
            repository=repository,
        )


# --- Moving to another namespace -----------------------------------------------------------------


def transfer_repository(
    *,
    actor: Actor,
    repository: Repository,
    namespace: Namespace,
    expected_etag: str | None = None,
) -> Repository:
    """Move a repository to another namespace; its old name goes on leading there.

    It takes owning the repository and the right to register in the other namespace. Grants stay;
    roles are those of the new namespace from then on. Its webhooks come along, switched off.

    Raises:
        AlreadyExists: its name, or that of its endpoint, is taken there.
        NamespaceFull: there is no room for it there.

    """
    require(actor, "own", repository)
    require(actor, "write", namespace)
    with transaction.atomic():
        row = lock_repository(repository)
        check_etag(expected_etag, row.etag, row.full_name)
        source, before = row.namespace, row.full_name
        if source.pk == namespace.pk:
            raise Invalid("{repository} is in that namespace already.", repository=row)
        hold_namespaces(source, namespace)
        row.namespace = namespace
        row.updated_at = timezone.now()
        try:
            with transaction.atomic():
                row.save(update_fields=["namespace", "updated_at"])
        except IntegrityError as error:
            raise AlreadyExists(
                "{name} already exists; rename one of them first.", name=row.full_name
            ) from error
        names = {"kind": row.kind, "name__iexact": row.name}
        Redirect.objects.filter(namespace=namespace, **names).delete()
        Redirect.objects.filter(namespace=source, **names).delete()
        Redirect.objects.create(kind=row.kind, namespace=source, name=row.name, repository=row)
        refresh_search(row)
        follow_model(row, name_before=row.name)
        move_room(source, row)
        take_along(actor, row)
        for side in (source, namespace):
            record_event(
                actor,
                AuditAction.of_kind(row.kind, "transfer"),
                namespace=side,
                repository=row,
                target=row.full_name if row.may_be_named_in(side) else before,
                before=before,
                after=row.full_name if row.may_be_named_in(side) else None,
            )
    return row
