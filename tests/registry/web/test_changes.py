"""What the forms change, and what they refuse."""

import re
from urllib.parse import urlencode

import pytest
from django.utils import timezone

from registry.models import Alias, Event, Job, Repository, Tag, Version
from registry.services import catalog, versions
from registry.services.uploads import begin_upload, record_uploads
from registry.storage import default_storage
from tests.factories import actor_of, make_blob, safetensors_bytes

pytestmark = pytest.mark.django_db

MODEL = "/models/olga/digits-cnn"


def uploaded(user, **files):
    """Name finished uploads as the form of the page does."""
    stored = {path: default_storage().put([content]) for path, content in files.items()}
    uploads = record_uploads(actor=actor_of(user), files=stored)
    return {
        "upload": [str(upload.pk) for upload in uploads],
        "path": [upload.filename for upload in uploads],
    }


def page_after(client, response):
    assert response.status_code == 302, response.content.decode()[:2000]
    return client.get(response["Location"]).content.decode()


def test_a_refused_tag_or_alias_keeps_what_was_typed(as_owner, model):
    refused = as_owner.post(f"{MODEL}/tags", {"key": "", "value": "four words of mine"})
    page = page_after(as_owner, refused)
    assert 'value="four words of mine"' in page
    assert "four words of mine" not in as_owner.get(MODEL).content.decode()
    refused = as_owner.post(f"{MODEL}/aliases", {"alias": "so so", "version": "1"})
    page = page_after(as_owner, refused)
    assert 'value="so so"' in page
    sent = {"key": "", "value": "seen here", "version": "2", "page": "2"}
    refused = as_owner.post(f"{MODEL}/tags", sent)
    assert refused["Location"].endswith("/versions/2")
    assert 'value="seen here"' in page_after(as_owner, refused)


def test_register_then_upload(as_owner, owner):
    form = {"namespace": "olga", "name": "fresh", "visibility": "private", "task": "translation"}
    response = as_owner.post("/models/new", form)
    assert response["Location"] == "/models/olga/fresh/versions/new"
    assert Repository.objects.get(name="fresh").visibility == "private"
    weights = safetensors_bytes(w=[1.0])
    files = uploaded(owner, **{"model.safetensors": weights, "README.md": b"# Hello"})
    sent = as_owner.post(response["Location"], {"message": "First.", **files})
    page = page_after(as_owner, sent)
    assert "Version 1 is registered." in page
    assert "model.safetensors" in page


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a/b"}, "holds a slash"),
        ({"name": ""}, "This field is required"),
        ({"name": "digits-cnn"}, "already exists"),
        ({"namespace": "stan"}, "Select a valid choice"),
    ],
)
def test_bad_registration_names_the_field(as_owner, model, stranger, fields, words):
    form = {"namespace": "olga", "name": "ok", "visibility": "public", **fields}
    response = as_owner.post("/models/new", form)
    assert response.status_code == 200
    assert words in response.content.decode()


def test_broken_file_is_refused_and_nothing_written(as_owner, owner, model):
    lying = b"\xff\xff\xff\xff\xff\xff\xff\x00{}"
    twice = uploaded(owner, **{"a.txt": b"a", "b.txt": b"b"}) | {"path": ["a.txt", "a.txt"]}
    unpaired = uploaded(owner, **{"a.txt": b"a"}) | {"path": []}
    for files, words in (
        ({}, "Choose at least one file."),
        (uploaded(owner, **{"model.safetensors": lying}), "model.safetensors"),
        (twice, "has the file &#x27;a.txt&#x27; twice"),
        (unpaired, "choose those files again"),
    ):
        response = as_owner.post(f"{MODEL}/versions/new", files)
        assert response.status_code == 422
        assert words in response.content.decode()
    assert Version.objects.filter(repository=model).count() == 3


def test_a_refused_form_still_names_the_files_that_arrived(as_owner, owner, model):
    files = uploaded(owner, **{"a.txt": b"a"})
    response = as_owner.post(f"{MODEL}/versions/new", {"variant": "\u202e", **files})
    page = response.content.decode()
    assert response.status_code == 422
    assert f'name="upload" value="{files["upload"][0]}"' in page
    assert 'name="path" value="a.txt"' in page


def test_uploads_of_others_cannot_be_used(as_owner, model, stranger):
    theirs = begin_upload(actor=actor_of(stranger), length=5, filename="a")
    for upload in (str(theirs.pk), "not-an-id"):
        response = as_owner.post(f"{MODEL}/versions/new", {"upload": [upload], "path": ["a"]})
        assert response.status_code == 422


