"""A version in the very process that serves deployments, for a job that measures it.

`workers.serving.child` is started as a serving process starts it, and spoken to over the same
socket and shared memory; what is measured is what callers will get. It runs inside the job's own
sandbox, which it inherits.
"""

import fcntl
import math
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray

from registry.errors import Invalid, RegistryError, Text, Unavailable, unpack

_COMMAND = (sys.executable, "-P", "-s", "-m", "workers.serving.child")
_MESSAGE_BYTES = 128 * 1024
_ALIGNMENT = 64
_OPEN_SECONDS = 120.0
_ENDING_SECONDS = 10.0
# What serving takes in one message by default.
MAX_INPUT_BYTES = 64 * 1024 * 1024
_ARENA_BYTES = 2 * MAX_INPUT_BYTES
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    **{f"UINT{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
}

Spec = tuple[str, str, tuple[int, ...]]
Array = NDArray[Any]


class Silent(RegistryError):  # noqa: N818 - it is the model that is
    """A model that does not answer in time; its process has been ended."""

    code = "no_answer"


class ServedModel:
    """One process of one model, with so many threads."""

    def __init__(
        self,
        folder: Path,
        onnx: Path | None,
        *,
        threads: int,
        batch_size: int,
        gpu: bool,
        patience: float,
    ) -> None:
        self.threads = threads
        self._patience = patience
        self.inputs: list[Spec] = []
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
        except (KeyError, TypeError, ValueError) as error:
            raise _odd() from error
        return self

    def feed(self, arrays: Sequence[Array]) -> list[tuple[int, int, tuple[int, ...]]]:
        """Write inputs into the shared memory; give their places.

        Raises:
            Invalid: there is no room for them.

        """
        places, start = [], 0
        for array in arrays:
            size = array.nbytes
            if start + size > len(self._given.memory):
                raise Invalid(
                    "The inputs are larger than {limit} bytes.",
                    code="bad_input",
                    limit=len(self._given.memory),
                )
            np.copyto(np.ndarray(array.shape, array.dtype, self._given.memory, start), array)
            places.append((start, size, array.shape))
            start += -(-size // _ALIGNMENT) * _ALIGNMENT
        return places

    def seconds_for(self, arrays: Sequence[Array]) -> float:
        """Run one batch as a serving process has it run; give how long that took.

        Raises:
            Invalid: the model refuses it; Silent: it does not answer, and has been ended.

        """
        began = time.perf_counter()
        places = self.feed(arrays)
        try:
            self._channel.send(orjson.dumps(["run", places]))
        except OSError as error:
            raise _gone() from error
        self._hear(self._patience)
        return time.perf_counter() - began

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
        try:
            self._process.send_signal(signal.SIGKILL)
        except PermissionError:
            # Where a sandbox lets no signal out, the kernel ends what is out of its time.
            with suppress(ProcessLookupError):
                resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (0, 0))
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_SECONDS)
        for arena in (self._given, self._taken):
            arena.close()


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


def made_inputs(inputs: Sequence[Spec], rows: int, *, free: int, seed: int) -> list[Array]:
    """Make up inputs as the signature has them: `rows` of them, free axes `free` long.

    Raises:
        Invalid: they are of a kind that is not made up, or too large.

    """
    drawn = np.random.default_rng([seed, rows])
    made: list[Array] = []
    for name, datatype, shape in inputs:
        dtype = _DTYPES.get(datatype)
        if dtype is None:
            raise Invalid(
                "Input {name!r} is of the type {datatype}, of which no inputs are made up.",
                code="unsupported_input",
                name=name[:100],
                datatype=datatype[:20],
            )
        inner = [free if size < 0 else size for size in shape[1:]]
        sizes = [rows if shape[0] < 0 else shape[0], *inner] if shape else []
        if math.prod(sizes) * dtype.itemsize > MAX_INPUT_BYTES:
            raise Invalid(
                "{rows} rows of input {name!r} are larger than {limit} bytes.",
                code="bad_input",
                rows=rows,
                name=name[:100],
                limit=MAX_INPUT_BYTES,
            )
        if dtype.kind == "f":
            made.append(np.asarray(drawn.standard_normal(sizes)).astype(dtype))
        else:
            made.append(np.asarray(drawn.integers(0, 2, sizes)).astype(dtype))
    return made


def _gone() -> Unavailable:
    return Unavailable("The process of the model ended.", code="crashed")


def _odd() -> Unavailable:
    return Unavailable("The process of the model said what it should not.", code="crashed")


def said_by(error: RegistryError) -> Text:
    """Give a refusal as text that may be kept."""
    return Text(error.template, **error.values)
