"""A profile: where a model's bytes and time go, and which layers bear being made smaller.

A torch module is timed by hooks on its layers; an ONNX graph by ONNX Runtime's own profiler, on
the graph as it is run, with what the runtime fuses fused.
"""

import copy
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from registry import recipes
from registry.errors import Invalid
from workers.ml import compare, cost, environment, evaluate
from workers.ml.data import (
    Dataset,
    Labels,
    Rows,
    Split,
    check_columns,
    divide,
    find_labels,
    open_dataset,
    read_classes,
)
from workers.ml.drawn import draw
from workers.ml.formats import open_model
from workers.ml.infer.engines import OnnxEngine, TorchEngine
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.runtime import Runtime, load_runtime
from workers.ml.infer.sessions import first_line
from workers.ml.job import Job
from workers.ml.packed import packed_layers
from workers.ml.probes import NOWHERE, probe_rows
from workers.ml.report import Metric, Report
from workers.ml.statistics import cosines, probabilities

_WARM_UP = 3
_VALIDATION = 0.1
_BLOCK = 512
_BATCH = 64
_HALF = 0.5
_MOST_MARKED = 5
_MOST_LAYERS = 400
OTHERS = "(other operators)"
_OUTPUT_LAST = {"MatMul", "FusedMatMul", "Attention", "Gemm", "FusedGemm"}
_RECURRENT = {"LSTM", "GRU", "RNN"}


@dataclass
class Layer:
    """One layer: what it holds, what it does, how long it takes, what its change would cost."""

    name: str
    kind: str
    parameters: int = 0
    bytes: int = 0
    macs: int = 0
    milliseconds: float = 0.0
    share: float = 0.0
    bottleneck: bool = False
    sensitivity: dict[str, float] = field(default_factory=dict)
    divergence: dict[str, float] = field(default_factory=dict)


def run(job: Job, recipe: recipes.ProfileRecipe) -> Report:
    """Profile a version; nothing of it changes, and no file is made."""
    (step,) = recipe.steps
    columns = {"text": step.text_column, "image": step.image_column}
    runtime = load_runtime(
        open_model(job.input("model").path),
        device=job.device,
        threads=job.threads,
        columns=columns,
    )
    trial = _trial_rows(job, step, runtime) if "dataset" in job.inputs else None
    job.events.progress(done=0, total=2, unit="stages", step="profile")
    split: Split = trial.split if trial else NOWHERE
    given = trial.inputs if trial else probe_rows(runtime, step.batch_size)
    feeds = runtime.feeder.feeds(_head(given, step.batch_size), split)
    one = runtime.feeder.feeds(_head(given, 1), split)
    work = job.out / "work"
    work.mkdir()
    layers, total = profile_layers(
        runtime, feeds, one, step.repetitions, work=work, threads=job.threads
    )
    summary: dict[str, Any] = {
        "batch": len(next(iter(feeds.values()))),
        "repetitions": step.repetitions,
        "engine": runtime.engine.name,
        "milliseconds": total,
        "layers_count": len(layers),
    }
    if trial is not None and step.sensitivity:
        summary["sensitivity"] = _try_layers(job, step, runtime, trial, layers)
    summary["layers"] = [asdict(layer) for layer in layers[:_MOST_LAYERS]]
    shutil.rmtree(work)
    job.events.progress(done=2, total=2, unit="stages", step="done")
    described = environment.describe(device=job.device, threads=job.threads)
    slow = ", ".join(layer.name for layer in layers if layer.bottleneck)
    message = f"{job.input('model').title} profiled: most of its layers' time goes to {slow}"
    return Report("profile", _metrics(runtime, layers, job), described, message, summary)


def _metrics(runtime: Runtime, layers: list[Layer], job: Job) -> list[Metric]:
    macs = sum(layer.macs for layer in layers)
    wire = cost.wire_bytes(runtime.folder.stored)
    return [
        Metric("macs_per_row", macs, "count", device=job.device),
        Metric("nonzero", cost.count_nonzero(runtime), "count", device=job.device),
        Metric("wire_bytes_zstd3", wire, "bytes", device=job.device),
    ]


