"""A folder of hundreds of megabytes, there and back, through a line that breaks."""

import hashlib
import os

import pytest

from registry.models import Version
from tests.client.conftest import Command, kill
from tests.factories import make_model

MB = 1 << 20
FILES = 4
EACH = 75 * MB
SMALL = 120


@pytest.fixture
def folder(tmp_path):
    """Make 300 MB in a few large files and many small ones."""
    place = tmp_path / "model"
    (place / "tokens").mkdir(parents=True)
    for number in range(FILES):
        with (place / f"weights-{number}.bin").open("wb") as file:
            for _ in range(EACH // MB):
                file.write(os.urandom(MB))
    for number in range(SMALL):
        (place / f"tokens/{number}.txt").write_text(f"Token {number}.\n" * (10 + number))
    return place


def digests_below(folder):
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


@pytest.mark.slow
def test_there_and_back(home, relay, token, alice, folder, tmp_path):
    make_model(alice, "large")
    command = Command(home, relay.url, token)
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    relay.hold_at(120 * MB)
    process = command.start("push", folder, "alice/large")
    relay.wait(process)
    kill(process)
    relay.release()
    command.run("push", folder, "alice/large")
    assert Version.objects.get().files_count == FILES + SMALL
    # What was on four lines when they broke is all that went twice.
    assert relay.count()["up"] < total + 40 * MB

    to = tmp_path / "back"
    relay.hold_at(120 * MB, "down")
    process = command.start("pull", "alice/large", "--to", to)
    relay.wait(process)
    kill(process)
    relay.release()
    command.run("pull", "alice/large", "--to", to)
    assert digests_below(to) == digests_below(folder)
    assert relay.count()["down"] < total + 60 * MB
