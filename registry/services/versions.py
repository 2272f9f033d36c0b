"""Versions: numbered snapshots of files, with their facts, parents and measured numbers."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from django.db import IntegrityError, transaction
from django.utils import timezone

from registry.errors import SILENCE, Conflict, Invalid, NotFound, Saying, Text
from registry.formats.card import Card, parse_card
from registry.formats.paths import check_paths
from registry.lexicon import terms_of
from registry.models import (
    QUALITY_METRICS,
    Actor,
    Artifact,
    AuditAction,
    Blob,
    Evaluation,
    Inspection,
    Job,
    Kind,
    LineageEdge,
    LineageRole,
    Ref,
    Repository,
    Revision,
    Screening,
    Tag,
    Verdict,
    Version,
    VersionQuerySet,
    VersionState,
)
from registry.permissions import require
from registry.queue import wake_screening
from registry.services import lifecycle
from registry.services.audit import record_event
from registry.services.blobs import (
    CONVERTIBLE,
    RUNNABLE,
    collected_meanwhile,
    hold_blobs,
    inspect_blob,
    inspect_kept,
)
from registry.services.catalog import (
    DESCRIBABLE,
    check_etag,
    check_tags,
    lock_repository,
    refresh_search,
    require_unheld,
    set_quality,
)
from registry.services.quotas import free_room, take_room
from registry.services.signatures import sign_version
from registry.services.texts import check_text, invalid_field
from registry.storage import default_storage

CARD_PATH = "README.md"
CONFIG_PATH = "config.json"
MAX_FILES = 10_000
# Pages show the declared numbers of a version together.
MAX_DECLARED = 500
MAX_DETAILS_BYTES = 4096
BEING_CONVERTED = Text(
    "Its files can run code when they are loaded; they are being looked into and converted in the "
    "sandbox."
)
# What describes a dataset and holds none of its rows.
_BESIDE_DATA = (".md", "license", "license.txt", "notice", "dataset.json", "config.json")
_CARD_BYTES = 1 << 20
_CONFIG_BYTES = 1 << 20
_CARD_SEARCHED_CHARACTERS = 20_000
# The columns of a repository that repeat a card, and in how many cards they are looked for.
_FROM_CARDS = ("license", "task", "library", "base_model")
_CARDS_READ = 8
_MAX_PORTS = 1000
_MAX_DIMENSIONS = 64


@dataclass(frozen=True, kw_only=True)
class ParentSpec:
    """A version that the new one came from, and what it gave."""

    version: Version
    role: str


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    """A number about a version: measured by a job of ours, or declared from outside."""

    metric: str
    value: float
    unit: str = ""
    split: str = ""
    n: int | None = None
    low: float | None = None
    high: float | None = None
    device: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    dataset: Version | None = None


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the files of a version say about it, gathered before the transaction."""

    formats: list[str]
    signature: dict[str, Any]
    config: dict[str, Any]
    parameters_count: int | None
    size_bytes: int
    state: str
    state_reason: Saying
    card: Card | None
    inspections: Mapping[str, Inspection]


