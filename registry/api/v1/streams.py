"""How the document describes the addresses that `registry.stream` answers before Django."""

from collections.abc import Iterator, Mapping
from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_BYTES: dict[str, Any] = {"type": "string", "format": "binary"}
_REFUSED: dict[str, Any] = {
    "default": {
        "description": "Refused; the problem says why and what to do.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
}


def _parameter(name: str, where: str, description: str = "", *, required: bool = False) -> Any:
    return {
        "in": where,
        "name": name,
        "required": required or where == "path",
        "schema": _TEXT,
        "description": description,
    }


def _operation(
    name: str,
    summary: str,
    tag: str,
    parameters: list[Any],
    responses: Mapping[str, Any],
    *,
    body: Mapping[str, Any] | None = None,
    public: bool = False,
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "security": [{"token": []}, {}] if public else [{"token": []}],
        "parameters": parameters,
        "responses": {**responses, **_REFUSED},
    }
    if body is not None:
        document["requestBody"] = {"content": body}
    return document


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"schema": _TEXT} for name in names}


def _download(kind: str, thing: str = "file") -> dict[str, Any]:
    file = {"application/octet-stream": {"schema": _BYTES}}
    names = ("ETag", "Accept-Ranges", "Content-Disposition", "Deprecation", "X-Modelyard-Notice")
    return _operation(
        f"download_{kind}_{thing}",
        f"Download one {thing}; a Range gives a part of it.",
        f"{kind}s",
        [
            _parameter("namespace", "path"),
            _parameter("name", "path"),
            _parameter("version", "path", "A number, an `@alias`, or `latest`."),
            _parameter("path", "path", "The file's path; its slashes stay as they are."),
            _parameter("Range", "header", "Such as `bytes=0-1023`."),
            _parameter("If-None-Match", "header"),
        ],
        {
            "200": {"description": "The file.", "content": file, "headers": _headers(*names)},
            "206": {
                "description": "The part.",
                "content": file,
                "headers": _headers(*names, "Content-Range"),
            },
            "304": {"description": "Not changed since that ETag."},
        },
        public=True,
    )


def _export() -> dict[str, Any]:
    tar = {"application/x-tar": {"schema": _BYTES}, "application/yaml": {"schema": _TEXT}}
    return _operation(
        "export_model",
        "Take a version away as another server wants it: a tar, or a resource of Kubernetes.",
        "models",
        [
            _parameter("namespace", "path"),
            _parameter("name", "path"),
            _parameter("version", "path", "A number, an `@alias`, or `latest`."),
            _parameter("file", "path", "One that `exports` lists, such as `triton.tar`."),
        ],
        {
            "200": {
                "description": "The package.",
                "content": tar,
                "headers": _headers("Content-Length", "Content-Disposition"),
            }
        },
        public=True,
    )


_TUS = _parameter("Tus-Resumable", "header", "1.0.0", required=True)
_UPLOAD = [_parameter("upload", "path"), _TUS]
_UPLOADS: dict[str, Any] = {
    "/api/v1/uploads": {
        "post": _operation(
            "begin_upload",
            "Begin a resumable upload (tus 1.0.0).",
            "uploads",
            [
                _TUS,
                _parameter(
                    "Upload-Length", "header", "Bytes of the whole file; not for a final upload."
                ),
                _parameter(
                    "Upload-Metadata",
                    "header",
                    "`filename`, `sha256` and the `namespace` that the file is for, tus's way; "
                    "what cannot fit there is refused at once. A part may say the `total` of its "
                    "file.",
                ),
                _parameter(
                    "Upload-Concat",
                    "header",
                    "`partial` for a part that is to be joined with others; `final;` and the "
                    "addresses of finished parts, with spaces between, to join them.",
                ),
            ],
            {
                "201": {
                    "description": "Begun; send the bytes to the Location.",
                    "headers": _headers("Location", "Upload-Expires", "Upload-Offset"),
                }
            },
        ),
    },
    "/api/v1/uploads/{upload}": {
        "head": _operation(
            "find_upload",
            "See how far an upload is.",
            "uploads",
            _UPLOAD,
            {
                "200": {
                    "description": "The offset to go on from.",
                    "headers": _headers(
                        "Upload-Offset", "Upload-Length", "Upload-Expires", "Upload-Concat"
                    ),
                }
            },
        ),
        "patch": _operation(
            "continue_upload",
            "Send the next bytes; the last ones finish it.",
            "uploads",
            [
                *_UPLOAD,
                _parameter("Upload-Offset", "header", required=True),
                _parameter("Upload-Checksum", "header", "`sha256 ` and the digest in base64."),
            ],
            {"204": {"description": "Kept.", "headers": _headers("Upload-Offset")}},
            body={"application/offset+octet-stream": {"schema": _BYTES}},
        ),
        "delete": _operation(
            "cancel_upload",
            "Give an upload up.",
            "uploads",
            _UPLOAD,
            {"204": {"description": "Gone."}},
        ),
    },
}


def _paths() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind in ("model", "dataset"):
        yield (
            f"/api/v1/{kind}s/{{namespace}}/{{name}}/versions/{{version}}/files/{{path}}",
            {"get": _download(kind)},
        )
        yield (
            f"/api/v1/{kind}s/{{namespace}}/{{name}}/versions/{{version}}/derivatives/{{path}}",
            {"get": _download(kind, "derivative")},
        )
    yield (
        "/api/v1/models/{namespace}/{name}/versions/{version}/exports/{file}",
        {"get": _export()},
    )
    yield from _UPLOADS.items()
    yield (
        "/api/v1/jobs/{job}/events",
        {
            "get": _operation(
                "follow_job",
                "Follow a job live: its state first, then each event as it comes.",
                "jobs",
                [_parameter("job", "path"), _parameter("Last-Event-ID", "header")],
                {
                    "200": {
                        "description": "Server-sent events: state, progress, metric, candidate, "
                        "log.",
                        "content": {"text/event-stream": {"schema": _TEXT}},
                    }
                },
            )
        },
    )


STREAMED: Mapping[str, Mapping[str, Any]] = dict(_paths())
MULTIPART: Mapping[str, Any] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "description": "Each part is a file, named by its path; `message`, `variant` and "
            "`tags` (JSON) may come as plain fields.",
            "additionalProperties": _BYTES,
        }
    }
}
