"""Versions over REST: registered from finished uploads, listed, read, described, compared."""

import pytest

from registry.models import Version
from registry.services import uploads, versions
from registry.storage import default_storage
from tests.factories import (
    actor_of,
    make_blob,
    make_model,
    make_version,
    safetensors_bytes,
)
from tests.registry.api.conftest import api_of, problem_of

pytestmark = pytest.mark.django_db

MODEL = "models/alice/classifier"


def make_upload(user, content):
    upload = uploads.begin_upload(actor=actor_of(user), length=len(content))
    stored = default_storage().put([content])
    return uploads.complete_upload(actor=actor_of(user), upload=upload, stored=stored)


@pytest.fixture
def model(alice):
    return make_model(alice)


def test_finished_uploads_become_a_version(api, alice, model):
    weights = make_upload(alice, safetensors_bytes(weight=[1.0, 2.0]))
    config = make_upload(alice, b'{"task": "image-classification"}')
    made = api.post(
        f"{MODEL}/versions",
        {
            "files": [
                {"path": "model.safetensors", "upload": str(weights.pk)},
                {"path": "config.json", "upload": str(config.pk)},
            ],
            "message": "first",
            "tags": {"seed": "1"},
        },
    )
    assert made.status_code == 201
    assert made["Location"] == "/api/v1/models/alice/classifier/versions/1"
    body = made.json()
    assert body == api.get(f"{MODEL}/versions/1").json()
    assert [file["path"] for file in body["files"]] == ["config.json", "model.safetensors"]
    assert body["files"][1]["sha256"] == weights.blob.sha256
    assert (body["number"], body["state"], body["message"]) == (1, "ready", "first")
    assert body["parameters_count"] == 2
    assert body["tags"] == {"seed": "1"}
    assert body["created_by"] == "alice"
    assert body["job"] is None
    assert len(body["revision"]) == 40
    assert api.get(MODEL).json()["latest_version"] == 1


def test_a_version_may_hold_metadata_alone(api, model):
    body = api.post(f"{MODEL}/versions", {"source": "s3://elsewhere/model"}).json()
    assert (body["files"], body["source"], body["size_bytes"]) == ([], "s3://elsewhere/model", 0)


def test_bytes_that_are_here_are_named_by_digest(api, alice, model):
    first = make_version(alice, model)
    digest = api.get(f"{MODEL}/versions/1").json()["files"][0]["sha256"]
    made = api.post(f"{MODEL}/versions", {"files": [{"path": "notes.md", "sha256": digest}]})
    assert made.json()["files"][0]["sha256"] == digest
    assert made.json()["number"] == first.number + 1


def test_knowing_a_digest_gives_nothing(api, bob, model):
    hidden = make_model(bob, "secret", visibility="private")
    version = make_version(bob, hidden, {"a.txt": b"a secret"})
    digest = version.revision.artifacts.get().blob.sha256
    for sha256 in (digest, "0" * 64):
        refused = api.post(f"{MODEL}/versions", {"files": [{"path": "a", "sha256": sha256}]})
        problem_of(refused, 404, "blob_not_found")


def test_somebody_elses_upload_is_not_there(api, bob, model):
    upload = make_upload(bob, b"theirs")
    refused = api.post(f"{MODEL}/versions", {"files": [{"path": "a", "upload": str(upload.pk)}]})
    problem_of(refused, 404, "upload_not_found")


def test_an_unfinished_upload_is_refused(api, alice, model):
    upload = uploads.begin_upload(actor=actor_of(alice), length=5)
    refused = api.post(f"{MODEL}/versions", {"files": [{"path": "a", "upload": str(upload.pk)}]})
    problem_of(refused, 400, "upload_unfinished")
    assert not Version.objects.exists()


@pytest.mark.parametrize(
    ("file", "status"),
    [
        ({}, 400),
        ({"path": "a"}, 400),
        ({"path": "a", "upload": "x"}, 400),
        ({"path": "a", "upload": 7}, 400),
        ({"path": "a", "sha256": "short"}, 400),
        ({"path": "a", "sha256": "0" * 64, "upload": "0" * 32}, 400),
        ({"path": 5, "sha256": "0" * 64}, 400),
        ({"path": "a", "sha256": "0" * 64, "mode": "x"}, 400),
        ("a", 400),
    ],
)
def test_a_wrong_file_is_named(api, model, file, status):
    refused = api.post(f"{MODEL}/versions", {"files": [file]})
    assert refused.status_code == status
    assert refused.json()["errors"][0]["field"].startswith("files.0")