def create_version(  # noqa: PLR0913 - a version is this wide
    *,
    actor: Actor,
    repository: Repository,
    files: Mapping[str, Blob],
    message: object = "",
    variant: object = "",
    tags: Mapping[str, str] | None = None,
    source: object = "",
    parents: Sequence[ParentSpec] = (),
    job: Job | None = None,
    evaluations: Sequence[EvaluationSpec] = (),
    restores: int | None = None,
) -> Version:
    """Register the next version of a repository.

    `files` maps paths to blobs that the caller has shown to be theirs to use. A version without
    files registers metadata alone. With a `variant` it stands beside the main line: it never
    becomes the latest. The same job yields the same version of a variant, however
    often it asks. `restores` is the number of the version that it repeats, which is its one
    parent then.

    Raises:
        Invalid: a path, a file's header or a field is wrong; nothing was written.
        Denied: the actor may not write here.
        NamespaceFull: the namespace has no room for it; nothing was written.

    """
    require(actor, "write", repository)
    text = check_text("message", message, max_length=10_000)
    beside = check_text("variant", variant, max_length=64)
    origin = check_text("source", source, max_length=2000)
    labelled = check_tags(tags or {})
    if len(files) > MAX_FILES:
        raise invalid_field(
            "files", "too_many", "A version holds at most {limit} files.", limit=MAX_FILES
        )
    check_paths(list(files))
    try:
        facts = _gather(repository.kind, files)
    except (NotFound, IntegrityError) as error:
        # Nothing is looked for there but the bytes of blobs that were found before.
        raise collected_meanwhile() from error
    if job is None and restores is None:
        _require_distinct_ports(facts.config)
    again: dict[str, Any] = {} if restores is None else {"restores": restores}
    with transaction.atomic():
        row = lock_repository(repository)
        if job is not None:
            done = Version.objects.filter(repository=row, job=job, variant=beside).first()
            if done is not None:
                return done
        hold_blobs(files.values())
        number = row.last_number + 1
        revision = _commit(row, actor, files, number=number, message=text, move_main=not beside)
        version = Version.objects.create(
            repository=row,
            number=number,
            revision=revision,
            variant=beside,
            state=facts.state,
            state_reason=facts.state_reason.detail,
            state_reason_said=facts.state_reason.said,
            source=origin,
            message=text,
            formats=facts.formats,
            signature=facts.signature,
            config=facts.config,
            parameters_count=facts.parameters_count,
            size_bytes=facts.size_bytes,
            files_count=len(files),
            job=job,
            created_by_id=actor.user_id,
        )
        Tag.objects.bulk_create(
            Tag(repository=row, version=version, key=key, value=value)
            for key, value in labelled.items()
        )
        LineageEdge.objects.bulk_create(
            LineageEdge(
                child=version,
                parent=parent.version,
                role=parent.role,
                job=job,
                restores=restores is not None,
            )
            for parent in parents
        )
        _add_evaluations(version, evaluations, measured=job is not None, job=job, actor=actor)
        row.last_number = number
        if not beside:
            _follow_main_line(row, version, facts.card)
            set_quality(row)
        row.save()
        refresh_search(row)
        sign_version(version, {path: blob.sha256 for path, blob in files.items()})
        plan_screening(version, facts.inspections)
        take_room(row.namespace, Version.objects.filter(pk=version.pk))
        record_event(
            actor,
            AuditAction.VERSION_CREATE,
            repository=row,
            target=version.ref,
            files=len(files),
            **again,
        )
    return version


def restore_as_new(*, actor: Actor, version: Version, message: object = "") -> Version:
    """Register the files and tags of an old version once more, as the newest of the main line.

    The bytes are shared. Where the files stand is judged afresh: what is quarantined stays so.

    Raises:
        Denied: the actor may not write here.
        NotFound: the actor may not read the files of an archived version.
        Conflict: it is the newest already.
        NamespaceFull: the namespace has no room for it.

    """
    repository = version.repository
    require(actor, "write", repository)
    if not may_read_files(actor, version):
        raise NotFound(
            "{version} is archived or deleted, and only maintainers read its files.",
            code="version_not_found",
            version=version.ref,
        )
    newest = (
        Version.objects.filter(repository=repository).live().main_line().order_by("-number").first()
    )
    if newest is not None and newest.pk == version.pk:
        raise Conflict(
            "{version} is the newest version already.", code="already_newest", version=version.ref
        )
    said = check_text("message", message, max_length=9_000)
    role = LineageRole.WEIGHTS if repository.kind == Kind.MODEL else LineageRole.DATA
    artifacts = Artifact.objects.filter(revision_id=version.revision_id).select_related("blob")
    return create_version(
        actor=actor,
        repository=repository,
        files={row.path: row.blob for row in artifacts},
        message=f"Restores version {version.number}" + (f": {said}" if said else "."),
        tags=dict(version.tags.values_list("key", "value")),
        source=version.source,
        parents=[ParentSpec(version=version, role=role)],
        restores=version.number,
    )


