"""Profiling: where a version's bytes and time go, and which layers bear being made smaller."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import (
    ADVANCED,
    BaseRecipe,
    DatasetReference,
    Frozen,
    ImageColumn,
    LabelColumn,
    ModelReference,
    Produces,
    Split,
    TextColumn,
)


class Profile(Frozen):
    """Measure each layer's weights, multiplications and time, and what the model loses by it."""

    model_config = ConfigDict(title="Profile")

    method: Literal["profile"] = Field(default="profile", title="Method")
    batch_size: int = Field(
        default=8,
        ge=1,
        le=256,
        title="Rows at once",
        description="The batch that the time of each layer is measured with.",
    )
    repetitions: int = Field(
        default=30,
        ge=1,
        le=1000,
        title="Repetitions",
        description="Each layer's time is the median of as many runs.",
        json_schema_extra=ADVANCED,
    )
    sensitivity: bool = Field(
        default=True,
        title="Try each layer smaller",
        description="With a dataset: what int8 and 50 % pruning of one layer alone cost.",
    )
    max_rows: int = Field(
        default=256,
        ge=8,
        le=10_000,
        title="Most rows to try on",
        description="Held out of the split below; more rows tell smaller losses apart.",
    )
    max_layers: int = Field(
        default=48,
        ge=1,
        le=500,
        title="Most layers to try",
        description="Those with the most weights.",
        json_schema_extra=ADVANCED,
    )
    split: Split = Field(
        default="train",
        title="Split to take rows from",
        description="Not the test split: what is learned here leads to choices.",
        json_schema_extra=ADVANCED,
    )
    text_column: TextColumn = "text"
    image_column: ImageColumn = "image"
    label_column: LabelColumn = "label"


class ProfileRecipe(BaseRecipe):
    """See layer by layer where bytes and time go, and which layers bear being made smaller."""

    model_config = ConfigDict(title="Profile")
    produces: ClassVar[Produces] = "evaluations"

    kind: Literal["profile"] = Field(title="Kind")
    model: ModelReference
    dataset: DatasetReference | None = Field(
        default=None,
        title="Dataset to try layers on",
        description="Labelled rows for a classifier, texts for an encoder.",
        json_schema_extra={"reference": "dataset"},
    )
    steps: tuple[Profile, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")

    def _gains_by_gpu(self) -> bool:
        return False
