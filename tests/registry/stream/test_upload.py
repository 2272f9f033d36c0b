"""Resumable uploads: whatever breaks, what was acknowledged is there and the rest can follow."""

import asyncio
import base64
import contextlib
import hashlib
import os
import signal
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from registry.models import Upload
from registry.storage import default_storage
from registry.stream import upload as upload_door
from tests.factories import make_token, safetensors_bytes
from tests.local.waiting import wait_until

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def begin(client, length, *, filename="weights.bin", address="/api/v1/uploads", **headers):
    metadata = f"filename {encoded(filename)}"
    answer = client.post(
        address,
        headers={**TUS, "Upload-Length": str(length), "Upload-Metadata": metadata, **headers},
    )
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def send(client, url, offset, data, **headers):
    return client.patch(
        url, content=data, headers={**BYTES, "Upload-Offset": str(offset), **headers}
    )


def offset_of(client, url):
    answer = client.head(url, headers=TUS)
    assert answer.status_code == 200, answer.headers
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def upload_of(url):
    return Upload.objects.get(pk=url.rpartition("/")[2])


def stored_bytes(url):
    return default_storage().read(upload_of(url).blob.sha256)


def test_what_the_server_offers(stranger):
    answer = stranger.options("/api/v1/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-max-size"] == str(256 << 20)
    assert set(answer.headers["tus-extension"].split(",")) == {
        "creation",
        "creation-with-upload",
        "checksum",
        "concatenation",
        "expiration",
        "termination",
    }
    assert answer.headers["tus-checksum-algorithm"] == "sha256,sha1"


def test_a_file_in_pieces_becomes_a_version(client, model):
    data = safetensors_bytes(weight=[float(n) for n in range(1000)])
    url = begin(client, len(data), filename="model.safetensors")
    assert offset_of(client, url) == 0
    first = send(client, url, 0, data[:100])
    assert (first.status_code, first.headers["upload-offset"]) == (204, "100")
    assert first.headers["upload-expires"].endswith("GMT")
    assert send(client, url, 100, data[100:]).headers["upload-offset"] == str(len(data))
    assert stored_bytes(url) == data
    assert offset_of(client, url) == len(data)
    assert not list(default_storage().spool.glob(f"uploads/{upload_of(url).pk}*"))
    answer = client.post(
        "/api/v1/models/alice/classifier/versions",
        json={"files": [{"path": "model.safetensors", "upload": url.rpartition("/")[2]}]},
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["parameters_count"] == 1000


def test_creation_with_upload_and_an_empty_file(client):
    answer = client.post(
        "/api/v1/uploads", content=b"whole", headers={**BYTES, "Upload-Length": "5"}
    )
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "5")
    assert stored_bytes(answer.headers["location"]) == b"whole"
    assert stored_bytes(begin(client, 0)) == b""


def test_sending_the_end_again_changes_nothing(client):
    url = begin(client, 4)
    send(client, url, 0, b"data")
    assert send(client, url, 4, b"").status_code == 204
    again = send(client, url, 0, b"data")
    assert (again.status_code, again.json()["code"]) == (409, "upload_complete")


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_checksum_keeps_what_is_right_only(client, algorithm):
    def checksum(data):
        digest = hashlib.new(algorithm, data).digest()
        return f"{algorithm} {base64.b64encode(digest).decode()}"

    url = begin(client, 8)
    good = send(client, url, 0, b"good", **{"Upload-Checksum": checksum(b"good")})
    assert good.status_code == 204
    bad = send(client, url, 4, b"evil", **{"Upload-Checksum": checksum(b"good")})
    assert (bad.status_code, bad.json()["code"]) == (460, "checksum_mismatch")
    assert offset_of(client, url) == 4
    assert send(client, url, 4, b"best", **{"Upload-Checksum": checksum(b"best")}).is_success
    assert stored_bytes(url) == b"goodbest"


