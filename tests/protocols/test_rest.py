"""The REST door by hand: shapes that no stock client of ours sends, and callers that lie."""

import base64
import gzip
import json
import os
import signal
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_network

import httpx
import numpy as np
import pytest

from tests.local.waiting import wait_until
from tests.protocols.doubling import BODY_BYTES, LAST_TOKEN, MODEL, TOKEN
from workers.serving.budget import BEGIN_SECONDS, own_bytes
from workers.serving.protos import inference_pb2 as pb

INFER = f"/v2/models/{MODEL}/infer"
GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2.5]]}]}
BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def http(served):
    with httpx.Client(base_url=served.url, timeout=30) as client:
        yield client


def raw(served, head, *bodies, wait=True):
    """Send bytes as they are, and give the status line and the body of the answer."""
    with socket.create_connection(("127.0.0.1", served.port), 30) as one:
        one.sendall(head.replace("\n", "\r\n").encode())
        for body in bodies:
            try:
                one.sendall(body)
            except OSError:
                break
        if not wait:
            return None
        found = b""
        while b"\r\n\r\n" not in found:
            found += one.recv(65536)
        top, _, rest = found.partition(b"\r\n\r\n")
        return int(top.split()[1]), rest


def test_numbers_in_and_out(http):
    answer = http.post(INFER, json={**GOOD, "id": "a"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": MODEL,
        "model_version": "3",
        "id": "a",
        "parameters": {
            "modelyard_version": "3",
            "modelyard_batch_size": 1,
            "modelyard_queue_us": 2,
        },
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 5.0]}],
    }


@pytest.mark.parametrize("version", ["3", "production", "@production"])
def test_versions_and_aliases_in_the_path(http, version):
    assert http.post(f"/v2/models/{MODEL}/versions/{version}/infer", json=GOOD).is_success


def test_the_slash_of_a_name_may_be_escaped(http):
    assert http.post("/v2/models/lab%2Fdouble/infer", json=GOOD).is_success


def test_a_timeout_becomes_a_deadline(http, served):
    before = time.monotonic()
    http.post(INFER, json={**GOOD, "parameters": {"timeout": 2_000_000}})
    assert before < served.plane.last.deadline - 2 < time.monotonic()


def test_a_raw_body_is_the_one_input(http):
    values = np.array([1.5, -2], "<f4").tobytes()
    answer = http.post(INFER, content=values, headers={"inference-header-content-length": "0"})
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"][0]["shape"] == [1, 2]
    assert np.frombuffer(answer.content[length:], "<f4").tolist() == [3, -4]
    for wrong in (b"", values[:-1], values * 2):
        refused = http.post(INFER, content=wrong, headers={"inference-header-content-length": "0"})
        assert refused.status_code == 400


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        (f"/v2/models/{MODEL}/ready", {"name": MODEL, "ready": True}),
    ],
)
def test_health_is_a_status_and_the_same_as_json(http, path, said):
    # Triton's clients look at the status, KServe's at the body.
    answer = http.get(path)
    assert (answer.status_code, answer.json()) == (200, said)
    assert http.head(path).status_code == 200


def test_a_model_that_is_away_is_not_ready(http):
    http.post(f"/v2/repository/models/{MODEL}/unload")
    answer = http.get(f"/v2/models/{MODEL}/ready")
    http.post(f"/v2/repository/models/{MODEL}/load")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)


def test_what_there_is(http):
    assert http.get("/v2").json()["name"] == "modelyard"
    assert http.get("/v2/models").json() == {"models": [MODEL]}
    assert http.get(f"/v2/models/{MODEL}").json()["outputs"][0]["name"] == "y"
    assert http.get(f"/v2/models/{MODEL}/versions/3/config").json()["max_batch_size"] == 32
    assert http.post("/v2/repository/index").json()[0]["state"] == "READY"
    assert http.post("/v2/repository/index", json={"ready": True}).json()[0]["name"] == MODEL
    assert http.get("/healthz").json() == {"live": True, "ready": True}


def test_metrics_have_the_names_of_triton(http):
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    labels = f'{{model="{MODEL}",version="3"}}'
    assert f"nv_inference_request_success{labels} 5" in lines
    assert f"nv_inference_request_duration_us{labels} 5000" in lines
    assert f"nv_inference_pending_request_count{labels} 2" in lines


