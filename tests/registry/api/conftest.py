"""A client that holds every answer against the OpenAPI document, and the people who use it."""

import json
import re
from functools import cache

import orjson
import pytest
from django.core.cache import cache as shared_cache
from django.test import Client
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from registry.api.v1.openapi import openapi_document
from tests.factories import UserFactory, make_admin, make_token

ROOT = "/api/v1/"
ALL_SCOPES = ("read", "write", "jobs", "admin")


@cache
def _document():
    return orjson.loads(orjson.dumps(openapi_document()))


@cache
def _paths():
    """Templates as patterns, those with the fewest holes first."""
    templates = sorted(_document()["paths"], key=lambda path: path.count("{"))
    return [
        (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), path) for path in templates
    ]


def _operation(method, path):
    for pattern, template in _paths():
        methods = _document()["paths"][template]
        if pattern.fullmatch(path) and method in methods:
            return methods[method]
    return None


def check_against_document(method, path, response):
    """Fail when an answer is not what the document says."""
    operation = _operation("get" if method == "head" else method, path)
    kind = response.headers.get("Content-Type", "").partition(";")[0]
    if operation is None:
        assert response.status_code in {404, 405, 415}, (method, path, response.status_code)
        assert kind == "application/problem+json"
        return
    said = operation["responses"]
    described = said.get(str(response.status_code))
    if described is None:
        assert response.status_code >= 400, f"undocumented {response.status_code} at {path}"
        described = said["default"]
    if method == "head" or "content" not in described:
        assert response.content == b""
        return
    assert kind in described["content"], (kind, path)
    schema = described["content"][kind]["schema"]
    # Answers that are no JSON (logs, keys, signature files) are said to be a string.
    if schema != {"type": "string"}:
        _validator(json.dumps(schema)).validate(orjson.loads(response.content))


@cache
def _validator(schema):
    resource = Resource(contents=_document(), specification=DRAFT202012)
    text = schema.replace('"#/', '"urn:openapi#/')
    registry = Registry().with_resource("urn:openapi", resource)
    return Draft202012Validator(
        json.loads(text), registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER
    )


class Api:
    """Speaks JSON with one token; every answer is checked against the document."""

    def __init__(self, token=None):
        self.token = token
        self.client = Client(raise_request_exception=False)

    def send(self, method, path, body=None, *, raw=None, headers=None, query=None):
        path = path if path.startswith("/") else ROOT + path
        given = dict(headers or {})
        if self.token:
            given.setdefault("Authorization", f"Bearer {self.token}")
        kind = given.pop("Content-Type", "application/json")
        data = raw if raw is not None else b"" if body is None else orjson.dumps(body)
        response = self.client.generic(
            method.upper(), path, data, content_type=kind, headers=given, query_params=query
        )
        check_against_document(method.lower(), response.request["PATH_INFO"], response)
        assert response.status_code != 500, response.content
        return response

    def get(self, path, **more):
        return self.send("get", path, **more)

    def post(self, path, body=None, **more):
        return self.send("post", path, body, **more)

    def put(self, path, body=None, **more):
        return self.send("put", path, body, **more)

    def patch(self, path, body=None, **more):
        return self.send("patch", path, body, **more)

    def delete(self, path, **more):
        return self.send("delete", path, **more)


def api_of(user, scopes=ALL_SCOPES):
    return Api(make_token(user, scopes))


@pytest.fixture(autouse=True)
def empty_cache():
    shared_cache.clear()


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def bob(db):
    return UserFactory(username="bob")


@pytest.fixture
def admin(db):
    return make_admin()


@pytest.fixture
def api(alice):
    return api_of(alice)


@pytest.fixture
def anonymous(db):
    return Api()


def problem_of(response, status, code):
    """Check a refusal and give its document."""
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code), body
    return body
