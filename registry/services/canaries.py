"""Canaries that widen by themselves while they do as well as what answers beside them.

A canary that widens begins with one percent of the requests and goes on to 5, 25, 50 and 100, each
time after it has answered enough of them for long enough. Evidence is what serving processes
counted since the step began of what the endpoint's traffic brought: how many requests, how many
that failed by the deployment's own fault, how long the others took. Calls that name a version, and
what was refused for its input or for the caller's own short patience, are no part of it. A canary
that fails more often, or is slower, gives its requests back at once. What no process could load
gets no requests to be judged by; it gives them back when it is not loaded after a step's time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from django.db import transaction
from django.utils import timezone

from registry import queue
from registry.models import Actor, AuditAction, Deployment, DeploymentRole, Endpoint
from registry.models.serving import FULL_WEIGHT
from registry.services.catalog import lock_repository
from registry.services.deployments import (
    deployments_of,
    give_share,
    leaves_room,
    record_change,
    touch,
)
from registry.services.replicas import DeploymentStanding, Replica, read_standings

STEPS = (1, 5, 25, 50, FULL_WEIGHT)
# So many requests must have been answered in a step, and so long it lasts at least.
LEAST_REQUESTS = 50
STEP_SECONDS = 60
# A canary may fail so much more often than the others, and take so much longer.
MORE_FAILURES = 0.01
SLOWER = 1.5
# How seldom chance may look like failure; a step is looked at many times.
_HARDLY = 0.001
# So many standard errors are hardly chance.
_ERRORS = 3.0

_CANARY = Actor(username="canary", door="worker")

Verdict = Literal["widen", "wait", "roll_back"]


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What some deployments did in a time: requests, how many failed, nanoseconds of the rest.

    `squares` are those times in microseconds, squared and added up.
    """

    requests: int = 0
    failures: int = 0
    total_ns: int = 0
    squares: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(
            requests=self.requests + other.requests,
            failures=self.failures + other.failures,
            total_ns=self.total_ns + other.total_ns,
            squares=self.squares + other.squares,
        )

    @property
    def failure_rate(self) -> float:
        return self.failures / self.requests if self.requests else 0.0

    @property
    def mean_ms(self) -> float:
        answered = self.requests - self.failures
        return self.total_ns / answered / 1e6 if answered else 0.0

    @property
    def error_ms(self) -> float:
        """Say how far the mean may lie from the truth by chance: its standard error."""
        answered = self.requests - self.failures
        if not answered:
            return 0.0
        spread = self.squares / answered / 1e6 - self.mean_ms**2
        return math.sqrt(max(0.0, spread) / answered)

    def surely_slower_than(self, others: "Counted") -> bool:
        """Say whether it would hardly seem so much slower by chance, as when one answer hung."""
        error = math.hypot(self.error_ms, SLOWER * others.error_ms)
        return self.mean_ms - SLOWER * others.mean_ms > _ERRORS * error

    def surely_fails_above(self, rate: float) -> bool:
        """Say whether so many failures would hardly come about at `rate` (a binomial tail)."""
        n, least = self.requests, self.failures
        if not least or rate >= 1.0 or self.failure_rate <= rate:
            return False
        logs = math.log(rate), math.log1p(-rate)
        tail = 0.0
        for k in range(least, n + 1):
            ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
            term = math.exp(ways + k * logs[0] + (n - k) * logs[1])
            tail += term
            # Beyond the failures that came about, each more is less likely by a factor.
            if term < _HARDLY * 1e-6:
                break
        return tail < _HARDLY

    def described(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "failures": self.failures,
            "mean_ms": round(self.mean_ms, 3),
        }


def judge(canary: Counted, others: Counted, *, seconds: float) -> Verdict:
    """Say what a canary has earned in a step that lasts for so long."""
    if canary.surely_fails_above(others.failure_rate + MORE_FAILURES):
        return "roll_back"
    enough = canary.requests >= LEAST_REQUESTS
    answered = others.requests - others.failures
    slower = answered >= LEAST_REQUESTS and canary.mean_ms > others.mean_ms * SLOWER
    if enough and slower and canary.surely_slower_than(others):
        return "roll_back"
    # Where the others answer at all, they say soon enough how long that takes.
    unknown = 0 < answered < LEAST_REQUESTS
    if not enough or slower or unknown or seconds < STEP_SECONDS:
        return "wait"
    return "widen" if canary.failure_rate <= others.failure_rate + MORE_FAILURES else "wait"


def review_canaries(*, now: datetime | None = None) -> int:
    """Widen or take back each canary that may be by now; give how many steps were made.

    A worker calls this now and then; two at once never make one step twice, for the model is
    locked.
    """
    rows = Deployment.objects.filter(role=DeploymentRole.CANARY, weight__gt=0).exclude(trial={})
    rows = rows.select_related("endpoint__repository__namespace", "endpoint__namespace")
    replicas = queue.read_replicas()
    if not replicas:
        # The broker is away, or has just come back: what was counted until now is not known.
        return 0
    made = 0
    for row in rows.filter(endpoint__repository__deleted_at=None).order_by("pk"):
        made += _review(row, replicas, now or timezone.now())
    return made