@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_embeddings_in_the_shape_of_openai(http, prefix):
    ask = {"model": MODEL, "input": ["ab", "abc"]}
    answer = http.post(f"{prefix}/v1/embeddings", json=ask).json()
    assert [one["embedding"] for one in answer["data"]] == [[2, 0.5, 0.25], [3, 0.5, 0.25]]
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    packed = {**ask, "encoding_format": "base64", "dimensions": 2, "model": f"{MODEL}@3"}
    answer = http.post(f"{prefix}/v1/embeddings", json=packed).json()
    numbers = base64.b64decode(answer["data"][1]["embedding"])
    assert np.frombuffer(numbers, "<f4").tolist() == [3, 0.5]
    listed = http.get(f"{prefix}/v1/models").json()["data"]
    assert listed == [{"id": MODEL, "object": "model", "created": 0, "owned_by": "lab"}]
    assert http.get(f"{prefix}/v1/models/{MODEL}").json()["id"] == MODEL


@pytest.mark.parametrize("given", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]])
def test_inputs_that_openai_allows(http, given):
    assert http.post("/v1/embeddings", json={"model": MODEL, "input": given}).is_success


@pytest.mark.parametrize(
    "change",
    [
        {"input": None},
        {"input": []},
        {"input": 3},
        {"input": ["a", 1]},
        {"input": [1, "a"]},
        {"input": [[]]},
        {"input": [[1], ["a"]]},
        {"input": [True]},
        {"input": [-1]},
        {"input": [2**40]},
        {"input": ["a"] * 2049},
        {"model": None},
        {"model": ""},
        {"model": 3},
        {"encoding_format": "hex"},
        {"dimensions": 0},
        {"dimensions": True},
        {"dimensions": 10**9},
    ],
)
def test_bad_embeddings_are_refused_in_openai_s_shape(http, change):
    answer = http.post("/v1/embeddings", json={"model": MODEL, "input": "a", **change})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_predictions_of_named_fields(http):
    one = http.post(f"/predict/{MODEL}", json={"text": "a"}).json()
    assert one["prediction"] == {"label": "{'text': 'a'}"}
    assert (one["model"], one["version"]) == (MODEL, "3")
    several = http.post(f"/predict/{MODEL}/versions/3", json=[{"text": "a"}, {"text": "b"}]).json()
    assert len(several["predictions"]) == 2
    image = http.post(f"/predict/{MODEL}", content=b"abc", headers={"content-type": "image/png"})
    assert image.json()["prediction"] == {"label": "{'image': 'YWJj'}"}
    for bad in ([], [1], 3, "a", [{}] * 10_001):
        assert http.post(f"/predict/{MODEL}", json=bad).status_code == 400


