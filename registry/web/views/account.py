"""The tokens that programs carry."""

from typing import Any

from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from registry.errors import NotFound, RegistryError
from registry.models import Actor, Kind, Token, User
from registry.services import catalog, namespaces
from registry.services.tokens import create_token, revoke_token
from registry.web.forms import TokenForm, show_refusal
from registry.web.visitor import actor_of, signed_in


@never_cache
@signed_in
@require_http_methods(["GET", "POST"])
def tokens(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    form = TokenForm(request.POST or None)
    secret = ""
    if request.method == "POST" and form.is_valid():
        if "admin" in form.cleaned_data["scopes"]:
            raise_if_reauthentication_required(request, app="")
        try:
            _token, secret = create_token(
                actor=actor,
                name=form.cleaned_data["name"],
                scopes=form.cleaned_data["scopes"],
                expires_at=form.expires_at(),
                **_place(actor, form.cleaned_data["place"]),
            )
            form = TokenForm()
        except RegistryError as error:
            show_refusal(form, error)
    assert isinstance(request.user, User)
    own = Token.objects.live().with_places(actor)
    own = own.filter(user=request.user).order_by("-created_at", "-pk")
    context = {
        "form": form,
        "secret": secret,
        "tokens": own,
        "address": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "account/tokens.html", context)


@require_POST
@signed_in
def revoke(request: HttpRequest, token_id: int) -> HttpResponse:
    token = revoke_token(actor=actor_of(request), token_id=token_id)
    messages.success(request, _("The token %(name)s is revoked.") % {"name": token.name})
    return redirect("web:tokens")


def _place(actor: Actor, name: str) -> dict[str, Any]:
    """Find what a new token is limited to: a namespace, or one model or dataset by full name."""
    name = name.strip().strip("/")
    if not name:
        return {}
    space, slash, rest = name.partition("/")
    if not slash:
        return {"namespace": namespaces.find_namespace(actor, space)}
    try:
        return {"repository": catalog.find_repository(actor, Kind.MODEL, space, rest)}
    except NotFound:
        return {"repository": catalog.find_repository(actor, Kind.DATASET, space, rest)}
