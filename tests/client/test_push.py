"""Pushing: whole, again, interrupted anywhere, and never twice."""

import hashlib
import os
import shutil

import pytest

from modelyard import BadFolder, Busy, Client, Interrupted
from registry.models import Repository, Role, Upload, Version
from registry.storage import default_storage
from tests.client.conftest import Command, kill
from tests.factories import (
    CARD,
    NamespaceFactory,
    make_member,
    make_model,
    make_token,
    safetensors_bytes,
)

MB = 1 << 20
# Requests, headers and the start of bodies that a broken line swallows.
SLACK = 256 << 10


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    (place / "nested/deep").mkdir(parents=True)
    (place / "README.md").write_text(CARD)
    (place / "model.safetensors").write_bytes(safetensors_bytes(weight=[1.0, 2.0]))
    (place / "nested/deep/数据.txt").write_text("words")
    (place / "nested/copy.txt").write_text("words")
    (place / "empty.txt").touch()
    (place / ".git").mkdir()
    (place / ".git/HEAD").write_text("ref")
    (place / "nested/__pycache__").mkdir()
    (place / "nested/__pycache__/a.pyc").write_text("x")
    return place


@pytest.fixture
def large(tmp_path):
    place = tmp_path / "large"
    place.mkdir()
    (place / "weights.bin").write_bytes(os.urandom(24 * MB))
    (place / "small.bin").write_bytes(os.urandom(1000))
    return place


@pytest.fixture
def model(alice):
    return make_model(alice, "classifier")


@pytest.fixture
def relayed(home, relay, token):
    return Command(home, relay.url, token)


def files_of(version):
    return {
        artifact.path: artifact.blob.sha256
        for artifact in version.revision.artifacts.select_related("blob")
    }


def digests_below(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not {".git", "__pycache__"} & set(path.parts)
    }


def bytes_on_the_server():
    """Say how much of the large file the server has kept."""
    upload = Upload.objects.get(length_bytes=24 * MB)
    return default_storage().upload_offset(str(upload.pk))


def only_version():
    return Version.objects.select_related("revision").get()


def test_a_folder_becomes_a_version(command, folder):
    made = command.json(
        *("push", folder, "alice/fresh:candidate", "--create", "--message", "The first"),
        *("--tag", "seed=7", "--alias", "newest"),
    )
    version = only_version()
    assert files_of(version) == digests_below(folder)
    assert made["version"]["number"] == 1
    assert made["version"]["message"] == "The first"
    assert made["version"]["tags"] == {"seed": "7"}
    assert sorted(made["version"]["aliases"]) == ["candidate", "newest"]
    assert (made["created"], made["files"]) == (True, 5)
    assert Repository.objects.get(name="fresh").visibility == "private"
    assert command.run("push", folder, "alice/fresh").out == "alice/fresh@1\n"


def test_nothing_new_makes_no_version_but_keeps_the_names(command, folder, model):
    command.run("push", folder, "alice/classifier")
    uploads = Upload.objects.count()
    again = command.json("push", folder, "alice/classifier:champion", "--tag", "seed=8")
    assert (again["created"], again["bytes_sent"]) == (False, 0)
    assert again["version"]["aliases"] == ["champion"]
    assert again["version"]["tags"] == {"seed": "8"}
    assert Version.objects.count() == 1
    assert Upload.objects.count() == uploads


def test_only_what_changed_is_sent(command, folder, large, model):
    shutil.copy(large / "weights.bin", folder)
    command.run("push", folder, "alice/classifier")
    (folder / "nested/copy.txt").write_text("other words")
    (folder / "empty.txt").unlink()
    again = command.json("push", folder, "alice/classifier")
    assert (again["created"], again["bytes_sent"]) == (True, len("other words"))
    newest = Version.objects.get(number=2)
    assert files_of(newest) == digests_below(folder)


