"""Merging models of one shape: means, arcs, and what fine-tunes have learned since their origin.

Plain functions over state dicts, tensor by tensor in float64; tensors that hold no fractions
(positions, counters) must be equal and stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from registry import recipes
from registry.errors import Invalid
from workers.ml.compress.bench import Bench
from workers.ml.formats import ModelFolder, open_model
from workers.ml.infer.engines import TorchEngine
from workers.ml.infer.runtime import Runtime, load_runtime

State = Mapping[str, Tensor]
_VOCABULARIES = ("vocabulary.json", "tokenizer.json", "vocab.txt", "merges.txt")
# Closer than this, two directions have no arc to speak of.
_PARALLEL = 0.9995


def average(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Take the weighted mean; weights are scaled to sum to one.

    Raises:
        ValueError: the weights sum to zero or less.

    """
    whole = sum(weights)
    if whole <= 0:
        raise ValueError("The weights must sum to more than zero.")
    shares = [weight / whole for weight in weights]

    def mean(tensors: list[Tensor]) -> Tensor:
        return sum(
            (share * found for share, found in zip(shares, tensors, strict=True)), torch.zeros(())
        )

    return _each(states, mean)


def slerp(first: State, second: State, share: float) -> dict[str, Tensor]:
    """Go along the arc from `first` (0) to `second` (1), each tensor on its own sphere.

    Shoemake, "Animating Rotation with Quaternion Curves" (1985), as used for model weights: lengths
    are kept better than by a straight line. Nearly parallel tensors are mixed in a straight line.
    """

    def arc(tensors: list[Tensor]) -> Tensor:
        a, b = tensors
        lengths = float(a.norm()) * float(b.norm())
        cosine = float((a * b).sum()) / lengths if lengths else 1.0
        if abs(cosine) > _PARALLEL:
            return (1 - share) * a + share * b
        angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
        return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(
            angle
        )

    return _each([first, second], arc)


def task_arithmetic(
    base: State, tuned: Sequence[State], weights: Sequence[float], scale: float = 1.0
) -> dict[str, Tensor]:
    """Add up what each has learned since `base`: base + scale * sum of w (tuned - base).

    Ilharco et al., "Editing Models with Task Arithmetic" (2022). A negative weight unlearns.
    """

    def add(tensors: list[Tensor]) -> Tensor:
        origin, *others = tensors
        learned = [weight * (found - origin) for weight, found in zip(weights, others, strict=True)]
        return origin + scale * torch.stack(learned).sum(0)

    return _each([base, *tuned], add)


