"""Quantization-aware training: the model learns with the rounding that it will run with.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (2018): weights are rounded on the way forward, gradients go straight through, and the
range of each layer's input follows a moving average while training.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from registry import recipes
from registry.errors import Invalid
from workers.ml.compress.activations import calibration_rows
from workers.ml.compress.bench import Bench
from workers.ml.compress.layers import Graph, Layer, attribute
from workers.ml.compress.learn import open_lessons
from workers.ml.compress.prune import KeepZeros, layers_of, tune
from workers.ml.compress.quantize import Range, Static, quantize_with_ranges
from workers.ml.compress.weight_only import round_rest

_FOLLOW = 0.05
"""How far a range moves towards each new batch."""
# Rows for the ranges of what training did not see, such as a convolution's answers.
_ROWS = 256


@dataclass(frozen=True)
class Learned:
    """What a layer was trained with."""

    weight: NDArray[np.float32]
    """Rounded: whole multiples of each output's scale."""
    low: float
    high: float


class Aware(nn.Module):
    """A linear or convolutional layer that rounds its weights and its input.

    Weights get int8 codes from -limit to limit, a scale for each output; inputs uint8 codes with a
    zero point. `low` and `high` are the range of the input, followed while gradients are on.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, limit: int) -> None:
        super().__init__()
        self.layer = layer
        self.limit = limit
        self.low = nn.Buffer(torch.zeros(()))
        self.high = nn.Buffer(torch.zeros(()))
        self.seen = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._follow(x.detach())
        weight = self.rounded_weight()
        rounded = self._round_input(x)
        if isinstance(self.layer, nn.Linear):
            return functional.linear(rounded, weight, self.layer.bias)
        answer: Tensor = self.layer._conv_forward(rounded, weight, self.layer.bias)  # noqa: SLF001 - torch's own seam
        return answer

    def rounded_weight(self) -> Tensor:
        """Give the weights as int8 codes times the scale of their output; straight through."""
        weight = self.layer.weight
        largest = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-12)
        scale = (largest / self.limit).float()
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight.float(), scale, zeros, 0, -self.limit, self.limit
        )

    def _round_input(self, x: Tensor) -> Tensor:
        if not bool(self.seen):
            return x
        scale = ((self.high - self.low) / 255).clamp(min=1e-12)
        zero = torch.round(-self.low / scale).clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, 255)

    def _follow(self, x: Tensor) -> None:
        # Zero is always among what can be said exactly: padding is made of it.
        low, high = x.min().float().clamp(max=0), x.max().float().clamp(min=0)
        if bool(self.seen):
            self.low += _FOLLOW * (low - self.low)
            self.high += _FOLLOW * (high - self.high)
        else:
            self.low.copy_(low)
            self.high.copy_(high)
            self.seen.fill_(True)  # noqa: FBT003 - torch's signature


def prepare(
    module: nn.Module, *, reduce_range: bool = True, exclude: Sequence[str] = ()
) -> list[str]:
    """Put rounding into the linear layers and convolutions of a module, in place; name them.

    With `reduce_range` weights get 7 bits, which no CPU's integer products saturate on.

    Raises:
        Invalid: there is no such layer, or a pattern of `exclude` fits none.

    """
    named = [
        name
        for name, layer in layers_of(module, exclude).items()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    if not named:
        raise Invalid(
            "No layer of this model can be trained with rounding: linear layers and convolutions "
            "can.",
            code="nothing_to_quantize",
        )
    for name in named:
        _put(module, name, Aware(module.get_submodule(name), 64 if reduce_range else 127))  # type: ignore[arg-type]  # chosen by type above
    return named


def finish(module: nn.Module) -> dict[str, Learned]:
    """Put the layers back, in place, with rounded weights; tell what each was trained with."""
    found = {name: part for name, part in module.named_modules() if isinstance(part, Aware)}
    learned = {}
    for name, part in found.items():
        with torch.no_grad():
            part.layer.weight.copy_(part.rounded_weight().to(part.layer.weight.dtype))
        weight = part.layer.weight.detach().cpu().float().numpy()
        learned[name] = Learned(weight, float(part.low), float(part.high))
        _put(module, name, part.layer)
    return learned


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)


def locate(file: Path, learned: Mapping[str, Learned]) -> dict[str, tuple[Layer, Learned]]:
    """Find the trained layers in the exported graph, by node: exporters keep weights, not names.

    Raises:
        Invalid: one is not there.

    """
    graph = Graph(file)
    by_weight = {_digest(found.weight): name for name, found in learned.items()}
    located: dict[str, tuple[Layer, Learned]] = {}
    missing = set(learned)
    for node in graph.nodes:
        for layer in graph.layers_of(node):
            if layer.role == "table" or not graph.is_constant(layer.weight):
                continue
            values = graph.read(layer.weight)
            turned = layer.operator == "MatMul" or (
                layer.operator == "Gemm" and not attribute(node, "transB", 0)
            )
            name = by_weight.get(_digest(values.T if turned else values))
            if name is not None:
                located[layer.name] = (layer, learned[name])
                missing.discard(name)
    if missing:
        raise Invalid(
            "The exported model has lost the layer {layer}; exclude it from the training.",
            code="export_failed",
            layer=min(missing),
        )
    return located


def _digest(values: NDArray[Any]) -> str:
    shape = ",".join(map(str, values.shape))
    content = np.ascontiguousarray(values, dtype=np.float32).tobytes()
    return hashlib.sha256(shape.encode() + content).hexdigest()


def train_quantized_step(step: recipes.TrainQuantized, bench: Bench) -> Mapping[str, Any]:
    """Train what is on the bench with rounding, and write it in 8 bits with the trained ranges."""
    module = bench.need_module("Training with rounding").cpu()
    lessons = open_lessons(bench, step)
    named = prepare(module, reduce_range=step.reduce_range, exclude=step.exclude)
    notes = tune(bench, module, lessons, step, KeepZeros(module))
    learned = finish(module)
    source = bench.need_file()
    located = locate(source, learned)
    known = {layer.input: Range(found.low, found.high) for layer, found in located.values()}
    target = bench.new_file("model.onnx")
    quantize_with_ranges(
        source,
        target,
        Static(reduce_range=step.reduce_range),
        calibration_rows(bench, _ROWS, source),
        known=known,
        only=sorted(located),
    )
    round_rest(target)
    bench.file = target
    ranges = {name: [found.low, found.high] for name, found in learned.items()}
    return {**notes, "layers": named, "input_ranges": ranges}
