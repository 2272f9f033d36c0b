"""Low rank: linear layers as products of two thin ones, and fine-tunes as small differences.

All functions are plain PyTorch; singular values are computed in float64, and the sign of each pair
of vectors is fixed, so that the same weights give the same factors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml.compress.bench import Bench
from workers.ml.compress.prune import layers_of
from workers.ml.structure import LowRank, factored, replace, stored_names, with_change


class Factors(NamedTuple):
    """`up @ down` is the best approximation of that rank (Eckart and Young 1936)."""

    down: Tensor
    """rank x in"""
    up: Tensor
    """out x rank"""


def truncate(matrix: Tensor, rank: int) -> Factors:
    """Cut a matrix down to a rank by its singular values, shared evenly between both factors.

    Args:
        matrix: out x in.
        rank: 1 <= rank <= min(out, in).

    """
    left, values, right = _decompose(matrix)
    root = values[:rank].sqrt()
    return Factors(
        (root[:, None] * right[:rank]).to(matrix.dtype), (left[:, :rank] * root).to(matrix.dtype)
    )


def _decompose(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    largest = left.abs().argmax(0)
    sign = left.gather(0, largest[None])[0].sign()
    sign = torch.where(sign == 0, torch.ones_like(sign), sign)
    return left * sign, values, right * sign[:, None]


def rank_for_energy(matrix: Tensor, energy: float) -> int:
    """Tell the smallest rank whose squared singular values are that share of all."""
    squared = torch.linalg.svdvals(matrix.detach().double()).pow(2)
    if not squared.sum() > 0:
        return 1
    reached = squared.cumsum(0) / squared.sum()
    return int((reached < energy - 1e-12).sum()) + 1


def rank_for_ratio(matrix: Tensor, ratio: float) -> int:
    """Tell the largest rank whose factors have at most that share of the matrix's numbers."""
    wide, deep = matrix.shape
    return max(1, int(ratio * wide * deep / (wide + deep)))


@dataclass
class Factored:
    """What became of the layers."""

    ranks: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    """Of each replaced layer's weights: the norm of what is lost over the norm of all."""
    left: dict[str, Text] = field(default_factory=dict)


def factor_layers(
    module: nn.Module, choose: Callable[[Tensor], int], exclude: Sequence[str] = ()
) -> Factored:
    """Replace the linear layers of a module, in place, where two thin ones are smaller.

    Args:
        module: on the CPU.
        choose: tells the rank for a weight, out x in.
        exclude: patterns of names of layers to leave alone.

    Raises:
        Invalid: no layer becomes smaller.

    """
    done = Factored()
    chosen = layers_of(module, exclude)
    thin = [name for name, layer in module.named_modules() if isinstance(layer, LowRank)]
    for name, layer in layers_of(module).items():
        if not isinstance(layer, nn.Linear):
            continue
        if name.rpartition(".")[0] in thin:
            done.left[name] = Text("is low rank already")
        elif name not in chosen:
            done.left[name] = Text("left out by name")
        else:
            _factor_layer(module, name, layer, choose(layer.weight), done)
    if not done.ranks:
        raise Invalid(
            "No layer of this model becomes smaller at such a rank: {layers}.",
            code="nothing_to_factor",
            layers="; ".join(f"{name} {why}" for name, why in [*done.left.items()][:10])
            or "it has no linear layer",
        )
    return done


def _factor_layer(
    module: nn.Module, name: str, layer: nn.Linear, rank: int, done: Factored
) -> None:
    wide, deep = layer.weight.shape
    rank = min(rank, wide, deep)
    if rank * (wide + deep) >= wide * deep:
        done.left[name] = Text(
            "needs rank {rank}, and saves nothing from {even}",
            rank=rank,
            even=break_even(layer.weight),
        )
        return
    factors = truncate(layer.weight, rank)
    thin = LowRank(deep, wide, rank, bias=layer.bias is not None)
    state = {"down.weight": factors.down, "up.weight": factors.up}
    if layer.bias is not None:
        state["up.bias"] = layer.bias.detach()
    thin.load_state_dict(state)
    lost = layer.weight.detach() - factors.up @ factors.down
    done.ranks[name] = rank
    done.errors[name] = float(lost.norm() / layer.weight.detach().norm().clamp(min=1e-30))
    replace(module, name, thin.train(layer.training))


