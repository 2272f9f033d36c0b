"""Protected aliases: which names they are, and how those who may not move one ask for it."""

import re
from collections.abc import Iterable

from django.db import IntegrityError, transaction
from django.utils import timezone

from registry.errors import AlreadyExists, Conflict, Denied, NotFound
from registry.models import Actor, Alias, AliasProposal, AuditAction, Decision, Repository, Version
from registry.permissions import require
from registry.services.audit import record_event
from registry.services.catalog import (
    check_alias,
    drop_alias,
    find_alias,
    lock_repository,
    move_alias,
    require_present,
    require_usable,
)
from registry.services.texts import check_text, invalid_field

_MAX_PATTERNS = 50
_MAX_WORDS = 10_000
_MAX_REASON = 2000


def protect_aliases(
    *,
    actor: Actor,
    repository: Repository,
    aliases: Iterable[object],
    second_approver: bool | None,
    shown: Iterable[str] | None = None,
) -> Repository:
    """Say which aliases only maintainers move, and whether each move takes a second person.

    Where it does, or is to, only owners change any of this: a maintainer alone moves nothing. None
    leaves that as it is. Of `aliases` that somebody changed from what they were `shown`, nothing
    else is changed: what others protected meanwhile stays protected.
    """
    require(actor, "maintain", repository)
    wanted = {_check_pattern(one) for one in aliases}
    with transaction.atomic():
        row = lock_repository(repository)
        if second_approver is None:
            second_approver = row.second_approver
        if second_approver or row.second_approver:
            require(actor, "own", row)
        if shown is not None:
            before = set(shown)
            wanted = (set(row.protected_aliases) | wanted - before) - (before - wanted)
        patterns = sorted(wanted)
        if len(patterns) > _MAX_PATTERNS:
            raise invalid_field(
                "aliases", "too_many", "Protect at most {limit} patterns.", limit=_MAX_PATTERNS
            )
        row.protected_aliases, row.second_approver = patterns, second_approver
        row.save(update_fields=["protected_aliases", "second_approver"])
        record_event(
            actor,
            AuditAction.ALIAS_PROTECT,
            repository=row,
            aliases=patterns,
            second_approver=second_approver,
        )
    return row


def _check_pattern(pattern: object) -> str:
    text = check_text("aliases", pattern, max_length=255)
    if not re.fullmatch(r"[\w\-*]+", text):
        raise invalid_field(
            "aliases",
            "bad_pattern",
            "The pattern {pattern!r} is not valid: use letters, digits, '-' and '_', and '*' for "
            "any of them.",
            pattern=text,
        )
    return text


def find_proposal(repository: Repository, number: int) -> AliasProposal:
    """Find a proposal of a repository by its number.

    Raises:
        NotFound: there is none.

    """
    found = (
        AliasProposal.objects.filter(repository=repository, number=min(number, 1 << 30))
        .select_related("version", "proposed_by", "decided_by", "replaced")
        .first()
    )
    if found is None:
        raise NotFound(
            "{repository} has no proposal {number}.",
            code="proposal_not_found",
            repository=repository,
            number=number,
        )
    found.repository = repository
    return found


def propose_alias(
    *,
    actor: Actor,
    repository: Repository,
    alias: object,
    version: Version | None,
    message: object = "",
) -> AliasProposal:
    """Ask to point an alias at a version; without a version, to delete it.

    Raises:
        Conflict: the alias stands there already, or the version cannot be used.
        AlreadyExists: the same is proposed and not decided yet.

    """
    require(actor, "write", repository)
    name = check_alias(alias)
    words = check_text("message", message, max_length=_MAX_WORDS)
    with transaction.atomic():
        row = lock_repository(repository)
        current = Alias.objects.filter(repository=row, name=name).first()
        if version is None:
            find_alias(row, name)
        elif current is not None and current.version_id == version.pk:
            raise Conflict(
                "The alias {alias!r} is at {version} already.", alias=name, version=version.ref
            )
        else:
            require_usable(version)
        last = AliasProposal.objects.filter(repository=row).order_by("-number").first()
        try:
            with transaction.atomic():
                proposal = AliasProposal.objects.create(
                    repository=row,
                    number=last.number + 1 if last else 1,
                    alias=name,
                    version=version,
                    message=words,
                    proposed_by_id=actor.user_id,
                )
        except IntegrityError as error:
            raise AlreadyExists(
                "The same move of {alias!r} is proposed already; its maintainers decide.",
                code="proposal_already_open",
                alias=name,
            ) from error
        _record(actor, proposal, AuditAction.ALIAS_PROPOSE)
    return proposal


