"""Whole versions made smaller by jobs of ours, and by what others give in one line.

`python -m benchmarks.compressed.rows METHOD MODEL DATASET` makes and measures one of those others
in an environment that has it, and prints what came of it.
"""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compressed.environments import ROOT, make_environment
from benchmarks.models import TRAIN_TOPICS, compress, lay_out, run
from config.local import sample_data as samples
from registry import recipes
from workers.ml import evaluate
from workers.ml.data import Dataset, open_dataset
from workers.ml.events import Events
from workers.ml.formats import open_model
from workers.ml.infer.engines import TorchEngine
from workers.ml.infer.runtime import Runtime, load_runtime
from workers.ml.interrupt import Interrupt
from workers.ml.job import Job
from workers.ml.measure import (
    CHILD,
    PARENT,
    Contest,
    HeldOut,
    measure_classes,
    measure_fidelity,
)

CODE = {"method": "code"}
INT8 = {"method": "quantize_dynamic"}
_THREADS = os.cpu_count() or 1
_CALIBRATION_BATCHES = 10
_BATCH = 32


@dataclass(frozen=True)
class Subject:
    """A model to make smaller, and the rows to do it with."""

    name: str
    folder: Path
    dataset: Path
    model_ref: str
    dataset_ref: str


@dataclass(frozen=True)
class Measured:
    """What one way came to on one model."""

    model: str
    way: str
    ours: bool
    stored_bytes: int
    times_smaller: float
    quality: float
    """Accuracy, or the mean cosine to the parent's vectors where there are no classes."""
    parent_quality: float
    p_value: float | None
    latency_ms: float
    parent_latency_ms: float

    @property
    def lost(self) -> float:
        """Tell what it costs: points of accuracy, or what is missing of a cosine of 1."""
        return self.parent_quality - self.quality


def measure_all(folder: Path) -> list[Measured]:
    """Train the models, make each smaller in every way there is, and measure that."""
    found = []
    for subject in _subjects(folder):
        parent = _open(subject.folder)
        for way, steps in _ours(subject).items():
            recipe = compress(subject.model_ref, subject.dataset_ref)
            recipe["steps"] = steps
            name = f"{subject.name}-{way}".replace(" ", "-").replace(",", "")
            made = run(folder / name, recipe, model=subject.folder, dataset=subject.dataset).files
            child = _open(made)
            bytes_stored = child.folder.weights_bytes
            found.append(_measure(subject, way, child, parent, bytes_stored, ours=True))
        found += _others(subject, folder)
    return found


def _subjects(folder: Path) -> list[Subject]:
    digits = lay_out(folder / "digits", samples.digits_files())
    docs = lay_out(folder / "docs", samples.docs_files())
    cnn = run(folder / "cnn", samples.TRAIN_DIGITS, dataset=digits).files
    topics = run(folder / "topics", TRAIN_TOPICS, dataset=docs).files
    minilm = samples.encoder_files()["model.safetensors"].parent
    return [
        Subject("digits-cnn", cnn, digits, samples.DIGITS_MODEL, samples.DIGITS),
        Subject("topics", topics, docs, "samples/topics", samples.DOCS),
        Subject("MiniLM", minilm, docs, samples.ENCODER, samples.DOCS),
    ]


def _ours(subject: Subject) -> Mapping[str, list[dict[str, Any]]]:
    """List the recipes to try on a model."""
    tuned = {"epochs": 4, "control": False}
    if subject.name == "MiniLM":
        return {
            "int8": [INT8],
            "int8, coded": [INT8, CODE],
            "shared in 7 bits, coded": [{"method": "cluster", "bits": 7}, CODE],
            "shared in 6 bits, coded": [{"method": "cluster", "bits": 6}, CODE],
            "int4, embeddings int8, coded": [
                {"method": "quantize_weights", "bits": 4, "embeddings": "8"},
                CODE,
            ],
        }
    sparse = {"method": "prune_magnitude", "sparsity": 0.9, "schedule": "gradual", **tuned}
    return {
        "int8": [INT8],
        "int8, coded": [INT8, CODE],
        "90 % pruned, shared in 4 bits, coded": [
            sparse,
            {"method": "cluster", "bits": 4, "epochs": 2, "control": False},
            CODE,
        ],
    }


def _others(subject: Subject, folder: Path) -> list[Measured]:
    found = []
    for way, (environment, requirements) in _PEERS.items():
        python = Path(sys.executable)
        if environment is not None:
            made = make_environment(environment, *requirements, alone=environment == "torchao")
            if made is None:
                continue
            python = made
        print(f"  {subject.name}, {way}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [
                *(python, "-m", "benchmarks.compressed.rows", way),
                *(subject.folder, subject.dataset, folder / f"{subject.name}.onnx"),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"    it failed: {reason[:200]}", file=sys.stderr, flush=True)
            continue
        said = json.loads(done.stdout.strip().splitlines()[-1])
        found.append(Measured(**{**said, "model": subject.name}))
    return found


# --- measuring -----------------------------------------------------------------------------------


def _open(path: Path) -> Runtime:
    folder = open_model(path)
    return load_runtime(folder, device="cpu", threads=_THREADS, columns=folder.columns)


