"""Tokens, namespaces, their members, and what people did."""

from typing import Any

from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.requests import wrong_field
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.models import (
    Actor,
    Membership,
    Namespace,
    Repository,
    Role,
    Token,
)
from registry.pages import Page, check_limit, newest_first
from registry.permissions import require, require_scope, role_of
from registry.services import catalog, namespaces, quotas, savings, tokens
from registry.services.audit_log import audit_log, event_body, json_lines
from registry.services.deletion import list_deleted


class Whoami(Resource):
    @operation("whoami", "See who your token makes you.", {200: schemas.Whoami})
    def get(self, request: Request) -> Response:
        actor = self.actor
        places = Membership.objects.filter(
            user_id=self.user_id, namespace__in=Namespace.objects.visible_to(actor)
        ).select_related("namespace")
        named = Token.objects.with_places(actor)
        token = named.get(pk=actor.token_id) if actor.token_id else None
        return Response(
            {
                "username": actor.username,
                "is_admin": actor.is_admin,
                "scopes": sorted(actor.scopes),
                "namespaces": [
                    {"slug": place.namespace.slug, "role": place.role}
                    for place in places.order_by("namespace__slug")
                ],
                "token": wire.token_body(token) if token else None,
            }
        )


# --- Tokens ----------------------------------------------------------------------------------