def test_who_calls(http):
    path = "/v2/models/lab/secret/infer"
    assert http.post(path, json=GOOD).status_code == 404
    assert http.post(path, json=GOOD, headers=BEARER).is_success
    answer = http.post(path, json=GOOD, headers={"authorization": "Bearer other"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_refusals_have_the_protocol_s_shape(http):
    unknown = http.post("/v2/models/nothing/infer", json=GOOD)
    assert unknown.status_code == 404
    assert "nothing" in unknown.json()["error"]
    busy = http.post("/v2/models/lab/busy/infer", json=GOOD)
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
    assert http.post("/v2/models/lab/refused/infer", json=GOOD).status_code == 403
    for path in ("/", "/v2/nothing", "/v3", f"/v2/models/{MODEL}/generate", "/v2/models/a/b/c"):
        assert http.get(path).status_code == 404, path
        assert http.get(path).json()["error"]
    assert http.get(INFER).status_code == 405
    assert http.post("/v2").status_code == 405
    assert http.put(INFER, json=GOOD).status_code == 405


def test_our_own_mistakes_say_nothing_of_us(http):
    answer = http.post("/v2/models/lab/broken/infer", json=GOOD)
    assert answer.status_code == 500
    assert answer.json() == {"error": "Something went wrong; it was logged.", "code": "error"}


def test_pages_of_other_sites_may_call(http):
    origin = {"origin": "https://app.example"}
    asked = {**origin, "access-control-request-method": "POST"}
    before = http.options(INFER, headers=asked)
    assert before.status_code == 204
    assert "authorization" in before.headers["access-control-allow-headers"]
    assert "POST" in before.headers["access-control-allow-methods"]
    for path in (INFER, "/v2/models/nothing/infer"):
        answer = http.post(path, json=GOOD, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "grpc-status" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


def test_answers_are_packed_where_that_is_asked_for(http):
    values = list(range(1000))
    ask = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1000], "data": values}]}
    for coding in ("gzip", "deflate"):
        answer = http.post(INFER, json=ask, headers={"accept-encoding": coding})
        assert answer.headers["content-encoding"] == coding
        assert answer.json()["outputs"][0]["data"][:3] == [0, 2, 4]
    plain = http.post(INFER, json=ask, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    small = http.post(INFER, json=GOOD, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers


def post(length, *more):
    lines = [f"POST {INFER} HTTP/1.1", "Host: a", f"Content-Length: {length}", *more, "", ""]
    return "\n".join(lines)


def quickly(answer):
    started = time.monotonic()
    status, body = answer()
    assert time.monotonic() - started < 2
    return status, body


def test_a_body_announced_as_a_terabyte_is_refused_unread(served):
    assert quickly(lambda: raw(served, post(10**12)))[0] == 413


def test_a_length_that_is_no_number_is_refused(served):
    for length in ("-1", "x"):
        assert raw(served, post(length))[0] == 400


def test_a_body_without_a_length_has_the_same_limit(served):
    head = f"POST {INFER} HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n"
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    status, _ = quickly(lambda: raw(served, head, *[chunk] * 40))
    assert status == 413


@pytest.mark.parametrize("where", ["/v2/models/no/such/infer", "/predict/no/such"])
@pytest.mark.parametrize(
    "said", ["Content-Length: 3000000", "Transfer-Encoding: chunked", "Authorization: Bearer x"]
)
def test_nothing_is_read_of_a_long_body_that_no_model_is_for(served, where, said):
    lines = [f"POST {where} HTTP/1.1", "Host: a", said]
    if "Transfer" not in said:
        lines[2:] = dict.fromkeys([said, "Content-Length: 3000000"])
    status, body = quickly(lambda: raw(served, "\n".join([*lines, "", ""])))
    assert status == (401 if "Bearer" in said else 404)
    assert json.loads(body)["error"]


def test_a_token_that_is_revoked_while_a_body_comes_is_refused(served):
    served.plane.tokens.add(LAST_TOKEN)
    body = json.dumps(GOOD).encode()
    head = post(len(body), f"Authorization: Bearer {LAST_TOKEN}").replace("\n", "\r\n")
    with socket.create_connection(("127.0.0.1", served.port), 30) as one:
        one.sendall(head.encode() + body[:-1])
        wait_until(lambda: served.bounds.held == len(body), "the body to begin")
        served.plane.tokens.discard(LAST_TOKEN)
        one.sendall(body[-1:])
        with one.makefile("rb") as lines:
            assert lines.readline().split()[1] == b"401"


def numbers(count):
    one = {"name": "x", "datatype": "FP32", "shape": [1, count], "data": [0.125] * count}
    return json.dumps({"inputs": [one]}).encode()


@pytest.fixture
def stopped_reader(served, http):
    """Give a server whose reader reads nothing until it is told to."""
    wait_until(lambda: served.bounds.held == 0, "earlier tests")
    assert http.post(INFER, content=numbers(20_000)).is_success
    reader = served.rest.reader._process.pid
    os.kill(reader, signal.SIGSTOP)
    yield lambda: os.kill(reader, signal.SIGCONT)
    os.kill(reader, signal.SIGCONT)
    wait_until(lambda: served.bounds.held == 0, "the room to be free again")


def test_who_sends_much_json_holds_up_nobody_else(served, http, stopped_reader):
    large, small = numbers(200_000), numbers(20_000)
    done = []

    def call(body, name, headers):
        assert http.post(INFER, content=body, headers=headers).is_success
        done.append(name)

    with ThreadPoolExecutor(5) as pool:
        calls = [pool.submit(call, large, "greedy", {}) for _ in range(4)]
        wait_until(lambda: served.bounds.held >= 4 * len(large), "the bodies to be there")
        calls.append(pool.submit(call, small, "other", BEARER))
        wait_until(lambda: served.bounds.held >= 4 * len(large) + len(small), "the other one")
        stopped_reader()
        for one in calls:
            one.result()
    assert done.index("other") <= 2


def test_who_waits_to_be_read_waits_no_longer_than_for_the_model(
    served, http, stopped_reader, monkeypatch
):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(http.post, INFER, content=numbers(100_000))
        wait_until(lambda: served.bounds.held, "the first one to be there")
        monkeypatch.setattr(served.plane, "patience_seconds", 0.1)
        answer = http.post(INFER, content=numbers(20_000), headers=BEARER)
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        stopped_reader()
        assert first.result().is_success


def pass_time(http):
    """Ask for something else a few times; give how long that took."""
    began = time.monotonic()
    for _ in range(10):
        assert http.get("/v2/health/live").is_success
    return time.monotonic() - began


def test_what_waited_to_be_read_has_so_much_less_time_to_be_answered(served, http, stopped_reader):
    large, small = numbers(100_000), numbers(20_000)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(http.post, INFER, content=large)
        wait_until(lambda: served.bounds.held >= len(large), "the first one to be there")
        second = pool.submit(http.post, INFER, content=small, headers=BEARER)
        wait_until(lambda: served.bounds.held >= len(large) + len(small), "the other one")
        http.get("/v2/health/live")
        spent = pass_time(http)
        stopped_reader()
        assert first.result().is_success
        assert second.result().is_success
    assert served.plane.last.waited_seconds > spent


def test_the_time_that_reading_takes_is_no_time_waited(served, http, stopped_reader):
    with ThreadPoolExecutor(1) as pool:
        only = pool.submit(http.post, INFER, content=numbers(20_000))
        wait_until(lambda: served.bounds.held, "it to be there")
        spent = pass_time(http)
        stopped_reader()
        assert only.result().is_success
    assert served.plane.last.waited_seconds < spent


@pytest.mark.parametrize("length", ["1000", "-5", "abc", "99999999999999999999", "1.5", "0x10"])
def test_a_length_of_the_json_that_lies_is_refused(http, length):
    answer = http.post(INFER, json=GOOD, headers={"inference-header-content-length": length})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_bomb_is_refused(http):
    for size in (BODY_BYTES + 1, 500_000_000):
        body = gzip.compress(bytes(size))
        answer = http.post(INFER, content=body, headers={"content-encoding": "gzip"})
        assert answer.status_code == 413
    odd = http.post(INFER, content=b"abc", headers={"content-encoding": "br"})
    assert odd.status_code == 400
    torn = http.post(INFER, content=b"abc", headers={"content-encoding": "gzip"})
    assert torn.status_code == 400


def test_bodies_that_never_come_cannot_hold_the_memory_of_others(served, http):
    wait_until(lambda: served.rest.bounds.held == 0, "earlier tests")
    waiting = []
    try:
        for _ in range(4):
            one = socket.create_connection(("127.0.0.1", served.port), 30)
            one.sendall(post(BODY_BYTES).replace("\n", "\r\n").encode())
            waiting.append(one)
        wait_until(lambda: served.rest.bounds.held == 4 * BODY_BYTES, "four bodies to begin")
        refused = http.post(INFER, json=GOOD)
        assert refused.status_code == 503
        assert refused.json()["code"] == "busy"
    finally:
        for one in waiting:
            one.close()
    wait_until(lambda: served.rest.bounds.held == 0, "the room to be free again")
    assert http.post(INFER, json=GOOD).is_success


def test_who_sends_slowly_makes_room_where_there_is_little(served, http):
    wait_until(lambda: served.bounds.held == 0, "earlier tests")
    bounds = served.bounds

    def pass_time(seconds):
        now = time.monotonic() + seconds
        served.loop.call_soon_threadsafe(bounds.look_at_arrivals, now)

    with ExitStack() as stack:
        *slow, quick = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 30))
            for _ in range(4)
        ]
        for one in (*slow[1:], quick):
            one.sendall(post(BODY_BYTES).replace("\n", "\r\n").encode())
        wait_until(lambda: bounds.held == 3 * BODY_BYTES, "three bodies to begin")
        pass_time(60)  # there is room
        slow[0].sendall(post(BODY_BYTES).replace("\n", "\r\n").encode())
        wait_until(lambda: bounds.held == 4 * BODY_BYTES, "the fourth body to begin")
        pass_time(BEGIN_SECONDS / 2)  # they have only begun
        quick.sendall(bytes(BODY_BYTES - 1))
        wait_until(
            lambda: max(one.size for one in [*bounds._arriving.values()]) > 3 << 20, "the quick one"
        )
        pass_time(BEGIN_SECONDS + 2)
        for one in slow:
            with one.makefile("rb") as lines:
                assert lines.readline().split()[1] == b"503"
        assert http.post(INFER, json=GOOD).is_success
        quick.sendall(b"a")
        with quick.makefile("rb") as lines:
            assert lines.readline().split()[1] == b"400"  # no JSON


