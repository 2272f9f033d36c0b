"""Takes in the files of forms: a machine's, and a page's, which Django then answers."""

import asyncio
from collections.abc import Mapping
from urllib.parse import urlencode

import orjson

from registry.api.v1 import transfers
from registry.errors import RegistryError
from registry.models import Actor
from registry.services.uploads import record_uploads
from registry.storage import default_storage
from registry.stream.exchange import Exchange
from registry.stream.form import PageForm, VersionForm
from registry.stream.threads import in_database, on_disk, settled
from registry.web import transfers as page_door

PAGE_FIELDS = frozenset({"message", "variant"})


async def answer_registration(exchange: Exchange, actor: Actor, where: Mapping[str, str]) -> None:
    repository = await in_database(
        transfers.find_writable,
        actor,
        kind=where["kind"].removesuffix("s"),
        namespace=where["namespace"],
        name=where["name"],
    )
    form = VersionForm(
        exchange.headers.get("content-type", ""), default_storage(), fields=transfers.FIELDS
    )
    try:
        await _read(exchange, form)
        await on_disk(form.finish)
    finally:
        await on_disk(form.close)
    answer = await in_database(
        transfers.register_version,
        actor,
        repository,
        files=form.files,
        texts=form.texts,
        address=exchange.path,
        idempotency_key=exchange.headers.get("idempotency-key"),
    )
    await exchange.respond(
        answer.status,
        [("content-type", "application/json"), *answer.headers],
        answer.body if isinstance(answer.body, bytes) else orjson.dumps(answer.body),
    )


async def take_page_form(exchange: Exchange, where: Mapping[str, str]) -> None:
    """Turn the files of a page's form into finished uploads; Django gets a form that names them.

    So a form without scripts holds files of any size, and a refusal shows a page that still has
    the files that arrived. Whoever may not send files here gets the page that says so.
    """
    asking = {"path": exchange.path, "scheme": exchange.scheme}
    try:
        actor = await in_database(
            page_door.find_visitor,
            exchange.headers,
            request_id=exchange.request_id,
            ip=exchange.ip,
            **asking,
        )
        await in_database(
            page_door.find_writable,
            actor,
            kind=where["kind"].removesuffix("s"),
            namespace=where["namespace"],
            name=where["name"],
        )
        form = PageForm(
            exchange.headers.get("content-type", ""),
            default_storage(),
            fields=PAGE_FIELDS,
            is_ours=lambda token: page_door.is_own_form(exchange.headers, token=token, **asking),
        )
    except RegistryError:
        await exchange.drain()
        exchange.hand_over(b"", method="GET")
        return
    try:
        await _read(exchange, form)
        await on_disk(form.finish)
    except RegistryError as refusal:
        exchange.refusal = refusal
        await (_read_past(exchange) if form.trusted else exchange.drain())
    finally:
        await on_disk(form.close)
    uploads = await in_database(record_uploads, actor=actor, files=form.files)
    pairs = [
        *zip(form.pairs["upload"], form.pairs["path"], strict=False),
        *((str(row.pk), row.filename) for row in uploads),
    ]
    fields = list(form.texts.items())
    for upload, path in pairs:
        fields += [("upload", upload), ("path", path)]
    exchange.hand_over(urlencode(fields).encode())


async def _read_past(exchange: Exchange) -> None:
    """Let somebody who is welcome finish sending, for browsers show no answer before."""
    async for _ in exchange.chunks():
        pass


async def _read(exchange: Exchange, form: VersionForm) -> None:
    """Parse, write and hash one block in a thread while the next one arrives."""
    feeding: asyncio.Future[None] | None = None
    try:
        async for block in exchange.blocks():
            if feeding is not None:
                await asyncio.shield(feeding)
            feeding = on_disk(form.feed, block)
    finally:
        if feeding is not None:
            await settled(feeding)
