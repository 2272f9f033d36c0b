"""What changed in the numbers of a model, tensor by tensor: read once, piece by piece."""

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from registry.errors import Invalid, RegistryError, Text
from registry.formats.weights import choose_weights
from registry.recipes import DiffRecipe
from workers.ml.job import Job
from workers.ml.report import Report
from workers.ml.stored import Numbers, OpenFiles, Stored
from workers.ml.tensors import open_tensors

State = Literal["equal", "changed", "recast", "reshaped", "renamed", "new", "gone"]

# So many elements are looked at together: two such pieces and what is made of them fit a cache.
PIECE: Final = 1 << 18
# What is listed of a report, those that changed before those that did not.
MOST_LISTED: Final = 5000
BESIDE: Final = "weights"
"""Where the report of another job keeps the same."""
_NAME: Final = 300
# What is compared as a job ends that has made something else.
_BESIDE_BYTES: Final = 1 << 30
_CHECKPOINT_BYTES: Final = 64 << 20
_ORDER: Final = ("changed", "reshaped", "new", "gone", "renamed", "recast", "equal")


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one tensor; of what is not there in one of both, that side is empty.

    `emptied` were something and are zero, `filled` the other way round; `changed` counts all
    elements that differ. `relative` is the norm of the difference by the norm before.
    """

    name: str
    state: State
    name_before: str = ""
    dtype_before: str = ""
    dtype_after: str = ""
    shape_before: Sequence[int] | None = None
    shape_after: Sequence[int] | None = None
    elements: int = 0
    changed: int | None = None
    emptied: int | None = None
    filled: int | None = None
    relative: float | None = None
    max_change: float | None = None
    cosine: float | None = None
    norm_before: float | None = None
    norm_after: float | None = None
    zeros_before: int | None = None
    zeros_after: int | None = None
    odd_before: int | None = None
    odd_after: int | None = None


@dataclass(kw_only=True)
class _Sums:
    """What adds up over the pieces of a pair of tensors."""

    before: float = 0.0
    after: float = 0.0
    difference: float = 0.0
    product: float = 0.0
    largest: float = 0.0
    changed: int = 0
    emptied: int = 0
    filled: int = 0
    zeros_before: int = 0
    zeros_after: int = 0
    odd_before: int = 0
    odd_after: int = 0

    def add_same(self, numbers: Numbers) -> None:
        numbers, odd = _finite(numbers)
        square, zeros = float(np.dot(numbers, numbers)), _zeros(numbers) - odd
        self.before += square
        self.after += square
        self.product += square
        self.zeros_before += zeros
        self.zeros_after += zeros
        self.odd_before += odd
        self.odd_after += odd

    def add(self, before: Numbers, after: Numbers) -> None:
        with np.errstate(invalid="ignore"):
            differs = before != after
        both_odd = np.isnan(before) & np.isnan(after)
        self.changed += int(np.count_nonzero(differs & ~both_odd))
        before, odd_before = _finite(before)
        after, odd_after = _finite(after)
        difference = after - before
        self.before += float(np.dot(before, before))
        self.after += float(np.dot(after, after))
        self.difference += float(np.dot(difference, difference))
        self.product += float(np.dot(before, after))
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        was, is_now = before != 0, after != 0
        self.emptied += int(np.count_nonzero(was & ~is_now))
        self.filled += int(np.count_nonzero(is_now & ~was))
        self.zeros_before += len(before) - int(np.count_nonzero(was)) - odd_before
        self.zeros_after += len(after) - int(np.count_nonzero(is_now)) - odd_after
        self.odd_before += odd_before
        self.odd_after += odd_after


def _finite(numbers: Numbers) -> tuple[Numbers, int]:
    """Count what is no finite number, and leave it out of the sums."""
    good = np.isfinite(numbers)
    odd = len(numbers) - int(np.count_nonzero(good))
    return (np.where(good, numbers, 0.0), odd) if odd else (numbers, 0)


def _zeros(numbers: Numbers) -> int:
    return len(numbers) - int(np.count_nonzero(numbers))


@dataclass
class Progress:
    """Where the reading is; `tell` hears of it, `go_on` raises when it is time to stop."""

    total: int
    tell: Callable[[int, int], None] = lambda _done, _total: None
    go_on: Callable[[], None] = lambda: None
    done: int = 0

    def add(self, size: int) -> None:
        self.done += size
        self.go_on()
        self.tell(self.done, self.total)


# --- One tensor -----------------------------------------------------------------------------------


def compare_pair(before: Stored, after: Stored, progress: Progress) -> Change:
    """Compare two tensors of one name."""
    said: dict[str, Any] = {
        "name": after.name,
        "dtype_before": before.dtype,
        "dtype_after": after.dtype,
        "shape_before": list(before.shape),
        "shape_after": list(after.shape),
        "elements": after.elements,
    }
    if before.shape != after.shape:
        return Change(state="reshaped", **said, **_both_alone(before, after, progress))
    if not (before.is_numeric and after.is_numeric):
        return Change(state=_by_bytes(before, after, progress), **said)
    alike = before.dtype == after.dtype and before.scaled is None and after.scaled is None
    sums, is_same = _Sums(), alike
    for start, end in _pieces(after.elements):
        first, second = before.raw(start, end), after.raw(start, end)
        if alike and np.array_equal(first, second):
            sums.add_same(after.numbers(second, start))
        else:
            is_same = False
            sums.add(before.numbers(first, start), after.numbers(second, start))
        progress.add(len(first) + len(second))
    if is_same:
        state: State = "equal"
    else:
        state = "changed" if sums.changed or alike else "recast"
    return Change(state=state, **said, **_numbers_of(sums))


def _numbers_of(sums: _Sums) -> dict[str, Any]:
    norm_before, norm_after = math.sqrt(sums.before), math.sqrt(sums.after)
    changed_by = math.sqrt(sums.difference)
    relative = changed_by / norm_before if norm_before else 0.0 if not changed_by else None
    both = norm_before * norm_after
    return {
        "changed": sums.changed,
        "emptied": sums.emptied,
        "filled": sums.filled,
        "relative": relative,
        "max_change": sums.largest,
        "cosine": max(-1.0, min(1.0, sums.product / both)) if both else None,
        "norm_before": norm_before,
        "norm_after": norm_after,
        "zeros_before": sums.zeros_before,
        "zeros_after": sums.zeros_after,
        "odd_before": sums.odd_before,
        "odd_after": sums.odd_after,
    }


def _by_bytes(before: Stored, after: Stored, progress: Progress) -> State:
    """Compare what is no row of numbers: it is the same, or it is not."""
    same = before.dtype == after.dtype and before.size == after.size
    for start in range(0, min(before.size, after.size), PIECE * 4):
        first, second = (one.read(start, start + PIECE * 4) for one in (before, after))
        same = same and first == second
        progress.add(len(first) + len(second))
    return "equal" if same else "changed"


def _alone(stored: Stored, progress: Progress) -> tuple[str, float | None, int | None, int | None]:
    """Look at a tensor that has no counterpart: its digest, norm, zeros, and what is no number."""
    digest = hashlib.blake2b(digest_size=16)
    if not stored.is_numeric:
        for start in range(0, stored.size, PIECE * 4):
            data = stored.read(start, start + PIECE * 4)
            digest.update(data)
            progress.add(len(data))
        return digest.hexdigest(), None, None, None
    sums = _Sums()
    for start, end in _pieces(stored.elements):
        raw = stored.raw(start, end)
        digest.update(raw.data)
        sums.add_same(stored.numbers(raw, start))
        progress.add(len(raw))
    return digest.hexdigest(), math.sqrt(sums.before), sums.zeros_before, sums.odd_before


def _both_alone(before: Stored, after: Stored, progress: Progress) -> dict[str, Any]:
    _, norm_before, zeros_before, odd_before = _alone(before, progress)
    _, norm_after, zeros_after, odd_after = _alone(after, progress)
    return {
        "norm_before": norm_before,
        "norm_after": norm_after,
        "zeros_before": zeros_before,
        "zeros_after": zeros_after,
        "odd_before": odd_before,
        "odd_after": odd_after,
    }


def _pieces(elements: int) -> Iterator[tuple[int, int]]:
    for start in range(0, elements, PIECE):
        yield start, min(elements, start + PIECE)


# --- All of them ----------------------------------------------------------------------------------


def compare_tensors(
    before: Mapping[str, Stored],
    after: Mapping[str, Stored],
    progress: Progress,
    *,
    known: Mapping[str, Change] | None = None,
    keep: Callable[[Change], None] = lambda _change: None,
) -> list[Change]:
    """Compare the tensors of two models by their names, in the order of the names.

    What is `known` of an earlier attempt is not read again; `keep` hears of each that is new.
    """
    found = []
    for name in sorted(before.keys() & after.keys(), key=natural):
        change = (known or {}).get(name)
        if change is None:
            change = compare_pair(before[name], after[name], progress)
            keep(change)
        else:
            progress.add(before[name].size + after[name].size)
        found.append(change)
    found += _apart(
        [before[name] for name in before.keys() - after.keys()],
        [after[name] for name in after.keys() - before.keys()],
        progress,
    )
    return sorted(found, key=lambda change: natural(change.name))


def _apart(gone: list[Stored], new: list[Stored], progress: Progress) -> Iterator[Change]:
    """Look at tensors without a counterpart; the same one under another name was renamed."""
    old = {one.name: _alone(one, progress) for one in gone}
    named: dict[tuple[str, tuple[int, ...], str], Stored] = {}
    for one in gone:
        named.setdefault((one.dtype, one.shape, old[one.name][0]), one)
    counted = Counter((one.dtype, one.shape, old[one.name][0]) for one in gone)
    moved: set[str] = set()
    for one in new:
        digest, norm, zeros, odd = _alone(one, progress)
        key = one.dtype, one.shape, digest
        source = named.pop(key, None) if counted[key] == 1 and norm else None
        if source is not None:
            moved.add(source.name)
        yield Change(
            name=one.name,
            state="new" if source is None else "renamed",
            name_before="" if source is None else source.name,
            dtype_before="" if source is None else source.dtype,
            dtype_after=one.dtype,
            shape_before=None if source is None else list(source.shape),
            shape_after=list(one.shape),
            elements=one.elements,
            norm_before=None if source is None else norm,
            norm_after=norm,
            zeros_before=None if source is None else zeros,
            zeros_after=zeros,
            odd_after=odd,
        )
    for one in gone:
        if one.name not in moved:
            _, norm, zeros, odd = old[one.name]
            yield Change(
                name=one.name,
                state="gone",
                dtype_before=one.dtype,
                shape_before=list(one.shape),
                elements=one.elements,
                norm_before=norm,
                zeros_before=zeros,
                odd_before=odd,
            )


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Order names as people count: layer 2 before layer 10."""
    return tuple(
        (0, int(part[:18]), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"([0-9]+)", name)
    )


