"""Pruning and sharing the weights of an ONNX graph, where no torch model is at hand to train.

The masks and the k-means are those of modules; a graph's weights are turned so that outputs come
first, changed, and turned back. The shapes and the operators stay as they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from registry import recipes
from registry.errors import Invalid
from workers.ml.compress import prune, share
from workers.ml.compress.bench import Bench
from workers.ml.compress.layers import Graph, Layer, attribute, excluded, refuse_quantized
from workers.ml.compress.share import Shared, share_tensor


def prune_step(step: recipes.PruneMagnitude, bench: Bench) -> Mapping[str, Any]:
    """Prune what is on the bench: a module as it trains, or the weights of a graph at once."""
    if bench.module is not None:
        return prune.prune_magnitude_step(step, bench)
    check_untrained(step)
    source, target = bench.need_file(), bench.new_file("model.onnx")
    pruned = prune_graph(
        source,
        target,
        sparsity=step.sparsity,
        scope=step.scope,
        pattern=prune.read_pattern(step.pattern),
        exclude=step.exclude,
    )
    bench.file = target
    return prune.sparsity_notes(pruned)


def cluster_step(step: recipes.Cluster, bench: Bench) -> Mapping[str, Any]:
    """Share the weights of what is on the bench, a module or a graph."""
    if bench.module is not None:
        return share.cluster_step(step, bench)
    check_untrained(step)
    source, target = bench.need_file(), bench.new_file("model.onnx")
    done = share_graph(source, target, bits=step.bits, rounds=step.rounds, smallest=step.smallest)
    bench.file = target
    return share.notes_of(done, step.smallest)


def check_untrained(step: recipes.PruneMagnitude | recipes.Cluster) -> None:
    """Refuse to train a graph, and say what can be done with it.

    Raises:
        Invalid: the step has epochs, or looks at rows.

    """
    if step.needs_rows:
        raise Invalid(
            "{method} cannot train an ONNX file. Set its epochs to 0 (and leave embedding tables "
            "alone) to change the weights at once, or choose the version that the file was made "
            "from.",
            code="needs_module",
            method=step.method,
        )


def prune_graph(
    source: Path,
    target: Path,
    *,
    sparsity: float,
    scope: str = "global",
    pattern: tuple[int, int] | None = None,
    exclude: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Write a copy of an ONNX file with its smallest weights zero; give the weights by name.

    Products, convolutions and recurrent layers are pruned, look-up tables are not.

    Raises:
        Invalid: it is quantized, has no such weight, or a pattern does not divide its inputs.

    """
    refuse_quantized(source)
    graph = Graph(source)
    left_out = excluded(graph.names(), exclude)
    layers = {
        layer.weight: layer
        for layer in graph.layers()
        if layer.role != "table" and layer.name not in left_out
    }
    if not layers:
        raise Invalid(
            "No weight of this model can be pruned: it has no float32 MatMul, Gemm, Conv or "
            "recurrent layer that is not left out.",
            code="nothing_to_prune",
        )
    # By weight, not by node: a recurrent node has two.
    turned = {name: _turn(graph, layer) for name, layer in layers.items()}
    masks = (
        prune.pattern_masks(turned, *pattern, {n: layer.name for n, layer in layers.items()})
        if pattern
        else prune.magnitude_masks(turned, sparsity, scope)
    )
    for name, layer in layers.items():
        kept = turned[name].masked_fill_(~masks[name], 0.0)
        graph.write(name, _turn_back(graph, layer, kept))
    graph.save(target)
    return turned


def share_graph(
    source: Path, target: Path, *, bits: int, rounds: int = 50, smallest: int = 256
) -> dict[str, Shared]:
    """Write a copy of an ONNX file whose weights share a few values in each tensor."""
    refuse_quantized(source)
    graph = Graph(source)
    done: dict[str, Shared] = {}
    for layer in graph.layers():
        values = graph.read(layer.weight)
        if layer.weight not in done and values.size >= smallest:
            shared = torch.from_numpy(np.array(values))
            done[layer.weight] = share_tensor(shared, bits=bits, rounds=rounds)
            graph.write(layer.weight, shared.numpy())
    graph.save(target)
    return done


def _turn(graph: Graph, layer: Layer) -> Tensor:
    """Copy a weight with its outputs first and its inputs second."""
    values = torch.from_numpy(np.array(graph.read(layer.weight)))
    if layer.operator == "ConvTranspose" or _inputs_first(graph, layer):
        return values.transpose(0, 1).contiguous()
    # Of a recurrent layer, a direction comes first.
    return values.flatten(0, 1) if layer.operator in _RECURRENT else values


def _turn_back(graph: Graph, layer: Layer, values: Tensor) -> NDArray[Any]:
    if layer.operator == "ConvTranspose" or _inputs_first(graph, layer):
        return values.transpose(0, 1).contiguous().numpy()
    return values.reshape(graph.read(layer.weight).shape).numpy()


_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def _inputs_first(graph: Graph, layer: Layer) -> bool:
    if layer.operator == "MatMul":
        return True
    return layer.operator == "Gemm" and not attribute(graph.node(layer.name), "transB", 0)
