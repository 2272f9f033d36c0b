"""What a job's process is started in: limits, no new privileges, a scrubbed environment.

Run as a program (`python -I -S sandbox.py '{"limits": …}' command…`) this file puts the limits on
its own process and then becomes the command. That costs a short-lived interpreter and saves
running Python between fork and exec in a process full of threads. Standard library only.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
# Told apart from what a job itself may exit with (1, 2, 143).
CANNOT_START = 125

# Of the worker's own environment a job sees only these: where libraries and devices are.
_PASSED_ON = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES", "TZ")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one job's process may use; 0 sets no limit."""

    cpu_seconds: int = 0
    memory_bytes: int = 0
    file_bytes: int = 0
    open_files: int = 4096
    processes: int = 4096
    niceness: int = 2


def clean_environment(folder: Path, *, threads: int, gpu: int | None) -> dict[str, str]:
    """Make a job's environment from nothing: no address, no secret, no home but its folder."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    count = str(threads)
    return {
        **environment,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": count,
        # Threads that spin while they wait cost a job three times its time on a busy machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu),
    }


def start(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    limits: Limits,
) -> subprocess.Popen[bytes]:
    """Start `command` in `folder` as the leader of a session of its own.

    It dies with the thread that calls this, however that ends.
    """
    plan = json.dumps({"limits": asdict(limits), "parent": os.getpid()})
    return subprocess.Popen(  # noqa: S603 - no shell, and a command of our own
        [sys.executable, "-I", "-S", __file__, plan, *command],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def stop_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the process and everything it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def kill_leftovers(folder: Path, *, patience_seconds: float = 10) -> int:
    """Kill what an earlier attempt left working in `folder`; tell how many processes that were.

    A worker that was only paused, and lost its job meanwhile, still has its process running.
    """
    found = processes_in(folder)
    for process_id in found:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    until = time.monotonic() + patience_seconds
    while found and processes_in(folder) and time.monotonic() < until:
        time.sleep(0.02)
    return len(found)


def processes_in(folder: Path) -> list[int]:
    """Find the processes that work below `folder`; a recorded number may be somebody else's."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if link.readlink().is_relative_to(folder) and int(link.parent.name) != os.getpid():
                found.append(int(link.parent.name))
    return found


def _confine(limits: Limits) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if library.prctl(option, int(value), 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, limits.cpu_seconds or None)
    _limit(resource.RLIMIT_AS, limits.memory_bytes or None)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes or None)
    _limit(resource.RLIMIT_NOFILE, limits.open_files or None)
    _limit(resource.RLIMIT_NPROC, limits.processes or None)
    os.nice(limits.niceness)
    # When memory runs out the job goes first, not the database beside it.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _limit(kind: int, wanted: int | None) -> None:
    if wanted is None:
        return
    _, hard = resource.getrlimit(kind)
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (value, value))


def _main() -> None:
    plan = json.loads(sys.argv[1])
    command = sys.argv[2:]
    try:
        _confine(Limits(**plan["limits"]))
        if os.getppid() != plan["parent"]:
            raise ProcessLookupError("the worker died while the job was starting")
        os.execve(command[0], command, os.environ)  # noqa: S606 - a shell is what we avoid
    except OSError as error:
        sys.stderr.write(f"The job could not be started: {error}\n")
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    _main()
