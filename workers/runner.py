"""One job, run by this worker: held by a lease, worked on by a process of its own, registered."""

import errno
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, close_old_connections

from registry.errors import Invalid, RegistryError, Text, Unavailable, pack
from registry.models import Blob, Version
from registry.services import jobs
from registry.services.blobs import inspect_blob, record_blob
from registry.services.jobs import Claim, LeaseLost, Message, log_line
from registry.services.results import Made, Outcome
from registry.storage import default_storage
from workers import memory, report, sandbox
from workers.folder import JobFolder
from workers.words import clean_said, clean_text

logger = logging.getLogger(__name__)

# -P and -s: modules come from the checkout and the environment, not from the job's own folder.
COMMAND = (sys.executable, "-P", "-s", "-m", "workers.ml", "job.json")
_TICK_SECONDS = 0.2
_FLUSH_SECONDS = 0.5
_WEIGH_SECONDS = 1.0
# How long a process may take to write a checkpoint after SIGTERM.
GRACE_SECONDS = 15.0
_DATABASE_PATIENCE_SECONDS = 120.0
_STDERR_BYTES = 32 * 1024
_READ_BYTES = 64 * 1024
_MAX_PENDING = 2000
_INTERRUPTED = 128 + signal.SIGTERM
_REFUSED = 2
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# What failed for a passing reason is tried again after 2, 4, 8... seconds, but no more than this.
_LONGEST_PAUSE_SECONDS = 60.0

_Result = TypeVar("_Result")


class Ending(Enum):
    """Why the watch over a process ended."""

    EXITED = "exited"
    CANCELLED = "cancelled"
    STOPPED = "stopped"
    TIMED_OUT = "timed_out"
    TOO_LARGE = "too_large"


class _Stopped(Exception):  # noqa: N818 - no error: the worker goes away
    """The worker shuts down; the job goes back to the queue."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a job may use of this machine."""

    threads: int
    gpu: int | None = None


def run_claimed(claim: Claim, *, place: Place, stopping: threading.Event) -> bool:
    """Work on a claimed job to some end; give whether it makes sense to claim the next at once."""
    logger.info("Job %s (%s) begins, attempt %d", claim.job_id, claim.kind, claim.attempt)
    lease = Lease(claim)
    lease.start()
    try:
        return _Attempt(claim, place, lease, stopping).run()
    except LeaseLost:
        logger.warning("Job %s was taken over by another attempt", claim.job_id)
        return True
    except DatabaseError:
        # The lease runs out by itself, and the job goes on elsewhere or here.
        logger.exception("Job %s could not be brought to an end", claim.job_id)
        return False
    finally:
        lease.stop()
        close_old_connections()
        logger.info("Job %s is no longer worked on here", claim.job_id)


class Lease(threading.Thread):
    """Keeps a claim alive while everything else is busy, and hears of cancellation."""

    def __init__(self, claim: Claim) -> None:
        super().__init__(name=f"lease-{claim.job_id}", daemon=True)
        self.claim = claim
        self.lost = threading.Event()
        self.cancelled = threading.Event()
        self._over = threading.Event()

    def run(self) -> None:
        every = settings.JOB_LEASE_SECONDS / 3
        renewed = time.monotonic()
        while not self._over.wait(min(1.0, every)):
            try:
                if time.monotonic() - renewed >= every:
                    cancelled = jobs.renew_lease(self.claim)
                    renewed = time.monotonic()
                else:
                    cancelled = jobs.is_cancel_requested(self.claim)
                if cancelled:
                    self.cancelled.set()
            except LeaseLost:
                self.lost.set()
                return
            except DatabaseError as error:
                # Only the database can say that the job is lost: go on, the fence protects it.
                logger.warning("The lease of job %s was not renewed: %s", self.claim.job_id, error)
            finally:
                close_old_connections()

    def stop(self) -> None:
        self._over.set()
        self.join()


