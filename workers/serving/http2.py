"""HTTP/2 as calls need it, in the loop that computes: frames, streams, and how much each may send.

A server with threads of its own costs more per call than the call does. Header blocks are decoded
by hpack; what is written has no state of its own: nothing of it goes into a table of the client's.
Upgrades, priorities and pushes are not offered.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK); the floods that are bounded are those of CERT
VU#605641, VU#421644 and CVE-2023-44487.
"""

import asyncio
import fcntl
import logging
import struct
import termios
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import Any, Generic, TypeAlias, TypeVar, cast

import hpack

from workers.serving.connections import Connections
from workers.serving.messages import Data

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
H = TypeVar("H")

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What a header block may have, packed and unpacked, and what clients are asked to stay below.
MAX_HEADER_BYTES = 64 * 1024
OFFERED_HEADER_BYTES = 16 * 1024
MAX_STREAMS = 4096
# Of a stream whose data nobody asks for; who reads a long message lets more come at once.
WINDOW_BYTES = 65_535
READ_AHEAD_BYTES = 4 * 1024 * 1024
# Streams bound what comes; all of a connection together nearly never do.
_CONNECTION_WINDOW = 1 << 30
_MAX_WINDOW = (1 << 31) - 1
_OUR_FRAME_BYTES = 256 * 1024
_LEAST_FRAME_BYTES = 16 * 1024
# What is kept of a connection, so as not to be read again.
_KEPT_HEADS = 16
_KEPT_HEAD_BYTES = 2048
# A header block that comes in more pieces, data without a byte in a row; within a second, calls
# that are taken back and windows that are changed: no client that works does such things.
MAX_CONTINUATIONS = 16
MAX_EMPTY_FRAMES = 100
MAX_RESETS = 2000
MAX_SETTINGS = 100
# How long a connection may be without a call, its preface or the rest of a frame on the way, and an
# answer stand still, of which at least so much is to be taken meanwhile.
IDLE_SECONDS = 300.0
HEAD_SECONDS = 15.0
STILL_SECONDS = 30.0
LEAST_TAKEN_BYTES = 64 * 1024
# While a client takes nothing, so much more is written before nothing more is read of it.
MAX_HEAP_BYTES = 1024 * 1024
# Who has calls and says nothing for so long is asked whether it is still there, and has as long
# again to say so.
QUIET_SECONDS = 60.0
# A connection that ends stays for so long, so that its client hears why.
_LINGER_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Kind(IntEnum):
    """What a frame is."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


END_STREAM = ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
HAS_PRIORITY = 0x20

_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE, _MAX_HEADER_LIST_SIZE = 4, 5, 6
_MAX_CONCURRENT_STREAMS = 3
# The length of a frame has three bytes: read with the kind as one number.
_HEAD = struct.Struct(">IBI")
_HEAD_BYTES = _HEAD.size
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")


def frame(kind: int, flags: int, stream: int, size: int) -> bytes:
    """Write the head of a frame whose payload has so many bytes."""
    return _HEAD.pack(size << 8 | kind, flags, stream)


def encode(headers: Headers) -> bytes:
    """Write a header block in which nothing refers to a table (RFC 7541, 6.2.2)."""
    parts = []
    for name, value in headers:
        parts += [b"\0", _length(len(name)), name, _length(len(value)), value]
    return b"".join(parts)


def _length(size: int) -> bytes:
    """Write the length of a string that is not packed (RFC 7541, 5.1)."""
    if size < 0x7F:
        return bytes([size])
    size -= 0x7F
    found = bytearray([0x7F])
    while size >= 0x80:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    found.append(size)
    return bytes(found)


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) for name, value in headers)


class ProtocolError(Exception):
    """The client broke the protocol; its connection ends."""

    def __init__(self, code: Code, problem: str) -> None:
        super().__init__(problem)
        self.code = code


class Listener(Connections["_Connection[H]"], Generic[H]):
    """A port of HTTP/2, and the connections to it.

    `read_head` reads what the headers of a stream say, once for all streams with the same;
    `answer` answers a stream.
    """

    def __init__(
        self,
        read_head: Callable[[Headers], H],
        answer: Callable[["Stream[H]"], Awaitable[None]],
        *,
        max_connections: int,
    ) -> None:
        super().__init__(max_connections=max_connections)
        self.read_head = read_head
        self.answer = answer

    def connect(self) -> "_Connection[H]":
        return _Connection(self)


class Stream(Generic[H]):
    """One request and its answer."""

    __slots__ = (
        "_arrival",
        "_came",
        "_connection",
        "_ended",
        "empty_frames",
        "head",
        "number",
        "receive_window",
        "room",
        "send_window",
        "taken_bytes",
        "task",
        "waits_since",
    )

    def __init__(self, connection: "_Connection[H]", number: int, head: H, window: int) -> None:
        self._connection = connection
        self.number = number
        self.head = head
        self.receive_window = WINDOW_BYTES
        self.send_window = window
        self.task: asyncio.Task[None] | None = None
        # Of an answer that cannot go on: who waits, since when, and how much went since then.
        self.room: asyncio.Future[None] | None = None
        self.waits_since = 0.0
        self.taken_bytes = 0
        self.empty_frames = 0
        self._came = bytearray()
        self._ended = False
        self._arrival: asyncio.Future[None] | None = None

    @property
    def peer(self) -> str | None:
        """Who holds the other end of the connection: the client, or a proxy."""
        client = self._connection.client
        return client[0] if client else None

    # --- the request ------------------------------------------------------------------------------

    async def read(self, wanted: int) -> bytes:
        """Give what has come, at least one byte and no more than are wanted; nothing is the end."""
        if not self._came and not self._ended:
            lacking = min(wanted, READ_AHEAD_BYTES)
            if self.receive_window < max(min(lacking, READ_AHEAD_BYTES // 2), WINDOW_BYTES // 2):
                self._connection.let_come(self, max(lacking, WINDOW_BYTES) - self.receive_window)
            self._arrival = self._connection.loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        came = self._came
        if len(came) <= wanted:
            self._came = bytearray()
            return bytes(came)
        part = bytes(came[:wanted])
        del came[:wanted]
        return part

    def take_in(self, data: Data, *, ends: bool) -> None:
        """Keep what has come until it is read."""
        if data:
            self._came += data
            self.empty_frames = 0
        self._ended = self._ended or ends
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    @property
    def has_data(self) -> bool:
        """Whether something has come that nobody has read."""
        return len(self._came) > 0

    @property
    def has_ended(self) -> bool:
        """Whether the client said that no more comes."""
        return self._ended

    # --- the answer -------------------------------------------------------------------------------

    async def send(
        self, parts: Sequence[Data], head: bytes = b"", end: bytes | None = None
    ) -> None:
        """Send a header block, if there is one, and data; a block at the end ends the stream.

        Waits until the connection has taken all; a client that takes nothing for long is given up,
        which cancels the task.
        """
        await self._connection.send(self, parts, head, end)

    def end(self, block: bytes) -> None:
        """End the stream with a header block."""
        self._connection.end(self, block)


class _Connection(asyncio.BufferedProtocol, Generic[H]):
    """One client and its streams."""

    def __init__(self, listener: Listener[H]) -> None:
        self._listener = listener
        self.loop = asyncio.get_running_loop()
        self.client: Any = None
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream[H]] = {}
        # The last stream that was begun by the client, and the last that is answered.
        self._last_seen = self._last_number = 0
        self._decoder = hpack.Decoder(max_header_list_size=MAX_HEADER_BYTES)
        # What blocks said that changed nothing in the decoder's table since.
        self._read: dict[bytes, H] = {}
        # What is left of a read, too little for a frame; of a header block, what has come of it.
        self._left = b""
        self._greeted = False
        self._has_settings = False
        self._does: Mapping[int, Callable[[int, int, bytes], None]] = {
            Kind.HEADERS: self._begin_block,
            Kind.RST_STREAM: self._take_back,
            Kind.SETTINGS: self._settle,
            Kind.PUSH_PROMISE: self._push,
            Kind.PING: self._ping,
            Kind.WINDOW_UPDATE: self._widened,
            Kind.CONTINUATION: self._go_on_with_block,
        }
        self._block: bytearray | None = None
        self._block_of = self._block_flags = self._continuations = 0
        # Of the data frame that is coming.
        self._taker: Stream[H] | None = None
        self._data_left = self._padding_left = 0
        self._data_ends = False
        self._receive_window = WINDOW_BYTES
        self._send_window = WINDOW_BYTES
        self._their_window = WINDOW_BYTES
        self._their_frame = _LEAST_FRAME_BYTES
        self._drained: asyncio.Future[None] | None = None
        # Answers that wait for room in the window of the connection, in turns.
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._finishing = self._ended = False
        self._resets = self._settings = 0
        # When something came last, when the frame began that is still coming, when output was taken
        # last, and how much was by then.
        self._last_at = self._begun_at = self._taken_at = time.monotonic()
        self._written = self._taken = self._written_by_pause = 0
        # How much data went, and how much had by the look at the clock when that was enough.
        self._sent = self._sent_by_look = 0
        self._asked_at = 0.0

    # --- what the transport tells -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing
        self.client = transport.get_extra_info("peername")
        listener = self._listener
        listener.connections.add(self)
        settings = (
            (_MAX_CONCURRENT_STREAMS, MAX_STREAMS),
            (_MAX_FRAME_SIZE, _OUR_FRAME_BYTES),
            (_MAX_HEADER_LIST_SIZE, OFFERED_HEADER_BYTES),
        )
        self._write_frame(Kind.SETTINGS, 0, 0, b"".join(_SETTING.pack(*one) for one in settings))
        self._widen()
        if listener.is_full:
            self._fail(ProtocolError(Code.ENHANCE_YOUR_CALM, "too many connections"))

    def connection_lost(self, _: Exception | None) -> None:
        self._ended = True
        self._give_up()
        self._listener.lost(self)

    def get_buffer(self, _: int) -> bytearray:
        return self._listener.scratch

    def buffer_updated(self, size: int) -> None:
        if self._ended:
            return
        self._last_at = now = time.monotonic()
        self._asked_at = 0.0
        if not self._is_begun():
            self._begun_at = now
        data = memoryview(self._listener.scratch)[:size]
        if self._left:
            data = memoryview(b"".join((self._left, data)))
            self._left = b""
        try:
            taken = self._take(data)
        except ProtocolError as error:
            self._fail(error)
            return
        if taken and self._block is None and self._has_settings:
            self._begun_at = now
        if taken < len(data):
            self._left = bytes(data[taken:])

    def _is_begun(self) -> bool:
        """Say whether the preface, a frame or a header block is on its way."""
        return bool(self._left) or self._block is not None or not self._has_settings

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._drained = self.loop.create_future()
        self._written_by_pause = self._written

    def resume_writing(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None
        assert self._transport is not None
        if not self._transport.is_closing():
            self._begun_at = self._last_at = time.monotonic()
            self._transport.resume_reading()

    # --- frames -----------------------------------------------------------------------------------

    def _take(self, data: memoryview) -> int:
        """Take all frames that are whole, and of data what is there; give how far that went."""
        place = 0 if self._greeted else self._greet(data)
        if not self._greeted:
            return 0
        while True:
            if self._data_left or self._padding_left:
                place = self._go_on_with_data(data, place)
            taken = self._take_frame(data, place) if len(data) - place >= _HEAD_BYTES else 0
            if not taken:
                return place
            place += taken

    def _greet(self, data: memoryview) -> int:
        if data[: len(PREFACE)] != PREFACE[: len(data)]:
            raise ProtocolError(Code.PROTOCOL_ERROR, "this port speaks HTTP/2 and gRPC alone")
        self._greeted = len(data) >= len(PREFACE)
        return len(PREFACE)

    def _take_frame(self, data: memoryview, place: int) -> int:
        """Take a frame, or the head of one with data; give its length, nothing if that is less."""
        first, flags, number = cast("tuple[int, int, int]", _HEAD.unpack_from(data, place))
        size, kind, number = first >> 8, first & 0xFF, number & _MAX_WINDOW
        if size > _OUR_FRAME_BYTES:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "a frame is too large")
        if self._block is not None and (kind, number) != (Kind.CONTINUATION, self._block_of):
            raise ProtocolError(Code.PROTOCOL_ERROR, "a header block is broken off")
        if kind == Kind.DATA:
            return self._begin_data(data, place, size, flags, number)
        if size > MAX_HEADER_BYTES:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "a frame is too large")
        stop = place + _HEAD_BYTES + size
        if stop > len(data):
            return 0
        if not self._has_settings:
            if kind != Kind.SETTINGS or flags & ACK:
                raise ProtocolError(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._has_settings = True
        # Frames of other kinds are passed over: PRIORITY, for all streams have the same; GOAWAY,
        # for what is under way is finished; and those of another time.
        does = self._does.get(kind)
        if does is not None:
            does(flags, number, bytes(data[place + _HEAD_BYTES : stop]))
        return stop - place

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        self._expect(size=len(payload), right=8, number=number)
        if not flags & ACK:
            self._write_frame(Kind.PING, ACK, 0, payload)

    def _push(self, _: int, __: int, ___: bytes) -> None:
        raise ProtocolError(Code.PROTOCOL_ERROR, "a client pushes nothing")

    def _expect(self, *, size: int, right: int, number: int | None = None) -> None:
        if size != right:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "a frame has another size")
        if number:
            raise ProtocolError(Code.PROTOCOL_ERROR, "a frame belongs to no stream")

    def _settle(self, flags: int, number: int, payload: bytes) -> None:
        if flags & ACK:
            return
        if number or len(payload) % _SETTING.size:
            raise ProtocolError(Code.FRAME_SIZE_ERROR, "settings have another size")
        window = self._read_settings(payload)
        change, self._their_window = window - self._their_window, window
        if change:
            self._settings += 1
            if self._settings > MAX_SETTINGS:
                raise ProtocolError(Code.ENHANCE_YOUR_CALM, "windows change too often")
            for stream in self._streams.values():
                self._widen_stream(stream, change)
        self._write_frame(Kind.SETTINGS, ACK, 0, b"")

    def _read_settings(self, payload: bytes) -> int:
        """Take what is meant for all, and give how wide the windows of streams shall be."""
        window = self._their_window
        for what, value in _SETTING.iter_unpack(payload):
            if what == _INITIAL_WINDOW_SIZE:
                if value > _MAX_WINDOW:
                    raise ProtocolError(Code.FLOW_CONTROL_ERROR, "a window is too large")
                window = value
            elif what == _MAX_FRAME_SIZE:
                if not _LEAST_FRAME_BYTES <= value < 1 << 24:
                    raise ProtocolError(Code.PROTOCOL_ERROR, "no such size of frames")
                self._their_frame = min(value, _OUR_FRAME_BYTES)
        return window

    def _known(self, number: int) -> "Stream[H] | None":
        """Give a stream; None where it has ended already."""
        found = self._streams.get(number)
        if found is None and (number > self._last_seen or not number & 1):
            raise ProtocolError(Code.PROTOCOL_ERROR, "there was no such stream")
        return found

    def _take_back(self, _: int, number: int, payload: bytes) -> None:
        self._expect(size=len(payload), right=4)
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "too many calls are taken back")
        stream = self._known(number)
        if stream is not None:
            self._drop(stream)

    def _drop(self, stream: Stream[H]) -> None:
        """Forget a stream, and end who answers it."""
        del self._streams[stream.number]
        if stream is self._taker:
            self._taker = None
        if stream.task is not None:
            stream.task.cancel()
        # It may have been its turn.
        self._wake_next()
        self._close_when_done()

    # --- header blocks ----------------------------------------------------------------------------

    def _begin_block(self, flags: int, number: int, payload: bytes) -> None:
        start, end = 0, len(payload)
        if flags & PADDED:
            end -= payload[0] if payload else end + 1
            start = 1
        if flags & HAS_PRIORITY:
            start += 5
        if end < start:
            raise ProtocolError(Code.PROTOCOL_ERROR, "a frame is nothing but padding")
        block = payload if end - start == len(payload) else payload[start:end]
        if flags & END_HEADERS:
            self._begin(number, flags, block)
        else:
            self._block, self._block_of = bytearray(block), number
            self._block_flags, self._continuations = flags, 0

    def _go_on_with_block(self, flags: int, _: int, payload: bytes) -> None:
        if self._block is None:
            raise ProtocolError(Code.PROTOCOL_ERROR, "no header block is to be continued")
        self._block += payload
        self._continuations += 1
        if len(self._block) > MAX_HEADER_BYTES or self._continuations > MAX_CONTINUATIONS:
            raise ProtocolError(Code.ENHANCE_YOUR_CALM, "a header block is too large")
        if flags & END_HEADERS:
            block, self._block = bytes(self._block), None
            self._begin(self._block_of, self._block_flags, block)

    def _begin(self, number: int, flags: int, block: bytes) -> None:
        """Begin a stream, or end one with what stands behind its data."""
        if not number & 1:
            raise ProtocolError(Code.PROTOCOL_ERROR, "no stream of a client has such a number")
        head = self._decode(block)
        if number <= self._last_seen:
            stream = self._streams.get(number)
            if stream is not None:
                if not flags & END_STREAM or stream.has_ended:
                    raise ProtocolError(Code.PROTOCOL_ERROR, "headers stand between data")
                stream.take_in(b"", ends=True)
            return
        self._last_seen = number
        if self._finishing:
            return
        self._last_number = number
        if len(self._streams) >= MAX_STREAMS:
            self._write_frame(Kind.RST_STREAM, 0, number, _NUMBER.pack(Code.REFUSED_STREAM))
            return
        stream = Stream(self, number, head, self._their_window)
        if flags & END_STREAM:
            stream.take_in(b"", ends=True)
        self._streams[number] = stream
        stream.task = self.loop.create_task(self._answer(stream))

    def _decode(self, block: bytes) -> H:
        known = self._read.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table.dynamic_entries
        before = (table[0] if table else None), len(table), self._decoder.header_table_size
        try:
            found = cast("Headers", self._decoder.decode(block, raw=True))
        except hpack.OversizedHeaderListError:
            problem = ProtocolError(Code.ENHANCE_YOUR_CALM, "a header block is too large")
            raise problem from None
        except hpack.HPACKError as error:
            raise ProtocolError(Code.COMPRESSION_ERROR, str(error)[:100]) from None
        head = self._listener.read_head(found)
        # Entries are told apart by what they are, for equal ones may follow each other.
        after = (table[0] if table else None), len(table), self._decoder.header_table_size
        if after[0] is not before[0] or after[1:] != before[1:]:
            self._read.clear()
        elif len(self._read) < _KEPT_HEADS and _size(found) <= _KEPT_HEAD_BYTES:
            self._read[block] = head
        return head

    # --- data that comes --------------------------------------------------------------------------

    def _begin_data(self, data: memoryview, place: int, size: int, flags: int, number: int) -> int:
        """Read the head of a data frame; give its length, nothing where it is not all there."""
        head, padding = _HEAD_BYTES, 0
        if flags & PADDED:
            if len(data) - place <= head:
                return 0
            padding = data[place + head]
            if padding >= size:
                raise ProtocolError(Code.PROTOCOL_ERROR, "a frame is nothing but padding")
            head += 1
        stream = self._known(number)
        self._count(stream, size)
        self._taker, self._data_ends = stream, bool(flags & END_STREAM)
        self._padding_left = padding
        self._data_left = size - padding - (head - _HEAD_BYTES)
        if stream is not None and not self._data_left:
            stream.empty_frames += 1
            if stream.empty_frames > MAX_EMPTY_FRAMES:
                raise ProtocolError(Code.ENHANCE_YOUR_CALM, "too many frames have no data")
            if self._data_ends:
                stream.take_in(b"", ends=True)
        return head

    def _count(self, stream: Stream[H] | None, size: int) -> None:
        """Count a frame of data against its windows."""
        self._receive_window -= size
        if self._receive_window < _CONNECTION_WINDOW // 2:
            self._widen()
        if stream is None:
            return
        if stream.has_ended:
            raise ProtocolError(Code.PROTOCOL_ERROR, "data come behind their end")
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise ProtocolError(Code.FLOW_CONTROL_ERROR, "more came than the window allows")

    def _go_on_with_data(self, data: memoryview, place: int) -> int:
        """Take what has come of a frame of data; give how far that went."""
        part = min(self._data_left, len(data) - place)
        if part:
            self._data_left -= part
            if self._taker is not None:
                ends = self._data_ends and not self._data_left
                self._taker.take_in(data[place : place + part], ends=ends)
        padding = min(self._padding_left, len(data) - place - part)
        self._padding_left -= padding
        return place + part + padding

    def let_come(self, stream: Stream[H], more: int) -> None:
        """Let the client send more for a stream."""
        stream.receive_window += more
        self._write_frame(Kind.WINDOW_UPDATE, 0, stream.number, _NUMBER.pack(more))

    def _widen(self) -> None:
        more = _CONNECTION_WINDOW - self._receive_window
        self._receive_window += more
        self._write_frame(Kind.WINDOW_UPDATE, 0, 0, _NUMBER.pack(more))

    # --- answers ----------------------------------------------------------------------------------

    async def _answer(self, stream: Stream[H]) -> None:
        try:
            await self._listener.answer(stream)
        except Exception:
            logger.exception("a call ended without an answer")
        finally:
            # It said nothing, or not all of it: for its client there is nothing to wait for.
            if self._streams.get(stream.number) is stream:
                self._reset(stream, Code.INTERNAL_ERROR)

    async def send(
        self, stream: Stream[H], parts: Sequence[Data], head: bytes, end: bytes | None
    ) -> None:
        number = stream.number
        if self._streams.get(number) is not stream:
            return
        out: list[Data] = []
        if head:
            out += [frame(Kind.HEADERS, END_HEADERS, number, len(head)), head]
        size = sum(map(len, parts))
        room = min(stream.send_window, self._send_window, self._their_frame)
        if size <= room and self._drained is None:
            # Nearly always: one message in one piece.
            stream.send_window -= size
            self._send_window -= size
            out += [frame(Kind.DATA, 0, number, size), *parts]
        else:
            if out:
                self._write(b"".join(out))
            for part in parts:
                await self._send_data(stream, memoryview(part))
            out = []
        if end is not None:
            out += [frame(Kind.HEADERS, END_HEADERS | END_STREAM, number, len(end)), end]
        if out:
            self._write(b"".join(out))
        if end is not None:
            self._answered(stream)
        elif self._drained is not None:
            await self._have_drained(stream)
        stream.waits_since = 0.0

    async def _send_data(self, stream: Stream[H], data: memoryview) -> None:
        while data:
            size = await self._have_room(stream, len(data))
            stream.send_window -= size
            self._send_window -= size
            self._sent += size
            self._write(frame(Kind.DATA, 0, stream.number, size))
            # Copied: what waits to be sent would keep the whole of it.
            self._write(bytes(data[:size]))
            data = data[size:]
            stream.taken_bytes += size
            if stream.taken_bytes >= LEAST_TAKEN_BYTES:
                stream.waits_since = 0.0
            self._wake_next()
            # Others have their turn, though there may be room for more.
            await asyncio.sleep(0)

    async def _have_room(self, stream: Stream[H], wanted: int) -> int:
        """Wait until some of so many bytes may be sent."""
        while True:
            if self._drained is not None:
                await self._have_drained(stream)
                continue
            room = min(wanted, stream.send_window, self._send_window, self._their_frame)
            if room > 0:
                return room
            stream.room = self.loop.create_future()
            if stream.send_window > 0:
                self._waiting[stream.number] = stream.room
            else:
                self._wake_next()  # it may have been its turn
            await self._wait(stream, stream.room)

    async def _have_drained(self, stream: Stream[H]) -> None:
        drained = self._drained
        assert drained is not None
        # Others wait for the same.
        await self._wait(stream, asyncio.shield(drained))

    async def _wait(self, stream: Stream[H], until: "asyncio.Future[None]") -> None:
        if not stream.waits_since:
            stream.waits_since, stream.taken_bytes = time.monotonic(), 0
        try:
            await until
        finally:
            stream.room = None
            self._waiting.pop(stream.number, None)

    def _wake_next(self) -> None:
        """Let the next answer have what is left of the connection's window."""
        while self._waiting and self._send_window > 0:
            one = self._waiting.pop(next(iter(self._waiting)))
            if not one.done():
                one.set_result(None)
                return

    def _widened(self, _: int, number: int, payload: bytes) -> None:
        self._expect(size=len(payload), right=4)
        more = _NUMBER.unpack(payload)[0] & _MAX_WINDOW
        if not more:
            raise ProtocolError(Code.PROTOCOL_ERROR, "a window grows by nothing")
        if not number:
            self._send_window += more
            if self._send_window > _MAX_WINDOW:
                raise ProtocolError(Code.FLOW_CONTROL_ERROR, "a window is too large")
            self._wake_next()
            return
        stream = self._known(number)
        if stream is not None:
            self._widen_stream(stream, more)

    def _widen_stream(self, stream: Stream[H], more: int) -> None:
        stream.send_window += more
        if stream.send_window > _MAX_WINDOW:
            raise ProtocolError(Code.FLOW_CONTROL_ERROR, "a window is too large")
        room = stream.room
        if room is None or room.done() or stream.number in self._waiting:
            return  # it waits for nothing, or for its turn
        if stream.send_window > 0:
            room.set_result(None)

    def end(self, stream: Stream[H], block: bytes) -> None:
        if self._streams.get(stream.number) is not stream:
            return
        flags = END_HEADERS | END_STREAM
        self._write(frame(Kind.HEADERS, flags, stream.number, len(block)) + block)
        self._answered(stream)

    def _answered(self, stream: Stream[H]) -> None:
        """Forget a stream that has its answer; what still comes of its request is not wanted."""
        if self._streams.pop(stream.number, None) is None:
            return
        if not stream.has_ended:
            self._write_frame(Kind.RST_STREAM, 0, stream.number, _NUMBER.pack(Code.NO_ERROR))
        if stream is self._taker:
            self._taker = None
        self._wake_next()
        self._close_when_done()

    def _reset(self, stream: Stream[H], code: Code) -> None:
        self._write_frame(Kind.RST_STREAM, 0, stream.number, _NUMBER.pack(code))
        self._drop(stream)

    def _write(self, data: Data) -> None:
        if not self._ended:
            assert self._transport is not None
            self._written += len(data)
            self._transport.write(data)
            heap = self._written - self._written_by_pause if self._drained is not None else 0
            if heap > MAX_HEAP_BYTES:
                # What else it asks would be answered into the same heap.
                self._transport.pause_reading()

    def _write_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        self._write(frame(kind, flags, number, len(payload)) + payload)

    # --- ending -----------------------------------------------------------------------------------

    def finish(self) -> None:
        """Take no more calls, and close when those that are there have their answers."""
        if self._finishing or self._ended:
            return
        self._finishing = True
        self._say_goodbye(Code.NO_ERROR, b"")
        self._close_when_done()

    def _say_goodbye(self, code: Code, problem: bytes) -> None:
        payload = _NUMBER.pack(self._last_number) + _NUMBER.pack(code) + problem
        self._write_frame(Kind.GOAWAY, 0, 0, payload)

    def _close_when_done(self) -> None:
        if self._finishing and not self._streams and not self._ended:
            self._linger()

    def _linger(self) -> None:
        """Read away what still comes: a connection closed on it would take the reason with it."""
        self._ended = True
        self._last_at = self._taken_at = time.monotonic()
        assert self._transport is not None
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._transport.resume_reading()

    def _fail(self, error: ProtocolError) -> None:
        """Say why the connection ends, and end it."""
        problem = str(error).encode("ascii", "replace")
        if not self._greeted and error.code is Code.PROTOCOL_ERROR:
            self._write(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n%b\n" % problem)
        else:
            self._say_goodbye(error.code, problem)
        self._linger()
        self._give_up()

    def _give_up(self) -> None:
        for stream in [*self._streams.values()]:
            self._drop(stream)
        if self._drained is not None:
            self._drained.cancel()

    def abort(self) -> None:
        """Close at once."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def look_at_clock(self, now: float) -> None:
        """Close what has stood still for too long."""
        self._resets = self._settings = 0
        if self._is_taken(now):
            # What is left is the client's: it has been told, or takes nothing.
            if self._ended and now - self._last_at > _LINGER_SECONDS:
                self.abort()
        elif now - self._taken_at > STILL_SECONDS:
            self.abort()
        if self._ended or self._drained is not None:
            return
        self._look_at_answers(now)
        if self._is_begun() and now - self._begun_at > HEAD_SECONDS:
            self.abort()
        elif self._asked_at:
            if now - self._asked_at > QUIET_SECONDS:
                self.abort()
        elif now - self._last_at > (QUIET_SECONDS if self._streams else IDLE_SECONDS):
            self._end_or_ask(now)

    def _look_at_answers(self, now: float) -> None:
        """Take back those that do not go on; to wait for one's turn is no fault of one's client."""
        moves = self._sent - self._sent_by_look >= LEAST_TAKEN_BYTES
        if moves:
            self._sent_by_look = self._sent
        for stream in [*self._streams.values()]:
            if moves and stream.number in self._waiting:
                stream.waits_since = now
            elif stream.waits_since and now - stream.waits_since > STILL_SECONDS:
                self._reset(stream, Code.CANCEL)

    def _is_taken(self, now: float) -> bool:
        """Say whether all output has been taken, and note when some was."""
        transport = self._transport
        assert transport is not None
        ours = transport.get_write_buffer_size()
        # What the kernel has of it is on its way; the end of the connection would cut it off.
        left = ours + unacknowledged(transport.get_extra_info("socket").fileno())
        waits = left if self._ended else ours
        taken = self._written - left
        if not waits or taken - self._taken >= LEAST_TAKEN_BYTES:
            self._taken_at, self._taken = now, taken
        if self._ended and left:
            self._last_at = now
        return not waits

    def _end_or_ask(self, now: float) -> None:
        """End what has no calls; ask who has some whether it is still there."""
        if self._streams:
            self._asked_at = now
            self._write_frame(Kind.PING, 0, 0, bytes(8))
        else:
            self.finish()


def unacknowledged(number: int) -> int:
    """Give how many bytes of a socket the other side has not acknowledged."""
    found = array("i", [0])
    with suppress(OSError, ValueError):  # it may have been closed meanwhile
        fcntl.ioctl(number, termios.TIOCOUTQ, found)
    return found[0]