def _measure(
    subject: Subject, way: str, child: Runtime, parent: Runtime, stored: int, *, ours: bool
) -> Measured:
    """Measure quality on the test rows, and the time of one row; parent and child take turns."""
    dataset = open_dataset(subject.dataset, subject.dataset_ref)
    held_out = HeldOut(dataset, "test", child.folder.columns.get("label", "label"))
    contest = Contest({CHILD: child, PARENT: parent}, _job(subject))
    p_value = None
    if child.answers == "classes":
        found = {metric.metric: metric for metric in measure_classes(contest, held_out)}
        accuracy = found["accuracy"]
        quality, before = accuracy.value, accuracy.details["parent"]["value"]
        p_value = found["agreement_with_parent"].details["mcnemar_p"]
    else:
        found = {metric.metric: metric for metric in measure_fidelity(contest, held_out)}
        quality, before = found["cosine_to_parent"].value, 1.0
    (rows,) = _some_rows(child, dataset, 1, batch=1)
    feeds = {1: child.feeder.feeds(rows, held_out.split)}
    times = evaluate.latency(contest.runtimes, feeds, device="cpu", threads=_THREADS)[0]
    return Measured(
        model=subject.name,
        way=way,
        ours=ours,
        stored_bytes=stored,
        times_smaller=parent.folder.weights_bytes / stored,
        quality=quality,
        parent_quality=before,
        p_value=p_value,
        latency_ms=times.value,
        parent_latency_ms=times.details[PARENT]["value"],
    )


def _some_rows(runtime: Runtime, dataset: Dataset, batches: int, *, batch: int) -> list[Any]:
    split = dataset.split("test" if batch == 1 else "train")
    return [
        rows
        for rows, _ in zip(
            split.batches(runtime.feeder.columns, batch), range(batches), strict=False
        )
    ]


def _job(subject: Subject) -> Job:
    recipe = recipes.parse_recipe(
        {**compress(subject.model_ref, subject.dataset_ref), "steps": [CODE]}
    )
    nowhere = Path(tempfile.gettempdir())
    quiet = Events(io.StringIO())
    return Job("", recipe, {}, nowhere, nowhere, "cpu", _THREADS, quiet, Interrupt())


# --- what others give ----------------------------------------------------------------------------


def _onnxruntime(_subject: Subject, _parent: Runtime, graph: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415 - of one way alone

    target = graph.with_suffix(".ort.onnx")
    quantize_dynamic(graph, target)
    return target


def _nncf(subject: Subject, parent: Runtime, graph: Path) -> Path:
    import nncf  # noqa: PLC0415 - of one environment alone
    import onnx  # noqa: PLC0415

    dataset = open_dataset(subject.dataset, subject.dataset_ref)
    split = dataset.split("train")
    rows = _some_rows(parent, dataset, _CALIBRATION_BATCHES, batch=_BATCH)
    feeds = [dict(parent.feeder.feeds(one, split)) for one in rows]
    target = graph.with_suffix(".nncf.onnx")
    onnx.save(nncf.quantize(onnx.load(graph), nncf.Dataset(feeds)), target)
    return target


def _torchao(module: torch.nn.Module) -> torch.nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: PLC0415

    quantize_(module, Int8WeightOnlyConfig())
    return module


def _neural_compressor(module: torch.nn.Module) -> Any:
    from neural_compressor.torch.quantization import (  # noqa: PLC0415 - of one environment alone
        RTNConfig,
        convert,
        prepare,
    )

    return convert(prepare(module, RTNConfig()))


_PEERS: Mapping[str, tuple[str | None, tuple[str, ...]]] = {
    "ONNX Runtime, quantize_dynamic": (None, ()),
    "NNCF, quantize": ("nncf", ("nncf==3.4.0",)),
    "torchao, int8 weight-only": ("torchao", ("torchao==0.18.0",)),
    "Neural Compressor, RTN int4": (
        "neural-compressor",
        ("neural-compressor-pt==3.10", "accelerate"),
    ),
}
_OF_GRAPHS: Mapping[str, Callable[[Subject, Runtime, Path], Path]] = {
    "ONNX Runtime, quantize_dynamic": _onnxruntime,
    "NNCF, quantize": _nncf,
}
_OF_MODULES: Mapping[str, Callable[[torch.nn.Module], Any]] = {
    "torchao, int8 weight-only": _torchao,
    "Neural Compressor, RTN int4": _neural_compressor,
}


def main(way: str, folder: Path, dataset: Path, graph: Path) -> None:
    """Make one model smaller by what another package does unless told otherwise."""
    subject = Subject("", folder, dataset, "samples/model@1", "samples/data@1")
    parent = _open(folder)
    engine = parent.engine
    assert isinstance(engine, TorchEngine)
    if way in _OF_GRAPHS:
        if not graph.is_file():
            _export(parent, graph)
        made = _OF_GRAPHS[way](subject, parent, graph)
        child = _of_graph(parent, made)
        stored = made.stat().st_size
    else:
        again = _open(folder).engine
        assert isinstance(again, TorchEngine)
        module = _OF_MODULES[way](again.module)
        buffer = io.BytesIO()
        torch.save(module.state_dict(), buffer)
        stored = buffer.tell()
        own = TorchEngine(module, engine.input_names, next(iter(_outputs(parent))), "cpu")
        child = dataclasses.replace(parent, engine=own)
    print(json.dumps(asdict(_measure(subject, way, child, parent, stored, ours=False))))


def _export(parent: Runtime, graph: Path) -> None:
    from workers.ml.export.onnx import export_onnx  # noqa: PLC0415 - takes seconds
    from workers.ml.probes import NOWHERE, probe_rows  # noqa: PLC0415

    assert isinstance(parent.engine, TorchEngine)
    feeds = evaluate.latency_feeds(parent, probe_rows(parent, _BATCH), NOWHERE)
    export_onnx(parent.engine, feeds[_BATCH], next(iter(_outputs(parent))), graph)


def _outputs(parent: Runtime) -> list[str]:
    return ["sentence_embedding" if parent.answers == "embedding" else "logits"]


def _of_graph(parent: Runtime, graph: Path) -> Runtime:
    from workers.ml.infer.engines import OnnxEngine  # noqa: PLC0415

    return dataclasses.replace(parent, engine=OnnxEngine(graph, device="cpu", threads=_THREADS))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
