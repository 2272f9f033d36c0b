"""The files of served versions on this machine: laid out for a process, exported once, kept.

serving/models/{number}/version/   what a model's process reads, for as long as it is served
serving/exports/{digest}.onnx      what torch models were exported to; a restart finds it again
serving/exports/{digest}.pt2       what they were compiled to for processors like this one
"""

import fcntl
import hashlib
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from registry.errors import Unavailable
from registry.routes import Deployed, ServedFile
from registry.storage import Storage
from workers import sandbox
from workers.folder import place
from workers.ml import environment
from workers.words import clean_text

EXPORT_SECONDS = 900.0
# Counted up when exports come out otherwise than before: old ones are then made anew.
_EXPORTER = "1"
_MAX_EXPORTS = 64
# Beside the exports: the version has been tried, and has none, for this reason.
_NONE = ".torch"
# How long a start took, once there was a graph.
_SECONDS = ".seconds"
_GRAPH_SECONDS = 3.0
_LOCK = "lock"
_REPORT_BYTES = 64 * 1024
_COMMAND = (sys.executable, "-m", "workers.serving.prepare")

logger = logging.getLogger(__name__)


class Laid(NamedTuple):
    """Where a version lies: the folder of its process, its files, and what to run."""

    folder: Path
    model: Path
    # A graph, or else a package of machine code; torch runs what has neither.
    onnx: Path | None = None
    package: Path | None = None


class _Kind(NamedTuple):
    """What is made of versions: its name in the commands, and how its files end."""

    name: str
    ending: str
    takes_seconds: float


_GRAPH: Final = _Kind("onnx", ".onnx", 60.0)
_PACKAGE: Final = _Kind("aotinductor", ".pt2", 90.0)


