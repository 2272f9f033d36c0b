"""A folder of this machine: which of its files belong to a version, and their digests."""

import contextlib
import fnmatch
import hashlib
import shutil
import stat
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import BadFolder, Interrupted
from modelyard.names import PRIVATE_FOLDER, check_paths
from modelyard.state import cache_folder, name_of, read_json, write_json

BLOCK = 1 << 20
# Never part of a model: the traces of tools, and folders that are somebody's cache.
SKIPPED = (
    ".git",
    ".hg",
    ".svn",
    ".cache",
    ".DS_Store",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".venv",
    "Thumbs.db",
    "__pycache__",
    "desktop.ini",
    PRIVATE_FOLDER,
)
# A file that changed so shortly before it was hashed may change again unseen: its clock is coarse.
_SETTLED_SECONDS = 2.0
_SAVE_SECONDS = 2.0


@dataclass(frozen=True)
class LocalFile:
    """A file to push: its path in the version, where it lies, and what it was when found."""

    path: str
    source: Path
    size_bytes: int
    modified_ns: int
    inode: int


def find_files(folder: Path, exclude: Sequence[str] = ()) -> list[LocalFile]:
    """List the files below a folder, by path.

    Raises:
        BadFolder: it is no folder, or something in it leads out of it or is no file.
        BadName: a file has a name that cannot be laid out everywhere.

    """
    if not folder.is_dir():
        raise BadFolder(f"{folder} is no folder.")
    root = folder.resolve()
    files = []
    for source in _walk(root, root, ()):
        path = unicodedata.normalize("NFC", source.relative_to(root).as_posix())
        if matches(path, exclude):
            continue
        files.append(_look_at(source, path))
    check_paths(file.path for file in files)
    return sorted(files, key=lambda file: file.path)


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Say whether a path, or a folder above it, or its bare name fits one of the patterns."""
    parts = path.split("/")
    folders = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return any(
        fnmatch.fnmatchcase(candidate, pattern.rstrip("/"))
        for pattern in patterns
        for candidate in (*folders, parts[-1])
    )


def _walk(folder: Path, root: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise BadFolder(f"{folder} cannot be read: {error.strerror}.") from None
    for entry in entries:
        if entry.name in SKIPPED:
            continue
        real = _resolve(entry, root) if entry.is_symlink() else entry
        if not real.is_dir():
            yield entry
        elif real in above or real == folder:
            raise BadFolder(f"{entry} is a link to a folder above it; leave it out with --exclude.")
        else:
            yield from _walk(entry, root, (*above, folder.resolve()))


def _resolve(link: Path, root: Path) -> Path:
    """Follow a link that stays in the folder."""
    try:
        real = link.resolve(strict=True)
    except (OSError, RuntimeError):
        raise BadFolder(f"{link} is a link that leads nowhere; remove it.") from None
    if not real.is_relative_to(root):
        raise BadFolder(
            f"{link} is a link that leads out of the folder; push a copy without links "
            "(cp -rL makes one), or leave it out with --exclude."
        )
    return real


def _look_at(source: Path, path: str) -> LocalFile:
    try:
        found = source.stat()
    except OSError as error:
        raise BadFolder(f"{source} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise BadFolder(f"{source} is no file; leave it out with --exclude.")
    return LocalFile(path, source, found.st_size, found.st_mtime_ns, found.st_ino)


def digest_of(
    source: Path, stop: threading.Event, on_bytes: Callable[[int], None] = lambda _: None
) -> str:
    """Compute the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            if stop.is_set():
                raise Interrupted("Stopped.")
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


class Digests:
    """The digests of a folder's files, remembered for as long as the files stay as they are."""

    def __init__(self, folder: Path, stop: threading.Event) -> None:
        self._path = cache_folder() / "digests" / f"{name_of(str(folder.resolve()))}.json"
        self._stop = stop
        self._lock = threading.Lock()
        self._saved_at = time.monotonic()
        self._known = {
            path: entry
            for path, entry in read_json(self._path).items()
            if isinstance(entry, list) and len(entry) == 4
        }

    def of(self, path: str, source: Path) -> str:
        """Give a file's digest, reading it only when it changed since the last time."""
        found = source.stat()
        facts = [found.st_size, found.st_mtime_ns, found.st_ino]
        known = self._known.get(path, [])
        if known[:3] == facts and _is_digest(known[3]):
            return str(known[3])
        began = time.time()
        digest = digest_of(source, self._stop)
        if began - found.st_mtime_ns / 1e9 > _SETTLED_SECONDS:
            with self._lock:
                self._known[path] = [*facts, digest]
                due = time.monotonic() - self._saved_at > _SAVE_SECONDS
            if due:
                self.save()
        return digest

    def learn(self, path: str, source: Path, digest: str) -> None:
        """Remember a digest that was verified on the way here."""
        found = source.stat()
        with self._lock:
            self._known[path] = [found.st_size, found.st_mtime_ns, found.st_ino, digest]

    def save(self) -> None:
        """Write the memory down; it only saves time, so a full disk is no reason to fail."""
        with self._lock, contextlib.suppress(OSError):
            self._saved_at = time.monotonic()
            write_json(self._path, self._known)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def free_bytes(folder: Path) -> int:
    """Say how much room there is where a folder is or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
