"""What changed from one version to another: files, texts, settings, tags, numbers, weights."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NamedTuple

from registry.errors import Text
from registry.models import (
    Actor,
    Artifact,
    Blob,
    Evaluation,
    Job,
    Tag,
    Version,
    is_better,
)
from registry.recipes import BASE, DiffRecipe
from registry.services.compatibility import why_incompatible, why_untold
from registry.services.jobs import submit_job
from registry.services.line_diffs import CONTEXT, Budget, Line, TooDifferentError, changed_lines
from registry.services.versions import may_read_files
from registry.services.weights import Weights, find_known, pair_of
from registry.storage import default_storage

_TEXTS: Final = frozenset(
    {".md", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".csv", ".tsv", ".cfg", ".ini"}
    | {".py", ".xml", ".html", ".license"}
)
_NAMED_TEXTS: Final = frozenset({"license", "notice", "readme", "dockerfile"})
_TEXT_BYTES: Final = 256 * 1024
_TEXT_LINES: Final = 2000
# What all texts of a comparison may take together: pairs of lines, some 100 ns each.
_TEXT_PAIRS: Final = 1_600_000
_SHOWN_LINES: Final = 400
_SHOWN_CHARACTERS: Final = 500
_SHOWN_TEXTS: Final = 20
_SHOWN_SETTINGS: Final = 500
_SETTING_DEPTH: Final = 12
_SETTING_CHARACTERS: Final = 300
_DIGEST: Final = 12
CARD: Final = "README.md"


class FileChange(NamedTuple):
    """A path whose bytes differ; one side is empty where it is not there."""

    path: str
    before: Blob | None
    after: Blob | None


@dataclass(frozen=True, kw_only=True)
class TextDiff:
    """What changed in a text, or why that is not shown."""

    path: str
    lines: Sequence[Line] = ()
    is_cut: bool = False
    why: Text | None = None

    @property
    def added(self) -> int:
        return sum(line.sign == "+" for line in self.lines)

    @property
    def removed(self) -> int:
        return sum(line.sign == "-" for line in self.lines)


class Setting(NamedTuple):
    """A value of config.json, or a tag; None where it is not there."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True, kw_only=True)
class FilesDiff:
    """What files came, went and changed, and how many stayed as they were."""

    added: Sequence[FileChange]
    removed: Sequence[FileChange]
    changed: Sequence[FileChange]
    unchanged_count: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    @property
    def all(self) -> list[FileChange]:
        found = [*self.added, *self.removed, *self.changed]
        return sorted(found, key=lambda change: change.path)


WeightsState = Literal["equal", "known", "running", "unknown", "impossible"]


@dataclass(frozen=True, kw_only=True)
class WeightsDiff:
    """What is known of what became of the weights.

    `impossible` says `why`; `unknown` can be asked for; `running` names the job that computes it.
    """

    state: WeightsState
    summary: Mapping[str, Any] | None = None
    weights: Weights | None = None
    job: Job | None = None
    why: Text | None = None


# --- Files and texts ------------------------------------------------------------------------------


def compare_files(before: Version, after: Version) -> FilesDiff:
    old, new = _blobs_of(before, after)
    shared = old.keys() & new.keys()
    changed = [path for path in sorted(shared) if old[path].sha256 != new[path].sha256]
    return FilesDiff(
        added=[FileChange(path, None, new[path]) for path in sorted(new.keys() - shared)],
        removed=[FileChange(path, old[path], None) for path in sorted(old.keys() - shared)],
        changed=[FileChange(path, old[path], new[path]) for path in changed],
        unchanged_count=len(shared) - len(changed),
    )


def _blobs_of(*versions: Version) -> list[dict[str, Blob]]:
    revisions = [version.revision_id for version in versions]
    found: dict[int, dict[str, Blob]] = {revision: {} for revision in revisions}
    for row in Artifact.objects.filter(revision__in=revisions).select_related("blob"):
        found[row.revision_id][row.path] = row.blob
    return [found[revision] for revision in revisions]


def compare_texts(
    actor: Actor, before: Version, after: Version, files: FilesDiff
) -> list[TextDiff]:
    """Compare the texts among the files that changed, the card first.

    Of archived versions only those see the content who may download it.
    """
    changes = [change for change in files.all if is_text(change.path)]
    changes.sort(key=lambda change: (change.path != CARD, change.path))
    if not all(may_read_files(actor, one) for one in (before, after)):
        return []
    budget = Budget(_TEXT_PAIRS)
    return [_text_diff(change, budget) for change in changes[:_SHOWN_TEXTS]]


def is_text(path: str) -> bool:
    name = PurePosixPath(path).name.lower()
    return PurePosixPath(name).suffix in _TEXTS or name in _NAMED_TEXTS


