"""Sends files by tus 1.0.0, and remembers every upload so that none is begun twice."""

import base64
import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from modelyard.errors import BadAnswer, BadFolder, Interrupted, ModelyardError, Refused, Unreachable
from modelyard.transport import AWAY, Patience, Transport

BLOCK = 1 << 20
# Large enough to cost nothing, small enough for proxies that hold a body back.
PIECE = 64 << 20
MOST_PARTS = 8
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
        self._parts: dict[str, int] = {}
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
            case ["parts", digest, count] if count.isascii() and count.isdecimal():
                self._parts[digest] = min(int(count[:4]), MOST_PARTS)
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

    def parts(self, digest: str) -> int:
        """Say into how many parts a file was cut; 0 when that was not decided yet."""
        with self._lock:
            return self._parts.get(digest, 0)

    def remember_parts(self, digest: str, count: int) -> None:
        with self._lock:
            self._parts[digest] = count
            self._append("parts", digest, str(count))

    def key_for(self, body: str) -> str:
        """Give the idempotency key of a registration: the same body keeps its key."""
        with self._lock:
            if body not in self._keys:
                self._keys[body] = str(uuid.uuid4())
                self._append("key", body, self._keys[body])
            return self._keys[body]

    def clear(self) -> None:
        with self._lock:
            self._uploads, self._parts, self._keys = {}, {}, {}
            self._path.unlink(missing_ok=True)

    def _append(self, *entry: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = json.dumps(entry).encode() + b"\n"
        with self._path.open("ab", buffering=0) as file:
            file.write(line if self._ends_in_line else b"\n" + line)
        self._ends_in_line = True


class Sending:
    """Some bytes of a file on their way to become an upload: all of them, or a part."""

    def __init__(  # noqa: PLR0913 - keywords only, each said once
        self,
        transport: Transport,
        memory: PushMemory,
        source: Path,
        *,
        key: str,
        headers: Mapping[str, str],
        start: int,
        size_bytes: int,
        patience: Patience,
        stop: threading.Event,
        on_bytes: Callable[[int], None],
        on_reused: Callable[[int], None],
    ) -> None:
        self.transport = transport
        self.memory = memory
        self.source = source
        self.key = key
        self.headers = headers
        self.start = start
        self.size_bytes = size_bytes
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
        while self.memory.upload(self.key):
            try:
                return self._ask()
            except (Refused, Unreachable) as problem:
                if not is_passing(problem):
                    raise
                self.patience.wait(problem)
        return None

    def _recover(self, problem: ModelyardError) -> int | None:
        """After a failure, find out what arrived; raise when trying again is of no use."""
        if isinstance(problem, Refused) and problem.status in _GONE:
            self.memory.forget_upload(self.key)
            return None
        if not is_passing(problem):
            if isinstance(problem, Refused) and problem.status == 400:
                # The server threw these bytes away.
                self.memory.forget_upload(self.key)
            if isinstance(problem, Refused) and problem.code == "digest_mismatch":
                raise changed(self.source) from problem
            raise problem
        while True:
            self.patience.wait(problem)
            try:
                return self._ask()
            except (Refused, Unreachable) as another:
                if not is_passing(another):
                    raise
                problem = another

    def _ask(self) -> int | None:
        """Ask the server for the offset; None when it does not know the upload."""
        address = self.memory.upload(self.key)
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
        self.memory.forget_upload(self.key)
        return None

    def _begin(self) -> int:
        headers = {**_TUS, **self.headers, "Upload-Length": str(self.size_bytes)}
        content = None
        if 0 < self.size_bytes <= SMALL:
            headers.update(_OCTETS)
            content = b"".join(self._read(0, self.size_bytes))
        with self.transport.open(
            "POST", self.transport.address("/uploads"), headers=headers, content=content
        ) as answer:
            address = self.transport.own_address(answer.headers.get("location", ""))
            offset = self._offset(answer, at_least=0)
        self.memory.remember_upload(self.key, address)
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
            self.transport.own_address(self.memory.upload(self.key)),
            headers=headers,
            content=self._blocks(offset, count),
            read_timeout=self._final_seconds() if is_last else None,
        ) as answer:
            # A server that takes bytes and keeps none would be sent them for ever.
            return self._offset(answer, at_least=offset + 1)

    def _blocks(self, offset: int, count: int) -> Iterator[bytes]:
        for block in self._read(offset, count):
            yield block
            offset += len(block)
            self._tell(offset)

    def _read(self, offset: int, count: int) -> Iterator[bytes]:
        with self.source.open("rb", buffering=0) as file:
            file.seek(self.start + offset)
            while count:
                if self.stop.is_set():
                    raise Interrupted("Stopped.")
                block = file.read(min(BLOCK, count))
                if not block:
                    raise BadFolder(
                        f"{self.source} became shorter while it was being sent; run the same again."
                    )
                yield block
                count -= len(block)

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
        return final_seconds(self.size_bytes)


def metadata_of(name: str, sha256: str, namespace: str, total: int | None = None) -> dict[str, str]:
    """Say what a file is called, what the server has to find in the end, and where it is to go.

    So the server can say at once that it has no room there, for a part by the `total` of its file.
    """
    said = {"filename": name, "sha256": sha256, "namespace": namespace}
    if total is not None:
        said["total"] = str(total)
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in said.items())
    return {"Upload-Metadata": ",".join(pairs)}


def can_join(transport: Transport) -> bool:
    """Ask whether the server makes one upload of several parts."""
    try:
        with transport.open("OPTIONS", transport.address("/uploads")) as answer:
            return "concatenation" in answer.headers.get("tus-extension", "").split(",")
    except Refused:
        return False


def join(
    transport: Transport, parts: Sequence[str], headers: Mapping[str, str], size_bytes: int
) -> str:
    """Let the server make one upload of finished parts; gives its address. May be repeated."""
    with transport.open(
        "POST",
        transport.address("/uploads"),
        headers={**_TUS, **headers, "Upload-Concat": f"final;{' '.join(parts)}"},
        read_timeout=final_seconds(size_bytes),
    ) as answer:
        return transport.own_address(answer.headers.get("location", ""))


def final_seconds(size_bytes: int) -> float:
    return 60.0 + size_bytes * _SECONDS_PER_BYTE


def changed(source: Path) -> BadFolder:
    return BadFolder(
        f"{source} changed while it was being sent; run the same again once it is still."
    )


def is_passing(problem: ModelyardError) -> bool:
    if isinstance(problem, Refused):
        limited = problem.status == 429 and problem.retry_after is None
        return (problem.status in AWAY and not limited) or problem.code in _ASK_AGAIN
    return isinstance(problem, Unreachable)
