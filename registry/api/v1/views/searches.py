"""Searches that people keep for themselves."""

from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.pages import Page, check_limit, newest_first
from registry.services import searches


class SearchList(Resource):
    @operation(
        "list_searches",
        "List the searches you keep, newest first.",
        {200: schemas.SavedSearchPage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        asked = self.query(schemas.Paging)
        own = searches.kept_by(self.actor).filter(user_id=self.user_id)
        found, after = newest_first(own, "searches", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([wire.search_body(row) for row in found], after))

    @operation(
        "save_search",
        "Keep a search under a name.",
        {201: schemas.SavedSearch},
        body=schemas.NewSearch,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewSearch)
        kept = searches.save_search(actor=self.actor, **new.model_dump())
        return created(wire.search_body(kept), reverse("api:search", args=[kept.pk]))


class SearchOne(Resource):
    @operation("delete_search", "Forget a search that you keep.", {204: None})
    def delete(self, request: Request, **_: int) -> HttpResponseBase:
        searches.delete_search(actor=self.actor, search_id=self.kwargs["search"])
        return no_content()
