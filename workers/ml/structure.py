"""Changes of a module's shape, as config.json records them, and the module rebuilt with them.

`structure` in config.json is a list of changes in the order in which they were made, such as
`[{"change": "resize", "layers": ["second", "hidden"]}, {"change": "low_rank", "layers":
["classes"]}]`. It says which layers differ from what the architecture builds, never how large they
are: sizes come from the header of the weights, which cannot claim more than the file holds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from registry.errors import Invalid
from workers.ml.packed import PackedLinear

KEY = "structure"
RESIZE = "resize"
LOW_RANK = "low_rank"
PACKED = "packed"
MAX_CHANGES = 64
MAX_LAYERS = 10_000

Shapes = Mapping[str, Sequence[int]]


class LowRank(nn.Module):
    """A linear layer as the product of two thin ones: out x in numbers become rank x (out + in)."""

    def __init__(self, in_features: int, out_features: int, rank: int, *, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.up(self.down(x))
        return found

    @property
    def weight(self) -> Tensor:
        """The product, for code that looks at a linear layer's weight: out x in."""
        product: Tensor = self.up.weight @ self.down.weight
        return product

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias


def resized(layers: Sequence[str]) -> dict[str, Any]:
    """Record that layers have another size than their architecture gives them."""
    return {"change": RESIZE, "layers": list(layers)}


def factored(layers: Sequence[str]) -> dict[str, Any]:
    """Record that linear layers were replaced by two thin ones each."""
    return {"change": LOW_RANK, "layers": list(layers)}


def packed(layers: Sequence[str]) -> dict[str, Any]:
    """Record that the weights of linear layers were packed into whole numbers."""
    return {"change": PACKED, "layers": list(layers)}


def packed_names(structure: Sequence[Mapping[str, Any]]) -> set[str]:
    """Name the layers whose weights are packed."""
    return {name for change in structure if change["change"] == PACKED for name in change["layers"]}


