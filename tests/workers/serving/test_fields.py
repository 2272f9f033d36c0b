"""What a served model answers, said as words."""

import numpy as np
import pytest

from workers.serving.fields import Fields


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_probabilities_are_said_as_they_are(dtype):
    fields = Fields("tensors", [], ["y"], ["cat", "dog", "owl"])
    sure = np.array([[0.9375, 0.0625, 0.0], [0.0, 0.0, 1.0]], dtype)
    first, second = fields.answers([sure], [])
    assert (first["label"], first["score"]) == ("cat", 0.9375)
    assert second["scores"] == {"cat": 0.0, "dog": 0.0, "owl": 1.0}
    scores = np.log(np.array([[1.0, 2.0, 5.0]], dtype))
    (third,) = fields.answers([scores], [])
    assert third["score"] == pytest.approx(0.625, abs=1e-3)