class TokenList(Resource):
    keeps_answers = False

    @operation(
        "list_tokens",
        "List your live tokens, newest first; takes the scope admin.",
        {200: schemas.TokenPage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        require_scope(self.actor, "admin")
        asked = self.query(schemas.Paging)
        own = Token.objects.with_places(self.actor).filter(user_id=self.user_id, revoked_at=None)
        rows = tokens.within_reach(self.actor, own)
        found, after = newest_first(rows, "tokens", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([wire.token_body(token) for token in found], after))

    @operation(
        "create_token",
        "Make a token; its secret is shown this once. Takes the scope admin.",
        {201: schemas.MadeToken},
        body=schemas.NewToken,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        require_scope(self.actor, "admin")
        new = self.body(schemas.NewToken)
        token, secret = tokens.create_token(
            actor=self.actor,
            name=new.name,
            scopes=new.scopes,
            expires_at=new.expires_at,
            namespace=(
                namespaces.find_namespace(self.actor, new.namespace) if new.namespace else None
            ),
            repository=_one_place(self.actor, new),
        )
        address = reverse("api:token", args=[token.pk])
        return created({**wire.token_body(token), "token": secret}, address)


def _one_place(actor: Actor, new: schemas.NewToken) -> Repository | None:
    given = [("model", new.model), ("dataset", new.dataset)]
    named = [(kind, name) for kind, name in given if name]
    if len(named) + (new.namespace is not None) > 1:
        raise wrong_field(
            "namespace", "one_of", "Limit a token to one of namespace, model and dataset."
        )
    for kind, full_name in named:
        namespace, _, name = full_name.partition("/")
        return catalog.find_repository(actor, kind, namespace, name)
    return None


class TokenOne(Resource):
    @operation("revoke_token", "Revoke a token, at once and everywhere.", {204: None})
    def delete(self, request: Request, token: int) -> HttpResponseBase:
        tokens.revoke_token(actor=self.actor, token_id=token)
        return no_content()


# --- Namespaces ------------------------------------------------------------------------------


def _namespace_body(actor: Actor, namespace: Namespace) -> wire.Row:
    return {
        "slug": namespace.slug,
        "kind": namespace.kind,
        "display_name": namespace.display_name,
        "role": role_of(actor, namespace),
        "created_at": namespace.created_at,
    }


class NamespaceList(Resource):
    @operation(
        "list_namespaces",
        "List the namespaces you belong to; an administrator sees all.",
        {200: schemas.NamespacePage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        require_scope(self.actor, "read")
        asked = self.query(schemas.Paging)
        rows = Namespace.objects.visible_to(self.actor)
        if not self.actor.is_admin:
            rows = rows.filter(pk__in=list(self.actor.roles))
        found, after = newest_first(rows, "namespaces", check_limit(asked.limit), asked.cursor)
        return page_response(
            request, Page([_namespace_body(self.actor, namespace) for namespace in found], after)
        )

    @operation(
        "create_namespace",
        "Create an organisation that you own.",
        {201: schemas.Namespace},
        body=schemas.NewNamespace,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewNamespace)
        namespace = namespaces.create_namespace(actor=self.actor, **new.model_dump())
        body = {**_namespace_body(self.actor, namespace), "role": Role.OWNER}
        return created(body, reverse("api:namespace", args=[namespace.slug]))


class NamespaceOne(Resource):
    @operation("get_namespace", "Read one namespace.", {200: schemas.Namespace}, public=True)
    def get(self, request: Request, namespace: str) -> Response:
        found = namespaces.find_namespace(self.actor, namespace)
        return Response(_namespace_body(self.actor, found))

    @operation(
        "describe_namespace",
        "Change how a namespace is called in full.",
        {200: schemas.Namespace},
        body=schemas.NamespaceChanges,
    )
    def patch(self, request: Request, namespace: str) -> Response:
        found = namespaces.find_namespace(self.actor, namespace)
        row = namespaces.describe_namespace(
            actor=self.actor,
            namespace=found,
            display_name=self.body(schemas.NamespaceChanges).display_name,
        )
        return Response(_namespace_body(self.actor, row))

    @operation(
        "delete_namespace",
        "Delete an empty organisation; nobody else can ever take its name.",
        {204: None},
    )
    def delete(self, request: Request, namespace: str) -> HttpResponseBase:
        found = namespaces.find_namespace(self.actor, namespace)
        namespaces.delete_namespace(actor=self.actor, namespace=found)
        return no_content()


class NamespaceQuota(Resource):
    @operation(
        "get_quota",
        "See what a namespace may hold and run, and how much of it is used; for its members.",
        {200: schemas.Quotas},
    )
    def get(self, request: Request, namespace: str) -> Response:
        space = namespaces.find_namespace(self.actor, namespace)
        return Response(wire.quota_body(quotas.read_quotas(actor=self.actor, namespace=space)))

    @operation(
        "set_quota",
        "Set a namespace's quotas, those that are named; takes an administrator.",
        {200: schemas.Quotas},
        body=schemas.QuotaChanges,
    )
    def patch(self, request: Request, namespace: str) -> Response:
        space = namespaces.find_namespace(self.actor, namespace)
        changed = quotas.set_quotas(
            actor=self.actor, namespace=space, changes=self.changes(schemas.QuotaChanges)
        )
        return Response(wire.quota_body(changed))


class NamespaceStorage(Resource):
    @operation(
        "get_storage",
        "See what the files of a namespace save; for its members.",
        {200: schemas.Storage},
    )
    def get(self, request: Request, namespace: str) -> Response:
        space = namespaces.find_namespace(self.actor, namespace)
        row = savings.read_savings(actor=self.actor, namespace=space)
        return Response(wire.storage_body(row))

    @operation(
        "set_storage",
        "Have weights of 16 bits coded without loss where they lie, or no longer.",
        {200: schemas.Storage},
        body=schemas.StorageChanges,
    )
    def patch(self, request: Request, namespace: str) -> Response:
        space = namespaces.find_namespace(self.actor, namespace)
        row = savings.set_compression(
            actor=self.actor,
            namespace=space,
            compress_weights=self.body(schemas.StorageChanges).compress_weights,
        )
        return Response(wire.storage_body(row))


class DeletedList(Resource):
    @operation(
        "list_deleted",
        "List what was deleted in a namespace and can be brought back, to those who maintain it.",
        {200: schemas.DeletedPage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request, namespace: str) -> Response:
        space = namespaces.find_namespace(self.actor, namespace)
        asked = self.query(schemas.Paging)
        found, after = list_deleted(self.actor, space, limit=asked.limit, cursor=asked.cursor)
        return page_response(request, Page([wire.deleted_body(one) for one in found], after))


class MemberList(Resource):
    @operation(
        "list_members",
        "List who belongs to a namespace, to those who do.",
        {200: schemas.MemberPage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request, namespace: str) -> Response:
        space = namespaces.find_namespace(self.actor, namespace)
        require(self.actor, "read", space)
        asked = self.query(schemas.Paging)
        rows = Membership.objects.filter(namespace=space).select_related("user")
        found, after = newest_first(rows, "members", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([_member_body(member) for member in found], after))


def _member_body(member: Membership) -> wire.Row:
    return {
        "username": member.user.username,
        "role": member.role,
        "created_at": member.created_at,
    }


class MemberOne(Resource):
    @operation(
        "set_member",
        "Give a person a role in a namespace.",
        {200: schemas.Member},
        body=schemas.MemberRole,
    )
    def put(self, request: Request, namespace: str, username: str) -> Response:
        member = namespaces.set_member(
            actor=self.actor,
            namespace=namespaces.find_namespace(self.actor, namespace),
            username=username,
            role=self.body(schemas.MemberRole).role,
        )
        return Response(_member_body(member))

    @operation("remove_member", "Take a person out of a namespace, or leave it.", {204: None})
    def delete(self, request: Request, namespace: str, username: str) -> HttpResponseBase:
        space = namespaces.find_namespace(self.actor, namespace)
        namespaces.remove_member(actor=self.actor, namespace=space, username=username)
        return no_content()


# --- What people did ---------------------------------------------------------------------------


class EventList(Resource):
    @operation(
        "list_events",
        "Read the audit log of the namespaces you maintain, newest first.",
        {200: schemas.EventPage},
        query=schemas.EventQuery,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        asked = self.query(schemas.EventQuery)
        rows = audit_log(self.actor, **_narrowing(asked))
        found, after = newest_first(rows, "events", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([event_body(event) for event in found], after))


class EventExport(Resource):
    @operation(
        "export_events",
        "Take the audit log away as JSON lines, oldest first.",
        {200: "application/x-ndjson"},
        query=schemas.EventFilter,
    )
    def get(self, request: Request) -> StreamingHttpResponse:
        rows = audit_log(self.actor, **_narrowing(self.query(schemas.EventFilter)))
        return StreamingHttpResponse(
            json_lines(rows),
            content_type="application/x-ndjson",
            headers={"Content-Disposition": 'attachment; filename="events.jsonl"'},
        )


def _narrowing(asked: schemas.EventFilter) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in ("namespace", "action", "since", "until")}
