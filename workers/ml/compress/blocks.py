"""Rounding a matrix to a few bits, block by block: to the nearest, or with errors made up for.

Plain functions over tensors; nothing here knows of files or graphs. Matrices are `weight_NK`: N
outputs, K inputs, as `torch.nn.Linear` keeps them. A block is a run of inputs of one output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# What a block's range is shrunk to, in the search for the one with the least squared error.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
_COLUMNS_AT_ONCE = 128
_WIDEST, _PART = 4096, 2048
_SMALLEST_HALF, _LARGEST_HALF = 2.0**-14, 65504.0
# A matrix whose largest scale is smaller keeps its scales in float32.
_WIDE_ENOUGH = 2.0**-11


@dataclass(frozen=True)
class Grid:
    """Where a matrix may be rounded to: `(code - zero) * scale`, a pair for each block.

    `scale_NB` is float32, `zero_NB` holds whole numbers from 0 to 2^bits - 1; both are
    [N, ceil(K / block)].
    """

    bits: int
    block: int
    scale_NB: Tensor
    zero_NB: Tensor
    half: bool = False
    """Whether float16 holds every scale exactly."""


def fit(weight_NK: Tensor, *, bits: int, block: int, symmetric: bool, half: bool = False) -> Grid:
    """Choose each block's scale and zero point by the least squared error of its own weights.

    With `half`, scales are numbers that float16 holds exactly, where the matrix allows it.
    """
    blocks_NBK, mask_BK = _blocks(weight_NK, block)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    for shrink in _SHRINKS if bits < 8 else _SHRINKS[:1]:
        scale_NB, zero_NB = _range(blocks_NBK, bits, symmetric=symmetric, shrink=shrink)
        rounded = _round(blocks_NBK, scale_NB, zero_NB, bits)
        error_NB = (((rounded - blocks_NBK) * mask_BK) ** 2).sum(2)
        found = scale_NB, zero_NB, error_NB
        if best is not None:
            better = error_NB < best[2]
            found = (
                torch.where(better, scale_NB, best[0]),
                torch.where(better, zero_NB, best[1]),
                torch.where(better, error_NB, best[2]),
            )
        best = found
    assert best is not None
    scale_NB = best[0]
    largest = float(scale_NB.abs().max())
    half = half and _WIDE_ENOUGH <= largest <= _LARGEST_HALF
    if half:
        # Where all of a block is nearly nothing, a scale that is too large rounds it to nothing.
        size = scale_NB.abs().clamp(min=_SMALLEST_HALF)
        scale_NB = torch.where(scale_NB < 0, -size, size).half().float()
    return Grid(bits, block, scale_NB, best[1], half=half)


def encode(weight_NK: Tensor, grid: Grid) -> Tensor:
    """Give the codes of the nearest points of the grid: int32 [N, K]."""
    scale_NK, zero_NK = _spread(grid, weight_NK.shape[1])
    codes = torch.round(weight_NK / scale_NK) + zero_NK
    return codes.clamp(0, 2**grid.bits - 1).to(torch.int32)


def decode(codes_NK: Tensor, grid: Grid) -> Tensor:
    """Give the numbers that codes stand for: float32 [N, K]."""
    scale_NK, zero_NK = _spread(grid, codes_NK.shape[1])
    return (codes_NK.to(torch.float32) - zero_NK) * scale_NK


def gptq(
    weight_NK: Tensor,
    curvature_KK: Tensor,
    *,
    bits: int,
    block: int,
    symmetric: bool,
    half: bool = False,
    damping: float = 0.01,
    activation_order: bool = True,
) -> tuple[Tensor, Grid]:
    """Round inputs one after the other, each time moving those that follow to make up for it.

    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2022). `curvature_KK` is X^T X over calibration rows. The grid is fitted to the
    untouched weights, as the order of inputs would otherwise tear blocks apart. Of more than 4,096
    inputs, runs of 2,048 are rounded by themselves: the work grows with the cube of their number.
    Gives the codes (int32 [N, K]) and the grid.

    Raises:
        ValueError: the curvature is not finite, or not K by K.

    """
    inputs = weight_NK.shape[1]
    if curvature_KK.shape != (inputs, inputs) or not bool(torch.isfinite(curvature_KK).all()):
        raise ValueError(f"The curvature must be finite and {inputs} by {inputs}.")
    grid = fit(weight_NK, bits=bits, block=block, symmetric=symmetric, half=half)
    scale_NK, zero_NK = _spread(grid, inputs)
    width = inputs if inputs <= _WIDEST else _PART
    codes = [
        _compensate(
            weight_NK[:, part],
            curvature_KK[part, part],
            scale_NK[:, part],
            zero_NK[:, part],
            bits=bits,
            damping=damping,
            activation_order=activation_order,
        )
        for part in (slice(low, low + width) for low in range(0, inputs, width))
    ]
    return torch.cat(codes, dim=1), grid


def _compensate(
    weight_NK: Tensor,
    curvature_KK: Tensor,
    scale_NK: Tensor,
    zero_NK: Tensor,
    *,
    bits: int,
    damping: float,
    activation_order: bool,
) -> Tensor:
    inputs = weight_NK.shape[1]
    curvature_KK = curvature_KK.double()
    strength_K = curvature_KK.diagonal().clone()
    order_K = torch.arange(inputs, device=weight_NK.device)
    if activation_order:
        order_K = torch.argsort(strength_K, descending=True, stable=True)
    factor_KK = _inverse_factor(curvature_KK[order_K][:, order_K].clone(), damping)
    left_NK = weight_NK.double()[:, order_K].clone()
    scale_NK, zero_NK = (part.double()[:, order_K] for part in (scale_NK, zero_NK))
    codes_NK = torch.empty_like(left_NK)
    for low in range(0, inputs, _COLUMNS_AT_ONCE):
        high = min(low + _COLUMNS_AT_ONCE, inputs)
        errors = torch.zeros_like(left_NK[:, low:high])
        for at in range(low, high):
            codes = torch.round(left_NK[:, at] / scale_NK[:, at]) + zero_NK[:, at]
            codes_NK[:, at] = codes.clamp_(0, 2**bits - 1)
            rounded = (codes_NK[:, at] - zero_NK[:, at]) * scale_NK[:, at]
            error_N = (left_NK[:, at] - rounded) / factor_KK[at, at]
            left_NK[:, at:high] -= error_N.unsqueeze(1) * factor_KK[at, at:high]
            errors[:, at - low] = error_N
        left_NK[:, high:] -= errors @ factor_KK[low:high, high:]
    restored = torch.empty_like(codes_NK)
    restored[:, order_K] = codes_NK
    return restored.to(torch.int32)


def output_error(weight_NK: Tensor, rounded_NK: Tensor, curvature_KK: Tensor) -> float:
    """Tell the squared error of the layer's outputs as a share of what they are: from X^T X."""
    lost_NK = (rounded_NK - weight_NK).to(curvature_KK.dtype)
    whole_NK = weight_NK.to(curvature_KK.dtype)
    lost = ((lost_NK @ curvature_KK) * lost_NK).sum()
    whole = ((whole_NK @ curvature_KK) * whole_NK).sum()
    return float(lost / whole) if float(whole) > 0 else 0.0


