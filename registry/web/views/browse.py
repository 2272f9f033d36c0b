"""Finding models and datasets: search, facets, sort and pages, all of it in the address."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final
from urllib.parse import parse_qsl

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from registry.errors import Invalid, RegistryError
from registry.meaning import is_by_words_alone
from registry.models import Actor, SavedSearch
from registry.pages import Page
from registry.query_language import MAX_CHARACTERS, METRICS, Narrowing, parse, without
from registry.recommend import suited_to_need
from registry.search import SearchQuery, search_repositories
from registry.services.searches import PARAMETERS, delete_search, kept_by, save_search
from registry.web import wording
from registry.web.refusals import words_of
from registry.web.visitor import actor_of, anybody, signed_in

_FACETS: Final = ("task", "library", "license", "format", "owner")
_SORTS: Final = ("updated", "created", "downloads", "name", "size", "quality")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a facet: how it reads, how many there are, where it leads."""

    text: str
    count: int | None
    query: str
    chosen: bool = False


# What "Fits my hardware" asks for, by the fields of the form.
_FITS: Final = {"fits_memory": "memory:<={}MB", "fits_latency": "latency:<={}ms"}
_DEVICES: Final = ("cpu", "cuda")


@require_safe
@anybody
def repositories(request: HttpRequest, kind: str) -> HttpResponse:
    if any(name in request.GET for name in (*_FITS, "fits_device")):
        return redirect(_fitting(request))
    actor = actor_of(request)
    asked = {name: request.GET.get(name, "").strip() for name in PARAMETERS}
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
    refusal = None
    try:
        page = search_repositories(actor, kind, query, with_facets=True)
        order = query.order
    except Invalid as error:
        refusal, page, order = error, Page([]), asked["sort"]
    hardware = _hardware(asked["q"]) if not refusal else {}
    context = {
        "kind": kind,
        "plural": f"{kind}s",
        "page": page,
        "asked": asked,
        "refusal": refusal and words_of(refusal),
        "marked": refusal and _marked(asked["q"], refusal),
        "facets": _facets(asked, page.facets),
        "sorts": _sorts(with_words=not refusal and bool(query.asked.text)),
        "order": order,
        "narrowed": any(asked[name] for name in ("q", "label", *_FACETS)),
        "without_label": _address(asked, label=None),
        "older": _address(asked, cursor=page.next_cursor) if page.next_cursor else "",
        "is_first": not query.cursor,
        "suited": suited_to_need(page.items)
        if kind == "model" and order == "relevance" and not query.cursor
        else [],
        "by_words": not refusal
        and order == "relevance"
        and not query.cursor
        and is_by_words_alone(query.asked),
        "address": request.build_absolute_uri("/").rstrip("/"),
        "hardware": hardware,
        "devices": _devices(hardware),
        "saved": _saved(actor, kind),
        "this_search": _address(asked)[1:],
        "max_characters": MAX_CHARACTERS,
    }
    return render(request, "browse.html", context, status=refusal.status if refusal else 200)


def _marked(query: str, refusal: Invalid) -> tuple[str, str, str] | None:
    """Cut the query before and after the term that was not understood."""
    places = [one.position for one in refusal.errors if one.position is not None]
    if not places or len(query) > MAX_CHARACTERS:
        return None
    at = places[0]
    length = next((n for n, character in enumerate(query[at:]) if character.isspace()), None)
    end = at + length if length else len(query)
    return query[:at], query[at:end], query[end:]


def _fitting(request: HttpRequest) -> str:
    """Put what the form says of somebody's machine into the words of the search."""
    kept = {name: request.GET.get(name, "").strip() for name in PARAMETERS}
    # A query that cannot be read stays: its page says where and why.
    with suppress(Invalid):
        kept["q"] = without(kept["q"], lambda one: bool(_shown_as(one)))
    terms = [kept["q"]]
    for name, term in _FITS.items():
        if given := request.GET.get(name, "").strip():
            terms.append(term.format(_number(given)))
    if device := request.GET.get("fits_device", "").replace('"', "").strip():
        terms.append(f"device:{device}" if device in _DEVICES else f'device:"{device}"')
    kept["q"] = " ".join(term for term in terms if term)
    return request.path + _address(kept)


def _number(given: str) -> str:
    """Write a number as a query has it; what is none stays one word, which is refused there."""
    try:
        number = Decimal(given)
    except InvalidOperation:
        number = Decimal("NaN")
    is_plain = number.is_finite() and abs(number.adjusted()) <= MAX_CHARACTERS
    return f"{number:f}" if is_plain else "".join(given.split())


def _shown_as(one: Narrowing) -> str:
    """Name the field of the form that shows a field of the query, if one does."""
    if one.negated:
        return ""
    if one.field == "device":
        return "device"
    if one.bounds is None or one.bounds.high is None:
        return ""
    return {METRICS["memory"]: "memory", METRICS["latency"]: "latency"}.get(one.detail, "")


def _hardware(query: str) -> dict[str, str]:
    """Read back what the form said, for its fields."""
    found = {}
    for one in parse(query).narrowings:
        name, high = _shown_as(one), one.bounds.high if one.bounds else None
        if name == "device":
            found[name] = one.text.lower() if one.text.lower() in _DEVICES else one.text
        elif name and high is not None:
            found[name] = f"{high / 1e6:g}" if name == "memory" else f"{high:g}"
    return found


def _devices(hardware: Mapping[str, str]) -> list[str]:
    """List the devices to choose from, with the one that the query names."""
    return list(dict.fromkeys([*_DEVICES, *filter(None, [hardware.get("device")])]))


def _saved(actor: Actor, kind: str) -> list[SavedSearch]:
    if actor.is_anonymous:
        return []
    return list(kept_by(actor).filter(kind=kind).order_by("name"))


@signed_in
@require_POST
def save(request: HttpRequest, kind: str) -> HttpResponse:
    query = request.POST.get("query", "")
    try:
        kept = save_search(
            actor=actor_of(request), kind=kind, name=request.POST.get("name", ""), query=query
        )
    except RegistryError as error:
        messages.error(request, words_of(error))
    else:
        messages.success(request, _("The search %(name)s is kept.") % {"name": kept.name})
    return redirect(f"{reverse('web:repositories', kwargs={'kind': kind})}?{_plain(query)}")


@signed_in
@require_POST
def forget(request: HttpRequest, kind: str, search_id: int) -> HttpResponse:
    try:
        delete_search(actor=actor_of(request), search_id=search_id)
    except RegistryError as error:
        messages.error(request, words_of(error))
    query = _plain(request.POST.get("query", ""))
    return redirect(f"{reverse('web:repositories', kwargs={'kind': kind})}?{query}")


def _plain(query: str) -> str:
    """Keep the parts of a search, and nothing else that a form could say."""
    given = dict(parse_qsl(query[:2000], max_num_fields=None))
    return urlencode({name: given[name] for name in PARAMETERS if given.get(name)})


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


def _sorts(*, with_words: bool) -> list[tuple[str, str]]:
    titles = {
        "updated": _("Recently updated"),
        "created": _("Newest"),
        "downloads": _("Most downloaded"),
        "name": _("Name"),
        "size": _("Smallest"),
        "quality": _("Best quality"),
    }
    found = [(name, titles[name]) for name in _SORTS]
    return [("relevance", _("Best match")), *found] if with_words else found
