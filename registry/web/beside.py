"""Up to six versions beside each other: facts, numbers, tags, settings and files, row by row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from django.utils.formats import date_format
from django.utils.translation import gettext as _

from registry.models import Actor, Alias, Artifact, Evaluation, Tag, Version, is_better
from registry.services.diffs import flat_config, visible_datasets
from registry.services.versions import may_read_files
from registry.web import wording

MOST: Final = 6
_MOST_ROWS: Final = 300
_SHOWN_CHARACTERS: Final = 300


@dataclass(frozen=True, kw_only=True)
class Line:
    """One fact of each version; `best` marks where a number is best."""

    name: str
    values: Sequence[str]
    best: Sequence[bool] = ()
    is_code: bool = False

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1

    @property
    def cells(self) -> list[tuple[str, bool]]:
        best = self.best or [False] * len(self.values)
        shown = [_short(value) for value in self.values]
        return list(zip(shown, best, strict=True))


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows of one kind, and how many are alike and left out."""

    title: str
    lines: Sequence[Line]
    hidden: int


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
    """Gather what is said of each version, in a fixed number of queries."""
    if not versions:
        return []
    found = [
        (_("Facts"), _facts(versions)),
        (_("Metrics"), _metrics(actor, versions)),
        (_("Tags"), _tags(versions)),
        ("config.json", _config(actor, versions)),
        (_("Files"), _files(versions)),
    ]
    return [
        _section(title, lines, only_differences=only_differences and len(versions) > 1)
        for title, lines in found
        if lines
    ]


def _short(text: str) -> str:
    """Shorten what is shown; it was compared whole."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def _section(title: str, lines: Sequence[Line], *, only_differences: bool) -> Section:
    kept = [line for line in lines if line.differs] if only_differences else list(lines)
    shown = kept[:_MOST_ROWS]
    return Section(title=title, lines=shown, hidden=len(lines) - len(shown))


def _facts(versions: Sequence[Version]) -> list[Line]:
    aliases: dict[int, list[str]] = {}
    for alias in Alias.objects.filter(version__in=versions).order_by("name"):
        aliases.setdefault(alias.version_id, []).append(f"@{alias.name}")
    facts: Sequence[tuple[str, Callable[[Version], str]]] = (
        (_("Variant"), lambda one: one.variant),
        (_("Aliases"), lambda one: ", ".join(aliases.get(one.pk, []))),
        (_("State"), lambda one: wording.state_name(one.state)),
        (_("What changed"), lambda one: one.message),
        (_("Author"), lambda one: one.created_by.username if one.created_by else ""),
        (_("Created"), lambda one: date_format(one.created_at, "DATETIME_FORMAT")),
        (_("Made by"), lambda one: str(wording.JOB_KINDS.get(one.job.kind)) if one.job else ""),
        (_("Size"), lambda one: wording.size_text(one.size_bytes)),
        (_("Parameters"), lambda one: wording.count_text(one.parameters_count)),
        (_("Formats"), lambda one: ", ".join(one.formats)),
        (_("Inputs"), lambda one: _ports(one, "inputs")),
        (_("Outputs"), lambda one: _ports(one, "outputs")),
    )
    lines = [Line(name=name, values=[say(one) for one in versions]) for name, say in facts]
    return [line for line in lines if any(line.values)]


def _ports(version: Version, side: str) -> str:
    return ", ".join(
        f"{port.get('name')}: {port.get('dtype')}[{', '.join(map(str, port.get('shape') or ()))}]"
        for port in version.signature.get(side, [])[:20]
    )


def _metrics(actor: Actor, versions: Sequence[Version]) -> list[Line]:
    rows = (
        Evaluation.objects.filter(version__in=versions)
        .select_related("dataset_version__repository__namespace")
        .defer("details")
        .order_by("measured", "created_at", "pk")
    )
    seen = visible_datasets(actor, rows)
    found: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for row in rows:
        dataset = row.dataset_version
        on = dataset.ref if dataset is not None and dataset.pk in seen else ""
        key = row.metric, row.unit, row.split, on
        found.setdefault(key, {})[row.version_id] = row.value
    return [_metric(key, [held.get(one.pk) for one in versions]) for key, held in found.items()]


def _metric(key: tuple[str, str, str, str], values: Sequence[float | None]) -> Line:
    metric, unit, split, on = key
    place = " · ".join(part for part in (on, split) if part)
    name = wording.metric_name(metric)
    return Line(
        name=f"{name} ({place})" if place else name,
        values=[
            "" if value is None else wording.value_text(value, unit, metric) for value in values
        ],
        best=_best(metric, values),
    )


def _best(metric: str, values: Sequence[float | None]) -> list[bool]:
    """Mark the best of several, where one knows which way is up."""
    known = [value for value in values if value is not None]
    if len(set(known)) < 2:
        return [False] * len(values)
    best = known[0]
    for value in known[1:]:
        verdict = is_better(metric, best, value)
        if verdict is None and value != best:
            return [False] * len(values)
        best = value if verdict else best
    return [value == best for value in values]


def _tags(versions: Sequence[Version]) -> list[Line]:
    return _lines_of(
        versions, Tag.objects.filter(version__in=versions).values_list("version", "key", "value")
    )


def _config(actor: Actor, versions: Sequence[Version]) -> list[Line]:
    rows = [
        (one.pk, name, value)
        for one in versions
        if may_read_files(actor, one)
        for name, value in flat_config(one).items()
    ]
    return _lines_of(versions, rows)


def _files(versions: Sequence[Version]) -> list[Line]:
    revisions = {one.revision_id: one for one in versions}
    rows = Artifact.objects.filter(revision__in=revisions).values_list(
        "revision", "path", "blob__size_bytes", "blob__sha256"
    )
    of_revision: dict[int, list[tuple[str, str]]] = {}
    for revision, path, size, sha256 in rows.order_by("path")[: MOST * 2000]:
        said = f"{wording.size_text(size)} · {sha256[:8]}"
        of_revision.setdefault(revision, []).append((path, said))
    return _lines_of(
        versions,
        [
            (one.pk, path, said)
            for one in versions
            for path, said in of_revision.get(one.revision_id, [])
        ],
    )


def _lines_of(versions: Sequence[Version], rows: Any) -> list[Line]:
    found: dict[str, dict[int, str]] = {}
    for version, name, value in rows:
        found.setdefault(name, {})[version] = value
    return [
        Line(name=name, values=[held.get(one.pk, "") for one in versions], is_code=True)
        for name, held in sorted(found.items())
    ]


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