def test_tags_are_set_deleted_and_undone(as_owner, model):
    assert "The tag color is set" in page_after(
        as_owner, as_owner.post(f"{MODEL}/tags", {"key": "color", "value": "blue"})
    )
    page = page_after(as_owner, as_owner.post(f"{MODEL}/tags/delete", {"key": "color"}))
    assert not Tag.objects.filter(key="color").exists()
    assert "Undo" in page
    form = page[page.index('class="notice') : page.index("Undo")]
    fields = dict(re.findall(r'name="(key|value)" value="([^"]*)"', form))
    as_owner.post(re.search(r'action="([^"]+)"', form).group(1), fields)
    assert Tag.objects.get(key="color").value == "blue"
    assert "Undo" not in as_owner.get(MODEL).content.decode()


def test_version_tags_stay_with_the_version(as_owner, model):
    form = {"key": "passed", "value": "yes", "version": "2", "page": "2"}
    response = as_owner.post(f"{MODEL}/tags", form)
    assert response["Location"] == f"{MODEL}/versions/2"
    assert Tag.objects.get(key="passed").version.number == 2


def test_aliases_move(as_owner, model):
    page_after(as_owner, as_owner.post(f"{MODEL}/aliases", {"alias": "@champion", "version": "1"}))
    assert Alias.objects.get(name="champion").version.number == 1
    refused = as_owner.post(f"{MODEL}/aliases", {"alias": "latest", "version": "1"})
    assert "is reserved" in page_after(as_owner, refused)
    gone = as_owner.post(f"{MODEL}/aliases/delete", {"alias": "champion"})
    assert "Undo" in page_after(as_owner, gone)
    assert not Alias.objects.filter(name="champion").exists()


def test_strangers_change_nothing(as_stranger, stranger, client, model):
    posts = [
        ("/tags", {"key": "a", "value": "b"}),
        ("/tags/delete", {"key": "team"}),
        ("/aliases", {"alias": "x", "version": "1"}),
        ("/aliases/delete", {"alias": "champion"}),
        ("/settings", {"name": "x", "visibility": "private"}),
        ("/delete", {"confirm": "olga/digits-cnn"}),
        ("/versions/new", uploaded(stranger, **{"a.txt": b"a"})),
        ("/versions/2/edit", {"message": "mine now"}),
        ("/versions/3/delete", {"confirm": "olga/digits-cnn@3"}),
    ]
    for path, form in posts:
        assert as_stranger.post(MODEL + path, form).status_code in {302, 403}, path
        assert client.post(MODEL + path, form)["Location"].startswith("/login"), path
    model.refresh_from_db()
    assert model.deleted_at is None
    assert model.name == "digits-cnn"
    assert Tag.objects.filter(version=None).count() == 1
    assert Alias.objects.get().version.number == 2
    assert Version.objects.live().count() == 3
    assert not Version.objects.filter(message="mine now").exists()


def test_delete_asks_for_the_name(as_owner, model):
    page = page_after(as_owner, as_owner.post(f"{MODEL}/delete", {"confirm": "digits-cnn"}))
    assert "Nothing was deleted" in page
    as_owner.post(f"{MODEL}/aliases/delete", {"alias": "champion"})
    page = page_after(as_owner, as_owner.post(f"{MODEL}/delete", {"confirm": "olga/digits-cnn"}))
    assert "olga/digits-cnn is deleted" in page
    assert as_owner.get(MODEL).status_code == 404


def test_version_is_described_and_deleted(as_owner, model):
    form = {"message": "Better words.", "state": "deprecated", "state_reason": ""}
    refused = as_owner.post(f"{MODEL}/versions/1/edit", form)
    assert refused.status_code == 422
    assert "Say why olga/digits-cnn@1 is deprecated" in refused.content.decode()
    # What was typed is still there.
    assert "Better words.</textarea>" in refused.content.decode()
    form["state_reason"] = "It confuses 3 with 8; use version 2."
    page = page_after(as_owner, as_owner.post(f"{MODEL}/versions/1/edit", form))
    for words in ("Better words.", "Deprecated", form["state_reason"]):
        assert words in page
    wrong = as_owner.post(f"{MODEL}/versions/2/delete", {"confirm": "olga/digits-cnn@2"})
    assert "has the alias" in page_after(as_owner, wrong)
    gone = as_owner.post(f"{MODEL}/versions/1/delete", {"confirm": "olga/digits-cnn@1"})
    assert "is deleted" in page_after(as_owner, gone)
    assert as_owner.get(f"{MODEL}/versions/1").status_code == 404


