"""A job's folder on this machine: laid out for an attempt, kept between attempts, cleaned up.

    jobs/{id}/checkpoints/     outlives an attempt, and the job itself until it is pruned
    jobs/{id}/attempt-{fence}/ job.json, inputs/, parts/, out/, tmp/: where the process works

Each attempt has a folder of its own, so that a worker that was only paused cannot write into the
files of its successor. Checkpoints do not follow a job to another machine: it starts over there.
"""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings

from registry.models import Artifact, Job, Version, openable_files
from registry.services.blobs import inspect_kept
from registry.storage import Storage
from workers import sandbox

# Inputs up to this size are copied. A hard link would be the stored blob itself, and the process
# may run as the same user. Beyond, a copy costs too much time and disk; the link is read-only, and
# the sandbox lets nobody change that.
COPY_BYTES = 256 * 1024 * 1024
KEEP_SECONDS = 7 * 24 * 3600


def jobs_folder() -> Path:
    return Path(settings.HOME_DIR) / "jobs"


class JobFolder:
    """The folder of one attempt at a job."""

    def __init__(self, job_id: uuid.UUID, fence: int) -> None:
        self.root = jobs_folder() / str(job_id)
        self.path = self.root / f"attempt-{fence}"
        self.out = self.path / "out"
        self.checkpoints = self.root / "checkpoints"

    @property
    def writable(self) -> tuple[Path, ...]:
        """Where the process may write; its inputs, and what it is asked to do, it only reads."""
        return self.out, self.path / "tmp", self.checkpoints

    def make(self) -> None:
        """Make the folder afresh; what earlier attempts left, but checkpoints, goes."""
        for old in self.root.glob("attempt-*"):
            with suppress(FileNotFoundError):  # its own worker may be at it
                shutil.rmtree(old)
        for new in (self.path, *self.writable):
            new.mkdir(mode=0o700, parents=True, exist_ok=True)
        sandbox.hand_over(self.path, [self.path, *self.writable])

    def lay_out(
        self,
        inputs: Mapping[str, Version],
        storage: Storage,
        go_on: Callable[[], None],
    ) -> None:
        """Put each input's files below inputs/{role}; `go_on` raises when it is time to stop."""
        for role, version in inputs.items():
            folder = self.path / "inputs" / role
            folder.mkdir(parents=True)
            for path, sha256 in _files_of(version).items():
                go_on()
                place(storage, sha256, folder / path)

    def lay_out_parts(self, digests: Sequence[str], storage: Storage) -> list[str]:
        """Put what the parts of a job left below parts/; give the paths, as the job knows them."""
        paths = [f"parts/{at:04}" for at in range(len(digests))]
        for path, sha256 in zip(paths, digests, strict=True):
            place(storage, sha256, self.path / path)
        return paths

    def write_job(self, described: Mapping[str, Any]) -> Path:
        path = self.path / "job.json"
        path.write_text(json.dumps(described, indent=2), encoding="utf-8")
        return path

    def clean(self, *, keep_checkpoints: bool) -> None:
        """Remove the attempt, and the job's folder where nothing worth keeping is left in it.

        Another attempt may be at work beside this one; what is its own stays.
        """
        shutil.rmtree(self.path, ignore_errors=True)
        if any(self.root.glob("attempt-*")):
            return
        if not keep_checkpoints:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        for folder in (self.checkpoints, self.root):
            with suppress(OSError):  # it holds something, or is gone
                folder.rmdir()


def _files_of(version: Version) -> dict[str, str]:
    """Map the paths of what a job may open to digests, once the present readers have looked."""
    artifacts = Artifact.objects.filter(revision=version.revision_id).select_related("blob")
    for one in (*artifacts, *version.derivatives.converted().select_related("blob")):
        inspect_kept(one.path, one.blob)
    return {path: blob.sha256 for path, blob in openable_files([version])[version.pk].items()}


def place(storage: Storage, sha256: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    storage.materialise(sha256, target)
    found = target.stat()
    if found.st_nlink > 1 and found.st_size <= COPY_BYTES:
        copy = target.with_name(f".{uuid.uuid4().hex}")
        shutil.copyfile(target, copy)
        copy.chmod(0o444)
        copy.replace(target)


def prune_folders() -> int:
    """Remove folders of jobs that ended long ago, or that nobody knows; give how many."""
    removed = 0
    limit = time.time() - KEEP_SECONDS
    for folder in jobs_folder().glob("*"):
        with suppress(ValueError, FileNotFoundError):
            job = Job.objects.filter(pk=uuid.UUID(folder.name)).first()
            if (job is None or job.is_finished) and folder.stat().st_mtime < limit:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed
