"""Namespaces and the people in them."""

import re

from django.db import IntegrityError, transaction
from django.utils import timezone

from registry.errors import AlreadyExists, Conflict, Denied, Invalid, NotFound, Text
from registry.models import (
    ROLE_RANK,
    Actor,
    AuditAction,
    JobState,
    Membership,
    Namespace,
    Role,
    Token,
    User,
)
from registry.models.access import SLUG_PATTERN
from registry.permissions import require, require_scope
from registry.services.audit import record_event
from registry.services.texts import check_text, invalid_field

# The first segments of paths that the server itself answers under.
RESERVED = frozenset(
    """
    .well-known accounts admin-panel api assets auth collections compare datasets docs endpoints
    events favicon.ico healthz hub jobs login logout members metrics mlflow models namespaces new
    notifications organizations play playground predict readyz requests robots.txt search serving
    sessions settings sign-in sign-out similar spaces static status tokens uploads users v1 v2
    webhooks whoami zh zh-hans
    """.split()  # noqa: SIM905 - reads better as words
)


def check_slug(slug: object, *, field: str = "namespace") -> str:
    """Return a namespace name that may be taken, or refuse it."""
    text = check_text(field, slug, max_length=64)
    if not re.fullmatch(SLUG_PATTERN, text):
        raise invalid_field(
            field,
            "bad_name",
            "The namespace {text!r} is not valid: use 1 to 64 letters, digits, '-' and '_', "
            "starting and ending with a letter or digit.",
            text=text,
        )
    if text.lower() in RESERVED:
        raise invalid_field(
            field,
            "reserved_name",
            "The namespace {text!r} is reserved; choose another.",
            text=text,
        )
    return text


def find_namespace(actor: Actor, slug: str) -> Namespace:
    """Find a namespace by name, without regard to case.

    Raises:
        NotFound: there is none, or nothing in it that the actor may see.

    """
    visible = Namespace.objects.visible_to(actor)
    found = visible.filter(slug__iexact=slug).first() if "\0" not in slug else None
    if found is None:
        create = Text(' Create it with POST /api/v1/namespaces {{"slug": …}}.')
        raise NotFound(
            "There is no namespace {slug!r}.{way_out}",
            code="namespace_not_found",
            slug=slug,
            way_out="" if actor.is_anonymous else create,
        )
    return found


def hold_namespaces(*namespaces: Namespace) -> None:
    """Keep namespaces from being deleted until the transaction ends: something goes into them.

    Raises:
        NotFound: one of them was deleted.

    """
    wanted = {namespace.pk: namespace for namespace in namespaces}
    rows = Namespace.objects.live().select_for_update(no_key=True).filter(pk__in=wanted)
    held = {row.pk for row in rows.order_by("pk")}
    for key, namespace in wanted.items():
        if key not in held:
            raise NotFound(
                "The namespace {namespace} was deleted.",
                code="namespace_not_found",
                namespace=namespace,
            )


def find_user(username: str) -> User:
    """Find a person by name; people who signed in may know each other's.

    Raises:
        NotFound: there is none.

    """
    found = User.objects.filter(username__iexact=username).first() if "\0" not in username else None
    if found is None:
        raise NotFound("There is no user {user!r}.", code="user_not_found", user=username)
    return found


@transaction.atomic
def create_namespace(*, actor: Actor, slug: object, display_name: object = "") -> Namespace:
    """Create an organisation that `actor` owns."""
    require_scope(actor, "write")
    if actor.is_limited:
        raise Denied("A token that is limited to one place cannot make another.")
    name = check_slug(slug)
    title = check_text("display_name", display_name, max_length=200)
    try:
        with transaction.atomic():
            namespace = Namespace.objects.create(slug=name, display_name=title)
    except IntegrityError as error:
        raise AlreadyExists(
            "The namespace {name!r} already exists; choose another.", name=name
        ) from error
    Membership.objects.create(namespace=namespace, user_id=actor.person_id, role=Role.OWNER)
    record_event(actor, AuditAction.NAMESPACE_CREATE, namespace=namespace, target=namespace.slug)
    return namespace


@transaction.atomic
def set_member(*, actor: Actor, namespace: Namespace, username: str, role: str) -> Membership:
    """Give a person a role in a namespace, or change the one they have."""
    require(actor, "own", namespace)
    if role not in ROLE_RANK:
        raise invalid_field(
            "role", "bad_role", "The role is one of {choices}.", choices=", ".join(Role.values)
        )
    user = find_user(username)
    _keep_an_owner(namespace, user, role)
    membership, _ = Membership.objects.update_or_create(
        namespace=namespace, user=user, defaults={"role": role}
    )
    record_event(
        actor,
        AuditAction.MEMBER_SET,
        namespace=namespace,
        target=f"{namespace}/{user.username}",
        role=role,
    )
    return membership


