"""Finding models and datasets: search, facets, sort and pages, all of it in the address."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from registry.search import SearchQuery, search_repositories
from registry.web import wording
from registry.web.visitor import actor_of, anybody

_FACETS: Final = ("task", "library", "license", "format", "owner")
_SORTS: Final = ("updated", "created", "downloads", "name", "size")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a facet: how it reads, how many there are, where it leads."""

    text: str
    count: int | None
    query: str
    chosen: bool = False


@require_safe
@anybody
def repositories(request: HttpRequest, kind: str) -> HttpResponse:
    asked = {name: request.GET.get(name, "").strip() for name in ("q", "sort", "label", *_FACETS)}
    query = SearchQuery(
        q=asked["q"],
        sort=asked["sort"],
        label=asked["label"],
        task=asked["task"],
        library=asked["library"],
        license=asked["license"],
        format=asked["format"],
        owner=asked["owner"],
        cursor=request.GET.get("cursor", ""),
    )
    page = search_repositories(actor_of(request), kind, query, with_facets=True)
    context = {
        "kind": kind,
        "plural": f"{kind}s",
        "page": page,
        "asked": asked,
        "facets": _facets(asked, page.facets),
        "sorts": _sorts(asked),
        "order": query.order,
        "narrowed": any(asked[name] for name in ("q", "label", *_FACETS)),
        "older": _address(asked, cursor=page.next_cursor) if page.next_cursor else "",
        "is_first": not query.cursor,
        "address": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "browse.html", context)


@require_safe
@anybody
def of_namespace(_request: HttpRequest, kind: str, namespace: str) -> HttpResponse:
    target = reverse("web:repositories", kwargs={"kind": kind})
    return redirect(f"{target}?{urlencode({'owner': namespace})}")


def _address(asked: dict[str, str], **changes: str | None) -> str:
    kept = {name: value for name, value in {**asked, **changes}.items() if value}
    return "?" + urlencode(kept)


def _facets(
    asked: dict[str, str], counts: dict[str, list[dict[str, object]]]
) -> list[tuple[str, list[Choice]]]:
    titles = {
        "task": _("Task"),
        "library": _("Library"),
        "license": _("License"),
        "format": _("Format"),
        "owner": _("Namespace"),
    }
    groups = []
    for name, title in titles.items():
        choices = [
            Choice(
                text=_value_text(name, str(entry["value"])),
                count=int(str(entry["count"])),
                query=_address(asked, **{name: None if chosen else str(entry["value"])}),
                chosen=chosen,
            )
            for entry in counts.get(name, [])
            for chosen in [str(entry["value"]).lower() == asked[name].lower()]
        ]
        if choices:
            groups.append((title, choices))
    return groups


def _value_text(name: str, value: str) -> str:
    known: dict[str, Mapping[str, object]] = {
        "task": wording.TASKS,
        "library": wording.LIBRARIES,
        "license": wording.LICENSES,
    }
    return str(known.get(name, {}).get(value.lower(), value))


def _sorts(asked: dict[str, str]) -> list[tuple[str, str]]:
    titles = {
        "updated": _("Recently updated"),
        "created": _("Newest"),
        "downloads": _("Most downloaded"),
        "name": _("Name"),
        "size": _("Smallest"),
    }
    found = [(name, titles[name]) for name in _SORTS]
    return [("relevance", _("Best match")), *found] if asked["q"] else found
