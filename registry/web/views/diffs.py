"""Pages that set versions beside each other: what changed between two, and up to six at once."""

from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from registry.errors import RegistryError
from registry.models import Actor, Kind, Repository, Version
from registry.services import catalog, diffs
from registry.services.beside import MOST, find_named
from registry.web import beside, changes, history
from registry.web.refusals import words_of
from registry.web.views.versions import find_version
from registry.web.visitor import actor_of, anybody, signed_in

# Weights up to this size are compared as soon as somebody who may ask looks at the page.
_AT_ONCE_BYTES: Final = 512 << 20


def _pair(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int, other: int
) -> tuple[Version, Version]:
    """Find the version of the address and the other one, of another repository if one is named."""
    actor = actor_of(request)
    before = find_version(actor, kind, namespace, name, number)
    named = request.GET.get("repository", "")
    if not named:
        return before, catalog.find_version(actor, before.repository, str(other))
    space, _slash, rest = named.partition("/")
    repository = catalog.find_repository(actor, kind, space, rest)
    return before, catalog.find_version(actor, repository, str(other))


@never_cache
@require_safe
@anybody
def diff_page(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int, other: int
) -> HttpResponse:
    before, after = _pair(request, kind, namespace, name, number, other)
    if request.GET.get("part") == "weights":
        # Asked for again and again while a job reads them: the rest is not compared each time.
        context = _weights_context(actor_of(request), before, after)
        return render(request, "version/weights.html", context)
    return _show(request, before, after)


def _show(
    request: HttpRequest, before: Version, after: Version, *, refusal: str = ""
) -> HttpResponse:
    """Render what changed; with why the weights could not be compared, if somebody asked."""
    actor, kind = actor_of(request), after.repository.kind
    files = diffs.compare_files(before, after)
    context = {
        **_weights_context(actor, before, after, refusal=refusal),
        "repository": after.repository,
        "kind": kind,
        "plural": f"{kind}s",
        "files": files,
        "texts": diffs.compare_texts(actor, before, after, files),
        "config": diffs.compare_config(actor, before, after),
        "tags": diffs.compare_tags(before, after),
        "numbers": beside.numbers(diffs.compare_metrics(actor, before, after)),
        "signature": diffs.compare_signatures(actor, before, after),
        "swap_url": history.pair_address("diff", after, before),
    }
    return render(request, "version/diff.html", context)


def _weights_context(
    actor: Actor, before: Version, after: Version, *, refusal: str = ""
) -> dict[str, Any]:
    weights = diffs.compare_weights(actor, before, after)
    is_told = weights.state in {"known", "equal"} and after.repository.kind == Kind.MODEL
    page_url = history.pair_address("diff", before, after)
    return {
        "before": before,
        "after": after,
        "weights": weights,
        "story": changes.story_of(weights) if is_told else None,
        "may_ask": diffs.may_request(actor),
        "refusal": refusal,
        # Once: what was refused is asked for again by hand.
        "asks_itself": not refusal
        and weights.weights is not None
        and weights.weights.size_bytes <= _AT_ONCE_BYTES,
        "ask_url": history.pair_address("compare-weights", before, after),
        "page_url": page_url,
        "part_url": f"{page_url}{'&' if '?' in page_url else '?'}part=weights",
    }


@require_POST
@signed_in
def compare_weights(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int, other: int
) -> HttpResponse:
    before, after = _pair(request, kind, namespace, name, number, other)
    try:
        diffs.request_weights(actor=actor_of(request), before=before, after=after)
    except RegistryError as error:
        return _show(request, before, after, refusal=words_of(error))
    return redirect(history.pair_address("diff", before, after) + "#weights")


@require_safe
@anybody
def compare_page(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    """Set up to six versions beside each other; of more, the first six are shown."""
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    asked = list(dict.fromkeys(one.strip() for one in request.GET.getlist("v") if one.strip()))
    found = [_named(actor, repository, text) for text in asked[:MOST]]
    versions = list({one.pk: one for one in found if one is not None}.values())
    only = request.GET.get("only") == "differences"
    context: dict[str, Any] = {
        "repository": repository,
        "kind": kind,
        "plural": f"{kind}s",
        "versions": versions,
        "missing": [text[:200] for text, one in zip(asked, found, strict=False) if one is None],
        "too_many": len(asked) > MOST,
        "only": only,
        "sections": beside.sections(actor, versions, only_differences=only),
        "steps": beside.pairs(versions),
        "offered": history.recent(repository, versions),
    }
    return render(request, "version/beside.html", context)


def _named(actor: Actor, repository: Repository, text: str) -> Version | None:
    """Find what a part of the address names, if there is such a version for this person."""
    try:
        return find_named(actor, repository, text)
    except RegistryError:
        return None
