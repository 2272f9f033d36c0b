"""Sends requests and reads answers: retries with back-off, refusals, limits on what is believed."""

import contextlib
import copy
import email.utils
import json
import platform
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from modelyard import __version__
from modelyard.errors import (
    BadAnswer,
    Interrupted,
    ModelyardError,
    Refused,
    Unreachable,
    refusal_of,
)

IDEMPOTENCY_KEY = "Idempotency-Key"
AWAY = frozenset({429, 502, 503, 504})
_MAX_ANSWER_BYTES = 64 << 20
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 15.0
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})


class Patience:
    """How long one piece of work goes on trying after it last went forward."""

    def __init__(self, seconds: float, stop: threading.Event) -> None:
        self._seconds = seconds
        self._stop = stop
        self.renew()

    def renew(self) -> None:
        self._ends = time.monotonic() + self._seconds
        self._delay = _FIRST_DELAY

    def wait(self, problem: ModelyardError) -> None:
        """Pause before the next try, or raise `problem` when there is to be none."""
        asked = problem.retry_after if isinstance(problem, Refused) else None
        pause = asked if asked is not None else self._delay * random.uniform(0.5, 1)  # noqa: S311
        self._delay = min(self._delay * 2, _LONGEST_DELAY)
        if time.monotonic() + pause > self._ends:
            raise problem
        if self._stop.wait(pause):
            raise Interrupted("Stopped.")


class Transport:
    """One server, one token, and the connections to it; may be used by many threads."""

    def __init__(self, url: str, token: str = "", *, patience: float = 10.0) -> None:
        self.url = url
        self.patience = patience
        self.stop = threading.Event()
        headers = {"User-Agent": f"modelyard/{__version__} python/{platform.python_version()}"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(60.0, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32),
        )

    def close(self) -> None:
        self._http.close()

    def more_patient(self, seconds: float, stop: threading.Event) -> "Transport":
        """Give the same connections for work that goes on for long and can be stopped."""
        other = copy.copy(self)
        other.patience, other.stop = seconds, stop
        return other

    def address(self, path: str) -> str:
        """Make the full address of a path of the API."""
        return f"{self.url}/api/v1{path}"

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Any:
        """Send a request and give its JSON; tries again whatever can be sent twice.

        Raises:
            Refused: the server says no.
            Unreachable: it did not answer for longer than the patience lasts.

        """
        content = self.text(method, path, body=body, params=params, key=key)
        if not content:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise BadAnswer(
                f"{self.url} answered with something else than JSON; is it a Modelyard server?"
            ) from None

    def text(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> bytes:
        headers = {IDEMPOTENCY_KEY: key or str(uuid.uuid4())} if method == "POST" else {}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        patience = Patience(self.patience, self.stop)
        while True:
            try:
                with self.open(
                    method, self.address(path), headers=headers, content=content, params=params
                ) as answer:
                    return read_all(answer)
            except (Refused, Unreachable) as problem:
                if not is_passing(problem, method, headers):
                    raise
                patience.wait(problem)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        address: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Any = None,
        params: Mapping[str, Any] | None = None,
        read_timeout: float | None = None,
        elsewhere: bool = False,
    ) -> Iterator[httpx.Response]:
        """Send one request and give the answer with its body still to be read.

        With `elsewhere` the server may send to another host, which never sees the token.
        """
        request = self._http.build_request(
            method, address, headers=dict(headers or {}), content=content, params=params
        )
        if read_timeout is not None:
            request.extensions["timeout"]["read"] = read_timeout
        try:
            answer = self._http.send(request, stream=True, follow_redirects=elsewhere)
            try:
                check(answer)
                yield answer
            finally:
                answer.close()
        except httpx.HTTPError as error:
            raise Unreachable(
                f"{self.url} cannot be reached ({_reason(error)}). Check the address and the "
                "network, then run the same again."
            ) from error
        except httpx.InvalidURL:
            raise BadAnswer(f"{self.url} sends to an address that is none.") from None

    def own_address(self, location: str) -> str:
        """Resolve a `Location`; only this server may be named there, for the token goes along.

        Raises:
            BadAnswer: it leads to another host.

        """
        try:
            joined = str(httpx.URL(self.url + "/").join(location))
        except httpx.InvalidURL:
            joined = ""
        if urlsplit(joined)[:2] != urlsplit(self.url)[:2]:
            raise BadAnswer(f"{self.url} sends to another server ({location[:200]!r}).")
        return joined


def check(answer: httpx.Response) -> None:
    """Pass for success; raise the refusal that the answer is otherwise."""
    status = answer.status_code
    if answer.is_success:
        return
    if answer.is_redirect:
        raise BadAnswer(
            f"The server sends to {answer.headers.get('location', '')[:200]!r}; "
            "name that address as the server if it is meant."
        )
    problem = None
    if "json" in answer.headers.get("content-type", ""):
        with contextlib.suppress(ValueError, RecursionError, BadAnswer):
            problem = json.loads(read_all(answer))
    raise refusal_of(
        status,
        problem,
        words=f"The server answered {status} {answer.reason_phrase[:100]}.",
        request_id=answer.headers.get("x-request-id", "")[:100],
        retry_after=_seconds(answer.headers.get("retry-after")),
    )


def read_all(answer: httpx.Response) -> bytes:
    """Read a body that has to fit in memory."""
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            raise BadAnswer("The server's answer is larger than any answer should be.")
    return bytes(content)


def is_passing(
    problem: ModelyardError, method: str = "GET", headers: Mapping[str, str] | None = None
) -> bool:
    """Say whether the same request may do better a little later, and may be sent twice."""
    if method not in _REPEATABLE and IDEMPOTENCY_KEY not in (headers or {}):
        return False
    if isinstance(problem, Unreachable):
        return not isinstance(problem.__cause__, httpx.UnsupportedProtocol | httpx.TooManyRedirects)
    if not isinstance(problem, Refused):
        return False
    if problem.code == "idempotency_in_progress":
        return True
    # Without a time to come back, a limit is a quota: waiting does not help.
    return problem.status in AWAY and (problem.status != 429 or problem.retry_after is not None)


def _reason(error: httpx.HTTPError) -> str:
    text = str(error).strip() or type(error).__name__
    return text[:200]


def _seconds(header: str | None) -> float | None:
    """Read `Retry-After`: seconds, or a date."""
    if header is None:
        return None
    if header.strip().isascii() and header.strip().isdecimal():
        return float(header.strip()[:9])
    with contextlib.suppress(ValueError, TypeError):
        moment = email.utils.parsedate_to_datetime(header)
        return max(0.0, moment.timestamp() - time.time())
    return None
