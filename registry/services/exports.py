"""Ways out: what a version can be taken away as, the packages themselves, and files to be made.

A package is put together as it is sent. A file of torch or JAX takes a job that loads the version;
it is kept beside the version, and whoever may read the version has it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db import transaction

from registry.errors import Conflict, NotFound, RegistryError
from registry.exports import EXPORTS, Package, Port, Served, Source, StoredFile
from registry.exports.package import port_of
from registry.models import (
    Actor,
    AuditAction,
    Derivative,
    Job,
    Kind,
    Version,
    openable_files,
)
from registry.permissions import allowed, require
from registry.recipes import EXPORTED_FILES, RUN_CODE, ExportRecipe, parse_recipe
from registry.services.audit import record_event
from registry.services.catalog import find_repository, find_version, lock_repository
from registry.services.fitness import require_fit
from registry.services.jobs import submit_job
from registry.services.quotas import free_export
from registry.services.transfers import require_unarchived
from registry.services.tuning import tuned_for_export
from registry.services.versions import require_runnable

# The other way round: what a file is the export to.
TARGETS: Final = {file: target for target, file in EXPORTED_FILES.items()}
NOT_MADE: Final = "not_made"
_PLAIN: Final = "application/octet-stream"


@dataclass(frozen=True, kw_only=True)
class Export:
    """A package that the caller may have, and whom to count it for."""

    package: Package
    repository_id: int
    version_id: int
    filename: str
    runs_code: bool
    state: str
    state_reason: str
    state_changed_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way out of a version: open, or with the reason why it is not.

    `made` is the file of one that takes a job; `job` is the one that makes it just now, as far as
    the caller may see it.
    """

    file: str
    refusal: RegistryError | None = None
    takes_job: bool = False
    can_be_made: bool = False
    can_be_deleted: bool = False
    made: Derivative | None = None
    job: Job | None = None

    @property
    def runs_code(self) -> bool:
        return TARGETS.get(self.file) in RUN_CODE


def find_export(
    *, actor: Actor, namespace: str, name: str, version: str, file: str, address: str
) -> Export:
    """Make one way out of a version; `address` is where this registry is reached.

    Raises:
        NotFound: the version or the way out does not exist for this actor.
        Denied: the version is archived, and the actor no maintainer.
        Conflict: the version cannot be taken away in this form, or nobody has had it made.

    """
    repository = find_repository(actor, Kind.MODEL, namespace, name)
    row = find_version(actor, repository, version)
    _require_known(file)
    require_unarchived(actor, row)
    return Export(
        package=_package_of(actor, row, file, address),
        repository_id=repository.pk,
        version_id=row.pk,
        filename=f"{repository.name}-v{row.number}-{file}",
        runs_code=TARGETS.get(file) in RUN_CODE,
        state=row.state,
        state_reason=row.state_reason,
        state_changed_at=row.state_changed_at,
    )


def list_exports(actor: Actor, version: Version, address: str) -> list[Way]:
    """Say of each way out whether the version can take it, and if not, why."""
    source = source_of(version, address)
    found = []
    for file, exporter in EXPORTS.items():
        try:
            exporter(source)
        except Conflict as refusal:
            found.append(Way(file=file, refusal=refusal))
        else:
            found.append(Way(file=file))
    return [*found, *list_made(actor, version)]


def list_made(actor: Actor, version: Version) -> list[Way]:
    """Say of each file that takes a job whether it is there, is being made, or could be."""
    made = {row.path: row for row in version.derivatives.exported().select_related("blob")}
    jobs = _jobs_of(actor, version)
    writes = allowed(actor, "write", version.repository)
    may = writes and "jobs" in actor.scopes
    why = None if len(made) == len(TARGETS) else _why_not(version)
    return [
        Way(
            file=file,
            takes_job=True,
            made=made.get(file),
            job=None if file in made else jobs.get(file),
            can_be_made=may and not why and file not in made,
            can_be_deleted=writes and file in made,
            refusal=None if file in made else why or _not_made(version, file),
        )
        for file in TARGETS
    ]


