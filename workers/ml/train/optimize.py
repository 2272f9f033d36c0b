"""Optimizers, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from registry import recipes


def build_optimizer(step: recipes.Train, module: nn.Module) -> Optimizer:
    """Build the optimizer; biases and other vectors are not decayed."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": step.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rate = step.learning_rate
    match step.optimizer:
        case "sgd":
            return SGD(groups, lr=rate)
        case "momentum":
            return SGD(groups, lr=rate, momentum=step.momentum, nesterov=step.momentum > 0)
        case "adam":
            return Adam(groups, lr=rate)
        case "adamw":
            return AdamW(groups, lr=rate)
        case "rmsprop":
            return RMSprop(groups, lr=rate, momentum=step.momentum)


def learning_rate(step: recipes.Train, at: int, *, total: int, steps_per_epoch: int) -> float:
    """Tell the learning rate of step number `at`, so that a resumed run needs no state for it."""
    warmup = min(step.warmup_steps, max(0, total - 1))
    if at < warmup:
        return step.learning_rate * (at + 1) / (warmup + 1)
    done = (at - warmup) / max(1, total - warmup)
    match step.schedule:
        case "constant":
            factor = 1.0
        case "cosine":
            factor = (1 + math.cos(math.pi * done)) / 2
        case "linear":
            factor = 1 - done
        case "step":
            factor = step.decay_factor ** (at // (steps_per_epoch * step.decay_epochs))
    return step.learning_rate * factor


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip(module: nn.Module, norm: float | None) -> None:
    if norm is not None:
        torch.nn.utils.clip_grad_norm_(module.parameters(), norm)
