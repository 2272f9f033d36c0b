"""HTTP/1.1 in front of an ASGI application, in the loop that computes: no thread, no hand-over.

A server with threads of its own costs more per call here than the call does: each message between
its thread and the loop wakes one of them. A head is parsed by llhttp; a body whose length is known
is read straight into its place, unless it is large: that is handed on as it comes.
"""

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, TypeAlias, cast
from urllib.parse import unquote

import httptools

from workers.serving.connections import Connections

Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [
        Mapping[str, Any],
        Callable[[], Awaitable[Message]],
        Callable[[Message], Awaitable[None]],
    ],
    Awaitable[None],
]

# An extension of ours in the scope: what it is given is called should the client go away; it says
# whether it has gone already. ASGI itself has a task wait for that, beside each request.
WHEN_GONE = "modelyard.when_gone"
WhenGone: TypeAlias = Callable[[Callable[[], None] | None], bool]
# What a head may have: bytes of its address and headers together, and how many of them.
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
# A client that sends one request after the other without waiting is read no further than this.
MAX_PIPELINED = 16
# So much of a body is taken before anybody asks for it.
_AHEAD_BYTES = 64 * 1024
# A body up to this has its place from the start; a larger one is handed on as it comes.
_PLACED_BYTES = 1024 * 1024
# Below this, one piece of memory is cheaper to send than two.
_JOINED_BYTES = 16 * 1024
# How long a connection may be without a request, a head on its way, and a body stand still.
IDLE_SECONDS = 75.0
HEAD_SECONDS = 15.0
STILL_SECONDS = 30.0
# After a refusal the rest of a body is read away for so long, so that the refusal arrives.
LINGER_SECONDS = 2.0

logger = logging.getLogger(__name__)

_STATUS_LINES = {
    one.value: f"HTTP/1.1 {one.value} {one.phrase}\r\n".encode("ascii") for one in HTTPStatus
}
_DISCONNECT: Mapping[str, Any] = {"type": "http.disconnect"}


class Listener(Connections["_Connection"]):
    """A port of HTTP, and the connections to it."""

    def __init__(self, application: Application, *, max_connections: int) -> None:
        super().__init__(max_connections=max_connections)
        self.application = application
        self.date = b""

    def connect(self) -> "_Connection":
        return _Connection(self)

    def tick(self) -> None:
        self.date = f"date: {formatdate(usegmt=True)}\r\n".encode("ascii")


class _Request:
    """One request: what is known of it, what has come of its body, and how its answer stands."""

    __slots__ = (
        "ahead",
        "answer_chunked",
        "body_parts",
        "complete",
        "expects",
        "handed_over",
        "head_sent",
        "headers",
        "keep_alive",
        "length",
        "method",
        "old",
        "path",
        "query",
        "received",
        "start",
        "target",
        "wants_body",
    )

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = True
        self.old = False
        self.expects = False
        self.length: int | None = 0
        # What came and was not handed over yet; of a known length that is left, where it goes.
        self.body_parts: list[bytes] = []
        self.received = 0
        self.ahead = 0
        self.target: bytearray | None = None
        self.complete = False
        self.handed_over = False
        self.wants_body = False
        self.start: Message | None = None
        self.head_sent = False
        self.answer_chunked = False

    @property
    def is_placed(self) -> bool:
        """Whether the whole body is awaited in one piece."""
        return self.length is not None and self.length <= _PLACED_BYTES