def test_an_answer_counts_until_its_client_has_taken_it(served):
    values = np.random.default_rng(0).random(800_000, np.float32)
    one = {"name": "x", "datatype": "FP32", "shape": [1, len(values)]}
    one["parameters"] = {"binary_data_size": values.nbytes}
    said = json.dumps({"inputs": [one]}).encode()
    head = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        f"Inference-Header-Content-Length: {len(said)}\r\n"
        f"Content-Length: {len(said) + values.nbytes}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port), 30) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        line.sendall(head.encode() + said + values.tobytes())
        # The body, and the text of as many numbers.
        wait_until(lambda: served.bounds.held > 3 * values.nbytes, "the answer to wait")
        while line.recv(1 << 20):
            pass
    wait_until(lambda: served.bounds.held == 0, "the room to be free again")


def test_who_hangs_up_is_no_longer_computed_for(served):
    served.plane.started.clear()
    served.plane.cancelled.clear()
    body = json.dumps(GOOD).encode()
    head = post(len(body)).replace(MODEL, "lab/slow").replace("\n", "\r\n").encode()
    one = socket.create_connection(("127.0.0.1", served.port), 30)
    one.sendall(head + body)
    assert served.plane.started.wait(10)
    one.close()
    assert served.plane.cancelled.wait(10)
    wait_until(lambda: served.rest.bounds.held == 0, "the room to be free again")


