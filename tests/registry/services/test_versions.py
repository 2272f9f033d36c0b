import json
import threading

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.models import ANONYMOUS, Blob, Repository, Version, VersionState
from registry.services import blobs, catalog, transfers, uploads, versions
from registry.storage import default_storage
from tests.factories import (
    UserFactory,
    actor_of,
    make_blob,
    make_model,
    make_version,
    safetensors_bytes,
)
from tests.registry.formats import samples
from tests.registry.formats.samples import zipped

pytestmark = pytest.mark.django_db

PICKLE = b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."


@pytest.fixture
def alice():
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    return make_model(alice)


def test_a_version_carries_its_facts_and_its_card_fills_the_model(alice, model):
    version = make_version(alice, model, message="first", tags={"run": "7"})
    assert (version.number, version.state, version.parameters_count) == (1, "ready", 3)
    assert version.formats == ["safetensors"]
    model.refresh_from_db()
    assert (model.license, model.task, model.library) == (
        "apache-2.0",
        "image-classification",
        "pytorch",
    )
    assert model.labels == ["digits", "vision"]
    assert (model.latest_number, model.parameters_count) == (1, 3)
    assert model.refs.get(name="main").revision == version.revision
    assert (
        versions.read_card(actor_of(alice), version).body.strip().endswith("It tells digits apart.")
    )


def test_the_numbers_of_a_dataset_are_rows_not_parameters(alice):
    dataset = make_model(alice, kind="dataset")
    assert make_version(alice, dataset).parameters_count is None


def test_a_variant_never_becomes_the_latest(alice, model):
    parent = make_version(alice, model)
    variant = make_version(
        alice,
        model,
        variant="int8",
        parents=[versions.ParentSpec(version=parent, role="weights")],
    )
    model.refresh_from_db()
    assert (variant.number, model.latest_number) == (2, 1)
    assert model.refs.get(name="main").revision == parent.revision
    assert catalog.find_version(actor_of(alice), model, "latest") == parent
    assert variant.parent_edges.get().parent == parent


def test_numbers_are_never_reused(alice, model):
    make_version(alice, model)
    second = make_version(alice, model, message="second")
    versions.delete_version(actor=actor_of(alice), version=second)
    model.refresh_from_db()
    assert model.latest_number == 1
    assert make_version(alice, model, message="third").number == 3


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/passwd", "a/../b", "a\\b", "a\0b", "", "a//b", "CON", "x" * 2000]
)
def test_bad_paths_leave_nothing_behind(alice, model, path):
    with pytest.raises(Invalid):
        make_version(alice, model, {path: b"text"})
    assert not Version.objects.exists()


def test_two_names_that_differ_only_in_case_are_refused(alice, model):
    with pytest.raises(Invalid):
        make_version(alice, model, {"a.txt": b"1", "A.TXT": b"2"})


def test_a_lying_safetensors_header_is_refused(alice, model):
    lying = bytearray(safetensors_bytes(weight=[1.0, 2.0]))
    lying[lying.index(b"[2]") + 1] = ord("9")
    with pytest.raises(Invalid) as refusal:
        make_version(alice, model, {"model.safetensors": bytes(lying)})
    assert refusal.value.reason == "malformed_file"
    assert not Version.objects.exists()


def test_a_pickle_is_quarantined_unless_something_safe_stands_beside_it(alice, model):
    alone = make_version(alice, model, {"model.pkl": PICKLE})
    assert alone.state == VersionState.QUARANTINED
    with pytest.raises(Conflict, match="quarantined"):
        versions.require_runnable(alone)
    with pytest.raises(Conflict):
        catalog.set_alias(actor=actor_of(alice), repository=model, alias="champion", version=alone)
    beside = make_version(
        alice,
        model,
        {"model.pkl": PICKLE, "model.safetensors": safetensors_bytes(weight=[1.0])},
    )
    assert beside.state == VersionState.READY
    versions.require_runnable(beside)


def test_a_program_behind_good_weights_is_held_and_runs_nowhere(alice, model):
    """What opens it as safetensors finds weights; torch.jit finds a program at its end."""
    program = zipped({"m/data.pkl": b"", "m/code/a.py": b"", "m/constants.pkl": b""})
    polyglot = samples.safetensors({"w": ("U8", [len(program)], program)})
    alone = make_version(alice, model, {"model.safetensors": polyglot})
    assert alone.state == VersionState.QUARANTINED
    with pytest.raises(Conflict, match="quarantined"):
        versions.require_runnable(alone)
    beside = make_version(alice, model, {"model.safetensors": polyglot, "m.onnx": samples.onnx()})
    assert beside.state == VersionState.READY


