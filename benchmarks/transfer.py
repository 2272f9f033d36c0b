"""Upload and download of one large file over HTTP, beside `cp`, `fsync` and `sha256sum`.

Every round runs all of them one after the other on the same file, so that what the disk and the
neighbours do meets each of them; the median of the rounds counts.

`cp` makes one copy, in the kernel. A download makes at least three: into the socket, out of it, and
into the file. How fast that can be at all on this machine, the same client shows with a server
that has nothing else to do (`benchmarks/bare.py`).
"""

import base64
import hashlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import bare
from benchmarks.installation import Installation, running
from benchmarks.report import Figure, keep

SIZE = int(os.environ.get("BENCH_TRANSFER_MIB", "512")) << 20
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
BLOCK = 1 << 20
BARE_WAYS = ("sendfile", "send")


class Client:
    """A program with one keep-alive connection, as lean as the standard library allows."""

    def __init__(self, port: int, token: str) -> None:
        self._token = token
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=300, blocksize=BLOCK)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> http.client.HTTPResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent["Authorization"] = f"Bearer {self._token}"
        self._line.request(method, path, body, sent)  # type: ignore[arg-type] # a file is fine
        answer = self._line.getresponse()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {answer.read(2000)!r}")
        return answer

    def post(self, path: str, content: object) -> None:
        body = json.dumps(content).encode()
        self.ask("POST", path, body, Content_Type="application/json").read()

    def upload(self, file: Path) -> str:
        """Send a file by tus in one piece; give its address."""
        name = base64.b64encode(file.name.encode()).decode()
        begun = self.ask(
            "POST",
            "/api/v1/uploads",
            Tus_Resumable="1.0.0",
            Upload_Length=str(file.stat().st_size),
            Upload_Metadata=f"filename {name}",
        )
        begun.read()
        address = begun.headers["Location"]
        with file.open("rb") as source:
            self.ask(
                "PATCH",
                address,
                source,
                Tus_Resumable="1.0.0",
                Upload_Offset="0",
                Content_Type="application/offset+octet-stream",
                Content_Length=str(file.stat().st_size),
            ).read()
        return address

    def download(self, path: str, target: Path) -> None:
        answer = self.ask("GET", path)
        buffer = memoryview(bytearray(BLOCK))
        with target.open("wb", buffering=0) as sink:
            filled = -1
            while filled:
                filled = 0
                while filled < BLOCK and (count := answer.readinto(buffer[filled:])):
                    filled += count
                sink.write(buffer[:filled])


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="modelyard-transfer-") as name, running() as place:
        folder = Path(name)
        source = folder / "weights.bin"
        write_noise(source)
        speeds = measure(place, source, folder)
        peak = sum(peak_bytes(pid) for pid in web_processes(place))
        largest = max(peak_bytes(pid) for pid in web_processes(place))
    middle = {what: statistics.median(values) for what, values in speeds.items()}
    bare_best = max(middle[f"bare socket, {way}"] for way in BARE_WAYS)
    figures = [
        *(Figure(what=what, value=value, unit="MiB/s") for what, value in middle.items()),
        Figure(
            what="upload, part of cp + fsync + sha256sum",
            value=middle["upload"] / middle["cp + fsync + sha256sum"],
            unit="",
            aim=">= 0.45",
        ),
        Figure(
            # The stock sha256sum of a distribution may not use the processor's instructions.
            what="upload, part of cp + fsync + OpenSSL's SHA-256",
            value=middle["upload"] / middle["cp + fsync + OpenSSL's SHA-256"],
            unit="",
        ),
        Figure(
            what="download, part of cp",
            value=middle["download"] / middle["cp"],
            unit="",
            aim=">= 0.6",
        ),
        Figure(what="bare sockets, part of cp", value=bare_best / middle["cp"], unit=""),
        Figure(
            what="download, part of bare sockets",
            value=middle["download"] / bare_best,
            unit="",
            aim=">= 0.8",
        ),
        Figure(what="peak memory, largest web process", value=largest / 2**20, unit="MiB"),
        Figure(what="peak memory, all web processes", value=peak / 2**20, unit="MiB"),
    ]
    keep("transfer", figures, size_mib=SIZE >> 20, rounds=ROUNDS)
    for figure in figures:
        print(f"{figure.what:45} {figure.value:9.2f} {figure.unit}")
    return 0


def write_noise(path: Path) -> None:
    with path.open("wb") as file:
        for _ in range(SIZE // BLOCK):
            file.write(os.urandom(BLOCK))


def measure(place: Installation, source: Path, folder: Path) -> dict[str, list[float]]:
    client = Client(place.port, place.token)
    client.post("/api/v1/models", {"namespace": "admin", "name": "transfer"})
    speeds: dict[str, list[float]] = {}
    for number in range(1, ROUNDS + 1):
        # Other bytes each time, so that no round finds its blob there already.
        with source.open("r+b") as file:
            file.write(os.urandom(BLOCK))
        copy, back = folder / "copy", folder / "back"

        def note(what: str, act: Callable[[], object]) -> None:
            touch_memory(folder / "ballast", SIZE)
            os.sync()
            began = time.perf_counter()
            act()
            seconds = time.perf_counter() - began
            speeds.setdefault(what, []).append(SIZE / 2**20 / seconds)

        address = []
        note("cp", lambda copy=copy: run("cp", str(source), str(copy)))
        copy.unlink()
        note("cp + fsync + sha256sum", lambda copy=copy: copy_and_digest(source, copy))
        copy.unlink()
        note(
            "cp + fsync + OpenSSL's SHA-256",
            lambda copy=copy: (
                run("cp", str(source), str(copy)),
                run("sync", str(copy)),
                digest(copy),
            ),
        )
        copy.unlink()
        note("upload", lambda address=address: address.append(client.upload(source)))
        upload = address[0].rpartition("/")[2]
        client.post(
            "/api/v1/models/admin/transfer/versions",
            {"files": [{"path": "weights.bin", "upload": upload}]},
        )
        path = f"/api/v1/models/admin/transfer/versions/{number}/files/weights.bin"
        note("download", lambda path=path, back=back: client.download(path, back))
        if digest(back) != digest(source):
            raise RuntimeError("the download differs from what was uploaded")
        back.unlink()
        with bare.serving(source) as port:
            for way in BARE_WAYS:
                note(
                    f"bare socket, {way}",
                    lambda port=port, way=way, back=back: Client(port, "").download(
                        f"/{way}", back
                    ),
                )
                back.unlink()
    return speeds


def touch_memory(ballast: Path, size: int) -> None:
    """Leave free pages that were used before: a virtual machine pays for each new one.

    Without it the copy, which comes first, is fast and what comes after it slow.
    """
    block = bytes(BLOCK)
    with ballast.open("wb") as file:
        # What is stored encrypted lies twice in memory on its way: as it came, and as it stays.
        for _ in range(min(size * 9 // 4, free_bytes() // 2) // BLOCK):
            file.write(block)
    ballast.unlink()


def free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024


def copy_and_digest(source: Path, target: Path) -> None:
    run("cp", str(source), str(target))
    run("sync", str(target))
    run("sha256sum", str(target))


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def web_processes(place: Installation) -> list[int]:
    """Find the processes that serve this installation by what they were started with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        of_place = f"MODELYARD_HOME={place.home}".encode() in environment
        if of_place and (b"config.asgi" in command or b"granian" in command or b"spawn" in command):
            found.append(int(folder.name))
    return found


def peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0")
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
