"""Refusals as `application/problem+json` (RFC 9457): one shape for whatever goes wrong."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, HttpResponse
from django.http.multipartparser import MultiPartParserError
from django.http.request import UnreadablePostError
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions

from registry.database.refusal import refusal_of
from registry.errors import (
    Denied,
    Invalid,
    NotFound,
    RateLimited,
    RegistryError,
    Text,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
CHALLENGE = 'Bearer realm="modelyard"'
# Where the middleware leaves the request's id.
REQUEST_ID = "modelyard.request_id"

logger = logging.getLogger(__name__)


class MethodNotAllowed(RegistryError):  # noqa: N818 - as in registry.errors
    code = "method_not_allowed"
    status = 405
    title = "This address does not take that method"


class NotAcceptable(RegistryError):  # noqa: N818 - as in registry.errors
    code = "not_acceptable"
    status = 406
    title = "No answer in the wanted format"


class UnsupportedMediaType(RegistryError):  # noqa: N818 - as in registry.errors
    code = "unsupported_media_type"
    status = 415
    title = "The body is of a kind that this address does not take"


class Unexpected(RegistryError):  # noqa: N818 - as in registry.errors
    code = "internal_error"
    status = 500
    title = "Something went wrong here"


def english(said: Text | RegistryError) -> str:
    return said.detail


def problem_body(
    error: BaseException,
    *,
    request_id: str,
    instance: str,
    say: Callable[[Text | RegistryError], str] = english,
) -> tuple[int, dict[str, Any]]:
    """Say what went wrong: the status and the members of the problem document.

    Whatever is not an expected refusal becomes a 500 that gives nothing away. `say` chooses the
    language; programs get English.
    """
    known = as_registry_error(error)
    return known.status, {
        "type": f"urn:modelyard:problem:{known.code}",
        "title": say(Text(known.title)),
        "status": known.status,
        "detail": say(known),
        "instance": instance,
        "code": known.reason,
        "errors": [
            {
                "field": one.field,
                "code": one.code,
                "detail": say(one),
                "position": one.position,
            }
            for one in known.errors
        ],
        "request_id": request_id,
    }


def problem_headers(error: BaseException) -> dict[str, str]:
    """Give the headers that go with a refusal."""
    known = as_registry_error(error)
    if known.status == Unauthenticated.status:
        return {"WWW-Authenticate": CHALLENGE}
    if known.status == Unavailable.status:
        return {"Retry-After": "1"}
    if isinstance(known, RateLimited):
        return {"Retry-After": str(known.retry_after)}
    return {}


def as_registry_error(error: BaseException) -> RegistryError:
    """Translate what Django, DRF and the database raise into the registry's own words."""
    if isinstance(error, RegistryError):
        return error
    if refusal := refusal_of(error):
        return refusal
    if isinstance(error, exceptions.APIException):
        return _from_rest_framework(error)
    return next(
        (translated for types, translated in _TRANSLATED if isinstance(error, types)),
        Unexpected("The server could not answer; its log has the request id."),
    )


_TRANSLATED: tuple[tuple[tuple[type[BaseException], ...], RegistryError], ...] = (
    ((Http404,), NotFound("There is nothing at this address.", code="no_such_address")),
    ((PermissionDenied,), Denied("This is not allowed.")),
    ((RequestDataTooBig,), TooLarge("The body is too large; send big files as uploads.")),
    (
        (BadRequest, SuspiciousOperation, MultiPartParserError),
        Invalid("The request could not be read.", code="malformed_request"),
    ),
    ((UnreadablePostError,), Invalid("The body ended early.", code="truncated_body")),
)


def _from_rest_framework(error: exceptions.APIException) -> RegistryError:
    """Say in our words, which stay English, what REST framework says in the reader's language."""
    return next(
        (translated for types, translated in _FROM_REST_FRAMEWORK if isinstance(error, types)),
        Invalid("The request could not be read.", code="malformed_request"),
    )


_FROM_REST_FRAMEWORK: tuple[tuple[type[BaseException], RegistryError], ...] = (
    (
        exceptions.MethodNotAllowed,
        MethodNotAllowed("This address does not take that method; Allow lists those it takes."),
    ),
    (
        exceptions.UnsupportedMediaType,
        UnsupportedMediaType("The body is of another kind; send application/json."),
    ),
    (
        exceptions.NotAcceptable,
        NotAcceptable("The answer is not to be had as the Accept header wants it."),
    ),
    (exceptions.NotFound, NotFound("There is nothing at this address.", code="no_such_address")),
)


def problem_response(error: BaseException, request: HttpRequest) -> HttpResponse:
    """Answer a request of Django's with a problem; an unexpected one is logged in full."""
    request_id = str(request.META.get(REQUEST_ID, ""))
    status, body = problem_body(error, request_id=request_id, instance=request.path)
    if status == Unexpected.status and isinstance(as_registry_error(error), Unexpected):
        logger.error("request %s to %s failed", request_id, request.path, exc_info=error)
    return HttpResponse(
        orjson.dumps(body),
        status=status,
        content_type=MEDIA_TYPE,
        headers={**problem_headers(error), "Cache-Control": "no-store"},
    )


def exception_handler(error: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """Answer whatever a view of REST framework raised."""
    return problem_response(error, context["request"]._request)  # noqa: SLF001 - DRF wraps it


@csrf_exempt
def unknown_address(request: HttpRequest, **_: str) -> HttpResponse:
    """Answer paths under /api/ that no route takes; never a page of HTML."""
    return problem_response(Http404(), request)
