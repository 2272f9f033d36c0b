"""Asks the encoder, a process of its own on this machine, for the vectors of texts.

No vector is computed in this process. Who asks says how long they wait; the encoder may be slow or
away, and then the answer is none.
"""

import base64
import json
import logging
import socket
import struct
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings

logger = logging.getLogger(__name__)

MAX_TEXTS: Final = 32
MAX_CHARACTERS: Final = 8000
MAX_FRAME: Final = 4 << 20
LENGTH: Final = struct.Struct("!I")
# After a failure nobody waits for the encoder again for so long.
_REST_SECONDS: Final = 2.0
_KEPT_QUERIES: Final = 1000
_KEPT_SECONDS: Final = 600.0


class EncoderAway(Exception):  # noqa: N818 - a state of the installation, of which nobody is told
    """The encoder did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Vectors of unit length, as pgvector writes them, and the digest of what computed them."""

    encoder: str
    vectors: Sequence[str]


def encode(texts: Sequence[str], *, seconds: float) -> Encoded:
    """Have texts encoded.

    Raises:
        EncoderAway: no encoder runs here, or it did not answer within `seconds`.

    """
    until = time.monotonic() + seconds
    asked = json.dumps({"texts": [text[:MAX_CHARACTERS] for text in texts]}).encode()
    try:
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
            connection.settimeout(seconds)
            connection.connect(str(settings.ENCODER_SOCKET))
            connection.sendall(LENGTH.pack(len(asked)) + asked)
            (size,) = LENGTH.unpack(_receive(connection, LENGTH.size, until))
            if size > MAX_FRAME:
                raise EncoderAway("it answers with more than was asked for")
            answer = json.loads(_receive(connection, size, until))
        vectors = [_written(vector) for vector in answer["vectors"]]
        encoder = str(answer["encoder"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderAway(str(error) or type(error).__name__) from error
    if len(vectors) != len(texts):
        raise EncoderAway("it answers something else than was asked")
    return Encoded(encoder=encoder, vectors=vectors)


def _receive(connection: socket.socket, size: int, until: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        left = until - time.monotonic()
        if left <= 0:
            raise EncoderAway("it did not answer in time")
        connection.settimeout(left)
        some = connection.recv(min(size - len(received), 1 << 16))
        if not some:
            raise EncoderAway("it ended the call")
        received += some
    return bytes(received)


def _written(vector: Any) -> str:
    numbers = array("f", base64.b64decode(vector, validate=True))
    return f"[{','.join(f'{number:.5g}' for number in numbers)}]"


@dataclass(frozen=True, kw_only=True)
class QueryVector:
    """The vector of what somebody looks for, and the digest of what computed it."""

    encoder: str
    vector: str


class _Queries:
    """Vectors of what was lately looked for; remembers too that the encoder just failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, QueryVector]] = OrderedDict()
        self._resting_until = 0.0

    def find(self, text: str) -> QueryVector | None:
        now = time.monotonic()
        with self._lock:
            kept = self._kept.get(text)
            if kept and kept[0] > now:
                return kept[1]
            if self._resting_until > now:
                return None
        try:
            encoded = encode([text], seconds=settings.ENCODER_MILLISECONDS / 1000)
        except EncoderAway as away:
            logger.debug("No vector for a query: %s", away)
            with self._lock:
                self._resting_until = now + _REST_SECONDS
            return None
        found = QueryVector(encoder=encoded.encoder, vector=encoded.vectors[0])
        with self._lock:
            self._kept[text] = (now + _KEPT_SECONDS, found)
            self._kept.move_to_end(text)
            while len(self._kept) > _KEPT_QUERIES:
                self._kept.popitem(last=False)
        return found

    def forget(self) -> None:
        with self._lock:
            self._kept.clear()
            self._resting_until = 0.0


_queries = _Queries()


def vector_of(text: str) -> QueryVector | None:
    """Give the vector of a query, or nothing where the encoder is away or slow."""
    return _queries.find(text)


def forget_queries() -> None:
    """Forget vectors and failures: another encoder may answer now."""
    _queries.forget()