def _commit(
    repository: Repository,
    actor: Actor,
    files: Mapping[str, Blob],
    *,
    number: int,
    message: str,
    move_main: bool,
) -> Revision:
    """Write the snapshot; its id is the SHA-1 of its manifest, parent, number and message."""
    main = (
        Ref.objects.select_for_update(of=("self",))
        .select_related("revision")
        .get(repository=repository, name="main")
    )
    manifest = [[path, files[path].sha256] for path in sorted(files)]
    seed = json.dumps([repository.pk, number, main.revision.commit, message, manifest])
    revision = Revision.objects.create(
        repository=repository,
        commit=hashlib.sha1(seed.encode(), usedforsecurity=False).hexdigest(),
        parent=main.revision,
        author_id=actor.user_id,
        message=message,
    )
    Artifact.objects.bulk_create(
        Artifact(revision=revision, path=path, blob=blob) for path, blob in files.items()
    )
    if move_main:
        main.revision = revision
        main.updated_at = timezone.now()
        main.save(update_fields=["revision", "updated_at"])
    return revision


# --- What the files say --------------------------------------------------------------------------


def _gather(kind: str, files: Mapping[str, Blob]) -> _Facts:
    inspections = {path: inspect_blob(path, blob) for path, blob in files.items()}
    formats = sorted({row.format for row in inspections.values()} - {"json", "text", "opaque"})
    config = _read_config(files.get(CONFIG_PATH))
    card = None
    if CARD_PATH in files:
        card = parse_card(_read_text(files[CARD_PATH], _CARD_BYTES))
    verdict = judge_files(kind, inspections)
    return _Facts(
        formats=formats,
        signature=_signature(config, inspections),
        config=config,
        parameters_count=_count_parameters(inspections) if kind == Kind.MODEL else None,
        size_bytes=sum(blob.size_bytes for blob in files.values()),
        state=verdict.state,
        state_reason=verdict.reason,
        card=card,
        inspections=inspections,
    )


def judge_files(kind: str, inspections: Mapping[str, Inspection]) -> lifecycle.Verdict:
    """Quarantine a version only when it has executable files and none that runs without them."""
    held = [row for row in inspections.values() if row.verdict == Verdict.QUARANTINED]
    if held and not any(_is_usable(kind, path, row) for path, row in inspections.items()):
        if kind == Kind.MODEL and any(row.format in CONVERTIBLE for row in held):
            return lifecycle.Verdict(VersionState.PENDING, Saying.of(BEING_CONVERTED))
        return quarantine_held(inspections)
    return lifecycle.Verdict(VersionState.READY, SILENCE)


def quarantine_held(inspections: Mapping[str, Inspection]) -> lifecycle.Verdict:
    """Hold a version for the first of its files that can run code."""
    path = min(path for path, row in inspections.items() if row.verdict == Verdict.QUARANTINED)
    return lifecycle.Verdict(VersionState.QUARANTINED, Saying.of(quarantine_reason(path)))


def quarantine_reason(path: str) -> Text:
    return Text(
        "{path} can execute code when it is loaded, and there is no safetensors or ONNX file "
        "beside it; it can be downloaded, not run.",
        path=path,
    )


def judge_version(version: Version) -> lifecycle.Verdict:
    """Say where the files of a version put it, as the present readers and the sandbox see them."""
    inspections = inspect_files(version)
    if has_good_derivative(version):
        return lifecycle.Verdict(VersionState.READY, SILENCE)
    verdict = judge_files(version.repository.kind, inspections)
    screened = Screening.objects.filter(version=version, state=Screening.State.DONE)
    if verdict.state == VersionState.PENDING and screened.exists():
        return quarantine_held(inspections)
    return verdict


def inspect_files(version: Version) -> dict[str, Inspection]:
    """Give what the present readers say of each file, having them look where they have not yet."""
    artifacts = Artifact.objects.filter(revision_id=version.revision_id).select_related("blob")
    return {row.path: inspect_kept(row.path, row.blob) for row in artifacts}


