"""What a door hands to `registry.stream` once it has authorised a download."""

import mimetypes
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from registry.errors import Denied, NotFound
from registry.models import Actor, Artifact, Blob, DownloadCount, Repository, Version, VersionState
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

    @property
    def filename(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


def find_download(
    *, actor: Actor, kind: str, namespace: str, name: str, version: str, path: str
) -> Download:
    """Find one file of one version.

    Raises:
        NotFound: the repository, the version or the path does not exist for this actor.
        Denied: the version is archived, and the actor no maintainer.

    """
    repository = find_repository(actor, kind, namespace, name)
    row = find_version(actor, repository, version)
    if row.state == VersionState.ARCHIVED and not allowed(actor, "maintain", repository):
        raise Denied(
            "{version} is archived; only maintainers of {repository} read its files. Use another "
            "version, or ask one of them.",
            code="version_archived",
            version=row.ref,
            repository=repository,
        )
    artifact = (
        Artifact.objects.filter(revision_id=row.revision_id, path=path)
        .select_related("blob")
        .first()
        if "\0" not in path
        else None
    )
    if artifact is None:
        raise NotFound(
            "{version} has no file {path!r}.", code="file_not_found", version=row.ref, path=path
        )
    blob: Blob = artifact.blob
    return Download(
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
