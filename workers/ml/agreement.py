"""How far the answers of a copy are from those of the model that it was made from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def farthest(expected: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """Give the largest difference of two arrays, and that as a share of the largest answer.

    Both are infinite where the shapes differ, or where only one of the two is a number: what
    compares with NaN is false, and would pass for no difference.
    """
    numbers = np.isfinite(expected)
    if expected.shape != found.shape or not np.array_equal(
        expected[~numbers], found[~numbers], equal_nan=True
    ):
        return float("inf"), float("inf")
    expected, found = expected[numbers].astype(np.float64), found[numbers].astype(np.float64)
    if not np.isfinite(found).all():
        return float("inf"), float("inf")
    largest = float(np.abs(expected - found).max(initial=0.0))
    return largest, largest / max(1.0, float(np.abs(expected).max(initial=0.0)))
