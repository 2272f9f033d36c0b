"""The OpenAPI document: true, valid, and changed only on purpose."""

import json
import os
from pathlib import Path

import orjson
import pytest
from django.urls import URLPattern
from openapi_spec_validator import OpenAPIV31SpecValidator
from openapi_spec_validator.readers import read_from_filename

from registry.api.v1.openapi import openapi_document
from registry.api.v1.streams import STREAMED
from registry.api.v1.urls import urlpatterns
from tests.registry.api.conftest import Api

SNAPSHOT = Path(__file__).parents[3] / "docs" / "api" / "openapi.json"
DOCUMENTED = {"get", "post", "put", "patch", "delete"}


@pytest.mark.contract
def test_the_snapshot_in_docs_is_the_document():
    text = orjson.dumps(openapi_document(), option=orjson.OPT_INDENT_2).decode() + "\n"
    if os.environ.get("MODELYARD_WRITE_SNAPSHOTS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert SNAPSHOT.read_text(encoding="utf-8") == text, (
        "The API changed. If that is meant, write the snapshot again: "
        "MODELYARD_WRITE_SNAPSHOTS=1 ./dev check"
    )


@pytest.mark.contract
@pytest.mark.slow
def test_the_document_is_openapi():
    document, _ = read_from_filename(str(SNAPSHOT))
    OpenAPIV31SpecValidator(document).validate()


def _template(pattern: URLPattern) -> str:
    path = str(pattern.pattern)
    for name in pattern.pattern.converters:
        path = path.replace(f"<str:{name}>", f"{{{name}}}").replace(f"<int:{name}>", f"{{{name}}}")
    return f"/api/v1/{path}"


def test_every_route_is_documented_and_nothing_else():
    routed = {
        (_template(pattern), method)
        for pattern in urlpatterns
        for method in DOCUMENTED
        if hasattr(pattern.callback.view_class, method)
    }
    streamed = {(path, method) for path, methods in STREAMED.items() for method in methods}
    documented = {
        (path, method)
        for path, methods in openapi_document()["paths"].items()
        for method in methods
    }
    assert documented == routed | streamed


def test_operations_have_names_of_their_own():
    names = [
        operation["operationId"]
        for methods in openapi_document()["paths"].values()
        for operation in methods.values()
    ]
    assert len(names) == len(set(names)) > 50
    assert not any("{" in name for name in names)


def test_every_reference_leads_somewhere():
    document = openapi_document()
    text = json.dumps(document)
    for name in document["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.partition('"')[0] in document["components"]["schemas"]


def test_the_document_is_served_with_an_etag(db):
    first = Api().get("openapi.json")
    assert first.json()["openapi"].startswith("3.1")
    again = Api().get("openapi.json", headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_files_may_come_as_a_form():
    for kind in ("models", "datasets"):
        path = f"/api/v1/{kind}/{{namespace}}/{{name}}/versions"
        content = openapi_document()["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"application/json", "multipart/form-data"}
