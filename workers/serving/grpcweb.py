"""gRPC-Web over the REST port: the calls of rpc.py in frames that browsers can send and read."""

import base64
import binascii
import math
import re
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from urllib.parse import quote

import grpc

from registry.errors import Invalid, TooLarge
from workers.serving.codec import inflate
from workers.serving.exchange import ClientGone, Exchange
from workers.serving.plane import Plane
from workers.serving.rpc import UNARY, Call, Refusal, Unary, parse, stream_infer

MAX_MESSAGES = 1000

_HEAD = struct.Struct(">BI")
_PACKED, _TRAILERS = 0x01, 0x80
_TYPES = re.compile(rb"application/grpc-web(-text)?(\+proto)?")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_BASE64_PARTS = re.compile(rb"[^=]+=*")


async def answer_grpcweb(plane: Plane, exchange: Exchange, method: str) -> None:
    """Answer one call; how it went is in the trailers, the last frame."""
    spoken = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    found = _TYPES.fullmatch(spoken)
    if exchange.method != "POST" or found is None:
        raise Invalid("gRPC-Web is a POST of application/grpc-web or application/grpc-web-text.")
    writer = _Writer(exchange, spoken, text=found[1] is not None)
    try:
        body = await exchange.body()
        messages = read_frames(from_text(body) if writer.text else body, _Unpacking(exchange))
        call = Call(
            plane,
            await plane.identify(exchange.header(b"authorization")),
            time.monotonic() + read_timeout(exchange.headers.get(b"grpc-timeout")),
        )
        if method == "ModelStreamInfer":
            await _stream(call, messages, writer)
        elif method not in UNARY:
            detail = f"The method {method[:80]!r} is not offered."
            await writer.end(Refusal(grpc.StatusCode.UNIMPLEMENTED, detail))
        else:
            work = _answer(call, UNARY[method], messages)
            await writer.message(await exchange.unless_gone(work))
            await writer.end(None)
    except ClientGone:
        raise
    # Whatever it is, the caller hears it in the trailers.
    except Exception as error:  # noqa: BLE001
        await writer.end(Refusal.of(error))


async def _answer(call: Call, method: Unary, messages: list[bytes]) -> bytes:
    if len(messages) != 1:
        raise Invalid("A call has one message; {count} came.", count=len(messages))
    answer = await method.answer(call, parse(method.request, messages[0]))
    return answer.SerializeToString()


async def _stream(call: Call, messages: list[bytes], writer: "_Writer") -> None:
    async with aclosing(stream_infer(call, _each(messages))) as answers:
        async for answer in answers:
            await writer.message(answer.SerializeToString())
    await writer.end(None)


async def _each(messages: list[bytes]) -> AsyncIterator[bytes]:
    for one in messages:
        yield one


class _Writer:
    """Frames on their way out; the answer begins with the first of them."""

    def __init__(self, exchange: Exchange, spoken: bytes, *, text: bool) -> None:
        self.text = text
        self._exchange = exchange
        self._headers = [(b"content-type", spoken), (b"cache-control", b"no-store")]
        self._waiting = b""

    async def message(self, body: bytes) -> None:
        await self._flush(more=True)
        self._waiting = frame(0, body)

    async def end(self, refusal: Refusal | None) -> None:
        self._waiting += frame(_TRAILERS, _trailers(refusal))
        await self._flush(more=False)

    async def _flush(self, *, more: bool) -> None:
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


def _trailers(refusal: Refusal | None) -> bytes:
    if refusal is None:
        return b"grpc-status: 0\r\n"
    code = refusal.code.value[0]
    lines = [f"grpc-status: {code}", f"grpc-message: {quote(refusal.detail, safe=' ')}"]
    if refusal.retry_after is not None:
        lines.append(f"retry-after: {refusal.retry_after}")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


def from_text(body: bytes) -> bytes:
    """Undo the base64 of grpc-web-text, whose pieces may each have their own padding.

    Raises:
        Invalid: it is not base64.

    """
    try:
        return b"".join(
            base64.b64decode(part, validate=True) for part in _BASE64_PARTS.findall(body)
        )
    except binascii.Error:
        raise Invalid("The body is not base64.") from None


class _Unpacking:
    """Unpacks frames in the encoding that the headers name."""

    def __init__(self, exchange: Exchange) -> None:
        self._coding = exchange.headers.get(b"grpc-encoding", b"identity")
        self._left = exchange.body_bytes

    def __call__(self, body: bytes) -> bytes:
        if self._coding not in {b"gzip", b"deflate"}:
            raise Invalid("A message is packed, and its encoding is not gzip or deflate.")
        found = inflate(body, self._left)
        self._left -= len(found)
        return found


def read_frames(body: bytes, unpack: Callable[[bytes], bytes] | None = None) -> list[bytes]:
    """Take a body apart into messages.

    Raises:
        Invalid: its lengths lie, or it has frames that a caller does not send.

    """
    messages: list[bytes] = []
    place = 0
    while place < len(body):
        if len(messages) >= MAX_MESSAGES:
            raise TooLarge("A call has {limit} messages at most.", limit=MAX_MESSAGES)
        if place + _HEAD.size > len(body):
            raise Invalid("The body ends within the head of a frame.")
        flag, size = _HEAD.unpack_from(body, place)
        place += _HEAD.size
        if size > len(body) - place:
            template = "A frame says {said} bytes; {left} are left in the body."
            raise Invalid(template, said=size, left=len(body) - place)
        message = body[place : place + size]
        place += size
        if flag & ~_PACKED:
            raise Invalid("A frame has the unknown flag {flag}.", flag=flag)
        if flag == _PACKED:
            if unpack is None:
                raise Invalid("A message is packed, and no encoding was named.")
            message = unpack(message)
        messages.append(message)
    return messages


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
