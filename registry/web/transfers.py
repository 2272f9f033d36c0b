"""The web UI's side of `registry.stream`: the session, and proof that a page of ours is asking."""

import io
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from registry.authenticate import Visit, actor_from_session
from registry.errors import Denied, Invalid
from registry.models import Actor

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
    try:
        request.get_host()
    except DisallowedHost:
        raise Invalid("This server has no such host name.", code="bad_host") from None
    if method not in _SAFE:
        _require_own_page(request)
    visit = Visit(door="web", request_id=request_id, ip=ip)
    return actor_from_session(request.COOKIES.get(settings.SESSION_COOKIE_NAME), visit)


def _require_own_page(request: WSGIRequest) -> None:
    refusal = Denied(
        "The request did not come from a page of this site, or the page had expired; reload it.",
        code="csrf_failed",
    )
    if "HTTP_ORIGIN" not in request.META:
        raise refusal
    check = CsrfViewMiddleware(lambda _: HttpResponse())
    check.process_request(request)
    if check.process_view(request, _nothing, (), {}) is not None:
        raise refusal


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
