"""Jobs as people and workers move them; the only place where a job's state changes.

A worker holds a job by its fence, a number that grows with every attempt: each of its writes names
the fence and is refused once somebody else has taken the job over.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef
from django.db.models.functions import Now
from django.utils import timezone

from registry import queue
from registry.authenticate import Visit, actor_for_user
from registry.errors import (
    Conflict,
    Denied,
    FieldError,
    Invalid,
    NotFound,
    QuotaExceeded,
    RegistryError,
    Text,
    pack,
    unpack,
)
from registry.models import (
    MADE_DIGESTS,
    Actor,
    Attempt,
    AuditAction,
    Job,
    JobEvent,
    JobState,
    Kind,
    Namespace,
    Repository,
    User,
    Version,
    VersionState,
    Visibility,
)
from registry.permissions import allowed, require, require_scope
from registry.recipes import Recipe, kind_of, parse_recipe, parse_reference
from registry.services import quotas
from registry.services.announcements import announce_job
from registry.services.audit import record_event
from registry.services.catalog import (
    check_name,
    find_repository,
    find_version,
    namespaces_writable_by,
)
from registry.services.fitness import require_fit
from registry.services.namespaces import find_namespace, hold_namespaces
from registry.services.reproduction import compare_outcome, digests_of, require_reproducible
from registry.services.results import Outcome, keep_outcome
from registry.services.versions import require_runnable
from registry.services.workers import gpu_offered

# What one job may leave in the database while it runs; further metrics and lines are dropped.
MAX_EVENTS = 20_000
_SWEEP = 100


class LeaseLost(Conflict):
    """The job belongs to somebody else by now; whoever hears this stops without a word."""

    code = "lease_lost"


class Message(NamedTuple):
    """Something a running job says: `progress`, `metric`, `candidate` or `log`, and its fields."""

    type: str
    data: Mapping[str, Any]


def log_line(said: Text, *, level: str = "info") -> dict[str, Any]:
    """Write the fields of a line of the log: its English, and how pages say it in theirs."""
    return {"message": said.detail, "level": level, "said": pack(said)}


class PartDone(NamedTuple):
    """What a part has left for the whole: the digest of its file, and the summary of its report."""

    sha256: str
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A worker's hold on a job for one attempt; `part` is its number if it is part of another."""

    job_id: uuid.UUID
    part: int | None
    fence: int
    attempt: int
    worker: str
    queue: str
    recipe: Recipe
    events_count: int

    @property
    def kind(self) -> str:
        return self.recipe.kind


# --- What people ask for -------------------------------------------------------------------------


def find_job(actor: Actor, job_id: str | uuid.UUID) -> Job:
    """Find a job the actor may see.

    Raises:
        NotFound: there is none with that id.

    """
    try:
        key = uuid.UUID(str(job_id))
    except ValueError:
        key = uuid.UUID(int=0)
    found = Job.objects.visible_to(actor).with_names(actor).filter(pk=key).first()
    if found is None:
        raise NotFound("There is no job {job} that you may see.", code="job_not_found", job=job_id)
    return found


class Prepared(NamedTuple):
    """A recipe that may be queued: its exact inputs, where its result goes, who may run it."""

    recipe: Recipe
    inputs: Mapping[str, Version]
    namespace: Namespace
    queue: str


def prepare_job(*, actor: Actor, recipe: object) -> Prepared:
    """Read a recipe as submitting does, with the same refusals, and write nothing."""
    require_scope(actor, "jobs")
    asked = parse_recipe(recipe)
    inputs = {
        role: _find_input(actor, role, reference, asked.field_of(role))
        for role, reference in asked.references().items()
    }
    namespace = _require_place(actor, asked, inputs)
    require_fit(asked, inputs)
    exact = asked.resolved({role: version.ref for role, version in inputs.items()})
    return Prepared(exact, inputs, namespace, _choose_queue(exact))


def submit_job(*, actor: Actor, recipe: object) -> Job:
    """Queue a recipe; references to versions are made exact, so the job reads what is there now.

    Raises:
        Invalid: the recipe has unknown, missing or wrong fields, an input that cannot be run, or
            does not fit its inputs.
        NotFound: an input does not exist for the actor.
        Denied: the actor may not write where the result goes.
        Conflict: an input is not ready, or the recipe asks for a GPU that nobody offers.
        QuotaExceeded: the actor has as many jobs waiting as one may have, or the namespace has no
            room for the result.

    """
    return _queue(actor, prepare_job(actor=actor, recipe=recipe))


