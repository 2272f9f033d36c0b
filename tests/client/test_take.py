"""`modelyard export`: a package laid out in a new folder, or nothing at all."""

import io
import tarfile

import pytest

from modelyard.errors import BadAnswer, BadName
from modelyard.take import _Stream, _unpack
from registry.models import Derivative, Purpose
from tests.factories import make_blob, make_model, make_version
from tests.registry.test_exports import CONTENT

pytestmark = pytest.mark.slow
ONNX = {path: CONTENT[path] for path in ("config.json", "model.onnx")}


@pytest.fixture
def version(alice):
    return make_version(alice, make_model(alice, "adder"), ONNX)


def test_a_version_becomes_a_model_repository(command, version, tmp_path):
    folder = tmp_path / "repository"
    done = command.run("export", "alice/adder@1", "triton", "--to", folder)
    assert done.out == f"{folder}\n"
    assert (folder / "adder/1/model.onnx").read_bytes() == ONNX["model.onnx"]
    assert "onnxruntime" in (folder / "adder/config.pbtxt").read_text()
    again = command.run("export", "alice/adder@1", "triton", "--to", folder, status=1)
    assert "there already" in again.err
    command.run("export", "alice/adder", "kserve", "--to", tmp_path / "resource")
    assert "InferenceService" in (tmp_path / "resource/kserve.yaml").read_text()


def test_a_file_that_a_job_made_is_laid_out_alone(command, version, tmp_path):
    blob = make_blob(b"what a job wrote")
    Derivative.objects.create(
        version=version,
        purpose=Purpose.EXPORTED,
        path="torchscript.pt",
        toolchain="torch 2",
        blob=blob,
    )
    folder = tmp_path / "scripted"
    done = command.run("export", "alice/adder@1", "torchscript", "--to", folder)
    assert done.out == f"{folder}\n"
    assert {one.name for one in folder.iterdir()} == {"torchscript.pt"}
    assert (folder / "torchscript.pt").read_bytes() == b"what a job wrote"
    # Of an ONNX graph none is made, and no job is started for it.
    refused = command.run("export", "alice/adder@1", "pt2", "--to", tmp_path / "other", status=1)
    assert "ONNX graph" in refused.err
    assert not (tmp_path / "other").exists()


def test_a_file_that_a_job_made_is_deleted(command, version, tmp_path):
    made = version.derivatives.create(
        purpose=Purpose.EXPORTED,
        path="torchscript.pt",
        toolchain="torch 2",
        blob=make_blob(b"what a job wrote"),
    )
    wrong = ("export", "alice/adder@1", "torchscript", "--delete", "--to", tmp_path / "x")
    assert "has no use" in command.run(*wrong, status=2).err
    assert version.derivatives.filter(pk=made.pk).exists()
    done = command.run("export", "alice/adder@1", "torchscript", "--delete")
    assert "it can be made again" in done.err
    assert not version.derivatives.filter(pk=made.pk).exists()
    again = command.run("export", "alice/adder@1", "torchscript", "--delete", status=3)
    assert "nothing to delete" in again.err
    # What is put together as it is sent was never kept.
    command.run("export", "alice/adder@1", "triton", "--delete", status=3)


def test_what_lies_beside_the_folder_stays(command, version, tmp_path):
    place = tmp_path / "place"
    other = place / "repository.part"
    other.mkdir(parents=True)
    (other / "mine.txt").write_text("kept")
    command.run("export", "alice/nothing", "triton", "--to", place / "repository", status=3)
    command.run("export", "alice/adder@1", "triton", "--to", place / "repository")
    assert (other / "mine.txt").read_text() == "kept"
    assert {one.name for one in place.iterdir()} == {"repository", "repository.part"}


def test_a_refusal_leaves_no_folder(command, alice, tmp_path):
    make_version(alice, make_model(alice, "words"), {"notes.txt": b"no graph"})
    folder = tmp_path / "repository"
    done = command.run("export", "alice/words", "triton", "--to", folder, status=1)
    assert "no ONNX file" in done.err
    command.run("export", "alice/nothing", "triton", "--to", folder, status=3)
    assert list(tmp_path.glob("repository*")) == []


def tar_of(*members):
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, kind, content in members:
            one = tarfile.TarInfo(name)
            one.type, one.size, one.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(one, io.BytesIO(content))
    return written.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", tarfile.REGTYPE, b"a")],
        [("/outside", tarfile.REGTYPE, b"a")],
        [("a/../../outside", tarfile.REGTYPE, b"a")],
        [("link", tarfile.SYMTYPE, b"")],
        [("link", tarfile.LNKTYPE, b"")],
        [("pipe", tarfile.FIFOTYPE, b"")],
        [("one", tarfile.REGTYPE, b"a"), ("ONE", tarfile.REGTYPE, b"b")],
    ],
)
def test_a_server_that_lies_writes_nothing_elsewhere(tmp_path, members):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises((BadAnswer, BadName)):
        _unpack(_Stream(iter([tar_of(*members)])), folder)
    assert {one.name for one in tmp_path.iterdir()} == {"folder"}


def test_a_package_that_ends_too_soon_is_refused(tmp_path):
    whole = tar_of(("one", tarfile.REGTYPE, bytes(5000)))
    with pytest.raises(BadAnswer):
        _unpack(_Stream(iter([whole[:3000]])), tmp_path)
