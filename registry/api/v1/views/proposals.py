"""Protected aliases: which they are, who asks to move them, who decides."""

from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent
from registry.models import Alias, AliasProposal, Repository
from registry.pages import Page, check_limit, newest_first
from registry.services import catalog, proposals
from registry.services.diffs import compare_signatures, measured_changes


def _protection(repository: Repository) -> Response:
    return Response(
        {
            "aliases": repository.protected_aliases,
            "second_approver": repository.second_approver,
        }
    )


class Protection(Resource):
    @operation(
        "get_{kind}_protection",
        "See which aliases of a {kind} only maintainers move.",
        {200: schemas.ProtectedAliases},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        return _protection(self.repository())

    @operation(
        "set_{kind}_protection",
        "Say which aliases of a {kind} only maintainers move.",
        {200: schemas.ProtectedAliases},
        body=schemas.AliasProtection,
    )
    def put(self, request: Request, **_: str) -> Response:
        repository = self.repository()
        wanted = self.body(schemas.AliasProtection)
        return _protection(
            proposals.protect_aliases(
                actor=self.actor,
                repository=repository,
                aliases=wanted.aliases,
                second_approver=wanted.second_approver,
            )
        )


class ProposalList(Resource):
    @operation(
        "list_{kind}_proposals",
        "List what was asked of the protected aliases of a {kind}, newest first.",
        {200: schemas.ProposalPage},
        query=schemas.ProposalQuery,
        gives=("Link",),
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        repository = self.repository()
        asked = self.query(schemas.ProposalQuery)
        wanted = {"state": asked.state, "alias": asked.alias}
        rows = AliasProposal.objects.filter(
            repository=repository, **{name: value for name, value in wanted.items() if value}
        ).select_related("version", "replaced", "proposed_by", "decided_by")
        found, after = newest_first(rows, "proposals", check_limit(asked.limit), asked.cursor)
        aliases = Alias.objects.filter(repository=repository).select_related("version")
        present = {alias.name: alias.version.number for alias in aliases}
        bodies = [wire.proposal_body(row, present.get(row.alias)) for row in found]
        return page_response(request, Page(bodies, after))

    @operation(
        "propose_{kind}_alias",
        "Ask the maintainers to move a protected alias.",
        {201: schemas.ProposalInFull},
        body=schemas.NewProposal,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, /, **_: str) -> Response:
        repository = self.repository()
        new = self.body(schemas.NewProposal)
        proposal = proposals.propose_alias(
            actor=self.actor,
            repository=repository,
            alias=new.alias,
            version=(
                catalog.find_version(self.actor, repository, str(new.version))
                if new.version is not None
                else None
            ),
            message=new.message,
        )
        names = [repository.namespace.slug, repository.name, proposal.number]
        address = reverse(f"api:{self.kind}-proposal", args=names)
        return created(in_full(self, proposal), address)


def in_full(view: "Resource", proposal: AliasProposal) -> wire.Row:
    """Render a proposal with the numbers that speak for and against it."""
    found = proposals.find_proposal(view.repository(), proposal.number)
    alias = (
        Alias.objects.filter(repository=found.repository, name=found.alias)
        .select_related("version")
        .first()
    )
    present = alias.version if alias else None
    before = present if found.is_open else found.replaced
    fit = (
        compare_signatures(view.actor, before, found.version) if before and found.version else None
    )
    return {
        **wire.proposal_body(found, present.number if present else None),
        "metrics": measured_changes(view.actor, before, found.version),
        "signature": fit and {"accepts": fit.accepts, "why": fit.why.detail if fit.why else None},
    }


class ProposalOne(Resource):
    @operation(
        "get_{kind}_proposal",
        "Read a proposal, with what was measured of both versions.",
        {200: schemas.ProposalInFull},
        public=True,
    )
    def get(self, request: Request, number: int, **_: str) -> Response:
        return Response(in_full(self, proposals.find_proposal(self.repository(), number)))


class ProposalApprove(Resource):
    @operation(
        "approve_{kind}_proposal",
        "Approve a proposal; the alias moves at once.",
        {200: schemas.ProposalInFull},
        body=schemas.Approval,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, /, number: int, **_: str) -> Response:
        found = proposals.find_proposal(self.repository(), number)
        approval = self.body(schemas.Approval)
        proposals.approve_proposal(actor=self.actor, proposal=found, **approval.model_dump())
        return Response(in_full(self, found))


class ProposalDecline(Resource):
    @operation(
        "decline_{kind}_proposal",
        "Decline a proposal; the alias stays where it is.",
        {200: schemas.ProposalInFull},
        body=schemas.Note,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, /, number: int, **_: str) -> Response:
        found = proposals.find_proposal(self.repository(), number)
        note = self.body(schemas.Note).note
        proposals.decline_proposal(actor=self.actor, proposal=found, note=note)
        return Response(in_full(self, found))


class ProposalWithdraw(Resource):
    @operation(
        "withdraw_{kind}_proposal",
        "Take your own proposal back.",
        {200: schemas.ProposalInFull},
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, /, number: int, **_: str) -> Response:
        found = proposals.find_proposal(self.repository(), number)
        proposals.withdraw_proposal(actor=self.actor, proposal=found)
        return Response(in_full(self, found))
