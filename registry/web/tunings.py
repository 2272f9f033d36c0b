"""What tunings found, as pages show it: the setting that was chosen, and all that were tried."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from registry.models import Actor, Job, Tuning, Version
from registry.services.tuning import tunings_of
from registry.web import reports

RUNTIMES = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch", "aotinductor": "AOTInductor"}
_LISTED = 200
_NOTHING = "\N{EN DASH}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting that was tried."""

    runtime: str
    threads: str
    rows: str
    rate: str
    spread: str
    time: str
    wait: str
    chosen: bool
    alike: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """One tuning: on what it was measured, and what it found."""

    key: str
    device_class: str
    aim: str
    words: str
    # What the model was given meanwhile; empty where it was numbers.
    given: str
    rows: list[Row]
    job_id: UUID | None
    measured_at: datetime | None
    by: str


def tuned_of(actor: Actor, version: Version) -> list[Tuned]:
    """Read what was found for a version on each kind of machine, the newest first."""
    rows = tunings_of(version)
    jobs = Job.objects.visible_to(actor).filter(pk__in=[row.job_id for row in rows if row.job_id])
    seen = set(jobs.values_list("pk", flat=True))
    return [
        _tuned(
            str(row.pk),
            row.summary,
            job_id=row.job_id if row.job_id in seen else None,
            measured_at=row.measured_at,
            by=row.created_by.username if row.created_by else "",
        )
        for row in rows
    ]


def tuning_of(job: Job) -> Tuned | None:
    """Read what a job tried, also where it failed."""
    summary = reports.summary_of(job)
    if job.kind != "tune" or not reports.rows(summary.get("tried")):
        return None
    return _tuned("job", summary)


def words_on(version: Version) -> list[str]:
    """Say in a line each what a deployment of a version goes by where that is left open."""
    return [f"{row.device_class}: {setting(row)}" for row in tunings_of(version)]


def setting(row: Tuning) -> str:
    return said(row.threads, row.max_batch_size)


def said(threads: int, rows: int) -> str:
    """Say threads and rows as one setting."""
    first = ngettext("%(n)s thread", "%(n)s threads", threads) % {"n": threads}
    second = ngettext("%(n)s row", "%(n)s rows", rows) % {"n": rows}
    return _("%(threads)s, %(rows)s") % {"threads": first, "rows": second}


def _tuned(
    key: str,
    summary: Mapping[str, Any],
    *,
    job_id: UUID | None = None,
    measured_at: datetime | None = None,
    by: str = "",
) -> Tuned:
    chosen = reports.table(summary.get("chosen"))
    threads, rows = (reports.number(chosen.get(name)) for name in ("threads", "max_batch_size"))
    words = ""
    if threads and rows:
        runtime = str(chosen.get("runtime"))
        words = f"{RUNTIMES.get(runtime, runtime)}, {said(int(threads), int(rows))}"
    return Tuned(
        key=key,
        device_class=str(summary.get("device_class") or ""),
        aim=_aim(summary),
        words=words,
        given=_given(reports.table(summary.get("workload"))),
        rows=[_row(one) for one in reports.rows(summary.get("tried"))[:_LISTED]],
        job_id=job_id,
        measured_at=measured_at,
        by=by,
    )


def _aim(summary: Mapping[str, Any]) -> str:
    limit = reports.number(summary.get("max_wait_ms"))
    if summary.get("objective") == "latency":
        return pgettext("aim of a tuning", "the quickest answer to one row")
    if limit is None:
        return pgettext("aim of a tuning", "the most rows per second")
    return pgettext(
        "aim of a tuning", "the most rows per second, while callers wait no longer than %(ms)s ms"
    ) % {"ms": f"{limit:g}"}


def _given(workload: Mapping[str, Any]) -> str:
    """Say which texts a model was given; numbers are drawn, which says nothing."""
    words = workload.get("words")
    lengths = [reports.number(one) for one in words] if isinstance(words, list) else []
    shown = ", ".join(f"{length:g}" for length in lengths[:_LISTED] if length is not None)
    if not shown:
        return ""
    counts = reports.table(workload.get("tokens"))
    least, mean, most = (reports.number(counts.get(name)) for name in ("least", "mean", "most"))
    if least is None or mean is None or most is None:
        return _("made-up texts of %(words)s words, each length equally often") % {"words": shown}
    return _(
        "made-up texts of %(words)s words, each length equally often: %(least)s to %(most)s "
        "tokens, %(mean)s on average"
    ) % {"words": shown, "least": f"{least:g}", "most": f"{most:g}", "mean": f"{mean:.3g}"}


def _row(one: Mapping[str, Any]) -> Row:
    def shown(name: str) -> str:
        value = reports.number(one.get(name))
        return _NOTHING if value is None else _figure(value)

    low, high = shown("low"), shown("high")
    runtime = str(one.get("runtime", ""))
    reason = reports.said(one.get("said"), one.get("reason")) if one.get("reason") else ""
    return Row(
        runtime=RUNTIMES.get(runtime, runtime[:40]),
        threads=shown("threads"),
        rows=shown("batch_size"),
        rate=shown("rows_per_second"),
        spread=_NOTHING if _NOTHING in {low, high} else f"{low} … {high}",
        time=shown("batch_ms"),
        wait=shown("wait_ms"),
        chosen=one.get("chosen") is True,
        alike=one.get("alike") is True,
        reason=reason,
    )


def _figure(value: float) -> str:
    """Say a number in three digits, thousands apart."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