@transaction.atomic
def remove_member(*, actor: Actor, namespace: Namespace, username: str) -> None:
    """Take a person out of a namespace, or leave it; its last owner stays."""
    if actor.is_anonymous or username.lower() != actor.username.lower():
        require(actor, "own", namespace)
    else:
        require_scope(actor, "admin")
    membership = (
        Membership.objects.filter(namespace=namespace, user__username__iexact=username)
        .select_related("user")
        .first()
        if "\0" not in username
        else None
    )
    if membership is None:
        raise NotFound(
            "{user!r} is not a member of {namespace}.",
            code="member_not_found",
            user=username,
            namespace=namespace,
        )
    _keep_an_owner(namespace, membership.user, role=None)
    membership.delete()
    record_event(
        actor, AuditAction.MEMBER_REMOVE, namespace=namespace, target=f"{namespace}/{username}"
    )


def _keep_an_owner(namespace: Namespace, user: User, role: str | None) -> None:
    hold_namespaces(namespace)
    own = namespace.kind == Namespace.Kind.PERSON
    if own and role != Role.OWNER and user.username.lower() == namespace.slug.lower():
        raise Invalid(
            "{namespace} is the namespace of {user}, who stays its owner.",
            code="own_namespace",
            user=user.username,
            namespace=namespace,
        )
    others = namespace.memberships.filter(role=Role.OWNER).exclude(user=user)
    was_owner = namespace.memberships.filter(role=Role.OWNER, user=user).exists()
    if was_owner and role != Role.OWNER and not others.exists():
        raise Invalid(
            "{user} is the last owner of {namespace}; make somebody else owner first.",
            code="last_owner",
            user=user.username,
            namespace=namespace,
        )


@transaction.atomic
def describe_namespace(*, actor: Actor, namespace: Namespace, display_name: object) -> Namespace:
    """Change how an organisation or a person is called in full; the slug stays."""
    require(actor, "own", namespace)
    row = Namespace.objects.select_for_update().get(pk=namespace.pk)
    row.display_name = check_text("display_name", display_name, max_length=200)
    row.save(update_fields=["display_name"])
    record_event(
        actor,
        AuditAction.NAMESPACE_DESCRIBE,
        namespace=row,
        target=row.slug,
        display_name=row.display_name,
    )
    return row


@transaction.atomic
def delete_namespace(*, actor: Actor, namespace: Namespace) -> None:
    """Delete an organisation in which nothing is left; nobody else can ever take its name.

    Raises:
        Invalid: it is a person's.
        Conflict: it holds models or datasets, or a job is running in it.

    """
    require(actor, "own", namespace)
    hold_namespaces(namespace)
    row = Namespace.objects.select_for_update().get(pk=namespace.pk)
    if row.kind == Namespace.Kind.PERSON:
        raise Invalid("{namespace} is a person's; it goes with the account.", namespace=row)
    if row.repositories.filter(deleted_at=None).exists():
        raise Conflict(
            "{namespace} holds models or datasets; move or delete them first.",
            code="namespace_not_empty",
            namespace=row,
        )
    if row.jobs.filter(state__in=[JobState.QUEUED, JobState.RUNNING]).exists():
        raise Conflict(
            "A job is running in {namespace}; cancel it or wait for it to end.",
            code="namespace_in_use",
            namespace=row,
        )
    row.deleted_at = timezone.now()
    row.save(update_fields=["deleted_at"])
    row.memberships.all().delete()
    Token.objects.filter(namespace=row, revoked_at=None).update(revoked_at=row.deleted_at)
    record_event(actor, AuditAction.NAMESPACE_DELETE, namespace=row, target=row.slug)


@transaction.atomic
def create_user(
    *, username: str, password: str | None, email: str = "", is_admin: bool = False
) -> User:
    """Create a person and the namespace of their name; used at installation and by administrators.

    Raises:
        AlreadyExists: the name is taken by a person or a namespace.

    """
    slug = check_slug(username, field="username")
    if (
        User.objects.filter(username__iexact=slug).exists()
        or Namespace.objects.filter(slug__iexact=slug).exists()
    ):
        raise _taken(slug)
    user = User(username=slug, email=email, is_superuser=is_admin, is_staff=is_admin)
    if password is None:
        user.set_unusable_password()
    else:
        user.set_password(password)
    try:
        with transaction.atomic():
            user.save()
            namespace = Namespace.objects.create(slug=slug, kind=Namespace.Kind.PERSON)
    except IntegrityError as error:
        # Somebody took it at the same moment.
        raise _taken(slug) from error
    Membership.objects.create(namespace=namespace, user=user, role=Role.OWNER)
    return user


def _taken(slug: str) -> AlreadyExists:
    return AlreadyExists("The name {slug!r} is taken; choose another.", slug=slug)
