"""What people look after about how they come in: password, second factors, passkeys, sessions."""

from typing import Any

from allauth.account.internal.flows.reauthentication import (
    raise_if_reauthentication_required,
)
from allauth.decorators import rate_limit
from allauth.mfa.base.views import IndexView
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.views import GenerateRecoveryCodesView, ViewRecoveryCodesView
from allauth.mfa.totp.views import ActivateTOTPView, DeactivateTOTPView
from allauth.mfa.webauthn.views import AddWebAuthnView, RemoveWebAuthnView
from allauth.socialaccount.models import SocialAccount
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse_lazy
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.authenticate import lacks_second_factor
from registry.errors import RegistryError
from registry.models import AuditAction, Membership, Token, User
from registry.services import people, sign_ins
from registry.web.account_forms import PasswordForm
from registry.web.forms import show_refusal
from registry.web.middleware import SEEN
from registry.web.sessions import device_of
from registry.web.visitor import actor_of, signed_in


def person_of(request: HttpRequest) -> User:
    """Give the account of a page that only somebody signed in can see."""
    assert isinstance(request.user, User)
    return request.user


@never_cache
@require_safe
@signed_in
def overview(request: HttpRequest) -> HttpResponse:
    user, actor = person_of(request), actor_of(request)
    factors = Authenticator.objects.filter(user=user).values_list("type", flat=True)
    context = {
        "factors": set(factors),
        "passkey_count": list(factors).count(Authenticator.Type.WEBAUTHN),
        "session_count": sign_ins.open_sessions(actor).count(),
        "token_count": Token.objects.live().filter(user=user).count(),
        "memberships": list(
            Membership.objects.filter(user=user, namespace__deleted_at=None)
            .select_related("namespace")
            .order_by("namespace__slug")
        ),
        "has_password": user.has_usable_password(),
        "provider": settings.OIDC_NAME if settings.OIDC_ISSUER else "",
        "identity": SocialAccount.objects.filter(user=user).exists(),
    }
    return render(request, "account/settings.html", context)


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
@sensitive_post_parameters("current", "password")
@rate_limit(action="change_password")
def password(request: HttpRequest) -> HttpResponse:
    user = person_of(request)
    has_password = user.has_usable_password()
    if not has_password:
        raise_if_reauthentication_required(request, app="")
    form = PasswordForm(request.POST or None, has_password=has_password)
    if request.method == "POST" and form.is_valid():
        try:
            people.change_password(
                actor=actor_of(request),
                current=form.cleaned_data.get("current"),
                password=form.cleaned_data["password"],
                session_key=request.session.session_key,
            )
        except RegistryError as error:
            show_refusal(form, error)
        else:
            user.refresh_from_db()
            update_session_auth_hash(request, user)
            request.session.pop(SEEN, None)
            messages.success(request, _("The password is changed; other sessions have ended."))
            return redirect("web:settings")
    return render(request, "account/password.html", {"form": form, "has_password": has_password})


# --- Second factors and passkeys ---------------------------------------------------------------


@method_decorator(never_cache, name="dispatch")
class Factors(IndexView):
    """What there is, and the way to more."""

    template_name = "account/factors.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        more = {"is_due": lacks_second_factor(person_of(self.request))}
        return {**super().get_context_data(**kwargs), **more}


class Noted:
    """A change of allauth's that goes into our log, in its own transaction."""

    request: HttpRequest
    action: AuditAction

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            sign_ins.note_change(actor=actor_of(self.request), action=self.action)
            answer: HttpResponse = super().form_valid(form)  # type: ignore[misc]
        return answer


@method_decorator(never_cache, name="dispatch")
class ActivateApp(Noted, ActivateTOTPView):
    template_name = "account/activate_app.html"
    action = AuditAction.FACTOR_ADD


class RemoveApp(Noted, DeactivateTOTPView):
    template_name = "account/remove_app.html"
    action = AuditAction.FACTOR_REMOVE


class Codes(ViewRecoveryCodesView):
    """The recovery codes, shown once."""

    template_name = "account/codes.html"


class NewCodes(Noted, GenerateRecoveryCodesView):
    template_name = "account/new_codes.html"
    action = AuditAction.FACTOR_CODES


@method_decorator(never_cache, name="dispatch")
class AddPasskey(Noted, AddWebAuthnView):
    template_name = "account/add_passkey.html"
    action = AuditAction.PASSKEY_ADD


class RemovePasskey(Noted, RemoveWebAuthnView):
    template_name = "account/remove_passkey.html"
    success_url = reverse_lazy("mfa_index")
    action = AuditAction.PASSKEY_REMOVE


# --- Sessions ----------------------------------------------------------------------------------


@never_cache
@require_safe
@signed_in
def sessions(request: HttpRequest) -> HttpResponse:
    rows = [
        {
            "session": session,
            "device": device_of(session.user_agent),
            "is_this": session.session_key == request.session.session_key,
        }
        for session in sign_ins.open_sessions(actor_of(request))[:100]
    ]
    return render(request, "account/sessions.html", {"rows": rows})


@require_POST
@signed_in
def end_session(request: HttpRequest, session_id: int) -> HttpResponse:
    session = sign_ins.end_session(actor=actor_of(request), session_id=session_id)
    name = device_of(session.user_agent)
    messages.success(request, _("The session of %(device)s has ended.") % {"device": name})
    return redirect("usersessions_list")


@require_POST
@signed_in
def end_other_sessions(request: HttpRequest) -> HttpResponse:
    ended = sign_ins.end_other_sessions(
        actor=actor_of(request), session_key=request.session.session_key
    )
    text = ngettext(
        "%(count)d other session has ended.", "%(count)d other sessions have ended.", ended
    )
    messages.success(request, text % {"count": ended})
    return redirect("usersessions_list")
