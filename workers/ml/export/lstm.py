"""An LSTM layer that exports as ONNX's own LSTM operator.

`torch.export` unrolls `nn.LSTM` and so fixes the length of the texts; one opaque operator keeps
the length free and the weights where quantization finds them.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

from registry.errors import Invalid
from workers.ml.graph_weights import GATES_OF_ONNX

_TO_ONNX = (0, 3, 1, 2)  # torch orders its gates input, forget, cell, output; ONNX i, o, f, c


@torch.library.custom_op("modelyard::lstm", mutates_args=())
def lstm(x_BLE: Tensor, w: Tensor, r: Tensor, b: Tensor, hidden_size: int) -> Tensor:
    """Run one direction over a batch; the weights are in ONNX's order and shapes."""
    layer = nn.LSTM(w.shape[2], hidden_size, batch_first=True)
    from_input, from_state = b[0].chunk(2)
    weights = {
        "weight_ih_l0": w[0],
        "weight_hh_l0": r[0],
        "bias_ih_l0": from_input,
        "bias_hh_l0": from_state,
    }
    with torch.no_grad():
        for name, weight in weights.items():
            layer.get_parameter(name).copy_(_reorder(weight, GATES_OF_ONNX))
        output: Tensor = layer(x_BLE)[0]
    return output


@lstm.register_fake
def _(x_BLE: Tensor, w: Tensor, r: Tensor, b: Tensor, hidden_size: int) -> Tensor:
    del w, r, b
    return x_BLE.new_empty(x_BLE.shape[0], x_BLE.shape[1], hidden_size)


def _translate(x_BLE: Any, w: Any, r: Any, b: Any, hidden_size: int) -> Any:
    x_LBE = op.Transpose(x_BLE, perm=[1, 0, 2])
    y_L1BH, _, _ = op.LSTM(x_LBE, w, r, b, hidden_size=hidden_size)
    axis: Any = op.Constant(value_ints=[1])
    return op.Transpose(op.Squeeze(y_L1BH, axis), perm=[1, 0, 2])


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.modelyard.lstm.default: _translate
}


class OnnxLstm(nn.Module):
    """One single-layer, one-way LSTM, its weights in ONNX's order."""

    def __init__(self, layer: nn.LSTM) -> None:
        super().__init__()
        self.hidden_size = layer.hidden_size
        with torch.no_grad():
            ordered = {
                name: _reorder(parameter, _TO_ONNX) for name, parameter in layer.named_parameters()
            }
            bias = torch.cat([ordered["bias_ih_l0"], ordered["bias_hh_l0"]])
            self.w = nn.Buffer(ordered["weight_ih_l0"].unsqueeze(0))
            self.r = nn.Buffer(ordered["weight_hh_l0"].unsqueeze(0))
            self.b = nn.Buffer(bias.unsqueeze(0))

    def forward(self, x_BLE: Tensor) -> tuple[Tensor]:
        return (lstm(x_BLE, self.w, self.r, self.b, self.hidden_size),)


def with_onnx_lstm(module: nn.Module) -> nn.Module:
    """Copy a module with every LSTM replaced; the original is left as it is."""
    copied = copy.deepcopy(module)
    for parent in list(copied.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LSTM):
                if child.num_layers != 1 or child.bidirectional or not child.batch_first:
                    raise Invalid(
                        "The LSTM {name!r} has several layers, two directions or another order of "
                        "axes; an LSTM of one layer, one direction and batch first can be "
                        "exported.",
                        code="unsupported_operator",
                        name=name,
                    )
                setattr(parent, name, OnnxLstm(child))
    return copied


def _reorder(gates: Tensor, order: tuple[int, ...]) -> Tensor:
    parts = gates.detach().chunk(4)
    return torch.cat([parts[at] for at in order])