def _queue(actor: Actor, prepared: Prepared, reproduces: Job | None = None) -> Job:
    """Write a job; with `reproduces`, what it makes is compared with what that job made."""
    exact, inputs, namespace, lane = prepared
    with transaction.atomic():
        _require_room(actor)
        _keep_inputs(inputs)
        hold_namespaces(namespace)
        job = Job.objects.create(
            kind=exact.kind,
            recipe=exact.to_json(),
            namespace=namespace,
            queue=lane,
            max_attempts=settings.JOB_MAX_ATTEMPTS,
            input_ids={role: version.pk for role, version in inputs.items()},
            reproduces=reproduces,
            created_by_id=actor.user_id,
        )
        job.inputs.set(inputs.values())
        again: dict[str, Any] = {"reproduces": str(reproduces.pk)} if reproduces else {}
        record_event(
            actor,
            AuditAction.JOB_SUBMIT,
            namespace=namespace,
            target=str(job.pk),
            kind=job.kind,
            output=getattr(exact, "output", None),
            **again,
            # Whoever reads the log may not see the others, nor then the job and its recipe.
            inputs=[
                version.ref
                for version in inputs.values()
                if version.repository.may_be_named_in(namespace)
            ],
        )
        _tell_state(job)
        _warn_of_deprecated(job, inputs.values())
        if exact.parts_count > 1:
            _cut(job, exact.parts_count, inputs.values())
        else:
            _wake_later(job)
    return job


def _cut(job: Job, count: int, inputs: Iterable[Version]) -> None:
    """Make the parts of a job, each a job of its own; the whole waits for them."""
    parts = Job.objects.bulk_create(
        Job(
            kind=job.kind,
            recipe=job.recipe,
            namespace=job.namespace,
            input_ids=job.input_ids,
            queue=job.queue,
            max_attempts=job.max_attempts,
            created_by_id=job.created_by_id,
            parent=job,
            part=at,
        )
        for at in range(count)
    )
    read = Job.inputs.through
    read.objects.bulk_create(
        read(job=part, version=version) for part in parts for version in set(inputs)
    )
    for part in parts:
        _tell_state(part)
        _wake_later(part)


def _warn_of_deprecated(job: Job, inputs: Iterable[Version]) -> None:
    for version in inputs:
        if version.state == VersionState.DEPRECATED:
            said = Text(
                "{version} is deprecated: {reason}",
                version=version.ref,
                reason=version.state_reason,
            )
            _tell(job, "log", log_line(said, level="warning"))


def _find_input(actor: Actor, role: str, text: str, field: str) -> Version:
    reference = parse_reference(text)
    try:
        repository = find_repository(
            actor, Kind(kind_of(role)), reference.namespace, reference.name
        )
        version = find_version(actor, repository, reference.version)
        if repository.kind == Kind.MODEL:
            require_runnable(version)
        elif not version.is_usable or not version.files_count:
            reason = version.why or Text("it has no files that a job could read.")
            raise Conflict(
                "{version} cannot be read: {reason}",
                code="version_not_ready",
                version=version.ref,
                reason=reason,
            )
    except RegistryError as error:
        # The same refusal, and the field of the recipe that it is about.
        problem = FieldError(field, error.reason, error.template, **error.values)
        raise type(error)(
            error.template, code=error.reason, errors=[problem], **error.values
        ) from error
    return version


def _require_place(actor: Actor, recipe: Recipe, inputs: Mapping[str, Version]) -> Namespace:
    """Check now that the result can be written later, and give the namespace it goes to."""
    if recipe.kind == "diff":
        return _place_of_reader(actor, inputs["model"].repository)
    if recipe.kind not in {"train", "infer"}:
        repository = inputs["model"].repository
        # What a tuning finds is what deployments then go by.
        require(actor, "maintain" if recipe.kind == "tune" else "write", repository)
        if recipe.produces == "export":
            quotas.require_room(
                repository.namespace, size_bytes=least_export_bytes(inputs["model"])
            )
        elif recipe.produces != "evaluations":
            _require_space(repository.namespace)
        return repository.namespace
    reference = parse_reference(recipe.output)
    kind = Kind.MODEL if recipe.produces == "model" else Kind.DATASET
    try:
        repository = find_repository(actor, kind, reference.namespace, reference.name)
    except NotFound:
        namespace = find_namespace(actor, reference.namespace)
        require(actor, "write", namespace)
        check_name(reference.name)
        _require_space(namespace)
        return namespace
    require(actor, "write", repository)
    _require_space(repository.namespace)
    return repository.namespace


