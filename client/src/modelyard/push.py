"""Pushes a folder: sends what the server lacks, and registers one version over it."""

import hashlib
import json
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.answers import Repository, Version, read_as
from modelyard.errors import BadFolder, Denied, Interrupted, NotFound
from modelyard.folder import Digests, LocalFile, find_files
from modelyard.names import Reference
from modelyard.progress import Progress
from modelyard.state import locked, name_of, state_folder
from modelyard.transport import Patience
from modelyard.tus import PushMemory, Sending
from modelyard.work import run_all

if TYPE_CHECKING:
    from modelyard.client import Client, Kind, Visibility

_WRITING_ROLES = frozenset({"contributor", "maintainer", "owner"})
_LOOK_AT_PENDING_SECONDS = 2.0


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
        self.stop = threading.Event()
        self._sent = 0
        self._lock = threading.Lock()
        self._arrived: set[str] = set()
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
            Sending(
                self.client.transport,
                memory,
                file.source,
                name=file.path,
                size_bytes=file.size_bytes,
                sha256=digest,
                patience=Patience(self.client.transfer_patience, self.stop),
                stop=self.stop,
                on_bytes=partial(self._count, file.path),
                on_reused=partial(self.progress.reuse, file.path),
            ).run()
        else:
            self.progress.reuse(file.path, file.size_bytes)
        self.progress.end_file(file.path)

    def _count(self, path: str, count: int) -> None:
        with self._lock:
            self._sent += count
        self.progress.advance(path, count)

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


def _ref(row: Any) -> str:
    name = f"{row['namespace']}/{row['name']}"
    return f"{name}@{row['number']}" if "number" in row else name
