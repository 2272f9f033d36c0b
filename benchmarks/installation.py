"""A whole installation of its own, on a free port and with its own data; gone afterwards."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A running server: where it answers, where its data is, and the administrator's token."""

    home: Path
    port: int
    infer_port: int
    grpc_port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def infer_url(self) -> str:
        return f"http://127.0.0.1:{self.infer_port}"

    @property
    def token(self) -> str:
        return (self.home / "admin-token").read_text(encoding="ascii").strip()

    def cpu_seconds(self) -> float:
        """Add up the CPU time of the supervisor and all below it, database included."""
        parents: dict[int, int] = {}
        ticks: dict[int, int] = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                stat = (process / "stat").read_text(encoding="ascii", errors="replace")
                fields = stat.rpartition(")")[2].split()
                parents[int(process.name)] = int(fields[1])
                ticks[int(process.name)] = sum(map(int, fields[11:15]))
        ours = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return sum(ticks.get(pid, 0) for pid in ours) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def environment(home: Path, port: int, *, samples: bool = False, **more: str) -> dict[str, str]:
    """Leave out what would lead to servers of somebody else."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MODELYARD_", "DATABASE_", "REDIS_", "DJANGO_"))
    }
    return {
        **kept,
        "MODELYARD_HOME": str(home),
        "MODELYARD_PORT": str(port),
        "MODELYARD_SAMPLES": str(int(samples)),
        # Reading cards takes the cores from what is measured.
        "MODELYARD_ENCODER": "0",
        "MODELYARD_LOG_LEVEL": "WARNING",
        # Requests are counted, as they always are, and none is refused for their number.
        "MODELYARD_RATE_REQUESTS": "10000000",
        "MODELYARD_RATE_WRITES": "10000000",
        **more,
    }


def wait_for(url: str, process: subprocess.Popen[bytes], *, seconds: float = 600) -> None:
    """Wait until `url` answers 200."""
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            if answer.status == 200:
                return
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        time.sleep(0.02)
    raise TimeoutError(f"{url} does not answer after {seconds:g} s")


def wait_for_json(url: str, enough: Callable[[Any], object], *, seconds: float) -> None:
    """Wait until what `url` answers is enough."""
    patience = time.monotonic() + seconds
    while time.monotonic() < patience:
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(url) as answer:
            if enough(json.load(answer)):
                return
        time.sleep(0.25)
    raise TimeoutError(f"{url} does not say enough after {seconds:g} s")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(*, samples: bool = False, **more: str) -> Iterator[Installation]:
    """Start an installation of its own from this tree, and take it away again.

    `more` are settings as the environment names them.
    """
    home = Path(tempfile.mkdtemp(prefix="modelyard-bench-"))
    home.chmod(0o711)
    port, infer_port, grpc_port = free_port(), free_port(), free_port()
    ports = {"MODELYARD_INFER_PORT": str(infer_port), "MODELYARD_GRPC_PORT": str(grpc_port)}
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=ROOT,
            env=environment(home, port, samples=samples, **{**ports, **more}),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    installation = Installation(
        home=home, port=port, infer_port=infer_port, grpc_port=grpc_port, pid=process.pid
    )
    try:
        try:
            wait_for(f"{installation.url}/healthz", process, seconds=180)
            # It comes up after the web server, and a browser may call it at once.
            wait_for(f"{installation.infer_url}/v2/health/ready", process, seconds=180)
        except (RuntimeError, TimeoutError) as error:
            said = (home / "up.log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"{error}: {said[-2000:]}") from error
        yield installation
    finally:
        stop(process)
        shutil.rmtree(home, ignore_errors=True)