@pytest.mark.parametrize("path", ["../a", "/a", "a\\b", "a/../b", "", "a\u202eb", "CON", "a//b"])
def test_a_path_that_leads_astray_is_refused(api, alice, model, path):
    upload = make_upload(alice, b"x")
    refused = api.post(f"{MODEL}/versions", {"files": [{"path": path, "upload": str(upload.pk)}]})
    problem_of(refused, 400, "bad_path")


def test_a_path_that_stands_there_twice_is_refused(api, alice, model):
    upload = str(make_upload(alice, b"x").pk)
    for paths in (["a", "a"], ["a", "A"]):
        files = [{"path": path, "upload": upload} for path in paths]
        assert api.post(f"{MODEL}/versions", {"files": files}).status_code == 400


def test_a_header_that_lies_is_refused(api, alice, model):
    lying = bytearray(safetensors_bytes(weight=[1.0, 2.0]))[:-4]
    upload = make_upload(alice, bytes(lying))
    refused = api.post(
        f"{MODEL}/versions", {"files": [{"path": "model.safetensors", "upload": str(upload.pk)}]}
    )
    problem_of(refused, 400, "malformed_file")
    assert not Version.objects.exists()


def test_history_is_newest_first_and_can_leave_variants_out(api, alice, model):
    make_version(alice, model, {})
    make_version(alice, model, {"a": b"1"}, variant="int8")
    make_version(alice, model, {"b": b"2"})
    page = api.get(f"{MODEL}/versions", query={"limit": 2})
    assert [one["number"] for one in page.json()["items"]] == [3, 2]
    assert page.json()["items"][0]["files"][0]["path"] == "b"
    rest = api.get(f"{MODEL}/versions", query={"cursor": page.json()["next_cursor"]}).json()
    assert [one["number"] for one in rest["items"]] == [1]
    assert rest["next_cursor"] is None
    main = api.get(f"{MODEL}/versions", query={"with_variants": "false"}).json()
    assert [one["number"] for one in main["items"]] == [3, 1]
    assert api.get(f"{MODEL}/versions", query={"state": "failed"}).json()["items"] == []
    assert api.get(f"{MODEL}/versions", query={"state": "odd"}).status_code == 400
    assert api.get(f"{MODEL}/versions", query={"with_variants": "odd"}).status_code == 400


def test_a_page_of_versions_with_very_many_files_ends_early(api, alice, model, monkeypatch):
    monkeypatch.setattr("registry.api.v1.wire._FILES_ON_A_PAGE", 3)
    for _ in range(3):
        make_version(alice, model, {"a": b"1", "b": b"2"})
    page = api.get(f"{MODEL}/versions").json()
    assert [one["number"] for one in page["items"]] == [3]
    rest = api.get(f"{MODEL}/versions", query={"cursor": page["next_cursor"]}).json()
    assert [one["number"] for one in rest["items"]] == [2]


def test_latest_never_means_a_variant(api, alice, model):
    make_version(alice, model, {})
    make_version(alice, model, {}, variant="int8")
    assert api.get(f"{MODEL}/versions/latest").json()["number"] == 1


@pytest.mark.parametrize(
    "reference", ["2", "0", "@nobody", "@", "abc", "1.0", "-1", "9" * 12, "\u0661"]
)
def test_a_version_that_is_not_there(api, alice, model, reference):
    make_version(alice, model, {})
    problem_of(api.get(f"{MODEL}/versions/{reference}"), 404, "version_not_found")


def test_a_renamed_models_versions_are_found(api, alice, model):
    make_version(alice, model, {})
    api.patch(MODEL, {"name": "other"})
    assert api.get(f"{MODEL}/versions/1").json()["name"] == "other"


def test_a_version_of_a_hidden_model_is_not_there(alice, bob):
    hidden = make_model(alice, "hidden", visibility="private")
    make_version(alice, hidden, {})
    problem_of(api_of(bob).get("models/alice/hidden/versions/1"), 404, "model_not_found")


def test_a_version_is_described(api, alice, model):
    make_version(alice, model, {})
    before = api.get(f"{MODEL}/versions/1")
    headers = {"If-Match": before["ETag"]}
    change = {"message": "better", "state": "deprecated", "state_reason": "old"}
    changed = api.patch(f"{MODEL}/versions/1", change, headers=headers)
    assert {name: changed.json()[name] for name in change} == change
    late = api.patch(f"{MODEL}/versions/1", {"message": "late"}, headers=headers)
    problem_of(late, 412, "precondition_failed")
    assert api.patch(f"{MODEL}/versions/1", {"state": "quarantined"}).status_code == 400
    assert api.patch(f"{MODEL}/versions/1", {"files": []}).status_code == 400