@transaction.atomic
def _review(row: Deployment, said: Sequence[Mapping[str, Any]], now: datetime) -> bool:
    endpoint = row.endpoint
    endpoint.repository = lock_repository(endpoint.repository)
    present = deployments_of(endpoint)
    canary = next((one for one in present if one.pk == row.pk), None)
    if canary is None or not canary.trial or canary.role != DeploymentRole.CANARY:
        return False
    if not canary.weight or canary.serves is None:
        return False
    others_there = [one for one in present if one.pk != canary.pk]
    if not any(one.weight for one in others_there):
        # Nothing is left to hold it against, or to take its requests back.
        canary.trial = {}
        canary.save(update_fields=["trial"])
        return False
    replicas = read_standings(said, [one.pk for one in present])
    serving = {str(one.pk): one.serves.pk for one in present if one.serves and one.weight}
    if canary.trial.get("serving") != serving:
        # Somebody changed what answers, or an alias moved: what was counted speaks of another.
        _begin(canary, replicas, serving, now)
        return False
    _keep_first_sights(canary, replicas)
    return _decide(endpoint, canary, others_there, replicas, now)


def _decide(
    endpoint: Endpoint,
    canary: Deployment,
    others_there: list[Deployment],
    replicas: Sequence[Replica],
    now: datetime,
) -> bool:
    """Widen or take back a canary whose step has begun, if that may be by now."""
    ours = _since(canary, replicas, [canary])
    others = _since(canary, replicas, others_there)
    seconds = (now - datetime.fromisoformat(canary.trial["since"])).total_seconds()
    if seconds >= STEP_SECONDS and (problem := _why_not_loaded(canary, replicas)) is not None:
        _take_back(endpoint, canary, others_there, cause="load_failed", reason=problem)
        return True
    verdict = judge(ours, others, seconds=seconds)
    step = _step_after(canary.weight)
    if verdict == "wait" or (verdict == "widen" and not leaves_room(step, others_there)):
        return False
    evidence = {
        "canary": ours.described(),
        "others": others.described(),
        "seconds": round(seconds, 1),
    }
    if verdict == "roll_back":
        _take_back(endpoint, canary, others_there, evidence=evidence)
    else:
        _widen(endpoint, canary, others_there, evidence)
    return True


def _begin(
    canary: Deployment, replicas: Iterable[Replica], serving: Mapping[str, int], now: datetime
) -> None:
    """Begin a step: keep what replicas have counted until now."""
    canary.trial = {
        "since": now.isoformat(),
        "serving": dict(serving),
        "counted": {
            _place(replica, one): list(one.trial)
            for replica in replicas
            for one in replica.standings
        },
    }
    canary.save(update_fields=["trial"])


def _place(replica: Replica, one: DeploymentStanding) -> str:
    """Name what counts by itself: each version of a deployment at each process."""
    return f"{replica.id}:{one.deployment_id}:{one.version}"


def _keep_first_sights(canary: Deployment, replicas: Iterable[Replica]) -> None:
    """Let what was silent when the step began count from when it is first heard of.

    What a process has counted by then may be its whole history, unless that began after the step.
    """
    kept = canary.trial["counted"]
    since = datetime.fromisoformat(canary.trial["since"])
    first = {
        _place(replica, one): list(one.trial)
        for replica in replicas
        if replica.started_at is None or replica.started_at <= since
        for one in replica.standings
        if _place(replica, one) not in kept
    }
    if first:
        kept |= first
        canary.save(update_fields=["trial"])


def _since(
    canary: Deployment, replicas: Iterable[Replica], deployments: Iterable[Deployment]
) -> Counted:
    """Add up what replicas counted since the step began of what the deployments serve now.

    One that began again counts from 0.
    """
    wanted = {(one.pk, one.serves.number) for one in deployments if one.serves}
    before = canary.trial["counted"]
    total = Counted()
    for replica in replicas:
        for one in replica.standings:
            if (one.deployment_id, one.version) not in wanted:
                continue
            requests, failures, total_ns, squares = before.get(_place(replica, one), [0, 0, 0, 0])
            now = one.trial
            if now.requests < requests:
                requests = failures = total_ns = squares = 0
            total += Counted(
                requests=now.requests - requests,
                failures=max(0, now.failures - failures),
                total_ns=max(0, now.total_ns - total_ns),
                squares=max(0, now.squares - squares),
            )
    return total


def _step_after(weight: int) -> int:
    return next((step for step in STEPS if step > weight), FULL_WEIGHT)


def _widen(
    endpoint: Endpoint, canary: Deployment, others: list[Deployment], evidence: dict[str, Any]
) -> None:
    touch(endpoint)
    before = canary.weight
    step = _step_after(before)
    # The next look takes down what is counted at the new weight.
    canary.trial = {"begun": True} if step < FULL_WEIGHT else {}
    if step == FULL_WEIGHT:
        canary.role = DeploymentRole.LIVE
    give_share(canary, step, others)
    canary.save(update_fields=["trial"])
    record_change(
        _CANARY,
        AuditAction.CANARY_WIDEN,
        canary,
        canary.serves,
        before=before,
        evidence=evidence,
    )


def _why_not_loaded(canary: Deployment, replicas: Iterable[Replica]) -> str | None:
    """Say why no process that was told of a canary could load it; None where one may yet."""
    assert canary.serves is not None
    told = [
        one
        for replica in replicas
        for one in replica.standings
        if (one.deployment_id, one.version) == (canary.pk, canary.serves.number)
    ]
    if not told or any(one.state != "failed" for one in told):
        return None
    return told[0].detail


def _take_back(
    endpoint: Endpoint, canary: Deployment, others: list[Deployment], **why: Any
) -> None:
    touch(endpoint)
    before = canary.weight
    canary.trial = {}
    give_share(canary, 0, others)
    canary.save(update_fields=["trial"])
    record_change(
        _CANARY,
        AuditAction.CANARY_ROLL_BACK,
        canary,
        canary.serves,
        before=before,
        **why,
    )
