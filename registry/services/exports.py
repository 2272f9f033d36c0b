"""Ways out: what a version can be taken away as, and the packages themselves."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from registry.errors import Conflict, NotFound, RegistryError
from registry.exports import EXPORTS, Package, Port, Served, Source, StoredFile
from registry.exports.package import port_of
from registry.models import Actor, Kind, Version, openable_files
from registry.services.catalog import find_repository, find_version
from registry.services.transfers import require_unarchived
from registry.services.tuning import tuned_for_export


@dataclass(frozen=True, kw_only=True)
class Export:
    """A package that the caller may have, and whom to count it for."""

    package: Package
    repository_id: int
    version_id: int
    filename: str
    state: str
    state_reason: str
    state_changed_at: datetime | None


def find_export(
    *, actor: Actor, namespace: str, name: str, version: str, file: str, address: str
) -> Export:
    """Make one way out of a version; `address` is where this registry is reached.

    Raises:
        NotFound: the version or the way out does not exist for this actor.
        Denied: the version is archived, and the actor no maintainer.
        Conflict: the version cannot be taken away in this form.

    """
    repository = find_repository(actor, Kind.MODEL, namespace, name)
    row = find_version(actor, repository, version)
    exporter = EXPORTS.get(file)
    if exporter is None:
        raise NotFound(
            "There is no export {file!r}; there are {known}.",
            code="export_not_found",
            file=file[:100],
            known=", ".join(EXPORTS),
        )
    require_unarchived(actor, row)
    return Export(
        package=exporter(source_of(row, address)),
        repository_id=repository.pk,
        version_id=row.pk,
        filename=f"{repository.name}-v{row.number}-{file}",
        state=row.state,
        state_reason=row.state_reason,
        state_changed_at=row.state_changed_at,
    )


def list_exports(version: Version, address: str) -> list[tuple[str, RegistryError | None]]:
    """Say of each way out whether the version can take it, and if not, why."""
    source = source_of(version, address)
    found: list[tuple[str, RegistryError | None]] = []
    for file, exporter in EXPORTS.items():
        try:
            exporter(source)
        except Conflict as refusal:
            found.append((file, refusal))
        else:
            found.append((file, None))
    return found


def source_of(version: Version, address: str) -> Source:
    """Gather what exporters need: never a file that can run code."""
    repository = version.repository
    files = openable_files([version])[version.pk]
    place = f"/api/v1/models/{repository.full_name}/versions/{version.number}/exports"
    return Source(
        namespace=repository.namespace.slug,
        name=repository.name,
        number=version.number,
        address=f"{address}{place}",
        created_at=version.created_at,
        message=version.message,
        licenses=(repository.license,) if repository.license else (),
        parameters_count=version.parameters_count,
        files=tuple(
            StoredFile(path, blob.sha256, blob.size_bytes) for path, blob in sorted(files.items())
        ),
        inputs=tuple(_ports(version.signature.get("inputs"))),
        outputs=tuple(_ports(version.signature.get("outputs"))),
        served=_served(version),
    )


def _served(version: Version) -> Served:
    found = tuned_for_export(version)
    return Served(found.threads, found.max_batch_size, found.device_class) if found else Served()


def _ports(declared: Any) -> Iterable[Port]:
    for one in declared or ():
        yield port_of(one["name"], one["dtype"], one["shape"])