def test_an_unchanged_version_is_not_sent_again(api, alice, model):
    make_version(alice, model, {})
    etag = api.get(f"{MODEL}/versions/1")["ETag"]
    headers = {"If-None-Match": etag}
    assert api.get(f"{MODEL}/versions/1", headers=headers).status_code == 304
    api.put(f"{MODEL}/versions/1/tags/seed", {"value": "1"})
    tagged = api.get(f"{MODEL}/versions/1", headers=headers)
    assert tagged.json()["tags"] == {"seed": "1"}


def test_an_alias_changes_the_version_it_leaves_and_the_one_it_names(api, alice, model):
    make_version(alice, model, {})
    make_version(alice, model, {})
    api.put(f"{MODEL}/aliases/champion", {"version": 1})
    etags = [api.get(f"{MODEL}/versions/{number}")["ETag"] for number in (1, 2)]
    api.put(f"{MODEL}/aliases/champion", {"version": 2})
    for number, etag, aliases in ((1, etags[0], []), (2, etags[1], ["champion"])):
        read = api.get(f"{MODEL}/versions/{number}", headers={"If-None-Match": etag})
        assert read.status_code == 200
        assert read.json()["aliases"] == aliases


def test_a_version_is_deleted_once_nothing_points_at_it(api, alice, model):
    make_version(alice, model, {})
    api.put(f"{MODEL}/aliases/champion", {"version": 1})
    problem_of(api.delete(f"{MODEL}/versions/1"), 409, "version_aliased")
    api.delete(f"{MODEL}/aliases/champion")
    assert api.delete(f"{MODEL}/versions/1").status_code == 204
    problem_of(api.get(f"{MODEL}/versions/1"), 404, "version_not_found")
    assert api.post(f"{MODEL}/versions", {}).json()["number"] == 2


def test_declared_numbers_have_an_end(api, alice, model, monkeypatch):
    version = make_version(alice, model)
    address = f"models/{model}/versions/{version.number}"
    long = {"metric": "accuracy", "value": 1, "details": {"note": "x" * 5000}}
    problem_of(api.post(f"{address}/evaluations", long), 400, "too_long")
    monkeypatch.setattr(versions, "MAX_DECLARED", 2)
    number = {"metric": "accuracy", "value": 1}
    for _ in range(2):
        assert api.post(f"{address}/evaluations", number).status_code == 201
    problem_of(api.post(f"{address}/evaluations", number), 409, "too_many_evaluations")
    assert api.put(f"{address}/tags/long", {"value": "x" * 1000}).status_code == 200
    (listed,) = api.get(f"models/{model}/versions").json()["items"]
    assert listed["tags"] == {"long": "x" * 256}
    assert api.get(address).json()["tags"] == {"long": "x" * 1000}


def test_tags_of_a_version(api, alice, model):
    make_version(alice, model, {})
    assert api.put(f"{MODEL}/versions/1/tags/a", {"value": "b"}).json() == {
        "key": "a",
        "value": "b",
    }
    assert api.put(f"{MODEL}/versions/1/tags/a", {"value": 1}).status_code == 400
    assert api.put(f"{MODEL}/versions/1/tags/a", {}).status_code == 400
    assert api.delete(f"{MODEL}/versions/1/tags/a").status_code == 204
    problem_of(api.delete(f"{MODEL}/versions/1/tags/a"), 404, "tag_not_found")


def test_files_are_listed_in_pages(api, alice, model):
    make_version(alice, model, {"a": b"1", "b/c": b"2", "d": b"3"})
    first = api.get(f"{MODEL}/versions/1/files", query={"limit": 2}).json()
    assert [file["path"] for file in first["items"]] == ["a", "b/c"]
    rest = api.get(f"{MODEL}/versions/1/files", query={"cursor": first["next_cursor"]}).json()
    assert [file["path"] for file in rest["items"]] == ["d"]


