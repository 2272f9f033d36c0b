"""Signing in through an OpenID Connect provider: allauth's flow, held to the whole standard.

What allauth leaves open is closed here: a nonce ties the ID token to the browser that asked, its
signature is always checked, the user's data must be of the same person, and nothing that the
provider sends is waited for or read without bounds.
"""

import hashlib
import secrets
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests
from allauth.account.models import EmailAddress
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialLogin
from allauth.socialaccount.providers.base.constants import AuthError
from allauth.socialaccount.providers.oauth2.client import OAuth2Error
from allauth.socialaccount.providers.oauth2.views import OAuth2CallbackView, OAuth2LoginView
from allauth.socialaccount.providers.openid_connect.provider import OpenIDConnectProvider
from allauth.socialaccount.providers.openid_connect.views import OpenIDConnectOAuth2Adapter
from allauth.utils import build_absolute_uri
from django.conf import settings
from django.core.cache import cache
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from registry.errors import Denied, RegistryError, Unauthenticated, Unavailable
from registry.models import User
from registry.services import people, sign_ins
from registry.web.accounts import anonymous_of
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


def provider_id() -> str:
    """Name the provider by its issuer: a `sub` means nothing to another one."""
    return f"oidc-{hashlib.sha256(settings.OIDC_ISSUER.encode()).hexdigest()[:16]}"


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


class IdentityAdapter(DefaultSocialAccountAdapter):
    """What a provider's word does here: which accounts it opens, and which it makes."""

    def list_apps(
        self, _request: HttpRequest, provider: Any = None, client_id: Any = None
    ) -> list[SocialApp]:
        """Give the one provider of the settings; none is kept in a table."""
        if not settings.OIDC_ISSUER or provider not in {None, "openid_connect", provider_id()}:
            return []
        if client_id not in {None, settings.OIDC_CLIENT_ID}:
            return []
        return [
            SocialApp(
                provider="openid_connect",
                provider_id=provider_id(),
                name=settings.OIDC_NAME,
                client_id=settings.OIDC_CLIENT_ID,
                secret=settings.OIDC_CLIENT_SECRET,
                settings={
                    "server_url": settings.OIDC_ISSUER.rstrip("/"),
                    "oauth_pkce_enabled": True,
                    "email_authentication": settings.OIDC_TRUST_EMAIL,
                },
            )
        ]

    def get_requests_session(self) -> requests.Session:
        return BoundedSession()

    def is_open_for_signup(self, request: HttpRequest, _sociallogin: SocialLogin) -> bool:
        if not settings.OIDC_SIGNUP:
            refusal = Denied(
                "{provider} knows you, but no account here is linked to you; "
                "ask an administrator for one, then link it under Settings, Identity.",
                code="no_account",
                provider=settings.OIDC_NAME,
            )
            sign_ins.note_refusal(actor=anonymous_of(request), reason="no account")
            raise ImmediateHttpResponse(render_problem(request, refusal))
        return True

    def save_user(
        self,
        request: HttpRequest,
        sociallogin: SocialLogin,
        form: Any = None,  # noqa: ARG002
    ) -> User:
        """Make the account and its namespace through our service, and the link, in one go."""
        said, claims = sociallogin.user, sociallogin.account.extra_data["userinfo"]
        address = next(iter(sociallogin.email_addresses), None)
        with transaction.atomic():
            user = people.add_person_of_provider(
                actor=anonymous_of(request),
                # allauth drops a name that is taken or too long; ours is made to fit.
                wanted=[claims.get(name, "") for name in ("preferred_username", "email", "name")],
                email=address.email if address else "",
            )
            user.first_name, user.last_name = said.first_name[:150], said.last_name[:150]
            sociallogin.user = user
            sociallogin.save(request)
        return user

    def authenticate_by_email(self, sociallogin: SocialLogin) -> tuple[User, str] | None:
        """Open the account whose address both sides have verified, for a provider we trust."""
        if not settings.OIDC_TRUST_EMAIL:
            return None
        for said in sociallogin.email_addresses:
            owners = EmailAddress.objects.filter(email__iexact=said.email, verified=True)
            if said.verified and len(found := list(owners.select_related("user")[:2])) == 1:
                return found[0].user, said.email
        return None

    def get_connect_redirect_url(self, request: HttpRequest, socialaccount: SocialAccount) -> str:  # noqa: ARG002
        return reverse("socialaccount_connections")

    def on_authentication_error(
        self,
        request: HttpRequest,
        provider: Any,  # noqa: ARG002 - allauth's signature
        error: Any = None,
        exception: Exception | None = None,
        extra_context: Any = None,  # noqa: ARG002 - as above
    ) -> None:
        """Answer with a page that says what to do; the log has what was wrong."""
        raise ImmediateHttpResponse(refuse(request, error, exception))


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