def ties(
    base: State,
    tuned: Sequence[State],
    weights: Sequence[float],
    *,
    density: float = 0.2,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Trim what each has learned to its largest part, elect a sign, average those that agree.

    Yadav et al., "TIES-Merging: Resolving Interference When Merging Models" (2023): the share
    `density` of each task vector's entries, over all tensors, is kept; the sign with the larger
    total wins; the mean is over those that have it, zeros left out.
    """
    limits = [_limit(base, found, density) for found in tuned]

    def sift(tensors: list[Tensor]) -> Tensor:
        origin, *others = tensors
        learned = torch.stack(
            [
                weight * torch.where((found - origin).abs() >= limit, found - origin, 0.0)
                for weight, found, limit in zip(weights, others, limits, strict=True)
            ]
        )
        sign = torch.sign(learned.sum(0))
        agrees = (torch.sign(learned) == sign) & (learned != 0)
        share = torch.stack([torch.full_like(origin, abs(weight)) for weight in weights]) * agrees
        # A weighted mean over those that agree; each entry was multiplied by its weight already.
        whole = share.sum(0)
        mean = torch.where(whole > 0, (learned * agrees).sum(0) / whole.clamp(min=1e-300), 0.0)
        return origin + scale * mean

    return _each([base, *tuned], sift)


def _limit(base: State, tuned: State, density: float) -> float:
    """Find the size that a change must have to be among the largest share of all."""
    changes = torch.cat(
        [
            (tuned[name].double() - base[name].double()).abs().flatten()
            for name in base
            if base[name].is_floating_point()
        ]
    )
    kept = max(1, round(density * changes.numel()))
    return float(changes.kthvalue(changes.numel() - kept + 1).values)


def _each(states: Sequence[State], merge: Any) -> dict[str, Tensor]:
    first = states[0]
    merged = {}
    for name, tensor in first.items():
        if tensor.is_floating_point():
            made = merge([state[name].double() for state in states])
            merged[name] = made.to(tensor.dtype)
        else:
            merged[name] = tensor.clone()
    return merged


# --- on the bench -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Other:
    """Another version of the same shape, on the CPU."""

    title: str
    state: State


def merge_step(step: recipes.Merge, bench: Bench) -> Mapping[str, Any]:
    """Merge the versions that the step names into what is on the bench."""
    module = bench.need_module("Merging")
    own = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    others = [
        load_other(bench, own, f"{recipes.OTHER}{number}")
        for number in range(1, len(step.others) + 1)
    ]
    states = [other.state for other in others]
    if step.algorithm == "average":
        merged = average([own, *states], step.weights or [1.0] * (1 + len(states)))
    elif step.algorithm == "slerp":
        first, second = step.weights or (1.0, 1.0)
        merged = slerp(own, states[0], second / (first + second))
    else:
        shares = step.weights or [1.0 / len(states)] * len(states)
        if step.algorithm == "task_arithmetic":
            merged = task_arithmetic(own, states, shares, step.scale)
        else:
            merged = ties(
                own,
                states,
                step.weights or [1.0] * len(states),
                density=step.density,
                scale=step.scale,
            )
    module.load_state_dict(merged)
    return {
        "merged": [
            {"version": other.title, "distance": _distance(own, other.state)} for other in others
        ]
    }


def _distance(first: State, second: State) -> float:
    """Tell how far two versions lie apart, as a share of the first's length."""
    names = [name for name in first if first[name].is_floating_point()]
    apart = sum(float(((second[name] - first[name]).double() ** 2).sum()) for name in names)
    whole = sum(float((first[name].double() ** 2).sum()) for name in names)
    return float((apart / whole) ** 0.5) if whole else 0.0


def load_other(bench: Bench, own: State, role: str) -> Other:
    """Load a version that a step names beside the model.

    Raises:
        Invalid: it is the model itself, an ONNX file, or of another shape or vocabulary.

    """
    named = bench.job.input(role)
    if named.ref == bench.job.input("model").ref:
        raise Invalid(
            "{other} is the model itself; name versions that were tuned from it.",
            code="cannot_merge",
            other=named.title,
        )
    folder = open_model(named.path, trainable=True)
    _check_words(bench.given, folder, named.title)
    runtime: Runtime = load_runtime(folder, device="cpu", threads=bench.job.threads)
    if not isinstance(runtime.engine, TorchEngine):
        raise Invalid(
            "{other} is an ONNX file: choose the version that it was made from, which still has "
            "the weights of a torch model.",
            code="needs_module",
            other=named.title,
        )
    state = runtime.engine.module.state_dict()
    for name in sorted(own.keys() | state.keys()):
        here, there = own.get(name), state.get(name)
        if here is None or there is None or here.shape != there.shape:
            raise Invalid(
                "{other} has another shape than the model: {tensor} is {found}, not {expected}.",
                code="cannot_merge",
                other=named.title,
                tensor=name,
                found=list(there.shape) if there is not None else "missing",
                expected=list(here.shape) if here is not None else "no such tensor",
            )
        if not here.is_floating_point() and not torch.equal(here.cpu(), there.cpu()):
            raise Invalid(
                "{other} differs from the model in {tensor}, whole numbers that have no mean.",
                code="cannot_merge",
                other=named.title,
                tensor=name,
            )
    return Other(named.title, {name: state[name].detach().cpu() for name in own})


def _check_words(first: ModelFolder, second: ModelFolder, title: str) -> None:
    """Refuse versions whose answers, or whose inputs, mean something else."""
    if first.labels != second.labels:
        raise Invalid(
            "{other} has other labels than the model ({found}, not {expected}); their answers "
            "cannot be mixed.",
            code="cannot_merge",
            other=title,
            found=", ".join(second.labels[:10]) or "none",
            expected=", ".join(first.labels[:10]) or "none",
        )
    for name in _VOCABULARIES:
        words = [
            (folder.path / name).read_bytes() if (folder.path / name).is_file() else None
            for folder in (first, second)
        ]
        if words[0] != words[1]:
            raise Invalid(
                "{other} numbers words otherwise than the model: {file} differs.",
                code="cannot_merge",
                other=title,
                file=name,
            )
