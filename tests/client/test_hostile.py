"""Servers that lie, send elsewhere, or are merely broken: one clear refusal, nothing harmed."""

import hashlib
import json
import os
import time

import pytest

from modelyard import BadAnswer, Client, ModelyardError, Refused, Unreachable
from registry.models import Token
from tests.budgets import use_up
from tests.client.conftest import Impostor

CONTENT = b"weights"
STAMP = "2026-01-01T00:00:00Z"
REPOSITORY = {
    "kind": "model",
    "namespace": "team",
    "name": "model",
    "visibility": "public",
    **dict.fromkeys(("summary", "task", "library", "license", "base_model"), ""),
    "labels": [],
    "tags": {},
    "formats": [],
    "latest_version": 1,
    "parameters_count": None,
    "size_bytes": 7,
    "downloads": 0,
    "created_at": STAMP,
    "updated_at": STAMP,
}


def file_row(path, content=CONTENT, **changes):
    digest = hashlib.sha256(content).hexdigest()
    return {"path": path, "size_bytes": len(content), "sha256": digest, **changes}


def version_of(*files, **changes):
    return {
        "kind": "model",
        "namespace": "team",
        "name": "model",
        "number": 1,
        **dict.fromkeys(("variant", "state_reason", "source", "message"), ""),
        "state": "ready",
        "formats": [],
        "files": list(files),
        "files_count": len(files),
        "parameters_count": None,
        "size_bytes": 7,
        "aliases": [],
        "tags": {},
        "created_by": "mallory",
        "created_at": STAMP,
        "updated_at": STAMP,
        **changes,
    }


@pytest.fixture
def impatient(home, impostor):
    with Client(impostor.url, "my_secret", patience=1.0, transfer_patience=1.0) as client:
        yield client


@pytest.fixture
def offer(impostor):
    """Let the impostor offer a version."""

    def offer(*files, **changes):
        impostor.say("/models/team/model/versions/latest", version_of(*files, **changes))
        listed = {"items": list(files), "next_cursor": None}
        impostor.say("/models/team/model/versions/1/files", listed)

    return offer


@pytest.fixture
def elsewhere():
    other = Impostor()
    yield other
    other.close()


def below(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


# --- Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "a/../../evil",
        "/etc/evil",
        "//host/share",
        "C:evil",
        "C:\\evil",
        "..\\evil",
        "a/./b",
        "a//b",
        "a/",
        "",
        ".",
        "..",
        "evil\0.txt",
        "evil\n.txt",
        "evil\x1b[2J",
        "\u202etxt.exe",
        "\ud800",
        "nul",
        "sub/COM1.txt",
        "evil.",
        " evil",
        "e\u0301vil",
        ".git/hooks/post-checkout",
        ".GIT/config",
        ".modelyard/lock",
        "a" * 300,
        "a/" * 40 + "b",
        "file.txt:stream",
    ],
)
def test_hostile_paths_write_nothing(lost, offer, tmp_path, path):
    offer(file_row("good.txt"), file_row(path))
    to = tmp_path / "to"
    said = lost.run("pull", "team/model", "--to", to, status=1)
    assert "The path" in said.err
    assert "\x1b" not in said.err
    assert not to.exists()
    assert below(tmp_path) == []


@pytest.mark.parametrize(
    "paths",
    [("README.md", "readme.MD"), ("a", "a/b"), ("ﬁle", "file"), ("A/b", "a/B"), ("x", "x")],
)
def test_two_names_that_are_one_somewhere(lost, offer, tmp_path, paths):
    offer(*map(file_row, paths))
    lost.run("pull", "team/model", "--to", tmp_path / "to", status=1)
    assert below(tmp_path) == []


