"""Who has access to what: organisations and their members, grants, requests, protected aliases."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.errors import RegistryError
from registry.models import (
    AccessRequest,
    Actor,
    AliasProposal,
    Membership,
    Repository,
    Role,
    Version,
    is_better,
)
from registry.permissions import allowed, require, role_of
from registry.services import catalog, namespaces, proposals, quotas, requests, savings, sharing
from registry.services.deployments import list_endpoints
from registry.services.diffs import compare_signatures
from registry.services.succession import last_at
from registry.web import history, wording
from registry.web.forms import AliasForm, NewNamespaceForm, ProposalForm, QuotaForm, show_refusal
from registry.web.refusals import attempt, words_of
from registry.web.views.repositories import address_of
from registry.web.visitor import actor_of, anybody, signed_in

_SHOWN = 200
ROLES = tuple(Role.values)


# What a form may ask for: the change, and what to say once it is made.
Changes: TypeAlias = Mapping[str, tuple[Callable[[], Any], str]]


def _attempt_asked(request: HttpRequest, field: str, changes: Changes) -> None:
    """Make the change that a form names in `field`; an unknown one is none."""
    if (asked := request.POST.get(field, "")) in changes:
        attempt(request, *changes[asked])


# --- Organisations -------------------------------------------------------------------------------


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def new_namespace(request: HttpRequest) -> HttpResponse:
    form = NewNamespaceForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = namespaces.create_namespace(actor=actor_of(request), **form.cleaned_data)
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("%(name)s is yours.") % {"name": made})
            return redirect("web:namespace-page", namespace=made.slug)
    return render(request, "sharing/new_namespace.html", {"form": form})


@require_safe
@anybody
def namespace_page(request: HttpRequest, namespace: str) -> HttpResponse:
    actor = actor_of(request)
    space = namespaces.find_namespace(actor, namespace)
    members = Membership.objects.filter(namespace=space).select_related("user")
    visible = Repository.objects.visible_to(actor).filter(namespace=space)
    belongs = allowed(actor, "read", space)
    present = quotas.read_quotas(actor=actor, namespace=space) if belongs else {}
    may_set = belongs and quotas.may_set_quotas(actor)
    context = {
        "space": space,
        "own_role": role_of(actor, space),
        "may_own": allowed(actor, "own", space),
        "may_maintain": allowed(actor, "maintain", space),
        "members": list(members.order_by("user__username")[:_SHOWN]) if belongs else None,
        "quotas": [_shown_quota(what, quota) for what, quota in present.items()],
        "quota_form": QuotaForm.showing(present) if may_set else None,
        "storage": savings.read_savings(actor=actor, namespace=space) if belongs else None,
        "endpoints": list_endpoints(actor, namespace=space),
        "repositories": list(visible.select_related("namespace").order_by("-updated_at")[:20]),
        "roles": ROLES,
    }
    return render(request, "sharing/namespace.html", context)


def _shown_quota(what: str, quota: quotas.Quota) -> dict[str, Any]:
    say = wording.size_text if what == quotas.BYTES else str
    return {
        "what": what,
        "name": wording.QUOTAS[what],
        "used": say(quota.used),
        "limit": None if quota.limit is None else say(quota.limit),
        # A quota may be set below what is used already.
        "value": min(quota.used, quota.limit or 0),
        "max": quota.limit,
        "full": quota.is_full,
    }


@require_POST
@signed_in
def change_namespace(request: HttpRequest, namespace: str) -> HttpResponse:
    """Add, change or remove a member; rename or delete the organisation; set its quotas."""
    actor = actor_of(request)
    space = namespaces.find_namespace(actor, namespace)
    asked, username = request.POST.get("change", ""), request.POST.get("username", "").strip()
    changes: Changes = {
        "set": (
            lambda: namespaces.set_member(
                actor=actor,
                namespace=space,
                username=username,
                role=request.POST.get("role", ""),
            ),
            _("%(name)s is a member.") % {"name": username},
        ),
        "remove": (
            lambda: namespaces.remove_member(actor=actor, namespace=space, username=username),
            _("%(name)s is no member any more.") % {"name": username},
        ),
        "describe": (
            lambda: namespaces.describe_namespace(
                actor=actor, namespace=space, display_name=request.POST.get("display_name", "")
            ),
            _("Saved."),
        ),
        "quota": (
            lambda: quotas.set_quotas(
                actor=actor, namespace=space, changes=QuotaForm(request.POST).changes()
            ),
            _("Saved."),
        ),
        "storage": (
            lambda: savings.set_compression(
                actor=actor,
                namespace=space,
                compress_weights="compress_weights" in request.POST,
            ),
            _("Saved."),
        ),
        "delete": (
            lambda: namespaces.delete_namespace(actor=actor, namespace=space),
            _("%(name)s is deleted.") % {"name": space},
        ),
    }
    if asked == "delete" and request.POST.get("confirm", "") != space.slug:
        messages.error(
            request, _("Nothing was deleted: type %(name)s to confirm.") % {"name": space}
        )
    else:
        _attempt_asked(request, "change", changes)
    left = username.lower() == actor.username.lower() or asked == "delete"
    return redirect("web:home") if left else redirect("web:namespace-page", namespace=space.slug)


# --- Access to one repository --------------------------------------------------------------------


@never_cache
@require_safe
@signed_in
def access_page(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    rows = sharing.list_access(actor=actor, repository=repository)
    pending = AccessRequest.objects.decidable_by(actor).filter(repository=repository, state="open")
    context = {
        "repository": repository,
        "kind": kind,
        "rows": rows[:_SHOWN],
        "pending": list(pending.select_related("user").order_by("-pk")[:_SHOWN]),
        "roles": ROLES,
        "may_own": allowed(actor, "own", repository),
        "places": [
            space
            for space in catalog.namespaces_writable_by(actor)
            if space.pk != repository.namespace_id
        ],
    }
    return render(request, "sharing/access.html", context)


@require_POST
@signed_in
def change_access(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    """Give or take a grant, or move the repository to another namespace."""
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    username = request.POST.get("username", "").strip()
    changes: Changes = {
        "grant": (
            lambda: sharing.set_grant(
                actor=actor,
                repository=repository,
                username=username,
                role=request.POST.get("role", ""),
            ),
            _("%(name)s has access.") % {"name": username},
        ),
        "remove": (
            lambda: sharing.remove_grant(actor=actor, repository=repository, username=username),
            _("The grant of %(name)s is taken back.") % {"name": username},
        ),
        "transfer": (
            lambda: sharing.transfer_repository(
                actor=actor,
                repository=repository,
                namespace=namespaces.find_namespace(actor, request.POST.get("namespace", "")),
            ),
            _("It has moved; the old name leads there."),
        ),
    }
    _attempt_asked(request, "change", changes)
    moved = Repository.objects.visible_to(actor).select_related("namespace")
    found = moved.filter(pk=repository.pk).first()
    if found is None or not allowed(actor, "maintain", found):
        return redirect("web:repositories", kind=kind)
    return redirect(address_of(found, "access"))


# --- Requests ------------------------------------------------------------------------------------


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
@signed_in
def request_list(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    typed: Mapping[str, str] = {"name": request.GET.get("for", "")[:200], "role": Role.READER}
    refusal = ""
    if request.method == "POST":
        typed = request.POST
        place, _slash, rest = typed.get("name", "").strip().partition("/")
        try:
            requests.request_access(
                actor=actor,
                kind=typed.get("kind", "namespace"),
                namespace=place,
                name=rest,
                role=typed.get("role", ""),
                message=typed.get("message", ""),
            )
        except RegistryError as error:
            refusal = words_of(error)
        else:
            messages.success(
                request,
                _("Your request is kept; whoever may decide sees it, if there is such a thing."),
            )
            return redirect("web:requests")
    rows = AccessRequest.objects.select_related(
        "user", "decided_by", "namespace", "repository__namespace"
    ).order_by("-pk")
    context = {
        "own": list(rows.asked_by(actor)[:_SHOWN]),
        "to_decide": list(rows.decidable_by(actor).filter(state="open")[:_SHOWN]),
        "roles": ROLES,
        "typed": typed,
        "refusal": refusal,
        "kinds": [
            ("model", wording.WORDS["kind"]["model"]),
            ("dataset", wording.WORDS["kind"]["dataset"]),
            ("namespace", _("namespace")),
        ],
    }
    return render(request, "sharing/requests.html", context, status=422 if refusal else 200)


@require_POST
@signed_in
def decide_request(request: HttpRequest, number: int) -> HttpResponse:
    actor = actor_of(request)
    found = requests.find_request(actor, number)
    note = request.POST.get("note", "")
    decisions: Changes = {
        "approve": (
            lambda: requests.approve_request(
                actor=actor,
                request=found,
                expected_role=request.POST.get("expected_role", ""),
                note=note,
            ),
            _("Approved."),
        ),
        "decline": (
            lambda: requests.decline_request(actor=actor, request=found, note=note),
            _("Declined."),
        ),
        "ignore": (
            lambda: requests.ignore_request(actor=actor, request=found),
            _("Put away; for the asker it stays open."),
        ),
        "withdraw": (
            lambda: requests.withdraw_request(actor=actor, request=found),
            _("Withdrawn."),
        ),
    }
    _attempt_asked(request, "decision", decisions)
    return redirect("web:requests")


# --- Protected aliases ---------------------------------------------------------------------------


@require_safe
@anybody
def proposal_list(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    repository = catalog.find_repository(actor_of(request), kind, namespace, name)
    return _show_proposals(request, repository, ProposalForm.of(repository))


def _show_proposals(
    request: HttpRequest, repository: Repository, form: ProposalForm
) -> HttpResponse:
    actor = actor_of(request)
    rows = AliasProposal.objects.filter(repository=repository).select_related(
        "version", "proposed_by", "decided_by"
    )
    owns, maintains = allowed(actor, "own", repository), allowed(actor, "maintain", repository)
    context = {
        "repository": repository,
        "kind": repository.kind,
        "form": form,
        "proposals": list(rows.order_by("-number")[:_SHOWN]),
        "aliases": history.aliases_of(repository),
        "may_write": allowed(actor, "write", repository),
        "may_protect": owns or (maintains and not repository.second_approver),
        "may_own": owns,
    }
    status = 422 if form.errors else 200
    return render(request, "sharing/proposals.html", context, status=status)


@require_POST
@signed_in
def propose(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    """Ask for the move of an alias, or say which aliases are protected."""
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    require(actor, "write", repository)
    if request.POST.get("change") == "protect":
        shown = request.POST.get("shown_aliases")
        attempt(
            request,
            lambda: proposals.protect_aliases(
                actor=actor,
                repository=repository,
                aliases=request.POST.get("aliases", "").split(),
                second_approver=_changed_switch(request, "second_approver"),
                shown=None if shown is None else shown.split(),
            ),
            _("Saved."),
        )
        return redirect(address_of(repository, "proposals"))
    form = ProposalForm(request.POST)
    if form.is_valid():
        try:
            _propose(actor, repository, form)
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("Proposed; the maintainers decide."))
            return redirect(address_of(repository, "proposals"))
    return _show_proposals(request, repository, form)


def _changed_switch(request: HttpRequest, name: str) -> bool | None:
    """Read a switch; None where it was left as the page showed it."""
    given = name in request.POST
    return None if given == (f"shown_{name}" in request.POST) else given


def _propose(actor: Actor, repository: Repository, form: ProposalForm) -> None:
    given = form.cleaned_data
    proposals.propose_alias(
        actor=actor,
        repository=repository,
        alias=given["alias"],
        version=catalog.find_version(actor, repository, str(given["version"])),
        message=given["message"],
    )


@require_safe
@anybody
def proposal_page(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int
) -> HttpResponse:
    repository = catalog.find_repository(actor_of(request), kind, namespace, name)
    return _show_proposal(request, repository, proposals.find_proposal(repository, number))


def _show_proposal(
    request: HttpRequest, repository: Repository, proposal: AliasProposal, *, refusal: str = ""
) -> HttpResponse:
    """Render a proposal; a decision that was refused with why, and what was typed for it."""
    actor = actor_of(request)
    alias = next((a for a in history.aliases_of(repository) if a.name == proposal.alias), None)
    present = alias.version if alias else None
    before = last_at(repository, proposal.alias) if proposal.is_open else proposal.replaced
    for version in (present, before, proposal.version):
        if version is not None:
            version.repository = repository
    context = {
        "repository": repository,
        "kind": repository.kind,
        "proposal": proposal,
        "refusal": refusal,
        "typed": request.POST,
        "present": present,
        "before": before,
        "followed": bool(
            alias and proposal.version and (alias.followed or repository.protects(alias.name))
        ),
        "reason_hint": AliasForm.base_fields["reason"].help_text,
        "numbers": _side_by_side(before, proposal.version),
        **_what_would_change(actor, before, proposal.version),
        "may_decide": proposal.is_open and allowed(actor, "maintain", repository),
        "may_withdraw": proposal.is_open and proposal.proposed_by_id == actor.user_id,
    }
    return render(request, "sharing/proposal.html", context, status=422 if refusal else 200)


def _what_would_change(
    actor: Actor, before: Version | None, after: Version | None
) -> dict[str, Any]:
    """Say whether callers of the alias could be given the new version, and where more is said."""
    if before is None or after is None or before.pk == after.pk:
        return {}
    return {
        "fit": compare_signatures(actor, before, after),
        "diff_url": history.pair_address("diff", before, after),
    }


def _side_by_side(before: Version | None, after: Version | None) -> list[dict[str, Any]]:
    """Set what was measured of both versions side by side, better and worse told apart."""
    found = history.numbers_of([one for one in (before, after) if one])
    sides = [
        {metric: row for metric, row in found[one.pk].items() if row.measured} if one else {}
        for one in (before, after)
    ]
    rows = []
    for metric in sorted(sides[0].keys() | sides[1].keys()):
        old, new = (side.get(metric) for side in sides)
        better = is_better(metric, old.value if old else None, new.value if new else None)
        tone = "" if better is None else "good" if better else "bad"
        words = {True: _("better"), False: _("worse"), None: ""}[better]
        rows.append({"metric": metric, "old": old, "new": new, "tone": tone, "words": words})
    return rows


@require_POST
@signed_in
def decide_proposal(
    request: HttpRequest, kind: str, namespace: str, name: str, number: int
) -> HttpResponse:
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    found = proposals.find_proposal(repository, number)
    note, seen = request.POST.get("note", ""), request.POST.get("expected_version", "")
    expected = int(seen[:9]) if seen.isdecimal() else None
    decisions: Changes = {
        "approve": (
            lambda: proposals.approve_proposal(
                actor=actor,
                proposal=found,
                expected_version=expected,
                note=note,
                reason=request.POST.get("reason", ""),
            ),
            _("Approved; the alias has moved."),
        ),
        "decline": (
            lambda: proposals.decline_proposal(actor=actor, proposal=found, note=note),
            _("Declined."),
        ),
        "withdraw": (
            lambda: proposals.withdraw_proposal(actor=actor, proposal=found),
            _("Withdrawn."),
        ),
    }
    change, done = decisions.get(request.POST.get("decision", ""), (None, ""))
    if change is not None:
        try:
            change()
        except RegistryError as error:
            return _show_proposal(request, repository, found, refusal=words_of(error))
        messages.success(request, done)
    return redirect(f"{address_of(repository, 'proposals')}/{number}")
