"""Models over REST: registered, found, described, tagged, given aliases, deleted."""

import pytest

from registry.models import Repository
from registry.services import catalog
from tests.factories import make_model, make_version
from tests.registry.api.conftest import api_of, problem_of

pytestmark = pytest.mark.django_db


def test_a_model_is_registered_and_read(api):
    made = api.post(
        "models",
        {
            "namespace": "alice",
            "name": "classifier",
            "summary": "Tells digits apart",
            "task": "image-classification",
            "tags": {"stage": "lab"},
        },
    )
    assert made.status_code == 201
    assert made["Location"] == "/api/v1/models/alice/classifier"
    read = api.get("models/alice/classifier")
    assert read.json() == made.json()
    assert read["ETag"] == made["ETag"]
    body = read.json()
    assert body["tags"] == {"stage": "lab"}
    assert body["latest_version"] is None
    assert body["downloads"] == 0


def test_names_are_found_without_regard_to_case(api, alice):
    make_model(alice, "Classifier")
    assert api.get("models/ALICE/classifier").json()["name"] == "Classifier"


def test_a_dataset_is_not_a_model(api, alice):
    make_model(alice, "digits", kind="dataset")
    assert api.get("datasets/alice/digits").json()["kind"] == "dataset"
    problem_of(api.get("models/alice/digits"), 404, "model_not_found")


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"surprise": 1}, "surprise", "unknown_field"),
        ({"summary": 5}, "summary", "wrong_type"),
        ({"tags": {"a": 1}}, "tags.a", "wrong_type"),
        ({"tags": []}, "tags", "wrong_type"),
        ({"visibility": "secret"}, "visibility", "not_a_choice"),
        ({"name": "a/b"}, "name", "bad_name"),
        ({"name": ""}, "name", "bad_name"),
        ({"name": None}, "name", "wrong_type"),
        ({"summary": "x" * 1001}, "summary", "too_long"),
        ({"summary": "\u202e"}, "summary", "bad_character"),
    ],
)
def test_a_wrong_field_is_named(api, change, field, code):
    refused = api.post("models", {"namespace": "alice", "name": "m", **change})
    assert refused.status_code == 400
    assert [(error["field"], error["code"]) for error in refused.json()["errors"]] == [
        (field, code)
    ]


def test_every_wrong_field_is_named_at_once(api):
    errors = api.post("models", {"one": 1, "name": 2}).json()["errors"]
    assert {error["field"] for error in errors} == {"one", "name", "namespace"}


def test_a_body_that_is_no_object_is_refused(api):
    for body in ([], "text", 5, None):
        assert (
            api.post("models", raw=b"null" if body is None else None, body=body or []).status_code
            == 400
        )


def test_a_taken_name_is_a_conflict(api, alice):
    make_model(alice, "classifier")
    refused = api.post("models", {"namespace": "alice", "name": "CLASSIFIER"})
    problem_of(refused, 409, "model_already_exists")


def test_a_namespace_that_is_not_there_is_named(api):
    body = problem_of(
        api.post("models", {"namespace": "nobody", "name": "m"}), 404, "namespace_not_found"
    )
    assert "nobody" in body["detail"]


def test_writing_elsewhere_is_denied(api, bob):
    problem_of(api.post("models", {"namespace": "bob", "name": "m"}), 403, "denied")


def test_a_model_is_described(api, alice):
    model = make_model(alice)
    before = api.get("models/alice/classifier")
    changed = api.patch("models/alice/classifier", {"summary": "New", "visibility": "private"})
    assert changed.status_code == 200
    assert changed.json()["summary"] == "New"
    assert changed.json()["visibility"] == "private"
    assert changed["ETag"] != before["ETag"] == model.etag


def test_a_renamed_model_is_found_under_its_old_name(api, alice):
    make_model(alice)
    assert api.patch("models/alice/classifier", {"name": "digits"}).status_code == 200
    assert api.get("models/alice/classifier").json()["name"] == "digits"


def test_null_changes_nothing_but_is_refused(api, alice):
    make_model(alice)
    refused = api.patch("models/alice/classifier", {"summary": None})
    assert problem_of(refused, 400, "invalid")["errors"][0]["code"] == "wrong_type"


