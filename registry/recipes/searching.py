"""Search: a goal instead of steps; compressions are tried, and those worth having are kept."""

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from registry.errors import Unfit
from registry.recipes.fields import (
    ADVANCED,
    BaseRecipe,
    DatasetReference,
    Frozen,
    LabelColumn,
    ModelReference,
    Produces,
    Split,
)

MAX_VARIANTS = 8
"""The most versions that one search may make."""


class Search(Frozen):
    """Try compressions on held-out rows and keep those that nothing else beats."""

    model_config = ConfigDict(title="Search")

    method: Literal["search"] = Field(default="search", title="Method")
    goal: Literal["smallest", "fastest", "fits"] = Field(
        default="smallest",
        title="Goal",
        description="What to get as far as possible within the limits below.",
    )
    max_accuracy_loss: float | None = Field(
        default=None,
        ge=0,
        le=0.5,
        title="Most accuracy lost",
        description="As a share: 0.01 is one answer in a hundred. For classifiers, and for "
        "encoders that a probe judges.",
    )
    min_accuracy: float | None = Field(
        default=None,
        ge=0,
        le=1,
        title="Least accuracy",
        description="As a share, whatever the parent has: 0.95 is 95 right answers in a hundred. "
        "For classifiers.",
    )
    min_cosine: float | None = Field(
        default=None,
        ge=0,
        le=1,
        title="Least cosine to the parent",
        description="For encoders: how alike the vectors of the same text must stay on average.",
    )
    min_neighbour_overlap: float | None = Field(
        default=None,
        ge=0,
        le=1,
        title="Least overlap of neighbours",
        description="For encoders: what share of the ten nearest rows must stay the same.",
    )
    probe: bool = Field(
        default=False,
        title="Judge an encoder by a probe",
        description="A logistic regression learns the labels of the dataset from the vectors; its "
        "accuracy is what may be lost.",
    )
    max_latency_ms: float | None = Field(
        default=None,
        gt=0,
        le=600_000,
        title="Longest time for one row, in ms",
        description="The median at batch 1, on the device that the job runs on.",
    )
    max_bytes: int | None = Field(
        default=None,
        ge=1,
        le=2**40,
        title="Most bytes",
        description="Of the file with the weights.",
    )
    budget_minutes: float = Field(
        default=20.0,
        gt=0,
        le=1440,
        title="Minutes to search",
        description="Measuring what is kept on the test split is part of it.",
    )
    most_variants: int = Field(
        default=3,
        ge=1,
        le=MAX_VARIANTS,
        title="Most versions to keep",
        description="The recommended one first, then others that trade quality for size or speed.",
    )
    most_candidates: int = Field(
        default=60, ge=1, le=500, title="Most candidates to try", json_schema_extra=ADVANCED
    )
    validation_fraction: float = Field(
        default=0.2,
        ge=0.01,
        le=0.9,
        title="Part held out to choose by",
        description="Drawn from the training split; no candidate learns from it.",
        json_schema_extra=ADVANCED,
    )
    train_split: Split = Field(
        default="train",
        title="Split to learn and choose from",
        json_schema_extra=ADVANCED,
    )
    test_split: Split = Field(
        default="test",
        title="Split to measure on",
        description="Looked at once, for what is kept.",
        json_schema_extra=ADVANCED,
    )
    label_column: LabelColumn = "label"
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed", json_schema_extra=ADVANCED)

    @model_validator(mode="after")
    def _measured_on_other_rows(self) -> Self:
        if self.train_split == self.test_split:
            raise Unfit("A step learns from the split that is measured on: name two splits.")
        return self

    @model_validator(mode="after")
    def _can_be_judged(self) -> Self:
        if self.goal == "fits" and self.max_bytes is None:
            raise Unfit("To fit, say how many bytes there are.")
        if self.probe and self.max_accuracy_loss is None:
            raise Unfit("A probe measures accuracy: say how much of it may be lost.")
        vectors = self.min_cosine is not None or self.min_neighbour_overlap is not None
        answers = self.max_accuracy_loss is not None or self.min_accuracy is not None
        if self.goal != "fits" and not vectors and not answers:
            raise Unfit(
                "Say what may be lost: an accuracy for a classifier, a cosine or an overlap of "
                "neighbours for an encoder."
            )
        if self.min_accuracy is not None and (vectors or self.probe):
            raise Unfit("A least accuracy is for classifiers, without a probe and without vectors.")
        if vectors and answers and not self.probe:
            raise Unfit(
                "Accuracy is for classifiers, cosine and neighbours are for encoders; to ask an "
                "encoder for both, switch the probe on."
            )
        return self


class SearchRecipe(BaseRecipe):
    """Say a goal and what may be lost; get the smaller versions that are worth having."""

    model_config = ConfigDict(title="Search for smaller versions")
    produces: ClassVar[Produces] = "new_variants"

    kind: Literal["search"] = Field(title="Kind")
    model: ModelReference
    dataset: DatasetReference
    steps: tuple[Search, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")

    def _gains_by_gpu(self) -> bool:
        return False
