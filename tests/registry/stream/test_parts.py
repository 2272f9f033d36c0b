"""Files in parallel parts, by tus's concatenation: joined in order, once, and never half."""

import hashlib
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from registry.models import Upload
from registry.services.uploads import expire_uploads
from registry.storage import default_storage
from tests.factories import make_token, safetensors_bytes
from tests.registry.stream.test_upload import (
    BYTES,
    TUS,
    begin,
    encoded,
    offset_of,
    send,
    signed_in_page,
    stored_bytes,
    upload_of,
)

PARTIAL = {"Upload-Concat": "partial"}


def begin_part(client, data, *, sent=None):
    url = begin(client, len(data), **PARTIAL)
    if data:
        assert send(client, url, 0, data[:sent]).status_code == 204
    return url


def join(client, urls, *, filename="weights.bin", sha256="", address="/api/v1/uploads", **headers):
    metadata = f"filename {encoded(filename)}"
    if sha256:
        metadata += f",sha256 {encoded(sha256)}"
    concat = f"final;{' '.join(urls)}"
    headers = {**TUS, "Upload-Concat": concat, "Upload-Metadata": metadata, **headers}
    return client.post(address, headers=headers)


def in_spool(url):
    return (default_storage().spool / "uploads" / url.rpartition("/")[2]).exists()


def test_parts_sent_at_once_become_one_file(client, model):
    data = safetensors_bytes(weight=[float(number) for number in range(300_000)])
    cuts = [0, 100_001, 100_001, 700_000, len(data)]
    pieces = [data[start:end] for start, end in pairwise(cuts)]
    with ThreadPoolExecutor(4) as pool:
        urls = list(pool.map(lambda piece: begin_part(client, piece), pieces))
    full = [f"{client.base_url}{urls[0].lstrip('/')}", *urls[1:]]
    digest = hashlib.sha256(data).hexdigest()
    answer = join(client, full, filename="model.safetensors", sha256=digest)
    assert answer.status_code == 201, answer.text
    url = answer.headers["location"]
    assert answer.headers["upload-offset"] == str(len(data))
    assert stored_bytes(url) == data
    assert not any(map(in_spool, [url, *urls]))
    head = client.head(url, headers=TUS).headers
    assert (head["upload-length"], head["upload-offset"]) == (str(len(data)), str(len(data)))
    assert head["upload-concat"] == f"final;{' '.join(urls)}"
    body = {"files": [{"path": "model.safetensors", "upload": url.rpartition("/")[2]}]}
    version = client.post(f"/api/v1/models/{model.full_name}/versions", json=body)
    assert version.status_code == 201, version.text
    assert digest in version.text


def test_a_part_says_that_it_is_one_and_is_no_file(client, model):
    url = begin_part(client, b"data")
    head = client.head(url, headers=TUS).headers
    assert (head["upload-concat"], head["upload-offset"]) == ("partial", "4")
    assert upload_of(url).completed_at is None
    body = {"files": [{"path": "a.bin", "upload": url.rpartition("/")[2]}]}
    answer = client.post(f"/api/v1/models/{model.full_name}/versions", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "upload_unfinished")


def test_joining_again_gives_the_same_upload(client):
    urls = [begin_part(client, b"one "), begin_part(client, b"two")]
    first, second = join(client, urls), join(client, urls)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.headers["location"] == second.headers["location"]
    assert Upload.objects.filter(concat="final").count() == 1
    # A part that was joined still says that all of it arrived, and takes its end again.
    assert offset_of(client, urls[0]) == 4
    assert send(client, urls[0], 4, b"").status_code == 204
    assert send(client, urls[0], 0, b"one ").json()["code"] == "upload_complete"


def test_joining_at_the_same_moment_joins_once(client):
    data = [os.urandom(2 << 20) for _ in range(4)]
    urls = [begin_part(client, piece) for piece in data]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: join(client, urls), range(4)))
    assert {answer.status_code for answer in answers} <= {201, 423}
    made = {answer.headers["location"] for answer in answers if answer.status_code == 201}
    assert len(made) == 1
    assert Upload.objects.filter(concat="final").count() == 1
    assert stored_bytes(made.pop()) == b"".join(data)


def test_parts_that_do_not_fit_together_are_refused_and_stay(client):
    one, two, half = (
        begin_part(client, b"one "),
        begin_part(client, b"two"),
        begin_part(client, b"three", sent=2),
    )
    whole = begin(client, 4)
    for urls, status, code in (
        ([one, one], 400, "repeated"),
        ([one, half], 409, "part_unfinished"),
        ([one, whole], 400, "no_part"),
        ([one, f"/api/v1/uploads/{uuid.uuid4()}"], 404, "not_found"),
        ([one, "/api/v1/uploads/../../etc"], 404, "not_found"),
        ([], 400, "bad_count"),
    ):
        answer = join(client, urls)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert Upload.objects.filter(concat="final").count() == 0
    assert join(client, [one, two]).status_code == 201
    answer = join(client, [two, half])
    assert answer.json()["code"] == "part_joined"
    assert join(client, [two, one]).json()["code"] == "part_joined"