def sent_from(page, **typed):
    """Fill in a form of a page, hidden fields with what it showed included."""
    hidden = re.findall(r'<input type="hidden" name="(initial-\w+)"(?: value="([^"]*)")?', page)
    shown = {name.removeprefix("initial-"): value for name, value in hidden}
    return {**dict(hidden), **shown, **typed}


def test_a_form_that_was_open_for_long_takes_nothing_back(as_owner, owner, model):
    page = as_owner.get(f"{MODEL}/settings").content.decode()
    actor = actor_of(owner)
    catalog.describe_repository(actor=actor, repository=model, changes={"visibility": "private"})
    as_owner.post(f"{MODEL}/settings", sent_from(page, summary="Reads digits."))
    model.refresh_from_db()
    assert (model.visibility, model.summary) == ("private", "Reads digits.")

    page = as_owner.get(f"{MODEL}/versions/1").content.decode()
    version = Version.objects.get(repository=model, number=1)
    deprecated = {"state": "deprecated", "state_reason": "It drifts."}
    versions.describe_version(actor=actor, version=version, changes=deprecated)
    as_owner.post(f"{MODEL}/versions/1/edit", sent_from(page, message="A typo less."))
    version.refresh_from_db()
    assert (version.state, version.message) == ("deprecated", "A typo less.")


def test_the_audit_log_says_who_could_see_a_model_before(as_owner, model):
    as_owner.post(f"{MODEL}/settings", {"name": "digits-cnn", "visibility": "private"})
    said = Event.objects.filter(action="model.describe").latest("pk").data
    assert (said["visibility_before"], said["visibility"]) == ("public", "private")


COMPRESS = {
    "model": "olga/digits-cnn@2",
    "steps.0.per_channel": "on",
    "steps.0.reduce_range": "on",
    "device": "cpu",
}


def test_job_form_submits_the_recipe(as_owner, model):
    response = as_owner.post("/jobs/new?kind=compress&way=quantize_dynamic", COMPRESS)
    assert response.status_code == 302, response.content.decode()
    job = Job.objects.get()
    assert response["Location"] == f"/jobs/{job.pk}"
    assert job.recipe["model"] == "olga/digits-cnn@2"
    step = job.recipe["steps"][0]
    assert (step["method"], step["per_channel"], step["embeddings"]) == (
        "quantize_dynamic",
        True,
        False,
    )


def test_training_form_asks_for_an_architecture(as_owner, model, dataset):
    page = as_owner.get("/jobs/new?kind=train&way=text_classifier").content.decode()
    assert 'name="architecture.vocabulary_size"' in page
    assert 'value="20000"' in page
    again = as_owner.get("/jobs/new?kind=train&model=olga/digits-cnn@2").content.decode()
    assert 'name="architecture.vocabulary_size"' not in again
    assert 'value="olga/digits-cnn@2"' in again


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "olga/nowhere@1"}, "There is no model"),
        ({"model": "not a name"}, "Write namespace/name"),
        ({"model": ""}, "This field is required"),
        ({"variant": "Has Spaces"}, "Must match"),
    ],
)
def test_bad_recipe_names_the_field(as_owner, model, fields, words):
    response = as_owner.post("/jobs/new?kind=compress", {**COMPRESS, **fields})
    assert response.status_code == 422
    assert words in response.content.decode()
    assert not Job.objects.exists()


@pytest.mark.parametrize("value", ["1000000000", "-1", "many"])
def test_numbers_of_a_recipe_are_bounded(as_owner, dataset, value):
    form = {"dataset": "olga/digits@1", "output": "olga/new", "steps.0.epochs": value}
    response = as_owner.post("/jobs/new?kind=train&way=digits_cnn", form)
    assert response.status_code == 422
    assert not Job.objects.exists()


def test_learning_rate_must_be_a_number(as_owner, dataset):
    form = {"dataset": "olga/digits@1", "output": "olga/new", "steps.0.learning_rate": "nan"}
    response = as_owner.post("/jobs/new?kind=train&way=digits_cnn", form)
    assert response.status_code == 422


def test_cancel_says_so(as_owner, model):
    address = as_owner.post("/jobs/new?kind=compress", COMPRESS)["Location"]
    page = page_after(as_owner, as_owner.post(f"{address}/cancel"))
    assert "Cancelled" in page or "being cancelled" in page
    assert "hx-sse:connect" not in page


