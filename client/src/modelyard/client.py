"""`Client`: everything the command line does, as calls with typed answers."""

import copy
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from modelyard import following
from modelyard.answers import (
    Alias,
    Deployment,
    Derivative,
    Endpoint,
    Event,
    File,
    Job,
    Repository,
    Shape,
    Version,
    Whoami,
    read_as,
)
from modelyard.configuration import find_server
from modelyard.errors import BadAnswer, JobFailed
from modelyard.names import Reference, parse_reference, segment
from modelyard.progress import Progress, Silent
from modelyard.pull import Pull, Pulled
from modelyard.push import Push, Pushed
from modelyard.take import Target, delete_export, take
from modelyard.transport import Transport

Kind: TypeAlias = Literal["model", "dataset"]
Role: TypeAlias = Literal["live", "canary", "shadow"]
Visibility: TypeAlias = Literal["public", "internal", "private"]
CARD_PATH = "README.md"
_PAGE = 100
_MAX_PAGES = 100_000


class Client:
    """A Modelyard server, as one person's token sees it.

    Without arguments it talks to the server of `MODELYARD_URL` with `MODELYARD_TOKEN`, or to the
    one that `modelyard login` remembered. `patience` is how many seconds a call goes on trying
    while the server is away; `transfer_patience` the same for push and pull, counted from when
    the last byte moved. It may be used by many threads, and as a context manager.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        patience: float = 10.0,
        transfer_patience: float = 300.0,
    ) -> None:
        server = find_server(url, token)
        self.url = server.url
        self.transfer_patience = transfer_patience
        self.transport = Transport(server.url, server.token, patience=patience)

    def __enter__(self) -> "Client":  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.transport.close()

    def more_patient(self, stop: threading.Event) -> "Client":
        """Give the same client for a transfer: it waits longer, and can be stopped."""
        other = copy.copy(self)
        other.transport = self.transport.more_patient(self.transfer_patience, stop)
        return other

    # --- Who and what -------------------------------------------------------------------------

    def whoami(self) -> Whoami:
        return self._read(Whoami, "/whoami")

    def search(
        self, words: str = "", *, kind: Kind = "model", limit: int | None = None, **filters: Any
    ) -> Iterator[Repository]:
        """Find models or datasets; `filters` are those of the REST API (task, owner, sort, ...)."""
        asked = {"q": words, **filters}
        return self._pages(Repository, f"/{kind}s", limit=limit, **asked)

    def repository(self, name: str, *, kind: Kind = "model") -> Repository:
        return self._read(Repository, self._home(parse_reference(name), kind))

    def create_repository(
        self, name: str, *, kind: Kind = "model", visibility: Visibility = "private", **facts: Any
    ) -> Repository:
        reference = parse_reference(name)
        body = {
            "namespace": reference.namespace,
            "name": reference.name,
            "visibility": visibility,
            **facts,
        }
        return read_as(Repository, self.transport.call("POST", f"/{kind}s", body=body))

    def version(self, name: str, *, kind: Kind = "model") -> Version:
        """Read the version that `namespace/name@version` names, or the newest usable one."""
        reference = parse_reference(name)
        home = self._home(reference, kind)
        return self._read(Version, f"{home}/versions/{segment(reference.selector)}")

    def versions(
        self, name: str, *, kind: Kind = "model", limit: int | None = None, **filters: Any
    ) -> Iterator[Version]:
        """List the versions, newest first; variants too, unless `with_variants=False`."""
        home = self._home(parse_reference(name), kind)
        return self._pages(Version, f"{home}/versions", limit=limit, **filters)

    def diff(self, before: str, after: str, *, kind: Kind = "model") -> Any:
        """Say what changed: files, texts, settings, tags, numbers, and what is known of weights."""
        path, params = self._pair(before, after, kind)
        return self.transport.call("GET", path, params=params)

    def compare(
        self, first: str, *others: str, differences_only: bool = False, kind: Kind = "model"
    ) -> Any:
        """Set two to six versions beside each other, line by line, of one model or of several."""
        references = [parse_reference(name) for name in (first, *others)]
        versions = [f"{one.repository}@{one.selector.removeprefix('@')}" for one in references]
        path = f"{self._home(references[0], kind)}/compare"
        params = {"version": versions, "differences_only": differences_only}
        return self.transport.call("GET", path, params=params)

    def diff_weights(
        self,
        before: str,
        after: str,
        *,
        wait: bool = True,
        tell: Callable[[Event], None] = lambda _event: None,
    ) -> Any:
        """Say what became of the weights, tensor by tensor; where nobody knows, a job finds out.

        Without `wait` the answer names the job. `tell` hears how it goes.

        Raises:
            JobFailed: it could not find out.

        """
        path, params = self._pair(before, after, "model")
        found = self.transport.call("POST", f"{path}/weights", params=params)
        if not wait or not found.get("job"):
            return found
        for event in self.follow_job(found["job"]):
            tell(event)
        job = self.job(found["job"])
        if job["state"] != "succeeded":
            error = job["error"]
            raise JobFailed(error["detail"] if error else f"The job was {job['state']}.")
        return self.transport.call("GET", f"{path}/weights", params=params)

    def _pair(self, before: str, after: str, kind: Kind) -> tuple[str, dict[str, str]]:
        first, second = parse_reference(before), parse_reference(after)
        home = f"{self._home(first, kind)}/versions/{segment(first.selector)}"
        same = first.repository == second.repository
        params = {} if same else {"repository": second.repository}
        return f"{home}/diff/{segment(second.selector)}", params

    def restore(self, name: str, *, message: str = "", kind: Kind = "model") -> Version:
        """Register the files and tags of an old version once more, as the newest."""
        reference = parse_reference(name)
        home = f"{self._home(reference, kind)}/versions/{segment(reference.selector)}"
        body = {"message": message} if message else {}
        return read_as(Version, self.transport.call("POST", f"{home}/restore-as-new", body=body))

    def files(self, name: str, *, kind: Kind = "model") -> Iterator[File]:
        reference = parse_reference(name)
        address = f"{self._home(reference, kind)}/versions/{segment(reference.selector)}"
        return self._pages(File, f"{address}/files")

    def derivatives(self, name: str, *, kind: Kind = "model") -> list[Derivative]:
        """Read what the server converted of a version, beside its files."""
        reference = parse_reference(name)
        address = f"{self._home(reference, kind)}/versions/{segment(reference.selector)}"
        return list(self._pages(Derivative, f"{address}/derivatives", paged=False))

    def card(self, name: str, *, kind: Kind = "model") -> str:
        """Read the README.md of a version."""
        path = self._home(parse_reference(name), kind)
        selector = segment(parse_reference(name).selector)
        return self.transport.text("GET", f"{path}/versions/{selector}/files/{CARD_PATH}").decode(
            "utf-8", "replace"
        )

    def aliases(self, name: str, *, kind: Kind = "model") -> list[Alias]:
        home = self._home(parse_reference(name), kind)
        return list(self._pages(Alias, f"{home}/aliases", paged=False))

    def set_alias(
        self,
        name: str,
        alias: str,
        number: int,
        *,
        kind: Kind = "model",
        reason: str = "",
    ) -> Any:
        """Point an alias at a version.

        A `reason` lets deployments that follow it serve what may not replace their version.
        """
        path = f"{self._home(parse_reference(name), kind)}/aliases/{segment(alias)}"
        body = {"version": number, **({"reason": reason} if reason else {})}
        return self.transport.call("PUT", path, body=body)

    def set_version_tag(self, name: str, key: str, value: str, *, kind: Kind = "model") -> Any:
        reference = parse_reference(name)
        address = f"{self._home(reference, kind)}/versions/{segment(reference.selector)}"
        path = f"{address}/tags/{segment(key)}"
        return self.transport.call("PUT", path, body={"value": value})

    # --- Files ---------------------------------------------------------------------------------

    def push(  # noqa: PLR0913 - a push is this wide
        self,
        folder: str | Path,
        name: str,
        *,
        kind: Kind = "model",
        message: str = "",
        tags: Mapping[str, str] | None = None,
        aliases: Sequence[str] = (),
        exclude: Sequence[str] = (),
        create: bool = False,
        visibility: Visibility = "private",
        workers: int = 4,
        progress: Progress | None = None,
    ) -> Pushed:
        """Make the files of a folder the next version of a repository.

        Interrupted in any way, the same call goes on where it stopped. When the newest version
        has the same files already, no new one is made.
        """
        return Push(
            self,
            Path(folder),
            parse_reference(name),
            kind=kind,
            message=message,
            tags=dict(tags or {}),
            aliases=list(aliases),
            exclude=list(exclude),
            create=create,
            visibility=visibility,
            workers=workers,
            progress=progress or Silent(),
        ).run()

    def pull(
        self,
        name: str,
        to: str | Path | None = None,
        *,
        kind: Kind = "model",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        allow_unsafe: bool = False,
        workers: int = 4,
        progress: Progress | None = None,
    ) -> Pulled:
        """Lay the files of a version out in a folder, each verified against its digest.

        Interrupted in any way, the same call goes on where it stopped. Files that are right
        already are left alone; other files of the folder stay.
        """
        reference = parse_reference(name)
        return Pull(
            self,
            reference,
            Path(to) if to is not None else Path(reference.name),
            kind=kind,
            include=list(include),
            exclude=list(exclude),
            allow_unsafe=allow_unsafe,
            workers=workers,
            progress=progress or Silent(),
        ).run()

    def take(
        self,
        name: str,
        target: Target,
        to: str | Path | None = None,
        *,
        tell: Callable[[Event], None] = lambda _event: None,
    ) -> Path:
        """Lay a version out as another server or library wants it, in a new folder; gives it.

        What takes a job is made first, unless it is there; `tell` hears how that goes.

        Raises:
            JobFailed: it could not be made.

        """
        reference = parse_reference(name)
        folder = Path(to) if to is not None else Path(f"{reference.name}-{target}")
        take(self, reference, target, folder, tell)
        return folder

    def delete_export(self, name: str, target: Target) -> None:
        """Delete the file that a job made of a version for a target; it can be made again."""
        delete_export(self, parse_reference(name), target)

    # --- Jobs ----------------------------------------------------------------------------------

    def jobs(self, *, limit: int | None = None, **filters: Any) -> Iterator[Job]:
        """List the jobs you may see, newest first; filters: state, kind, namespace."""
        return self._pages(Job, "/jobs", limit=limit, **filters)

    def job(self, job: str) -> Job:
        return self._read(Job, f"/jobs/{segment(job)}")

    def submit_job(self, recipe: Mapping[str, Any], *, key: str | None = None) -> Job:
        """Queue a job; the same `key` never queues two."""
        body = {"recipe": dict(recipe)}
        key = key or str(uuid.uuid4())
        return read_as(Job, self.transport.call("POST", "/jobs", body=body, key=key))

    def cancel_job(self, job: str) -> Job:
        return read_as(Job, self.transport.call("POST", f"/jobs/{segment(job)}/cancel"))

    def resume_job(self, job: str) -> Job:
        return read_as(Job, self.transport.call("POST", f"/jobs/{segment(job)}/resume"))

    def job_log(self, job: str) -> str:
        path = f"/jobs/{segment(job)}/log"
        return self.transport.text("GET", path).decode("utf-8", "replace")

    def follow_job(self, job: str) -> Iterator[Event]:
        """Give what happens to a job, from its beginning until it ends; survives a lost line."""
        address = self.transport.address(f"/jobs/{segment(job)}/events")
        patient = self.transport.more_patient(self.transfer_patience, threading.Event())
        return following.follow(patient, address)

    # --- Serving -------------------------------------------------------------------------------

    def deploy(
        self,
        name: str,
        *,
        endpoint: str = "",
        role: Role = "live",
        weight: int | None = None,
        widens: bool = False,
        options: Mapping[str, Any] | None = None,
        reason: str = "",
        key: str | None = None,
    ) -> Deployment:
        """Let the version that `namespace/name@version` names serve at an endpoint of its model.

        The first one answers everything; later ones what `weight` says, in percent. A canary that
        `widens` gets more by itself while it does well. The same `key` never deploys twice.
        """
        reference = parse_reference(name)
        body = {
            "model": reference.repository,
            "version": reference.selector,
            "endpoint": endpoint,
            "role": role,
            "weight": weight,
            "widens": widens,
            "options": dict(options or {}),
            "reason": reason,
        }
        key = key or str(uuid.uuid4())
        return read_as(Deployment, self.transport.call("POST", "/deployments", body=body, key=key))

    def endpoints(self, *, limit: int | None = None, **filters: Any) -> Iterator[Endpoint]:
        """List where models are served, newest first; filters: namespace, model."""
        return self._pages(Endpoint, "/endpoints", limit=limit, **filters)

    def endpoint(self, name: str) -> Endpoint:
        return self._read(Endpoint, self._endpoint(name))

    def standing(self, name: str) -> Any:
        """Read what serving processes say of the deployments of an endpoint."""
        return self.transport.call("GET", f"{self._endpoint(name)}/standing")

    def split_traffic(self, name: str, weights: Mapping[int, int], *, reason: str = "") -> Endpoint:
        """Say how many percent of the requests each deployment answers, by its number.

        One that begins to answer and may not by itself, as it cannot be promoted, takes a reason.
        """
        parts = {str(number): weight for number, weight in weights.items()}
        body = {"weights": parts, "reason": reason}
        path = f"{self._endpoint(name)}/traffic"
        return read_as(Endpoint, self.transport.call("PUT", path, body=body))

    def promote(self, name: str, deployment: int, *, reason: str = "") -> Endpoint:
        """Let one deployment answer everything; the others stay, for a roll-back.

        A shadow whose evidence does not allow it takes a reason.
        """
        path = f"{self._endpoint(name)}/deployments/{int(deployment)}/promote"
        return read_as(Endpoint, self.transport.call("POST", path, body={"reason": reason}))

    def roll_back(self, name: str, *, reason: str = "") -> Endpoint:
        """Split the traffic as it was before it last changed.

        A reason is kept in the history. It is needed where an alias has moved meanwhile to what
        may not answer by itself.
        """
        path = f"{self._endpoint(name)}/roll-back"
        return read_as(Endpoint, self.transport.call("POST", path, body={"reason": reason}))

    def undeploy(self, name: str, deployment: int) -> None:
        path = f"{self._endpoint(name)}/deployments/{int(deployment)}"
        self.transport.call("DELETE", path)

    def delete_endpoint(self, name: str) -> None:
        self.transport.call("DELETE", self._endpoint(name))

    def _endpoint(self, name: str) -> str:
        reference = parse_reference(name)
        return f"/endpoints/{segment(reference.namespace)}/{segment(reference.name)}"

    # --- Reading -------------------------------------------------------------------------------

    def _home(self, reference: Reference, kind: Kind) -> str:
        return f"/{kind}s/{segment(reference.namespace)}/{segment(reference.name)}"

    def _read(self, shape: type[Shape], path: str) -> Shape:
        return read_as(shape, self.transport.call("GET", path))

    def _pages(
        self,
        shape: type[Shape],
        path: str,
        *,
        limit: int | None = None,
        paged: bool = True,
        **filters: Any,
    ) -> Iterator[Shape]:
        """Give the items of a list, asking for its pages as they are needed."""
        params = {name: value for name, value in filters.items() if value not in (None, "", [])}
        given = 0
        for _ in range(_MAX_PAGES):
            if paged:
                params["limit"] = _PAGE if limit is None else max(1, min(_PAGE, limit - given))
            page = self.transport.call("GET", path, params=params)
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise BadAnswer(f"The server's list {path} is none.")
            for item in page["items"]:
                if limit is not None and given >= limit:
                    return
                yield read_as(shape, item)
                given += 1
            cursor = page.get("next_cursor")
            if not isinstance(cursor, str) or (limit is not None and given >= limit):
                return
            params["cursor"] = cursor
        raise BadAnswer(f"The server's list {path} does not end.")
