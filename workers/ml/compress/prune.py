"""Pruning by single weights: which become zero, when, and how they stay zero.

Masks are boolean tensors of their weight's shape, true where the weight is kept. All functions
work on any module; the handlers at the end fit them to a recipe.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.modules.conv import _ConvNd

from registry import recipes
from registry.errors import Invalid
from workers.ml.architectures.sentence_encoder import SentenceEncoder
from workers.ml.compress.bench import Bench
from workers.ml.compress.learn import Lessons, open_lessons, train_dense_control, train_module
from workers.ml.train.examples import Examples
from workers.ml.train.hooks import Hooks

Weights = Mapping[str, Parameter]
Masks = dict[str, Tensor]

_RAMP = 2 / 3
_UPDATES = 100
_LISTED = 200


# --- which weights ------------------------------------------------------------------------------


def layers_of(module: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Name the layers whose weights may be pruned: linear, convolutions, LSTMs; no norms.

    Raises:
        Invalid: a pattern of `exclude` fits no layer of the module.

    """
    found = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd | nn.LSTM) and not _is_unused(module, name)
    }
    everything = [name for name, _ in module.named_modules()]
    for pattern in exclude:
        if not fnmatch.filter(everything, pattern):
            raise Invalid(
                "No layer is called {pattern}; this model has {layers}.",
                code="no_such_layer",
                pattern=pattern,
                layers=", ".join([*found][:20]) or "none that can be pruned",
            )
    return {
        name: layer
        for name, layer in found.items()
        if not any(_fits(name, pattern) for pattern in exclude)
    }


def _fits(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def _is_unused(module: nn.Module, name: str) -> bool:
    """Tell whether a layer computes nothing that leaves the module."""
    return isinstance(module, SentenceEncoder) and f"{name}.".startswith("encoder.pooler.")


def weights_of(layers: Mapping[str, nn.Module]) -> dict[str, Parameter]:
    """Name the weights of layers: every parameter with two axes or more, so never a bias."""
    return {
        f"{layer}.{name}": parameter
        for layer, module in layers.items()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    }


def embedding_of(module: nn.Module) -> tuple[str, nn.Embedding]:
    """Find the table of words: the embedding with the most rows."""
    tables = [(name, m) for name, m in module.named_modules() if isinstance(m, nn.Embedding)]
    if not tables:
        raise Invalid("This model has no embedding table.", code="nothing_to_prune")
    return max(tables, key=lambda named: named[1].num_embeddings)


# --- masks --------------------------------------------------------------------------------------


def keep_largest(scores: Mapping[str, Tensor], sparsity: float, scope: str) -> Masks:
    """Keep the largest scores: `round(sparsity * count)` of them fall, exactly, and never all.

    Args:
        scores: any shapes; compared as they are, so magnitudes must come as absolute values.
        sparsity: 0 <= sparsity < 1, of all scores together or of each tensor.
        scope: `global` or `layer`.

    Of equal scores at the limit, the first in order fall.

    """
    if scope == "layer":
        return {name: _keep_largest(score, sparsity) for name, score in scores.items()}
    joined = torch.cat([score.flatten() for score in scores.values()])
    kept = _keep_largest(joined, sparsity)
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {
        name: part.view(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    flat = scores.detach().flatten()
    fall = min(round(sparsity * flat.numel()), flat.numel() - 1)
    if fall == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = flat.kthvalue(fall).values
    kept = flat > limit
    tied = (flat == limit).nonzero().flatten()
    below = int((flat < limit).sum())
    kept[tied[fall - below :]] = True
    return kept.view(scores.shape)


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: str) -> Masks:
    """Keep the weights of the largest magnitude (Han et al. 2015)."""
    return keep_largest({n: w.detach().abs() for n, w in weights.items()}, sparsity, scope)


def pattern_masks(
    weights: Mapping[str, Tensor], kept: int, of: int, layers: Mapping[str, str] | None = None
) -> Masks:
    """Keep the `kept` largest of each `of` neighbours along the input axis (N:M sparsity).

    `layers` says whose each weight is; without it, what stands before a name's last dot.

    Raises:
        Invalid: the inputs of a layer are no multiple of `of`; the layer is named.

    """
    masks = {}
    for name, weight in weights.items():
        inputs = weight.shape[1]
        if inputs % of:
            raise Invalid(
                "The pattern {kept}:{of} does not divide the {inputs} inputs of {layer}: "
                "leave that layer alone, or choose another pattern.",
                code="bad_pattern",
                kept=kept,
                of=of,
                inputs=inputs,
                layer=layers[name] if layers else name.rpartition(".")[0],
            )
        last = weight.detach().abs().movedim(1, -1)
        groups = last.reshape(*last.shape[:-1], inputs // of, of)
        order = groups.argsort(dim=-1, descending=True, stable=True)
        chosen = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :kept], True)  # noqa: FBT003 - the value
        masks[name] = chosen.flatten(-2).movedim(-1, 1).contiguous()
    return masks


def frequency_mask(table: nn.Embedding, counts: Tensor, share: float) -> Tensor:
    """Keep the rows of the most frequent words; of equal counts, the first rows.

    Magnitude would rank mostly the random numbers that rare words started from.

    Args:
        table: rows x size.
        counts: int64 [rows], how often each word was seen.
        share: of the rows that fall.

    """
    fall = round(share * table.num_embeddings)
    order = counts.argsort(descending=True, stable=True)
    kept = torch.zeros(table.num_embeddings, dtype=torch.bool)
    kept[order[: table.num_embeddings - fall]] = True
    return kept[:, None].expand(table.weight.shape).contiguous()


def count_words(examples: Examples, rows: int) -> Tensor:
    """Count how often each word is the first input of the examples: int64 [rows]."""
    counts = torch.zeros(rows, dtype=torch.int64)
    for low in range(0, len(examples.labels), 256):
        high = min(low + 256, len(examples.labels))
        words = examples.batch(np.arange(low, high))[0]
        counts += torch.bincount(words.flatten(), minlength=rows)[:rows]
    return counts


@torch.no_grad()
def apply_masks(weights: Weights, masks: Mapping[str, Tensor]) -> None:
    """Set to zero what the masks do not keep."""
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask.to(weights[name].device), 0.0)