def _text_diff(change: FileChange, budget: Budget) -> TextDiff:
    blobs = [blob for blob in (change.before, change.after) if blob is not None]
    if any(blob.size_bytes > _TEXT_BYTES for blob in blobs):
        why = Text(
            "Texts of more than {limit} bytes are compared by their digests only.",
            limit=_TEXT_BYTES,
        )
        return TextDiff(path=change.path, why=why)
    try:
        old, new = (_lines_of(blob) for blob in (change.before, change.after))
    except UnicodeDecodeError:
        return TextDiff(path=change.path, why=Text("It is no text in UTF-8."))
    try:
        return _lines_diff(change.path, old, new, budget)
    except TooDifferentError:
        why = Text("Comparing it line by line would take too long.")
        return TextDiff(path=change.path, why=why)


def _lines_diff(path: str, old: Sequence[str], new: Sequence[str], budget: Budget) -> TextDiff:
    budget.take(len(old) + len(new))
    head = _same_at_the_start(old, new)
    tail = _same_at_the_start(old[head:][::-1], new[head:][::-1])
    middle = [len(lines) - head - tail for lines in (old, new)]
    if max(middle) > _TEXT_LINES:
        why = Text("More than {limit} lines changed.", limit=_TEXT_LINES)
        return TextDiff(path=path, why=why)
    # What is the same around is left out before, but for the lines that are shown beside.
    start, end = max(0, head - CONTEXT), max(0, tail - CONTEXT)
    first, second = (lines[start : len(lines) - end] for lines in (old, new))
    found = list(islice(changed_lines(first, second, budget, start=start), _SHOWN_LINES + 1))
    shown = [Line(line.sign, line.text[:_SHOWN_CHARACTERS]) for line in found[:_SHOWN_LINES]]
    return TextDiff(path=path, lines=shown, is_cut=len(found) > _SHOWN_LINES)


def _lines_of(blob: Blob | None) -> list[str]:
    if blob is None:
        return []
    raw = default_storage().read(blob.sha256, start=0, end=blob.size_bytes)
    return raw.decode("utf-8").splitlines()


def _same_at_the_start(old: Sequence[str], new: Sequence[str]) -> int:
    count = 0
    for one, other in zip(old, new, strict=False):
        if one != other:
            break
        count += 1
    return count


# --- Settings, tags, numbers ----------------------------------------------------------------------


def compare_config(actor: Actor, before: Version, after: Version) -> list[Setting]:
    """Compare config.json value by value, whatever its layout; the signature is told apart.

    Of archived versions only those see it who may download it.
    """
    if not all(may_read_files(actor, one) for one in (before, after)):
        return []
    return _settings(flat_config(before), flat_config(after))


def flat_config(version: Version) -> dict[str, str]:
    return {name: _text_of(value) for name, value in _flat(_plain_config(version), "", 0)}


def settings_of(version: Version) -> dict[str, Any]:
    """Give the values of config.json by their paths.

    Null is a text here, for it is there; that text itself stands in quotes.
    """
    found = _flat(_plain_config(version), "", 0)
    return {
        name: _text_of(value) if value is None or value == "null" else value
        for name, value in found
    }


def _text_of(value: Any) -> str:
    is_plain = isinstance(value, str) and not _is_json(value)
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _plain_config(version: Version) -> dict[str, Any]:
    return {name: value for name, value in version.config.items() if name != "signature"}


def _flat(value: Any, path: str, depth: int) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value and depth < _SETTING_DEPTH:
        for name, inner in value.items():
            yield from _flat(inner, _joined(path, name), depth + 1)
    else:
        yield path, value


def _joined(path: str, name: str) -> str:
    """Name what lies at a name below a path; a long one has a digest for what is left out of it."""
    is_plain = name and "." not in name and '"' not in name
    part = name if is_plain else json.dumps(name, ensure_ascii=False)
    whole = f"{path}.{part}" if path else part
    if len(whole) <= _SETTING_CHARACTERS:
        return whole
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    kept = (_SETTING_CHARACTERS - _DIGEST) // 2 - 1
    return f"{whole[:kept]}…{digest}…{whole[-kept:]}"