def _place_of_reader(actor: Actor, repository: Repository) -> Namespace:
    """Find where a job counts that only reads: beside the model, else in the reader's own."""
    if allowed(actor, "write", repository):
        return repository.namespace
    spaces = [one for one in namespaces_writable_by(actor) if allowed(actor, "write", one)]
    if not spaces:
        raise Denied(
            "Comparing weights takes a job, and you have no namespace that it could count in: ask "
            "an owner of one to make you a contributor there.",
            code="no_namespace",
        )
    return spaces[0]


def least_export_bytes(version: Version) -> int:
    """Give what a file exported of a version takes at least: its weights, if they are known."""
    weights = 4 * (version.parameters_count or 0)
    return max(1, min(weights, version.size_bytes))


def _require_space(namespace: Namespace) -> None:
    """Refuse now what would end after hours of work in a refusal: no room for any result."""
    quotas.require_room(namespace, size_bytes=1, versions=1)


def _choose_queue(recipe: Recipe) -> str:
    offered = gpu_offered()
    if recipe.device == "gpu" and not offered:
        raise Conflict(
            "No worker offers a GPU right now; choose the device auto or cpu, or start a worker "
            "on a machine that has one.",
            code="no_gpu",
            errors=[FieldError("device", "no_gpu", "No worker offers a GPU right now.")],
        )
    return recipe.queue(gpu_offered=offered)


def _require_room(actor: Actor) -> None:
    """Hold the actor's row, so that two submissions at once cannot both take the last place."""
    assert actor.user_id is not None  # `require_scope` refuses the anonymous
    User.objects.select_for_update(no_key=True).get(pk=actor.user_id)
    require_few_waiting(actor)


def require_few_waiting(actor: Actor) -> None:
    """Refuse one more job to whoever has as many waiting as one may have."""
    own = Job.objects.whole().filter(created_by_id=actor.user_id)
    waiting = own.filter(state=JobState.QUEUED).count()
    if waiting >= settings.JOB_MAX_QUEUED:
        raise QuotaExceeded(
            "You have {count} jobs waiting, as many as one may have; wait for some to start, "
            "or cancel some.",
            count=waiting,
        )


def _keep_inputs(inputs: Mapping[str, Version]) -> None:
    """Hold the inputs' repositories until the job is written: deleting looks for such jobs."""
    ids = {version.repository_id for version in inputs.values()}
    held = Repository.objects.select_for_update(no_key=True).filter(pk__in=ids, deleted_at=None)
    found = {repository.pk for repository in held.order_by("pk")}
    kept = Version.objects.usable().filter(pk__in=[version.pk for version in inputs.values()])
    if found != ids or kept.count() != len(set(inputs.values())):
        raise NotFound(
            "An input of the job was deleted or archived meanwhile.", code="version_not_found"
        )


def cancel_job(*, actor: Actor, job: Job) -> Job:
    """Cancel a job: at once while it waits; a running one is stopped by its worker in a moment.

    Raises:
        Conflict: it has ended already, otherwise than by being cancelled, or is part of another.

    """
    _require_hold(actor, job)
    _require_whole(job)
    with transaction.atomic():
        row = _locked(job)
        if row.state == JobState.CANCELLED:
            return row
        if row.is_finished:
            raise Conflict("The job has {state} already.", code="job_finished", state=row.state)
        if row.state == JobState.QUEUED:
            _end(row, JobState.CANCELLED)
            _stop_parts(row)
        elif row.cancel_requested_at is None:
            row.cancel_requested_at = timezone.now()
            row.save(update_fields=["cancel_requested_at"])
            _tell(row, "log", log_line(Text("{user} asked to cancel.", user=actor.username)))
        record_event(actor, AuditAction.JOB_CANCEL, namespace=row.namespace, target=str(row.pk))
    return row


def resume_job(*, actor: Actor, job: Job) -> Job:
    """Queue a failed or cancelled job once more; training goes on from its last checkpoint.

    Raises:
        Conflict: it is still going, or has succeeded, or is part of another.

    """
    _require_hold(actor, job)
    _require_whole(job)
    recipe = parse_recipe(job.recipe)
    inputs = inputs_of(job, recipe, actor)
    _require_place(actor, recipe, inputs)
    with transaction.atomic():
        _require_room(actor)
        _keep_inputs(inputs)
        row = _locked(job)
        if row.state not in {JobState.FAILED, JobState.CANCELLED}:
            raise Conflict(
                "The job is {state}; only a failed or cancelled one can be resumed.",
                code="job_not_resumable",
                state=row.state,
            )
        parts = _parts_to_resume(row)
        row.queue = _choose_queue(recipe)
        for one in (row, *parts):
            one.queue = row.queue
            _queue_again(one)
        record_event(actor, AuditAction.JOB_RESUME, namespace=row.namespace, target=str(row.pk))
    return row