def test_lineage_shows_only_what_the_reader_may_see(alice, bob, api, model):
    parent = make_version(alice, model, {"a": b"1"})
    hidden = make_version(alice, make_model(alice, "hidden", visibility="private"), {})
    child = versions.create_version(
        actor=actor_of(alice),
        repository=model,
        files={"a": make_blob(b"2")},
        parents=[
            versions.ParentSpec(version=parent, role="weights"),
            versions.ParentSpec(version=hidden, role="teacher"),
        ],
    )
    mine = api.get(f"{MODEL}/versions/{child.number}/lineage").json()
    assert [(one["name"], one["role"]) for one in mine["parents"]] == [
        ("classifier", "weights"),
        ("hidden", "teacher"),
    ]
    theirs = api_of(bob).get(f"{MODEL}/versions/{child.number}/lineage").json()
    assert [one["role"] for one in theirs["parents"]] == ["weights"]
    below = api.get(f"{MODEL}/versions/{parent.number}/lineage").json()
    assert [one["number"] for one in below["children"]] == [child.number]
    assert api.get(f"{MODEL}/lineage").json() == mine


def test_parents_are_declared(api, alice, model):
    data = make_version(alice, make_model(alice, "digits", kind="dataset"), {"a": b"1"})
    body = {"parents": [{"kind": "dataset", "version": "alice/digits@1", "role": "data"}]}
    assert api.post(f"{MODEL}/versions", body).status_code == 201
    (parent,) = api.get(f"{MODEL}/versions/1/lineage").json()["parents"]
    assert (parent["kind"], parent["name"], parent["number"]) == ("dataset", "digits", data.number)
    body["parents"][0]["version"] = "alice/digits@7"
    problem_of(api.post(f"{MODEL}/versions", body), 404, "version_not_found")
    body["parents"][0]["version"] = "no slash"
    assert api.post(f"{MODEL}/versions", body).status_code == 400


def test_two_versions_are_compared(api, alice, model):
    make_version(alice, model, {"a": b"1", "b": b"2", "c": b"3"}, tags={"x": "1", "y": "1"})
    make_version(alice, model, {"a": b"1", "b": b"changed", "d": b"4"}, tags={"x": "2", "z": "1"})
    for number, value in ((1, 0.5), (2, 0.75)):
        api.post(f"{MODEL}/versions/{number}/evaluations", {"metric": "accuracy", "value": value})
    diff = api.get(f"{MODEL}/versions/1/diff/2").json()
    assert [file["path"] for file in diff["files"]["added"]] == ["d"]
    assert [file["path"] for file in diff["files"]["removed"]] == ["c"]
    assert [file["path"] for file in diff["files"]["changed"]] == ["b"]
    assert diff["files"]["unchanged_count"] == 1
    assert diff["tags"] == {
        "added": {"z": "1"},
        "removed": {"y": "1"},
        "changed": {"x": {"before": "1", "after": "2"}},
    }
    (metric,) = diff["metrics"]
    assert (metric["metric"], metric["before"], metric["after"]) == ("accuracy", 0.5, 0.75)
    problem_of(api.get(f"{MODEL}/versions/1/diff/9"), 404, "version_not_found")


def beside(api, *versions, model=MODEL, **query):
    return api.get(f"{model}/compare", query={"version": versions, **query})


def test_versions_are_set_beside_each_other(api, alice, model):
    make_version(alice, model, {"a": b"1", "b": b"2"}, tags={"x": "1", "y": "1"})
    make_version(alice, model, {"a": b"1", "b": b"3"}, tags={"x": "2", "y": "1"})
    other = make_version(alice, make_model(alice, "other"), {"a": b"1", "b": b"2"})
    api.put(f"{MODEL}/aliases/champion", {"version": 2})
    for number, value in ((1, 0.9501), (2, 0.9504)):
        api.post(f"{MODEL}/versions/{number}/evaluations", {"metric": "accuracy", "value": value})
    said = beside(api, "1", "@champion", "alice/other").json()
    names = [(one["name"], one["number"]) for one in said["versions"]]
    assert names == [("classifier", 1), ("classifier", 2), ("other", other.number)]
    lines = {(s["name"], line["name"]): line for s in said["sections"] for line in s["lines"]}
    assert lines["metrics", "accuracy"]["values"] == [0.9501, 0.9504, None]
    assert lines["metrics", "accuracy"]["best"] == [False, True, False]
    assert lines["tags", "x"]["values"] == ["1", "2", None]
    assert lines["facts", "aliases"]["values"] == [[], ["champion"], []]
    assert lines["facts", "size_bytes"]["values"] == [2, 2, 2]
    digests = [held["sha256"] for held in lines["files", "b"]["values"]]
    assert digests[0] == digests[2] != digests[1]
    assert not lines["files", "a"]["differs"]

    only = beside(api, "alice/classifier@1", "2", differences_only="true").json()
    kept = {s["name"]: [line["name"] for line in s["lines"]] for s in only["sections"]}
    assert (kept["metrics"], kept["tags"], kept["files"]) == (["accuracy"], ["x"], ["b"])
    assert "size_bytes" not in kept["facts"]
    assert {s["name"]: s["alike_count"] for s in only["sections"]}["tags"] == 1


