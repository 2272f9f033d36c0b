"""A file that runs code: taken in, seen for what it is, converted or kept away, never run."""

import bz2
import gzip
import hashlib
import lzma
import os
import pickle
import secrets
import shutil
import time
import uuid
import zlib

import httpx
import numpy as np
import pytest
import torch
from django.utils import timezone
from safetensors.torch import load

from registry.errors import Conflict, Invalid, StorageFull
from registry.models import Screening, Version, VersionState
from registry.services import screening as service
from registry.services import versions, workers
from registry.storage import default_storage
from tests.factories import UserFactory, make_model, make_token, make_version, safetensors_bytes
from tests.registry.formats.samples import safetensors
from tests.workers import hostile
from tests.workers.ml.little import export_program
from workers import sandbox, screening
from workers.folder import JobFolder
from workers.inspector import Findings, Inspector
from workers.ml.formats import load_program, open_model
from workers.screening import Screener, prune_workshops

pytestmark = pytest.mark.slow
URL = "/api/v1/models/alice/classifier/versions"


@pytest.fixture(scope="module")
def inspector():
    one = Inspector()
    yield one
    one.stop()


@pytest.fixture
def screener(inspector):
    one = Screener()
    one._inspector = inspector
    return one


@pytest.fixture
def canary(tmp_path):
    one = hostile.Canary(tmp_path)
    yield one
    one.close()


@pytest.fixture
def post(client, model):
    def post(**files):
        parts = [("file", (name, data)) for name, data in files.items()]
        return client.post(URL, files=parts)

    return post


@pytest.fixture
def screen(screener):
    """Let the sandbox work on what waits."""

    def act():
        assert screener.run_one(sandbox.probe())
        return Screening.objects.latest("pk").version

    return act


def test_weights_in_a_pickle_are_converted_beside_the_frozen_files(post, screen, client):
    state = hostile.Net().state_dict()
    answer = post(**{"pytorch_model.bin": hostile.torch_zip(state), "config.json": b"{}"})
    assert (answer.status_code, answer.json()["state"]) == (201, "pending")
    version = Version.objects.get()
    with pytest.raises(Conflict, match="pending"):
        versions.require_runnable(version)
    assert client.get(f"{URL}/1/derivatives").json()["screening"] == "waiting"

    screen()
    body = client.get(f"{URL}/latest").json()
    assert (body["state"], body["state_reason"]) == ("ready", "")
    assert body["formats"] == ["safetensors", "torch-zip"]
    assert body["parameters_count"] == 8
    assert [file["path"] for file in body["files"]] == ["config.json", "pytorch_model.bin"]
    made = client.get(f"{URL}/1/derivatives").json()
    assert made["screening"] == "done"
    assert made["reasons"] == {}
    (derivative,) = made["items"]
    assert derivative["path"] == "model.safetensors"
    assert derivative["source_path"] == "pytorch_model.bin"
    assert derivative["toolchain"].startswith("torch-")

    files = client.get(f"{URL}/1/files").json()["items"]
    held = next(file for file in files if file["path"] == "pytorch_model.bin")
    assert (held["format"], held["verdict"]) == ("torch-zip", "quarantined")
    assert "torch._utils._rebuild_tensor_v2" in held["imports"]
    assert any("only what rebuilding tensors takes" in one for one in held["findings"])


def test_only_what_was_converted_is_given_out_and_used(post, screen, client, stranger):
    state = hostile.Net().state_dict()
    post(**{"pytorch_model.bin": hostile.torch_zip(state), "config.json": b"{}"})
    version = screen()
    refused = stranger.get(f"{URL}/1/files/pytorch_model.bin")
    assert (refused.status_code, refused.json()["code"]) == (403, "quarantined_file")
    assert "'model.safetensors'" in refused.json()["detail"]
    mine = client.get(f"{URL}/1/files/pytorch_model.bin")
    assert mine.status_code == 200
    assert mine.headers["x-file-warning"].startswith("quarantined")
    taken = stranger.get(f"{URL}/1/derivatives/model.safetensors")
    assert taken.status_code == 200
    assert "x-file-warning" not in taken.headers
    found = load(taken.content)
    assert torch.equal(found["layer.weight"], state["layer.weight"])
    assert stranger.get(f"{URL}/1/derivatives/other").status_code == 404

    versions.require_runnable(version)
    folder = JobFolder(uuid.uuid4(), 1)
    folder.make()
    folder.lay_out({"model": version}, default_storage(), lambda: None)
    laid_out = {path.name for path in (folder.path / "inputs" / "model").iterdir()}
    assert laid_out == {"config.json", "model.safetensors"}
    folder.clean(keep_checkpoints=False)


