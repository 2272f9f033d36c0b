"""HTTP/2 frame by frame: what clients may write in many ways, and what none may write."""

import os
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.local.waiting import wait_until
from tests.protocols.doubling import MAX_CALLS, MODEL, serving
from tests.protocols.wire import GoneAway, Wire
from workers.serving import calls, http2
from workers.serving.budget import own_bytes
from workers.serving.http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    PADDED,
    PREFACE,
    Code,
    Kind,
    encode,
    frame,
)
from workers.serving.protos import inference_pb2 as pb
from workers.serving.rpc import SERVICE

OK = "0"
UNIMPLEMENTED, DEADLINE_EXCEEDED = "12", "4"
_WINDOW = 65_535


def request(raw=b"abc", model=MODEL):
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    message.inputs.add(name="x0", datatype="UINT8", shape=[len(raw)])
    return message.SerializeToString()


def answer_of(wire, number):
    data = wire.data[number]
    assert data[:5] == struct.pack(">BI", 0, len(data) - 5)
    return pb.ModelInferResponse.FromString(data[5:]).raw_output_contents[0]


@pytest.fixture
def wire(served):
    with Wire(served.grpc_port) as one:
        yield one


def test_a_call_is_answered_on_its_stream(wire):
    for number in (1, 3):
        assert wire.call("ModelInfer", request())["grpc-status"] == OK
        assert answer_of(wire, number) == bytes(2 * one for one in b"abc")


@pytest.mark.parametrize("piece", [1, 4, 5, 6, 100])
def test_a_message_may_come_in_any_pieces(wire, piece):
    number = wire.begin("ModelInfer")
    wire.message(number, request(bytes(range(100))), piece=piece)
    assert wire.end_of(number)["grpc-status"] == OK
    assert answer_of(wire, number) == bytes(2 * one for one in range(100))


def test_what_is_sent_may_come_byte_by_byte(wire):
    body = request()
    block = wire.block("ModelInfer")
    data = struct.pack(">BI", 0, len(body)) + body
    whole = frame(Kind.HEADERS, END_HEADERS, 1, len(block)) + block
    whole += frame(Kind.DATA, END_STREAM, 1, len(data)) + data
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(whole)):
        wire.send(whole[at : at + 1])
    assert wire.end_of(1)["grpc-status"] == OK


def test_padding_and_priorities_are_passed_over(wire):
    block = wire.block("ModelInfer")
    flags = END_HEADERS | PADDED | HAS_PRIORITY
    wire.frame(Kind.HEADERS, flags, 1, b"\x07" + bytes(5) + block + bytes(7))
    body = request()
    data = struct.pack(">BI", 0, len(body)) + body
    wire.frame(Kind.DATA, PADDED, 1, b"\xff" + data[:9] + bytes(255))
    wire.frame(Kind.DATA, PADDED | END_STREAM, 1, b"\x00" + data[9:])
    wire.frame(Kind.PRIORITY, 0, 1, bytes(5))
    wire.frame(0xEE, 0xFF, 0, b"of another time")
    assert wire.end_of(1)["grpc-status"] == OK


def test_a_header_block_may_come_in_pieces(wire):
    block = wire.block("ModelInfer", [("x-long", "a" * 3000)])
    wire.frame(Kind.HEADERS, 0, 1, block[:10])
    wire.frame(Kind.CONTINUATION, 0, 1, block[10:20])
    wire.frame(Kind.CONTINUATION, END_HEADERS, 1, block[20:])
    wire.message(1, request())
    assert wire.end_of(1)["grpc-status"] == OK


def test_headers_behind_the_data_end_a_request(wire):
    number = wire.begin("ModelInfer")
    wire.message(number, request(), ends=False)
    block = wire.encoder.encode([("x-at-the-end", "1")])
    wire.frame(Kind.HEADERS, END_HEADERS | END_STREAM, number, block)
    assert wire.end_of(number)["grpc-status"] == OK


