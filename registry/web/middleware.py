"""What every request carries: an id, and the door it came through; refusals become pages.

Whoever is signed in is watched over: when their session was last seen, whether a factor is due.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from redis.exceptions import RedisError

from registry.authenticate import Visit, lacks_second_factor
from registry.errors import RegistryError, Unavailable
from registry.models import User
from registry.services.sign_ins import note_seen
from registry.web.views.errors import render_problem

REQUEST_ID = "modelyard.request_id"
_ID_OF_A_PROXY = re.compile(r"[A-Za-z0-9._-]{8,64}")


def visit_of(request: HttpRequest) -> Visit:
    """Tell where a request came in, for the audit log."""
    return Visit(
        door="web",
        request_id=request.META.get(REQUEST_ID, ""),
        ip=request.META.get("REMOTE_ADDR") or None,
    )


class RequestContext:
    """Give each request an id (a proxy's, where it sent one) and say it in the answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        sent = request.headers.get("X-Request-Id", "")
        request_id = sent if _ID_OF_A_PROXY.fullmatch(sent) else secrets.token_hex(8)
        request.META[REQUEST_ID] = request_id
        response = self.get_response(request)
        response["X-Request-Id"] = request_id
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if isinstance(exception, RegistryError):
            return render_problem(request, exception)
        if isinstance(exception, RedisError):
            # Nobody is let in while their failed attempts cannot be counted.
            refusal = Unavailable(
                "The store that counts attempts cannot be reached; try again.",
                code="counter_unavailable",
            )
            return render_problem(request, refusal)
        return None


request_context = RequestContext

SEEN = "seen_at"
_SEEN_EVERY_SECONDS = 300
# Pages that open to somebody who still has to set up a second factor.
_OPEN = frozenset({"sign-in", "sign-out", "again-through-provider"})


class SignedInGuard:
    """Keep when a session was last seen, and lead whoever lacks a second factor to it."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        # Doors that never looked at the session, or have none, pay for nothing here.
        session = getattr(request, "session", None)
        if session is not None and session.accessed and session.session_key:
            _keep_seen(request)
        return response

    def process_view(
        self,
        request: HttpRequest,
        _view: Callable[..., HttpResponseBase],
        _args: Sequence[object],
        _kwargs: Mapping[str, object],
    ) -> HttpResponseBase | None:
        match = request.resolver_match
        if match is None or match.namespace != "web" or match.url_name in _OPEN:
            return None
        if settings.REQUIRE_MFA == "none" or not isinstance(request.user, User):
            return None
        return redirect("mfa_index") if lacks_second_factor(request.user) else None


def _keep_seen(request: HttpRequest) -> None:
    now, seen = time.time(), request.session.get(SEEN)
    if isinstance(seen, int) and now - seen < _SEEN_EVERY_SECONDS:
        return
    if isinstance(request.user, User) and request.session.session_key:
        request.session[SEEN] = int(now)
        note_seen(
            user=request.user,
            session_key=request.session.session_key,
            ip=request.META.get("REMOTE_ADDR") or "0.0.0.0",  # noqa: S104 - came by a socket
            user_agent=request.headers.get("User-Agent", ""),
        )


signed_in_guard = SignedInGuard
