"""The thread of a worker that has files which can run code looked into and converted.

A message only wakes it; it looks into the table now and then anyway. Where this machine cannot
contain such files, it refuses them and never opens one.
"""

import errno
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections

from registry.errors import (
    SILENCE,
    Invalid,
    RegistryError,
    Saying,
    StorageFull,
    Text,
    TooLarge,
    Unavailable,
)
from registry.formats import inspect
from registry.models import Screening, Version
from registry.services import screening
from registry.services.blobs import RUNNABLE, inspect_blob, record_blob, record_findings
from registry.services.screening import Conversion, Held
from registry.storage import default_storage
from workers import report, sandbox
from workers.inspector import Findings, Inspector

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_AFTER_FAILURE_SECONDS = 10.0
# Longer than a version with very many files may take.
_KEEP_SECONDS = 24 * 3600
# What the files of a version may take together, and each of them: some time, and as much more as
# so many bytes take on a slow disk. Bytes are what a namespace has a quota of; files are not.
_VERSION_SECONDS = 300
_FILE_SECONDS = 60
_BYTES_A_SECOND = 10 << 20
# How many namespaces are remembered to have had their turn.
_REMEMBERED = 200
# What a full disk or a busy machine says; no file is to blame for it.
_PASSING = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
)


# The format of an exported program, and what the inspector is asked to make of one besides ONNX.
PROGRAMS = "pt2"
PROGRAM = "program"
_NO_TIME = Text("The files before it took all the time that the sandbox has for one version.")


class _NotConverted(Exception):  # noqa: N818 - an answer, not an error
    """Nothing that may run came of a file."""

    def __init__(self, why: Saying) -> None:
        super().__init__(why.detail)
        self.why = why