def wrappings(canary):
    """Wrap a call in everything that loaders open; give the name and the bytes."""
    call = hostile.Calls(exec, canary.program)
    plain = pickle.dumps(call)
    yield "model.pkl", plain
    yield "model.bin", pickle.dumps(call, 0)[:-1]
    for name, pack in (("gz", gzip), ("bz2", bz2), ("xz", lzma), ("z", zlib)):
        yield f"model.{name}", pack.compress(plain)
    yield "model.joblib", zlib.compress(plain)
    yield "weights.pt", hostile.torch_zip({"w": torch.zeros(1), "x": call})
    yield "legacy.pt", hostile.torch_legacy({"w": torch.zeros(1), "x": call})
    yield "oldest.pt", hostile.torch_tar(call)
    yield "objects.npy", hostile.object_array(call)
    yield "objects.npz", hostile.object_arrays(call)


def test_calls_in_every_wrapping_are_quarantined_and_never_run(post, screener, client, canary):
    for name, data in wrappings(canary):
        answer = post(**{name: data})
        assert answer.status_code == 201, (name, answer.text)
        assert answer.json()["state"] in {"pending", "quarantined"}, name
    level = sandbox.probe()
    while screener.run_one(level):
        pass
    for version in Version.objects.order_by("number"):
        assert version.state == VersionState.QUARANTINED, version.files_count
        assert version.state_reason
        address = f"{URL}/{version.number}"
        (file,) = client.get(f"{address}/files").json()["items"]
        assert file["verdict"] == "quarantined", file
        assert file["findings"]
        assert client.get(f"{address}/derivatives").json()["items"] == []
    named = client.get(f"{URL}/1/files").json()["items"][0]
    assert named["imports"] == ["builtins.exec"]
    assert canary.is_untouched()


def test_a_program_hidden_in_weights_is_held_and_looked_into(post, screen, stranger):
    program = hostile.torchscript(hostile.Net())
    hidden = safetensors({"w": ("U8", [len(program)], program)})
    assert post(**{"model.safetensors": hidden}).json()["state"] == "quarantined"
    assert screen().state == VersionState.QUARANTINED
    assert stranger.get(f"{URL}/1/files/model.safetensors").status_code == 403
    (held,) = stranger.get(f"{URL}/1/files").json()["items"]
    assert held["verdict"] == "quarantined"
    assert any("hides behind other content" in one for one in held["findings"])


def test_a_pickle_beside_safetensors_stays_usable(post, screen, client, stranger):
    files = {"model.safetensors": safetensors_bytes(w=[1.0]), "model.bin": hostile.torch_zip({})}
    assert post(**files).json()["state"] == "ready"
    assert screen().state == VersionState.READY
    assert client.get(f"{URL}/1/derivatives").json()["items"] == []
    assert stranger.get(f"{URL}/1/files/model.safetensors").status_code == 200
    refused = stranger.get(f"{URL}/1/files/model.bin")
    assert refused.status_code == 403
    assert "no converted file" in refused.json()["detail"]
    with httpx.Client(base_url=str(client.base_url)) as other:
        other.headers["Authorization"] = f"Bearer {make_token(UserFactory())}"
        assert other.get(f"{URL}/1/files/model.bin").status_code == 403


