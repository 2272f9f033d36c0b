"""Linear layers whose weights are whole numbers of 8 or 4 bits, and compute in floating point.

A weight is `(number - zero) * scale`. Of 8 bits, each output has one scale and no zero. Of 4 bits,
each run of inputs that share a scale has a zero of its own, and two numbers share a byte: the first
in its upper half. The file holds plain tensors, so it loads wherever torch does; on a GPU the
products of 4 bits run in torch's own kernel, elsewhere the weights are unpacked for each product.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn

HALF: Final = 8
"""What stands for no offset among the numbers 0 to 15."""
_TILES: Final = 8  # of 16 inputs each, that the kernel takes at a time
_MOST_INPUTS: Final = 1024  # a multiple of it is what the kernel takes
_MOST_OUTPUTS: Final = 8
LEAST_CAPABILITY: Final = (8, 0)
"""Of a CUDA device whose tensor cores the kernel of 4 bits needs."""


class PackedLinear(nn.Module):
    """A linear layer with packed weights; it answers as one, and does not learn."""

    numbers: Tensor
    scales: Tensor
    zeros: Tensor | None
    bias: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, *, bits: int, groups: int, bias: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        width, kind = (in_features, torch.int8) if bits == 8 else (in_features // 2, torch.uint8)
        kept = torch.float32 if bits == 8 else torch.bfloat16
        self.register_buffer("numbers", torch.zeros(out_features, width, dtype=kind))
        self.register_buffer("scales", torch.zeros(out_features, groups, dtype=kept))
        zeros = None if bits == 8 else torch.zeros(out_features, groups, dtype=torch.uint8)
        self.register_buffer("zeros", zeros)
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)
        self._tiles: tuple[Tensor, Tensor] | None = None

    @property
    def group(self) -> int:
        """How many inputs share a scale."""
        return self.in_features // self.scales.shape[1]

    @property
    def weight(self) -> Tensor:
        """The weights that the numbers stand for, for code that looks at a linear layer's."""
        scales = self.scales.float().repeat_interleave(self.group, 1)
        return self.whole_numbers().float() * scales

    def whole_numbers(self) -> Tensor:
        """Give how many steps each weight is from zero: outputs x inputs."""
        if self.zeros is None:
            return self.numbers.to(torch.int16)
        halves = torch.stack([self.numbers >> 4, self.numbers & 15], dim=-1).flatten(1)
        zeros = self.zeros.to(torch.int16).repeat_interleave(self.group, 1)
        return halves.to(torch.int16) - zeros

    def forward(self, x: Tensor) -> Tensor:
        if self.bits == 8:
            product = nn.functional.linear(x, self.numbers.to(x.dtype))
            product = product * self.scales.squeeze(1).to(x.dtype)
            return self._shifted(product)
        if x.is_cuda and torch.cuda.get_device_capability(x.device) >= LEAST_CAPABILITY:
            return self._multiplied(x)
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    def _multiplied(self, x: Tensor) -> Tensor:
        """Multiply by what is packed, in torch's kernel for it, which knows bfloat16 alone."""
        numbers, scales = self._tiled()
        rows = x.reshape(-1, self.in_features).to(torch.bfloat16)
        wide = _up(self.in_features, _MOST_INPUTS)
        rows = nn.functional.pad(rows, (0, wide - self.in_features))
        product = torch.ops.aten._weight_int4pack_mm(rows, numbers, self.group, scales)  # noqa: SLF001 - it has no other name
        product = product[:, : self.out_features].to(x.dtype)
        return self._shifted(product.reshape(*x.shape[:-1], self.out_features))

    def _shifted(self, product: Tensor) -> Tensor:
        return product if self.bias is None else product + self.bias

    def scales_and_middles(self) -> Tensor:
        """Give each scale, and what the number eight stands for: groups x outputs x 2, padded."""
        assert self.zeros is not None
        more = _up(self.out_features, _MOST_OUTPUTS) - self.out_features
        groups = _up(self.in_features, _MOST_INPUTS) // self.group - self.scales.shape[1]
        middles = (HALF - self.zeros.float()) * self.scales.float()
        both = torch.stack([self.scales.float(), middles], dim=-1).to(torch.bfloat16)
        both = nn.functional.pad(both, (0, 0, 0, groups, 0, more))
        return both.transpose(0, 1).contiguous()

    def _tiled(self) -> tuple[Tensor, Tensor]:
        """Give the numbers in the order of the kernel, and what they are scaled by."""
        if self._tiles is None or self._tiles[0].device != self.numbers.device:
            more = _up(self.out_features, _MOST_OUTPUTS) - self.out_features
            wider = (_up(self.in_features, _MOST_INPUTS) - self.in_features) // 2
            numbers = nn.functional.pad(self.numbers, (0, wider, 0, more)).contiguous()
            tiles = torch.ops.aten._convert_weight_to_int4pack(numbers, _TILES)  # noqa: SLF001 - it has no other name
            self._tiles = tiles, self.scales_and_middles()
        return self._tiles

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedLinear":
        wide, deep = self.out_features, self.in_features
        groups, bias = self.scales.shape[1], self.bias is not None
        copied = PackedLinear(deep, wide, bits=self.bits, groups=groups, bias=bias)
        copied.to(self.numbers.device).load_state_dict(self.state_dict())
        memo[id(self)] = copied
        return copied.train(self.training)


def packed_layers(module: nn.Module) -> list[tuple[str, PackedLinear]]:
    """Name the packed layers of a module."""
    return [(name, part) for name, part in module.named_modules() if isinstance(part, PackedLinear)]


def weights_in(kind: str, dtype: str) -> int:
    """Tell how many weights an element of a packed layer's tensor is: none where it scales them."""
    if kind in {"scales", "zeros"}:
        return 0
    return 2 if kind == "numbers" and dtype == "U8" else 1


def pack_halves(numbers: Tensor) -> Tensor:
    """Put two numbers from 0 to 15 into each byte, the first in its upper half."""
    halves = numbers.to(torch.uint8)
    return (halves[:, ::2] << 4) | halves[:, 1::2]


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
