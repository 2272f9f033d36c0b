"""A folder of gigabytes pushed and pulled by a client that is killed again and again on its way.

Each time it is simply started anew. What counts is that it ends with the same bytes, and how many
bytes crossed the line more than once: the server's own log says how many it took and gave.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.installation import ROOT, Installation, running
from benchmarks.report import Figure, keep
from benchmarks.transfer import BLOCK, Client, digest, peak_bytes, web_processes

SIZE = int(os.environ.get("BENCH_FOLDER_MIB", "5120")) << 20
# The client dies so many times, at equal parts of the way.
DEATHS = int(os.environ.get("BENCH_DEATHS", "4"))
LARGE_FILES = 8
SMALL_FILES = 120
PATIENCE_SECONDS = 1800
MODEL = "admin/folder"


def write_folder(folder: Path) -> None:
    """Write half of it as one file, half as several, and many small ones beside."""
    (folder / "tokens").mkdir(parents=True)
    for number in range(SMALL_FILES):
        (folder / f"tokens/{number}.txt").write_text(f"Token {number}.\n" * (10 + number))
    sizes = {"weights.bin": SIZE // 2}
    sizes |= {f"part-{number}.bin": SIZE // 2 // LARGE_FILES for number in range(LARGE_FILES)}
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            for _ in range(size // BLOCK):
                file.write(os.urandom(BLOCK))


def bytes_below(*folders: Path) -> int:
    """Add up what lies there, by the blocks in use: a file with holes is not done."""
    found = 0
    for folder in folders:
        for path in folder.rglob("*"):
            try:
                found += path.stat().st_blocks * 512 if path.is_file() else 0
            except FileNotFoundError:
                continue
    return found


class Walk:
    """One command that is killed DEATHS times before it may come to its end."""

    def __init__(self, place: Installation, home: Path, *command: str) -> None:
        self._command = (sys.executable, "-m", "modelyard", *command, "--quiet")
        self._environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "client/src"),
            "MODELYARD_URL": place.url,
            "MODELYARD_TOKEN": place.token,
        }
        self.deaths = 0

    def run(self, progress: Callable[[], int]) -> float:
        """Give the seconds that the client worked."""
        before, took = progress(), 0.0
        for death in range(1, DEATHS + 2):
            goal = before + SIZE * death // (DEATHS + 1)
            began = time.perf_counter()
            process = subprocess.Popen(self._command, env=self._environment)
            until = time.monotonic() + PATIENCE_SECONDS
            while process.poll() is None and (death > DEATHS or progress() < goal):
                if time.monotonic() > until:
                    process.kill()
                    raise TimeoutError(f"{self._command} does not get on")
                time.sleep(0.05)
            if process.poll() is None:
                process.kill()
                self.deaths += 1
            status = process.wait()
            took += time.perf_counter() - began
            if status == 0:
                return took
            if death > DEATHS:
                break
        raise RuntimeError(f"{self._command} ended with {status}")


def moved(place: Installation) -> tuple[int, int]:
    """Add up the bytes of bodies that the server took and gave, as its access log says."""
    taken = given = 0
    text = (place.home / "logs" / "web.log").read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        _, quoted, rest = (*line.split('"', 2), "", "")[:3]
        numbers = rest.split()
        if " /api/v1/" in quoted and len(numbers) >= 3:
            taken += int(numbers[1])
            given += int(numbers[2])
    return taken, given


def main() -> int:
    with (
        tempfile.TemporaryDirectory(prefix="modelyard-folder-") as name,
        running(MODELYARD_LOG_LEVEL="INFO") as place,
    ):
        source, back, home = (Path(name) / part for part in ("source", "back", "home"))
        home.mkdir()
        write_folder(source)
        total = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        Client(place.port, place.token).post(
            "/api/v1/models", {"namespace": "admin", "name": "folder"}
        )
        store = place.home / "storage"
        push = Walk(place, home, "push", str(source), MODEL)
        pushing = push.run(lambda: bytes_below(store))
        taken, given = moved(place)
        # A machine of somebody else: it has neither the folder nor what the client remembers of it.
        shutil.rmtree(home)
        home.mkdir()
        back.mkdir()
        pull = Walk(place, home, "pull", MODEL, "--to", str(back))
        pulling = pull.run(lambda: bytes_below(back))
        _, sent = moved(place)
        for path in source.rglob("*"):
            copy = back / path.relative_to(source)
            if path.is_file() and digest(copy) != digest(path):
                raise RuntimeError(f"{copy.name} differs from what was pushed")
        memory = max(peak_bytes(pid) for pid in web_processes(place))
    mib, label = total / 2**20, f"{SIZE >> 20:,} MiB"
    figures = [
        Figure(what=f"push {label}, killed on the way", value=push.deaths, unit="times"),
        Figure(what=f"push {label}, all runs together", value=mib / pushing, unit="MiB/s"),
        Figure(
            what="push: sent again for each death",
            value=(taken - total) / 2**20 / push.deaths,
            unit="MiB",
            aim="< 64",
        ),
        Figure(what=f"pull {label}, killed on the way", value=pull.deaths, unit="times"),
        Figure(what=f"pull {label}, all runs together", value=mib / pulling, unit="MiB/s"),
        Figure(
            what="pull: sent again for each death",
            value=(sent - given - total) / 2**20 / pull.deaths,
            unit="MiB",
            aim="< 64",
        ),
        Figure(what="peak memory, largest web process", value=memory / 2**20, unit="MiB"),
    ]
    keep("folder", figures, size_mib=SIZE >> 20, deaths=DEATHS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
