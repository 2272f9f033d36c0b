"""The gate of a shadow: whether what it gave beside the live version allows to promote it.

Two shares decide: of requests that it answered alike, and of those that it computed in time. One
test is held against either, and may be looked at any time: it holds the share that is asked for
against all shares at once (a mixture of likelihood ratios), so that looking again and again does
not make chance look like evidence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from registry.errors import Conflict
from registry.models import Deployment, DeploymentRole, Version
from registry.routes import read_options

# So large a share of the requests must be answered alike; a failure is no agreement.
LEAST_AGREEMENT = 0.95
# And so large a share computed in time. What is left may be the machine's doing: a copy is computed
# while other models are, and most requests of a small model take less than a turn of the scheduler.
LEAST_IN_TIME = 0.75
# How often the gate may open for one that agrees less, or close for one that agrees more.
_ALPHA = 0.05
COUNTED = ("compared", "agreed", "failed", "live_ns", "shadow_ns", "timed", "in_time")

Verdict = Literal["allow", "block", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a shadow did beside the version that answers."""

    compared: int
    agreed: int
    failed: int
    live_ns: int
    shadow_ns: int
    # Requests that both computed by themselves, those of them in time, and what that is.
    timed: int
    in_time: int
    time_percent: int

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None

    @property
    def latency_ratio(self) -> float | None:
        """How long the shadow computes, as a share of what the live version takes."""
        return round(self.shadow_ns / self.live_ns, 3) if self.live_ns else None

    @property
    def agreement_verdict(self) -> Verdict:
        return judge(self.agreed, self.compared, LEAST_AGREEMENT)

    @property
    def latency_verdict(self) -> Verdict:
        """Say whether it computes in time: each request beside the live version's own time."""
        return judge(self.in_time, self.timed, LEAST_IN_TIME)

    @property
    def verdict(self) -> Verdict:
        """Allow what both allow, block what either does."""
        found = {self.agreement_verdict, self.latency_verdict}
        if found == {"allow"}:
            return "allow"
        return "block" if "block" in found else "undecided"

    def described(self) -> dict[str, str | int | float | None]:
        return {
            "compared": self.compared,
            "agreed": self.agreed,
            "failed": self.failed,
            "agreement": None if self.agreement is None else round(self.agreement, 4),
            "latency_ratio": self.latency_ratio,
            "timed": self.timed,
            "in_time": self.in_time,
            "time_percent": self.time_percent,
            "agreement_verdict": self.agreement_verdict,
            "latency_verdict": self.latency_verdict,
            "verdict": self.verdict,
        }


def judge(agreed: int, compared: int, least: float = LEAST_AGREEMENT) -> Verdict:
    """Say whether so many of so many requests prove that at least a share `least` is so."""
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
    percent = read_options(deployment.options).shadow_time_percent
    return Evidence(**counts_for(kept, percent), time_percent=percent)


def counts_for(kept: Mapping[str, Any], percent: int) -> dict[str, int]:
    """Give what was counted of a shadow, for one limit of its time.

    Where another limit was set since, what agreed still does; what was in time may not be any more.
    """
    counts = {name: int(kept.get(name, 0)) for name in COUNTED}
    if kept.get("time_percent") != percent:
        counts |= {"timed": 0, "in_time": 0}
    return counts


def require_allowed(evidence: Evidence, reason: str) -> None:
    """Pass when a shadow may replace what answers, or somebody says why all the same.

    Raises:
        Conflict: it agrees too seldom or is too slow, or nobody can tell yet.

    """
    if reason or evidence.verdict == "allow":
        return
    if evidence.agreement_verdict == "block":
        raise Conflict(
            "As a shadow it answered {agreed} of {compared} requests as the live version did, "
            "which is too seldom. A maintainer may promote it nevertheless, with a reason.",
            code="shadow_blocked",
            agreed=evidence.agreed,
            compared=evidence.compared,
        )
    if evidence.latency_verdict == "block":
        raise Conflict(
            "As a shadow it computed {in_time} of {timed} requests in at most {percent} percent of "
            "the live version's time, which is too seldom. A maintainer may promote it "
            "nevertheless, with a reason.",
            code="shadow_too_slow",
            in_time=evidence.in_time,
            timed=evidence.timed,
            percent=evidence.time_percent,
        )
    raise Conflict(
        "As a shadow it answered {agreed} of {compared} requests as the live version did, and "
        "computed {in_time} of {timed} in at most {percent} percent of its time; that does not "
        "say yet whether it may replace it. Wait for more, or let a maintainer give a reason.",
        code="shadow_undecided",
        agreed=evidence.agreed,
        compared=evidence.compared,
        in_time=evidence.in_time,
        timed=evidence.timed,
        percent=evidence.time_percent,
    )
