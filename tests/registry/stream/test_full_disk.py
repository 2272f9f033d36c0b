"""A real disk that is full: one clear refusal at each door, nothing left, and well once freed."""

import html
import os
import re
import shutil

import httpx
import pytest

from registry.models import Upload, Version
from tests.factories import make_model, make_token
from tests.registry.stream.conftest import WebServer
from tests.registry.stream.test_parts import PARTIAL, join
from tests.registry.stream.test_registration import part
from tests.registry.stream.test_upload import TUS, begin, offset_of, send, signed_in_page

pytestmark = pytest.mark.slow

FILE = 6 << 20


@pytest.fixture
def full(disk, running_server, transactional_db, tmp_path):
    """Start a server whose files go to the small disk, where a filler leaves four megabytes."""
    environment = running_server.environment | {"MODELYARD_STORAGE_URL": f"file://{disk}/store"}
    server = WebServer(environment, tmp_path / "web.log")
    server.start()
    (disk / "filler").write_bytes(bytes(free(disk) - (4 << 20)))
    yield server
    server.stop()


@pytest.fixture
def line(full, alice):
    headers = {"Authorization": f"Bearer {make_token(alice)}"}
    with httpx.Client(base_url=full.url, headers=headers, timeout=30) as line:
        yield line


def free(disk):
    return shutil.disk_usage(disk).free


def refused(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    return (answer.status_code, answer.json()["code"]) == (507, "storage_full")


def test_an_upload_waits_for_space_and_goes_on(line, disk):
    data, before = os.urandom(FILE), free(disk)
    url = begin(line, len(data))
    assert send(line, url, 0, data[: 1 << 20]).status_code == 204
    for _ in range(2):
        assert refused(send(line, url, 1 << 20, data[1 << 20 :]))
        # What was acknowledged stays, and nothing of what was not.
        assert offset_of(line, url) == 1 << 20
        assert before - free(disk) < (1 << 20) + 100_000
    (disk / "filler").unlink()
    assert send(line, url, 1 << 20, data[1 << 20 :]).status_code == 204
    assert Upload.objects.get().blob.size_bytes == FILE


def test_a_version_from_a_form_is_refused_whole(line, disk, alice):
    model = make_model(alice, "classifier")
    url, before = f"/api/v1/models/{model.full_name}/versions", free(disk)
    files = [part("config.json", b"{}"), part("weights.bin", os.urandom(FILE))]
    assert refused(line.post(url, files=files))
    assert Version.objects.count() == 0
    assert before - free(disk) < 100_000
    assert list((disk / "store" / "incoming").iterdir()) == []
    (disk / "filler").unlink()
    assert line.post(url, files=files).status_code == 201


def test_parts_wait_for_the_space_to_be_joined(line, disk):
    pieces = [os.urandom(1_500_000) for _ in range(2)]
    urls = [begin(line, len(piece), **PARTIAL) for piece in pieces]
    for url, piece in zip(urls, pieces, strict=True):
        assert send(line, url, 0, piece).status_code == 204
    before = free(disk)
    assert refused(join(line, urls))
    assert before - free(disk) < 100_000
    assert [offset_of(line, url) for url in urls] == [1_500_000, 1_500_000]
    (disk / "filler").unlink()
    answer = join(line, urls)
    assert answer.status_code == 201, answer.text
    assert Upload.objects.get(concat="final").blob.size_bytes == 3_000_000


def test_a_page_says_so(full, disk, alice):
    make_model(alice, "classifier")
    visitor, token = signed_in_page(full, alice)
    with visitor:
        before = free(disk)
        answer = visitor.post(
            "/models/alice/classifier/versions/new",
            data={"csrfmiddlewaretoken": token},
            files=[("files", ("weights.bin", os.urandom(FILE)))],
            headers={"Origin": full.url},
        )
        assert answer.status_code == 507
        words = html.unescape(re.sub(r"<[^>]+>", " ", answer.text))
        assert "The server has no space left for this file; nothing of it was kept." in words
        assert before - free(disk) < 100_000
        proof = {"Origin": full.url, "X-CSRFToken": token}
        url = begin(visitor, FILE, address="/uploads", **proof)
        assert refused(send(visitor, url, 0, os.urandom(FILE), **proof))
        assert visitor.head(url, headers=TUS).headers["upload-offset"] == "0"
