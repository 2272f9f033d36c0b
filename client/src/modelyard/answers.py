"""The shapes of the server's answers, and the check that an answer has the shape it should have.

They are the documents of the REST API (`docs/api/openapi.json`) as they come; fields that a newer
server adds are left in place.
"""

from types import UnionType
from typing import Any, TypedDict, TypeVar, Union, cast, get_args, get_origin, get_type_hints
from typing import is_typeddict as _is_shape

from modelyard.errors import BadAnswer

Shape = TypeVar("Shape")


class Token(TypedDict):
    """A token, without its secret."""

    name: str
    prefix: str
    scopes: list[str]
    expires_at: str | None


class Place(TypedDict):
    """A namespace in which somebody has a role."""

    slug: str
    role: str


class Whoami(TypedDict):
    """Who the token belongs to and what it reaches."""

    username: str
    is_admin: bool
    scopes: list[str]
    namespaces: list[Place]
    token: Token | None


class Repository(TypedDict):
    """A model or a dataset."""

    kind: str
    namespace: str
    name: str
    visibility: str
    summary: str
    task: str
    library: str
    license: str
    base_model: str
    labels: list[str]
    tags: dict[str, str]
    formats: list[str]
    latest_version: int | None
    parameters_count: int | None
    size_bytes: int | None
    downloads: int
    created_at: str
    updated_at: str


class File(TypedDict):
    """One file of a version."""

    path: str
    size_bytes: int
    sha256: str


class Derivative(TypedDict):
    """A safe file that the server made of one that can execute code."""

    path: str
    source_path: str
    size_bytes: int
    sha256: str


class Version(TypedDict):
    """A numbered snapshot of files."""

    kind: str
    namespace: str
    name: str
    number: int
    variant: str
    state: str
    state_reason: str
    source: str
    message: str
    formats: list[str]
    files: list[File]
    files_count: int
    parameters_count: int | None
    size_bytes: int
    aliases: list[str]
    tags: dict[str, str]
    created_by: str | None
    created_at: str
    updated_at: str


class Alias(TypedDict):
    """A name that moves from version to version."""

    alias: str
    version: int
    updated_at: str


class Deployment(TypedDict):
    """A version that serves at an endpoint; `version` is null where its alias points at nothing."""

    id: int
    version: int | None
    alias: str | None
    role: str
    weight: int
    widens: bool
    shadow: dict[str, Any] | None
    options: dict[str, Any]
    created_by: str | None
    created_at: str


class Endpoint(TypedDict):
    """An address at which versions of one model answer."""

    namespace: str
    name: str
    model: str
    sticky: bool
    deployments: list[Deployment]
    created_by: str | None
    created_at: str
    updated_at: str


class JobError(TypedDict):
    """Why a job failed."""

    code: str
    detail: str


class Result(TypedDict):
    """The version that a job made."""

    kind: str
    namespace: str
    name: str
    number: int


class JobProgress(TypedDict):
    """How far a job is."""

    done: float
    total: float | None
    unit: str
    step: str


class Job(TypedDict):
    """A background job."""

    id: str
    kind: str
    namespace: str
    state: str
    recipe: dict[str, Any]
    progress: JobProgress
    result: Result | None
    error: JobError | None
    attempts: int
    max_attempts: int
    worker: str
    cancel_requested: bool
    created_by: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class Event(TypedDict):
    """Something that happened to a job while it was followed."""

    id: int | None
    type: str
    data: dict[str, Any]
    at: str


def read_as(shape: type[Shape], value: object) -> Shape:
    """Give `value` back as a `shape`.

    Raises:
        BadAnswer: a field is missing or of another type.

    """
    if wrong := _wrong(shape, value, shape.__name__):
        raise BadAnswer(
            f"The server's answer does not fit its documents: {wrong}. "
            "Is it a Modelyard server, of a version that this client knows?"
        )
    return cast("Shape", value)


def _wrong(shape: Any, value: object, where: str) -> str:
    """Say what is wrong with a value; nothing when it fits."""
    origin = get_origin(shape)
    if shape is Any:
        return ""
    if _is_shape(shape):
        return _wrong_fields(shape, value, where)
    if origin in {Union, UnionType}:
        reasons = [_wrong(choice, value, where) for choice in get_args(shape)]
        return "" if "" in reasons else reasons[0]
    if origin is list:
        return _wrong_items(get_args(shape)[0], value, where)
    if origin is dict:
        return _wrong_values(get_args(shape)[1], value, where)
    expected: Any = (int, float) if shape is float else shape
    # JSON's true is no number, though Python's is.
    fits = isinstance(value, expected) and (shape is bool or not isinstance(value, bool))
    return "" if fits else f"{where} is no {shape.__name__}"


def _wrong_fields(shape: Any, value: object, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is no object"
    for name, inner in get_type_hints(shape).items():
        if name not in value:
            return f"{where}.{name} is missing"
        if wrong := _wrong(inner, value[name], f"{where}.{name}"):
            return wrong
    return ""


def _wrong_items(inner: Any, value: object, where: str) -> str:
    if not isinstance(value, list):
        return f"{where} is no list"
    found = (_wrong(inner, item, f"{where}.{place}") for place, item in enumerate(value))
    return next(filter(None, found), "")


def _wrong_values(inner: Any, value: object, where: str) -> str:
    if not isinstance(value, dict):
        return f"{where} is no object"
    found = (_wrong(inner, item, f"{where}.{key[:80]}") for key, item in value.items())
    return next(filter(None, found), "")
