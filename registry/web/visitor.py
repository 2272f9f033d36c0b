"""Who is looking at the page: the actor of the session, made once per request."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar
from urllib.parse import urlencode

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, resolve_url

from registry.authenticate import actor_for_user
from registry.models import ANONYMOUS, Actor, User
from registry.web.middleware import visit_of

_ACTOR = "modelyard.actor"
P = ParamSpec("P")
AnyView = TypeVar("AnyView", bound=Callable[..., Any])
View: TypeAlias = Callable[Concatenate[HttpRequest, P], HttpResponseBase]


def actor_of(request: HttpRequest) -> Actor:
    actor = request.META.get(_ACTOR)
    if not isinstance(actor, Actor):
        visit = visit_of(request)
        user = getattr(request, "user", None)
        if isinstance(user, User) and user.is_authenticated:
            actor = actor_for_user(user, visit)
        else:
            actor = Actor(
                scopes=ANONYMOUS.scopes, door=visit.door, request_id=visit.request_id, ip=visit.ip
            )
        request.META[_ACTOR] = actor
    return actor


def anybody(view: AnyView) -> AnyView:
    """Say of a page that it is for visitors who are not signed in too.

    Every view says whom it is for, with this or with `signed_in`; a test fails on one that does
    not. What a visitor may see on the page is decided by what is read for their actor.
    """
    view.audience = "anybody"  # type: ignore[attr-defined] # functions take attributes
    return view


def signed_in(view: View[P]) -> View[P]:
    """Lead anonymous visitors to the sign-in page and back."""

    @wraps(view)
    def guarded(request: HttpRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if actor_of(request).is_anonymous:
            target = urlencode({"next": request.get_full_path()})
            return redirect(f"{resolve_url('web:sign-in')}?{target}")
        return view(request, *args, **kwargs)

    guarded.audience = "signed in"  # type: ignore[attr-defined] # as in `anybody`
    return guarded