def _parts_to_resume(job: Job) -> list[Job]:
    """Lock the parts that have to run again: the others are kept, unless their file has gone."""
    parts = list(job.children.select_for_update(of=("self",)).order_by("part"))
    if any(not part.is_finished for part in parts):
        raise Conflict(
            "Parts of the job are still being stopped; try again in a moment.",
            code="job_not_resumable",
        )
    return [part for part in parts if part.state != JobState.SUCCEEDED or part.made_id is None]


def _queue_again(job: Job) -> None:
    job.state = JobState.QUEUED
    job.max_attempts = job.attempts_count + settings.JOB_MAX_ATTEMPTS
    job.cancel_requested_at = job.finished_at = None
    job.error_code = job.error_detail = ""
    job.error_said = None
    job.report = {}
    job.save()
    _tell_state(job)
    _wake_later(job)


def reproduce_job(*, actor: Actor, job: Job) -> Job:
    """Queue a job's recipe once more, to see whether it gives the same bytes.

    Raises:
        Invalid, Conflict: it has made nothing that could be compared.
        RegistryError: as `submit_job`; the actor needs the same rights.

    """
    require_scope(actor, "jobs")
    require(actor, "write", job.namespace)
    require_reproducible(job)
    recipe = parse_recipe(job.recipe)
    inputs = _inputs_again(actor, job, recipe)
    exact = recipe.resolved({role: version.ref for role, version in inputs.items()})
    prepared = prepare_job(actor=actor, recipe=exact.to_json())
    if prepared.inputs != inputs:
        raise Conflict(
            "An input of the job was renamed just now: try again.", code="not_reproducible"
        )
    return _queue(actor, prepared, reproduces=job)


def _require_hold(actor: Actor, job: Job) -> None:
    """Let the person who submitted a job move it, and whoever may write in its namespace."""
    require_scope(actor, "jobs")
    if job.created_by_id != actor.user_id:
        require(actor, "write", job.namespace)


def _require_whole(job: Job) -> None:
    if job.part is not None:
        raise Conflict(
            "This is one part of the job {job}; cancel or resume that one.",
            code="part_of_job",
            job=job.parent_id,
        )


def inputs_of(job: Job, recipe: Recipe, actor: Actor) -> dict[str, Version]:
    """Find a job's inputs by their role; the rows it was submitted with, under whatever name.

    Raises:
        NotFound: the actor may no longer see one of them.

    """
    rows = list(
        Version.objects.visible_to(actor)
        .filter(read_by_jobs=job)
        .select_related("repository__namespace", "revision")
    )
    wanted = recipe.references()
    if job.input_ids:
        by_id = {row.pk: row for row in rows}
        found = {role: by_id.get(job.input_ids.get(role)) for role in wanted}
    else:
        found = _guess_roles(actor, wanted, rows)
    inputs: dict[str, Version] = {}
    for role, text in wanted.items():
        version = found[role]
        if version is None:
            raise NotFound(
                "{text} cannot be read any more by {user}, who submitted the job.",
                code="version_not_found",
                text=text,
                user=actor.username,
            )
        inputs[role] = version
    return inputs


def _inputs_again(actor: Actor, job: Job, recipe: Recipe) -> dict[str, Version]:
    """Find the very versions that a job has read: names may lead elsewhere by now."""
    try:
        inputs = inputs_of(job, recipe, actor)
        if job.input_ids or _are_told_apart(actor, job, recipe, inputs):
            return inputs
    except NotFound:
        pass
    raise Conflict(
        "You cannot read any more what the job has read, so nothing could be compared.",
        code="not_reproducible",
    )


# --- Jobs of before their inputs' roles were kept -------------------------------------------------


def _guess_roles(
    actor: Actor, wanted: Mapping[str, str], rows: Sequence[Version]
) -> dict[str, Version | None]:
    """Tell inputs by the names in the recipe: first those that still have them."""
    found: dict[str, Version | None] = {}
    for role, text in wanted.items():
        for row in rows:
            if row.repository.kind == kind_of(role) and row.ref.lower() == text.lower():
                found[role] = row
    for role, text in wanted.items():
        if role not in found:
            left = [row for row in rows if row not in found.values()]
            found[role] = _renamed(actor, role, text, left)
    return found


def _are_told_apart(actor: Actor, job: Job, recipe: Recipe, inputs: Mapping[str, Version]) -> bool:
    """Say whether no two inputs can have changed places, as a name went from one to the other.

    Raises:
        NotFound: the old name of one of them leads nowhere.

    """
    wanted = recipe.references()
    for role, version in inputs.items():
        alike = [one for one in inputs if kind_of(one) == kind_of(role)]
        if len(alike) == 1:
            continue
        old = parse_reference(wanted[role])
        # Of those that exchange names, one has to be called something else for a while.
        since = version.repository.redirects.filter(created_at__gte=job.created_at)
        if since.exclude(namespace__slug__iexact=old.namespace, name__iexact=old.name).exists():
            return False
        now = find_repository(actor, Kind(kind_of(role)), old.namespace, old.name)
        if now.pk != version.repository_id:
            return False
    return True


