"""Files that take a job: asked for, made once, kept beside the version, and had by its readers."""

import shutil

import numpy as np
import orjson
import pytest
from django.db import transaction
from django.test import Client

from registry.errors import Conflict, Invalid
from registry.models import Blob, Derivative, Event, Job, JobState, VersionState
from registry.services import exports
from registry.services.catalog import describe_repository
from registry.services.estimates import estimate_job
from registry.services.jobs import submit_job
from registry.services.quotas import take_export
from registry.storage import default_storage
from tests import factories
from tests.factories import actor_of, make_token
from tests.registry.test_exports import CONTENT
from tests.workers.ml.little import write_cnn
from tests.workers.ml.test_exporting import answers_elsewhere, batches_of
from tests.workers.tiny import run_next

ADDRESS = "/api/v1/models/alice/digits/versions/1/exports"
RECIPE = {
    "kind": "export",
    "model": "alice/digits@1",
    "steps": [{"method": "export", "target": "torchscript"}],
}


@pytest.fixture
def version(owner, tmp_path):
    folder = write_cnn(tmp_path / "cnn")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return factories.make_version(owner, factories.make_model(owner, "digits"), files)


def api(user, method, path=ADDRESS, **body):
    headers = {"Authorization": f"Bearer {make_token(user)}"} if user else {}
    data = orjson.dumps(body) if body else b""
    answer = Client().generic(method, path, data, content_type="application/json", headers=headers)
    return answer.status_code, orjson.loads(answer.content)


def bearer(user):
    return {"Authorization": f"Bearer {make_token(user)}"}


def listed(user, file, path=ADDRESS):
    (found,) = [one for one in api(user, "GET", path)[1]["items"] if one["file"] == file]
    return found


def download(user, file):
    found = exports.find_export(
        actor=actor_of(user),
        namespace="alice",
        name="digits",
        version="1",
        file=file,
        address="http://here",
    )
    (part,) = found.package.parts()
    return found, part


@pytest.mark.slow
def test_a_file_is_made_by_a_job_once_and_kept(owner, version, tmp_path):
    before = listed(owner, "torchscript.pt")
    assert (before["available"], before["can_be_made"], before["takes_job"]) == (False, True, True)
    assert "has not been made yet" in before["detail"]
    status, asked = api(owner, "POST", file="torchscript.pt")
    assert (status, asked["available"]) == (202, False)
    # Who asks again meanwhile is told of the same job.
    assert api(owner, "POST", file="torchscript.pt")[1]["job"] == asked["job"]
    run_next()
    job = Job.objects.get(pk=asked["job"])
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    assert job.result == version
    status, made = api(owner, "POST", file="torchscript.pt")
    assert (status, made["available"], made["job"], made["runs_code"]) == (200, True, None, True)
    assert made["toolchain"].startswith("torch 2")
    assert made["size_bytes"] == Blob.objects.get(sha256=made["sha256"]).size_bytes
    assert Job.objects.count() == 1
    # Any reader has it, and is told what it is; nobody's jobs or servers ever open it.
    found, part = download(factories.UserFactory(username="bob"), "torchscript.pt")
    assert (part.sha256, found.runs_code) == (made["sha256"], True)
    assert found.filename == "digits-v1-torchscript.pt"
    version.refresh_from_db()
    assert version.state == VersionState.READY
    assert api(owner, "GET", f"{ADDRESS.removesuffix('exports')}derivatives")[1]["items"] == []


@pytest.fixture
def made(owner, version):
    """Give the version with a file that counts as one that a job has left."""
    blob = factories.make_blob(b"a program")
    row = version.derivatives.create(purpose="exported", path="torchscript.pt", blob=blob)
    with transaction.atomic():
        take_export(row)
    return row