def test_several_files_and_arrays_are_converted_each(post, screen, client, tmp_path):
    arrays = tmp_path / "a.npz"
    np.savez(arrays, w=np.zeros(3))
    answer = post(
        **{
            "encoder/weights.pt": hostile.torch_zip({"w": torch.zeros(2)}),
            "encoder/bad.pt": hostile.torch_zip({"w": hostile.Calls(print, "x")}),
            "arrays.npz": arrays.read_bytes(),
        }
    )
    assert answer.json()["state"] == "pending"
    assert screen().state == VersionState.READY
    said = client.get(f"{URL}/1/derivatives").json()
    assert [made["path"] for made in said["items"]] == [
        "arrays.safetensors",
        "encoder/weights.safetensors",
    ]
    assert "__builtin__.print" in said["reasons"]["encoder/bad.pt"]


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_can_be_run_and_trained(post, screen, client, stranger):
    net = hostile.Net().eval()
    post(**{"program.pt2": export_program(net, torch.zeros(2, 3))})
    version = screen()
    made = client.get(f"{URL}/1/derivatives").json()["items"]
    assert {one["path"] for one in made} == {"model.onnx", "program.safetensors"}
    folder = JobFolder(uuid.uuid4(), 1)
    folder.make()
    folder.lay_out({"model": version}, default_storage(), lambda: None)
    laid = folder.path / "inputs" / "model"
    refused = stranger.get(f"{URL}/1/files/program.pt2")
    assert "'model.onnx'" in refused.json()["detail"]
    # The original stays away from jobs, contained or not.
    assert {file.name for file in laid.iterdir()} == {"model.onnx", "program.safetensors"}
    module = load_program(open_model(laid, trainable=True))
    x = torch.rand(5, 3)
    assert torch.allclose(module(x), net(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_one_fixed_size_says_how_to_export_it(post, screen, client):
    post(**{"program.pt2": hostile.exported(hostile.Net(), torch.zeros(1, 3))})
    screen()
    (made,) = client.get(f"{URL}/1/derivatives").json()["items"]
    assert made["path"] == "model.onnx"
    (file,) = client.get(f"{URL}/1/files").json()["items"]
    assert any("dynamic_shapes" in one for one in file["findings"])


def test_where_files_cannot_be_contained_they_are_refused_and_never_opened(
    alice, model, screener, canary
):
    lacking = sandbox.Level(landlock=0, seccomp=True, user=True, network=True)
    assert not lacking.is_enough
    state = {"w": torch.zeros(1), "x": hostile.Calls(exec, canary.program)}
    version = make_version(alice, model, {"weights.pt": hostile.torch_zip(state)})
    safe = make_version(alice, model)
    workers.register_worker(
        name="strong", queues=["default"], devices=[], sandbox={"level": "full"}
    )
    assert not screener.run_one(lacking)
    workers.dismiss_worker(name="strong")
    assert screener.run_one(lacking)
    version.refresh_from_db()
    assert version.state == VersionState.QUARANTINED
    assert "Landlock" in version.state_reason
    assert screener._inspector._server is None or canary.is_untouched()
    assert versions.require_runnable(safe) is None
    assert not screener.run_one(lacking)
    # A worker that can takes it up again.
    assert screener.run_one(sandbox.probe())
    version.refresh_from_db()
    assert "__builtin__.exec" in version.state_reason
    assert canary.is_untouched()


def test_a_worker_that_died_leaves_the_version_to_the_next(alice, model, screener):
    version = make_version(alice, model, {"weights.pt": hostile.torch_zip({"w": torch.zeros(1)})})
    row = service.claim_screening()
    assert row.version == version
    assert service.claim_screening() is None
    Screening.objects.update(lease_expires_at="2020-01-01T00:00Z", attempts_count=3)
    assert screener.run_one(sandbox.probe())
    version.refresh_from_db()
    assert version.state == VersionState.QUARANTINED
    assert "broke off" in version.state_reason


@pytest.mark.parametrize(
    ("write", "refusal"),
    [
        (lambda file: file.truncate((50 << 20) + secrets.randbelow(9999)), "header"),
        (lambda file: file.write(hostile.torchscript(hostile.Net())), "torchscript"),
        (lambda file: file.write(safetensors(tail=os.urandom(9))), "something after them"),
    ],
)
def test_what_came_out_is_stored_only_when_it_is_what_it_was_said_to_be(
    alice, model, tmp_path, write, refusal
):
    """A child may leave twenty times its file in holes, which would be zeros once they are kept."""
    version = make_version(alice, model, {"weights.pt": hostile.torch_zip({"w": torch.zeros(1)})})
    row = service.claim_screening()
    (held,) = service.find_held(row)
    target = tmp_path / "target"
    with target.open("wb") as file:
        write(file)
    with pytest.raises((Invalid, screening._NotConverted), match=refusal):
        screening._accept(held, Findings(format="safetensors"), target, "model.safetensors")
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert not default_storage().exists(digest)
    assert version.derivatives.count() == 0


def test_a_storage_that_fails_for_a_while_ends_nothing(alice, model, settings, screener, disk):
    """A full disk is no verdict on a file, and no attempt of it either."""
    settings.STORAGE_URL = f"file://{disk}/store"
    state = {"w": torch.zeros(1 << 20)}
    version = make_version(alice, model, {"weights.pt": hostile.torch_zip(state)})
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - (1 << 20)))
    level = sandbox.probe()
    for _ in range(service.MAX_ATTEMPTS + 1):
        with pytest.raises(StorageFull):
            screener.run_one(level)
        waiting = Screening.objects.get()
        assert (waiting.state, waiting.attempts_count) == (Screening.State.WAITING, 0)
        # It rests, so that whoever comes after has a turn.
        assert not screener.run_one(level)
        Screening.objects.update(lease_expires_at=timezone.now())
    filler.unlink()
    assert screener.run_one(level)
    version.refresh_from_db()
    assert version.state == VersionState.READY


