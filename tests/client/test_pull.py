"""Pulling: verified, interrupted anywhere, and only what is missing."""

import json
import os

import pytest

from modelyard import BadFolder, Client
from modelyard.pull import RANGE
from registry.models import Derivative, Purpose, Version, VersionState
from registry.services import catalog, versions
from registry.services.blobs import inspect_blob
from tests.client.conftest import Command, kill
from tests.factories import (
    UserFactory,
    actor_of,
    make_blob,
    make_model,
    make_token,
    make_version,
    safetensors_bytes,
)

MB = 1 << 20
SLACK = 256 << 10
FILES = {
    "README.md": b"# A card",
    "config.json": b"{}",
    "nested/deep/model.safetensors": safetensors_bytes(weight=[1.0, 2.0]),
    "数据.txt": b"words",
    "twin.txt": b"words",
    "with space & more%20#.txt": b"odd",
    "empty.txt": b"",
}


@pytest.fixture
def model(alice):
    repository = make_model(alice, "classifier")
    make_version(alice, repository, FILES)
    return repository


@pytest.fixture
def large(alice):
    """Register a version whose file comes in three ranges."""
    content = os.urandom(2 * RANGE + 5 * MB)
    make_version(alice, make_model(alice, "large"), {"weights.bin": content})
    return content


@pytest.fixture
def relayed(home, relay, token):
    return Command(home, relay.url, token)


@pytest.fixture
def to(tmp_path):
    return tmp_path / "pulled"