class Shelf:
    """Lays versions out below a folder of its own."""

    def __init__(self, root: Path, storage: Storage) -> None:
        self._exports = root / "exports"
        self._storage = storage
        self._numbers = itertools.count(1)
        # An export takes all of a core for seconds, and memory: one after the other.
        self._exporting = threading.Lock()
        self._export_process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._exports.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._models, self._lock = _own_folder(root / "models")

    def lay_out(self, deployed: Deployed) -> Laid:
        """Put the version's files in place, and export what is no graph.

        It runs in a thread, and may take a minute the first time.

        Raises:
            RegistryError: the files are not to be had.

        """
        folder = self._models / str(next(self._numbers)) / "run"
        model = folder / "version"
        try:
            for file in deployed.files:
                place(self._storage, file.sha256, model / file.path)
            return self._find(deployed, Laid(folder, model))
        except BaseException:
            self.clear(folder)
            raise

    def stop(self) -> None:
        """Give up the export that is being made, and those that wait."""
        self._stopping = True
        if (process := self._export_process) is not None:
            sandbox.stop_group(process, signal.SIGKILL)

    def clear(self, folder: Path) -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)

    def has_graph(self, deployed: Deployed) -> bool:
        """Say whether ONNX Runtime runs the version for certain, as it is a graph already."""
        return _kind_of(deployed) is _GRAPH and _graph_in(deployed.files) is not None

    def _is_made(self, deployed: Deployed) -> bool:
        """Say whether the version can be loaded without anything being made of it."""
        kind = _kind_of(deployed)
        if kind is None or (kind is _GRAPH and _graph_in(deployed.files) is not None):
            return True
        kept = self._kept(deployed, kind)
        return kept.exists() or kept.with_suffix(_NONE).exists()

    def expected_seconds(self, deployed: Deployed) -> float:
        """Tell how long loading the version took last, or what it may take where nobody knows."""
        try:
            return float(self._seconds_of(deployed).read_text(encoding="ascii"))
        except (OSError, ValueError):
            kind = _kind_of(deployed)
            makes = kind is not None and not self._is_made(deployed)
            return kind.takes_seconds if kind is not None and makes else _GRAPH_SECONDS

    def record_seconds(self, deployed: Deployed, seconds: float) -> None:
        self._seconds_of(deployed).write_text(f"{seconds:.2f}", encoding="ascii")

    def _seconds_of(self, deployed: Deployed) -> Path:
        return self._kept(deployed, _kind_of(deployed) or _GRAPH).with_suffix(_SECONDS)

    def _find(self, deployed: Deployed, laid: Laid) -> Laid:
        runtime = deployed.options.runtime
        if _kind_of(deployed) is _PACKAGE:
            package, why = self._make(deployed, laid.folder, _PACKAGE)
            if package is not None:
                return laid._replace(package=package)
            if runtime == "aotinductor":
                raise Unavailable(
                    "This version cannot be compiled here ({problem}); choose the runtime auto.",
                    code="export_failed",
                    problem=why,
                )
        if runtime == "torch":
            return laid
        named = _graph_in(deployed.files)
        if named is not None:
            return laid._replace(onnx=laid.model / named)
        graph, _ = self._make(deployed, laid.folder, _GRAPH)
        if graph is None and runtime == "onnxruntime":
            raise Unavailable(
                "This version cannot be exported to ONNX; choose the runtime auto.",
                code="export_failed",
            )
        return laid._replace(onnx=graph)

    def _make(self, deployed: Deployed, folder: Path, kind: _Kind) -> tuple[Path | None, str]:
        """Put what the runtime takes beside the version, or say why there is no such thing."""
        kept = self._kept(deployed, kind)
        none = kept.with_suffix(_NONE)
        with self._exporting:
            if none.exists():
                return None, none.read_text(encoding="utf-8")
            if not kept.exists() and (why := self._export(folder, kept, kind)):
                return None, why
        made = folder / f"model{kind.ending}"
        shutil.copyfile(kept, made)
        made.chmod(0o444)
        return made, ""

    def _export(self, folder: Path, kept: Path, kind: _Kind) -> str:
        """Have it made in a process of its own; give why it is not there now."""
        if self._stopping:
            raise Unavailable("The server is stopping; try again.", code="stopping")
        own = folder / "out"
        own.mkdir(mode=0o700)
        sandbox.hand_over(folder, [own])
        process = sandbox.start(
            (*_COMMAND, "version", "out", kind.name),
            folder=folder,
            writable=[own],
            environment=sandbox.clean_environment(folder, threads=1, gpu=None)
            | {"HOME": str(own), "TMPDIR": str(own)},
            limits=sandbox.Limits(cpu_seconds=int(EXPORT_SECONDS)),
        )
        self._export_process = process
        try:
            _, errors = process.communicate(timeout=EXPORT_SECONDS)
        except subprocess.TimeoutExpired:
            errors = b"it took too long"
        finally:
            sandbox.stop_group(process, signal.SIGKILL)
            process.communicate()
            self._export_process = None
        if self._stopping:
            raise Unavailable("The server is stopping; try again.", code="stopping")
        report = _read_report(own / "report.json")
        made, reason = own / f"model{kind.ending}", ""
        if report.get("made") is True and made.is_file() and not made.is_symlink():
            partial = kept.with_suffix(f".{self._models.name}")
            shutil.copyfile(made, partial, follow_symlinks=False)
            partial.replace(kept)
            self._prune_exports(kind)
        else:
            said = clean_text(report.get("reason") or errors.decode(errors="replace")[-300:])
            reason = said or "it was ended"
            if report.get("again") is not True:
                kept.with_suffix(_NONE).write_text(reason, encoding="utf-8")
            logger.warning("A version is run otherwise, as there is no %s: %s", kind.name, reason)
        shutil.rmtree(own)
        return reason

    def _kept(self, deployed: Deployed, kind: _Kind) -> Path:
        listed = "".join(f"{file.sha256} {file.path}\n" for file in deployed.files)
        made_by = _EXPORTER
        if kind is _PACKAGE:
            machine = f"{environment.cpu_name()} {environment.all_cpu_flags()}"
            made_by = f"{_EXPORTER} {kind.name} {version('torch')} {machine}"
        digest = hashlib.sha256(f"{made_by}\n{listed}".encode()).hexdigest()
        return self._exports / f"{digest}{kind.ending}"

    def _prune_exports(self, kind: _Kind) -> None:
        found = sorted(self._exports.glob(f"*{kind.ending}"), key=lambda file: file.stat().st_mtime)
        for old in found[:-_MAX_EXPORTS]:
            old.unlink(missing_ok=True)


def _kind_of(deployed: Deployed) -> _Kind | None:
    """Say what is run of the version if that can be had; None: the module itself."""
    options = deployed.options
    if options.runtime == "aotinductor" or (options.runtime == "auto" and options.is_compiled):
        return _PACKAGE
    return None if options.runtime == "torch" else _GRAPH


def _own_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder that is ours while the lock in it is; remove those that are nobody's."""
    parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    for old in parent.iterdir():
        with suppress(OSError):
            lock = os.open(old / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(lock)
    own = parent / uuid.uuid4().hex
    own.mkdir(mode=0o711)
    lock = os.open(own / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return own, lock


def _graph_in(files: Iterable[ServedFile]) -> str | None:
    """Name the ONNX file that jobs would open of these files; None where weights come first."""
    paths = {file.path for file in files}
    if paths & {"model.safetensors", "model.myz"}:
        return None
    if "model.onnx" in paths:
        return "model.onnx"
    tops = [path for path in paths if path.endswith(".onnx") and "/" not in path]
    below = [path for path in paths if path.startswith("onnx/") and path.endswith(".onnx")]
    found = tops or [path for path in below if path.count("/") == 1]
    return found[0] if len(found) == 1 else None


def _read_report(file: Path) -> dict[str, Any]:
    """Read what the process said; it may have left anything there."""
    try:
        if file.is_symlink() or file.stat().st_size > _REPORT_BYTES:
            return {}
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
