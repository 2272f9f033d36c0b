"""Where requests for models go: what serving processes read now and then, and route by."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePosixPath
from threading import Lock

from django.db.models import F
from pydantic import ValidationError

from registry.models import (
    Actor,
    Alias,
    Deployment,
    DeploymentRole,
    LineageEdge,
    LineageRole,
    Repository,
    Tuning,
    Version,
    Visibility,
    openable_files,
)
from registry.serving_options import ServingOptions, SettledOptions, Tuned

# What a model computes with; the rest of a version (cards, tokenizers, labels) goes with it.
_WEIGHTS = frozenset(
    {".onnx", ".safetensors", ".pt2", ".gguf", ".myz", ".npz", ".npy", ".h5", ".keras", ".data"}
)
_REMEMBERED_VERSIONS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFile:
    """A file that a serving process may open."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A version as it is served; one that is called without being deployed has the id 0."""

    id: int
    version_id: int
    repository: str
    number: int
    variant: str
    weights_sha256: str
    role: str
    weight: int
    options: SettledOptions
    files: tuple[ServedFile, ...]
    # The smaller variant that answers while this one is not loaded, where its options say so.
    sibling: "Deployed | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An endpoint with what answers there."""

    name: str
    endpoint_id: int
    namespace_id: int
    repository_id: int
    visibility: str
    sticky: bool
    deployments: tuple[Deployed, ...]

    @property
    def version_ids(self) -> frozenset[int]:
        """The versions that may answer by it."""
        siblings = (one.sibling for one in self.deployments)
        return frozenset(one.version_id for one in (*self.deployments, *siblings) if one)

    def may_be_called_by(self, actor: Actor) -> bool:
        """Say whether the model exists for `actor`: as `Repository.objects.visible_to` has it."""
        if "read" not in actor.scopes:
            return False
        if actor.limited_namespace_id not in {None, self.namespace_id}:
            return False
        if actor.limited_repository_id not in {None, self.repository_id}:
            return False
        return (
            actor.is_admin
            or self.visibility == Visibility.PUBLIC
            or (self.visibility == Visibility.INTERNAL and not actor.is_anonymous)
            or self.namespace_id in actor.roles
            or self.repository_id in actor.grants
        )


