"""A front before one replica: who hangs up, deadlines, what it says itself."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from ipaddress import ip_network

import grpc
import httpx
import pytest

from tests.local.waiting import wait_until
from tests.protocols.doubling import BODY_BYTES, LAST_TOKEN, MODEL, Fronted, serving
from tests.protocols.wire import Wire
from workers.serving.calls import REFUSED
from workers.serving.protos import inference_pb2 as pb
from workers.serving.rpc import SERVICE

GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2.5]]}]}


@pytest.fixture(scope="module")
def fronted(served):
    with serving(Fronted(served)) as one:
        yield one


@pytest.fixture
def channel(fronted):
    limit = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{fronted.grpc_port}", options=limit) as one:
        yield one


def message(model):
    asked = pb.ModelInferRequest(model_name=model, raw_input_contents=[b"a"])
    asked.inputs.add(name="x", datatype="UINT8", shape=[1])
    return asked.SerializeToString()


def test_an_answer_passes_through(fronted):
    answer = httpx.post(f"{fronted.url}/v2/models/{MODEL}/infer", json=GOOD)
    assert answer.json()["outputs"][0]["data"] == [2.0, 5.0]
    refused = httpx.post(f"{fronted.url}/v2/models/lab/busy/infer", json=GOOD)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert httpx.get(f"{fronted.url}/v2/models/no/such").status_code == 404


def test_who_calls_is_passed_on(fronted, served, settings):
    settings.TRUSTED_PROXIES = [ip_network("127.0.0.0/8")]
    headers = {"x-forwarded-for": "198.51.100.7"}
    httpx.post(f"{fronted.url}/v2/models/{MODEL}/infer", json=GOOD, headers=headers)
    assert served.plane.address == "198.51.100.7"


def test_who_hangs_up_is_no_longer_computed_for(fronted, served):
    served.plane.started.clear()
    served.plane.cancelled.clear()
    body = httpx.Request("POST", "http://a", json=GOOD).content
    path = "/v2/models/lab/slow/infer"
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", fronted.port), 30) as one:
        one.sendall(head.encode() + body)
        assert served.plane.started.wait(30)
    assert served.plane.cancelled.wait(30)
    wait_until(lambda: fronted.bounds.held == 0, "the room to be free again")


@pytest.fixture
def uncounted(fronted):
    """Check that nothing of a test counts as a failure of the replica."""
    (replica,) = fronted.front.pool.all
    before = replica.failures
    yield
    assert replica.failures == before


@pytest.mark.usefixtures("uncounted")
def test_who_hangs_up_in_the_middle_of_a_body_is_no_failure_of_the_replica(fronted):
    head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: a\r\n" % MODEL.encode()
    with socket.create_connection(("127.0.0.1", fronted.port), 30) as one:
        one.sendall(head + b"Content-Length: 3000000\r\n\r\n" + bytes(2_000_000))
        wait_until(lambda: fronted.bounds.held, "the body to be on its way")
    wait_until(lambda: fronted.bounds.held == 0, "the room to be free again")


@pytest.mark.usefixtures("uncounted")
def test_a_refusal_before_the_body_was_read_passes_through(fronted):
    answer = httpx.post(f"{fronted.url}/v2/models/no/such/infer", content=bytes(BODY_BYTES - 10))
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_body_that_turns_out_too_long_is_the_callers_fault(fronted):
    head = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: a\r\n" % MODEL.encode()
    part = b"100000\r\n%b\r\n" % bytes(1 << 20)
    with socket.create_connection(("127.0.0.1", fronted.port), 30) as one:
        one.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + part * 4)
        one.sendall(b"1\r\na\r\n")
        with one.makefile("rb") as lines:
            assert lines.readline().split()[1] == b"413"


def test_who_cancels_a_call_is_no_longer_computed_for(channel, served):
    served.plane.started.clear()
    served.plane.cancelled.clear()
    waiting = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(message("lab/slow"))
    assert served.plane.started.wait(30)
    waiting.cancel()
    assert served.plane.cancelled.wait(30)


def test_a_deadline_goes_along(channel, served):
    served.plane.cancelled.clear()
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(message("lab/slow"), timeout=0.5)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 20
    assert served.plane.cancelled.wait(30)


def test_a_deadline_in_ten_thousand_years_is_none(fronted):
    with Wire(fronted.grpc_port) as wire:
        said = wire.call("ServerLive", b"", headers=[("grpc-timeout", "99999999H")])
        assert said["grpc-status"] == "0"


def test_a_refusal_keeps_its_code_and_what_it_says_to_programs(channel):
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError) as raised:
        call(message("lab/busy"), timeout=30)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(raised.value.trailing_metadata())
    assert (trailers[REFUSED], trailers["retry-after"]) == ("rate_limited", "7")


@pytest.mark.parametrize("limit", [BODY_BYTES + 1, 0])
def test_a_stream_with_a_message_that_is_refused_says_why(channel, fronted, limit):
    """By the front, which reads it: too large, or too much at once."""
    wait_until(lambda: fronted.bounds.held == 0, "the room to be free again")
    if not limit:
        fronted.bounds.held += fronted.bounds.held_bytes
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as raised:
        list(stream(iter([message(MODEL), bytes(limit or 10)]), timeout=30))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    if not limit:
        fronted.bounds.held -= fronted.bounds.held_bytes
    wait_until(lambda: fronted.bounds.held == 0, "the room to be free again")


def test_a_stream_ends_where_its_token_is_revoked(channel, served):
    served.plane.tokens.add(LAST_TOKEN)
    last_answered = threading.Event()

    def asked():
        yield message("lab/last")
        last_answered.wait(30)
        yield message(MODEL)

    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    answers = stream(asked(), timeout=60, metadata=[("authorization", f"Bearer {LAST_TOKEN}")])
    next(answers)
    last_answered.set()
    with pytest.raises(grpc.RpcError) as raised:
        next(answers)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_header_that_goes_no_further_is_refused(fronted):
    with Wire(fronted.grpc_port) as wire:
        said = wire.call("ServerLive", b"", headers=[(b"x-name", "\u00fc".encode())])
        assert (said["grpc-status"], "x-name" in said["grpc-message"]) == ("3", True)
        assert wire.call("ServerLive", b"", headers=[("x-name", "u")])["grpc-status"] == "0"


def test_a_replica_that_fails_by_itself_is_left_out_though_it_is_the_only_one(fronted):
    for _ in range(6):
        broken = httpx.post(f"{fronted.url}/v2/models/lab/broken/infer", json=GOOD)
        assert broken.status_code == 500
    assert "modelyard_front_ejections_total 1" in httpx.get(f"{fronted.url}/metrics").text
    answer = httpx.post(f"{fronted.url}/v2/models/{MODEL}/infer", json=GOOD)
    assert answer.is_success


@pytest.fixture
def three():
    """Give a front before three replicas, and these."""
    with ExitStack() as stack:
        served = [stack.enter_context(serving()) for _ in range(3)]
        yield stack.enter_context(serving(Fronted(*served))), served


def over_http(front, _):
    answer = httpx.post(f"{front.url}/v2/models/lab/asleep/infer", json=GOOD)
    return answer.json().get("code", "")


def over_grpc(_, channel):
    try:
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(message("lab/asleep"), timeout=30)
    except grpc.RpcError as error:
        return dict(error.trailing_metadata())[REFUSED]
    return ""


@pytest.mark.parametrize("ask", [over_http, over_grpc])
def test_one_replica_loads_a_model_for_all_who_call_it(three, ask):
    front, served = three
    with grpc.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        assert [ask(front, channel) for _ in range(6)] == ["not_loaded"] * 6
        assert sorted(one.plane.wakings for one in served) == [0, 0, 6]
        # Where another one has it, that answers.
        other = next(one for one in served if not one.plane.wakings)
        other.plane.has_woken = True
        pool = front.front.pool
        pool.hear([front.status(other, "lab/asleep")])
        assert ask(front, channel) == ""


class Halfway:
    """A replica that begins its answers and never ends one."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.grpc_port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=[line], daemon=True).start()

    def _answer(self, line):
        head = b"HTTP/1.1 200 OK\r\n"
        begun = False
        with line, suppress(ConnectionResetError):
            while asked := line.recv(65_536):
                begun = b"/ready " not in asked
                rest = b"transfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n"
                line.sendall(head + (rest if begun else b"content-length: 0\r\n\r\n"))
        if begun:
            self.left.set()


