"""Tokens that programs carry: made, shown once, revoked."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from registry.authenticate import TOKEN_PREFIX, digest_of, is_token_shaped, make_token
from registry.errors import Invalid, NotFound
from registry.models import Actor, AuditAction, Namespace, Repository, Token, User
from registry.permissions import require_scope
from registry.services.audit import record_event
from registry.services.texts import check_text, invalid_field

SCOPES = ("read", "write", "jobs", "admin")
# What the tokens of a page are called, and how long they last.
LENT = "playground"
LENT_FOR = timedelta(minutes=15)


@transaction.atomic
def create_token(
    *,
    actor: Actor,
    name: object,
    scopes: Iterable[str] = ("read", "write", "jobs"),
    expires_at: datetime | None = None,
    namespace: Namespace | None = None,
    repository: Repository | None = None,
) -> tuple[Token, str]:
    """Make a token of `actor` and return it with its secret, which is never readable again.

    A token can make only tokens that reach no further than itself and live no longer; without an
    end, what it makes ends with it.
    """
    wanted = _check_scopes(scopes)
    for scope in wanted:
        require_scope(actor, scope)
    require_scope(actor, "admin" if actor.token_id else "read")
    if actor.is_limited:
        raise Invalid("A token that is limited to one place cannot make tokens.")
    if expires_at is not None and expires_at <= timezone.now():
        raise invalid_field("expires_at", "in_the_past", "expires_at lies in the past.")
    expires_at = _within_life(actor, expires_at)
    title = check_text("name", name, max_length=100)
    if not title:
        raise invalid_field("name", "required", "Give the token a name that says what it is for.")
    user = User.objects.get(pk=actor.person_id)
    secret = make_token()
    token = Token.objects.create(
        user=user,
        name=title,
        prefix=secret[: len(TOKEN_PREFIX) + 6],
        digest=digest_of(secret),
        scopes=wanted,
        expires_at=expires_at,
        namespace=namespace,
        repository=repository,
    )
    record_event(actor, AuditAction.TOKEN_CREATE, target=token.name, token=token.pk, scopes=wanted)
    return token, secret


@transaction.atomic
def lend_key(*, actor: Actor, repository: Repository) -> tuple[Token, str]:
    """Make a token with which a page calls versions of one model, for a quarter of an hour.

    It reads that model and nothing else; what was lent before and has run out is removed.
    """
    lent = Token.objects.filter(user_id=actor.person_id, name=LENT, scopes=["read"])
    lent.filter(expires_at__lt=timezone.now()).delete()
    return create_token(
        actor=actor,
        name=LENT,
        scopes=["read"],
        expires_at=timezone.now() + LENT_FOR,
        repository=repository,
    )


def _within_life(actor: Actor, expires_at: datetime | None) -> datetime | None:
    own = Token.objects.get(pk=actor.token_id).expires_at if actor.token_id else None
    if own is not None and expires_at is not None and expires_at > own:
        raise invalid_field(
            "expires_at",
            "outlives_its_maker",
            "The token that asks expires at {own}; what it makes cannot live longer.",
            own=own.isoformat(),
        )
    return expires_at or own


def _check_scopes(scopes: Iterable[str]) -> list[str]:
    wanted = sorted(set(scopes), key=lambda scope: SCOPES.index(scope) if scope in SCOPES else -1)
    if unknown := [scope for scope in wanted if scope not in SCOPES]:
        raise invalid_field(
            "scopes",
            "bad_scope",
            "Unknown scope {scope!r}; there are {scopes}.",
            scope=unknown[0],
            scopes=", ".join(SCOPES),
        )
    if not wanted:
        raise invalid_field(
            "scopes", "required", "Choose from the scopes {scopes}.", scopes=", ".join(SCOPES)
        )
    return wanted


@transaction.atomic
def revoke_token(*, actor: Actor, token_id: int) -> Token:
    """Revoke one of the actor's own tokens (an administrator: anybody's).

    Raises:
        NotFound: there is no such token within the actor's reach.

    """
    require_scope(actor, "admin" if actor.token_id and actor.token_id != token_id else "read")
    tokens = Token.objects.filter(revoked_at=None)
    if not actor.is_admin:
        tokens = tokens.filter(user_id=actor.person_id)
    token = within_reach(actor, tokens).filter(pk=token_id).first()
    if token is None:
        raise NotFound(
            "You have no live token with the id {token_id}.",
            code="token_not_found",
            token_id=token_id,
        )
    token.revoked_at = timezone.now()
    token.save(update_fields=["revoked_at"])
    record_event(actor, AuditAction.TOKEN_REVOKE, target=token.name, token=token.pk)
    return token


def within_reach(actor: Actor, tokens: QuerySet[Token]) -> QuerySet[Token]:
    """Leave a token that is limited to one place nothing but itself."""
    if actor.is_limited and actor.token_id is not None:
        return tokens.filter(pk=actor.token_id)
    return tokens


@transaction.atomic
def install_token(*, user: User, secret: str, name: str) -> Token:
    """Store a secret that the installation chose (MODELYARD_ADMIN_TOKEN) as a token of `user`.

    Raises:
        Invalid: it is too short to be a secret, or has the shape of ours with a typing error.

    """
    if not 8 <= len(secret) <= 200 or not secret.isascii() or not secret.isprintable():
        raise Invalid("The token must be 8 to 200 printable ASCII characters.", code="bad_token")
    if secret.startswith(TOKEN_PREFIX) and not is_token_shaped(secret):
        raise Invalid(
            "A token that starts with {prefix} must be one of ours.",
            code="bad_token",
            prefix=TOKEN_PREFIX,
        )
    token, _ = Token.objects.update_or_create(
        digest=digest_of(secret),
        defaults={
            "user": user,
            "name": name,
            "prefix": secret[: 8 if secret.startswith(TOKEN_PREFIX) else 2],
            "scopes": list(SCOPES),
            "revoked_at": None,
        },
    )
    return token