class _Attempt:
    """One attempt at one job."""

    def __init__(self, claim: Claim, place: Place, lease: Lease, stopping: threading.Event) -> None:
        self.claim = claim
        self.place = place
        self.lease = lease
        self.stopping = stopping
        self.folder = JobFolder(claim.job_id, claim.fence)

    def run(self) -> bool:
        try:
            self._work()
        except LeaseLost:
            raise
        except _Stopped:
            self._leave_folder()
            _insist(lambda: jobs.release_job(self.claim))
            return False
        except RegistryError as error:
            return self._fail(error.reason, error, retryable=isinstance(error, Unavailable))
        except DatabaseError:
            raise
        except OSError as error:
            logger.exception("Job %s failed on this machine", self.claim.job_id)
            if error.errno in _NO_SPACE:
                return self._fail(
                    "storage_full",
                    Text(
                        "The worker's disk is full; make room in its data folder, then resume the "
                        "job."
                    ),
                )
            return self._fail(
                "machine_error",
                Text("The worker's machine failed: {problem}.", problem=error.strerror),
                retryable=True,
            )
        except Exception:
            logger.exception("Job %s failed in the worker", self.claim.job_id)
            return self._fail(
                "internal_error",
                Text("The worker failed; its log tells more under {job}.", job=self.claim.job_id),
            )
        return True

    def _work(self) -> None:
        sandbox.kill_leftovers(self.folder.root)
        self.folder.make()
        inputs = _insist(lambda: jobs.find_inputs(self.claim))
        parts = _insist(lambda: jobs.find_parts(self.claim))
        self.folder.lay_out(inputs, default_storage(), self._go_on)
        laid = self.folder.lay_out_parts([part.sha256 for part in parts], default_storage())
        self._write_job(
            inputs, {path: part.summary for path, part in zip(laid, parts, strict=True)}
        )
        self._go_on()
        _insist(lambda: jobs.renew_lease(self.claim))
        watch = _Watch(self.claim, self._start(), self.lease, self.stopping)
        ending = watch.run()
        if ending is Ending.CANCELLED:
            self._leave_folder()
            _insist(lambda: jobs.confirm_cancel(self.claim))
        elif watch.code == 0:
            outcome = self._gather(inputs, watch.peak_bytes)
            _insist(lambda: jobs.finish_job(self.claim, outcome))
            self.folder.clean(keep_checkpoints=False)
        elif ending is Ending.STOPPED:
            raise _Stopped
        else:
            self._explain(watch, ending)

    def _leave_folder(self) -> None:
        """Clean up before the job is given away: from then on another worker may be in there."""
        self.folder.clean(keep_checkpoints=True)

    def _go_on(self) -> None:
        if self.lease.lost.is_set():
            raise LeaseLost("Job {job} has another attempt.", job=self.claim.job_id)
        if self.stopping.is_set():
            raise _Stopped

    def _write_job(
        self, inputs: dict[str, Version], parts: Mapping[str, Mapping[str, Any]]
    ) -> None:
        names = _insist(lambda: jobs.name_inputs(self.claim, inputs))
        self.folder.write_job(
            {
                "job_id": str(self.claim.job_id),
                "recipe": self.claim.recipe.to_json(),
                "inputs": {
                    role: {"path": f"inputs/{role}", **name._asdict()}
                    for role, name in names.items()
                },
                "part": [self.claim.part or 0, 1 if parts else self.claim.recipe.parts_count],
                "parts": [{"path": path, "summary": said} for path, said in parts.items()],
                "out": "out",
                "checkpoints": "../checkpoints",
                "device": "cpu" if self.place.gpu is None else "cuda",
                "threads": self.place.threads,
            }
        )

    def _start(self) -> subprocess.Popen[bytes]:
        return sandbox.start(
            COMMAND,
            folder=self.folder.path,
            writable=self.folder.writable,
            gpu=self.place.gpu is not None,
            environment=sandbox.clean_environment(
                self.folder.path, threads=self.place.threads, gpu=self.place.gpu
            ),
            limits=sandbox.Limits(
                cpu_seconds=settings.JOB_MAX_SECONDS * max(1, self.place.threads),
                file_bytes=settings.MAX_UPLOAD_BYTES,
            ),
        )

    def _gather(self, inputs: dict[str, Version], peak_bytes: int) -> Outcome:
        """Store the files that the process left, and read its report.

        What the job was seen to hold is kept with it: the next one is estimated by that.
        """
        said = {**report.read_report(self.folder.out), "job_memory_bytes": peak_bytes}
        message = clean_text(said.get("message") or f"Made by {self.claim.kind}.")
        if self.claim.recipe.produces == "new_variants":
            variants = [
                Made(
                    variant=listed.name,
                    files=self._store(self.folder.out / "files" / listed.name),
                    evaluations=listed.evaluations,
                    message=listed.message or message,
                )
                for listed in report.variants_of(said, inputs)
            ]
            return Outcome(variants=variants, report=said, message=message)
        files = self._store(self.folder.out / "files")
        return Outcome(
            files=files,
            evaluations=report.evaluations_of(said, inputs),
            report=said,
            message=message,
        )

    def _store(self, folder: Path) -> dict[str, Blob]:
        storage = default_storage()
        files = {}
        for name, path in report.find_files(folder).items():
            blob = record_blob(storage.put(report.blocks_of(path)))
            inspect_blob(name, blob)
            files[name] = blob
        if not files and self.claim.recipe.produces != "evaluations":
            raise Invalid("The job left no files.", code="no_result")
        return files

    def _read_findings(self) -> Mapping[str, Any] | None:
        """Give the report of a job that found something out and failed all the same."""
        try:
            return report.read_report(self.folder.out)
        except Invalid:
            return None  # most failures leave none

    def _explain(self, watch: "_Watch", ending: Ending) -> None:
        """Fail the job with the reason that it gave, or with the one that its end tells."""
        if ending is Ending.TIMED_OUT:
            limit = settings.JOB_MAX_SECONDS
            self._fail(
                "timeout",
                Text(
                    "The job ran for more than {limit} seconds; make it smaller, or resume it to "
                    "go on from its last checkpoint.",
                    limit=limit,
                ),
            )
        elif ending is Ending.TOO_LARGE:
            self._fail(
                "memory_limit",
                Text(
                    "The job held {held} MiB of memory, more than the {limit} MiB that one job may "
                    "have here (MODELYARD_JOB_MAX_MEMORY_BYTES). A smaller batch or model needs "
                    "less.",
                    held=watch.held_bytes >> 20,
                    limit=watch.memory_limit >> 20,
                ),
            )
        elif watch.complaint is not None:
            self._fail(watch.complaint.code, watch.complaint, found=self._read_findings())
        elif watch.code < 0 or watch.code == _INTERRUPTED:
            number = -watch.code if watch.code < 0 else signal.SIGTERM
            name = signal.Signals(number).name
            self._fail(
                "killed",
                Text(
                    "The job's process was ended by {signal} from outside; when memory ran out, a "
                    "smaller batch helps.",
                    signal=name,
                ),
                retryable=True,
            )
        else:
            self._fail(
                "crashed",
                Text(
                    "The job's process ended with status {status}; the end of its log says why.",
                    status=watch.code,
                ),
            )

    def _fail(
        self,
        code: str,
        why: Text | RegistryError | report.Complaint,
        *,
        retryable: bool = False,
        found: Mapping[str, Any] | None = None,
    ) -> bool:
        said = why.said if isinstance(why, report.Complaint) else clean_said(pack(why))
        self._leave_folder()
        if retryable:
            self._pause()
        state = _insist(
            lambda: jobs.fail_job(
                self.claim,
                code=code,
                detail=clean_text(why.detail),
                said=said,
                retryable=retryable,
                report=found,
            )
        )
        return state.value != "queued"

    def _pause(self) -> None:
        """Let pass what made an attempt fail, holding the job meanwhile."""
        until = time.monotonic() + min(2.0**self.claim.attempt, _LONGEST_PAUSE_SECONDS)
        while time.monotonic() < until and not (
            self.lease.lost.is_set() or self.lease.cancelled.is_set()
        ):
            if self.stopping.wait(_TICK_SECONDS):
                return