class _FilesOfVersions:
    """The files of versions that were asked for lately; those of a version that is ready stay.

    A key alone may come again, where a database is put back to what it was before.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[tuple[int, datetime], tuple[ServedFile, ...]] = OrderedDict()

    def of(self, versions: Iterable[Version]) -> Mapping[int, tuple[ServedFile, ...]]:
        asked = {(version.pk, version.created_at): version for version in versions}
        with self._lock:
            found = {key[0]: self._known[key] for key in asked if key in self._known}
        missing = [version for version in asked.values() if version.pk not in found]
        if not missing:
            return found
        read = {
            key: tuple(
                ServedFile(path=path, sha256=blob.sha256, size_bytes=blob.size_bytes)
                for path, blob in sorted(files.items())
            )
            for key, files in openable_files(missing).items()
        }
        with self._lock:
            for version in missing:
                self._known[version.pk, version.created_at] = read[version.pk]
            while len(self._known) > _REMEMBERED_VERSIONS:
                self._known.popitem(last=False)
        return {**found, **read}


_files = _FilesOfVersions()


def read_routes(device_class: str = "") -> tuple[Route, ...]:
    """Read every endpoint that something answers at, in a constant number of queries.

    What a deployment leaves open is as was found best on machines of `device_class`.
    """
    rows = list(
        Deployment.objects.filter(endpoint__repository__deleted_at=None)
        .select_related("endpoint__namespace", "endpoint__repository__namespace")
        .order_by("endpoint_id", "pk")
    )
    versions = _versions_of(rows)
    siblings = _siblings_of(rows, versions)
    files = _files.of([*versions.values(), *siblings.values()])
    tuned = read_tuned([*versions.values(), *siblings.values()], device_class)
    deployments: dict[int, list[Deployed]] = {}
    for row in rows:
        version = versions.get(row.pk)
        deployments.setdefault(row.endpoint_id, [])
        if version is not None:
            deployed = _deployed(version, files[version.pk], row, tuned.get(version.pk))
            if row.pk in siblings:
                other = siblings[row.pk]
                deployed = _beside(deployed, other, files[other.pk], row, tuned.get(other.pk))
            deployments[row.endpoint_id].append(deployed)
    endpoints = {row.endpoint_id: row.endpoint for row in rows}
    return tuple(
        Route(
            name=endpoint.full_name,
            endpoint_id=endpoint.pk,
            namespace_id=endpoint.repository.namespace_id,
            repository_id=endpoint.repository_id,
            visibility=endpoint.repository.visibility,
            sticky=endpoint.sticky,
            deployments=tuple(deployments[endpoint.pk]),
        )
        for endpoint in endpoints.values()
    )


def find_withdrawn(version_ids: Collection[int]) -> frozenset[int]:
    """Give those of some versions that must answer nobody any more: deleted, archived, refused."""
    if not version_ids:
        return frozenset()
    usable = Version.objects.usable().filter(pk__in=version_ids, repository__deleted_at=None)
    return frozenset(version_ids).difference(usable.values_list("pk", flat=True))


def _versions_of(rows: Iterable[Deployment]) -> Mapping[int, Version]:
    """Map deployments to the versions that they serve now; not to those that must not run."""
    rows = list(rows)
    following = {row.endpoint.repository_id for row in rows if row.alias}
    aliases = {
        (repository_id, name): version_id
        for repository_id, name, version_id in Alias.objects.filter(
            repository__in=following
        ).values_list("repository_id", "name", "version_id")
    }
    wanted = {
        row.pk: row.version_id or aliases.get((row.endpoint.repository_id, row.alias))
        for row in rows
    }
    usable = Version.objects.usable().filter(pk__in={key for key in wanted.values() if key})
    found = {version.pk: version for version in usable}
    versions = {}
    for row in rows:
        version = found.get(wanted[row.pk] or 0)
        if version is not None:
            version.repository = row.endpoint.repository
            versions[row.pk] = version
    return versions


def _siblings_of(
    rows: Iterable[Deployment], versions: Mapping[int, Version]
) -> Mapping[int, Version]:
    """Map deployments that let a sibling answer meanwhile to the smallest variant that may.

    It was made of the version, or of what that was made of, and takes and gives the same.
    """
    asking = {
        row.pk: versions[row.pk]
        for row in rows
        if row.pk in versions and read_options(row.options).sibling_meanwhile
    }
    if not asking:
        return {}
    repositories = {version.repository_id for version in asking.values()}
    edges = LineageEdge.objects.filter(
        role=LineageRole.WEIGHTS,
        child__repository__in=repositories,
        parent__repository=F("child__repository"),
    ).values_list("child_id", "parent_id")
    made: dict[int, set[int]] = {}
    origins: dict[int, set[int]] = {}
    for child_id, parent_id in edges:
        made.setdefault(parent_id, set()).add(child_id)
        origins.setdefault(child_id, set()).add(parent_id)
    family = {
        key: set().union(
            *(made.get(one, set()) for one in {version.pk, *origins.get(version.pk, ())})
        )
        for key, version in asking.items()
    }
    usable = Version.objects.usable().exclude(variant="").select_related("repository__namespace")
    found = list(usable.filter(pk__in=set().union(*family.values())).order_by("size_bytes", "pk"))
    siblings = {}
    for key, version in asking.items():
        for one in found:
            smaller = one.pk in family[key] and one.size_bytes < version.size_bytes
            if smaller and _ports_of(one) == _ports_of(version):
                siblings[key] = one
                break
    return siblings


def _ports_of(version: Version) -> dict[str, list[tuple[object, ...]]]:
    """Say what a version takes and gives; an axis of any size is None, whatever it is called."""
    return {
        side: sorted(
            (
                str(port.get("name")),
                str(port.get("dtype")),
                *(
                    size if isinstance(size, int) and size >= 0 else None
                    for size in port.get("shape") or []
                ),
            )
            for port in version.signature.get(side, [])
        )
        for side in ("inputs", "outputs")
    }


def _beside(
    deployed: Deployed,
    version: Version,
    files: tuple[ServedFile, ...],
    row: Deployment,
    tuned: Tuned | None,
) -> Deployed:
    asked = read_options(row.options).model_copy(update={"sibling_meanwhile": False})
    sibling = replace(_deployed(version, files), options=asked.settled(tuned))
    return replace(deployed, sibling=sibling)


def read_tuned(versions: Iterable[Version], device_class: str) -> Mapping[int, Tuned]:
    """Map versions to what was found best for them on machines of a kind, in one query."""
    keys = {version.pk for version in versions}
    if not keys or not device_class:
        return {}
    rows = Tuning.objects.filter(version__in=keys, device_class=device_class)
    return {
        version_id: Tuned(threads=threads, max_batch_size=rows_at_once, runtime=runtime)
        for version_id, threads, rows_at_once, runtime in rows.values_list(
            "version_id", "threads", "max_batch_size", "runtime"
        )
    }


def find_deployed(route: Route, number_or_alias: str, device_class: str = "") -> Deployed | None:
    """Find a version of an endpoint's model that is not deployed there: `3`, `@alias`, `latest`."""
    repository = Repository.objects.filter(pk=route.repository_id, deleted_at=None)
    versions = Version.objects.usable().filter(repository__in=repository)
    versions = versions.select_related("repository__namespace")
    version = None
    if re.fullmatch(r"[0-9]{1,9}", number_or_alias):
        version = versions.filter(number=int(number_or_alias)).first()
    elif number_or_alias.startswith("@") and "\0" not in number_or_alias:
        version = versions.filter(
            aliases__name=number_or_alias[1:], aliases__repository=route.repository_id
        ).first()
    elif number_or_alias == "latest":
        version = versions.main_line().order_by("-number").first()
    if version is None:
        return None
    tuned = read_tuned([version], device_class).get(version.pk)
    return _deployed(version, _files.of([version])[version.pk], tuned=tuned)


