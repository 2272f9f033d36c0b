"""Tokens in the Authorization header become actors; a cookie never opens a machine door."""

from typing import Any

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from registry.api.problem import CHALLENGE, REQUEST_ID
from registry.authenticate import Visit, actor_from_authorization
from registry.models import Actor


class TokenAuthentication(BaseAuthentication):
    """Leave the actor in `request.auth`; nobody's token is an anonymous actor, not an error."""

    def authenticate(self, request: Request) -> tuple[Any, Actor]:
        visit = Visit(
            door="api",
            request_id=str(request.META.get(REQUEST_ID, "")),
            ip=request.META.get("REMOTE_ADDR") or None,
        )
        return None, actor_from_authorization(request.headers.get("Authorization"), visit)

    def authenticate_header(self, request: Request) -> str:  # noqa: ARG002 - DRF's signature
        return CHALLENGE
