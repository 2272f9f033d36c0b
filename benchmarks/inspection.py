"""What the sandbox costs: a file opened in a confined child, beside the same in this process.

The parse is `torch.load` and the write of a safetensors file, done here by the same code; the rest
is fork, confinement and the way there and back. Start is that of the fork server, and of a job's
confinement beside a bare process.
"""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.report import Figure, keep
from workers import sandbox
from workers.inspector import Inspector
from workers.ml import convert

ROUNDS = 60
EMPTY = (sys.executable, "-I", "-S", "-c", "")
SIZES = {"1 MiB": 1, "80 MiB": 80}


def checkpoint(mebibytes: int) -> bytes:
    out = io.BytesIO()
    state = {f"layer.{number}": torch.randn(256, 1024) for number in range(mebibytes)}
    torch.save(state, out)
    return out.getvalue()


def clock(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def figure(what: str, seconds: float, *, aim: str = "") -> Figure:
    return Figure(what=what, value=seconds * 1000, unit="ms", aim=aim)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def measure_conversions(inspector: Inspector, folder: Path) -> list[Figure]:
    """Convert the same file here and in the sandbox by turns, and compare."""
    figures = []
    for name, mebibytes in SIZES.items():
        source, target = folder / "source", folder / "target"
        source.write_bytes(checkpoint(mebibytes))
        size = source.stat().st_size

        def bare(source: Path = source, target: Path = target, size: int = size) -> None:
            with source.open("rb") as given, target.open("wb") as sink:
                convert.convert("torch-zip", given, size, sink, hints={})

        def confined(source: Path = source, target: Path = target) -> None:
            said = inspector.convert(source, target, kind="torch-zip", hints={})
            assert said.format == "safetensors", said

        here, there = [], []
        for _ in range(ROUNDS if mebibytes < 10 else ROUNDS // 3):
            here.append(clock(bare))
            there.append(clock(confined))
        middle = percentile(here, 0.5)
        beyond = [one - middle for one in there]
        figures += [
            figure(f"convert {name} of weights in the sandbox: p50", percentile(there, 0.5)),
            figure(f"convert {name} of weights in this process: p50", middle),
            figure(
                f"sandbox beyond the parse, {name}: p95",
                percentile(beyond, 0.95),
                aim="< 150",
            ),
        ]
    return figures


def measure_start(folder: Path) -> list[Figure]:
    """Start a process that does nothing, confined as a job and bare."""
    confined, bare = [], []
    (folder / "tmp").mkdir()
    for _ in range(20):

        def start() -> None:
            process = sandbox.start(
                EMPTY,
                folder=folder,
                environment={},
                limits=sandbox.Limits(),
            )
            process.communicate()

        confined.append(clock(start))
        bare.append(clock(lambda: subprocess.run(EMPTY, check=True)))
    return [
        figure("start of an empty process, confined as a job: p50", percentile(confined, 0.5)),
        figure("start of an empty process, bare: p50", percentile(bare, 0.5)),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="modelyard-inspection-") as name:
        folder = Path(name)
        inspector = Inspector()
        try:
            source = folder / "first"
            source.write_bytes(checkpoint(1))
            first = clock(lambda: inspector.look(source, kind="torch-zip"))
            figures = [figure("start of the fork server", first)]
            figures += measure_conversions(inspector, folder)
        finally:
            inspector.stop()
        job = folder / "job"
        job.mkdir()
        figures += measure_start(job)
    keep("inspection", figures)


if __name__ == "__main__":
    main()
