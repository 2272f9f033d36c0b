"""What the ways come to over their seeds: a table, the figures with aims, and who is ahead."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.compressed.rows import SEEDS, Absent, Measured
from benchmarks.report import Figure

LEAST_COSINE = 0.99
MOST_LOST = 0.005
_CLASSIFIERS = ("R8", "IMDb")
_AS_GOOD = {"MiniLM": 0.0005}
_HEAD = (
    "| model | way | seeds | bytes | times | accuracy or cosine | change | rows | ms | of parent |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
)


@dataclass(frozen=True)
class Way:
    """One way on one model: the means over its seeds, and the worse ends of their intervals."""

    runs: Sequence[Measured]

    @property
    def model(self) -> str:
        return self.runs[0].model

    @property
    def name(self) -> str:
        return self.runs[0].way

    @property
    def ours(self) -> bool:
        return self.runs[0].ours

    @property
    def stored_bytes(self) -> float:
        return statistics.mean(one.stored_bytes for one in self.runs)

    @property
    def times_smaller(self) -> float:
        return statistics.mean(one.times_smaller for one in self.runs)

    @property
    def quality(self) -> float:
        return statistics.mean(one.quality for one in self.runs)

    @property
    def change(self) -> float:
        return statistics.mean(one.quality - one.parent_quality for one in self.runs)

    @property
    def low(self) -> float:
        return min(one.low for one in self.runs)

    @property
    def high(self) -> float:
        return max(one.high for one in self.runs)

    @property
    def latency_ms(self) -> float:
        return statistics.median(one.latency_ms for one in self.runs)

    @property
    def share_of_parent(self) -> float:
        return statistics.median(one.latency_ms / one.parent_latency_ms for one in self.runs)

    def covers(self, other: "Way") -> bool:
        """Tell whether it is as small as another and as good, but for what cannot be told apart."""
        good_enough = other.quality - _AS_GOOD.get(self.model, MOST_LOST)
        return self.stored_bytes <= other.stored_bytes and self.quality >= good_enough


def ways_of(measured: Sequence[Measured]) -> list[Way]:
    """Put the seeds of each way together, in the order in which they came."""
    keys = dict.fromkeys((one.model, one.way) for one in measured)
    return [Way([one for one in measured if (one.model, one.way) == key]) for key in keys]


def ahead_of(ways: Sequence[Way], model: str) -> list[Way]:
    """List the ways of others on a model that no way of ours covers."""
    ours = [way for way in ways if way.model == model and way.ours]
    others = [way for way in ways if way.model == model and not way.ours]
    return [other for other in others if not any(own.covers(other) for own in ours)]


def figures(measured: Sequence[Measured]) -> list[Figure]:
    """Tell what has an aim."""
    ways = ways_of(measured)
    found = []
    for model in dict.fromkeys(way.model for way in ways):
        what = f"{model}: ways of others that none of ours is as small and as good as"
        count = len(ahead_of(ways, model))
        found.append(Figure(what=what, value=count, unit="", aim="< 1"))
        ours = [way for way in ways if way.model == model and way.ours]
        found += _encoder(ours) if model == "MiniLM" else _classifier(model, ours)
    return found


def _encoder(ours: Sequence[Way]) -> list[Figure]:
    faithful = [way.times_smaller for way in ours if way.quality >= LEAST_COSINE]
    what = f"MiniLM: times smaller at a cosine of {LEAST_COSINE} or more"
    return [Figure(what=what, value=max(faithful, default=0), unit="x", aim=">= 4")]


def _classifier(model: str, ours: Sequence[Way]) -> list[Figure]:
    aimed = model in _CLASSIFIERS
    (int8,) = [way for way in ours if way.name == "int8"]
    kept = [way.times_smaller for way in ours if way.low >= -MOST_LOST]
    return [
        Figure(
            what=f"{model} int8: times smaller",
            value=int8.times_smaller,
            unit="x",
            aim=">= 3.2" if aimed else "",
        ),
        Figure(
            what=f"{model} int8: points of accuracy to the parent, lower end of 95 %, worst seed",
            value=100 * int8.low,
            unit="points",
            aim=">= -0.5" if aimed else "",
        ),
        Figure(
            what=f"{model}: times smaller within 0.5 point by the lower end of 95 %, at best",
            value=max(kept, default=0),
            unit="x",
        ),
    ]


def table(measured: Sequence[Measured], absent: Sequence[Absent]) -> list[str]:
    """Draw all ways, the others' in italics; each model from its largest file to its smallest."""
    lines = list(_HEAD)
    ways = ways_of(measured)
    for model in SEEDS:
        own = sorted((way for way in ways if way.model == model), key=lambda way: way.times_smaller)
        lines += [_row(way) for way in own]
        lines += [
            f"| {one.model} | *{one.way}* | 0 | | | {_plain(one.reason)} | | | | |"
            for one in {(one.model, one.way): one for one in absent}.values()
            if one.model == model
        ]
    return lines


def _plain(reason: str) -> str:
    return reason.replace("|", "/")


def _row(way: Way) -> str:
    cosine = way.model == "MiniLM"
    scale, digits = (1, 4) if cosine else (100, 2)
    cells = (
        way.model,
        way.name if way.ours else f"*{way.name}*",
        f"{len(way.runs)}",
        f"{way.stored_bytes:,.0f}",
        f"{way.times_smaller:.2f}",
        f"{scale * way.quality:.{digits}f}" + ("" if cosine else " %"),
        f"{scale * way.low:.{digits}f} to {scale * way.high:.{digits}f}"
        if cosine
        else f"{scale * way.change:+.2f} ({scale * way.low:+.2f} to {scale * way.high:+.2f})",
        f"{way.runs[0].n:,}",
        f"{way.latency_ms:.2f}",
        f"{way.share_of_parent:.2f}",
    )
    return f"| {' | '.join(cells)} |"
