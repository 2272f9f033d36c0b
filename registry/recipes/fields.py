"""What all recipes are made of: references to versions, names, and a model that is closed."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from registry.errors import Invalid

_NAMESPACE = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_SELECTOR = r"[1-9][0-9]{0,8}|[A-Za-z_][A-Za-z0-9_-]{0,63}"
REPOSITORY_PATTERN = rf"^{_NAMESPACE}/{_NAME}$"
REFERENCE_PATTERN = rf"^{_NAMESPACE}/{_NAME}(@({_SELECTOR}))?$"
VARIANT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,39}$"
COLUMN_PATTERN = r"^[^\x00-\x1f\x7f]{1,100}$"

OTHER = "other_"
"""What the roles of versions begin with that are merged into the model: other_1, other_2, ..."""

BASE = "base"
"""The role of the version that an adapter is taken from."""

Produces = Literal["new_variant", "new_variants", "model", "dataset", "evaluations", "export"]
Queue = Literal["cpu", "gpu"]


class Reference(NamedTuple):
    """A version as a recipe names it."""

    namespace: str
    name: str
    selector: str

    @property
    def version(self) -> str:
        """The version in the registry's words: `3`, `@champion` or `latest`."""
        if not self.selector:
            return "latest"
        if self.selector == "latest" or self.selector.isdecimal():
            return self.selector
        return f"@{self.selector}"

    def __str__(self) -> str:
        at = f"@{self.selector}" if self.selector else ""
        return f"{self.namespace}/{self.name}{at}"


def parse_reference(text: str) -> Reference:
    """Split `ns/name`, `ns/name@3` or `ns/name@champion`."""
    if not re.fullmatch(REFERENCE_PATTERN.strip("^$"), text):
        raise Invalid(
            "{text!r} names no version; write namespace/name, namespace/name@3 "
            "or namespace/name@alias.",
            code="bad_reference",
            text=text[:100],
        )
    repository, _, selector = text.partition("@")
    namespace, name = repository.split("/")
    return Reference(namespace, name, selector)


def kind_of(role: str) -> Literal["model", "dataset"]:
    """Tell what an input of a job is by its role: all but the dataset are models."""
    return "dataset" if role == "dataset" else "model"


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
        hide_input_in_errors=True,
    )


def reference_field(title: str, description: str, points_at: str) -> Any:
    return Field(
        title=title,
        description=description,
        max_length=260,
        pattern=REFERENCE_PATTERN,
        json_schema_extra={"reference": points_at},
    )


def output_field(title: str, description: str, kind: str) -> Any:
    return Field(
        title=title,
        description=description,
        max_length=193,
        pattern=REPOSITORY_PATTERN,
        json_schema_extra={"output": kind},
    )


ADVANCED: dict[str, Any] = {"advanced": True}

ModelReference = Annotated[
    str,
    reference_field(
        "Model version",
        "namespace/name, namespace/name@3 or namespace/name@alias. Without a version, the latest.",
        "model",
    ),
]
DatasetReference = Annotated[
    str,
    reference_field(
        "Dataset version",
        "namespace/name, namespace/name@3 or namespace/name@alias. Without a version, the latest.",
        "dataset",
    ),
]
Column = Annotated[str, Field(min_length=1, max_length=100, pattern=COLUMN_PATTERN)]
TextColumn = Annotated[Column, Field(title="Text column", json_schema_extra=ADVANCED)]
ImageColumn = Annotated[Column, Field(title="Image column", json_schema_extra=ADVANCED)]
LabelColumn = Annotated[Column, Field(title="Label column", json_schema_extra=ADVANCED)]
PerChannel = Annotated[
    bool,
    Field(
        title="One scale per channel",
        description="Keeps more accuracy than one scale for a whole weight matrix.",
    ),
]
ReduceRange = Annotated[
    bool,
    Field(
        title="Use 7 bits of the range",
        description="Avoids saturation on CPUs without VNNI instructions; safe everywhere.",
        json_schema_extra=ADVANCED,
    ),
]
Split = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$", max_length=40)]


class BaseRecipe(Frozen):
    """What every recipe has and can tell about itself."""

    produces: ClassVar[Produces]

    schema_version: Literal[1] = Field(default=1, alias="schema", title="Schema")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto",
        title="Device",
        description="auto takes a GPU where a worker offers one and the job gains by it.",
        json_schema_extra=ADVANCED,
    )

    def references(self) -> dict[str, str]:
        """Tell which versions the job reads, by the role they play in it."""
        roles = {role: getattr(self, role, None) for role in ("model", "dataset")}
        return {role: ref for role, ref in roles.items() if ref is not None}

    def resolved(self, references: Mapping[str, str]) -> Self:
        """Return the same recipe with its references replaced by exact ones."""
        if unknown := references.keys() - self.references().keys():
            raise Invalid("The recipe refers to no {unknown}.", unknown=", ".join(sorted(unknown)))
        return type(self).model_validate({**self.to_json(), **references})

    def field_of(self, role: str) -> str:
        """Name the field of the recipe that a role comes from."""
        return role

    @property
    def parts_count(self) -> int:
        """Into how many parts the work is cut, each a job of its own; one is no part."""
        return 1

    def queue(self, *, gpu_offered: bool) -> Queue:
        """Choose the queue by what the recipe needs and what workers offer."""
        if self.device == "auto":
            return "gpu" if gpu_offered and self._gains_by_gpu() else "cpu"
        return self.device

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    def _gains_by_gpu(self) -> bool:
        return True
