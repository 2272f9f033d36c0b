"""The files of served versions on this machine: laid out for a process, exported once, kept.

serving/models/{number}/version/   what a model's process reads, for as long as it is served
serving/exports/{digest}.onnx      what torch models were exported to; a restart finds it again
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
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import Unavailable
from registry.routes import Deployed, ServedFile
from registry.storage import Storage
from workers import sandbox
from workers.folder import place
from workers.words import clean_text

EXPORT_SECONDS = 900.0
# Counted up when exports come out otherwise than before: old ones are then made anew.
_EXPORTER = "1"
_MAX_EXPORTS = 64
# Beside the exports: the version has been tried, and has none.
_NO_GRAPH = ".torch"
# How long a start took, once there was a graph.
_SECONDS = ".seconds"
_GRAPH_SECONDS, _EXPORT_TAKES = 3.0, 60.0
_LOCK = "lock"
_REPORT_BYTES = 64 * 1024
_COMMAND = (sys.executable, "-m", "workers.serving.prepare")

logger = logging.getLogger(__name__)


class Laid(NamedTuple):
    """Where a version lies: the folder of its process, its files, and the graph to run."""

    folder: Path
    model: Path
    # None: no graph is to be had of it, so torch runs it.
    onnx: Path | None


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
            return Laid(folder, model, self._find_graph(deployed, folder, model))
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
        """Say whether the version can be loaded without an export."""
        return (
            deployed.options.runtime == "torch"
            or _graph_in(deployed.files) is not None
            or self._export_of(deployed).exists()
            or self._export_of(deployed).with_suffix(_NO_GRAPH).exists()
        )

    def expected_seconds(self, deployed: Deployed) -> float:
        """Tell how long loading the version took last, or what it may take where nobody knows."""
        try:
            kept = self._export_of(deployed).with_suffix(_SECONDS)
            return float(kept.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return _GRAPH_SECONDS if self.has_graph(deployed) else _EXPORT_TAKES

    def record_seconds(self, deployed: Deployed, seconds: float) -> None:
        kept = self._export_of(deployed).with_suffix(_SECONDS)
        kept.write_text(f"{seconds:.2f}", encoding="ascii")

    def _find_graph(self, deployed: Deployed, folder: Path, model: Path) -> Path | None:
        if deployed.options.runtime == "torch":
            return None
        named = _graph_in(deployed.files)
        if named is not None:
            return model / named
        kept = self._export_of(deployed)
        with self._exporting:
            given_up = kept.with_suffix(_NO_GRAPH).exists()
            if given_up or not (kept.exists() or self._export(folder, kept)):
                if deployed.options.runtime == "onnxruntime":
                    raise Unavailable(
                        "This version cannot be exported to ONNX; choose the runtime auto.",
                        code="export_failed",
                    )
                return None
        graph = folder / "model.onnx"
        shutil.copyfile(kept, graph)
        graph.chmod(0o444)
        return graph

    def _export(self, folder: Path, kept: Path) -> bool:
        """Have the version exported in a process of its own; give whether there is a graph now."""
        if self._stopping:
            raise Unavailable("The server is stopping; try again.", code="stopping")
        own = folder / "out"
        own.mkdir(mode=0o700)
        sandbox.hand_over(folder, [own])
        process = sandbox.start(
            (*_COMMAND, "version", "out"),
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
        made = own / "model.onnx"
        if report.get("onnx") is True and made.is_file() and not made.is_symlink():
            partial = kept.with_suffix(f".{self._models.name}")
            shutil.copyfile(made, partial, follow_symlinks=False)
            partial.replace(kept)
            self._prune_exports()
        else:
            reason = clean_text(report.get("reason") or errors.decode(errors="replace")[-300:])
            kept.with_suffix(_NO_GRAPH).touch()
            logger.warning("A version is run by torch, as it has no ONNX export: %s", reason)
        shutil.rmtree(own)
        return kept.exists()

    def _export_of(self, deployed: Deployed) -> Path:
        listed = "".join(f"{file.sha256} {file.path}\n" for file in deployed.files)
        digest = hashlib.sha256(f"{_EXPORTER}\n{listed}".encode()).hexdigest()
        return self._exports / f"{digest}.onnx"

    def _prune_exports(self) -> None:
        found = sorted(self._exports.glob("*.onnx"), key=lambda file: file.stat().st_mtime)
        for old in found[:-_MAX_EXPORTS]:
            old.unlink(missing_ok=True)


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
