"""Codes of few bits, several in a byte."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Put several codes into a byte along the last axis, the first in the lowest bits.

    Raises:
        ValueError: the last axis is not a whole number of bytes.

    """
    per_byte = 8 // bits
    if codes.shape[-1] % per_byte:
        raise ValueError(f"{codes.shape[-1]} codes of {bits} bits do not fill whole bytes.")
    grouped = codes.astype(np.uint8).reshape(*codes.shape[:-1], -1, per_byte)
    shifts = (np.arange(per_byte) * bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(grouped << shifts, axis=-1), dtype=np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Take the codes out of the bytes again."""
    shifts = (np.arange(8 // bits) * bits).astype(np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1).astype(np.uint8)


def pad_last(values: NDArray[Any], multiple: int, filler: int = 0) -> NDArray[Any]:
    """Fill the last axis up to a multiple."""
    missing = -values.shape[-1] % multiple
    if not missing:
        return values
    widths = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
    return np.pad(values, widths, constant_values=filler)
