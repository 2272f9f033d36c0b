"""How django-allauth behaves here: where it leads, what it counts, what it writes to the log."""

import math
import time
from typing import Any
from urllib.parse import urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.account.internal.flows.login import get_authentication_records
from allauth.core import context
from allauth.core.internal import ratelimit
from allauth.core.internal.httpkit import get_client_ip
from allauth.mfa.adapter import DefaultMFAAdapter
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.models import AnonymousUser
from django.core.cache import cache
from django.http import HttpRequest
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext_lazy as _

from registry.authenticate import actor_for_user
from registry.errors import RateLimited
from registry.models import ANONYMOUS, Actor, AuditAction, User
from registry.services import factors, sign_ins
from registry.web.middleware import visit_of

# For so long it counts that somebody proved who they are.
FRESH_SECONDS = 300
NO_ADDRESS = "0.0.0.0"  # noqa: S104 - a visitor through a socket without an address

# The letters that allauth would write about identities: here each becomes a line of the log.
_CHANGES = {
    "socialaccount/email/account_connected": AuditAction.IDENTITY_LINK,
    "socialaccount/email/account_disconnected": AuditAction.IDENTITY_UNLINK,
}
_MESSAGES = {
    "mfa/messages/totp_activated.txt": _("The authenticator app is set up."),
    "mfa/messages/totp_deactivated.txt": _("The authenticator app is removed."),
    "mfa/messages/webauthn_added.txt": _("The passkey is added."),
    "mfa/messages/webauthn_removed.txt": _("The passkey is removed."),
    "socialaccount/messages/account_connected.txt": _("The identity is linked."),
    "socialaccount/messages/account_connected_updated.txt": _("The identity was linked already."),
    "socialaccount/messages/account_connected_other.txt": _(
        "This identity belongs to another account here."
    ),
    "socialaccount/messages/account_disconnected.txt": _("The identity is no longer linked."),
}


def anonymous_of(request: HttpRequest) -> Actor:
    """Make the actor of a request before anybody has signed in."""
    visit = visit_of(request)
    return Actor(scopes=ANONYMOUS.scopes, door=visit.door, request_id=visit.request_id, ip=visit.ip)


