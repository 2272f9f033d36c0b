"""What was deleted in a namespace, and the way back."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from registry.errors import NotFound, RegistryError
from registry.models import Actor, Repository, Version
from registry.permissions import require
from registry.services.deletion import list_deleted, restore_repository, restore_version
from registry.services.namespaces import find_namespace
from registry.web.refusals import words_of
from registry.web.views.repositories import address_of
from registry.web.visitor import actor_of, signed_in


@require_safe
@signed_in
def deleted(request: HttpRequest, namespace: str) -> HttpResponse:
    actor = actor_of(request)
    space = find_namespace(actor, namespace)
    found, after = list_deleted(actor, space, cursor=request.GET.get("cursor", ""))
    context = {"space": space, "found": found, "after": after}
    return render(request, "namespace/deleted.html", context)


@require_POST
@signed_in
def restore(request: HttpRequest, namespace: str) -> HttpResponse:
    actor = actor_of(request)
    space = find_namespace(actor, namespace)
    require(actor, "maintain", space)
    kind, _colon, number = request.POST.get("what", "").partition(":")
    pk = int(number[:18]) if number.isdecimal() else 0
    try:
        if kind == "version":
            target = _restore_version(actor, namespace, pk)
        else:
            name = request.POST.get("name", "").strip() or None
            target = _restore_repository(actor, namespace, pk, name)
    except RegistryError as error:
        messages.error(request, words_of(error))
        target = reverse("web:deleted", args=[space.slug])
    else:
        messages.success(request, _("It is back."))
    return redirect(target)


def _restore_repository(actor: Actor, namespace: str, pk: int, name: str | None) -> str:
    rows = Repository.objects.deleted_for(actor).filter(namespace__slug__iexact=namespace)
    found = rows.select_related("namespace").filter(pk=pk).first()
    if found is None:
        raise _gone()
    return address_of(restore_repository(actor=actor, repository=found, name=name))


def _restore_version(actor: Actor, namespace: str, pk: int) -> str:
    rows = Version.objects.deleted_for(actor)
    rows = rows.filter(repository__namespace__slug__iexact=namespace)
    found = rows.select_related("repository__namespace").filter(pk=pk).first()
    if found is None:
        raise _gone()
    version = restore_version(actor=actor, version=found)
    return f"{address_of(version.repository)}/versions/{version.number}"


def _gone() -> NotFound:
    return NotFound("It is back already, or was deleted too long ago.")
