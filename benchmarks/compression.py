"""What compression comes to on models that papers measure: real files, decoded and run again.

Two networks of the Deep Compression paper, three seeds each, beside dense ones that trained for
just as long; and whole versions, made smaller by our jobs and by other packages' one-line defaults.
`COMPRESSION_ROWS=LeNet-5` (a network, a model, or `versions`) measures a part anew and keeps the
rest; `COMPRESSION_SEEDS=1` that seed alone (0,1,2: these), and a network is then only tried;
`COMPRESSION_WAYS="70|dense"` of a model only the ways whose names this expression finds.
"""

import itertools
import json
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.compressed import front
from benchmarks.compressed.digits import open_digits
from benchmarks.compressed.lenet import PLANS, Outcome, Plan, measure
from benchmarks.compressed.rows import SEEDS as MODELS
from benchmarks.compressed.rows import Absent, Measured, measure_model
from benchmarks.report import RESULTS, Figure, keep, write_page, write_part

SEEDS = (0, 1, 2)
VERSIONS = "versions"
_HEAD = (
    "| network | dense, bytes | coded, bytes | times | not zero | accuracy | control | gap |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main() -> None:
    wanted = os.environ.get("COMPRESSION_ROWS")
    named = os.environ.get("COMPRESSION_SEEDS")
    only = os.environ.get("COMPRESSION_WAYS", "")
    seeds = SEEDS if named is None else tuple(int(seed) for seed in named.split(","))
    plans = [plan for plan in PLANS if wanted in {None, plan.name}]
    models = [model for model in MODELS if wanted in {None, VERSIONS, model}]
    outcomes, versions, absent = _kept()
    digits = open_digits()
    for plan in plans:
        outcomes[plan.name] = [measure(plan, digits, seed) for seed in seeds]
        if seeds == SEEDS:
            _keep(digits.source, outcomes, versions, absent)
    for model, seed in itertools.product(models, seeds):
        if seed >= MODELS[model]:
            continue
        with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
            found = list(measure_model(model, seed, Path(folder), only=only))
        anew = {(one.model, one.seed, one.way) for one in found} | {(model, seed, "all")}
        versions = [one for one in versions if (one.model, one.seed, one.way) not in anew]
        versions += [one for one in found if isinstance(one, Measured)]
        absent = [one for one in absent if (one.model, one.seed, one.way) not in anew]
        absent += [one for one in found if isinstance(one, Absent)]
        _keep(digits.source, outcomes, versions, absent)
    print("\n".join(_tables(outcomes, versions, absent)))


def _kept() -> tuple[dict[str, list[Outcome]], list[Measured], list[Absent]]:
    """Give what former runs measured."""
    file = RESULTS / "compression.json"
    if not file.is_file():
        return {}, [], []
    details: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["details"]
    outcomes = {
        name: [Outcome(**one) for one in outcomes] for name, outcomes in details["outcomes"].items()
    }
    versions = [Measured(**one) for one in details["versions"]]
    return outcomes, versions, [Absent(**one) for one in details.get("absent", [])]


def _keep(
    source: str,
    outcomes: Mapping[str, Sequence[Outcome]],
    versions: Sequence[Measured],
    absent: Sequence[Absent],
) -> None:
    """Keep everything that is measured so far, in the file and on the page."""
    rows = [(plan, outcomes[plan.name]) for plan in PLANS if plan.name in outcomes]
    keep(
        "compression",
        [
            *(figure for plan, found in rows for figure in _figures(plan, found)),
            *front.figures(versions),
        ],
        data=source,
        outcomes={plan.name: [asdict(one) for one in found] for plan, found in rows},
        versions=[asdict(one) for one in versions],
        absent=[asdict(one) for one in absent],
    )
    write_part("compression", "\n".join([*_tables(outcomes, versions, absent), ""]))
    write_page()


def _tables(
    outcomes: Mapping[str, Sequence[Outcome]],
    versions: Sequence[Measured],
    absent: Sequence[Absent],
) -> list[str]:
    networks = [_row(plan, outcomes[plan.name]) for plan in PLANS if plan.name in outcomes]
    return [*_HEAD, *networks, "", *front.table(versions, absent)]


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
