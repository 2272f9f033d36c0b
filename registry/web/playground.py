"""What the playground of a model shows: the versions to choose from, and what one of them takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from registry.models import Actor, Artifact, Deployment, Endpoint, Repository, Version, Visibility
from registry.services.blobs import RUNNABLE
from registry.services.deployments import deployments_of, list_endpoints
from registry.services.succession import answering_of
from registry.web.serving import (
    EMBEDDING_TASKS,
    Address,
    example_of,
    example_of_text,
    preprocessing_of,
)

MOST_AT_ONCE = 6
_LISTED = 24
_MOST_COLUMNS = 40
_MOST_PIXELS = 1024
_TOKENIZER, _LENGTH = "tokenizer.json", "sentence_bert_config.json"
_PIECES = frozenset({"input_ids", "attention_mask", "token_type_ids"})
# What a port says it takes, as the open inference protocol names it.
_DATATYPES: Final[Mapping[str, str]] = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A version that may be called, and whether it is at first."""

    version: Version
    chosen: bool
    deployments: Sequence[Deployment]
    aliases: Sequence[str]


@dataclass(kw_only=True)
class Playground:
    """The endpoint through which versions of a model are called, and what the first one takes."""

    repository: Repository
    endpoints: Sequence[Endpoint]
    endpoint: Endpoint | None = None
    choices: Sequence[Choice] = ()
    takes: Mapping[str, Any] = field(default_factory=dict)
    # What is at first chosen, and what answers most callers: others are held against it.
    first: Version | None = None
    answers: Version | None = None

    def described(self, host: str) -> dict[str, Any]:
        """Say to the script of the page all that it has to know."""
        assert self.endpoint is not None
        address = Address.seen_from(host)
        return {
            "infer": address.rest,
            "grpc": address.grpc,
            "grpc_is_secure": address.grpc_is_secure,
            "registry": host.rstrip("/"),
            "endpoint": self.endpoint.full_name,
            "model": self.repository.full_name,
            "private": self.repository.visibility != Visibility.PUBLIC,
            "most": MOST_AT_ONCE,
            "answers": str(self.answers.number) if self.answers else "",
            "takes": self.takes,
            "words": words(),
        }


def set_up(
    actor: Actor, repository: Repository, endpoint: str, numbers: Sequence[int]
) -> Playground:
    """Read what may be called, with the versions of those numbers chosen, or what answers now."""
    endpoints = list_endpoints(actor, repository=repository, deployments__isnull=False)
    found = Playground(repository=repository, endpoints=endpoints)
    if not endpoints:
        return found
    found.endpoint = next(
        (one for one in endpoints if one.name.lower() == endpoint.lower()),
        next((one for one in endpoints if one.name == repository.name), endpoints[0]),
    )
    rows = deployments_of(found.endpoint)
    versions = _callable(repository, rows, numbers)
    found.answers = answering_of(rows)
    wanted = set(numbers) or ({found.answers.number} if found.answers else set())
    chosen = [one.number for one in versions if one.number in wanted][:MOST_AT_ONCE]
    if not chosen and versions:
        chosen = [versions[0].number]
    aliases = list(repository.aliases.order_by("name").values_list("version_id", "name"))
    found.choices = [
        Choice(
            version=one,
            chosen=one.number in chosen,
            deployments=[row for row in rows if row.serves and row.serves.pk == one.pk],
            aliases=[name for version_id, name in aliases if version_id == one.pk],
        )
        for one in versions
    ]
    found.first = next((one for one in versions if one.number in chosen), None)
    found.takes = taken_by(found.first) if found.first else {}
    return found


def _callable(
    repository: Repository, rows: Sequence[Deployment], numbers: Sequence[int]
) -> list[Version]:
    """List the newest versions that can run, and older ones that are deployed or asked for."""
    usable = Version.objects.usable().filter(repository=repository)
    newest = list(usable.order_by("-number")[:_LISTED])
    deployed = [row.serves.number for row in rows if row.serves]
    also = usable.filter(number__in=[*deployed, *numbers[:MOST_AT_ONCE]])
    found = {one.number: one for one in (*newest, *also)}
    for one in found.values():
        one.repository = repository
    runnable = [number for number, one in found.items() if RUNNABLE & set(one.formats)]
    return [found[number] for number in sorted(runnable, reverse=True)]


# --- What a version takes ------------------------------------------------------------------------


def taken_by(version: Version) -> dict[str, Any]:
    """Say how an input for a version is made: a text, a drawn digit, an image, a table, JSON."""
    said = preprocessing_of(version)
    ports = [_port(one) for one in version.signature.get("inputs", [])]
    names = {one["name"] for one in ports}
    example = example_of(version)
    taken: dict[str, Any] = {"ports": ports, "example": example, "kind": "json"}
    if said.get("kind") == "image":
        taken |= {"kind": "digit", "column": next(iter(example))}
    elif said.get("kind") == "words":
        length = said.get("max_length")
        taken |= {
            "kind": "text",
            "column": next(iter(example)),
            "tokens": "words",
            "max_length": length if isinstance(length, int) else 256,
        }
    elif names <= _PIECES and _TOKENIZER in (paths := _kept(version, _TOKENIZER, _LENGTH)):
        taken |= {
            "kind": "text",
            "column": next(iter(example_of_text(said))),
            "example": example_of_text(said),
            "tokens": "pieces",
            "max_length": min(_number(version, "max_position_embeddings", 256), 512),
            "length_file": _LENGTH in paths,
            "pad": _number(version, "pad_token_id", 0),
            "encoder": version.repository.task in EMBEDDING_TASKS,
        }
    elif len(ports) == 1 and (picture := _picture(ports[0])):
        taken |= {"kind": "picture", "column": ports[0]["name"], **picture}
    elif columns := _columns(ports):
        taken |= {"kind": "table", "columns": columns}
    return taken


