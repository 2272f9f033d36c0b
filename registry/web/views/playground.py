"""Where a model is tried: inputs made by hand, several versions side by side on the same one.

The browser calls the serving process itself; nothing of an input passes through here.
"""

from csp.decorators import csp_update
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from registry.models import Kind
from registry.permissions import allowed
from registry.services import catalog
from registry.services.tokens import LENT_FOR, lend_key
from registry.web.playground import can_reach, origin_of, set_up
from registry.web.serving import calls
from registry.web.visitor import actor_of, anybody, signed_in


@never_cache
@require_safe
@anybody
def page(request: HttpRequest, namespace: str, name: str) -> HttpResponseBase:
    actor = actor_of(request)
    repository = catalog.find_repository(actor, Kind.MODEL, namespace, name)
    numbers = [int(text[:9]) for text in request.GET.getlist("v")[:20] if text.isdecimal()]
    found = set_up(actor, repository, request.GET.get("endpoint", ""), numbers)
    host = request.build_absolute_uri("/")
    context = {
        "repository": repository,
        "kind": repository.kind,
        "playground": found,
        "described": found.described(host) if found.endpoint else None,
        "can_reach": can_reach(host),
        "snippets": calls(host, found.endpoint, found.first) if found.endpoint else [],
        "may_maintain": allowed(actor, "maintain", repository),
    }
    # Scripts of this page alone call the serving process, whose origin is another.
    may_call = csp_update({"connect-src": [origin_of(host)]})
    return may_call(lambda _: render(request, "repository/playground.html", context))(request)


@never_cache
@require_POST
@signed_in
def key(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """Lend the page a key for the serving process, of the visitor's own and for this model."""
    actor = actor_of(request)
    repository = catalog.find_repository(actor, Kind.MODEL, namespace, name)
    _token, secret = lend_key(actor=actor, repository=repository)
    return JsonResponse({"key": secret, "seconds": int(LENT_FOR.total_seconds())})
