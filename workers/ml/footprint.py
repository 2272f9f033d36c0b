"""`python -m workers.ml.footprint FOLDER THREADS`: the memory that loading and running takes."""

import contextlib
import json
import os
import sys
from pathlib import Path

import torch

from workers.ml.evaluate import LATENCY_BATCHES
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.probes import NOWHERE, probe_rows


def main(path: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    folder = open_model(path)
    if folder.is_transformer:
        import transformers.models.auto  # noqa: F401, PLC0415 - its memory is not the model's
    before = _reset_peak()
    runtime = load_runtime(folder, device="cpu", threads=threads)
    runtime.run(probe_rows(runtime, max(LATENCY_BATCHES)), NOWHERE)
    peak = _status("VmHWM")
    sys.stdout.write(json.dumps({"peak_bytes": max(0, peak - before), "before_bytes": before}))


def _reset_peak() -> int:
    """Start the kernel's high-water mark again from here."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(Path(sys.argv[1]), int(sys.argv[2]))
