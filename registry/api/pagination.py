"""Lists as `{items, next_cursor}` with a `Link` header to the next page."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from registry.pages import Page


def page_response(request: Request, page: Page, **beside: Any) -> Response:
    """Answer with a page, and what stands beside its items."""
    response = Response({"items": page.items, "next_cursor": page.next_cursor, **beside})
    if page.next_cursor is not None:
        query = request._request.GET.copy()  # noqa: SLF001 - DRF wraps it
        query["cursor"] = page.next_cursor
        target = request.build_absolute_uri(f"{request.path}?{query.urlencode()}")
        response["Link"] = f'<{target}>; rel="next"'
    return response