def request_export(*, actor: Actor, version: Version, file: str) -> Way:
    """Have a file made by a job, unless it is there or under way.

    Raises:
        NotFound: there is no such export.
        Conflict: it is a package, which is made as it is sent.
        RegistryError: as `registry.services.jobs.submit_job`.

    """
    _require_known(file)
    if file not in TARGETS:
        raise Conflict(
            "{file} is put together as it is sent: fetch it, there is nothing to be made first.",
            code="nothing_to_make",
            file=file,
        )
    made = version.derivatives.exported().filter(path=file).select_related("blob").first()
    if made is not None:
        return Way(file=file, takes_job=True, made=made)
    job = _jobs_of(actor, version).get(file)
    if job is None:
        recipe = _recipe_of(version, file)
        job = submit_job(actor=actor, recipe=recipe.to_json())
    return Way(file=file, takes_job=True, job=job, refusal=_not_made(version, file))


@transaction.atomic
def delete_export(*, actor: Actor, version: Version, file: str) -> None:
    """Delete a file that a job has made; it counts no more, and can be made again.

    Raises:
        NotFound: there is no such export, or it has not been made.
        Denied: the actor may not write to the model.

    """
    require(actor, "write", version.repository)
    _require_known(file)
    repository = lock_repository(version.repository)
    rows = version.derivatives.exported().filter(path=file)
    made = rows.select_related("blob", "version__repository__namespace").first()
    if made is None:
        raise NotFound(
            "{file} of {version} has not been made, so there is nothing to delete.",
            code=NOT_MADE,
            file=file,
            version=version.ref,
        )
    free_export(made)
    made.delete()
    record_event(
        actor,
        AuditAction.EXPORT_DELETE,
        repository=repository,
        target=version.ref,
        file=file,
        sha256=made.blob.sha256,
        size_bytes=made.blob.size_bytes,
    )


def _require_known(file: str) -> None:
    if file not in EXPORTS and file not in TARGETS:
        raise NotFound(
            "There is no export {file!r}; there are {known}.",
            code="export_not_found",
            file=file[:100],
            known=", ".join([*EXPORTS, *TARGETS]),
        )


def _package_of(actor: Actor, version: Version, file: str, address: str) -> Package:
    exporter = EXPORTS.get(file)
    if exporter is not None:
        return exporter(source_of(version, address))
    (way,) = (one for one in list_made(actor, version) if one.file == file)
    if way.refusal is not None:
        raise way.refusal
    assert way.made is not None  # or there is a reason
    blob = way.made.blob
    return Package(file, _PLAIN, ((file, StoredFile(file, blob.sha256, blob.size_bytes)),))


def _recipe_of(version: Version, file: str) -> ExportRecipe:
    step = {"method": "export", "target": TARGETS[file]}
    recipe = parse_recipe({"kind": "export", "model": version.ref, "steps": [step]})
    assert isinstance(recipe, ExportRecipe)
    return recipe


def _why_not(version: Version) -> RegistryError | None:
    """Give the reason for which no file can be made of a version by any job."""
    recipe = _recipe_of(version, next(iter(TARGETS)))
    try:
        require_runnable(version)
        require_fit(recipe, {"model": version})
    except RegistryError as error:
        return Conflict(error.template, code=error.reason, **error.values)
    return None


def _not_made(version: Version, file: str) -> RegistryError:
    return Conflict(
        "{file} of {version} has not been made yet. A job makes it: ask for it on the version's "
        "page, with `modelyard export`, or with a POST to the list of exports.",
        code=NOT_MADE,
        file=file,
        version=version.ref,
    )


def _jobs_of(actor: Actor, version: Version) -> Mapping[str, Job]:
    """Find the unfinished jobs that `actor` may see, by the file that they make."""
    rows = Job.objects.visible_to(actor).unfinished()
    found = rows.filter(kind="export", inputs=version).order_by("-created_at")
    return {EXPORTED_FILES[row.recipe["steps"][0]["target"]]: row for row in found}


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
    if found is None:
        return Served()
    return Served(
        threads=found.threads,
        max_batch_size=found.max_batch_size,
        device_class=found.device_class,
        joins=found.max_batch_size > 1 and found.summary.get("batchable") is True,
    )


def _ports(declared: Any) -> Iterable[Port]:
    for one in declared or ():
        yield port_of(one["name"], one["dtype"], one["shape"])
