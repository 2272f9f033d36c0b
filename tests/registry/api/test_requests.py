"""What may arrive at any address: broken JSON, wrong media types, unknown paths, repeated posts."""

import base64
import json
import time
import tracemalloc
from contextlib import suppress
from urllib.parse import unquote

import pytest
from django.conf import settings
from django.core.cache import cache
from django.db import OperationalError
from django.test import Client
from hypothesis import example, given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as BrokerDown

from registry.api.v1 import idempotency
from registry.api.v1.parsers import MAX_ANONYMOUS_BYTES, MAX_BYTES, parse_json
from registry.errors import Invalid
from registry.models import Repository, Token
from registry.services import catalog
from tests.factories import PASSWORD, make_model
from tests.local.waiting import wait_until
from tests.registry.api.conftest import Api, api_of, problem_of

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid"),
        (b"{", "malformed_json"),
        (b"nonsense", "malformed_json"),
        (b'{"a": 1} {"b": 2}', "malformed_json"),
        (b'{"name": "a", "name": "b"}', "duplicate_key"),
        (b'{"tags": {"a": "1", "a": "2"}}', "duplicate_key"),
        (b'{"name": NaN}', "not_finite"),
        (b'{"name": -Infinity}', "not_finite"),
        (b'{"name": 1e999}', "not_finite"),
        (b'{"name": 123456789012345678901}', "out_of_range"),
        (b'{"name": ' + b"1" * 5000 + b"}", "out_of_range"),
        (b'{"name": "a\\u0000b"}', "nul_character"),
        (b'{"a\\u0000": 1}', "nul_character"),
        (b'{"name": "\\ud800"}', "lone_surrogate"),
        (b'{"name": "\\udc00\\ud800"}', "lone_surrogate"),
        (b'{"name": "\x00"}', "malformed_json"),
        (b'{"name": "\xff"}', "not_utf8"),
        (b'{"name": "\xed\xa0\x80"}', "not_utf8"),
        (b"\xef\xbb\xbf{}", "malformed_json"),
        (b"[" * 100_000, "too_deep"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b'{"a":' * 100_000, "too_deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "too_deep"),
        (b"][" * 100, "malformed_json"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value,
)
def test_json_that_is_refused(api, raw, code):
    problem_of(api.post("models", raw=raw), 400, code)


def test_a_long_text_costs_what_it_weighs():
    """A pattern that remembered its way would hold a hundred times the body."""
    body = json.dumps({"name": "a" * MAX_BYTES}).encode()
    tracemalloc.start()
    try:
        assert parse_json(body) == {"name": "a" * MAX_BYTES}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


def test_without_a_token_a_body_is_small():
    raw = json.dumps({"name": "a" * MAX_ANONYMOUS_BYTES}).encode()
    refused = problem_of(Api().post("models", raw=raw), 401, "unauthenticated")
    assert str(MAX_ANONYMOUS_BYTES) in refused["detail"]


def test_depth_is_counted_outside_texts_and_to_the_level():
    assert parse_json(b"[" * 64 + b"]" * 64)
    with pytest.raises(Invalid):
        parse_json(b"[" * 65 + b"]" * 65)
    assert parse_json(b'["' + b"[" * 200 + b'", "\\"[[["]')
    assert parse_json(b'"\\u00e9 \\\\u0000"') == "é \\u0000"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_good_json_is_read_as_the_standard_reads_it(value):
    text = json.dumps(value)
    if "\\u0000" in text or any(0xD800 <= ord(one) < 0xE000 for one in str(value)):
        return
    assert parse_json(text.encode()) == value


@given(st.binary(max_size=200))
@example(b'"')
@example(b'"\\')
def test_any_bytes_are_read_or_refused(raw):
    with suppress(Invalid):
        parse_json(raw)


def test_a_body_that_is_too_large_is_refused(api):
    raw = b'{"summary": "' + b"x" * MAX_BYTES + b'"}'
    problem_of(api.post("models", raw=raw), 413, "too_large")
    headers = {"Idempotency-Key": "one"}
    problem_of(api.post("models", raw=raw, headers=headers), 413, "too_large")


def test_ten_megabytes_of_brackets_are_refused_soon(api):
    for raw in (b"[]," * (MAX_BYTES // 3), b'"\\"' * (MAX_BYTES // 3)):
        assert api.post("models", raw=raw).status_code == 400


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "application/x-www-form-urlencoded"]
)
def test_other_kinds_of_bodies_are_refused(api, kind):
    refused = api.post("models", raw=b"a=1", headers={"Content-Type": kind})
    problem_of(refused, 415, "unsupported_media_type")


def test_an_answer_nobody_can_read_is_refused(api):
    refused = api.get("models", headers={"Accept": "image/png"})
    problem_of(refused, 406, "not_acceptable")


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/v1",
        "/api/v1/",
        "/api/v1/nothing",
        "/api/v2/models",
        "/api/v1/models//%0A/thing",
        "/api/v1/models/",
        "/api/v1/models/a/b/",
    ],
)
def test_unknown_addresses_answer_with_a_problem(api, path):
    body = problem_of(api.get(path), 404, "no_such_address")
    assert body["instance"] == unquote(path)
    # To a form that brings no token either: this is no page.
    posted = Client(enforce_csrf_checks=True).post(path)
    problem_of(posted, 404, "no_such_address")


