"""What a job is asked to do: one frozen, closed and bounded model per kind of job.

Both programs read this file (the web process to check and to build forms, the workers to act), so
it is plain Python and pydantic; it knows no Django and no torch. A recipe says what it *produces*
in `produces`; `output` is only the name that a produced model or dataset gets.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from registry.errors import FieldError, Invalid, Text, Unfit, Wording

MAX_SAMPLES_SEEN = 500_000_000
"""The most rows one training job may look at: rows of the split times epochs."""

_MAX_ERRORS = 50
_NAMESPACE = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_SELECTOR = r"[1-9][0-9]{0,8}|[A-Za-z_][A-Za-z0-9_-]{0,63}"
REPOSITORY_PATTERN = rf"^{_NAMESPACE}/{_NAME}$"
REFERENCE_PATTERN = rf"^{_NAMESPACE}/{_NAME}(@({_SELECTOR}))?$"
VARIANT_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,39}$"
COLUMN_PATTERN = r"^[^\x00-\x1f\x7f]{1,100}$"

Produces = Literal["new_variant", "model", "dataset", "evaluations"]
Queue = Literal["cpu", "gpu"]


class Reference(NamedTuple):
    """A version as a recipe names it."""

    namespace: str
    name: str
    selector: str

    @property
    def version(self) -> str:
        """The version in the registry's words: `3`, `@champion` or `latest`."""
        if not self.selector:
            return "latest"
        if self.selector == "latest" or self.selector.isdecimal():
            return self.selector
        return f"@{self.selector}"

    def __str__(self) -> str:
        at = f"@{self.selector}" if self.selector else ""
        return f"{self.namespace}/{self.name}{at}"


def parse_reference(text: str) -> Reference:
    """Split `ns/name`, `ns/name@3` or `ns/name@champion`."""
    if not re.fullmatch(REFERENCE_PATTERN.strip("^$"), text):
        raise Invalid(
            "{text!r} names no version; write namespace/name, namespace/name@3 "
            "or namespace/name@alias.",
            code="bad_reference",
            text=text[:100],
        )
    repository, _, selector = text.partition("@")
    namespace, name = repository.split("/")
    return Reference(namespace, name, selector)


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        serialize_by_alias=True,
        hide_input_in_errors=True,
    )


def _reference(title: str, description: str, points_at: str) -> Any:
    return Field(
        title=title,
        description=description,
        max_length=260,
        pattern=REFERENCE_PATTERN,
        json_schema_extra={"reference": points_at},
    )


def _output(title: str, description: str, kind: str) -> Any:
    return Field(
        title=title,
        description=description,
        max_length=193,
        pattern=REPOSITORY_PATTERN,
        json_schema_extra={"output": kind},
    )


_ADVANCED: dict[str, Any] = {"advanced": True}

ModelReference = Annotated[
    str,
    _reference(
        "Model version",
        "namespace/name, namespace/name@3 or namespace/name@alias. Without a version, the latest.",
        "model",
    ),
]
DatasetReference = Annotated[
    str,
    _reference(
        "Dataset version",
        "namespace/name, namespace/name@3 or namespace/name@alias. Without a version, the latest.",
        "dataset",
    ),
]
Column = Annotated[str, Field(min_length=1, max_length=100, pattern=COLUMN_PATTERN)]
Split = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$", max_length=40)]


# --- compress ---------------------------------------------------------------------------------


class ExportOnnx(_Frozen):
    """Convert the model to ONNX and check that it computes the same."""

    model_config = ConfigDict(title="Export to ONNX")
    default_variant: ClassVar[str] = "onnx"

    method: Literal["export_onnx"] = Field(title="Method")


class QuantizeDynamic(_Frozen):
    """Store weights in 8 bits and quantize activations while the model runs."""

    model_config = ConfigDict(title="Quantize to int8 (dynamic)")
    default_variant: ClassVar[str] = "int8"

    method: Literal["quantize_dynamic"] = Field(title="Method")
    per_channel: bool = Field(
        default=True,
        title="One scale per channel",
        description="Keeps more accuracy than one scale for a whole weight matrix.",
    )
    reduce_range: bool = Field(
        default=True,
        title="Use 7 bits of the range",
        description="Avoids saturation on CPUs without VNNI instructions; safe everywhere.",
        json_schema_extra=_ADVANCED,
    )
    embeddings: bool = Field(
        default=True,
        title="Quantize embedding tables too",
        description="An embedding table can be half of a language model.",
        json_schema_extra=_ADVANCED,
    )
    convolutions: bool = Field(
        default=False,
        title="Quantize convolutions too",
        description="Smaller, and on most CPUs slower: integer convolutions are not tuned.",
        json_schema_extra=_ADVANCED,
    )


