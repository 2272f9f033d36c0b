"""Pushes a folder: sends what the server lacks, and registers one version over it."""

import hashlib
import json
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from modelyard.answers import Repository, Version, read_as
from modelyard.errors import BadFolder, Denied, Interrupted, NotFound, Refused, Unreachable
from modelyard.folder import Digests, LocalFile, find_files
from modelyard.names import Reference
from modelyard.progress import Progress
from modelyard.state import locked, name_of, state_folder
from modelyard.transport import Patience
from modelyard.tus import (
    MOST_PARTS,
    PushMemory,
    Sending,
    can_join,
    changed,
    is_passing,
    join,
    metadata_of,
)
from modelyard.work import run_all

if TYPE_CHECKING:
    from modelyard.client import Client, Kind, Visibility

_WRITING_ROLES = frozenset({"contributor", "maintainer", "owner"})
_LOOK_AT_PENDING_SECONDS = 2.0
# Files from this size on are cut into parts, where there are fewer of them than workers.
SPLIT = 256 << 20


@dataclass(frozen=True)
class Pushed:
    """What a push did: the version, whether it is new, and how much had to be sent for it."""

    version: Version
    created: bool
    files: int
    bytes_total: int
    bytes_sent: int


class Push:
    """One folder on its way to become a version; may die at any moment and be run again."""

    def __init__(  # noqa: PLR0913 - a push is this wide
        self,
        client: "Client",
        folder: Path,
        reference: Reference,
        *,
        kind: "Kind",
        message: str,
        tags: dict[str, str],
        aliases: list[str],
        exclude: list[str],
        create: bool,
        visibility: "Visibility",
        workers: int,
        progress: Progress,
    ) -> None:
        self.client = client
        self.folder = folder
        self.reference = reference
        self.kind = kind
        self.message = message
        self.tags = tags
        self.aliases = [*aliases, *([reference.version] if reference.version else [])]
        self.exclude = exclude
        self.create = create
        self.visibility = visibility
        self.workers = workers
        self.progress = progress
        self.namespace = ""
        self.stop = threading.Event()
        self._sent = 0
        self._lock = threading.Lock()
        self._arrived: set[str] = set()
        self._large = 0
        self._joins: bool | None = None
        self._digests: dict[str, str] = {}

    def run(self) -> Pushed:
        """Push.

        Raises:
            ModelyardError: it cannot be done, or not now; what was done is kept.

        """
        files = find_files(self.folder, self.exclude)
        if not files:
            raise BadFolder(f"{self.folder} has no files to push.")
        about = (self.client.url, self.kind, self.reference.repository.lower())
        place = state_folder() / "push" / name_of(*about, str(self.folder.resolve()))
        with locked(place.with_suffix(".lock"), f"pushing {self.folder}"):
            return self._run(files, PushMemory(place.with_suffix(".json")))

    def _run(self, files: list[LocalFile], memory: PushMemory) -> Pushed:
        repository = self._find_repository()
        self.namespace = repository["namespace"]
        self.client = self.client.more_patient(self.stop)
        newest = self._newest_version(repository)
        before = {file["path"]: file["sha256"] for file in newest["files"]} if newest else {}
        total = sum(file.size_bytes for file in files)
        self.progress.begin("push", len(files), total)
        self._send_all(files, memory, known=set(before.values()))
        if newest is None or before != self._digests or newest["state"] == "failed":
            version, created = self._register(files, memory), True
        else:
            version, created = newest, False
            self.progress.note(f"{_ref(version)} has these very files already; no new version.")
        version = self._wait_until_inspected(version)
        memory.clear()
        version = self._name(version, created=created)
        return Pushed(version, created, len(files), total, self._sent)

    # --- Before ---------------------------------------------------------------------------------

    def _find_repository(self) -> Repository:
        name = self.reference.repository
        try:
            found = self.client.repository(name, kind=self.kind)
        except NotFound as problem:
            if not self.create:
                raise NotFound(
                    f"{problem.detail} To make it, push with --create.",
                    status=problem.status,
                    code=problem.code,
                    request_id=problem.request_id,
                ) from None
            found = self.client.create_repository(name, kind=self.kind, visibility=self.visibility)
        self._check_rights(found)
        return found

    def _check_rights(self, repository: Repository) -> None:
        """Find out before gigabytes are sent that they would be refused."""
        me = self.client.whoami()
        if "write" not in me["scopes"]:
            raise Denied(
                "The token may not write; make one with the scope 'write' and log in with it.",
                status=403,
                code="denied",
            )
        roles = {place["slug"].lower(): place["role"] for place in me["namespaces"]}
        role = roles.get(repository["namespace"].lower())
        if role not in _WRITING_ROLES and not me["is_admin"]:
            self.progress.note(
                f"You have no role in {repository['namespace']} that may write; going on, for "
                f"you may have been let into {_ref(repository)} alone."
            )

    def _newest_version(self, repository: Repository) -> Version | None:
        found = self.client.versions(
            _ref(repository), kind=self.kind, limit=1, with_variants="false"
        )
        return next(found, None)

    # --- Sending --------------------------------------------------------------------------------

    def _send_all(self, files: list[LocalFile], memory: PushMemory, known: set[str]) -> None:
        self._arrived = known
        self._large = sum(file.size_bytes >= SPLIT for file in files)
        digests = Digests(self.folder, self.stop)
        # Large files first: the last one to end decides how long it all takes.
        order = sorted(files, key=lambda file: -file.size_bytes)
        try:
            tasks = [partial(self._send, file, digests, memory) for file in order]
            run_all(tasks, self.workers, self.stop)
        finally:
            digests.save()

    def _send(self, file: LocalFile, digests: Digests, memory: PushMemory) -> None:
        self.progress.start_file(file.path, file.size_bytes)
        try:
            digest = digests.of(file.path, file.source)
        except OSError as error:
            raise BadFolder(f"{file.source} cannot be read: {error.strerror}.") from None
        with self._lock:
            self._digests[file.path] = digest
            # What the version before has need not be sent, nor the same bytes twice.
            needed = digest not in self._arrived
            self._arrived.add(digest)
        if needed:
            Delivery(self, memory, file, digest).run()
        else:
            self.progress.reuse(file.path, file.size_bytes)
        self.progress.end_file(file.path)

    def count(self, path: str, count: int) -> None:
        with self._lock:
            self._sent += count
        self.progress.advance(path, count)

    def parts_for(self, file: LocalFile) -> int:
        """Say into how many parts a file is to be cut, to keep all workers busy with few files."""
        if file.size_bytes < SPLIT or self._large >= self.workers:
            return 1
        with self._lock:
            if self._joins is None:
                self._joins = can_join(self.client.transport)
        return min(self.workers, MOST_PARTS) if self._joins else 1

    # --- Registering ----------------------------------------------------------------------------

    def _register(self, files: list[LocalFile], memory: PushMemory) -> Version:
        self._check_unchanged(files)
        try:
            return self._create(files, memory)
        except NotFound as problem:
            if problem.code != "blob_not_found":
                raise
        # What was sent long ago is not kept for ever: send it all again.
        memory.clear()
        self._send_all(files, memory, known=set())
        return self._create(files, memory)

    def _create(self, files: list[LocalFile], memory: PushMemory) -> Version:
        body = {
            "files": [{"path": file.path, "sha256": self._digests[file.path]} for file in files],
            "message": self.message,
            "tags": self.tags,
        }
        path = f"/{self.kind}s/{self.reference.repository}/versions"
        key = memory.key_for(hashlib.sha256(json.dumps(body).encode()).hexdigest())
        return read_as(Version, self.client.transport.call("POST", path, body=body, key=key))

    def _check_unchanged(self, files: list[LocalFile]) -> None:
        for file in files:
            try:
                found = file.source.stat()
            except OSError:
                found = None
            if found is None or (found.st_size, found.st_mtime_ns) != (
                file.size_bytes,
                file.modified_ns,
            ):
                raise BadFolder(
                    f"{file.source} changed while the folder was being pushed; run the same again."
                )

    def _wait_until_inspected(self, version: Version) -> Version:
        """Wait for a server that looks into the files after it took them."""
        while version["state"] == "pending":
            if self.stop.wait(_LOOK_AT_PENDING_SECONDS):
                raise Interrupted("Stopped.")
            version = self.client.version(_ref(version), kind=self.kind)
        return version

    def _name(self, version: Version, *, created: bool) -> Version:
        """Set the aliases, and on a version that was there before the tags too."""
        tags = {} if created else self.tags
        aliases = [alias for alias in self.aliases if alias not in version["aliases"]]
        for key, value in tags.items():
            self.client.set_version_tag(_ref(version), key, value, kind=self.kind)
        for alias in aliases:
            self.client.set_alias(_ref(version), alias, version["number"], kind=self.kind)
        if tags or aliases:
            version = self.client.version(_ref(version), kind=self.kind)
        return version


