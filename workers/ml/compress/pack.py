"""Weights of linear layers in 8 or 4 bits, as torchao rounds them; the model stays a torch module.

torchao chooses the numbers and their scales; what is kept of its tensors is plain
(`workers.ml.packed`), so that a version opens without torchao, without a pickle, and on any device.
"""

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml.compress import blocks
from workers.ml.compress.bench import Bench
from workers.ml.compress.prune import layers_of
from workers.ml.packed import HALF, LEAST_CAPABILITY, PackedLinear, pack_halves
from workers.ml.structure import packed, packed_names, replace, stored_names, with_change


@dataclass(frozen=True)
class Layer:
    """What became of one layer."""

    layer: str
    bits: int
    weight_error: float
    """Squared error as a share of the squared weights."""


@dataclass
class Done:
    """What was packed, and what was left for which reason."""

    layers: list[Layer] = field(default_factory=list)
    left: dict[str, Text] = field(default_factory=dict)


def check_packing(step: recipes.PackLinear, bench: Bench) -> None:
    """Refuse before any step works what the machine or the model does not have.

    Raises:
        Invalid: with what to use in its place.

    """
    if importlib.util.find_spec("torchao") is None:
        raise Invalid(
            "{package} is not installed on this worker: install it there, or use "
            "quantize_weights, which makes an ONNX file and does not need it.",
            code="missing_library",
            package="torchao",
        )
    if step.bits == 4:
        require_int4(bench.job.device)


def require_int4(device: str) -> None:
    """Pass on a device that multiplies by weights of 4 bits.

    Raises:
        Invalid: it does not; the device is named.

    """
    name = device
    if device == "cuda" and torch.cuda.is_available():
        if torch.cuda.get_device_capability() >= LEAST_CAPABILITY:
            return
        name = torch.cuda.get_device_name()
    said = recipes.no_int4(name)
    raise Invalid(said.template, code="no_int4", **said.values)


def refuse_packed(bench: Bench) -> None:
    """Refuse to change weights that are packed already; they can only be coded.

    Raises:
        Invalid: they are.

    """
    if packed_names(bench.structure):
        others = [step.method for step in bench.recipe.steps if step.method != "code"]
        if others:
            raise Invalid(
                "The weights of this model are packed, so {method} cannot change them: choose the "
                "version that it was made from.",
                code="already_quantized",
                method=others[0],
            )


def pack_linear_step(step: recipes.PackLinear, bench: Bench) -> Mapping[str, Any]:
    """Pack the linear layers of what is on the bench."""
    module = bench.need_module("Packing weights").cpu()
    done = pack_linear(module, bits=step.bits, group=step.group_size, exclude=step.exclude)
    for name, why in done.left.items():
        bench.job.events.log(Text("{layer} is left as it is: {why}.", layer=name, why=why))
    names = stored_names(module, [layer.layer for layer in done.layers])
    bench.structure = with_change(bench.structure, packed(names))
    left = {name: why.detail for name, why in done.left.items()}
    return {"layers": [asdict(layer) for layer in done.layers], "left": left}


def pack_linear(
    module: nn.Module, *, bits: int, group: int = 128, exclude: Sequence[str] = ()
) -> Done:
    """Replace linear layers by packed ones, in place.

    Args:
        module: its linear layers in float32.
        bits: 8, with one scale an output; or 4, with one for each `group` inputs.
        group: of inputs; a layer whose inputs are no multiple of it is left.
        exclude: patterns of layers to leave.

    Raises:
        Invalid: no layer can be packed.

    """
    done = Done()
    chosen: dict[str, nn.Linear] = {}
    for name, layer in layers_of(module, exclude).items():
        if type(layer) is not nn.Linear:
            kind = type(layer).__name__
            done.left[name] = Text("it is no linear layer, but {sort}", sort=kind)
        elif bits == 4 and layer.in_features % group:
            done.left[name] = Text(
                "its {inputs} inputs are no multiple of {group}",
                inputs=layer.in_features,
                group=group,
            )
        else:
            chosen[name] = layer
    if not chosen:
        raise Invalid(
            "This model has no linear layer that can be packed in {bits} bits: {layers}.",
            code="nothing_to_quantize",
            bits=bits,
            layers="; ".join(f"{name}: {why}" for name, why in [*done.left.items()][:10])
            or "it has no linear layer",
        )
    for name, layer in chosen.items():
        before = layer.weight.detach().clone()
        small = _packed(layer, _rounded(layer, bits, group), bits)
        replace(module, name, small.train(layer.training))
        error = blocks.weight_error(before, small.weight)
        done.layers.append(Layer(name, bits, float(error)))
    return done


def _rounded(layer: nn.Linear, bits: int, group: int) -> Any:
    """Let torchao round a layer's weight; give its tensor of numbers and scales."""
    # Of its kernels for other machines, each that does not load is a line in the log.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    from torchao.quantization import (  # noqa: PLC0415 - takes seconds
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerGroup,
        quantize_,
    )

    own = nn.Linear(layer.in_features, layer.out_features, bias=False)
    own.weight = nn.Parameter(layer.weight.detach().float().clone(), requires_grad=False)
    whole = nn.Sequential(own)
    config: Any = Int8WeightOnlyConfig(set_inductor_config=False)
    if bits == 4:
        config = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, "int4"),  # noqa: B009 - torch does not declare it
            granularity=PerGroup(group),
            mapping_type=MappingType.ASYMMETRIC,
            scale_dtype=torch.bfloat16,  # what the kernel on a GPU takes
        )
    quantize_(whole, config)
    return own.weight


def _packed(layer: nn.Linear, rounded: Any, bits: int) -> PackedLinear:
    wide, deep = layer.weight.shape
    scales: Tensor = rounded.scale.reshape(wide, -1)
    bias = layer.bias is not None
    small = PackedLinear(deep, wide, bits=bits, groups=scales.shape[1], bias=bias)
    small.scales.copy_(scales)
    if small.zeros is None:
        small.numbers.copy_(rounded.qdata)
    else:
        small.numbers.copy_(pack_halves(rounded.qdata + HALF))
        small.zeros.copy_(rounded.zero_point.reshape(wide, -1) + HALF)
    if small.bias is not None:
        small.bias.copy_(layer.bias.detach())
    return small
