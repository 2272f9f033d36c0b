"""One client's connection, over HTTP/1.1 or gRPC: bare sockets, so that a client costs little.

gRPC's own client takes longer for a call than a server and a tiny model together; what is measured
with it is the client.
"""

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from hpack import Decoder

PATIENCE_SECONDS = 20.0
_READ_BYTES = 1 << 20
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_INITIAL_WINDOW, _MAX_FRAME = 4, 5
# As much as a window may be; it is opened again long before it is used up.
_WIDEST = (1 << 31) - 1
_DEFAULT_WINDOW = 65_535
_FRAME = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")


class Answer(NamedTuple):
    """What came back, and whether it is what was asked for."""

    good: bool
    data: bytes


class Connection:
    """One client over HTTP/1.1: what it still has to send, and what has come back."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)  # noqa: FBT003 - its only argument
        self.request = request
        self.left = memoryview(b"")
        self.received = bytearray()
        self.wanted = 0
        self.began = 0.0

    def ask(self) -> None:
        """Have the request sent once more."""
        self.left = memoryview(self.request)

    def send(self) -> bool:
        """Send what goes now; say whether that was all."""
        while self.left:
            try:
                self.left = self.left[self.socket.send(self.left) :]
            except BlockingIOError:
                return False
        return True

    def read(self) -> Answer | None:
        """Take what has come; give the whole answer once it is there."""
        self.receive()
        if not self.wanted:
            head, mark, _ = self.received.partition(b"\r\n\r\n")
            if not mark:
                return None
            length = next(
                int(line.partition(b":")[2])
                for line in bytes(head).lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            self.wanted = len(head) + 4 + length
        if len(self.received) < self.wanted:
            return None
        answer = bytes(self.received)
        self.received.clear()
        self.wanted = 0
        return Answer(answer.startswith(b"HTTP/1.1 200"), answer)

    def receive(self) -> None:
        part = self.socket.recv(_READ_BYTES)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part


class GrpcConnection(Connection):
    """One client over gRPC, with one call at a time: frames of HTTP/2 (RFC 9113) by hand."""

    def __init__(self, port: int, request: bytes, token: str) -> None:
        super().__init__(port, struct.pack(">BI", 0, len(request)) + request)
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/inference.GRPCInferenceService/ModelInfer"),
            (":authority", f"127.0.0.1:{port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *([("authorization", f"Bearer {token}")] if token else []),
        ]
        # Each as a literal that enters no table, so that the block is the same in every call.
        self.block = b"".join(
            b"\x00" + _length(name) + name.encode() + _length(value) + value.encode()
            for name, value in fields
        )
        self.decoder = Decoder()
        self.stream = -1
        self.window = self.first_window = self.stream_window = _DEFAULT_WINDOW
        self.frame_bytes = 16_384
        self.pending = memoryview(b"")
        self.message = bytearray()
        self.fields: dict[str, str] = {}
        self.taken = 0
        hello = _frame(_SETTINGS, 0, 0, _SETTING.pack(_INITIAL_WINDOW, _WIDEST))
        opened = _frame(_WINDOW, 0, 0, struct.pack(">I", _WIDEST - _DEFAULT_WINDOW))
        self.left = memoryview(_PREFACE + hello + opened)

    def ask(self) -> None:
        self.stream += 2
        self.stream_window = self.first_window
        self.message.clear()
        self.fields.clear()
        self.pending = memoryview(self.request)
        self.put(_frame(_HEADERS, _END_HEADERS, self.stream, self.block) + self.body())

    def put(self, data: bytes) -> None:
        self.left = memoryview(bytes(self.left) + data)

    def body(self) -> bytes:
        """Give as much of the message as the other side has opened its windows for."""
        frames = []
        while self.pending:
            size = min(len(self.pending), self.frame_bytes, self.window, self.stream_window)
            if size <= 0:
                break
            part, self.pending = self.pending[:size], self.pending[size:]
            self.window -= size
            self.stream_window -= size
            frames.append(_frame(_DATA, 0 if self.pending else _END_STREAM, self.stream, part))
        return b"".join(frames)

    def read(self) -> Answer | None:
        self.receive()
        answer = None
        for kind, flags, stream, data in self._frames():
            answer = self._take(kind, flags, stream, data) or answer
        if self.taken > 1 << 29:
            self.put(_frame(_WINDOW, 0, 0, struct.pack(">I", self.taken)))
            self.taken = 0
        return answer

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        at = 0
        while len(self.received) - at >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(self.received, at)
            size = high << 8 | low
            end = at + _FRAME.size + size
            if len(self.received) < end:
                break
            yield kind, flags, stream, bytes(self.received[at + _FRAME.size : end])
            at = end
        del self.received[:at]

    def _take(self, kind: int, flags: int, stream: int, data: bytes) -> Answer | None:
        if kind in {_DATA, _HEADERS, _RESET}:
            if kind == _DATA:
                self.taken += len(data)
                self.message += data
            elif kind == _HEADERS:
                if not flags & _END_HEADERS or flags & (_PADDED | _PRIORITY):
                    raise ValueError("headers in a form that no server here sends")
                self.fields.update(self.decoder.decode(data))
            is_over = kind == _RESET or flags & _END_STREAM
            return self._answer() if is_over and stream == self.stream else None
        if kind == _GOAWAY:
            raise ConnectionError("the server says goodbye")
        if kind == _WINDOW:
            self._widen(stream, data)
        elif kind == _SETTINGS and not flags & _ACK:
            self._settle(data)
        elif kind == _PING and not flags & _ACK:
            self.put(_frame(_PING, _ACK, 0, data))
        return None

    def _answer(self) -> Answer:
        good = self.fields.get("grpc-status") == "0"
        said = self.message[5:] if good else self.fields.get("grpc-message", "reset").encode()
        return Answer(good, bytes(said))

    def _widen(self, stream: int, data: bytes) -> None:
        (more,) = struct.unpack(">I", data)
        if stream == 0:
            self.window += more
        elif stream == self.stream:
            self.stream_window += more
        self.put(self.body())

    def _settle(self, data: bytes) -> None:
        for name, value in _SETTING.iter_unpack(data):
            if name == _INITIAL_WINDOW:
                self.stream_window += value - self.first_window
                self.first_window = value
            elif name == _MAX_FRAME:
                self.frame_bytes = value
        self.put(_frame(_SETTINGS, _ACK, 0, b"") + self.body())


def _frame(kind: int, flags: int, stream: int, data: bytes | memoryview) -> bytes:
    return _FRAME.pack(len(data) >> 8, len(data) & 255, kind, flags, stream) + data


def _length(text: str) -> bytes:
    """Write a length as HPACK has it (RFC 7541, 5.1), in seven bits of the first byte."""
    left = len(text.encode()) - 127
    if left < 0:
        return bytes([left + 127])
    written = bytearray([127])
    while left >= 128:
        written.append(left & 127 | 128)
        left >>= 7
    return bytes([*written, left])
