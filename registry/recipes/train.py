"""Training: the architectures that a recipe may build, and how they are trained."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from registry.errors import Unfit
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
    output_field,
)

MAX_SAMPLES_SEEN = 500_000_000
"""The most rows one training job may look at: rows of the split times epochs."""


class DigitsCnn(Frozen):
    """Two convolutions and two linear layers over 28x28 grey images."""

    model_config = ConfigDict(title="Digits CNN")

    name: Literal["digits_cnn"] = Field(title="Architecture")
    channels: int = Field(
        default=32, ge=1, le=256, title="Channels", description="Of the first convolution."
    )
    hidden_size: int = Field(default=128, ge=1, le=4096, title="Hidden units")
    dropout: float = Field(default=0.25, ge=0, lt=1, title="Dropout")


class TextClassifier(Frozen):
    """An embedding, an LSTM and a linear layer over the words of a text."""

    model_config = ConfigDict(title="Text classifier (LSTM)")

    name: Literal["text_classifier"] = Field(title="Architecture")
    vocabulary_size: int = Field(
        default=20_000,
        ge=16,
        le=200_000,
        title="Vocabulary size",
        description="The most frequent words of the training split are kept.",
    )
    embedding_size: int = Field(default=128, ge=1, le=1024, title="Embedding size")
    hidden_size: int = Field(default=128, ge=1, le=2048, title="LSTM units")
    layers: int = Field(default=1, ge=1, le=4, title="LSTM layers", json_schema_extra=ADVANCED)
    bidirectional: bool = Field(default=False, title="Read both ways", json_schema_extra=ADVANCED)
    dropout: float = Field(default=0.3, ge=0, lt=1, title="Dropout")
    max_length: int = Field(
        default=200,
        ge=4,
        le=4096,
        title="Longest text, in words",
        description="Longer texts are cut.",
    )


Architecture = Annotated[DigitsCnn | TextClassifier, Field(discriminator="name")]
_POOLED_SIDE = 12


def count_parameters(architecture: Architecture, *, classes: int) -> int:
    """Count the parameters of an architecture without building it."""
    if isinstance(architecture, DigitsCnn):
        channels, hidden = architecture.channels, architecture.hidden_size
        convolutions = 10 * channels + 2 * channels * (9 * channels + 1)
        linear = (2 * channels * _POOLED_SIDE**2 + 1) * hidden
        return convolutions + linear + (hidden + 1) * classes
    ways = 2 if architecture.bidirectional else 1
    hidden, width = architecture.hidden_size, architecture.embedding_size
    count = architecture.vocabulary_size * width
    for _layer in range(architecture.layers):
        count += ways * 4 * hidden * (width + hidden + 2)
        width = ways * hidden
    return count + (width + 1) * classes


class Train(Frozen):
    """Minimise cross-entropy on the training split, holding a part of it out for validation."""

    model_config = ConfigDict(title="Train")

    method: Literal["train"] = Field(default="train", title="Method")
    epochs: int = Field(default=5, ge=1, le=1000, title="Epochs")
    batch_size: int = Field(default=64, ge=1, le=4096, title="Batch size")
    learning_rate: float = Field(default=0.001, gt=0, le=10, title="Learning rate")
    optimizer: Literal["sgd", "momentum", "adam", "adamw", "rmsprop"] = Field(
        default="adamw", title="Optimizer"
    )
    momentum: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        title="Momentum",
        description="For the optimizers momentum and rmsprop.",
        json_schema_extra=ADVANCED,
    )
    weight_decay: float = Field(default=0.01, ge=0, le=1, title="Weight decay")
    schedule: Literal["constant", "cosine", "step", "linear"] = Field(
        default="cosine",
        title="Learning-rate schedule",
        description="What happens to the learning rate after the warm-up.",
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        le=100_000,
        title="Warm-up steps",
        description="The learning rate rises linearly over so many steps.",
        json_schema_extra=ADVANCED,
    )
    decay_epochs: int = Field(
        default=10,
        ge=1,
        le=1000,
        title="Epochs between decays",
        description="For the schedule step.",
        json_schema_extra=ADVANCED,
    )
    decay_factor: float = Field(
        default=0.1,
        gt=0,
        le=1,
        title="Decay factor",
        description="For the schedule step.",
        json_schema_extra=ADVANCED,
    )
    clip_norm: float | None = Field(
        default=1.0,
        gt=0,
        le=1000,
        title="Largest gradient norm",
        description="Empty: gradients are not clipped.",
        json_schema_extra=ADVANCED,
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, title="Label smoothing", json_schema_extra=ADVANCED
    )
    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        title="Part held out for validation",
        description="Drawn from the training split; the test split is never looked at.",
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        title="Weights to keep",
        description="Of the epoch with the lowest validation loss, or of the last one.",
        json_schema_extra=ADVANCED,
    )
    precision: Literal["auto", "float32", "mixed"] = Field(
        default="auto",
        title="Precision",
        description="Mixed precision is used where the device is faster with it.",
        json_schema_extra=ADVANCED,
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed", json_schema_extra=ADVANCED)
    checkpoint_interval: int = Field(
        default=100,
        ge=1,
        le=100_000,
        title="Steps between checkpoints",
        description="What a crash can cost at most.",
        json_schema_extra=ADVANCED,
    )
    train_split: Split = Field(default="train", title="Training split", json_schema_extra=ADVANCED)
    test_split: Split | None = Field(
        default="test",
        title="Test split",
        description="Measured once, after training. Empty: none.",
        json_schema_extra=ADVANCED,
    )
    text_column: TextColumn = "text"
    image_column: ImageColumn = "image"
    label_column: LabelColumn = "label"


class TrainRecipe(BaseRecipe):
    """Train a new model, or go on with one, on a registered dataset."""

    model_config = ConfigDict(title="Train")
    produces: ClassVar[Produces] = "model"

    kind: Literal["train"] = Field(title="Kind")
    dataset: DatasetReference
    output: str = output_field(
        "Name of the trained model", "namespace/name; registered where it is new.", "model"
    )
    architecture: Architecture | None = Field(
        default=None, title="Architecture", description="Empty only where a model is continued."
    )
    model: ModelReference | None = Field(
        default=None,
        title="Version to continue from",
        description="Its architecture and vocabulary are kept.",
        json_schema_extra={"reference": "model"},
    )
    steps: tuple[Train, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.architecture is None) == (self.model is None):
            raise Unfit("Give either an architecture or a model to continue from.")
        return self