def summarise(changes: Sequence[Change]) -> dict[str, Any]:
    """Count what changed, and list it: what changed first, where not all of it can be listed."""
    counts = Counter(change.state for change in changes)
    pairs = [one for one in changes if one.changed is not None]
    before = math.hypot(*(one.norm_before or 0.0 for one in pairs))
    apart = math.hypot(*map(_changed_by, pairs))
    listed = sorted(changes, key=lambda change: _ORDER.index(change.state))[:MOST_LISTED]
    kept = {id(change) for change in listed}
    return {
        "tensors_count": len(changes),
        "counts": {state: counts[state] for state in _ORDER if counts[state]},
        "relative": apart / before if before and math.isfinite(apart) else None,
        "elements": sum(change.elements for change in changes),
        "zeros_before": sum(change.zeros_before or 0 for change in changes),
        "zeros_after": sum(change.zeros_after or 0 for change in changes),
        "tensors": [_brief(change) for change in changes if id(change) in kept],
    }


def _changed_by(change: Change) -> float:
    """Give the norm of the difference; what was zero has changed by all that it is now."""
    if not change.norm_before:
        return change.norm_after or 0.0
    return (change.relative or 0.0) * change.norm_before


def _brief(change: Change) -> dict[str, Any]:
    said: dict[str, Any] = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in asdict(change).items()
        if value not in (None, "") and not (isinstance(value, float) and not math.isfinite(value))
    }
    for key in ("name", "name_before"):
        if key in said:
            said[key] = _cut(said[key])
    return said