CompressStep = Annotated[QuantizeDynamic | ExportOnnx, Field(discriminator="method")]


# --- train ------------------------------------------------------------------------------------


class DigitsCnn(_Frozen):
    """Two convolutions and two linear layers over 28x28 grey images."""

    model_config = ConfigDict(title="Digits CNN")

    name: Literal["digits_cnn"] = Field(title="Architecture")
    channels: int = Field(
        default=32, ge=1, le=256, title="Channels", description="Of the first convolution."
    )
    hidden_size: int = Field(default=128, ge=1, le=4096, title="Hidden units")
    dropout: float = Field(default=0.25, ge=0, lt=1, title="Dropout")


class TextClassifier(_Frozen):
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
    layers: int = Field(default=1, ge=1, le=4, title="LSTM layers", json_schema_extra=_ADVANCED)
    bidirectional: bool = Field(default=False, title="Read both ways", json_schema_extra=_ADVANCED)
    dropout: float = Field(default=0.3, ge=0, lt=1, title="Dropout")
    max_length: int = Field(
        default=200,
        ge=4,
        le=4096,
        title="Longest text, in words",
        description="Longer texts are cut.",
    )


Architecture = Annotated[DigitsCnn | TextClassifier, Field(discriminator="name")]


class Train(_Frozen):
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
        json_schema_extra=_ADVANCED,
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
        json_schema_extra=_ADVANCED,
    )
    decay_epochs: int = Field(
        default=10,
        ge=1,
        le=1000,
        title="Epochs between decays",
        description="For the schedule step.",
        json_schema_extra=_ADVANCED,
    )
    decay_factor: float = Field(
        default=0.1,
        gt=0,
        le=1,
        title="Decay factor",
        description="For the schedule step.",
        json_schema_extra=_ADVANCED,
    )
    clip_norm: float | None = Field(
        default=1.0,
        gt=0,
        le=1000,
        title="Largest gradient norm",
        description="Empty: gradients are not clipped.",
        json_schema_extra=_ADVANCED,
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, title="Label smoothing", json_schema_extra=_ADVANCED
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
        json_schema_extra=_ADVANCED,
    )
    precision: Literal["auto", "float32", "mixed"] = Field(
        default="auto",
        title="Precision",
        description="Mixed precision is used where the device is faster with it.",
        json_schema_extra=_ADVANCED,
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed", json_schema_extra=_ADVANCED)
    checkpoint_interval: int = Field(
        default=100,
        ge=1,
        le=100_000,
        title="Steps between checkpoints",
        description="What a crash can cost at most.",
        json_schema_extra=_ADVANCED,
    )
    train_split: Split = Field(default="train", title="Training split", json_schema_extra=_ADVANCED)
    test_split: Split | None = Field(
        default="test",
        title="Test split",
        description="Measured once, after training. Empty: none.",
        json_schema_extra=_ADVANCED,
    )
    text_column: Column = Field(default="text", title="Text column", json_schema_extra=_ADVANCED)
    image_column: Column = Field(default="image", title="Image column", json_schema_extra=_ADVANCED)
    label_column: Column = Field(default="label", title="Label column", json_schema_extra=_ADVANCED)


# --- infer and evaluate -----------------------------------------------------------------------


class Predict(_Frozen):
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
        json_schema_extra=_ADVANCED,
    )
    text_column: Column = Field(default="text", title="Text column", json_schema_extra=_ADVANCED)
    image_column: Column = Field(default="image", title="Image column", json_schema_extra=_ADVANCED)
    label_column: Column = Field(
        default="label",
        title="Label column",
        description="Where the dataset has it, it is copied beside each prediction.",
        json_schema_extra=_ADVANCED,
    )


class Evaluate(_Frozen):
    """Measure quality on a split, and size and speed on this machine."""

    model_config = ConfigDict(title="Evaluate")

    method: Literal["evaluate"] = Field(default="evaluate", title="Method")
    batch_size: int = Field(default=64, ge=1, le=4096, title="Batch size")
    split: Split = Field(default="test", title="Split")
    latency: bool = Field(default=True, title="Measure latency")
    text_column: Column = Field(default="text", title="Text column", json_schema_extra=_ADVANCED)
    image_column: Column = Field(default="image", title="Image column", json_schema_extra=_ADVANCED)
    label_column: Column = Field(default="label", title="Label column", json_schema_extra=_ADVANCED)


