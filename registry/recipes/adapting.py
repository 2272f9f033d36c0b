"""Taking a fine-tune apart into its base and a small adapter."""

from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from registry.recipes.fields import Frozen, ModelReference


class ExtractLora(Frozen):
    """Keep of a fine-tune only what it changed in its base, at a low rank; the last step."""

    model_config = ConfigDict(title="Extract a LoRA adapter")
    default_variant: ClassVar[str] = "adapter"

    method: Literal["extract_lora"] = Field(title="Method")
    base: ModelReference = Field(
        title="Base version",
        description="The version that this one was fine-tuned from: namespace/name, "
        "namespace/name@3 or namespace/name@alias.",
        json_schema_extra={"reference": "model"},
    )
    rank: int = Field(
        default=16,
        ge=1,
        le=1024,
        title="Rank",
        description="Of what each linear layer and embedding table has learned.",
    )
