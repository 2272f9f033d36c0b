"""Who came in, who was turned away, and the sessions that are open: noted, listed, ended."""

from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils import timezone

from registry.errors import NotFound
from registry.models import Actor, AuditAction, User
from registry.services.audit import record_event


def note_sign_in(*, actor: Actor, methods: list[str]) -> None:
    """Record that `actor` signed in, and by what: password, mfa, socialaccount."""
    record_event(actor, AuditAction.SESSION_OPEN, target=actor.username, methods=methods)


def note_sign_out(*, actor: Actor) -> None:
    record_event(actor, AuditAction.SESSION_CLOSE, target=actor.username)


def note_refusal(*, actor: Actor, username: str = "", reason: str) -> None:
    """Record that a sign-in failed.

    Only the name of an account that exists is kept: in this field people type passwords too.
    """
    known = User.objects.filter(username__iexact=username).first() if username else None
    target = known.username if known else ""
    record_event(actor, AuditAction.SESSION_REFUSE, target=target, reason=reason)


def note_change(*, actor: Actor, action: AuditAction) -> None:
    """Record that somebody changed how they sign in; `action` says what."""
    record_event(actor, action, target=actor.username)


def open_sessions(actor: Actor) -> QuerySet[UserSession]:
    """Give the sessions of `actor` that still open a door, the last used first."""
    alive = Session.objects.filter(expire_date__gt=timezone.now()).values("session_key")
    rows: QuerySet[UserSession] = UserSession.objects.filter(
        user_id=actor.person_id, session_key__in=alive
    )
    return rows.order_by("-last_seen_at", "-pk")


@transaction.atomic
def end_session(*, actor: Actor, session_id: int) -> UserSession:
    """End one of the actor's own sessions, at once.

    Raises:
        NotFound: it is not theirs, or has ended.

    """
    session = open_sessions(actor).filter(pk=session_id).select_for_update().first()
    if session is None:
        raise NotFound("You have no such open session.", code="session_not_found")
    session.end()
    record_event(
        actor, AuditAction.SESSION_REVOKE, target=actor.username, device=session.user_agent
    )
    return session


@transaction.atomic
def end_other_sessions(*, actor: Actor, session_key: str | None) -> int:
    """End every session of the actor's but the one that asks."""
    others = UserSession.objects.filter(user_id=actor.person_id).exclude(session_key=session_key)
    ended = list(others.select_for_update())
    for session in ended:
        session.end()
    if ended:
        record_event(actor, AuditAction.SESSION_REVOKE, target=actor.username, count=len(ended))
    return len(ended)


def note_seen(*, user: User, session_key: str, ip: str, user_agent: str) -> None:
    """Keep when and from where a session was last used."""
    now = timezone.now()
    UserSession.objects.update_or_create(
        session_key=session_key,
        defaults={"user": user, "ip": ip, "user_agent": user_agent[:200], "last_seen_at": now},
    )


def forget_sessions() -> None:
    """Remove the sessions that have expired, and what was kept about sessions that are gone."""
    Session.objects.filter(expire_date__lt=timezone.now()).delete()
    known = Session.objects.filter(session_key=OuterRef("session_key"))
    UserSession.objects.filter(~Exists(known)).delete()
