"""The one way in which the server calls an address that somebody named: guarded, bounded, blind.

The name is resolved once, every address it has must be a public one (or lie in a network that the
administrator allows), and the connection goes to the very address that was checked. Redirects are
not followed, environment proxies are not used, time and bytes are bounded, and what the other side
answers is thrown away but for its status.
"""

import asyncio
import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Awaitable, Mapping
from typing import NamedTuple, TypeAlias
from urllib.parse import SplitResult, urlsplit

import httpx
from django.conf import settings

from registry.errors import Invalid, RegistryError

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

TIMEOUT_SECONDS = 10.0
# Read so that the connection ends in good order, and forgotten.
MAX_ANSWER_BYTES = 64 * 1024
_BAD_URL = "bad_url"
_DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
# Where IPv6 hides an IPv4 address that is checked in its stead.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What is given out as global unicast (RFC 4291). Beside it lie site-local addresses, those of
# translation inside a network (RFC 8215) and others that `is_global` takes for public.
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")


class Unreachable(RegistryError):  # noqa: N818 - as in registry.errors
    """A call that could not be made or got no answer; the words are safe to show."""

    code = "unreachable"
    status = 502
    title = "The address could not be reached"


class Answer(NamedTuple):
    """What came back: the status, and how long it took."""

    status: int
    duration_ms: int


def check_url(url: str) -> SplitResult:
    """Check all of an address that needs no look-up.

    Raises:
        Invalid: it is not an http(s) URL to a port that may be called, or carries credentials.

    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Invalid("The address cannot be read.", code=_BAD_URL) from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise Invalid("The address does not begin with https:// or http://.", code=_BAD_URL)
    if not parts.hostname or not url.isascii() or any(sign.isspace() for sign in url):
        raise Invalid(
            "The host of the address is missing, or holds characters that an address cannot have.",
            code=_BAD_URL,
        )
    if parts.username is not None or parts.password is not None:
        raise Invalid(
            "The address carries a user name or a password; the signature proves who is calling.",
            code=_BAD_URL,
        )
    try:
        httpx.URL(url)
    except httpx.InvalidURL:
        # What urllib takes for an address and the client does not, such as 010.0.0.1.
        raise Invalid("The address cannot be read.", code=_BAD_URL) from None
    if (port or _DEFAULT_PORTS[parts.scheme]) not in settings.WEBHOOK_PORTS:
        raise Invalid(
            "The port of the address is not among those that may be called ({ports}).",
            code=_BAD_URL,
            ports=", ".join(map(str, sorted(settings.WEBHOOK_PORTS))),
        )
    return parts


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    """Send `body` and give the status that came back.

    Raises:
        Invalid: the address may not be called.
        Unreachable: it does not resolve, resolves inwards, or did not answer in time.

    """
    parts = check_url(url)
    return asyncio.run(_within_time(_post(parts, url, body, headers)))


async def _within_time(call: Awaitable[Answer]) -> Answer:
    """Bound the whole call: a server may send each byte in time and never come to an end."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await call
    except TimeoutError:
        raise Unreachable("No answer came in time.") from None


async def _post(parts: SplitResult, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
    host = parts.hostname or ""
    began = time.monotonic()
    address = await _resolve(host, parts.port or _DEFAULT_PORTS[parts.scheme])
    target = httpx.URL(url).copy_with(host=str(address))
    sent = {**headers, "Host": _host_header(parts), "Connection": "close"}
    try:
        # The certificate is checked against the name, not against the address that was dialled.
        async with (
            httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_SECONDS) as client,
            client.stream(
                "POST", target, content=body, headers=sent, extensions={"sni_hostname": host}
            ) as answer,
        ):
            await _drain(answer)
            return Answer(answer.status_code, round((time.monotonic() - began) * 1000))
    except httpx.ConnectError as error:
        raise Unreachable("The connection could not be made.") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable("The connection broke before an answer came.") from error


async def _drain(answer: httpx.Response) -> None:
    taken = 0
    async for block in answer.aiter_raw():
        taken += len(block)
        if taken > MAX_ANSWER_BYTES:
            return


async def _resolve(host: str, port: int) -> Address:
    """Find the address to dial; one that leads inwards is as good as none."""
    try:
        found = await _look_up(host, port)
    except (OSError, UnicodeError):
        raise Unreachable("The host name does not resolve.") from None
    addresses = [ipaddress.ip_address(one.partition("%")[0]) for one in found]
    if not addresses or not all(map(_may_be_called, addresses)):
        # Which address it was would tell the caller what our network looks like.
        raise Unreachable("The host is not at a public address, so it is not called.")
    return addresses[0]


async def _look_up(host: str, port: int) -> list[str]:
    """Give the addresses of a name, in a thread that nobody waits for once the time is over.

    The loop's own executor would be waited for as the loop ends, however long a resolver takes.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def tell(addresses: list[str], error: Exception | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)

    def look() -> None:
        addresses: list[str] = []
        failed: Exception | None = None
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [str(entry[4][0]) for entry in entries]
        except (OSError, UnicodeError) as error:
            failed = error
        # The loop may have ended by now: then nobody wants to know.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, addresses, failed)

    threading.Thread(target=look, name="look-up", daemon=True).start()
    return await found


def _may_be_called(address: Address) -> bool:
    inner = _embedded(address)
    if inner is not None:
        return _may_be_called(inner)
    if any(address in network for network in settings.WEBHOOK_NETWORKS):
        return True
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return address.is_global and not address.is_multicast


def _embedded(address: Address) -> Address | None:
    """Give the IPv4 address inside one of IPv6, however it was packed."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    return address.teredo[1] if address.teredo is not None else None


def _host_header(parts: SplitResult) -> str:
    host = parts.hostname or ""
    name = f"[{host}]" if ":" in host else host
    return name if parts.port is None else f"{name}:{parts.port}"