def test_the_same_bytes_are_sent_once(command, tmp_path, model):
    place = tmp_path / "twins"
    place.mkdir()
    for name in ("a.bin", "b.bin", "c.bin"):
        (place / name).write_bytes(b"x" * 3000)
    assert command.json("push", place, "alice/classifier")["bytes_sent"] == 3000
    assert len(files_of(only_version())) == 3


def test_what_is_left_out(command, folder, model):
    command.run("push", folder, "alice/classifier", "--exclude", "nested/", "--exclude", "*.txt")
    assert set(files_of(only_version())) == {"README.md", "model.safetensors"}


def test_a_dataset(command, folder, alice):
    command.run("push", folder, "alice/digits", "--dataset", "--create", "--visibility", "public")
    assert Repository.objects.get(name="digits").kind == "dataset"


# --- Interrupted ---------------------------------------------------------------------------------


def test_killed_in_the_middle_it_goes_on_where_it_stopped(relayed, relay, large, model):
    relay.hold_at(10 * MB)
    process = relayed.start("push", large, "alice/classifier")
    relay.wait(process)
    kill(process)
    relay.release()
    relay.count()
    missing = 24 * MB - bytes_on_the_server()
    assert not Version.objects.exists()
    done = relayed.json("push", large, "alice/classifier")
    # What the server has is not sent again; the small file may not have gone at all.
    assert done["bytes_sent"] <= missing + 1000 < 20 * MB
    assert relay.count()["up"] < missing + SLACK
    assert files_of(only_version()) == digests_below(large)
    # One that was begun in the very moment of the kill is known to the server alone; it expires.
    assert Upload.objects.count() in {2, 3}


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_keeps_what_was_done(relayed, relay, large, model):
    relay.hold_at(10 * MB)
    process = relayed.start("push", large, "alice/classifier")
    relay.wait(process)
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    relay.release()
    assert relayed.json("push", large, "alice/classifier")["bytes_sent"] < 16 * MB
    assert files_of(only_version()) == digests_below(large)


def test_a_line_that_breaks_again_and_again(relayed, relay, large, model):
    relay.break_at(5 * MB)
    process = relayed.start("push", large, "alice/classifier")
    for _ in range(2):
        relay.wait(process)
        relay.reached.clear()
        relay.break_at(5 * MB)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert files_of(only_version()) == digests_below(large)
    assert relay.count()["up"] < 24 * MB + 4 * MB + SLACK


@pytest.mark.slow
def test_a_server_that_is_started_again(relayed, relay, server, large, model):
    relay.hold_at(10 * MB)
    process = relayed.start("push", large, "alice/classifier")
    relay.wait(process)
    server.kill()
    missing = 24 * MB - bytes_on_the_server()
    relay.release()
    relay.count()
    server.start()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert files_of(only_version()) == digests_below(large)
    assert relay.count()["up"] < missing + SLACK


def test_killed_before_the_registration(relayed, relay, large, model):
    relay.swallow = b"POST /api/v1/models/alice/classifier/versions"
    process = relayed.start("push", large, "alice/classifier")
    relay.wait(process)
    kill(process)
    assert not Version.objects.exists()
    relay.count()
    again = relayed.json("push", large, "alice/classifier")
    assert again["bytes_sent"] == 0
    assert relay.count()["up"] < SLACK
    assert files_of(only_version()) == digests_below(large)


def test_an_answer_that_is_lost_makes_no_second_version(relayed, relay, large, model):
    relay.swallow = b'"number":1'
    made = relayed.json("push", large, "alice/classifier")
    assert relay.swallow is None
    assert (made["created"], made["version"]["number"]) == (True, 1)
    assert Version.objects.count() == 1


def test_killed_after_the_registration(relayed, relay, large, model):
    relay.swallow = b"PUT /api/v1/models/alice/classifier/aliases/champion"
    process = relayed.start("push", large, "alice/classifier:champion")
    relay.wait(process)
    kill(process)
    assert Version.objects.count() == 1
    again = relayed.json("push", large, "alice/classifier:champion")
    assert again["version"]["aliases"] == ["champion"]
    assert Version.objects.count() == 1