def test_a_method_that_is_not_taken_names_those_that_are(api):
    refused = api.send("put", "models")
    problem_of(refused, 405, "method_not_allowed")
    assert set(refused["Allow"].split(", ")) == {"GET", "POST", "HEAD"}
    problem_of(api.send("options", "models"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "name", ["a%00b", "%FF", "%ED%A0%80", "a" * 5000, "%F0%9F%90%B1", "..", "%2e%2e", "a%2Fb"]
)
def test_odd_names_do_not_exist(api, name):
    for path in (f"models/alice/{name}", f"models/{name}/m", f"jobs/{name}", f"recipes/{name}"):
        assert api.get(path).status_code == 404


def test_odd_keys_are_refused(api, alice):
    make_model(alice)
    for key in ("a%00b", "%E2%80%AE", "a" * 300):
        assert api.put(f"models/alice/classifier/tags/{key}", {"value": "x"}).status_code in {
            400,
            404,
        }


def test_refusals_are_english_whatever_the_reader_speaks(api):
    headers = {"Accept-Language": "zh-hans"}
    for answer in (
        api.send("put", "models", headers=headers),
        api.get("models", headers={**headers, "Accept": "image/png"}),
        api.post("models", raw=b"a", headers={**headers, "Content-Type": "text/plain"}),
        api.post("models", {}, headers=headers),
    ):
        assert answer.status_code >= 400
        assert answer.content.isascii()


# --- Who is asking -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "Bearer my_wrong",
        "Bearer",
        "Basic !!!",
        "Basic bXk6eA==",
        "Digest x",
        "Bearer \u00e9",
        "x" * 5000,
    ],
)
def test_a_bad_token_is_refused_even_for_what_is_public(anonymous, header):
    refused = anonymous.get("models", headers={"Authorization": header})
    problem_of(refused, 401, "unauthenticated")
    assert refused["WWW-Authenticate"].startswith("Bearer")


def test_the_token_may_come_as_a_basic_password(api):
    basic = base64.b64encode(f"anything:{api.token}".encode()).decode()
    read = Api().get("whoami", headers={"Authorization": f"Basic {basic}"})
    assert read.json()["username"] == "alice"


def test_a_cookie_opens_nothing(alice):
    client = Client()
    assert client.login(username="alice", password=PASSWORD)
    assert client.get("/api/v1/whoami").status_code == 401
    posted = client.post(
        "/api/v1/models", {"namespace": "alice", "name": "m"}, content_type="application/json"
    )
    # To nobody the namespace does not even exist.
    assert posted.status_code == 404
    assert not Repository.objects.exists()


# --- When something is broken ------------------------------------------------------------------


def test_an_unforeseen_error_gives_nothing_away(api, monkeypatch, caplog):
    def explode(*args):
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr(catalog, "find_repository", explode)
    client = Client(raise_request_exception=False)
    answer = client.get("/api/v1/models/alice/m", headers={"Authorization": f"Bearer {api.token}"})
    body = problem_of(answer, 500, "internal_error")
    assert "secret" not in answer.content.decode()
    assert body["request_id"] in caplog.text
    assert "the secret is 42" in caplog.text


def test_a_database_that_is_away_is_a_503_that_can_be_retried(api, monkeypatch):
    def away(*args):
        raise OperationalError("connection refused at 10.0.0.1")

    monkeypatch.setattr(catalog, "find_repository", away)
    refused = api.get("models/alice/m")
    problem_of(refused, 503, "database_unavailable")
    assert refused["Retry-After"] == "1"
    assert "10.0.0.1" not in refused.content.decode()


