"""What every request carries: an id, and the door it came through; refusals become pages."""

import re
import secrets
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from registry.authenticate import Visit
from registry.errors import RegistryError
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
        return None


request_context = RequestContext
