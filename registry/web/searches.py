"""A search as pages show it: goals to pick, candidates as they come, and why the rest lost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from registry.models import Job, JobEvent, Version
from registry.web import charts, reports, wording
from registry.web.history import ratio_text

KIND: Final = "search"
_MOST: Final = 500
_VECTORS: Final = frozenset({"cosine", "neighbours"})
# What a candidate was judged by, as the axis of the picture names it.
_AXES: Final = {
    "accuracy": gettext_noop("Accuracy against the parent, points"),
    "probe": gettext_noop("Accuracy of a probe against the parent's, points"),
    "cosine": gettext_noop("Cosine to parent"),
    "neighbours": gettext_noop("Overlap of neighbours with the parent's"),
}
_NAMES: Final = {
    "accuracy": gettext_noop("Accuracy"),
    "probe": gettext_noop("Accuracy of a probe"),
    "cosine": gettext_noop("Cosine"),
    "neighbours": gettext_noop("Same neighbours"),
}
_ORDER: Final = ("met", "undecided", "failed", "error")
_VERDICTS: Final = {
    "met": (gettext_noop("meets the goal"), "good"),
    "failed": (gettext_noop("fails"), "bad"),
    "undecided": (gettext_noop("undecided"), "warn"),
    "error": (gettext_noop("could not be made"), ""),
}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A goal that many have, with what it fills into the form."""

    key: str
    title: str
    about: str
    fields: Mapping[str, Any]
    for_vectors: bool = False


_GOALS: Final = (
    Goal(
        key="smallest",
        title=gettext_noop("As small as possible"),
        about=gettext_noop("A classifier that loses at most one percent of its accuracy."),
        fields={"goal": "smallest", "max_accuracy_loss": 0.01},
    ),
    Goal(
        key="fastest",
        title=gettext_noop("As fast as possible"),
        about=gettext_noop("A classifier that loses at most one percent of its accuracy."),
        fields={"goal": "fastest", "max_accuracy_loss": 0.01},
    ),
    Goal(
        key="fast-enough",
        title=gettext_noop("Fast enough, and good enough"),
        about=gettext_noop("A classifier that answers within 5 ms, 95 of a hundred rightly."),
        fields={"goal": "fastest", "max_latency_ms": 5, "min_accuracy": 0.95},
    ),
    Goal(
        key="smallest-vectors",
        title=gettext_noop("As small as possible, alike in vectors"),
        about=gettext_noop("An encoder whose vectors keep a cosine of at least 0.99."),
        fields={"goal": "smallest", "min_cosine": 0.99},
        for_vectors=True,
    ),
    Goal(
        key="fits",
        title=gettext_noop("Fit into a size"),
        about=gettext_noop("As good as can be within so many bytes: 8 MB to begin with."),
        fields={"goal": "fits", "max_bytes": 8_000_000},
    ),
)
_VECTOR_TASKS: Final = frozenset({"sentence-similarity", "feature-extraction"})


def goals() -> list[tuple[str, str, str]]:
    """List the goals to pick from: key, title and what it means."""
    return [(goal.key, _(goal.title), _(goal.about)) for goal in _GOALS]


def usual_goal(task: str) -> str:
    """Choose the goal that fits a model's task."""
    vectors = task.lower() in _VECTOR_TASKS
    return next(goal.key for goal in _GOALS if goal.for_vectors is vectors)


def fields_of(key: str) -> dict[str, Any]:
    """Give the values that a goal fills into the form."""
    found = next((goal for goal in _GOALS if goal.key == key), _GOALS[0])
    return {f"steps.0.{name}": value for name, value in found.fields.items()}


def goal_of(filled: Mapping[str, Any]) -> str:
    """Choose the goal that the fields of a form come from."""
    asked = filled.get("steps.0.goal")
    limits = (filled.get("steps.0.min_cosine"), filled.get("steps.0.min_neighbour_overlap"))
    vectors = any(limit is not None for limit in limits)
    least = filled.get("steps.0.min_accuracy") is not None
    found = (
        goal.key
        for goal in _GOALS
        if goal.fields["goal"] == asked
        and (goal.for_vectors == vectors or asked == "fits")
        and (("min_accuracy" in goal.fields) == least or asked != "fastest")
    )
    return next(found, _GOALS[0].key)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One candidate as a row of the table."""

    number: int
    name: str
    size: str
    smaller: str
    latency: str
    quality: str
    interval: str
    verdict: str
    tone: str
    reason: str
    is_best: bool
    version: Version | None
    rank: tuple[int, float]
    """Its place in the table: those that meet the goal first, the smallest first."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search has found so far, or found in all."""

    candidates: Sequence[Candidate]
    chart: charts.Scatter | None
    x_label: str
    y_label: str
    quality_name: str
    axis: str
    met: int
    rows: int
    ended_by_time: bool


