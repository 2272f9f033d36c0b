"""The page of one version, and the form that makes a new one."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from django.contrib import messages
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.errors import Invalid, RegistryError
from registry.exports import EXPORTS
from registry.models import (
    Actor,
    Artifact,
    Blob,
    Evaluation,
    Job,
    Kind,
    Screening,
    Signature,
    Upload,
    Version,
)
from registry.permissions import allowed, require
from registry.services import catalog, exports
from registry.services.blobs import inspection_of, sandbox_inspection_of
from registry.services.direct import list_direct_uploads
from registry.services.savings import find_shared
from registry.services.uploads import finished_uploads
from registry.services.versions import (
    MAX_FILES,
    create_version,
    delete_version,
    describe_version,
    read_card,
    restore_as_new,
)
from registry.signing import installation_key
from registry.web import history
from registry.web.comparisons import MAKERS
from registry.web.forms import (
    AliasForm,
    EditVersionForm,
    NewVersionForm,
    SignatureForm,
    TagForm,
    show_refusal,
)
from registry.web.markdown import render_markdown
from registry.web.profiles import profile_of_version
from registry.web.refusals import attempt, take_typed, words_of
from registry.web.snippets import snippets, verification
from registry.web.transfers import REFUSAL
from registry.web.tunings import tuned_of
from registry.web.undo import way_back
from registry.web.views.repositories import address_of
from registry.web.visitor import actor_of, anybody, signed_in

_NUMBERS = 200


def find_version(actor: Actor, kind: str, namespace: str, name: str, number: int) -> Version:
    repository = catalog.find_repository(actor, kind, namespace, name)
    return catalog.find_version(actor, repository, str(number))


@require_safe
@anybody
def version_page(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int
) -> HttpResponse:
    return show_version(request, find_version(actor_of(request), kind, namespace, name, number))


def show_version(
    request: HttpRequest,
    version: Version,
    *,
    signature_form: SignatureForm | None = None,
    edit_form: EditVersionForm | None = None,
) -> HttpResponse:
    """Render the page of a version, with a form on it that was refused if there is one."""
    actor = actor_of(request)
    repository = version.repository
    kind = repository.kind
    files = list(
        Artifact.objects.filter(revision_id=version.revision_id)
        .select_related("blob")
        .prefetch_related("blob__inspections")
        .order_by("path")[:1000]
    )
    every_alias = history.aliases_of(repository)
    aliases = [a for a in every_alias if a.version_id == version.pk]
    parents, children = history.lineage(actor, version)
    card = read_card(actor, version)
    host = request.build_absolute_uri("/").rstrip("/")
    paths = [file.path for file in files]
    derivatives = list(
        version.derivatives.converted().select_related("blob").order_by("path", "pk")
    )
    alias = aliases[0].name if aliases else ""
    converted = [made.path for made in derivatives]
    made = exports.list_made(actor, version) if kind == Kind.MODEL and files else []
    typed = take_typed(request)
    context = {
        "version": version,
        "repository": repository,
        "kind": kind,
        "plural": f"{kind}s",
        "files": files,
        "shared": _shared(actor, version),
        "inspections": _inspections(files),
        "derivatives": derivatives,
        "screening": Screening.objects.filter(version=version).first(),
        "exports": tuple(EXPORTS) if kind == Kind.MODEL and files else (),
        "made": made,
        "has_made": any(way.made for way in made),
        "unmakeable": _unmakeable(made),
        "has_graph": any(path.lower().endswith(".onnx") for path in (*paths, *converted)),
        "aliases": aliases,
        "followed": any(alias.followed for alias in every_alias)
        or bool(repository.protected_aliases),
        "tags": list(version.tags.order_by("key")),
        "evaluations": _evaluations(actor, version),
        "compared_kinds": MAKERS,
        "profile": profile_of_version(actor, version) if kind == Kind.MODEL else None,
        "tunings": tuned_of(actor, version) if kind == Kind.MODEL else [],
        "parents": parents,
        "origin": history.origin_of(version, parents),
        "is_old": version.number != repository.latest_number,
        "children": children,
        "card_html": render_markdown(card.body) if card else "",
        "signers": _signers(actor, version, host),
        "typed": typed,
        "alias_form": AliasForm(initial=typed.get("alias")),
        "tag_form": TagForm(initial=typed.get("tag")),
        "signature_form": signature_form or SignatureForm(),
        "snippets": snippets(host, repository, version, paths, alias, converted),
        "may_write": allowed(actor, "write", repository),
        "may_maintain": allowed(actor, "maintain", repository),
        "job_is_visible": version.job is not None
        and Job.objects.visible_to(actor).filter(pk=version.job.pk).exists(),
        "edit_form": edit_form or _edit_form(actor, version),
    }
    refused = any(form is not None and form.errors for form in (signature_form, edit_form))
    return render(request, "version/version.html", context, status=422 if refused else 200)


def _shared(actor: Actor, version: Version) -> dict[str, Any] | None:
    """Say with which version this one shares the most, by its number where it is of this model."""
    found = find_shared(actor, version)
    if found is None:
        return None
    near = found.version.repository_id == version.repository_id
    return {
        "version": found.version,
        "name": f"v{found.version.number}" if near else found.version.ref,
        "size_bytes": found.size_bytes,
    }


def _signers(actor: Actor, version: Version, host: str) -> list[dict[str, Any]]:
    """List who signed a version, each with the commands that check it from outside."""
    maintains = allowed(actor, "maintain", version.repository)
    present = installation_key().fingerprint
    rows = Signature.objects.filter(version=version).defer("bundle").select_related("created_by")
    return [
        {
            "signature": row,
            "is_present": row.own and row.fingerprint == present,
            "check": verification(host, version, row, is_present=row.fingerprint == present),
            "address": f"{history.address_of(version)}/signatures/{row.pk}",
            "may_delete": not row.own
            and allowed(actor, "write", version.repository)
            and (maintains or row.created_by_id == actor.user_id),
        }
        for row in rows.order_by("-own", "-pk")
    ]


def _evaluations(actor: Actor, version: Version) -> list[Evaluation]:
    """List the newest numbers of a version; a dataset that `actor` may not see goes unnamed."""
    visible = Version.objects.visible_to(actor).filter(pk=OuterRef("dataset_version"))
    newest = (
        version.evaluations.annotate(dataset_is_visible=Exists(visible))
        .select_related("dataset_version__repository__namespace")
        .defer("details")
        .order_by("-created_at", "-pk")[:_NUMBERS]
    )
    return sorted(newest, key=lambda row: (row.metric, row.created_at, row.pk))


def _unmakeable(ways: list[exports.Way]) -> str:
    """Say why no file can be made of a version that takes a job, if none can."""
    refusals = [
        way.refusal for way in ways if way.refusal and way.refusal.reason != exports.NOT_MADE
    ]
    return words_of(refusals[0]) if refusals else ""


def _inspections(files: list[Artifact]) -> list[dict[str, Any]]:
    """Gather what the headers said: one entry for each file that is more than text."""
    found = []
    for file in files:
        inspection = inspection_of(file)
        if inspection and inspection.format not in {"json", "text", "opaque", "csv"}:
            facts: Mapping[str, Any] = inspection.facts
            found.append(
                {
                    "path": file.path,
                    "inspection": inspection,
                    "facts": facts,
                    "inside": sandbox_inspection_of(file),
                }
            )
    return found


@signed_in
@require_http_methods(["GET", "POST"])
def new_version(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    require(actor, "write", repository)
    sent = request.method == "POST"
    form = NewVersionForm(request.POST) if sent else NewVersionForm()
    arrived, status = _arrived(actor, request), 422
    if sent and form.is_valid():
        try:
            if (refusal := request.META.get(REFUSAL)) is not None:
                raise refusal
            version = create_version(
                actor=actor,
                repository=repository,
                files=_files(request, arrived),
                message=form.cleaned_data["message"],
                variant=form.cleaned_data["variant"],
            )
        except RegistryError as error:
            show_refusal(form, error)
            status = error.status if error.status in {413, 507} else 422
        else:
            messages.success(
                request, _("Version %(number)s is registered.") % {"number": version.number}
            )
            return redirect(history.address_of(version))
    context = {
        "form": form,
        "arrived": arrived,
        "chosen": [upload for upload, _path in arrived],
        "direct": list_direct_uploads(actor),
        "repository": repository,
        "kind": kind,
        "plural": f"{kind}s",
    }
    return render(request, "version/new.html", context, status=status if form.errors else 200)


def _named(request: HttpRequest) -> list[tuple[str, str]]:
    return list(zip(request.POST.getlist("upload"), request.POST.getlist("path"), strict=False))


def _arrived(actor: Actor, request: HttpRequest) -> list[tuple[Upload, str]]:
    """List the uploads that a form or an address names and that are there, each with its path."""
    named = _named(request)
    if request.method != "POST":
        named = [(upload, "") for upload in request.GET.getlist("upload")[:MAX_FILES]]
    found = finished_uploads(actor, [upload for upload, _path in named])
    return [
        (found[upload], path or found[upload].filename or upload)
        for upload, path in named
        if upload in found
    ]


def _files(request: HttpRequest, arrived: list[tuple[Upload, str]]) -> dict[str, Blob]:
    if len(arrived) < max(len(request.POST.getlist("upload")), len(request.POST.getlist("path"))):
        raise Invalid(
            "Some uploads of this form are unfinished or have expired; choose those files again."
        )
    files: dict[str, Blob] = {}
    for upload, path in arrived:
        if path in files:
            raise Invalid("The form has the file {path!r} twice.", code="repeated", path=path)
        assert upload.blob is not None
        files[path] = upload.blob
    if not files:
        raise Invalid("Choose at least one file.")
    return files


@signed_in
@require_POST
def edit(request: HttpRequest, kind: str, namespace: str, name: str, number: int) -> HttpResponse:
    actor = actor_of(request)
    version = find_version(actor, kind, namespace, name, number)
    require(actor, "write", version.repository)
    form = _edit_form(actor, version, sent=request.POST)
    if form.is_valid():
        try:
            describe_version(actor=actor, version=version, changes=form.changes(version))
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("Saved."))
            return redirect(history.address_of(version))
    return show_version(request, version, edit_form=form)


def _edit_form(
    actor: Actor, version: Version, *, sent: Mapping[str, Any] | None = None
) -> EditVersionForm:
    may_archive = allowed(actor, "maintain", version.repository)
    return EditVersionForm.of(version, may_archive=may_archive, sent=sent)


@signed_in
@require_POST
def restore_again(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int
) -> HttpResponse:
    actor = actor_of(request)
    version = find_version(actor, kind, namespace, name, number)
    try:
        made = restore_as_new(actor=actor, version=version)
    except RegistryError as error:
        messages.error(request, words_of(error))
        return redirect(history.address_of(version))
    said = {"old": version.number, "number": made.number}
    messages.success(request, _("Version %(old)s is here again, as version %(number)s.") % said)
    return redirect(history.address_of(made))


@signed_in
@require_POST
def request_export(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int
) -> HttpResponse:
    actor = actor_of(request)
    version = find_version(actor, kind, namespace, name, number)
    try:
        way = exports.request_export(
            actor=actor, version=version, file=request.POST.get("file", "")
        )
    except RegistryError as error:
        messages.error(request, words_of(error))
        return redirect(history.address_of(version) + "#exports")
    if way.job is None:
        return redirect(history.address_of(version) + "#exports")
    return redirect("web:job", job_id=way.job.pk)


@signed_in
@require_POST
def delete_export(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int
) -> HttpResponse:
    actor = actor_of(request)
    version = find_version(actor, kind, namespace, name, number)
    file = request.POST.get("file", "")
    change = partial(exports.delete_export, actor=actor, version=version, file=file)
    attempt(request, change, _("%(name)s is deleted.") % {"name": file})
    return redirect(history.address_of(version) + "#exports")


@signed_in
@require_POST
def delete(request: HttpRequest, kind: str, namespace: str, name: str, number: int) -> HttpResponse:
    actor = actor_of(request)
    version = find_version(actor, kind, namespace, name, number)
    if request.POST.get("confirm", "") != version.ref:
        messages.error(
            request,
            _("Nothing was deleted: type %(name)s to confirm.") % {"name": version.ref},
        )
        return redirect(history.address_of(version))
    try:
        delete_version(actor=actor, version=version)
    except RegistryError as error:
        messages.error(request, words_of(error))
        return redirect(history.address_of(version))
    messages.success(request, _("%(name)s is deleted.") % {"name": version.ref})
    request.session["undo"] = way_back(version)
    return redirect(address_of(version.repository))