# --- recipes ----------------------------------------------------------------------------------


class _Recipe(_Frozen):
    """What every recipe has and can tell about itself."""

    produces: ClassVar[Produces]

    schema_version: Literal[1] = Field(default=1, alias="schema", title="Schema")
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto",
        title="Device",
        description="auto takes a GPU where a worker offers one and the job gains by it.",
        json_schema_extra=_ADVANCED,
    )

    def references(self) -> dict[str, str]:
        """Tell which versions the job reads, by the role they play in it."""
        roles = {role: getattr(self, role, None) for role in ("model", "dataset")}
        return {role: ref for role, ref in roles.items() if ref is not None}

    def resolved(self, references: Mapping[str, str]) -> Self:
        """Return the same recipe with its references replaced by exact ones."""
        if unknown := references.keys() - self.references().keys():
            raise Invalid("The recipe refers to no {unknown}.", unknown=", ".join(sorted(unknown)))
        return type(self).model_validate({**self.to_json(), **references})

    def queue(self, *, gpu_offered: bool) -> Queue:
        """Choose the queue by what the recipe needs and what workers offer."""
        if self.device == "auto":
            return "gpu" if gpu_offered and self._gains_by_gpu() else "cpu"
        return self.device

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, every default written out."""
        return self.model_dump(mode="json", by_alias=True)

    def _gains_by_gpu(self) -> bool:
        return True


class CompressRecipe(_Recipe):
    """Make a smaller variant of a version and measure what it costs."""

    model_config = ConfigDict(title="Compress")
    produces: ClassVar[Produces] = "new_variant"

    kind: Literal["compress"] = Field(title="Kind")
    model: ModelReference
    dataset: DatasetReference | None = Field(
        default=None,
        title="Dataset to measure on",
        description="Held-out rows for accuracy, or texts to compare embeddings on.",
        json_schema_extra={"reference": "dataset"},
    )
    variant: str | None = Field(
        default=None,
        max_length=40,
        pattern=VARIANT_PATTERN,
        title="Variant name",
        description="Empty: named after the method, such as int8.",
    )
    steps: tuple[CompressStep, ...] = Field(min_length=1, max_length=4, strict=False, title="Steps")

    @property
    def variant_name(self) -> str:
        return self.variant or self.steps[-1].default_variant

    def _gains_by_gpu(self) -> bool:
        return False


class TrainRecipe(_Recipe):
    """Train a new model, or go on with one, on a registered dataset."""

    model_config = ConfigDict(title="Train")
    produces: ClassVar[Produces] = "model"

    kind: Literal["train"] = Field(title="Kind")
    dataset: DatasetReference
    output: str = _output(
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


class InferRecipe(_Recipe):
    """Run a version over a dataset; the predictions are a new dataset version."""

    model_config = ConfigDict(title="Run over a dataset")
    produces: ClassVar[Produces] = "dataset"

    kind: Literal["infer"] = Field(title="Kind")
    model: ModelReference
    dataset: DatasetReference
    output: str = _output(
        "Name of the dataset of predictions",
        "namespace/name; registered where it is new.",
        "dataset",
    )
    steps: tuple[Predict, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")


class EvaluateRecipe(_Recipe):
    """Measure a version on a dataset; the numbers are kept beside the version."""

    model_config = ConfigDict(title="Evaluate")
    produces: ClassVar[Produces] = "evaluations"

    kind: Literal["evaluate"] = Field(title="Kind")
    model: ModelReference
    dataset: DatasetReference
    steps: tuple[Evaluate, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")


Recipe = CompressRecipe | TrainRecipe | InferRecipe | EvaluateRecipe
RECIPES: dict[str, type[Recipe]] = {
    "compress": CompressRecipe,
    "train": TrainRecipe,
    "infer": InferRecipe,
    "evaluate": EvaluateRecipe,
}


def recipe_schema(kind: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of one kind of recipe, or of all of them."""
    if kind is not None:
        return RECIPES[kind].model_json_schema()
    union: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")])
    return union.json_schema()


def parse_recipe(data: object) -> Recipe:
    """Read a recipe from parsed JSON; raise `Invalid` naming every wrong field."""
    if not isinstance(data, Mapping):
        raise Invalid("A recipe is a JSON object with kind, schema and steps.")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in RECIPES:
        if "kind" in data:
            code, said = "not_a_choice", Text("{kind} is no kind of recipe", kind=_short(kind))
        else:
            code, said = "required", Text("The kind is missing")
        raise Invalid(
            "{problem}; choose one of {kinds}.",
            errors=[FieldError("kind", code, said.template, **said.values)],
            problem=said,
            kinds=", ".join(RECIPES),
        )
    try:
        return RECIPES[kind].model_validate(dict(data))
    except ValidationError as invalid:
        errors = list(_field_errors(kind, invalid))
        first = errors[0]
        raise Invalid(
            "The {kind} recipe is not valid. {place}{problem}{more}",
            errors=errors,
            kind=kind,
            place=f"{first.field}: " if first.field else "",
            problem=first,
            more=Text(" ({count} more)", count=len(errors) - 1) if len(errors) > 1 else "",
        ) from None


