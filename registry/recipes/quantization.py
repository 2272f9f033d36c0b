"""Steps that store numbers in fewer bits: calibrated, weights alone, fixed point."""

from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.errors import Text
from registry.recipes.fields import ADVANCED, Frozen, PerChannel, ReduceRange
from registry.recipes.pruning import (
    BatchSize,
    Control,
    Exclude,
    Interval,
    LearningRate,
    MaxRows,
    SomeEpochs,
    Validation,
    WeightDecay,
)


def _calibration_rows() -> Any:
    return Field(
        default=128,
        ge=1,
        le=4096,
        title="Rows to calibrate on",
        description="Of the split to learn from.",
    )


class QuantizeStatic(Frozen):
    """Compute in 8 bits with ranges that are measured beforehand on rows of the dataset."""

    model_config = ConfigDict(title="Quantize to int8 (calibrated)")
    default_variant: ClassVar[str] = "int8-static"

    method: Literal["quantize_static"] = Field(title="Method")
    calibration: Literal["minmax", "entropy", "percentile"] = Field(
        default="minmax",
        title="How ranges are set",
        description="By the extremes, by the least loss of information, or by a percentile.",
    )
    percentile: float = Field(
        default=99.99,
        ge=90,
        le=100,
        title="Percentile",
        description="For ranges set by percentile: what lies beyond is cut.",
        json_schema_extra=ADVANCED,
    )
    calibration_rows: int = _calibration_rows()
    per_channel: PerChannel = True
    reduce_range: ReduceRange = True
    operators: Literal["products", "all"] = Field(
        default="products",
        title="Operators to quantize",
        description="Matrix products and convolutions, or all that ONNX Runtime can.",
        json_schema_extra=ADVANCED,
    )
    format: Literal["qdq", "qoperator"] = Field(
        default="qdq",
        title="How the file says it",
        description="Pairs of QuantizeLinear and DequantizeLinear, or integer operators.",
        json_schema_extra=ADVANCED,
    )
    embeddings: bool = Field(
        default=True,
        title="Tables and recurrent weights too",
        description="Embedding tables and LSTMs are stored in 8 bits; they compute as before.",
        json_schema_extra=ADVANCED,
    )
    exclude: Exclude = ()

    @property
    def works_uncalibrated(self) -> str:
        """Name what needs no rows, where this step does."""
        return "quantize_dynamic"


class QuantizeWeights(Frozen):
    """Store weights in a few bits, a scale for each block, and compute in floating point."""

    model_config = ConfigDict(title="Quantize the weights alone")
    default_variant: ClassVar[str] = "int4"

    method: Literal["quantize_weights"] = Field(title="Method")
    bits: Literal[2, 4, 8] = Field(default=4, title="Bits of a weight")
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        default=32,
        title="Weights that share a scale",
        description="Fewer are more exact, and take more bytes for scales.",
    )
    symmetric: bool = Field(
        default=False,
        title="Symmetric around zero",
        description="Saves the zero points, and some exactness with them.",
        json_schema_extra=ADVANCED,
    )
    algorithm: Literal["rtn", "gptq"] = Field(
        default="rtn",
        title="Rounding",
        description="To the nearest, or so that later weights make up for the error (GPTQ), "
        "which needs a dataset.",
    )
    calibration_rows: int = _calibration_rows()
    damping: float = Field(
        default=0.01,
        gt=0,
        le=1,
        title="Damping",
        description="For GPTQ: a share of the mean curvature that is added to all of it.",
        json_schema_extra=ADVANCED,
    )
    activation_order: bool = Field(
        default=True,
        title="Most used inputs first",
        description="For GPTQ: round the weights of the strongest inputs first.",
        json_schema_extra=ADVANCED,
    )
    embeddings: Literal["none", "2", "4", "8", "same"] = Field(
        default="same",
        title="Bits of embedding tables",
        description="As the other weights, another number, or left as they are.",
    )
    others: bool = Field(
        default=True,
        title="Recurrent and convolution weights too",
        description="Stored in few bits and unpacked in each run: smaller, not faster.",
        json_schema_extra=ADVANCED,
    )
    integer_compute: bool = Field(
        default=False,
        title="Compute in 8 bits",
        description="Activations are rounded while the model runs: faster, a little less exact.",
        json_schema_extra=ADVANCED,
    )
    exclude: Exclude = ()

    @property
    def works_uncalibrated(self) -> str:
        """Name what needs no rows, where this step does."""
        return "rtn" if self.algorithm == "gptq" else ""


def no_int4(device: str) -> Text:
    """Say why weights in 4 bits are refused: before a job waits, and on what would run it."""
    return Text(
        "pack_linear in 4 bits computes on a GPU with CUDA and tensor cores, and this job would "
        "run on {device}. Use quantize_weights, which stores 4 bits in an ONNX file that runs on "
        "CPUs too, or 8 bits.",
        device=device,
    )


class PackLinear(Frozen):
    """Round the weights of linear layers with torchao; the model stays a torch model."""

    model_config = ConfigDict(title="Pack linear layers (torchao)")
    default_variant: ClassVar[str] = "packed"

    method: Literal["pack_linear"] = Field(title="Method")
    bits: Literal[4, 8] = Field(
        default=8,
        title="Bits of a weight",
        description="8 compute everywhere, 4 on a GPU alone.",
    )
    group_size: Literal[32, 64, 128, 256] = Field(
        default=128,
        title="Weights that share a scale",
        description="For 4 bits. Of 8 bits, each output has one.",
    )
    exclude: Exclude = ()


class FixedPoint(Frozen):
    """Round each weight x to round(x * 2^p), with the p that suits its tensor."""

    model_config = ConfigDict(title="Fixed point")
    default_variant: ClassVar[str] = "fixed8"

    method: Literal["fixed_point"] = Field(title="Method")
    bits: int = Field(
        default=8,
        ge=4,
        le=16,
        title="Bits of a weight",
        description="With its sign. Up to 8 are stored in a byte, 4 in half of one.",
    )
    choose: Literal["largest", "least_error"] = Field(
        default="least_error",
        title="How p is chosen",
        description="So that the largest weight fits, or so that the squared error is least.",
    )
    keep_module: bool = Field(
        default=False,
        title="Stay a torch model",
        description="Weights lie on the grid and are stored in 32 bits until they are coded.",
        json_schema_extra=ADVANCED,
    )
    exclude: Exclude = ()


class TrainQuantized(Frozen):
    """Train some more with the rounding that the model will run with, then store it in 8 bits."""

    model_config = ConfigDict(title="Train for int8")
    default_variant: ClassVar[str] = "int8-trained"
    needs_rows: ClassVar[bool] = True

    method: Literal["train_quantized"] = Field(title="Method")
    epochs: SomeEpochs = 3
    learning_rate: LearningRate = 0.0005
    reduce_range: ReduceRange = True
    exclude: Exclude = ()
    control: Control = True
    batch_size: BatchSize = 64
    weight_decay: WeightDecay = 0.01
    validation_fraction: Validation = 0.1
    max_rows: MaxRows = None
    checkpoint_interval: Interval = 100


QuantizationStep = QuantizeStatic | QuantizeWeights | PackLinear | FixedPoint | TrainQuantized
