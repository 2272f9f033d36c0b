"""The OpenAPI document: each method says what it takes and answers, in the types it uses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ComponentRegistry, ResolvedComponent
from pydantic import BaseModel

from registry.api.problem import MEDIA_TYPE as PROBLEM
from registry.api.v1 import schemas
from registry.api.v1.streams import MULTIPART, STREAMED

JSON = "application/json"
TEXT = "text/plain"
_REFS = "#/components/schemas/{model}"
_METHOD = TypeVar("_METHOD", bound=Callable[..., Any])

_PATH_PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "namespace": {"description": "The first half of the name: a person or an organisation."},
    "name": {"description": "The second half of the name."},
    "version": {"description": "A version: its number, an `@alias`, or `latest`."},
    "other": {"description": "The version to compare with: a number, an `@alias`, or `latest`."},
    "job": {"schema": {"type": "string", "format": "uuid"}},
    "token": {"schema": {"type": "integer", "minimum": 1}},
    "direct": {"schema": {"type": "string", "format": "uuid"}},
    "signature": {"schema": {"type": "integer", "minimum": 1}},
    "webhook": {"schema": {"type": "integer", "minimum": 1}},
    "deployment": {"schema": {"type": "integer", "minimum": 1}},
    "delivery": {"schema": {"type": "integer", "minimum": 1}},
    "kind": {"description": "A kind of recipe, such as `compress`."},
}
_STATUS = {
    200: "Done.",
    201: "Made.",
    202: "Accepted; follow the Location.",
    204: "Done; there is nothing to say.",
    304: "Not changed since the ETag in `If-None-Match`.",
}


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What one method of one address does; `{kind}` in its words is model or dataset."""

    id: str
    summary: str
    answers: Mapping[int, type[BaseModel] | str | None]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    open: bool = False


_OPERATIONS: dict[Callable[..., Any], Operation] = {}


def operation(
    name: str,
    summary: str,
    answers: Mapping[int, type[BaseModel] | str | None],
    *,
    body: type[BaseModel] | None = None,
    query: type[BaseModel] | None = None,
    headers: tuple[str, ...] = (),
    gives: tuple[str, ...] = (),
    public: bool = False,
) -> Callable[[_METHOD], _METHOD]:
    """Describe a method; `headers` are those it reads, `gives` those it answers with.

    `public` methods answer without a token, about what is public.
    """
    described = Operation(
        id=name,
        summary=summary,
        answers=answers,
        body=body,
        query=query,
        headers=headers,
        gives=gives,
        open=public,
    )

    def attach(method: _METHOD) -> _METHOD:
        _OPERATIONS[method] = described
        return method

    return attach


def takes_body(method: Callable[..., Any]) -> bool:
    """Say whether a method reads the body that comes with a request."""
    described = _OPERATIONS.get(method)
    return described is None or described.body is not None


class Schema(AutoSchema):
    """Write a method's part of the document from its `operation`."""

    def get_operation(
        self,
        path: str,
        path_regex: str,  # noqa: ARG002 - the generator's signature
        path_prefix: str,  # noqa: ARG002 - the generator's signature
        method: str,
        registry: ComponentRegistry,
    ) -> dict[str, Any] | None:
        self.registry = registry
        handler = getattr(type(self.view), method.lower())
        said = _OPERATIONS[handler]
        kind = getattr(self.view, "kind", "")
        document: dict[str, Any] = {
            "operationId": said.id.format(kind=kind),
            "summary": said.summary.format(kind=kind),
            "tags": [path.split("/")[3]],
            "security": [{"token": []}, {}] if said.open else [{"token": []}],
            "parameters": [*_in_path(path), *self._in_query(said), *map(_header, said.headers)],
            "responses": {
                str(status): self._answer(status, shape, said)
                for status, shape in said.answers.items()
            },
        }
        document["responses"]["default"] = {
            "description": "Refused; the problem says why and what to do.",
            "content": {PROBLEM: {"schema": self._ref(schemas.Problem, "serialization")}},
        }
        if said.body is not None:
            document["requestBody"] = {
                "required": bool(said.body.model_json_schema().get("required")),
                "content": {JSON: {"schema": self._ref(said.body, "validation")}},
            }
        return document

    def _answer(
        self, status: int, shape: type[BaseModel] | str | None, said: Operation
    ) -> dict[str, Any]:
        answer: dict[str, Any] = {"description": _STATUS[status]}
        if isinstance(shape, str):
            answer["content"] = {shape: {"schema": {"type": "string"}}}
        elif shape is not None:
            answer["content"] = {JSON: {"schema": self._ref(shape, "serialization")}}
        given = {name: {"schema": {"type": "string"}} for name in said.gives}
        if status in {201, 202} and shape is not None:
            given["Location"] = {"schema": {"type": "string", "format": "uri-reference"}}
        if given and status != 204:
            answer["headers"] = given
        return answer

    def _in_query(self, said: Operation) -> list[dict[str, Any]]:
        if said.query is None:
            return []
        schema = said.query.model_json_schema(ref_template=_REFS)
        self._register(schema.pop("$defs", {}))
        return [
            {
                "in": "query",
                "name": name,
                "required": name in schema.get("required", []),
                "schema": _of_text(part),
                **({"description": part["description"]} if "description" in part else {}),
            }
            for name, part in schema["properties"].items()
        ]

    def _ref(self, shape: type[BaseModel], mode: Any) -> dict[str, str]:
        schema = shape.model_json_schema(mode=mode, ref_template=_REFS)
        self._register({**schema.pop("$defs", {}), shape.__name__: schema})
        return {"$ref": _REFS.format(model=shape.__name__)}

    def _register(self, components: Mapping[str, Any]) -> None:
        for name, schema in components.items():
            self.registry.register_on_missing(
                ResolvedComponent(
                    name=name, type=ResolvedComponent.SCHEMA, object=name, schema=schema
                )
            )


def _of_text(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what a query string cannot say: null, and the default that stands for absence."""
    left_out = {"anyOf", "default", "description", "title"}
    kept = {key: value for key, value in schema.items() if key not in left_out}
    some = [one for one in schema.get("anyOf", []) if one != {"type": "null"}]
    default = {"default": True} if schema.get("default") is True else {}
    return {**(some[0] if some else {}), **kept, **default}


def _in_path(path: str) -> list[dict[str, Any]]:
    names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    return [
        {
            "in": "path",
            "name": name,
            "required": True,
            "schema": {"type": "string"},
            **_PATH_PARAMETERS.get(name, {}),
        }
        for name in names
    ]


_HEADERS: Mapping[str, str] = {
    "Idempotency-Key": "Sending the same request again under this key does it once.",
    "If-Match": "Only when the state still has this ETag; else 412.",
    "If-None-Match": "304 when the state still has this ETag.",
}


def _header(name: str) -> dict[str, Any]:
    return {
        "in": "header",
        "name": name,
        "required": False,
        "schema": {"type": "string"},
        "description": _HEADERS[name],
    }


_SECURITY = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token (`my_…`); HTTP Basic with the token as the password works too.",
    }
}


@cache
def openapi_document() -> dict[str, Any]:
    """Write the whole document, with the addresses that `registry.stream` answers itself."""
    document: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
    document["components"]["securitySchemes"] = _SECURITY
    for path, methods in STREAMED.items():
        document["paths"].setdefault(path, {}).update(methods)
    for kind in ("models", "datasets"):
        versions = document["paths"][f"/api/v1/{kind}/{{namespace}}/{{name}}/versions"]
        versions["post"]["requestBody"]["content"].update(MULTIPART)
    document["paths"] = dict(sorted(document["paths"].items()))
    return document
