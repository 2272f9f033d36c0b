"""What a door hands to `registry.stream` once it has authorised a download."""

import mimetypes
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Exists, F, OuterRef, QuerySet
from django.utils import timezone

from registry.errors import Denied, NotFound
from registry.models import (
    Actor,
    Artifact,
    Blob,
    Derivative,
    DownloadCount,
    Inspection,
    Repository,
    Verdict,
    Version,
    VersionState,
)
from registry.permissions import allowed
from registry.services.catalog import find_repository, find_version


@dataclass(frozen=True, kw_only=True)
class Download:
    """Bytes that the caller may have: which, how they are called, and whom to count them for."""

    sha256: str
    size_bytes: int
    path: str
    media_type: str
    repository_id: int
    version_id: int
    state: str = VersionState.READY
    state_reason: str = ""
    state_changed_at: datetime | None = None
    # Whether it can run code as it is opened; who gets it is told so.
    quarantined: bool = False

    @property
    def filename(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


def find_download(
    *,
    actor: Actor,
    kind: str,
    namespace: str,
    name: str,
    version: str,
    path: str,
    part: str = "files",
) -> Download:
    """Find one file of one version, or (as `part` says) one of its derivatives.

    Raises:
        NotFound: the repository, the version or the path does not exist for this actor.
        Denied: the version is archived, and the actor no maintainer; or the file can run code,
            and the actor no contributor.

    """
    repository = find_repository(actor, kind, namespace, name)
    row = find_version(actor, repository, version)
    require_unarchived(actor, row)
    blob, quarantined = _find_blob(row, part, path)
    if blob is None:
        raise NotFound(
            "{version} has no file {path!r}.", code="file_not_found", version=row.ref, path=path
        )
    if quarantined and not allowed(actor, "write", repository):
        raise _held_back(row, path)
    return Download(
        quarantined=quarantined,
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        path=path,
        media_type=mimetypes.guess_type(path)[0] or "application/octet-stream",
        repository_id=repository.pk,
        version_id=row.pk,
        state=row.state,
        state_reason=row.state_reason,
        state_changed_at=row.state_changed_at,
    )


def require_unarchived(actor: Actor, version: Version) -> None:
    """Let nobody but maintainers read the files of an archived version.

    Raises:
        Denied: it is archived, and the actor no maintainer.

    """
    repository = version.repository
    if version.state == VersionState.ARCHIVED and not allowed(actor, "maintain", repository):
        raise Denied(
            "{version} is archived; only maintainers of {repository} read its files. Use another "
            "version, or ask one of them.",
            code="version_archived",
            version=version.ref,
            repository=repository,
        )


def _find_blob(version: Version, part: str, path: str) -> tuple[Blob | None, bool]:
    """Find the bytes at a path, and whether they can run code."""
    if "\0" in path:
        return None, False
    rows: QuerySet[Artifact] | QuerySet[Derivative] = (
        version.derivatives.converted().filter(path=path).order_by("-pk")
        if part == "derivatives"
        else Artifact.objects.filter(revision_id=version.revision_id, path=path)
    )
    seen = Inspection.objects.by_readers(path).filter(blob_id=OuterRef("blob_id"))
    held = seen.filter(verdict=Verdict.QUARANTINED)
    # What no reader has looked at may be anything.
    found = rows.select_related("blob").annotate(free=Exists(seen), held=Exists(held)).first()
    if found is None:
        return None, False
    return found.blob, vars(found)["held"] or not vars(found)["free"]


def _held_back(version: Version, path: str) -> Denied:
    """Refuse a file that can run code, and lead to what can be had instead."""
    found = version.derivatives.converted().filter(source_path=path).order_by("pk")
    # An exported program has two: what runs is the one to take.
    made = found.filter(path__endswith=".onnx").last() or found.last()
    if made is not None:
        return Denied(
            "{path!r} can run code when it is opened, so only contributors may download it; take "
            "what was converted from it, {converted!r}, under derivatives.",
            code="quarantined_file",
            path=path,
            converted=made.path,
        )
    return Denied(
        "{path!r} can run code when it is opened, so only contributors of {version} may download "
        "it; there is no converted file yet.",
        code="quarantined_file",
        path=path,
        version=version.ref,
    )


def record_downloads(counts: Mapping[tuple[int, int], int]) -> None:
    """Add a batch of downloads, counted by repository and version, to today's numbers.

    Nobody acts here: the batch holds the downloads of many people.
    """
    today = timezone.now().date()
    known = set(
        Version.objects.filter(pk__in={version for _, version in counts}).values_list(
            "pk", flat=True
        )
    )
    repositories: Counter[int] = Counter()
    # Batches of several processes take the rows in one order, so that they never deadlock.
    with transaction.atomic():
        for (repository_id, version_id), count in sorted(counts.items()):
            repositories[repository_id] += count
            if version_id in known:
                row, _ = DownloadCount.objects.get_or_create(version_id=version_id, day=today)
                DownloadCount.objects.filter(pk=row.pk).update(count=F("count") + count)
        for repository_id, count in sorted(repositories.items()):
            Repository.objects.filter(pk=repository_id).update(
                downloads_count=F("downloads_count") + count
            )
