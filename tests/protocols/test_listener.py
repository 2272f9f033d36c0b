"""HTTP/1.1 as clients write it, well and badly, to the listener of the inference server."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest
import uvloop

from tests.local.waiting import wait_until
from workers.serving import listener
from workers.serving.listener import MAX_HEAD_BYTES, Listener

HELD = 3
LARGE_BYTES = 64 * 1024 * 1024
# Answered before the body is read.
UNREAD = {"/refuse": (413, b"no"), "/large": (200, bytes(LARGE_BYTES))}


class Echo:
    """Says what it was asked; `/hold` waits until it is let go, `/refuse` reads no body."""

    def __init__(self) -> None:
        self.held = threading.Event()
        self.left = threading.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope, receive, send):
        body = b""
        if scope["path"] in UNREAD:
            await answer(send, *UNREAD[scope["path"]])
            return
        if scope["path"] == "/break":
            raise RuntimeError("broken on purpose")
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            body += message["body"]
            more = message["more_body"]
        if scope["path"] == "/headers":
            said = [[one.decode() for one in header] for header in scope["headers"]]
            await answer(send, 200, json.dumps(said).encode())
            return
        if scope["path"] == "/hold":
            self.held.set()
            await self.go_on.wait()
        if scope["path"] == "/leave":
            self.held.set()
            assert (await receive())["type"] == "http.disconnect"
            self.left.set()
            return
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for part in (b"one", b"two"):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        said = {"method": scope["method"], "path": scope["path"], "size": len(body)}
        said["sum"] = sum(body)
        await answer(send, 200, json.dumps(said).encode(), head=scope["method"] == "HEAD")


async def answer(send, status, body, *, head=False):
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": b"" if head else body, "more_body": False})


class Place:
    """The listener in a loop of its own."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.end = None
        self.stopped = threading.Event()

    async def run(self):
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        self.echo = Echo()
        self.listener = Listener(self.echo, max_connections=HELD)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        await self.listener.start("127.0.0.1", self.port)
        self.up.set()
        await self.end.wait()
        await self.listener.stop(20)
        self.stopped.set()

    def stop(self):
        self.loop.call_soon_threadsafe(self.end.set)

    def let_go(self):
        self.loop.call_soon_threadsafe(self.echo.go_on.set)

    def connect(self):
        line = socket.create_connection(("127.0.0.1", self.port), 20)
        line.settimeout(20)
        return contextlib.closing(line)


@pytest.fixture
def place():
    place = Place()

    def in_loop():
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(place.run())

    thread = threading.Thread(target=in_loop, daemon=True)
    thread.start()
    assert place.up.wait(20)
    yield place
    if not place.stopped.is_set():
        place.let_go()
        place.stop()
    thread.join(30)
    assert place.stopped.is_set()


def read_answer(line, *, body=True):
    """Read one answer with a length: its status, its headers and its body."""
    with line.makefile("rb") as lines:
        status = int(lines.readline().split()[1])
        headers = {}
        while (header := lines.readline().rstrip(b"\r\n")) != b"":
            name, _, value = header.partition(b": ")
            headers[name.decode()] = value.decode()
        size = int(headers.get("content-length", 0)) if body else 0
        return status, headers, lines.read(size)


def read_to_end(line):
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := line.recv(65_536):
            found += part
    return found


def test_a_connection_serves_one_request_after_the_other(place):
    with place.connect() as line:
        for number in range(3):
            line.sendall(b"POST /a%20b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n\1\2")
            status, headers, body = read_answer(line)
            assert (status, headers.get("connection")) == (200, None), number
            assert "GMT" in headers["date"]
            assert json.loads(body) == {"method": "POST", "path": "/a b", "size": 2, "sum": 3}


def test_requests_sent_without_waiting_are_answered_in_their_order(place):
    count = 200
    with place.connect() as line:
        line.sendall(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % at for at in range(count)))
        with line.makefile("rb") as lines:
            for at in range(count):
                assert lines.readline().startswith(b"HTTP/1.1 200"), at
                while (header := lines.readline()) != b"\r\n":
                    if header.startswith(b"content-length"):
                        size = int(header.partition(b":")[2])
                assert json.loads(lines.read(size))["path"] == f"/{at}"


