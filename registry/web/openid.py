"""Signing in through an OpenID Connect provider: allauth's flow, held to the whole standard.

What allauth leaves open is closed here: a nonce ties the ID token to the browser that asked, its
signature is always checked, the user's data must be of the same person, and nothing that the
provider sends is waited for or read without bounds.
"""

import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests
from allauth.socialaccount.models import SocialApp, SocialLogin
from allauth.socialaccount.providers import registry
from allauth.socialaccount.providers.base.constants import AuthError
from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView, OAuth2LoginView
from allauth.socialaccount.providers.openid_connect.provider import OpenIDConnectProvider
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from allauth.utils import build_absolute_uri
from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from registry.errors import RegistryError, Unauthenticated, Unavailable
from registry.services import sign_ins
from registry.web.accounts import anonymous_of
from registry.web.identity import provider_id
from registry.web.views.errors import render_problem

MAX_BYTES = 1 << 20
TOTAL_SECONDS = 10.0
MAX_SUBJECT_CHARACTERS = 190
DISCOVERY_SECONDS = 300
# What may sign an ID token: key pairs only, so that no public key can pass for a shared secret.
ALGORITHMS = [
    *(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)),
    "EdDSA",
]
_LEEWAY_SECONDS = 60
_NEEDED = ("authorization_endpoint", "token_endpoint", "userinfo_endpoint", "jwks_uri")


class BoundedSession(requests.Session):
    """Requests to the provider: no redirects, a bounded answer within a bounded time."""

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        until = time.monotonic() + TOTAL_SECONDS
        kwargs |= {
            "allow_redirects": False,
            "stream": True,
            "timeout": settings.SOCIALACCOUNT_REQUESTS_TIMEOUT,
        }
        response = super().request(method, url, *args, **kwargs)
        parts, size = [], 0
        with response:
            for part in response.iter_content(64 * 1024):
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES or time.monotonic() > until:
                    raise requests.RequestException("the answer is too long, or takes too long")
        response._content = b"".join(parts)  # noqa: SLF001 - as requests itself would have
        if response.is_redirect:
            raise requests.RequestException("the answer leads elsewhere")
        return response


