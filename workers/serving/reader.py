"""A process beside the server that reads large JSON, which would hold up every other call.

Python reads a million numbers in half a second, and nothing else can run meanwhile. What it reads
is what `codec` reads; it knows no secret, and ends with its server.
"""

import asyncio
import os
import struct
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from registry.errors import Invalid, NotFound, RegistryError, TooLarge, Unavailable, pack
from workers.serving.codec import Asked, read_infer
from workers.serving.messages import Data, Tensor
from workers.serving.turns import Turns

# From this size on it is worth the way there and back.
APART_FROM_BYTES = 64 * 1024
_SECONDS = 30.0
# The size of what follows; then, of a question, that of its JSON and one, or nothing.
_ASKING, _ANSWERING = struct.Struct("<QQ"), struct.Struct("<Q")
_BUFFER_BYTES = 16 * 1024 * 1024
_ROOT = Path(__file__).resolve().parents[2]
_KINDS: dict[str, type[RegistryError]] = {
    kind.__name__: kind for kind in (Invalid, NotFound, TooLarge)
}


class Reader:
    """The server's end: one body at a time, its callers in turns."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._turns = Turns()
        self._ending: set[asyncio.Task[Any]] = set()

    async def read(
        self, body: bytes, json_bytes: int | None, *, caller: Hashable, until: float
    ) -> tuple[Asked, float]:
        """Read a call as `read_infer` does, beside the server; say how long its turn took to come.

        Raises:
            Invalid, TooLarge: what that raises; DeadlineExceeded: others took their turns until
            then; Unavailable: the process ended meanwhile.

        """
        came_at = time.monotonic()
        async with self._turns.turn(caller, until):
            waited = time.monotonic() - came_at
            try:
                async with asyncio.timeout(_SECONDS):
                    return await self._ask(body, json_bytes), waited
            except (OSError, EOFError, TimeoutError) as error:
                self._stop()
                raise Unavailable("The request could not be read; try again.") from error
            except asyncio.CancelledError:
                # What it says now is about a question that nobody remembers.
                self._stop()
                raise

    async def _ask(self, body: bytes, json_bytes: int | None) -> Asked:
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await _start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_ASKING.pack(len(body), 0 if json_bytes is None else json_bytes + 1))
        process.stdin.write(body)
        await process.stdin.drain()
        (size,) = _ANSWERING.unpack(await process.stdout.readexactly(_ANSWERING.size))
        said = orjson.loads(await process.stdout.readexactly(size))
        if "refused" in said:
            packed = said["said"]
            raise _KINDS[said["refused"]](packed["template"], code=said["code"], **packed["values"])
        inputs = []
        for name, datatype, shape, length in said.pop("inputs"):
            data = await process.stdout.readexactly(length)
            inputs.append(Tensor(name, datatype, tuple(shape), data))
        return Asked(inputs, **said)

    def _stop(self) -> None:
        """End the process; the next question starts another one."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            ending = asyncio.create_task(process.communicate())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End the process, and wait until nothing of it is left."""
        self._stop()
        await asyncio.gather(*self._ending, return_exceptions=True)


async def _start() -> Process:
    environment = {"PYTHONPATH": str(_ROOT), "LANG": "C.UTF-8"}
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workers.serving.reader"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        env=environment,
        limit=_BUFFER_BYTES,
        start_new_session=True,
    )


# --- The other end --------------------------------------------------------------------------------


def answer(questions: BinaryIO, answers: BinaryIO) -> None:
    """Read bodies until there are no more."""
    while len(head := questions.read(_ASKING.size)) == _ASKING.size:
        size, said = _ASKING.unpack(head)
        body = questions.read(size)
        if len(body) < size:
            return
        tail: list[Data] = []
        reply: dict[str, Any]
        try:
            asked = read_infer(memoryview(body), said - 1 if said else None)
        except RegistryError as error:
            reply = {"refused": type(error).__name__, "code": error.reason, "said": pack(error)}
        else:
            tail = [one.data for one in asked.inputs]
            reply = {
                "inputs": [
                    [one.name, one.datatype, one.shape, len(one.data)] for one in asked.inputs
                ],
                "id": asked.id,
                "outputs": asked.outputs,
                "parameters": asked.parameters,
                "binary": asked.binary,
                "all_binary": asked.all_binary,
            }
        written = orjson.dumps(reply)
        answers.write(_ANSWERING.pack(len(written)))
        answers.writelines([written, *tail])
        answers.flush()


if __name__ == "__main__":
    answer(sys.stdin.buffer, sys.stdout.buffer)