def test_who_calls_without_a_token_is_known_by_address(http, served, settings):
    headers = {"x-forwarded-for": "203.0.113.1, 198.51.100.7"}
    http.post(INFER, json=GOOD, headers=headers)
    assert served.plane.address == "127.0.0.1"
    settings.TRUSTED_PROXIES = [ip_network("127.0.0.0/8")]
    http.post(INFER, json=GOOD, headers=headers)
    assert served.plane.address == "198.51.100.7"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_many_bombs_at_once_take_no_more_memory_than_there_is(served, coding):
    """Each is within the limit of one body; together they would take sixteen times the budget."""
    wait_until(lambda: served.rest.bounds.held == 0, "earlier tests")
    content = b'{"inputs":[' + b" " * (BODY_BYTES - 20)
    packed = gzip.compress(content) if coding == "gzip" else zlib.compress(content)
    headers = {"content-encoding": coding}
    before, most = own_bytes(), []

    def send(_):
        answer = httpx.post(served.url + INFER, content=packed, headers=headers, timeout=60)
        most.append(own_bytes())
        return answer.status_code

    with ThreadPoolExecutor(32) as pool:
        seen = set(pool.map(send, range(128)))
    assert seen <= {400, 503}
    assert 400 in seen
    assert max(most) - before < 3 * served.rest.bounds.held_bytes + 64_000_000
    wait_until(lambda: served.rest.bounds.held == 0, "the room to be free again")


def test_half_a_request_leaves_nothing_behind(served, http):
    raw(served, post(1000), b"{", wait=False)
    assert http.post(INFER, json=GOOD).is_success
    wait_until(lambda: served.rest.bounds.held == 0, "the room to be free again")


def test_deep_paths_are_looked_at_quickly(http):
    started = time.monotonic()
    for path in ("/v2/models/" + "a/" * 3000, "/v2/models/" + "versions/" * 900 + "infer"):
        assert http.post(path, json=GOOD).status_code == 404
    assert time.monotonic() - started < 2