def test_a_dataset_stays_usable_beside_a_script_that_made_it(alice):
    dataset = make_model(alice, "rows", kind="dataset")
    script = {"make.sh": b"#!/bin/sh\nrm -rf /\n", "README.md": b"# Rows\n"}
    assert make_version(alice, dataset, {**script, "a.csv": b"x\n1\n"}).state == "ready"
    assert make_version(alice, dataset, script).state == VersionState.QUARANTINED


def test_what_no_reader_understands_is_opaque(alice, model):
    version = make_version(alice, model, {"a.zip": zipped({"a.txt": b"x"}), "m.py": b"import x\n"})
    files = version.revision.artifacts.select_related("blob")
    assert {blobs.inspection_of(file).verdict for file in files} == {"opaque"}
    assert all(blobs.inspection_of(file).findings for file in files)


def test_opaque_files_are_kept_but_cannot_run(alice, model):
    version = make_version(alice, model, {"weights.bin2": b"\x01\x02nothing known"})
    assert version.state == VersionState.READY
    with pytest.raises(Invalid, match="converted to safetensors") as refusal:
        versions.require_runnable(version)
    assert refusal.value.reason == "not_runnable"


def test_a_version_of_a_model_one_may_not_write_to(alice, model):
    with pytest.raises(Denied):
        versions.create_version(actor=actor_of(UserFactory()), repository=model, files={})


def test_metadata_alone_is_a_version_too(alice, model):
    version = make_version(alice, model, {}, source="s3://elsewhere/model")
    assert (version.files_count, version.source) == (0, "s3://elsewhere/model")


def test_states_move_only_where_people_may_move_them(alice, model):
    actor, version = actor_of(alice), make_version(alice, model)
    row = versions.describe_version(
        actor=actor, version=version, changes={"state": "deprecated", "state_reason": "old"}
    )
    assert row.state == "deprecated"
    versions.describe_version(actor=actor, version=row, changes={"state": "archived"})
    model.refresh_from_db()
    assert model.latest_number is None
    with pytest.raises(Invalid):
        versions.describe_version(actor=actor, version=version, changes={"state": "pending"})
    quarantined = make_version(alice, model, {"model.pkl": PICKLE})
    with pytest.raises(Conflict):
        versions.describe_version(actor=actor, version=quarantined, changes={"state": "ready"})


def test_bytes_are_found_by_digest_only_by_those_who_may_read_them(alice):
    secret = make_model(alice, "secret", visibility="private")
    make_version(alice, secret)
    digest = Blob.objects.order_by("-size_bytes").first().sha256
    stranger = actor_of(UserFactory())
    assert blobs.find_readable_blob(actor_of(alice), digest)
    with pytest.raises(NotFound):
        blobs.find_readable_blob(stranger, digest)
    with pytest.raises(NotFound):
        transfers.find_download(
            actor=ANONYMOUS,
            kind="model",
            namespace="alice",
            name="secret",
            version="1",
            path="README.md",
        )


def test_hidden_bytes_are_looked_for_exactly_as_bytes_that_are_not_there(alice):
    make_version(alice, make_model(alice, "secret", visibility="private"))
    hidden = Blob.objects.order_by("-size_bytes").first().sha256
    stranger = actor_of(UserFactory())
    asked = []
    for digest in (hidden, "0" * 64):
        with CaptureQueriesContext(connection) as queries, pytest.raises(NotFound):
            blobs.find_readable_blob(stranger, digest)
        asked.append([query["sql"].replace(digest, "DIGEST") for query in queries])
    assert asked[0] == asked[1] != []


def test_what_waits_for_inspection_is_shown_while_nothing_else_can_be(alice, model):
    version = make_version(alice, model, {"model.pkl": PICKLE})
    model.refresh_from_db()
    shown = model.formats, model.size_bytes
    assert shown[1] == len(PICKLE)
    versions.describe_version(actor=actor_of(alice), version=version, changes={"message": "x"})
    model.refresh_from_db()
    assert ((model.formats, model.size_bytes), model.latest_number) == (shown, None)


def test_a_version_that_is_gone_is_not_described(alice, model):
    version = make_version(alice, model)
    actor = actor_of(alice)
    versions.delete_version(actor=actor, version=version)
    with pytest.raises(NotFound):
        versions.describe_version(actor=actor, version=version, changes={"message": "x"})
    other = make_version(alice, model)
    catalog.delete_repository(actor=actor, repository=model)
    with pytest.raises(NotFound):
        versions.describe_version(actor=actor, version=other, changes={"message": "x"})


def test_who_only_reads_a_pickle_cannot_take_it_along(alice, model):
    make_version(alice, model, {"model.pkl": PICKLE})
    (file,) = Blob.objects.all()
    assert blobs.find_readable_blob(actor_of(alice), file.sha256) == file
    with pytest.raises(NotFound):
        blobs.find_readable_blob(actor_of(UserFactory()), file.sha256)