def _renamed(actor: Actor, role: str, text: str, rows: Sequence[Version]) -> Version | None:
    """Find an input whose repository has another name by now than the recipe says."""
    reference = parse_reference(text)
    number = int(reference.selector)
    same = [row for row in rows if row.number == number and row.repository.kind == kind_of(role)]
    if len(same) < 2:
        return same[0] if same else None
    try:
        # Its old name leads there still, unless somebody else has taken it.
        now = find_repository(actor, Kind(kind_of(role)), reference.namespace, reference.name)
    except NotFound:
        return None
    return next((row for row in same if row.repository_id == now.pk), None)


# --- What workers do -----------------------------------------------------------------------------


def claim_job(
    *, worker: str, queues: Sequence[str], devices: Mapping[str, str] | None = None
) -> Claim | None:
    """Take the first job waiting in `queues`, the most urgent and then the oldest, for a lease.

    `devices` says, for each queue, what the attempt would run on.
    """
    with transaction.atomic():
        job = _first_waiting(queues)
        if job is None:
            return None
        try:
            recipe = parse_recipe(job.recipe)
        except Invalid as error:
            # Queued by another release; it must not stand in the way of those behind it.
            said = Text("{problem} Submit the job again.", problem=error)
            _fail(job, "unknown_recipe", said.detail, pack(said))
            return None
        if lost := _lost_part(job):
            _fail_for(job, lost)
            return None
        job.state = JobState.RUNNING
        job.fence += 1
        job.attempts_count += 1
        job.worker = worker
        job.started_at = job.started_at or timezone.now()
        job.lease_expires_at = _lease_end()
        job.save()
        Attempt.objects.create(
            job=job,
            fence=job.fence,
            worker=worker,
            device=(devices or {}).get(job.queue, job.queue)[:100],
        )
        _tell_state(job, attempt=job.attempts_count)
        return Claim(
            job_id=job.pk,
            part=job.part,
            fence=job.fence,
            attempt=job.attempts_count,
            worker=worker,
            queue=job.queue,
            recipe=recipe,
            events_count=job.events.count(),
        )


def _first_waiting(queues: Sequence[str]) -> Job | None:
    """Lock the first waiting job whose namespace may run one more."""
    rows = Job.objects.select_for_update(skip_locked=True, of=("self",)).filter(
        state=JobState.QUEUED, queue__in=list(queues)
    )
    # A job that was cut into parts has nothing to do before they have ended.
    rows = rows.exclude(Exists(Job.objects.unfinished().filter(parent=OuterRef("pk"))))
    rows = rows.exclude(namespace_id__in=quotas.full_of_jobs())
    passed: set[int] = set()
    while True:
        waiting = rows.exclude(namespace_id__in=passed) if passed else rows
        job = waiting.order_by("-priority", "created_at", "pk").first()
        if job is None or quotas.hold_job_place(job.namespace_id):
            return job
        # Somebody else took the last place a moment ago; others must not wait for it.
        passed.add(job.namespace_id)


def renew_lease(claim: Claim) -> bool:
    """Hold the job for another lease; give whether somebody asked to cancel it.

    Raises:
        LeaseLost: the job belongs to another attempt, or has ended.

    """
    held = Job.objects.filter(pk=claim.job_id, fence=claim.fence, state=JobState.RUNNING)
    if not held.update(lease_expires_at=_lease_end()):
        raise _lost(claim)
    return is_cancel_requested(claim)


def is_cancel_requested(claim: Claim) -> bool:
    return Job.objects.filter(pk=claim.job_id).exclude(cancel_requested_at=None).exists()


def find_inputs(claim: Claim) -> dict[str, Version]:
    """Find what the job reads, as far as the person who submitted it may still see it."""
    job = Job.objects.select_related("created_by").get(pk=claim.job_id)
    inputs = inputs_of(job, claim.recipe, _creator(job))
    for role, version in inputs.items():
        if kind_of(role) == "model":
            require_runnable(version)
    return inputs


def find_parts(claim: Claim) -> list[PartDone]:
    """Find what the parts of a job have left, in their order; nothing for a job without parts."""
    parts = Job.objects.filter(parent=claim.job_id).order_by("part").select_related("made")
    found = []
    for part in parts:
        if part.made is None:
            raise Invalid(
                "What part {part} of the job left is gone; resume the job.",
                code="part_missing",
                part=part.part,
            )
        found.append(PartDone(part.made.sha256, part.report.get("summary", {})))
    return found


