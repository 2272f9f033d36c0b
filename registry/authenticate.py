"""Who is asking: a token or a session becomes an actor; used by every door and by serving."""

import base64
import hashlib
import secrets
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.postgres.expressions import ArraySubquery
from django.contrib.sessions.backends.db import SessionStore
from django.db.models import OuterRef, QuerySet
from django.db.models.functions import JSONObject
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from registry.errors import Denied, Unauthenticated
from registry.models import ANONYMOUS, Actor, Grant, Membership, Token, User
from registry.models.access import TokenQuerySet
from registry.prepared import Parameter, Question

TOKEN_PREFIX = "my_"  # noqa: S105 - the public beginning of every token
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_CHARACTERS = 40
_CHECKSUM_CHARACTERS = 6


@dataclass(frozen=True, kw_only=True)
class Visit:
    """Where a request came in, for the audit log."""

    door: str
    request_id: str = ""
    ip: str | None = None


def client_address(peer: str | None, forwarded: str) -> str | None:
    """Give the address a request comes from.

    A proxy of MODELYARD_TRUSTED_PROXIES is believed about who spoke to it, and so on from the right
    of X-Forwarded-For up to the first address that is no such proxy; everybody else could write
    there what they like.
    """
    believed = peer
    for written in reversed(forwarded.split(",")):
        named = _address(written)
        if named is None or not _is_trusted(believed):
            break
        believed = str(named)
    return believed


def _is_trusted(address: str | None) -> bool:
    named = _address(address or "")
    return named is not None and any(named in network for network in settings.TRUSTED_PROXIES)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        named = ip_address(text)
    except ValueError:
        return None
    return getattr(named, "ipv4_mapped", None) or named


def _checksum(text: str) -> str:
    """Return six base-62 characters of CRC-32, so that a mistyped token never costs a query."""
    value = zlib.crc32(text.encode("ascii"))
    digits = []
    for _ in range(_CHECKSUM_CHARACTERS):
        value, rest = divmod(value, 62)
        digits.append(_ALPHABET[rest])
    return "".join(reversed(digits))


def make_token() -> str:
    """Return a new secret: `my_`, forty random base-62 characters (238 bits), a checksum."""
    body = TOKEN_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_CHARACTERS))
    return body + _checksum(body)


def is_token_shaped(secret: str) -> bool:
    """Say whether `secret` could be a token of ours, without asking the database."""
    length = len(TOKEN_PREFIX) + _RANDOM_CHARACTERS + _CHECKSUM_CHARACTERS
    if len(secret) != length or not secret.isascii() or not secret.startswith(TOKEN_PREFIX):
        return False
    body = secret[:-_CHECKSUM_CHARACTERS]
    return constant_time_compare(_checksum(body), secret[-_CHECKSUM_CHARACTERS:])


def digest_of(secret: str) -> str:
    """Return the SHA-256 under which a token is stored; its 238 random bits need no salt."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def actor_for_user(user: User, visit: Visit) -> Actor:
    """Make the actor of a signed-in person."""
    return Actor(
        user_id=user.pk,
        username=user.username,
        is_admin=user.is_superuser,
        roles=dict(Membership.objects.filter(user=user).values_list("namespace_id", "role")),
        grants=dict(Grant.objects.filter(user=user).values_list("repository_id", "role")),
        door=visit.door,
        request_id=visit.request_id,
        ip=visit.ip,
    )


@cache
def _token_question() -> Question:
    """Ask for a live token, its person, roles and grants: every program's request begins so."""
    tokens = Token.objects.live().filter(digest=Parameter("digest"))
    return Question(_with_rights(tokens))


def _with_rights(tokens: TokenQuerySet) -> QuerySet[Any, Any]:
    roles = Membership.objects.filter(user_id=OuterRef("user_id"))
    grants = Grant.objects.filter(user_id=OuterRef("user_id"))
    return tokens.values(
        "id",
        "digest",
        "scopes",
        "namespace_id",
        "repository_id",
        "last_used_at",
        "user_id",
        "user__username",
        "user__is_superuser",
        roles=ArraySubquery(roles.values(pair=JSONObject(place="namespace_id", role="role"))),
        grants=ArraySubquery(grants.values(pair=JSONObject(place="repository_id", role="role"))),
    )