def has_good_derivative(version: Version) -> bool:
    """Say whether something was converted that the present readers, too, let pass."""
    made = version.derivatives.converted().select_related("blob")
    return any(inspect_kept(row.path, row.blob).verdict == Verdict.SAFE for row in made)


def plan_screening(version: Version, inspections: Mapping[str, Inspection]) -> None:
    """Have the sandbox look into files that can run code, and convert them where that helps."""
    held = [row for row in inspections.values() if row.verdict == Verdict.QUARANTINED]
    runs = any(_is_usable(Kind.MODEL, path, row) for path, row in inspections.items())
    converts = (
        version.repository.kind == Kind.MODEL
        and not runs
        and any(row.format in CONVERTIBLE for row in inspections.values())
    )
    if held or converts:
        row, is_new = Screening.objects.get_or_create(
            version=version, defaults={"converts": converts}
        )
        if not is_new:
            row.state, row.converts, row.attempts_count = row.State.WAITING, converts, 0
            row.save(update_fields=["state", "converts", "attempts_count"])
        transaction.on_commit(lambda: wake_screening(version.pk))


def _is_usable(kind: str, path: str, inspection: Inspection) -> bool:
    """Tell weights that run, or rows of a dataset, from what only stands beside them."""
    if inspection.verdict != Verdict.SAFE:
        return False
    if kind == Kind.MODEL:
        return inspection.format in RUNNABLE
    return not path.lower().endswith(_BESIDE_DATA)


def _count_parameters(inspections: Mapping[str, Inspection]) -> int | None:
    """Count the parameters of the weights, in one format: the same weights are often there twice.

    Files of one format are added up (shards); of ONNX the largest counts, for the others are
    usually its quantized siblings.
    """
    for format_name, combine in (("safetensors", sum), ("onnx", max), ("myz", max), ("gguf", sum)):
        counts = [
            row.facts["parameters_count"]
            for row in inspections.values()
            if row.format == format_name and row.facts.get("parameters_count") is not None
        ]
        if counts:
            return int(combine(counts))
    return None


def _signature(config: Mapping[str, Any], inspections: Mapping[str, Inspection]) -> dict[str, Any]:
    declared = config.get("signature")
    if isinstance(declared, dict):
        sides = {side: _declared_ports(declared.get(side)) for side in ("inputs", "outputs")}
        if None not in sides.values():
            return sides
    # Of several graphs the one that is served and exported, by its name.
    for path in sorted(inspections, key=lambda path: (path != "model.onnx", path)):
        facts = inspections[path].facts
        if facts.get("inputs") and facts.get("outputs"):
            return {"inputs": facts["inputs"], "outputs": facts["outputs"]}
    return {}


def _require_distinct_ports(config: Mapping[str, Any]) -> None:
    """Refuse a declaration that gives one name to two inputs: callers could not send both."""
    declared = config.get("signature")
    for side in ("inputs", "outputs"):
        ports = _declared_ports(declared.get(side)) if isinstance(declared, dict) else None
        names = Counter(port["name"] for port in ports or ())
        for name, count in names.items():
            if count > 1:
                raise invalid_field(
                    "files",
                    "repeated_port",
                    "config.json: in its signature, two of {side} have the name {name!r}; each "
                    "needs a name of its own.",
                    side=side,
                    name=name[:80],
                )


def _declared_ports(value: object) -> list[dict[str, Any]] | None:
    """Take what a config.json says of inputs or outputs; None unless it has the known shape."""
    if not isinstance(value, list) or len(value) > _MAX_PORTS:
        return None
    ports = [
        {key: port.get(key) for key in ("name", "dtype", "shape")}
        for port in value
        if isinstance(port, dict)
    ]
    return ports if len(ports) == len(value) and all(map(_is_port, ports)) else None


