"""Pulls a version: parallel files and ranges, verified before they take their names."""

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx

from modelyard.answers import Derivative, File, Version
from modelyard.errors import BadAnswer, BadFolder, Interrupted, Refused, Unreachable, UnsafeFiles
from modelyard.folder import Digests, digest_of, free_bytes, matches
from modelyard.names import PRIVATE_FOLDER, Reference, check_paths
from modelyard.progress import Progress
from modelyard.state import locked, read_json, write_json
from modelyard.transport import Patience, is_passing
from modelyard.work import run_all

if TYPE_CHECKING:
    from modelyard.client import Client, Kind

# A file is fetched in ranges of this size, several at once.
RANGE = 32 << 20
# How much a process that is killed may have to fetch again.
_SAVE_BYTES = 4 << 20
_SAVE_SECONDS = 0.5
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_ROOM_TO_LEAVE = 16 << 20


@dataclass(frozen=True)
class Pulled:
    """What a pull did: the version, where it lies, and how much had to be fetched for it.

    `converted` maps each file that came in place of one that can execute code to that one's path.
    """

    version: Version
    folder: Path
    files: list[str]
    converted: dict[str, str]
    left_out: list[str]
    bytes_total: int
    bytes_received: int


class Part:
    """The bytes of one file while they arrive, with a note beside them of which are there.

    The note never says more than the file holds: it is written after the bytes.
    """

    def __init__(self, folder: Path, sha256: str, size_bytes: int) -> None:
        self.sha256 = sha256
        self.size_bytes = size_bytes
        self.path = folder / f"{sha256}.part"
        self._note = folder / f"{sha256}.json"
        self._lock = threading.Lock()
        self._saved_at, self._unsaved = 0.0, 0
        self.done = self._recall() or [0] * -(-size_bytes // RANGE)

    @property
    def bytes_done(self) -> int:
        return sum(self.done)

    @property
    def is_whole(self) -> bool:
        return self.bytes_done == self.size_bytes

    def length(self, number: int) -> int:
        return min(RANGE, self.size_bytes - number * RANGE)

    def _recall(self) -> list[int] | None:
        """Read the note of an earlier run, if it fits the file."""
        note = read_json(self._note)
        done = note.get("done")
        try:
            fits = self.path.stat().st_size == self.size_bytes and not self.path.is_symlink()
        except OSError:
            return None
        known = (note.get("size"), note.get("range")) == (self.size_bytes, RANGE)
        if not fits or not known or not isinstance(done, list):
            return None
        if len(done) != -(-self.size_bytes // RANGE):
            return None
        for number, count in enumerate(done):
            if type(count) is not int or not 0 <= count <= self.length(number):
                return None
        return done

    def prepare(self) -> None:
        """Make the file in its full length, if it is not there from an earlier run."""
        if self._recall() is None:
            self.discard()
            with self.path.open("xb") as file:
                file.truncate(self.size_bytes)

    def advance(self, number: int, count: int) -> None:
        with self._lock:
            self.done[number] += count
            self._unsaved += count
            if self._unsaved > _SAVE_BYTES or time.monotonic() - self._saved_at > _SAVE_SECONDS:
                self._save()

    def save(self) -> None:
        with self._lock:
            self._save()

    def _save(self) -> None:
        self._saved_at, self._unsaved = time.monotonic(), 0
        write_json(
            self._note,
            {"size": self.size_bytes, "range": RANGE, "done": self.done},
        )

    def discard(self) -> None:
        with self._lock:
            self.path.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)

    def reset(self) -> None:
        self.discard()
        self.done = [0] * len(self.done)
        self.prepare()

    def become(self, target: Path) -> None:
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


@dataclass
class Wanted:
    """Bytes to fetch: once, however many files of the version have them."""

    sha256: str
    size_bytes: int
    paths: list[str] = field(default_factory=list)


class Pull:
    """One version on its way into a folder; may die at any moment and be run again."""

    def __init__(  # noqa: PLR0913 - a pull is this wide
        self,
        client: "Client",
        reference: Reference,
        folder: Path,
        *,
        kind: "Kind",
        include: list[str],
        exclude: list[str],
        allow_unsafe: bool,
        workers: int,
        progress: Progress,
    ) -> None:
        self.client = client
        self.reference = reference
        self.folder = folder
        self.kind = kind
        self.include = include
        self.exclude = exclude
        self.allow_unsafe = allow_unsafe
        self.workers = workers
        self.progress = progress
        self.stop = threading.Event()
        self.converted: dict[str, str] = {}
        self._received = 0
        self._lock = threading.Lock()

    def run(self) -> Pulled:
        """Pull.

        Raises:
            ModelyardError: it cannot be done, or not now; what was done is kept.

        """
        version = self.client.version(str(self.reference), kind=self.kind)
        self.client = self.client.more_patient(self.stop)
        self._say_state(version)
        # The list of files says of each what the server found in it.
        name = f"{self.reference.repository}@{version['number']}"
        files, left_out = self._choose(name, list(self.client.files(name, kind=self.kind)))
        self._make_folder()
        private = self.folder / PRIVATE_FOLDER
        self._make_private(private)
        with locked(private / "lock", f"pulling into {self.folder}"):
            self._fetch_all(version, files, private)
        self._tidy(private)
        return Pulled(
            version,
            self.folder,
            [file["path"] for file in files],
            self.converted,
            left_out,
            sum(file["size_bytes"] for file in files),
            self._received,
        )

    # --- What to fetch --------------------------------------------------------------------------

    def _say_state(self, version: Version) -> None:
        name = f"{version['namespace']}/{version['name']}@{version['number']}"
        reason = f": {version['state_reason']}" if version["state_reason"] else "."
        if version["state"] in {"deprecated", "archived"}:
            self.progress.note(f"{name} is {version['state']}{reason}")
        elif version["state"] == "quarantined" and not self.allow_unsafe:
            raise UnsafeFiles(
                f"{name} is quarantined{reason} To take it nevertheless, and never load it with "
                "a library that runs it, use --allow-unsafe."
            )
        elif version["state"] in {"pending", "failed"}:
            raise BadFolder(f"{name} is {version['state']}{reason} It has nothing to pull yet.")

    def _choose(self, name: str, files: list[File]) -> tuple[list[File], list[str]]:
        """Choose the files; of one that can execute code, what the server made safe of it."""
        check_paths(file["path"] for file in files)
        matching = [file for file in files if self._fits(file["path"])]
        unsafe = [] if self.allow_unsafe else list(filter(_is_quarantined, matching))
        chosen = [file for file in matching if file not in unsafe]
        left_out = self._replace(name, files, unsafe, chosen)
        for file in chosen:
            if not _DIGEST.fullmatch(file["sha256"]) or file["size_bytes"] < 0:
                raise BadAnswer(f"The server gives {file['path']} no digest or no size.")
        if left_out and not chosen:
            raise UnsafeFiles("Every file chosen can execute code; --allow-unsafe takes them.")
        if not chosen:
            raise BadFolder("No file of this version fits what was chosen; see --include.")
        return chosen, left_out

    def _fits(self, path: str) -> bool:
        wanted = not self.include or matches(path, self.include)
        return wanted and not matches(path, self.exclude)

    def _converted(self, name: str) -> list[Derivative]:
        try:
            return self.client.derivatives(name, kind=self.kind)
        except Refused as refusal:
            if refusal.status != 404:
                raise
            return []  # an older server converts nothing

    def _replace(
        self, name: str, files: list[File], unsafe: list[File], chosen: list[File]
    ) -> list[str]:
        """Add to `chosen` what was converted; give the paths of which nothing was."""
        made = self._converted(name) if unsafe else []
        # What the version has under such a name itself stays what it is.
        taken = {file["path"] for file in files}
        made = [one for one in made if one["path"] not in taken]
        check_paths([*taken, *(one["path"] for one in made)])
        left_out = []
        for path in (file["path"] for file in unsafe):
            safe = [one for one in made if one["source_path"] == path]
            for one in safe:
                self.converted[one["path"]] = path
                self.progress.note(f"{one['path']} comes in place of {path}, converted from it.")
                chosen.append(
                    File(path=one["path"], size_bytes=one["size_bytes"], sha256=one["sha256"])
                )
            if not safe:
                left_out.append(path)
                self.progress.note(
                    f"{path} is left out: it can execute code when it is loaded "
                    "(--allow-unsafe takes it too)."
                )
        return left_out

    # --- Where it goes --------------------------------------------------------------------------

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadFolder(f"{self.folder} cannot be made: {error.strerror}.") from None
        self._root = self.folder.resolve()

    def _make_private(self, private: Path) -> None:
        if private.is_symlink():
            raise BadFolder(f"{private} is a link; remove it.")
        private.mkdir(mode=0o700, exist_ok=True)

    def target(self, path: str) -> Path:
        """Give the place of a file; its folders are made, and none may lead out by a link."""
        place = self._root
        *folders, name = path.split("/")
        for folder in folders:
            place /= folder
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise BadFolder(f"{place} stands where a folder of the version belongs; move it.")
            place.mkdir(exist_ok=True)
        target = place / name
        if target.is_dir() and not target.is_symlink():
            raise BadFolder(f"{target} is a folder where a file of the version belongs; move it.")
        return target

    def _tidy(self, private: Path) -> None:
        """Remove what only an unfinished pull needs."""
        for left in private.glob("*"):
            left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            private.rmdir()

    # --- Fetching -------------------------------------------------------------------------------

    def _fetch_all(self, version: Version, files: list[File], private: Path) -> None:
        total = sum(file["size_bytes"] for file in files)
        self.progress.begin("pull", len(files), total)
        digests = Digests(self.folder, self.stop)
        try:
            missing = self._find_missing(files, digests)
            parts = [
                (wanted, Part(private, wanted.sha256, wanted.size_bytes)) for wanted in missing
            ]
            self._check_room(parts)
            tasks = list(self._tasks(version, parts, digests))
            try:
                run_all(tasks, self.workers, self.stop)
            finally:
                for _, part in parts:
                    if part.path.exists():
                        part.save()
        finally:
            digests.save()

    def _find_missing(self, files: list[File], digests: Digests) -> list[Wanted]:
        """Leave alone what is right already; group the rest by its bytes."""
        right: set[str] = set()
        tasks = [partial(self._compare, file, digests, right) for file in files]
        run_all(tasks, self.workers, self.stop)
        missing: dict[str, Wanted] = {}
        for file in files:
            if file["path"] in right:
                self.progress.start_file(file["path"], file["size_bytes"])
                self.progress.reuse(file["path"], file["size_bytes"])
                self.progress.end_file(file["path"])
                continue
            known = missing.setdefault(file["sha256"], Wanted(file["sha256"], file["size_bytes"]))
            if known.size_bytes != file["size_bytes"]:
                raise BadAnswer("The server gives the same bytes two lengths.")
            known.paths.append(file["path"])
        return sorted(missing.values(), key=lambda wanted: -wanted.size_bytes)

    def _compare(self, file: File, digests: Digests, right: set[str]) -> None:
        target = self.target(file["path"])
        if target.is_symlink() or not target.is_file():
            return
        if target.stat().st_size == file["size_bytes"] and (
            digests.of(file["path"], target) == file["sha256"]
        ):
            right.add(file["path"])

    def _check_room(self, parts: list[tuple[Wanted, Part]]) -> None:
        needed = sum(
            wanted.size_bytes * len(wanted.paths) - part.bytes_done for wanted, part in parts
        )
        free = free_bytes(self.folder)
        if parts and needed + _ROOM_TO_LEAVE > free:
            raise BadFolder(
                f"{self.folder} has room for {free} more bytes, and {needed} are to come; make "
                "room, or pull to another place with --to."
            )

    def _tasks(
        self, version: Version, parts: list[tuple[Wanted, Part]], digests: Digests
    ) -> Iterator[Any]:
        for wanted, part in parts:
            fetch = Fetch(self, version, wanted, part, digests)
            open_ranges = [
                number for number, done in enumerate(part.done) if done < part.length(number)
            ]
            fetch.open_ranges = len(open_ranges)
            if not open_ranges:
                yield fetch.finish
            for number in open_ranges:
                yield partial(fetch.fetch_range, number)

    def count(self, path: str, count: int) -> None:
        with self._lock:
            self._received += max(0, count)
        self.progress.advance(path, count)


class Fetch:
    """The bytes of one digest on their way to the files that have them."""

    def __init__(
        self, pull: Pull, version: Version, wanted: Wanted, part: Part, digests: Digests
    ) -> None:
        self.pull = pull
        self.wanted = wanted
        self.part = part
        self.digests = digests
        self.open_ranges = 0
        self._lock = threading.Lock()
        self._begun = False
        self._again = False
        name = f"{version['namespace']}/{version['name']}"
        place = "derivatives" if wanted.paths[0] in pull.converted else "files"
        home = f"/{pull.kind}s/{name}/versions/{version['number']}/{place}"
        self.address = pull.client.transport.address(f"{home}/{quote(wanted.paths[0])}")

    @property
    def path(self) -> str:
        return self.wanted.paths[0]

    def fetch_range(self, number: int) -> None:
        """Fetch what is missing of one range; whoever fetched the last one finishes the file."""
        self._begin()
        patience = Patience(self.pull.client.transfer_patience, self.pull.stop)
        while (done := self.part.done[number]) < self.part.length(number):
            try:
                self._receive(number, number * RANGE + done, patience)
            except (Refused, Unreachable) as problem:
                if not is_passing(problem):
                    raise
                patience.wait(problem)
        with self._lock:
            self.open_ranges -= 1
            is_last = self.open_ranges == 0
        if is_last:
            self.finish()

    def _begin(self) -> None:
        with self._lock:
            if self._begun:
                return
            self._begun = True
            self.part.prepare()
        self.pull.progress.start_file(self.path, self.wanted.size_bytes)
        self.pull.progress.reuse(self.path, self.part.bytes_done)

    def _receive(self, number: int, start: int, patience: Patience) -> None:
        end = number * RANGE + self.part.length(number)
        headers = {
            "Range": f"bytes={start}-{end - 1}",
            "If-Range": f'"{self.wanted.sha256}"',
            "Accept-Encoding": "identity",
        }
        with self.pull.client.transport.open(
            "GET", self.address, headers=headers, elsewhere=True
        ) as answer:
            self._check(answer, start, end)
            with self.part.path.open("r+b", buffering=0) as file:
                file.seek(start)
                left = end - start
                for chunk in answer.iter_raw():
                    if self.pull.stop.is_set():
                        raise Interrupted("Stopped.")
                    if len(chunk) > left:
                        raise BadAnswer(f"The server sent more of {self.path} than was asked for.")
                    file.write(chunk)
                    left -= len(chunk)
                    self.part.advance(number, len(chunk))
                    self.pull.count(self.path, len(chunk))
                    patience.renew()
        if left:
            raise Unreachable(f"The server broke {self.path} off; run the same again.")

    def _check(self, answer: httpx.Response, start: int, end: int) -> None:
        size = self.wanted.size_bytes
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise BadAnswer(f"The server sent {self.path} in another coding than it has.")
        if answer.status_code == 200 and (start, end) == (0, size):
            return
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        given = tuple(map(int, match.groups())) if match else None
        if answer.status_code != 206 or given != (start, end - 1, size):
            raise BadAnswer(
                f"The server answered with other bytes of {self.path} than were asked for."
            )

    def finish(self) -> None:
        """Verify the bytes, and only then give them their names."""
        self._begin()
        if digest_of(self.part.path, self.pull.stop) != self.wanted.sha256:
            self._begin_again()
            return
        first, *others = self.wanted.paths
        target = self.pull.target(first)
        self.part.become(target)
        self.digests.learn(first, target, self.wanted.sha256)
        self.pull.progress.end_file(first)
        for path in others:
            self._copy(target, path)

    def _begin_again(self) -> None:
        """Fetch the file once more from its beginning: an earlier run may have left it damaged."""
        if self._again or not self.part.done:
            self.part.discard()
            raise BadAnswer(
                f"The bytes of {self.path} have another digest than the version says, twice. "
                "Either something between here and the server changes them, or its disk does."
            )
        self._again = True
        self.pull.progress.advance(self.path, -self.wanted.size_bytes)
        self.part.reset()
        self.open_ranges = len(self.part.done)
        for number in range(len(self.part.done)):
            self.fetch_range(number)

    def _copy(self, source: Path, path: str) -> None:
        self.pull.progress.start_file(path, self.wanted.size_bytes)
        target = self.pull.target(path)
        shutil.copyfile(source, self.part.path)
        self.part.become(target)
        self.digests.learn(path, target, self.wanted.sha256)
        self.pull.progress.reuse(path, self.wanted.size_bytes)
        self.pull.progress.end_file(path)


def _is_quarantined(file: Any) -> bool:
    """Say whether the server found that a file can execute code; older servers say nothing."""
    return bool(file.get("verdict") == "quarantined")