class AccountAdapter(DefaultAccountAdapter):
    """Sign-in by name and password."""

    error_messages = {
        **DefaultAccountAdapter.error_messages,
        "username_password_mismatch": _("Name or password is wrong. Mind capital letters."),
        "incorrect_password": _("The password is wrong."),
        "incorrect_code": _("The code is wrong, or was used already."),
        "enter_current_password": _("This is not your present password."),
    }

    # --- Where it leads ------------------------------------------------------------------------

    def is_open_for_signup(self, request: HttpRequest) -> bool:  # noqa: ARG002 - allauth's signature
        return bool(settings.SIGNUP)

    def get_login_redirect_url(self, request: HttpRequest) -> str:  # noqa: ARG002 - as above
        return reverse("web:home")

    get_signup_redirect_url = get_login_redirect_url
    get_logout_redirect_url = get_login_redirect_url

    def is_safe_url(self, url: str) -> bool:
        """Go on to our own pages only, and never in a circle.

        ALLOWED_HOSTS says who may ask, not where one may be led.
        """
        request = context.request
        if urlsplit(url).path == reverse("web:sign-in"):
            return False
        return url_has_allowed_host_and_scheme(
            url, allowed_hosts={request.get_host()}, require_https=request.is_secure()
        )

    def add_message(
        self,
        request: HttpRequest,
        level: int,
        message_template: str | None = None,
        message_context: dict[str, Any] | None = None,  # noqa: ARG002 - allauth's signature
        extra_tags: str = "",
        message: str | None = None,
    ) -> None:
        text = message or _MESSAGES.get(message_template or "")
        if text:
            messages.add_message(request, level, str(text), extra_tags=extra_tags)

    # --- What it counts ------------------------------------------------------------------------

    def get_client_ip(self, request: HttpRequest) -> str:
        return get_client_ip(request) or NO_ADDRESS

    def _get_login_attempts_cache_key(self, request: HttpRequest, **credentials: Any) -> str:  # noqa: ARG002
        # Without the host, which a client may vary where every host is allowed.
        return str(credentials.get("username", "")).lower()

    def pre_authenticate(self, request: HttpRequest, **credentials: Any) -> None:
        key = self._get_login_attempts_cache_key(request, **credentials)
        limit = {"app": "allauth.account", "action": "login_failed", "key": key}
        self._login_failed_rl_usage = ratelimit.consume(request, **limit)
        if not self._login_failed_rl_usage:
            wait = _seconds_to_wait(request, **limit)
            sign_ins.note_refusal(
                actor=anonymous_of(request),
                username=str(credentials.get("username", "")),
                reason="too many attempts",
            )
            raise too_many_attempts(wait)

    def validation_error(self, code: str, *args: Any) -> Exception:
        if code in {"too_many_login_attempts", "rate_limited"}:
            # The codes of second factors are counted by allauth itself, five in five minutes.
            return too_many_attempts(FRESH_SECONDS)
        error: Exception = super().validation_error(code, *args)
        return error

    # --- What it writes to the log -------------------------------------------------------------

    def authentication_failed(self, request: HttpRequest, **credentials: Any) -> None:
        username = str(credentials.get("username", ""))
        sign_ins.note_refusal(
            actor=anonymous_of(request), username=username, reason="wrong password"
        )

    def login(self, request: HttpRequest, user: User) -> None:
        super().login(request, user)
        records = get_authentication_records(request, user)
        methods = [str(record.get("type") or record.get("method")) for record in records]
        sign_ins.note_sign_in(actor=actor_for_user(user, visit_of(request)), methods=methods)

    def logout(self, request: HttpRequest) -> None:
        if isinstance(request.user, User):
            sign_ins.note_sign_out(actor=actor_for_user(request.user, visit_of(request)))
        super().logout(request)

    def send_notification_mail(
        self,
        template_prefix: str,
        user: User,
        context: dict[str, Any] | None = None,  # noqa: ARG002 - allauth's signature
        email: str | None = None,  # noqa: ARG002 - allauth's signature
    ) -> None:
        """Where allauth would tell a person by letter that their account changed, note it."""
        if action := _CHANGES.get(template_prefix):
            actor = actor_for_user(user, visit_of(self.request))
            sign_ins.note_change(actor=actor, action=action)

    # --- Proving again who one is --------------------------------------------------------------

    def is_reauthentication_required(self, *, app: str) -> bool:
        request = context.request
        if isinstance(request.user, User) and came_lately_through_provider(request, request.user):
            return False
        return bool(super().is_reauthentication_required(app=app))

    def get_reauthentication_methods(self, user: User | AnonymousUser) -> list[dict[str, Any]]:
        methods: list[dict[str, Any]] = super().get_reauthentication_methods(user)
        if not methods and user.is_authenticated and settings.OIDC_ISSUER:
            methods.append(
                {
                    "id": "provider",
                    "description": settings.OIDC_NAME,
                    "url": reverse("web:again-through-provider"),
                }
            )
        return methods


def came_lately_through_provider(request: HttpRequest, user: User) -> bool:
    """Say whether the session began at the identity provider a moment ago."""
    records = get_authentication_records(request, user)
    return any(
        record.get("method") == "socialaccount"
        and time.time() - float(record.get("at", 0)) < FRESH_SECONDS
        for record in records
    )


def too_many_attempts(seconds: int) -> RateLimited:
    return RateLimited(
        "Too many failed attempts; wait {retry_after} seconds, then try again.",
        code="too_many_attempts",
        retry_after=seconds,
    )


def _seconds_to_wait(request: HttpRequest, *, app: str, action: str, key: str) -> int:
    """Say when the fullest of the limits has room again."""
    now = time.time()
    waits = [1.0]
    for rate in ratelimit.get_rates(app=app, action=action):
        place = ratelimit.get_cache_key(request, app=app, action=action, rate=rate, key=key)
        # Newest first.
        history = [at for at in cache.get(place, []) if at > now - rate.duration]
        if len(history) >= rate.amount:
            waits.append(history[rate.amount - 1] + rate.duration - now)
    return math.ceil(max(waits))


class FactorAdapter(DefaultMFAAdapter):
    """Second factors: their secrets are encrypted with the installation's key."""

    error_messages = {
        **DefaultMFAAdapter.error_messages,
        "incorrect_code": _("The code is wrong, or was used already."),
        "cannot_generate_recovery_codes": _("Set up an authenticator app or a passkey first."),
    }

    def get_totp_label(self, user: User) -> str:
        return f"{user.username}@{context.request.get_host()}"

    def _get_user_identifier(self, user: User) -> str:
        return user.username

    def _get_site_name(self) -> str:
        return str(settings.MFA_TOTP_ISSUER)

    def encrypt(self, text: str) -> str:
        return factors.encrypt(text)

    def decrypt(self, encrypted_text: str) -> str:
        return factors.decrypt(encrypted_text)
