"""A user's own `torch.export` program as data: a graph in JSON, and the module that computes it.

A `.pt2` file can run code while it is opened, so only the sandbox opens one. What it writes
(`export.program`) is a safetensors file with the graph in its header, which a job reads without
running anything of it: operators are looked up by name among those that only compute. Linear
layers, convolutions, batch norms, embeddings and LSTMs become torch's own layers again, so that
the module trains, is pruned and is exported like any other.
"""

import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from registry.errors import Invalid

NAME: Final = "exported_program"
"""What config.json calls such an architecture."""
FILE: Final = "program.safetensors"
"""The file that the sandbox makes of a program, beside its ONNX."""
METADATA: Final = "program"
"""The key in the header of a safetensors file that has the graph."""
MAX_STEPS: Final = 100_000
MAX_STATE: Final = 100_000
MAX_DEPTH: Final = 8
VERSION: Final = 1

PATH = re.compile(r"[A-Za-z0-9_]{1,200}(\.[A-Za-z0-9_]{1,200}){0,30}")
DTYPES: Final = {
    name: getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "bool"),
        *("uint8", "int8", "int16", "int32", "int64"),
    )
}
FORMATS: Final = {
    name: getattr(torch, name) for name in ("contiguous_format", "preserve_format", "channels_last")
}
# Operators of ATen that compute from their arguments and do nothing else. In place, with an
# underscore behind the name, they change what was computed before.
OPERATORS: Final = frozenset(
    """
    abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add addmm alias all amax amin
    any arange argmax argmin avg_pool1d avg_pool2d baddbmm batch_norm bitwise_and
    bitwise_not bitwise_or bmm broadcast_tensors cat celu chunk clamp clamp_max clamp_min clone
    concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d cos
    cumsum detach diff div dropout einsum elu embedding eq erf exp expand expand_as eye
    feature_dropout flatten flip floor floor_divide full full_like gather ge gelu glu group_norm gru
    gt hardsigmoid hardswish hardtanh index index_select instance_norm isnan layer_norm le
    leaky_relu linear linspace log log1p log_softmax logical_and logical_not logical_or logsumexp
    lstm lt masked_fill matmul max max_pool1d max_pool2d maximum mean min minimum mish mm movedim
    mul mv narrow ne neg new_full new_ones new_zeros norm numpy_T ones ones_like pad permute
    pixel_shuffle pow prelu prod reciprocal reflection_pad2d relu relu6 remainder repeat
    repeat_interleave replication_pad2d reshape rms_norm roll rsqrt rsub scalar_tensor
    scaled_dot_product_attention select selu sigmoid sign silu sin slice softmax softplus sort split
    split_with_sizes sqrt square squeeze stack std sub sum t tanh tensor_split threshold to topk
    transpose tril triu type_as unbind unflatten unfold unsqueeze upsample_bilinear2d
    upsample_nearest2d var view view_as where zeros zeros_like
    """.split()  # noqa: SIM905 - to be read
)
_ARITHMETIC: Final = {
    name: getattr(operator, name)
    for name in (
        *("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem"),
        *("eq", "ne", "lt", "le", "gt", "ge"),
    )
}
_SIZES: Final = {"sym_size": "int", "sym_numel": "default"}

# --- operators ------------------------------------------------------------------------------------


def find_operator(op: str) -> Callable[..., Any] | None:
    """Look an operator up by name; nothing that does more than compute is found."""
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if namespace == "operator":
        return _ARITHMETIC.get(rest)
    if namespace != "aten" or not overload.isidentifier():
        return None
    if _SIZES.get(name) != overload and name.removesuffix("_") not in OPERATORS:
        return None
    packet = getattr(torch.ops.aten, name, None)
    found: Callable[..., Any] | None = getattr(packet, overload, None)
    return found


def refs(said: Any) -> Iterator[str]:
    return _named(said, "ref")


def states(said: Any) -> Iterator[str]:
    return _named(said, "state")


def _named(said: Any, key: str) -> Iterator[str]:
    if isinstance(said, list):
        for item in said:
            yield from _named(item, key)
    elif isinstance(said, dict):
        if said.keys() == {key}:
            yield said[key]
        else:
            for item in said.values():
                yield from _named(item, key)