def test_if_match_guards_a_change(api, alice):
    make_model(alice)
    etag = api.get("models/alice/classifier")["ETag"]
    headers = {"If-Match": etag}
    assert api.patch("models/alice/classifier", {"task": "a"}, headers=headers).status_code == 200
    late = api.patch("models/alice/classifier", {"task": "b"}, headers=headers)
    problem_of(late, 412, "precondition_failed")
    problem_of(api.delete("models/alice/classifier", headers=headers), 412, "precondition_failed")


def test_if_none_match_saves_the_body(api, alice):
    make_model(alice)
    etag = api.get("models/alice/classifier")["ETag"]
    again = api.get("models/alice/classifier", headers={"If-None-Match": f'"x", W/{etag}'})
    assert (again.status_code, again.content, again["ETag"]) == (304, b"", etag)


def test_a_deleted_model_is_gone(api, alice):
    make_model(alice)
    assert api.delete("models/alice/classifier").status_code == 204
    problem_of(api.get("models/alice/classifier"), 404, "model_not_found")


def test_head_answers_without_a_body(api, alice):
    make_model(alice)
    assert api.send("head", "models/alice/classifier").status_code == 200


def test_tags_have_an_end_and_lists_cut_them(api, alice, anonymous):
    make_model(alice, "one")
    tag = "models/alice/one/tags"
    for at in range(2):
        assert api.put(f"{tag}/long{at}", {"value": "x" * 100_000}).status_code == 200
    problem_of(api.put(f"{tag}/long2", {"value": "x" * 100_000}), 409, "too_many_tags")
    assert api.put(f"{tag}/long1", {"value": "y" * 100_000}).status_code == 200
    for at in range(catalog.MAX_TAGS - 2):
        assert api.put(f"{tag}/short{at}", {"value": "x"}).status_code == 200
    problem_of(api.put(f"{tag}/more", {"value": "x"}), 409, "too_many_tags")
    listed = anonymous.get("models")
    assert listed.json()["items"][0]["tags"]["long1"] == "y" * 256
    assert len(listed.content) < 100_000
    assert anonymous.get("models/alice/one").json()["tags"]["long1"] == "y" * 100_000
    new = {"namespace": "alice", "name": "two", "tags": {str(at): "" for at in range(101)}}
    problem_of(api.post("models", new), 400, "too_many")


def test_tags_are_set_and_deleted(api, alice):
    make_model(alice)
    tag = api.put("models/alice/classifier/tags/stage", {"value": "lab"})
    assert tag.json() == {"key": "stage", "value": "lab"}
    assert api.get("models/alice/classifier").json()["tags"] == {"stage": "lab"}
    assert api.delete("models/alice/classifier/tags/stage").status_code == 204
    problem_of(api.delete("models/alice/classifier/tags/stage"), 404, "tag_not_found")


def test_aliases_move_and_go(api, alice):
    model = make_model(alice)
    make_version(alice, model)
    make_version(alice, model)
    set_alias = api.put("models/alice/classifier/aliases/champion", {"version": 1})
    assert set_alias.json()["version"] == 1
    assert api.put("models/alice/classifier/aliases/champion", {"version": 2}).status_code == 200
    listed = api.get("models/alice/classifier/aliases").json()["items"]
    assert [(one["alias"], one["version"]) for one in listed] == [("champion", 2)]
    assert api.get("models/alice/classifier/aliases/champion").json()["version"] == 2
    assert api.get("models/alice/classifier/versions/@champion").json()["number"] == 2
    assert api.delete("models/alice/classifier/aliases/champion").status_code == 204
    problem_of(api.get("models/alice/classifier/aliases/champion"), 404, "alias_not_found")


@pytest.mark.parametrize("alias", ["latest", "3", "v3", "a b", "a.b"])
def test_an_alias_that_reads_like_something_else_is_refused(api, alice, alias):
    make_version(alice, make_model(alice))
    refused = api.put(f"models/alice/classifier/aliases/{alias}", {"version": 1})
    assert refused.status_code == 400


@pytest.mark.parametrize("version", [0, -1, "1", 1.5, True, None, 10**12])
def test_an_alias_needs_a_version_number(api, alice, version):
    make_version(alice, make_model(alice))
    refused = api.put("models/alice/classifier/aliases/a", {"version": version})
    assert problem_of(refused, 400, "invalid")["errors"][0]["field"] == "version"