def _beside(weights: Weights, masks: Mapping[str, Tensor]) -> Masks:
    """Give the masks on the devices of their weights, where training has moved these."""
    return {name: mask.to(weights[name].device) for name, mask in masks.items()}


def zero_masks(weights: Weights) -> Masks:
    """Give masks that keep what is not exactly zero, of the weights that have zeros."""
    masks = {name: weight.detach() != 0 for name, weight in weights.items()}
    return {name: mask for name, mask in masks.items() if not bool(mask.all())}


def cubic(at: int, ramp: int, final: float) -> float:
    """Tell the sparsity after `at` of `ramp` steps (Zhu and Gupta 2017); fast first, then slow."""
    left = max(0.0, 1 - at / ramp) if ramp else 0.0
    return final * (1 - left**3)


# --- while a module trains ----------------------------------------------------------------------


class KeepZeros(Hooks):
    """Weights that are zero when training begins are zero after every step."""

    def __init__(self, module: nn.Module) -> None:
        layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Embedding)}
        self._weights = weights_of({**layers_of(module), **layers})
        self._masks = zero_masks(self._weights)

    def after_step(self, at: int, total: int) -> None:
        del at, total
        self._masks = _beside(self._weights, self._masks)
        apply_masks(self._weights, self._masks)

    def tensors(self) -> Mapping[str, Tensor]:
        return self._masks

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._masks = dict(tensors)