def test_an_upload_that_expired_is_begun_again(relayed, relay, large, model):
    relay.swallow = b"POST /api/v1/models/alice/classifier/versions"
    process = relayed.start("push", large, "alice/classifier")
    relay.wait(process)
    kill(process)
    Upload.objects.all().delete()
    relayed.run("push", large, "alice/classifier")
    assert files_of(only_version()) == digests_below(large)


def test_two_pushes_of_one_folder(relayed, relay, large, model):
    relay.hold_at(5 * MB)
    process = relayed.start("push", large, "alice/classifier")
    relay.wait(process)
    assert "Another process" in relayed.run("push", large, "alice/classifier", status=1).err
    kill(process)


# --- Refused -------------------------------------------------------------------------------------


def test_no_such_model(command, folder):
    assert "--create" in command.run("push", folder, "alice/nothing", status=3).err
    assert not Upload.objects.exists()


def test_a_token_that_may_not_write(home, server, alice, folder, model):
    reader = Command(home, server.url, make_token(alice, scopes=("read",)))
    assert "scope 'write'" in reader.run("push", folder, "alice/classifier", status=4).err


def test_a_reader_is_told_before_the_bytes_go(home, server, alice, folder):
    team = NamespaceFactory(slug="team")
    owner = make_member(team, Role.OWNER)
    make_model(owner, "shared", namespace="team", visibility="private")
    reader = Command(home, server.url, make_token(make_member(team, Role.READER)))
    said = reader.run("push", folder, "team/shared", status=4)
    assert "no role in team that may write" in said.err
    assert not Version.objects.exists()


def test_a_lying_header_is_named(command, tmp_path, model):
    place = tmp_path / "lying"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"\xff" * 100)
    said = command.run("push", place, "alice/classifier", status=1)
    assert "malformed" in said.err
    assert not Version.objects.exists()


def test_links_that_lead_out(command, folder, tmp_path, model):
    (tmp_path / "outside.txt").write_text("secret")
    (folder / "inside.txt").symlink_to("README.md")
    (folder / "linked").symlink_to("nested")
    command.run("push", folder, "alice/classifier")
    files = files_of(only_version())
    assert files["inside.txt"] == files["README.md"]
    assert files["linked/copy.txt"] == files["nested/copy.txt"]
    (folder / "out.txt").symlink_to(tmp_path / "outside.txt")
    assert "leads out" in command.run("push", folder, "alice/classifier", status=1).err
    (folder / "out.txt").unlink()
    (folder / "out").symlink_to(tmp_path)
    assert "leads out" in command.run("push", folder, "alice/classifier", status=1).err
    command.run("push", folder, "alice/classifier", "--exclude", "linked", status=1)


@pytest.mark.parametrize("make", ["loop", "dangling", "fifo", "device name", "case"])
def test_folders_that_cannot_be_pushed(command, folder, model, make):
    if make == "loop":
        (folder / "nested/again").symlink_to(folder / "nested")
    elif make == "dangling":
        (folder / "nowhere").symlink_to("missing")
    elif make == "fifo":
        os.mkfifo(folder / "pipe")
    elif make == "device name":
        (folder / "nul.txt").write_text("x")
    else:
        (folder / "readme.MD").write_text("x")
    command.run("push", folder, "alice/classifier", status=1)
    assert not Upload.objects.exists()


def test_no_folder_and_an_empty_one(command, tmp_path, model):
    assert "is no folder" in command.run("push", tmp_path / "no", "alice/classifier", status=1).err
    (tmp_path / "empty").mkdir()
    assert "no files" in command.run("push", tmp_path / "empty", "alice/classifier", status=1).err