@pytest.fixture
def halfway():
    one = Halfway()
    yield one
    one.close()


@pytest.fixture
def before_halfway(halfway):
    with serving(Fronted(halfway)) as one:
        yield one


def begin(line):
    line.sendall(b"GET /v2/models/lab/double HTTP/1.1\r\nHost: a\r\n\r\n")
    found = b""
    while b"begun\r\n" not in found:
        found += line.recv(65_536)


def test_an_answer_breaks_off_where_its_replica_goes_silent(before_halfway):
    front = before_halfway.front
    with socket.create_connection(("127.0.0.1", before_halfway.port), 30) as line:
        begin(line)
        before_halfway.loop.call_soon_threadsafe(front.pool.lose, *front.pool.all)
        with suppress(ConnectionResetError):
            assert line.recv(65_536) == b""


def test_who_hangs_up_in_the_middle_of_an_answer_frees_the_replica(before_halfway, halfway):
    with socket.create_connection(("127.0.0.1", before_halfway.port), 30) as line:
        begin(line)
    assert halfway.left.wait(30)


def test_what_is_asked_of_all_waits_for_no_replica_that_goes_silent(before_halfway, halfway):
    front = before_halfway.front
    (replica,) = front.pool.all
    path = "/v2/repository/models/lab/double/load"
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(httpx.post, f"{before_halfway.url}{path}", timeout=30)
        wait_until(lambda: replica.answered, "its answer to begin")
        before_halfway.loop.call_soon_threadsafe(front.pool.lose, replica)
        assert call.result().status_code == 503
