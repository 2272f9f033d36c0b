"""Compression: steps that make a version smaller, in order, and what is measured after them."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from registry.errors import Unfit
from registry.recipes.adapting import ExtractLora
from registry.recipes.coding import Cluster, Code
from registry.recipes.distilling import Distill, LowRank
from registry.recipes.fields import (
    ADVANCED,
    BASE,
    OTHER,
    VARIANT_PATTERN,
    BaseRecipe,
    DatasetReference,
    Frozen,
    ModelReference,
    PerChannel,
    Produces,
    ReduceRange,
    Split,
)
from registry.recipes.fusing import Fuse
from registry.recipes.merging import Merge
from registry.recipes.pruning import (
    Exclude,
    FineTune,
    PruneMagnitude,
    PruneMovement,
    PruneStructured,
)
from registry.recipes.quantization import PackLinear, QuantizationStep


class ExportOnnx(Frozen):
    """Convert the model to ONNX and check that it computes the same."""

    model_config = ConfigDict(title="Export to ONNX")
    default_variant: ClassVar[str] = "onnx"

    method: Literal["export_onnx"] = Field(title="Method")


class QuantizeDynamic(Frozen):
    """Store weights in 8 bits and quantize activations while the model runs."""

    model_config = ConfigDict(title="Quantize to int8 (dynamic)")
    default_variant: ClassVar[str] = "int8"

    method: Literal["quantize_dynamic"] = Field(title="Method")
    per_channel: PerChannel = True
    reduce_range: ReduceRange = True
    embeddings: bool = Field(
        default=True,
        title="Quantize embedding tables too",
        description="An embedding table can be half of a language model.",
        json_schema_extra=ADVANCED,
    )
    convolutions: bool = Field(
        default=False,
        title="Quantize convolutions too",
        description="Smaller, and on most CPUs slower: integer convolutions are not tuned.",
        json_schema_extra=ADVANCED,
    )
    exclude: Exclude = ()


CompressStep = Annotated[
    QuantizeDynamic
    | QuantizationStep
    | ExportOnnx
    | Fuse
    | Merge
    | PruneMagnitude
    | PruneStructured
    | PruneMovement
    | FineTune
    | Cluster
    | Code
    | LowRank
    | ExtractLora
    | Distill,
    Field(discriminator="method"),
]


# Steps that need a torch module, and steps that leave an ONNX file.
_OF_A_MODULE = frozenset(
    {
        "prune_magnitude",
        "prune_structured",
        "prune_movement",
        "fine_tune",
        "cluster",
        "svd",
        "distill",
        "extract_lora",
        "pack_linear",
    }
)
_OF_A_FILE = frozenset({"export_onnx", "quantize_dynamic", "quantize_static"})


def _works_on(exported: str, step: CompressStep) -> bool:
    """Tell whether a step changes the weights of a float32 graph as well, without training."""
    untrained = isinstance(step, PruneMagnitude | Cluster) and not step.needs_rows
    return untrained and exported == "export_onnx"


class CompressRecipe(BaseRecipe):
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
    steps: tuple[CompressStep, ...] = Field(min_length=1, max_length=8, strict=False, title="Steps")
    train_split: Split = Field(
        default="train",
        title="Split to learn from",
        description="Rows that steps calibrate, fine-tune or distil with.",
        json_schema_extra=ADVANCED,
    )
    test_split: Split = Field(
        default="test",
        title="Split to measure on",
        description="Looked at once, after the last step.",
        json_schema_extra=ADVANCED,
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, title="Seed", json_schema_extra=ADVANCED)

    @model_validator(mode="after")
    def _coded_last(self) -> Self:
        if any(isinstance(step, Code) for step in self.steps[:-1]):
            raise Unfit("Coding writes the file that stays: put it last, and once.")
        if any(isinstance(step, ExtractLora) for step in self.steps[:-1]):
            raise Unfit("An adapter is what is left of the model: put it last, and once.")
        after = [step.method for step in self._after_packing() if not isinstance(step, Code)]
        if after:
            raise Unfit(
                "Packed weights do not change any more: put {method} before pack_linear.",
                method=after[0],
            )
        return self

    @property
    def variant_name(self) -> str:
        return self.variant or self.steps[-1].default_variant

    @model_validator(mode="after")
    def _has_rows_to_learn_from(self) -> Self:
        if self.dataset is None and self._learns():
            raise Unfit("A step of this recipe learns from rows: name a dataset.")
        return self

    @model_validator(mode="after")
    def _measured_on_other_rows(self) -> Self:
        if self.train_split == self.test_split and self.looks_at_rows:
            raise Unfit("A step learns from the split that is measured on: name two splits.")
        return self

    @model_validator(mode="after")
    def _modules_before_files(self) -> Self:
        """Refuse now what would be refused once the steps before it have worked."""
        exported = ""
        for step in self.steps:
            if exported and step.method in _OF_A_MODULE and not _works_on(exported, step):
                raise Unfit(
                    "{later} changes the weights of a torch model: put it before {earlier}, which "
                    "makes an ONNX file of it.",
                    later=step.method,
                    earlier=exported,
                )
            if step.method in _OF_A_FILE:
                exported = step.method
        return self

    @model_validator(mode="after")
    def _merged_once(self) -> Self:
        if sum(isinstance(step, Merge) for step in self.steps) > 1:
            raise Unfit("Merge once: name all versions in one step.")
        return self

    @model_validator(mode="after")
    def _has_rows_to_calibrate_on(self) -> Self:
        for step in self.steps:
            if self.dataset is None and (instead := getattr(step, "works_uncalibrated", "")):
                raise Unfit(
                    "A step of this recipe calibrates on rows: name a dataset. {instead} needs "
                    "none.",
                    instead=instead,
                )
        return self

    @property
    def looks_at_rows(self) -> bool:
        """Whether a step learns from rows or calibrates on them, so that they tell no quality."""
        calibrates = any(getattr(step, "works_uncalibrated", "") for step in self.steps)
        return calibrates or self._learns()

    def measured_split(self, splits: Iterable[str]) -> str:
        """Name the split to measure on: where nobody named one, the first will do for `test`."""
        there = list(splits)
        default = type(self).model_fields["test_split"].default
        if self.test_split in there or self.test_split != default:
            return self.test_split
        return there[0]

    def references(self) -> dict[str, str]:
        """Tell which versions the job reads; those that are merged are other_1 and so on."""
        return {**super().references(), **self._others()}

    def resolved(self, references: Mapping[str, str]) -> Self:
        """Return the same recipe with its references replaced by exact ones."""
        own = self._others()
        exact = super().resolved({role: ref for role, ref in references.items() if role not in own})
        if not own:
            return exact
        named = {**own, **{role: ref for role, ref in references.items() if role in own}}
        base = named.pop(BASE, None)
        changed: dict[str, dict[str, Any]] = {
            "merge": {"others": list(named.values())},
            "extract_lora": {"base": base},
        }
        steps = [{**step, **changed.get(step["method"], {})} for step in exact.to_json()["steps"]]
        return type(self).model_validate({**exact.to_json(), "steps": steps})

    def field_of(self, role: str) -> str:
        """Name the field of the recipe that a role comes from."""
        for at, step in enumerate(self.steps):
            if role == BASE and isinstance(step, ExtractLora):
                return f"steps.{at}.{BASE}"
            if role.startswith(OTHER) and isinstance(step, Merge):
                return f"steps.{at}.others.{int(role.removeprefix(OTHER)) - 1}"
        return role

    def _others(self) -> dict[str, str]:
        others = [text for step in self.steps if isinstance(step, Merge) for text in step.others]
        named = {f"{OTHER}{number}": text for number, text in enumerate(others, 1)}
        last = self.steps[-1]
        return {**named, BASE: last.base} if isinstance(last, ExtractLora) else named

    def _learns(self) -> bool:
        return any(getattr(step, "needs_rows", False) for step in self.steps)

    def _after_packing(self) -> tuple[CompressStep, ...]:
        packs = [isinstance(step, PackLinear) for step in self.steps]
        return self.steps[packs.index(True) + 1 :] if any(packs) else ()

    def _gains_by_gpu(self) -> bool:
        return self._learns() or any(isinstance(step, PackLinear) for step in self.steps)