def profile_layers(
    runtime: Runtime, feeds: Feeds, one: Feeds, repetitions: int, *, work: Path, threads: int
) -> tuple[list[Layer], float]:
    """Measure every layer with `feeds` and count its work with `one` row; slowest first.

    Gives the layers and the median milliseconds of a whole run.
    """
    if isinstance(runtime.engine, TorchEngine):
        layers, total = _profile_module(runtime.engine, feeds, one, repetitions)
    else:
        file = runtime.folder.weights
        layers, total = _profile_graph(file, feeds, one, repetitions, work=work, threads=threads)
    spent = sum(layer.milliseconds for layer in layers) or 1.0
    for layer in layers:
        layer.share = layer.milliseconds / spent
    layers.sort(key=lambda layer: (-layer.milliseconds, layer.name))
    named = [layer for layer in layers if layer.name != OTHERS]
    reached, half = 0.0, _HALF * sum(layer.milliseconds for layer in named)
    for layer in named[:_MOST_MARKED]:
        layer.bottleneck = reached < half or not reached
        reached += layer.milliseconds
    return layers, total


# --- torch ----------------------------------------------------------------------------------------


def _profile_module(
    engine: TorchEngine, feeds: Feeds, one: Feeds, repetitions: int
) -> tuple[list[Layer], float]:
    parts = {
        name: part
        for name, part in engine.module.named_modules()
        if name and (not list(part.children()) or list(part.parameters(recurse=False)))
    }
    packed = dict(packed_layers(engine.module))
    times: dict[str, list[float]] = {name: [] for name in parts}
    started: dict[str, float] = {}
    handles = []

    def begin(name: str, *_: Any) -> None:
        started[name] = _now(engine.device)

    def end(name: str, *_: Any) -> None:
        times[name][-1] += _now(engine.device) - started[name]

    for name, part in parts.items():
        handles.append(part.register_forward_pre_hook(partial(begin, name)))
        handles.append(part.register_forward_hook(partial(end, name)))
    whole = []
    try:
        for _run in range(_WARM_UP + repetitions):
            for spent in times.values():
                spent.append(0.0)
            start = _now(engine.device)
            engine.run(feeds)
            whole.append(_now(engine.device) - start)
    finally:
        for handle in handles:
            handle.remove()
    macs = cost.module_macs(engine, one).by_layer
    layers = [
        Layer(
            name=name,
            kind=type(part).__name__,
            parameters=sum(
                t.numel()
                for t in ([part.weight] if name in packed else part.parameters(recurse=False))
            ),
            bytes=sum(
                t.numel() * t.element_size()
                for t in (part.buffers() if name in packed else part.parameters(recurse=False))
            ),
            macs=macs.get(name, 0),
            milliseconds=_median(times[name][_WARM_UP:]),
        )
        for name, part in parts.items()
    ]
    total = _median(whole[_WARM_UP:])
    rest = Layer(OTHERS, "", macs=sum(macs.values()) - sum(layer.macs for layer in layers))
    rest.milliseconds = max(0.0, total - sum(layer.milliseconds for layer in layers))
    kept = [layer for layer in layers if layer.parameters or layer.macs]
    rest.milliseconds += sum(layer.milliseconds for layer in layers if layer not in kept)
    return [*kept, rest], total


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _median(seconds: list[float]) -> float:
    return round(float(np.median(seconds)) * 1000, 5)


# --- ONNX -----------------------------------------------------------------------------------------


def _profile_graph(
    file: Path, feeds: Feeds, one: Feeds, repetitions: int, *, work: Path, threads: int
) -> tuple[list[Layer], float]:
    named, optimized = work / "named.onnx", work / "optimized.onnx"
    model = onnx.load(file)
    for at, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{at}"
    onnx.save(model, named)
    times, total = _run_profiled(named, optimized, feeds, repetitions, work=work, threads=threads)
    graph = onnx.load(optimized).graph
    macs = cost.graph_macs(optimized, one).by_layer
    weights = {tensor.name: tensor for tensor in graph.initializer}
    layers, rest = [], Layer(OTHERS, "")
    for node in graph.node:
        held = [weights[name] for name in node.input if name in weights]
        layer = Layer(
            name=node.name,
            kind=node.op_type,
            parameters=sum(_count(tensor) for tensor in held if _is_learned(tensor)),
            bytes=sum(numpy_helper.to_array(tensor).nbytes for tensor in held),
            macs=macs.get(node.name, 0),
            milliseconds=times.pop(node.name, 0.0),
        )
        if layer.parameters or layer.macs:
            layers.append(layer)
        else:
            rest.milliseconds += layer.milliseconds
            rest.bytes += layer.bytes
    rest.milliseconds += sum(times.values())
    return [*layers, rest], total


