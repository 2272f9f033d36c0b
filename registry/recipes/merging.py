"""Merging fine-tunes of one model into one, weight by weight."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from registry.errors import Unfit
from registry.recipes.fields import ADVANCED, Frozen, ModelReference


class Merge(Frozen):
    """Merge the weights of versions with the same architecture, labels and vocabulary."""

    model_config = ConfigDict(title="Merge fine-tunes")
    default_variant: ClassVar[str] = "merged"

    method: Literal["merge"] = Field(title="Method")
    others: tuple[ModelReference, ...] = Field(
        min_length=1,
        max_length=8,
        strict=False,
        title="Versions to merge",
        description="One on each line: namespace/name, namespace/name@3 or namespace/name@alias.",
        json_schema_extra={"reference": "model"},
    )
    algorithm: Literal["average", "slerp", "task_arithmetic", "ties"] = Field(
        default="average",
        title="How they are merged",
        description="A mean with the model itself, along the arc between two, or what each has "
        "learned since the model, added up or sifted (TIES).",
    )
    weights: tuple[Annotated[float, Field(ge=-4, le=4)], ...] = Field(
        default=(),
        max_length=9,
        strict=False,
        title="Weights",
        description="Of each version; in a mean and on an arc the model's own comes first. "
        "Empty: equal shares.",
        json_schema_extra=ADVANCED,
    )
    density: float = Field(
        default=0.2,
        gt=0,
        le=1,
        title="Share of changes to keep",
        description="For TIES: the largest of what each version has learned.",
    )
    scale: float = Field(
        default=1.0,
        gt=0,
        le=4,
        title="Scale of what was learned",
        description="For task arithmetic and TIES: how far to go from the model.",
        json_schema_extra=ADVANCED,
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.algorithm == "slerp" and len(self.others) != 1:
            raise Unfit("An arc lies between two: name one version to merge with the model.")
        own = self.algorithm in {"average", "slerp"}
        count = len(self.others) + own
        if self.weights and len(self.weights) != count:
            raise Unfit("Give {count} weights, one for each version, or none.", count=count)
        if own and self.weights and (min(self.weights) < 0 or sum(self.weights) <= 0):
            raise Unfit("The weights of a mean are not negative, and not all of them are 0.")
        return self
