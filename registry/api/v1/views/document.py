"""The OpenAPI document itself."""

import hashlib
from functools import cache

import orjson
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from rest_framework.request import Request

from registry.api.v1 import schemas
from registry.api.v1.openapi import openapi_document, operation
from registry.api.v1.resource import Resource


@cache
def _document() -> tuple[bytes, str]:
    text = orjson.dumps(openapi_document())
    return text, f'"{hashlib.sha256(text).hexdigest()[:32]}"'


class OpenAPI(Resource):
    @operation(
        "get_openapi",
        "Read this document.",
        {200: schemas.Document, 304: None},
        headers=("If-None-Match",),
        gives=("ETag",),
        public=True,
    )
    def get(self, request: Request) -> HttpResponseBase:
        text, etag = _document()
        if unchanged := self.not_modified(etag):
            return unchanged
        return HttpResponse(text, content_type="application/json", headers={"ETag": etag})