def _is_json(text: str) -> bool:
    """Say whether a text looks like a number, a list or another value that is no plain text."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def compare_tags(before: Version, after: Version) -> list[Setting]:
    return _settings(tags_of(before), tags_of(after))


def tags_of(version: Version) -> dict[str, str]:
    return dict(Tag.objects.filter(version=version).values_list("key", "value"))


def _settings(old: Mapping[str, str], new: Mapping[str, str]) -> list[Setting]:
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return [
        Setting(name, _short(old.get(name)), _short(new.get(name)))
        for name in names[:_SHOWN_SETTINGS]
    ]


def _short(text: str | None) -> str | None:
    if text is None or len(text) <= _SETTING_CHARACTERS:
        return text
    return f"{text[: _SETTING_CHARACTERS - 1]}…"


def compare_metrics(
    actor: Actor, before: Version | None, after: Version | None, *, measured: bool = False
) -> list[dict[str, Any]]:
    """Set the newest number of each metric, split and dataset beside its counterpart."""
    rows = (
        Evaluation.objects.filter(version__in=[one for one in (before, after) if one])
        .select_related("dataset_version__repository__namespace")
        .defer("details")
        .order_by("pk")
    )
    if measured:
        rows = rows.filter(measured=True)
    seen = visible_datasets(actor, rows)
    found: dict[tuple[str, str, str, str | None], dict[int, float]] = {}
    for row in rows:
        dataset = row.dataset_version
        named = dataset.ref if dataset is not None and dataset.pk in seen else None
        values = found.setdefault((row.metric, row.unit, row.split, named), {})
        values[row.version_id] = row.value
    return [
        {
            "metric": metric,
            "unit": unit,
            "split": split,
            "dataset": dataset,
            "before": values.get(before.pk) if before else None,
            "after": values.get(after.pk) if after else None,
        }
        for (metric, unit, split, dataset), values in found.items()
    ]


def measured_changes(
    actor: Actor, before: Version | None, after: Version | None
) -> list[dict[str, Any]]:
    """Set what was measured of one version beside the other's, and say which is better."""
    return [
        {**change, "better": is_better(change["metric"], change["before"], change["after"])}
        for change in compare_metrics(actor, before, after, measured=True)
    ]


def visible_datasets(actor: Actor, rows: Any) -> frozenset[int]:
    """Give those dataset versions behind some evaluations that `actor` may see."""
    ids = {row.dataset_version_id for row in rows if row.dataset_version_id is not None}
    seen = Version.objects.visible_to(actor).filter(pk__in=ids) if ids else Version.objects.none()
    return frozenset(seen.values_list("pk", flat=True))


# --- What callers see -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """Whether callers of one version may be given the other; None where nobody can tell."""

    accepts: bool | None
    why: Text | None = None


def compare_signatures(actor: Actor, before: Version, after: Version) -> Compatibility:
    """Say whether callers of the first may be given the second, as far as `actor` may know.

    Labels lie in config.json: who may not read it of both hears nothing of them, nor a yes.
    """
    may_read = all(may_read_files(actor, one) for one in (before, after))
    why = why_untold(before, after) or why_incompatible(before, after, with_labels=may_read)
    if why is None and not (may_read and before.signature and after.signature):
        return Compatibility(accepts=None)
    return Compatibility(accepts=why is None, why=why)


# --- Weights --------------------------------------------------------------------------------------


def compare_weights(actor: Actor, before: Version, after: Version) -> WeightsDiff:
    """Say what is known of what became of the weights; nothing is computed here."""
    pair = pair_of(actor, before, after)
    if pair.weights is None:
        return WeightsDiff(state="impossible", why=pair.why)
    if pair.weights.are_equal:
        return WeightsDiff(state="equal", weights=pair.weights)
    summary = find_known(pair.weights)
    if summary is not None:
        return WeightsDiff(state="known", weights=pair.weights, summary=summary)
    job = _computing(actor, before, after)
    state: WeightsState = "running" if job else "unknown"
    return WeightsDiff(state=state, weights=pair.weights, job=job)


def _computing(actor: Actor, before: Version, after: Version) -> Job | None:
    """Find the unfinished job that `actor` may see and that compares the two."""
    reading = {"model": after.pk, BASE: before.pk}
    rows = Job.objects.visible_to(actor).unfinished().filter(kind="diff", input_ids=reading)
    return rows.order_by("created_at").first()


def request_weights(*, actor: Actor, before: Version, after: Version) -> WeightsDiff:
    """Have the weights of two versions compared, unless that is known or under way.

    Raises:
        RegistryError: as `registry.services.jobs.submit_job`.

    """
    found = compare_weights(actor, before, after)
    if found.state != "unknown":
        return found
    recipe = DiffRecipe(kind="diff", base=before.ref, model=after.ref)
    job = submit_job(actor=actor, recipe=recipe.to_json())
    return WeightsDiff(state="running", weights=found.weights, job=job)


def may_request(actor: Actor) -> bool:
    """Say whether a button that asks for a comparison would do anything for this person."""
    return not actor.is_anonymous and "jobs" in actor.scopes
