"""Which addresses are streams, at which door, and who answers them."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from django.conf import settings
from django.db import Error
from django.http.request import split_domain_port, validate_host

from registry.api.admission import admit
from registry.api.problem import MethodNotAllowed
from registry.api.v1 import transfers as machine_door
from registry.errors import Invalid, RegistryError, Unauthenticated
from registry.models import Actor
from registry.stream import upload
from registry.stream.download import answer_download
from registry.stream.events import answer_events
from registry.stream.exchange import Exchange
from registry.stream.export import answer_export
from registry.stream.refusals import refuse
from registry.stream.registration import answer_registration, take_page_form
from registry.stream.threads import in_database
from registry.web import transfers as page_door

# How often a stream that goes on is asked whether it still may.
RECHECK_SECONDS = 2.0
# Pieces of an upload from this size on count as no request: five gigabytes are a lot of them.
UNCOUNTED_BYTES = 1 << 20

Where: TypeAlias = Mapping[str, str]
Identify: TypeAlias = Callable[[Exchange], Actor]
Handler: TypeAlias = Callable[[Exchange, Identify, Where], Awaitable[None]]
_ActorHandler: TypeAlias = Callable[[Exchange, Actor, Where], Coroutine[Any, Any, None]]


class NoStream(Exception):  # noqa: N818 - a signal, not an error
    """Let Django answer this request."""


class Route(NamedTuple):
    """An address, its door and its handlers by method."""

    pattern: re.Pattern[str]
    identify: Identify
    handlers: Mapping[str, Handler]
    # Where Django answers the methods (and, for pages, the refusals) that are not here.
    shared: bool = False


async def answer_stream(exchange: Exchange) -> bool:
    """Answer a request to a stream; give False for one that Django is to answer."""
    for route in ROUTES:
        if match := route.pattern.fullmatch(exchange.path):
            return await _answer(exchange, route, match.groupdict())
    return False


async def _answer(exchange: Exchange, route: Route, where: Where) -> bool:
    handler = route.handlers.get(exchange.method)
    if handler is None:
        if route.shared:
            return False
        allowed = ", ".join(route.handlers)
        refusal = MethodNotAllowed("This address takes {allowed}.", allowed=allowed)
        await refuse(exchange, refusal, (("allow", allowed),))
        return True
    _require_own_host(exchange)
    try:
        await handler(exchange, route.identify, where)
    except NoStream:
        return False
    return True


def _require_own_host(exchange: Exchange) -> None:
    """Refuse a name that this server does not answer to, as Django does for all that is no stream.

    Raises:
        Invalid: the Host is none of MODELYARD_ALLOWED_HOSTS.

    """
    domain, _ = split_domain_port(exchange.headers.get("host", "localhost"))
    if not (domain and validate_host(domain, settings.ALLOWED_HOSTS)):
        raise Invalid("This server has no such host name.", code="bad_host")


def _at_machine_door(exchange: Exchange) -> Actor:
    return machine_door.identify(exchange.headers, request_id=exchange.request_id, ip=exchange.ip)


def _at_page_door(exchange: Exchange) -> Actor:
    return page_door.identify(
        exchange.headers,
        method=exchange.method,
        path=exchange.path,
        scheme=exchange.scheme,
        request_id=exchange.request_id,
        ip=exchange.ip,
    )


def _admit(identify: Identify, exchange: Exchange, *, writes: bool = False) -> Actor:
    """Find out who is asking, and count it at the machine door."""
    if identify is not _at_machine_door:
        return identify(exchange)
    return admit(
        partial(identify, exchange),
        ip=exchange.ip,
        writes=writes,
        tell=exchange.standing.update,
        counted=not _is_big_piece(exchange),
    )


def _is_big_piece(exchange: Exchange) -> bool:
    """Tell a piece of an upload that is limited by the line, and not by a number of requests."""
    return exchange.method == "PATCH" and (exchange.announced_bytes or 0) >= UNCOUNTED_BYTES


def _as_actor(handler: _ActorHandler, *, writes: bool = False) -> Handler:
    """Find out who is asking, then answer, for as long as they may ask."""

    async def answer(exchange: Exchange, identify: Identify, where: Where) -> None:
        actor = await in_database(_admit, identify, exchange, writes=writes)
        answering = asyncio.create_task(handler(exchange, actor, where))
        try:
            while not (await asyncio.wait({answering}, timeout=RECHECK_SECONDS))[0]:
                await in_database(_require_still, actor, identify, exchange)
        except BaseException:
            answering.cancel()
            await asyncio.wait({answering})
            raise
        await answering

    return answer


def _require_still(actor: Actor, identify: Identify, exchange: Exchange) -> None:
    """Raise Unauthenticated once the token was revoked or the session has ended."""
    try:
        now = identify(exchange)
    except Error:
        # A database that is away for a moment ends no long upload: the next look tells.
        return
    if now.user_id != actor.user_id:
        raise Unauthenticated("The session has ended; sign in again.")


async def _download_page(
    exchange: Exchange, identify: Identify, where: Where, *, part: str = "files"
) -> None:
    """Answer a download in a browser; a refusal gets the page that says so."""
    try:
        await _DOWNLOADS[part](exchange, identify, where)
    except RegistryError as refusal:
        if exchange.status:
            raise
        exchange.refusal = refusal
        raise NoStream from None


async def _register(exchange: Exchange, identify: Identify, where: Where) -> None:
    if not exchange.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise NoStream
    await _REGISTRATION(exchange, identify, where)


async def _new_version_page(exchange: Exchange, _identify: Identify, where: Where) -> None:
    if exchange.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        await take_page_form(exchange, where)
    raise NoStream


async def _events(exchange: Exchange, identify: Identify, where: Where, *, replay: bool) -> None:
    await in_database(_admit, identify, exchange)
    await answer_events(exchange, partial(identify, exchange), where, replay=replay)


async def _options(exchange: Exchange, _identify: Identify, where: Where) -> None:
    await upload.answer_options(exchange, where)


_DOWNLOAD = _as_actor(answer_download)
_REGISTRATION = _as_actor(answer_registration, writes=True)
_DERIVATIVE_DOWNLOAD = _as_actor(partial(answer_download, part="derivatives"))
_EXPORT = _as_actor(answer_export)
_DOWNLOADS: Mapping[str, Handler] = {
    "files": _DOWNLOAD,
    "derivatives": _DERIVATIVE_DOWNLOAD,
    "exports": _EXPORT,
}
_DERIVATIVE_PAGE = partial(_download_page, part="derivatives")
_EXPORT_PAGE = partial(_download_page, part="exports")
_CREATION: Mapping[str, Handler] = {
    "OPTIONS": _options,
    "POST": _as_actor(upload.answer_creation, writes=True),
}
_UPLOAD: Mapping[str, Handler] = {
    "OPTIONS": _options,
    "HEAD": _as_actor(upload.answer_head),
    "PATCH": _as_actor(upload.answer_patch),
    "DELETE": _as_actor(upload.answer_delete, writes=True),
}
_ONE = r"/(?P<kind>models|datasets)/(?P<namespace>[^/]+)/(?P<name>[^/]+)"
_FILE = r"/versions/(?P<version>[^/]+)/files/(?P<path>.+)"
_DERIVATIVE = r"/versions/(?P<version>[^/]+)/derivatives/(?P<path>.+)"
_MODEL = r"/models/(?P<namespace>[^/]+)/(?P<name>[^/]+)"
_EXPORTED = r"/versions/(?P<version>[^/]+)/exports/(?P<file>[^/]+)"
_API = r"/api/v1"
_LANGUAGE = r"(?:/zh-hans)?"

ROUTES = (
    Route(
        re.compile(_API + _ONE + _FILE, re.DOTALL),
        _at_machine_door,
        {"GET": _DOWNLOAD, "HEAD": _DOWNLOAD},
    ),
    Route(
        re.compile(_API + _ONE + _DERIVATIVE, re.DOTALL),
        _at_machine_door,
        {"GET": _DERIVATIVE_DOWNLOAD, "HEAD": _DERIVATIVE_DOWNLOAD},
    ),
    Route(
        re.compile(_API + _MODEL + _EXPORTED),
        _at_machine_door,
        {"GET": _EXPORT, "HEAD": _EXPORT},
        shared=True,
    ),
    Route(
        re.compile(_API + _ONE + r"/versions"), _at_machine_door, {"POST": _register}, shared=True
    ),
    Route(re.compile(_API + r"/uploads/?"), _at_machine_door, _CREATION),
    Route(re.compile(_API + r"/uploads/(?!direct$)(?P<upload>[^/]+)"), _at_machine_door, _UPLOAD),
    Route(
        re.compile(_API + r"/jobs/(?P<job>[^/]+)/events"),
        _at_machine_door,
        {"GET": partial(_events, replay=True)},
    ),
    Route(
        re.compile(_LANGUAGE + _ONE + _FILE, re.DOTALL),
        _at_page_door,
        {"GET": _download_page, "HEAD": _download_page},
        shared=True,
    ),
    Route(
        re.compile(_LANGUAGE + _ONE + r"/versions/new"),
        _at_page_door,
        {"POST": _new_version_page},
        shared=True,
    ),
    Route(
        re.compile(_LANGUAGE + _ONE + _DERIVATIVE, re.DOTALL),
        _at_page_door,
        {"GET": _DERIVATIVE_PAGE, "HEAD": _DERIVATIVE_PAGE},
        shared=True,
    ),
    Route(
        re.compile(_LANGUAGE + _MODEL + _EXPORTED),
        _at_page_door,
        {"GET": _EXPORT_PAGE, "HEAD": _EXPORT_PAGE},
        shared=True,
    ),
    Route(re.compile(_LANGUAGE + r"/uploads/?"), _at_page_door, _CREATION),
    Route(re.compile(_LANGUAGE + r"/uploads/(?P<upload>[^/]+)"), _at_page_door, _UPLOAD),
    Route(
        re.compile(_LANGUAGE + r"/jobs/(?P<job>[^/]+)/events"),
        _at_page_door,
        {"GET": partial(_events, replay=False)},
    ),
)
