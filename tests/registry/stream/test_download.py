"""Downloads: whole, in ranges, not again, counted, and only for those who may."""

import base64
import hashlib
import os
import socket
import time
from pathlib import Path

import httpx
import pytest

from registry.models import DownloadCount
from registry.services import versions
from registry.storage import default_storage
from tests.factories import actor_of, make_model, make_token, make_version
from tests.registry.test_segments import HALVES, put_coded, put_in_pieces

DATA = bytes(range(256)) * 40
FILES = {"weights.bin": DATA, "docs/naïve “notes”.html": b"<script>alert(1)</script>", "empty": b""}


@pytest.fixture
def version(alice, model):
    return make_version(alice, model, FILES)


@pytest.fixture
def url(version):
    return f"/api/v1/models/alice/classifier/versions/{version.number}/files/weights.bin"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def test_a_file_comes_whole(stranger, url):
    answer = stranger.get(url)
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["etag"] == f'"{sha256(DATA)}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-disposition"] == 'attachment; filename="weights.bin"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox;")
    assert answer.headers["x-request-id"]
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"


def test_names_beyond_ascii_survive(stranger, version):
    answer = stranger.get(
        "/api/v1/models/alice/classifier/versions/latest/files/docs/naïve “notes”.html"
    )
    assert answer.content == b"<script>alert(1)</script>"
    assert answer.headers["content-disposition"] == (
        'attachment; filename="na_ve _notes_.html"; '
        "filename*=UTF-8''na%C3%AFve%20%E2%80%9Cnotes%E2%80%9D.html"
    )


def test_an_empty_file(stranger, url):
    answer = stranger.get(url.replace("weights.bin", "empty"))
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "0"


def test_head_says_the_same_without_the_bytes(stranger, url):
    answer = stranger.head(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(DATA))


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10000-", 10_000, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=-999999", 0, len(DATA)),
        ("bytes=10-999999", 10, len(DATA)),
    ],
)
def test_ranges(stranger, url, asked, start, end):
    answer = stranger.get(url, headers={"Range": asked})
    assert answer.content == DATA[start:end]
    if (start, end) != (0, len(DATA)):
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"


@pytest.mark.parametrize("asked", ["bytes=99999-", "bytes=10240-10250", "bytes=-0"])
def test_a_range_beyond_the_file(stranger, url, asked):
    answer = stranger.get(url, headers={"Range": asked})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(DATA)}"


@pytest.mark.parametrize(
    "asked", ["bytes=a-b", "bytes=5-1", "bytes=0-1,3-4", "lines=1-2", "bytes=-"]
)
def test_a_range_that_makes_no_sense_is_ignored(stranger, url, asked):
    answer = stranger.get(url, headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, len(DATA))


def test_a_file_that_is_known_is_not_sent_again(stranger, url):
    etag = f'"{sha256(DATA)}"'
    for known in (etag, f'W/{etag}, "other"', "*"):
        answer = stranger.get(url, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content) == (304, b"")
    assert stranger.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_download_goes_on_only_in_the_same_file(stranger, url):
    same = {"Range": "bytes=5-", "If-Range": f'"{sha256(DATA)}"'}
    assert stranger.get(url, headers=same).status_code == 206
    other = {"Range": "bytes=5-", "If-Range": '"another"'}
    assert stranger.get(url, headers=other).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Range": "bytes=3145728-"},
        {"Range": "bytes=0-0"},
        {"Range": "bytes=3000000-3200000"},
        {"Range": "bytes=-7"},
        {"Range": "bytes=9999999-"},
        {"Range": "bytes=5-9", "If-Range": '"another"'},
        {"If-None-Match": "*"},
    ],
)
def test_a_file_in_pieces_answers_as_a_whole_one(stranger, alice, model, method, headers):
    parts = [os.urandom(3 << 20), os.urandom(4000), os.urandom(3 << 20)]
    version = make_version(alice, model, {"weights.bin": b"".join(parts)})
    url = f"/api/v1/models/alice/classifier/versions/{version.number}/files/weights.bin"
    before = stranger.request(method, url, headers=headers)
    put_in_pieces(default_storage(), parts)
    assert not default_storage().is_whole(sha256(b"".join(parts)))
    after = stranger.request(method, url, headers=headers)
    assert (after.status_code, after.content) == (before.status_code, before.content)
    differ = {"date", "ratelimit", "ratelimit-policy", "x-request-id"}
    assert {k: v for k, v in after.headers.items() if k not in differ} == {
        k: v for k, v in before.headers.items() if k not in differ
    }


def test_a_file_with_a_missing_piece_is_refused_before_it_begins(stranger, alice, model):
    parts = [os.urandom(3 << 20), os.urandom(3 << 20)]
    version = make_version(alice, model, {"weights.bin": b"".join(parts)})
    digest = put_in_pieces(default_storage(), parts)
    folder = default_storage().spool / "segmented" / digest[:2] / digest
    (folder / sha256(parts[1])).unlink()
    url = f"/api/v1/models/alice/classifier/versions/{version.number}/files/weights.bin"
    answer = stranger.get(url)
    assert (answer.status_code, answer.json()["code"]) == (503, "stored_bytes_damaged")
    assert sha256(parts[1]) in answer.json()["detail"]