def _cut(name: str) -> str:
    """Keep the end of a long name: those of one model begin alike."""
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"


# --- As a job -------------------------------------------------------------------------------------


def run(job: Job, recipe: DiffRecipe) -> Report:
    """Compare the weights of two versions; no file is made."""
    folders = job.input("base").path, job.input("model").path
    chosen = choose_weights(*(_paths_of(folder) for folder in folders))
    for one, role in zip(chosen, ("base", "model"), strict=True):
        if not one.paths:
            raise Invalid(
                "{version} has no weights that can be compared.",
                code="no_weights",
                version=job.input(role).ref,
            )
    work = job.out / "work"
    with OpenFiles() as files:
        before, after = (
            open_tensors(folder, one, work / role, files)
            for folder, one, role in zip(folders, chosen, ("base", "model"), strict=True)
        )
        changes = _compare(job, recipe, before, after)
    summary = {
        "before": {"format": chosen[0].format, "paths": list(chosen[0].paths[:20])},
        "after": {"format": chosen[1].format, "paths": list(chosen[1].paths[:20])},
        **summarise(changes),
    }
    shutil.rmtree(work, ignore_errors=True)
    message = f"{job.input('base').title} and {job.input('model').title} compared"
    return Report("diff", [], {}, message, summary)


def _compare(
    job: Job, recipe: DiffRecipe, before: Mapping[str, Stored], after: Mapping[str, Stored]
) -> list[Change]:
    total = sum(one.size for tensors in (before, after) for one in tensors.values())
    progress = Progress(
        total,
        tell=lambda done, all_of: job.events.progress(
            done=done // 1_000_000, total=max(1, all_of // 1_000_000), unit="MB", step=recipe.kind
        ),
        go_on=job.interrupt.check,
    )
    checkpoint = _Checkpoint(job.checkpoints / "tensors.jsonl")
    known = checkpoint.known()
    if known:
        job.events.log(Text("Goes on after {count} tensors.", count=len(known)))
    return compare_tensors(before, after, progress, known=known, keep=checkpoint.keep)