@pytest.mark.slow
def test_nothing_moves_the_cursor(lost, impostor):
    evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\n"
    row = {**REPOSITORY, "summary": evil, "task": evil, "tags": {evil: evil}}
    impostor.say("/models", {"items": [row], "next_cursor": None})
    impostor.say("/models/team/model", row)
    impostor.say("/models/team/model/aliases", {"items": [], "next_cursor": None})
    version = version_of(message=evil, created_by=evil)
    impostor.say("/models/team/model/versions/latest", version)
    impostor.say("/models/team/model/versions/latest/files/README.md", evil.encode())
    for arguments in (["search"], ["info", "team/model"], ["info", "team/model", "--card"]):
        for form in ("text", "json"):
            out = lost.run(*arguments, "--format", form).out
            assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(out), arguments
    shown = json.loads(lost.run("info", "team/model", "--format", "json").out)
    assert shown["version"]["message"] == evil


# --- Bytes ---------------------------------------------------------------------------------------


def serve(impostor, content, *, status=206, **headers):
    """Answer the download of one file."""
    headers.setdefault("content_range", f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
    impostor.say(
        "/models/team/model/versions/1/files/weights.bin", content, status=status, **headers
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"content": b"wEights"}, "another digest"),
        ({"content": b"weights and more"}, "more of weights.bin"),
        ({"content": CONTENT, "content_range": "bytes 1-7/8"}, "other bytes"),
        ({"content": CONTENT, "content_range": "bytes 0-6/700"}, "other bytes"),
        ({"content": CONTENT, "content_range": "nonsense"}, "other bytes"),
        ({"content": CONTENT, "content_encoding": "gzip"}, "another coding"),
        ({"content": CONTENT, "status": 204}, "other bytes"),
        ({"content": b"other 200", "status": 200}, "more of weights.bin"),
        ({"content": b"", "status": 302, "location": "ftp://host/x"}, "cannot be reached"),
        ({"content": b"", "status": 302, "location": "http://[/x"}, "cannot be reached|is none"),
    ],
)
def test_bytes_that_are_not_the_file(impatient, impostor, offer, tmp_path, answer, words):
    offer(file_row("weights.bin"))
    serve(impostor, **answer)
    with pytest.raises(ModelyardError, match=words):
        impatient.pull("team/model", tmp_path / "to")
    assert not (tmp_path / "to/weights.bin").exists()


def test_bytes_that_break_off(impatient, impostor, offer, tmp_path):
    def break_off(handler):
        handler.close_connection = True
        return 206, {"content-range": "bytes 0-6/7", "content-length": "7"}, b"wei"

    offer(file_row("weights.bin"))
    impostor.say("/models/team/model/versions/1/files/weights.bin", break_off)
    with pytest.raises((Unreachable, BadAnswer)):
        impatient.pull("team/model", tmp_path / "to")
    assert not (tmp_path / "to/weights.bin").exists()


def test_the_bytes_may_lie_elsewhere_but_the_token_stays(
    impatient, impostor, elsewhere, offer, tmp_path
):
    offer(file_row("weights.bin"))
    serve(impostor, b"", status=302, location=f"{elsewhere.url}/api/v1/bucket")
    elsewhere.say("/bucket", CONTENT, status=206, content_range="bytes 0-6/7")
    impatient.pull("team/model", tmp_path / "to")
    assert (tmp_path / "to/weights.bin").read_bytes() == CONTENT
    ((_, _, headers, _),) = elsewhere.asked
    assert "Authorization" not in headers


def test_a_file_of_one_version_that_can_execute_code_is_left_out(lost, impostor, offer, tmp_path):
    offer(file_row("weights.bin"), file_row("model.pkl", b"pickle", verdict="quarantined"))
    serve(impostor, CONTENT)
    impostor.say("/models/team/model/versions/1/files/model.pkl", b"pickle", status=200)
    to = tmp_path / "to"
    said = lost.run("pull", "team/model", "--to", to, "--format", "json")
    assert "model.pkl is left out" in said.err
    assert json.loads(said.out)["left_out"] == ["model.pkl"]
    assert below(to) == ["weights.bin"]
    assert (
        "can execute code"
        in lost.run("pull", "team/model", "--to", to, "--include", "*.pkl", status=1).err
    )
    lost.run("pull", "team/model", "--to", to, "--allow-unsafe")
    assert below(to) == ["model.pkl", "weights.bin"]