def test_finished_job_tells_the_live_part_to_stop(as_owner, model):
    address = as_owner.post("/jobs/new?kind=compress", COMPRESS)["Location"]
    assert "HX-Refresh" not in as_owner.get(f"{address}?part=live")
    as_owner.post(f"{address}/cancel")
    assert as_owner.get(f"{address}?part=live")["HX-Refresh"] == "true"


def test_sign_in_and_out(client, owner):
    wrong = client.post("/login", {"username": "olga", "password": "nope"})
    assert "Name or password is wrong" in wrong.content.decode()
    right = {"username": "olga", "password": "correct horse battery", "next": "/jobs"}
    assert client.post("/login", right)["Location"] == "/jobs"
    elsewhere = {**right, "next": "https://evil.example/"}
    client.post("/logout")
    assert client.post("/login", elsewhere)["Location"] == "/"
    assert client.post("/logout")["Location"] == "/"
    assert client.get("/jobs").status_code == 302


@pytest.mark.parametrize(("address", "home"), [("/login", "/"), ("/zh-hans/login", "/zh-hans/")])
def test_whoever_is_signed_in_is_never_led_back_to_sign_in(as_owner, address, home):
    answer = as_owner.get(f"{address}?next={address}")
    assert (answer.status_code, answer["Location"]) == (302, home)


def test_blob_of_a_form_is_kept_once(as_owner, owner, model):
    before = make_blob(b"same bytes")
    as_owner.post(f"{MODEL}/versions/new", uploaded(owner, **{"notes.txt": b"same bytes"}))
    newest = Version.objects.order_by("-number").first()
    assert newest.revision.artifacts.get().blob_id == before.pk


@pytest.mark.parametrize(
    ("state", "step", "expected"),
    [
        ("queued", "", ["now", "", "", ""]),
        ("running", "", ["done", "now", "", ""]),
        ("running", "compare", ["done", "done", "now", ""]),
        ("succeeded", "done", ["done"] * 4),
        ("failed", "quantize_dynamic", ["done", "failed", "", ""]),
        ("running", "polish", ["done", "done", "done", "now", ""]),
    ],
)
def test_stepper_says_where_a_job_stands(as_owner, model, state, step, expected):
    address = as_owner.post("/jobs/new?kind=compress", COMPRESS)["Location"]
    moment = timezone.now()
    Job.objects.update(
        state=state,
        progress={"done": 1, "total": 4, "unit": "stages", "step": step},
        started_at=None if state == "queued" else moment,
        lease_expires_at=moment,
    )
    page = as_owner.get(f"{address}?part=live").content.decode()
    assert (
        re.findall(r'<li class="([a-z]*)"', page[page.index('class="steps"') :])[: len(expected)]
        == expected
    )


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "\u202e", "x" * 5000, "", "../..", "{{ 1 }}"])
def test_hostile_texts_never_break_a_page(as_owner, model, text):
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    posts = {
        "/models/new": {"namespace": "olga", "name": text, "visibility": text, "summary": text},
        f"{MODEL}/settings": {"name": text, "visibility": "public", "task": text},
        f"{MODEL}/tags": {"key": text, "value": text, "version": text},
        f"{MODEL}/tags/delete": {"key": text},
        f"{MODEL}/aliases": {"alias": text, "version": text},
        f"{MODEL}/aliases/delete": {"alias": text, "page": text},
        f"{MODEL}/versions/new": {"message": text, "upload": text, "path": text},
        f"{MODEL}/versions/2/edit": {"message": text, "state": text},
        f"{MODEL}/versions/2/delete": {"confirm": text},
        f"{MODEL}/delete": {"confirm": text},
        "/jobs/new?kind=infer": {"model": text, "dataset": text, "output": text},
        "/settings/tokens": {"name": text, "scopes": text, "days": text},
        "/login": {"username": text, "password": text, "next": text},
    }
    for address, form in posts.items():
        response = as_owner.post(address, form)
        assert response.status_code in {200, 302, 400, 404, 422}, address
    query = urlencode(dict.fromkeys(("q", "sort", "task", "cursor", "tab", "version", "x"), text))
    for address in ("/models", MODEL, f"{MODEL}/versions/2", "/jobs", "/jobs/new"):
        assert as_owner.get(f"{address}?{query}").status_code in {200, 400, 404}, address