class _Watch:
    """Reads what a process says until it ends, and ends it when it should."""

    def __init__(
        self,
        claim: Claim,
        process: subprocess.Popen[bytes],
        lease: Lease,
        stopping: threading.Event,
    ) -> None:
        self.claim = claim
        self.process = process
        self.lease = lease
        self.stopping = stopping
        self.complaint: report.Complaint | None = None
        self.code = 0
        self._pending: deque[Message] = deque(maxlen=_MAX_PENDING)
        self._left = jobs.MAX_EVENTS - claim.events_count
        self._lines = _Lines()
        self._errors = bytearray()
        self.memory_limit = memory.job_limit(settings.JOB_MAX_MEMORY_BYTES)
        self.held_bytes = self.peak_bytes = 0
        self._weigh_at = 0.0
        self._deadline = time.monotonic() + settings.JOB_MAX_SECONDS
        self._ending: Ending | None = None
        self._kill_at = float("inf")

    def run(self) -> Ending:
        try:
            self._follow()
        finally:
            # Also what the process started itself; its session ends with it, whatever happened.
            sandbox.stop_group(self.process, signal.SIGKILL)
            self.code = self.process.wait()
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                stream.close()
        self._hear(b"\n")
        if self.code not in {0, _REFUSED} and self._ending is None:
            self._keep_errors()
        self._flush(insist=True)
        return self._ending or Ending.EXITED

    def _follow(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        flushed = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ, self._hear)
            selector.register(self.process.stderr, selectors.EVENT_READ, self._overhear)
            while True:
                ended = self.process.poll() is not None
                ready = selector.select(timeout=0 if ended else _TICK_SECONDS)
                for key, _ in ready:
                    block = os.read(key.fd, _READ_BYTES)
                    if block:
                        key.data(block)
                    else:
                        selector.unregister(key.fileobj)
                if ended and not ready:
                    return
                if not selector.get_map():
                    # It closed its pipes; wait for the end without spinning.
                    self.lease.lost.wait(_TICK_SECONDS)
                self._steer()
                if time.monotonic() - flushed >= _FLUSH_SECONDS:
                    self._flush()
                    flushed = time.monotonic()

    def _steer(self) -> None:
        """Stop the process when there is a reason to; first kindly, then not."""
        if self.lease.lost.is_set():
            raise LeaseLost("Job {job} has another attempt.", job=self.claim.job_id)
        now = time.monotonic()
        if self._ending is None:
            if self.lease.cancelled.is_set():
                self._ending = Ending.CANCELLED
            elif self.stopping.is_set():
                self._ending = Ending.STOPPED
            elif now > self._deadline:
                self._ending = Ending.TIMED_OUT
            elif now > self._weigh_at and self._weigh() > self.memory_limit:
                # No grace: it would take more meanwhile.
                self._ending = Ending.TOO_LARGE
                sandbox.stop_group(self.process, signal.SIGKILL)
                return
            if self._ending is not None:
                self._kill_at = now + GRACE_SECONDS
                sandbox.stop_group(self.process, signal.SIGTERM)
        elif now > self._kill_at:
            sandbox.stop_group(self.process, signal.SIGKILL)

    def _weigh(self) -> int:
        """See once a second how much memory the job holds."""
        self._weigh_at = time.monotonic() + _WEIGH_SECONDS
        self.held_bytes = memory.session_bytes(self.process.pid)
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)
        return self.held_bytes

    def _hear(self, block: bytes) -> None:
        for line in self._lines.feed(block):
            said = report.read_line(line)
            if isinstance(said, report.Complaint):
                self.complaint = said
            elif said is not None:
                self._keep(said)

    def _overhear(self, block: bytes) -> None:
        self._errors += block
        del self._errors[:-_STDERR_BYTES]

    def _keep(self, message: Message) -> None:
        if message.type == "progress":
            self._pending.append(message)
            return
        self._left -= 1
        if self._left > 0:
            self._pending.append(message)
        elif self._left == 0:
            text = Text("The job says more than is kept; the rest is dropped.")
            self._pending.append(Message("log", log_line(text, level="error")))

    def _keep_errors(self) -> None:
        """Let the job's log end with what the process wrote to stderr, without our folders."""
        text = clean_text(self._errors.decode(errors="replace"), longest=_STDERR_BYTES)
        if text.strip():
            self._pending.append(Message("log", {"message": text.strip(), "level": "error"}))

    def _flush(self, *, insist: bool = False) -> None:
        if not self._pending:
            return
        messages = list(self._pending)
        try:
            if insist:
                _insist(lambda: jobs.record_events(self.claim, messages))
            else:
                jobs.record_events(self.claim, messages)
        except (InterfaceError, OperationalError) as error:
            logger.warning("Events of job %s wait: %s", self.claim.job_id, error)
            return
        finally:
            close_old_connections()
        self._pending.clear()


class _Lines:
    """Splits a stream into lines and drops those that are longer than an event can be."""

    def __init__(self) -> None:
        self._rest = b""
        self._dropping = False

    def feed(self, block: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + block).split(b"\n")
        if whole and self._dropping:
            whole = whole[1:]
            self._dropping = False
        if len(self._rest) > report.MAX_LINE_BYTES:
            self._rest = b""
            self._dropping = True
        return [line for line in whole if 0 < len(line) <= report.MAX_LINE_BYTES]


def _insist(do: Callable[[], _Result]) -> _Result:
    """Write to the database, waiting for it while it restarts."""
    until = time.monotonic() + _DATABASE_PATIENCE_SECONDS
    wait = 0.1
    while True:
        try:
            return do()
        except (InterfaceError, OperationalError):
            if time.monotonic() + wait > until:
                raise
            logger.warning("The database does not answer; trying again")
        finally:
            close_old_connections()
        threading.Event().wait(wait)
        wait = min(wait * 2, 5.0)
