"""What a linear classifier finds in an encoder's vectors: the accuracy that they are good for."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from workers.ml.statistics import unit

_ROUNDS = 100
_PENALTY = 1e-3


def fit_and_predict(
    vectors: NDArray[Any], labels: NDArray[np.int64], asked: NDArray[Any], *, classes: int
) -> NDArray[np.int64]:
    """Fit a logistic regression and give the classes that it sees in other rows.

    `vectors` [rows, ...] and `labels` [rows] are what it learns from, `asked` [others, ...] what it
    is asked about; every row is scaled to length one first. It is fitted by L-BFGS from zero with a
    small penalty on the squares of the weights, so the same vectors give the same answers.
    """
    learned = torch.from_numpy(unit(vectors))
    targets = torch.from_numpy(np.ascontiguousarray(labels))
    layer = nn.Linear(learned.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=_ROUNDS, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = nn.functional.cross_entropy(layer(learned), targets)
        found = found + _PENALTY * layer.weight.square().sum() / classes
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        answers = layer(torch.from_numpy(unit(asked))).argmax(1)
    return np.asarray(answers.numpy(), dtype=np.int64)
