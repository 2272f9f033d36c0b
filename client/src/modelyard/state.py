"""Small files that remember what was done: written whole or not at all, and read as untrusted."""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelyard.errors import Busy

_MAX_BYTES = 64 << 20


def config_folder() -> Path:
    return _user_folder("XDG_CONFIG_HOME", "APPDATA", ".config")


def cache_folder() -> Path:
    return _user_folder("XDG_CACHE_HOME", "LOCALAPPDATA", ".cache")


def state_folder() -> Path:
    return _user_folder("XDG_STATE_HOME", "LOCALAPPDATA", ".local/state")


def _user_folder(variable: str, on_windows: str, below_home: str) -> Path:
    chosen = os.environ.get(on_windows if sys.platform == "win32" else variable, "")
    folder = Path(chosen) if Path(chosen).is_absolute() else Path.home() / below_home
    return folder / "modelyard"


def name_of(*parts: str) -> str:
    """Name a file after what it is about, however long or strange that is."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def read_json(path: Path) -> dict[str, Any]:
    """Read an object; a file that is missing, torn or of another kind is an empty one."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        loaded = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def write_json(path: Path, content: Any, *, private: bool = True) -> None:
    """Write `content` beside `path` and move it there, so that no reader finds half of it."""
    path.parent.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
    # mkstemp makes files that only their owner can read.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


@contextlib.contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock of `path`; the system lets go of it when the process dies.

    Raises:
        Busy: another process holds it.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if not _lock(file.fileno()):
            raise Busy(f"Another process is {doing}; wait for it to end, or stop it.")
        yield


def _lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 - only there

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415 - only there

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