def approve_proposal(
    *,
    actor: Actor,
    proposal: AliasProposal,
    expected_version: int | None,
    note: object = "",
    reason: object = "",
) -> AliasProposal:
    """Approve a proposal and move the alias, in one transaction.

    `expected_version` is where the approver saw the alias (None: it was new), so that nobody
    approves the move of something that has moved meanwhile. A `reason` lets deployments follow
    to a version that may not replace what they serve.

    Raises:
        Denied: the actor is no maintainer, or proposed it and somebody else has to approve.
        Conflict: it is decided already, its version cannot be used any more, or a deployment
            follows the alias whose callers the version may not answer.
        PreconditionFailed: the alias is no longer where the approver saw it.

    """
    require(actor, "maintain", proposal.repository)
    why = check_text("reason", reason, max_length=_MAX_REASON)
    with transaction.atomic():
        repository = lock_repository(proposal.repository)
        row = _open(proposal, repository)
        if repository.second_approver and row.proposed_by_id == actor.user_id:
            raise Denied(
                "Somebody other than {user} has to approve this: {repository} asks for a second "
                "pair of eyes.",
                code="own_proposal",
                user=actor.username,
                repository=repository,
            )
        require_present(repository, row.alias, expected_version)
        current = (
            Alias.objects.filter(repository=repository, name=row.alias)
            .select_related("version")
            .first()
        )
        row.replaced = current.version if current else None
        if row.version is not None:
            move_alias(actor, repository, row.alias, row.version, reason=why, proposal=row.number)
        elif current is not None:
            drop_alias(actor, repository, current, proposal=row.number)
        return _decide(actor, row, Decision.APPROVED, note)


def decline_proposal(*, actor: Actor, proposal: AliasProposal, note: object = "") -> AliasProposal:
    """Decline a proposal; the alias stays where it is."""
    require(actor, "maintain", proposal.repository)
    with transaction.atomic():
        repository = lock_repository(proposal.repository)
        return _decide(actor, _open(proposal, repository), Decision.DECLINED, note)


def withdraw_proposal(*, actor: Actor, proposal: AliasProposal) -> AliasProposal:
    """Take one's own proposal back.

    Raises:
        Denied: somebody else made it.

    """
    require(actor, "write", proposal.repository)
    if proposal.proposed_by_id != actor.user_id:
        raise Denied(
            "Proposal {number} is somebody else's; a maintainer can decline it.",
            number=proposal.number,
        )
    with transaction.atomic():
        repository = lock_repository(proposal.repository)
        return _decide(actor, _open(proposal, repository), Decision.WITHDRAWN, "")


def _open(proposal: AliasProposal, repository: Repository) -> AliasProposal:
    """Read a proposal of a locked repository once more; another may have decided it."""
    row = (
        AliasProposal.objects.select_for_update(of=("self",))
        .select_related("version", "proposed_by", "decided_by")
        .get(pk=proposal.pk)
    )
    row.repository = repository
    if row.version is not None:
        row.version.repository = repository
    if not row.is_open:
        raise Conflict(
            "Proposal {number} is {state} already.",
            code="proposal_decided",
            number=row.number,
            state=row.state,
        )
    return row


_DECIDED = {
    Decision.APPROVED: AuditAction.ALIAS_APPROVE,
    Decision.DECLINED: AuditAction.ALIAS_DECLINE,
    Decision.WITHDRAWN: AuditAction.ALIAS_WITHDRAW,
}


def _decide(actor: Actor, row: AliasProposal, state: Decision, note: object) -> AliasProposal:
    row.state = state
    row.note = check_text("note", note, max_length=_MAX_WORDS)
    row.decided_by_id = actor.user_id
    row.decided_at = timezone.now()
    row.save()
    _record(actor, row, _DECIDED[state])
    return row


def _record(actor: Actor, proposal: AliasProposal, action: AuditAction) -> None:
    record_event(
        actor,
        action,
        repository=proposal.repository,
        target=f"{proposal.repository.full_name}@{proposal.alias}",
        proposal=proposal.number,
        version=proposal.version.number if proposal.version else None,
    )
