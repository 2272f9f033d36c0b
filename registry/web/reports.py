"""What the report of a job says beside its numbers, read for the pages.

A report was written by a process that opened files of strangers: every shape in it is checked.
"""

from collections.abc import Mapping
from typing import Any

from registry.models import Job
from registry.web.refusals import stored_words

_MOST = 50


def summary_of(job: Job) -> Mapping[str, Any]:
    return table(table(job.report).get("summary"))


def table(value: object) -> Mapping[str, Any]:
    """Take a JSON object, or nothing in place of anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: object) -> list[Mapping[str, Any]]:
    """Take the objects of a JSON list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def said(packed: object, detail: object) -> str:
    """Say a sentence of a report in the language of the page."""
    given = table(packed)
    fits = isinstance(given.get("template"), str) and isinstance(given.get("values"), dict)
    return stored_words(given if fits else None, str(detail or ""))


def warnings_of(job: Job) -> list[str]:
    """List what a job warns of."""
    found = rows(summary_of(job).get("warnings"))[:_MOST]
    return [said(row.get("said"), row.get("detail")) for row in found]
