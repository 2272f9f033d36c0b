"""Where versions came from and what came of them, across models: a graph of bounded size.

Rows point from newer to older (a constraint), but names that people posted may go in circles:
nothing here follows anything twice, nor further than it was told.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from django.db.models import Q

from registry.models import (
    Actor,
    Evaluation,
    Job,
    JobState,
    Kind,
    LineageEdge,
    LineageRole,
    Repository,
    Version,
)

Relation = Literal[
    "trained_on",
    "compressed_from",
    "distilled_from",
    "fine_tuned_from",
    "merged_from",
    "calibrated_on",
    "restored_from",
    "made_from",
    "computed_by",
    "computed_from",
    "evaluated_on",
]
DEPTH: Final = 4
MOST_DEPTH: Final = 10
# Of nodes, and of edges at each step.
MOST: Final = 120
_MOST_NAMES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Edge:
    """`child` came from `parent`, or was evaluated on it.

    `job` is there for those who see it, and so is its recipe. `verified` says whether running the
    recipe again gave the same bytes; None where nobody has tried.
    """

    child: int
    parent: int
    relation: Relation
    role: str
    job: Job | None = None
    methods: Sequence[str] = ()
    verified: bool | None = None
    reproduction: Job | None = None


@dataclass(kw_only=True)
class Graph:
    """Versions by their keys with how many steps they stand from the one asked about."""

    root: Version
    nodes: dict[int, Version] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    is_cut: bool = False
    # Models that cards name as what they were made from, the nearest first; None: not seen here.
    bases: list[tuple[str, Repository | None]] = field(default_factory=list)


def trace(actor: Actor, version: Version, *, depth: int = DEPTH) -> Graph:
    """Follow a version's origins and offspring as far as `actor` may see, breadth first."""
    graph = Graph(root=version)
    graph.nodes[version.pk], graph.steps[version.pk] = version, 0
    for ahead in (False, True):
        frontier = {version.pk}
        for step in range(1, min(depth, MOST_DEPTH) + 1):
            found = _step(actor, graph, frontier, ahead=ahead, step=step)
            if not found:
                break
            frontier = found
        else:
            graph.is_cut |= _goes_on(actor, frontier, ahead=ahead)
    # Those beside the way too: what is drawn is all that lies between the versions that are.
    rows = LineageEdge.objects.filter(child__in=graph.nodes, parent__in=graph.nodes)
    described = _described(actor, rows.order_by("pk")[: 4 * MOST])
    graph.edges = [*described, *_evaluated(actor, graph)]
    graph.bases = _bases(actor, version.repository)
    return graph


def data_of(actor: Actor, version: Version) -> Version | None:
    """Find the dataset that a model is about, as far as `actor` may see.

    That is what it or the nearest of its origins was made with, else what it was measured on, else
    what a version that came from it was made with or measured on; the newest where there are more.
    """
    visible = Version.objects.visible_to(actor).select_related("repository__namespace")
    datasets = visible.filter(repository__kind=Kind.DATASET).order_by("-pk")
    generation = {version.pk}
    for _generation in range(DEPTH):
        origins = LineageEdge.objects.filter(child__in=generation).values("parent")
        if found := datasets.filter(pk__in=origins).first():
            return found
        generation = set(visible.filter(pk__in=origins).values_list("pk", flat=True)[:MOST])
        if not generation:
            break
    measured_on = Evaluation.objects.filter(version=version).values("dataset_version")
    if found := datasets.filter(pk__in=measured_on).first():
        return found
    models = visible.filter(repository__kind=Kind.MODEL).values("pk")
    newest = LineageEdge.objects.filter(parent=version, child__in=models).order_by("-pk")
    offspring = list(newest.values_list("child", flat=True)[:MOST])
    beside = LineageEdge.objects.filter(child__in=offspring).values("parent")
    measured_on = Evaluation.objects.filter(version__in=offspring).values("dataset_version")
    return datasets.filter(Q(pk__in=beside) | Q(pk__in=measured_on)).first()


def _step(
    actor: Actor,
    graph: Graph,
    frontier: Iterable[int],
    *,
    ahead: bool,
    step: int,
) -> set[int]:
    """Follow the edges of one generation; give the versions that were not there before."""
    near, far = ("parent", "child") if ahead else ("child", "parent")
    visible = Version.objects.visible_to(actor).values("pk")
    edges = (
        LineageEdge.objects.filter(**{f"{near}__in": list(frontier), f"{far}__in": visible})
        .select_related(f"{far}__repository__namespace", f"{far}__created_by")
        .order_by("-pk")[: MOST + 1]
    )
    found: set[int] = set()
    for at, edge in enumerate(edges):
        other: Version = edge.child if ahead else edge.parent
        if at >= MOST or (other.pk not in graph.nodes and len(graph.nodes) >= MOST):
            graph.is_cut = True
            continue
        if other.pk not in graph.nodes:
            graph.nodes[other.pk] = other
            graph.steps[other.pk] = step if ahead else -step
            found.add(other.pk)
    return found