def test_a_file_that_changes_under_way(home, server, token, folder, model):
    class Meddler:
        """Writes to a file as soon as it was sent."""

        def begin(self, verb, files, total_bytes): ...
        def start_file(self, path, size_bytes): ...
        def advance(self, path, count): ...
        def reuse(self, path, count): ...
        def note(self, text): ...
        def end_file(self, path):
            if path == "README.md":
                (folder / path).write_text("other")

    with Client(server.url, token) as client:
        with pytest.raises(BadFolder, match="changed"):
            client.push(folder, "alice/classifier", progress=Meddler())
        assert not Version.objects.exists()
        assert client.push(folder, "alice/classifier").created


def test_the_sdk_says_that_it_is_busy(home, server, token, folder, model):
    class Second:
        def begin(self, verb, files, total_bytes):
            with Client(server.url, token) as other, pytest.raises(Busy):
                other.push(folder, "alice/classifier")

        def start_file(self, path, size_bytes): ...
        def advance(self, path, count): ...
        def reuse(self, path, count): ...
        def end_file(self, path): ...
        def note(self, text): ...

    with Client(server.url, token) as client:
        assert client.push(folder, "alice/classifier", progress=Second()).created


def test_a_failed_version_is_made_again(command, folder, model):
    command.run("push", folder, "alice/classifier")
    Version.objects.update(state="failed")
    assert command.json("push", folder, "alice/classifier")["version"]["number"] == 2


# --- Parts side by side --------------------------------------------------------------------------


@pytest.fixture
def split(monkeypatch):
    """Let files be cut that are small enough for a test."""
    monkeypatch.setattr("modelyard.push.SPLIT", 8 * MB)


class Watcher:
    """Raises in the middle of a transfer, as Ctrl-C does, once so much has moved."""

    def __init__(self, limit):
        self.limit = limit
        self.moved = self.reused = 0

    def begin(self, verb, files, total_bytes): ...
    def start_file(self, path, size_bytes): ...
    def end_file(self, path): ...
    def note(self, text): ...
    def reuse(self, path, count):
        self.reused += count

    def advance(self, path, count):
        self.moved += count
        if self.limit is not None and self.moved > self.limit:
            raise Interrupted("Stopped.")


def test_parts_of_a_large_file_travel_side_by_side(home, server, token, large, model, split):
    with Client(server.url, token) as client:
        pushed = client.push(large, "alice/classifier")
    assert pushed.bytes_sent == 24 * MB + 1000
    assert files_of(only_version()) == digests_below(large)
    assert Upload.objects.filter(concat="partial").count() == 4


def test_interrupted_parts_go_on_where_they_stopped(home, server, token, large, model, split):
    with Client(server.url, token) as client:
        first = Watcher(12 * MB)
        with pytest.raises(Interrupted):
            client.push(large, "alice/classifier", progress=first)
        second = Watcher(None)
        pushed = client.push(large, "alice/classifier", progress=second, workers=2)
    assert files_of(only_version()) == digests_below(large)
    # Only what was in blocks on their way is sent twice.
    assert pushed.bytes_sent < 24 * MB - first.limit + 5 * MB
    assert second.reused + pushed.bytes_sent == 24 * MB + 1000
    assert Upload.objects.filter(concat="partial").count() == 4


def test_parts_that_expired_are_sent_again(home, server, token, large, model, split):
    with Client(server.url, token) as client:
        with pytest.raises(Interrupted):
            client.push(large, "alice/classifier", progress=Watcher(20 * MB))
        Upload.objects.all().delete()
        client.push(large, "alice/classifier")
    assert files_of(only_version()) == digests_below(large)


def test_a_join_whose_answer_is_lost(home, relay, token, large, model, split):
    relay.swallow = b"Upload-Concat: final"
    with Client(relay.url, token) as client:
        client.push(large, "alice/classifier")
    assert relay.swallow is None
    assert files_of(only_version()) == digests_below(large)
    assert Upload.objects.filter(concat="final").count() == 1
