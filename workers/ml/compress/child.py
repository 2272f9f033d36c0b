"""The process that a search has its candidates tried in: asked one thing at a time, in limits."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from registry.errors import Text, unpack
from workers.ml.job import Job

_ROOT = Path(__file__).parents[3]


class NotDone(Exception):  # noqa: N818 - an answer, not an error of ours
    """What was asked cannot be done, and why."""

    def __init__(self, code: str, why: Text) -> None:
        super().__init__(why.detail)
        self.code, self.why = code, why


class Workshop(Protocol):
    """Where candidates are made and measured."""

    def start(self, *, limit: float) -> dict[str, Any]:
        """Load the parent; tell what there is to search (`Trials.about`)."""
        ...

    def ask(self, do: str, *, limit: float, **asked: Any) -> dict[str, Any]:
        """Have a method of `Trials` done within `limit` seconds.

        Raises:
            NotDone: it cannot be done, took too long, or ended the process.

        """
        ...

    @property
    def generation(self) -> int:
        """How often it was lost; what was built before is gone."""
        ...

    def stop(self) -> None: ...


class Child:
    """A workshop in a process of its own, started again where it was lost."""

    def __init__(self, job: Job, work: Path) -> None:
        self.generation = 0
        self._job, self._work = job, work
        self._process: subprocess.Popen[str] | None = None
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def start(self, *, limit: float) -> dict[str, Any]:
        self.stop()
        command = [
            sys.executable,
            *("-P", "-s", "-m", "workers.ml.compress.trials"),
            str(self._write_job()),
            str(self._work.resolve()),
        ]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
        )
        self._said = queue.SimpleQueue()
        reader = threading.Thread(
            target=_read, args=(self._process, self._said), name="trials", daemon=True
        )
        reader.start()
        return self._wait(limit)

    def ask(self, do: str, *, limit: float, **asked: Any) -> dict[str, Any]:
        if self._process is None:
            self.start(limit=limit)
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **asked}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._lost() from None
        return self._wait(limit)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            self.generation += 1
            process.kill()
            process.wait()
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # what it did not read is lost with it
                process.stdin.close()

    def _wait(self, limit: float) -> dict[str, Any]:
        until = time.monotonic() + limit
        while True:
            try:
                line = self._said.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self.stop()
                raise NotDone(
                    "time_limit",
                    Text("It was ended after {limit} seconds.", limit=round(limit)),
                ) from None
            if line is None:
                raise self._lost()
            said = _parse(line)
            if said.get("event") == "answer":
                return _answer(said)
            if said.get("event") == "log":
                self._job.events.relay(said.get("message"), said.get("said"))

    def _lost(self) -> NotDone:
        process = self._process
        assert process is not None
        status = process.wait()
        self.stop()
        return NotDone("crashed", Text("Its process ended with status {status}.", status=status))

    def _write_job(self) -> Path:
        job = self._job
        described = {
            "job_id": job.job_id,
            "recipe": job.recipe.to_json(),
            "inputs": {
                role: {
                    "path": str(given.path.resolve()),
                    "ref": given.ref,
                    "may_be_named": given.may_be_named,
                }
                for role, given in job.inputs.items()
            },
            "out": str(job.out.resolve()),
            "checkpoints": str(job.checkpoints.resolve()),
            "device": job.device,
            "threads": job.threads,
        }
        path = job.out / "trials.json"
        path.write_text(json.dumps(described), encoding="utf-8")
        return path


def _read(process: "subprocess.Popen[str]", said: "queue.SimpleQueue[str | None]") -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            said.put(line)
    said.put(None)


def _parse(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _answer(said: dict[str, Any]) -> dict[str, Any]:
    refused = said.get("refused")
    if refused is not None:
        raise NotDone(str(refused["code"]), unpack(refused["said"]))
    found: dict[str, Any] = said["ok"]
    return found