def _goes_on(actor: Actor, frontier: Iterable[int], *, ahead: bool) -> bool:
    near, far = ("parent", "child") if ahead else ("child", "parent")
    visible = Version.objects.visible_to(actor).values("pk")
    more = LineageEdge.objects.filter(**{f"{near}__in": list(frontier), f"{far}__in": visible})
    return more.exists()


def _described(actor: Actor, rows: Iterable[LineageEdge]) -> list[Edge]:
    """Say of each edge what it was, with the job and whether its recipe gave the same again."""
    edges = list(rows)
    ids = {edge.job_id for edge in edges if edge.job_id is not None}
    recipes = dict(Job.objects.filter(pk__in=ids).values_list("pk", "recipe")) if ids else {}
    seen = Job.objects.visible_to(actor).filter(pk__in=ids).in_bulk() if ids else {}
    again = _reproductions(ids)
    described = []
    for edge in edges:
        key = edge.job_id
        recipe = recipes.get(key, {}) if key else {}
        job = seen.get(key) if key else None
        repeated = again.get(key)
        described.append(
            Edge(
                child=edge.child_id,
                parent=edge.parent_id,
                relation=_relation(edge, recipe),
                role=edge.role,
                job=job,
                methods=_methods(recipe) if job else (),
                verified=None if repeated is None else repeated[1],
                reproduction=repeated[0] if repeated and job else None,
            )
        )
    return described


def _reproductions(ids: Iterable[Any]) -> Mapping[Any, tuple[Job, bool]]:
    """Find what running jobs again gave, the newest of each."""
    asked = list(ids)
    if not asked:
        return {}
    rows = Job.objects.filter(reproduces__in=asked, state=JobState.SUCCEEDED)
    found: dict[Any, tuple[Job, bool]] = {}
    for row in rows.order_by("finished_at", "pk"):
        said = row.report.get("reproduction")
        if isinstance(said, dict) and isinstance(said.get("same"), bool):
            found[row.reproduces_id] = row, said["same"]
    return found


def _methods(recipe: Mapping[str, Any]) -> list[str]:
    steps = recipe.get("steps")
    return [
        str(step.get("method", ""))
        for step in (steps if isinstance(steps, list) else [])
        if isinstance(step, dict)
    ][:8]


_BY_ROLE: Final[Mapping[str, Relation]] = {
    LineageRole.TEACHER: "distilled_from",
    LineageRole.MERGED: "merged_from",
    LineageRole.CALIBRATION: "calibrated_on",
}


_BY_KIND: Final[Mapping[str, Relation]] = {
    "infer": "computed_by",
    "train": "fine_tuned_from",
    "compress": "compressed_from",
    "search": "compressed_from",
}


def _relation(edge: LineageEdge, recipe: Mapping[str, Any]) -> Relation:
    """Say in one word how a version came from another one."""
    if edge.restores:
        return "restored_from"
    kind = str(recipe.get("kind", ""))
    if edge.role in _BY_ROLE:
        return _BY_ROLE[edge.role]
    if edge.role == LineageRole.DATA:
        return "computed_from" if kind == "infer" else "trained_on"
    if "distill" in _methods(recipe):
        return "distilled_from"
    return _BY_KIND.get(kind, "made_from")


def _evaluated(actor: Actor, graph: Graph) -> list[Edge]:
    """Find what the version was measured on; of a dataset, what was measured on it."""
    root = graph.root
    visible = Version.objects.visible_to(actor).select_related("repository__namespace")
    if root.repository.kind == Kind.DATASET:
        on_it = Evaluation.objects.filter(dataset_version=root)
        found = visible.filter(pk__in=on_it.values("version")).order_by("-pk")
    else:
        of_it = Evaluation.objects.filter(version=root).exclude(dataset_version=None)
        found = visible.filter(pk__in=of_it.values("dataset_version")).order_by("-pk")
    edges = []
    for other in found[: MOST // 4]:
        ahead = root.repository.kind == Kind.DATASET
        if other.pk not in graph.nodes:
            if len(graph.nodes) >= MOST:
                graph.is_cut = True
                break
            graph.nodes[other.pk] = other
            graph.steps[other.pk] = 1 if ahead else -1
        child, parent = (other.pk, root.pk) if ahead else (root.pk, other.pk)
        edges.append(Edge(child=child, parent=parent, relation="evaluated_on", role=""))
    return edges


def _bases(actor: Actor, repository: Repository) -> list[tuple[str, Repository | None]]:
    """Follow the names that cards give as what a model was made from; they may go in circles."""
    found: list[tuple[str, Repository | None]] = []
    seen = {repository.full_name.lower()}
    here: Repository | None = repository
    while here is not None and here.base_model and len(found) < _MOST_NAMES:
        name = here.base_model
        if name.lower() in seen:
            break
        seen.add(name.lower())
        space, slash, rest = name.partition("/")
        here = (
            Repository.objects.visible_to(actor)
            .select_related("namespace")
            .named(space, rest)
            .filter(kind=Kind.MODEL)
            .first()
            if slash
            else None
        )
        found.append((name, here))
    return found
