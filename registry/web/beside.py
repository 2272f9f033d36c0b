"""Up to six versions beside each other as people read them; the change of two numbers."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

from django.utils.formats import date_format
from django.utils.translation import gettext as _

from registry.models import Actor, Version, is_better
from registry.services import beside
from registry.web import wording

_MOST_ROWS: Final = 300
_MOST_PORTS: Final = 20
_SHOWN_CHARACTERS: Final = 300
# What is longer has its digest to be told by.
_TOLD_CHARACTERS: Final = 80


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one version says, and whether it is the best of a row of numbers."""

    text: str
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """One fact of each version."""

    name: str
    cells: Sequence[Cell]
    differs: bool
    is_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows of one kind, how many are alike and left out, and how many are too many to show."""

    title: str
    lines: Sequence[Line]
    alike: int
    cut: int


@dataclass(frozen=True, kw_only=True)
class Number:
    """A metric of two versions, and which way it went."""

    name: str
    on: str
    before: str
    after: str
    change: str
    tone: str


def sections(actor: Actor, versions: Sequence[Version], *, only_differences: bool) -> list[Section]:
    """Say what is known of each version."""
    found = beside.lay_out(actor, versions, only_differences=only_differences, most=_MOST_ROWS)
    titles = {
        "facts": _("Facts"),
        "metrics": _("Metrics"),
        "tags": _("Tags"),
        "config": "config.json",
        "files": _("Files"),
    }
    return [
        Section(
            title=titles[one.part],
            lines=[_line(one.part, line) for line in one.lines],
            alike=one.alike,
            cut=one.cut,
        )
        for one in found
    ]


def _line(part: beside.Part, line: beside.Line) -> Line:
    name, say, exact = _wording_of(part, line)
    texts = [_short(say(value)) if value is not None else "" for value in line.values]
    if line.differs:
        exactly = exact or _exact
        texts = _told_apart(texts, [exactly(v) if v is not None else "" for v in line.values])
    best = line.best or [False] * len(texts)
    return Line(
        name=name,
        cells=[Cell(text=text, best=one) for text, one in zip(texts, best, strict=True)],
        differs=line.differs,
        is_code=part in {"tags", "config", "files"},
    )


def _told_apart(texts: Sequence[str], exact: Sequence[str]) -> list[str]:
    """Say more of values that read alike and are not; of long ones what tells these apart."""
    kinds = Counter(text for text, _exact in set(zip(texts, exact, strict=True)))
    return [
        f"{text} ({more if len(more) <= _TOLD_CHARACTERS else _digest(more)})"
        if text and kinds[text] > 1
        else text
        for text, more in zip(texts, exact, strict=True)
    ]


def _digest(text: str) -> str:
    return f"SHA-256 {hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}"


_Say = Callable[[Any], str]


def _wording_of(part: beside.Part, line: beside.Line) -> tuple[str, _Say, _Say | None]:
    """Give the name of a line, how its values read, and how those that read alike do."""
    if part == "facts":
        return _facts()[line.name]
    if part == "metrics":
        place = " · ".join(one for one in (line.dataset or "", line.split) if one)
        name = wording.metric_name(line.name)
        return (
            f"{name} ({place})" if place else name,
            lambda value: wording.value_text(value, line.unit, line.name),
            lambda value: _grouped(int(value)) if value.is_integer() else repr(value),
        )
    if part == "files":
        return line.name, _file_text, lambda held: str(held["sha256"])
    return line.name, _plain, None


def _facts() -> Mapping[str, tuple[str, _Say, _Say | None]]:
    """Give each fact its name, its reading, and its exact reading where that one rounds."""
    return {
        "variant": (_("Variant"), str, None),
        "aliases": (_("Aliases"), lambda names: ", ".join(f"@{one}" for one in names), None),
        "state": (_("State"), wording.state_name, None),
        "message": (_("What changed"), str, None),
        "created_by": (_("Author"), str, None),
        "created_at": (_("Created"), _moment_text, _second_text),
        "job_kind": (_("Made by"), lambda kind: str(wording.JOB_KINDS.get(kind)), None),
        "size_bytes": (_("Size"), wording.size_text, _grouped),
        "parameters_count": (_("Parameters"), wording.count_text, _grouped),
        "formats": (_("Formats"), ", ".join, None),
        "inputs": (_("Inputs"), _ports, None),
        "outputs": (_("Outputs"), _ports, None),
    }


def _moment_text(moment: datetime) -> str:
    return date_format(moment, "DATETIME_FORMAT")


def _second_text(moment: datetime) -> str:
    return f"{moment:%H:%M:%S %Z}"


def _grouped(count: int) -> str:
    return f"{count:,}"


def _ports(ports: Sequence[Mapping[str, Any]]) -> str:
    told = [
        f"{port['name']}: {port['dtype']}[{', '.join(map(str, port['shape'] or ()))}]"
        for port in ports[:_MOST_PORTS]
    ]
    return ", ".join([*told, *(["…"] if len(ports) > _MOST_PORTS else [])])


def _file_text(held: Mapping[str, Any]) -> str:
    return f"{wording.size_text(held['size_bytes'])} · {held['sha256'][:8]}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _exact(value)


def _exact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def pairs(versions: Sequence[Version]) -> list[tuple[Version, Version]]:
    """Give neighbours, each with what its change could be looked at in detail."""
    return list(pairwise(versions))


def numbers(rows: Sequence[Mapping[str, Any]]) -> list[Number]:
    """Say metrics of two versions, with their change."""
    return [_number(row) for row in rows]


def _number(row: Mapping[str, Any]) -> Number:
    metric, unit = row["metric"], row["unit"]
    before, after = row["before"], row["after"]
    better = is_better(metric, before, after)
    change = ""
    if before is not None and after is not None and before != after:
        change = (
            wording.points_text(after - before)
            if metric in wording.SHARES
            else wording.signed(f"{100 * (after - before) / before:+.1f}%")
            if before
            else ""
        )
    return Number(
        name=wording.metric_name(metric),
        on=" · ".join(part for part in (row["dataset"] or "", row["split"]) if part),
        before="" if before is None else wording.value_text(before, unit, metric),
        after="" if after is None else wording.value_text(after, unit, metric),
        change=change,
        tone="m" if better is None else "up" if better else "down",
    )
