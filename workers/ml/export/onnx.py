"""Export a torch model to ONNX with free batch and sequence axes, and prove that it agrees."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from registry.errors import Invalid
from workers.ml.agreement import farthest
from workers.ml.export.lstm import TRANSLATIONS, with_onnx_lstm
from workers.ml.formats import stored_tensors
from workers.ml.graph_weights import TURNED
from workers.ml.graphs import rename_inputs
from workers.ml.infer.engines import OnnxEngine, TorchEngine
from workers.ml.infer.feeders import Feeds
from workers.ml.program import Program

MAX_BATCH = 4096
_MATRIX = 2
TOLERANCE = 1e-3
"""The largest relative difference between ONNX and torch that still counts as the same model."""


@dataclass(frozen=True)
class Agreement:
    """How far the exported model is from the original, over all probes."""

    largest_absolute: float
    largest_relative: float
    probes: int


def export_onnx(engine: TorchEngine, example: Feeds, output_name: str, target: Path) -> None:
    """Write the module as one ONNX file without external data."""
    tensors = tuple(torch.from_numpy(_at_least_two(example[name])) for name in engine.input_names)
    axes = _free_axes(engine)
    module = with_onnx_lstm(engine.module.to("cpu")).eval()
    several = hasattr(module, "input_names")  # a module that takes *tensors takes axes in a tuple
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            tensors,
            dynamo=True,
            dynamic_shapes=(tuple(axes),) if several else tuple(axes),
            input_names=list(engine.input_names),
            output_names=[output_name],
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    if program is None:
        raise Invalid("torch did not export the model.", code="export_failed")
    program.save(target, external_data=False)
    _tidy(target, stored_tensors(engine.module))
    check_axes(target, axes)


def _free_axes(engine: TorchEngine) -> list[dict[int, Any]]:
    """Name for each input the axes that may have any length."""
    if isinstance(engine.module, Program):
        return [
            {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(port.shape) if size < 0}
            for port in engine.module.ports
        ]
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    if "image" in engine.input_names:
        return [{0: batch} for _ in engine.input_names]
    longest = 512 if "input_ids" in engine.input_names else 4096
    sequence = torch.export.Dim("sequence", min=1, max=longest)
    return [{0: batch, 1: sequence} for _ in engine.input_names]


def check_axes(file: Path, axes: list[dict[int, Any]]) -> None:
    """Refuse an export that fixed an axis: the exporter falls back to that without a word."""
    graph = onnx.load(file).graph
    for value, free in zip(graph.input, axes, strict=True):
        shape = value.type.tensor_type.shape.dim
        if fixed := [axis for axis in free if not shape[axis].dim_param]:
            raise Invalid(
                "The export fixed axis {axis} of {name!r} to {size}.",
                code="export_failed",
                axis=fixed[0],
                name=value.name,
                size=shape[fixed[0]].dim_value,
            )


def _tidy(file: Path, stored: Mapping[str, torch.Tensor]) -> None:
    """Call weights what their own file calls them, and drop what exporters leave behind.

    That is stack traces with paths of this machine.
    """
    model = onnx.load(file)
    _rename(model.graph, _names_of(model.graph, stored))
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    model.producer_name = "modelyard"
    model.producer_version = ""
    onnx.save(model, file)


def _names_of(graph: onnx.GraphProto, stored: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Give names to the weights that the exporter gave others.

    It puts an attribute of a module before them, and numbers what it has turned: such a matrix is
    named as quantizers of graphs name it, so that it is known again for what it was.
    """
    turned: dict[tuple[int, ...], list[str]] = {}
    for name, tensor in stored.items():
        if tensor.dim() == _MATRIX:
            turned.setdefault((tensor.shape[1], tensor.shape[0]), []).append(name)
    taken = {weight.name for weight in graph.initializer} | {port.name for port in graph.input}
    taken |= {name for node in graph.node for name in node.output}
    kept = {*stored, *(value.name for value in graph.output)}
    names: dict[str, str] = {}
    for weight in graph.initializer:
        if weight.name in kept or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        values = torch.from_numpy(numpy_helper.to_array(weight).copy())
        found = [
            name
            for name in _shorter(weight.name)
            if name in stored and torch.equal(stored[name], values)
        ] or [
            f"{name}{TURNED}"
            for name in turned.get(tuple(values.shape), ())
            if torch.equal(stored[name].T, values)
        ]
        if len(found) == 1 and found[0] not in taken:
            names[weight.name] = found[0]
            taken.add(found[0])
    return names


def _shorter(name: str) -> Iterator[str]:
    """Leave off one part of a dotted name after the other."""
    while "." in name:
        name = name.partition(".")[2]
        yield name


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for weight in graph.initializer:
        weight.name = names.get(weight.name, weight.name)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    rename_inputs(graph, names)


def verify(torch_engine: TorchEngine, onnx_engine: OnnxEngine, probes: list[Feeds]) -> Agreement:
    """Run both on batches of different sizes; refuse an export that computes something else."""
    absolute = relative = 0.0
    for feeds in probes:
        (expected,) = torch_engine.run(feeds).values()
        (found,) = onnx_engine.run(feeds).values()
        if expected.shape != found.shape:
            raise Invalid(
                "The exported model answers {found} where torch answers {expected}.",
                code="export_failed",
                found=found.shape,
                expected=expected.shape,
            )
        off = farthest(expected, found)
        absolute, relative = max(absolute, off[0]), max(relative, off[1])
    if not relative <= TOLERANCE:
        raise Invalid(
            "The exported model is off by {relative:.2g}, more than {limit:g}.",
            code="export_failed",
            relative=relative,
            limit=TOLERANCE,
        )
    return Agreement(absolute, relative, len(probes))


def _at_least_two(array: Any) -> Any:
    """Trace with two rows or more: an axis of one would be taken for a fixed one."""
    doubled = np.concatenate([array, array]) if len(array) < 2 else array[:8]
    return np.ascontiguousarray(doubled)