class OpenIDConnectAdapter(OpenIDConnectOAuth2Adapter):
    """The protocol: what the provider publishes, and what its tokens have to say."""

    # What was kept in the session when this sign-in began; the callback sets it.
    state: Mapping[str, Any]

    @property
    def openid_config(self) -> dict[str, Any]:
        key = f"modelyard:{provider_id()}:configuration"
        if (kept := cache.get(key)) is None:
            kept = self._discover()
            cache.set(key, kept, DISCOVERY_SECONDS)
        config: dict[str, Any] = kept
        return config

    def _discover(self) -> dict[str, Any]:
        with BoundedSession() as session:
            answer = session.get(self.get_provider().server_url)
        answer.raise_for_status()
        said = answer.json()
        if not isinstance(said, dict) or said.get("issuer") != settings.OIDC_ISSUER:
            raise OAuth2Error("the discovery document is of another issuer")
        for name in _NEEDED:
            if not _is_good_address(said.get(name)):
                raise OAuth2Error(f"the discovery document has no usable {name}")
        kept = (*_NEEDED, "issuer", "token_endpoint_auth_methods_supported")
        return {name: said[name] for name in kept if name in said}

    def get_callback_url(self, request: HttpRequest, app: SocialApp) -> str:  # noqa: ARG002
        return str(build_absolute_uri(request, reverse("openid_connect_callback")))

    def complete_login(
        self, request: HttpRequest, app: SocialApp, token: Any, **kwargs: Any
    ) -> SocialLogin:
        answer = kwargs["response"]
        claims = self._decode_id_token(app, answer.get("id_token"))
        said = self._fetch_user_info(token.token)
        if not isinstance(said, dict) or said.get("sub") != claims["sub"]:
            raise OAuth2Error("the user's data is of another person than the ID token")
        data = {"userinfo": _kept_claims({**claims, **said})}
        return self.get_provider().sociallogin_from_response(request, data)

    def _decode_id_token(self, app: SocialApp, id_token: object) -> dict[str, Any]:
        """Check an ID token as the standard's 3.1.3.7 says, its signature too."""
        try:
            claims: dict[str, Any] = jwt.decode(
                str(id_token),
                key=self._key_for(str(id_token)),
                algorithms=ALGORITHMS,
                audience=app.client_id,
                issuer=settings.OIDC_ISSUER,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["iss", "sub", "aud", "exp", "iat"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise OAuth2Error(f"the ID token is not good: {type(error).__name__}") from error
        nonce = self.state.get("nonce")
        if not nonce or not secrets.compare_digest(str(claims.get("nonce", "")), str(nonce)):
            raise OAuth2Error("the ID token answers another request")
        if isinstance(claims["aud"], list) and claims.get("azp", app.client_id) != app.client_id:
            raise OAuth2Error("the ID token was issued to another client")
        return claims

    def _key_for(self, id_token: str) -> jwt.PyJWK:
        with BoundedSession() as session:
            answer = session.get(self.openid_config["jwks_uri"])
        answer.raise_for_status()
        keys = jwt.PyJWKSet.from_dict(answer.json()).keys
        wanted = jwt.get_unverified_header(id_token).get("kid")
        fitting = [key for key in keys if wanted is None or key.key_id == wanted]
        if len(fitting) != 1:
            raise OAuth2Error("the provider has no such key")
        return fitting[0]

    def _fetch_user_info(self, access_token: str) -> Any:
        with BoundedSession() as session:
            answer = session.get(
                self.profile_url, headers={"Authorization": f"Bearer {access_token}"}
            )
        answer.raise_for_status()
        return answer.json()


def _kept_claims(claims: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what an account is made of, as text without anything that cannot be shown or stored."""
    kept: dict[str, Any] = {"email_verified": claims.get("email_verified") is True}
    for name in ("sub", "preferred_username", "email", "name", "given_name", "family_name"):
        if isinstance(text := claims.get(name), str):
            kept[name] = "".join(one for one in text[:300] if one.isprintable())
    if kept.get("sub") != claims["sub"] or not 0 < len(kept["sub"]) <= MAX_SUBJECT_CHARACTERS:
        raise OAuth2Error("the subject of the ID token is no identifier")
    return kept


def _is_good_address(text: object) -> bool:
    """Take an endpoint by HTTPS, or by HTTP where the issuer itself is on this machine."""
    url = urlsplit(text) if isinstance(text, str) else None
    issuer = urlsplit(settings.OIDC_ISSUER)
    return url is not None and bool(url.hostname) and url.scheme in {"https", issuer.scheme}


class OpenIDConnect(OpenIDConnectProvider):
    """The one provider of an installation."""

    oauth2_adapter_class = OpenIDConnectAdapter

    def get_login_url(self, request: HttpRequest, **kwargs: Any) -> str:  # noqa: ARG002
        return reverse("openid_connect_login")

    def get_callback_url(self) -> str:
        return reverse("openid_connect_callback")

    # What a client writes into the address changes neither what is asked nor how.

    def get_auth_params_from_request(self, request: HttpRequest, action: str) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def get_scope_from_request(self, request: HttpRequest) -> list[str]:  # noqa: ARG002
        return list(self.get_scope())

    def redirect(
        self,
        request: HttpRequest,
        process: str,
        next_url: str | None = None,
        data: Any = None,
        **kwargs: Any,
    ) -> HttpResponse:
        nonce = secrets.token_urlsafe(24)
        language = getattr(request, "LANGUAGE_CODE", settings.LANGUAGE_CODE)
        kwargs |= {"auth_params": {"nonce": nonce}, "nonce": nonce, "language": language}
        answer: HttpResponse = super().redirect(request, process, next_url, data, **kwargs)
        return answer


registry.register(OpenIDConnect)


class GoView(OAuth2LoginView):
    """The way to the provider."""


class ComeBackView(OAuth2CallbackView):
    """The way back: the state is looked at before anything else."""

    adapter: OpenIDConnectAdapter

    def _get_state(self, request: HttpRequest, provider: OpenIDConnect) -> tuple[Any, Any]:
        state, refusal = super()._get_state(request, provider)
        self.adapter.state = state or {}
        issuer = request.GET.get("iss", settings.OIDC_ISSUER)
        if state is not None and issuer != settings.OIDC_ISSUER:
            raise OAuth2Error("the answer is of another issuer")
        return state, refusal


def answer(request: HttpRequest, view: type[GoView] | type[ComeBackView]) -> HttpResponse:
    """Give the flow's answer; what it does not catch itself is a provider that is not there."""
    try:
        given: HttpResponse = view.adapter_view(OpenIDConnectAdapter(request, provider_id()))(
            request
        )
    except (requests.RequestException, OAuth2Error) as error:
        return refuse(request, AuthError.UNKNOWN, error)
    return given


def refuse(request: HttpRequest, error: Any, exception: Exception | None) -> HttpResponse:
    """Show why the provider's word was not taken."""
    reason = _reason(error, exception)
    sign_ins.note_refusal(actor=anonymous_of(request), reason=reason)
    refusal: RegistryError
    if isinstance(exception, requests.RequestException):
        refusal = Unavailable(
            "{provider} cannot be reached, or does not answer as it should; try again later.",
            code="provider_unavailable",
            provider=settings.OIDC_NAME,
        )
    elif error == AuthError.CANCELLED:
        refusal = Unauthenticated(
            "You stopped the sign-in at {provider}; nothing has changed.",
            code="sign_in_cancelled",
            provider=settings.OIDC_NAME,
        )
    else:
        refusal = Unauthenticated(
            "The sign-in through {provider} did not succeed; start again from the sign-in page.",
            code="sign_in_failed",
            provider=settings.OIDC_NAME,
        )
    return render_problem(request, refusal)


def _reason(error: Any, exception: Exception | None) -> str:
    """Say for the log what went wrong, without a word that the other side chose."""
    if isinstance(exception, OAuth2Error):
        text = str(exception)
        return "no access token" if text.startswith("Error retrieving") else f"provider: {text}"
    if exception is not None:
        return f"provider: {type(exception).__name__}"
    return "provider: cancelled" if error == AuthError.CANCELLED else "provider: unknown state"