def inputs_to_name(recipe: Recipe, inputs: Mapping[str, Version]) -> frozenset[str]:
    """Give the roles of the inputs that a job may name in files and in the message of a version.

    Those go to everybody who sees the result, now or later.
    """
    if recipe.kind in {"train", "infer"}:
        return frozenset(
            role
            for role, version in inputs.items()
            if version.repository.visibility == Visibility.PUBLIC
            or (role, version.repository.full_name.lower())
            == (recipe.produces, recipe.output.lower())
        )
    place = inputs["model"].repository
    return frozenset(
        role for role, version in inputs.items() if version.repository.may_be_named_in(place)
    )


class Named(NamedTuple):
    """How a job's process is told of an input: its name, and whether what it makes may say it."""

    ref: str
    may_be_named: bool


def name_inputs(claim: Claim, inputs: Mapping[str, Version]) -> dict[str, Named]:
    """Give the names under which a job reads its inputs, and keep them for who runs it again.

    A job that runs another one again is told what that one was told: some files hold names, and
    the same work has to give the same bytes whatever is called what by then.

    Raises:
        LeaseLost: the job belongs to another attempt, or has ended.

    """
    to_name = inputs_to_name(claim.recipe, inputs)
    names = {role: Named(version.ref, role in to_name) for role, version in inputs.items()}
    held = Job.objects.filter(pk=claim.job_id, fence=claim.fence, state=JobState.RUNNING)
    job = held.select_related("reproduces").first()
    if job is None:
        raise _lost(claim)
    if job.reproduces is not None:
        return _names_before(job.reproduces, names)
    if not held.update(input_names={role: name._asdict() for role, name in names.items()}):
        raise _lost(claim)
    return names


def _names_before(original: Job, names: Mapping[str, Named]) -> dict[str, Named]:
    """Give the names that a job was told; of one that kept none, those of its recipe."""
    if kept := original.input_names:
        return {role: Named(**kept[role]) for role in names}
    submitted = parse_recipe(original.recipe).references()
    return {role: Named(submitted[role], name.may_be_named) for role, name in names.items()}


def record_events(claim: Claim, messages: Sequence[Message]) -> None:
    """Keep what a job said, and tell those who listen; of progress only the last word stays.

    Raises:
        LeaseLost: the job belongs to another attempt, or has ended.

    """
    with transaction.atomic():
        job = _held(claim)
        said = [message for message in messages if message.type == "progress"][-1:]
        if said:
            job.progress = dict(said[0].data)
            job.save(update_fields=["progress"])
            JobEvent.objects.filter(job=job, type="progress").delete()
        said += [message for message in messages if message.type != "progress"]
        _tell_all(job, said)


def finish_job(claim: Claim, outcome: Outcome) -> Version | None:
    """Turn what a job made into rows and end it as succeeded, all in one transaction.

    A part of another job makes no version; its file is kept for the whole.

    Raises:
        LeaseLost: the job belongs to another attempt; nothing was written.
        RegistryError: the result is refused (a malformed file, a right that is gone).

    """
    with transaction.atomic():
        job = Job.objects.select_for_update(of=("self",)).get(pk=claim.job_id)
        if job.fence == claim.fence and job.state == JobState.SUCCEEDED:
            return job.result  # the answer to the first try was lost on its way
        job = _held(claim)
        creator = _creator(job)
        job.report = dict(outcome.report)
        if job.part is not None:
            (job.made,) = outcome.files.values()
            _end_attempt(job, "succeeded")
            _end(job, JobState.SUCCEEDED)
            return None
        if job.reproduces_id is not None:
            job.report["reproduction"] = compare_outcome(job, outcome)
            assert job.reproduces is not None
            assert job.reproduces.result is not None  # or there was nothing to compare with
            version = job.reproduces.result
        else:
            version = keep_outcome(
                actor=creator,
                job=job,
                recipe=claim.recipe,
                inputs=inputs_of(job, claim.recipe, creator),
                outcome=outcome,
            )
            if outcome.variants:
                job.report[MADE_DIGESTS] = digests_of(outcome)
        job.result = version
        _end_attempt(job, "succeeded")
        _end(job, JobState.SUCCEEDED)
        job.children.update(made=None)
        record_event(
            creator,
            AuditAction.JOB_SUCCEED,
            namespace=job.namespace,
            target=str(job.pk),
            result=version.ref if version.repository.may_be_named_in(job.namespace) else None,
        )
    return version


