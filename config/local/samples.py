"""The content of a new installation: two datasets, three models, and smaller variants of these.

Everything goes through the services that people's requests go through. Each part looks first
whether it is there already, so it may be stopped anywhere and started again.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from config.local import sample_data
from config.local.sample_data import (
    DIGITS,
    DIGITS_MODEL,
    DOCS,
    ENCODER,
    NAMESPACE,
    SMALLER,
    SMALLER_TOPICS,
    TOPICS_MODEL,
    TRAIN_DIGITS,
    TRAIN_TOPICS,
    MissingPackage,
    Recipe,
)
from registry.authenticate import Visit, actor_for_user
from registry.errors import NotFound, RegistryError
from registry.models import (
    Actor,
    AuditAction,
    Blob,
    Event,
    Job,
    JobState,
    Kind,
    Repository,
    User,
    Version,
)
from registry.recipes import parse_reference
from registry.services.blobs import record_blob
from registry.services.catalog import (
    describe_repository,
    find_repository,
    find_version,
    register_repository,
    set_alias,
    set_tag,
)
from registry.services.deployments import deploy
from registry.services.jobs import submit_job
from registry.services.namespaces import create_namespace, find_namespace
from registry.services.versions import create_version
from registry.storage import BLOCK_BYTES, default_storage

WAIT_SECONDS = 1800.0
_ASK_SECONDS = 1.0
_UNFINISHED = (JobState.QUEUED, JobState.RUNNING)

FACTS = {
    DIGITS_MODEL: {
        "license": "bsd-3-clause",
        "summary": "A two-convolution network that reads handwritten digits, trained here.",
    },
    TOPICS_MODEL: {
        "license": "psf-2.0",
        "summary": "An LSTM that tells what a piece of Python documentation is about,"
        " trained here.",
    },
}

logger = logging.getLogger(__name__)


def seed(*, wait_seconds: float = WAIT_SECONDS) -> None:
    """Fill the namespace `samples`; what is there already is left as it is."""
    admin = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
    if admin is None:
        _say("There is no administrator yet, so there are no samples.")
        return
    actor = actor_for_user(admin, Visit(door="samples"))
    try:
        find_namespace(actor, NAMESPACE)
    except NotFound:
        create_namespace(actor=actor, slug=NAMESPACE, display_name="Samples")
        actor = actor_for_user(admin, Visit(door="samples"))
    _part(DIGITS, lambda: _seed_dataset(actor, DIGITS, sample_data.digits_files))
    _part(ENCODER, lambda: _seed_encoder(actor))
    _part(f"the endpoint {ENCODER}", lambda: _deploy(actor, ENCODER, "latest"))
    training = _part(DIGITS_MODEL, lambda: _train(actor, TRAIN_DIGITS))
    _part(DOCS, lambda: _seed_dataset(actor, DOCS, sample_data.docs_files))
    trained = _has_ended(training, wait_seconds)
    _part(f"{DIGITS_MODEL}@champion", lambda: _crown(actor, DIGITS_MODEL, DIGITS))
    _part(f"the endpoint {DIGITS_MODEL}", lambda: _deploy(actor, DIGITS_MODEL, "@champion"))
    if (
        trained
        and _shrink(actor, SMALLER, wait_seconds)
        and _has_ended(_part(TOPICS_MODEL, lambda: _train(actor, TRAIN_TOPICS)), wait_seconds)
    ):
        _part(f"{TOPICS_MODEL}@champion", lambda: _crown(actor, TOPICS_MODEL, DOCS))
        _shrink(actor, SMALLER_TOPICS, wait_seconds)


def _part(name: str, make: Callable[[], object]) -> object:
    """Make one sample; one that cannot be made does not take the others with it."""
    try:
        return make()
    except MissingPackage as missing:
        _say(f"{name} is left out: the package {missing} is not installed.")
    except RegistryError as error:
        logger.exception("The sample %s could not be made", name)
        _say(f"{name} could not be made: {error.detail}")
    return None


def _seed_dataset(actor: Actor, name: str, make: Callable[[], Mapping[str, bytes]]) -> None:
    repository = _repository(actor, Kind.DATASET, name)
    if repository is None or _latest(actor, repository) is not None:
        return
    files = {path: _store([content]) for path, content in make().items()}
    create_version(
        actor=actor, repository=repository, files=files, message="The sample as installed."
    )
    _say(f"{name} is there.")


def _seed_encoder(actor: Actor) -> None:
    sources = sample_data.encoder_files()
    repository = _repository(actor, Kind.MODEL, ENCODER)
    if repository is None or _latest(actor, repository) is not None:
        return
    files = {path: _store(_blocks(file)) for path, file in sources.items()}
    create_version(
        actor=actor,
        repository=repository,
        files=files,
        message=f"As shipped in {sample_data.encoder_origin()}.",
        source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    )
    _say(f"{ENCODER} is there.")


def _train(actor: Actor, recipe: Recipe) -> Job | None:
    """Give the job that makes a model; none where there is a model already."""
    output = str(recipe["output"])
    repository = _repository(actor, Kind.MODEL, output)
    if repository is None or _latest(actor, repository) is not None:
        return None
    unfinished = Job.objects.filter(kind="train", recipe__output=output, state__in=_UNFINISHED)
    if (going := unfinished.first()) is not None:
        return going
    job = submit_job(actor=actor, recipe=recipe)
    _say(f"{output} is being trained by job {job.pk}.")
    return job


def _has_ended(job: object, seconds: float) -> bool:
    """Look at the row until the job, if there is one, has ended.

    The worker does the work, this only follows. What is not done in time is left to the next start.
    """
    if not isinstance(job, Job):
        return True
    end = time.monotonic() + seconds
    while not job.is_finished and time.monotonic() < end:
        time.sleep(_ASK_SECONDS)
        job.refresh_from_db()
    if job.state != JobState.SUCCEEDED:
        _say(f"The job {job.pk} is {job.state}. {job.error_detail}".strip())
    return job.is_finished


def _crown(actor: Actor, name: str, data: str) -> None:
    """Name the trained version champion, and say what it is."""
    repository = _find(actor, Kind.MODEL, name)
    version = _latest(actor, repository) if repository is not None else None
    if repository is None or version is None:
        return
    if not repository.aliases.filter(name="champion").exists():
        set_alias(actor=actor, repository=repository, alias="champion", version=version)
        value = parse_reference(data).name
        set_tag(actor=actor, repository=repository, version=version, key="data", value=value)
        describe_repository(actor=actor, repository=repository, changes=FACTS[name])


def _shrink(actor: Actor, recipes: Iterable[Recipe], seconds: float) -> bool:
    """Have variants made, one after another, so that no job of a person waits for many of these."""
    for recipe in recipes:
        name = f"{recipe['model']}+{recipe['variant']}"
        job = _part(name, lambda recipe=recipe: _compress(actor, recipe))  # type: ignore[misc]
        if not _has_ended(job, seconds):
            return False
    return True


def _compress(actor: Actor, recipe: Recipe) -> Job | None:
    """Give the job that makes a variant; none where it was made, or its model is away."""
    asked = parse_reference(str(recipe["model"]))
    repository = _find(actor, Kind.MODEL, f"{asked.namespace}/{asked.name}")
    if repository is None or _latest(actor, repository) is None:
        return None
    variant = recipe["variant"]
    if Version.objects.filter(repository=repository, variant=variant).exists():
        return None
    unfinished = Job.objects.filter(
        kind="compress",
        recipe__model__startswith=f"{repository.full_name}@",
        recipe__variant=variant,
        state__in=_UNFINISHED,
    )
    if (going := unfinished.first()) is not None:
        return going
    job = submit_job(actor=actor, recipe=recipe)
    _say(f"{recipe['model']} is being made smaller by job {job.pk}.")
    return job


def _deploy(actor: Actor, model: str, version: str) -> None:
    """Deploy a sample; one whose endpoint somebody deleted stays without."""
    repository = _find(actor, Kind.MODEL, model)
    if repository is None or _latest(actor, repository) is None:
        return
    made = Event.objects.filter(
        repository_id=repository.pk, action=AuditAction.ENDPOINT_CREATE.value
    )
    if made.exists():
        return
    deploy(actor=actor, model=model, version=version)
    _say(f"{model} is deployed.")


def _repository(actor: Actor, kind: Kind, full_name: str) -> Repository | None:
    """Find or register a sample; one that somebody deleted stays deleted."""
    found = _find(actor, kind, full_name)
    if found is not None:
        return found
    name = parse_reference(full_name).name
    if Repository.objects.filter(kind=kind, namespace__slug=NAMESPACE, name=name).exists():
        return None
    return register_repository(
        actor=actor,
        kind=kind,
        namespace=NAMESPACE,
        name=name,
        tags={"sample": "true"},
    )


def _find(actor: Actor, kind: Kind, full_name: str) -> Repository | None:
    reference = parse_reference(full_name)
    try:
        return find_repository(actor, kind, reference.namespace, reference.name)
    except NotFound:
        return None


def _latest(actor: Actor, repository: Repository) -> Version | None:
    try:
        return find_version(actor, repository, "latest")
    except NotFound:
        return None


def _store(chunks: Iterable[bytes]) -> Blob:
    return record_blob(default_storage().put(chunks))


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            yield block


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