def test_a_file_is_deleted_by_who_may_have_it_made(owner, version, made):
    file = f"{ADDRESS}/torchscript.pt"
    status, said = api(factories.UserFactory(username="bob"), "DELETE", file)
    assert (status, "This needs the role" in said["detail"]) == (403, True)
    before = version.repository.namespace
    before.refresh_from_db()
    assert listed(owner, "torchscript.pt")["can_be_deleted"] is True
    assert Client().delete(file, headers=bearer(owner)).status_code == 204
    assert listed(owner, "torchscript.pt")["can_be_deleted"] is False
    after = type(before).objects.get(pk=before.pk)
    assert after.used_bytes == before.used_bytes - len(b"a program")
    event = Event.objects.get(action="export.delete")
    assert (event.target, event.data["file"]) == ("alice/digits@1", "torchscript.pt")
    assert not Derivative.objects.exported().exists()
    assert listed(owner, "torchscript.pt")["can_be_made"] is True
    status, said = api(owner, "DELETE", file)
    assert (status, said["code"]) == (404, "not_made")
    status, said = api(owner, "DELETE", f"{ADDRESS}/word.docx")
    assert (status, said["code"]) == (404, "export_not_found")


def test_the_page_says_what_a_made_file_takes_and_deletes_it(owner, version, made, client):
    client.force_login(owner)
    page = "/models/alice/digits/versions/1"
    shown = client.get(page).content.decode()
    assert "Delete torchscript.pt" in shown
    assert "count in the quota of the namespace" in shown
    stranger = Client()
    stranger.force_login(factories.UserFactory(username="bob"))
    assert "Delete torchscript.pt" not in stranger.get(page).content.decode()
    form = {"file": "torchscript.pt"}
    refused = stranger.post(f"{page}/exports/delete", form, follow=True)
    assert "This needs the role" in refused.content.decode()
    assert Derivative.objects.exported().exists()
    shown = client.post(f"{page}/exports/delete", form, follow=True).content.decode()
    assert "torchscript.pt is deleted." in shown
    assert "Make torchscript.pt" in shown
    assert "count in the quota of the namespace" not in shown


def test_an_estimate_speaks_of_the_file(owner, version):
    found = estimate_job(actor=actor_of(owner), recipe=RECIPE).result_bytes
    assert found.low <= version.size_bytes <= found.high
    assert "and the program" in found.grounds.detail


@pytest.mark.slow
def test_two_jobs_at_once_leave_one_file(owner, version):
    for _ in range(2):
        submit_job(actor=actor_of(owner), recipe=RECIPE)
    for _ in range(2):
        run_next()
    assert set(Job.objects.values_list("state", flat=True)) == {JobState.SUCCEEDED}
    assert Derivative.objects.exported().count() == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="AOTInductor needs a C++ compiler")
def test_the_sandbox_lets_a_model_be_compiled(owner, version, tmp_path):
    way = exports.request_export(actor=actor_of(owner), version=version, file="aotinductor.pt2")
    run_next()
    job = Job.objects.get(pk=way.job.pk)
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    made = Derivative.objects.exported().get()
    # One that was compiled names the machines that it was compiled for.
    assert made.toolchain.count(",") >= 1
    file = tmp_path / "aotinductor.pt2"
    file.write_bytes(b"".join(default_storage().open(made.blob.sha256)))
    image = np.random.default_rng(0).integers(0, 256, (4, 28, 28)).astype(np.uint8)
    rows = [{"image": image[:3]}, {"image": image[3:]}]
    inputs, expected = batches_of(tmp_path / "cnn", rows)
    found = answers_elsewhere(tmp_path, "aotinductor", file, inputs)
    for batch, answer in expected.items():
        assert np.abs(found[batch] - answer).max() <= 1e-5


def test_a_failed_job_leaves_nothing(owner):
    # A model whose weights do not fit what its config.json says.
    config = {
        "architecture": {"name": "digits_cnn", "channels": 3, "hidden_size": 8, "dropout": 0.1},
        "labels": ["0", "1", "2", "3"],
        "preprocessing": {"kind": "image", "columns": {"image": "image"}},
    }
    weights = factories.safetensors_bytes(one=[1.0])
    repository = factories.make_model(owner, "unfit")
    unfit = factories.make_version(
        owner, repository, {"config.json": orjson.dumps(config), "model.safetensors": weights}
    )
    way = exports.request_export(actor=actor_of(owner), version=unfit, file="program.pt2")
    run_next()
    job = Job.objects.get(pk=way.job.pk)
    assert job.state == JobState.FAILED
    assert job.error_detail
    assert not Derivative.objects.exported().exists()
    (found,) = [
        one for one in exports.list_made(actor_of(owner), unfit) if one.file == "program.pt2"
    ]
    assert (found.made, found.job, found.can_be_made) == (None, None, True)


