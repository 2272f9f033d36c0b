"""Calls on their way through a front: each to one of the serving processes, and back.

A call goes to the less busy of two that answer; one that was lost before it was answered goes to
another. Bodies pass through: only their beginning is kept, so that it can be sent again. Nothing
here asks the database.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import grpc
import grpc.aio
from yarl import URL

from registry import queue
from registry.errors import Invalid, NotLoaded, RegistryError, TooLarge, Unavailable
from workers.serving.budget import Bounds
from workers.serving.calls import REFUSED, CallServer, Ended, Handler, Rpc
from workers.serving.codec import dump
from workers.serving.exchange import JSON, ClientGone, Exchange, Header, Receive, Send
from workers.serving.pool import CHECK_SECONDS, Pool, Replica
from workers.serving.rest import refuse
from workers.serving.rpc import SERVICE, STREAM, UNARY, model_of

# So much of a body is kept to be sent again; what is longer goes to one replica only.
REPLAYED_BYTES = 1024 * 1024
ATTEMPTS = 3
CONNECT_SECONDS = 1.0

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MODEL = re.compile(r"/(?:v2/models|predict)/([^/]+/[^/]+?)(?:/versions/[^/]+)?(?:/[a-z]+)?")
# Each process loads for itself.
_FOR_ALL = re.compile(
    rf"/v2/repository/models/.+/(?:load|unload)|/{re.escape(SERVICE)}/RepositoryModel(?:Unl|L)oad"
)
_CALLS_FOR_ALL = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
# Of one connection, or written anew here.
_OWN_HEADERS = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"content-length"),
        b"x-forwarded-for",
    }
)
# Of an answer: its length is passed on.
_KEPT_BACK = _OWN_HEADERS - {b"content-length"}
# What the client would write of itself, had the caller not.
_NOT_OURS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_OWN = re.compile(r"grpc-.*|user-agent|te|content-type|x-forwarded-for")
_DISTANT_SECONDS = 1e7
# What gRPC's library sends.
_NAME = re.compile(r"[a-z0-9_.-]+")
_PLAIN_VALUE = re.compile(r"[ -~]*")
_READY = "/v2/health/ready", ""
# What stays in a query as it came.
_IN_QUERIES = "".join(map(chr, range(0x21, 0x7F)))
# A connection that was not made, or ended too soon.
_UNREACHED = (aiohttp.ClientError, TimeoutError)


class Lost(Exception):  # noqa: N818 - an ending, which another replica makes good
    """The replica went away before it answered."""


class Front:
    """The ASGI application and the gRPC calls of a front, over one pool of replicas."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.pool = Pool(self._is_ready)
        self._session: aiohttp.ClientSession | None = None
        self._channels: dict[Replica, grpc.aio.Channel] = {}
        self._stopping = False

    # --- the replicas -----------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look for ever which replicas there are, and whether they answer."""
        while True:
            try:
                self.pool.hear(await asyncio.to_thread(queue.read_replicas))
                await self.pool.check_all()
                await self._let_go()
            except Exception:
                logger.exception("The replicas could not be looked after")
            await asyncio.sleep(CHECK_SECONDS)

    async def _is_ready(self, replica: Replica) -> bool:
        try:
            async with await self._request(replica, "GET", _READY, []) as answer:
                await answer.read()
        except _UNREACHED:
            return False
        return answer.status == 200

    async def _let_go(self) -> None:
        """Close what leads to replicas that have gone."""
        known = set(self.pool.all)
        for replica in [one for one in self._channels if one not in known]:
            await self._channels.pop(replica).close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        for channel in self._channels.values():
            await channel.close()

    def refuse_new(self) -> None:
        """Say that this front is on its way out; what comes all the same is still passed on."""
        self._stopping = True

    def _connections(self) -> aiohttp.ClientSession:
        # Made in the loop that it belongs to. A call takes as long as it takes, and as it came.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, happy_eyeballs_delay=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                auto_decompress=False,
                skip_auto_headers=_NOT_OURS,
            )
        return self._session

    def _channel(self, replica: Replica) -> grpc.aio.Channel:
        found = self._channels.get(replica)
        if found is None:
            found = self._channels[replica] = grpc.aio.insecure_channel(
                f"{replica.address}:{replica.grpc_port}",
                options=[
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.max_send_message_length", -1),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.min_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 1000),
                ],
            )
        return found

    async def _unless_lost(self, replica: Replica, work: Coroutine[Any, Any, T]) -> T:
        """Wait for an answer for as long as the replica lives.

        Raises:
            Lost: it went away meanwhile.

        """
        replica.in_flight += 1
        asking = asyncio.ensure_future(work)
        losing = asyncio.ensure_future(replica.down.wait())
        try:
            await asyncio.wait({asking, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise Lost
            return await asking
        finally:
            replica.in_flight -= 1
            losing.cancel()
            asking.cancel()

    # --- HTTP -------------------------------------------------------------------------------------

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self.bounds)
        try:
            await self._answer(exchange, scope)
        except ClientGone:
            pass
        # The last place that can still say something.
        except Exception as error:  # noqa: BLE001
            await refuse(exchange, error)
        finally:
            exchange.holding.release()

    async def _answer(self, exchange: Exchange, scope: Mapping[str, Any]) -> None:
        own = {
            "/healthz": self._health,
            "/v2/health/live": self._health,
            "/v2/health/ready": self._ready,
            "/metrics": self._metrics,
        }.get(exchange.path)
        if exchange.method == "OPTIONS":
            await exchange.allow()
        elif own is not None and exchange.method in {"GET", "HEAD"}:
            await own(exchange)
        else:
            passage = _Passage(exchange, scope)
            await passage.begin()
            if _FOR_ALL.fullmatch(exchange.path):
                await self._pass_to_all(passage)
            else:
                await self._pass(passage)

    async def _health(self, exchange: Exchange) -> None:
        await exchange.respond(200, [JSON], [dump({"live": True})])

    async def _ready(self, exchange: Exchange) -> None:
        ready = bool(self.pool.up) and not self._stopping
        await exchange.respond(200 if ready else 503, [JSON], [dump({"ready": ready})])

    async def _metrics(self, exchange: Exchange) -> None:
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        body = exposition(self.pool).encode()
        await exchange.respond(200, [(b"content-type", kind)], [body])

    async def _pass(self, passage: "_Passage") -> None:
        """Send a request to one replica, and to another one where that does not answer it."""
        found = _MODEL.fullmatch(passage.exchange.path)
        model = found[1] if found else ""
        asked: list[Replica] = []
        while True:
            replica = self.pool.pick(model, beside=asked)
            asked.append(replica)
            again = len(asked) < ATTEMPTS
            try:
                asking = self._ask(replica, passage)
                # While the body comes, its end tells that the client has gone.
                answer = await (asking if passage.more else passage.exchange.unless_gone(asking))
            except (Lost, *_UNREACHED) as error:
                if passage.is_touched or not again:
                    raise _broken(replica) from error
                self.pool.retries += 1
                continue
            # It is loading the model, or on its way out: another one may have it.
            code = answer.headers.get(REFUSED, "")
            wait = answer.headers.get("retry-after", "")
            elsewhere = answer.status == 503 and self._is_elsewhere(model, asked, code, wait)
            if elsewhere and again and not passage.is_touched:
                with suppress(Unavailable):
                    self.pool.pick(model, beside=asked)
                    answer.close()
                    self.pool.retries += 1
                    continue
            await self._give_back(replica, passage, answer)
            return

    def _is_elsewhere(self, model: str, asked: Sequence[Replica], code: str, wait: str) -> bool:
        """Say whether another replica may answer what the last of those asked does not now.

        One that is loading the model is noted, and waited for: each other would load it as well.
        """
        if not model or code != NotLoaded.code:
            return True
        self.pool.promise(asked[-1], model, float(wait) if wait.isdecimal() else 0.0)
        return self.pool.has_loaded(model, beside=asked)

    async def _ask(self, replica: Replica, passage: "_Passage") -> aiohttp.ClientResponse:
        asking = self._request(
            replica,
            passage.exchange.method,
            passage.target,
            passage.headers,
            passage.content(),
        )
        try:
            answer = await self._unless_lost(replica, asking)
        except _UNREACHED:
            if passage.problem is not None:
                raise passage.problem from None
            self.pool.count(replica, failed=True)
            raise
        self.pool.count(replica, failed=answer.status in {500, 502})
        return answer

    async def _ask_for_all(
        self, replica: Replica, passage: "_Passage"
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        async with await self._ask(replica, passage) as answer:
            return answer, await self._unless_lost(replica, answer.read())

    async def _request(
        self,
        replica: Replica,
        method: str,
        target: tuple[str, str],
        headers: Sequence[Header],
        content: bytes | AsyncIterator[bytes] | None = None,
    ) -> aiohttp.ClientResponse:
        # Put together here: nothing that a caller writes decides where a call goes.
        path, query = target
        url = URL.build(
            scheme="http",
            host=replica.address,
            port=replica.rest_port,
            path=path,
            query_string=query,
            encoded=True,
        )
        return await self._connections().request(
            method,
            url,
            headers=[(name.decode("latin-1"), _text(value)) for name, value in headers],
            data=content,
            allow_redirects=False,
        )

    async def _give_back(
        self, replica: Replica, passage: "_Passage", answer: aiohttp.ClientResponse
    ) -> None:
        exchange = passage.exchange
        headers = [
            (name.lower(), value)
            for name, value in answer.raw_headers
            if name.lower() not in _KEPT_BACK
            # What pages of other sites may see is said here.
            and not name.lower().startswith(b"access-control-")
        ]
        async with answer:
            await exchange.start(answer.status, headers)
            try:
                while part := await self._next_part(replica, passage, answer.content):
                    await exchange.write(part, more=True)
            except (Lost, *_UNREACHED) as error:
                # Nobody can go on with it; its missing end tells the client.
                raise _broken(replica) from error
            await exchange.write(b"", more=False)

    async def _next_part(
        self, replica: Replica, passage: "_Passage", content: aiohttp.StreamReader
    ) -> bytes:
        """Wait for more of an answer while there are a replica and a client; nothing is its end."""
        part = content.read_nowait()
        if part or content.at_eof():
            return part

        async def read() -> bytes:
            return await self._unless_lost(replica, content.readany())

        return await (read() if passage.more else passage.exchange.unless_gone(read()))

    async def _pass_to_all(self, passage: "_Passage") -> None:
        """Send a request to every replica; the answer is the first that is no success, if any."""
        if passage.more:
            raise Unavailable("The body is too long to be sent to every serving process.")
        answers = []
        for replica in self.pool.up:
            with suppress(Lost, *_UNREACHED):
                answers.append(
                    await passage.exchange.unless_gone(self._ask_for_all(replica, passage))
                )
        if not answers:
            self.pool.pick()
            raise Unavailable("No serving process answers; try again soon.", code="no_replica")
        worst, body = max(answers, key=lambda one: one[0].status)
        kind = [(b"content-type", worst.headers.get("content-type", "").encode())]
        await passage.exchange.respond(worst.status, kind, [body])

    # --- gRPC -------------------------------------------------------------------------------------

    def serve_calls(self, *, max_calls: int) -> CallServer:
        """Make the gRPC server that passes calls on."""
        handlers: dict[str, Handler] = {f"/{SERVICE}/{name}": self._passing(name) for name in UNARY}
        handlers[f"/{SERVICE}/{STREAM}"] = self._stream
        return CallServer(handlers, self.bounds, max_calls=max_calls)

    def _passing(self, method: str) -> Handler:
        async def handle(rpc: Rpc) -> None:
            came, holding = await rpc.first()
            try:
                body = bytes(came)
                del came
                to_all = method in _CALLS_FOR_ALL
                call = self._call_all if to_all else self._call_one
                answer = await call(method, body, rpc)
                del body
                holding.turn_to_answer(len(answer))
                await rpc.answer(answer)
            except grpc.aio.AioRpcError as error:
                raise _ended(error) from error
            finally:
                holding.release()

        return handle

    async def _call_one(self, method: str, body: bytes, rpc: Rpc) -> bytes:
        model = model_of(method, body)
        asked: list[Replica] = []
        while True:
            replica = self.pool.pick(model, beside=asked)
            asked.append(replica)
            again = len(asked) < ATTEMPTS
            try:
                return await self._call(replica, method, body, rpc)
            except Lost as error:
                if not again:
                    raise _broken(replica) from error
            except grpc.aio.AioRpcError as error:
                said = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
                code, wait = said.get(REFUSED, ""), said.get("retry-after", "")
                if (
                    error.code() is not grpc.StatusCode.UNAVAILABLE
                    or not self._is_elsewhere(model, asked, code, wait)
                    or not again
                ):
                    raise
                try:
                    self.pool.pick(model, beside=asked)
                except Unavailable:
                    raise error from None
            self.pool.retries += 1

    async def _call_all(self, method: str, body: bytes, rpc: Rpc) -> bytes:
        answer = None
        for replica in self.pool.up:
            with suppress(Lost):
                answer = await self._call(replica, method, body, rpc)
        if answer is None:
            raise Unavailable("No serving process answers; try again soon.", code="no_replica")
        return answer

    async def _call(self, replica: Replica, method: str, body: bytes, rpc: Rpc) -> bytes:
        call: Any = self._channel(replica).unary_unary(f"/{SERVICE}/{method}")

        async def ask() -> bytes:
            answer: bytes = await call(body, timeout=_left(rpc), metadata=_metadata(rpc))
            return answer

        try:
            answer = await self._unless_lost(replica, ask())
        except grpc.aio.AioRpcError as error:
            self.pool.count(replica, failed=_is_failure(error))
            raise
        self.pool.count(replica, failed=False)
        return answer

    async def _stream(self, rpc: Rpc) -> None:
        """Pass a stream on to one replica, message by message; it ends where that is lost."""
        replica = self.pool.pick()
        asking: Any = self._channel(replica).stream_stream(f"/{SERVICE}/{STREAM}")
        call = asking(timeout=_left(rpc), metadata=_metadata(rpc))
        passing = asyncio.create_task(_pass_messages(rpc, call))
        # Who reads the answers hears of it.
        passing.add_done_callback(lambda task: call.cancel() if _problem_of(task) else None)
        try:
            while (answer := await self._unless_lost(replica, call.read())) is not grpc.aio.EOF:
                await rpc.write(answer)
        except Lost as error:
            raise _broken(replica) from error
        except grpc.aio.AioRpcError as error:
            self.pool.count(replica, failed=_is_failure(error))
            raise _ended(error) from error
        except asyncio.CancelledError:
            problem = _problem_of(passing)
            if problem is None:
                raise
            raise problem from None
        finally:
            passing.cancel()
            call.cancel()
        rpc.end(None)


class _Passage:
    """A request on its way through: its head, the beginning of its body, and what comes behind."""

    def __init__(self, exchange: Exchange, scope: Mapping[str, Any]) -> None:
        self.exchange = exchange
        asked: bytes = scope.get("query_string", b"")
        self.target = f"/{quote(exchange.path.removeprefix('/'))}", quote(asked, safe=_IN_QUERIES)
        self.headers: list[Header] = []
        self.more = False
        # Whether a part of what comes behind was taken: it cannot be sent again.
        self.is_touched = False
        # What the client did wrong in what comes behind; the connection to the replica ends of it.
        self.problem: ClientGone | TooLarge | None = None
        self._kept = b""

    async def begin(self) -> None:
        """Read the beginning of the body, which for most is all of it."""
        parts: list[bytes] = []
        size = 0
        limit = self.exchange.holding.bounds.body_bytes
        announced = self.exchange.count(b"content-length")
        self.exchange.check_size(announced or 0)
        self.more = True
        while self.more and size <= REPLAYED_BYTES:
            part, self.more = await self.exchange.read_part()
            size += len(part)
            self.exchange.holding.hold(len(part))
            parts.append(part)
        self._kept = b"".join(parts)
        self._left = limit - size
        length = announced if self.more else size
        self.headers = [
            (name, value)
            for name, value in self.exchange.headers.items()
            if name not in _OWN_HEADERS
        ]
        if length is not None and (length or self.exchange.method == "POST"):
            self.headers.append((b"content-length", b"%d" % length))
        # What else the client wrote there is not believed any further on.
        address = self.exchange.address or "unknown"
        self.headers.append((b"x-forwarded-for", address.encode("latin-1")))

    def content(self) -> bytes | AsyncIterator[bytes] | None:
        # The client warns of a large body that is given to it whole.
        is_large = len(self._kept) > REPLAYED_BYTES
        return self._parts() if self.more or is_large else self._kept or None

    async def _parts(self) -> AsyncIterator[bytes]:
        yield self._kept
        while self.more:
            self.is_touched = True
            part = await self._next_part()
            if part:
                yield part

    async def _next_part(self) -> bytes:
        try:
            part, self.more = await self.exchange.read_part()
            self._left -= len(part)
            if self._left < 0:
                self.exchange.check_size(self.exchange.holding.bounds.body_bytes + 1)
        except (ClientGone, TooLarge) as error:
            self.problem = error
            raise
        return part


def _text(value: bytes) -> str:
    """Read the value of a header, which goes on in UTF-8; what is none is not passed on whole."""
    return value.decode("utf-8", "replace")


async def _pass_messages(rpc: Rpc, call: Any) -> None:
    async for body, holding in rpc:
        try:
            await call.write(bytes(body))
        finally:
            holding.release()
    await call.done_writing()


def _problem_of(passing: "asyncio.Task[None]") -> Exception | None:
    """Give what was wrong with the messages of a stream, where that is why it ended."""
    if not passing.done() or passing.cancelled():
        return None
    error = passing.exception()
    return error if isinstance(error, (RegistryError, Ended)) else None


def _broken(replica: Replica) -> Unavailable:
    return Unavailable(
        "The serving process {replica} went away before it answered; try again.",
        code="replica_lost",
        replica=replica.id,
    )


def _left(rpc: Rpc) -> float | None:
    left = max(0.0, rpc.deadline - time.monotonic())
    # Without a deadline, some versions say so by a very distant one.
    return left if left < _DISTANT_SECONDS else None


def _metadata(rpc: Rpc) -> list[tuple[str, str | bytes]]:
    passed = [(name, value) for name, value in rpc.head.metadata if not _OWN.fullmatch(name)]
    for name, value in passed:
        plain = isinstance(value, bytes) or _PLAIN_VALUE.fullmatch(value)
        if not _NAME.fullmatch(name) or not plain:
            raise Invalid("The header {name!r} cannot be passed on.", name=name[:80])
    return [*passed, ("x-forwarded-for", rpc.address or "unknown")]


def _ended(error: grpc.aio.AioRpcError) -> Ended:
    """Give a call the end that it had at a replica."""
    found = error.trailing_metadata() or ()
    said = [(str(name), value) for name, value in found if not str(name).startswith("grpc-")]
    return Ended(error.code(), error.details() or "", said)


def _is_failure(error: grpc.aio.AioRpcError) -> bool:
    """Say whether the replica failed, rather than the caller or the model."""
    if error.code() in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}:
        return True
    refused = any(name == REFUSED for name, _ in error.trailing_metadata() or ())
    return error.code() is grpc.StatusCode.UNAVAILABLE and not refused


def exposition(pool: Pool) -> str:
    """Write what a front has done as Prometheus reads it."""
    lines = ["# HELP modelyard_front_replica_up Whether a serving process answers"]
    lines.append("# TYPE modelyard_front_replica_up gauge")
    each: Collection[Replica] = pool.all
    lines += [
        f'modelyard_front_replica_up{{replica="{_label(one.id)}"}} {int(one.is_up)}' for one in each
    ]
    lines.append("# HELP modelyard_front_answers_total Calls that a serving process answered")
    lines.append("# TYPE modelyard_front_answers_total counter")
    lines += [
        f'modelyard_front_answers_total{{replica="{_label(one.id)}"}} {one.answered}'
        for one in each
    ]
    for name, says, value in (
        ("retries", "Calls that were sent again", pool.retries),
        ("ejections", "Times that a serving process was left out", pool.ejections),
    ):
        lines.append(f"# HELP modelyard_front_{name}_total {says}")
        lines.append(f"# TYPE modelyard_front_{name}_total counter")
        lines.append(f"modelyard_front_{name}_total {value}")
    return "\n".join([*lines, ""])


def _label(text: str) -> str:
    return re.sub(r'[\\"\n]', "_", text)