# --- errors in plain words ----------------------------------------------------------------------

_CODES = {
    "extra_forbidden": Wording("unknown_field", "There is no such field; remove it."),
    "missing": Wording("required", "This field is required."),
    "finite_number": Wording("not_finite", "Must be a finite number."),
    "bool_type": Wording("wrong_type", "Must be true or false."),
    "int_type": Wording("wrong_type", "Must be a whole number."),
    "int_from_float": Wording("wrong_type", "Must be a whole number."),
    "int_parsing_size": Wording("out_of_range", "The number is too large."),
    "float_type": Wording("wrong_type", "Must be a number."),
    "string_type": Wording("wrong_type", "Must be a text."),
    "string_unicode": Wording("wrong_type", "Must be a text of valid characters."),
    "tuple_type": Wording("wrong_type", "Must be a list."),
    "model_type": Wording("wrong_type", "Must be an object."),
    "model_attributes_type": Wording("wrong_type", "Must be an object."),
    "greater_than_equal": Wording("out_of_range", "Must be at least {ge}."),
    "greater_than": Wording("out_of_range", "Must be greater than {gt}."),
    "less_than_equal": Wording("out_of_range", "Must be at most {le}."),
    "less_than": Wording("out_of_range", "Must be less than {lt}."),
    "literal_error": Wording("not_a_choice", "Must be {expected}."),
    "union_tag_not_found": Wording("required", "This field is required."),
    "union_tag_invalid": Wording("not_a_choice", "Must be one of {expected_tags}."),
    "too_short": Wording("wrong_length", "Needs at least {min_length} item(s)."),
    "too_long": Wording("wrong_length", "Takes at most {max_length} item(s)."),
    "string_too_short": Wording("wrong_length", "Needs at least {min_length} character(s)."),
    "string_too_long": Wording("wrong_length", "Takes at most {max_length} characters."),
}
_PATTERNS = {
    REFERENCE_PATTERN: Wording(
        "bad_reference",
        "Write namespace/name, namespace/name@3 or namespace/name@alias.",
    ),
    REPOSITORY_PATTERN: Wording("bad_name", "Write namespace/name."),
}
_PATTERN = Wording("bad_format", "Must match {pattern}.")
_TAGGED = {"compress": "steps", "train": "architecture"}
_TAG_OF = {"steps": "method", "architecture": "name"}


def _field_errors(kind: str, invalid: ValidationError) -> Iterator[FieldError]:
    details = invalid.errors(include_url=False, include_input=False)
    if any(detail["loc"][:1] == ("steps",) and len(detail["loc"]) > 1 for detail in details):
        # A step that is wrong in itself makes pydantic add that there are too few steps.
        details = [detail for detail in details if detail["type"] != "too_short"]
    for detail in details[:_MAX_ERRORS]:
        yield _field_error(_field(kind, detail), detail)


def _field_error(field: str, detail: ErrorDetails) -> FieldError:
    context = detail.get("ctx", {})
    error = context.get("error")
    if isinstance(error, Unfit):
        return FieldError(field, "inconsistent", error.template, **error.values)
    if detail["type"] == "string_pattern_mismatch":
        wording: Wording | None = _PATTERNS.get(context["pattern"], _PATTERN)
    else:
        wording = _CODES.get(detail["type"])
    if wording is None:
        return FieldError(field, "invalid", "{message}.", message=detail["msg"])
    return FieldError(field, wording.code, wording.template, **context)


def _field(kind: str, detail: ErrorDetails) -> str:
    """Name the field as the sender wrote it, without the tags that pydantic puts into unions."""
    where: Sequence[int | str] = detail["loc"]
    union = _TAGGED.get(kind)
    if union and where and where[0] == union:
        tag_at = 2 if union == "steps" else 1
        where = [part for at, part in enumerate(where) if at != tag_at]
        if detail["type"].startswith("union_tag"):
            where = [*where, _TAG_OF[union]]
    named = ".".join(str(part)[:100] for part in where)
    return named.encode(errors="replace").decode()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