def test_an_onnx_graph_is_refused_with_the_ways_that_there_are(owner):
    graph = factories.make_version(
        owner, factories.make_model(owner, "digits"), {"model.onnx": CONTENT["model.onnx"]}
    )
    for target in ("torchscript", "pt2", "aotinductor", "stablehlo"):
        recipe = RECIPE | {"steps": [{"method": "export", "target": target}]}
        with pytest.raises(Invalid, match=r"triton\.tar"):
            submit_job(actor=actor_of(owner), recipe=recipe)
    status, refused = api(owner, "POST", file="program.pt2")
    assert (status, refused["errors"][0]["code"]) == (400, "needs_module")
    row = listed(owner, "program.pt2")
    assert (row["available"], row["can_be_made"]) == (False, False)
    assert "ONNX graph" in row["detail"]
    with pytest.raises(Conflict, match="ONNX graph"):
        download(owner, "program.pt2")
    assert not Job.objects.exists()
    assert graph.is_usable


@pytest.mark.parametrize("state", [VersionState.QUARANTINED, VersionState.PENDING])
def test_what_is_not_ready_is_refused(owner, version, state):
    type(version).objects.filter(pk=version.pk).update(state=state)
    status, refused = api(owner, "POST", file="torchscript.pt")
    assert (status, refused["code"]) == (409, "version_not_ready")
    assert not listed(owner, "torchscript.pt")["can_be_made"]


def test_only_code_that_nobody_opens_is_refused(owner):
    factories.make_version(
        owner, factories.make_model(owner, "digits"), {"weights.bin": b"\x80\x04unknown"}
    )
    status, refused = api(owner, "POST", file="torchscript.pt")
    assert status in {400, 409}
    assert refused["code"] in {"version_not_ready", "not_runnable"}
    assert not Job.objects.exists()


def test_targets_that_there_are_not(owner, version):
    status, refused = api(owner, "POST", file="model.exe")
    assert (status, refused["code"]) == (404, "export_not_found")
    assert "torchscript.pt" in refused["detail"]
    status, refused = api(owner, "POST", file="triton.tar")
    assert (status, refused["code"]) == (409, "nothing_to_make")
    with pytest.raises(Invalid):
        submit_job(
            actor=actor_of(owner),
            recipe=RECIPE | {"steps": [{"method": "export", "target": "exe"}]},
        )


def test_readers_do_not_have_files_made(owner, version):
    bob = factories.UserFactory(username="bob")
    status, _ = api(bob, "POST", file="torchscript.pt")
    assert status == 403
    assert not listed(bob, "torchscript.pt")["can_be_made"]
    assert api(None, "POST", file="torchscript.pt")[0] == 401
    version.repository.visibility = "private"
    version.repository.save()
    assert api(bob, "POST", file="torchscript.pt")[0] == 404
    assert not Job.objects.exists()


def test_a_waiting_job_is_found_after_its_model_was_renamed(owner, version):
    asked = api(owner, "POST", file="torchscript.pt")[1]
    describe_repository(
        actor=actor_of(owner), repository=version.repository, changes={"name": "numbers"}
    )
    again = api(owner, "POST", ADDRESS.replace("digits", "numbers"), file="torchscript.pt")[1]
    assert again["job"] == asked["job"]


def test_the_page_has_a_button_and_leads_to_the_job(owner, version):
    browser = Client()
    browser.force_login(owner)
    page = "/models/alice/digits/versions/1"
    assert "Make torchscript.pt" in browser.get(page).content.decode()
    answer = browser.post(f"{page}/exports", {"file": "torchscript.pt"})
    job = Job.objects.get()
    assert (answer.status_code, answer["Location"]) == (302, f"/jobs/{job.pk}")
    assert "being made" in browser.get(page).content.decode()
    refused = browser.post(f"{page}/exports", {"file": "nothing"}, follow=True)
    assert "There is no export" in refused.content.decode()
