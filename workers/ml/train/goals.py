"""What a training run lowers, and how well a module does on the rows held out of it."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Tensors = tuple[Tensor, ...]


class Goal(Protocol):
    """A loss over one batch, as the loop asks for it; both are computed where the module is."""

    score_name: str
    """What the score of `assess` is called in curves, such as accuracy."""
    dropout: bool
    """Whether the module trains with its dropout, or as it runs later."""

    def loss(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        """Give the mean loss over the batch, a float32 scalar."""
        ...

    def assess(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> tuple[float, float]:
        """Give the sums over the rows of the batch of the loss and of the score."""
        ...


class Classify:
    """Cross-entropy to the right classes; targets are one number a row."""

    score_name = "accuracy"
    dropout = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._label_smoothing = label_smoothing

    def loss(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        logits_BK = module(*inputs)
        return functional.cross_entropy(
            logits_BK.float(), targets[0], label_smoothing=self._label_smoothing
        )

    def assess(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> tuple[float, float]:
        logits_BK = module(*inputs).float()
        loss = functional.cross_entropy(logits_BK, targets[0], reduction="sum").item()
        return loss, float((logits_BK.argmax(1) == targets[0]).sum().item())


class MatchVectors:
    """One minus the cosine to the vectors that another model gave; needs no labels.

    Dropout is left out: its noise would be the larger part of so small a loss.
    """

    score_name = "cosine"
    dropout = False

    def loss(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        return (1 - self._cosine(module, inputs, targets)).mean()

    def assess(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> tuple[float, float]:
        cosine = self._cosine(module, inputs, targets).sum().item()
        return len(targets[0]) - cosine, cosine

    @staticmethod
    def _cosine(module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        found_BH: Tensor = module(*inputs).float()
        cosine_B: Tensor = torch.cosine_similarity(found_BH, targets[0].float(), dim=1)
        return cosine_B
