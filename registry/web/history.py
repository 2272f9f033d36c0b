"""A repository's versions as people read them: the main line, variants by their parents."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import Exists, OuterRef, QuerySet
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _

from registry.models import (
    QUALITY_METRICS,
    Actor,
    Alias,
    Deployment,
    Evaluation,
    Job,
    JobState,
    LineageEdge,
    LineageRole,
    Repository,
    Version,
    VersionQuerySet,
    VersionState,
)
from registry.web import charts, wording

PAGE = 20
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
COUNTED = 10_000
# How many steps down from the main line a page goes at once, and how many rows it finds there.
_GENERATIONS = 12
_MOST_BELOW = 800
# Of how many of the newest versions more is asked than which they are.
_RECENT = 1000
_MOST_VARIANTS = 200
# What a page leaves out below a version is counted so far; the template writes it so too.
_COUNTED_BELOW = 100
# Among how many of the next variants those are looked for whose origin is not here.
_WINDOW = 200
Numbers = Mapping[str, Evaluation]


@dataclass(kw_only=True)
class Row:
    """One line of the history: a version, its numbers, and how they differ from where it came."""

    version: Version
    depth: int
    aliases: Sequence[str]
    numbers: Numbers
    before: "Row | None" = None
    largest_bytes: int = 1
    # How many variants of it are not on the page, up to one more than is counted.
    more: int = 0

    @property
    def quality(self) -> Evaluation | None:
        return quality_of(self.numbers)

    @property
    def latency(self) -> Evaluation | None:
        return self.numbers.get(wording.LATENCY_METRIC)

    @property
    def meter(self) -> str:
        return f"{44 * self.version.size_bytes / max(1, self.largest_bytes):.1f}"

    @property
    def quality_delta(self) -> str:
        then = self._value_before(self.quality)
        if then is None or self.quality is None:
            return ""
        change = self.quality.value - then
        if self.quality.metric in wording.SHARES:
            return _("%(points)s pt") % {"points": _signed(f"{change * 100:+.1f}")}
        return _signed(f"{change:+.4f}")

    @property
    def quality_tone(self) -> str:
        delta = self.quality_delta
        return "down" if delta.startswith(MINUS) else "up" if delta.startswith("+") else "m"

    @property
    def size_delta(self) -> str:
        if not self.before or not self.depth:
            return ""
        return ratio_text(self.before.version.size_bytes, self.version.size_bytes)

    @property
    def size_tone(self) -> str:
        then = self.before.version.size_bytes if self.before else 0
        return "up" if self.version.size_bytes <= then else "down"

    @property
    def latency_delta(self) -> str:
        then = self._value_before(self.latency)
        if then is None or self.latency is None or not self.depth:
            return ""
        return ratio_text(then, self.latency.value)

    @property
    def latency_tone(self) -> str:
        then = self._value_before(self.latency) or 0.0
        return "up" if self.latency and self.latency.value <= then else "down"

    def _value_before(self, number: Evaluation | None) -> float | None:
        """Give what the version before this one got, best in the same run on the same rows."""
        if number is None:
            return None
        beside = number.details.get("parent") if self.depth else None
        if isinstance(beside, dict) and isinstance(beside.get("value"), int | float):
            return float(beside["value"])
        then = self.before.numbers.get(number.metric) if self.before else None
        return then.value if then else None


@dataclass(frozen=True, kw_only=True)
class History:
    """One page of rows, newest first, and where the older ones begin.

    `below` is the version whose variants they are; None: they begin with the main line.
    """

    rows: Sequence[Row]
    older: int | None = None
    quality_metric: str = ""
    below: Version | None = None


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A version in the tree of where things came from, and what came from it."""

    version: Version
    role: str = ""
    job_id: str = ""
    here: bool = False
    children: list["Branch"] = field(default_factory=list)


def _signed(text: str) -> str:
    return "0" if not text.strip("+-0.") else text.replace("-", MINUS)


def ratio_text(before: float, after: float) -> str:
    """Say by what factor something shrank (or grew)."""
    if before <= 0 or after <= 0:
        return ""
    return f"{before / after:.{1 if before >= after else 2}f}{TIMES}"


