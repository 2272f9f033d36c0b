"""What compression comes to on models that papers measure: real files, decoded and run again.

Two networks of the Deep Compression paper, three seeds each, beside dense ones that trained for
just as long; and whole versions, made smaller by our jobs and by other packages' one-line defaults.
`COMPRESSION_ROWS=LeNet-5` (or `versions`) measures a part anew and keeps the rest; with
`COMPRESSION_SEEDS=1` nothing is kept.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.compressed.digits import open_digits
from benchmarks.compressed.lenet import PLANS, Outcome, Plan, measure
from benchmarks.compressed.rows import Measured, measure_all
from benchmarks.report import RESULTS, Figure, keep

SEEDS = (0, 1, 2)
VERSIONS = "versions"
_LEAST_COSINE = 0.99
_AS_GOOD = {"MiniLM": 0.0005}
_HEAD = (
    "| network | dense, bytes | coded, bytes | times | not zero | accuracy | control | gap |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)
_VERSIONS_HEAD = (
    "| model | way | bytes | times | accuracy or cosine | lost | p | ms, batch 1 | of the parent |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main() -> None:
    wanted = os.environ.get("COMPRESSION_ROWS")
    seeds = SEEDS[: int(os.environ.get("COMPRESSION_SEEDS", len(SEEDS)))]
    digits = open_digits()
    measured = {
        plan.name: [measure(plan, digits, seed) for seed in seeds]
        for plan in PLANS
        if wanted in {None, plan.name}
    }
    versions: list[Measured] = []
    if wanted in {None, VERSIONS}:
        with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
            versions = measure_all(Path(folder))
    if seeds == SEEDS:
        kept_outcomes, kept_versions = _kept()
        measured, versions = {**kept_outcomes, **measured}, versions or kept_versions
    rows = [(plan, measured[plan.name]) for plan in PLANS if plan.name in measured]
    print("\n".join([*_HEAD, *(_row(plan, found) for plan, found in rows)]))
    print("\n".join([*_VERSIONS_HEAD, *map(_version_row, versions)]))
    if seeds == SEEDS:
        figures = [figure for plan, found in rows for figure in _figures(plan, found)]
        details = {plan.name: [asdict(one) for one in found] for plan, found in rows}
        keep(
            "compression",
            [*figures, *_version_figures(versions)],
            data=digits.source,
            outcomes=details,
            versions=[asdict(one) for one in versions],
        )


def _kept() -> tuple[dict[str, list[Outcome]], list[Measured]]:
    """Give what a former run measured."""
    file = RESULTS / "compression.json"
    if not file.is_file():
        return {}, []
    details: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["details"]
    outcomes = {
        name: [Outcome(**one) for one in outcomes] for name, outcomes in details["outcomes"].items()
    }
    return outcomes, [Measured(**one) for one in details["versions"]]


def _version_figures(versions: Sequence[Measured]) -> list[Figure]:
    """Tell what our ways come to, and how many of the others' are ahead of all of ours."""
    figures = []
    for model in dict.fromkeys(one.model for one in versions):
        ways = [one for one in versions if one.model == model]
        ours = [one for one in ways if one.ours]
        for one in ours:
            figures += [
                Figure(
                    what=f"{model}, {one.way}: times smaller", value=one.times_smaller, unit="x"
                ),
                Figure(
                    what=f"{model}, {one.way}: {_measure_of(model)}", value=one.quality, unit=""
                ),
            ]
        ahead = [one for one in ways if not one.ours and not any(_beats(own, one) for own in ours)]
        figures.append(
            Figure(
                what=f"{model}: ways of others that none of ours is as small and as good as",
                value=len(ahead),
                unit="",
                aim="< 1",
            )
        )
    faithful = [
        one.times_smaller
        for one in versions
        if one.model == "MiniLM" and one.ours and one.quality >= _LEAST_COSINE
    ]
    if faithful:
        what = f"MiniLM: times smaller at a cosine of {_LEAST_COSINE} or more"
        figures.append(Figure(what=what, value=max(faithful), unit="x", aim=">= 4"))
    return figures


def _measure_of(model: str) -> str:
    return "cosine to the parent" if model == "MiniLM" else "accuracy"


def _beats(own: Measured, other: Measured) -> bool:
    """Tell whether ours is as small and as good, but for what cannot be told apart."""
    good_enough = other.quality - _AS_GOOD.get(own.model, 0.005)
    return own.stored_bytes <= other.stored_bytes and own.quality >= good_enough


def _version_row(one: Measured) -> str:
    cells = (
        one.model,
        one.way if one.ours else f"*{one.way}*",
        f"{one.stored_bytes:,}",
        f"{one.times_smaller:.2f}",
        f"{one.quality:.4f}",
        f"{one.lost:+.4f}",
        "" if one.p_value is None else f"{one.p_value:.2g}",
        f"{one.latency_ms:.2f}",
        f"{one.latency_ms / one.parent_latency_ms:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def _figures(plan: Plan, outcomes: Sequence[Outcome]) -> list[Figure]:
    """Tell the worst of the seeds where there is an aim, and the mean of the rest."""
    name = plan.name
    return [
        Figure(
            what=f"{name}: times smaller as a file, worst seed",
            value=min(one.times_smaller for one in outcomes),
            unit="x",
            aim=f">= {plan.aim}",
        ),
        Figure(
            what=f"{name}: points of accuracy to the dense control, mean",
            value=statistics.mean(one.gap for one in outcomes),
            unit="points",
            aim=">= -0.1",
        ),
        Figure(
            what=f"{name}: points of accuracy to the dense control, worst seed",
            value=min(one.gap for one in outcomes),
            unit="points",
        ),
        Figure(
            what=f"{name}: accuracy, mean",
            value=100 * statistics.mean(one.accuracy for one in outcomes),
            unit="%",
        ),
        Figure(
            what=f"{name}: coded file, mean",
            value=statistics.mean(one.coded_bytes for one in outcomes),
            unit="bytes",
        ),
        Figure(
            what=f"{name}: decoding it, median",
            value=statistics.median(one.decode_ms for one in outcomes),
            unit="ms",
        ),
    ]


def _row(plan: Plan, outcomes: Sequence[Outcome]) -> str:
    """Draw one network as a line of a paper's table: means, and half the range of the seeds."""
    cells = (
        f"{outcomes[0].dense_bytes:,}",
        _around([one.coded_bytes for one in outcomes], "{:,.0f}"),
        _around([one.times_smaller for one in outcomes], "{:.1f}"),
        _around([100 * one.nonzero / one.parameters for one in outcomes], "{:.1f} %"),
        _around([100 * one.accuracy for one in outcomes], "{:.2f} %"),
        _around([100 * one.control_accuracy for one in outcomes], "{:.2f} %"),
        _around([one.gap for one in outcomes], "{:+.2f}"),
    )
    return f"| {plan.name} | {' | '.join(cells)} |"


def _around(values: Sequence[float], written: str) -> str:
    middle = written.format(statistics.mean(values))
    half = (max(values) - min(values)) / 2
    spread = written.replace("+", "").replace(" %", "").format(half)
    return middle if len(values) == 1 else f"{middle} ± {spread}"


if __name__ == "__main__":
    main()
