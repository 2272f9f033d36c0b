"""Pages ask the database a fixed number of questions, however much there is to show."""

import json
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.factories import make_model, make_version
from tests.registry.web.conftest import measure, variant_of

pytestmark = pytest.mark.django_db

EXPECTED = Path(__file__).parents[2] / "query_counts.json"
PAGES = {
    "home": "/",
    "models": "/models",
    "search": "/models?q=digits",
    "model card": "/models/olga/digits-cnn",
    "model versions": "/models/olga/digits-cnn?tab=versions",
    "model files": "/models/olga/digits-cnn?tab=files",
    "model metrics": "/models/olga/digits-cnn?tab=metrics",
    "model lineage": "/models/olga/digits-cnn?tab=lineage",
    "version": "/models/olga/digits-cnn/versions/2",
    "dataset card": "/datasets/olga/digits",
    "jobs": "/jobs",
    "new job": "/jobs/new?kind=compress",
}


def counted(client, address):
    client.get(address)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert client.get(address).status_code == 200
    return len(queries)


@pytest.fixture
def few(model, dataset):
    return model


@pytest.fixture
def many(owner, few):
    for number in range(4):
        make_version(owner, make_model(owner, f"other-{number}"), {"a.txt": b"a"})
    versions = [make_version(owner, few, {f"{n}.txt": b"a" for n in range(5)}) for _ in range(3)]
    for number, version in enumerate(versions):
        measure(owner, version, accuracy=0.9, latency=1.0)
        variant_of(owner, version, f"int8-{number}", 10)
    return few


def test_counts_are_the_written_ones(as_owner, few):
    found = {name: counted(as_owner, address) for name, address in PAGES.items()}
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["pages"]
    assert found == expected, "on purpose? then write these numbers to tests/query_counts.json"


@pytest.mark.slow
def test_counts_do_not_grow_with_the_rows(as_owner, few, request):
    before = {name: counted(as_owner, address) for name, address in PAGES.items()}
    request.getfixturevalue("many")
    after = {name: counted(as_owner, address) for name, address in PAGES.items()}
    assert after == before
