"""Computing the same with less: folding, fusing, and storing once what is there twice."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import Frozen


class Fuse(Frozen):
    """Fold batch norms and constants, fuse operators, keep once what is stored twice."""

    model_config = ConfigDict(title="Fuse operators")
    default_variant: ClassVar[str] = "fused"

    method: Literal["fuse"] = Field(title="Method")
    level: Literal["basic", "extended"] = Field(
        default="basic",
        title="How far operators are fused",
        description="Basic stays with ONNX's own operators; extended uses ONNX Runtime's too, "
        "which cannot be quantized afterwards.",
    )
    share: bool = Field(
        default=True,
        title="Store equal tensors once",
        description="Layers that share weights take their bytes once.",
    )
