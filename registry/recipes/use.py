"""Running a version over a dataset, and measuring it on one."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import (
    ADVANCED,
    BaseRecipe,
    Column,
    DatasetReference,
    Frozen,
    ImageColumn,
    LabelColumn,
    ModelReference,
    Produces,
    Split,
    TextColumn,
    output_field,
)


class Predict(Frozen):
    """Run the model over every row of a split."""

    model_config = ConfigDict(title="Predict")

    method: Literal["predict"] = Field(default="predict", title="Method")
    batch_size: int = Field(default=64, ge=1, le=4096, title="Batch size")
    split: Split | None = Field(
        default="test", title="Split", description="Empty: every split of the dataset."
    )
    max_rows: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        title="Most rows",
        description="Empty: all rows.",
        json_schema_extra=ADVANCED,
    )
    text_column: TextColumn = "text"
    image_column: ImageColumn = "image"
    label_column: Column = Field(
        default="label",
        title="Label column",
        description="Where the dataset has it, it is copied beside each prediction.",
        json_schema_extra=ADVANCED,
    )
    format: Literal["jsonl", "parquet"] = Field(
        default="jsonl", title="File format", json_schema_extra=ADVANCED
    )
    shards: int = Field(
        default=1,
        ge=1,
        le=64,
        title="Parts",
        description="Several workers compute so many parts of the rows side by side.",
        json_schema_extra=ADVANCED,
    )


class Evaluate(Frozen):
    """Measure quality on a split, and size and speed on this machine."""

    model_config = ConfigDict(title="Evaluate")

    method: Literal["evaluate"] = Field(default="evaluate", title="Method")
    batch_size: int = Field(default=64, ge=1, le=4096, title="Batch size")
    split: Split = Field(default="test", title="Split")
    latency: bool = Field(default=True, title="Measure latency")
    text_column: TextColumn = "text"
    image_column: ImageColumn = "image"
    label_column: LabelColumn = "label"


class InferRecipe(BaseRecipe):
    """Run a version over a dataset; the predictions are a new dataset version."""

    model_config = ConfigDict(title="Run over a dataset")
    produces: ClassVar[Produces] = "dataset"

    kind: Literal["infer"] = Field(title="Kind")
    model: ModelReference
    dataset: DatasetReference
    output: str = output_field(
        "Name of the dataset of predictions",
        "namespace/name; registered where it is new.",
        "dataset",
    )
    steps: tuple[Predict, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")

    @property
    def parts_count(self) -> int:
        (step,) = self.steps
        return step.shards


class EvaluateRecipe(BaseRecipe):
    """Measure a version on a dataset; the numbers are kept beside the version."""

    model_config = ConfigDict(title="Evaluate")
    produces: ClassVar[Produces] = "evaluations"

    kind: Literal["evaluate"] = Field(title="Kind")
    model: ModelReference
    dataset: DatasetReference
    steps: tuple[Evaluate, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")