def test_parts_out_of_order_can_be_joined_rightly_after_the_refusal(client):
    urls = [begin_part(client, b"one "), begin_part(client, b"two")]
    digest = hashlib.sha256(b"one two").hexdigest()
    answer = join(client, urls[::-1], sha256=digest)
    assert (answer.status_code, answer.json()["code"]) == (400, "digest_mismatch")
    assert Upload.objects.filter(concat="final").count() == 0
    answer = join(client, urls, sha256=digest)
    assert answer.status_code == 201, answer.text
    assert stored_bytes(answer.headers["location"]) == b"one two"


def test_a_malformed_whole_is_refused(client):
    data = safetensors_bytes(weight=[1.0] * 1000)
    urls = [begin_part(client, data[:100]), begin_part(client, data[200:])]
    answer = join(client, urls, filename="model.safetensors")
    assert answer.status_code == 400, answer.text
    assert Upload.objects.filter(concat="final").count() == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Upload-Concat": "all"},
        {"Upload-Concat": "final"},
        {"Upload-Concat": "partial;/api/v1/uploads/x", "Upload-Length": "4"},
    ],
)
def test_another_concatenation_is_refused(client, headers):
    answer = client.post("/api/v1/uploads", headers={**TUS, **headers})
    assert answer.status_code == 400, answer.text
    assert "Upload-Concat" in answer.json()["detail"]


def test_a_whole_takes_neither_a_length_nor_bytes(client):
    urls = [begin_part(client, b"one ")]
    assert join(client, urls, **{"Upload-Length": "4"}).status_code == 400
    url = join(client, urls).headers["location"]
    answer = send(client, url, 4, b"more")
    assert (answer.status_code, answer.json()["code"]) == (403, "final_upload")


def test_parts_together_may_not_be_larger_than_a_file(client):
    parts = [begin_part(client, b"") for _ in range(2)]
    ids = [url.rpartition("/")[2] for url in parts]
    Upload.objects.filter(pk__in=ids).update(length_bytes=200 << 20)
    for part in ids:
        path = default_storage().spool / "uploads" / part
        os.truncate(path, 200 << 20)
    answer = join(client, parts)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_parts_of_somebody_else_do_not_exist(server, client, bob):
    urls = [begin_part(client, b"one ")]
    client.headers["authorization"] = f"Bearer {make_token(bob)}"
    answer = join(client, urls)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert urls[0].rpartition("/")[2] in answer.json()["detail"]


def test_a_joined_part_cannot_be_given_up_alone_and_a_whole_lets_go_of_them(client):
    urls = [begin_part(client, b"one "), begin_part(client, b"two")]
    digest = hashlib.sha256(b"else").hexdigest()
    assert join(client, urls, sha256=digest).status_code == 400
    assert client.delete(urls[0], headers=TUS).status_code == 204
    assert client.head(urls[0], headers=TUS).status_code == 404
    url = join(client, urls[1:]).headers["location"]
    answer = client.delete(urls[1], headers=TUS)
    assert (answer.status_code, answer.json()["code"]) == (409, "part_joined")
    assert client.delete(url, headers=TUS).status_code == 204
    assert client.head(urls[1], headers=TUS).status_code == 404


def test_parts_expire_with_their_bytes(client):
    url = begin_part(client, b"one ")
    Upload.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert expire_uploads() == 1
    assert not in_spool(url)


@pytest.mark.slow
def test_a_server_killed_while_it_joins_has_joined_all_or_nothing(server, client):
    data = [os.urandom(24 << 20) for _ in range(3)]
    digest = hashlib.sha256(b"".join(data)).hexdigest()
    urls = [begin_part(client, piece) for piece in data]
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(join, client, urls, sha256=digest)
        while not Upload.objects.filter(concat="final").exists() and not joining.done():
            pass
        server.kill()
        joining.exception()
    assert not Upload.objects.filter(completed_at__isnull=False).exclude(blob__sha256=digest)
    server.start()
    answer = join(client, urls, sha256=digest)
    assert answer.status_code == 201, answer.text
    assert stored_bytes(answer.headers["location"]) == b"".join(data)


def test_a_page_joins_parts_too(server, alice):
    browser, token = signed_in_page(server, alice)
    with browser:
        proof = {"Origin": server.url, "X-CSRFToken": token}
        headers = {**BYTES, "Upload-Length": "4", **PARTIAL, **proof}
        urls = [
            browser.post("/uploads", headers=headers, content=content).headers["location"]
            for content in (b"one ", b"two ")
        ]
        answer = join(browser, urls, address="/uploads", **proof)
        assert answer.status_code == 201, answer.text
        assert stored_bytes(answer.headers["location"]) == b"one two "
