"""The gate of a shadow: whether what it gave beside the live version allows to promote it.

The test may be looked at any time: it holds the share of agreement that is asked for against all
shares at once (a mixture of likelihood ratios), so that looking again and again does not make
chance look like evidence.
"""

import math
from dataclasses import dataclass
from typing import Literal

from registry.errors import Conflict
from registry.models import Deployment, DeploymentRole, Version

# So large a share of the requests must be answered alike; a failure is no agreement.
LEAST_AGREEMENT = 0.95
# How often the gate may open for one that agrees less, or close for one that agrees more.
_ALPHA = 0.05
COUNTED = ("compared", "agreed", "failed", "live_ns", "shadow_ns")

Verdict = Literal["allow", "block", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a shadow did beside the version that answers."""

    compared: int
    agreed: int
    failed: int
    live_ns: int
    shadow_ns: int

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None

    @property
    def latency_ratio(self) -> float | None:
        """How long the shadow computes, as a share of what the live version takes."""
        return round(self.shadow_ns / self.live_ns, 3) if self.live_ns else None

    @property
    def verdict(self) -> Verdict:
        return judge(self.agreed, self.compared)

    def described(self) -> dict[str, str | int | float | None]:
        return {
            "compared": self.compared,
            "agreed": self.agreed,
            "failed": self.failed,
            "agreement": None if self.agreement is None else round(self.agreement, 4),
            "latency_ratio": self.latency_ratio,
            "verdict": self.verdict,
        }


def judge(agreed: int, compared: int, least: float = LEAST_AGREEMENT) -> Verdict:
    """Say whether so many of so many requests prove that at least a share `least` agrees."""
    differed = compared - agreed
    mixed = math.lgamma(agreed + 1) + math.lgamma(differed + 1) - math.lgamma(compared + 2)
    at_least = agreed * math.log(least) + differed * math.log1p(-least)
    if mixed - at_least < -math.log(_ALPHA):
        return "undecided"
    return "allow" if agreed > least * compared else "block"


def evidence_of(deployment: Deployment, beside: Version | None = None) -> Evidence | None:
    """Give what is known of a shadow; None of what is none.

    With `beside`, only what it did beside that version as the one that it serves: what was counted
    of others says nothing.
    """
    if deployment.role != DeploymentRole.SHADOW:
        return None
    kept = deployment.trial
    if beside is not None and deployment.serves is not None:
        pair = [deployment.serves.pk, beside.pk]
        kept = kept if kept.get("pair") == pair else {}
    return Evidence(**{name: int(kept.get(name, 0)) for name in COUNTED})


def require_allowed(evidence: Evidence, reason: str) -> None:
    """Pass when a shadow may replace what answers, or somebody says why all the same.

    Raises:
        Conflict: it agrees too seldom, or nobody can tell yet.

    """
    if reason or evidence.verdict == "allow":
        return
    if evidence.verdict == "block":
        raise Conflict(
            "As a shadow it answered {agreed} of {compared} requests as the live version did, "
            "which is too seldom. A maintainer may promote it nevertheless, with a reason.",
            code="shadow_blocked",
            agreed=evidence.agreed,
            compared=evidence.compared,
        )
    raise Conflict(
        "As a shadow it answered {agreed} of {compared} requests as the live version did; that "
        "does not say yet whether it may replace it. Wait for more, or let a maintainer give a "
        "reason.",
        code="shadow_undecided",
        agreed=evidence.agreed,
        compared=evidence.compared,
    )
