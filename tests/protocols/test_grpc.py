"""The protocol over gRPC as bytes on the wire: what is odd, large, packed or never comes."""

import gzip
import queue
import threading
import time
import zlib
from ipaddress import ip_network

import grpc
import pytest

from registry.errors import Invalid, TooLarge, Unavailable
from tests.protocols.doubling import BODY_BYTES, LAST_TOKEN, MAX_CALLS, MODEL
from tests.protocols.wire import Wire
from workers.serving import calls
from workers.serving.budget import Bounds, own_bytes
from workers.serving.http2 import END_STREAM, Kind
from workers.serving.protos import inference_pb2 as pb
from workers.serving.rpc import SERVICE, STREAM, STREAM_WINDOW, read_call

SIZED = 0x02


@pytest.fixture
def channel(served):
    limit = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{served.grpc_port}", options=limit) as one:
        yield one


def call(channel, body, method="ModelInfer", **more):
    return channel.unary_unary(f"/{SERVICE}/{method}")(body, timeout=30, **more)


def refused(channel, body, method="ModelInfer", **more):
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, body, method, **more)
    return raised.value.code(), raised.value.details()


def request(*raw, count=None, model=MODEL):
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=raw)
    for at, one in enumerate(raw):
        message.inputs.add(name=f"x{at}", datatype="UINT8", shape=[count or len(one)])
    return message.SerializeToString()


def wait_until(condition, seconds=30):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not come to hold"
        time.sleep(0.01)


@pytest.mark.parametrize("size", [3, 100_000])
def test_raw_tensors_come_out_of_any_message(channel, size):
    parts = [bytes([1]) * size, bytes([2]) * size]
    answer = pb.ModelInferResponse.FromString(call(channel, request(*parts)))
    assert [one.name for one in answer.outputs] == ["y0", "y1"]
    assert list(answer.raw_output_contents) == [bytes([2]) * size, bytes([4]) * size]


@pytest.mark.parametrize("order", ["raw first", "raw between", "unknown fields"])
def test_fields_may_stand_in_any_order(order):
    raw, other = pb.ModelInferRequest(), pb.ModelInferRequest(model_name=MODEL, id="7")
    raw.raw_input_contents.extend([bytes(5000), bytes(7)])
    other.inputs.add(name="a", datatype="UINT8", shape=[5000])
    body = raw.SerializeToString() + other.SerializeToString()
    if order == "raw between":
        body = pb.ModelInferRequest(model_name="a/b").SerializeToString() + body
    if order == "unknown fields":
        body += bytes([0x78, 0x96, 0x01, 0x7D, 1, 2, 3, 4, 0x79, *range(8)])
    came = read_call(body)
    assert (came.message.model_name, came.message.id) == (MODEL, "7")
    assert [bytes(one) for one in came.raw] == [bytes(5000), bytes(7)]
    assert len(came.message.raw_input_contents) == 0


def varint(number):
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def sized(field, body):
    return bytes([field << 3 | SIZED]) + varint(len(body)) + body


