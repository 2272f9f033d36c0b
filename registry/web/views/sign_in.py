"""Coming in and going out: password, second factor, passkey, and proving again who one is."""

from typing import Any

from allauth.account.internal.flows.login import perform_password_login
from allauth.account.internal.flows.logout import logout
from allauth.account.models import Login
from allauth.account.views import LoginView, ReauthenticateView
from allauth.core.internal import ratelimit
from allauth.mfa.base.views import AuthenticateView
from allauth.mfa.base.views import ReauthenticateView as FactorAgainView
from allauth.mfa.webauthn.views import LoginWebAuthnView, ReauthenticateWebAuthnView
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.errors import Denied, NotFound, RateLimited, RegistryError
from registry.services import people, sign_ins
from registry.web.account_forms import SignInForm, SignUpForm
from registry.web.accounts import anonymous_of
from registry.web.forms import show_refusal
from registry.web.views.errors import render_problem
from registry.web.visitor import anybody, signed_in


class SignIn(LoginView):
    """Name and password; an address in `next` is gone back to when it is one of ours."""

    template_name = "account/sign_in.html"
    form_class = SignInForm

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        more = {
            "section": "login",
            "next": self.get_next_url() or "",
            "provider": settings.OIDC_NAME if settings.OIDC_ISSUER else "",
            "may_sign_up": settings.SIGNUP,
        }
        return {**super().get_context_data(**kwargs), **more}


sign_in = require_http_methods(["GET", "HEAD", "POST"])(anybody(SignIn.as_view()))


@require_POST
@anybody
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request, show_message=False)
    return redirect("web:home")


@require_safe
@anybody
def switched_off(request: HttpRequest) -> HttpResponse:
    """Say so to somebody whose password was right but whose account no longer opens anything."""
    refusal = Denied("This account is switched off; ask an administrator.")
    return render_problem(request, refusal)


@never_cache
@sensitive_post_parameters("password")
@require_http_methods(["GET", "HEAD", "POST"])
@anybody
def sign_up(request: HttpRequest) -> HttpResponse:
    if not settings.SIGNUP:
        raise NotFound("This installation takes no strangers; ask an administrator.")
    if too_many := ratelimit.consume_or_429(request, app="allauth.account", action="signup"):
        refused: HttpResponse = too_many
        return refused
    form = SignUpForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            user = people.sign_up(actor=anonymous_of(request), **form.cleaned_data)
        except RegistryError as error:
            show_refusal(form, error)
        else:
            answer: HttpResponse = perform_password_login(
                request, {"username": user.username}, Login(user=user)
            )
            return answer
    return render(request, "account/sign_up.html", {"form": form, "section": "login"})


class SecondFactor(AuthenticateView):
    """The second step: a code, or a passkey as a second factor."""

    template_name = "account/second_factor.html"

    def form_invalid(self, form: Any) -> HttpResponse:
        username = self.stage.login.user.username
        sign_ins.note_refusal(
            actor=anonymous_of(self.request), username=username, reason="wrong second factor"
        )
        answer: HttpResponse = super().form_invalid(form)
        return answer

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        kinds = self.stage.login.user.authenticator_set.values_list("type", flat=True)
        more = {"section": "login", "kinds": set(kinds)}
        return {**super().get_context_data(**kwargs), **more}


class PasskeySignIn(LoginWebAuthnView):
    """A passkey alone: GET gives the challenge to a script, POST takes the answer."""

    def form_invalid(self, form: Any) -> HttpResponse:
        sign_ins.note_refusal(actor=anonymous_of(self.request), reason="unknown passkey")
        answer: HttpResponse = super().form_invalid(form)
        return answer


@method_decorator(sensitive_post_parameters("password"), name="dispatch")
class Again(ReauthenticateView):
    """The password once more, before something that matters."""

    template_name = "account/again.html"


class AgainWithFactor(FactorAgainView):
    template_name = "account/again.html"


class AgainWithPasskey(ReauthenticateWebAuthnView):
    template_name = "account/again_with_passkey.html"


@require_safe
@signed_in
def again_through_provider(request: HttpRequest) -> HttpResponse:
    """Somebody with neither password nor factor proves it where their identity is."""
    if not settings.OIDC_ISSUER:
        raise NotFound("This installation has no identity provider.")
    context = {"next": request.GET.get("next", ""), "provider": settings.OIDC_NAME}
    return render(request, "account/again_through_provider.html", context)


def too_many_requests(request: HttpRequest) -> HttpResponse:
    """Answer what one of allauth's limits stopped; the longest of them looks back a minute."""
    refusal = RateLimited(
        "Too many requests; wait {retry_after} seconds, then try again.", retry_after=60
    )
    return render_problem(request, refusal)
