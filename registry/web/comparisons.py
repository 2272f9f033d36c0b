"""A version beside the one it was made from: numbers, and the answers to the same rows."""

import base64
import binascii
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from registry.models import Actor, Alias, Job, LineageEdge, LineageRole, Version
from registry.permissions import allowed
from registry.web import reports, wording
from registry.web.history import ratio_text

OUTCOMES: Final = ("lost", "won", "changed", "same")
MAKERS: Final = frozenset({"compress", "search"})
_MOST_ROWS = 60
_NEAR = 0.02
_LARGEST_SIDE = 64
_OFFERED = ("champion", "production")
_MOST_OFFERS = 4
# Numbers of which more is better; of all others less is.
_MORE_IS_BETTER = frozenset({"accuracy", "f1_macro", "worst_class_recall_change"})


@dataclass(frozen=True, kw_only=True)
class Number:
    """One measured number beside the parent's."""

    name: str
    parent: str
    child: str
    change: str
    tone: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one of both said to a row."""

    text: str
    score: str = ""
    tone: str = "m"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One row of the dataset with both answers."""

    row: int
    outcome: str
    outcome_name: str
    text: str
    picture: str
    label: str
    cosine: str
    parent: Answer
    child: Answer


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An alias that could point at the version, and whether this person may move it there."""

    alias: str
    now: int | None
    protected: bool


def part_of(job: Job, variant: str) -> Mapping[str, Any]:
    """Give the part of a report that is about one variant: of a search there are several."""
    report = reports.table(job.report)
    for part in reports.rows(report.get("variants")):
        if part.get("name") == variant:
            return part
    return report


def numbers(part: Mapping[str, Any]) -> list[Number]:
    """List the numbers that have the parent's beside them."""
    found = []
    for metric in reports.rows(part.get("metrics")):
        name, unit = str(metric.get("metric", "")), str(metric.get("unit") or "")
        child = reports.number(metric.get("value"))
        beside = reports.table(reports.table(metric.get("details")).get("parent"))
        parent = reports.number(beside.get("value"))
        if child is not None and parent is not None:
            found.append(_number(name, unit, parent, child, metric))
    return found


def _number(name: str, unit: str, parent: float, child: float, metric: Mapping[str, Any]) -> Number:
    if name == "worst_class_recall_change":
        worst = str(reports.table(metric.get("details")).get("class", ""))[:100]
        child = parent + child
        name, title = "accuracy", _("Recall of %(name)s, which lost most") % {"name": worst}
    else:
        title = wording.metric_name(name)
    if name in _MORE_IS_BETTER:
        change = wording.points_text(child - parent)
        tone = "m" if change.startswith("0") else "up" if child > parent else "down"
    else:
        change = ratio_text(parent, child)
        near = abs(child - parent) <= _NEAR * abs(parent)
        tone = "m" if near else "up" if child < parent else "down"
    return Number(
        name=title,
        parent=wording.value_text(parent, unit, name),
        child=wording.value_text(child, unit, name),
        change=change,
        tone=tone,
    )


def compared(part: Mapping[str, Any]) -> list[Compared]:
    """List the rows that the report kept, with both answers."""
    summary = reports.table(part.get("summary"))
    return [_compared(row) for row in reports.rows(summary.get("compared"))[:_MOST_ROWS]]


def _compared(row: Mapping[str, Any]) -> Compared:
    outcome = str(row.get("outcome"))
    outcome = outcome if outcome in OUTCOMES else "changed"
    given = reports.table(row.get("input"))
    label = str(row.get("label") or "")[:100]
    cosine = reports.number(row.get("cosine"))
    return Compared(
        row=int(reports.number(row.get("row")) or 0) + 1,
        outcome=outcome,
        outcome_name=outcome_name(outcome, vectors=cosine is not None),
        text=" · ".join(value[:500] for value in given.values() if isinstance(value, str)),
        picture=next((_picture(v) for v in given.values() if isinstance(v, dict)), ""),
        label=label,
        cosine="" if cosine is None else f"{cosine:.4f}",
        parent=_answer(row.get("parent"), label),
        child=_answer(row.get("child"), label),
    )


def _answer(said: object, label: str) -> Answer:
    answer = reports.table(said)
    text = str(answer.get("answer") or "")[:500]
    score = reports.number(answer.get("score"))
    tone = ("good" if text == label else "bad") if label else ""
    return Answer(text=text, score="" if score is None else wording.percent_text(score), tone=tone)


def outcome_name(outcome: str, *, vectors: bool) -> str:
    """Name what became of an answer; vectors have no right ones, but neighbours."""
    if vectors:
        return {
            "changed": pgettext("what became of an answer", "Other neighbour"),
            "same": pgettext("what became of an answer", "Same neighbour"),
        }.get(outcome, outcome)
    return {
        "lost": pgettext("what became of an answer", "Lost"),
        "won": pgettext("what became of an answer", "Won"),
        "changed": pgettext("what became of an answer", "Wrong otherwise"),
        "same": pgettext("what became of an answer", "Same"),
    }[outcome]


def counts(rows: Sequence[Compared]) -> list[tuple[str, str, int]]:
    """Count the rows of each outcome that occurs."""
    return [
        (outcome, own[0].outcome_name, len(own))
        for outcome in OUTCOMES
        if (own := [row for row in rows if row.outcome == outcome])
    ]


def _picture(said: Mapping[str, Any]) -> str:
    """Write a small grey picture as the data address of a PNG."""
    width, height = reports.number(said.get("width")), reports.number(said.get("height"))
    grey = said.get("grey")
    if width is None or height is None or not isinstance(grey, str):
        return ""
    wide, high = int(width), int(height)
    if not (0 < wide <= _LARGEST_SIDE and 0 < high <= _LARGEST_SIDE):
        return ""
    try:
        pixels = base64.b64decode(grey, validate=True)
    except (binascii.Error, ValueError):
        return ""
    if len(pixels) != wide * high:
        return ""
    return "data:image/png;base64," + base64.b64encode(_png(wide, high, pixels)).decode()


def _png(width: int, height: int, grey: bytes) -> bytes:
    lines = b"".join(b"\0" + grey[at * width : (at + 1) * width] for at in range(height))
    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def offers(actor: Actor, version: Version) -> list[Offer]:
    """List the aliases to promote a version to: those of its model, then the usual names."""
    repository = version.repository
    if not allowed(actor, "write", repository):
        return []
    present = dict(
        Alias.objects.filter(repository=repository)
        .order_by("name")
        .values_list("name", "version__number")
    )
    names = [*present, *(name for name in _OFFERED if name not in present)]
    maintains = allowed(actor, "maintain", repository) and not repository.second_approver
    return [
        Offer(
            alias=name,
            now=present.get(name),
            protected=repository.protects(name) and not maintains,
        )
        for name in names
        if present.get(name) != version.number
    ][:_MOST_OFFERS]


def results_of(actor: Actor, job: Job) -> list[Version]:
    """Give the variants that a job made and `actor` may see, the recommended one first."""
    if job.kind not in MAKERS:
        return []
    made = (
        Version.objects.visible_to(actor)
        .filter(job=job)
        .select_related("repository__namespace")
        .order_by("number")
    )
    return sorted(made, key=lambda version: version.pk != job.result_id)


def parent_of(actor: Actor, version: Version) -> Version | None:
    """Find the version whose weights a variant was made from."""
    visible = Version.objects.visible_to(actor).values("pk")
    edge = (
        LineageEdge.objects.filter(child=version, role=LineageRole.WEIGHTS, parent__in=visible)
        .select_related("parent__repository__namespace")
        .first()
    )
    return edge.parent if edge else None
