"""Weight sharing: the weights of a layer become a few values that many places share.

Han, Mao, Dally: Deep Compression (2015), chapter 3: k-means over the weights of a layer that are
not zero, from evenly spread values, which keeps the few large weights better than values drawn by
density; then training moves the shared values by the sum of the gradients of their places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from registry import recipes
from registry.errors import Invalid
from workers.ml.compress.bench import Bench
from workers.ml.compress.learn import open_lessons
from workers.ml.compress.prune import tune
from workers.ml.train.hooks import Hooks

_FLOATS: Final = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Shared:
    """What one tensor became: its values, and how far the weights had to move."""

    values: int
    zeros: int
    mean_squared_error: float


def cluster_step(step: recipes.Cluster, bench: Bench) -> Mapping[str, Any]:
    """Share the weights of the module on the bench, and train what they share."""
    module = bench.need_module("Sharing weights").cpu()
    lessons = open_lessons(bench, step) if step.needs_rows else None
    done = share_module(module, bits=step.bits, rounds=step.rounds, smallest=step.smallest)
    notes = notes_of(done, step.smallest)
    if lessons is not None:
        notes |= tune(bench, module, lessons, step, Sharing(module, smallest=step.smallest))
    return notes


def notes_of(done: Mapping[str, Shared], smallest: int) -> dict[str, Any]:
    """Sum up what became of the tensors.

    Raises:
        Invalid: nothing was shared.

    """
    if not done:
        raise Invalid(
            "No layer of this model has {smallest} weights or more to share.",
            code="nothing_to_share",
            smallest=smallest,
        )
    return {
        "layers": len(done),
        "values": sum(shared.values for shared in done.values()),
        "worst_mean_squared_error": max(shared.mean_squared_error for shared in done.values()),
    }


def share_module(
    module: nn.Module, *, bits: int, rounds: int = 50, smallest: int = 256
) -> dict[str, Shared]:
    """Share the weights of every matrix and kernel of a module, in place.

    Biases and norms (tensors of fewer than two axes) stay as they are, and so do tensors of fewer
    than `smallest` numbers. A parameter that stands in two places is shared once.
    """
    done: dict[str, Shared] = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and parameter.numel() >= smallest and parameter.dtype in _FLOATS:
            done[name] = share_tensor(parameter.data, bits=bits, rounds=rounds)
    return done


def share_tensor(weights: Tensor, *, bits: int, rounds: int = 50) -> Shared:
    """Give a tensor at most `2**bits` different values, in place; its zeros stay zero.

    Zero is one of the values where the tensor has any. The same weights give the same values.

    Raises:
        Invalid: a weight is not a finite number.

    """
    flat = weights.detach().reshape(-1).cpu()
    numbers = flat.to(torch.float64).numpy()
    if not np.isfinite(numbers).all():
        raise Invalid("A weight is not a finite number.", code="not_finite")
    kept = np.flatnonzero(numbers)
    zeros = len(numbers) - len(kept)
    if not len(kept):
        return Shared(1 if zeros else 0, zeros, 0.0)
    values = find_values(numbers[kept], (1 << bits) - (1 if zeros else 0), rounds=rounds)
    # Rounded to what the tensor can hold, so that none is lost or becomes zero on the way.
    values = torch.from_numpy(values).to(flat.dtype).to(torch.float64).numpy()
    values = np.unique(values[values != 0])
    nearest = values[assign(numbers[kept], values)]
    error = float(np.square(nearest - numbers[kept]).sum() / len(numbers))
    changed = np.zeros_like(numbers)
    changed[kept] = nearest
    weights.copy_(torch.from_numpy(changed).to(flat.dtype).reshape(weights.shape))
    return Shared(len(np.unique(nearest)) + (1 if zeros else 0), zeros, error)


def find_values(
    numbers: NDArray[np.float64], count: int, *, rounds: int = 50
) -> NDArray[np.float64]:
    """Find at most `count` values with small squared distances to their nearest numbers.

    Lloyd's k-means in one dimension, over sorted numbers and their running sums: a round looks up
    borders, not numbers. A value that no number is nearest to stays where it is.
    """
    ordered = np.sort(numbers)
    different = np.unique(ordered)
    if len(different) <= count:
        return different
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    values = (
        np.linspace(ordered[0], ordered[-1], count) if count > 1 else ordered.mean(keepdims=True)
    )
    for _ in range(rounds):
        borders = np.searchsorted(ordered, (values[1:] + values[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        held = np.diff(edges)
        means = np.where(held > 0, np.diff(sums[edges]) / np.maximum(held, 1), values)
        means = np.sort(means)
        if np.array_equal(means, values):
            break
        values = means
    return values


def assign(numbers: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Give the place of the value that is nearest to each number; `values` are sorted."""
    return np.searchsorted((values[1:] + values[:-1]) / 2, numbers)


class Sharing(Hooks):
    """Trains shared values: every place of a value gets the sum of the gradients of all of them.

    Places that are zero stay zero.
    """

    def __init__(self, module: nn.Module, *, smallest: int = 256, most: int = 256) -> None:
        self._shared = [
            (parameter, *_places(parameter.detach(), most))
            for parameter in module.parameters()
            if parameter.ndim >= 2 and parameter.numel() >= smallest
        ]

    def on_gradients(self) -> None:
        for parameter, places, count, zero in self._shared:
            if parameter.grad is not None:
                held = places.to(parameter.device)
                sums = torch.zeros(count, dtype=parameter.grad.dtype, device=parameter.device)
                sums.index_add_(0, held, parameter.grad.reshape(-1))
                if zero is not None:
                    sums[zero] = 0
                parameter.grad.copy_(sums[held].reshape(parameter.shape))

    def after_step(self, at: int, total: int) -> None:  # noqa: ARG002 - a hook's shape
        with torch.no_grad():
            for parameter, places, count, zero in self._shared:
                held = places.to(parameter.device)
                # Equal gradients make equal steps but for the last bit; one place speaks for all.
                values = torch.zeros(count, dtype=parameter.dtype, device=parameter.device)
                values[held] = parameter.reshape(-1)
                if zero is not None:
                    values[zero] = 0
                parameter.copy_(values[held].reshape(parameter.shape))


def _places(weights: Tensor, most: int) -> tuple[Tensor, int, int | None]:
    values, places = torch.unique(weights, return_inverse=True)
    if len(values) > most:
        raise Invalid(
            "A layer has {count} different weights; share them before their values are trained.",
            code="not_shared",
            count=len(values),
        )
    zero = torch.nonzero(values == 0).reshape(-1)
    return places.reshape(-1), len(values), int(zero[0]) if len(zero) else None
