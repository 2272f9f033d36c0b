"""Uploads that are hashed and inspected, plain and encrypted, beside `cp`, `fsync` and `sha256sum`.

The files are real ones: MiniLM's weights, and a safetensors file of `BENCH_FILE_MIB` MiB (2048;
10240 shows that memory stays flat, and needs four times its size on the disk). Two installations
take turns in every round, one that keeps plain files and one that encrypts them.
"""

import json
import os
import secrets
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.installation import Installation, running
from benchmarks.report import Figure, keep
from benchmarks.transfer import (
    Client,
    copy_and_digest,
    digest,
    peak_bytes,
    run,
    touch_memory,
    web_processes,
)
from config.local import sample_data

USUAL_MIB = 2048
LARGE_MIB = int(os.environ.get("BENCH_FILE_MIB", USUAL_MIB))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
TENSOR_BYTES = 64 << 20
TAIL_BYTES = 4096


def write_safetensors(path: Path, mib: int) -> None:
    """Write float32 tensors of 64 MiB each, as a large model's file has them."""
    count = mib * (1 << 20) // TENSOR_BYTES
    header = {
        f"layers.{number}.weight": {
            "dtype": "F32",
            "shape": [4096, 4096],
            "data_offsets": [number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES],
        }
        for number in range(count)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in range(count):
            file.write(os.urandom(TENSOR_BYTES))


def change_last_bytes(path: Path) -> None:
    """Make the file another one, still valid, so that no round finds its blob there already."""
    with path.open("r+b") as file:
        file.seek(-TAIL_BYTES, os.SEEK_END)
        file.write(os.urandom(TAIL_BYTES))


class Stopwatch:
    """MiB/s of acts on one file, by what they are."""

    def __init__(self, source: Path, ballast: Path) -> None:
        self._size = source.stat().st_size
        self._ballast = ballast
        self.speeds: dict[str, list[float]] = {}

    def note(self, what: str, act: Callable[[], object]) -> None:
        touch_memory(self._ballast, self._size)
        os.sync()
        began = time.perf_counter()
        act()
        self.speeds.setdefault(what, []).append(self._size / 2**20 / (time.perf_counter() - began))

    def middle(self, what: str) -> float:
        return statistics.median(self.speeds[what])


class Door:
    """An installation with a model to fill."""

    def __init__(self, place: Installation) -> None:
        self.place = place
        self.client.post("/api/v1/models", {"namespace": "admin", "name": "files"})
        self.versions = 0

    @property
    def client(self) -> Client:
        """Connect anew: while the other acts of a round run, the server gives idle lines up."""
        return Client(self.place.port, self.place.token)

    def largest_process(self) -> int:
        return max(peak_bytes(pid) for pid in web_processes(self.place))

    def register(self, address: str) -> str:
        """Make a version of the upload; give the address of its file."""
        upload = address.rpartition("/")[2]
        files = [{"path": "model.safetensors", "upload": upload}]
        self.client.post("/api/v1/models/admin/files/versions", {"files": files})
        self.versions += 1
        return f"/api/v1/models/admin/files/versions/{self.versions}/files/model.safetensors"


def measure(source: Path, folder: Path, doors: dict[str, Door], rounds: int) -> Stopwatch:
    watch = Stopwatch(source, folder / "ballast")
    copy, back = folder / "copy", folder / "back"
    for _ in range(rounds):
        change_last_bytes(source)
        watch.note("cp + fsync + sha256sum", lambda: copy_and_digest(source, copy))
        copy.unlink()
        watch.note("cp", lambda: run("cp", str(source), str(copy)))
        copy.unlink()
        for name, door in doors.items():
            address = []
            watch.note(
                f"upload, {name}",
                lambda door=door, address=address: address.append(door.client.upload(source)),
            )
            path = door.register(address[0])
            watch.note(
                f"download, {name}", lambda door=door, path=path: door.client.download(path, back)
            )
            if digest(back) != digest(source):
                raise RuntimeError("the download differs from what was uploaded")
            back.unlink()
    return watch


def figures_of(label: str, watch: Stopwatch) -> list[Figure]:
    yardstick = watch.middle("cp + fsync + sha256sum")
    parts = [
        ("upload", "part of cp + fsync + sha256sum", watch.middle("upload, plain") / yardstick),
        ("upload", "encrypted, part of plain", ratio(watch, "upload")),
        ("download", "encrypted, part of plain", ratio(watch, "download")),
    ]
    aims = (">= 0.45", ">= 0.5", ">= 0.5")
    return [
        *(
            Figure(what=f"{label}: {what}", value=watch.middle(what), unit="MiB/s")
            for what in watch.speeds
        ),
        *(
            Figure(what=f"{label}: {act} {what}", value=value, unit="", aim=aim)
            for (act, what, value), aim in zip(parts, aims, strict=True)
        ),
    ]


def ratio(watch: Stopwatch, act: str) -> float:
    return watch.middle(f"{act}, encrypted") / watch.middle(f"{act}, plain")


def main() -> int:
    with (
        tempfile.TemporaryDirectory(prefix="modelyard-files-") as name,
        running() as plain,
        running(MODELYARD_MASTER_KEY=secrets.token_hex(32)) as encrypted,
    ):
        folder = Path(name)
        small, large = folder / "minilm.safetensors", folder / "large.safetensors"
        shutil.copyfile(sample_data.encoder_files()["model.safetensors"], small)
        write_safetensors(large, LARGE_MIB)
        doors = {"plain": Door(plain), "encrypted": Door(encrypted)}
        figures = figures_of("MiniLM", measure(small, folder, doors, ROUNDS))
        before = {name: door.largest_process() for name, door in doors.items()}
        label = f"{LARGE_MIB:,} MiB of safetensors"
        figures += figures_of(label, measure(large, folder, doors, ROUNDS))
        figures += [
            Figure(
                what=f"{label}: memory that a web process took more than for MiniLM, {name}",
                value=(door.largest_process() - before[name]) / 2**20,
                unit="MiB",
                aim="< 64",
            )
            for name, door in doors.items()
        ]
    # A run with another size stands beside the usual one.
    keep("files" if LARGE_MIB == USUAL_MIB else f"files-{LARGE_MIB}", figures, rounds=ROUNDS)
    for figure in figures:
        print(f"{figure.what:80} {figure.value:9.2f} {figure.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
