"""What became of weights as pages say it: the story first, a map of the layers, a line a tensor."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from registry.services.diffs import WeightsDiff
from registry.services.weights import Weights
from registry.web import history, reports, wording

LISTED: Final = 400
_MOST_ROWS: Final = 120
_MOST_COLUMNS: Final = 24
_MOST_MAPS: Final = 4
_TOLD_LAYERS: Final = 6
_TOLD_FILES: Final = 8
# From which share of a norm on a cell has the next darker shade.
_SHADES: Final = (0.001, 0.01, 0.1, 0.5)
_NUMBERED: Final = re.compile(r"^(.*?\b)(\d+)\.(.+)$")
CELL: Final = 26
_ROW: Final = 26
_HEAD: Final = 118
_LETTER: Final = 6.7
# What makes a share worth telling: a fiftieth of a layer.
_WORTH: Final = 0.02
_HALF: Final = 0.5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor of the table."""

    name: str
    name_before: str
    state: str
    state_name: str
    shape: str
    dtype: str
    changed: str
    relative: str
    max_change: str
    cosine: str
    zeros: str
    shade: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A tensor on a map of layers."""

    x: int
    y: int
    shade: str
    says: str


@dataclass(frozen=True, kw_only=True)
class Map:
    """Layers as rows, their tensors as columns, and how much each changed as a shade."""

    title: str
    rows: Sequence[tuple[str, int]]
    columns: Sequence[tuple[str, int]]
    cells: Sequence[Cell]
    left: int
    top: int
    width: int
    height: int
    hidden: int = 0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What became of one layer: how much of it is zero, its norm, and where it points."""

    name: str
    elements: str
    before: float
    after: float
    zeros_before: str
    zeros_after: str
    change: str
    tone: str
    norm: str
    cosine: str


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a page shows of what became of the weights."""

    sentences: Sequence[str]
    rows: Sequence[Row]
    hidden: int
    maps: Sequence[Map]
    layers: Sequence[Layer]
    legend: Sequence[tuple[str, str]] = field(default_factory=tuple)
    files: Sequence[str] = ()


def story_of(found: WeightsDiff) -> Story:
    """Read what is known of two versions' weights."""
    if found.state == "equal":
        same = _("Both hold the same weights, byte for byte.")
        if found.weights and (found.weights.beside_before or found.weights.beside_after):
            same = _("What was compared is the same in both, byte for byte.")
        files = _files(found.weights)
        return Story(sentences=[same], rows=(), hidden=0, maps=(), layers=(), files=files)
    summary = reports.table(found.summary)
    tensors = reports.rows(summary.get("tensors"))
    count = int(reports.number(summary.get("tensors_count")) or 0)
    shown = sorted(
        tensors, key=lambda one: (one["state"] == "equal", -(_real(one, "relative") or 0.0))
    )[:LISTED]
    kept = {id(one) for one in shown}
    return Story(
        sentences=list(_sentences(summary, tensors)),
        rows=[_row(one) for one in tensors if id(one) in kept],
        hidden=max(0, count - len(shown)),
        maps=_maps(tensors),
        layers=_layers(tensors),
        legend=_legend(),
        files=_files(found.weights),
    )


def _files(weights: Weights | None) -> list[str]:
    """Name the files that were compared, and those that hold weights and were not."""
    if weights is None:
        return []
    before, after = weights.before.paths, weights.after.paths
    if before == after:
        said = [_("Compared: %(files)s.") % {"files": _listed(before)}]
    else:
        named = {"before": _listed(before), "after": _listed(after)}
        said = [_("Compared: %(before)s with %(after)s.") % named]
    if beside := sorted({*weights.beside_before, *weights.beside_after}):
        said.append(_("Left out: %(files)s.") % {"files": _listed(beside)})
    return said


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(_short(path, 80) for path in paths[:_TOLD_FILES])
    more = len(paths) - _TOLD_FILES
    if more <= 0:
        return shown
    return ngettext("%(shown)s and %(n)s more", "%(shown)s and %(n)s more", more) % {
        "shown": shown,
        "n": f"{more:,}",
    }


# --- In words -------------------------------------------------------------------------------------