@pytest.mark.parametrize("times", [1_000, 12_000])
def test_a_large_body_arrives_whole_and_the_next_request_behind_it(place, times):
    body = bytes(range(256)) * times
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with place.connect() as line:
        for _ in range(2):
            sending = threading.Thread(
                target=line.sendall, args=(head + body + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n",)
            )
            sending.start()
            with line.makefile("rb") as lines:
                found = [_read_json(lines) for _ in range(2)]
            sending.join()
            assert found[0]["size"] == len(body)
            assert found[0]["sum"] == sum(body)
            assert found[1]["path"] == "/next"


def _read_json(lines):
    assert lines.readline().startswith(b"HTTP/1.1 200")
    size = 0
    while (header := lines.readline()) != b"\r\n":
        if header.startswith(b"content-length"):
            size = int(header.partition(b":")[2])
    return json.loads(lines.read(size))


def test_a_chunked_body_is_put_together(place):
    with place.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (b"3\r\n\1\1\1\r\n", b"2\r\n\2", b"\2\r\n0\r\n\r\n"):
            line.sendall(part)
        _, _, body = read_answer(line)
        assert json.loads(body)["sum"] == 7


def test_what_stands_behind_a_chunked_body_is_no_header(place):
    with place.connect() as line:
        line.sendall(
            b"POST /headers HTTP/1.1\r\nHost: x\r\nAuthorization: mine\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nAuthorization: theirs\r\n\r\n"
        )
        _, _, body = read_answer(line)
        found = [value for name, value in json.loads(body) if name == "authorization"]
        assert found == ["mine"]


def test_what_stands_behind_a_chunked_body_is_bounded_too(place):
    with place.connect() as line:
        line.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
            + b"Big: %b\r\n\r\n" % (b"a" * MAX_HEAD_BYTES)
        )
        assert read_to_end(line).startswith(b"HTTP/1.1 431 ")


OFFER = b"Host: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_behind_an_offer_of_another_protocol_is_a_body(place, waits, chunked):
    body = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = b"POST /own HTTP/1.1\r\n%b%b\r\n" % (OFFER, length)
    following = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
    with place.connect() as line, line.makefile("rb") as lines:
        if waits:
            line.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert lines.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert lines.readline() == b"\r\n"
            line.sendall(sent + following)
        else:
            line.sendall(head + b"\r\n" + sent + following)
        own, following = _read_json(lines), _read_json(lines)
        assert (own["path"], own["size"], own["sum"]) == ("/own", len(body), sum(body))
        assert following["path"] == "/next"


def test_who_offers_another_protocol_is_answered_in_this_one(place):
    count = 3
    with place.connect() as line, line.makefile("rb") as lines:
        line.sendall(b"GET / HTTP/1.1\r\n%b\r\n" % OFFER * count)
        assert [_read_json(lines)["path"] for _ in range(count)] == ["/"] * count


def test_an_offer_saves_no_body_from_being_read(place):
    with place.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\n%bTransfer-Encoding: gzip\r\n\r\n" % OFFER)
        assert read_to_end(line).startswith(b"HTTP/1.1 400 ")


def test_who_asks_first_is_told_to_go_on(place):
    with place.connect() as line:
        line.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        with line.makefile("rb") as lines:
            assert lines.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert lines.readline() == b"\r\n"
            line.sendall(b"\1\2\3")
            assert _read_json(lines)["sum"] == 6


def test_an_answer_of_unknown_length_comes_in_chunks(place):
    with place.connect() as line:
        line.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = read_to_end(line).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        assert body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("version", "header", "stays"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: keep-alive\r\n", True),
    ],
)
def test_a_connection_stays_where_both_want_it(place, version, header, stays):
    with place.connect() as line:
        line.sendall(b"GET / HTTP/%b\r\nHost: x\r\n%b\r\n" % (version, header))
        status, headers, _ = read_answer(line)
        assert status == 200
        assert (headers.get("connection") != "close") is stays
        if not stays:
            assert read_to_end(line) == b""


def test_a_head_alone_is_answered_without_a_body(place):
    with place.connect() as line:
        line.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = read_to_end(line).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b""


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"BREW / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /%zz\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_closed(place, said):
    with place.connect() as line:
        line.sendall(said)
        assert read_to_end(line).startswith(b"HTTP/1.1 400 ")
    with place.connect() as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(line)[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nBig: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n",
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"N%d: 1\r\n" % at for at in range(500)) + b"\r\n",
    ],
)
def test_a_head_beyond_the_bounds_is_refused(place, head):
    with place.connect() as line:
        line.sendall(head)
        assert read_to_end(line).startswith(b"HTTP/1.1 431 ")


