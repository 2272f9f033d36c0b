"""Comparing the weights of two versions, tensor by tensor."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import BASE, BaseRecipe, Frozen, ModelReference, Produces


class Diff(Frozen):
    """Read both, and say of each tensor whether it is new, gone, reshaped, or how it changed."""

    model_config = ConfigDict(title="Compare weights")

    method: Literal["diff"] = Field(default="diff", title="Method")


class DiffRecipe(BaseRecipe):
    """See tensor by tensor what became of the weights of one version in another one."""

    model_config = ConfigDict(title="Compare weights")
    produces: ClassVar[Produces] = "evaluations"

    kind: Literal["diff"] = Field(title="Kind")
    base: ModelReference = Field(title="Earlier version")
    model: ModelReference = Field(title="Later version")
    steps: tuple[Diff, ...] = Field(
        default=(Diff(),), min_length=1, max_length=1, strict=False, title="Steps"
    )

    def references(self) -> dict[str, str]:
        return {"model": self.model, BASE: self.base}

    def _gains_by_gpu(self) -> bool:
        return False
