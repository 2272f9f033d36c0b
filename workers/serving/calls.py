"""gRPC over HTTP/2: calls as their messages and a status, within bounds of bytes and time.

Source: the protocol as gRPC's repository describes it, doc/PROTOCOL-HTTP2.md.
"""

import asyncio
import base64
import binascii
import logging
import math
import re
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote

import grpc

from registry.authenticate import client_address
from registry.errors import Invalid, RegistryError, TooLarge
from workers.serving.budget import BUSY, Bounds, Holding
from workers.serving.exchange import CODINGS, IDLE_SECONDS, unpack
from workers.serving.http2 import OFFERED_HEADER_BYTES, Headers, Listener, Stream, encode
from workers.serving.messages import Data

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

# In the trailers: why a call was refused, as the REST protocol's `code`.
REFUSED = "modelyard-code"
# A stream through which nothing went for so long gives its place up where there is no other.
STILL_SECONDS = 60.0
# Some clients take no more of a header.
MAX_DETAIL_BYTES = 4096

logger = logging.getLogger(__name__)

_PREFIX = struct.Struct(">BI")
_PACKED = 0x01
_TYPE = re.compile(rb"application/grpc(?:\+proto)?(?:;.*)?")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_STATUS: Headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_OFFERED = (b"grpc-accept-encoding", b"identity, deflate, gzip")
_BEGIN = encode([*_STATUS, _OFFERED])
_END = encode([(b"grpc-status", b"0")])

_CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as gRPC says it."""

    code: grpc.StatusCode
    detail: str
    # What programs read.
    trailers: Metadata = ()

    @classmethod
    def of(cls, error: Exception) -> "Refusal":
        if isinstance(error, Ended):
            return error.refusal
        if not isinstance(error, RegistryError):
            logger.error("a call failed", exc_info=error)
            return cls(grpc.StatusCode.INTERNAL, "Something went wrong; it was logged.")
        code = _CODES.get(error.status, grpc.StatusCode.INTERNAL)
        trailers = [(REFUSED, error.reason)]
        retry_after = getattr(error, "retry_after", None)
        if retry_after is not None:
            trailers.append(("retry-after", str(retry_after)))
        busy = error.reason == BUSY
        return cls(grpc.StatusCode.RESOURCE_EXHAUSTED if busy else code, error.detail, trailers)


class Ended(Exception):  # noqa: N818 - it may be the end that somebody else gave the call
    """The call ends with this status."""

    def __init__(self, code: grpc.StatusCode, detail: str, trailers: Metadata = ()) -> None:
        super().__init__(detail)
        self.refusal = Refusal(code, detail, trailers)


@dataclass(frozen=True, slots=True)
class Head:
    """What the headers of a call say, which are the same for most calls of a client."""

    method: str
    metadata: Metadata
    # How long the client waits, and how its messages are packed.
    seconds: float = math.inf
    encoding: str = "identity"
    authorization: str | None = None
    forwarded_for: str = ""
    # What is wrong with them.
    problem: Refusal | None = None
    is_call: bool = True


def read_head(headers: Headers) -> Head:
    """Read the headers of a call; what is wrong with them is said in its answer."""
    known = dict(headers)
    method = known.get(b":path", b"").decode("latin-1")
    if known.get(b":method") != b"POST" or not _TYPE.fullmatch(known.get(b"content-type", b"")):
        return Head(method, (), is_call=False)
    if sum(len(name) + len(value) for name, value in headers) > OFFERED_HEADER_BYTES:
        detail = f"The headers of a call have {OFFERED_HEADER_BYTES} bytes at most."
        refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        return Head(method[:80], (), problem=refusal)
    try:
        return Head(
            method,
            [one for name, value in headers if name[:1] != b":" for one in _items(name, value)],
            seconds=read_timeout(known.get(b"grpc-timeout")),
            encoding=known.get(b"grpc-encoding", b"identity").decode("latin-1"),
            authorization=_text(known.get(b"authorization")),
            forwarded_for=_text(known.get(b"x-forwarded-for")) or "",
        )
    except Invalid as error:
        return Head(method, (), problem=Refusal.of(error))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")


def _items(name: bytes, value: bytes) -> list[tuple[str, str | bytes]]:
    """Read a header; one of bytes may have several, joined by commas on their way."""
    key = name.decode("latin-1")
    if not name.endswith(b"-bin"):
        return [(key, value.decode("latin-1"))]
    try:
        return [
            (key, base64.b64decode(one + b"=" * (-len(one) % 4), validate=True))
            for one in map(bytes.strip, value.split(b","))
        ]
    except binascii.Error:
        raise Invalid("The header {name!r} is not base64.", name=key) from None


def read_timeout(value: bytes | None) -> float:
    """Read the header grpc-timeout in seconds; without one it is infinite.

    Raises:
        Invalid: it is no time.

    """
    if value is None:
        return math.inf
    found = _TIMEOUT.fullmatch(value)
    if found is None:
        raise Invalid("The header grpc-timeout is no time.")
    return int(found[1]) * _UNIT_SECONDS[found[2]]


class Rpc:
    """One call: its messages as they come, its answers, and how it ends."""

    __slots__ = (
        *("_begun", "_due", "_still", "_stream", "_task"),
        *("bounds", "deadline", "ending", "head"),
    )

    def __init__(self, stream: Stream[Head], bounds: Bounds, still: "dict[Rpc, float]") -> None:
        self._stream = stream
        self.bounds = bounds
        self.head = stream.head
        self.deadline = time.monotonic() + self.head.seconds
        # Why it was broken off, where that was done from here.
        self.ending: Refusal | None = None
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        # Of the streams that owe nothing and get nothing, since when; the stillest is the first.
        self._still = still
        # Answers that are due to its messages, those included that are still coming.
        self._due = 0
        self._begun = False

    @property
    def address(self) -> str | None:
        """Where a call comes from, as far as one may believe it."""
        return client_address(self._stream.peer, self.head.forwarded_for)

    # --- what comes -------------------------------------------------------------------------------

    async def read(self, *, within: float | None = None) -> tuple[Data, Holding] | None:
        """Give the next message, unpacked, with what it holds; None where there is no more.

        A message that has begun goes on; `within` so many seconds it begins.

        Raises:
            TooLarge, Invalid: it is beyond the bounds, or broken; Unavailable: all calls hold too
            much together, or it came too slowly; Ended: it stopped coming.

        """
        prefix = await self._some(_PREFIX.size, within)
        if not prefix:
            return None
        while len(prefix) < _PREFIX.size:
            prefix += await self._more(_PREFIX.size - len(prefix))
        self._due += 1
        self._still.pop(self, None)
        flag, size = _PREFIX.unpack(prefix)
        if flag & ~_PACKED:
            raise Invalid("A message has the unknown flag {flag}.", flag=flag)
        if size > self.bounds.body_bytes:
            raise TooLarge(
                "The message has {found} bytes; {limit} are allowed.",
                found=size,
                limit=self.bounds.body_bytes,
            )
        holding = Holding(self.bounds)
        try:
            holding.hold(size)
            body = await self._body(size)
            if flag:
                body = await self._unpack(bytes(body), holding)
        except BaseException:
            holding.release()
            raise
        return body, holding

    async def _body(self, size: int) -> Data:
        if not size:
            return b""
        body = await self._stream.read(size) if self._stream.has_data else b""
        if len(body) == size:
            return body
        whole = memoryview(bytearray(size))
        place = len(body)
        whole[:place] = body
        with self.bounds.arriving() as arrival:
            while place < size:
                part = await self._more(size - place)
                whole[place : place + len(part)] = part
                place += len(part)
                arrival.size = place
        return whole

    async def _more(self, wanted: int) -> bytes:
        part = await self._some(wanted, IDLE_SECONDS)
        if not part:
            raise Invalid("The call ends within a message.")
        return part

    async def _some(self, wanted: int, seconds: float | None) -> bytes:
        stream = self._stream
        if seconds is None or stream.has_data:
            return await stream.read(wanted)
        try:
            async with asyncio.timeout(seconds):
                return await stream.read(wanted)
        except TimeoutError:
            detail = "Nothing came of the message for too long."
            raise Ended(grpc.StatusCode.CANCELLED, detail) from None

    async def _unpack(self, body: bytes, holding: Holding) -> Data:
        if self.head.encoding not in CODINGS:
            detail = f"A message is packed as {self.head.encoding[:40]!r}; send gzip or deflate."
            raise Ended(grpc.StatusCode.UNIMPLEMENTED, detail)
        return await unpack(body, holding)

    async def first(self) -> tuple[Data, Holding]:
        """Give the one message of a call.

        Raises:
            Invalid: there is none; and what `read` raises.

        """
        came = await self.read(within=IDLE_SECONDS)
        if came is None:
            raise Invalid("A call has one message; {count} came.", count=0)
        return came

    async def __aiter__(self) -> AsyncIterator[tuple[Data, Holding]]:
        message = await self.read(within=IDLE_SECONDS)
        while message is not None:
            yield message
            message = await self.read()

    # --- what goes --------------------------------------------------------------------------------

    async def write(self, message: bytes) -> None:
        """Send a message, and wait until the connection has taken it."""
        await self._send(message, None)
        self._due -= 1
        if self._due == 0:
            self._still[self] = time.monotonic()

    async def answer(self, message: bytes) -> None:
        """Send the one message of an answer, which ends the call well."""
        await self._send(message, _END)

    async def _send(self, message: bytes, end: bytes | None) -> None:
        begin = b"" if self._begun else _BEGIN
        self._begun = True
        await self._stream.send((_PREFIX.pack(0, len(message)), message), begin, end)

    def break_off(self, refusal: Refusal) -> None:
        """Have whoever answers the call end it so."""
        self.ending = refusal
        self._task.cancel()

    def end(self, refusal: Refusal | None) -> None:
        """End the call: well, or with what went wrong."""
        trailers = write_trailers(refusal)
        self._stream.end(encode(trailers if self._begun else [*_STATUS, *trailers]))

    def refuse(self) -> None:
        """Answer what is no call of gRPC."""
        self._stream.end(encode([(b":status", b"415"), (b"content-length", b"0")]))


def write_trailers(refusal: Refusal | None) -> Headers:
    """Write how a call ended: well, or with what went wrong."""
    if refusal is None:
        return [(b"grpc-status", b"0")]
    return [
        (b"grpc-status", b"%d" % refusal.code.value[0]),
        (b"grpc-message", quote_detail(refusal.detail)),
        *(_field(name, value) for name, value in refusal.trailers),
    ]


_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


def quote_detail(text: str) -> bytes:
    """Write a text as a header may have it, no longer than clients take it."""
    quoted = quote(text, safe=_PLAIN)
    while len(quoted) > MAX_DETAIL_BYTES:
        text = text[: len(text) * MAX_DETAIL_BYTES // len(quoted)]
        quoted = quote(text, safe=_PLAIN)
    return quoted.encode("ascii")


def _field(name: str, value: str | bytes) -> tuple[bytes, bytes]:
    if name.endswith("-bin"):
        return name.encode("latin-1"), base64.b64encode(
            bytes(value, "latin-1") if isinstance(value, str) else value
        )
    return name.encode("latin-1"), value.encode("latin-1") if isinstance(value, str) else value


Handler: TypeAlias = Callable[[Rpc], Awaitable[None]]


class CallServer:
    """The calls that a process answers, by the path of their method."""

    def __init__(self, handlers: Mapping[str, Handler], bounds: Bounds, *, max_calls: int) -> None:
        self._handlers = handlers
        self._bounds = bounds
        self._max_calls = max_calls
        self._calls = 0
        self._still: dict[Rpc, float] = {}
        # More than calls, so that one that comes finds somebody who can make room.
        self._listener = Listener(read_head, self._answer, max_connections=2 * max_calls)

    async def start(self, host: str, port: int) -> None:
        """Begin to listen.

        Raises:
            OSError: the address is taken, or is none.

        """
        await self._listener.start(host, port)

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and finish those that are there.

        Raises:
            TimeoutError: some took longer; they were cut off.

        """
        await self._listener.stop(seconds)

    async def _answer(self, stream: Stream[Head]) -> None:
        rpc = Rpc(stream, self._bounds, self._still)
        head = rpc.head
        handler = self._handlers.get(head.method)
        if not head.is_call:
            rpc.refuse()
        elif head.problem is not None:
            rpc.end(head.problem)
        elif handler is None:
            detail = f"The method {head.method[:80]!r} is not offered."
            rpc.end(Refusal(grpc.StatusCode.UNIMPLEMENTED, detail))
        elif self._calls >= self._max_calls and not self._make_room():
            detail = "Too many calls are under way; try again soon."
            rpc.end(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, detail, [(REFUSED, BUSY)]))
        else:
            self._calls += 1
            try:
                await self._within_time(rpc, handler)
            finally:
                self._calls -= 1
                self._still.pop(rpc, None)

    def _make_room(self) -> bool:
        """End the stream that has stood still for longest; say whether there was one."""
        stillest, since = next(iter(self._still.items()), (None, math.inf))
        if stillest is None or time.monotonic() - since < STILL_SECONDS:
            return False
        del self._still[stillest]
        detail = "Nothing went through this stream for long, and others needed its place."
        stillest.break_off(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, detail, [(REFUSED, BUSY)]))
        return True

    async def _within_time(self, rpc: Rpc, handler: Handler) -> None:
        ending = None
        if rpc.head.seconds < math.inf:
            detail = "The deadline of the call has passed."
            late = Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, detail)
            ending = asyncio.get_running_loop().call_later(rpc.head.seconds, rpc.break_off, late)
        try:
            await handler(rpc)
        except asyncio.CancelledError:
            if rpc.ending is None:
                raise
            rpc.end(rpc.ending)
        # Whatever it is, the caller hears it as a status.
        except Exception as error:  # noqa: BLE001
            rpc.end(Refusal.of(error))
        finally:
            if ending is not None:
                ending.cancel()
