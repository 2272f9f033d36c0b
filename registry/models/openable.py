"""Which files of a version may be opened: what was converted stands in for what can run code."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from registry.models.artifacts import (
    Artifact,
    Blob,
    Derivative,
    Inspection,
    Verdict,
    ending_of,
)
from registry.models.catalog import Version

Files = dict[str, Blob]


def openable_files(versions: Iterable[Version]) -> Mapping[int, Files]:
    """Map versions to what may be opened of them, by path: the blobs of jobs and of serving.

    A file that can run code is never among them, nor one that no reader has looked at. Of several
    generations of readers the newest that looked decides.
    """
    asked = list(versions)
    of_revision = defaultdict(list)
    for version in asked:
        of_revision[version.revision_id].append(version.pk)
    artifacts = list(Artifact.objects.filter(revision__in=of_revision).select_related("blob"))
    converted = list(
        Derivative.objects.converted()
        .filter(version__in=[version.pk for version in asked])
        .select_related("blob")
        .order_by("pk")
    )
    verdicts = _verdicts([*(row.blob_id for row in artifacts), *(row.blob_id for row in converted)])
    files: dict[int, Files] = {version.pk: {} for version in asked}
    for made in converted:
        if _may_be_opened(verdicts, made):
            files[made.version_id][made.path] = made.blob
    for artifact in artifacts:
        if _may_be_opened(verdicts, artifact):
            for version_id in of_revision[artifact.revision_id]:
                files[version_id][artifact.path] = artifact.blob
    return files


# (blob, ending of the path) -> the generation that looked last, and whether it holds the file.
_Verdicts = Mapping[tuple[int, str], tuple[int, bool]]


def _verdicts(blobs: Iterable[int]) -> _Verdicts:
    found: dict[tuple[int, str], tuple[int, bool]] = {}
    rows = Inspection.objects.by_readers().filter(blob__in=set(blobs))
    for blob_id, inspector, verdict in rows.values_list("blob_id", "inspector", "verdict"):
        reader, dot, ending = inspector.partition(".")
        generation = int(reader.removeprefix("headers-"))
        key = blob_id, dot + ending
        said = generation, verdict == Verdict.QUARANTINED
        found[key] = max(found.get(key, said), said)
    return found


def _may_be_opened(verdicts: _Verdicts, row: Artifact | Derivative) -> bool:
    _, held = verdicts.get((row.blob_id, ending_of(row.path)), (0, True))
    return not held
