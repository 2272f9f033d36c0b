"""The machine that a number was measured on: a latency means nothing without it."""

import functools
import os
import platform
from pathlib import Path
from typing import Any

TELLING_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """Name the instruction sets that decide how fast tensors are multiplied."""
    found = all_cpu_flags()
    return tuple(flag for flag in TELLING_FLAGS if flag in found)


@functools.cache
def all_cpu_flags() -> tuple[str, ...]:
    """Name all that the processor can, which machine code is compiled for."""
    for line in _cpu_info():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return tuple(sorted({*value.split()}))
    return ()


def cpu_name() -> str:
    for line in _cpu_info():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Count the cores that this process may run on, which a container limits."""
    return len(os.sched_getaffinity(0))


def class_of_cpu() -> str:
    """Name what machines are alike in for which a tuning holds: the processor, and its cores."""
    cores = usable_cores()
    return f"{cpu_name()}, {cores} {'core' if cores == 1 else 'cores'}"


def describe(*, device: str, threads: int) -> dict[str, Any]:
    """Describe the machine and the libraries, for the report."""
    import onnxruntime  # noqa: PLC0415 - heavy; only the finished report needs it
    import torch  # noqa: PLC0415

    described: dict[str, Any] = {
        "device": device,
        "threads": threads,
        "cpu": cpu_name(),
        "cpu_flags": list(cpu_flags()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
        described["cuda"] = torch.version.cuda
    return described


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
