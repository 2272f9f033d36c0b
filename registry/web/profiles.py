"""The profile of a version as pages show it: bars of its layers, and a table of their numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from registry.models import Actor, Job, JobState, Version
from registry.web import charts, reports, wording

_DRAWN = 16
_LISTED = 200
_LONGEST = 36
_OTHERS = "(other operators)"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One layer of the table."""

    name: str
    kind: str
    parameters: str
    bytes: str
    macs: str
    time: str
    share: str
    bottleneck: bool
    sensitivity: list[tuple[str, str]]
    """What each way of making it smaller costs, and its tone."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a profile found."""

    job: Job
    chart: charts.Bars | None
    series: list[str]
    rows: list[Row]
    hidden: int
    total: str
    batch: int
    ways: list[str]
    tried_on: str
    baseline: str


def profile_of_version(actor: Actor, version: Version) -> Profile | None:
    """Read the newest profile of a version among those that `actor` may see."""
    job = (
        Job.objects.visible_to(actor)
        .filter(kind="profile", result=version, state=JobState.SUCCEEDED)
        .order_by("-finished_at", "-pk")
        .first()
    )
    return profile_of(job) if job else None


def profile_of(job: Job) -> Profile | None:
    """Read a profile out of the report of its job, if there is one in it."""
    summary = reports.summary_of(job)
    layers = reports.rows(summary.get("layers"))
    if job.kind != "profile" or not layers:
        return None
    tried = reports.table(summary.get("sensitivity"))
    ways = [way for way in ("int8", "pruned") if tried]
    sums = {key: sum(_number(layer, key) for layer in layers) for key in _MEASURES}
    layers.sort(key=lambda layer: (layer.get("name") == _OTHERS, -_number(layer, "milliseconds")))
    drawn = layers[:_DRAWN]
    return Profile(
        job=job,
        chart=charts.bars(
            [
                (
                    _short(_name(layer)),
                    str(layer.get("kind", ""))[:60],
                    layer.get("bottleneck") is True,
                    [_number(layer, key) / (sums[key] or 1) for key in _MEASURES],
                )
                for layer in drawn
            ]
        ),
        series=[_("Time"), _("Bytes"), _("Multiply-accumulates")],
        rows=[_row(layer, ways, sums["milliseconds"], tried) for layer in layers[:_LISTED]],
        hidden=max(0, len(layers) - _LISTED),
        total=wording.value_text(reports.number(summary.get("milliseconds")) or 0, "ms"),
        batch=int(reports.number(summary.get("batch")) or 0),
        ways=[{"int8": _("8 bits"), "pruned": _("Half pruned")}[way] for way in ways],
        tried_on=_tried_on(tried),
        baseline=_baseline(tried),
    )


_MEASURES = ("milliseconds", "bytes", "macs")


def _number(layer: Mapping[str, Any], key: str) -> float:
    return max(0.0, reports.number(layer.get(key)) or 0.0)


def _name(layer: Mapping[str, Any]) -> str:
    name = str(layer.get("name", ""))[:200]
    return _("Other operators") if name == _OTHERS else name


def _short(name: str) -> str:
    """Keep the end of a long name: the layers of one model begin alike."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _row(layer: Mapping[str, Any], ways: list[str], time: float, tried: Mapping[str, Any]) -> Row:
    spent = _number(layer, "milliseconds")
    lost = reports.table(layer.get("sensitivity"))
    return Row(
        name=_name(layer),
        kind=str(layer.get("kind", ""))[:60],
        parameters=wording.count_text(_number(layer, "parameters")),
        bytes=wording.size_text(_number(layer, "bytes")),
        macs=wording.count_text(_number(layer, "macs")),
        time=wording.value_text(spent, "ms"),
        share=wording.percent_text(spent / (time or 1)),
        bottleneck=layer.get("bottleneck") is True,
        sensitivity=[_change(reports.number(lost.get(way)), tried) for way in ways],
    )


def _change(value: float | None, tried: Mapping[str, Any]) -> tuple[str, str]:
    if value is None:
        return wording.NOTHING, "m"
    if tried.get("measure") == "accuracy":
        return wording.points_text(value), "down" if value <= -0.01 else "m"
    return wording.signed(f"{value:+.4f}"), "down" if value <= -0.01 else "m"


def _tried_on(tried: Mapping[str, Any]) -> str:
    if not tried:
        return ""
    return _("%(rows)s rows of %(dataset)s, %(split)s") % {
        "rows": f"{int(reports.number(tried.get('rows')) or 0):,}",
        "dataset": str(tried.get("dataset", ""))[:200],
        "split": str(tried.get("split", ""))[:64],
    }


def _baseline(tried: Mapping[str, Any]) -> str:
    value = reports.number(tried.get("baseline"))
    if value is None or tried.get("measure") != "accuracy":
        return ""
    return wording.percent_text(value)
