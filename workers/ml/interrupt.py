"""SIGTERM: either stop at once, or finish the step at hand and write a checkpoint first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Interrupted(BaseException):
    """The job was asked to stop; what it needs to go on from is on disk."""


class Interrupt:
    """Whether somebody asked the job to stop."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the request inside; the caller looks at `requested` when it suits."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        if self.requested:
            raise Interrupted

    def _on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        if not self._deferred:
            raise Interrupted
