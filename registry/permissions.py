"""What an actor may do to a thing: roles to actions, scopes over both."""

from typing import Literal

from registry.errors import Denied, Unauthenticated
from registry.models import ROLE_RANK, Actor, Namespace, Repository, Role

Action = Literal["read", "write", "maintain", "share", "own"]

# The least role that may do an action, and the token scope it also takes.
_NEEDS: dict[Action, tuple[Role, str]] = {
    "read": (Role.READER, "read"),
    "write": (Role.CONTRIBUTOR, "write"),
    "maintain": (Role.MAINTAINER, "write"),
    "share": (Role.MAINTAINER, "admin"),
    "own": (Role.OWNER, "admin"),
}


def role_of(actor: Actor, thing: Namespace | Repository) -> str | None:
    """Give the strongest role `actor` holds on `thing`, by namespace or by grant."""
    if actor.is_admin:
        return Role.OWNER
    if isinstance(thing, Namespace):
        return actor.roles.get(thing.pk)
    held = [actor.roles.get(thing.namespace_id), actor.grants.get(thing.pk)]
    return max((role for role in held if role), key=lambda role: ROLE_RANK[role], default=None)


def _within_token(actor: Actor, thing: Namespace | Repository) -> bool:
    """Say whether the token's own limits (one namespace, one repository) let it near `thing`."""
    if isinstance(thing, Namespace):
        return actor.limited_repository_id is None and actor.limited_namespace_id in {
            None,
            thing.pk,
        }
    return actor.limited_namespace_id in {
        None,
        thing.namespace_id,
    } and actor.limited_repository_id in {None, thing.pk}


def allowed(actor: Actor, action: Action, thing: Namespace | Repository) -> bool:
    least, scope = _NEEDS[action]
    role = role_of(actor, thing)
    return (
        scope in actor.scopes
        and _within_token(actor, thing)
        and role is not None
        and ROLE_RANK[role] >= ROLE_RANK[least]
    )


def require(actor: Actor, action: Action, thing: Namespace | Repository) -> None:
    """Pass when `actor` may do `action` to `thing`.

    Raises:
        Unauthenticated: nobody is signed in.
        Denied: the role or the token does not reach that far.

    """
    if actor.is_anonymous:
        raise Unauthenticated("This needs a signed-in user or a token; create one under Tokens.")
    require_scope(actor, _NEEDS[action][1])
    if not allowed(actor, action, thing):
        least = _NEEDS[action][0]
        raise Denied(
            "This needs the role {role} on {thing}; {user} has {own_role}.",
            role=least.value,
            thing=thing,
            user=actor.username,
            own_role=role_of(actor, thing) or "none",
        )


def require_scope(actor: Actor, scope: str) -> None:
    """Pass when the token (a session holds every scope) has `scope`."""
    if actor.is_anonymous:
        raise Unauthenticated("This needs a signed-in user or a token; create one under Tokens.")
    if scope not in actor.scopes:
        raise Denied(
            "This token lacks the scope {scope!r}; it has {scopes}.",
            code="missing_scope",
            scope=scope,
            scopes=", ".join(sorted(actor.scopes)),
        )
