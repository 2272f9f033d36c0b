"""What became of the weights of MiniLM in a fine-tune of it, and of one very large tensor.

The process of the job as a worker starts it, from its start to its report: MiniLM beside itself
with every tensor of its six blocks moved a little, as training does, the embeddings kept. Then one
tensor of `BENCH_TENSOR_MIB` (2,048) on each side, of which a tenth became zero, and the memory
that comparing it took.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.report import Figure, keep
from config.local import sample_data

ROUNDS = 5
ROOT = Path(__file__).resolve().parents[1]
RECIPE = {"kind": "diff", "schema": 1, "base": "a/model@1", "model": "a/model@2"}
_BLOCK = 1 << 24


def write_pair(folder: Path) -> None:
    """Write MiniLM, and what training its blocks would make of it."""
    weights = load_file(sample_data.encoder_files()["model.safetensors"])
    chance = np.random.default_rng(0)
    tuned = {
        name: values + 0.01 * values.std() * chance.standard_normal(values.shape).astype(np.float32)
        if "encoder.layer" in name and values.dtype == np.float32
        else values
        for name, values in weights.items()
    }
    for role, tensors in (("base", weights), ("model", tuned)):
        place = folder / "inputs" / role
        place.mkdir(parents=True)
        save_file(tensors, place / "model.safetensors")


def write_large(folder: Path, mebibytes: int) -> None:
    """Write one large tensor twice; in the second every tenth block of it is zero."""
    size = mebibytes << 20
    place = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"w": place}).encode()
    numbers = np.random.default_rng(0).standard_normal(_BLOCK // 4).astype("<f4").tobytes()
    for role in ("base", "model"):
        path = folder / "inputs" / role / "model.safetensors"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for at in range(size // _BLOCK):
                emptied = role == "model" and at % 10 == 0
                file.write(bytes(_BLOCK) if emptied else numbers)


class Run(NamedTuple):
    """What one process took, and what it counted."""

    seconds: float
    processor_seconds: float
    most_mib: float
    counts: dict[str, int]


def apart(write: Callable[..., None], *given: Any) -> None:
    """Write files in another process: a child's memory is counted from what its parent held."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(write, *given).result()


def compare(folder: Path) -> Run:
    """Run the job's process."""
    described = {
        "job_id": "bench",
        "recipe": RECIPE,
        "inputs": {
            role: {"path": f"inputs/{role}", "ref": RECIPE[role], "may_be_named": True}
            for role in ("base", "model")
        },
        "out": "out",
        "checkpoints": "checkpoints",
    }
    (folder / "job.json").write_text(json.dumps(described))
    for old in (folder / "checkpoints").glob("*"):
        old.unlink()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.ml", "job.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    _pid, status, used = os.wait4(process.pid, 0)
    passed = time.perf_counter() - started
    if status:
        raise RuntimeError(f"the comparison ended with {status}")
    report = json.loads((folder / "out" / "report.json").read_text())
    return Run(
        passed,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1024,
        report["summary"]["counts"],
    )


def main() -> None:
    mebibytes = int(os.environ.get("BENCH_TENSOR_MIB", "2048"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart(write_pair, folder)
        runs = [compare(folder) for _ in range(ROUNDS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apart(write_large, folder, mebibytes)
        large = compare(folder)
    keep(
        "weightdiff",
        [
            Figure(
                what="two MiniLM versions, start of the process to its report, median",
                value=statistics.median(run.seconds for run in runs),
                unit="s",
                aim="< 2",
            ),
            Figure(
                what="two MiniLM versions, time of the processor, median",
                value=statistics.median(run.processor_seconds for run in runs),
                unit="s",
            ),
            Figure(what="two MiniLM versions, most memory", value=runs[0].most_mib, unit="MiB"),
            Figure(
                what=f"one tensor of {mebibytes} MiB on each side",
                value=2 * mebibytes / large.seconds,
                unit="MiB/s",
            ),
            Figure(
                what=f"one tensor of {mebibytes} MiB on each side, most memory",
                value=large.most_mib,
                unit="MiB",
                aim="< 300",
            ),
        ],
        rounds=ROUNDS,
        counts=runs[0].counts,
    )


if __name__ == "__main__":
    main()
