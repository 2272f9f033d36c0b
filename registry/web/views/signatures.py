"""Who signed a version: bundles taken away, added and deleted."""

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from registry import signing
from registry.errors import RegistryError
from registry.permissions import require
from registry.services import signatures
from registry.web import history
from registry.web.forms import SignatureForm, show_refusal
from registry.web.refusals import words_of
from registry.web.views.versions import find_version, show_version
from registry.web.visitor import actor_of, anybody, signed_in


@signed_in
@require_POST
def add(request: HttpRequest, kind: str, namespace: str, name: str, number: int) -> HttpResponse:
    actor = actor_of(request)
    version = find_version(actor, kind, namespace, name, number)
    require(actor, "write", version.repository)
    form = SignatureForm(request.POST, request.FILES)
    if form.is_valid():
        try:
            signatures.add_signature(actor=actor, version=version, **form.signature())
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("The signature holds, and is kept."))
            return redirect(f"{history.address_of(version)}#signatures")
    return show_version(request, version, signature_form=form)


@require_safe
@anybody
def bundle(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int, signature_id: int
) -> HttpResponse:
    version = find_version(actor_of(request), kind, namespace, name, number)
    found = signatures.find_signature(version, signature_id)
    file_name = f"{version.repository.name}-v{number}-{found.fingerprint[:8]}.sig"
    answer = HttpResponse(found.bundle, content_type=signing.MEDIA_TYPE)
    answer["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return answer


@signed_in
@require_POST
def delete(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int, signature_id: int
) -> HttpResponse:
    actor = actor_of(request)
    version = find_version(actor, kind, namespace, name, number)
    try:
        found = signatures.find_signature(version, signature_id)
        signatures.delete_signature(actor=actor, version=version, signature=found)
    except RegistryError as error:
        messages.error(request, words_of(error))
    else:
        messages.success(request, _("The signature is deleted."))
    return redirect(f"{history.address_of(version)}#signatures")
