"""Answers an export: a package made of texts and stored files while it is sent."""

from collections.abc import Mapping

from registry.api.standing import standing_headers
from registry.exports import Package, StoredFile
from registry.models import Actor
from registry.services.exports import find_export
from registry.storage import default_storage
from registry.stream.counting import downloads
from registry.stream.download import CAN_RUN_CODE, as_attachment, send_blocks, while_connected
from registry.stream.exchange import Exchange
from registry.stream.threads import in_database, on_disk


async def answer_export(exchange: Exchange, actor: Actor, where: Mapping[str, str]) -> None:
    found = await in_database(
        find_export,
        actor=actor,
        namespace=where["namespace"],
        name=where["name"],
        version=where["version"],
        file=where["file"],
        address=f"{exchange.scheme}://{exchange.headers.get('host', 'localhost')}",
    )
    package = found.package
    said = standing_headers(
        state=found.state,
        state_reason=found.state_reason,
        state_changed_at=found.state_changed_at,
    )
    headers = [
        *([("x-file-warning", CAN_RUN_CODE)] if found.runs_code else []),
        *((name.lower(), value) for name, value in said.items()),
        ("content-type", package.media_type),
        ("content-length", str(package.size_bytes)),
        *as_attachment(found.filename),
    ]
    if exchange.method == "HEAD":
        await exchange.respond(200, headers)
        return
    downloads.add(found.repository_id, found.version_id)
    await exchange.start(200, headers)
    await while_connected(exchange, _send(exchange, package))


async def _send(exchange: Exchange, package: Package) -> None:
    for part in package.parts():
        if isinstance(part, StoredFile):
            blocks = await on_disk(
                default_storage().open, part.sha256, start=0, end=part.size_bytes
            )
            await send_blocks(exchange, blocks)
        elif part:
            await exchange.write(part)
    await exchange.write(b"", more=False)
