"""What may answer in place of what a deployment serves: one question for each way to replace it.

A version is replaced where one is deployed beside it, where traffic is split anew or one is
promoted, and where an alias moves that a deployment follows or that is protected.
"""

from collections.abc import Sequence
from typing import Any

from django.db.models import Q

from registry.errors import Conflict
from registry.models import (
    Actor,
    Alias,
    AuditAction,
    Deployment,
    DeploymentRole,
    Endpoint,
    Event,
    Repository,
    Version,
)
from registry.permissions import allowed
from registry.services.compatibility import why_incompatible, why_untold
from registry.services.gate import evidence_of, require_allowed


def require_successor(
    endpoint: Endpoint,
    answers: Version | None,
    candidate: Version,
    *,
    shadow: Deployment | None = None,
    reason: str = "",
) -> dict[str, Any]:
    """Pass when a version may answer callers of another one, or a maintainer says why it need not.

    It takes what they send and gives what they read, and where a `shadow` tries it, that agrees.
    Gives what the audit log is to remember of it.

    Raises:
        Conflict: it does not fit, or its evidence does not allow it, and there is no reason.

    """
    facts: dict[str, Any] = {}
    if answers is None or answers.pk == candidate.pk:
        return facts
    problem = why_incompatible(answers, candidate)
    if problem is not None:
        if not reason:
            raise Conflict(
                "{version} does not fit what callers of {endpoint} send and read: {problem}. A "
                "maintainer may let it answer nevertheless, with a reason.",
                code="incompatible_signature",
                version=candidate.ref,
                endpoint=endpoint,
                problem=problem,
            )
        facts |= {"incompatible": problem.detail, "reason": reason}
    evidence = evidence_of(shadow, answers) if shadow else None
    if evidence is not None:
        require_allowed(evidence, reason)
        facts["shadow"] = evidence.described()
        if evidence.verdict != "allow":
            facts["reason"] = reason
    return facts


def require_taking(
    endpoint: Endpoint, present: Sequence[Deployment], candidate: Version, *, reason: str = ""
) -> dict[str, Any]:
    """Pass when a version may begin to answer beside or in place of what answers at an endpoint.

    A shadow among what is `present` that tries the version has to agree, whichever deployment it
    is that is to answer. Gives what the audit log is to remember of it.

    Raises:
        Conflict: it may not, and there is no reason.

    """
    shadow = _shadow_among(present, candidate)
    return require_successor(
        endpoint, answering_of(present), candidate, shadow=shadow, reason=reason
    )


def require_followed(
    actor: Actor, repository: Repository, alias: str, candidate: Version, *, reason: str
) -> dict[str, Any]:
    """Pass when the deployments that follow an alias of a locked model may serve a version.

    Shadows may serve any: they answer nobody. Gives what the audit log is to remember of it.

    Raises:
        Conflict: one may not, and no maintainer says why it should.

    """
    following = Deployment.objects.filter(endpoint__repository=repository, alias=alias)
    rows = list(
        following.exclude(role=DeploymentRole.SHADOW)
        .select_related("endpoint__namespace")
        .order_by("pk")
    )
    current = Alias.objects.filter(repository=repository, name=alias).select_related("version")
    before = next((one.version for one in current), None)
    if not rows or before is None or before.pk == candidate.pk:
        return {}
    before.repository = candidate.repository = repository
    words = reason if allowed(actor, "maintain", repository) else ""
    facts: dict[str, Any] = {"endpoints": sorted({row.endpoint_id for row in rows})}
    for row in rows:
        shadow = _shadow_of(row.endpoint, candidate) if row.weight else None
        facts |= require_successor(row.endpoint, before, candidate, shadow=shadow, reason=words)
    return facts


def require_protected(
    actor: Actor, repository: Repository, alias: str, candidate: Version, *, reason: str
) -> dict[str, Any]:
    """Pass when a protected alias of a locked repository may move to a version.

    Whoever asks for it by that name relies on what it takes and gives. Gives what the audit log is
    to remember of it.

    Raises:
        Conflict: the version does not fit callers of the present one, and no maintainer says why
            it should answer them.

    """
    if not repository.protects(alias):
        return {}
    before = last_at(repository, alias)
    if before is None or before.pk == candidate.pk:
        return {}
    before.repository = candidate.repository = repository
    problem = why_untold(before, candidate) or why_incompatible(before, candidate)
    if problem is None:
        return {}
    if not reason or not allowed(actor, "maintain", repository):
        raise Conflict(
            "{version} does not fit callers of the protected alias {alias!r}, which was "
            "last at {before}: {problem}. A maintainer may move it nevertheless, with a reason.",
            code="incompatible_signature",
            version=candidate.ref,
            alias=alias,
            before=before.ref,
            problem=problem,
        )
    return {"incompatible": problem.detail, "reason": reason}


def last_at(repository: Repository, alias: str) -> Version | None:
    """Give what an alias points at, or did when it was deleted: its callers have not changed."""
    current = Alias.objects.filter(repository=repository, name=alias).select_related("version")
    if (found := current.first()) is not None:
        return found.version
    deleted = Event.objects.filter(
        repository_id=repository.pk,
        action=AuditAction.ALIAS_DELETE,
        # The repository may have had another name then.
        target__endswith=f"@{alias}",
    )
    last = deleted.order_by("-pk").first()
    if last is None:
        return None
    return Version.objects.filter(repository=repository, number=last.data.get("version")).first()


def _shadow_among(present: Sequence[Deployment], candidate: Version) -> Deployment | None:
    """Find the shadow that tries a version; of several the one that has compared most."""
    shadows = [
        one for one in present if one.role == DeploymentRole.SHADOW and one.serves == candidate
    ]
    return max(shadows, key=lambda one: int(one.trial.get("compared", 0)), default=None)


def _shadow_of(endpoint: Endpoint, candidate: Version) -> Deployment | None:
    """Find the shadow at an endpoint that tries a version."""
    named = Alias.objects.filter(repository=candidate.repository_id, version=candidate)
    tries = Q(version=candidate) | Q(alias__in=named.values("name"))
    found = endpoint.deployments.filter(tries, role=DeploymentRole.SHADOW).order_by("pk").first()
    if found is not None:
        found.serves = candidate
    return found


def answering_of(deployments: Sequence[Deployment]) -> Version | None:
    """Give what answers most callers of an endpoint, if anything does."""
    found = max(deployments, key=lambda one: (one.weight, one.role == "live"), default=None)
    return found.serves if found is not None and found.weight else None