def _rights(pairs: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    return {right["place"]: right["role"] for right in pairs}


def actor_from_token(secret: str, visit: Visit) -> Actor:
    """Make the actor of a token.

    Raises:
        Unauthenticated: it is mistyped, unknown, expired, revoked, or its person is inactive.

    """
    refusal = Unauthenticated("This token is unknown, expired or revoked; create a new one.")
    secret = secret.strip()
    if not secret.isascii() or not 8 <= len(secret) <= 200:
        raise refusal
    if secret.startswith(TOKEN_PREFIX) and not is_token_shaped(secret):
        raise refusal
    now = timezone.now()
    found = _token_question().first(digest=digest_of(secret))
    if found is None:
        raise refusal
    last_used_at = found["last_used_at"]
    if last_used_at is None or now - last_used_at > timedelta(minutes=5):
        Token.objects.filter(pk=found["id"]).update(last_used_at=now)
    return _actor_of(found, visit)


def _actor_of(found: Mapping[str, Any], visit: Visit) -> Actor:
    scopes = frozenset(found["scopes"])
    return Actor(
        user_id=found["user_id"],
        username=found["user__username"],
        is_admin=found["user__is_superuser"] and "admin" in scopes,
        roles=_rights(found["roles"]),
        grants=_rights(found["grants"]),
        scopes=scopes,
        token_id=found["id"],
        limited_namespace_id=found["namespace_id"],
        limited_repository_id=found["repository_id"],
        door=visit.door,
        request_id=visit.request_id,
        ip=visit.ip,
    )


def actors_of(digests: Collection[str], visit: Visit) -> dict[str, Actor]:
    """Make the actors of those tokens that are live, by digest, in one query."""
    tokens = Token.objects.live().filter(digest__in=digests)
    return {row["digest"]: _actor_of(row, visit) for row in _with_rights(tokens)}


def actor_from_authorization(header: str | None, visit: Visit) -> Actor:
    """Make the actor of an `Authorization` header: Bearer, or Basic with the token as password.

    No header is an anonymous actor.

    Raises:
        Unauthenticated: the header is of another scheme, or its token is not good.

    """
    if not header:
        return Actor(
            scopes=ANONYMOUS.scopes, door=visit.door, request_id=visit.request_id, ip=visit.ip
        )
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return actor_from_token(value, visit)
    if scheme.lower() == "basic":
        try:
            password = base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except ValueError as error:
            raise Unauthenticated("The Basic credentials are not base64.") from error
        return actor_from_token(password, visit)
    raise Unauthenticated("Send the token as 'Authorization: Bearer my_…'.")


def lacks_second_factor(user: User) -> bool:
    """Say whether the installation asks for a second factor that `user` does not hold yet."""
    asked_of_them = {"all": True, "admins": user.is_superuser}.get(settings.REQUIRE_MFA, False)
    kinds = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)
    return asked_of_them and not Authenticator.objects.filter(user=user, type__in=kinds).exists()


def _is_of_present_password(said: str, user: User) -> bool:
    """Say whether a session was opened with the password that holds, under any secret key."""
    known = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return any(constant_time_compare(said, one) for one in known)


def actor_from_session(session_key: str | None, visit: Visit) -> Actor:
    """Make the actor of a session cookie, for the web UI's paths outside Django's request cycle.

    An absent, expired, revoked or tampered session is an anonymous actor.

    Raises:
        Denied: the person has to set up a second factor first.

    """
    anonymous = Actor(
        scopes=ANONYMOUS.scopes, door=visit.door, request_id=visit.request_id, ip=visit.ip
    )
    if not session_key:
        return anonymous
    session = SessionStore(session_key)
    user_id = session.get(SESSION_KEY)
    known = session.get(BACKEND_SESSION_KEY) in settings.AUTHENTICATION_BACKENDS
    if user_id is None or not known:
        return anonymous
    user = User.objects.filter(pk=user_id, is_active=True).first()
    if user is None or not _is_of_present_password(session.get(HASH_SESSION_KEY, ""), user):
        return anonymous
    if lacks_second_factor(user):
        raise Denied(
            "Set up a second factor first, under Settings, Second factors.",
            code="second_factor_required",
        )
    return actor_for_user(user, visit)
