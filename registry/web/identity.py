"""What the word of an identity provider does here: which accounts it opens, and which it makes.

Every process of Django's loads this module, so it brings no library of the protocol with it;
`registry.web.openid` does, for those who sign in through a provider.
"""

import hashlib
from typing import Any

from allauth.account.models import EmailAddress
from allauth.core.exceptions import ImmediateHttpResponse
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from allauth.socialaccount.models import SocialAccount, SocialApp, SocialLogin
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest
from django.urls import reverse

from registry.errors import Denied
from registry.models import User
from registry.services import people, sign_ins
from registry.web.accounts import anonymous_of
from registry.web.views.errors import render_problem


def provider_id() -> str:
    """Name the provider by its issuer: a `sub` means nothing to another one."""
    return f"oidc-{hashlib.sha256(settings.OIDC_ISSUER.encode()).hexdigest()[:16]}"


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

    def get_provider(self, request: HttpRequest, provider: str, client_id: Any = None) -> Any:
        # The module registers the provider with allauth as it is loaded.
        from registry.web import openid  # noqa: F401, PLC0415 - see above

        return super().get_provider(request, provider, client_id)

    def get_requests_session(self) -> Any:
        from registry.web.openid import BoundedSession  # noqa: PLC0415 - see above

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
        from registry.web.openid import refuse  # noqa: PLC0415 - see above

        raise ImmediateHttpResponse(refuse(request, error, exception))
