"""The graph of where versions came from, laid out by generations: what a template draws as SVG."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from django.utils.translation import pgettext

from registry.models import Version
from registry.services.lineage import Edge, Graph
from registry.web import wording

WIDE: Final = 190
HIGH: Final = 46
_GAP_X: Final = 86
_GAP_Y: Final = 14
_MARGIN: Final = 6
_LETTERS: Final = 24


@dataclass(frozen=True, kw_only=True)
class Box:
    """A version on the drawing."""

    version: Version
    x: int
    y: int
    title: str
    subtitle: str
    here: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """An edge on the drawing, from what was there first."""

    path: str
    tone: str
    says: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """An edge in the table."""

    child: Version
    parent: Version
    relation: str
    edge: Edge


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The whole graph; `rows` say in words what the lines show."""

    boxes: Sequence[Box]
    lines: Sequence[Line]
    rows: Sequence[Row]
    width: int
    height: int


def drawing_of(graph: Graph) -> Drawing:
    """Lay a graph out: a column for each generation, older ones to the left."""
    columns: dict[int, list[Version]] = defaultdict(list)
    for key, step in graph.steps.items():
        columns[step].append(graph.nodes[key])
    first = min(columns)
    tallest = max(len(column) for column in columns.values())
    height = _MARGIN * 2 + tallest * (HIGH + _GAP_Y) - _GAP_Y
    places: dict[int, tuple[int, int]] = {}
    for step, column in columns.items():
        column.sort(key=lambda one: (one.repository_id, one.pk))
        own = len(column) * (HIGH + _GAP_Y) - _GAP_Y
        top = (height - own) // 2
        for at, version in enumerate(column):
            places[version.pk] = (
                _MARGIN + (step - first) * (WIDE + _GAP_X),
                top + at * (HIGH + _GAP_Y),
            )
    return Drawing(
        boxes=[_box(graph, version, places) for version in graph.nodes.values()],
        lines=[_line(graph, edge, places) for edge in graph.edges],
        rows=[
            Row(
                child=graph.nodes[edge.child],
                parent=graph.nodes[edge.parent],
                relation=relation_name(edge.relation),
                edge=edge,
            )
            for edge in graph.edges
        ],
        width=_MARGIN * 2 + (max(columns) - first) * (WIDE + _GAP_X) + WIDE,
        height=height,
    )


def _box(graph: Graph, version: Version, places: Mapping[int, tuple[int, int]]) -> Box:
    x, y = places[version.pk]
    kind = wording.WORDS["kind"][version.repository.kind]
    return Box(
        version=version,
        x=x,
        y=y,
        title=_short(f"{version.repository.name}@{version.number}"),
        subtitle=_short(f"{version.variant or kind} \N{MIDDLE DOT} {version.repository.namespace}"),
        here=version.pk == graph.root.pk,
    )


def _line(graph: Graph, edge: Edge, places: Mapping[int, tuple[int, int]]) -> Line:
    (x1, y1), (x2, y2) = places[edge.parent], places[edge.child]
    start, end = x1 + WIDE, x2
    middle = HIGH // 2
    bend = max(30, abs(end - start) // 2)
    path = (
        f"M{start} {y1 + middle}C{start + bend} {y1 + middle} "
        f"{end - bend} {y2 + middle} {end} {y2 + middle}"
    )
    child, parent = graph.nodes[edge.child], graph.nodes[edge.parent]
    tone = {True: "verified", False: "broken", None: ""}[edge.verified]
    if edge.relation == "evaluated_on":
        tone = "loose"
    return Line(
        path=path, tone=tone, says=f"{child.ref} {relation_name(edge.relation)} {parent.ref}"
    )


def _short(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def relation_name(relation: str) -> str:
    """Say how a version came from another one."""
    return {
        "trained_on": pgettext("lineage", "trained on"),
        "compressed_from": pgettext("lineage", "compressed from"),
        "distilled_from": pgettext("lineage", "distilled from"),
        "fine_tuned_from": pgettext("lineage", "fine-tuned from"),
        "merged_from": pgettext("lineage", "merged from"),
        "calibrated_on": pgettext("lineage", "calibrated on"),
        "restored_from": pgettext("lineage", "restored from"),
        "made_from": pgettext("lineage", "made from"),
        "computed_by": pgettext("lineage", "computed by"),
        "computed_from": pgettext("lineage", "computed from"),
        "evaluated_on": pgettext("lineage", "evaluated on"),
    }.get(relation, relation)