def test_versions_beside_each_other_are_named_well(api, alice, bob, model):
    for _ in range(7):
        make_version(alice, model, {})
    make_version(alice, make_model(alice, "hidden", visibility="private"), {})
    assert len(beside(api, *"123456").json()["versions"]) == 6
    problem_of(beside(api, *"1234567"), 400, "wrong_length")
    problem_of(beside(api, "1"), 400, "wrong_length")
    problem_of(beside(api), 400, "wrong_length")
    problem_of(beside(api, "1", "1"), 400, "repeated")
    problem_of(beside(api, "7", "latest"), 400, "repeated")
    problem_of(beside(api, "1", "alice/classifier@1"), 400, "repeated")
    problem_of(beside(api, "1", "no name/at@all@"), 400, "bad_reference")
    problem_of(beside(api, "1", "99"), 404, "version_not_found")
    problem_of(beside(api, "1", "@none"), 404, "version_not_found")
    problem_of(beside(api, "1", "2", differences_only="perhaps"), 400, "invalid")
    theirs = api_of(bob)
    hidden = problem_of(beside(theirs, "1", "alice/hidden@1"), 404, "model_not_found")
    nothing = problem_of(beside(theirs, "1", "alice/nothing@1"), 404, "model_not_found")
    assert hidden["detail"].replace("hidden", "nothing") == nothing["detail"]
    problem_of(beside(theirs, "1", "2", model="models/alice/hidden"), 404, "model_not_found")
    assert beside(api, "1", "alice/hidden@1").status_code == 200


def test_what_archived_versions_hold_is_not_told_beside_others(api, alice, bob, model):
    make_version(alice, model, {"config.json": b'{"labels": ["cat"]}'})
    make_version(alice, model, {"config.json": b'{"labels": ["secret"]}'})
    api.patch(f"{MODEL}/versions/1", {"state": "archived"})
    assert "cat" in beside(api, "1", "2").content.decode()
    assert "cat" not in beside(api_of(bob), "1", "2").content.decode()


def test_numbers_are_declared_and_listed(api, alice, bob, model):
    make_version(alice, model, {})
    make_version(alice, make_model(alice, "private-digits", kind="dataset", visibility="private"))
    declared = {
        "metric": "accuracy",
        "value": 0.9,
        "n": 100,
        "low": 0.8,
        "high": 0.95,
        "split": "test",
        "dataset": "alice/private-digits@1",
        "details": {"seed": 1},
    }
    made = api.post(f"{MODEL}/versions/1/evaluations", declared)
    assert made.status_code == 201
    assert {name: made.json()[name] for name in declared} == declared
    assert made.json()["measured"] is False
    api.post(f"{MODEL}/versions/1/evaluations", {"metric": "f1", "value": 1})
    page = api.get(f"{MODEL}/versions/1/evaluations", query={"limit": 1}).json()
    assert [one["metric"] for one in page["items"]] == ["f1"]
    rest = api.get(f"{MODEL}/versions/1/evaluations", query={"cursor": page["next_cursor"]}).json()
    assert [one["metric"] for one in rest["items"]] == ["accuracy"]
    seen = api_of(bob).get(f"{MODEL}/versions/1/evaluations", query={"metric": "accuracy"}).json()
    assert seen["items"][0]["dataset"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"value": "0.9"},
        {"value": None},
        {"value": True},
        {"metric": ""},
        {"metric": "x" * 65},
        {"n": -1},
        {"n": 1.5},
        {"n": 2**63},
        {"details": []},
        {"dataset": "no slash"},
        {"measured": True},
    ],
)
def test_a_wrong_number_is_refused(api, alice, model, change):
    make_version(alice, model, {})
    refused = api.post(
        f"{MODEL}/versions/1/evaluations", {"metric": "accuracy", "value": 0.9, **change}
    )
    assert refused.status_code == 400
    assert refused.json()["errors"]


def test_a_form_is_for_the_stream_door(api, model):
    refused = api.post(
        f"{MODEL}/versions",
        raw=b"--x--",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    problem_of(refused, 415, "unsupported_media_type")