# --- The same request again --------------------------------------------------------------------

MODEL = {"namespace": "alice", "name": "m"}


def test_a_repeated_post_writes_once(api):
    headers = {"Idempotency-Key": "first"}
    made = api.post("models", MODEL, headers=headers)
    again = api.post("models", MODEL, headers=headers)
    assert made.status_code == again.status_code == 201
    assert made.content == again.content
    assert again["Location"] == made["Location"]
    assert again["ETag"] == made["ETag"]
    assert again["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in made


def test_a_key_belongs_to_one_body_one_address_and_one_caller(api, bob):
    headers = {"Idempotency-Key": "first"}
    api.post("models", MODEL, headers=headers)
    reused = api.post("models", {**MODEL, "name": "n"}, headers=headers)
    problem_of(reused, 409, "idempotency_key_reused")
    assert api.post("datasets", MODEL, headers=headers).status_code == 201
    problem_of(api_of(bob).post("models", MODEL, headers=headers), 403, "denied")


def test_a_refused_post_may_be_tried_again_with_its_key(api):
    headers = {"Idempotency-Key": "first"}
    body = {"namespace": "team", "name": "m"}
    problem_of(api.post("models", body, headers=headers), 404, "namespace_not_found")
    api.post("namespaces", {"slug": "team"})
    assert api.post("models", body, headers=headers).status_code == 201


def test_a_key_whose_first_request_still_runs_is_a_conflict(api, monkeypatch):
    headers = {"Idempotency-Key": "first"}
    inner = []
    register = catalog.register_repository

    def slowly(**arguments):
        if not inner:
            inner.append(None)
            inner[0] = api.post("models", MODEL, headers=headers)
        return register(**arguments)

    monkeypatch.setattr(catalog, "register_repository", slowly)
    assert api.post("models", MODEL, headers=headers).status_code == 201
    problem_of(inner[0], 409, "idempotency_in_progress")


@pytest.mark.slow
def test_a_key_is_held_for_as_long_as_its_first_request_runs(api, monkeypatch):
    monkeypatch.setattr(idempotency, "_RUNNING_SECONDS", 1)
    headers = {"Idempotency-Key": "first"}
    register = catalog.register_repository
    inner = []

    def slowly(**arguments):
        until = time.monotonic() + 2 * idempotency._RUNNING_SECONDS
        wait_until(lambda: time.monotonic() > until, "the time of a key that nobody holds")
        inner.append(api.post("models", MODEL, headers=headers))
        return register(**arguments)

    monkeypatch.setattr(catalog, "register_repository", slowly)
    assert api.post("models", MODEL, headers=headers).status_code == 201
    problem_of(inner[0], 409, "idempotency_in_progress")
    assert api.post("models", MODEL, headers=headers)["Idempotency-Replayed"] == "true"


def test_a_secret_is_never_kept_for_a_repetition(api, alice):
    headers = {"Idempotency-Key": "first"}
    made = api.post("tokens", {"name": "x"}, headers=headers)
    again = api.post("tokens", {"name": "x"}, headers=headers)
    problem_of(again, 409, "already_done")
    assert made.json()["token"] not in again.content.decode()
    assert Token.objects.filter(user=alice, name="x").count() == 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256])
def test_a_bad_key_is_refused(api, key):
    refused = api.post("models", MODEL, headers={"Idempotency-Key": key})
    problem_of(refused, 400, "bad_idempotency_key")


def test_without_the_broker_posts_go_through(api, monkeypatch):
    def down(*args, **kwargs):
        raise BrokerDown("no socket")

    for name in ("add", "get", "set", "delete"):
        monkeypatch.setattr(cache, name, down)
    made = api.post("models", MODEL, headers={"Idempotency-Key": "first"})
    assert made.status_code == 201


def test_the_limits_agree():
    assert settings.DATA_UPLOAD_MAX_MEMORY_SIZE == MAX_BYTES


@pytest.mark.parametrize("given", ["Basic é", "Basic ####", "Basic 6ek=", "Bearer é", "Odd x"])
def test_credentials_that_cannot_be_read_are_refused(given):
    response = Client().get("/api/v1/whoami", headers={"Authorization": given})
    problem_of(response, 401, "unauthenticated")