def _is_port(port: Mapping[str, Any]) -> bool:
    shape = port["shape"]
    return (
        isinstance(port["name"], str)
        and isinstance(port["dtype"], str)
        and isinstance(shape, list)
        and len(shape) <= _MAX_DIMENSIONS
        and all(
            size is None or isinstance(size, str) or (type(size) is int and -1 <= size < 1 << 63)
            for size in shape
        )
    )


def _read_config(blob: Blob | None) -> dict[str, Any]:
    if blob is None or blob.size_bytes > _CONFIG_BYTES:
        return {}
    try:
        loaded = json.loads(_read_text(blob, _CONFIG_BYTES))
    except (ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) and "\\u0000" not in json.dumps(loaded) else {}


def _read_text(blob: Blob, limit: int) -> str:
    raw = default_storage().read(blob.sha256, start=0, end=min(blob.size_bytes, limit))
    return raw.decode("utf-8", "replace").replace("\0", "\ufffd")


def may_read_files(actor: Actor, version: Version) -> bool:
    """Say whether `actor`, who sees a version, may read its files: of an archived one few may."""
    if version.state != VersionState.ARCHIVED and version.deleted_at is None:
        return True
    return Version.objects.downloadable_by(actor).filter(pk=version.pk).exists()


def read_card(actor: Actor, version: Version) -> Card | None:
    """Read the README.md of a version, its YAML head apart from its text, for who may read it."""
    return _card_of(version.revision_id) if may_read_files(actor, version) else None


def _card_of(revision_id: int) -> Card | None:
    artifact = (
        Artifact.objects.filter(revision_id=revision_id, path=CARD_PATH)
        .select_related("blob")
        .first()
    )
    return parse_card(_read_text(artifact.blob, _CARD_BYTES)) if artifact else None


def _follow_main_line(repository: Repository, version: Version, card: Card | None) -> None:
    """Let the columns of the repository repeat its newest main-line version."""
    if version.is_usable or repository.latest_number is None:
        repository.formats = version.formats
        repository.parameters_count = version.parameters_count
        repository.size_bytes = version.size_bytes
    if version.is_usable:
        repository.latest_number = version.number
    if card is None:
        return
    for name, value in _said_by(card).items():
        if value:
            setattr(repository, name, value)
    if card.summary and not repository.summary:
        repository.summary = card.summary[: DESCRIBABLE["summary"]]
    _let_be_found(repository, card)


def _said_by(card: Card) -> dict[str, str]:
    """Give the columns of a repository that repeat what a card says, or nothing."""
    said = {
        "license": card.license,
        "task": card.task,
        "library": card.library,
        "base_model": card.base_models[0] if card.base_models else "",
    }
    return {name: value[: DESCRIBABLE[name]] for name, value in said.items()}


def _let_be_found(repository: Repository, card: Card | None) -> None:
    """Let a repository be found by what its card says."""
    repository.labels = [label[:100] for label in card.tags][:100] if card else []
    repository.card_text = card.body[:_CARD_SEARCHED_CHARACTERS] if card else ""
    repository.card_terms = terms_of(repository.card_text)


# --- Numbers ----------------------------------------------------------------------------------


def _add_evaluations(
    version: Version,
    evaluations: Sequence[EvaluationSpec],
    *,
    measured: bool,
    job: Job | None,
    actor: Actor,
) -> list[Evaluation]:
    return Evaluation.objects.bulk_create(
        Evaluation(
            version=version,
            dataset_version=spec.dataset,
            metric=spec.metric[:64],
            value=spec.value,
            unit=spec.unit[:32],
            split=spec.split[:64],
            n=spec.n,
            low=spec.low,
            high=spec.high,
            device=spec.device[:100],
            details=dict(spec.details),
            measured=measured,
            job=job,
            created_by_id=actor.user_id,
        )
        for spec in evaluations
    )


def _check_details(evaluations: Sequence[EvaluationSpec]) -> None:
    for spec in evaluations:
        if len(orjson.dumps(dict(spec.details))) > MAX_DETAILS_BYTES:
            raise invalid_field(
                "details",
                "too_long",
                "The details of a number take at most {limit} bytes of JSON.",
                limit=MAX_DETAILS_BYTES,
            )


