"""Versions with files that can run code: handed to the sandbox, and what comes back of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath

from django.db import transaction
from django.db.models import Case, F, IntegerField, Q, Value, When
from django.utils import timezone

from registry.errors import SILENCE, Saying, Text
from registry.models import (
    Actor,
    Artifact,
    AuditAction,
    Blob,
    Derivative,
    Inspection,
    Purpose,
    Repository,
    Screening,
    Verdict,
    Version,
    VersionState,
)
from registry.services import lifecycle
from registry.services.audit import record_event
from registry.services.blobs import CONVERTIBLE, hold_blobs, inspect_kept
from registry.services.catalog import refresh_search
from registry.services.signatures import sign_version
from registry.services.versions import find_latest, quarantine_reason
from registry.services.workers import sandbox_offered

# Longer than one file may take; the worker renews it between files.
LEASE = timedelta(minutes=15)
MAX_ATTEMPTS = 3
# What could not be finished waits so long, while others have their turn.
REST = timedelta(minutes=1)
# Nobody asks for it: it follows from what was registered.
_WORKER = Actor(door="worker")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A file that the sandbox made, after the readers of headers have accepted it."""

    source_path: str
    path: str
    blob: Blob
    inspection: Inspection
    toolchain: str


@dataclass(frozen=True, kw_only=True)
class Held:
    """A file of a version that the sandbox is to look into."""

    path: str
    blob: Blob
    format: str
    convertible: bool


def claim_screening(*, served: Sequence[int] = ()) -> Screening | None:
    """Take the next version that waits, or whose worker died over it, for a worker that can.

    `served` lists the namespaces that had their turn, the latest last: they come after those that
    had none, so that nobody's many versions keep everybody else's waiting.
    """
    now = timezone.now()
    with transaction.atomic():
        row = (
            Screening.objects.select_for_update(of=("self",), skip_locked=True)
            .exclude(state=Screening.State.DONE)
            # A lease on one that waits is its rest after something failed.
            .filter(
                Q(lease_expires_at__lt=now)
                | Q(lease_expires_at=None) & ~Q(state=Screening.State.RUNNING)
            )
            .filter(version__deleted_at=None, version__repository__deleted_at=None)
            .select_related("version__repository__namespace")
            .order_by(*_turns(served), "created_at")
            .first()
        )
        if row is None:
            return None
        row.state = Screening.State.RUNNING
        row.attempts_count = F("attempts_count") + 1
        row.lease_expires_at = now + LEASE
        row.save(update_fields=["state", "attempts_count", "lease_expires_at"])
        row.refresh_from_db(fields=["attempts_count"])
    return row


def _turns(served: Sequence[int]) -> list[Case]:
    if not served:
        return []
    places = [
        When(version__repository__namespace=namespace, then=Value(place))
        for place, namespace in enumerate(served, start=1)
    ]
    return [Case(*places, default=Value(0), output_field=IntegerField())]


def renew_screening(screening: Screening) -> None:
    """Say that somebody is still at it."""
    held = Screening.objects.filter(pk=screening.pk, state=Screening.State.RUNNING)
    held.update(lease_expires_at=timezone.now() + LEASE)


def release_screening(screening: Screening, *, counted: bool, rest: bool) -> None:
    """Give a version back that was not finished.

    `counted` says whether that may be its own fault, `rest` whether it is to wait a little.
    """
    held = Screening.objects.filter(pk=screening.pk, state=Screening.State.RUNNING)
    held.update(
        state=Screening.State.WAITING,
        lease_expires_at=timezone.now() + REST if rest else None,
        attempts_count=F("attempts_count") - (0 if counted else 1),
    )


def find_held(screening: Screening) -> list[Held]:
    """List the files of a version that can run code, or could be run once converted."""
    artifacts = (
        Artifact.objects.filter(revision_id=screening.version.revision_id)
        .select_related("blob")
        .order_by("path")
    )
    found = []
    for artifact in artifacts:
        row = inspect_kept(artifact.path, artifact.blob)
        convertible = screening.converts and row.format in CONVERTIBLE
        if row.verdict == Verdict.QUARANTINED or convertible:
            found.append(
                Held(
                    path=artifact.path,
                    blob=artifact.blob,
                    format=row.format,
                    convertible=convertible,
                )
            )
    return found