def quality_of(numbers: Numbers) -> Evaluation | None:
    return next((numbers[m] for m in QUALITY_METRICS if m in numbers), None)


def numbers_of(versions: Iterable[Version]) -> dict[int, dict[str, Evaluation]]:
    """Give the newest number per version and metric; a measured one goes before a declared one."""
    found: dict[int, dict[str, Evaluation]] = defaultdict(dict)
    rows = Evaluation.objects.filter(version__in=[version.pk for version in versions])
    for row in rows.order_by("measured", "created_at", "pk"):
        found[row.version_id][row.metric] = row
    return found


def aliases_of(repository: Repository) -> list[Alias]:
    """List the aliases of a repository with what each is at; `followed` ones by deployments."""
    following = Deployment.objects.filter(
        endpoint__repository=OuterRef("repository"), alias=OuterRef("name")
    )
    rows = repository.aliases.select_related("version").annotate(is_followed=Exists(following))
    aliases: list[Alias] = []
    for row in rows.order_by("name"):
        row.followed = row.is_followed
        aliases.append(row)
    return aliases


def count(repository: Repository) -> int:
    """Count the versions of a repository, up to one more than anybody reads off a page."""
    return Version.objects.filter(repository=repository).live()[: COUNTED + 1].count()


def newest(repository: Repository) -> VersionQuerySet:
    """Keep the newest numbers: what a question about all of a long history is asked of."""
    since = repository.last_number - _RECENT
    return Version.objects.filter(repository=repository, number__gt=since).live()


@dataclass(kw_only=True)
class _Tree:
    """Variants by the version that they were made from, and how many of a version are left out."""

    of: dict[int, list[Version]] = field(default_factory=lambda: defaultdict(list))
    more: dict[int, int] = field(default_factory=dict)


def history(
    repository: Repository,
    aliases: Sequence[Alias],
    before: int | None = None,
    *,
    archived: bool = False,
) -> History:
    """Read one page of the history in a number of queries that its length does not change."""
    # One more than shown: it says whether there are older ones, and what the last is compared to.
    page = _line(repository, before, archived=archived)
    shown, rest = page[:PAGE], page[PAGE:]
    tree = _variants(repository, shown, archived=archived)
    numbers = numbers_of([*page, *(v for group in tree.of.values() for v in group)])
    rows, tops = _rows(repository, aliases, shown, tree, numbers)
    if rest:
        tops.append(Row(version=rest[0], depth=0, aliases=[], numbers=numbers[rest[0].pk]))
    main = [row for row in tops if not row.version.variant]
    for newer, older in pairwise(main):
        newer.before = older
    return History(
        rows=rows,
        older=shown[-1].number if rest else None,
        quality_metric=_quality_metric(rows),
    )


def history_below(
    repository: Repository,
    aliases: Sequence[Alias],
    origin: Version,
    before: int | None = None,
    *,
    archived: bool = False,
) -> History:
    """Read a page of what was made from one version: its variants older than number `before`."""
    own_edges = _edges(repository, archived=True).filter(parent=origin)
    since = (
        None
        if before is None
        else own_edges.filter(child__number=before).values_list("pk", flat=True).first()
    )
    tree = _variants(repository, [origin], archived=archived, before=since)
    numbers = numbers_of([origin, *(v for group in tree.of.values() for v in group)])
    # What is left out of its own variants stands on the next page.
    more = tree.more.pop(origin.pk, 0)
    rows, _tops = _rows(repository, aliases, [origin], tree, numbers)
    own = tree.of.get(origin.pk, [])
    return History(
        rows=rows,
        older=own[-1].number if more and own else None,
        quality_metric=_quality_metric(rows),
        below=origin,
    )