class _Connection(asyncio.BufferedProtocol):
    """One client: its requests in their order, one answered at a time."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._client: Any = None
        self._parser: Any = None
        self._url = b""
        self._head_bytes = 0
        self._reading: _Request | None = None
        self._answering: _Request | None = None
        self._waiting: deque[_Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._gone = False
        self._leave: Callable[[], None] | None = None
        self._ending = False
        self._paused = False
        self._discarding = False
        self._last_at = time.monotonic()
        # Of an answer that stands still, what was left when the clock was looked at last.
        self._left_bytes = 0

    # --- what the transport tells -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing
        self._client = transport.get_extra_info("peername")
        listener = self._listener
        listener.connections.add(self)
        self._parser = httptools.HttpRequestParser(self)
        if listener.is_full:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many connections; try again soon.")

    def connection_lost(self, _: Exception | None) -> None:
        self._go()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._listener.lost(self)

    def get_buffer(self, _: int) -> memoryview | bytearray:
        request = self._reading
        if request is not None and request.target is not None:
            return memoryview(request.target)[request.received :]
        return self._listener.scratch

    def buffer_updated(self, size: int) -> None:
        self._last_at = time.monotonic()
        if self._discarding:
            return
        request = self._reading
        if request is not None and request.target is not None:
            request.received += size
            if request.received == len(request.target):
                # The parser was left at the body that it has not seen: the next has a new one.
                self._parser = httptools.HttpRequestParser(self)
                self.on_message_complete()
            return
        try:
            self._feed(memoryview(self._listener.scratch)[:size])
        except _TooLarge as error:
            self._refuse(error.status, error.problem)
        except httptools.HttpParserCallbackError as error:
            found = error.__context__
            if isinstance(found, _TooLarge):
                self._refuse(found.status, found.problem)
            else:
                self._refuse(HTTPStatus.BAD_REQUEST, "This is not a request of HTTP/1.1.")
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST, "This is not a request of HTTP/1.1.")

    def _feed(self, data: memoryview) -> None:
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                # Nothing else is spoken here; the request itself is one like any.
                data = data[offer.args[0] :]
            else:
                return
            self._parser = httptools.HttpRequestParser(self)
            if self._reading is not None:
                # That parser took what follows for the other protocol; this one hears of the body.
                self._parser.feed_data(_head_of_body(self._reading))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()
        self._left_bytes = sys.maxsize

    def resume_writing(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    # --- what the parser tells --------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._reading is not None:
            return  # its head was read by another parser
        self._reading = _Request()
        self._url = b""
        self._head_bytes = 0

    def on_url(self, part: bytes) -> None:
        self._url += part
        self._count(len(part))

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._reading is not None
        self._count(len(name) + len(value))
        if self._reading.method:
            return  # it stands behind the body, where nothing is believed
        headers = self._reading.headers
        if len(headers) >= MAX_HEADERS:
            raise _TooLarge(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "Too many headers.")
        headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request = self._reading
        assert request is not None
        if request.method:
            return
        parser = self._parser
        request.method = parser.get_method().decode("ascii")
        request.keep_alive = parser.should_keep_alive()
        request.old = parser.get_http_version() == "1.0"
        url = httptools.parse_url(self._url) if self._url != b"*" else None
        path = (url.path or b"/") if url is not None else b"*"
        request.path = path.decode("latin-1") if b"%" not in path else unquote(path.decode("ascii"))
        request.query = (url.query or b"") if url is not None else b""
        for name, value in request.headers:
            if name == b"content-length":
                request.length = int(value)
            elif name == b"transfer-encoding":
                request.length = None
            elif name == b"expect":
                request.expects = value.lower() == b"100-continue"
        if self._answering is None:
            self._answer(request)
        else:
            self._waiting.append(request)
            if len(self._waiting) >= MAX_PIPELINED:
                self._pause()

    def on_body(self, part: bytes) -> None:
        request = self._reading
        assert request is not None
        request.body_parts.append(part)
        request.received += len(part)
        request.ahead += len(part)
        if request.wants_body:
            self._wake()
        elif request.ahead > _AHEAD_BYTES:
            self._pause()

    def on_message_complete(self) -> None:
        request = self._reading
        if request is not None and request.length != 0 and self._parser.should_upgrade():
            return  # said of the head alone
        self._reading = None
        if request is not None:
            request.complete = True
            if request is self._answering:
                self._wake()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _TooLarge(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large."
            )

    # --- answering --------------------------------------------------------------------------------

    def _answer(self, request: _Request) -> None:
        self._answering = request
        self._task = self._loop.create_task(self._run(request))

    async def _run(self, request: _Request) -> None:
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": request.method,
            "path": request.path,
            "query_string": request.query,
            "headers": request.headers,
            "client": self._client,
            "extensions": {WHEN_GONE: self._when_gone},
        }
        try:
            await self._listener.application(scope, self._receive, self._send)
        except Exception:
            logger.exception("%s %s ended without an answer", request.method, ascii(request.path))
            self.abort()
            return
        if self._answering is request and not self._gone:
            # It said nothing, or not all of it: for its client there is nothing to wait for.
            self.abort()

    def _when_gone(self, leave: Callable[[], None] | None) -> bool:
        self._leave = None if self._gone else leave
        return self._gone

    def _go(self) -> None:
        self._gone = True
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        self._wake()

    async def _receive(self) -> Message:
        request = self._answering
        while request is not None and not self._gone and request is self._answering:
            here = request.complete or (request.body_parts and not request.is_placed)
            if here and not request.handed_over:
                return self._hand_over(request)
            if not request.complete:
                self._ask_for_more(request)
            await self._next_arrival()
        return dict(_DISCONNECT)

    def _hand_over(self, request: _Request) -> Message:
        parts = request.body_parts
        if request.target is not None:
            # Nobody behind here need know another kind of bytes.
            body, request.target = bytes(request.target), None
        else:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
        request.body_parts, request.ahead = [], 0
        request.wants_body = False
        request.handed_over = request.complete
        return {"type": "http.request", "body": body, "more_body": not request.complete}

    def _ask_for_more(self, request: _Request) -> None:
        """Let the rest of a body come; of one whose length is known, straight to its place."""
        assert self._transport is not None
        if request.expects and not request.received:
            request.expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.wants_body = True
        if request.is_placed and request.target is None and request is self._reading:
            assert request.length is not None
            target = bytearray(request.length)
            at = 0
            for part in request.body_parts:
                target[at : at + len(part)] = part
                at += len(part)
            request.body_parts = []
            request.target = target
        self._resume()

    async def _next_arrival(self) -> None:
        if self._arrival is None or self._arrival.done():
            self._arrival = self._loop.create_future()
        await asyncio.shield(self._arrival)

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def _send(self, message: Message) -> None:
        request = self._answering
        if self._gone or request is None:
            return
        if message["type"] == "http.response.start":
            request.start = message
            return
        transport = self._transport
        assert transport is not None
        body = message.get("body", b"")
        more = message.get("more_body", False)
        if not request.head_sent:
            head = self._head(request, more=more, size=len(body))
            if request.answer_chunked:
                body = _chunk(body, last=not more)
            if len(body) <= _JOINED_BYTES:
                transport.write(head + body)
            else:
                transport.writelines((head, body))
        else:
            transport.write(_chunk(body, last=not more) if request.answer_chunked else body)
        if not more:
            self._finished(request)
        if self._drained is not None:
            await self._drained

    def _head(self, request: _Request, *, more: bool, size: int) -> bytes:
        start = request.start
        assert start is not None
        status = start["status"]
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status, self._listener.date]
        headers: Sequence[tuple[bytes, bytes]] = start["headers"]
        measured = False
        for name, value in headers:
            if name == b"connection":
                request.keep_alive &= value.lower() != b"close"
                continue
            measured |= name == b"content-length"
            lines.append(b"%b: %b\r\n" % (name, value))
        if not request.complete or self._ending:
            request.keep_alive = False
        if not measured and status >= 200 and status not in {204, 304}:
            if more and not request.old:
                request.answer_chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            elif more:
                request.keep_alive = False
            else:
                lines.append(b"content-length: %d\r\n" % size)
        if not request.keep_alive:
            lines.append(b"connection: close\r\n")
        elif request.old:
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        request.head_sent = True
        return b"".join(lines)

    def _finished(self, request: _Request) -> None:
        """Go on to the next request, or say farewell."""
        assert self._transport is not None
        self._answering = None
        self._wake()
        self._last_at = time.monotonic()
        if not request.complete:
            self._linger()
        elif not request.keep_alive or self._ending:
            self._gone = True
            self._transport.close()
        else:
            if self._waiting:
                self._answer(self._waiting.popleft())
            if len(self._waiting) < MAX_PIPELINED:
                self._resume()

    def _linger(self) -> None:
        """Read away what still comes: a connection closed on it would take the answer with it."""
        assert self._transport is not None
        if self._reading is not None:
            self._reading.target = None
        self._discarding = True
        self._waiting.clear()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._resume()
        self._loop.call_later(LINGER_SECONDS, self.abort)

    def _refuse(self, status: HTTPStatus, problem: str) -> None:
        """Answer what is no request, or one too many, and close."""
        assert self._transport is not None
        answering = self._answering
        if answering is not None and answering is self._reading and not answering.head_sent:
            # It broke in the middle of its body: who waits for the rest learns that none comes.
            self._answering = None
            self._wake()
        elif answering is not None or self._gone:
            # An answer is under way, behind which nothing can be said.
            self._ending = self._discarding = True
            return
        body = b'{"error":"%b","code":"malformed_request"}' % problem.encode("ascii")
        self._transport.write(
            b"".join(
                (
                    _STATUS_LINES[status],
                    self._listener.date,
                    b"content-type: application/json\r\n",
                    b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body),
                    body,
                )
            )
        )
        self._linger()

    # --- reading on and off -----------------------------------------------------------------------

    def _pause(self) -> None:
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._transport is not None and not self._gone:
            self._paused = False
            self._transport.resume_reading()

    # --- ending -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Close after the answer that is under way, or at once."""
        self._ending = True
        if self._answering is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._go()
        if self._transport is not None:
            self._transport.abort()

    def look_at_clock(self, now: float) -> None:
        """Close what has stood still for too long."""
        if self._drained is not None and self._transport is not None:
            before, self._left_bytes = self._left_bytes, self._transport.get_write_buffer_size()
            if self._left_bytes < before:
                self._last_at = now
        still = now - self._last_at
        if self._drained is not None:
            # It does not take its answer.
            if still > STILL_SECONDS:
                self.abort()
        elif self._answering is not None:
            request = self._answering
            if not request.complete and not self._paused and still > STILL_SECONDS:
                self.abort()
        elif self._reading is not None:
            if still > HEAD_SECONDS:
                self.abort()
        elif still > IDLE_SECONDS:
            self.abort()


class _TooLarge(Exception):  # noqa: N818 - a limit, not a mistake of ours
    """The head of a request is beyond the bounds."""

    def __init__(self, status: HTTPStatus, problem: str) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem


def _head_of_body(request: _Request) -> bytes:
    """Write a head that says nothing but how long the body of a request is."""
    framing = [
        b"%b: %b\r\n" % header
        for header in request.headers
        if header[0] in {b"content-length", b"transfer-encoding"}
    ]
    return b"".join((b"POST / HTTP/1.1\r\n", *framing, b"\r\n"))


def _chunk(body: bytes, *, last: bool) -> bytes:
    chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return chunk + b"0\r\n\r\n" if last else chunk