def test_blocks_of_the_same_bytes_mean_what_the_table_says_by_then(wire):
    """The last entry that a client made is number 62, whatever it says."""
    kind = b"\x0f\x10\x10application/grpc"
    path = f"/{SERVICE}/".encode()

    def call(block):
        number = next(wire.numbers)
        wire.frame(Kind.HEADERS, END_HEADERS, number, block)
        wire.message(number, b"")
        return wire.end_of(number)["grpc-status"]

    for method, status in ((b"ServerLive", OK), (b"NoSuch", UNIMPLEMENTED)) * 2:
        made = path + method
        assert call(b"\x83\x44" + bytes([len(made)]) + made + kind) == status
        for _ in range(3):
            assert call(b"\x83\xbe" + kind) == status


def test_what_is_no_call_is_told_so(wire):
    number = next(wire.numbers)
    block = wire.encoder.encode([(":method", "GET"), (":path", "/"), (":scheme", "http")])
    wire.frame(Kind.HEADERS, END_HEADERS | END_STREAM, number, block)
    assert wire.end_of(number)[":status"] == "415"
    assert wire.call("NoSuchMethod", b"")["grpc-status"] == UNIMPLEMENTED
    said = wire.call("ModelInfer", request(), headers=[("grpc-timeout", "soon")])
    assert "grpc-timeout" in said["grpc-message"]
    said = wire.call("ModelInfer", request(), packed=True, headers=[("grpc-encoding", "br")])
    assert said["grpc-status"] == UNIMPLEMENTED
    said = wire.call("ModelInfer", request(), headers=[("x-bin", "%%%")])
    assert said["grpc-status"] == "3"
    said = wire.call("ModelInfer", request(), headers=[("x-long", "a" * 20_000)])
    assert said["grpc-status"] == "8"
    said = wire.call("ModelInfer", request(), headers=[("x-bin", "AA,BB=="), ("x-more-bin", "")])
    assert said["grpc-status"] == OK
    assert wire.call("ModelInfer", request())["grpc-status"] == OK


def test_too_many_connections_are_refused(served):
    with ExitStack() as stack:
        many = [stack.enter_context(Wire(served.grpc_port)) for _ in range(2 * MAX_CALLS + 6)]
        assert sum(is_refused(one) for one in many) >= 6
    with Wire(served.grpc_port) as one:
        wait_until(lambda: not is_refused(one), "a place")


def is_refused(wire):
    wire.frame(Kind.PING, 0, 0, bytes(8))
    try:
        wire.next(Kind.PING)
    except GoneAway as gone:
        return gone.code is Code.ENHANCE_YOUR_CALM
    return False


def test_a_page_of_http_1_is_told_so(served):
    with socket.create_connection(("127.0.0.1", served.grpc_port), 30) as one:
        one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with one.makefile("rb") as lines:
            assert lines.readline().split()[1] == b"400"
            assert b"gRPC" in lines.read()


def test_details_are_written_as_headers_have_them(wire):
    said = wire.call("ModelInfer", request(model="lab/über\n%"))
    assert said["grpc-status"] == "5"
    assert "%C3%BCber" in said["grpc-message"]
    assert "\n" not in said["grpc-message"]


def test_a_deadline_ends_a_call_that_never_sends_its_message(wire):
    began = time.monotonic()
    number = wire.begin("ModelInfer", [("grpc-timeout", "200m")])
    assert wire.end_of(number)["grpc-status"] == DEADLINE_EXCEEDED
    assert 0.1 < time.monotonic() - began < 20


def test_who_is_refused_early_need_not_send_the_rest(wire):
    number = wire.begin("ModelInfer")
    wire.frame(Kind.DATA, 0, number, struct.pack(">BI", 0, 1 << 31))
    assert wire.end_of(number)["grpc-status"] == "8"
    _, _, of, payload = wire.next(Kind.RST_STREAM)
    assert (of, int.from_bytes(payload)) == (number, Code.NO_ERROR)
    # What was under way is passed over.
    wire.frame(Kind.DATA, END_STREAM, number, bytes(1000))
    assert wire.call("ModelInfer", request())["grpc-status"] == OK


def test_pings_come_back(wire):
    wire.frame(Kind.PING, 0, 0, b"12345678")
    _, flags, _, payload = wire.next(Kind.PING)
    assert (flags, payload) == (ACK, b"12345678")