def search_of(job: Job, axis: str, made: Sequence[Version]) -> Search | None:
    """Read the candidates of a search: from its report, or from what it has said until now."""
    if job.kind != KIND:
        return None
    summary = reports.summary_of(job)
    found = [_of_report(row) for row in reports.rows(summary.get("candidates"))[:_MOST]]
    if not found:
        said = JobEvent.objects.filter(job=job, type="candidate").order_by("pk")
        found = [_of_event(data) for data in said.values_list("data", flat=True)[:_MOST]]
    measure = next(
        (str(row["measure"]) for row in found if row.get("measure") in _AXES), "accuracy"
    )
    best = str(summary.get("recommended") or "")
    parent = reports.number(summary.get("parent_bytes"))
    versions = {version.variant: version for version in made}
    axis = "latency" if axis == "latency" else "size"
    listed = [
        _candidate(at, row, measure, parent, best, versions) for at, row in enumerate(found, 1)
    ]
    if job.is_finished:
        listed.sort(key=lambda one: (not one.is_best, one.version is None, *one.rank))
    return Search(
        candidates=listed,
        chart=_chart(found, measure, axis),
        x_label=_("p50 latency at batch 1, ms (log)") if axis == "latency" else _("Size, MB (log)"),
        y_label=_(_AXES[measure]),
        quality_name=_(_NAMES[measure]),
        axis=axis,
        met=sum(row.get("verdict") == "met" for row in found),
        rows=int(reports.number(summary.get("rows")) or 0),
        ended_by_time=summary.get("ended_by_time") is True,
    )


def _of_event(data: object) -> Mapping[str, Any]:
    """Read a candidate that was just told of."""
    row = reports.table(data)
    return {**row, "reason": reports.said(row.get("said"), row.get("reason"))}


def _of_report(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read a candidate of a report as if it had just been told of."""
    judged = reports.table(row.get("quality"))
    measure = next(iter(judged), "")
    first = reports.table(judged.get(measure))
    return {
        **{key: row.get(key) for key in ("name", "bytes", "latency_ms", "verdict")},
        "measure": measure,
        "loss": first.get("value"),
        "low": first.get("low"),
        "high": first.get("high"),
        "reason": reports.said(row.get("said"), row.get("reason")),
    }


def _candidate(
    number: int,
    row: Mapping[str, Any],
    measure: str,
    parent: float | None,
    best: str,
    versions: Mapping[str, Version],
) -> Candidate:
    name = str(row.get("name", ""))[:80]
    size, took = reports.number(row.get("bytes")), reports.number(row.get("latency_ms"))
    loss, low, high = (reports.number(row.get(key)) for key in ("loss", "low", "high"))
    said = str(row.get("verdict"))
    verdict, tone = _VERDICTS.get(said, _VERDICTS["undecided"])
    return Candidate(
        number=number,
        name=name,
        size=wording.size_text(size),
        smaller=ratio_text(parent, size) if parent and size else "",
        latency=wording.NOTHING if took is None else wording.value_text(took, "ms"),
        quality=wording.NOTHING if loss is None else _quality(loss, measure),
        interval=""
        if low is None or high is None
        else f"{_quality(high, measure)} {wording.NOTHING} {_quality(low, measure)}",
        verdict=_(verdict),
        tone=tone,
        reason=str(row.get("reason") or "")[:500],
        is_best=bool(best) and name == best,
        version=versions.get(name),
        rank=(_ORDER.index(said) if said in _ORDER else len(_ORDER), size or math.inf),
    )


def _quality(loss: float, measure: str) -> str:
    """Say what a loss leaves: points of accuracy, or how alike vectors stay."""
    return f"{1 - loss:.4f}" if measure in _VECTORS else wording.points_text(-loss)


def _chart(found: Sequence[Mapping[str, Any]], measure: str, axis: str) -> charts.Scatter | None:
    points = []
    for number, row in enumerate(found, 1):
        size, took = reports.number(row.get("bytes")), reports.number(row.get("latency_ms"))
        loss = reports.number(row.get("loss"))
        cost = took if axis == "latency" else size and size / 1e6
        if loss is None or not cost or not math.isfinite(cost):
            continue
        low, high = reports.number(row.get("low")), reports.number(row.get("high"))
        verdict, _tone = _VERDICTS.get(str(row.get("verdict")), _VERDICTS["undecided"])
        name = str(row.get("name", ""))[:80]
        points.append(
            charts.Measured(
                name=name,
                x=cost,
                y=_height(loss, measure),
                low=None if high is None else _height(high, measure),
                high=None if low is None else _height(low, measure),
                family=wording.family_of(name),
                href=f"#candidate-{number}",
                counts=row.get("verdict") == "met",
                facts=[
                    (_("Quality"), _quality(loss, measure)),
                    (_("Size"), wording.size_text(size)),
                    *([(_("Latency"), wording.value_text(took, "ms"))] if took is not None else []),
                    (_("Verdict"), _(verdict)),
                ],
            )
        )
    return charts.scatter(points)


def _height(loss: float, measure: str) -> float:
    return 1 - loss if measure in _VECTORS else -100 * loss