def _deployed(
    version: Version,
    files: tuple[ServedFile, ...],
    row: Deployment | None = None,
    tuned: Tuned | None = None,
) -> Deployed:
    asked = read_options(row.options) if row else ServingOptions()
    return Deployed(
        id=row.pk if row else 0,
        version_id=version.pk,
        repository=version.repository.full_name,
        number=version.number,
        variant=version.variant,
        weights_sha256=weights_digest(files),
        role=row.role if row else DeploymentRole.LIVE.value,
        weight=row.weight if row else 0,
        options=asked.settled(tuned),
        files=files,
    )


def read_options(stored: Mapping[str, object]) -> ServingOptions:
    """Read what a deployment is to be served with; what another release wrote may not hold here."""
    try:
        return ServingOptions.model_validate(dict(stored))
    except ValidationError as error:
        wrong = {str(one["loc"][0]) for one in error.errors() if one["loc"]}
        kept = {name: value for name, value in stored.items() if name not in wrong}
        return ServingOptions.model_validate(kept)


def weights_digest(files: Iterable[ServedFile]) -> str:
    """Give one digest for the weights of a version: of the one file, or of the list of several."""
    served = sorted(files, key=lambda file: file.path)
    weights = [one for one in served if PurePosixPath(one.path).suffix.lower() in _WEIGHTS]
    if len(weights) == 1:
        return weights[0].sha256
    listed = "".join(f"{one.sha256}  {one.path}\n" for one in weights or served)
    return hashlib.sha256(listed.encode()).hexdigest()