def test_an_answer_waits_for_the_windows_of_its_client(served):
    """Of the stream, then of the connection; and no byte more is sent than both allow."""
    raw = bytes(range(256)) * 800
    with Wire(served.grpc_port, window=1000) as wire:
        number = wire.begin("ModelInfer")
        wire.message(number, request(raw))
        got = 0
        while got < 1000:
            got += len(wire.next(Kind.DATA)[3])
        assert got == 1000
        wire.frame(Kind.PING, 0, 0, bytes(8))
        wire.next(Kind.PING)
        assert len(wire.data[number]) == 1000
        # A later setting changes the windows of streams that are there.
        wire.frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 3000))
        while got < 3000:
            got += len(wire.next(Kind.DATA)[3])
        assert got == 3000
        wire.frame(Kind.WINDOW_UPDATE, 0, number, struct.pack(">I", 1 << 20))
        assert wire.end_of(number)["grpc-status"] == OK
        assert answer_of(wire, number) == bytes(2 * one & 0xFF for one in raw)


def test_answers_share_the_window_of_their_connection(served):
    with Wire(served.grpc_port, greet=False) as wire:
        wire.send(PREFACE)
        wire.frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 30))
        numbers = [wire.begin("ModelInfer") for _ in range(4)]
        for number in numbers:
            wire.message(number, request(bytes(50_000)))
        got, allowed, done = 0, _WINDOW, set()
        while len(done) < len(numbers):
            kind, flags, number, payload = wire.next(Kind.HEADERS, Kind.DATA)
            if kind is Kind.HEADERS and flags & END_STREAM:
                assert dict(wire.decoder.decode(payload))["grpc-status"] == OK
                done.add(number)
            elif kind is Kind.DATA:
                got += len(payload)
                assert got <= allowed
            if got == allowed:
                wire.frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", 7000))
                allowed += 7000
        assert all(len(answer_of(wire, number)) == 50_000 for number in numbers)


def test_who_takes_back_a_call_is_no_longer_computed_for(wire, served):
    served.plane.started.clear()
    served.plane.cancelled.clear()
    number = wire.begin("ModelInfer")
    wire.message(number, request(model="lab/slow"))
    assert served.plane.started.wait(30)
    wire.frame(Kind.RST_STREAM, 0, number, struct.pack(">I", Code.CANCEL))
    assert served.plane.cancelled.wait(30)
    wait_until(lambda: served.bounds.held == 0, "the room to be free again")


def test_who_hangs_up_is_no_longer_computed_for(served):
    served.plane.started.clear()
    served.plane.cancelled.clear()
    with Wire(served.grpc_port) as wire:
        wire.message(wire.begin("ModelInfer"), request(model="lab/slow"))
        assert served.plane.started.wait(30)
    assert served.plane.cancelled.wait(30)


# --- what no client may write ---------------------------------------------------------------------


def begun(wire):
    return wire.begin("ModelInfer")


