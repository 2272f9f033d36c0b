"""The native API's side of `registry.stream`: who is asking, and what a form becomes."""

from collections.abc import Mapping
from typing import NamedTuple

import orjson
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.response import Response

from registry.api.v1 import schemas, wire
from registry.api.v1.idempotency import Claim, answer_once
from registry.api.v1.parsers import parse_json
from registry.api.v1.renderers import JSONRenderer
from registry.api.v1.requests import read_body
from registry.api.v1.resource import created
from registry.api.v1.views.versions import named_version
from registry.authenticate import Visit, actor_from_authorization
from registry.models import Actor, Repository
from registry.permissions import require
from registry.services import catalog, versions
from registry.services.blobs import record_blob
from registry.services.quotas import require_room
from registry.storage import Stored

# The texts that may stand beside the files; the last two hold JSON.
_JSON_FIELDS = ("tags", "parents")
FIELDS = frozenset({"message", "variant", "source", *_JSON_FIELDS})


class Answer(NamedTuple):
    """A finished answer, for whoever sends it."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def identify(headers: Mapping[str, str], *, request_id: str, ip: str | None) -> Actor:
    """Make the actor of a token; a cookie never counts here."""
    visit = Visit(door="api", request_id=request_id, ip=ip)
    return actor_from_authorization(headers.get("authorization"), visit)


def find_writable(actor: Actor, *, kind: str, namespace: str, name: str) -> Repository:
    """Find the repository that files are to be sent to, before the first byte is read."""
    repository = catalog.find_repository(actor, kind, namespace, name)
    require(actor, "write", repository)
    # How much of what comes is here already nobody knows yet; that a version comes is certain.
    require_room(repository.namespace, versions=1)
    return repository


def register_version(
    actor: Actor,
    repository: Repository,
    *,
    files: Mapping[str, Stored],
    texts: Mapping[str, str],
    address: str,
    idempotency_key: str | None,
) -> Answer:
    """Register a version from the files and texts of a form."""
    digests = {path: stored.sha256 for path, stored in files.items()}
    content = orjson.dumps([digests, texts], option=orjson.OPT_SORT_KEYS)
    claim = Claim.make(idempotency_key, actor, address, content)
    answer: HttpResponseBase
    if claim is None:
        answer = _create(actor, repository, files, texts)
    else:
        answer = answer_once(
            claim, lambda: _create(actor, repository, files, texts), keep_body=True
        )
    assert isinstance(answer, HttpResponse)
    if isinstance(answer, Response):
        answer.content = JSONRenderer().render(answer.data)
    headers = [(name.lower(), value) for name, value in answer.items()]
    return Answer(
        answer.status_code, [one for one in headers if one[0] != "content-type"], answer.content
    )


def _create(
    actor: Actor, repository: Repository, files: Mapping[str, Stored], texts: Mapping[str, str]
) -> Response:
    fields = {
        name: parse_json(text.encode()) if name in _JSON_FIELDS else text
        for name, text in texts.items()
    }
    new = read_body(schemas.NewVersion, fields)
    version = versions.create_version(
        actor=actor,
        repository=repository,
        files={path: record_blob(stored) for path, stored in files.items()},
        parents=[
            versions.ParentSpec(
                version=named_version(actor, parent.kind, parent.version), role=parent.role
            )
            for parent in new.parents
        ],
        **new.model_dump(include={"message", "variant", "source", "tags"}),
    )
    row = wire.version_row(version)
    address = reverse(
        f"api:{repository.kind}-version", args=[row["namespace"], row["name"], version.number]
    )
    response = created(wire.one_version(row), address)
    response["ETag"] = wire.version_etag(row)
    return response