def test_lists_have_facets_and_follow_their_cursor(api, alice):
    for number in range(5):
        make_model(alice, f"m{number}", task="a" if number % 2 else "b")
    first = api.get("models", query={"limit": 2, "sort": "name"})
    body = first.json()
    assert [item["name"] for item in body["items"]] == ["m0", "m1"]
    assert body["facets"]["total"] == 5
    assert {one["value"]: one["count"] for one in body["facets"]["task"]} == {"a": 2, "b": 3}
    assert f"cursor={body['next_cursor']}" in first["Link"]
    assert first["Link"].endswith('; rel="next"')
    names, url = [], first["Link"].partition("<")[2].partition(">")[0]
    while url:
        page = api.get(url.removeprefix("http://testserver"))
        names += [item["name"] for item in page.json()["items"]]
        url = page.headers.get("Link", "").partition("<")[2].partition(">")[0]
    assert names == ["m2", "m3", "m4"]


def test_lists_narrow(api, alice):
    make_model(alice, "one", task="a", tags={"team": "blue:sky"})
    make_model(alice, "two", task="b")
    make_version(alice, make_model(alice, "three"))

    def names(**query):
        return sorted(item["name"] for item in api.get("models", query=query).json()["items"])

    assert names(task="a") == ["one"]
    assert names(tag="team:blue:sky") == ["one"]
    assert names(tag=["team:blue:sky", "x:y"]) == []
    assert names(q="tw") == ["two"]
    assert names(format="safetensors") == ["three"]
    assert names(license="apache-2.0") == ["three"]
    assert names(min_params="1") == ["three"]
    assert names(max_bytes="1") == []
    assert names(owner="ALICE") == ["one", "three", "two"]
    assert names(owner="bob") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"sort": "colour"}, "sort"),
        ({"sort": "relevance"}, "sort"),
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "ten"}, "limit"),
        ({"limit": ["1", "2"]}, "limit"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "WyJ1cGRhdGVkIl0"}, "cursor"),
        ({"sort": "name", "cursor": "WyJuYW1lIiwiXHVkODAwIiwxXQ"}, "cursor"),
        ({"tag": "nocolon"}, "tag"),
        ({"colour": "red"}, "colour"),
        ({"min_params": "-1"}, "min_params"),
        ({"min_params": "9" * 30}, "min_params"),
        ({"q": "x" * 501}, "q"),
        ({"q": "tiny acuracy:>0.9"}, "q"),
        ({"q": "a\0b"}, "q"),
    ],
)
def test_a_wrong_filter_is_named(api, query, field):
    refused = api.get("models", query=query)
    assert refused.status_code == 400
    assert [error["field"] for error in refused.json()["errors"]] == [field]


def test_a_private_model_does_not_exist_for_others(alice, bob, anonymous):
    make_model(alice, "hidden", visibility="private")
    for caller in (api_of(bob), anonymous):
        hidden = caller.get("models/alice/hidden")
        absent = caller.get("models/alice/absent")
        assert hidden.status_code == absent.status_code == 404
        same = [
            {**r.json(), "request_id": "", "instance": "", "detail": r.json()["detail"]}
            for r in (hidden, absent)
        ]
        same[0]["detail"] = same[0]["detail"].replace("hidden", "absent")
        assert same[0] == same[1]
        assert caller.get("models").json()["items"] == []


def test_similar_ones_come_with_reasons_and_hide_what_is_hidden(api, anonymous, alice):
    for name, visibility in (("jazz", "public"), ("songs", "public"), ("secret", "private")):
        row = make_model(
            alice, name, visibility=visibility, task="audio", summary="Tags songs by genre"
        )
        make_version(alice, row)
    assert len(api.get("models/alice/jazz/similar").json()["items"]) == 2
    found = anonymous.get("models/alice/jazz/similar").json()["items"]
    assert [one["repository"]["name"] for one in found] == ["songs"]
    assert found[0]["reasons"] == ["same task", "its card has words in common"]
    assert anonymous.get("models/alice/secret/similar").status_code == 404
    suggestions = anonymous.get("models?q=songs").json()["suggestions"]
    assert suggestions is None
    make_version(alice, make_model(alice, "tunes", task="audio", summary="Tags songs by mood"))
    Repository.objects.filter(name="tunes").update(downloads_count=5)
    suggestions = anonymous.get("models?q=songs").json()["suggestions"]
    assert {one["name"]: one["reasons"] for one in suggestions} == {
        "songs": ["closest to what you ask for"],
        "tunes": ["downloaded most of these"],
    }
    assert api.get("models").json()["suggestions"] is None
