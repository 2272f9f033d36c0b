"""Where models are served: the form that deploys, and the page of an endpoint."""

from collections.abc import Callable, Mapping
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.errors import RegistryError
from registry.models import Actor, Deployment, DeploymentRole, Endpoint, Kind
from registry.permissions import allowed, require, role_of
from registry.routes import read_options
from registry.services import catalog, deployments
from registry.services.replicas import standing_of
from registry.web.forms import DeployForm, show_refusal
from registry.web.refusals import words_of
from registry.web.serving import calls, history_of, name_of, needs_reason, shadow_of
from registry.web.tunings import said, words_on
from registry.web.views.repositories import address_of
from registry.web.visitor import actor_of, anybody, signed_in


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def new_deployment(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    asked = {name: request.GET[name] for name in ("model", "version") if name in request.GET}
    if asked.get("model"):
        namespace, _slash, name = asked["model"].partition("/")
        require(actor, "maintain", catalog.find_repository(actor, Kind.MODEL, namespace, name))
    form = DeployForm(request.POST or None, initial=asked)
    if request.method == "POST" and form.is_valid():
        try:
            made = deployments.deploy(actor=actor, **form.asked())
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("Deployed; serving processes load it now."))
            return _to(made.endpoint)
    context = {
        "form": form,
        "model": form["model"].value() or "",
        **_tuned(actor, form["model"].value() or "", form["version"].value() or ""),
    }
    return render(request, "endpoint/new.html", context, status=422 if form.errors else 200)


def _tuned(actor: Actor, model: str, number: str) -> dict[str, Any]:
    """Say what a version that is to be deployed goes by where its options leave it open."""
    namespace, _slash, name = str(model).partition("/")
    try:
        repository = catalog.find_repository(actor, Kind.MODEL, namespace, name)
        version = catalog.find_version(actor, repository, str(number) or "latest")
    except RegistryError:
        return {"version": None, "tuned": []}
    return {"version": version, "tuned": words_on(version)}


def _to(endpoint: Endpoint) -> HttpResponse:
    return redirect("web:endpoint", namespace=endpoint.namespace.slug, name=endpoint.name)


@require_safe
@anybody
def endpoint_page(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    endpoint = deployments.find_endpoint(actor, namespace, name)
    repository = endpoint.repository
    rows = deployments.deployments_of(endpoint)
    answering = max(rows, key=lambda one: one.weight, default=None)
    replicas = standing_of(endpoint)
    shown = [_shown(row, rows) for row in rows]
    context = {
        "endpoint": endpoint,
        "repository": repository,
        "deployments": shown,
        "split_needs_reason": any(
            one["needs_reason"] and not one["row"].weight
            for one in shown
            if one["row"].role != DeploymentRole.SHADOW
        ),
        "replicas": [
            {"replica": replica, "rows": _standings(replica.standings, rows)}
            for replica in replicas
        ],
        "may_maintain": allowed(actor, "maintain", repository),
        "may_roll_back": bool(endpoint.previous),
        "snippets": calls(
            request.build_absolute_uri("/"), endpoint, answering.serves if answering else None
        ),
        "kind": "endpoint",
        "history": history_of(endpoint) if role_of(actor, repository) else [],
    }
    return render(request, "endpoint/endpoint.html", context)


def _shown(row: Deployment, present: list[Deployment]) -> dict[str, Any]:
    changed = read_options(row.options).model_dump(exclude_defaults=True)
    fields = DeployForm.base_fields
    return {
        "row": row,
        "name": name_of(row),
        "shadow": shadow_of(row),
        "needs_reason": needs_reason(row, present),
        "options": [(fields[name].label, value) for name, value in changed.items()],
    }


def _standings(standings: Any, rows: list[Deployment]) -> list[dict[str, Any]]:
    names = {row.pk: name_of(row) for row in rows}
    return [
        {
            "name": names.get(one.deployment_id, ""),
            "standing": one,
            "setting": said(one.threads, one.max_batch_size) if one.threads else "",
        }
        for one in standings
    ]


@signed_in
@require_POST
def change_endpoint(request: HttpRequest, namespace: str, name: str) -> HttpResponse:
    """Make the one change that a form on the page of an endpoint asks for."""
    actor = actor_of(request)
    endpoint = deployments.find_endpoint(actor, namespace, name)
    asked = request.POST.get("change", "")
    try:
        done = _changes(request, endpoint)[asked]()
    except KeyError:
        return _to(endpoint)
    except RegistryError as error:
        messages.error(request, words_of(error))
        return _to(endpoint)
    messages.success(request, done)
    if asked == "delete":
        return redirect(f"{address_of(endpoint.repository)}?tab=serve")
    return _to(endpoint)


def _changes(request: HttpRequest, endpoint: Endpoint) -> Mapping[str, Callable[[], str]]:
    actor = actor_of(request)

    def deployment() -> Deployment:
        return deployments.find_deployment(endpoint, _number(request.POST.get("deployment", "")))

    def split() -> str:
        weights = {
            int(field[2:]): _number(value)
            for field, value in request.POST.items()
            if isinstance(value, str) and field.startswith("w-") and _number(field[2:])
        }
        reason = request.POST.get("reason", "")
        deployments.split_traffic(actor=actor, endpoint=endpoint, weights=weights, reason=reason)
        return _("The traffic is split anew.")

    def promote() -> str:
        reason = request.POST.get("reason", "")
        deployments.promote(actor=actor, deployment=deployment(), reason=reason)
        return _("Promoted: it answers everything now.")

    def undeploy() -> str:
        deployments.undeploy(actor=actor, deployment=deployment())
        return _("Undeployed.")

    def roll_back() -> str:
        reason = request.POST.get("reason", "")
        deployments.roll_back(actor=actor, endpoint=endpoint, reason=reason)
        return _("Rolled back.")

    def stick() -> str:
        sticky = request.POST.get("sticky") == "on"
        deployments.describe_endpoint(actor=actor, endpoint=endpoint, sticky=sticky)
        return _("Saved.")

    def delete() -> str:
        deployments.delete_endpoint(actor=actor, endpoint=endpoint)
        return _("%(name)s is deleted.") % {"name": endpoint.full_name}

    return {
        "split": split,
        "promote": promote,
        "undeploy": undeploy,
        "roll-back": roll_back,
        "sticky": stick,
        "delete": delete,
    }


def _number(text: str) -> int:
    """Read a whole number that a form holds; what is none counts as 0."""
    return int(text[:9]) if text.isascii() and text.isdecimal() else 0
