"""Everybody's accounts, for whoever administers the installation."""

from collections.abc import Callable

from allauth.account.internal.flows.reauthentication import raise_if_reauthentication_required
from allauth.mfa.models import Authenticator
from django.contrib import messages
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from registry.errors import RegistryError
from registry.models import Actor, User
from registry.services import people
from registry.web.account_forms import NewPasswordForm, PersonForm
from registry.web.forms import show_refusal
from registry.web.refusals import words_of
from registry.web.visitor import actor_of, signed_in

PAGE = 100


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
@sensitive_post_parameters("password")
def accounts(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    people.require_administrator(actor)
    form = PersonForm(request.POST or None)
    if request.method == "POST":
        raise_if_reauthentication_required(request, app="")
        if form.is_valid() and _tried(form, actor):
            return redirect("web:users")
    asked = request.GET.get("q", "")[:64]
    factors = Authenticator.objects.filter(user=OuterRef("pk"))
    rows = User.objects.annotate(has_second_factor=Exists(factors)).order_by("username")
    found = list(rows.filter(username__icontains=asked.replace("\0", ""))[: PAGE + 1])
    context = {"form": form, "q": asked, "people": found[:PAGE], "has_more": len(found) > PAGE}
    return render(request, "users/list.html", context)


def _tried(form: PersonForm, actor: Actor) -> bool:
    try:
        people.add_person(actor=actor, **form.cleaned_data)
    except RegistryError as error:
        show_refusal(form, error)
        return False
    return True


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
@sensitive_post_parameters("password")
def account(request: HttpRequest, username: str) -> HttpResponse:
    """Show one account; a POST gives it a new password."""
    actor = actor_of(request)
    user = people.find_person(actor, username)
    form = NewPasswordForm(request.POST or None)
    if request.method == "POST":
        raise_if_reauthentication_required(request, app="")
        if form.is_valid():
            try:
                people.set_password(actor=actor, username=username, **form.cleaned_data)
            except RegistryError as error:
                show_refusal(form, error)
            else:
                messages.success(request, _("The password is set; every session of theirs ended."))
                return redirect("web:user", username=user.username)
    context = {
        "person": user,
        "form": form,
        "is_self": user.pk == actor.user_id,
        "factors": Authenticator.objects.filter(user=user).count(),
    }
    return render(request, "users/one.html", context)


def _do(request: HttpRequest, username: str, change: Callable[[Actor], User]) -> HttpResponse:
    people.require_administrator(actor_of(request))
    raise_if_reauthentication_required(request, app="")
    try:
        change(actor_of(request))
    except RegistryError as error:
        messages.error(request, words_of(error))
    return redirect("web:user", username=username)


@require_POST
@signed_in
def change(request: HttpRequest, username: str) -> HttpResponse:
    """Switch an account off or on, or make somebody an administrator or not."""
    name, _equals, value = request.POST.get("change", "").partition("=")
    wanted = {name: value == "1"} if name in {"is_active", "is_admin"} else {}
    return _do(
        request,
        username,
        lambda actor: people.change_person(actor=actor, username=username, **wanted),
    )


@require_POST
@signed_in
def reset_factors(request: HttpRequest, username: str) -> HttpResponse:
    return _do(
        request, username, lambda actor: people.reset_factors(actor=actor, username=username)
    )