def _require_room_for(version: Version, count: int) -> None:
    """Hold the repository, so that two at once are counted one after the other."""
    lock_repository(version.repository)
    declared = Evaluation.objects.filter(version=version, measured=False).count()
    if declared + count > MAX_DECLARED:
        raise Conflict(
            "{version} has {count} declared numbers, as many as fit.",
            code="too_many_evaluations",
            version=version.ref,
            count=declared,
        )


def add_evaluations(
    *,
    actor: Actor,
    version: Version,
    evaluations: Sequence[EvaluationSpec],
    job: Job | None = None,
) -> list[Evaluation]:
    """Append numbers to a version: measured when a job of ours made them, else declared.

    Raises:
        Invalid: the details of a declared one are too long.
        Conflict: the version has as many declared numbers as fit.

    """
    require(actor, "write", version.repository)
    if job is None:
        _check_details(evaluations)
    with transaction.atomic():
        if job is None:
            _require_room_for(version, len(evaluations))
        if job is not None and (done := list(Evaluation.objects.filter(version=version, job=job))):
            return done
        rows = _add_evaluations(
            version, evaluations, measured=job is not None, job=job, actor=actor
        )
        if any(row.metric in QUALITY_METRICS for row in rows):
            repository = lock_repository(version.repository)
            set_quality(repository)
            repository.save(update_fields=["quality", "quality_metric"])
        record_event(
            actor,
            AuditAction.VERSION_EVALUATE,
            repository=version.repository,
            target=version.ref,
            metrics=[row.metric for row in rows],
        )
    return rows


# --- Describing and deleting -----------------------------------------------------------------


def describe_version(
    *,
    actor: Actor,
    version: Version,
    changes: Mapping[str, object],
    expected_etag: str | None = None,
) -> Version:
    """Change a version's message or state; its files are frozen.

    Raises:
        Invalid: a deprecation without a reason.
        Conflict: the state cannot be left by hand, or something still needs the version.
        NotFound: somebody deleted it at the same moment.

    """
    require(actor, "write", version.repository)
    with transaction.atomic():
        repository = lock_repository(version.repository)
        row = Version.objects.live().select_for_update(of=("self",)).filter(pk=version.pk).first()
        if row is None:
            raise _deleted(version)
        row.repository = repository
        check_etag(expected_etag, row.etag, row.ref)
        if lifecycle.needs_maintainer(row, changes):
            require(actor, "maintain", repository)
        for name, value in changes.items():
            if name == "message":
                row.message = check_text("message", value, max_length=10_000)
            elif name not in {"state", "state_reason"}:
                raise invalid_field(
                    name,
                    "unknown_field",
                    "{name!r} cannot be changed; there are message, state and state_reason.",
                    name=name,
                )
        was_archived = row.state == VersionState.ARCHIVED
        lifecycle.change_standing(row, changes, judge=judge_version)
        row.updated_at = timezone.now()
        row.save()
        is_archived = row.state == VersionState.ARCHIVED
        find_latest(
            repository,
            gone=row if is_archived and not was_archived else None,
            back=row if was_archived and not is_archived else None,
        )
        record_event(
            actor,
            AuditAction.VERSION_DESCRIBE,
            repository=repository,
            target=row.ref,
            fields=sorted(changes),
            state=row.state,
        )
    return row


def _deleted(version: Version) -> NotFound:
    return NotFound("{version} was deleted.", code="version_not_found", version=version.ref)


