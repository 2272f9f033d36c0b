"""What this machine offers to jobs; asked of a process that ends again, never of this one.

A process that has touched CUDA can neither fork safely nor give its memory on the device back.
"""

import functools
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from registry.errors import Unavailable

_PROBE = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
found = [torch.cuda.get_device_properties(index) for index in range(count)]
print(json.dumps([
    {
        "name": one.name,
        "memory_bytes": one.total_memory,
        "capability": [one.major, one.minor],
    }
    for one in found
]))
"""
_PROBE_SECONDS = 120
_CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"


def probe_devices() -> list[dict[str, Any]]:
    """List the CPU and every GPU that PyTorch can use."""
    cpu = {"kind": "cpu", "name": _cpu_name(), "threads": usable_cores()}
    gpus = [{"kind": "gpu", "index": index, **gpu} for index, gpu in enumerate(_probe_gpus())]
    return [cpu, *gpus]


def usable_cores() -> int:
    """Count the cores this process may run on, which a container limits."""
    return len(os.sched_getaffinity(0))


@functools.cache
def onnx_may_use_gpu() -> bool:
    """Say whether this ONNX Runtime was built for CUDA, without loading it."""
    found = importlib.util.find_spec("onnxruntime")
    places = (found.submodule_search_locations or []) if found is not None else []
    return any(Path(one, "capi", _CUDA_PROVIDER).exists() for one in places)


def gpu_of_server(said: str) -> int | None:
    """Read which GPU the models of a server compute on; none where nothing is said.

    Raises:
        Unavailable: it is no number, or this machine has no such device.

    """
    if not said:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 4):
        raise Unavailable(
            "MODELYARD_SERVING_GPU is {said!r}; it is the number of a GPU, or empty.", said=said
        )
    if not _has_gpus():
        raise Unavailable(
            "MODELYARD_SERVING_GPU names GPU {number}, and this machine shows no device of one: "
            "there is no /dev/nvidia0 and no /dev/dxg.",
            number=int(said),
        )
    return int(said)


def name_of_gpu(index: int) -> str:
    """Name a GPU of this machine; nothing where PyTorch sees none of that number."""
    return next((str(one["name"]) for at, one in enumerate(_probe_gpus()) if at == index), "")


def _has_gpus() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _probe_gpus() -> list[dict[str, Any]]:
    if not _has_gpus():
        return []
    try:
        answer = subprocess.run(  # noqa: S603 - our own interpreter and program
            [sys.executable, "-I", "-c", _PROBE],
            capture_output=True,
            check=True,
            timeout=_PROBE_SECONDS,
            # As the sandbox counts them.
            env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return found if isinstance(found, list) else []