def test_a_refusal_reaches_a_client_that_still_sends(place):
    with place.connect() as line:
        line.sendall(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(40):
                line.sendall(bytes(65_536))
        assert read_answer(line)[0] == 413


def test_an_application_that_fails_leaves_no_client_waiting(place):
    with place.connect() as line:
        line.sendall(b"GET /break HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_to_end(line) == b""


def test_the_application_hears_that_its_client_has_left(place):
    with place.connect() as line:
        line.sendall(b"GET /leave HTTP/1.1\r\nHost: x\r\n\r\n")
        assert place.echo.held.wait(20)
    assert place.echo.left.wait(20)


def test_a_body_that_stops_half_way_is_told(place):
    with place.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        line.shutdown(socket.SHUT_WR)
        assert read_to_end(line) == b""
    assert place.echo.left.wait(20)


@pytest.mark.parametrize(
    ("constant", "begun"),
    [
        ("HEAD_SECONDS", b"GET / HTTP/1.1\r\nHos"),
        ("STILL_SECONDS", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"),
        ("IDLE_SECONDS", b""),
    ],
)
def test_who_stands_still_is_let_go(place, monkeypatch, constant, begun):
    monkeypatch.setattr(listener, constant, 0.1)
    with place.connect() as line:
        line.sendall(begun)
        assert read_to_end(line) == b""


class Taker:
    """Asks for a large answer and takes it bit by bit, while the clock goes on."""

    def __init__(self, place, line):
        self.place, self.line = place, line
        # The answer began long after its request.
        self.now = time.monotonic() + 2 * listener.STILL_SECONDS
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        line.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: self.waiting, "the answer to stand still")
        (self.connection,) = place.listener.connections
        self.taken = 0

    @property
    def waiting(self):
        return sum(
            one._transport.get_write_buffer_size() for one in [*self.place.listener.connections]
        )

    def take(self, size):
        while self.taken < size:
            part = self.line.recv(1 << 20)
            assert part
            self.taken += len(part)

    def pass_time(self):
        self.now += 0.9 * listener.STILL_SECONDS
        looked = threading.Event()

        def look():
            self.connection.look_at_clock(self.now)
            looked.set()

        self.place.loop.call_soon_threadsafe(look)
        assert looked.wait(20)


def test_an_answer_may_take_its_time_while_it_is_taken(place):
    with place.connect() as line:
        taker = Taker(place, line)
        taker.pass_time()
        for tenth in range(1, 10):
            before = taker.waiting
            taker.take(tenth * LARGE_BYTES // 10)
            wait_until(lambda known=before: taker.waiting < known, "more of it to leave")
            taker.pass_time()
        taker.take(LARGE_BYTES)


def test_an_answer_that_nobody_takes_is_given_up(place):
    with place.connect() as line:
        taker = Taker(place, line)
        for _ in range(3):
            taker.pass_time()
        assert len(read_to_end(line)) < LARGE_BYTES


def test_one_connection_too_many_is_told_so(place):
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(place.connect()) for _ in range(HELD)]
        for line in lines:
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_answer(line)[0] == 200
        with place.connect() as line:
            assert read_to_end(line).startswith(b"HTTP/1.1 503 ")
        lines[0].sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(lines[0])[0] == 200


def test_stopping_finishes_what_is_being_answered(place):
    with place.connect() as busy, place.connect() as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(idle)[0] == 200
        busy.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        assert place.echo.held.wait(20)
        place.stop()
        assert read_to_end(idle) == b""
        place.let_go()
        status, headers, _ = read_answer(busy)
        assert (status, headers["connection"]) == (200, "close")
    assert place.stopped.wait(20)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", place.port), 20)


def test_stopping_waits_though_nobody_was_there_for_a_while(place):
    with place.connect() as early:
        early.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_to_end(early).startswith(b"HTTP/1.1 200 ")
    with place.connect() as busy:
        busy.sendall(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        assert place.echo.held.wait(20)
        place.stop()
        wait_until(lambda: place.listener.stopping, "it to stop")
        place.let_go()
        assert read_answer(busy)[0] == 200
