"""The first page: what is here, and the next thing to do."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from registry.models import Job, Kind
from registry.search import SearchQuery, search_repositories
from registry.web.visitor import actor_of, anybody


@require_safe
@anybody
def home(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    recent = Job.objects.visible_to(actor).with_names(actor).order_by("-created_at", "-pk")
    context = {
        "models": search_repositories(actor, Kind.MODEL, SearchQuery(limit=6), with_facets=True),
        "datasets": search_repositories(
            actor, Kind.DATASET, SearchQuery(limit=4), with_facets=True
        ),
        "jobs": [] if actor.is_anonymous else recent[:4],
        "address": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "home.html", context)
