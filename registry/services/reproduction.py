"""A job run again, to see whether it gives the same bytes as before: nothing of it is kept."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from registry.errors import Conflict, Invalid
from registry.models import MADE_DIGESTS, Blob, Job, JobState, Version
from registry.services.results import Outcome

# What leaves files. Measurements alone are times and never come out twice the same.
KINDS = frozenset({"compress", "search", "train", "infer"})
# The card quotes measured times.
NOT_COMPARED = frozenset({"README.md"})
# Everything that the bytes of a result may depend on beside recipe and inputs.
_MACHINE = (
    "device",
    "gpu",
    "cuda",
    "cpu",
    "cpu_flags",
    "threads",
    "python",
    "torch",
    "onnxruntime",
)


def require_reproducible(job: Job) -> None:
    """Refuse to run a job again that made nothing to compare with.

    Raises:
        Invalid: it is a measurement.
        Conflict: it has not succeeded, or runs another one again, or its result is gone.

    """
    if job.kind not in KINDS:
        raise Invalid(
            "A job that measures leaves no files, and times differ each time: only jobs of the "
            "kinds {kinds} can be run again and compared.",
            code="not_reproducible",
            kinds=", ".join(sorted(KINDS)),
        )
    if job.reproduces_id is not None:
        raise Conflict(
            "This job runs another one again already: reproduce that one.",
            code="not_reproducible",
        )
    if job.state != JobState.SUCCEEDED or job.result is None:
        raise Conflict(
            "The job has no result to compare with: only one that succeeded, and whose result is "
            "still there, can be reproduced.",
            code="not_reproducible",
        )


def compare_outcome(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Compare what a job made with what the one made that it runs again, file by file."""
    original = job.reproduces
    if original is None or original.result is None:
        raise Conflict(
            "What the job was to be compared with has been deleted meanwhile.",
            code="nothing_to_compare",
        )
    made: Mapping[str, Mapping[str, Blob]] = (
        {variant.variant: variant.files for variant in outcome.variants}
        if outcome.variants
        else {original.result.variant: outcome.files}
    )
    versions = [
        _compare(version, made.get(version.variant, {}))
        for version in Version.objects.filter(job=original).order_by("number")
    ]
    there = {version["variant"] for version in versions}
    # What has been deleted for good is told by its digest; older jobs have kept none.
    kept = original.report.get(MADE_DIGESTS)
    gone = {name: digest for name, digest in (kept or {}).items() if name not in there}
    new = sorted(made.keys() - there - gone.keys())
    same = all(version["same"] for version in versions) and all(
        _digest_of(made.get(name, {})) == digest for name, digest in gone.items()
    )
    return {
        "of": str(original.pk),
        "same": bool(versions) and not new and same,
        "versions": versions,
        "new_variants": new,
        "machine": _differences(original.report, outcome.report),
    }


def digests_of(outcome: Outcome) -> dict[str, str]:
    """Give what a job keeps of each variant that it made, whatever is deleted of them later."""
    return {made.variant: _digest_of(made.files) for made in outcome.variants}


def _digest_of(files: Mapping[str, Blob]) -> str:
    compared = [[path, files[path].sha256] for path in sorted(files.keys() - NOT_COMPARED)]
    return hashlib.sha256(json.dumps(compared).encode()).hexdigest()


def _compare(version: Version, found: Mapping[str, Blob]) -> dict[str, Any]:
    artifacts = version.revision.artifacts.select_related("blob").order_by("path")
    before = {artifact.path: artifact.blob.sha256 for artifact in artifacts}
    after = {path: blob.sha256 for path, blob in found.items()}
    files = [
        {
            "path": path,
            "before": before.get(path),
            "after": after.get(path),
            "same": before.get(path) == after.get(path),
        }
        for path in sorted((before.keys() | after.keys()) - NOT_COMPARED)
    ]
    return {
        "number": version.number,
        "variant": version.variant,
        "same": all(file["same"] for file in files),
        "files": files,
    }


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name what is another machine or library than the first time."""
    first, second = (
        environment if isinstance(environment := report.get("environment"), Mapping) else {}
        for report in (before, after)
    )
    return [
        {"what": name, "before": first.get(name), "after": second.get(name)}
        for name in _MACHINE
        if first.get(name) != second.get(name)
    ]
