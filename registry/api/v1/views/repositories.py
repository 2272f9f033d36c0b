"""Models and datasets: registered, found, described, tagged, given aliases, deleted."""

from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.requests import wrong_field
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.models import Alias
from registry.recommend import similar_to, suited_to_need
from registry.search import SearchQuery, search_repositories
from registry.services import catalog, deletion


def _tag_filters(given: list[str]) -> dict[str, str]:
    filters: dict[str, str] = {}
    for text in given:
        key, colon, value = text.partition(":")
        if not colon or not key:
            raise wrong_field("tag", "bad_format", "Write tag=key:value.")
        filters[key] = value
    return filters


class RepositoryList(Resource):
    @operation(
        "list_{kind}s",
        "Find {kind}s, with counts of what there is to narrow by.",
        {200: schemas.RepositoryPage},
        query=schemas.RepositorySearch,
        gives=("Link",),
        public=True,
    )
    def get(self, request: Request) -> Response:
        asked = self.query(schemas.RepositorySearch)
        fields = asked.model_dump(exclude={"tag"})
        query = SearchQuery(**fields, tags=_tag_filters(asked.tag))
        page = search_repositories(self.actor, self.kind, query)
        suited = suited_to_need(page.items) if query.order == "relevance" else []
        suggestions = [wire.suited_body(one) for one in suited] if not query.cursor else None
        page.items[:] = [wire.repository_body(self.kind, row) for row in page.items]
        return page_response(
            request,
            page,
            facets=page.facets or None,
            reading=page.reading,
            suggestions=suggestions or None,
        )

    @operation(
        "register_{kind}",
        "Register a {kind}: its name and what is said about it.",
        {201: schemas.Repository},
        body=schemas.NewRepository,
        headers=("Idempotency-Key",),
        gives=("ETag",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewRepository)
        repository = catalog.register_repository(
            actor=self.actor, kind=self.kind, **new.model_dump()
        )
        address = reverse(f"api:{self.kind}", args=[repository.namespace.slug, repository.name])
        response = created(wire.one_repository(repository), address)
        response["ETag"] = repository.etag
        return response


class RepositoryOne(Resource):
    @operation(
        "get_{kind}",
        "Read one {kind}.",
        {200: schemas.Repository, 304: None},
        headers=("If-None-Match",),
        gives=("ETag",),
        public=True,
    )
    def get(self, request: Request, namespace: str, name: str) -> HttpResponseBase:
        repository = self.repository()
        if unchanged := self.not_modified(repository.etag):
            return unchanged
        return Response(wire.one_repository(repository), headers={"ETag": repository.etag})

    @operation(
        "describe_{kind}",
        "Change what is said about a {kind}, its name or who sees it.",
        {200: schemas.Repository},
        body=schemas.RepositoryChanges,
        headers=("If-Match",),
        gives=("ETag",),
    )
    def patch(self, request: Request, namespace: str, name: str) -> Response:
        repository = catalog.describe_repository(
            actor=self.actor,
            repository=self.repository(),
            changes=self.changes(schemas.RepositoryChanges),
            expected_etag=self.if_match(),
        )
        return Response(wire.one_repository(repository), headers={"ETag": repository.etag})

    @operation(
        "delete_{kind}", "Delete a {kind} with its versions.", {204: None}, headers=("If-Match",)
    )
    def delete(self, request: Request, namespace: str, name: str) -> HttpResponseBase:
        catalog.delete_repository(
            actor=self.actor, repository=self.repository(), expected_etag=self.if_match()
        )
        return no_content()


class SimilarList(Resource):
    @operation(
        "list_similar_{kind}s",
        "Find {kind}s that may serve in its place, best first, each with the reasons.",
        {200: schemas.SimilarPage},
        public=True,
    )
    def get(self, request: Request, namespace: str, name: str) -> Response:
        found = similar_to(self.actor, self.repository())
        return Response({"items": [wire.similar_body(one) for one in found]})


class RepositoryRestore(Resource):
    @operation(
        "restore_{kind}",
        "Bring a deleted {kind} back with its versions.",
        {200: schemas.Repository},
        body=schemas.Restoration,
        gives=("ETag",),
    )
    def post(self, request: Request, namespace: str, name: str) -> Response:
        asked = self.body(schemas.Restoration)
        found = deletion.find_deleted_repository(
            self.actor, self.kind, namespace, name, deleted_id=asked.id
        )
        repository = deletion.restore_repository(
            actor=self.actor, repository=found, name=asked.name
        )
        return Response(wire.one_repository(repository), headers={"ETag": repository.etag})


class RepositoryTag(Resource):
    @operation("tag_{kind}", "Set a tag of a {kind}.", {200: schemas.Tag}, body=schemas.TagValue)
    def put(self, request: Request, key: str, **_: str) -> Response:
        value = self.body(schemas.TagValue).value
        tag = catalog.set_tag(actor=self.actor, repository=self.repository(), key=key, value=value)
        return Response({"key": tag.key, "value": tag.value})

    @operation("untag_{kind}", "Delete a tag of a {kind}.", {204: None})
    def delete(self, request: Request, key: str, **_: str) -> HttpResponseBase:
        catalog.delete_tag(actor=self.actor, repository=self.repository(), key=key)
        return no_content()


class AliasList(Resource):
    @operation(
        "list_{kind}_aliases",
        "List the aliases of a {kind}.",
        {200: schemas.AliasList},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        aliases = Alias.objects.filter(repository=self.repository()).select_related("version")
        items = [wire.alias_body(alias) for alias in aliases.order_by("name")]
        return Response({"items": items, "next_cursor": None})


class AliasOne(Resource):
    @operation(
        "get_{kind}_alias", "See which version an alias names.", {200: schemas.Alias}, public=True
    )
    def get(self, request: Request, alias: str, **_: str) -> Response:
        return Response(wire.alias_body(catalog.find_alias(self.repository(), alias)))

    @operation(
        "set_{kind}_alias",
        "Point an alias at a version, at once for everybody; of protected ones, maintainers.",
        {200: schemas.Alias},
        body=schemas.AliasTarget,
    )
    def put(self, request: Request, alias: str, **_: str) -> Response:
        target = self.body(schemas.AliasTarget)
        repository = self.repository()
        moved = catalog.set_alias(
            actor=self.actor,
            repository=repository,
            alias=alias,
            version=catalog.find_version(self.actor, repository, str(target.version)),
            expected_version=target.expected_version,
            reason=target.reason,
        )
        return Response(wire.alias_body(moved))

    @operation("delete_{kind}_alias", "Delete an alias.", {204: None})
    def delete(self, request: Request, alias: str, **_: str) -> HttpResponseBase:
        catalog.delete_alias(actor=self.actor, repository=self.repository(), alias=alias)
        return no_content()