class Delivery:
    """One file on its way: whole, or in parts that travel side by side and are joined there."""

    def __init__(self, push: Push, memory: PushMemory, file: LocalFile, digest: str) -> None:
        self.push = push
        self.memory = memory
        self.file = file
        self.digest = digest
        self.transport = push.client.transport
        self.headers = metadata_of(file.path, digest, push.namespace)

    def run(self) -> None:
        whole = self.memory.upload(self.digest)
        cut = self.memory.parts(self.digest)
        if cut == 0 and not whole:
            # Cut once, it stays cut so: what was sent of a part is of use to that part alone.
            cut = self.push.parts_for(self.file)
            if cut > 1:
                self.memory.remember_parts(self.digest, cut)
        if cut > 1 and not whole:
            self._send_parts(cut)
        else:
            self._sending(self.digest, self.headers, 0, self.file.size_bytes).run()

    def _send_parts(self, count: int) -> None:
        length = -(-self.file.size_bytes // count)
        parts = []
        about = metadata_of(self.file.path, self.digest, self.push.namespace, self.file.size_bytes)
        partial = {"Upload-Concat": "partial", **about}
        for start in range(0, self.file.size_bytes, length):
            size = min(length, self.file.size_bytes - start)
            key = f"{self.digest}/{start}-{size}"
            parts.append(self._sending(key, partial, start, size))
        run_all([part.run for part in parts], count, self.push.stop)
        patience = Patience(self.push.client.transfer_patience, self.push.stop)
        addresses = [urlsplit(self.memory.upload(part.key)).path for part in parts]
        while True:
            try:
                joined = join(self.transport, addresses, self.headers, self.file.size_bytes)
            except (Refused, Unreachable) as problem:
                if not is_passing(problem):
                    self._give_up(parts, problem)
                patience.wait(problem)
            else:
                break
        self.memory.remember_upload(self.digest, joined)

    def _give_up(self, parts: list[Sending], problem: Refused | Unreachable) -> NoReturn:
        """Forget parts that the server does not have any more, or that make another file."""
        if isinstance(problem, Refused) and problem.status in {400, 404, 409, 410}:
            for part in parts:
                self.memory.forget_upload(part.key)
            self.memory.remember_parts(self.digest, 0)
        if isinstance(problem, Refused) and problem.code == "digest_mismatch":
            raise changed(self.file.source) from problem
        raise problem

    def _sending(self, key: str, headers: dict[str, str], start: int, size: int) -> Sending:
        path = self.file.path
        return Sending(
            self.transport,
            self.memory,
            self.file.source,
            key=key,
            headers=headers,
            start=start,
            size_bytes=size,
            patience=Patience(self.push.client.transfer_patience, self.push.stop),
            stop=self.push.stop,
            on_bytes=partial(self.push.count, path),
            on_reused=partial(self.push.progress.reuse, path),
        )


def _ref(row: Any) -> str:
    name = f"{row['namespace']}/{row['name']}"
    return f"{name}@{row['number']}" if "number" in row else name