def _rows(
    repository: Repository,
    aliases: Sequence[Alias],
    shown: Sequence[Version],
    tree: _Tree,
    numbers: Mapping[int, Numbers],
) -> tuple[list[Row], list[Row]]:
    """Put variants under what they were made from; give all rows, and those at the left."""
    named: dict[int, list[str]] = defaultdict(list)
    for alias in aliases:
        named[alias.version_id].append(alias.name)
    rows: list[Row] = []

    def add(version: Version, depth: int, origin: Row | None) -> Row:
        version.repository = repository
        row = Row(
            version=version,
            depth=depth,
            aliases=named[version.pk],
            numbers=numbers[version.pk],
            before=origin,
            more=tree.more.get(version.pk, 0),
        )
        rows.append(row)
        for variant in tree.of.get(version.pk, []):
            add(variant, depth + 1, row)
        return row

    tops = [add(version, 0, None) for version in shown]
    largest = max((row.version.size_bytes for row in rows), default=1)
    for row in rows:
        row.largest_bytes = largest
    return rows, tops


def _quality_metric(rows: Sequence[Row]) -> str:
    return next((row.quality.metric for row in rows if row.quality), "")


def _line(repository: Repository, before: int | None, *, archived: bool) -> list[Version]:
    """Read the next versions of the main line, and variants whose origin is not here.

    Such variants are looked for among the next so many; a model may have any number of variants.
    """
    rows = Version.objects.filter(repository=repository).live().order_by("-number")
    if not archived:
        rows = rows.exclude(state=VersionState.ARCHIVED)
    if before is not None:
        rows = rows.filter(number__lt=before)
    named = rows.select_related("created_by", "job")
    beside = list(rows.exclude(variant="").values_list("pk", flat=True)[:_WINDOW])
    own_parent = LineageEdge.objects.filter(
        child=OuterRef("pk"),
        role=LineageRole.WEIGHTS,
        parent__repository=repository,
        parent__deleted_at=None,
    )
    if not archived:
        own_parent = own_parent.exclude(parent__state=VersionState.ARCHIVED)
    found = list(named.main_line()[: PAGE + 1])
    if beside:
        found += named.filter(~Exists(own_parent), pk__in=beside)[: PAGE + 1]
    return sorted(found, key=lambda version: -version.number)[: PAGE + 1]


def _variants(
    repository: Repository,
    origins: Sequence[Version],
    *,
    archived: bool,
    before: int | None = None,
) -> _Tree:
    """Group variants by the version they were made from, variants of variants included.

    Of the edges from `origins` those older than `before` are followed. Where a limit cuts, it is
    counted what is left out.
    """
    tree = _Tree()
    frontier = [version.pk for version in origins]
    seen = set(frontier)
    for _generation in range(_GENERATIONS):
        room = min(_MOST_VARIANTS, _MOST_BELOW + len(origins) - len(seen))
        if not frontier or room <= 0:
            break
        rows = _edges(repository, archived=archived).filter(parent__in=frontier)
        if before is not None:
            rows = rows.filter(pk__lt=before)
        rows = rows.select_related("child__created_by", "child__job").order_by("-pk")
        edges = list(rows[: room + 1])
        if len(edges) > room:
            edges.pop()
            tree.more |= _left_out(repository, frontier, archived=archived, before=edges[-1].pk)
        frontier, before = [], None
        for edge in edges:
            if edge.child_id not in seen:
                seen.add(edge.child_id)
                tree.of[edge.parent_id].append(edge.child)
                frontier.append(edge.child_id)
    if frontier:
        tree.more |= _left_out(repository, frontier, archived=archived)
    return tree


def _edges(repository: Repository, *, archived: bool) -> QuerySet[LineageEdge]:
    """Keep the edges to variants that are there."""
    rows = LineageEdge.objects.filter(
        role=LineageRole.WEIGHTS, child__repository=repository, child__deleted_at=None
    ).exclude(child__variant="")
    return rows if archived else rows.exclude(child__state=VersionState.ARCHIVED)


def _left_out(
    repository: Repository, origins: Sequence[int], *, archived: bool, before: int | None = None
) -> dict[int, int]:
    """Count the variants of each version that a page has no room for, as far as anybody reads."""
    rows = _edges(repository, archived=archived).filter(parent=OuterRef("pk"))
    if before is not None:
        rows = rows.filter(pk__lt=before)
    some = rows.order_by("-pk").values("pk")[: _COUNTED_BELOW + 1]
    counted = Version.objects.filter(pk__in=origins).annotate(below=ArraySubquery(some))
    return {pk: len(below) for pk, below in counted.values_list("pk", "below") if below}


