"""A version from one multipart form: all of it or none of it."""

import hashlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from registry.models import Artifact, Version
from registry.storage import default_storage
from tests.factories import CARD, make_model, make_token, safetensors_bytes

URL = "/api/v1/models/alice/classifier/versions"
WEIGHTS = safetensors_bytes(weight=[1.0, 2.0])


def part(name, data, filename="upload"):
    return (name, (filename, data, "application/octet-stream"))


@pytest.fixture
def post(client, model):
    def post(*files, url=URL, headers=None, **texts):
        return client.post(url, files=list(files), data=texts, headers=headers)

    return post


def test_a_version_from_a_form(post, client):
    answer = post(
        part("model.safetensors", WEIGHTS),
        part("README.md", CARD.encode()),
        part("nested/folder/config.json", b"{}"),
        message="First try",
        tags=json.dumps({"quality": "good"}),
    )
    assert answer.status_code == 201, answer.text
    version = answer.json()
    assert (version["number"], version["state"], version["message"]) == (1, "ready", "First try")
    assert version["parameters_count"] == 2
    assert version["tags"] == {"quality": "good"}
    files = {file["path"]: file["sha256"] for file in version["files"]}
    assert files["model.safetensors"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert set(files) == {"model.safetensors", "README.md", "nested/folder/config.json"}
    assert answer.headers["location"] == f"{URL}/1"
    assert answer.headers["etag"]
    assert client.get(answer.headers["location"]).json() == version
    assert client.get(f"{URL}/1/files/README.md").content == CARD.encode()


def test_parts_called_file_take_the_name_of_their_file(post):
    answer = post(part("file", b"a", "one.txt"), part("files", b"b", "dir/two.txt"))
    assert [file["path"] for file in answer.json()["files"]] == ["dir/two.txt", "one.txt"]


def test_names_beyond_ascii(post):
    answer = post(part("file", b"a", "数据.txt"))
    assert answer.json()["files"][0]["path"] == "数据.txt"


def test_a_large_file_comes_through_whole(post, client):
    data = os.urandom(11 << 20) + b"\r\n--" + os.urandom(100)
    answer = post(part("big.bin", data), part("empty.txt", b""))
    assert answer.status_code == 201
    sizes = {file["path"]: file["size_bytes"] for file in answer.json()["files"]}
    assert sizes == {"big.bin": len(data), "empty.txt": 0}
    assert client.get(f"{URL}/1/files/big.bin").content == data


def test_json_still_goes_to_the_other_way(client, model):
    answer = client.post(URL, json={"message": "metadata only"})
    assert (answer.status_code, answer.json()["files"]) == (201, [])


@pytest.mark.parametrize(
    ("files", "texts", "code"),
    [
        ([part("../evil", b"x")], {}, "bad_path"),
        ([part("file", b"x", "/etc/passwd")], {}, "bad_path"),
        ([part("a.txt", b"x"), part("a.txt", b"y")], {}, "repeated"),
        ([part("a.txt", b"x"), part("A.TXT", b"y")], {}, "bad_path"),
        ([part("model.safetensors", WEIGHTS[:-1])], {}, "malformed_file"),
        ([part("model.safetensors", b"\x80\x04N.")], {}, "malformed_file"),
        ([part("a.txt", b"x")], {"colour": "red"}, "unknown_field"),
        ([part("a.txt", b"x")], {"tags": "not json"}, "malformed_json"),
        ([part("a.txt", b"x")], {"tags": '["list"]'}, "invalid"),
        ([part("a.txt", b"x")], {"message": "\x00"}, "bad_character"),
    ],
)
def test_one_bad_part_registers_nothing(post, model, files, texts, code):
    answer = post(*files, **texts)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert not Version.objects.exists()
    assert not Artifact.objects.exists()
    assert not list(default_storage().spool.glob("incoming/*"))


def raw(client, body, *, boundary="XX", content_type=None):
    kind = content_type or f"multipart/form-data; boundary={boundary}"
    return client.post(URL, content=body, headers={"Content-Type": kind})


def form(*parts, end="--XX--\r\n"):
    return "".join(f"--XX\r\n{head}\r\n\r\n{text}\r\n" for head, text in parts) + end


FILE = 'Content-Disposition: form-data; name="a.txt"; filename="a.txt"'


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (form((FILE, "x"), end=""), "before its closing boundary"),
        ("", "before its closing boundary"),
        ("no form at all", "malformed"),
        (form(("Content-Disposition: attachment", "x")), "no Content-Disposition"),
        (form(("X-Other: y", "x")), "no Content-Disposition"),
        (form((f"{FILE}\r\nContent-Transfer-Encoding: base64", "eA==")), "not understood"),
        (form((f"{FILE}\r\nX-Long: {'y' * 70_000}", "x")), "malformed"),
        (form(('Content-Disposition: form-data; name="message"', "y" * (2 << 20))), "more than"),
    ],
)
def test_a_form_that_is_no_form(client, model, body, detail):
    answer = raw(client, body)
    assert 400 <= answer.status_code < 500
    assert detail in answer.json()["detail"]
    assert not Version.objects.exists()
    assert not list(default_storage().spool.glob("incoming/*"))


