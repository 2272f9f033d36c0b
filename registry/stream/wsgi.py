"""Runs a WSGI application in threads for everything that is no stream; bodies are bounded."""

import asyncio
import contextvars
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias
from urllib.parse import unquote_to_bytes

from django.db import close_old_connections

from registry.errors import TooLarge
from registry.stream.exchange import Exchange
from registry.stream.refusals import refuse
from registry.stream.threads import settled
from registry.web.transfers import REFUSAL

Application: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

# An answer goes out in parts of about this size; most are one part, with one change of thread.
WHOLE_BYTES = 256 * 1024


class ThreadedApplication:
    """A WSGI application behind the event loop.

    The whole request is read before a thread is taken, so that slow clients hold none.
    """

    def __init__(self, application: Application, *, threads: int, max_body_bytes: int) -> None:
        self._application = application
        self._max_body_bytes = max_body_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="django")

    async def answer(self, exchange: Exchange) -> None:
        body = await exchange.read(self._max_body_bytes)
        if body is None:
            limit = self._max_body_bytes
            await refuse(
                exchange,
                TooLarge(
                    "A body here holds at most {limit} bytes; send files as uploads.", limit=limit
                ),
            )
            return
        call = Call(self._application, make_environ(exchange, body))
        run = contextvars.copy_context().run
        loop = asyncio.get_running_loop()
        try:
            while not call.has_ended:
                await settled(loop.run_in_executor(self._pool, run, call.go_on))
                if not exchange.status:
                    await exchange.start_raw(call.status, call.headers)
                await exchange.write(call.part(), more=not call.has_ended)
        finally:
            if not call.has_ended:
                await settled(loop.run_in_executor(self._pool, run, call.end))


class Call:
    """One call of the application; what it says is taken part by part.

    Between two parts it holds no thread, so that a client that reads slowly, or not at all, keeps
    nobody waiting. Whoever streams an answer must therefore bear to be gone on with in another
    thread: no cursor, no transaction from one part to the next.
    """

    def __init__(self, application: Application, environ: dict[str, Any]) -> None:
        self._application = application
        self._environ = environ
        self._answer: Iterable[bytes] = ()
        self._chunks: Iterator[bytes] | None = None
        self._waiting: list[bytes] = []
        self.has_ended = False
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []

    def go_on(self) -> None:
        """Collect the next part; call it in a thread."""
        try:
            if self._chunks is None:
                self._answer = self._application(self._environ, self._start_response)
                self._chunks = iter(self._answer)
            size = 0
            for chunk in self._chunks:
                self._waiting.append(chunk)
                size += len(chunk)
                if size > WHOLE_BYTES:
                    close_old_connections()
                    return
        except BaseException:
            self.end()
            raise
        self.end()

    def end(self) -> None:
        """Tell the application that nothing more is asked for; call it in a thread."""
        self.has_ended = True
        if close := getattr(self._answer, "close", None):
            close()

    def part(self) -> bytes:
        body = b"".join(self._waiting)
        self._waiting = []
        return body

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], _exc_info: Any = None
    ) -> Callable[[bytes], None]:
        self.status = int(status.split(" ", 1)[0])
        self.headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
        ]
        return self._waiting.append


def make_environ(exchange: Exchange, body: bytes) -> dict[str, Any]:
    """Translate a request; a header with an underscore could pose as another and is left out."""
    scope = exchange.scope
    raw_path = scope.get("raw_path") or exchange.path.encode("utf-8")
    server = scope.get("server") or ("localhost", 80)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": exchange.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(raw_path.partition(b"?")[0]).decode("latin-1"),
        "QUERY_STRING": exchange.query.decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": exchange.ip or "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": exchange.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in exchange.headers.items():
        if "_" not in name and name not in {"content-type", "content-length", "proxy"}:
            environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    if exchange.refusal is not None:
        environ[REFUSAL] = exchange.refusal
    environ["HTTP_X_REQUEST_ID"] = exchange.request_id
    environ["CONTENT_TYPE"] = exchange.headers.get("content-type", "")
    environ["CONTENT_LENGTH"] = str(len(body))
    return environ
