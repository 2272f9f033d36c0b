"""What a running job says to the process that watches it: one JSON object a line."""

import json
import math
import os
import sys
import time
from typing import IO, Self

from registry.errors import RegistryError, Text, pack


class Events:
    """Writes job events to a stream that nothing else writes to."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._told_at = -math.inf

    @classmethod
    def on_stdout(cls) -> Self:
        """Keep the real stdout for events; what libraries print goes to stderr."""
        stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(stream)

    def progress(self, *, done: int, total: int, unit: str, step: str) -> None:
        """Tell how far the job is, at most four times a second and always at the end."""
        now = time.monotonic()
        if done < total and now - self._told_at < 0.25:
            return
        self._told_at = now
        self._say(event="progress", done=done, total=total, unit=unit, step=step)

    def metric(self, name: str, value: float, step: int) -> None:
        if math.isfinite(value):
            self._say(event="metric", name=name, value=value, step=step)

    def candidate(self, why: Text, **facts: str | float | None) -> None:
        """Tell what became of one candidate of a search: name, bytes, latency, quality, verdict.

        `why` goes as it is in English and as a template, which pages say in their language.
        """
        known = {
            name: value
            for name, value in facts.items()
            if not isinstance(value, float) or math.isfinite(value)
        }
        self._say(event="candidate", **known, reason=why.detail, said=pack(why))

    def checkpoint(self, step: int) -> None:
        self._say(event="checkpoint", step=step)

    def log(self, said: Text | RegistryError) -> None:
        """Tell a line of the log, as it is in English and as a template for other languages."""
        self._say(event="log", message=said.detail, said=pack(said))

    def relay(self, message: object, said: object) -> None:
        """Tell a line that a process of the job's own has told."""
        self._say(event="log", message=message, said=said)

    def error(self, code: str, why: Text | RegistryError) -> None:
        self._say(event="error", code=code, detail=why.detail, said=pack(why))

    def _say(self, **fields: object) -> None:
        self._stream.write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")
        self._stream.flush()
