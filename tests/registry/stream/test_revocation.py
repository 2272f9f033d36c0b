"""A token or session that ends takes what still runs on it along: events, uploads, downloads."""

import base64
import select
import socket
import time

import httpx
import pytest
from django.test import Client
from django.utils import timezone

from registry.models import Job, Namespace, Token
from tests.factories import make_model, make_token, make_version

# What a revocation has to reach is watched for seconds.
pytestmark = pytest.mark.slow

TUS = {"Tus-Resumable": "1.0.0"}
PATIENCE = 60


@pytest.fixture
def job(alice):
    return Job.objects.create(
        kind="train",
        recipe={},
        queue="cpu",
        namespace=Namespace.objects.get(slug="alice"),
        created_by=alice,
    )


def revoke():
    Token.objects.update(revoked_at=timezone.now())


def talk(server, head):
    line = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    line.sendall("\r\n".join([*head, "Host: 127.0.0.1", "", ""]).encode())
    return line


def send_until_answered(line, piece):
    """Go on sending slowly; give the answer that interrupts it."""
    deadline = time.monotonic() + PATIENCE
    while not select.select([line], [], [], 0.05)[0]:
        assert time.monotonic() < deadline, "nobody stops the upload"
        line.sendall(piece)
    return line.recv(64 * 1024)


def begin(client, length):
    name = base64.b64encode(b"weights.bin").decode()
    headers = {**TUS, "Upload-Length": str(length), "Upload-Metadata": f"filename {name}"}
    return client.post("/api/v1/uploads", headers=headers).headers["location"]


def test_events_end(client, job):
    with client.stream("GET", f"/api/v1/jobs/{job.pk}/events", timeout=PATIENCE) as answer:
        lines = answer.iter_lines()
        assert "event: state" in lines
        revoke()
        assert list(lines)[-1] == ""
    assert client.get("/api/v1/jobs").status_code == 401


def test_events_of_a_page_end_with_the_session(server, alice, job):
    page = Client()
    page.force_login(alice)
    cookies = {"sessionid": page.cookies["sessionid"].value}
    with (
        httpx.Client(base_url=server.url, cookies=cookies, timeout=PATIENCE) as browser,
        browser.stream("GET", f"/jobs/{job.pk}/events") as answer,
    ):
        lines = answer.iter_lines()
        assert "event: state" in lines
        page.logout()
        assert list(lines)[-1] == ""


def test_a_resumable_upload_ends_and_can_go_on(server, client, alice):
    length = 200 << 20
    url = begin(client, length)
    head = [
        f"PATCH {url} HTTP/1.1",
        f"Authorization: {client.headers['authorization']}",
        "Tus-Resumable: 1.0.0",
        "Content-Type: application/offset+octet-stream",
        "Upload-Offset: 0",
        f"Content-Length: {length}",
    ]
    with talk(server, head) as line:
        line.sendall(b"x" * 1024)
        revoke()
        assert send_until_answered(line, b"x" * 1024).startswith(b"HTTP/1.1 401")
    other = {**TUS, "Authorization": f"Bearer {make_token(alice)}"}
    offset = httpx.head(f"{server.url}{url}", headers=other).headers["upload-offset"]
    assert int(offset) < length
    kind = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": offset}
    answer = httpx.patch(f"{server.url}{url}", headers={**other, **kind}, content=b"more")
    assert answer.headers["upload-offset"] == str(int(offset) + 4)


def test_a_form_ends_and_registers_nothing(server, client, model):
    head = [
        f"POST /api/v1/models/{model.full_name}/versions HTTP/1.1",
        f"Authorization: {client.headers['authorization']}",
        "Content-Type: multipart/form-data; boundary=b",
        f"Content-Length: {200 << 20}",
    ]
    with talk(server, head) as line:
        line.sendall(
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
        )
        revoke()
        assert send_until_answered(line, b"x" * 1024).startswith(b"HTTP/1.1 401")
    assert not model.versions.exists()


def test_a_download_ends(server, alice):
    size = 64 << 20
    model = make_model(alice, "large", visibility="private")
    make_version(alice, model, {"large.bin": b"x" * size})
    head = [
        "GET /api/v1/models/alice/large/versions/1/files/large.bin HTTP/1.1",
        f"Authorization: Bearer {make_token(alice)}",
    ]
    with talk(server, head) as line:
        received = len(line.recv(64 * 1024))
        revoke()
        deadline = time.monotonic() + PATIENCE
        while part := line.recv(64 * 1024):
            received += len(part)
            # A slow reader: at full speed the file would be through before anybody looks again.
            time.sleep(0.05)
            assert time.monotonic() < deadline, "nobody stops the download"
    assert received < size


def test_who_may_goes_on(client):
    """Looking again ends nothing for somebody whose token is as good as before."""

    def slow():
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            yield b"x" * 1024
            time.sleep(0.1)

    url = begin(client, 1 << 20)
    headers = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    answer = client.patch(url, headers=headers, content=slow(), timeout=PATIENCE)
    assert answer.status_code == 204
    assert int(answer.headers["upload-offset"]) >= 10 * 1024
