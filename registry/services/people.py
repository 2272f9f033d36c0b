"""People's accounts: made, switched off and on, given passwords, by whoever administers.

A person's namespace is made with the account, in `registry.services.namespaces`.
"""

import re
from collections.abc import Iterable

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction

from registry.errors import Conflict, Denied, FieldError, Invalid, NotFound
from registry.models import Actor, AuditAction, Namespace, User
from registry.permissions import require_scope
from registry.services.audit import record_event
from registry.services.namespaces import RESERVED, create_user
from registry.services.sign_ins import end_other_sessions
from registry.services.texts import check_text, invalid_field


def require_administrator(actor: Actor) -> None:
    """Pass when `actor` may look after everybody's account.

    Raises:
        Unauthenticated, Denied: they may not, or their token does not reach that far.

    """
    require_scope(actor, "admin")
    if not actor.is_admin or actor.is_limited:
        raise Denied("Only an administrator of the installation may look after accounts.")


def find_person(actor: Actor, username: str) -> User:
    """Find anybody's account by name, without regard to case, for an administrator."""
    require_administrator(actor)
    found = User.objects.filter(username__iexact=username).first() if "\0" not in username else None
    if found is None:
        raise NotFound(
            "There is no user {username!r}.", code="user_not_found", username=username[:100]
        )
    return found


@transaction.atomic
def add_person(
    *,
    actor: Actor,
    username: object,
    password: object = None,
    email: object = "",
    is_admin: bool = False,
) -> User:
    """Make an account and its namespace; without a password it waits for one, or for a provider."""
    require_administrator(actor)
    name = check_text("username", username, max_length=64)
    address = _check_email(email)
    user = create_user(username=name, password=None, email=address, is_admin=is_admin)
    if address:
        # What an administrator wrote is as good as an answered letter.
        EmailAddress.objects.create(user=user, email=address, verified=True, primary=True)
    if password is not None:
        user.set_password(_check_password(password, user))
        user.save(update_fields=["password"])
    record_event(actor, AuditAction.USER_CREATE, target=user.username, is_admin=is_admin)
    return user


@transaction.atomic
def sign_up(*, actor: Actor, username: object, password: object) -> User:
    """Make an account for the stranger who asks for one; the door says whether strangers may."""
    name = check_text("username", username, max_length=64)
    user = create_user(username=name, password=None)
    user.set_password(_check_password(password, user))
    user.save(update_fields=["password"])
    record_event(actor, AuditAction.USER_SIGN_UP, target=user.username)
    return user


@transaction.atomic
def add_person_of_provider(*, actor: Actor, wanted: Iterable[str], email: str) -> User:
    """Make the account of somebody whom an identity provider vouches for, under a free name."""
    user = create_user(username=free_slug(wanted), password=None, email=email)
    record_event(actor, AuditAction.USER_SIGN_UP, target=user.username)
    return user


def free_slug(wanted: Iterable[str]) -> str:
    """Choose a name that nobody has, as near to the first of `wanted` as may be."""
    base = next((slug for slug in map(_slug_of, wanted) if slug), "person")
    for number in range(1, 10_000):
        tail = "" if number == 1 else f"-{number}"
        slug = f"{base[: 64 - len(tail)].rstrip('-_')}{tail}"
        if slug.lower() not in RESERVED and not _is_taken(slug):
            return slug
    raise Conflict("There is no free name near {name}; ask an administrator.", name=base)


def _slug_of(text: str) -> str:
    local = text.partition("@")[0]
    return re.sub(r"[^A-Za-z0-9]+", "-", local).strip("-")[:64].rstrip("-")


def _is_taken(slug: str) -> bool:
    return (
        User.objects.filter(username__iexact=slug).exists()
        or Namespace.objects.filter(slug__iexact=slug).exists()
    )