class MagnitudePruning(Hooks):
    """Zeroes the smallest weights on a schedule, and keeps them zero.

    Args:
        weights: what may be pruned.
        sparsity, scope: as `magnitude_masks` takes them.
        gradual: along a cubic curve over two thirds of the steps; else at once, at the start or,
            with an L1 penalty, after a third of the steps.
        l1: times the sum of the magnitudes is added to the loss.
        pattern: kept and of, instead of a sparsity.
        fixed: masks from the start on, of other weights such as an embedding table.
        others: the weights that `fixed` is of.

    """

    def __init__(
        self,
        weights: Weights,
        sparsity: float,
        scope: str,
        *,
        gradual: bool,
        l1: float = 0.0,
        pattern: tuple[int, int] | None = None,
        fixed: Mapping[str, Tensor] | None = None,
        others: Weights | None = None,
    ) -> None:
        self._weights, self._all = weights, {**weights, **(others or {})}
        self._sparsity, self._scope, self._pattern = sparsity, scope, pattern
        self._gradual, self._l1 = gradual, l1
        self._masks: Masks = dict(fixed or {})
        if not gradual and l1 == 0:
            self._cut(sparsity)
        apply_masks(self._all, self._masks)

    def penalty(self, module: nn.Module) -> Tensor | None:
        del module
        if self._l1 == 0:
            return None
        sums = [weight.abs().sum() for weight in self._weights.values()]
        return self._l1 * torch.stack(sums).sum()

    def after_step(self, at: int, total: int) -> None:
        whole = self._whole_from(total)
        if self._gradual:
            every = max(1, whole // _UPDATES)
            if at == whole or (at < whole and at % every == 0):
                self._cut(cubic(at, whole, self._sparsity))
        elif at == whole:
            self._cut(self._sparsity)
        self._masks = _beside(self._all, self._masks)
        apply_masks(self._all, self._masks)

    def is_whole(self, at: int, total: int) -> bool:
        return at >= self._whole_from(total)

    def tensors(self) -> Mapping[str, Tensor]:
        return self._masks

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._masks = dict(tensors)

    def _whole_from(self, total: int) -> int:
        if self._gradual:
            return max(1, round(total * _RAMP))
        return max(1, total // 3) if self._l1 else 0

    def _cut(self, sparsity: float) -> None:
        masks = (
            pattern_masks(self._weights, *self._pattern)
            if self._pattern
            else magnitude_masks(self._weights, sparsity, self._scope)
        )
        self._masks |= masks


class MovementPruning(Hooks):
    """Zeroes the weights that training moves towards zero (Sanh et al. 2020).

    The loss is that of the masked module; the weights behind the mask live on. A weight's score is
    minus the sum over the steps of its gradient times its value: it rises while the weight grows
    away from zero. Sparsity rises along a cubic curve over two thirds of the steps.
    """

    def __init__(self, weights: Weights, sparsity: float) -> None:
        self._weights, self._sparsity = weights, sparsity
        self._dense = {name: weight.detach().clone() for name, weight in weights.items()}
        self._scores = {name: torch.zeros_like(dense) for name, dense in self._dense.items()}
        self._masks = {n: torch.ones_like(d, dtype=torch.bool) for n, d in self._dense.items()}

    @torch.no_grad()
    def on_gradients(self) -> None:
        for name, weight in self._weights.items():
            dense = self._dense[name] = self._dense[name].to(weight.device)
            self._scores[name] = self._scores[name].to(weight.device)
            self._masks[name] = self._masks[name].to(weight.device)
            if weight.grad is not None:
                self._scores[name] -= weight.grad * dense
                weight.grad *= self._masks[name]
            weight.copy_(dense)

    @torch.no_grad()
    def after_step(self, at: int, total: int) -> None:
        for name, weight in self._weights.items():
            self._dense[name].copy_(weight)
        whole = self._whole_from(total)
        if at == whole or (at < whole and at % max(1, whole // _UPDATES) == 0):
            self._masks = keep_largest(self._scores, cubic(at, whole, self._sparsity), "global")
        apply_masks(self._weights, self._masks)

    def is_whole(self, at: int, total: int) -> bool:
        return at >= self._whole_from(total)

    def tensors(self) -> Mapping[str, Tensor]:
        groups = {"dense": self._dense, "scores": self._scores, "masks": self._masks}
        return {f"{g}/{name}": t for g, named in groups.items() for name, t in named.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name in self._weights:
            self._dense[name] = tensors[f"dense/{name}"].clone()
            self._scores[name] = tensors[f"scores/{name}"].clone()
            self._masks[name] = tensors[f"masks/{name}"].clone()

    @staticmethod
    def _whole_from(total: int) -> int:
        return max(1, round(total * _RAMP))


# --- steps of a recipe --------------------------------------------------------------------------


def prune_magnitude_step(step: recipes.PruneMagnitude, bench: Bench) -> Mapping[str, Any]:
    """Prune what is on the bench, at once or while it trains."""
    module = bench.need_module("Pruning").cpu()
    weights = _weights(module, step.exclude)
    pattern = read_pattern(step.pattern)
    if pattern:
        pattern_masks(weights, *pattern)  # refuses before the rows are read
    lessons = open_lessons(bench, step) if step.needs_rows else None
    fixed, others = _rare_words(step, module, lessons)
    hooks = MagnitudePruning(
        weights,
        step.sparsity,
        step.scope,
        gradual=step.schedule == "gradual",
        l1=step.l1,
        pattern=pattern,
        fixed=fixed,
        others=others,
    )
    notes: dict[str, Any] = {}
    if step.epochs:
        assert lessons is not None
        notes = tune(bench, module, lessons, step, hooks)
    return {**sparsity_notes({**weights, **others}), **notes}


def prune_movement_step(step: recipes.PruneMovement, bench: Bench) -> Mapping[str, Any]:
    """Prune by movement while what is on the bench trains."""
    module = bench.need_module("Movement pruning").cpu()
    weights = _weights(module, step.exclude)
    lessons = open_lessons(bench, step)
    notes = tune(bench, module, lessons, step, MovementPruning(weights, step.sparsity))
    return {**sparsity_notes(weights), **notes}


def fine_tune_step(step: recipes.FineTune, bench: Bench) -> Mapping[str, Any]:
    """Train what is on the bench some more."""
    module = bench.need_module("Fine-tuning").cpu()
    lessons = open_lessons(bench, step)
    hooks = KeepZeros(module) if step.keep_zeros else Hooks()
    return tune(bench, module, lessons, step, hooks)


def tune(
    bench: Bench, module: nn.Module, lessons: Lessons, budget: recipes.Budget, hooks: Hooks
) -> dict[str, Any]:
    """Fine-tune under hooks, and give a dense control the same budget."""
    tuned = train_module(bench, module, lessons, budget, name="fine_tune", hooks=hooks)
    notes: dict[str, Any] = {"fine_tuning": tuned}
    if control := train_dense_control(bench, lessons, budget):
        notes["dense_control"] = control
    return notes


def sparsity_notes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Count zeros, in all and by layer."""
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    by_layer = {name: zeros[name] / weights[name].numel() for name in list(weights)[:_LISTED]}
    return {
        "weights": total,
        "zeros": sum(zeros.values()),
        "sparsity": sum(zeros.values()) / total,
        "sparsity_by_layer": by_layer,
    }


def _weights(module: nn.Module, exclude: Sequence[str]) -> dict[str, Parameter]:
    weights = weights_of(layers_of(module, exclude))
    if not weights:
        raise Invalid("Every layer that could be pruned was left out.", code="nothing_to_prune")
    return weights


def read_pattern(pattern: str | None) -> tuple[int, int] | None:
    """Read `2:4` as the two numbers it has."""
    if pattern is None:
        return None
    kept, of = map(int, pattern.split(":"))
    return kept, of


def _rare_words(
    step: recipes.PruneMagnitude, module: nn.Module, lessons: Lessons | None
) -> tuple[Masks, dict[str, Parameter]]:
    if step.embeddings == "leave" or lessons is None:
        return {}, {}
    name, table = embedding_of(module)
    parameter = table.get_parameter("weight")
    counts = count_words(lessons.train, table.num_embeddings)
    mask = frequency_mask(table, counts, step.sparsity)
    return {f"{name}.weight": mask}, {f"{name}.weight": parameter}
