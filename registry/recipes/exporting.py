"""Writing a version as a file of torch or of JAX, which a job has to load it for."""

from collections.abc import Mapping
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import BaseRecipe, Frozen, ModelReference, Produces

Target = Literal["torchscript", "pt2", "aotinductor", "stablehlo"]

FILES: Final[Mapping[Target, str]] = {
    "torchscript": "torchscript.pt",
    "pt2": "program.pt2",
    "aotinductor": "aotinductor.pt2",
    "stablehlo": "stablehlo.jaxexport",
}
"""What the file of each target is called."""

RUN_CODE: Final[frozenset[Target]] = frozenset({"torchscript", "pt2", "aotinductor"})
"""Those whose loader does what the file says, as it does with files from anywhere."""


class Export(Frozen):
    """Write the model so that it is loaded without its code, and hold it against the version."""

    model_config = ConfigDict(title="Export")

    method: Literal["export"] = Field(default="export", title="Method")
    target: Target = Field(
        title="Format",
        description=(
            "torchscript and pt2 need torch alone where they are loaded, stablehlo JAX; "
            "aotinductor is compiled for machines like the worker's."
        ),
    )


class ExportRecipe(BaseRecipe):
    """Write a version as TorchScript, an exported program, or StableHLO, kept beside it."""

    model_config = ConfigDict(title="Export")
    produces: ClassVar[Produces] = "export"

    kind: Literal["export"] = Field(title="Kind")
    model: ModelReference
    steps: tuple[Export, ...] = Field(min_length=1, max_length=1, strict=False, title="Steps")

    @property
    def target(self) -> Target:
        (step,) = self.steps
        return step.target

    @property
    def file(self) -> str:
        """Name the file that it makes."""
        return FILES[self.target]

    def _gains_by_gpu(self) -> bool:
        return False
