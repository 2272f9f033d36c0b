"""The same function from fewer operators and bytes; equal on probes, or refused.

Batch norms are folded into the layer before them, in torch; constants are folded and operators
fused by ONNX Runtime's own offline pass, at levels that know nothing of one machine's layouts; and
tensors that are equal to the bit are stored once.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from registry import recipes
from registry.errors import Invalid
from workers.ml.agreement import farthest
from workers.ml.compress.bench import Bench
from workers.ml.compress.layers import Graph, refuse_quantized
from workers.ml.evaluate import latency_feeds
from workers.ml.graphs import rename_inputs
from workers.ml.infer.engines import OnnxEngine
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.sessions import first_line
from workers.ml.probes import NOWHERE, probe_rows

TOLERANCE = 1e-4
"""The largest difference, as a share of the largest answer, that still counts as equal."""
_LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}
_KNOWN_DOMAINS = {"", "ai.onnx", "com.microsoft"}


@dataclass(frozen=True)
class Fused:
    """What fusing did to a file."""

    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    shared_tensors: int
    largest_difference: float


def fuse_step(step: recipes.Fuse, bench: Bench) -> Mapping[str, Any]:
    """Fuse what is on the bench, as a module first and then as a graph."""
    folded: list[str] = []
    if bench.module is not None:
        bench.module, folded = fold_batch_norms(bench.module)
    source = bench.need_file()
    target = bench.new_file("model.onnx")
    probes = list(latency_feeds(bench.parent, probe_rows(bench.parent, 32), NOWHERE).values())
    done = fuse(
        source,
        target,
        level=step.level,
        share=step.share,
        probes=probes,
        threads=bench.job.threads,
    )
    bench.file = target
    return {**asdict(done), "folded_batch_norms": folded}


def fold_batch_norms(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """Fold each batch norm that only follows a convolution or a linear layer into that layer.

    Gives a copy in evaluation mode, and the names of what was folded; the module is left as it is.
    One whose forward cannot be traced (it branches on values) is given back with nothing folded.
    """
    copied = copy.deepcopy(module).eval()
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not any(isinstance(part, norms) for part in copied.modules()):
        return copied, []
    try:
        graph = fx.Tracer().trace(copied)
    except Exception:  # noqa: BLE001 - what a forward of somebody's may raise; nothing is folded then
        return copied, []
    parts = dict(copied.named_modules())
    folded = []
    for node in graph.nodes:
        norm = parts.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, norms) or norm.running_mean is None:
            continue
        before = node.args[0]
        layer = parts.get(str(before.target)) if before.op == "call_module" else None
        # A layer that is used twice, or whose answer somebody else sees, must stay as it is.
        calls = [found for found in graph.nodes if found.op == "call_module"]
        alone = (
            len(before.users) == 1
            and sum(found.target == before.target for found in calls) == 1
            and sum(found.target == node.target for found in calls) == 1
        )
        if not alone:
            continue
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            made: nn.Module = fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            made = fuse_linear_bn_eval(layer, norm)
        else:
            continue
        _put(copied, str(before.target), made)
        _put(copied, str(node.target), nn.Identity())
        folded.append(str(node.target))
    return copied, folded


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, part)


def fuse(
    source: Path,
    target: Path,
    *,
    level: str = "basic",
    share: bool = True,
    probes: Sequence[Feeds],
    threads: int = 1,
) -> Fused:
    """Write a copy of an ONNX file that computes the same from fewer operators and bytes.

    Raises:
        Invalid: it is quantized (folding would unpack it), ONNX Runtime cannot optimise it, or the
            result answers otherwise on the probes.

    """
    refuse_quantized(source)
    before = Graph(source)
    _optimise(source, target, level)
    graph = Graph(target)
    _drop_domains(graph.model)
    shared = share_equal(graph) if share else 0
    graph.save(target)
    difference = _difference(source, target, probes, threads)
    if not difference <= TOLERANCE:
        raise Invalid(
            "The fused model answers otherwise: it is off by {difference:.2g}, more than "
            "{limit:g}. Fuse at the level basic, or leave this step out.",
            code="not_equal",
            difference=difference,
            limit=TOLERANCE,
        )
    return Fused(
        nodes_before=len(before.nodes),
        nodes_after=len(graph.nodes),
        bytes_before=source.stat().st_size,
        bytes_after=target.stat().st_size,
        shared_tensors=shared,
        largest_difference=difference,
    )


def share_equal(graph: Graph) -> int:
    """Let everybody use one tensor of those that are equal to the bit; give how many went."""
    first: dict[tuple[int, tuple[int, ...], str], str] = {}
    instead: dict[str, str] = {}
    outputs = {output.name for output in graph.model.graph.output}
    for tensor in graph.model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        key = (tensor.data_type, tuple(tensor.dims), digest)
        if key in first and tensor.name not in outputs:
            instead[tensor.name] = first[key]
        else:
            first.setdefault(key, tensor.name)
    rename_inputs(graph.model.graph, instead)
    return len(instead)


def _optimise(source: Path, target: Path, level: str) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's own exception types are not exported
        raise Invalid(
            "ONNX Runtime cannot optimise this model: {problem}",
            code="cannot_fuse",
            problem=first_line(error),
        ) from error


def _drop_domains(model: onnx.ModelProto) -> None:
    """Declare only the domains that are used, and refuse operators that other programs lack."""
    used = {node.domain for node in model.graph.node}
    if foreign := sorted(used - _KNOWN_DOMAINS - {found.domain for found in model.functions}):
        raise Invalid(
            "Fusing put operators of {domains} into the model, which other machines lack.",
            code="cannot_fuse",
            domains=", ".join(foreign),
        )
    kept = [found for found in model.opset_import if found.domain in {*used, ""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.producer_name = "modelyard"
    model.producer_version = ""


def _difference(source: Path, target: Path, probes: Sequence[Feeds], threads: int) -> float:
    engines = [OnnxEngine(file, device="cpu", threads=threads) for file in (source, target)]
    largest = 0.0
    for feeds in probes:
        before, after = (engine.run(feeds) for engine in engines)
        for name, expected in before.items():
            largest = max(largest, farthest(expected, after[name])[1])
    return largest
