"""The data plane over HTTP: the Open Inference Protocol, OpenAI's embeddings, and plain JSON."""

import asyncio
import base64
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid, NotFound, RegistryError
from registry.models import Actor
from workers.serving.budget import Bounds
from workers.serving.calls import REFUSED
from workers.serving.codec import (
    LONG,
    MAX_JSON_BYTES,
    Asked,
    dump,
    is_long,
    load_json,
    read_infer,
    read_version,
    write_infer,
    write_numbers,
)
from workers.serving.exchange import JSON, ClientGone, Exchange, Header, Receive, Send
from workers.serving.grpcweb import answer_grpcweb
from workers.serving.messages import ITEM_BYTES, InferRequest, Tensor, TensorSpec, check_tensor
from workers.serving.metrics import exposition
from workers.serving.plane import Plane
from workers.serving.reader import APART_FROM_BYTES, Reader
from workers.serving.rpc import SERVICE, refuse_load_parameters
from workers.serving.turns import turn_of

MAX_TEXTS = 2048
MAX_ROWS = 10_000
# Of rows and of tokens: numbers beyond this hold up others, and have a shorter form in tensors.
MAX_VALUES = 400_000

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Handler: TypeAlias = Callable[["Rest", Exchange, Mapping[str, str]], Awaitable[None]]

# A name is a namespace and a word after a slash; clients send that slash as it is.
_MODEL = r"(?P<model>[^/]+(?:/[^/]+)?)(?:/versions/(?P<version>[^/]+))?"
_LENGTH = b"inference-header-content-length"
# The code of a refusal, for who passes it on without reading it.
CODE = REFUSED.encode("ascii")


class WrongMethod(RegistryError):  # noqa: N818 - as HTTP names it
    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"


