"""What every address of the native API shares: actor, body, query, ETag, errors, HEAD."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from django.http.response import HttpResponse, HttpResponseBase
from pydantic import BaseModel
from rest_framework.permissions import SAFE_METHODS
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from registry.api.admission import admit
from registry.api.v1.authentication import TokenAuthentication
from registry.api.v1.idempotency import Claim, answer_once
from registry.api.v1.openapi import Schema, takes_body
from registry.api.v1.renderers import JSONRenderer
from registry.api.v1.requests import read_body, read_query
from registry.errors import NotFound, Unauthenticated
from registry.models import Actor, Repository, Version
from registry.services import catalog

Shape = TypeVar("Shape", bound=BaseModel)
P = ParamSpec("P")
R = TypeVar("R", bound="Resource")


class Resource(APIView):
    """An address: methods parse, call one service or one query, and render."""

    http_method_names = ["get", "head", "post", "put", "patch", "delete"]
    authentication_classes = [TokenAuthentication]
    renderer_classes = [JSONRenderer]
    metadata_class = None
    schema = Schema()
    # model or dataset; the URL table says which.
    kind: str = ""
    # False where an answer holds a secret that must be kept nowhere.
    keeps_answers: ClassVar[bool] = True

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self.headers_of_limits: dict[str, str] = {}

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        # Before all else, so that whatever is refused from here on is counted too.
        admit(
            lambda: self.actor,
            ip=request.META.get("REMOTE_ADDR") or None,
            writes=request.method not in SAFE_METHODS,
            tell=self.headers_of_limits.update,
        )
        super().initial(request, *args, **kwargs)
        if any("\0" in str(part) for part in kwargs.values()):
            raise NotFound("There is nothing at this address.", code="no_such_address")
        handler = getattr(type(self), (request.method or "").lower(), None)
        if handler is not None and request.method != "GET" and not takes_body(handler):
            # What nobody reads must still be what it says that it is. The raw bytes come first,
            # for an Idempotency-Key asks for them later.
            _ = request._request.body, request.data  # noqa: SLF001 - the raw bytes

    def finalize_response(
        self, request: Request, response: Response, *args: Any, **kwargs: Any
    ) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        response.headers.setdefault("Cache-Control", "private, no-cache")
        response.headers["Vary"] = "Accept, Authorization"
        for name, value in self.headers_of_limits.items():
            response.headers[name] = value
        return response

    @property
    def actor(self) -> Actor:
        actor = self.request.auth
        assert isinstance(actor, Actor)
        return actor

    @property
    def user_id(self) -> int:
        """The person behind the request, at addresses that only people with a token use."""
        if self.actor.user_id is None:
            raise Unauthenticated("This needs a token; send 'Authorization: Bearer my_…'.")
        return self.actor.user_id

    def body(self, shape: type[Shape]) -> Shape:
        return read_body(shape, self.request.data)

    def changes(self, shape: type[Shape]) -> dict[str, Any]:
        """Read a PATCH: the fields that were sent, and no others."""
        return self.body(shape).model_dump(exclude_unset=True)

    def query(self, shape: type[Shape]) -> Shape:
        return read_query(shape, self.request._request.GET)  # noqa: SLF001 - DRF wraps it

    def repository(self) -> Repository:
        return catalog.find_repository(
            self.actor, self.kind, self.kwargs["namespace"], self.kwargs["name"]
        )

    def version(self) -> Version:
        return catalog.find_version(
            self.actor, self.repository(), self.kwargs.get("version", "latest")
        )

    def not_modified(self, etag: str) -> HttpResponse | None:
        """Answer 304 when the caller already has this state (`If-None-Match`)."""
        sent = self.request.headers.get("If-None-Match", "")
        known = {tag.strip().removeprefix("W/") for tag in sent.split(",")}
        if "*" not in known and etag not in known:
            return None
        response = HttpResponse(status=304, headers={"ETag": etag})
        del response["Content-Type"]
        return response

    def if_match(self) -> str | None:
        return self.request.headers.get("If-Match")


def idempotent(
    post: Callable[Concatenate[R, Request, P], Response],
) -> Callable[Concatenate[R, Request, P], HttpResponseBase]:
    """Let a POST be sent again under its `Idempotency-Key`."""

    @wraps(post)
    def once(self: R, request: Request, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        claim = Claim.of(request, self.actor)
        if claim is None:
            return post(self, request, *args, **kwargs)
        return answer_once(
            claim,
            lambda: post(self, request, *args, **kwargs),
            keep_body=self.keeps_answers,
        )

    return once


def created(body: dict[str, Any], location: str, *, status: int = 201) -> Response:
    return Response(body, status=status, headers={"Location": location})


def no_content() -> HttpResponse:
    response = HttpResponse(status=204)
    del response["Content-Type"]
    return response
