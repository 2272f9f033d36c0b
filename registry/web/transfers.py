"""The web UI's side of `registry.stream`: the session, and proof that a page of ours is asking."""

import io
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from django.conf import settings
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from registry.authenticate import Visit, actor_from_session
from registry.errors import Denied, Unauthenticated
from registry.models import Actor, Repository
from registry.permissions import require
from registry.services import catalog

# Where a view finds what was refused before it was asked; no header of a request has this name.
REFUSAL = "modelyard.refusal"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def identify(
    headers: Mapping[str, str],
    *,
    method: str,
    path: str,
    scheme: str,
    request_id: str,
    ip: str | None,
) -> Actor:
    """Make the actor of the session cookie; a request that changes something needs a page of ours.

    Raises:
        Denied: the CSRF token is missing or wrong, or another site sent the request.

    """
    request = _request(headers, method, path, scheme)
    if method not in _SAFE:
        _require_own_page(request)
    visit = Visit(door="web", request_id=request_id, ip=ip)
    return actor_from_session(request.COOKIES.get(settings.SESSION_COOKIE_NAME), visit)


def find_visitor(
    headers: Mapping[str, str], *, path: str, scheme: str, request_id: str, ip: str | None
) -> Actor:
    """Make the actor of the session cookie for a form, whose token comes in its body."""
    return identify(headers, method="GET", path=path, scheme=scheme, request_id=request_id, ip=ip)


def is_own_form(headers: Mapping[str, str], *, path: str, scheme: str, token: str) -> bool:
    """Say whether a form with this token comes from a page of ours, as Django itself would."""
    return _passes_csrf(_request({**headers, "x-csrftoken": token}, "POST", path, scheme))


def find_writable(actor: Actor, *, kind: str, namespace: str, name: str) -> Repository:
    """Find the repository that a form is for, before the first byte of it is read."""
    if actor.is_anonymous:
        raise Unauthenticated("Sign in to add a version.")
    repository = catalog.find_repository(actor, kind, namespace, name)
    require(actor, "write", repository)
    return repository


def _require_own_page(request: WSGIRequest) -> None:
    refusal = Denied(
        "The request did not come from a page of this site, or the page had expired; reload it.",
        code="csrf_failed",
    )
    if "HTTP_ORIGIN" not in request.META:
        raise refusal
    if not _passes_csrf(request):
        raise refusal


def _passes_csrf(request: WSGIRequest) -> bool:
    check = CsrfViewMiddleware(lambda _: HttpResponse())
    check.process_request(request)
    return check.process_view(request, _nothing, (), {}) is None


def _nothing(_request: WSGIRequest) -> HttpResponse:
    return HttpResponse()


def _request(headers: Mapping[str, str], method: str, path: str, scheme: str) -> WSGIRequest:
    """Dress the headers as a request of Django's, for its own checks of host, origin and token."""
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "443" if scheme == "https" else "80",
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BytesIO(),
    }
    for name, value in headers.items():
        if "_" not in name:
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    return WSGIRequest(environ)
