"""Steps that rebuild a model smaller: low-rank layers, and a student that learns from it."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from registry.errors import Unfit
from registry.recipes.fields import ADVANCED, Frozen
from registry.recipes.pruning import (
    BatchSize,
    Exclude,
    Interval,
    LearningRate,
    MaxRows,
    SomeEpochs,
    Validation,
    WeightDecay,
)

_MOST_RUNS = 24


class LowRank(Frozen):
    """Replace linear layers by two thin ones, cut from their singular values."""

    model_config = ConfigDict(title="Low rank (SVD)")
    default_variant: ClassVar[str] = "lowrank"

    method: Literal["svd"] = Field(title="Method")
    by: Literal["energy", "rank", "ratio"] = Field(
        default="energy", title="Choose the rank by", description="The field below of that name."
    )
    energy: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        title="Energy kept",
        description="Share of the squared singular values of each layer.",
    )
    rank: int = Field(default=32, ge=1, le=16_384, title="Rank")
    ratio: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        title="Ratio",
        description="Numbers in the two thin layers, as a share of those in the layer.",
    )
    exclude: Exclude = ()


class Distill(Frozen):
    """Train a smaller student to answer as the parent does."""

    model_config = ConfigDict(title="Distil into a student")
    default_variant: ClassVar[str] = "distilled"
    needs_rows: ClassVar[bool] = True

    method: Literal["distill"] = Field(title="Method")
    layers: int | None = Field(
        default=None,
        ge=1,
        le=512,
        title="Layers of the student",
        description="Of an encoder: begun with layers of the parent. All sizes empty: the model "
        "as earlier steps left it is the student.",
    )
    channels: int | None = Field(
        default=None, ge=1, le=256, title="Channels of the student", description="Of a digits CNN."
    )
    hidden_size: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        title="Hidden units of the student",
        description="Of a digits CNN or a text classifier.",
    )
    embedding_size: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        title="Embedding size of the student",
        description="Of a text classifier.",
    )
    temperatures: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field(
        default=(1.0, 4.0),
        min_length=1,
        max_length=8,
        strict=False,
        title="Temperatures",
        description="Each is tried; validation chooses. For models with classes.",
    )
    mixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.5, 0.9),
        min_length=1,
        max_length=8,
        strict=False,
        title="Shares of the teacher",
        description="In the loss; the rest is the labels'. Each is tried with each temperature.",
    )
    hidden_weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        title="Weight of hidden states",
        description="Of an encoder: how much the states of its layers must be the parent's, too.",
        json_schema_extra=ADVANCED,
    )
    attention_weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        title="Weight of attention",
        description="Of an encoder: how much its attention must be the parent's, too.",
        json_schema_extra=ADVANCED,
    )
    epochs: SomeEpochs = 5
    learning_rate: LearningRate = 0.001
    control: bool = Field(
        default=True,
        title="Train a control without the teacher",
        description="The same student learns from labels alone, with the same budget.",
    )
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.01
    validation_fraction: Validation = 0.1
    max_rows: MaxRows = None
    checkpoint_interval: Interval = 100

    @model_validator(mode="after")
    def _can_choose(self) -> Self:
        runs = len(self.temperatures) * len(self.mixes)
        if runs > 1 and self.validation_fraction == 0:
            raise Unfit("To choose among several temperatures or shares, hold rows out.")
        if runs > _MOST_RUNS:
            raise Unfit(
                "{runs} combinations are too many; {limit} are allowed.",
                runs=runs,
                limit=_MOST_RUNS,
            )
        return self