def name_conversion(path: str, format_name: str, *, alone: bool, taken: frozenset[str]) -> str:
    """Name a converted file: as jobs look for it where it is the only one, else as its source."""
    ending = "onnx" if format_name == "onnx" else "safetensors"
    source = PurePosixPath(path)
    stem = source.name.partition(".")[0] or source.name
    usual = str(source.with_name(f"model.{ending}"))
    if alone and usual not in taken:
        return usual
    stem = stem.replace("pytorch_model", "model")
    named = str(source.with_name(f"{stem}.{ending}"))
    return named if named not in taken else f"{path}.{ending}"


def name_program(path: str) -> str:
    """Name what jobs train of an exported program, beside its ONNX, as they look for it."""
    return str(PurePosixPath(path).with_name("program.safetensors"))


def refuse_screenings(lacks: str) -> int:
    """Quarantine what waits where no worker can contain it; give how many versions that were."""
    if sandbox_offered():
        return 0
    waiting = Screening.objects.filter(state=Screening.State.WAITING)
    count = 0
    for row in waiting.select_related("version__repository__namespace")[:100]:
        why = Text("No worker here can contain files that run code: it lacks {lacks}.", lacks=lacks)
        finish_screening(row, [], {"": Saying.of(why)}, state=Screening.State.REFUSED)
        count += 1
    return count


def finish_screening(
    screening: Screening,
    conversions: Sequence[Conversion],
    reasons: Mapping[str, Saying],
    *,
    state: str = Screening.State.DONE,
) -> Version:
    """Record what the sandbox made beside the frozen files, and what the version is worth now."""
    with transaction.atomic():
        repository = (
            Repository.objects.select_for_update(of=("self",))
            .select_related("namespace")
            .get(pk=screening.version.repository_id)
        )
        version = Version.objects.select_for_update(of=("self",)).get(pk=screening.version_id)
        version.repository = repository
        row = Screening.objects.select_for_update().get(pk=screening.pk)
        if row.state == Screening.State.DONE:
            return version
        hold_blobs(made.blob for made in conversions)
        for made in conversions:
            Derivative.objects.get_or_create(
                version=version,
                purpose=Purpose.CONVERTED,
                toolchain=made.toolchain,
                path=made.path,
                defaults={"blob": made.blob, "source_path": made.source_path},
            )
        # An earlier refusal, by a machine that could not contain it, is no verdict on the files.
        waits = version.state == VersionState.PENDING or "" in row.reasons
        _judge_again(version, conversions, reasons, waits=waits)
        row.state = state
        row.reasons = {path: reason.detail for path, reason in reasons.items()}
        row.reasons_said = {path: reason.said for path, reason in reasons.items()}
        row.lease_expires_at = None
        row.finished_at = timezone.now()
        row.save()
        find_latest(repository)
        refresh_search(repository)
        sign_version(version)
        record_event(
            _WORKER,
            AuditAction.VERSION_SCREEN,
            repository=repository,
            target=version.ref,
            state=version.state,
            converted=[made.path for made in conversions],
        )
    return version


def _reason(reasons: Mapping[str, Saying]) -> Saying:
    for path, reason in reasons.items():
        if not path:
            return reason
        why = Text(
            "{held} It could not be converted: {reason}",
            held=quarantine_reason(path),
            reason=reason.text,
        )
        return Saying.of(why)
    return Saying.of(Text("None of its files could be converted."))


def _judge_again(
    version: Version,
    conversions: Sequence[Conversion],
    reasons: Mapping[str, Saying],
    *,
    waits: bool,
) -> None:
    """Let a version follow what became of its files, unless somebody moved it meanwhile."""
    for made in conversions:
        facts = made.inspection.facts
        version.formats = sorted({*version.formats, made.inspection.format})
        if version.parameters_count is None:
            version.parameters_count = facts.get("parameters_count")
        if not version.signature and facts.get("inputs") and facts.get("outputs"):
            version.signature = {"inputs": facts["inputs"], "outputs": facts["outputs"]}
    if conversions:
        lifecycle.settle(version, lifecycle.Verdict(VersionState.READY, SILENCE))
    elif waits and version.state == VersionState.QUARANTINED:
        lifecycle.explain(version, _reason(reasons))
    elif waits:
        lifecycle.settle(version, lifecycle.Verdict(VersionState.QUARANTINED, _reason(reasons)))
    version.updated_at = timezone.now()
    version.save()
