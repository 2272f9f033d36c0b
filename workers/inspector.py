"""The fork server that opens untrusted files: torch is loaded once, each file gets its own child.

The worker sends a request and three descriptors (the file, read-only; where a converted file goes;
where the report goes). The server forks; the child confines itself and only then reads a byte.
`python -m workers.inspector FD` is the server; `Inspector` is the worker's end of it.
"""

import array
import fcntl
import gc
import io
import json
import linecache
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from registry.errors import SILENCE, Invalid, Saying, Text
from registry.formats.bounded_json import parse_json
from registry.formats.facts import plain
from workers import sandbox
from workers.words import clean_said

_REQUEST_BYTES = 64 * 1024
_REPORT_BYTES = 256 * 1024
_SPARE_OUTPUT_BYTES = 16 << 20
# By kind, how many times the size of the file a converted one may have; arrays may be packed.
_GROWTH = {"npz": 20}
_USUAL_GROWTH = 4
_REPORT_DEPTH = 10
# Loading torch and rehearsing takes seconds, and minutes on a machine with too much to do.
_START_SECONDS = 600
_STEP_SECONDS = 1.0
# A child that computes a little more is no harm; one that never ends is killed.
MAX_SECONDS = 600
_SPARE_MEMORY_BYTES = 2 << 30
_MAX_NAMES = 200
_MAX_NOTES = 50
_UID = 60_599


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a child said about a file, cleaned: a stranger's word."""

    format: str = ""
    toolchain: str = ""
    reason: Saying = SILENCE
    imports: list[str] = field(default_factory=list)
    notes: list[Saying] = field(default_factory=list)


