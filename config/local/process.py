"""One supervised child: its log, its restarts with growing pauses, and how it is stopped."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from config.local.account import OWN, Account, spawn

LOG_BYTES = 10 << 20
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A child that ran this long was well: its next restart comes at once again.
WELL_SECONDS = 60.0
# How often a child that has one thing to do may fail at it.
TRIES = 5


@dataclass
class Child:
    """A program that is kept running until it is told to stop."""

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] | None = None
    account: Account = OWN
    folder: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    # Runs to its end once; only a failure starts it again, a few times.
    once: bool = False
    clock: Callable[[], float] = time.monotonic
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    finished: bool = field(default=False, init=False)
    pause_seconds: float = field(default=0.0, init=False)
    failures: int = field(default=0, init=False)
    started_at: float = field(default=0.0, init=False)
    due_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            self.process = spawn(
                self.command,
                account=self.account,
                output=output,
                environment=self.environment,
                folder=self.folder,
                when_orphaned=self.stop_signal,
            )
        self.started_at = self.clock()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def watch(self) -> str:
        """Start the child again where it died; say so in one line, or nothing when all is well."""
        if self.finished or self.alive:
            return ""
        if self.process is not None:
            status = self.process.returncode
            _kill_group(self.process.pid)  # what it leaves behind may hold its port or its files
            self.process = None
            return self._plan_restart(status)
        if self.clock() >= self.due_at:
            self.start()
        return ""

    def _plan_restart(self, status: int) -> str:
        if self.once and status == 0:
            self.finished = True
            return ""
        self.failures += 1
        if self.once and self.failures == TRIES:
            self.finished = True
            return f"{self.name} failed {TRIES} times and is left alone (see {self.log})"
        now = self.clock()
        well = now - self.started_at > WELL_SECONDS
        doubled = min(max(self.pause_seconds * 2, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self.pause_seconds = FIRST_PAUSE_SECONDS if well else doubled
        self.due_at = now + self.pause_seconds
        return (
            f"{self.name} ended with status {status}; starting it again in "
            f"{self.pause_seconds:g} s (see {self.log})"
        )

    def kill(self) -> None:
        if self.process is not None:
            _kill_group(self.process.pid)

    def stop(self) -> None:
        """Ask, wait, then kill whatever is left of the child's whole session."""
        self.finished = True
        if self.process is None:
            return
        self.process.send_signal(self.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(self.grace_seconds)
        _kill_group(self.process.pid)
        self.process.wait()


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