def test_a_file_that_the_disk_does_not_read_is_refused_before_it_begins(stranger, alice, model):
    version = make_version(alice, model, {"weights.bin": HALVES})
    digest = put_coded(default_storage(), [HALVES])
    path = default_storage().spool / "segmented" / digest[:2] / digest / f"{sha256(HALVES)}.z"
    path.unlink()
    # Reading it fails as reading a bad sector does.
    path.symlink_to("/proc/self/mem")
    url = f"/api/v1/models/alice/classifier/versions/{version.number}/files/weights.bin"
    answer = stranger.get(url)
    assert (answer.status_code, answer.json()["code"]) == (503, "stored_bytes_damaged")
    assert "Input/output error" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("alice/classifier/versions/1/files/absent", "file_not_found"),
        ("alice/classifier/versions/9/files/weights.bin", "version_not_found"),
        ("alice/classifier/versions/@absent/files/weights.bin", "version_not_found"),
        ("alice/absent/versions/1/files/weights.bin", "model_not_found"),
        ("alice/classifier/versions/1/files/..%2F..%2Fetc%2Fpasswd", "file_not_found"),
        ("alice/classifier/versions/1/files/a%00b", "file_not_found"),
        ("alice/classifier/versions/1/files/a%FFb", "file_not_found"),
        ("alice/classifier%0A/versions/1/files/a", "model_not_found"),
    ],
)
def test_what_is_not_there(stranger, version, path, code):
    answer = stranger.get(f"/api/v1/models/{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_private_files_are_for_members_and_tokens_only(server, client, stranger, alice, bob):
    hidden = make_model(alice, "hidden", visibility="private")
    make_version(alice, hidden, {"a.txt": b"secret"})
    url = "/api/v1/models/alice/hidden/versions/1/files/a.txt"
    assert client.get(url).content == b"secret"
    missing = stranger.get("/api/v1/models/alice/never/versions/1/files/a.txt").json()
    for headers in ({}, {"Authorization": f"Bearer {make_token(bob)}"}):
        answer = stranger.get(url, headers=headers)
        assert answer.status_code == 404
        assert answer.json()["code"] == missing["code"]
    answer = stranger.get(url, headers={"Authorization": "Bearer my_wrong"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"]


def test_other_methods_are_refused(client, url):
    answer = client.put(url, content=b"x")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"
    assert answer.json()["code"] == "method_not_allowed"


def test_downloads_are_counted_in_batches(stranger, url, version):
    for _ in range(3):
        stranger.get(url)
    stranger.get(url, headers={"Range": "bytes=100-"})
    stranger.head(url)
    deadline = time.monotonic() + 15
    while not DownloadCount.objects.filter(version=version, count=3).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    version.repository.refresh_from_db()
    assert version.repository.downloads_count == 3


def test_bytes_that_are_gone_are_no_empty_file(stranger, url, version):
    from registry.storage import default_storage  # noqa: PLC0415

    default_storage().delete(sha256(DATA))
    assert stranger.get(url).status_code == 404


def resident_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError(pid)


def test_a_slow_or_vanishing_client_costs_no_memory(server, stranger, alice, model):
    size = 96 << 20
    make_version(alice, model, {"big.bin": os.urandom(size)})
    path = "/api/v1/models/alice/classifier/versions/1/files/big.bin"
    before = resident_kib(server.worker_pid())
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        line.recv(65536)
        # Reads nothing more, and leaves; meanwhile another client gets the whole file.
        assert len(stranger.get(path).content) == size
    assert resident_kib(server.worker_pid()) - before < 60_000
    deadline = time.monotonic() + 10
    while f"{path}" + '" 499' not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()[-2000:]
        time.sleep(0.05)


def test_a_page_downloads_with_its_session(server, django_user_model, alice):
    from django.test import Client  # noqa: PLC0415

    hidden = make_model(alice, "hidden", visibility="private")
    make_version(alice, hidden, {"a.txt": b"secret"})
    page = Client()
    page.force_login(alice)
    cookie = page.cookies["sessionid"].value
    path = "/models/alice/hidden/versions/1/files/a.txt"
    with httpx.Client(base_url=server.url, timeout=30) as browser:
        assert browser.get(path).status_code == 404
        assert "text/html" in browser.get(path).headers["content-type"]
        browser.cookies.set("sessionid", cookie)
        assert browser.get(path).content == b"secret"
        assert browser.get(f"/zh-hans{path}").content == b"secret"
        # A cookie opens no machine door.
        assert browser.get(f"/api/v1{path}").status_code == 404
        # A token opens no page.
        browser.cookies.clear()
        token = {"Authorization": f"Bearer {make_token(alice)}"}
        assert browser.get(path, headers=token).status_code == 404


def test_who_pulls_a_deprecated_file_is_told_and_an_archived_one_is_kept(client, stranger, alice):
    version = make_version(alice, make_model(alice, "old"))
    actor, path = actor_of(alice), "/api/v1/models/alice/old/versions/1/files/model.safetensors"
    change = {"state": "deprecated", "state_reason": "Use 2."}
    versions.describe_version(actor=actor, version=version, changes=change)
    for answer in (stranger.get(path), stranger.head(path)):
        assert answer.status_code == 200
        assert answer.headers["X-Modelyard-Notice"] == 'deprecated;reason=%"Use 2."'
        assert answer.headers["Deprecation"].startswith("@")
    versions.describe_version(actor=actor, version=version, changes={"state": "archived"})
    refused = stranger.get(path)
    assert (refused.status_code, refused.json()["code"]) == (403, "version_archived")
    assert client.get(path).headers["X-Modelyard-Notice"] == "archived"
    # In a browser it is a page that says so.
    for prefix, words in (("", "is archived"), ("/zh-hans", "已归档")):
        page = stranger.get(prefix + path.removeprefix("/api/v1"))
        assert page.status_code == 403
        assert page.headers["Content-Type"].startswith("text/html")
        assert words in page.text
