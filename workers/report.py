"""What a job's process says and leaves behind, checked before anything believes it.

The process has opened files that strangers uploaded, so its words are input like any other.
"""

import errno
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import Invalid, Text
from registry.models import Version
from registry.recipes import MAX_VARIANTS, VARIANT_PATTERN
from registry.services.jobs import Message, log_line
from registry.services.versions import MAX_FILES, EvaluationSpec
from workers.ml.report import FILE_NAME as REPORT_NAME
from workers.words import clean_said, clean_text, finite

MAX_LINE_BYTES = 64 * 1024
_MAX_REPORT_BYTES = 4 * 1024 * 1024
_MAX_METRICS = 1000
_MAX_DEPTH = 20
_BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Complaint:
    """The reason a job gives for failing."""

    code: str
    detail: str
    said: Mapping[str, Any] | None = None


# --- Lines while it runs --------------------------------------------------------------------------


def read_line(line: bytes) -> Message | Complaint | None:
    """Read one line of a job's standard output; what is no event of ours is nothing."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    reader = _READERS.get(str(said.get("event")))
    return reader(said) if reader else None


def _checkpoint(said: Mapping[str, Any]) -> Message:
    step = _whole(said.get("step"))
    text = Text("Wrote a checkpoint at step {step}.", step=step)
    return Message("log", {**log_line(text, level="info"), "checkpoint": step})


def _log(said: Mapping[str, Any]) -> Message:
    text, packed = clean_text(said.get("message", "")), clean_said(said.get("said"))
    return Message(
        "log", {"message": text, "level": "info", **({"said": packed} if packed else {})}
    )


def _error(said: Mapping[str, Any]) -> Complaint:
    return Complaint(
        re.sub(r"[^a-z0-9_]", "", str(said.get("code", "")))[:64] or "failed",
        clean_text(said.get("detail", "")) or "The job gave no reason.",
        clean_said(said.get("said")),
    )


def _progress(said: Mapping[str, Any]) -> Message:
    total = _whole(said.get("total"))
    return Message(
        "progress",
        {
            "done": min(_whole(said.get("done")), total),
            "total": total,
            "unit": clean_text(said.get("unit", ""), longest=40),
            "step": clean_text(said.get("step", ""), longest=200),
        },
    )


def _metric(said: Mapping[str, Any]) -> Message | None:
    value = finite(said.get("value"))
    if value is None:
        return None
    name = clean_text(said.get("name", ""), longest=64)
    return Message("metric", {"name": name, "value": value, "step": _whole(said.get("step"))})


def _candidate(said: Mapping[str, Any]) -> Message | None:
    """Read what became of one candidate of a search; the page draws the front from these."""
    name = clean_text(said.get("name", ""), longest=80)
    verdict = str(said.get("verdict"))
    if not name or verdict not in _VERDICTS:
        return None
    numbers = {key: finite(said.get(key)) for key in _CANDIDATE_NUMBERS}
    words = {key: clean_text(said.get(key, ""), longest=300) for key in ("measure", "reason")}
    packed = clean_said(said.get("said"))
    return Message(
        "candidate", {"name": name, "verdict": verdict, **numbers, **words, "said": packed}
    )


_VERDICTS = frozenset({"met", "failed", "undecided", "error"})
_CANDIDATE_NUMBERS = ("bytes", "latency_ms", "loss", "low", "high", "limit", "n")
_READERS: dict[str, Callable[[Mapping[str, Any]], Message | Complaint | None]] = {
    "progress": _progress,
    "metric": _metric,
    "candidate": _candidate,
    "checkpoint": _checkpoint,
    "log": _log,
    "error": _error,
}


def _whole(value: object) -> int:
    return min(max(value, 0), 2**53) if isinstance(value, int) else 0


# --- What it leaves behind ------------------------------------------------------------------------


def read_report(out: Path) -> dict[str, Any]:
    """Read report.json as plain, bounded JSON.

    Raises:
        Invalid: it is missing, too large, or no JSON object.

    """
    path = out / REPORT_NAME
    try:
        with _open_plain(path) as file:
            raw = file.read(_MAX_REPORT_BYTES + 1)
    except OSError as error:
        raise Invalid("The job left no report.", code="no_report") from error
    if len(raw) > _MAX_REPORT_BYTES:
        raise Invalid("The job's report is too large.", code="bad_report")
    try:
        report = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Invalid("The job's report is not JSON.", code="bad_report") from error
    if not isinstance(report, dict):
        raise Invalid("The job's report is not a JSON object.", code="bad_report")
    plain = _plain(report, _MAX_DEPTH)
    assert isinstance(plain, dict)
    return plain


def evaluations_of(
    report: Mapping[str, Any], inputs: Mapping[str, Version]
) -> list[EvaluationSpec]:
    """Give the measured numbers of a report, with the dataset version that each rests on."""
    datasets = {version.ref: version for version in inputs.values()}
    metrics = report.get("metrics")
    found = []
    for metric in (metrics if isinstance(metrics, list) else [])[:_MAX_METRICS]:
        value = finite(metric.get("value")) if isinstance(metric, dict) else None
        if value is None or not metric.get("metric"):
            continue
        details = metric.get("details")
        count = metric.get("n")
        found.append(
            EvaluationSpec(
                metric=str(metric["metric"])[:64],
                value=value,
                unit=str(metric.get("unit") or "")[:32],
                split=str(metric.get("split") or "")[:64],
                n=_whole(count) if isinstance(count, int) else None,
                low=finite(metric.get("low")),
                high=finite(metric.get("high")),
                device=str(metric.get("device") or "")[:100],
                details=details if isinstance(details, dict) else {},
                dataset=datasets.get(str(metric.get("dataset"))),
            )
        )
    return found


@dataclass(frozen=True)
class Variant:
    """What a report says of one of several versions."""

    name: str
    message: str
    evaluations: list[EvaluationSpec]


def variants_of(report: Mapping[str, Any], inputs: Mapping[str, Version]) -> list[Variant]:
    """Give the versions that a report lists.

    Raises:
        Invalid: it lists none, too many, or two of one name; or a name that no version can have.

    """
    listed = report.get("variants")
    if not isinstance(listed, list) or not listed:
        raise Invalid("The job made no versions.", code="no_result")
    names = [str(one.get("name")) if isinstance(one, dict) else "" for one in listed]
    good = all(re.fullmatch(VARIANT_PATTERN.strip("^$"), name) for name in names)
    if not good or len(set(names)) < len(names) or len(names) > MAX_VARIANTS:
        raise Invalid("The versions in the job's report are not named well.", code="bad_report")
    return [
        Variant(name, clean_text(one.get("message") or ""), evaluations_of(one, inputs))
        for name, one in zip(names, listed, strict=True)
    ]


def _fits(number: float) -> bool:
    return math.isfinite(number) if isinstance(number, float) else abs(number) < 1 << 63


def _plain(value: Any, depth: int) -> Any:
    """Copy parsed JSON without NUL, half characters, NaN and huge numbers; bounded deep."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "")
    if isinstance(value, int | float):
        return value if _fits(value) else None
    if isinstance(value, dict | list) and depth == 0:
        return None
    if isinstance(value, dict):
        return {_plain(name, depth): _plain(inner, depth - 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, depth - 1) for inner in value]
    return value


def find_files(folder: Path) -> dict[str, Path]:
    """Give the files below `folder` by their relative path.

    Raises:
        Invalid: something there is no ordinary file, or there are too many.

    """
    if any(place.is_symlink() for place in (folder, *folder.parents[:2])):
        raise Invalid("The job left a link in place of its folder.", code="odd_file")
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent) / name
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            relative = path.relative_to(folder).as_posix()
            if not stat.S_ISREG(mode):
                raise Invalid(
                    "The job left {relative!r}, which is no ordinary file.",
                    code="odd_file",
                    relative=relative,
                )
            found[relative] = path
            if len(found) > MAX_FILES:
                raise Invalid(
                    "The job left more than {limit} files.", code="too_many_files", limit=MAX_FILES
                )
    return found


def blocks_of(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, never through a link."""
    with _open_plain(path) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _open_plain(path: Path) -> Any:
    """Open an ordinary file; a link is an error, and so is a pipe, which would keep us waiting."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not an ordinary file", path.name)
    return file