@pytest.mark.parametrize("state", ["pending", "failed"])
def test_a_version_that_is_not_there_yet(lost, offer, tmp_path, state):
    offer(file_row("weights.bin"), state=state, state_reason="Being looked at.")
    assert f"is {state}" in lost.run("pull", "team/model", status=1).err


@pytest.mark.parametrize(
    "wrong",
    [{"sha256": "../../evil"}, {"sha256": "A" * 64}, {"size_bytes": -1}, {"size_bytes": "7"}],
)
def test_files_without_digest_or_size(lost, offer, tmp_path, wrong):
    offer(file_row("weights.bin", **wrong))
    lost.run("pull", "team/model", "--to", tmp_path / "to", status=1)
    assert below(tmp_path) == []


# --- Uploads ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, impostor):
    impostor.say("/models/team/model", REPOSITORY)
    impostor.say("/models/team/model/versions", {"items": [], "next_cursor": None})
    me = {"username": "me", "is_admin": True, "scopes": ["write"], "namespaces": [], "token": None}
    impostor.say("/whoami", me)
    place = tmp_path / "folder"
    place.mkdir()
    (place / "weights.bin").write_bytes(os.urandom(3 << 20))
    return place


def test_an_upload_address_elsewhere_gets_nothing(impatient, impostor, elsewhere, folder):
    location = f"{elsewhere.url}/api/v1/uploads/1"
    impostor.say("/uploads", b"", method="POST", status=201, location=location, upload_offset="0")
    with pytest.raises(BadAnswer, match="another server"):
        impatient.push(folder, "team/model")
    assert elsewhere.asked == []


@pytest.mark.parametrize("offset", ["-1", "", "x", "99999999999", "4000000"])
def test_offsets_that_cannot_be(impatient, impostor, folder, offset):
    impostor.say(
        "/uploads", b"", method="POST", status=201, location="/api/v1/uploads/1", upload_offset="0"
    )
    impostor.say("/uploads/1", b"", method="PATCH", status=204, upload_offset=offset)
    with pytest.raises(BadAnswer):
        impatient.push(folder, "team/model")


def test_an_upload_that_never_goes_forward_ends(impatient, impostor, folder):
    headers = {"upload_offset": "0", "upload_length": str(3 << 20)}
    impostor.say(
        "/uploads", b"", method="POST", status=201, location="/api/v1/uploads/1", **headers
    )
    impostor.say("/uploads/1", b"", method="HEAD", **headers)
    busy = {"detail": "Busy.", "code": "upload_busy"}
    impostor.say(
        "/uploads/1", busy, method="PATCH", status=423, content_type="application/problem+json"
    )
    with pytest.raises(Refused, match="Busy"):
        impatient.push(folder, "team/model")


def test_an_upload_that_forgets_what_it_had_ends(impatient, impostor, folder):
    impostor.say(
        "/uploads", b"", method="POST", status=201, location="/api/v1/uploads/1", upload_offset="0"
    )
    impostor.say("/uploads/1", b"", method="PATCH", status=204, upload_offset="0")
    with pytest.raises(ModelyardError):
        impatient.push(folder, "team/model")
    assert len(impostor.asked) < 50


def test_a_full_disk_there_is_said(impatient, impostor, folder):
    full = {"detail": "No space is left.", "code": "storage_full"}
    impostor.say(
        "/uploads", full, method="POST", status=507, content_type="application/problem+json"
    )
    with pytest.raises(Refused, match="No space") as refusal:
        impatient.push(folder, "team/model")
    assert refusal.value.code == "storage_full"


