"""Where a version stands and which way it may go from there; nothing else moves its state."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from django.utils import timezone

from registry.errors import SILENCE, Conflict, Saying
from registry.models import Version, VersionState
from registry.services.catalog import require_unheld
from registry.services.texts import check_text, invalid_field

_READY, _DEPRECATED, _ARCHIVED = (
    VersionState.READY,
    VersionState.DEPRECATED,
    VersionState.ARCHIVED,
)
# From where to where people move a version; what stays is a change of the reason alone.
BY_HAND: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        _READY: frozenset({_DEPRECATED, _ARCHIVED}),
        _DEPRECATED: frozenset({_READY, _DEPRECATED, _ARCHIVED}),
        VersionState.QUARANTINED: frozenset({_ARCHIVED}),
        VersionState.FAILED: frozenset({_ARCHIVED}),
        # Out of the archive it stands where its files say.
        _ARCHIVED: frozenset({_READY, _ARCHIVED}),
    }
)
# From where to where the registry itself moves one, when its files are looked into.
BY_INSPECTION: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        VersionState.PENDING: frozenset(
            {VersionState.READY, VersionState.QUARANTINED, VersionState.FAILED}
        ),
        VersionState.QUARANTINED: frozenset({VersionState.READY, VersionState.PENDING}),
        VersionState.FAILED: frozenset({VersionState.PENDING}),
        VersionState.READY: frozenset({VersionState.QUARANTINED}),
        VersionState.DEPRECATED: frozenset({VersionState.QUARANTINED}),
    }
)
CHOICES = (_READY, _DEPRECATED, _ARCHIVED)


class Verdict(NamedTuple):
    """Where the files of a version put it, and why."""

    state: str
    reason: Saying


def needs_maintainer(version: Version, changes: Mapping[str, object]) -> bool:
    """Say whether a change takes a version into the archive or out of it."""
    return "state" in changes and _ARCHIVED in {version.state, changes["state"]}


def change_standing(
    version: Version, changes: Mapping[str, object], *, judge: Callable[[Version], Verdict]
) -> None:
    """Move a locked version by hand as `state` and `state_reason` say, without saving it.

    `judge` says where its files put it, for a version that leaves the archive.

    Raises:
        Invalid: there is no such state, or its reason is missing.
        Conflict: it cannot go there from where it is, or something still needs it.

    """
    state = changes.get("state", version.state)
    if "state" in changes and state not in CHOICES:
        raise invalid_field(
            "state",
            "bad_choice",
            "The state can be set to {states}.",
            states=", ".join(sorted(CHOICES)),
        )
    moved = state != version.state
    if not moved and "state_reason" not in changes:
        return
    if state not in BY_HAND.get(version.state, frozenset()):
        raise Conflict(
            "{version} is {state}; that cannot be changed by hand.",
            version=version.ref,
            state=version.state,
        )
    given = changes.get("state_reason", "" if moved else version.state_reason)
    reason = Saying(check_text("state_reason", given, max_length=2000))
    if state == _DEPRECATED and not reason.detail:
        raise invalid_field(
            "state_reason",
            "required",
            "Say why {version} is deprecated, and what to use instead; everybody who pulls it "
            "reads it.",
            version=version.ref,
        )
    if moved and state == _ARCHIVED:
        require_unheld(Version.objects.filter(pk=version.pk))
    if moved and version.state == _ARCHIVED:
        state, reason = judge(version)
    version.state = str(state)
    explain(version, SILENCE if state == _READY else reason)
    if moved:
        version.state_changed_at = timezone.now()


def settle(version: Version, verdict: Verdict) -> bool:
    """Move a locked version where its files put it, without saving; False where it stays.

    What people decided stays: an archived version does not move by itself.
    """
    if verdict.state not in BY_INSPECTION.get(version.state, frozenset()):
        return False
    version.state = verdict.state
    explain(version, verdict.reason)
    version.state_changed_at = timezone.now()
    return True


def explain(version: Version, reason: Saying) -> None:
    """Say why a locked version is where it is, without saving."""
    version.state_reason, version.state_reason_said = reason