def find_latest(
    repository: Repository, *, gone: Version | None = None, back: Version | None = None
) -> None:
    """Let the columns of a locked repository repeat its newest main-line version.

    That is one that can be used; where none can yet, the newest that is there shows what comes.
    `gone` was just deleted or archived, `back` is there again.
    """
    line = Version.objects.live().filter(repository=repository).main_line().order_by("-number")
    latest = line.usable().first()
    shown = latest or line.exclude(state=VersionState.ARCHIVED).first()
    repository.latest_number = latest.number if latest else None
    repository.formats = shown.formats if shown else []
    repository.parameters_count = shown.parameters_count if shown else None
    repository.size_bytes = shown.size_bytes if shown else None
    # What was archived or deleted is not found by its words either.
    carded = line.exclude(state=VersionState.ARCHIVED).filter(revision__artifacts__path=CARD_PATH)
    told, labels = carded.first(), repository.labels
    _let_be_found(repository, _card_of(told.revision_id) if told else None)
    changed = _follow_cards(repository, carded, gone=gone, back=back)
    repository.updated_at = timezone.now()
    set_quality(repository)
    repository.save()
    if changed or repository.labels != labels:
        refresh_search(repository)


def _follow_cards(
    repository: Repository,
    carded: VersionQuerySet,
    *,
    gone: Version | None,
    back: Version | None,
) -> bool:
    """Say what the cards say now, where the columns say what the cards said before.

    What somebody wrote there by hand stays. Tells whether anything changed.
    """
    moved = gone or back
    if moved is None or moved.variant:
        return False
    now = dict(carded.values_list("number", "revision")[: _CARDS_READ + 1])
    before = {number: key for number, key in now.items() if number != moved.number}
    if gone is not None:
        before[gone.number] = gone.revision_id
    cards: dict[int, Card | None] = {}
    old, new = (_said_by_line(revisions, cards) for revisions in (before, now))
    changes = {
        name: new[name]
        for name in new
        if new[name] != old[name] and getattr(repository, name) == old[name]
    }
    for name, value in changes.items():
        setattr(repository, name, value)
    return bool(changes)


def _said_by_line(revisions: Mapping[int, int], cards: dict[int, Card | None]) -> dict[str, str]:
    """Give what the newest card says, and where it says nothing, the one before it."""
    said = dict.fromkeys(_FROM_CARDS, "")
    for number in sorted(revisions, reverse=True)[:_CARDS_READ]:
        key = revisions[number]
        if key not in cards:
            cards[key] = _card_of(key)
        card = cards[key]
        if card is not None:
            said = {name: said[name] or value for name, value in _said_by(card).items()}
        if all(said.values()):
            break
    return said


def delete_version(*, actor: Actor, version: Version, expected_etag: str | None = None) -> None:
    """Delete a version; it can be brought back for a time, and its number is never given again.

    Raises:
        PreconditionFailed: it changed since the caller read `expected_etag`.
        Conflict: an alias points at it, or a job that is not finished reads it.

    """
    require(actor, "maintain", version.repository)
    with transaction.atomic():
        repository = lock_repository(version.repository)
        row = Version.objects.live().filter(pk=version.pk).first()
        if row is None:
            raise _deleted(version)
        check_etag(expected_etag, row.etag, version.ref)
        require_unheld(Version.objects.filter(pk=row.pk))
        Version.objects.filter(pk=version.pk).update(deleted_at=timezone.now())
        find_latest(repository, gone=None if row.state == VersionState.ARCHIVED else row)
        free_room(repository.namespace, Version.objects.filter(pk=version.pk))
        record_event(actor, AuditAction.VERSION_DELETE, repository=repository, target=version.ref)


def require_runnable(version: Version) -> None:
    """Pass when jobs can open the version's files.

    Raises:
        Conflict: it is not ready.
        Invalid: none of its files is in a format that is opened directly.

    """
    if not version.is_usable:
        raise Conflict(
            "{version} is {state}: {reason}",
            code="version_not_ready",
            version=version.ref,
            state=version.state,
            reason=version.why or Text("it cannot be used."),
        )
    if not RUNNABLE & set(version.formats):
        raise Invalid(
            "{version} has no safetensors, ONNX or myz file, so it cannot be run; register one "
            "converted to safetensors with a config.json, or exported to ONNX.",
            code="not_runnable",
            version=version.ref,
        )
