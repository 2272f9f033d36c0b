"""gRPC-Web over the REST port: the calls of rpc.py in frames that browsers can send and read."""

import asyncio
import base64
import binascii
import re
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial

import grpc

from registry.errors import Invalid, TooLarge
from workers.serving.budget import Bounds, Holding
from workers.serving.calls import Refusal, read_timeout, write_trailers
from workers.serving.exchange import CODINGS, THREAD_FROM_BYTES, ClientGone, Exchange, unpack
from workers.serving.messages import Data
from workers.serving.plane import Plane
from workers.serving.rpc import STREAM, UNARY, Call, Unary, stream_infer

MAX_MESSAGES = 1000

_HEAD = struct.Struct(">BI")
_PACKED, _TRAILERS = 0x01, 0x80
_TYPES = re.compile(rb"application/grpc-web(-text)?(\+proto)?")
# A multiple of four.
_TEXT_PIECE_BYTES = 512 * 1024


async def answer_grpcweb(plane: Plane, exchange: Exchange, method: str) -> None:
    """Answer one call; how it went is in the trailers, the last frame."""
    spoken = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    found = _TYPES.fullmatch(spoken)
    if exchange.method != "POST" or found is None:
        raise Invalid("gRPC-Web is a POST of application/grpc-web or application/grpc-web-text.")
    writer = _Writer(exchange, spoken, text=found[1] is not None)
    try:
        body = await exchange.body()
        messages = await _read(exchange, body, text=writer.text)
        deadline = time.monotonic() + read_timeout(exchange.headers.get(b"grpc-timeout"))
        identify = partial(_call, plane, exchange, deadline)
        call = await identify()
        if method == STREAM:
            work = _stream(identify, _each(messages, exchange.holding.bounds), writer)
            await exchange.unless_gone(work)
        elif method not in UNARY:
            detail = f"The method {method[:80]!r} is not offered."
            await writer.end(Refusal(grpc.StatusCode.UNIMPLEMENTED, detail))
        else:
            answer = await exchange.unless_gone(_answer(call, UNARY[method], messages))
            exchange.holding.hold(len(answer))
            await writer.message(answer)
            await writer.end(None)
    except ClientGone:
        raise
    # Whatever it is, the caller hears it in the trailers.
    except Exception as error:  # noqa: BLE001
        await writer.end(Refusal.of(error))


async def _call(plane: Plane, exchange: Exchange, deadline: float) -> Call:
    said = exchange.header(b"authorization")
    return Call(plane, await plane.identify(said, None if said else exchange.address), deadline)


async def _answer(call: Call, method: Unary, messages: list[Data]) -> bytes:
    if len(messages) != 1:
        raise Invalid("A call has one message; {count} came.", count=len(messages))
    answer = await method.answer(call, method.read(messages[0]))
    return answer.SerializeToString()


async def _stream(
    identify: Callable[[], Awaitable[Call]],
    messages: AsyncIterator[tuple[Data, Holding]],
    writer: "_Writer",
) -> None:
    async with aclosing(stream_infer(identify, messages)) as answers:
        async for answer in answers:
            await writer.message(answer.SerializeToString())
            # What it holds of the budget it does until the client has taken it.
            await writer.flush(more=True)
    await writer.end(None)


async def _each(messages: list[Data], bounds: Bounds) -> AsyncIterator[tuple[Data, Holding]]:
    for one in messages:
        # All of them are held by the one request that they came in; of answers each by itself.
        yield one, Holding(bounds)


class _Writer:
    """Frames on their way out; the answer begins with the first of them."""

    def __init__(self, exchange: Exchange, spoken: bytes, *, text: bool) -> None:
        self.text = text
        self._exchange = exchange
        self._headers = [(b"content-type", spoken), (b"cache-control", b"no-store")]
        self._waiting = b""

    async def message(self, body: bytes) -> None:
        await self.flush(more=True)
        self._waiting = frame(0, body)

    async def end(self, refusal: Refusal | None) -> None:
        self._waiting += frame(
            _TRAILERS, b"".join(b"%b: %b\r\n" % one for one in write_trailers(refusal))
        )
        await self.flush(more=False)

    async def flush(self, *, more: bool) -> None:
        """Send what waits; the next frame may still go out with the end."""
        body, self._waiting = self._waiting, b""
        if not body:
            return
        body = base64.b64encode(body) if self.text else body
        if not self._exchange.started:
            length = [] if more else [(b"content-length", b"%d" % len(body))]
            await self._exchange.start(200, [*self._headers, *length])
        await self._exchange.write(body, more=more)


def frame(flag: int, body: bytes) -> bytes:
    """Put a flag and the length before a body."""
    return _HEAD.pack(flag, len(body)) + body


async def _read(exchange: Exchange, body: bytes, *, text: bool) -> list[Data]:
    """Take a body apart into messages, unpacked."""
    if text:
        # Decoded, it is held once more.
        exchange.holding.hold(len(body) * 3 // 4)
        apart = len(body) >= THREAD_FROM_BYTES
        body = await asyncio.to_thread(from_text, body) if apart else from_text(body)
    messages: list[Data] = []
    for packed, message in read_frames(body):
        messages.append(await _unpack(exchange, message) if packed else message)
    return messages


async def _unpack(exchange: Exchange, message: Data) -> Data:
    coding = exchange.header(b"grpc-encoding")
    if coding not in CODINGS:
        raise Invalid("A message is packed, and its encoding is not gzip or deflate.")
    return await unpack(bytes(message), exchange.holding)


def from_text(body: bytes) -> bytes:
    """Undo the base64 of grpc-web-text, whose pieces may each have their own padding.

    Raises:
        Invalid: it is not base64, or has very many pieces.

    """
    parts: list[bytes] = []
    place = padded = 0
    while place < len(body):
        # In pieces, so that others have their turn meanwhile.
        end = body.find(b"=", place, place + _TEXT_PIECE_BYTES)
        if end < 0:
            end = min(place + _TEXT_PIECE_BYTES, len(body))
        else:
            padded += 1
            while end < len(body) and body[end : end + 1] == b"=":
                end += 1
        try:
            parts.append(base64.b64decode(body[place:end], validate=True))
        except binascii.Error:
            raise Invalid("The body is not base64.") from None
        if padded > MAX_MESSAGES:
            raise Invalid("The body is not base64.")
        place = end
    return b"".join(parts)


def read_frames(body: bytes) -> list[tuple[bool, Data]]:
    """Take a body apart into messages, and say of each whether it is packed; nothing is copied.

    Raises:
        Invalid: its lengths lie, or it has frames that a caller does not send.

    """
    messages: list[tuple[bool, Data]] = []
    view = memoryview(body)
    place = 0
    while place < len(view):
        if len(messages) >= MAX_MESSAGES:
            raise TooLarge("A call has {limit} messages at most.", limit=MAX_MESSAGES)
        if place + _HEAD.size > len(view):
            raise Invalid("The body ends within the head of a frame.")
        flag, size = _HEAD.unpack_from(view, place)
        place += _HEAD.size
        if size > len(view) - place:
            template = "A frame says {said} bytes; {left} are left in the body."
            raise Invalid(template, said=size, left=len(view) - place)
        if flag & ~_PACKED:
            raise Invalid("A frame has the unknown flag {flag}.", flag=flag)
        messages.append((flag == _PACKED, view[place : place + size]))
        place += size
    return messages