class Inspector:
    """The worker's end: starts the server when it is needed, and again when it died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None

    def look(self, source: Path, *, kind: str, seconds: float = MAX_SECONDS) -> Findings:
        """Name what the pickles in a file import."""
        return self._ask(source, None, {"act": "examine", "kind": kind, "seconds": seconds})

    def convert(
        self,
        source: Path,
        target: Path,
        *,
        kind: str,
        hints: Mapping[str, Any],
        seconds: float = MAX_SECONDS,
    ) -> Findings:
        """Convert a file; what comes out lies at `target` and is not to be believed either."""
        request = {"act": "convert", "kind": kind, "hints": dict(hints), "seconds": seconds}
        return self._ask(source, target, request)

    def stop(self) -> None:
        with self._lock:
            self._end()

    def interrupt(self) -> None:
        """End what is being done at this moment; safe in a signal handler."""
        if (server := self._server) is not None:
            sandbox.stop_group(server, signal.SIGKILL)

    def _ask(self, source: Path, target: Path | None, request: dict[str, Any]) -> Findings:
        with (
            self._lock,
            source.open("rb") as given,
            open(target or os.devnull, "w+b") as sink,  # noqa: PTH123 - one of two
            _blank_report() as report,
        ):
            request["size"] = os.fstat(given.fileno()).st_size
            request["seconds"] = min(MAX_SECONDS, math.ceil(request["seconds"]))
            line = self._connected()
            try:
                ending = _exchange(line, request, [given, sink, report])
            except OSError:
                self._end()
                raise
            report.seek(0)
            return _read_report(report.read().rstrip(b"\0"), ending, request["seconds"])

    def _connected(self) -> socket.socket:
        if self._server is not None and self._server.poll() is not None:
            self._end()
        if self._line is None:
            self._begin()
        assert self._line is not None
        return self._line

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-P", "-s", "-m", "workers.inspector", str(theirs.fileno())],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._line = ours
        ours.settimeout(_START_SECONDS)
        try:
            ready = ours.recv(16) == b"ready"
        except OSError:
            self._end()
            raise
        if not ready:
            self._end()
            raise ConnectionError("the inspector did not start")
        ours.settimeout(MAX_SECONDS + 60)

    def _end(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._server is not None:
            sandbox.stop_group(self._server, signal.SIGKILL)
            self._server.wait()
        self._line = self._server = None


def _blank_report() -> BinaryIO:
    """Make a file in memory that has its size already, and can get no other."""
    handle = os.memfd_create("report", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    report = os.fdopen(handle, "w+b")
    report.truncate(_REPORT_BYTES)
    seals = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
    return report


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parent.parent
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/nonexistent",
        "USER": "inspector",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }


def _exchange(line: socket.socket, request: Mapping[str, Any], files: list[Any]) -> str:
    handles = array.array("i", [file.fileno() for file in files])
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)]
    line.sendmsg([json.dumps(request).encode()], rights)
    ending = line.recv(256)
    if not ending:
        raise ConnectionResetError("the inspector ended")
    return ending.decode()


def _read_report(raw: bytes, ending: str, seconds: int = MAX_SECONDS) -> Findings:
    """Read what a child wrote as what it is: bytes from a stranger."""
    if ending != "done":
        return Findings(reason=Saying.of(_ended(ending, seconds)))
    try:
        said = parse_json(raw, what=Text("The report"), max_depth=_REPORT_DEPTH)
    except Invalid:
        said = {}
    if not isinstance(said, dict) or not said:
        return Findings(reason=Saying.of(Text("It broke off without saying why.")))
    return Findings(
        format=_text(said.get("format"), 16),
        toolchain=_text(said.get("toolchain"), 100),
        reason=_saying(said.get("reason")) or SILENCE,
        imports=_texts(said.get("imports"), _MAX_NAMES),
        notes=_sayings(said.get("notes")),
    )


def _text(value: object, longest: int) -> str:
    return (
        "".join(one for one in plain(value) if one.isprintable())[:longest]
        if isinstance(value, str)
        else ""
    )


def _texts(value: object, most: int) -> list[str]:
    found = [_text(item, 500) for item in value[:most]] if isinstance(value, list) else []
    return [text for text in found if text]


def _saying(value: object) -> Saying | None:
    if not isinstance(value, dict):
        return None
    detail = _text(value.get("detail"), 500)
    return Saying(detail, clean_said(value.get("said"))) if detail else None


def _sayings(value: object) -> list[Saying]:
    found = [_saying(item) for item in value[:_MAX_NOTES]] if isinstance(value, list) else []
    return [one for one in found if one is not None]


def _ended(ending: str, seconds: int) -> Text:
    """Say how a child ended that wrote no report; its server names it in one word."""
    if ending == "late":
        return Text("It was not done after {seconds} seconds.", seconds=seconds)
    if ending == "limits":
        return Text("It took more time or memory than a file of its size may.")
    return Text("Its reader ended with {ending}.", ending=ending[:20])


# --- The server -----------------------------------------------------------------------------------


def serve(handle: int) -> None:
    """Answer requests until the worker hangs up."""
    from workers.ml import convert  # noqa: PLC0415 - takes seconds
    from workers.ml.rehearsal import rehearse  # noqa: PLC0415

    rehearse()
    server = os.getpid()
    # Sources that were read while rehearsing stay: a child could not read them again.
    linecache.checkcache = _keep_sources
    # What is loaded now stays: a child that collects garbage would copy every page of it.
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=handle) as line:
        line.send(b"ready")
        while True:
            raw, rights, _, _ = line.recvmsg(_REQUEST_BYTES, socket.CMSG_SPACE(12))
            if not raw:
                return
            handles = array.array("i")
            for _, _, data in rights:
                handles.frombytes(data)
            request = json.loads(raw)
            child = os.fork()
            if child == 0:
                _be_the_child(convert, request, list(handles), server)
            for one in handles:
                os.close(one)
            line.send(_watch(child, int(request["seconds"])).encode())


def _keep_sources(filename: str | None = None) -> None:
    """Stand in for `linecache.checkcache`, which forgets what it cannot look at any more."""


def _watch(child: int, seconds: int) -> str:
    """Wait for a child, no longer than it may take; tell how it ended."""
    until = time.monotonic() + seconds
    waiting = os.pidfd_open(child)
    try:
        if not select.select([waiting], [], [], max(0.0, until - time.monotonic()))[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "late"
    finally:
        os.close(waiting)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return "done"
    if code in {-signal.SIGXCPU, -signal.SIGKILL}:
        return "limits"
    return str(code)


def _be_the_child(
    convert: Any, request: Mapping[str, Any], handles: list[int], server: int
) -> None:
    """Confine this process, then open the file; never return."""
    code = 1
    try:
        source, sink, report = _take(handles)
        size = int(request["size"])
        sandbox.confine_inspection(
            uid=_UID if os.geteuid() == 0 else None,
            limits=_limits(str(request["kind"]), size),
            parent=server,
        )
        if request["act"] == "examine":
            said = convert.examine(request["kind"], source, size)
        else:
            said = convert.convert(
                request["kind"], source, size, sink, hints=request.get("hints", {})
            )
        sink.flush()
        report.write(said.to_json()[:_REPORT_BYTES])
        report.flush()
        code = 0
    finally:
        # No clean-up of the server's: its sockets and locks are not this process's to end.
        os._exit(code)


def _take(handles: list[int]) -> tuple[BinaryIO, BinaryIO, BinaryIO]:
    """Keep the three descriptors, close every other; nothing is said on the worker's terminal."""
    quiet = os.open(os.devnull, os.O_RDWR)
    moved = [os.dup2(one, 500 + place) for place, one in enumerate(handles)]
    for place in range(3):
        os.dup2(quiet, place)
    os.closerange(3, 500)
    os.closerange(503, os.sysconf("SC_OPEN_MAX"))
    source, sink, report = (
        os.fdopen(one, mode) for one, mode in zip(moved, ("rb", "wb", "wb"), strict=True)
    )
    assert isinstance(source, io.BufferedReader)
    return source, sink, report  # type: ignore[return-value]


def _limits(kind: str, size: int) -> sandbox.Limits:
    return sandbox.Limits(
        cpu_seconds=MAX_SECONDS,
        memory_bytes=_own_bytes() + 8 * size + _SPARE_MEMORY_BYTES,
        file_bytes=_GROWTH.get(kind, _USUAL_GROWTH) * size + _SPARE_OUTPUT_BYTES,
        open_files=512,
        processes=0,
        niceness=5,
    )


def _own_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        serve(int(sys.argv[1]))