BOMBS = {
    "a million empty inputs": (sized(5, b"") * 1_000_000, Invalid),
    "a million empty outputs": (sized(6, b"") * 1_000_000, Invalid),
    "a million empty raw tensors": (sized(7, b"") * 1_000_000, Invalid),
    "a million parameters": (sized(4, sized(1, b"a")) * 1_000_000, Invalid),
    "more typed values than are read": (sized(5, sized(5, sized(8, bytes(9_000_000)))), TooLarge),
    "a length beyond the end": (sized(1, b"a") * 2000 + b"\x3a\xff\x7f", Invalid),
    "a length that never ends": (sized(1, b"a") * 3000 + b"\x3a" + b"\xff" * 20, Invalid),
    "a group": (sized(1, bytes(5000)) + b"\x3b", Invalid),
    "field zero": (b"\x02\x01a" + sized(1, bytes(5000)), Invalid),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_message_that_would_unfold_is_refused_before(name):
    body, kind = BOMBS[name]
    before, began = own_bytes(), time.process_time()
    with pytest.raises(kind):
        read_call(body)
    assert time.process_time() - began < 0.05
    assert own_bytes() - before < 50_000_000


def test_the_calls_of_a_small_message_are_answered_like_those_of_a_large_one(channel):
    for body in (b"\xff", b"\x0a\x7f", sized(5, b"") * 1000, sized(5, b"") * 3000):
        assert refused(channel, body)[0] is grpc.StatusCode.INVALID_ARGUMENT
    large = refused(channel, bytes(2_000_000), "ServerLive")
    assert large[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("packing", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_packed_messages_are_read(channel, packing):
    body = request(bytes([1]) * 100_000)
    answer = pb.ModelInferResponse.FromString(call(channel, body, compression=packing))
    assert answer.raw_output_contents[0] == bytes([2]) * 100_000


def test_a_packed_bomb_is_stopped_at_the_limit(served):
    """It would be a thousand times the limit of a message."""
    bombs = {
        "gzip": gzip.compress(bytes(500_000_000), 1),
        "deflate": zlib.compress(bytes(5 * 10**8), 1),
    }
    before = own_bytes()
    with Wire(served.grpc_port) as wire:
        for encoding, bomb in bombs.items():
            said = wire.call("ModelInfer", bomb, packed=True, headers=[("grpc-encoding", encoding)])
            assert said["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
    assert own_bytes() - before < 100_000_000
    assert served.bounds.held == 0


def test_a_message_beyond_the_limit_is_refused_at_its_head(channel):
    began = time.monotonic()
    assert refused(channel, bytes(BODY_BYTES + 1))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert time.monotonic() - began < 5


def test_both_protocols_share_one_budget(channel, served):
    """While others hold it all, a call is refused and told so; afterwards it is answered."""
    wait_until(lambda: served.bounds.held == 0)
    served.bounds.take(served.bounds.held_bytes)
    try:
        code, detail = refused(channel, request(bytes(10)))
        assert (code, "at once" in detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    finally:
        served.bounds.held -= served.bounds.held_bytes
    call(channel, request(bytes(10)))
    wait_until(lambda: served.bounds.held == 0)


def test_what_a_call_holds_is_given_back_when_it_ends(channel, served):
    slow = pb.ModelInferRequest(model_name="lab/slow", raw_input_contents=[bytes(1_000_000)])
    slow.inputs.add(name="x", datatype="UINT8", shape=[1_000_000])
    waiting = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(slow.SerializeToString())
    wait_until(lambda: served.bounds.held > 1_000_000)
    waiting.cancel()
    wait_until(lambda: served.bounds.held == 0)


def test_requests_of_a_stream_are_counted_too(channel, served):
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
    answers = list(stream(iter([request(bytes([1]) * 50_000)] * 5), timeout=30))
    assert len(answers) == 5
    wait_until(lambda: served.bounds.held == 0)
    with pytest.raises(grpc.RpcError) as raised:
        list(stream(iter([request(b"a"), sized(5, b"") * 5000]), timeout=30))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    wait_until(lambda: served.bounds.held == 0)


def test_a_stream_that_ends_in_the_midst_of_more_than_it_may_have_gives_all_back(channel, served):
    slow = pb.ModelInferRequest(model_name="lab/slow", raw_input_contents=[bytes(1000)])
    slow.inputs.add(name="x", datatype="UINT8", shape=[1000])
    asked = [slow.SerializeToString()] * (2 * STREAM_WINDOW)
    stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter(asked))
    # One more waits for its place.
    wait_until(lambda: served.bounds.held > STREAM_WINDOW * 1000)
    stream.cancel()
    wait_until(lambda: served.bounds.held == 0)


def test_the_budget_refuses_what_does_not_fit():
    bounds = Bounds(10, 20)
    bounds.take(20)
    with pytest.raises(Unavailable):
        bounds.take(1)


def test_who_calls_without_a_token_is_known_by_address(channel, served, settings):
    call(channel, request(b"a"), metadata=[("x-forwarded-for", "198.51.100.7")])
    assert served.plane.address == "127.0.0.1"
    settings.TRUSTED_PROXIES = [ip_network("127.0.0.0/8")]
    call(channel, request(b"a"), metadata=[("x-forwarded-for", "203.0.113.1, 198.51.100.7")])
    assert served.plane.address == "198.51.100.7"


def test_a_call_without_a_message_is_refused(channel):
    stream = channel.stream_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError) as raised:
        stream(iter([]), timeout=30)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_is_long_in_coming_holds_up_nobody(channel):
    go = threading.Event()

    def slowly():
        go.wait(30)
        yield request(b"a")

    stream = channel.stream_unary(f"/{SERVICE}/ModelInfer")
    waiting = stream.future(slowly(), timeout=60)
    call(channel, request(b"a"))
    go.set()
    assert waiting.result(30)


def talking(channel, **more):
    """Begin a stream that stays open; give what to say on it, and its answers."""
    said = queue.SimpleQueue()
    stream = channel.stream_stream(f"/{SERVICE}/{STREAM}")
    return said, stream(iter(said.get, None), timeout=60, **more)


def test_a_stream_ends_where_its_token_is_revoked(channel, served):
    served.plane.tokens.add(LAST_TOKEN)
    said, answers = talking(channel, metadata=[("authorization", f"Bearer {LAST_TOKEN}")])
    for model in (MODEL, "lab/last"):
        said.put(request(b"a", model=model))
        assert not pb.ModelStreamInferResponse.FromString(next(answers)).error_message
    said.put(request(b"a"))
    with pytest.raises(grpc.RpcError) as raised:
        next(answers)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    said.put(None)
    wait_until(lambda: served.bounds.held == 0)


def test_a_call_whose_token_is_revoked_while_its_message_comes_is_refused(served):
    served.plane.tokens.add(LAST_TOKEN)
    with Wire(served.grpc_port) as wire:
        number = wire.begin("ModelInfer", [("authorization", f"Bearer {LAST_TOKEN}")])
        body = request(b"a" * 100)
        whole = b"\0" + len(body).to_bytes(4, "big") + body
        wire.frame(Kind.DATA, 0, number, whole[:50])
        wait_until(lambda: served.bounds.held == len(body))
        served.plane.tokens.discard(LAST_TOKEN)
        wire.frame(Kind.DATA, END_STREAM, number, whole[50:])
        assert wire.end_of(number)["grpc-status"] == "16"


def test_a_stream_that_stands_still_gives_its_place_up_where_there_is_no_other(
    channel, served, monkeypatch
):
    streams = [talking(channel) for _ in range(MAX_CALLS)]
    for said, answers in streams:
        said.put(request(b"a"))
        answer = pb.ModelStreamInferResponse.FromString(next(answers)).infer_response
        assert list(answer.raw_output_contents) == [b"\xc2"]
    code, detail = refused(channel, request(b"a"))
    assert (code, "Too many calls" in detail) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    monkeypatch.setattr(calls, "STILL_SECONDS", 0.0)
    # The first waits for an answer, the second has just had one: the third is who stands still.
    waiting = streams.pop(0)
    served.plane.started.clear()
    served.plane.cancelled.clear()
    waiting[0].put(request(b"a", model="lab/slow"))
    assert served.plane.started.wait(30)
    said, answers = streams[0]
    said.put(request(b"b"))
    next(answers)
    call(channel, request(b"a"))
    still = streams.pop(1)
    with pytest.raises(grpc.RpcError) as raised:
        next(still[1])
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for said, answers in streams:
        said.put(request(b"c"))
        next(answers)
        said.put(None)
        assert list(answers) == []
    assert not served.plane.cancelled.is_set()
    waiting[1].cancel()
    for said, _ in (waiting, still):
        said.put(None)
