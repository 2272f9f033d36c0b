"""Everything that is no stream reaches Django whole, bounded and with its id."""

import re
import socket
from contextlib import ExitStack

import httpx
import pytest
from django.conf import settings
from django.db import connection, transaction

from registry.models import Event
from tests.factories import make_version
from tests.local.waiting import wait_until
from tests.registry.stream.conftest import WebServer


def ask(server, text):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(text.encode("latin-1"))
        answer = b""
        while block := line.recv(65536):
            answer += block
    return answer.decode("latin-1")


def test_every_answer_has_an_id(server, client, model, alice):
    make_version(alice, model, {"a.txt": b"x"})
    for path in (
        "/login",
        "/api/v1/whoami",
        "/api/v1/nothing",
        "/api/v1/models/alice/classifier/versions/1/files/a.txt",
        "/api/v1/models/alice/classifier/versions/1/files/b.txt",
    ):
        assert re.fullmatch(r"[0-9a-f]{16}", client.get(path).headers["x-request-id"])
        kept = client.get(path, headers={"X-Request-Id": "from-a-proxy-1"})
        assert kept.headers["x-request-id"] == "from-a-proxy-1"
        replaced = client.get(path, headers={"X-Request-Id": "<script>alert(1)</script>"})
        assert re.fullmatch(r"[0-9a-f]{16}", replaced.headers["x-request-id"])


def test_a_body_for_django_is_bounded(client, model):
    answer = client.post("/api/v1/models", content=b" " * (12 << 20))
    assert answer.status_code == 413
    assert answer.json()["code"] == "too_large"
    chunks = (b" " * (1 << 20) for _ in range(12))
    answer = client.post("/api/v1/models", content=chunks)
    assert answer.status_code == 413


def test_a_large_answer_comes_in_parts(client):
    answer = client.get("/static/vendor/htmx-4.min.js")
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == len(answer.content) > 10_000
    assert client.get("/api/v1/openapi.json").status_code == 200


def test_clients_that_read_nothing_hold_no_thread(server, client, model, alice):
    rows = [
        Event(action="model.create", namespace=model.namespace, data={"text": "x" * 20_000})
        for _ in range(1000)
    ]
    Event.objects.bulk_create(rows)
    request = (
        f"GET /api/v1/events/export HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: {client.headers['authorization']}\r\n\r\n"
    )
    with ExitStack() as lines:
        for _ in range(settings.WEB_THREADS + 1):
            line = lines.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.settimeout(20)
            line.connect(("127.0.0.1", server.port))
            line.sendall(request.encode())
            assert line.recv(12) == b"HTTP/1.1 200"
        assert client.get("/api/v1/whoami").status_code == 200
    export = client.get("/api/v1/events/export")
    assert len(export.content.splitlines()) >= 1000


def test_a_header_with_an_underscore_poses_as_no_other(server):
    answer = ask(
        server,
        "GET /api/v1/whoami HTTP/1.1\r\nHost: x\r\nX_Request_Id: posing-as-another\r\n"
        "Connection: close\r\n\r\n",
    )
    assert "posing-as-another" not in answer


def test_odd_addresses_are_no_server_errors(server, client):
    for path in (
        "/%ff",
        "/api/v1/%00",
        "/models/%ff/%00",
        "/zh-hans/%e4%bd",
        "//evil.example/",
        "/%",
    ):
        answer = ask(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.split(" ", 2)[1] in {"301", "302", "400", "404"}, (path, answer[:200])


@pytest.mark.parametrize("length", ["-1", "abc", "1, 2"])
def test_a_length_that_is_no_number(server, length):
    answer = ask(
        server,
        f"POST /api/v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
        "Connection: close\r\n\r\n",
    )
    assert answer == "" or answer.split(" ", 2)[1] == "400"


def test_the_access_log_says_who_asked_for_what_and_no_secrets(server, client):
    client.get("/api/v1/whoami?token=my_very_secret", headers={"X-Request-Id": "find-this-line"})

    def lines():
        return [line for line in server.log.read_text().splitlines() if "find-this-line" in line]

    # The line is written after the answer has left.
    wait_until(lines, "the request in the access log")
    assert len(lines()) == 1
    assert '127.0.0.1 "GET /api/v1/whoami" 200 0 ' in lines()[0]
    log = server.log.read_text()
    assert "my_very_secret" not in log
    assert client.headers["authorization"].split()[1] not in log


def test_pages_and_streams_share_their_addresses_with_django(client, model, alice):
    make_version(alice, model, {"a.txt": b"x"})
    listing = client.get("/api/v1/models/alice/classifier/versions/1/files")
    assert [file["path"] for file in listing.json()["items"]] == ["a.txt"]
    assert client.get("/api/v1/models/alice/classifier/versions").json()["items"]
    assert client.get("/models/alice/classifier/versions/1").status_code == 200


@pytest.fixture
def hasty(process_environment, tmp_path):
    """Start a server whose database works on nothing for longer than a second."""
    environment = {**process_environment, "MODELYARD_STATEMENT_SECONDS": "1"}
    server = WebServer(environment, tmp_path / "web.log")
    server.start()
    yield server
    server.stop()


@pytest.mark.slow
def test_what_takes_the_database_too_long_is_stopped(hasty, model):
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE registry_repository IN ACCESS EXCLUSIVE MODE")
        answer = httpx.get(f"{hasty.url}/api/v1/models", timeout=30)
        page = httpx.get(f"{hasty.url}/zh-hans/models", timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "too_slow")
    assert answer.headers["retry-after"] == "1"
    assert page.status_code == 503
    assert "要求少一些" in page.text
    assert httpx.get(f"{hasty.url}/api/v1/models", timeout=30).status_code == 200
