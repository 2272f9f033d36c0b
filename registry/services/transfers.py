"""What a door hands to `registry.stream` once it has authorised a download."""

import mimetypes
from dataclasses import dataclass

from registry.errors import NotFound
from registry.models import Actor, Artifact, Blob
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

    """
    repository = find_repository(actor, kind, namespace, name)
    row = find_version(actor, repository, version)
    artifact = (
        Artifact.objects.filter(revision_id=row.revision_id, path=path)
        .select_related("blob")
        .first()
        if "\0" not in path
        else None
    )
    if artifact is None:
        raise NotFound(f"{row.ref} has no file {path!r}.", code="file_not_found")
    blob: Blob = artifact.blob
    return Download(
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        path=path,
        media_type=mimetypes.guess_type(path)[0] or "application/octet-stream",
        repository_id=repository.pk,
        version_id=row.pk,
    )
