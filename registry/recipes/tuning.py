"""Tuning: which threads, batch and runtime serve a version best on the machines of one kind."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import ADVANCED, BaseRecipe, Frozen, ModelReference, Produces

# What a deployment may have too (registry.serving_options).
MAX_THREADS = 64
MAX_BATCH_SIZE = 1024
# Models of texts read half a thousand tokens at most.
MAX_WORDS = 512

TunedRuntime = Literal["onnxruntime", "torch", "aotinductor"]


class Tune(Frozen):
    """Serve the version as a deployment would be, with each setting in turn, and time it."""

    model_config = ConfigDict(title="Tune for serving")

    method: Literal["tune"] = Field(default="tune", title="Method")
    objective: Literal["throughput", "latency"] = Field(
        default="throughput",
        title="Aim",
        description="The most rows per second, or the quickest answer to one row.",
    )
    max_wait_ms: float | None = Field(
        default=None,
        ge=0.1,
        le=600_000,
        title="Longest wait in milliseconds",
        description="Of 95 in 100 callers of a busy model: for the batch before theirs, and for "
        "theirs. Empty: no limit.",
    )
    threads: tuple[Annotated[int, Field(ge=1, le=MAX_THREADS)], ...] = Field(
        default=(),
        max_length=8,
        strict=False,
        title="Threads to try",
        description="Empty: 1, 2, 4 and so on, up to the cores of the machine.",
    )
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)], ...] = Field(
        default=(1, 2, 4, 8, 16, 32, 64),
        min_length=1,
        max_length=12,
        strict=False,
        title="Rows at once to try",
    )
    runtimes: tuple[TunedRuntime, ...] = Field(
        default=("onnxruntime", "torch"),
        min_length=1,
        max_length=3,
        strict=False,
        title="Runtimes to try",
        description="Those that can run the version. AOTInductor compiles a torch model for this "
        "processor first, which takes half a minute and a C++ compiler.",
    )
    budget_minutes: float = Field(
        default=3,
        ge=0.1,
        le=120,
        title="Most minutes",
        description="What was measured by then counts.",
    )
    repetitions: int = Field(
        default=9,
        ge=3,
        le=50,
        title="Rounds",
        description="Each round measures every setting once, in an order of its own.",
        json_schema_extra=ADVANCED,
    )
    patience_seconds: float = Field(
        default=10,
        ge=0.1,
        le=60,
        title="Longest batch in seconds",
        description="A setting whose batch takes longer is given up, and its process ended.",
        json_schema_extra=ADVANCED,
    )
    text_words: tuple[Annotated[int, Field(ge=1, le=MAX_WORDS)], ...] = Field(
        default=(6, 12, 24, 48),
        min_length=1,
        max_length=8,
        strict=False,
        title="Words in a text",
        description="A model of texts is given sentences of these lengths, each as often as the "
        "others.",
        json_schema_extra=ADVANCED,
    )
    free_size: int = Field(
        default=16,
        ge=1,
        le=4096,
        title="Size of free axes",
        description="How long the inputs are made whose length the signature leaves open; texts "
        "have their own.",
        json_schema_extra=ADVANCED,
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed", json_schema_extra=ADVANCED)


class TuneRecipe(BaseRecipe):
    """Find out how a version is served best here; deployments and exports then go by it."""

    model_config = ConfigDict(title="Tune for serving")
    produces: ClassVar[Produces] = "evaluations"

    kind: Literal["tune"] = Field(title="Kind")
    model: ModelReference
    steps: tuple[Tune, ...] = Field(
        default=(Tune(),), min_length=1, max_length=1, strict=False, title="Steps"
    )

    def _gains_by_gpu(self) -> bool:
        return False
