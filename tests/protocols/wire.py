"""A client of gRPC that says what it is told to, frame by frame."""

import socket
import struct
from itertools import count

import hpack

from workers.serving.http2 import END_HEADERS, END_STREAM, PREFACE, Code, Kind, frame
from workers.serving.rpc import SERVICE

_HEAD = struct.Struct(">IBI")
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "a"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class GoneAway(Exception):  # noqa: N818 - named as the frame is
    """The server ended the connection."""

    def __init__(self, code, problem):
        super().__init__(f"{code.name}: {problem}")
        self.code = code


class Wire:
    """One connection; the window of the client is wide unless `window` says otherwise."""

    def __init__(self, port, *, window=1 << 30, greet=True):
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.encoder, self.decoder = hpack.Encoder(), hpack.Decoder()
        self.numbers = count(1, 2)
        self.data = {}
        if greet:
            self.send(PREFACE)
            self.frame(Kind.SETTINGS, 0, 0, struct.pack(">HI", 4, window))
            self.frame(Kind.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def frame(self, kind, flags, number, payload=b""):
        self.send(frame(kind, flags, number, len(payload)) + payload)

    def block(self, method, headers=()):
        path = (":path", f"/{SERVICE}/{method}")
        return self.encoder.encode([HEADERS[0], path, *HEADERS[1:], *headers])

    def begin(self, method, headers=(), flags=END_HEADERS):
        """Begin a call; give its number."""
        number = next(self.numbers)
        self.frame(Kind.HEADERS, flags, number, self.block(method, headers))
        return number

    def message(self, number, body, *, packed=False, ends=True, piece=16384, heeds=True):
        """Send a message in frames of so many bytes; `heeds` the window of its stream."""
        data = struct.pack(">BI", packed, len(body)) + body
        room = 65_535
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            while heeds and room < len(part):
                _, _, of, more = self.next(Kind.WINDOW_UPDATE)
                room += int.from_bytes(more) if of == number else 0
            room -= len(part)
            last = ends and at + piece >= len(data)
            self.frame(Kind.DATA, END_STREAM if last else 0, number, part)

    def read(self):
        """Give the next frame: its kind, flags, stream and payload."""
        first, flags, number = _HEAD.unpack(self._exactly(9))
        return Kind(first & 0xFF), flags, number, self._exactly(first >> 8)

    def _exactly(self, size):
        found = b""
        while len(found) < size:
            part = self.socket.recv(size - len(found))
            if not part:
                raise ConnectionError("the server closed the connection")
            found += part
        return found

    def next(self, *kinds):
        """Give the next frame of these kinds, past all others."""
        while True:
            kind, flags, number, payload = self.read()
            if kind is Kind.DATA:
                self.data[number] = self.data.get(number, b"") + payload
            if kind in kinds:
                return kind, flags, number, payload
            if kind is Kind.GOAWAY:
                raise GoneAway(Code(int.from_bytes(payload[4:8])), payload[8:].decode())

    def end_of(self, number):
        """Give what the headers of an answer say, those at its end included."""
        said = {}
        while True:
            kind, flags, of, payload = self.next(Kind.HEADERS, Kind.RST_STREAM)
            if kind is Kind.HEADERS:
                found = dict(self.decoder.decode(payload))
                if of == number:
                    said |= found
                if of == number and flags & END_STREAM:
                    return said
            elif of == number:
                return {**said, "reset": Code(int.from_bytes(payload))}

    def call(self, method, body, *, packed=False, headers=()):
        number = self.begin(method, headers)
        self.message(number, body, packed=packed)
        return self.end_of(number)

    def ended(self):
        """Wait until the server ends the connection; give why."""
        try:
            while True:
                self.next()
        except GoneAway as gone:
            return gone.code
