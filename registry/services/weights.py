"""What became of weights from one version to another: kept by their digests, read by who may."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, NamedTuple

from django.utils import timezone

from registry.errors import Text
from registry.formats import INSPECTOR
from registry.formats.weights import Chosen, Outside, choose_weights, data_of_graphs, left_out
from registry.models import Actor, Blob, Inspection, Kind, Version, WeightDiff, openable_files

# Another way to compare makes another key, and is computed again.
GENERATION: Final = 4
KEEP: Final = timedelta(days=90)
STATES: Final = ("changed", "reshaped", "new", "gone", "renamed", "recast", "equal")
_MOST_TENSORS: Final = 5000
_WHOLE: Final = (
    "elements",
    "changed",
    "emptied",
    "filled",
    "zeros_before",
    "zeros_after",
    "odd_before",
    "odd_after",
)
_REAL: Final = ("relative", "max_change", "cosine", "norm_before", "norm_after")
_WORDS: Final = ("name_before", "dtype_before", "dtype_after")
_SHAPES: Final = ("shape_before", "shape_after")


class Weights(NamedTuple):
    """The weights of two versions: what they are named by together, and how many bytes they are.

    `beside_before` and `beside_after` are files of weights that are not read: those of another
    format, or what no reader knows.
    """

    key: str
    size_bytes: int
    are_equal: bool
    before: Chosen
    after: Chosen
    beside_before: tuple[str, ...] = ()
    beside_after: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two versions whose weights somebody may compare, or why nobody can."""

    weights: Weights | None = None
    why: Text | None = None


def pair_of(actor: Actor, before: Version, after: Version) -> Pair:
    """Find what of two versions would be compared, as far as `actor` may read both."""
    if Kind.DATASET in {before.repository.kind, after.repository.kind}:
        return Pair(why=Text("Only models have weights."))
    ids = {before.pk, after.pk}
    if Version.objects.downloadable_by(actor).filter(pk__in=ids).count() < len(ids):
        return Pair(why=Text("One of both is archived: only maintainers read its files."))
    files = openable_files([before, after])
    chosen = choose_weights(files[before.pk], files[after.pk])
    both = list(zip(chosen, (before, after), strict=True))
    for one, version in both:
        if not one.paths:
            return Pair(
                why=Text(
                    "{version} has no safetensors, myz or ONNX file whose weights could be "
                    "compared.",
                    version=version.ref,
                )
            )
    outside = [_outside(files[version.pk], one) for one, version in both]
    held = [
        _held(files[version.pk], one, said)
        for (one, version), said in zip(both, outside, strict=True)
    ]
    digests = [[(name, blob.sha256) for name, blob in row] for row in held]
    key = hashlib.sha256(json.dumps([GENERATION, *digests]).encode()).hexdigest()
    size = sum(blob.size_bytes for row in held for _name, blob in row)
    beside = (
        tuple(left_out(files[version.pk], one, said))
        for (one, version), said in zip(both, outside, strict=True)
    )
    are_equal = sorted(digests[0]) == sorted(digests[1])
    return Pair(weights=Weights(key, size, are_equal, *chosen, *beside))


def _outside(files: Mapping[str, Blob], chosen: Chosen) -> dict[str, Sequence[str]]:
    """Say what the graphs refer to, as far as the present readers have listed it."""
    if chosen.format != "onnx":
        return {}
    rows = Inspection.objects.filter(
        blob__in={files[path].pk for path in chosen.paths}, inspector=f"{INSPECTOR}.onnx"
    )
    listed = {}
    for blob_id, said in rows.values_list("blob", "facts__metadata__external"):
        paths = said["paths"] if said else []
        if not said or len(paths) == said["count"]:
            listed[blob_id] = paths
    return {path: listed[files[path].pk] for path in chosen.paths if files[path].pk in listed}


def _held(files: Mapping[str, Blob], chosen: Chosen, outside: Outside) -> list[tuple[str, Blob]]:
    """Give all that the numbers lie in, with the name that it has in the comparison."""
    parts = chosen.parts or ("",) * len(chosen.paths)
    named = zip(parts, chosen.paths, strict=True)
    return [
        *((part, files[path]) for part, path in named),
        *((f"/{path}", files[path]) for path in data_of_graphs(files, chosen, outside)),
    ]


def find_known(weights: Weights) -> dict[str, Any] | None:
    """Read what is known of two versions' weights; who may see both is the caller's question."""
    row = WeightDiff.objects.filter(key=weights.key).first()
    if row is None:
        return None
    today = timezone.localdate()
    if row.used_on != today:
        WeightDiff.objects.filter(pk=row.pk).update(used_on=today)
    found: dict[str, Any] = row.summary
    return found


def keep_known(weights: Weights, said: object) -> None:
    """Keep what a job found out; it has opened files of strangers, so its words are checked."""
    WeightDiff.objects.update_or_create(
        key=weights.key,
        defaults={"summary": cleaned(said), "used_on": timezone.localdate()},
    )


def forget_unused() -> int:
    """Remove what nobody has looked at for long: it is computed again when it is asked for."""
    return WeightDiff.objects.filter(used_on__lt=timezone.localdate() - KEEP).delete()[0]


# --- What a job said ------------------------------------------------------------------------------


def cleaned(said: object) -> dict[str, Any]:
    """Take of a job's summary what has the known shape, and nothing else."""
    given = _table(said)
    counts = {state: _whole(_table(given.get("counts")).get(state)) for state in STATES}
    tensors = given.get("tensors")
    rows = [_tensor(row) for row in tensors[:_MOST_TENSORS]] if isinstance(tensors, list) else []
    return {
        "tensors_count": _whole(given.get("tensors_count")) or 0,
        "counts": {state: count for state, count in counts.items() if count},
        "relative": _real(given.get("relative")),
        "elements": _whole(given.get("elements")) or 0,
        "zeros_before": _whole(given.get("zeros_before")) or 0,
        "zeros_after": _whole(given.get("zeros_after")) or 0,
        "tensors": [row for row in rows if row is not None],
    }


def _tensor(said: object) -> dict[str, Any] | None:
    row = _table(said)
    name, state = row.get("name"), row.get("state")
    if not isinstance(name, str) or state not in STATES:
        return None
    found: dict[str, Any] = {"name": name[:300], "state": state}
    for key in _WORDS:
        value = row.get(key)
        found[key] = value[:300] if isinstance(value, str) else ""
    for key in _SHAPES:
        found[key] = _shape(row.get(key))
    for key in _WHOLE:
        found[key] = _whole(row.get(key))
    for key in _REAL:
        found[key] = _real(row.get(key))
    return found


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _real(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _shape(value: object) -> list[int] | None:
    if not isinstance(value, list) or len(value) > 64:
        return None
    sizes = [_whole(size) for size in value]
    return None if None in sizes else [size for size in sizes if size is not None]
