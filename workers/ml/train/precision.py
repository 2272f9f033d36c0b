"""Mixed precision where the device gains by it; plain float32 everywhere else."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from registry import recipes
from workers.ml.environment import cpu_flags

_FAST_CPU = {"amx_bf16", "avx512_bf16", "bf16"}


@dataclass(frozen=True)
class Precision:
    """The type that matrix products are computed in; weights stay float32."""

    device: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scale losses only for float16, whose small gradients would vanish."""
        return torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)


def choose_precision(step: recipes.Train, device: str) -> Precision:
    """Choose by what the device can do.

    `auto` keeps float32 on a CPU, where a resumed run then equals an unbroken one bit by bit;
    `mixed` asks for bfloat16 there too, and gets it only from CPUs that have the instructions.
    """
    if step.precision == "float32":
        return Precision(device, torch.float32)
    if device == "cuda":
        half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return Precision(device, half)
    fast = step.precision == "mixed" and _FAST_CPU & set(cpu_flags())
    return Precision(device, torch.bfloat16 if fast else torch.float32)
