"""Registers a version from one multipart form: its files first, then one service call."""

import asyncio
from collections.abc import Mapping

import orjson

from registry.api.v1 import transfers
from registry.models import Actor
from registry.storage import default_storage
from registry.stream.exchange import Exchange
from registry.stream.form import VersionForm
from registry.stream.threads import in_database, on_disk, settled


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