def _sentences(summary: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    counts = {key: int(value) for key, value in reports.table(summary.get("counts")).items()}
    count = int(reports.number(summary.get("tensors_count")) or 0)
    return [
        said
        for said in (
            _how_many(counts, count),
            *_what_else(counts),
            *_reshaped(tensors),
            *_retyped(tensors),
            *_pruned(tensors),
            *_most(tensors),
            *_kept(tensors, counts),
        )
        if said
    ]


def _how_many(counts: Mapping[str, int], count: int) -> str:
    apart = counts.get("new", 0) + counts.get("gone", 0)
    if count and apart == count:
        return _("The two have no tensor of the same name.")
    changed = counts.get("changed", 0) + counts.get("reshaped", 0)
    if not changed and counts.get("equal", 0) == count:
        return _("All tensors hold the same numbers; the files differ otherwise.")
    return ngettext(
        "%(changed)s of %(count)s tensor changed.",
        "%(changed)s of %(count)s tensors changed.",
        count,
    ) % {"changed": f"{changed:,}", "count": f"{count:,}"}


def _what_else(counts: Mapping[str, int]) -> list[str]:
    said = []
    if new := counts.get("new", 0):
        said.append(ngettext("%(n)s is new.", "%(n)s are new.", new) % {"n": f"{new:,}"})
    if gone := counts.get("gone", 0):
        said.append(ngettext("%(n)s is gone.", "%(n)s are gone.", gone) % {"n": f"{gone:,}"})
    if renamed := counts.get("renamed", 0):
        said.append(
            ngettext(
                "%(n)s has another name and the same numbers.",
                "%(n)s have other names and the same numbers.",
                renamed,
            )
            % {"n": f"{renamed:,}"}
        )
    return said


def _reshaped(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [one for one in tensors if one["state"] == "reshaped"]
    return [
        _("%(name)s went from %(before)s to %(after)s.")
        % {
            "name": _short(one["name"]),
            "before": _shape(one.get("shape_before")),
            "after": _shape(one.get("shape_after")),
        }
        for one in found[:_TOLD_LAYERS]
    ]


def _retyped(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    found: dict[tuple[str, str], int] = {}
    for one in tensors:
        types = one.get("dtype_before", ""), one.get("dtype_after", "")
        if all(types) and types[0] != types[1]:
            found[types] = found.get(types, 0) + 1
    return [
        ngettext(
            "%(n)s is stored as %(after)s now, not as %(before)s.",
            "%(n)s are stored as %(after)s now, not as %(before)s.",
            count,
        )
        % {"n": f"{count:,}", "before": before, "after": after}
        for (before, after), count in list(found.items())[:3]
    ]


def _pruned(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell the layers that lost weights, and whether what was left was trained since."""
    lost, rest_moved = [], 0
    for one in tensors:
        elements, emptied = _whole(one, "elements"), _whole(one, "emptied")
        if one["state"] != "changed" or not elements or emptied < _WORTH * elements:
            continue
        if _is_rounded(one):
            continue
        lost.append((emptied / max(1, elements - _whole(one, "zeros_before")), one))
        rest_moved += _whole(one, "changed") > emptied + _whole(one, "filled")
    said = [
        _("%(name)s lost %(share)s of its weights.")
        % {"name": _short(_layer_of(one["name"])), "share": wording.percent_text(share, 0)}
        for share, one in lost[:_TOLD_LAYERS]
    ]
    if len(lost) > _TOLD_LAYERS:
        more = len(lost) - _TOLD_LAYERS
        said.append(ngettext("So did %(n)s more.", "So did %(n)s more.", more) % {"n": f"{more:,}"})
    if lost:
        said.append(
            _("What was left was trained on since.")
            if rest_moved > _HALF * len(lost)
            else _("What was left is as it was.")
        )
    return said


def _is_rounded(one: Mapping[str, Any]) -> bool:
    """Say whether numbers became whole ones: what is zero then was too small for a step."""
    before, after = (str(one.get(f"dtype_{side}") or "") for side in ("before", "after"))
    return before != after and after.startswith(("I", "U"))


def _most(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    changed = [one for one in tensors if one["state"] == "changed" and _real(one, "relative")]
    if not changed:
        return []
    most = max(changed, key=lambda one: _real(one, "relative") or 0.0)
    cosine = _real(most, "cosine")
    return [
        _("%(name)s changed most: by %(share)s of its norm%(cosine)s.")
        % {
            "name": _short(most["name"]),
            "share": wording.percent_text(_real(most, "relative") or 0.0),
            "cosine": ""
            if cosine is None
            else _(", cosine %(cosine)s") % {"cosine": f"{cosine:.4f}"},
        }
    ]


def _kept(tensors: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> list[str]:
    """Tell what stayed as it was, where that is a part of the model by itself."""
    equal = counts.get("equal", 0)
    if not equal or not counts.get("changed", 0):
        return []
    stayed = {_top(one["name"]) for one in tensors if one["state"] == "equal"}
    moved = {_top(one["name"]) for one in tensors if one["state"] != "equal"}
    whole = sorted(stayed - moved)
    if whole and len(whole) <= _TOLD_LAYERS:
        return [_("Untouched: %(names)s.") % {"names": ", ".join(map(_short, whole))}]
    return [ngettext("%(n)s is as before.", "%(n)s are as before.", equal) % {"n": f"{equal:,}"}]


def _top(name: str) -> str:
    return name.partition(".")[0]


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0] if name.endswith(".weight") else name


# --- As a map -------------------------------------------------------------------------------------


def _maps(tensors: Sequence[Mapping[str, Any]]) -> list[Map]:
    """Lay tensors out: repeated blocks on a map for each kind of block, the rest on one."""
    blocks: dict[str, dict[tuple[int, str], Mapping[str, Any]]] = {}
    for one in tensors:
        if found := _NUMBERED.match(one["name"]):
            blocks.setdefault(found[1], {})[int(found[2][:9]), found[3]] = one
    maps: list[Map] = []
    placed: set[str] = set()
    for prefix, held in blocks.items():
        if len({number for number, _column in held}) < 2 or len(maps) == _MOST_MAPS - 1:
            continue
        placed |= {one["name"] for one in held.values()}
        grid = {(f"{prefix}{number}", column): one for (number, column), one in held.items()}
        maps.append(_map(prefix.rstrip("."), grid))
    rest = {(_split(one["name"])): one for one in tensors if one["name"] not in placed}
    if rest:
        maps.insert(0, _map("", rest))
    return maps


def _split(name: str) -> tuple[str, str]:
    layer, dot, leaf = name.rpartition(".")
    return (layer, leaf) if dot else (name, "")


def _map(title: str, grid: Mapping[tuple[str, str], Mapping[str, Any]]) -> Map:
    rows = list(dict.fromkeys(row for row, _column in grid))
    columns = list(dict.fromkeys(column for _row_name, column in grid))
    hidden = max(0, len(rows) - _MOST_ROWS) + max(0, len(columns) - _MOST_COLUMNS)
    rows, columns = rows[:_MOST_ROWS], columns[:_MOST_COLUMNS]
    left = 12 + int(_LETTER * max(len(_short(row)) for row in rows))
    top = 14 + min(_HEAD, int(_LETTER * max(len(_short(one)) for one in columns)))
    cells = [
        Cell(
            x=left + at * CELL,
            y=top + line * _ROW,
            shade=_shade(grid[row, column]),
            says=_says(grid[row, column]),
        )
        for line, row in enumerate(rows)
        for at, column in enumerate(columns)
        if (row, column) in grid
    ]
    return Map(
        title=title,
        rows=[(_short(row), top + line * _ROW + 17) for line, row in enumerate(rows)],
        columns=[(_short(name), left + at * CELL + 17) for at, name in enumerate(columns)],
        cells=cells,
        left=left - 8,
        top=top - 6,
        width=left + len(columns) * CELL + 70,
        height=top + len(rows) * _ROW + 6,
        hidden=hidden,
    )


def _shade(one: Mapping[str, Any]) -> str:
    """Give the class of a cell: h0 to h5 by how much changed, or what else became of it."""
    state = str(one["state"])
    if state in {"equal", "renamed", "recast"}:
        return "h0"
    if state in {"new", "gone", "reshaped"}:
        return state
    relative = _real(one, "relative")
    if relative is None or not math.isfinite(relative):
        return "h5"
    return f"h{1 + sum(relative >= step for step in _SHADES)}"


def _legend() -> list[tuple[str, str]]:
    return [
        ("h0", _("as before")),
        ("h1", "< 0.1%"),
        ("h2", "< 1%"),
        ("h3", "< 10%"),
        ("h4", "< 50%"),
        ("h5", _("more")),
        ("reshaped", _state_name("reshaped")),
        ("new", _state_name("new")),
        ("gone", _state_name("gone")),
    ]


def _says(one: Mapping[str, Any]) -> str:
    relative = _real(one, "relative")
    name, state = _short(one["name"], 80), _state_name(str(one["state"]))
    if one["state"] != "changed" or relative is None:
        return f"{name}: {state}"
    return f"{name}: {wording.percent_text(relative)}"


# --- How much is zero -----------------------------------------------------------------------------


def _layers(tensors: Sequence[Mapping[str, Any]]) -> list[Layer]:
    """Set the zeros of each layer before beside those after, where that changed anywhere."""
    sums: dict[str, list[int]] = {}
    whole: dict[str, Mapping[str, Any]] = {}
    for one in tensors:
        if one.get("zeros_before") is None or one.get("zeros_after") is None:
            continue
        before, after = _elements(one.get("shape_before")), _elements(one.get("shape_after"))
        layer = _layer_of(one["name"])
        found = sums.setdefault(layer, [0, 0, 0, 0])
        whole.setdefault(layer, one)
        for at, value in enumerate(
            (before, after, _whole(one, "zeros_before"), _whole(one, "zeros_after"))
        ):
            found[at] += value
    layers = [
        _layer(whole[name], name, *found)
        for name, found in sums.items()
        if found[0] and found[1] and len(name) < 300
    ]
    if not any(abs(layer.after - layer.before) >= _WORTH for layer in layers):
        return []
    return layers[:LISTED]


def _layer(
    one: Mapping[str, Any], name: str, before: int, after: int, zeros_before: int, zeros_after: int
) -> Layer:
    first, second = zeros_before / before, zeros_after / after
    change = wording.points_text(second - first)
    return Layer(
        name=_short(name, 60),
        elements=wording.count_text(after),
        before=100 * first,
        after=100 * second,
        zeros_before=wording.percent_text(first),
        zeros_after=wording.percent_text(second),
        change=change,
        tone="m",
        norm=_arrow(*(_number(one, f"norm_{side}") for side in ("before", "after"))),
        cosine=_number(one, "cosine", ".4f"),
    )


def _number(one: Mapping[str, Any], key: str, form: str = ".3g") -> str:
    value = _real(one, key)
    return "" if value is None else f"{value:{form}}"


def _elements(shape: object) -> int:
    return math.prod(shape) if isinstance(shape, list) else 0


# --- One line a tensor ----------------------------------------------------------------------------


def _row(one: Mapping[str, Any]) -> Row:
    elements = _whole(one, "elements")
    before, after = one.get("shape_before"), one.get("shape_after")
    types = [name for name in (one.get("dtype_before"), one.get("dtype_after")) if name]
    changed, relative = one.get("changed"), _real(one, "relative")
    return Row(
        name=one["name"],
        name_before=one.get("name_before", ""),
        state=str(one["state"]),
        state_name=_state_name(str(one["state"])),
        shape=_shape(after) if before in (after, None) else _arrow(_shape(before), _shape(after)),
        dtype=_arrow(*types) if len(set(types)) > 1 else types[0] if types else "",
        changed="" if changed is None else wording.percent_text(changed / max(1, elements)),
        relative="" if relative is None else wording.percent_text(relative, 2),
        max_change=_number(one, "max_change"),
        cosine=_number(one, "cosine", ".4f"),
        zeros=_zeros(one),
        shade=_shade(one),
    )


def _zeros(one: Mapping[str, Any]) -> str:
    shares = [
        wording.percent_text(_whole(one, f"zeros_{side}") / count)
        for side in ("before", "after")
        if one.get(f"zeros_{side}") is not None and (count := _elements(one.get(f"shape_{side}")))
    ]
    return _arrow(*shares) if len(set(shares)) > 1 else shares[0] if shares else ""


def _arrow(*sides: str) -> str:
    return " → ".join(side for side in sides if side)


def _shape(shape: object) -> str:
    if not isinstance(shape, list):
        return ""
    return history.TIMES.join(map(str, shape)) or _("scalar")


def _state_name(state: str) -> str:
    return {
        "equal": pgettext("what became of a tensor", "equal"),
        "changed": pgettext("what became of a tensor", "changed"),
        "recast": pgettext("what became of a tensor", "other type"),
        "reshaped": pgettext("what became of a tensor", "reshaped"),
        "renamed": pgettext("what became of a tensor", "renamed"),
        "new": pgettext("what became of a tensor", "new"),
        "gone": pgettext("what became of a tensor", "gone"),
    }.get(state, state)


def _short(name: str, longest: int = 34) -> str:
    """Keep the end of a long name: those of one model begin alike."""
    return name if len(name) <= longest else f"…{name[1 - longest :]}"


def _real(one: Mapping[str, Any], key: str) -> float | None:
    return reports.number(one.get(key))


def _whole(one: Mapping[str, Any], key: str) -> int:
    return int(reports.number(one.get(key)) or 0)
