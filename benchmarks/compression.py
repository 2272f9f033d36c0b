"""What compression comes to on models that papers measure: real files, decoded and run again.

`COMPRESSION_ROWS=LeNet-5` measures a part anew and keeps the rest; with `COMPRESSION_SEEDS=1`
nothing is kept.
"""

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.compressed.digits import open_digits
from benchmarks.compressed.lenet import PLANS, Outcome, Plan, measure
from benchmarks.report import RESULTS, Figure, keep

SEEDS = (0, 1, 2)
_HEAD = (
    "| network | dense, bytes | coded, bytes | times | not zero | accuracy | control | gap |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
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
    outcomes = {**_kept(), **measured} if seeds == SEEDS else measured
    rows = [(plan, outcomes[plan.name]) for plan in PLANS if plan.name in outcomes]
    print("\n".join([*_HEAD, *(_row(plan, found) for plan, found in rows)]))
    if seeds == SEEDS:
        figures = [figure for plan, found in rows for figure in _figures(plan, found)]
        details = {plan.name: [asdict(one) for one in found] for plan, found in rows}
        keep("compression", figures, data=digits.source, outcomes=details)


def _kept() -> dict[str, list[Outcome]]:
    """Give what a former run measured."""
    file = RESULTS / "compression.json"
    if not file.is_file():
        return {}
    details: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["details"]
    return {
        name: [Outcome(**one) for one in outcomes] for name, outcomes in details["outcomes"].items()
    }


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
