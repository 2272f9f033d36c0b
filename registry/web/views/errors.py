"""Error pages: they name the thing, the way out and the request id."""

import sys
from http import HTTPStatus

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.utils.translation import gettext as _

from registry.database.refusal import refusal_of
from registry.errors import NotFound, RateLimited, RegistryError, Unavailable
from registry.web.refusals import words_of
from registry.web.transfers import REFUSAL


def _titles() -> dict[int, tuple[str, str]]:
    return {
        400: (
            _("This request cannot be understood"),
            _("Something in it is malformed. Go back and try again."),
        ),
        401: (_("Sign in first"), _("This page needs somebody who is signed in.")),
        403: (
            _("You may not do this"),
            _("Your role does not reach that far. A maintainer of the namespace can grant it."),
        ),
        404: (
            _("Nothing is here"),
            _(
                "It does not exist, or it is private and you are not a member. "
                "Check the address, search, or sign in."
            ),
        ),
        409: (
            _("In conflict with the present state"),
            _("Somebody or something was there first. Go back and look again."),
        ),
        413: (_("Too large"), _("The server does not take that much at once.")),
        429: (_("Over the limit"), _("Wait for what is running to end, then try again.")),
        500: (
            _("Something broke on our side"),
            _("Nothing was half written. Try again; if it stays, report the request id."),
        ),
        503: (_("Not available right now"), _("Try again in a few seconds.")),
        507: (_("No space left"), _("The storage is full; an administrator can make room.")),
    }


def _page(request: HttpRequest, status: int, *, detail: str = "") -> HttpResponse:
    titles = _titles()
    title, advice = titles.get(status, titles[400 if status < 500 else 500])
    context = {
        "status": status,
        "title": title,
        "advice": advice,
        "detail": detail,
        "request_id": request.META.get("modelyard.request_id", ""),
        "is_anonymous": not getattr(getattr(request, "user", None), "is_authenticated", False),
    }
    body = render_to_string("error.html", context, request=None if status >= 500 else request)
    return HttpResponse(body, status=status)


def render_problem(request: HttpRequest, error: RegistryError) -> HttpResponse:
    """Show a refusal as a page; what you may not see reads like what does not exist."""
    detail = "" if isinstance(error, NotFound) else words_of(error)
    page = _page(request, error.status, detail=detail)
    if isinstance(error, RateLimited):
        page["Retry-After"] = str(error.retry_after)
    elif isinstance(error, Unavailable):
        page["Retry-After"] = "1"
    return page


# Django names the argument of these views; what it says is not shown.


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    return _page(request, HTTPStatus.BAD_REQUEST)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    return _page(request, HTTPStatus.FORBIDDEN)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:  # noqa: ARG001
    # A file that is not given out has no page of its own, but a reason.
    refusal = request.META.get(REFUSAL)
    if isinstance(refusal, RegistryError):
        return render_problem(request, refusal)
    return _page(request, HTTPStatus.NOT_FOUND)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer what nobody caught; Django calls this while it handles that."""
    if refusal := refusal_of(sys.exc_info()[1]):
        return render_problem(request, refusal)
    return _page(request, HTTPStatus.INTERNAL_SERVER_ERROR)


def csrf_failure(request: HttpRequest, **_reason: object) -> HttpResponse:
    detail = _(
        "The form had expired, or it came from another site. Reload the page and send again."
    )
    return _page(request, HTTPStatus.FORBIDDEN, detail=detail)
