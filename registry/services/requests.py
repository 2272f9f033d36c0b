"""Requests for access: asked by name, seen and decided by those who may share the thing.

What an asker hears never depends on whether the name they asked for names anything.
"""

from django.db import transaction
from django.utils import timezone

from registry.errors import Conflict, Denied, NotFound, PreconditionFailed, QuotaExceeded
from registry.models import (
    ROLE_RANK,
    AccessRequest,
    Actor,
    AuditAction,
    Decision,
    Grant,
    Kind,
    Membership,
    Namespace,
    Repository,
    Role,
    User,
)
from registry.permissions import require_scope
from registry.services.audit import record_event
from registry.services.namespaces import set_member
from registry.services.sharing import set_grant
from registry.services.texts import check_text, invalid_field

MAX_OPEN = 20
_MAX_WORDS = 2000


def request_access(
    *,
    actor: Actor,
    kind: str,
    namespace: object,
    name: object = "",
    role: str = Role.READER,
    message: object = "",
) -> AccessRequest:
    """Ask for a role on a namespace, or on a model or dataset in it.

    The same request while it is open changes its role and words.

    Raises:
        QuotaExceeded: the actor has as many open requests as one may have.

    """
    require_scope(actor, "write")
    if actor.is_limited:
        raise Denied("A token that is limited to one place cannot ask for another.")
    if kind not in {"namespace", *Kind.values}:
        raise invalid_field("kind", "bad_choice", "Ask about a namespace, a model or a dataset.")
    if role not in ROLE_RANK:
        raise invalid_field(
            "role", "bad_role", "The role is one of {choices}.", choices=", ".join(Role.values)
        )
    place = check_text("namespace", namespace, max_length=64)
    thing = "" if kind == "namespace" else check_text("name", name, max_length=96)
    words = check_text("message", message, max_length=_MAX_WORDS)
    if not place or (kind != "namespace" and not thing):
        raise invalid_field("name", "required", "Name what you ask for.")
    with transaction.atomic():
        # Hold the asker's row, so that two requests at once are counted one after the other.
        User.objects.select_for_update(no_key=True).get(pk=actor.person_id)
        own = AccessRequest.objects.asked_by(actor).filter(
            state__in=[Decision.OPEN, Decision.IGNORED]
        )
        same = own.filter(kind=kind, asked_namespace__iexact=place, asked_name__iexact=thing)
        # Hold the request too: one that is being decided is waited for, and is none of these then.
        row = same.select_for_update(of=("self",)).first()
        if row is None:
            if own.count() >= MAX_OPEN:
                raise QuotaExceeded(
                    "You have {count} open requests, as many as one may have; withdraw some.",
                    count=MAX_OPEN,
                )
            row = AccessRequest(
                user_id=actor.person_id, kind=kind, asked_namespace=place, asked_name=thing
            )
        row.namespace, row.repository = _named(kind, place, thing)
        row.role, row.message = role, words
        row.save()
        record_event(
            actor,
            AuditAction.ACCESS_REQUEST,
            namespace=row.namespace,
            repository=row.repository,
            target=row.asked_for,
            role=role,
        )
    return row


def _named(kind: str, place: str, thing: str) -> tuple[Namespace | None, Repository | None]:
    """Find what a name stands for, whoever asks; the asker never hears of it."""
    if kind == "namespace":
        return Namespace.objects.live().filter(slug__iexact=place).first(), None
    found = Repository.objects.named(place, thing).filter(kind=kind, deleted_at=None)
    return None, found.first()


def find_request(actor: Actor, request_id: int) -> AccessRequest:
    """Find a request that the actor made or may decide.

    Raises:
        NotFound: there is none.

    """
    rows = AccessRequest.objects.select_related(
        "user", "decided_by", "namespace", "repository__namespace"
    )
    key = min(request_id, 1 << 62)
    found = rows.asked_by(actor).filter(pk=key).first()
    found = found or rows.decidable_by(actor).filter(pk=key).first()
    if found is None:
        raise _no_request(request_id)
    return found


