"""One HTTP request to the data plane and its answer, within bounds of bytes and time."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

from registry.authenticate import client_address
from registry.errors import Invalid, TooLarge
from workers.serving.budget import Arrival, Bounds, Holding
from workers.serving.codec import Unpacking, deflate
from workers.serving.listener import WHEN_GONE, WhenGone
from workers.serving.messages import Data

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]
T = TypeVar("T")

JSON: Header = (b"content-type", b"application/json")
# How long a client may pause while it sends.
IDLE_SECONDS = 30.0
# Below this, packing an answer costs more than it saves; above the other, it goes to a thread.
PACK_FROM_BYTES = 1024
THREAD_FROM_BYTES = 64 * 1024

CODINGS = ("gzip", "deflate")
_EXPOSED = b"inference-header-content-length, grpc-status, grpc-message, retry-after"
_ALLOWED = (
    b"authorization, content-type, content-encoding, inference-header-content-length, "
    b"grpc-timeout, x-grpc-web, x-user-agent"
)


class ClientGone(Exception):  # noqa: N818 - it is no error that a caller hangs up
    """The client closed its connection, or stopped in the middle of what it sent."""


class Exchange:
    """A request to read and an answer to write."""

    def __init__(
        self, scope: Mapping[str, Any], receive: Receive, send: Send, bounds: Bounds
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.started = False
        self._receive = receive
        self._send = send
        self._client: tuple[str, int] | None = scope.get("client")
        self.holding = Holding(bounds)
        self._gone = False
        self._when_gone: WhenGone = scope["extensions"][WHEN_GONE]

    @property
    def peer(self) -> str | None:
        """Who holds the other end of the connection: the client, or a proxy."""
        return self._client[0] if self._client else None

    @property
    def address(self) -> str | None:
        """Where the client is, as far as one may believe it."""
        return client_address(self.peer, self.header(b"x-forwarded-for") or "")

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def count(self, name: bytes) -> int | None:
        """Read a header that is a number of bytes.

        Raises:
            Invalid: it is none.

        """
        value = self.headers.get(name)
        if value is None:
            return None
        if not value.isdigit() or len(value) > 15:
            raise Invalid("{header} is no number of bytes.", header=name.decode().title())
        return int(value)

    @property
    def may_be_long(self) -> bool:
        """Whether the head leaves it open that much comes behind it."""
        size = self.count(b"content-length")
        return size is None or size > THREAD_FROM_BYTES or b"content-encoding" in self.headers

    async def body(self) -> bytes:
        """Read the body, unpacked.

        Raises:
            TooLarge: it is beyond the bounds; Invalid: its encoding is unknown or broken;
            Unavailable: too much is held already; ClientGone: it never ends.

        """
        announced = self.count(b"content-length") or 0
        self.check_size(announced)
        self.holding.hold(announced)
        with self.holding.bounds.arriving() as arrival:
            parts = await self._all_parts(arrival)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        coding = (self.header(b"content-encoding") or "identity").strip().lower()
        return body if coding == "identity" else await self._unpack(body, coding)

    async def _all_parts(self, arrival: Arrival) -> list[bytes]:
        parts: list[bytes] = []
        part, more = await self._next()
        while True:
            if part:
                parts.append(part)
                arrival.size += len(part)
                self.check_size(arrival.size)
                self.holding.hold(arrival.size - self.holding.held)
            if not more:
                return parts
            part, more = await self.read_part()

    def check_size(self, size: int) -> None:
        """Pass when a body may have so many bytes.

        Raises:
            TooLarge: it may not.

        """
        limit = self.holding.bounds.body_bytes
        if size > limit:
            template = "The body has more than {limit} bytes, which is the limit."
            raise TooLarge(template, limit=limit)

    async def read_part(self) -> tuple[bytes, bool]:
        """Give the next part of the body as it comes, and whether there are more.

        Raises:
            ClientGone: it stopped in the middle.

        """
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                return await self._next()
        except TimeoutError:
            raise ClientGone from None

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        return message.get("body", b""), message.get("more_body", False)

    async def _unpack(self, body: bytes, coding: str) -> bytes:
        if coding not in CODINGS:
            template = "The encoding {coding!r} is unknown; send gzip, deflate or none."
            raise Invalid(template, code="bad_encoding", coding=coding[:40])
        return await unpack(body, self.holding)

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, and drop it when the client hangs up meanwhile.

        Raises:
            ClientGone: it did.

        """
        here = asyncio.current_task()
        assert here is not None
        if self._when_gone(partial(self._leave, here)):
            work.close()
            raise ClientGone
        try:
            return await work
        except asyncio.CancelledError:
            if not self._gone:
                raise
            here.uncancel()
            raise ClientGone from None
        finally:
            self._when_gone(None)

    def _leave(self, worker: "asyncio.Task[Any]") -> None:
        self._gone = True
        worker.cancel()

    async def start(self, status: int, headers: Sequence[Header]) -> None:
        self.started = True
        shared = _shared_with_pages if b"origin" in self.headers else ()
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *shared],
            }
        )

    async def write(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def respond(
        self,
        status: int,
        headers: Sequence[Header] = (),
        parts: Sequence[Data] = (),
        *,
        packable: bool = True,
    ) -> None:
        """Answer at once, packed where the client asked for that and it is worth it."""
        size = sum(map(len, parts))
        packed = self._coding(size, packable=packable)
        if packed is not None:
            headers = [*headers, (b"content-encoding", packed.encode()), _VARY]
            body = (
                await asyncio.to_thread(deflate, parts, packed)
                if size >= THREAD_FROM_BYTES
                else deflate(parts, packed)
            )
        else:
            body = bytes(parts[0]) if len(parts) == 1 else b"".join(parts)
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.write(b"" if self.method == "HEAD" else body, more=False)

    def _coding(self, size: int, *, packable: bool) -> str | None:
        """Choose an encoding; numbers hardly shrink, so only who insists gets them packed."""
        accepted = self.headers.get(b"accept-encoding")
        if accepted is None or size < PACK_FROM_BYTES:
            return None
        offers = [one.strip() for one in accepted.decode("latin-1").lower().split(",")]
        if not packable and len(offers) > 1:
            return None
        return next((one for one in CODINGS if one in offers), None)

    async def allow(self) -> None:
        """Tell a browser that pages of other sites may call, as they may with any program.

        Nothing here knows cookies: a page has the rights of a token that it was given, or none.
        """
        await self.start(
            204,
            [
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", _ALLOWED),
                (b"access-control-max-age", b"86400"),
            ],
        )
        await self.write(b"", more=False)


_VARY: Header = (b"vary", b"accept-encoding")
_shared_with_pages: tuple[Header, ...] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", _EXPOSED),
)


async def unpack(body: bytes, holding: Holding) -> bytes:
    """Undo gzip or deflate in a thread, each piece counted before the next is made.

    Raises:
        Invalid: it is neither, or ends too soon; TooLarge: it grows beyond the limit;
        Unavailable: too much is held already.

    """
    unpacking = Unpacking(body, holding.bounds.body_bytes)
    parts: list[bytes] = []
    while part := await asyncio.to_thread(unpacking.next):
        holding.hold(len(part))
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