def test_text_that_is_no_utf8(client, model):
    head = b'Content-Disposition: form-data; name="message"'
    answer = raw(client, b"--XX\r\n" + head + b"\r\n\r\n\xff\xfe\r\n--XX--\r\n")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", f"multipart/form-data; boundary={'x' * 99}"]
)
def test_a_form_without_a_boundary(client, model, kind):
    answer = raw(client, "x", content_type=kind)
    assert "boundary" in answer.json()["detail"]


def test_a_line_that_breaks_registers_nothing(server, client, model):
    half = f"--XX\r\n{FILE.replace('a.txt', 'b.txt')}\r\n\r\nhalf"
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(
            f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n"
            f"Authorization: {client.headers['authorization']}\r\n"
            "Content-Type: multipart/form-data; boundary=XX\r\n\r\n"
            f"{form((FILE, 'whole'), end=half)}".encode()
        )
    deadline = time.monotonic() + 20
    while f'"POST {URL}" 499' not in server.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not Version.objects.exists()
    assert not list(default_storage().spool.glob("incoming/*"))


def test_only_writers_may_send_and_hidden_stays_hidden(server, client, stranger, bob, alice, model):

    make_model(alice, "hidden", visibility="private")
    answer = stranger.post(URL, files=[part("a.txt", b"x")])
    assert answer.status_code == 401
    headers = {"Authorization": f"Bearer {make_token(bob)}"}
    answer = stranger.post(URL, files=[part("a.txt", b"x")], headers=headers)
    assert answer.status_code == 403
    hidden = URL.replace("classifier", "hidden")
    answer = stranger.post(hidden, files=[part("a.txt", b"x")], headers=headers)
    assert answer.status_code == 404
    assert not Version.objects.exists()


def test_the_same_form_under_one_key_is_one_version(post):
    headers = {"Idempotency-Key": "once-and-only-once"}
    first = post(part("a.txt", b"x"), headers=headers)
    again = post(part("a.txt", b"x"), headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert Version.objects.count() == 1
    other = post(part("a.txt", b"other"), headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_a_dataset_takes_files_the_same_way(client, alice):
    make_model(alice, "digits", kind="dataset")
    url = "/api/v1/datasets/alice/digits/versions"
    answer = client.post(url, files=[part("train.csv", b"text,label\na,1\n")])
    assert answer.status_code == 201
    assert client.get(f"{url}/1/files/train.csv").content == b"text,label\na,1\n"


def test_a_body_that_breaks_off_in_its_chunks_is_no_fault_of_the_server(server, model, alice):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(
            f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
            f"Authorization: Bearer {make_token(alice)}\r\n"
            "Content-Type: multipart/form-data; boundary=X\r\n\r\nZZ\r\n".encode()
        )
        assert line.recv(100).startswith(b"HTTP/1.1 408")
    assert not Version.objects.exists()


@pytest.mark.slow
def test_fifty_versions_at_once_get_fifty_consecutive_numbers(server, alice, model):
    token = make_token(alice)
    start = threading.Barrier(50)

    def create(number):
        with httpx.Client(base_url=server.url, timeout=120) as one:
            start.wait()
            return one.post(
                "/api/v1/models/alice/classifier/versions",
                headers={"Authorization": f"Bearer {token}"},
                json={"message": f"number {number}"},
            )

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(create, range(50)))
    assert [answer.status_code for answer in answers] == [201] * 50
    assert sorted(answer.json()["number"] for answer in answers) == list(range(1, 51))
    assert Version.objects.filter(repository=model).count() == 50
    model.refresh_from_db()
    assert model.latest_number == 50
