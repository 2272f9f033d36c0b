"""Ways out of a version over the wire: whole, counted, and for those alone who may see it."""

import hashlib
import io
import json
import tarfile

import pytest

from registry.models import Derivative, Purpose, VersionState
from tests.factories import make_blob, make_version
from tests.registry.test_exports import CONTENT

URL = "/api/v1/models/alice/classifier/versions"
ONNX = {path: CONTENT[path] for path in ("README.md", "config.json", "model.onnx")}

pytestmark = pytest.mark.slow


@pytest.fixture
def version(alice, model):
    return make_version(alice, model, ONNX)


def test_a_package_arrives_whole(client, version):
    answer = client.get(f"{URL}/1/exports/triton.tar")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert 'filename="classifier-v1-triton.tar"' in answer.headers["content-disposition"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
        assert tar.extractfile("classifier/1/model.onnx").read() == ONNX["model.onnx"]
        config = tar.extractfile("classifier/config.pbtxt").read().decode()
    assert 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]' in config
    head = client.head(f"{URL}/latest/exports/triton.tar")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == answer.headers["content-length"]


def test_every_listed_way_out_is_open(client, server, version):
    items = client.get(f"{URL}/1/exports").json()["items"]
    assert [one["file"] for one in items if one["takes_job"]] == [
        "torchscript.pt",
        "program.pt2",
        "aotinductor.pt2",
        "stablehlo.jaxexport",
    ]
    assert len(items) == 9
    for one in items:
        if one["takes_job"]:
            continue
        assert (one["available"], one["detail"]) == (True, "")
        assert client.get(one["url"]).status_code == 200
    text = client.get(f"{URL}/1/exports/kserve.yaml").text
    assert f"storageUri: {server.url}{URL}/1/exports/triton.tar" in text
    layout = client.get(f"{URL}/1/exports/modelpack.tar").content
    with tarfile.open(fileobj=io.BytesIO(layout)) as tar:
        index = json.loads(tar.extractfile("index.json").read())
        digest = index["manifests"][0]["digest"].partition(":")[2]
        manifest = tar.extractfile(f"blobs/sha256/{digest}").read()
    assert hashlib.sha256(manifest).hexdigest() == digest


def test_what_cannot_be_carried_is_said_and_refused(client, alice, model):
    make_version(alice, model, {"notes.txt": b"no graph"})
    items = {one["file"]: one for one in client.get(f"{URL}/1/exports").json()["items"]}
    assert items["modelpack.tar"]["available"]
    refused = client.get(f"{URL}/1/exports/triton.tar")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_onnx")
    assert items["triton.tar"] == {
        "file": "triton.tar",
        "url": f"{URL}/1/exports/triton.tar",
        "available": False,
        "detail": refused.json()["detail"],
        "takes_job": False,
        "can_be_made": False,
        "can_be_deleted": False,
        "runs_code": False,
        "job": None,
        "size_bytes": None,
        "sha256": None,
        "toolchain": "",
    }
    unknown = client.get(f"{URL}/1/exports/other.tar")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "export_not_found")
    assert client.get(f"{URL}/2/exports/triton.tar").status_code == 404


def test_a_file_that_a_job_made_comes_with_a_warning(client, stranger, version):
    missing = client.get(f"{URL}/1/exports/torchscript.pt")
    assert (missing.status_code, missing.json()["code"]) == (409, "needs_module")
    blob = make_blob(b"what a job wrote")
    for path in ("torchscript.pt", "stablehlo.jaxexport"):
        Derivative.objects.create(
            version=version, purpose=Purpose.EXPORTED, path=path, toolchain="torch 2", blob=blob
        )
    made = stranger.get(f"{URL}/1/exports/torchscript.pt")
    assert (made.status_code, made.content) == (200, b"what a job wrote")
    assert made.headers["x-file-warning"] == "this file can run code when it is opened"
    assert 'filename="classifier-v1-torchscript.pt"' in made.headers["content-disposition"]
    assert "x-file-warning" not in stranger.get(f"{URL}/1/exports/stablehlo.jaxexport").headers
    # It is no converted file, which jobs would open.
    assert client.get(f"{URL}/1/derivatives/torchscript.pt").status_code == 404


def test_a_private_version_does_not_exist_for_others(client, stranger, version):
    version.repository.visibility = "private"
    version.repository.save()
    assert client.get(f"{URL}/1/exports/triton.tar").status_code == 200
    assert stranger.get(f"{URL}/1/exports/triton.tar").status_code == 404
    assert stranger.get(f"{URL}/1/exports").status_code == 404


def test_an_archived_version_is_for_maintainers(client, stranger, version):
    version.state = VersionState.ARCHIVED
    version.save()
    kept = client.get(f"{URL}/1/exports/triton.tar")
    assert kept.headers["x-modelyard-notice"].startswith("archived")
    refused = stranger.get(f"{URL}/1/exports/triton.tar")
    assert (refused.status_code, refused.json()["code"]) == (403, "version_archived")


def test_files_that_can_run_code_are_never_carried(client, stranger, alice, model):
    make_version(alice, model, {**ONNX, "weights.bin": b"\x80\x04unknown"})
    with tarfile.open(
        fileobj=io.BytesIO(client.get(f"{URL}/1/exports/modelpack.tar").content)
    ) as tar:
        index = json.loads(tar.extractfile("index.json").read())
        digest = index["manifests"][0]["digest"].partition(":")[2]
        manifest = json.loads(tar.extractfile(f"blobs/sha256/{digest}").read())
    paths = {one["annotations"]["org.cncf.model.filepath"] for one in manifest["layers"]}
    assert paths == set(ONNX)


def test_a_browser_gets_the_package_and_otherwise_the_page_that_says_why(stranger, alice, model):
    make_version(alice, model, ONNX)
    page = "/models/alice/classifier/versions/1"
    shown = stranger.get(page)
    assert f'href="{page}/exports/triton.tar"' in shown.text
    assert stranger.get(f"{page}/exports/triton.tar").headers["content-type"] == "application/x-tar"
    make_version(alice, model, {"notes.txt": b"no graph"})
    refused = stranger.get("/models/alice/classifier/versions/2/exports/triton.tar")
    assert refused.status_code == 409
    assert "no ONNX file" in refused.text
    assert "needs an ONNX file" in stranger.get("/models/alice/classifier/versions/2").text
