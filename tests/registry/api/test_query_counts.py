"""Reads ask the database a fixed number of questions, however much there is to show."""

import json
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from registry.models import Token
from tests.factories import make_model, make_version
from tests.registry.api.conftest import Api

pytestmark = pytest.mark.django_db

EXPECTED = Path(__file__).parents[2] / "query_counts.json"
THING = "models/alice/classifier"
READS = {
    "list": "models",
    "search": "models?q=class&task=image-classification",
    "one": THING,
    "history": f"{THING}/versions",
    "by number": f"{THING}/versions/1",
    "by alias": f"{THING}/versions/@champion",
    "latest": f"{THING}/versions/latest",
    "files": f"{THING}/versions/1/files",
    "aliases": f"{THING}/aliases",
    "lineage": f"{THING}/lineage",
    "evaluations": f"{THING}/versions/1/evaluations",
    "diff": f"{THING}/versions/1/diff/latest",
    "jobs": "jobs",
    "tokens": "tokens",
    "namespaces": "namespaces",
    "events": "events",
    "whoami": "whoami",
}
WITH_A_TOKEN = {"jobs", "tokens", "namespaces", "events", "whoami"}


def _submit_compression(api):
    recipe = {
        "kind": "compress",
        "schema": 1,
        "model": "alice/classifier@1",
        "steps": [{"method": "quantize_dynamic"}],
    }
    assert api.post("jobs", {"recipe": recipe}).status_code == 202


@pytest.fixture
def few(alice, api):
    model = make_model(alice, tags={"stage": "lab"})
    make_version(alice, model, tags={"seed": "1"})
    api.put(f"{THING}/aliases/champion", {"version": 1})
    api.post(f"{THING}/versions/1/evaluations", {"metric": "accuracy", "value": 0.9})
    _submit_compression(api)
    Token.objects.update(last_used_at="2100-01-01T00:00:00Z")
    return model


@pytest.fixture
def many(alice, api, few):
    for number in range(3):
        make_version(alice, make_model(alice, f"classifier-{number}", tags={"a": "b"}))
        body = {"parents": [{"version": "alice/classifier@1"}], "tags": {"seed": "1"}}
        api.post(f"{THING}/versions", body)
        api.put(f"{THING}/aliases/alias-{number}", {"version": 1})
        api.put(f"{THING}/versions/1/tags/key-{number}", {"value": "x"})
        api.post(f"{THING}/versions/1/evaluations", {"metric": "f1", "value": 0.9})
        _submit_compression(api)
        api.post("tokens", {"name": "x"})
        api.post("namespaces", {"slug": f"team-{number}"})
    return few


def counted(api):
    found = {}
    for name, address in READS.items():
        path, _, query = address.partition("?")
        caller = api if name in WITH_A_TOKEN else Api()
        parameters = dict(part.split("=") for part in query.split("&") if part)
        with CaptureQueriesContext(connection) as queries:
            assert caller.get(path, query=parameters).status_code == 200
        found[name] = len(queries)
    return found


def test_counts_are_the_written_ones(api, few):
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["api"]
    assert counted(api) == expected, "on purpose? then write these to tests/query_counts.json"


def test_counts_do_not_grow_with_the_rows(api, few, request):
    before = counted(api)
    request.getfixturevalue("many")
    assert counted(api) == before
