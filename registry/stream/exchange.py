"""One request and its answer, as the handlers of this package see them."""

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, TypeAlias

from registry.authenticate import client_address
from registry.errors import Invalid, RegistryError

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Mapping[str, str]

BLOCK_BYTES = 4 * 1024 * 1024
IDLE_SECONDS = 60.0
# What is read and thrown away so that a client that is still sending can see the refusal.
DRAIN_BYTES = 16 * 1024 * 1024
DRAIN_SECONDS = 2.0

_ID_OF_A_PROXY = re.compile(r"[A-Za-z0-9._-]{8,64}")


class ClientGone(Exception):  # noqa: N818 - it is no error that the reader closed the page
    """The client closed the connection, or has not sent anything for too long."""


class Exchange:
    """A request to read and an answer to write, with what the access log wants to know of both."""

    def __init__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.scheme: str = scope.get("scheme", "http")
        self.headers = _read_headers(scope)
        client = scope.get("client")
        self.ip = client_address(
            client[0] if client else None, self.headers.get("x-forwarded-for", "")
        )
        sent = self.headers.get("x-request-id", "")
        self.request_id = sent if _ID_OF_A_PROXY.fullmatch(sent) else secrets.token_hex(8)
        self.started_at = time.perf_counter()
        self.status = 0
        # What every answer that is begun here says beside its own headers.
        self.standing: dict[str, str] = {}
        # What a handler that leaves the answer to Django has to say there.
        self.refusal: RegistryError | None = None
        self.sent_bytes = 0
        self.received_bytes = 0
        self._receive = receive
        self._send = send
        self._body_ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives; raise ClientGone when it stops before its end."""
        while not self._body_ended:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                raise ClientGone from None
            if message["type"] != "http.request":
                raise ClientGone
            self._body_ended = not message.get("more_body", False)
            if body := message.get("body", b""):
                self.received_bytes += len(body)
                yield body

    async def blocks(self) -> AsyncIterator[list[bytes]]:
        """Yield the body in pieces worth a trip to a thread; what came before a break comes too."""
        waiting: list[bytes] = []
        size = 0
        gone = False
        try:
            async for chunk in self.chunks():
                waiting.append(chunk)
                size += len(chunk)
                if size >= BLOCK_BYTES:
                    yield waiting
                    waiting, size = [], 0
        except ClientGone:
            gone = True
        if waiting:
            yield waiting
        if gone:
            raise ClientGone

    async def read(self, limit: int) -> bytes | None:
        """Give the whole body, or None when it is longer than `limit`."""
        if self.announced_bytes is not None and self.announced_bytes > limit:
            return None
        chunks: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                return None
        return b"".join(chunks)

    def hand_over(self, body: bytes, *, method: str | None = None) -> None:
        """Let who answers next find this form in place of the body that came."""
        self.method = method or self.method
        self.headers = {
            **{name: value for name, value in self.headers.items() if name != "transfer-encoding"},
            "content-type": "application/x-www-form-urlencoded",
            "content-length": str(len(body)),
        }
        self._receive = _Whole(body)
        self._body_ended = False

    async def drain(self) -> None:
        """Take in what a client is still sending, within reason, before it is refused."""
        limit = self.received_bytes + DRAIN_BYTES
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in self.chunks():
                    if self.received_bytes > limit:
                        return
        except TimeoutError:
            return

    @property
    def announced_bytes(self) -> int | None:
        """Give Content-Length, or None for a body of unknown length."""
        text = self.headers.get("content-length")
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise Invalid("Content-Length is no number of bytes.")
        return int(text)

    @property
    def has_body(self) -> bool:
        return "transfer-encoding" in self.headers or self.headers.get("content-length", "0") != "0"

    async def gone(self) -> None:
        """Return when the client has closed the connection; only for requests without a body."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status = status
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers),
                    *(
                        (name.lower().encode("ascii"), value.encode("ascii"))
                        for name, value in self.standing.items()
                    ),
                    (b"x-request-id", self.request_id.encode("ascii")),
                ],
            }
        )

    async def start_raw(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, more: bool = True) -> None:
        self.sent_bytes += len(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def respond(
        self, status: int, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
    ) -> None:
        """Answer at once; the length is said even where HEAD leaves the body out."""
        names = {name for name, _ in headers}
        if status not in {204, 304} and "content-length" not in names:
            headers = [*headers, ("content-length", str(len(body)))]
        await self.start(status, headers)
        await self.write(b"" if self.method == "HEAD" else body, more=False)


class _Whole:
    """A body that is here already."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def __call__(self) -> Message:
        body, self._body = self._body, b""
        return {"type": "http.request", "body": body, "more_body": False}


def _read_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope.get("headers", ()):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in headers:
            value = f"{headers[name]}{'; ' if name == 'cookie' else ', '}{value}"
        headers[name] = value
    return headers