BROKEN = {
    "data of no stream": (lambda w: w.frame(Kind.DATA, 0, 0, b"a"), Code.PROTOCOL_ERROR),
    "data of a stream to come": (lambda w: w.frame(Kind.DATA, 0, 9, b"a"), Code.PROTOCOL_ERROR),
    "an even number": (
        lambda w: w.frame(Kind.HEADERS, END_HEADERS, 2, w.block("ServerLive")),
        Code.PROTOCOL_ERROR,
    ),
    "a frame that is too large": (lambda w: w.send(frame(0, 0, 1, 1 << 23)), Code.FRAME_SIZE_ERROR),
    "a header block that is too large": (
        lambda w: w.send(frame(Kind.HEADERS, END_HEADERS, 1, 200_000)),
        Code.ENHANCE_YOUR_CALM,
    ),
    "a ping of seven bytes": (lambda w: w.frame(Kind.PING, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
    "a ping of a stream": (lambda w: w.frame(Kind.PING, 0, 1, bytes(8)), Code.PROTOCOL_ERROR),
    "half a setting": (lambda w: w.frame(Kind.SETTINGS, 0, 0, bytes(5)), Code.FRAME_SIZE_ERROR),
    "a window of 2^31": (
        lambda w: w.frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31)),
        Code.FLOW_CONTROL_ERROR,
    ),
    "frames of a hundred bytes": (
        lambda w: w.frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 5, 100)),
        Code.PROTOCOL_ERROR,
    ),
    "a window that grows by nothing": (
        lambda w: w.frame(Kind.WINDOW_UPDATE, 0, 0, bytes(4)),
        Code.PROTOCOL_ERROR,
    ),
    "a window that grows too large": (
        lambda w: w.frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 31) - 1)),
        Code.FLOW_CONTROL_ERROR,
    ),
    "a push": (lambda w: w.frame(Kind.PUSH_PROMISE, END_HEADERS, 1, bytes(4)), Code.PROTOCOL_ERROR),
    "a continuation of nothing": (
        lambda w: w.frame(Kind.CONTINUATION, END_HEADERS, 1, b""),
        Code.PROTOCOL_ERROR,
    ),
    "a frame between header blocks": (
        lambda w: (w.begin("ServerLive", flags=0), w.frame(Kind.PING, 0, 0, bytes(8))),
        Code.PROTOCOL_ERROR,
    ),
    "padding and nothing else": (
        lambda w: w.frame(Kind.HEADERS, END_HEADERS | PADDED, 1, b"\x09" + bytes(4)),
        Code.PROTOCOL_ERROR,
    ),
    "data that are padding and nothing else": (
        lambda w: w.frame(Kind.DATA, PADDED, begun(w), b"\x09" + bytes(4)),
        Code.PROTOCOL_ERROR,
    ),
    "data behind their end": (
        lambda w: [w.frame(Kind.DATA, END_STREAM, n, b"\0") for n in [begun(w)] * 2],
        Code.PROTOCOL_ERROR,
    ),
    "headers between data": (
        lambda w: w.frame(Kind.HEADERS, END_HEADERS, begun(w), w.block("ServerLive")),
        Code.PROTOCOL_ERROR,
    ),
    "an index of no table": (
        lambda w: w.frame(Kind.HEADERS, END_HEADERS, 1, b"\xff\xff\x03"),
        Code.COMPRESSION_ERROR,
    ),
    "a table larger than agreed": (
        lambda w: w.frame(Kind.HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\x03"),
        Code.COMPRESSION_ERROR,
    ),
    "a block that unfolds": (
        lambda w: w.frame(
            Kind.HEADERS,
            END_HEADERS,
            1,
            b"\x40\x01a\x7f\x81\x1e" + bytes(4096 - 128) + b"\xbe" * 5000,
        ),
        Code.ENHANCE_YOUR_CALM,
    ),
    "a block in a thousand pieces": (
        lambda w: (
            w.begin("ServerLive", flags=0),
            w.send(frame(Kind.CONTINUATION, 0, 1, 0) * 1000),
        ),
        Code.ENHANCE_YOUR_CALM,
    ),
    "a thousand frames without a byte": (
        lambda w: w.send(frame(Kind.DATA, 0, begun(w), 0) * 1000),
        Code.ENHANCE_YOUR_CALM,
    ),
    "more than the window allows": (
        lambda w: [
            w.message(begun(w), request(model="lab/slow"), ends=False),
            w.send(frame(Kind.DATA, 0, 1, 70_000) + bytes(70_000)),
        ],
        Code.FLOW_CONTROL_ERROR,
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_who_breaks_the_protocol_is_told_so_and_alone(served, what):
    breaks, code = BROKEN[what]
    with Wire(served.grpc_port) as wire, Wire(served.grpc_port) as other:
        breaks(wire)
        assert wire.ended() is code
        assert other.call("ModelInfer", request())["grpc-status"] == OK
    wait_until(lambda: served.bounds.held == 0, "the room to be free again")


def test_the_first_frame_is_settings(served):
    with Wire(served.grpc_port, greet=False) as wire:
        wire.send(PREFACE)
        wire.frame(Kind.PING, 0, 0, bytes(8))
        assert wire.ended() is Code.PROTOCOL_ERROR


def test_calls_that_are_begun_and_taken_back_are_bounded(wire):
    """Source: CVE-2023-44487."""
    block = wire.block("ModelInfer")
    again = wire.block("ModelInfer")
    many = [frame(Kind.HEADERS, END_HEADERS, 1, len(block)) + block]
    taken_back = struct.pack(">I", Code.CANCEL)
    many.append(frame(Kind.RST_STREAM, 0, 1, 4) + taken_back)
    for number in range(3, 2 * http2.MAX_RESETS + 10, 2):
        many.append(frame(Kind.HEADERS, END_HEADERS, number, len(again)) + again)
        many.append(frame(Kind.RST_STREAM, 0, number, 4) + taken_back)
    wire.send(b"".join(many))
    assert wire.ended() is Code.ENHANCE_YOUR_CALM


FLOODS = {
    # CVE-2019-9512
    "pings": lambda _: (frame(Kind.PING, 0, 0, 8) + bytes(8)) * 10_000,
    "calls that are refused": lambda wire: b"".join(
        frame(Kind.HEADERS, END_HEADERS | END_STREAM, next(wire.numbers), len(block)) + block
        for block in [b"\x83\x44\x02/\xff\x0f\x10\x10application/grpc"] * 5000
    ),
}


@pytest.mark.parametrize("what", FLOODS)
def test_what_is_answered_and_never_taken_is_bounded(served, monkeypatch, what):
    monkeypatch.setattr(http2, "STILL_SECONDS", 0.5)
    before = own_bytes()
    with Wire(served.grpc_port) as wire:
        wait_until(lambda: not goes_out(wire, FLOODS[what](wire)), "the server to hang up", 60)
    assert own_bytes() - before < 50_000_000


def goes_out(wire, data):
    try:
        wire.send(data)
    except ConnectionError:
        return False
    return True


def test_windows_that_change_all_the_time_end_the_connection(wire):
    change = struct.pack(">HI", 4, 1), struct.pack(">HI", 4, 2)
    wire.send(b"".join(frame(Kind.SETTINGS, 0, 0, 6) + change[at % 2] for at in range(1000)))
    assert wire.ended() is Code.ENHANCE_YOUR_CALM


def test_a_table_of_settings_costs_one_look(wire):
    for _ in range(20):
        wire.begin("ModelInfer")
    settings_of_a_kind = struct.pack(">HI", 4, 1) + struct.pack(">HI", 4, 1 << 20)
    wire.frame(Kind.SETTINGS, 0, 0, settings_of_a_kind * 1300)
    assert wire.call("ModelInfer", request())["grpc-status"] == OK


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.tuples(
                st.integers(0, 11),
                st.integers(0, 255),
                st.sampled_from([0, 1, 2, 3, 5, 7, (1 << 31) - 1]),
                st.binary(max_size=40),
            ).map(lambda one: frame(one[0], one[1], one[2], len(one[3])) + one[3]),
        ),
        max_size=12,
    )
)
def test_no_frames_hurt_the_server(served, frames):
    with Wire(served.grpc_port) as one:
        try:
            for part in frames:
                one.send(part)
        except OSError:
            pass  # it has hung up
    with Wire(served.grpc_port) as other:
        assert other.call("ModelInfer", request())["grpc-status"] == OK
    assert served.bounds.held == 0 or not frames


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=40_000)), max_size=5)
)
@settings(max_examples=30, deadline=None)
def test_blocks_are_read_as_they_were_written(headers):
    from hpack import Decoder  # noqa: PLC0415

    assert [tuple(one) for one in Decoder(1 << 30).decode(encode(headers), raw=True)] == headers