def test_a_version_has_its_time_and_no_more(alice, model, screener, monkeypatch):
    monkeypatch.setattr(screening, "_VERSION_SECONDS", 2)
    endless, good = hostile.torchscript(hostile.Endless()), hostile.torch_zip({"w": torch.zeros(1)})
    make_version(alice, model, {"a.pt": endless, "b.pt": good})
    began = time.monotonic()
    assert screener.run_one(sandbox.probe())
    row = Screening.objects.get()
    assert row.state == Screening.State.DONE
    assert "not done after" in row.reasons["a.pt"]
    assert "took all the time" in row.reasons["b.pt"]
    assert time.monotonic() - began < screening._FILE_SECONDS


def test_many_versions_of_one_person_keep_nobody_waiting(alice, model, screener):
    harmful = {"model.pkl": pickle.dumps(hostile.Calls(print, "x"))}
    for _ in range(3):
        make_version(alice, model, harmful)
    bob = UserFactory(username="bob")
    late = make_version(bob, make_model(bob), harmful)
    level = sandbox.probe()
    assert screener.run_one(level)
    assert screener.run_one(level)
    assert Screening.objects.get(version=late).state == Screening.State.DONE
    assert Screening.objects.filter(state=Screening.State.WAITING).count() == 2
    assert screener.run_one(level)
    assert screener.run_one(level)
    assert not Screening.objects.exclude(state=Screening.State.DONE).exists()


def test_what_a_worker_left_is_removed_when_it_is_old(settings, tmp_path):
    settings.HOME_DIR = tmp_path
    fresh, old = tmp_path / "screening" / "fresh", tmp_path / "screening" / "old"
    for folder in (fresh, old):
        (folder / "inner").mkdir(parents=True)
    os.utime(old, (0, 0))
    assert prune_workshops() == 1
    assert fresh.exists()
    assert not old.exists()


def test_the_page_shows_what_was_found_and_converted(post, screen, client, stranger):
    post(**{"weights.pt": hostile.torch_zip({"w": torch.zeros(2)})})
    page = "/models/alice/classifier/versions/1"
    assert "The sandbox is at work" in stranger.get(page).text
    screen()
    text = stranger.get(page).text
    assert "Converted files" in text
    assert f"{page}/derivatives/model.safetensors" in text
    assert f"{page}/files/weights.pt" not in text
    assert "torch._utils._rebuild_tensor_v2" in text
    assert "已转换的文件" in stranger.get(f"/zh-hans{page}").text
