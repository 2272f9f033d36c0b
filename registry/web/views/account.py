"""Signing in and out, and the tokens that programs carry."""

from typing import Any

from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from registry.errors import RegistryError
from registry.models import Token, User
from registry.services.tokens import create_token, revoke_token
from registry.web.forms import SignInForm, TokenForm, show_refusal
from registry.web.visitor import actor_of, anybody, signed_in


class SignIn(LoginView):
    """Name and password; an address in `next` is gone back to when it is one of ours."""

    template_name = "account/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True

    def get_redirect_url(
        self,
        request: HttpRequest | None = None,  # noqa: ARG002 - a newer Django's signature
    ) -> str:
        # Back to this page is no way on; Django would give up over it.
        asked = str(super().get_redirect_url())
        return "" if asked == self.request.path else asked

    def get_default_redirect_url(self) -> str:
        return str(super().get_default_redirect_url())

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_context_data(**kwargs), "section": "login"}


sign_in = require_http_methods(["GET", "HEAD", "POST"])(anybody(SignIn.as_view()))


@require_POST
@anybody
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("web:home")


@never_cache
@signed_in
@require_http_methods(["GET", "POST"])
def tokens(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    form = TokenForm(request.POST or None)
    secret = ""
    if request.method == "POST" and form.is_valid():
        try:
            _token, secret = create_token(
                actor=actor,
                name=form.cleaned_data["name"],
                scopes=form.cleaned_data["scopes"],
                expires_at=form.expires_at(),
            )
            form = TokenForm()
        except RegistryError as error:
            show_refusal(form, error)
    assert isinstance(request.user, User)
    own = Token.objects.live().filter(user=request.user).order_by("-created_at", "-pk")
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