def weight_error(weight_NK: Tensor, rounded_NK: Tensor) -> float:
    """Tell the squared error of the weights themselves, as a share."""
    whole = float((weight_NK.double() ** 2).sum())
    return float(((rounded_NK - weight_NK).double() ** 2).sum()) / whole if whole else 0.0


def _blocks(weight_NK: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Cut into [N, B, block], the last block filled up with zeros; and which of it is real."""
    outputs, inputs = weight_NK.shape
    count = -(-inputs // block)
    padded = torch.nn.functional.pad(weight_NK.float(), (0, count * block - inputs))
    real = torch.arange(count * block, device=weight_NK.device) < inputs
    return padded.reshape(outputs, count, block), real.reshape(count, block)


def _range(
    blocks_NBK: Tensor, bits: int, *, symmetric: bool, shrink: float
) -> tuple[Tensor, Tensor]:
    high = blocks_NBK.amax(2).clamp(min=0)
    low = blocks_NBK.amin(2).clamp(max=0)
    if symmetric:
        # The larger side gets the code that has no counterpart: -8 of -8 to 7.
        extreme = torch.where(high > -low, high, low) * shrink
        scale = extreme / -(2 ** (bits - 1))
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        scale = (high - low) * shrink / (2**bits - 1)
        zero = torch.round(-low * shrink / scale).clamp(0, 2**bits - 1)
    empty = scale == 0
    scale = torch.where(empty, torch.ones_like(scale), scale)
    zero = torch.where(empty, torch.full_like(zero, 2 ** (bits - 1)), zero)
    return scale, zero


def _round(blocks_NBK: Tensor, scale_NB: Tensor, zero_NB: Tensor, bits: int) -> Tensor:
    scale, zero = scale_NB.unsqueeze(2), zero_NB.unsqueeze(2)
    codes = (torch.round(blocks_NBK / scale) + zero).clamp(0, 2**bits - 1)
    return (codes - zero) * scale


def _spread(grid: Grid, inputs: int) -> tuple[Tensor, Tensor]:
    """Give every input its block's scale and zero point: [N, K]."""
    scale, zero = (
        part.repeat_interleave(grid.block, dim=1)[:, :inputs]
        for part in (grid.scale_NB, grid.zero_NB)
    )
    return scale, zero


def _inverse_factor(curvature_KK: Tensor, damping: float) -> Tensor:
    """Give the upper Cholesky factor of the inverse: what one rounding costs those that follow."""
    diagonal = curvature_KK.diagonal()
    mean = float(diagonal.mean())
    diagonal += damping * mean if mean > 0 else 1.0
    for _ in range(8):
        lower, failed = torch.linalg.cholesky_ex(curvature_KK)
        if not int(failed):
            inverse = torch.cholesky_inverse(lower)
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not int(failed):
                assert isinstance(factor, Tensor)
                return factor
        # Rows fewer than inputs leave directions without curvature; more damping gives them some.
        diagonal += 10 * damping * max(mean, 1e-6)
    raise ValueError("The curvature has no inverse, however much it is damped.")
