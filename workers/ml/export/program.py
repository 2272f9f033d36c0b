"""Write a `torch.export` program as plain data; runs inside the sandbox and nowhere else."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from registry.errors import RegistryError
from workers.ml.program import DTYPES, FORMATS, PATH, VERSION, find_operator, refs, states

# What a program checks about the sizes of its inputs; it computes nothing.
_CHECKS: Final = frozenset(
    {
        "_assert_scalar",
        "_assert_tensor_metadata",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)


class NotDescribed(RegistryError):  # noqa: N818 - an answer, not an error
    """The program does something that a job would not run; the reason is for people."""


def describe(program: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Say a program in plain values, and give the tensors it needs by their names.

    Args:
        program: a `torch.export.ExportedProgram`.

    Raises:
        NotDescribed: it has something that is not written down; the thing is named.

    """
    signature = program.graph_signature
    places = {
        spec.arg.name: spec.target
        for spec in signature.input_specs
        if spec.kind.name in {"PARAMETER", "BUFFER", "CONSTANT_TENSOR"}
    }
    parameters = set(signature.parameters)
    inputs, steps, output = [], [], None
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name not in places:
                inputs.append(_input(node))
        elif node.op == "output":
            output = _output(signature)
        elif node.op != "call_function":
            raise NotDescribed("It has a {kind} inside, such as a branch.", kind=node.op)
        elif not _is_check(node, places):
            steps.append(_step(node, places))
    if output is None or output in places:
        raise NotDescribed("It answers nothing that it computes.")
    steps = _needed(steps, output)
    tensors = _tensors(program, steps)
    said = {
        "version": VERSION,
        "inputs": inputs,
        "state": [
            {
                "name": name,
                "dtype": _dtype_name(tensor.dtype),
                "learned": name in parameters and tensor.is_floating_point(),
            }
            for name, tensor in tensors.items()
        ],
        "steps": steps,
        "output": output,
    }
    return said, tensors


def _tensors(program: Any, steps: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Give what the steps compute with, by the names that it has in the model."""
    state: dict[str, Tensor] = {
        name: value for name, value in program.constants.items() if isinstance(value, Tensor)
    }
    state.update(program.state_dict)
    used = sorted({name for step in steps for name in states(step)})
    used += [name for name in sorted(state) if name.endswith(".num_batches_tracked")]
    if unknown := [name for name in used if name not in state]:
        raise NotDescribed("It needs {name}, which the file lacks.", name=unknown[0][:100])
    tensors = {name: state[name].detach() for name in used}
    for name, tensor in tensors.items():
        if _dtype_name(tensor.dtype) is None or not PATH.fullmatch(name):
            raise NotDescribed("It holds the tensor {name!r}, of no usual kind.", name=name[:100])
    return tensors


def _input(node: Any) -> dict[str, Any]:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or _dtype_name(value.dtype) is None:
        raise NotDescribed("Its input {name!r} is no tensor.", name=node.name[:100])
    shape = [size if type(size) is int else -1 for size in value.shape]
    if not shape or shape[0] != -1:
        raise NotDescribed(
            "Its input {name!r} takes {shape} and no other number of rows: export it with "
            "dynamic_shapes that leave the first axis free.",
            name=node.name[:100],
            shape=shape,
        )
    return {"name": node.name, "dtype": _dtype_name(value.dtype), "shape": shape}


def _output(signature: Any) -> str:
    found = [spec.arg for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    if any(spec.kind.name != "USER_OUTPUT" for spec in signature.output_specs):
        raise NotDescribed(
            "It was exported while it trains, and changes what it holds: call eval() on the model "
            "and export it again."
        )
    if len(found) != 1 or not getattr(found[0], "name", ""):
        raise NotDescribed("It answers {count} things; one tensor is looked for.", count=len(found))
    return str(found[0].name)


def _is_check(node: Any, places: Mapping[str, str]) -> bool:
    namespace, name, _ = _name_of(node.target)
    if namespace == "aten" and name in _CHECKS:
        return True
    first = node.args[0] if node.args else None
    counted = places.get(getattr(first, "name", ""), "")
    return name == "add_" and counted.endswith(".num_batches_tracked")


def _name_of(target: Any) -> tuple[str, str, str]:
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - torch gives it no other name
        namespace, _, name = target._schema.name.partition("::")  # noqa: SLF001 - see above
        return namespace, name, target._overloadname  # noqa: SLF001 - see above
    module = getattr(target, "__module__", "")
    name = getattr(target, "__name__", type(target).__name__)
    return ("operator" if module in {"_operator", "operator"} else str(module)), str(name), ""


def _step(node: Any, places: Mapping[str, str]) -> dict[str, Any]:
    namespace, name, overload = _name_of(node.target)
    called = f"{namespace}.{name}.{overload}".rstrip(".")
    if find_operator(called) is None:
        raise NotDescribed("It uses {operator}, which no job runs.", operator=called[:100])
    value = node.meta.get("val")
    step: dict[str, Any] = {
        "name": node.name,
        "op": called,
        "args": [_said(value, places) for value in node.args],
        "kwargs": {
            key: _said(value, places)
            for key, value in node.kwargs.items()
            if key not in {"layout", "pin_memory"}
        },
    }
    if name == "batch_norm" and isinstance(value, Tensor):
        if node.args[5]:
            raise NotDescribed(
                "It was exported while it trains, and changes what it holds: call eval() on the "
                "model and export it again."
            )
        step["rank"] = value.ndim
    return step


def _said(value: Any, places: Mapping[str, str]) -> Any:  # noqa: PLR0911 - one for each kind
    if isinstance(value, torch.fx.Node):
        if value.name in places:
            return {"state": places[value.name]}
        return {"ref": value.name}
    if isinstance(value, list | tuple):
        return [_said(item, places) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    named = str(value).removeprefix("torch.")
    if isinstance(value, torch.dtype) and named in DTYPES:
        return {"dtype": named}
    if isinstance(value, torch.memory_format) and named in FORMATS:
        return {"memory_format": named}
    if isinstance(value, torch.device):
        return {"device": "of the inputs"}
    raise NotDescribed("It is told {value}, which has no plain form.", value=str(value)[:100])


def _dtype_name(dtype: torch.dtype) -> str | None:
    name = str(dtype).removeprefix("torch.")
    return name if name in DTYPES else None


def _needed(steps: Sequence[dict[str, Any]], output: str) -> list[dict[str, Any]]:
    """Leave out what nothing uses, such as numbers that were only checked."""
    wanted = {output}
    kept: list[dict[str, Any]] = []
    for step in reversed(steps):
        if step["name"] in wanted or _is_in_place(step["op"]):
            kept.append(step)
            wanted.update(refs(step))
    return kept[::-1]


def _is_in_place(op: str) -> bool:
    return op.split(".")[1].endswith("_")