def break_even(matrix: Tensor) -> int:
    """Tell the smallest rank from which on two factors are no smaller than the matrix."""
    wide, deep = matrix.shape
    return -(-wide * deep // (wide + deep))


# --- fine-tunes as differences ------------------------------------------------------------------


@dataclass(frozen=True)
class Adapters:
    """A fine-tune as low-rank differences to its base (Hu et al. 2021)."""

    factors: dict[str, Factors]
    """By the name of the weight: `base + up @ down`."""
    whole: dict[str, Tensor]
    """Differences of what is no matrix, such as biases and norms, as they are."""
    errors: dict[str, float]
    """The norm of what is lost over the norm of the difference, by the name of the weight."""

    def stored(self) -> dict[str, Tensor]:
        """Name the tensors as PEFT does: `{weight}.lora_A.weight` and `{weight}.lora_B.weight`."""
        named: dict[str, Tensor] = {}
        for name, factors in self.factors.items():
            layer = name.removesuffix(".weight")
            named[f"{layer}.lora_A.weight"] = factors.down.contiguous()
            named[f"{layer}.lora_B.weight"] = factors.up.contiguous()
        return {**named, **{f"{name}.diff": tensor for name, tensor in self.whole.items()}}


def extract_lora(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], rank: int) -> Adapters:
    """Factor the difference that a fine-tune made.

    Args:
        base: tensors by their names.
        tuned: tensors of the same names and shapes.
        rank: of each matrix's difference; smaller where the matrix has a smaller side.

    Raises:
        Invalid: the two have other tensors; the first of them is named.

    """
    shapes = [{name: tuple(t.shape) for name, t in state.items()} for state in (base, tuned)]
    if odd := sorted(name for name, _ in shapes[0].items() ^ shapes[1].items()):
        raise Invalid(
            "The fine-tune has other tensors than its base, such as {tensor!r}.",
            code="weights_mismatch",
            tensor=odd[0],
        )
    factors: dict[str, Factors] = {}
    whole: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for name, before in base.items():
        difference = tuned[name].detach() - before.detach()
        if not difference.is_floating_point() or not bool(difference.any()):
            continue
        if difference.ndim != 2:
            whole[name] = difference
            continue
        found = truncate(difference, min(rank, *difference.shape))
        factors[name] = found
        errors[name] = float((difference - found.up @ found.down).norm() / difference.norm())
    return Adapters(factors, whole, errors)


def apply_lora(base: Mapping[str, Tensor], adapters: Adapters) -> dict[str, Tensor]:
    """Give the fine-tune's tensors back, as far as the adapters hold them."""
    tuned = {name: tensor.detach().clone() for name, tensor in base.items()}
    for name, found in adapters.factors.items():
        tuned[name] += found.up @ found.down
    for name, difference in adapters.whole.items():
        tuned[name] += difference
    return tuned


# --- a step of a recipe -------------------------------------------------------------------------


def svd_step(step: recipes.LowRank, bench: Bench) -> Mapping[str, Any]:
    """Cut the linear layers of what is on the bench down to a rank."""
    module = bench.need_module("A low rank").cpu()
    choices: dict[str, Callable[[Tensor], int]] = {
        "energy": lambda weight: rank_for_energy(weight, step.energy),
        "rank": lambda _weight: step.rank,
        "ratio": lambda weight: rank_for_ratio(weight, step.ratio),
    }
    before = sum(parameter.numel() for parameter in module.parameters())
    done = factor_layers(module, choices[step.by], step.exclude)
    after = sum(parameter.numel() for parameter in module.parameters())
    change = factored(stored_names(module, list(done.ranks)))
    bench.structure = with_change(bench.structure, change)
    for name, why in done.left.items():
        bench.job.events.log(Text("{layer} is left as it is: {why}.", layer=name, why=why))
    return {
        "ranks": done.ranks,
        "errors": done.errors,
        "left": {name: why.detail for name, why in done.left.items()},
        "parameters": [before, after],
    }
