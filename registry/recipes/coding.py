"""Steps that make a file smaller by what repeats in it: shared values, and codes for them."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import ADVANCED, Frozen
from registry.recipes.pruning import (
    BatchSize,
    Control,
    Interval,
    LearningRate,
    MaxRows,
    Validation,
    WeightDecay,
)


class Cluster(Frozen):
    """Let the weights of each layer share a few values; zeros stay zero."""

    model_config = ConfigDict(title="Share weights")
    default_variant: ClassVar[str] = "shared"

    method: Literal["cluster"] = Field(title="Method")
    bits: int = Field(
        default=5,
        ge=1,
        le=8,
        title="Bits a weight",
        description="A layer has at most 2 to the power of this different values.",
    )
    rounds: int = Field(
        default=50,
        ge=0,
        le=300,
        title="Rounds of k-means",
        description="Fewer where nothing moves any more; 0 keeps evenly spread values.",
        json_schema_extra=ADVANCED,
    )
    smallest: int = Field(
        default=256,
        ge=1,
        le=2**31 - 1,
        title="Smallest layer to share",
        description="In weights; smaller ones, such as biases, stay as they are.",
        json_schema_extra=ADVANCED,
    )
    epochs: int = Field(
        default=0,
        ge=0,
        le=1000,
        title="Epochs of fine-tuning",
        description="Over the training split; the shared values learn. 0: none.",
    )
    learning_rate: LearningRate = 0.0005
    control: Control = True
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.0
    validation_fraction: Validation = 0.1
    max_rows: MaxRows = None
    checkpoint_interval: Interval = 100

    @property
    def needs_rows(self) -> bool:
        return self.epochs > 0


class Code(Frozen):
    """Store every tensor in the smallest lossless form, as one .myz file; the last step."""

    model_config = ConfigDict(title="Code into a .myz file")
    default_variant: ClassVar[str] = "coded"

    method: Literal["code"] = Field(title="Method")
