"""Made-up rows stay small, whatever a model declares."""

import numpy as np
import pytest

from registry.errors import Invalid
from workers.ml.probes import _tensors


def test_free_axes_are_short_and_fixed_ones_as_declared():
    made = _tensors({"x": (np.dtype("float32"), ["batch", 3, None])}, 5)
    assert made["x"].shape == (5, 3, 16)


def test_a_shape_that_would_fill_the_memory_is_refused():
    with pytest.raises(Invalid, match="too large"):
        _tensors({"x": (np.dtype("float32"), [1, 10**6, 10**6])}, 1)
