"""Sends files by tus 1.0.0, and remembers every upload so that none is begun twice."""

import base64
import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from modelyard.errors import BadAnswer, BadFolder, Interrupted, ModelyardError, Refused, Unreachable
from modelyard.transport import AWAY, Patience, Transport

BLOCK = 1 << 20
# Large enough to cost nothing, small enough for proxies that hold a body back.
PIECE = 64 << 20
# Sent with the request that begins the upload.
SMALL = 1 << 20
# What the server may take to look at the last piece, for each byte of the file.
_SECONDS_PER_BYTE = 1 / (20 << 20)
_TUS = {"Tus-Resumable": "1.0.0"}
_OCTETS = {"Content-Type": "application/offset+octet-stream"}
_GONE = frozenset({404, 410})
# The offset is another than we think, somebody else writes, or a piece arrived damaged.
_ASK_AGAIN = frozenset({"offset_mismatch", "upload_complete", "upload_busy", "checksum_mismatch"})


class PushMemory:
    """What a push has done so far: uploads by digest, and the registration's key.

    It is a file of lines that only grows, so that ten thousand uploads are not written ten
    thousand times. A line that was cut off, or is none of ours, counts as never written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._uploads: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._ends_in_line = True
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            self._ends_in_line = content.endswith(b"\n") or not content
            for line in content.split(b"\n"):
                self._learn(line)

    def _learn(self, line: bytes) -> None:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(entry, list) or not all(isinstance(one, str) for one in entry):
            return
        match entry:
            case ["upload", digest, address]:
                self._uploads[digest] = address
            case ["key", body, key]:
                self._keys[body] = key

    def upload(self, digest: str) -> str:
        """Give the address of an upload; nothing when there is none."""
        with self._lock:
            return self._uploads.get(digest, "")

    def remember_upload(self, digest: str, address: str) -> None:
        with self._lock:
            self._uploads[digest] = address
            self._append("upload", digest, address)

    def forget_upload(self, digest: str) -> None:
        self.remember_upload(digest, "")

    def key_for(self, body: str) -> str:
        """Give the idempotency key of a registration: the same body keeps its key."""
        with self._lock:
            if body not in self._keys:
                self._keys[body] = str(uuid.uuid4())
                self._append("key", body, self._keys[body])
            return self._keys[body]

    def clear(self) -> None:
        with self._lock:
            self._uploads, self._keys = {}, {}
            self._path.unlink(missing_ok=True)

    def _append(self, *entry: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = json.dumps(entry).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            file.write(line if self._ends_in_line else b"\n" + line)
        self._ends_in_line = True


class Sending:
    """One file on its way to the server."""

    def __init__(  # noqa: PLR0913 - keywords only, each said once
        self,
        transport: Transport,
        memory: PushMemory,
        source: Path,
        *,
        name: str,
        size_bytes: int,
        sha256: str,
        patience: Patience,
        stop: threading.Event,
        on_bytes: Callable[[int], None],
        on_reused: Callable[[int], None],
    ) -> None:
        self.transport = transport
        self.memory = memory
        self.source = source
        self.name = name
        self.size_bytes = size_bytes
        self.sha256 = sha256
        self.patience = patience
        self.stop = stop
        self.on_bytes = on_bytes
        self.on_reused = on_reused
        self._told = 0

    def run(self) -> None:
        """Send what the server does not have yet; come back once it has all and verified it."""
        offset = self._resume()
        self.on_reused(offset or 0)
        self._told = offset or 0
        while offset is None or offset < self.size_bytes:
            try:
                offset = self._begin() if offset is None else self._send_piece(offset)
                self._tell(offset)
                self.patience.renew()
            except (Refused, Unreachable) as problem:
                offset = self._recover(problem)
                self._tell(offset or 0)

    def _resume(self) -> int | None:
        """Ask how far an upload of an earlier run came."""
        while self.memory.upload(self.sha256):
            try:
                return self._ask()
            except (Refused, Unreachable) as problem:
                if not _is_passing(problem):
                    raise
                self.patience.wait(problem)
        return None

    def _recover(self, problem: ModelyardError) -> int | None:
        """After a failure, find out what arrived; raise when trying again is of no use."""
        if isinstance(problem, Refused) and problem.status in _GONE:
            self.memory.forget_upload(self.sha256)
            return None
        if not _is_passing(problem):
            if isinstance(problem, Refused) and problem.status == 400:
                # The server threw these bytes away.
                self.memory.forget_upload(self.sha256)
            if isinstance(problem, Refused) and problem.code == "digest_mismatch":
                raise BadFolder(
                    f"{self.source} changed while it was being sent; run the same again once it "
                    "is still."
                ) from problem
            raise problem
        while True:
            self.patience.wait(problem)
            try:
                return self._ask()
            except (Refused, Unreachable) as another:
                if not _is_passing(another):
                    raise
                problem = another

    def _ask(self) -> int | None:
        """Ask the server for the offset; None when it does not know the upload."""
        address = self.memory.upload(self.sha256)
        if not address:
            return None
        try:
            with self.transport.open(
                "HEAD",
                self.transport.own_address(address),
                headers=_TUS,
                read_timeout=self._final_seconds(),
            ) as answer:
                offset = self._offset(answer, at_least=0)
                if answer.headers.get("upload-length") == str(self.size_bytes):
                    return offset
        except Refused as problem:
            if problem.status not in _GONE:
                raise
        self.memory.forget_upload(self.sha256)
        return None

    def _begin(self) -> int:
        name = base64.b64encode(self.name.encode()).decode()
        digest = base64.b64encode(self.sha256.encode()).decode()
        headers = {
            **_TUS,
            "Upload-Length": str(self.size_bytes),
            "Upload-Metadata": f"filename {name},sha256 {digest}",
        }
        content = None
        if 0 < self.size_bytes <= SMALL:
            headers.update(_OCTETS)
            content = self.source.read_bytes()
            if len(content) != self.size_bytes:
                raise self._changed()
        with self.transport.open(
            "POST", self.transport.address("/uploads"), headers=headers, content=content
        ) as answer:
            address = self.transport.own_address(answer.headers.get("location", ""))
            offset = self._offset(answer, at_least=0)
        self.memory.remember_upload(self.sha256, address)
        return offset

    def _send_piece(self, offset: int) -> int:
        count = min(PIECE, self.size_bytes - offset)
        headers = {
            **_TUS,
            **_OCTETS,
            "Upload-Offset": str(offset),
            "Content-Length": str(count),
        }
        is_last = offset + count == self.size_bytes
        with self.transport.open(
            "PATCH",
            self.transport.own_address(self.memory.upload(self.sha256)),
            headers=headers,
            content=self._blocks(offset, count),
            read_timeout=self._final_seconds() if is_last else None,
        ) as answer:
            # A server that takes bytes and keeps none would be sent them for ever.
            return self._offset(answer, at_least=offset + 1)

    def _blocks(self, offset: int, count: int) -> Iterator[bytes]:
        with self.source.open("rb", buffering=0) as file:
            file.seek(offset)
            while count:
                if self.stop.is_set():
                    raise Interrupted("Stopped.")
                block = file.read(min(BLOCK, count))
                if not block:
                    raise self._changed()
                yield block
                count -= len(block)
                offset += len(block)
                self._tell(offset)

    def _offset(self, answer: httpx.Response, *, at_least: int) -> int:
        text = answer.headers.get("upload-offset", "")
        if not (text.isascii() and text.isdecimal() and len(text) <= 18):
            raise BadAnswer("The server answered an upload without Upload-Offset.")
        if not at_least <= int(text) <= self.size_bytes:
            raise BadAnswer(f"The server says that it has {text} of {self.size_bytes} bytes.")
        return int(text)

    def _tell(self, offset: int) -> None:
        self.on_bytes(offset - self._told)
        self._told = offset

    def _final_seconds(self) -> float:
        return 60.0 + self.size_bytes * _SECONDS_PER_BYTE

    def _changed(self) -> BadFolder:
        return BadFolder(
            f"{self.source} became shorter while it was being sent; run the same again."
        )


def _is_passing(problem: ModelyardError) -> bool:
    if isinstance(problem, Refused):
        limited = problem.status == 429 and problem.retry_after is None
        return (problem.status in AWAY and not limited) or problem.code in _ASK_AGAIN
    return isinstance(problem, Unreachable)
