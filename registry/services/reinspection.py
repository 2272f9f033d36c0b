"""After an upgrade: files that older readers saw are looked at again, and versions follow.

Until then what an older reader held stays held. A message or a schedule has a worker do some of it
at a time; the rows that older readers left say what is still to be done, and go when it is.
"""

import logging
import time
from collections.abc import Iterator

from django.db import transaction
from django.utils import timezone

from registry.errors import SILENCE, NotFound
from registry.formats import GENERATION
from registry.models import (
    Actor,
    Artifact,
    AuditAction,
    Derivative,
    Inspection,
    Repository,
    Version,
    VersionState,
    ending_of,
)
from registry.services import lifecycle
from registry.services.audit import record_event
from registry.services.blobs import inspect_kept
from registry.services.catalog import refresh_search
from registry.services.versions import (
    find_latest,
    has_good_derivative,
    inspect_files,
    judge_files,
    plan_screening,
    quarantine_held,
)

logger = logging.getLogger(__name__)

# Nobody asks for it: it follows from a new reader.
_WORKER = Actor(door="worker")
_ASKED_AT_ONCE = 200


def reinspect_blobs(*, seconds: float = 50) -> int:
    """Have the present readers look at what older ones saw, for so long; give how many rows went.

    It may end anywhere: a row of an older reader goes once everything has followed from the new.
    """
    until = time.monotonic() + seconds
    count = 0
    for old in _older_rows():
        if time.monotonic() >= until:
            break
        try:
            _look_again(old)
        except NotFound as missing:
            # Nothing is concluded from a disk that is not there today.
            logger.warning("%s could not be looked at again: %s", old.blob, missing)
            continue
        count += 1
    return count


def _older_rows() -> Iterator[Inspection]:
    after = 0
    while True:
        rows = Inspection.objects.older_than(GENERATION).filter(pk__gt=after)
        found = list(rows.select_related("blob").order_by("pk")[:_ASKED_AT_ONCE])
        yield from found
        if len(found) < _ASKED_AT_ONCE:
            return
        after = found[-1].pk


def _look_again(old: Inspection) -> None:
    ending = old.inspector.removeprefix(old.reader)
    new = inspect_kept(_path_of(old, ending), old.blob)
    if (new.verdict, new.format) != (old.verdict, old.format):
        for version in _versions_with(old):
            _judge_again(version)
    old.delete()


def _path_of(old: Inspection, ending: str) -> str:
    """Give a name that these bytes have: some files are known by the whole of it."""
    for rows in (Artifact.objects, Derivative.objects):
        found = rows.filter(blob=old.blob, path__iendswith=ending).order_by("pk").first()
        if found is not None and ending_of(found.path) == ending:
            return found.path
    return f"file{ending}"


def _versions_with(old: Inspection) -> Iterator[Version]:
    by_file = Version.objects.filter(revision__artifacts__blob=old.blob)
    by_derivative = Version.objects.filter(derivatives__blob=old.blob)
    for rows in (by_file, by_derivative):
        # Those that were deleted too: they may be brought back.
        yield from rows.select_related("repository").distinct().iterator()


def _judge_again(version: Version) -> None:
    """Let a version follow what the present readers see in its files."""
    inspections = inspect_files(version)
    verdict = judge_files(version.repository.kind, inspections)
    with transaction.atomic():
        repository = Repository.objects.select_for_update(of=("self",)).get(
            pk=version.repository_id
        )
        row = Version.objects.select_for_update(of=("self",)).get(pk=version.pk)
        row.repository = repository
        if has_good_derivative(row):
            verdict = lifecycle.Verdict(VersionState.READY, SILENCE)
        elif verdict.state == VersionState.PENDING and row.is_usable:
            # Whoever uses it has to stop; the sandbox may bring it back.
            verdict = quarantine_held(inspections)
        moved = lifecycle.settle(row, verdict)
        if verdict.state != VersionState.READY or moved:
            plan_screening(row, inspections)
        if not moved:
            return
        row.updated_at = timezone.now()
        row.save()
        find_latest(repository)
        refresh_search(repository)
        record_event(
            _WORKER,
            AuditAction.VERSION_REINSPECT,
            repository=repository,
            target=row.ref,
            state=row.state,
        )
