"""The addresses that django-allauth knows by name, at ours; each exists in both languages."""

from collections.abc import Callable
from typing import Any

from django.urls import path
from django.views.decorators.http import require_http_methods
from django.views.generic import RedirectView

from registry.web.views import identities, security, sign_in
from registry.web.visitor import anybody, signed_in

_FACTORS = "settings/second-factors"
_PASSKEYS = "settings/passkeys"
_READ = ("GET", "HEAD")
_FORM = (*_READ, "POST")


def _page(view: Any, *methods: str, audience: Callable[..., Any] = signed_in) -> Any:
    """Say of a view of allauth's which methods it takes and whom it is for."""
    return require_http_methods([*methods])(audience(view))


urlpatterns = [
    path("login", sign_in.sign_in, name="account_login"),
    path("logout", sign_in.sign_out, name="account_logout"),
    path("login/new", sign_in.sign_up, name="account_signup"),
    path("login/switched-off", sign_in.switched_off, name="account_inactive"),
    path(
        "login/second-factor",
        _page(sign_in.SecondFactor.as_view(), *_FORM, audience=anybody),
        name="mfa_authenticate",
    ),
    path(
        "login/passkey",
        _page(sign_in.PasskeySignIn.as_view(), *_FORM, audience=anybody),
        name="mfa_login_webauthn",
    ),
    path("login/again", _page(sign_in.Again.as_view(), *_FORM), name="account_reauthenticate"),
    path(
        "login/again/code",
        _page(sign_in.AgainWithFactor.as_view(), *_FORM),
        name="mfa_reauthenticate",
    ),
    path(
        "login/again/passkey",
        _page(sign_in.AgainWithPasskey.as_view(), *_FORM),
        name="mfa_reauthenticate_webauthn",
    ),
    path("login/provider", identities.go, name="openid_connect_login"),
    path("settings/password", security.password, name="account_change_password"),
    path("settings/sessions", security.sessions, name="usersessions_list"),
    path(_FACTORS, _page(security.Factors.as_view(), *_READ), name="mfa_index"),
    path(
        f"{_FACTORS}/app", _page(security.ActivateApp.as_view(), *_FORM), name="mfa_activate_totp"
    ),
    path(
        f"{_FACTORS}/app/remove",
        _page(security.RemoveApp.as_view(), *_FORM),
        name="mfa_deactivate_totp",
    ),
    path(
        f"{_FACTORS}/codes",
        _page(security.Codes.as_view(), *_READ),
        name="mfa_view_recovery_codes",
    ),
    path(
        f"{_FACTORS}/codes/new",
        _page(security.NewCodes.as_view(), *_FORM),
        name="mfa_generate_recovery_codes",
    ),
    path(
        _PASSKEYS,
        _page(RedirectView.as_view(pattern_name="mfa_index"), *_READ),
        name="mfa_list_webauthn",
    ),
    path(f"{_PASSKEYS}/add", _page(security.AddPasskey.as_view(), *_FORM), name="mfa_add_webauthn"),
    path(
        f"{_PASSKEYS}/<int:pk>/remove",
        _page(security.RemovePasskey.as_view(), *_FORM),
        name="mfa_remove_webauthn",
    ),
    path(
        "settings/identity",
        _page(identities.Identities.as_view(), *_FORM),
        name="socialaccount_connections",
    ),
]
