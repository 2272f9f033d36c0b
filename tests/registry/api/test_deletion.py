"""Deleting and bringing back over REST."""

import pytest

from tests.factories import make_model, make_version
from tests.registry.api.conftest import ALL_SCOPES, api_of, problem_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner(alice):
    return api_of(alice, ALL_SCOPES)


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_repository_is_listed_and_brought_back(owner, alice, kind):
    repository = make_model(alice, "digits", kind=kind)
    make_version(alice, repository, {"a.json": b"{}"})
    assert owner.delete(f"{kind}s/alice/digits").status_code == 204
    (item,) = owner.get("namespaces/alice/deleted").json()["items"]
    assert (item["kind"], item["name"], item["number"]) == (kind, "digits", None)
    assert item["size_bytes"] == 2
    answer = owner.post(f"{kind}s/alice/digits/restore", {"id": item["id"]})
    assert answer.status_code == 200, answer.content
    assert answer.json()["name"] == "digits"
    assert owner.get(f"{kind}s/alice/digits/versions/1").status_code == 200
    assert owner.get("namespaces/alice/deleted").json()["items"] == []
    problem_of(owner.post(f"{kind}s/alice/digits/restore", {}), 404, f"{kind}_not_found")


def test_a_taken_name_is_a_conflict_with_a_way_out(owner, alice):
    make_model(alice, "digits")
    owner.delete("models/alice/digits")
    make_model(alice, "digits")
    refusal = problem_of(owner.post("models/alice/digits/restore", {}), 409, "name_taken")
    assert "another name" in refusal["detail"]
    answer = owner.post("models/alice/digits/restore", {"name": "older"})
    assert answer.json()["name"] == "older"


def test_a_version_is_brought_back(owner, alice):
    make_version(alice, make_model(alice, "digits"), {"a.json": b"{}"})
    assert owner.delete("models/alice/digits/versions/1").status_code == 204
    problem_of(owner.get("models/alice/digits/versions/1"), 404, "version_not_found")
    (item,) = owner.get("namespaces/alice/deleted").json()["items"]
    assert item["number"] == 1
    answer = owner.post("models/alice/digits/versions/1/restore")
    assert answer.status_code == 200, answer.content
    assert answer.json()["number"] == 1
    assert answer["ETag"] == owner.get("models/alice/digits/versions/1")["ETag"]
    problem_of(owner.post("models/alice/digits/versions/1/restore"), 404, "version_not_found")


def test_what_is_aliased_stays(owner, alice):
    make_version(alice, make_model(alice, "digits"), {"a.json": b"{}"})
    owner.put("models/alice/digits/aliases/champion", {"version": 1})
    problem_of(owner.delete("models/alice/digits"), 409, "version_aliased")
    problem_of(owner.delete("models/alice/digits/versions/1"), 409, "version_aliased")


def test_the_list_comes_in_pages(owner, alice):
    for number in range(3):
        make_model(alice, f"gone{number}")
        owner.delete(f"models/alice/gone{number}")
    first = owner.get("namespaces/alice/deleted?limit=2").json()
    assert [item["name"] for item in first["items"]] == ["gone2", "gone1"]
    rest = owner.get(f"namespaces/alice/deleted?cursor={first['next_cursor']}").json()
    assert [item["name"] for item in rest["items"]] == ["gone0"]
    assert rest["next_cursor"] is None
    problem_of(owner.get("namespaces/alice/deleted?cursor=x"), 400, "bad_cursor")