# --- Answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"<html>hello</html>",
        b"",
        b"[]",
        b"null",
        b"7",
        b"{}",
        b"[" * 200_000,
        b"\xff\xfe",
        json.dumps({**REPOSITORY, "tags": [1]}).encode(),
        json.dumps({**REPOSITORY, "downloads": True}).encode(),
        json.dumps({**REPOSITORY, "labels": [1]}).encode(),
        json.dumps({**REPOSITORY, "latest_version": "1"}).encode(),
    ],
    ids=range(12),
)
def test_answers_that_are_none(impatient, impostor, content):
    impostor.say("/models/team/model", content, content_type="application/json")
    with pytest.raises(BadAnswer):
        impatient.repository("team/model")


@pytest.mark.parametrize(
    "problem", [b"", b"{", b"[1]", b"[" * 200_000, b'{"errors": 7, "code": []}', b'"text"']
)
def test_refusals_that_are_none(impatient, impostor, problem):
    impostor.say("/models/team/model", problem, status=418, content_type="application/problem+json")
    with pytest.raises(Refused) as refusal:
        impatient.repository("team/model")
    assert refusal.value.status == 418


def test_an_answer_larger_than_any(impatient, impostor):
    impostor.say("/models/team/model", b" " * (65 << 20))
    with pytest.raises(BadAnswer, match="larger"):
        impatient.repository("team/model")


def test_the_api_sends_nobody_elsewhere(impatient, impostor, elsewhere):
    impostor.say("/whoami", b"", status=302, location=f"{elsewhere.url}/api/v1/whoami")
    with pytest.raises(BadAnswer, match="name that address"):
        impatient.whoami()
    assert elsewhere.asked == []


class Turns:
    """Gives one answer after the other, and the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.at = []

    def __call__(self, handler):
        self.at.append(time.monotonic())
        status, headers, content = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return status, {"content-type": "application/json", **headers}, json.dumps(content)


def test_a_limit_with_a_time_is_waited_for(impatient, impostor):
    turns = Turns((429, {"retry-after": "1"}, {}), (200, {}, REPOSITORY))
    impostor.say("/models/team/model", turns)
    with Client(impostor.url, "", patience=5.0) as client:
        client.repository("team/model")
    assert turns.at[1] - turns.at[0] >= 1.0


def test_a_server_that_asks_for_patience_gets_it(home, server, token, alice):
    """The real one: the client goes on by itself once the budget of its token has refilled."""
    free_at = use_up(f"token:{Token.objects.get().pk}", seconds=2.0)
    with Client(server.url, token) as client:
        assert client.whoami()["username"] == "alice"
    assert time.time() >= free_at


def test_a_limit_without_a_time_is_final(impatient, impostor):
    turns = Turns((429, {}, {"code": "quota_exceeded", "detail": "Too much."}))
    impostor.say("/models/team/model", turns)
    with pytest.raises(Refused, match="Too much"):
        impatient.repository("team/model")
    assert len(turns.at) == 1


def test_a_limit_beyond_patience_is_final(impatient, impostor):
    turns = Turns((503, {"retry-after": "3600"}, {"detail": "Later."}))
    impostor.say("/models/team/model", turns)
    with pytest.raises(Refused, match="Later"):
        impatient.repository("team/model")
    assert len(turns.at) == 1


def test_a_post_is_sent_again_under_the_same_key(impatient, impostor):
    turns = Turns((503, {}, {}), (201, {}, REPOSITORY))
    impostor.answers["POST", "/api/v1/models"] = turns
    impatient.create_repository("team/model")
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in impostor.asked]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_an_error_of_the_server_is_not_tried_again(impatient, impostor):
    turns = Turns((500, {"x-request-id": "abc"}, {}))
    impostor.say("/models/team/model", turns)
    with pytest.raises(Refused) as refusal:
        impatient.repository("team/model")
    assert (refusal.value.request_id, len(turns.at)) == ("abc", 1)