def _kept(version: Version, *paths: str) -> set[str]:
    """Say which of some files a version has."""
    found = Artifact.objects.filter(revision=version.revision_id, path__in=paths)
    return set(found.values_list("path", flat=True))


def _number(version: Version, name: str, otherwise: int) -> int:
    value = version.config.get(name)
    return value if type(value) is int and 0 <= value < 1 << 31 else otherwise


def _port(said: Mapping[str, Any]) -> dict[str, Any]:
    shape = said.get("shape") or []
    return {
        "name": said["name"],
        "dtype": said.get("dtype"),
        "datatype": _DATATYPES.get(str(said.get("dtype")), ""),
        "shape": [size if isinstance(size, int) and size > 0 else -1 for size in shape],
    }


def _picture(port: Mapping[str, Any]) -> dict[str, Any] | None:
    """Tell an image of one or three channels by its shape, channels first or last."""
    shape = port["shape"]
    if len(shape) != 4 or port["datatype"] not in {"UINT8", "FP32", "FP16", "FP64"}:
        return None
    for layout, channels, size in (
        ("first", shape[1], shape[2:]),
        ("last", shape[3], shape[1:3]),
    ):
        if channels in {1, 3} and all(0 < side <= _MOST_PIXELS for side in size):
            height, width = size
            return {
                "layout": layout,
                "channels": channels,
                "height": height,
                "width": width,
                "whole": port["datatype"] == "UINT8",
            }
    return None


def _columns(ports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Name the columns of a table where each input is a number, or a short row of them."""
    columns = []
    for port in ports:
        inner = port["shape"][1:]
        if not port["shape"] or len(inner) > 1 or any(size < 1 for size in inner):
            return []
        if port["datatype"] in {"", "BOOL"}:
            return []
        for at in range(math.prod(inner)):
            name = port["name"] if not inner else f"{port['name']} {at + 1}"
            columns.append(
                {
                    "name": name,
                    "input": port["name"],
                    "at": at if inner else None,
                    "kind": "text" if port["datatype"] == "BYTES" else "number",
                    "whole": "INT" in port["datatype"],
                }
            )
    return columns if len(columns) <= _MOST_COLUMNS else []


def origin_of(host: str) -> str:
    """Give the origin that scripts of the page may call: that of the serving process."""
    parts = urlsplit(Address.seen_from(host).rest)
    return f"{parts.scheme}://{parts.netloc}"


def can_reach(host: str) -> bool:
    """Say whether a browser on this page calls the serving process: not from https to http."""
    return bool(settings.INFER_URL) or urlsplit(host).scheme == "http"


def words() -> dict[str, str]:
    """Say the words that the script puts on the page."""
    return {
        "running": _("Running…"),
        "asleep": _("Not ready: {detail} Trying again in {seconds} s."),
        "stopped": _("Stopped."),
        "lost": _("The serving process cannot be reached at {address} from this browser."),
        "noKey": _("No key for the serving process: {detail}"),
        "badJson": _("This is no JSON: {detail}"),
        "badRows": _("Send an object of named fields, or a list of them."),
        "noVersion": _("Choose a version first."),
        "tooMany": _("At most {most} versions at once."),
        "noImage": _("This file is no image that the browser can read."),
        "noInput": _("Give it something first."),
        "version": _("Version"),
        "rows": _("{count} rows"),
        "row": _("Row {number}"),
        "first": _("The others are held against this one."),
        "sameLabel": _("same label as v{other}"),
        "otherLabel": _("another label than v{other}"),
        "sameLabels": _("{same} of {count} rows with the label of v{other}"),
        "closest": _("largest difference {difference}"),
        "cosine": _("cosine {cosine}"),
        "incomparable": _("its answer has another shape than that of v{other}"),
        "agrees": pgettext("two answers", "agrees"),
        "differs": pgettext("two answers", "differs"),
        "failed": pgettext("a call", "Refused"),
        "answered": pgettext("a call", "Answered"),
        "waiting": pgettext("a call", "Waiting"),
        "roundTrip": _("Round trip"),
        "queue": _("In the queue"),
        "compute": _("Computed in"),
        "batch": _("Rows in the batch"),
        "runtime": _("Runtime"),
        "digest": _("Weights"),
        "values": _("{count} values, length {norm}"),
        "more": _("and {count} more"),
        "again": _("Run again on the chosen versions"),
        "digitDrawn": _("a drawn digit"),
        "picture": _("an image"),
        "fileNeeded": _("The input is large: put input.json beside the code."),
        "needsToken": _("It is not public: MODELYARD_TOKEN holds a token of yours."),
        "removeRow": _("Remove row {number}"),
        "copied": _("Copied"),
    }