def add_to(report: Report, job: Job) -> None:
    """Let a job that changed a model say what it did to the weights: both are at hand here."""
    folders = job.input("model").path, job.files
    chosen = choose_weights(*(_paths_of(folder) for folder in folders))
    sizes = [(f / p).stat().st_size for f, one in zip(folders, chosen, strict=True) for p in one[1]]
    if not all(one.paths for one in chosen) or sum(sizes) > _BESIDE_BYTES:
        return
    work = job.out / "work-diff"
    try:
        with OpenFiles() as files:
            before, after = (
                open_tensors(folder, one, work / str(at), files)
                for at, (folder, one) in enumerate(zip(folders, chosen, strict=True))
            )
            changes = compare_tensors(before, after, Progress(0, go_on=job.interrupt.check))
        report.summary[BESIDE] = summarise(changes)
    except (RegistryError, OSError, MemoryError) as error:
        # What was made is worth more than this; it can be asked for later.
        why = error if isinstance(error, RegistryError) else str(error)
        job.events.log(Text("The weights were not compared: {why}", why=why))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _paths_of(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


class _Checkpoint:
    """What is known of large tensors, so that a job that was stopped goes on after them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[Change] = []
        self._bytes = 0

    def known(self) -> dict[str, Change]:
        found: dict[str, Change] = {}
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return found
        for line in lines:
            try:
                change = Change(**json.loads(line))
            except (ValueError, TypeError):
                continue  # the last line, of an attempt that was killed as it wrote
            found[change.name] = change
        return found

    def keep(self, change: Change) -> None:
        self._waiting.append(change)
        self._bytes += change.elements
        if self._bytes * 4 < _CHECKPOINT_BYTES:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(one)) + "\n" for one in self._waiting)
        self._waiting, self._bytes = [], 0
