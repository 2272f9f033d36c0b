"""Up to six versions beside each other: facts, numbers, tags, settings and files, line by line."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

from registry.models import Actor, Alias, Artifact, Evaluation, Repository, Tag, Version, is_better
from registry.recipes import parse_reference
from registry.services import catalog
from registry.services.diffs import settings_of, visible_datasets
from registry.services.texts import invalid_field
from registry.services.versions import MAX_FILES, may_read_files

MOST: Final = 6
Part = Literal["facts", "metrics", "tags", "config", "files"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One fact of each version as it is kept; None where a version has none.

    `best` marks where a number is best. Of a metric there are its unit and what it was measured
    on; the name of a dataset is there for those who see it.
    """

    name: str
    values: Sequence[Any]
    best: Sequence[bool] = ()
    unit: str = ""
    split: str = ""
    dataset: str | None = None

    @cached_property
    def differs(self) -> bool:
        return len({_comparable(value) for value in self.values}) > 1


@dataclass(frozen=True, kw_only=True)
class Section:
    """Lines of one kind, how many are alike and left out, and how many are past the limit."""

    part: Part
    lines: Sequence[Line]
    alike: int
    cut: int


def _comparable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


# --- Which versions -------------------------------------------------------------------------------


def find_named(actor: Actor, repository: Repository, text: str) -> Version:
    """Find a version of a repository (`3`, `@champion`) or of another (`namespace/name@3`).

    Raises:
        Invalid: the text names no version.
        NotFound: there is none that the actor may see.

    """
    if "/" not in text:
        return catalog.find_version(actor, repository, text)
    reference = parse_reference(text)
    kind = repository.kind
    other = catalog.find_repository(actor, kind, reference.namespace, reference.name)
    return catalog.find_version(actor, other, reference.version)


def find_all(actor: Actor, repository: Repository, named: Sequence[str]) -> list[Version]:
    """Find each of the versions that are named.

    Raises:
        Invalid: they are less than two or more than six, one is named twice, or a text names none.
        NotFound: there is one that the actor may not see, or nobody.

    """
    if not 2 <= len(named) <= MOST:
        raise invalid_field(
            "version",
            "wrong_length",
            "Name two to {limit} versions to set beside each other; this is {count}.",
            limit=MOST,
            count=len(named),
        )
    found: dict[int, Version] = {}
    for text in named:
        version = find_named(actor, repository, text)
        if version.pk in found:
            raise invalid_field(
                "version", "repeated", "{version} is named twice.", version=version.ref
            )
        found[version.pk] = version
    return list(found.values())


# --- What is said of them -------------------------------------------------------------------------


def lay_out(
    actor: Actor, versions: Sequence[Version], *, only_differences: bool, most: int
) -> list[Section]:
    """Gather what is said of each version, at most so many lines of a kind, in few queries."""
    if not versions:
        return []
    found: Mapping[Part, list[Line]] = {
        "facts": _facts(versions),
        "metrics": _metrics(actor, versions),
        "tags": _tags(versions),
        "config": _config(actor, versions),
        "files": _files(versions),
    }
    only = only_differences and len(versions) > 1
    return [_section(part, lines, only=only, most=most) for part, lines in found.items() if lines]


def _section(part: Part, lines: Sequence[Line], *, only: bool, most: int) -> Section:
    kept = [line for line in lines if line.differs] if only else list(lines)
    shown = kept[:most]
    return Section(part=part, lines=shown, alike=len(lines) - len(kept), cut=len(kept) - len(shown))


def _facts(versions: Sequence[Version]) -> list[Line]:
    aliases: dict[int, list[str]] = {}
    for alias in Alias.objects.filter(version__in=versions).order_by("name"):
        aliases.setdefault(alias.version_id, []).append(alias.name)
    facts: Mapping[str, Callable[[Version], Any]] = {
        "variant": lambda one: one.variant,
        "aliases": lambda one: aliases.get(one.pk, []),
        "state": lambda one: one.state,
        "message": lambda one: one.message,
        "created_by": lambda one: one.created_by.username if one.created_by else None,
        "created_at": lambda one: one.created_at,
        "job_kind": lambda one: one.job.kind if one.job else None,
        "size_bytes": lambda one: one.size_bytes,
        "parameters_count": lambda one: one.parameters_count,
        "formats": lambda one: one.formats,
        "inputs": lambda one: _ports(one, "inputs"),
        "outputs": lambda one: _ports(one, "outputs"),
    }
    lines = [Line(name=name, values=[say(one) for one in versions]) for name, say in facts.items()]
    return [line for line in lines if any(value not in (None, "", []) for value in line.values)]


def _ports(version: Version, side: str) -> list[dict[str, Any]]:
    return [
        {name: port.get(name) for name in ("name", "dtype", "shape")}
        for port in version.signature.get(side, [])
    ]


def _metrics(actor: Actor, versions: Sequence[Version]) -> list[Line]:
    rows = (
        Evaluation.objects.filter(version__in=versions)
        .select_related("dataset_version__repository__namespace")
        .defer("details")
        .order_by("measured", "created_at", "pk")
    )
    seen = visible_datasets(actor, rows)
    found: dict[tuple[str, str, str, str | None], dict[int, float]] = {}
    for row in rows:
        dataset = row.dataset_version
        on = dataset.ref if dataset is not None and dataset.pk in seen else None
        key = row.metric, row.unit, row.split, on
        found.setdefault(key, {})[row.version_id] = row.value
    lines = []
    for (metric, unit, split, on), held in found.items():
        values = [held.get(one.pk) for one in versions]
        best = _best(metric, values)
        lines.append(
            Line(name=metric, values=values, best=best, unit=unit, split=split, dataset=on)
        )
    return lines


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
    return _lines_of(
        versions,
        (
            (one.pk, name, value)
            for one in versions
            if may_read_files(actor, one)
            for name, value in settings_of(one).items()
        ),
    )


def _files(versions: Sequence[Version]) -> list[Line]:
    revisions = {one.revision_id for one in versions}
    rows = Artifact.objects.filter(revision__in=revisions).values_list(
        "revision", "path", "blob__size_bytes", "blob__sha256"
    )
    of_revision: dict[int, list[tuple[str, Any]]] = {}
    for revision, path, size, sha256 in rows[: MOST * MAX_FILES]:
        held = {"size_bytes": size, "sha256": sha256}
        of_revision.setdefault(revision, []).append((path, held))
    return _lines_of(
        versions,
        (
            (one.pk, path, held)
            for one in versions
            for path, held in of_revision.get(one.revision_id, [])
        ),
    )


def _lines_of(versions: Sequence[Version], rows: Iterable[tuple[int, str, Any]]) -> list[Line]:
    found: dict[str, dict[int, Any]] = {}
    for version, name, value in rows:
        found.setdefault(name, {})[version] = value
    return [
        Line(name=name, values=[held.get(one.pk) for one in versions])
        for name, held in sorted(found.items())
    ]