@pytest.mark.parametrize(
    ("headers", "status", "detail"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "tus 1.0.0"),
        ({"Content-Type": "application/octet-stream"}, 415, "application/offset+octet-stream"),
        ({"Upload-Offset": "-1"}, 400, "Upload-Offset"),
        ({"Upload-Offset": "x"}, 400, "Upload-Offset"),
        ({"Upload-Offset": "3"}, 409, "at byte 0, not 3"),
        ({"Upload-Offset": "7"}, 413, "Upload-Length said 8"),
        ({"Upload-Checksum": "md5 AAAA"}, 400, "sha256, sha1"),
        ({"Upload-Checksum": "sha256 ??"}, 400, "no base64"),
        ({"Upload-Checksum": b"sha256 \xe9"}, 400, "no base64"),
    ],
)
def test_a_part_that_is_wrong_is_refused(client, headers, status, detail):
    url = begin(client, 8)
    answer = send(client, url, 0, b"data", **headers)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert offset_of(client, url) == 0


@pytest.mark.parametrize(
    ("headers", "status", "detail"),
    [
        ({}, 400, "Upload-Length"),
        ({"Upload-Length": "many"}, 400, "Upload-Length"),
        ({"Upload-Defer-Length": "1"}, 400, "length must be known"),
        ({"Upload-Length": str(1 << 40)}, 413, "more than one file may have"),
        ({"Upload-Length": "1", "Upload-Metadata": "filename %%%"}, 400, "base64"),
        ({"Upload-Length": "1", "Upload-Metadata": b"filename \xe9\xe9"}, 400, "base64"),
        ({"Upload-Length": "1", "Upload-Metadata": "a YQ==,a YQ=="}, 400, "twice"),
        ({"Upload-Length": "1", "Upload-Metadata": "sha256 eHl6"}, 400, "64 hexadecimal"),
        ({"Upload-Length": "1", "Upload-Metadata": "a " + "A" * 20_000}, 400, "longer than"),
    ],
)
def test_an_upload_that_makes_no_sense_is_not_begun(client, headers, status, detail):
    answer = client.post("/api/v1/uploads", headers={**TUS, **headers})
    assert answer.status_code == status
    assert detail in answer.json()["detail"]
    assert not Upload.objects.exists()


def test_more_than_announced_is_refused_even_in_chunks(client):
    url = begin(client, 8)
    answer = send(client, url, 0, iter([b"12345", b"6789"]))
    assert answer.status_code == 413
    assert offset_of(client, url) == 0


def test_other_bytes_than_promised_end_the_upload(client):
    promised = hashlib.sha256(b"good").hexdigest()
    url = begin(client, 4, **{"Upload-Metadata": f"sha256 {encoded(promised)}"})
    answer = send(client, url, 0, b"ill!")
    assert (answer.status_code, answer.json()["code"]) == (400, "digest_mismatch")
    assert client.head(url, headers=TUS).status_code == 404
    assert not default_storage().exists(hashlib.sha256(b"ill!").hexdigest())


def test_a_malformed_file_is_refused_at_once(client):
    data = safetensors_bytes(weight=[1.0])[:-1]
    url = begin(client, len(data), filename="model.safetensors")
    answer = send(client, url, 0, data)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_file")
    assert "end at byte" in answer.json()["detail"]
    assert not Upload.objects.exists()
    assert not default_storage().exists(hashlib.sha256(data).hexdigest())