def test_nothing_is_logged_of_a_client_that_vanishes(served, caplog):
    for size in (5, 24, 30, 60):
        with socket.create_connection(("127.0.0.1", served.grpc_port), 30) as one:
            one.sendall((PREFACE + os.urandom(40))[:size])
    with Wire(served.grpc_port) as wire:
        assert wire.call("ModelInfer", request())["grpc-status"] == OK
    assert not [one for one in caplog.records if one.name.startswith("workers")]


# --- who stands still -----------------------------------------------------------------------------


def test_an_answer_that_nobody_takes_is_given_up(served, monkeypatch):
    monkeypatch.setattr(http2, "STILL_SECONDS", 0.1)
    with Wire(served.grpc_port, window=0) as wire:
        number = wire.begin("ModelInfer")
        wire.message(number, request(bytes(100_000)))
        assert wire.end_of(number) == {":status": "200", "content-type": "application/grpc"} | {
            "grpc-accept-encoding": "identity, deflate, gzip",
            "reset": Code.CANCEL,
        }
        wait_until(lambda: served.bounds.waiting == 0, "the room to be free again")
        assert wire.call("ServerLive", b"")["reset"] is Code.CANCEL


def test_who_does_not_begin_is_given_up(served, monkeypatch):
    monkeypatch.setattr(http2, "HEAD_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", served.grpc_port), 30) as silent:
        while silent.recv(1000):
            pass
    with Wire(served.grpc_port) as wire:
        wire.begin("ModelInfer", flags=0)
        with pytest.raises(ConnectionError):
            wire.next()


