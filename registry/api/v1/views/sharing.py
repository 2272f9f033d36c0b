"""Who has access to what, and why: grants, transfers, requests for access."""

from dataclasses import asdict

from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.models import AccessRequest, Actor, Grant
from registry.pages import Page, check_limit, newest_first
from registry.permissions import require, require_scope
from registry.services import namespaces, requests, sharing


class AccessList(Resource):
    @operation(
        "list_{kind}_access",
        "See who has a role on a {kind}, and whether the namespace or a grant gives it.",
        {200: schemas.AccessList},
    )
    def get(self, request: Request, **_: str) -> Response:
        repository = self.repository()
        rows = sharing.list_access(actor=self.actor, repository=repository)
        items = [asdict(row) for row in rows]
        body = {"visibility": repository.visibility, "items": items, "next_cursor": None}
        return Response(body)


class GrantList(Resource):
    @operation(
        "list_{kind}_grants",
        "List the roles that were given on a {kind} alone.",
        {200: schemas.GrantPage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request, **_: str) -> Response:
        repository = self.repository()
        require(self.actor, "maintain", repository)
        asked = self.query(schemas.Paging)
        rows = Grant.objects.filter(repository=repository).select_related("user")
        found, after = newest_first(rows, "grants", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([_grant_body(grant) for grant in found], after))


def _grant_body(grant: Grant) -> wire.Row:
    return {
        "username": grant.user.username,
        "role": grant.role,
        "created_at": grant.created_at,
    }


class GrantOne(Resource):
    @operation(
        "set_{kind}_grant",
        "Give a person a role on a {kind} alone. Takes the scope admin.",
        {200: schemas.Grant},
        body=schemas.MemberRole,
    )
    def put(self, request: Request, username: str, **_: str) -> Response:
        repository = self.repository()
        role = self.body(schemas.MemberRole).role
        grant = sharing.set_grant(
            actor=self.actor, repository=repository, username=username, role=role
        )
        return Response(_grant_body(grant))

    @operation("remove_{kind}_grant", "Take a grant back, or give up your own.", {204: None})
    def delete(self, request: Request, username: str, **_: str) -> HttpResponseBase:
        sharing.remove_grant(actor=self.actor, repository=self.repository(), username=username)
        return no_content()


class Transfer(Resource):
    @operation(
        "transfer_{kind}",
        "Move a {kind} to another namespace; its old name goes on leading there.",
        {200: schemas.Repository},
        body=schemas.NewPlace,
        headers=("If-Match", "Idempotency-Key"),
        gives=("ETag",),
    )
    @idempotent
    def post(self, request: Request, /, **_: str) -> Response:
        repository = self.repository()
        wanted = self.body(schemas.NewPlace).namespace
        moved = sharing.transfer_repository(
            actor=self.actor,
            repository=repository,
            namespace=namespaces.find_namespace(self.actor, wanted),
            expected_etag=self.if_match(),
        )
        return Response(wire.one_repository(moved), headers={"ETag": moved.etag})


# --- Requests ----------------------------------------------------------------------------------


def _request_body(actor: Actor, row: AccessRequest) -> wire.Row:
    """Render a request; to its asker, as they are told."""
    own = row.user_id == actor.user_id
    shown = own and row.state == row.told
    return {
        "id": row.pk,
        "username": row.user.username,
        "kind": row.kind,
        "namespace": row.asked_namespace,
        "name": row.asked_name,
        "role": row.role,
        "message": row.message,
        "state": row.told if own else row.state,
        "decided_by": row.decided_by.username if row.decided_by and (shown or not own) else None,
        "note": row.note,
        "created_at": row.created_at,
        "decided_at": row.decided_at if shown or not own else None,
    }


class RequestList(Resource):
    @operation(
        "list_access_requests",
        "List your requests for access, or those that you may decide, newest first.",
        {200: schemas.AccessRequestPage},
        query=schemas.AccessRequestQuery,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        require_scope(self.actor, "read")
        asked = self.query(schemas.AccessRequestQuery)
        rows = AccessRequest.objects.select_related("user", "decided_by")
        rows = rows.decidable_by(self.actor) if asked.to_decide else rows.asked_by(self.actor)
        found, after = newest_first(rows, "requests", check_limit(asked.limit), asked.cursor)
        bodies = [_request_body(self.actor, row) for row in found]
        return page_response(request, Page(bodies, after))

    @operation(
        "request_access",
        "Ask for a role by name; the answer does not say whether the name names anything.",
        {202: schemas.AccessRequest},
        body=schemas.NewAccessRequest,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewAccessRequest)
        row = requests.request_access(actor=self.actor, **new.model_dump())
        return _one(self, row.pk, 202)


def _one(view: Resource, number: int, status: int = 200) -> Response:
    found = requests.find_request(view.actor, number)
    address = reverse("api:request", args=[number])
    return created(_request_body(view.actor, found), address, status=status)


class RequestOne(Resource):
    @operation("get_access_request", "Read one request.", {200: schemas.AccessRequest})
    def get(self, request: Request, number: int) -> Response:
        require_scope(self.actor, "read")
        return Response(_request_body(self.actor, requests.find_request(self.actor, number)))


class RequestApprove(Resource):
    @operation(
        "approve_access_request",
        "Give what was asked for, as you saw it. Takes the scope admin.",
        {200: schemas.AccessRequest},
        body=schemas.RequestApproval,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, number: int) -> Response:
        found = requests.find_request(self.actor, number)
        approval = self.body(schemas.RequestApproval)
        requests.approve_request(actor=self.actor, request=found, **approval.model_dump())
        return _one(self, number)


class RequestDecline(Resource):
    @operation(
        "decline_access_request",
        "Say no; the asker learns by it that the thing exists. Takes the scope admin.",
        {200: schemas.AccessRequest},
        body=schemas.Note,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, number: int) -> Response:
        found = requests.find_request(self.actor, number)
        note = self.body(schemas.Note).note
        requests.decline_request(actor=self.actor, request=found, note=note)
        return _one(self, number)


class RequestIgnore(Resource):
    @operation(
        "ignore_access_request",
        "Put a request away; for its asker it stays open. Takes the scope admin.",
        {200: schemas.AccessRequest},
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, number: int) -> Response:
        found = requests.find_request(self.actor, number)
        requests.ignore_request(actor=self.actor, request=found)
        return _one(self, number)


class RequestWithdraw(Resource):
    @operation(
        "withdraw_access_request",
        "Take your own request back.",
        {200: schemas.AccessRequest},
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, number: int) -> Response:
        found = requests.find_request(self.actor, number)
        requests.withdraw_request(actor=self.actor, request=found)
        return _one(self, number)