def with_change(
    structure: Sequence[Mapping[str, Any]], change: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Add a change to a record; a layer that was factored has no size of its own any more."""
    gone = set(change["layers"]) if change["change"] == LOW_RANK else set()
    before = [
        {**old, "layers": [name for name in old["layers"] if name not in gone]} for old in structure
    ]
    return [*(old for old in before if old["layers"]), dict(change)]


def stored_names(module: nn.Module, layers: Sequence[str]) -> list[str]:
    """Name layers as the file does: an encoder's without the wrapper around it."""
    prefix = "encoder." if hasattr(module, "stored") else ""
    return [name.removeprefix(prefix) for name in layers]


def read_structure(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read what config.json says about changed shapes, bounded; empty where it says nothing."""
    said = config.get(KEY, [])
    good = (
        isinstance(said, list)
        and len(said) <= MAX_CHANGES
        and all(isinstance(change, dict) and _is_change(change) for change in said)
    )
    if not good:
        raise Invalid(
            "{key} in config.json must be a list of changes, each {kinds} with its layers.",
            code="bad_config",
            key=KEY,
            kinds=" / ".join(_CHANGES),
        )
    return list(said)


def _is_change(change: Mapping[str, Any]) -> bool:
    layers = change.get("layers")
    return (
        change.get("change") in _CHANGES
        and isinstance(layers, list)
        and len(layers) <= MAX_LAYERS
        and all(isinstance(name, str) and 0 < len(name) <= 500 for name in layers)
    )


def replay(module: nn.Module, changes: Sequence[Mapping[str, Any]], shapes: Shapes) -> None:
    """Replace the changed layers by new ones with the sizes that the tensors have.

    Nothing is filled: the module is meant to be on the meta device, or to get its weights next.

    Args:
        module: as its architecture builds it.
        changes: what `read_structure` gave.
        shapes: of the file's tensors, by the names that the changed module gives them.

    Raises:
        Invalid: a layer that is not there, of a kind that has no size, or without its tensor.

    """
    for change in changes:
        for name in change["layers"]:
            layer = _find(module, name)
            kind = str(change["change"])
            replace(module, name, _CHANGES[kind](layer, name, shapes))


def replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer where another one was."""
    above, _, own = name.rpartition(".")
    setattr(module.get_submodule(above), own, layer)


@torch.inference_mode()
def check_runs(module: nn.Module, *inputs: Tensor) -> None:
    """Refuse layers that each fit the file and not each other; one small row tells.

    Raises:
        Invalid: with what torch says against it.

    """
    try:
        module(*inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Invalid(
            "The layers of this model do not fit each other: {problem}",
            code="weights_mismatch",
            problem=(str(error).splitlines() or [repr(error)])[0][:300],
        ) from error


def _find(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        raise Invalid(
            "{key} in config.json names the layer {layer!r}, which the architecture lacks.",
            code="bad_config",
            key=KEY,
            layer=name[:100],
        ) from None


def _shape(shapes: Shapes, name: str, axes: int) -> list[int]:
    found = list(shapes.get(name, []))
    if len(found) != axes or not all(0 < size < 1 << 31 for size in found):
        raise Invalid(
            "{key} in config.json changes {tensor!r}, which is {found} in the weights.",
            code="weights_mismatch",
            key=KEY,
            tensor=name[:100],
            found=shapes.get(name, "missing"),
        )
    return found


def _resize(layer: nn.Module, name: str, shapes: Shapes) -> nn.Module:
    with _where(layer):
        if isinstance(layer, nn.Linear):
            wide, deep = _shape(shapes, f"{name}.weight", 2)
            return nn.Linear(deep, wide, bias=layer.bias is not None)
        if isinstance(layer, _ConvNd) and layer.groups == 1 and not layer.transposed:
            wide, deep, *_ = _shape(shapes, f"{name}.weight", layer.weight.ndim)
            kind: Any = type(layer)  # of one, two or three dimensions
            conv: nn.Module = kind(
                deep,
                wide,
                layer.kernel_size,
                layer.stride,
                layer.padding,
                layer.dilation,
                bias=layer.bias is not None,
                padding_mode=layer.padding_mode,
            )
            return conv
        if isinstance(layer, nn.LSTM) and layer.num_layers == 1:
            gates, deep = _shape(shapes, f"{name}.weight_ih_l0", 2)
            return nn.LSTM(deep, max(1, gates // 4), batch_first=layer.batch_first)
        if isinstance(layer, nn.Embedding):
            rows, deep = _shape(shapes, f"{name}.weight", 2)
            padding = layer.padding_idx
            return nn.Embedding(rows, deep, padding if padding is None or padding < rows else None)
        if isinstance(layer, nn.LayerNorm):
            (wide,) = _shape(shapes, f"{name}.weight", 1)
            return nn.LayerNorm(wide, layer.eps, bias=layer.bias is not None)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            (wide,) = _shape(shapes, f"{name}.weight", 1)
            return type(layer)(wide, layer.eps, layer.momentum)
    raise _no_size(layer, name)


def _factor(layer: nn.Module, name: str, shapes: Shapes) -> nn.Module:
    if not isinstance(layer, nn.Linear):
        raise _no_size(layer, name)
    rank, deep = _shape(shapes, f"{name}.down.weight", 2)
    wide, _ = _shape(shapes, f"{name}.up.weight", 2)
    with _where(layer):
        return LowRank(deep, wide, rank, bias=layer.bias is not None)


def _pack(layer: nn.Module, name: str, shapes: Shapes) -> nn.Module:
    if not isinstance(layer, nn.Linear):
        raise _no_size(layer, name)
    # Eight bits have no zeros of their own; a program's layer does not know its size here.
    bits = 4 if f"{name}.zeros" in shapes else 8
    wide, width = _shape(shapes, f"{name}.numbers", 2)
    outputs, groups = _shape(shapes, f"{name}.scales", 2)
    deep = width * 8 // bits
    if outputs != wide or deep % groups or (bits == 8 and groups != 1):
        raise Invalid(
            "{key} in config.json packs {layer!r}, whose numbers and scales do not fit each other.",
            code="weights_mismatch",
            key=KEY,
            layer=name[:100],
        )
    with _where(layer):
        return PackedLinear(deep, wide, bits=bits, groups=groups, bias=layer.bias is not None)


def _no_size(layer: nn.Module, name: str) -> Invalid:
    return Invalid(
        "{key} in config.json changes {layer!r}, a {kind}, whose size cannot change.",
        code="bad_config",
        key=KEY,
        layer=name[:100],
        kind=type(layer).__name__,
    )


def _where(layer: nn.Module) -> torch.device:
    weight = next(layer.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


_CHANGES: dict[str, Callable[[nn.Module, str, Shapes], nn.Module]] = {
    RESIZE: _resize,
    LOW_RANK: _factor,
    PACKED: _pack,
}
