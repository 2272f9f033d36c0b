"""The process of one loaded model as the server sees it: started, spoken with, killed.

One message there and one back for each batch. The numbers lie in two pieces of memory that both
share, sealed so that neither can take it away under the other. What comes back was said by a
process that has opened a stranger's file: it is checked like any input.
"""

import asyncio
import fcntl
import math
import mmap
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from registry.errors import Invalid, RegistryError, Unavailable, unpack
from workers import memory, sandbox
from workers.device_memory import DeviceMemory
from workers.serving.messages import (
    BYTES,
    ITEM_BYTES,
    MAX_RANK,
    MAX_STRINGS,
    Data,
    TensorSpec,
    check_strings,
)
from workers.words import clean_said, clean_text

MESSAGE_BYTES = 128 * 1024
ALIGNMENT = 64
OPEN_SECONDS = 180.0
_STDERR_BYTES = 4000
_MAX_TENSORS = 1024
COMMAND = (sys.executable, "-m", "workers.serving.child")

# The kernel ends a model's process when the thread that started it ends: this one never does.
_starter = ThreadPoolExecutor(1, thread_name_prefix="starter")


@dataclass(frozen=True, slots=True)
class Described:
    """What a model's process says of its model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: str
    platform: str
    # Whether requests may be joined along the first axis.
    batchable: bool
    usual_ns: int
    kind: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def is_on_gpu(self) -> bool:
        """Say whether it computes there: a runtime that was not built for one does not."""
        return self.runtime.partition("/")[2] == "cuda"


@dataclass(slots=True)
class Placed:
    """One output of a batch, still in the shared memory."""

    start: int
    size: int
    shape: tuple[int, ...]
    # A copy of what was checked, where that says lengths: the process may write on meanwhile.
    data: bytes = b""


@dataclass(slots=True)
class Reply:
    """What came back for a batch: outputs, or why there are none."""

    refusal: RegistryError | None = None
    outputs: list[Placed] = field(default_factory=list)
    # Feeding, computing and writing, in nanoseconds.
    times: tuple[int, int, int] = (0, 0, 0)
    counts: list[int] = field(default_factory=list)


class Broken(Exception):  # noqa: N818 - an ending, not a mistake of ours
    """The process said what no process of ours says; it is not listened to any more."""


class Arena:
    """A piece of memory that the server shares with one process."""

    def __init__(self, size: int) -> None:
        self.number = os.memfd_create("arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.number, size)
        # Cut short by the other side, a read here would kill the server.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self.number, fcntl.F_ADD_SEALS, seals)
        self._map = mmap.mmap(self.number, size)
        self.memory = memoryview(self._map)

    def forget(self) -> None:
        """Give the pages back; the size stays."""
        with suppress(OSError):
            self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        os.close(self.number)
        self.memory.release()
        self._map.close()


class ModelProcess:
    """One process of one model, from its start to its end."""

    def __init__(
        self,
        *,
        folder: Path,
        arena_bytes: int,
        gpu: int | None = None,
        on_reply: Callable[[Reply], None],
        on_end: Callable[[], None],
    ) -> None:
        self.folder = folder
        self.gpu = gpu
        self.described: Described | None = None
        self.ended = False
        self._on_reply, self._on_end = on_reply, on_end
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.given, self.taken = Arena(arena_bytes), Arena(arena_bytes)
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._poller = select.poll()
        self._words = bytearray()
        self._verb = ""
        self._gone = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        return self._gone.is_set()

    async def wait_until_gone(self) -> None:
        """Wait until nothing of the process is left."""
        await self._gone.wait()

    async def open(
        self,
        *,
        model: Path,
        onnx: Path | None,
        package: Path | None,
        threads: int,
        batch_size: int,
        warm: bool,
        warm_seconds: float,
    ) -> Described:
        """Start the process and wait until it has loaded its model.

        Raises:
            Invalid: the model cannot be run; TimeoutError: it hangs on made-up rows;
            Unavailable: the process died.

        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        starting = self._loop.run_in_executor(_starter, self._start, theirs, threads)
        try:
            self._process = await asyncio.shield(starting)
        except BaseException:
            # It may still be started: without the other end of its socket it goes at once.
            ours.close()
            self._close_arenas()
            self._finish()
            if not starting.done():
                starting.add_done_callback(_give_back)
            raise
        ours.setblocking(False)  # noqa: FBT003 - its only argument
        self._channel = ours
        self._poller.register(ours, select.POLLIN)
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._loop.add_reader(self._process.stderr.fileno(), self._overhear)
        self._loop.add_reader(ours.fileno(), self._hear)
        plan = {
            "folder": str(model),
            "onnx": None if onnx is None else str(onnx),
            "package": None if package is None else str(package),
            "threads": threads,
            "batch_size": batch_size,
            "warm": warm,
            "gpu": self.gpu is not None,
        }
        socket.send_fds(ours, [orjson.dumps(plan)], [self.given.number, self.taken.number])
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._opened
            async with asyncio.timeout(warm_seconds):
                await self._ready
        except BaseException:
            self.kill()
            raise
        assert self.described is not None
        return self.described

    def _start(self, theirs: socket.socket, threads: int) -> subprocess.Popen[bytes]:
        with theirs:
            own = self.folder / "tmp"
            # What a process unpacks there stays when it is killed.
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir(mode=0o700, parents=True, exist_ok=True)
            sandbox.hand_over(self.folder, [own])
            return sandbox.start(
                COMMAND,
                folder=self.folder,
                writable=[own],
                environment=sandbox.clean_environment(self.folder, threads=threads, gpu=self.gpu),
                # No limit of address space: CUDA reserves far more of it than it uses.
                limits=sandbox.Limits(niceness=0),
                gpu=self.gpu is not None,
                channel=theirs.fileno(),
            )

    # --- speaking ---------------------------------------------------------------------------------

    def send(self, verb: str, arguments: list[Any], *, awake_ns: int = 0) -> None:
        """Ask for a batch whose numbers have been put in place; the answer comes to `on_reply`.

        For `awake_ns` after that the process looks for the next one without sleeping.
        """
        assert self._channel is not None
        self._verb = verb
        try:
            self._channel.send(orjson.dumps([verb, arguments, awake_ns]))
        except OSError:
            self.kill()  # it has gone, or does not listen; its end is told like any

    def hear_awake(self, ns: int) -> None:
        """Look for an answer without sleeping, for so long; one that comes later is heard as ever.

        Nothing else of the server runs meanwhile.
        """
        until = time.monotonic_ns() + ns
        while not self._poller.poll(0):
            if time.monotonic_ns() > until:
                return
        self._hear()

    def put(self, start: int, parts: Sequence[Data]) -> int:
        """Write parts one behind the other into the shared memory; give where they end."""
        target = self.given.memory
        for part in parts:
            end = start + len(part)
            target[start:end] = part
            start = end
        return start

    def _hear(self) -> None:
        assert self._channel is not None
        try:
            message = self._channel.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._end()
            return
        try:
            self._take(orjson.loads(message))
        except (Broken, RegistryError, LookupError, ValueError, TypeError, OverflowError):
            self.kill()

    def _take(self, said: Any) -> None:
        if self._ready.done():
            if not self._verb:
                raise Broken
            verb, self._verb = self._verb, ""
            reply = self._read_reply(said, verb)
            self._on_reply(reply)
            return
        if said[0] == "opened":
            self._opened.set_result(None)
        elif said[0] == "ready" and self._opened.done():
            self.described = read_described(said[1])
            self._ready.set_result(None)
        else:
            self._fail_opening(_refusal(said))

    def _read_reply(self, said: Any, verb: str) -> Reply:
        if said[0] != "ok":
            return Reply(refusal=_refusal(said))
        times = tuple(int(one) for one in said[1])
        if len(times) != 3:
            raise Broken
        limit = len(self.taken.memory)
        if verb == "rows":
            outputs = [Placed(int(start), int(size), ()) for start, size in said[2]]
        else:
            outputs = [
                Placed(int(start), int(size), tuple(int(one) for one in shape))
                for start, size, shape in said[2]
            ]
        if any(one.start < 0 or one.size < 0 or one.start + one.size > limit for one in outputs):
            raise Broken
        if verb == "run":
            self._check_outputs(outputs)
        counts = [int(one) for one in said[3]] if verb == "texts" else []
        return Reply(outputs=outputs, times=times, counts=counts)

    def _check_outputs(self, outputs: list[Placed]) -> None:
        assert self.described is not None
        specs = self.described.outputs
        if len(specs) != len(outputs):
            raise Broken
        strings = MAX_STRINGS
        for spec, one in zip(specs, outputs, strict=True):
            if len(one.shape) > MAX_RANK or any(size < 0 for size in one.shape):
                raise Broken
            if spec.datatype == BYTES:
                count = math.prod(one.shape)
                one.data = bytes(self.taken.memory[one.start : one.start + one.size])
                check_strings(spec.name, count, one.data, left=strings)
                strings -= count
            elif math.prod(one.shape) * ITEM_BYTES[spec.datatype] != one.size:
                raise Broken

    def _overhear(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        try:
            said = os.read(self._process.stderr.fileno(), 65_536)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:
            self._loop.remove_reader(self._process.stderr.fileno())
            return
        self._words += said
        del self._words[:-_STDERR_BYTES]

    # --- ending -----------------------------------------------------------------------------------

    @property
    def last_words(self) -> str:
        return clean_text(self._words.decode(errors="replace"), longest=_STDERR_BYTES)

    def kill(self) -> None:
        """End the process and all it started; `on_end` is called soon."""
        if self._process is not None and not self.ended:
            sandbox.stop_group(self._process, signal.SIGKILL)

    def held_bytes(self) -> int:
        """Measure what the process holds of its own; looks through /proc."""
        return memory.session_bytes(self._process.pid) if self._process is not None else 0

    def device_bytes(self, device: DeviceMemory) -> int | None:
        """Ask a device what the process holds there; None where it does not say."""
        if self._process is not None:
            with suppress(OSError):
                return device.held_bytes(memory.session_processes(self._process.pid))
        return None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def _fail_opening(self, error: RegistryError) -> None:
        for waiting in (self._opened, self._ready):
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # somebody may have stopped waiting for it

    def _end(self) -> None:
        assert self._channel is not None
        assert self._process is not None
        if self.ended:
            return
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        self.kill()
        self.ended = True
        self._overhear()
        process = self._process
        assert process.stderr is not None
        self._loop.remove_reader(process.stderr.fileno())
        reaping = self._loop.run_in_executor(None, _reap, process)
        reaping.add_done_callback(lambda _: self._finish())
        self._fail_opening(
            Unavailable("The process of the model ended while it was loading.", code="crashed")
        )
        self._on_end()
        self._close_arenas()

    def _finish(self) -> None:
        self.ended = True
        self._gone.set()

    def _close_arenas(self) -> None:
        for arena in (self.given, self.taken):
            arena.close()


def _give_back(starting: "asyncio.Future[subprocess.Popen[bytes]]") -> None:
    """End a process that nobody waited for."""
    if starting.exception() is None:
        sandbox.stop_group(starting.result(), signal.SIGKILL)
        _reap(starting.result())


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _refusal(said: Any) -> RegistryError:
    """Read why a process refused; its words are a stranger's."""
    if said[0] != "no":
        raise Broken
    packed = clean_said(said[2])
    if packed is None:
        raise Broken
    reason = clean_text(said[1], longest=64)
    return Invalid("The model cannot answer: {said}", code=reason, said=unpack(packed))


def read_described(said: Any) -> Described:
    """Read what a process says of its model."""
    fields = said["fields"]
    return Described(
        inputs=_specs(said["inputs"]),
        outputs=_specs(said["outputs"]),
        runtime=clean_text(said["runtime"], longest=64),
        platform=clean_text(said["platform"], longest=64),
        batchable=said["batchable"] is True,
        usual_ns=int(said["usual_ns"]),
        kind=clean_text(fields["kind"], longest=64),
        columns=tuple(clean_text(one, longest=256) for one in fields["columns"][:_MAX_TENSORS]),
        labels=tuple(clean_text(one, longest=256) for one in fields["labels"][:100_000]),
    )


def _specs(said: Any) -> tuple[TensorSpec, ...]:
    if len(said) > _MAX_TENSORS:
        raise Broken
    specs = []
    for name, datatype, shape in said:
        if datatype != BYTES and datatype not in ITEM_BYTES:
            raise Broken
        sizes = tuple(max(-1, int(size)) for size in shape)
        specs.append(TensorSpec(clean_text(name, longest=256), datatype, sizes))
    return tuple(specs)