class Rest:
    """The ASGI application, for requests alone: who starts it looks after its lifespan."""

    def __init__(self, plane: Plane, bounds: Bounds) -> None:
        self.plane = plane
        self.bounds = bounds
        self.reader = Reader()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self.bounds)
        try:
            await self._answer(exchange)
        except ClientGone:
            pass
        # The last place that can still say something.
        except Exception as error:  # noqa: BLE001
            await refuse(exchange, error)
        finally:
            exchange.holding.release()

    async def _answer(self, exchange: Exchange) -> None:
        path, method = exchange.path, exchange.method
        if method == "OPTIONS":
            await exchange.allow()
            return
        if path.startswith(f"/{SERVICE}/"):
            await answer_grpcweb(self.plane, exchange, path.rpartition("/")[2])
            return
        asked = "GET" if method == "HEAD" else method
        others = set()
        for wanted, pattern, handler in ROUTES:
            if (found := pattern.fullmatch(path)) is None:
                continue
            if wanted == asked:
                await handler(self, exchange, found.groupdict(""))
                return
            others.add(wanted)
        if others:
            allowed = ", ".join(sorted(others))
            raise WrongMethod("{path} answers to {allowed}.", path=path[:200], allowed=allowed)
        raise NotFound("There is nothing at {path}.", path=path[:200])

    async def actor(self, exchange: Exchange) -> Actor:
        said = exchange.header(b"authorization")
        return await self.plane.identify(said, None if said else exchange.address)

    async def _come_in(self, exchange: Exchange, model: str) -> tuple[Actor, bytes]:
        """Read the body of a call; of a long one nothing, where the caller has no such model."""
        if exchange.may_be_long:
            self.plane.patience(await self.actor(exchange), model)
        body = await exchange.body()
        # Only now: it may have taken long to come, and its token be revoked meanwhile.
        return await self.actor(exchange), body

    async def infer(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        model = where["model"]
        actor, body = await self._come_in(exchange, model)
        length = exchange.count(_LENGTH)
        version = read_version(where["version"])
        began, waited = time.monotonic(), 0.0
        if length == 0:
            asked = await self._read_raw(actor, model, version, memoryview(body))
        elif APART_FROM_BYTES < (len(body) if length is None else length) <= MAX_JSON_BYTES:
            caller, until = turn_of(actor), began + self.plane.patience(actor, model)
            asked, waited = await self.reader.read(body, length, caller=caller, until=until)
            exchange.holding.hold(sum(len(one.data) for one in asked.inputs))
        else:
            asked = read_infer(memoryview(body), length)
        request = InferRequest(
            model=model,
            version=version,
            id=asked.id,
            inputs=asked.inputs,
            outputs=asked.outputs,
            parameters=asked.parameters,
            actor=actor,
            deadline=began + asked.timeout_seconds,
            waited_seconds=waited,
        )
        response = await exchange.unless_gone(self.plane.infer(request))
        size = sum(len(one.data) for one in response.outputs)
        exchange.holding.hold(size)
        if is_long(response):
            parts, json_bytes = await asyncio.to_thread(write_infer, response, asked)
        else:
            parts, json_bytes = write_infer(response, asked)
        exchange.holding.hold(sum(map(len, parts)) - size)  # as JSON it is longer
        if json_bytes is None:
            await exchange.respond(200, [JSON], parts)
            return
        headers = [(b"content-type", b"application/octet-stream"), (_LENGTH, b"%d" % json_bytes)]
        await exchange.respond(200, headers, parts, packable=False)

    async def _read_raw(self, actor: Actor, model: str, version: str, body: memoryview) -> Asked:
        """Read a body that is nothing but the one tensor which the model takes."""
        specs = (await self.plane.model_metadata(actor, model, version)).inputs
        if len(specs) != 1:
            template = "The model takes {count} inputs; a raw body can only be one."
            raise Invalid(template, count=len(specs))
        tensor = Tensor(specs[0].name, specs[0].datatype, _raw_shape(specs[0], len(body)), body)
        check_tensor(tensor)
        return Asked([tensor], all_binary=True)

    async def live(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        live = self.plane.live()
        await _say(exchange, {"live": live}, status=200 if live else 503)

    async def ready(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        ready = self.plane.ready()
        await _say(exchange, {"ready": ready}, status=200 if ready else 503)

    async def health(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        state = {"live": self.plane.live(), "ready": self.plane.ready()}
        await _say(exchange, state, status=200 if state["live"] else 503)

    async def metrics(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        """Show numbers of the models that the caller may call, for their names are in them."""
        found = self.plane.counters(await self.actor(exchange))
        kind = b"text/plain; version=0.0.4; charset=utf-8"
        await exchange.respond(200, [(b"content-type", kind)], [exposition(found).encode()])

    async def server_metadata(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        await _say(exchange, self.plane.server_metadata())

    async def models(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        found = await self.plane.index(await self.actor(exchange), ready_only=False)
        await _say(exchange, {"models": sorted({one["name"] for one in found})})

    async def model_ready(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        actor, version = await self.actor(exchange), read_version(where["version"])
        ready = await self.plane.model_ready(actor, where["model"], version)
        said = {"name": where["model"], "ready": ready}
        await _say(exchange, said, status=200 if ready else 503)

    async def model_metadata(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        actor, version = await self.actor(exchange), read_version(where["version"])
        found = await self.plane.model_metadata(actor, where["model"], version)
        await _say(exchange, found)

    async def model_config(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        actor, version = await self.actor(exchange), read_version(where["version"])
        await _say(exchange, await self.plane.model_config(actor, where["model"], version))

    async def statistics(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        version = read_version(where.get("version", ""))
        model = where.get("model") or None
        found = await self.plane.statistics(await self.actor(exchange), model, version)
        await _say(exchange, {"model_stats": found})

    async def index(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        asked = await _json_object(exchange)
        ready = asked.get("ready") is True
        await _say(exchange, await self.plane.index(await self.actor(exchange), ready_only=ready))

    async def load(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        if (await _json_object(exchange)).get("parameters"):
            refuse_load_parameters()
        actor = await self.actor(exchange)
        await exchange.unless_gone(self.plane.load(actor, where["model"]))
        await exchange.respond(200)

    async def unload(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        await _json_object(exchange)
        await self.plane.unload(await self.actor(exchange), where["model"])
        await exchange.respond(200)

    async def no_regions(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        await _say(exchange, [])

    async def predict(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        """Answer rows of named fields: one object, or a list of them."""
        actor, body = await self._come_in(exchange, where["model"])
        version = read_version(where["version"])
        rows, several = await _beside(body, _read_rows, exchange, body)
        found = await exchange.unless_gone(
            self.plane.predict(actor, where["model"], version, rows, math.inf)
        )
        answers = {"predictions": found.rows} if several else {"prediction": found.rows[0]}
        said = {"model": found.model, "version": found.version, **answers}
        await _give(exchange, {**said, "parameters": found.parameters})

    async def embeddings(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        body = await exchange.body()
        asked = await _beside(body, _read_object, body, MAX_VALUES)
        actor = await self.actor(exchange)
        model, version = _read_model(asked.get("model"))
        texts = await _beside(body, _read_texts, asked.get("input"))
        packed = asked.get("encoding_format", "float")
        if packed not in {"float", "base64"}:
            raise Invalid("encoding_format is float or base64.")
        found = await exchange.unless_gone(
            self.plane.embed(
                actor,
                model,
                version,
                texts,
                _read_dimensions(asked.get("dimensions")),
                math.inf,
            )
        )
        rows = np.ascontiguousarray(found.vectors, "<f4")
        data = (
            await asyncio.to_thread(_written, rows, packed)
            if rows.size > LONG
            else _written(rows, packed)
        )
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        said = {"object": "list", "data": data, "model": asked["model"], "usage": usage}
        await _give(exchange, {**said, "parameters": found.parameters})

    async def openai_models(self, exchange: Exchange, _: Mapping[str, str]) -> None:
        found = await self.plane.index(await self.actor(exchange), ready_only=False)
        names = sorted({one["name"] for one in found})
        await _say(exchange, {"object": "list", "data": [_openai_model(name) for name in names]})

    async def openai_model(self, exchange: Exchange, where: Mapping[str, str]) -> None:
        # Refuses what does not exist for the caller.
        await self.plane.model_metadata(await self.actor(exchange), where["model"], "")
        await _say(exchange, _openai_model(where["model"]))

    # First those that are called most; where two fit, the first is meant.
    routes: ClassVar[Sequence[tuple[str, str, Handler]]] = (
        ("POST", rf"/v2/models/{_MODEL}/infer", infer),
        ("POST", r"/(?:openai/)?v1/embeddings", embeddings),
        ("POST", rf"/predict/{_MODEL}", predict),
        ("GET", r"/v2/health/live", live),
        ("GET", r"/v2/health/ready", ready),
        ("GET", r"/healthz", health),
        ("GET", r"/metrics", metrics),
        ("GET", r"/v2/?", server_metadata),
        ("GET", r"/v2/models/?", models),
        ("GET", r"/v2/models/stats", statistics),
        ("GET", rf"/v2/models/{_MODEL}/ready", model_ready),
        ("GET", rf"/v2/models/{_MODEL}/config", model_config),
        ("GET", rf"/v2/models/{_MODEL}/stats", statistics),
        ("GET", rf"/v2/models/{_MODEL}", model_metadata),
        ("POST", r"/v2/repository/index", index),
        ("POST", rf"/v2/repository/models/{_MODEL}/load", load),
        ("POST", rf"/v2/repository/models/{_MODEL}/unload", unload),
        ("GET", r"/v2/(?:system|cuda)sharedmemory/status", no_regions),
        ("GET", r"/(?:openai/)?v1/models", openai_models),
        ("GET", r"/(?:openai/)?v1/models/(?P<model>[^/]+/[^/]+)", openai_model),
    )


ROUTES = tuple((verb, re.compile(pattern), handler) for verb, pattern, handler in Rest.routes)


async def _say(exchange: Exchange, value: Any, *, status: int = 200) -> None:
    await exchange.respond(status, [JSON], [dump(value)])


async def _give(exchange: Exchange, value: Any) -> None:
    """Say what a model answered, which counts for as long as its client takes it."""
    body = dump(value)
    exchange.holding.hold(len(body))
    await exchange.respond(200, [JSON], [body])


async def _json_object(exchange: Exchange) -> dict[str, Any]:
    """Read a body that is an object; Triton's clients send none where they have nothing to say."""
    return _read_object(await exchange.body())


def _read_object(body: bytes, max_values: int | None = None) -> dict[str, Any]:
    value = load_json(body, max_values) if body.strip() else {}
    if not isinstance(value, dict):
        raise Invalid("The body is no JSON object.")
    return value


async def _beside(body: bytes, read: Callable[P, T], *asked: P.args, **more: P.kwargs) -> T:
    """Read what a body says, in a thread where it is large."""
    if len(body) > APART_FROM_BYTES:
        return await asyncio.to_thread(read, *asked, **more)
    return read(*asked, **more)


def _written(rows: NDArray[np.float32], packed: str) -> list[dict[str, Any]]:
    vectors: list[Any] = (
        [base64.b64encode(one.tobytes()).decode() for one in rows]
        if packed == "base64"
        else [write_numbers(one) for one in rows]
    )
    return [
        {"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(vectors)
    ]


def _raw_shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """Give the shape of a tensor of that many bytes: one row, and at most one axis to work out."""
    shape = list(spec.shape)
    if shape and shape[0] == -1:
        shape[0] = 1
    item = ITEM_BYTES.get(spec.datatype)
    if item is None and shape.count(-1) == 0:
        return tuple(shape)
    if item is None or shape.count(-1) > 1:
        raise Invalid("Input {name!r} cannot be sent as a raw body.", name=spec.name)
    if -1 in shape:
        fixed = item * math.prod(one for one in shape if one != -1)
        shape[shape.index(-1)] = size // fixed if fixed else 0
    return tuple(shape)


def _read_rows(exchange: Exchange, body: bytes) -> tuple[list[dict[str, Any]], bool]:
    kind = (exchange.header(b"content-type") or "").partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        return [{"image": base64.b64encode(body).decode()}], False
    value = load_json(body, MAX_VALUES)
    rows = value if isinstance(value, list) else [value]
    if not rows or len(rows) > MAX_ROWS or not all(isinstance(one, dict) for one in rows):
        raise Invalid(
            "Send one object of named fields, or a list of up to {limit} of them.", limit=MAX_ROWS
        )
    return rows, isinstance(value, list)


def _read_model(value: Any) -> tuple[str, str]:
    """Read the name of a model, with a version or an alias behind an @ where one is meant."""
    if not isinstance(value, str) or not 0 < len(value) <= 400:
        raise Invalid("model is the name of a model: namespace/name.")
    name, _, version = value.partition("@")
    return name, read_version(version)


def _read_texts(value: Any) -> list[str] | list[list[int]]:
    """Read what OpenAI's shape allows: a text, texts, tokens, or lists of tokens."""
    single = isinstance(value, str) or (
        isinstance(value, list) and bool(value) and type(value[0]) is int
    )
    listed = [value] if single else value
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_TEXTS:
        raise Invalid("input is a text, or a list of 1 to {limit} of them.", limit=MAX_TEXTS)
    if all(isinstance(one, str) for one in listed):
        return listed
    for one in listed:
        if not isinstance(one, list) or not one or set(map(type, one)) != {int}:
            raise Invalid("input holds neither texts alone nor lists of tokens alone.")
        if min(one) < 0 or max(one) >= 2**31:
            raise Invalid("input holds a number that is no token.")
    return listed


def _read_dimensions(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 < value <= 65_536:
        raise Invalid("dimensions is a number above 0.")
    return value


def _openai_model(name: str) -> dict[str, Any]:
    owner = name.partition("/")[0]
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}


async def refuse(exchange: Exchange, error: Exception) -> None:
    """Answer with what went wrong, in the shape of the protocol that was spoken."""
    if isinstance(error, RegistryError):
        status, detail, code = error.status, error.detail, error.reason
    else:
        logger.error("%s %s failed", exchange.method, ascii(exchange.path), exc_info=error)
        status, detail, code = 500, "Something went wrong; it was logged.", "error"
    if exchange.started:
        # Too late to say: the answer has begun. Its missing end tells the client.
        return
    headers: list[Header] = [JSON, (b"cache-control", b"no-store"), (CODE, code.encode("ascii"))]
    if (seconds := getattr(error, "retry_after", None)) is not None:
        headers.append((b"retry-after", b"%d" % seconds))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 413:
        headers.append((b"connection", b"close"))
    said: Any = {"error": detail, "code": code}
    if "/v1/" in exchange.path:
        said = {"error": {"message": detail, "type": code, "param": None, "code": code}}
    elif isinstance(error, RegistryError) and error.errors:
        said["errors"] = [
            {"field": one.field, "code": one.code, "detail": one.detail} for one in error.errors
        ]
    await exchange.respond(status, headers, [dump(said)])
