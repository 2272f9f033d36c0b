"""The way to the identity provider and back, and the identities linked to an account."""

from typing import Any

from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from allauth.socialaccount.providers.base.constants import AuthProcess
from allauth.socialaccount.views import ConnectionsView
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import translation
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from registry.errors import NotFound
from registry.web.visitor import anybody


def _require_provider() -> None:
    if not settings.OIDC_ISSUER:
        raise NotFound("This installation has no identity provider.")


@never_cache
@require_POST
@anybody
def go(request: HttpRequest) -> HttpResponse:
    """Lead to the provider: to sign in, or, for somebody signed in, to link an identity."""
    _require_provider()
    if request.POST.get("process") == AuthProcess.CONNECT:
        raise_if_reauthentication_required(request, app="")
    # The protocol's libraries take a while to load, and most installations have no provider.
    from registry.web import openid  # noqa: PLC0415

    return openid.answer(request, openid.GoView)


@never_cache
@require_safe
@anybody
def come_back(request: HttpRequest) -> HttpResponse:
    """Take what the provider sent the browser back with, in the language it left in."""
    _require_provider()
    from registry.web import openid  # noqa: PLC0415 - as in `go`

    with translation.override(_language_of(request)):
        return openid.answer(request, openid.ComeBackView)


def _language_of(request: HttpRequest) -> str:
    """Look up in the session in which language the sign-in began, by the state of the answer."""
    states = request.session.get("socialaccount_states")
    kept = states.get(request.GET.get("state", "")) if isinstance(states, dict) else None
    language = kept[0].get("language") if kept else None
    return language if language in dict(settings.LANGUAGES) else settings.LANGUAGE_CODE


@method_decorator(never_cache, name="dispatch")
class Identities(ConnectionsView):
    """The identities that open this account, and linking one more."""

    template_name = "account/identities.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        more = {"provider": settings.OIDC_NAME if settings.OIDC_ISSUER else ""}
        return {**super().get_context_data(**kwargs), **more}