# --- the module ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ref:
    name: str


@dataclass(frozen=True)
class _State:
    path: str


class _Device:
    """Stands for the device of the inputs."""


@dataclass(frozen=True)
class Step:
    """One thing to compute."""

    name: str
    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    layer: str = ""
    """The submodule that computes it, given the first of the arguments; else the operator does."""
    last: tuple[str, ...] = ()
    """What nothing needs after it."""


@dataclass(frozen=True)
class Port:
    """An input; -1 stands for an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int, ...]


Shapes = Mapping[str, Sequence[int]]


class Program(nn.Module):
    """Computes a program step by step.

    Args:
        said: as `describe` gives it; a stranger's word.
        shapes: of the tensors, from the header of their file. What config.json changes may lack.

    Raises:
        Invalid: it is not such a description.

    """

    def __init__(self, said: Any, shapes: Shapes) -> None:
        super().__init__()
        _check(said)
        self._said = said
        self.ports = [
            Port(port["name"], port["dtype"], tuple(port["shape"])) for port in said["inputs"]
        ]
        self.input_names = [port.name for port in self.ports]
        self._state = {state["name"]: state for state in said["state"]}
        self._shapes = shapes
        uses = Counter(name for step in said["steps"] for name in states(step))
        made = {step["name"]: step for step in said["steps"]}
        read = Counter(name for step in said["steps"] for name in refs(step))
        try:
            steps = [self._lift(step, uses, made, read) for step in said["steps"]]
        except (IndexError, TypeError, ValueError) as error:
            raise _no_program(f"a step has odd arguments ({error})") from None
        for name, state in self._state.items():
            self._hold(name, state)
        self._output = said["output"]
        self._steps = _with_ends(steps, self._output, self.input_names)

    def to_json(self) -> str:
        """Give the description back, as the header of a file keeps it."""
        return json.dumps(self._said, separators=(",", ":"), allow_nan=False)

    def example(self, count: int = 2) -> list[Tensor]:
        """Make inputs of ones; free axes have that length."""
        return [
            torch.ones(
                [count if size < 0 else size for size in port.shape], dtype=DTYPES[port.dtype]
            )
            for port in self.ports
        ]

    def forward(self, *inputs: Tensor) -> Tensor:
        values: dict[str, Any] = dict(zip(self.input_names, inputs, strict=True))
        device = inputs[0].device if inputs else None
        for step in self._steps:
            if step.layer:
                found = self.get_submodule(step.layer)(*self._resolve(step.args, values, device))
                values[step.name] = _flat(found) if isinstance(found, tuple) else found
            else:
                run = find_operator(step.op)
                assert run is not None
                args = self._resolve(step.args, values, device)
                values[step.name] = run(*args, **self._resolve(step.kwargs, values, device))
            for name in step.last:
                del values[name]
        answer: Tensor = values[self._output]
        return answer

    def _resolve(self, said: Any, values: Mapping[str, Any], device: Any) -> Any:
        if isinstance(said, _Ref):
            return values[said.name]
        if isinstance(said, _State):
            above, _, own = said.path.rpartition(".")
            return getattr(self.get_submodule(above), own)
        if isinstance(said, tuple):
            return tuple(self._resolve(item, values, device) for item in said)
        if isinstance(said, list):
            return [self._resolve(item, values, device) for item in said]
        if isinstance(said, dict):
            return {key: self._resolve(item, values, device) for key, item in said.items()}
        return device if isinstance(said, _Device) else said

    # --- layers -----------------------------------------------------------------------------------

    def _lift(
        self,
        step: Mapping[str, Any],
        uses: Mapping[str, int],
        made: Mapping[str, Any],
        read: Mapping[str, int],
    ) -> Step:
        """Let one of torch's own layers compute a step, where its weights are used nowhere else."""
        args = [_parse(value) for value in step["args"]]
        kwargs = {key: _parse(value) for key, value in step["kwargs"].items()}
        weights = list(states(step))
        plain = Step(step["name"], step["op"], tuple(args), kwargs)
        if step["op"] == "aten.dropout.default" and isinstance(args[1], float):
            name = f"dropout_{step['name']}"
            self._put(name, nn.Dropout(args[1]))
            return Step(step["name"], step["op"], (args[0],), {}, layer=name)
        name = weights[0].rpartition(".")[0] if weights else ""
        if not name or any(uses[weight] != 1 for weight in weights) or kwargs:
            return plain
        layer, given = _layer_of(_Call(step, args, name, self._shape, made, read))
        if layer is None or {f"{name}.{own}" for own in layer.state_dict()} - self._state.keys():
            return plain
        self._put(name, layer)
        return Step(step["name"], step["op"], (given,), {}, layer=name)

    def _shape(self, name: str, axes: int) -> list[int]:
        """Give the shape of a tensor; one that was taken apart has none of its own any more."""
        found = list(self._shapes.get(name, [1] * axes))
        if len(found) != axes or not all(0 < size < 1 << 31 for size in found):
            raise _no_program(f"{name} has the shape {found}")
        return found

    def _put(self, path: str, layer: nn.Module) -> None:
        above, _, own = path.rpartition(".")
        try:
            self._above(above).add_module(own, layer)
        except KeyError:
            raise _no_program(f"{path[:100]} cannot be the name of a layer") from None

    def _hold(self, path: str, state: Mapping[str, Any]) -> None:
        """Keep a tensor that belongs to no lifted layer under its own name."""
        above, _, own = path.rpartition(".")
        owner = self._above(above)
        if own in owner._parameters or own in owner._buffers:  # noqa: SLF001 - a layer's own
            return
        if isinstance(owner, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            return
        empty = torch.empty(list(self._shapes.get(path, [])), dtype=DTYPES[state["dtype"]])
        try:
            if state["learned"] and empty.is_floating_point():
                owner.register_parameter(own, nn.Parameter(empty))
            else:
                owner.register_buffer(own, empty)
        except KeyError:
            raise _no_program(f"{path[:100]} cannot be the name of a tensor") from None

    def _above(self, path: str) -> nn.Module:
        module: nn.Module = self
        for name in path.split(".") if path else ():
            child = module._modules.get(name)  # noqa: SLF001 - no attribute of another kind
            if child is None:
                child = nn.Module()
                try:
                    module.add_module(name, child)
                except KeyError:
                    raise _no_program(f"{path[:100]} cannot be the name of a layer") from None
            module = child
        return module


def _flat(found: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give what a recurrent layer answers as its operator does: the output, then the states."""
    output, *states = found
    return (output, *states[0]) if states else (output,)


@dataclass(frozen=True)
class _Call:
    """A step that a layer may compute, and what is known around it."""

    step: Mapping[str, Any]
    args: list[Any]
    name: str
    shape: Callable[[str, int], list[int]]
    made: Mapping[str, Any]
    """All steps by what they make."""
    read: Mapping[str, int]
    """How often what a step makes is used."""


def _layer_of(call: _Call) -> tuple[nn.Module | None, Any]:
    """Build the layer that computes a step, and name what it is given; none where none does."""
    op, args, name, shape = call.step["op"], call.args, call.name, call.shape
    if op == "aten.linear.default" and _are(args[1:], name, "weight", "bias"):
        wide, deep = shape(f"{name}.weight", 2)
        return nn.Linear(deep, wide, bias=_has(args, 2)), args[0]
    if op in _CONVOLUTIONS and _are(args[1:3], name, "weight", "bias"):
        return _convolution(op, args, shape, name), args[0]
    if op == "aten.embedding.default" and _are(args[:1], name, "weight") and len(args) <= 3:
        rows, deep = shape(f"{name}.weight", 2)
        padding = args[2] if len(args) > 2 and args[2] >= 0 else None
        return nn.Embedding(rows, deep, padding), args[1]
    if op == "aten.batch_norm.default" and _are(
        args[1:5], name, "weight", "bias", "running_mean", "running_var"
    ):
        (wide,) = shape(f"{name}.weight", 1)
        kind = _NORMS.get(call.step.get("rank", 0))
        return (kind(wide, args[7], args[6]) if kind else None), args[0]
    if op == "aten.lstm.input":
        return _lstm(call), args[0]
    return None, None


_CONVOLUTIONS: dict[str, Callable[..., nn.Module]] = {
    "aten.conv1d.default": nn.Conv1d,
    "aten.conv2d.default": nn.Conv2d,
    "aten.conv3d.default": nn.Conv3d,
    "aten.conv1d.padding": nn.Conv1d,
    "aten.conv2d.padding": nn.Conv2d,
}
_NORMS: dict[int, Callable[..., nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}


def _are(args: Sequence[Any], name: str, *own: str) -> bool:
    """Tell whether arguments are the tensors of one layer, under the names that torch gives them.

    The last of them may be none.
    """
    wanted = [f"{name}.{one}" for one in own]
    found = [arg.path if isinstance(arg, _State) else arg for arg in args]
    return found == wanted[: len(found)] or (
        found == [*wanted[: len(found) - 1], None] and own[len(found) - 1] == "bias"
    )


def _has(args: Sequence[Any], place: int) -> bool:
    return len(args) > place and args[place] is not None


def _convolution(
    op: str, args: list[Any], shape: Callable[[str, int], list[int]], name: str
) -> nn.Module:
    axes = int(op[len("aten.conv")])
    wide, deep, *kernel = shape(f"{name}.weight", axes + 2)
    defaults: list[Any] = [1, "valid" if op.endswith(".padding") else 0, 1, 1]
    given = [*args[3:], *defaults[len(args[3:]) :]]
    stride, padding, dilation, groups = (
        (tuple(one) * (axes if len(one) == 1 else 1)) if isinstance(one, list) else one
        for one in given
    )
    if type(groups) is not int or not 0 < groups <= 1 << 20:
        raise _no_program(f"{name[:100]} has {groups} groups")
    try:
        return _CONVOLUTIONS[op](
            *(deep * groups, wide, tuple(kernel), stride, padding, dilation, groups),
            bias=_has(args, 2),
        )
    except (TypeError, ValueError) as error:
        raise _no_program(f"{name[:100]}: {error}") from None


def _lstm(call: _Call) -> nn.Module | None:
    """Build an LSTM that begins with zeros and whose last states nobody asks for."""
    made, name = call.made, call.name
    _, begins, weights, biases, layers, dropout, _, both_ways, batch_first = call.args
    own = [f"{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    zeros = all(
        isinstance(one, _Ref) and made.get(one.name, {}).get("op", "").startswith("aten.zeros.")
        for one in begins
    )
    parts = [
        part
        for part in made.values()
        if part["op"] == "operator.getitem" and part["args"][0] == {"ref": call.step["name"]}
    ]
    taken = [part["args"][1] for part in parts]
    first_alone = taken == [0] * call.read[call.step["name"]]
    usual = biases and layers == 1 and not both_ways and not dropout
    if not (zeros and first_alone and usual and _are(weights, name, *own)):
        return None
    gates, deep = call.shape(f"{name}.weight_ih_l0", 2)
    return nn.LSTM(deep, max(1, gates // 4), batch_first=bool(batch_first))


def _parse(said: Any) -> Any:
    """Turn a value of the description into what an operator is called with."""
    if isinstance(said, list):
        return [_parse(item) for item in said]
    if not isinstance(said, dict):
        return said
    ((key, value),) = said.items()
    return _KINDS[key](value)


_KINDS: dict[str, Callable[[str], Any]] = {
    "ref": _Ref,
    "state": _State,
    "float": float,
    "dtype": DTYPES.__getitem__,
    "memory_format": FORMATS.__getitem__,
    "device": lambda _value: _Device(),
}


def _with_ends(steps: Sequence[Step], output: str, inputs: Sequence[str]) -> list[Step]:
    """Note after which step each value can go, so that memory holds what is needed alone."""
    last: dict[str, int] = {}
    for at, step in enumerate(steps):
        for name in _names_in((step.args, dict(step.kwargs))):
            last[name] = at
    ends: dict[int, list[str]] = {}
    for name, at in last.items():
        if name != output and name not in inputs:
            ends.setdefault(at, []).append(name)
    return [
        Step(step.name, step.op, step.args, step.kwargs, step.layer, tuple(ends.get(at, ())))
        for at, step in enumerate(steps)
    ]


def _names_in(value: Any) -> Iterator[str]:
    if isinstance(value, _Ref):
        yield value.name
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names_in(item)
    elif isinstance(value, dict):
        yield from _names_in(list(value.values()))


# --- a stranger's word ----------------------------------------------------------------------------


def read_description(metadata: Mapping[str, str] | None) -> Any:
    """Read the graph in the header of a safetensors file.

    Raises:
        Invalid: there is none.

    """
    text = (metadata or {}).get(METADATA)
    if text is None:
        raise _no_program("its header has none")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _no_program("its header has no JSON") from None


def _check(said: Any) -> None:
    """Check the whole description, so that nothing else needs to: known operators, known names."""
    if not isinstance(said, dict) or said.get("version") != VERSION:
        raise _no_program("it is of another version")
    lists = [said.get(key) for key in ("inputs", "state", "steps")]
    limits = (100, MAX_STATE, MAX_STEPS)
    if not all(
        isinstance(found, list) and len(found) <= most and all(isinstance(i, dict) for i in found)
        for found, most in zip(lists, limits, strict=True)
    ):
        raise _no_program("it has no inputs, state and steps")
    known = _check_ports(said["inputs"])
    states = _check_state(said["state"])
    for step in said["steps"]:
        if not isinstance(step.get("op"), str) or find_operator(step["op"]) is None:
            raise _no_program(f"it uses {str(step.get('op'))[:100]}, which no job runs")
        args, kwargs = step.get("args"), step.get("kwargs")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise _no_program("a step has no arguments")
        _check_value([args, *kwargs.values()], known, states, 0)
        _learn(known, step.get("name"))
    if said.get("output") not in known:
        raise _no_program("it answers nothing")


def _check_ports(ports: Sequence[Mapping[str, Any]]) -> set[str]:
    known: set[str] = set()
    for port in ports:
        shape = port.get("shape")
        sizes = isinstance(shape, list) and all(
            type(size) is int and (size == -1 or 0 < size < 1 << 31) for size in shape
        )
        if not sizes or len(port["shape"]) > 64 or port.get("dtype") not in DTYPES:
            raise _no_program("an input has no type and shape")
        _learn(known, port.get("name"))
    if not known:
        raise _no_program("it takes nothing")
    return known


def _check_state(found: Sequence[Mapping[str, Any]]) -> set[str]:
    states: set[str] = set()
    for state in found:
        name = state.get("name")
        if not isinstance(name, str) or not PATH.fullmatch(name) or name in states:
            raise _no_program("a tensor has no name of its own")
        if state.get("dtype") not in DTYPES or not isinstance(state.get("learned"), bool):
            raise _no_program(f"{name[:100]} has no type")
        states.add(name)
    return states


def _learn(known: set[str], name: Any) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= 200 or name in known:
        raise _no_program("two things have one name")
    known.add(name)


def _check_value(value: Any, known: set[str], states: set[str], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _no_program("it is nested too deep")
    if isinstance(value, list):
        for item in value:
            _check_value(item, known, states, depth + 1)
        return
    if not isinstance(value, dict):
        return
    allowed: dict[str, Any] = {
        "ref": known,
        "state": states,
        "float": ("inf", "-inf", "nan"),
        "dtype": DTYPES,
        "memory_format": FORMATS,
        "device": ("of the inputs",),
    }
    if len(value) != 1:
        raise _no_program("it has a value of no known kind")
    ((key, found),) = value.items()
    if not isinstance(found, str) or found not in allowed.get(key, ()):
        raise _no_program(f"it refers to {str(found)[:100]}, which is not there")


def _no_program(problem: str) -> Invalid:
    return Invalid(
        "The file holds no exported program that can be run: {problem}.",
        code="malformed_file",
        problem=problem,
    )