def read(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_version_is_laid_out(command, model, to):
    done = command.json("pull", "alice/classifier", "--to", to)
    assert read(to) == FILES
    assert sorted(done["files"]) == sorted(FILES)
    assert (done["version"]["number"], done["folder"]) == (1, str(to))
    # The same bytes under two names come once.
    assert done["bytes_received"] == sum(map(len, FILES.values())) - len(b"words")
    assert done["bytes_total"] == sum(map(len, FILES.values()))


def test_without_a_place_it_goes_below_the_present_folder(command, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.run("pull", "alice/classifier").out == "classifier\n"
    assert read(tmp_path / "classifier") == FILES


def test_what_is_right_already_stays(command, model, to):
    command.run("pull", "alice/classifier", "--to", to)
    before = (to / "config.json").stat()
    (to / "README.md").write_text("# A turd")
    (to / "mine.txt").write_text("mine")
    (to / "twin.txt").unlink()
    done = command.json("pull", "alice/classifier", "--to", to)
    assert done["bytes_received"] == len(b"# A card") + len(b"words")
    assert read(to) == {**FILES, "mine.txt": b"mine"}
    assert (to / "config.json").stat().st_ino == before.st_ino


def test_a_damaged_file_is_seen_even_when_it_looks_the_same(command, model, to):
    command.run("pull", "alice/classifier", "--to", to)
    place = to / "README.md"
    place.write_bytes(b"# A dart")
    command.run("pull", "alice/classifier", "--to", to)
    assert read(to) == FILES


def test_some_of_the_files(command, model, to):
    command.run(
        "pull", "alice/classifier@1", "--to", to, "--include", "*.txt", "--exclude", "empty*"
    )
    assert set(read(to)) == {"数据.txt", "twin.txt", "with space & more%20#.txt"}
    said = command.run("pull", "alice/classifier", "--to", to, "--include", "*.gguf", status=1)
    assert "--include" in said.err


def test_by_number_alias_and_not_at_all(command, model, alice, to):
    make_version(alice, model, {"config.json": b'{"second": 2}'})
    first = model.versions.get(number=1)
    catalog.set_alias(actor=actor_of(alice), repository=model, alias="champion", version=first)
    for name, content in (("@champion", b"{}"), (":1", b"{}"), ("@latest", b'{"second": 2}')):
        command.run("pull", f"alice/classifier{name}", "--to", to)
        assert (to / "config.json").read_bytes() == content
    command.run("pull", "alice/classifier@7", "--to", to, status=3)
    command.run("pull", "alice/classifier@a@b", "--to", to, status=1)


def test_a_dataset(command, alice, to):
    make_version(alice, make_model(alice, "digits", kind="dataset"), {"data.bin": b"abc"})
    command.run("pull", "alice/digits", "--dataset", "--to", to)
    assert read(to) == {"data.bin": b"abc"}


# --- Interrupted ---------------------------------------------------------------------------------


def test_a_large_file_in_ranges(command, large, to):
    done = command.json("pull", "alice/large", "--to", to)
    assert read(to) == {"weights.bin": large}
    assert done["bytes_received"] == len(large)


def state_of(folder):
    (note,) = (folder / ".modelyard").glob("*.json")
    return json.loads(note.read_text())


def test_killed_in_the_middle_it_goes_on_where_it_stopped(relayed, relay, large, to):
    relay.hold_at(30 * MB, "down")
    process = relayed.start("pull", "alice/large", "--to", to)
    relay.wait(process)
    kill(process)
    relay.release()
    relay.count()
    assert not (to / "weights.bin").exists()
    missing = len(large) - sum(state_of(to)["done"])
    done = relayed.json("pull", "alice/large", "--to", to)
    assert done["bytes_received"] == missing < len(large) - 5 * MB
    assert relay.count()["down"] < missing + SLACK
    assert read(to) == {"weights.bin": large}


@pytest.mark.slow
def test_ctrl_c_forgets_nothing(relayed, relay, large, to):
    relay.hold_at(30 * MB, "down")
    process = relayed.start("pull", "alice/large", "--to", to)
    relay.wait(process)
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (130, False)
    relay.release()
    # Every byte that was read counts.
    part, note = next((to / ".modelyard").glob("*.part")), state_of(to)
    for number, count in enumerate(note["done"]):
        start = number * RANGE
        assert part.read_bytes()[start : start + count] == large[start : start + count]
    received = relayed.json("pull", "alice/large", "--to", to)["bytes_received"]
    assert received == len(large) - sum(note["done"]) < len(large) - 10 * MB
    assert read(to) == {"weights.bin": large}


def test_a_line_that_breaks_again_and_again(relayed, relay, large, to):
    relay.break_at(10 * MB, "down")
    process = relayed.start("pull", "alice/large", "--to", to)
    for _ in range(3):
        relay.wait(process)
        relay.reached.clear()
        relay.break_at(10 * MB, "down")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert read(to) == {"weights.bin": large}
    # What was on its way when the line broke came twice at most.
    assert relay.count()["down"] < len(large) + 16 * MB


@pytest.mark.slow
def test_a_server_that_is_started_again(relayed, relay, server, large, to):
    relay.hold_at(20 * MB, "down")
    process = relayed.start("pull", "alice/large", "--to", to)
    relay.wait(process)
    server.kill()
    relay.release()
    server.start()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert read(to) == {"weights.bin": large}


def interrupt(relayed, relay, to):
    relay.hold_at(30 * MB, "down")
    process = relayed.start("pull", "alice/large", "--to", to)
    relay.wait(process)
    kill(process)
    relay.release()
    (part,) = (to / ".modelyard").glob("*.part")
    (note,) = (to / ".modelyard").glob("*.json")
    return part, note


def test_a_part_that_was_damaged_meanwhile_is_fetched_again(relayed, relay, large, to):
    part, note = interrupt(relayed, relay, to)
    done = state_of(to)["done"]
    begun = next(number for number, count in enumerate(done) if count)
    with part.open("r+b") as file:
        file.seek(begun * RANGE)
        file.write(b"damaged")
    relayed.run("pull", "alice/large", "--to", to)
    assert read(to) == {"weights.bin": large}
    assert not note.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"size": 1, "range": 1, "done": []}'])
def test_a_torn_note_costs_only_time(relayed, relay, large, to, content):
    _, note = interrupt(relayed, relay, to)
    note.write_text(content)
    relayed.run("pull", "alice/large", "--to", to)
    assert read(to) == {"weights.bin": large}


def test_two_pulls_into_one_folder(relayed, command, relay, large, to):
    relay.hold_at(20 * MB, "down")
    process = relayed.start("pull", "alice/large", "--to", to)
    relay.wait(process)
    assert "Another process" in command.run("pull", "alice/large", "--to", to, status=1).err
    kill(process)


# --- What a version is ---------------------------------------------------------------------------


def test_a_deprecated_version_says_why(command, model, alice, to):
    versions.describe_version(
        actor=actor_of(alice),
        version=model.versions.get(),
        changes={"state": "deprecated", "state_reason": "It mistakes 7 for 1."},
    )
    assert (
        "deprecated: It mistakes 7 for 1."
        in command.run("pull", "alice/classifier@1", "--to", to, "--quiet").err
    )
    assert read(to) == FILES


PICKLE = b"\x80\x04cos\nsystem\n."


def test_a_quarantined_version_is_not_pulled_by_mistake(command, alice, to):
    make_version(alice, make_model(alice, "loaded"), {"model.pkl": PICKLE})
    said = command.run("pull", "alice/loaded@1", "--to", to, status=1)
    assert "quarantined" in said.err
    assert "--allow-unsafe" in said.err
    assert not to.exists()
    command.run("pull", "alice/loaded@1", "--to", to, "--allow-unsafe")
    assert read(to) == {"model.pkl": PICKLE}


def test_what_was_converted_comes_in_place_of_what_runs_code(command, alice, to):
    """Also for those who may not have the original."""
    version = make_version(alice, make_model(alice, "mixed"), {"a.txt": b"a", "model.pkl": PICKLE})
    safe = safetensors_bytes(weight=[1.0])
    blob = make_blob(safe)
    inspect_blob("model.safetensors", blob)
    Derivative.objects.create(
        version=version,
        purpose=Purpose.CONVERTED,
        source_path="model.pkl",
        toolchain="test",
        path="model.safetensors",
        blob=blob,
    )
    Version.objects.update(state=VersionState.READY)
    anybody = {"MODELYARD_TOKEN": make_token(UserFactory())}
    said = command.json("pull", "alice/mixed@1", "--to", to, **anybody)
    assert read(to) == {"a.txt": b"a", "model.safetensors": safe}
    assert said["converted"] == {"model.safetensors": "model.pkl"}
    assert said["left_out"] == []


# --- Where it goes -------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_never_writes_through_a_link(command, model, to, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    to.mkdir()
    (to / "nested").symlink_to(outside)
    said = command.run("pull", "alice/classifier", "--to", to, status=1)
    assert "stands where a folder" in said.err
    assert list(outside.iterdir()) == []


def test_a_link_in_the_place_of_a_file_is_replaced(command, model, to, tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    to.mkdir()
    (to / "config.json").symlink_to(precious)
    command.run("pull", "alice/classifier", "--to", to)
    assert precious.read_text() == "precious"
    assert read(to) == FILES


@pytest.mark.slow
def test_a_folder_in_the_place_of_a_file(command, model, to):
    (to / "config.json").mkdir(parents=True)
    assert "is a folder where" in command.run("pull", "alice/classifier", "--to", to, status=1).err


def test_a_file_in_the_place_of_the_folder(command, model, to):
    to.write_text("x")
    assert "cannot be made" in command.run("pull", "alice/classifier", "--to", to, status=1).err


def test_no_room(home, server, token, model, to, monkeypatch):
    monkeypatch.setattr("modelyard.pull.free_bytes", lambda _: 1000)
    with Client(server.url, token) as client, pytest.raises(BadFolder, match="has room for"):
        client.pull("alice/classifier", to)