def test_an_upload_becomes_a_blob_of_its_owner(alice):
    actor = actor_of(alice)
    upload = uploads.begin_upload(actor=actor, length=5, filename="a.txt")
    with pytest.raises(Invalid, match="not finished"):
        blobs.find_uploaded_blob(actor, str(upload.pk))
    storage = default_storage()
    storage.append_upload(str(upload.pk), 0, [b"hello"])
    uploads.complete_upload(
        actor=actor, upload=upload, stored=storage.finish_upload(str(upload.pk))
    )
    blob = blobs.find_uploaded_blob(actor, str(upload.pk))
    assert blob.size_bytes == 5
    with pytest.raises(NotFound):
        blobs.find_uploaded_blob(actor_of(UserFactory()), str(upload.pk))
    with pytest.raises(NotFound):
        uploads.find_upload(actor, "not-a-uuid")


def test_an_upload_that_is_given_up_at_its_end_is_not_there(alice):
    actor = actor_of(alice)
    upload = uploads.begin_upload(actor=actor, length=5, filename="a.txt")
    storage = default_storage()
    storage.append_upload(str(upload.pk), 0, [b"hello"])
    stored = storage.finish_upload(str(upload.pk))
    uploads.cancel_upload(actor=actor, upload=upload)
    with pytest.raises(NotFound, match="given up"):
        uploads.complete_upload(actor=actor, upload=upload, stored=stored)


def test_measured_and_declared_numbers_are_told_apart(alice, model):
    version = make_version(alice, model)
    [row] = versions.add_evaluations(
        actor=actor_of(alice),
        version=version,
        evaluations=[versions.EvaluationSpec(metric="accuracy", value=0.9, n=100)],
    )
    assert not row.measured


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=300))
@pytest.mark.slow
def test_find_version_answers_any_text(text):
    user = UserFactory()
    row = make_version(user, make_model(user), {})
    try:
        assert catalog.find_version(actor_of(user), row.repository, text) == row
    except NotFound:
        assert text not in {"1", "latest"}


@pytest.mark.django_db(transaction=True)
def test_fifty_at_once_get_fifty_consecutive_numbers():
    alice = UserFactory(username="alice")
    model = make_model(alice)
    blob = make_blob(b"text")
    failures: list[Exception] = []

    def create() -> None:
        try:
            versions.create_version(
                actor=actor_of(alice),
                repository=Repository.objects.get(pk=model.pk),
                files={"a.txt": blob},
            )
        except Exception as error:  # noqa: BLE001 - any failure at all fails the test below
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=create) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(model.versions.values_list("number", flat=True)) == list(range(1, 51))


@pytest.mark.parametrize(
    "declared",
    [
        3,
        {"inputs": 3, "outputs": True},
        {"inputs": [], "outputs": [[]]},
        {"inputs": [{"name": "x", "dtype": "int64"}], "outputs": []},
        {"inputs": [{"name": "x", "dtype": "int64", "shape": [1 << 70]}], "outputs": []},
        {"inputs": [{"name": "x", "dtype": "int64", "shape": [1.5]}], "outputs": []},
        {"inputs": [{"name": {}, "dtype": "int64", "shape": []}], "outputs": []},
    ],
)
def test_a_signature_that_is_none_is_not_shown(alice, declared):
    config = json.dumps({"signature": declared}).encode()
    version = make_version(alice, make_model(alice), {"config.json": config})
    assert version.signature == {}


def test_of_several_graphs_the_one_that_is_served_gives_the_signature(alice):
    graph = samples.onnx()
    other = graph.replace(b"\x0a\x01x", b"\x0a\x01z")
    assert other != graph
    files = {"decoder.onnx": other, "model.onnx": graph}
    version = make_version(alice, make_model(alice), files)
    assert [port["name"] for port in version.signature["inputs"]] == ["x"]


def test_a_declared_signature_keeps_what_is_known_of_a_port():
    port = {"name": "x", "dtype": "int64", "shape": [None, -1, "batch", 28]}
    assert versions._signature(
        {"signature": {"inputs": [{**port, "odd": 1}], "outputs": []}}, {}
    ) == {
        "inputs": [port],
        "outputs": [],
    }


def test_a_file_shows_what_the_present_readers_found(alice, model):
    version = make_version(alice, model, {"model.safetensors": safetensors_bytes(weight=[1.0])})
    artifact = version.revision.artifacts.get()
    found = blobs.inspection_of(artifact)
    found.pk, found.inspector, found.format = None, "headers-0.safetensors", "opaque"
    found.save()
    assert blobs.inspection_of(artifact).format == "safetensors"