def test_uploads_are_their_owners_alone(server, client, bob):
    url = begin(client, 4)
    headers = {"Authorization": f"Bearer {make_token(bob)}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as other:
        assert other.head(url, headers=TUS).status_code == 404
        assert send(other, url, 0, b"data").status_code == 404
        assert other.delete(url, headers=TUS).status_code == 404
    with httpx.Client(base_url=server.url, timeout=30) as nobody:
        answer = nobody.post("/api/v1/uploads", headers={**TUS, "Upload-Length": "4"})
        assert answer.status_code == 401
    assert offset_of(client, url) == 0


def test_a_token_that_may_only_read_uploads_nothing(server, client, alice):
    url = begin(client, 4)
    headers = {**TUS, "Authorization": f"Bearer {make_token(alice, scopes=['read'])}"}
    answer = httpx.post(
        f"{server.url}/api/v1/uploads", headers={**headers, "Upload-Length": "4"}, timeout=30
    )
    assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as reader:
        assert send(reader, url, 0, b"data").status_code == 403
        assert reader.delete(url).status_code == 403
    assert offset_of(client, url) == 0


def test_an_upload_can_be_given_up(client):
    url = begin(client, 8)
    send(client, url, 0, b"some")
    assert client.delete(url, headers=TUS).status_code == 204
    assert client.head(url, headers=TUS).status_code == 404
    assert client.delete(url, headers=TUS).status_code == 404
    assert not list(default_storage().spool.glob(f"uploads/{url.rpartition('/')[2]}*"))


def open_patch(server, client, url, length, offset=0):
    """Begin a PATCH by hand, to break it."""
    line = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    line.sendall(
        f"PATCH {url} HTTP/1.1\r\nHost: x\r\nAuthorization: {client.headers['authorization']}\r\n"
        f"Tus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\n"
        f"Upload-Offset: {offset}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return line


def test_a_broken_line_loses_nothing(server, client):
    data = os.urandom(9 << 20)
    url = begin(client, len(data))
    with open_patch(server, client, url, len(data)) as line:
        line.sendall(data[: 5 << 20])
    wait_until(lambda: f'{url}" 499' in server.log.read_text(), "the log")
    assert offset_of(client, url) == 5 << 20
    assert upload_of(url).completed_at is None
    assert send(client, url, 5 << 20, data[5 << 20 :]).status_code == 204
    assert stored_bytes(url) == data


def test_a_part_with_a_checksum_that_broke_off_does_not_count(server, client):
    url = begin(client, 1000)
    line = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    with line:
        line.sendall(
            f"PATCH {url} HTTP/1.1\r\nHost: x\r\nTus-Resumable: 1.0.0\r\n"
            f"Authorization: {client.headers['authorization']}\r\n"
            "Content-Type: application/offset+octet-stream\r\nUpload-Offset: 0\r\n"
            f"Upload-Checksum: sha1 {base64.b64encode(bytes(20)).decode()}\r\n"
            "Content-Length: 1000\r\n\r\n".encode()
            + bytes(500)
        )
    wait_until(lambda: '" 499' in server.log.read_text().rpartition(url)[2], "the log")
    assert offset_of(client, url) == 0


def is_being_written(url):
    """Say whether the server holds the upload; trying to lock it would keep the server out."""
    part = default_storage().spool / "uploads" / url.rpartition("/")[2]
    inode = f":{part.stat().st_ino} "
    return any(inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_a_client_that_comes_back_takes_over_from_its_dead_connection(server, client):
    url = begin(client, 8)
    with open_patch(server, client, url, 8) as dead:
        dead.sendall(b"half")
        wait_until(lambda: is_being_written(url), "the first bytes")
        offset = offset_of(client, url)
        assert not is_being_written(url)
        assert send(client, url, offset, b"halfdone"[offset:]).status_code == 204
    assert stored_bytes(url) == b"halfdone"


def test_a_connection_that_is_taken_over_hears_of_it(server, client):
    url = begin(client, 8)
    with open_patch(server, client, url, 8) as older:
        older.sendall(b"half")
        wait_until(lambda: is_being_written(url), "the first bytes")
        offset = offset_of(client, url)
        older.settimeout(30)
        older.sendall(b"late")
        assert older.recv(100).startswith(b"HTTP/1.1 423")
    assert send(client, url, offset, b"halfdone"[offset:]).status_code == 204


def test_a_request_that_is_stopped_while_it_opens_an_upload_lets_go_of_it(monkeypatch):
    storage, upload = default_storage(), SimpleNamespace(pk=uuid.uuid4(), length_bytes=8)
    storage.begin_upload(str(upload.pk))
    began, go_on = threading.Event(), threading.Event()

    def open_slowly(*args, **options):
        began.set()
        assert go_on.wait(10)
        return type(storage).open_upload(storage, *args, **options)

    async def stop_while_opening():
        monkeypatch.setattr(storage, "open_upload", open_slowly)
        task = asyncio.create_task(upload_door._append(None, upload, 0, None))
        assert await asyncio.to_thread(began.wait, 10)
        task.cancel()
        go_on.set()
        await task

    # In a thread of its own: Playwright leaves a running loop in the one of the tests.
    with ThreadPoolExecutor(1) as thread, pytest.raises(asyncio.CancelledError):
        thread.submit(lambda: asyncio.run(stop_while_opening())).result()
    monkeypatch.undo()
    storage.open_upload(str(upload.pk), 0).close()


def test_two_processes_never_write_to_one_upload(client):
    url = begin(client, 8)
    sink = default_storage().open_upload(url.rpartition("/")[2], 0)
    try:
        answer = send(client, url, 0, b"data")
    finally:
        sink.close()
    assert (answer.status_code, answer.json()["code"]) == (423, "upload_busy")
    assert send(client, url, 0, b"data").status_code == 204


@pytest.mark.slow
def test_uploads_survive_kill_9_of_the_server(server, client):
    data = os.urandom(6 << 20)
    acknowledged = begin(client, len(data))
    assert send(client, acknowledged, 0, data[: 1 << 20]).status_code == 204
    complete = begin(client, 4)
    assert send(client, complete, 0, b"safe").status_code == 204
    with (
        contextlib.suppress(OSError),
        open_patch(server, client, acknowledged, len(data) - (1 << 20), 1 << 20) as line,
    ):
        line.sendall(data[1 << 20 : -10])
        os.kill(server.worker_pid(), signal.SIGKILL)
        server.kill()
    server.start()
    assert stored_bytes(complete) == b"safe"
    offset = offset_of(client, acknowledged)
    assert 1 << 20 <= offset < len(data)
    assert send(client, acknowledged, offset, data[offset:]).status_code == 204
    assert stored_bytes(acknowledged) == data


def test_an_upload_whose_end_was_never_recorded_is_completed_by_asking(client):
    url = begin(client, 4)
    upload = upload_of(url)
    default_storage().append_upload(str(upload.pk), 0, [b"data"])
    assert offset_of(client, url) == 4
    assert stored_bytes(url) == b"data"


def test_an_upload_that_another_process_is_completing_is_busy(client):
    url = begin(client, 4)
    sink = default_storage().open_upload(url.rpartition("/")[2], 0)
    try:
        sink.write(b"data")
        assert client.head(url, headers=TUS).status_code == 423
    finally:
        sink.close()
    assert offset_of(client, url) == 4
    assert stored_bytes(url) == b"data"


def signed_in_page(server, alice):
    from django.test import Client  # noqa: PLC0415

    page = Client(enforce_csrf_checks=True)
    page.force_login(alice)
    browser = httpx.Client(base_url=server.url, timeout=30)
    browser.cookies.set("sessionid", page.cookies["sessionid"].value)
    token = "a" * 32
    browser.cookies.set("csrftoken", token)
    return browser, token


def test_a_page_uploads_with_its_session_and_its_csrf_token(server, alice):
    browser, token = signed_in_page(server, alice)
    with browser:
        proof = {"Origin": server.url, "X-CSRFToken": token}
        headers = {**BYTES, "Upload-Length": "4", **proof}
        answer = browser.post("/uploads", headers=headers, content=b"data")
        assert answer.status_code == 201, answer.text
        location = answer.headers["location"]
        assert location.startswith("/uploads/")
        assert stored_bytes(location) == b"data"
        assert browser.head(location, headers=TUS).headers["upload-offset"] == "4"
        assert browser.delete(location, headers={**TUS, **proof}).status_code == 204


@pytest.mark.parametrize(
    "change",
    [
        {"Origin": None},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"X-CSRFToken": None},
        {"X-CSRFToken": "b" * 32},
    ],
)
def test_another_site_cannot_upload_in_a_visitors_name(server, alice, change):
    browser, token = signed_in_page(server, alice)
    with browser:
        headers = {**TUS, "Upload-Length": "4", "Origin": server.url, "X-CSRFToken": token}
        headers = {name: value for name, value in {**headers, **change}.items() if value}
        answer = browser.post("/uploads", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "csrf_failed")
        # The same cookies open no machine door.
        answer = browser.post("/api/v1/uploads", headers=headers)
        assert answer.status_code == 401
    assert not Upload.objects.exists()


def test_a_page_is_refused_in_its_own_language_and_a_program_in_english(server, alice):
    browser, token = signed_in_page(server, alice)
    with browser:
        headers = {**TUS, "Upload-Length": "-4", "Origin": server.url, "X-CSRFToken": token}
        chinese = browser.post("/zh-hans/uploads", headers=headers).json()
        english = browser.post("/uploads", headers=headers).json()
        machine = browser.post(
            "/api/v1/uploads", headers={**headers, "Accept-Language": "zh-hans"}
        ).json()
    assert chinese["detail"] == "标头 Upload-Length 必须是字节数，而不是 '-4'。"
    assert chinese["title"] == "请求无效"
    assert english["detail"] == "The header Upload-Length must be a number of bytes, not '-4'."
    assert chinese["code"] == english["code"]
    assert machine["detail"] == english["detail"]