def fail_job(
    claim: Claim,
    *,
    code: str,
    detail: str,
    said: Mapping[str, Any] | None = None,
    retryable: bool = False,
    report: Mapping[str, Any] | None = None,
) -> JobState:
    """End an attempt that went wrong; a retryable one goes back to the queue a few times.

    `report` is what the job found before it failed, where that is worth reading. `said` is the
    template of `detail` and its values, for pages in other languages. Give the state
    that the job has now: a job that somebody cancelled ends as cancelled.
    """
    with transaction.atomic():
        job = _held(claim)
        _end_attempt(job, "failed", f"{code}: {detail}")
        if job.cancel_requested_at is not None:
            _end(job, JobState.CANCELLED)
        elif retryable and job.attempts_count < job.max_attempts:
            again = Text("{why} Trying again.", why=unpack(said) if said else detail)
            _tell(job, "log", log_line(again, level="error"))
            _put_back(job)
        else:
            if report is not None:
                job.report = dict(report)
            _fail(job, code, detail, said)
        return JobState(job.state)


def confirm_cancel(claim: Claim) -> None:
    """End a job as cancelled after its worker stopped it."""
    with transaction.atomic():
        job = _held(claim)
        _end_attempt(job, "cancelled")
        _end(job, JobState.CANCELLED)


def release_job(claim: Claim) -> None:
    """Put a job back because its worker goes away; the attempt does not count against it."""
    with transaction.atomic():
        job = _held(claim)
        job.max_attempts += 1
        _end_attempt(job, "released")
        if job.cancel_requested_at is not None:
            _end(job, JobState.CANCELLED)
            return
        _put_back(job)
        _wake_later(job)


def requeue_expired() -> int:
    """Put jobs whose worker fell silent back into the queue; give how many there were."""
    with transaction.atomic():
        rows = list(
            Job.objects.select_for_update(skip_locked=True, of=("self",)).filter(
                state=JobState.RUNNING, lease_expires_at__lt=Now()
            )[:_SWEEP]
        )
        for job in rows:
            _end_attempt(job, "lost", f"{job.worker} was not heard for a whole lease")
            if job.cancel_requested_at is not None:
                _end(job, JobState.CANCELLED)
            elif job.attempts_count >= job.max_attempts:
                said = Text(
                    "The worker died in each of {count} attempts, so the job itself is the likely "
                    "cause (memory, most often); make it smaller and resume it.",
                    count=job.attempts_count,
                )
                _fail(job, "worker_lost", said.detail, pack(said))
            else:
                _tell(job, "log", log_line(Text("The worker fell silent."), level="error"))
                _put_back(job)
                _wake_later(job)
    return len(rows)


def leave_gpu_queue() -> int:
    """Move jobs that may run anywhere out of a GPU queue that no worker serves any more."""
    if gpu_offered():
        return 0
    with transaction.atomic():
        rows = list(
            Job.objects.select_for_update(skip_locked=True, of=("self",)).filter(
                state=JobState.QUEUED, queue="gpu", recipe__device="auto"
            )[:_SWEEP]
        )
        for job in rows:
            job.queue = "cpu"
            job.save(update_fields=["queue"])
            _wake_later(job)
    return len(rows)


# --- Moving one row ------------------------------------------------------------------------------


def _lease_end() -> Any:
    """Give the end of a lease by the database's clock, the one that all workers share."""
    return Now() + timedelta(seconds=settings.JOB_LEASE_SECONDS)


def _locked(job: Job) -> Job:
    return Job.objects.select_for_update(of=("self",)).select_related("namespace").get(pk=job.pk)


def _held(claim: Claim) -> Job:
    """Lock the job's row, if the claim still holds it."""
    job = (
        Job.objects.select_for_update(of=("self",))
        .select_related("namespace", "created_by")
        .filter(pk=claim.job_id, fence=claim.fence, state=JobState.RUNNING)
        .first()
    )
    if job is None:
        raise _lost(claim)
    return job


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(
        "Attempt {attempt} no longer holds the job {job}.", attempt=claim.fence, job=claim.job_id
    )


def _creator(job: Job) -> Actor:
    if job.created_by is None or not job.created_by.is_active:
        raise Denied("The person who submitted the job is gone, and their rights with them.")
    return actor_for_user(job.created_by, Visit(door="worker", request_id=str(job.pk)))


def _put_back(job: Job) -> None:
    job.state = JobState.QUEUED
    job.worker = ""
    job.lease_expires_at = None
    job.save()
    _tell_state(job)
    _wake_next(job)