def approve_request(
    *, actor: Actor, request: AccessRequest, expected_role: str, note: object = ""
) -> AccessRequest:
    """Give the asker what they asked for, unless they have more already.

    `expected_role` is the role that the approver saw: an asker may change it until it is given.

    Raises:
        PreconditionFailed: the request asks for another role by now.

    """
    with transaction.atomic():
        row = _to_decide(actor, request)
        if row.role != expected_role:
            raise PreconditionFailed(
                "Request {number} asks for the role {role} by now; read it again.",
                number=row.pk,
                role=row.role,
            )
        if row.namespace is not None:
            held = Membership.objects.filter(namespace=row.namespace, user=row.user).first()
            if _is_more(row.role, held):
                set_member(
                    actor=actor, namespace=row.namespace, username=row.user.username, role=row.role
                )
        elif row.repository is not None:
            given = Grant.objects.filter(repository=row.repository, user=row.user).first()
            if _is_more(row.role, given):
                set_grant(
                    actor=actor,
                    repository=row.repository,
                    username=row.user.username,
                    role=row.role,
                )
        return _decide(actor, row, Decision.APPROVED, note)


def _is_more(role: str, held: Membership | Grant | None) -> bool:
    return held is None or ROLE_RANK[role] > ROLE_RANK[held.role]


def decline_request(*, actor: Actor, request: AccessRequest, note: object = "") -> AccessRequest:
    """Say no; the asker learns by it that the thing exists."""
    with transaction.atomic():
        return _decide(actor, _to_decide(actor, request), Decision.DECLINED, note)


def ignore_request(*, actor: Actor, request: AccessRequest) -> AccessRequest:
    """Put a request away; for the asker it stays open, as one for what does not exist does."""
    with transaction.atomic():
        return _decide(actor, _to_decide(actor, request), Decision.IGNORED, "")


def withdraw_request(*, actor: Actor, request: AccessRequest) -> AccessRequest:
    """Take one's own request back."""
    require_scope(actor, "write")
    with transaction.atomic():
        row = AccessRequest.objects.select_for_update(of=("self",)).get(pk=request.pk)
        if row.user_id != actor.user_id:
            raise _no_request(request.pk)
        if row.state not in {Decision.OPEN, Decision.IGNORED}:
            raise _decided(row)
        row.state, row.decided_at = Decision.WITHDRAWN, timezone.now()
        row.save(update_fields=["state", "decided_at"])
        record_event(actor, AuditAction.ACCESS_WITHDRAW, target=row.asked_for)
    return row


def _to_decide(actor: Actor, request: AccessRequest) -> AccessRequest:
    """Lock a request that the actor may decide; an asker has no say in their own."""
    row = (
        AccessRequest.objects.decidable_by(actor)
        .select_for_update(of=("self",))
        .select_related("user", "namespace", "repository__namespace")
        .filter(pk=request.pk)
        .first()
    )
    if row is None:
        raise _no_request(request.pk)
    if row.state not in {Decision.OPEN, Decision.IGNORED}:
        raise _decided(row)
    return row


def _no_request(number: int) -> NotFound:
    return NotFound(
        "There is no request {number} that you may see.", code="request_not_found", number=number
    )


def _decided(row: AccessRequest) -> Conflict:
    return Conflict(
        "Request {number} is {state} already.",
        code="request_decided",
        number=row.pk,
        state=row.state,
    )


_DECIDED = {
    Decision.APPROVED: AuditAction.ACCESS_APPROVE,
    Decision.DECLINED: AuditAction.ACCESS_DECLINE,
    Decision.IGNORED: AuditAction.ACCESS_IGNORE,
}


def _decide(actor: Actor, row: AccessRequest, state: Decision, note: object) -> AccessRequest:
    row.state = state
    row.note = check_text("note", note, max_length=_MAX_WORDS)
    row.decided_by_id, row.decided_at = actor.user_id, timezone.now()
    row.save()
    record_event(
        actor,
        _DECIDED[state],
        namespace=row.namespace,
        repository=row.repository,
        username=row.user.username,
        role=row.role,
    )
    return row
