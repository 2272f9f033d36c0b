"""The page that lays a new version beside the one it was made from, and promotes it."""

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from registry.services.jobs import find_job
from registry.web import comparisons
from registry.web.visitor import actor_of, signed_in


@never_cache
@require_safe
@signed_in
def compare(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Show what the report of a job says of one of its results: it is for those who see the job."""
    actor = actor_of(request)
    job = find_job(actor, job_id)
    results = comparisons.results_of(actor, job)
    asked = request.GET.get("variant", "")
    version = next(
        (one for one in results if one.variant == asked), results[0] if results else None
    )
    part = comparisons.part_of(job, version.variant if version else "")
    rows = comparisons.compared(part)
    show = request.GET.get("show", "")
    context = {
        "job": job,
        "version": version,
        "results": results,
        "parent": comparisons.parent_of(actor, version) if version else None,
        "numbers": comparisons.numbers(part),
        "counts": comparisons.counts(rows),
        "kept": len(rows),
        "rows": [row for row in rows if show in {"", row.outcome}],
        "show": show,
        "has_labels": any(row.label for row in rows),
        "offers": comparisons.offers(actor, version) if version else [],
    }
    return render(request, "job/compare.html", context)