def _fail(job: Job, code: str, detail: str, said: Mapping[str, Any] | None) -> None:
    job.error_code = code[:64]
    job.error_detail = detail[:4000]
    job.error_said = said
    _end(job, JobState.FAILED)
    if job.part is not None:
        return
    # Its detail may name inputs that not everybody sees who reads the log.
    record_event(
        Actor(username=job.worker, door="worker"),
        AuditAction.JOB_FAIL,
        namespace=job.namespace,
        target=str(job.pk),
        code=job.error_code,
    )


def _end(job: Job, state: JobState) -> None:
    job.state = state
    job.finished_at = timezone.now()
    job.lease_expires_at = None
    job.save()
    JobEvent.objects.filter(job=job, type="progress").delete()
    _tell_state(job)
    _wake_next(job)
    if job.parent_id is not None:
        # Afterwards, for whoever holds the whole may wait for its parts: it is locked first.
        transaction.on_commit(partial(_go_on_after_part, job.parent_id))
    else:
        announce_job(job)


def _end_attempt(job: Job, outcome: str, detail: str = "") -> None:
    Attempt.objects.filter(job=job, fence=job.fence, ended_at=None).update(
        ended_at=timezone.now(), outcome=outcome, detail=detail[:4000]
    )


# --- Parts of a job ------------------------------------------------------------------------------


def _go_on_after_part(job_id: uuid.UUID) -> None:
    """Let a job go on that waited for its parts; end it, and them, when one of them has failed."""
    with transaction.atomic():
        rows = Job.objects.select_for_update(of=("self",)).select_related("namespace")
        job = rows.filter(pk=job_id, state=JobState.QUEUED).first()
        if job is None:
            return
        if lost := _lost_part(job):
            _fail_for(job, lost)
            _stop_parts(job)
            return
        done, total = job.children.filter(state=JobState.SUCCEEDED).count(), job.children.count()
        job.progress = {"done": done, "total": total, "unit": "parts", "step": "predict"}
        job.save(update_fields=["progress"])
        JobEvent.objects.filter(job=job, type="progress").delete()
        _tell(job, "progress", job.progress)
        if done == total:
            _wake_later(job)


def _lost_part(job: Job) -> Job | None:
    """Find a part without which the job cannot go on."""
    lost = job.children.filter(state__in=(JobState.FAILED, JobState.CANCELLED))
    return lost.order_by("state", "finished_at").last()  # of both kinds one that failed


def _fail_for(job: Job, part: Job) -> None:
    problem = unpack(part.error_said) if part.error_said else part.error_detail
    said = Text(
        "Part {part} of {count} failed: {problem} Resume the job to compute only what is missing.",
        part=(part.part or 0) + 1,
        count=job.children.count(),
        problem=problem or Text("it was cancelled."),
    )
    _fail(job, "part_failed", said.detail, pack(said))


def _stop_parts(job: Job) -> None:
    for part in job.children.unfinished().select_for_update(of=("self",)).order_by("pk"):
        if part.state == JobState.QUEUED:
            _end(part, JobState.CANCELLED)
        else:
            part.cancel_requested_at = timezone.now()
            part.save(update_fields=["cancel_requested_at"])


# --- Saying so -----------------------------------------------------------------------------------


def _tell_state(job: Job, **facts: Any) -> None:
    data: dict[str, Any] = {"state": str(job.state), **facts}
    if job.error_code:
        data["error"] = {"code": job.error_code, "detail": job.error_detail}
    if job.result is not None and job.result.repository.may_be_named_in(job.namespace):
        repository = job.result.repository
        data["result"] = {
            "namespace": repository.namespace.slug,
            "name": repository.name,
            "number": job.result.number,
        }
    _tell(job, "state", data)


def _tell(job: Job, type_name: str, data: Mapping[str, Any]) -> None:
    _tell_all(job, [Message(type_name, data)])


def _tell_all(job: Job, messages: Sequence[Message]) -> None:
    rows = JobEvent.objects.bulk_create(
        JobEvent(job=job, type=message.type, data=dict(message.data)) for message in messages
    )
    events = [
        {"id": row.pk, "type": row.type, "data": row.data, "at": row.at.isoformat()} for row in rows
    ]
    transaction.on_commit(partial(queue.publish, job.pk, events))


def _wake_next(job: Job) -> None:
    """Wake a worker for the job that has waited for this one's place in the namespace."""
    if quotas.limit_of(job.namespace, quotas.JOBS) is None:
        return
    waiting = Job.objects.filter(namespace_id=job.namespace_id, state=JobState.QUEUED)
    following = waiting.order_by("-priority", "created_at", "pk").exclude(pk=job.pk).first()
    if following is not None:
        _wake_later(following)


def _wake_later(job: Job) -> None:
    transaction.on_commit(partial(queue.wake, job.queue, job.pk))
