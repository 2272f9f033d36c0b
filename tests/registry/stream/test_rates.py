"""Streams count as other requests do, but for the pieces of an upload that are worth a request."""

import httpx
import pytest

from registry.models import Job, Namespace, Token
from registry.rates import WRITES
from registry.stream.routes import UNCOUNTED_BYTES
from tests.budgets import refill, use_up
from tests.factories import make_version

TUS = {"Tus-Resumable": "1.0.0"}
PIECE = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def caller(client):
    return f"token:{Token.objects.get().pk}"


@pytest.fixture
def download(alice, model):
    make_version(alice, model, {"a.txt": b"text"})
    return "/api/v1/models/alice/classifier/versions/1/files/a.txt"


def begin(client, length):
    return client.post("/api/v1/uploads", headers={**TUS, "Upload-Length": str(length)})


def send(client, location, offset, piece):
    headers = {**PIECE, "Upload-Offset": str(offset)}
    return client.patch(location, headers=headers, content=piece)


def refused(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "rate_limited"
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert answer.headers["ratelimit"].startswith('"requests";r=')
    return answer.status_code == 429


def test_streams_say_what_is_left(client, caller, download):
    begun = begin(client, 10)
    for answer, policy in (
        (client.get(download), '"requests";q=60000;w=60'),
        (client.get(download, headers={"Range": "bytes=9-"}), '"requests";q=60000;w=60'),
        (begun, '"requests";q=60000;w=60, "writes";q=12000;w=60'),
        (client.head(begun.headers["location"], headers=TUS), '"requests";q=60000;w=60'),
        (client.get(f"{download}/none"), '"requests";q=60000;w=60'),
    ):
        assert answer.headers["ratelimit-policy"] == policy, answer
        assert answer.headers["ratelimit"].startswith('"requests";r=59'), answer


def test_a_stream_is_refused_and_goes_on_later(client, caller, download, alice):
    job = Job.objects.create(
        kind="train", recipe={}, queue="cpu", namespace=Namespace.objects.get(slug="alice")
    )
    location = begin(client, 10).headers["location"]
    use_up(caller)
    assert refused(client.get(download))
    assert refused(begin(client, 10))
    assert refused(send(client, location, 0, b"12345"))
    assert refused(client.get(f"/api/v1/jobs/{job.pk}/events"))
    assert refused(client.post("/api/v1/models/alice/classifier/versions", files={"a": b"x"}))
    refill(caller)
    assert client.get(download).content == b"text"
    assert send(client, location, 0, b"12345").headers["upload-offset"] == "5"


def test_a_form_with_files_is_a_change(client, caller, model):
    use_up(caller, WRITES)
    address = "/api/v1/models/alice/classifier/versions"
    answer = client.post(address, files={"a.txt": b"x"})
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert '"writes";r=0' in answer.headers["ratelimit"]
    refill(caller, WRITES)
    made = client.post(address, files={"a.txt": b"x"})
    assert made.status_code == 201
    assert '"writes";r=11' in made.headers["ratelimit"]


def test_big_pieces_of_an_upload_never_use_a_budget_up(client, caller):
    """So that five gigabytes are no more requests than one; a bad token is counted all the same."""
    piece = b"x" * UNCOUNTED_BYTES
    location = begin(client, 2 * len(piece) + 1).headers["location"]
    use_up(caller)
    for number in range(2):
        answer = send(client, location, number * len(piece), piece)
        assert (answer.status_code, "ratelimit" in answer.headers) == (204, False)
    assert refused(send(client, location, 2 * len(piece), b"x"))
    address = str(client.base_url)
    with httpx.Client(base_url=address, headers={"Authorization": "Bearer my_guess"}) as guesser:
        answer = send(guesser, location, 0, piece)
    assert answer.status_code == 401
    assert "ratelimit" in answer.headers


def test_an_address_is_counted_where_there_is_no_token(stranger, download):
    use_up("address:127.0.0.1")
    try:
        # What the server has taken in advance for this address may be used up first.
        answers = (stranger.get(download) for _ in range(1000))
        assert refused(next(answer for answer in answers if answer.status_code != 200))
    finally:
        refill("address:127.0.0.1")
    assert stranger.get(download).status_code == 200