def _count(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _is_learned(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.dims) and tensor.data_type != onnx.TensorProto.INT64


def _run_profiled(
    file: Path, optimized: Path, feeds: Feeds, repetitions: int, *, work: Path, threads: int
) -> tuple[dict[str, float], float]:
    """Run with ONNX Runtime's profiler; give the median milliseconds of each node and of a run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # One step below all: the last one lays tensors out anew, which no file can hold.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(optimized)
    options.enable_profiling = True
    options.profile_file_prefix = str(work / "trace")
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        whole = []
        for _run in range(_WARM_UP + repetitions):
            start = time.perf_counter()
            session.run(None, dict(feeds))
            whole.append(time.perf_counter() - start)
    except Exception as error:  # the library's own exception types are not exported
        raise Invalid(
            "The model cannot be profiled: {problem}",
            code="run_failed",
            problem=first_line(error),
        ) from error
    spans: dict[str, list[float]] = {}
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            spans.setdefault(name.removesuffix("_kernel_time"), []).append(event["dur"] / 1e6)
    # A node inside a loop runs many times in one run: what counts is its time in all of it.
    runs = _WARM_UP + repetitions
    times = {name: _median(_by_run(spent, runs)[_WARM_UP:]) for name, spent in spans.items()}
    return times, _median(whole[_WARM_UP:])


def _by_run(spent: list[float], runs: int) -> list[float]:
    if len(spent) == runs:
        return spent
    each = max(1, len(spent) // runs)
    return [sum(spent[low : low + each]) for low in range(0, each * runs, each)]


# --- sensitivity ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """Rows held out to try changes on, with their classes where the model has any."""

    split: Split
    inputs: Rows
    actual: NDArray[np.int64] | None
    dataset: str

    @property
    def count(self) -> int:
        return len(next(iter(self.inputs.values())))


def _trial_rows(job: Job, step: recipes.Profile, runtime: Runtime) -> Trial:
    """Take rows that a training with the usual seed holds out, as many as were asked for."""
    named = job.input("dataset")
    dataset = open_dataset(named.path, named.ref)
    split = dataset.split(step.split)
    columns = list(runtime.feeder.columns)
    labels = _labels(runtime, dataset, split, step) if runtime.answers == "classes" else None
    check_columns(split, [*columns, *([step.label_column] if labels else [])])
    told = read_classes(dataset, split, step.label_column, labels) if labels else None
    _used, held_out = divide(split.count(), _VALIDATION, 0)
    wanted = held_out if len(held_out) else _used
    wanted = wanted[draw(len(wanted), step.max_rows, 0)]
    kept: dict[str, list[Any]] = {name: [] for name in columns}
    classes: list[NDArray[np.int64]] = []
    first = 0
    for rows in split.batches([*columns, *([step.label_column] if labels else [])], _BLOCK):
        size = len(next(iter(rows.values())))
        here = wanted[(wanted >= first) & (wanted < first + size)] - first
        if told:
            taken = evaluate.take(rows[step.label_column], here)
            numbers = told.numbers(taken, first_row=first)
            classes.append(numbers)
            here = here[numbers >= 0]
            classes[-1] = numbers[numbers >= 0]
        for name in columns:
            kept[name].append(evaluate.take(rows[name], here))
        first += size
        if first > wanted[-1]:
            break
    inputs: Rows = {name: _joined(blocks) for name, blocks in kept.items()}
    actual = np.concatenate(classes) if labels else None
    return Trial(split, inputs, actual, named.ref)


def _labels(runtime: Runtime, dataset: Dataset, split: Split, step: recipes.Profile) -> Labels:
    if runtime.labels:
        return Labels(runtime.labels)
    return find_labels(dataset, split, step.label_column)


def _joined(blocks: list[Any]) -> Any:
    if blocks and isinstance(blocks[0], np.ndarray):
        return np.concatenate(blocks)
    return [value for block in blocks for value in block]


def _head(rows: Rows, count: int) -> Rows:
    return {
        name: evaluate.take(values, np.arange(min(count, len(values))))
        for name, values in rows.items()
    }


def _try_layers(
    job: Job, step: recipes.Profile, runtime: Runtime, trial: Trial, layers: list[Layer]
) -> dict[str, Any]:
    """Change one layer at a time and note at each what the model loses by it."""
    batches = [
        runtime.feeder.feeds(_between(trial.inputs, low, low + _BATCH), trial.split)
        for low in range(0, trial.count, _BATCH)
    ]
    base = _answers(runtime, batches)
    before = _score(base, base, trial.actual)
    by_name = {layer.name: layer for layer in layers}
    changes = list(_changes(runtime, job, by_name, step.max_layers))
    for done, (name, way, changed) in enumerate(changes):
        job.interrupt.check()
        job.events.progress(done=done, total=len(changes), unit="changes", step="sensitivity")
        with changed() as other:
            answers = _answers(other, batches)
        layer = by_name[name]
        layer.sensitivity[way] = round(_score(answers, base, trial.actual) - before, 6) + 0.0
        if trial.actual is not None:
            apart = compare.divergence(probabilities(answers), probabilities(base))
            layer.divergence[way] = round(float(apart.mean()), 6)
    return {
        "measure": "cosine" if trial.actual is None else "accuracy",
        "rows": trial.count,
        "split": step.split,
        "dataset": trial.dataset,
        "baseline": before,
        "ways": list(WAYS),
        "tried": len({name for name, _way, _changed in changes}),
    }


def _between(rows: Rows, low: int, high: int) -> Rows:
    return {name: values[low:high] for name, values in rows.items()}


def _answers(runtime: Runtime, batches: list[Feeds]) -> NDArray[Any]:
    return np.concatenate([runtime.compute(feeds) for feeds in batches])


def _score(answers: NDArray[Any], base: NDArray[Any], actual: NDArray[np.int64] | None) -> float:
    if actual is None:
        return float(cosines(answers, base).mean())
    return float((answers.argmax(1) == actual).mean())


Changed = Callable[[], AbstractContextManager[Runtime]]


def _changes(
    runtime: Runtime, job: Job, layers: Mapping[str, Layer], most: int
) -> Iterator[tuple[str, str, Changed]]:
    """Give a way to run the model with one layer changed, for each layer with weights."""
    largest = sorted(layers.values(), key=lambda layer: (-layer.parameters, layer.name))
    names = [layer.name for layer in largest if layer.parameters][:most]
    if isinstance(runtime.engine, TorchEngine):
        parts = dict(runtime.engine.module.named_modules())
        for name in names:
            weights = [w for w in parts[name].parameters(recurse=False) if w.ndim > 1]
            for way, change in WAYS.items() if weights else ():
                yield name, way, partial(_with_module, runtime, weights, change)
        return
    model = onnx.load(job.out / "work" / "optimized.onnx")
    nodes = {node.name: node for node in model.graph.node}
    held = {t.name: t for t in model.graph.initializer if _is_matrix(t)}
    for name in names:
        tensors = [held[given] for given in nodes[name].input if given in held]
        for way, change in WAYS.items() if tensors else ():
            yield name, way, partial(_with_graph, runtime, job, model, nodes[name], change)


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    return len(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT


def rounded(weight: NDArray[Any], axis: int) -> NDArray[Any]:
    """Round to 8 bits, with one scale for each place along `axis`."""
    others = tuple(at for at in range(weight.ndim) if at != axis % weight.ndim)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-12) / 127
    return np.asarray(np.round(weight / scale) * scale, dtype=weight.dtype)


def halved(weight: NDArray[Any], _axis: int) -> NDArray[Any]:
    """Put the half of the weights that is nearest to zero to zero."""
    drop = np.argsort(np.abs(weight), axis=None, kind="stable")[: weight.size // 2]
    kept = weight.copy()
    kept.flat[drop] = 0
    return kept


WAYS: dict[str, Callable[[NDArray[Any], int], NDArray[Any]]] = {"int8": rounded, "pruned": halved}


@contextmanager
def _with_module(
    runtime: Runtime,
    weights: list[nn.Parameter],
    change: Callable[[NDArray[Any], int], NDArray[Any]],
) -> Iterator[Runtime]:
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.copy_(torch.from_numpy(change(weight.cpu().numpy(), 0)))
        yield runtime
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


@contextmanager
def _with_graph(
    runtime: Runtime,
    job: Job,
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    change: Callable[[NDArray[Any], int], NDArray[Any]],
) -> Iterator[Runtime]:
    other = copy.deepcopy(model)
    by_row = any(item.name == "transB" and item.i for item in node.attribute)
    axis = -1 if node.op_type in _OUTPUT_LAST and not by_row else 0
    for tensor in other.graph.initializer:
        if tensor.name in node.input and _is_matrix(tensor):
            value = numpy_helper.to_array(tensor)
            # Recurrent weights begin with the direction.
            way = 1 if value.ndim == 3 and node.op_type in _RECURRENT else axis
            tensor.CopyFrom(numpy_helper.from_array(change(value, way), tensor.name))
    file = job.out / "work" / "changed.onnx"
    onnx.save(other, file)
    engine = OnnxEngine(file, device=job.device, threads=job.threads)
    yield Runtime(runtime.folder, engine, runtime.feeder, runtime.answers)
    file.unlink()