def quality_chart(
    rows: Sequence[Row], metric: str, axis: str, width: int = charts.WIDTH
) -> charts.Scatter | None:
    """Draw quality against size or latency, every version of the page a point."""
    points = []
    for row in rows:
        quality = row.numbers.get(metric)
        cost = _cost(row, axis)
        if quality is None or cost is None:
            continue
        scale = 100 if metric in wording.SHARES else 1
        version = row.version
        facts = [
            (wording.metric_name(metric), wording.value_text(quality.value, quality.unit, metric)),
            (_("Size"), wording.size_text(version.size_bytes)),
        ]
        if row.latency:
            facts.append(
                (
                    wording.metric_name(wording.LATENCY_METRIC),
                    wording.value_text(row.latency.value, row.latency.unit, row.latency.metric),
                )
            )
        name = f"v{version.number}"
        points.append(
            charts.Measured(
                name=f"{name} {version.variant}" if version.variant else name,
                x=cost,
                y=quality.value * scale,
                low=None if quality.low is None else quality.low * scale,
                high=None if quality.high is None else quality.high * scale,
                family=wording.family_of(version.variant),
                href=address_of(version),
                facts=facts,
            )
        )
    return charts.scatter(
        points, ceiling=100 if metric in wording.SHARES else math.inf, width=width
    )


def _cost(row: Row, axis: str) -> float | None:
    if axis == "latency":
        return row.latency.value if row.latency else None
    return row.version.size_bytes / 1e6


def address_of(version: Version) -> str:
    return reverse(
        "web:version",
        kwargs={
            "kind": version.repository.kind,
            "namespace": version.repository.namespace.slug,
            "name": version.repository.name,
            "number": version.number,
        },
    )


def pair_address(page: str, before: Version, after: Version) -> str:
    """Give the address of a page about two versions, which may be of two repositories."""
    address = reverse(
        f"web:{page}",
        kwargs={
            "kind": before.repository.kind,
            "namespace": before.repository.namespace.slug,
            "name": before.repository.name,
            "number": before.number,
            "other": after.number,
        },
    )
    if before.repository_id == after.repository_id:
        return address
    return f"{address}?{urlencode({'repository': after.repository.full_name})}"


def recent(repository: Repository, but: Sequence[Version]) -> list[Version]:
    """Offer the newest versions beside those that are chosen already."""
    rows = Version.objects.filter(repository=repository).live()
    return list(rows.exclude(pk__in=[one.pk for one in but]).order_by("-number")[:PAGE])


def origin_of(version: Version, parents: Sequence[Branch]) -> Version | None:
    """Choose what a version is best compared with: what its weights came from, or the one before.

    `parents` are those that whoever asks may see.
    """
    for branch in parents:
        if branch.role == LineageRole.WEIGHTS:
            return branch.version
    found = (
        Version.objects.filter(repository=version.repository_id, number__lt=version.number)
        .live()
        .main_line()
        .order_by("-number")
        .first()
    )
    if found is not None:
        found.repository = version.repository
    return found


def lineage(actor: Actor, version: Version) -> tuple[list[Branch], list[Branch]]:
    """Tell what `version` came from and what came from it, as far as `actor` may see."""
    visible = Version.objects.visible_to(actor).values("pk")
    parents = (
        LineageEdge.objects.filter(child=version, parent__in=visible)
        .select_related("parent__repository__namespace")
        .order_by("role", "pk")
    )
    children = (
        LineageEdge.objects.filter(parent=version, child__in=visible)
        .select_related("child__repository__namespace")
        .order_by("pk")[:100]
    )
    return (
        [Branch(version=edge.parent, role=edge.role) for edge in parents],
        [Branch(version=edge.child, role=edge.role) for edge in children],
    )


def running_jobs(actor: Actor, repository: Repository) -> list[Job]:
    return list(
        Job.objects.visible_to(actor)
        .filter(inputs__repository=repository, state__in=[JobState.QUEUED, JobState.RUNNING])
        .with_names(actor)
        .distinct()
        .order_by("created_at")[:3]
    )