@transaction.atomic
def change_person(
    *,
    actor: Actor,
    username: str,
    is_active: bool | None = None,
    is_admin: bool | None = None,
) -> User:
    """Switch an account off or on, make somebody an administrator or an ordinary person.

    An account that is switched off is refused at every door at once: its sessions end, its tokens
    no longer count.
    """
    user = _lock(actor, username)
    loses_it = is_active is False or is_admin is False
    if loses_it and user.pk == actor.person_id:
        raise Conflict("Another administrator has to do this to your account.", code="own_account")
    if loses_it and user.is_superuser:
        _keep_an_administrator(user)
    if is_active is not None and user.is_active != is_active:
        user.is_active = is_active
        if not is_active:
            end_all_sessions(user)
        action = AuditAction.USER_ACTIVATE if is_active else AuditAction.USER_DEACTIVATE
        record_event(actor, action, target=user.username)
    if is_admin is not None and user.is_superuser != is_admin:
        user.is_superuser = user.is_staff = is_admin
        record_event(actor, AuditAction.USER_ADMINISTRATOR, target=user.username, is_admin=is_admin)
    user.save(update_fields=["is_active", "is_superuser", "is_staff"])
    return user


@transaction.atomic
def set_password(*, actor: Actor, username: str, password: object) -> User:
    """Give a person a new password; whoever was signed in as them no longer is."""
    user = _lock(actor, username)
    user.set_password(_check_password(password, user))
    user.save(update_fields=["password"])
    end_all_sessions(user)
    record_event(actor, AuditAction.USER_PASSWORD, target=user.username)
    return user


@transaction.atomic
def change_password(
    *, actor: Actor, current: object, password: object, session_key: str | None
) -> User:
    """Give oneself a new password; every session but the one that asks ends.

    Whoever has a password says it; the door has made sure of who has none.
    """
    user = User.objects.select_for_update().get(pk=actor.person_id)
    if user.has_usable_password() and not user.check_password(str(current or "")):
        raise invalid_field("current", "wrong_password", "This is not your present password.")
    user.set_password(_check_password(password, user))
    user.save(update_fields=["password"])
    end_other_sessions(actor=actor, session_key=session_key)
    record_event(actor, AuditAction.PASSWORD_CHANGE, target=user.username)
    return user


@transaction.atomic
def reset_factors(*, actor: Actor, username: str) -> User:
    """Take a person's second factors and passkeys away: their telephone is lost."""
    user = _lock(actor, username)
    Authenticator.objects.filter(user=user).delete()
    end_all_sessions(user)
    record_event(actor, AuditAction.USER_FACTORS, target=user.username)
    return user


def end_all_sessions(user: User) -> None:
    """End every session that is known of `user`, in all browsers."""
    for session in UserSession.objects.filter(user=user):
        session.end()


def _lock(actor: Actor, username: str) -> User:
    found = find_person(actor, username)
    return User.objects.select_for_update().get(pk=found.pk)


def _keep_an_administrator(user: User) -> None:
    administrators = User.objects.select_for_update().filter(is_superuser=True, is_active=True)
    if user.is_superuser and {one.pk for one in administrators} <= {user.pk}:
        raise Conflict(
            "{username} is the last administrator; make somebody else one first.",
            code="last_administrator",
            username=user.username,
        )


def _check_email(email: object) -> str:
    address = check_text("email", email, max_length=254)
    try:
        if address:
            validate_email(address)
    except ValidationError as error:
        raise invalid_field("email", "bad_email", "This is no e-mail address.") from error
    return address


def _check_password(password: object, user: User) -> str:
    if not isinstance(password, str) or not password or len(password) > 1000:
        raise invalid_field("password", "required", "Give a password of at most 1000 characters.")
    try:
        validate_password(password, user)
    except ValidationError as error:
        problems = [_password_problem(one.code or "") for one in error.error_list]
        raise Invalid("This password is too easy to guess.", errors=problems) from error
    return password


def _password_problem(code: str) -> FieldError:
    if code == "password_too_short":
        return FieldError("password", code, "Use at least 8 characters.")
    if code == "password_too_common":
        return FieldError("password", code, "This password is among those that are tried first.")
    return FieldError("password", "password_too_easy", "This password is too easy to guess.")
