"""Steps that take weights out of a model, and the fine-tuning that goes with them."""

from typing import Annotated, ClassVar, Literal, Protocol, Self

from pydantic import ConfigDict, Field, model_validator

from registry.errors import Unfit
from registry.recipes.fields import ADVANCED, Frozen

PATTERN = r"^([1-9]|1[0-5]):([2-9]|1[0-6])$"
LAYER_PATTERN = r"^[A-Za-z0-9_./:*?\[\]-]+$"

Epochs = Annotated[
    int,
    Field(
        ge=0,
        le=1000,
        title="Epochs of fine-tuning",
        description="Over the training split, after or while weights are taken out. 0: none.",
    ),
]
SomeEpochs = Annotated[
    int,
    Field(ge=1, le=1000, title="Epochs", description="Passes over the training split."),
]
BatchSize = Annotated[int, Field(ge=1, le=4096, title="Batch size", json_schema_extra=ADVANCED)]
LearningRate = Annotated[float, Field(gt=0, le=10, title="Learning rate")]
WeightDecay = Annotated[float, Field(ge=0, le=1, title="Weight decay", json_schema_extra=ADVANCED)]
Validation = Annotated[
    float,
    Field(
        ge=0,
        le=0.5,
        title="Part held out for validation",
        description="Drawn from the training split; the test split is never looked at.",
        json_schema_extra=ADVANCED,
    ),
]
MaxRows = Annotated[
    int | None,
    Field(
        ge=16,
        le=20_000_000,
        title="Most rows to learn from",
        description="Empty: the whole training split.",
        json_schema_extra=ADVANCED,
    ),
]
Interval = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        title="Steps between checkpoints",
        description="What a crash can cost at most.",
        json_schema_extra=ADVANCED,
    ),
]
Control = Annotated[
    bool,
    Field(
        title="Train a dense control",
        description="The parent gets the same extra training, and the gap to it is reported.",
    ),
]
Exclude = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200, pattern=LAYER_PATTERN)], ...],
    Field(
        max_length=50,
        strict=False,
        title="Layers to leave alone",
        description="Names of layers; * stands for any letters, as in encoder.*.value.",
        json_schema_extra=ADVANCED,
    ),
]
Sparsity = Annotated[
    float,
    Field(gt=0, lt=1, title="Sparsity", description="Share of the weights that become zero."),
]


class Budget(Protocol):
    """What a step may spend on training."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def validation_fraction(self) -> float: ...
    @property
    def max_rows(self) -> int | None: ...
    @property
    def checkpoint_interval(self) -> int: ...
    @property
    def control(self) -> bool: ...


class FineTune(Frozen):
    """Train what is there some more: with labels, or to match the parent's vectors."""

    model_config = ConfigDict(title="Fine-tune")
    default_variant: ClassVar[str] = "tuned"
    needs_rows: ClassVar[bool] = True

    method: Literal["fine_tune"] = Field(title="Method")
    epochs: SomeEpochs = 3
    learning_rate: LearningRate = 0.0005
    keep_zeros: bool = Field(
        default=True,
        title="Keep zeros",
        description="Weights that are exactly zero stay zero, as pruning left them.",
    )
    control: Control = True
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.01
    validation_fraction: Validation = 0.1
    max_rows: MaxRows = None
    checkpoint_interval: Interval = 100


class PruneMagnitude(Frozen):
    """Set the smallest weights to zero, at once or little by little."""

    model_config = ConfigDict(title="Prune by magnitude")
    default_variant: ClassVar[str] = "sparse"

    method: Literal["prune_magnitude"] = Field(title="Method")
    sparsity: Sparsity = 0.5
    scope: Literal["global", "layer"] = Field(
        default="global",
        title="Smallest of",
        description="All layers together, or each layer on its own.",
    )
    schedule: Literal["one_shot", "gradual"] = Field(
        default="one_shot",
        title="Schedule",
        description="At once, or along a cubic curve over two thirds of the fine-tuning.",
    )
    pattern: str | None = Field(
        default=None,
        max_length=5,
        pattern=PATTERN,
        title="N:M pattern",
        description="Such as 2:4: of each 4 neighbours, the 2 largest are kept. Sets the sparsity.",
        json_schema_extra=ADVANCED,
    )
    embeddings: Literal["leave", "frequency"] = Field(
        default="leave",
        title="Embedding tables",
        description="Leave them, or zero the rows of the rarest words of the training split.",
        json_schema_extra=ADVANCED,
    )
    exclude: Exclude = ()
    epochs: Epochs = 3
    learning_rate: LearningRate = 0.0005
    l1: float = Field(
        default=0.0,
        ge=0,
        le=1,
        title="L1 penalty",
        description="Pulls weights to zero while training; one shot then cuts after a third of it.",
        json_schema_extra=ADVANCED,
    )
    control: Control = True
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.01
    validation_fraction: Validation = 0.1
    max_rows: MaxRows = None
    checkpoint_interval: Interval = 100

    @property
    def needs_rows(self) -> bool:
        return self.epochs > 0 or self.embeddings == "frequency"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs == 0 and (self.schedule == "gradual" or self.l1 > 0):
            raise Unfit(
                "A gradual schedule or an L1 penalty works while the model trains: give it epochs."
            )
        if self.pattern is not None:
            kept, of = map(int, self.pattern.split(":"))
            if kept >= of:
                raise Unfit("The pattern {pattern} keeps all weights.", pattern=self.pattern)
            if self.schedule == "gradual":
                raise Unfit("An N:M pattern is cut at once: choose the schedule one_shot.")
        return self


class PruneStructured(Frozen):
    """Take out whole channels, hidden units and attention heads: fewer bytes and fewer products."""

    model_config = ConfigDict(title="Prune channels, units and heads")
    default_variant: ClassVar[str] = "slim"

    method: Literal["prune_structured"] = Field(title="Method")
    share: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        title="Share to take out",
        description="Of the channels, units or heads of each layer; one is always left.",
    )
    heads: bool = Field(default=True, title="Attention heads too")
    round_to: int = Field(
        default=1,
        ge=1,
        le=64,
        title="Multiple of",
        description="What is left of a layer is a multiple of this; some devices like 8.",
        json_schema_extra=ADVANCED,
    )
    exclude: Exclude = ()
    epochs: Epochs = 3
    learning_rate: LearningRate = 0.0005
    control: Control = True
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.01
    validation_fraction: Validation = 0.1
    max_rows: MaxRows = None
    checkpoint_interval: Interval = 100

    @property
    def needs_rows(self) -> bool:
        return self.epochs > 0


class PruneMovement(Frozen):
    """Set to zero the weights that fine-tuning moves towards zero, whatever their size."""

    model_config = ConfigDict(title="Prune by movement")
    default_variant: ClassVar[str] = "sparse"
    needs_rows: ClassVar[bool] = True

    method: Literal["prune_movement"] = Field(title="Method")
    sparsity: Sparsity = 0.5
    exclude: Exclude = ()
    epochs: SomeEpochs = 3
    learning_rate: LearningRate = 0.0005
    control: Control = True
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.01
    validation_fraction: Validation = 0.1
    max_rows: MaxRows = None
    checkpoint_interval: Interval = 100