def test_who_calls_nothing_is_told_goodbye(served, monkeypatch):
    monkeypatch.setattr(http2, "IDLE_SECONDS", 0.1)
    with Wire(served.grpc_port) as wire:
        assert wire.ended() is Code.NO_ERROR


def test_who_says_nothing_is_asked_and_then_given_up(wire, served, monkeypatch):
    monkeypatch.setattr(http2, "QUIET_SECONDS", 0.4)
    served.plane.cancelled.clear()
    wire.message(wire.begin("ModelInfer"), request(model="lab/slow"))
    wire.next(Kind.PING)
    assert served.plane.cancelled.wait(30)


def test_a_message_that_stops_coming_ends_its_call(wire, served, monkeypatch):
    monkeypatch.setattr(calls, "IDLE_SECONDS", 0.1)
    number = wire.begin("ModelInfer")
    wire.frame(Kind.DATA, 0, number, struct.pack(">BI", 0, 1_000_000) + bytes(1000))
    assert wire.end_of(number)["grpc-status"] == "1"
    wait_until(lambda: served.bounds.held == 0, "the room to be free again")


def test_a_message_that_comes_slowly_is_given_up_where_others_need_the_room(wire, served):
    number = wire.begin("ModelInfer")
    wire.frame(Kind.DATA, 0, number, struct.pack(">BI", 0, 1_000_000) + bytes(1000))
    bounds = served.bounds
    wait_until(lambda: bounds.held == 1_000_000, "the message to be under way")
    bounds.held += bounds.held_bytes
    served.loop.call_soon_threadsafe(bounds.look_at_arrivals, time.monotonic() + 60)
    said = wire.end_of(number)
    bounds.held -= bounds.held_bytes
    assert (said["grpc-status"], said["modelyard-code"]) == ("8", "busy")
    wait_until(lambda: bounds.held == 0, "the room to be free again")


def test_what_the_kernel_still_has_is_seen():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as one:
            other, _ = server.accept()
            with other:
                one.sendall(bytes(100))
                wait_until(lambda: http2.unacknowledged(one.fileno()) == 0, "it to arrive")
                one.setblocking(False)  # noqa: FBT003 - its only argument
                with suppress(BlockingIOError):
                    while True:
                        one.send(bytes(1 << 20))
                assert http2.unacknowledged(one.fileno()) > 0
        assert http2.unacknowledged(one.fileno()) == 0


def test_a_server_that_stops_finishes_what_is_under_way():
    running = serving()
    one = running.__enter__()
    with Wire(one.grpc_port) as wire, Wire(one.grpc_port) as idle:
        body = request()
        number = wire.begin("ModelInfer")
        wire.frame(Kind.DATA, 0, number, struct.pack(">BI", 0, len(body)))
        wire.frame(Kind.PING, 0, 0, bytes(8))
        wire.next(Kind.PING)
        stopping = threading.Thread(target=running.__exit__, args=(None, None, None))
        stopping.start()
        assert idle.ended() is Code.NO_ERROR
        last = wire.next(Kind.GOAWAY)[3][:4]
        assert int.from_bytes(last) == number
        # What was begun meanwhile is somebody else's.
        late = wire.begin("ModelInfer")
        wire.message(late, request())
        wire.frame(Kind.WINDOW_UPDATE, 0, late, struct.pack(">I", 100))
        wire.frame(Kind.RST_STREAM, 0, late, struct.pack(">I", Code.CANCEL))
        wire.frame(Kind.DATA, END_STREAM, number, body)
        assert wire.end_of(number)["grpc-status"] == OK
        with pytest.raises(ConnectionError):
            wire.next()
        stopping.join(30)
        assert not stopping.is_alive()


def test_a_long_detail_is_cut_between_characters():
    quoted = calls.quote_detail("多" * 5000)
    assert len(quoted) <= calls.MAX_DETAIL_BYTES
    assert set(unquote(quoted.decode(), errors="strict")) == {"多"}
    assert calls.quote_detail("50 % of it") == b"50 %25 of it"
