"""A version in the very process that serves deployments, for a job that measures it.

`workers.serving.child` is started as a serving process starts it, and spoken to over the same
socket and shared memory; what is measured is what callers will get. It runs inside the job's own
sandbox, which it inherits.
"""

import fcntl
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import orjson

from registry.errors import Invalid, RegistryError, Text, Unavailable, unpack
from workers.ml.workload import MAX_INPUT_BYTES, Batch, Spec

_COMMAND = (sys.executable, "-P", "-s", "-m", "workers.serving.child")
_MESSAGE_BYTES = 128 * 1024
_ALIGNMENT = 64
_OPEN_SECONDS = 120.0
_ENDING_SECONDS = 10.0
_ARENA_BYTES = 2 * MAX_INPUT_BYTES
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Ran(NamedTuple):
    """How long a batch took; of texts, how many tokens each of them is."""

    seconds: float
    tokens: list[int]


class Silent(RegistryError):  # noqa: N818 - it is the model that is
    """A model that does not answer in time; its process has been ended."""

    code = "no_answer"


class ServedModel:
    """One process of one model, with so many threads."""

    def __init__(
        self,
        folder: Path,
        *,
        onnx: Path | None,
        package: Path | None,
        threads: int,
        batch_size: int,
        gpu: bool,
        patience: float,
    ) -> None:
        self.threads = threads
        self._patience = patience
        self.inputs: list[Spec] = []
        # How named fields go into it, and what the first of them is called.
        self.fed_by = self.column = ""
        self.runtime = ""
        self.batchable = False
        self._given, self._taken = _Arena(_ARENA_BYTES), _Arena(_ARENA_BYTES)
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        count = str(threads)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - no shell, and a command of our own
                _COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **dict.fromkeys(_THREADS, count)},
            )
        self._plan = {
            "folder": str(folder),
            "onnx": None if onnx is None else str(onnx),
            "package": None if package is None else str(package),
            "threads": threads,
            "batch_size": batch_size,
            "warm": True,
            "gpu": gpu,
        }

    def open(self) -> Self:
        """Load the model and have it run made-up rows, as before it is served.

        Raises:
            Invalid: it cannot be run so; Silent: it does not answer.

        """
        plan = [orjson.dumps(self._plan)]
        with suppress(BrokenPipeError):
            socket.send_fds(self._channel, plan, [self._given.number, self._taken.number])
        self._hear(_OPEN_SECONDS)
        _, said = self._hear(max(1.0, self._patience))
        try:
            self.inputs = [
                (str(name), str(kind), tuple(map(int, shape)))
                for name, kind, shape in said["inputs"]
            ]
            self.runtime, self.batchable = str(said["runtime"])[:64], said["batchable"] is True
            columns = said["fields"]["columns"]
            self.fed_by, self.column = str(said["fields"]["kind"]), str((*columns, "")[0])
        except (KeyError, TypeError, ValueError) as error:
            raise _odd() from error
        return self

    def _feed(self, batch: Batch) -> list[tuple[Any, ...]]:
        """Write a batch into the shared memory; give the places of its parts.

        Raises:
            Invalid: there is no room for it.

        """
        places: list[tuple[Any, ...]] = []
        start = 0
        for part in batch.parts:
            data, size = part.data, part.data.nbytes
            if start + size > len(self._given.memory):
                raise Invalid(
                    "The inputs are larger than {limit} bytes.",
                    code="bad_input",
                    limit=len(self._given.memory),
                )
            np.copyto(np.ndarray(data.shape, data.dtype, self._given.memory, start), data)
            places.append((start, size) if part.shape is None else (start, size, part.shape))
            start += -(-size // _ALIGNMENT) * _ALIGNMENT
        return places

    def run(self, batch: Batch) -> Ran:
        """Run one batch as a serving process has it run; say how long that took.

        Raises:
            Invalid: the model refuses it; Silent: it does not answer, and has been ended.

        """
        began = time.perf_counter()
        places = self._feed(batch)
        try:
            self._channel.send(orjson.dumps([batch.verb, places, 0]))
        except OSError as error:
            raise _gone() from error
        said = self._hear(self._patience)
        seconds = time.perf_counter() - began
        counts = said[3] if batch.verb == "texts" and len(said) > 3 else []
        if not isinstance(counts, list) or not all(isinstance(one, int) for one in counts):
            raise _odd()
        return Ran(seconds, counts)

    def _hear(self, seconds: float) -> list[Any]:
        self._channel.settimeout(seconds)
        try:
            message = self._channel.recv(_MESSAGE_BYTES)
        except TimeoutError as error:
            self.close()
            raise Silent("No answer within {seconds} s.", seconds=f"{seconds:g}") from error
        except OSError:
            message = b""
        if not message:
            self.close()
            raise _gone()
        try:
            said = orjson.loads(message)
            refusal = unpack(said[2]) if said[0] == "no" else None
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise _odd() from error
        if refusal is not None:
            raise Invalid(refusal.template, code=str(said[1])[:64], **refusal.values)
        return list(said)

    @property
    def is_closed(self) -> bool:
        return self._channel.fileno() < 0

    def close(self) -> None:
        """End the process, however busy it is."""
        if self.is_closed:
            return
        self._channel.close()
        end(self._process)
        for arena in (self._given, self._taken):
            arena.close()


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process of ours, however busy it is."""
    try:
        process.send_signal(signal.SIGKILL)
    except PermissionError:
        # Where a sandbox lets no signal out, the kernel ends what is out of its time.
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (0, 0))
    with suppress(subprocess.TimeoutExpired):
        process.wait(_ENDING_SECONDS)


class _Arena:
    """Memory that both share, sealed: cut short by the other side, a read here would kill us."""

    def __init__(self, size: int) -> None:
        self.number = os.memfd_create("arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.number, size)
        fcntl.fcntl(
            self.number,
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL,
        )
        self._map = mmap.mmap(self.number, size)
        self.memory = memoryview(self._map)

    def close(self) -> None:
        os.close(self.number)
        self.memory.release()
        self._map.close()


def _gone() -> Unavailable:
    return Unavailable("The process of the model ended.", code="crashed")


def _odd() -> Unavailable:
    return Unavailable("The process of the model said what it should not.", code="crashed")


def said_by(error: RegistryError) -> Text:
    """Give a refusal as text that may be kept."""
    return Text(error.template, **error.values)