class Screener:
    """Works through the versions that wait, one after the other, each namespace in its turn."""

    def __init__(self) -> None:
        # By when they had their turn, the latest last.
        self._served: dict[int, None] = {}
        self.stopping = threading.Event()
        self._call = threading.Event()
        self._inspector = Inspector()
        self._thread = threading.Thread(target=self._run, name="screener", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._call.set()

    def stop(self) -> None:
        self.stopping.set()
        self._call.set()
        self._inspector.interrupt()

    def join(self, timeout_seconds: float) -> None:
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        level = sandbox.probe()
        if not level.is_enough:
            logger.error("Files that can run code are refused here: it lacks %s", level.lacks)
        while not self.stopping.is_set():
            self._call.clear()
            pause = _LOOK_SECONDS
            try:
                while not self.stopping.is_set() and self.run_one(level):
                    close_old_connections()
            except DatabaseError as error:
                logger.warning("The database does not answer: %s", error)
            except (Unavailable, StorageFull) as error:
                logger.warning("The storage does not work: %s", error)
                pause = _AFTER_FAILURE_SECONDS
            except Exception:
                logger.exception("A version could not be looked into; it is tried again")
                pause = _AFTER_FAILURE_SECONDS
            finally:
                close_old_connections()
            self._call.wait(pause)
        self._inspector.stop()

    def run_one(self, level: sandbox.Level) -> bool:
        """Look into the next version; give whether there was one."""
        if not level.is_enough:
            return screening.refuse_screenings(level.lacks) > 0
        row = screening.claim_screening(served=list(self._served))
        if row is None:
            return False
        self._remember(row.version.repository.namespace_id)
        if row.attempts_count > screening.MAX_ATTEMPTS:
            why = Text("Each of {count} attempts broke off.", count=screening.MAX_ATTEMPTS)
            screening.finish_screening(row, [], {"": Saying.of(why)})
            return True
        try:
            version = screen(row, self._inspector)
        except Exception as error:
            stopped = self.stopping.is_set()
            # Where the database is what failed, its lease runs out.
            with suppress(DatabaseError):
                screening.release_screening(
                    row, counted=not stopped and not _is_passing(error), rest=not stopped
                )
            if stopped and isinstance(error, OSError):
                return False
            raise
        logger.info("%s was looked into and is %s", version.ref, version.state)
        return True

    def _remember(self, namespace: int) -> None:
        self._served.pop(namespace, None)
        self._served[namespace] = None
        if len(self._served) > _REMEMBERED:
            del self._served[next(iter(self._served))]


def _is_passing(error: Exception) -> bool:
    """Tell what fails whichever file it is from what a file may have done."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return isinstance(error, (Unavailable, StorageFull, DatabaseError))


def screen(row: Screening, inspector: Inspector) -> Version:
    """Look into every file that can run code, and convert those that can be."""
    held = screening.find_held(row)
    wanted = [file for file in held if file.convertible]
    taken = frozenset(row.version.revision.artifacts.values_list("path", flat=True))
    conversions: list[Conversion] = []
    reasons: dict[str, Saying] = {}
    until = time.monotonic() + _seconds_for(held, _VERSION_SECONDS)
    with _workshop() as folder:
        for file in held:
            seconds = min(_seconds_for([file], _FILE_SECONDS), until - time.monotonic())
            if seconds <= 0:
                reasons[file.path] = Saying.of(_NO_TIME)
                continue
            screening.renew_screening(row)
            source, target = folder / "source", folder / "target"
            default_storage().materialise(file.blob.sha256, source)
            if not file.convertible:
                _keep(file, inspector.look(source, kind=file.format, seconds=seconds))
                continue
            hints = {"signature": row.version.signature}
            said = inspector.convert(source, target, kind=file.format, hints=hints, seconds=seconds)
            path = screening.name_conversion(
                file.path,
                said.format,
                alone=len(wanted) == 1,
                taken=taken | {made.path for made in conversions},
            )
            try:
                conversions.append(_accept(file, said, target, path))
                notes = []
                if file.format == PROGRAMS:
                    left = until - time.monotonic()
                    notes = list(_have_described(file, inspector, folder, left, conversions, taken))
                _keep(file, replace(said, notes=[*said.notes, *notes]))
            except _NotConverted as refusal:
                reasons[file.path] = refusal.why
                _keep(file, said, refusal.why)
            except (Invalid, TooLarge) as refusal:
                reasons[file.path] = Saying.of(refusal)
                _keep(file, said, reasons[file.path])
    return screening.finish_screening(row, conversions, reasons)


def _have_described(
    file: Held,
    inspector: Inspector,
    folder: Path,
    seconds: float,
    conversions: list[Conversion],
    taken: frozenset[str],
) -> Iterator[Saying]:
    """Have an exported program written as what a job can train, too; say why where that fails.

    The version runs without it: nothing that goes wrong here takes the ONNX file away.
    """
    path = screening.name_program(file.path)
    if path in taken | {made.path for made in conversions}:
        yield Saying.of(_not_trained(Text("{path} is there already.", path=path)))
        return
    target = folder / "described"
    said = inspector.convert(
        folder / "source", target, kind=PROGRAM, hints={}, seconds=max(1.0, seconds)
    )
    try:
        conversions.append(_accept(file, said, target, path))
    except _NotConverted as refusal:
        yield Saying.of(_not_trained(refusal.why.text))
    except (Invalid, TooLarge) as refusal:
        yield Saying.of(_not_trained(refusal))


def _not_trained(why: str | Text | RegistryError) -> Text:
    return Text("Jobs can run it, but not train or prune it: {reason}", reason=why)


def _seconds_for(files: Sequence[Held], least: int) -> float:
    """Give how long files may take; the same bytes under many names count once."""
    sizes = {file.blob.pk: file.blob.size_bytes for file in files}
    return least + sum(sizes.values()) / _BYTES_A_SECOND


def _keep(file: Held, said: Findings, reason: Saying = SILENCE) -> None:
    findings = list(said.notes)
    if reason.detail:
        findings.append(Saying.of(Text("Not converted: {reason}", reason=reason.text)))
    record_findings(file.blob, format_name=file.format, imports=said.imports, findings=findings)


def _accept(file: Held, said: Findings, target: Path, path: str) -> Conversion:
    """Let a converted file in as any upload: by its bytes, through the readers of headers.

    Raises:
        _NotConverted: there is none, or it is not what it was said to be.
        Invalid: it is malformed.

    """
    if said.format not in RUNNABLE:
        raise _NotConverted(
            said.reason if said.reason.detail else Saying.of(Text("It holds nothing."))
        )
    _check_made(target, path, said.format)
    blob = record_blob(default_storage().put(report.blocks_of(target)))
    inspection = inspect_blob(path, blob)
    return Conversion(
        source_path=file.path,
        path=path,
        blob=blob,
        inspection=inspection,
        toolchain=said.toolchain,
    )


def _check_made(target: Path, path: str, format_name: str) -> None:
    """Read what came out where it lies: nothing is stored that is not what it was said to be."""
    with target.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        facts = inspect(path, size, lambda start, end: os.pread(file.fileno(), end - start, start))
    if facts.format != format_name or facts.executable:
        what = Text("What came out of it is a {format} file.", format=facts.format)
        raise _NotConverted(Saying.of(what))


def prune_workshops() -> int:
    """Remove what workers that died have left; give how many folders that were."""
    removed = 0
    for folder in _base().glob("*"):
        with suppress(FileNotFoundError):
            if folder.stat().st_mtime < time.time() - _KEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed


def _base() -> Path:
    return Path(settings.HOME_DIR) / "screening"


@contextmanager
def _workshop() -> Iterator[Path]:
    """Make a folder for one version's files, and remove it."""
    _base().mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=_base()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