def web(http, method, *frames, text=False, **headers):
    body = b"".join(frames)
    kind = "application/grpc-web-text" if text else "application/grpc-web+proto"
    answer = http.post(
        f"/inference.GRPCInferenceService/{method}",
        content=base64.b64encode(body) if text else body,
        headers={"content-type": kind, **headers},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    found = base64.b64decode(answer.content) if text else answer.content
    messages = []
    while found:
        flag, size = struct.unpack_from(">BI", found)
        messages.append((flag, found[5 : 5 + size]))
        found = found[5 + size :]
    trailers = dict(line.split(": ", 1) for line in messages[-1][1].decode().split("\r\n") if line)
    assert messages[-1][0] == 0x80
    return [body for flag, body in messages if flag == 0], trailers


def framed(body=b"", flag=0, size=None):
    return struct.pack(">BI", flag, len(body) if size is None else size) + body


@pytest.mark.parametrize("text", [False, True])
def test_grpc_web_in_both_of_its_forms(http, text):
    messages, trailers = web(http, "ServerLive", framed(), text=text)
    assert (messages, trailers) == ([b"\x08\x01"], {"grpc-status": "0"})


def test_grpc_web_text_may_come_in_pieces_each_with_its_padding(http):
    frame = framed(b"\x0a\x0alab/double")
    pieces = base64.b64encode(frame[:4]) + base64.b64encode(frame[4:])
    answer = http.post(
        "/inference.GRPCInferenceService/ModelReady",
        content=pieces,
        headers={"content-type": "application/grpc-web-text"},
    )
    assert base64.b64decode(answer.content).endswith(b"grpc-status: 0\r\n")


@pytest.mark.parametrize(
    ("method", "frames", "code"),
    [
        ("ServerLive", [], "3"),
        ("ServerLive", [b"\0\0"], "3"),
        ("ServerLive", [framed(size=10)], "3"),
        ("ServerLive", [framed(size=2**32 - 1)], "3"),
        ("ServerLive", [framed(), framed()], "3"),
        ("ServerLive", [framed(flag=0x80)], "3"),
        ("ServerLive", [framed(b"abc", flag=1)], "3"),
        ("ModelInfer", [framed(b"\xff" * 20)], "3"),
        ("ModelStreamInfer", [framed(b"\xff" * 20)], "3"),
        ("ModelStreamInfer", [framed()] * 1001, "8"),
        ("Nothing", [framed()], "12"),
        ("TraceSetting", [framed()], "12"),
        ("ModelMetadata", [framed()], "5"),
    ],
)
def test_bad_calls_end_with_their_status(http, method, frames, code):
    messages, trailers = web(http, method, *frames)
    assert (messages, trailers["grpc-status"]) == ([], code)
    assert trailers["grpc-message"]


def asked(model):
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[b"a"])
    message.inputs.add(name="x", datatype="UINT8", shape=[1])
    return framed(message.SerializeToString())


def test_a_call_of_many_messages_ends_where_its_token_is_revoked(http, served):
    served.plane.tokens.add(LAST_TOKEN)
    frames = [asked("lab/last"), *[asked(MODEL)] * 300]
    bearer = {"authorization": f"Bearer {LAST_TOKEN}"}
    messages, trailers = web(http, "ModelStreamInfer", *frames, **bearer)
    assert trailers["grpc-status"] == "16"
    # Those that were under way are answered.
    assert 1 <= len(messages) < 100


def test_who_hangs_up_in_a_call_of_many_messages_is_no_longer_computed_for(served):
    served.plane.started.clear()
    served.plane.cancelled.clear()
    body = asked("lab/slow") * 300
    head = (
        "POST /inference.GRPCInferenceService/ModelStreamInfer HTTP/1.1\r\nHost: a\r\n"
        f"Content-Type: application/grpc-web+proto\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    one = socket.create_connection(("127.0.0.1", served.port), 30)
    one.sendall(head.encode() + body)
    assert served.plane.started.wait(10)
    one.close()
    assert served.plane.cancelled.wait(10)
    wait_until(lambda: served.rest.bounds.held == 0, "the room to be free again")


def test_a_bomb_in_a_frame_is_refused(http):
    bomb = framed(gzip.compress(bytes(BODY_BYTES + 1)), flag=1)
    _, trailers = web(http, "ServerLive", bomb, **{"grpc-encoding": "gzip"})
    assert trailers["grpc-status"] == "8"


def test_a_timeout_of_grpc_web_is_read(http):
    for bad in ("", "5", "1x", "123456789S"):
        _, trailers = web(http, "ServerLive", framed(), **{"grpc-timeout": bad})
        assert trailers["grpc-status"] == "3"
    _, trailers = web(http, "ServerLive", framed(), **{"grpc-timeout": "5S"})
    assert trailers["grpc-status"] == "0"


def test_other_content_types_are_no_grpc_web(http):
    answer = http.post("/inference.GRPCInferenceService/ServerLive", json={})
    assert answer.status_code == 400
    assert http.get("/inference.GRPCInferenceService/ServerLive").status_code == 400
