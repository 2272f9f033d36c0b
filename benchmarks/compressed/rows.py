"""Whole versions made smaller by jobs of ours, and by what others give in one line.

`python -m benchmarks.compressed.rows WAY MODEL DATASET FILE` makes and measures one of them, in an
environment that has what it needs, and prints what came of it. FILE is the job of one of our ways,
or where the model is, or will be, as an ONNX graph.
"""

import csv
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.compressed.environments import ROOT, make_environment
from benchmarks.compressed.texts import news_files, reviews_files
from benchmarks.models import compress, lay_out, run, write_job
from config.local import sample_data as samples
from registry import recipes
from workers.ml import evaluate
from workers.ml.data import Dataset, open_dataset
from workers.ml.device import prepare
from workers.ml.events import Events
from workers.ml.formats import open_model
from workers.ml.infer.engines import TorchEngine
from workers.ml.infer.runtime import Runtime, load_runtime
from workers.ml.interrupt import Interrupt
from workers.ml.job import Job, read_job
from workers.ml.measure import (
    CHILD,
    PARENT,
    Contest,
    HeldOut,
    measure_classes,
    measure_fidelity,
)
from workers.ml.report import Metric

CODE = {"method": "code"}
INT8 = {"method": "quantize_dynamic"}
_THREADS = len(os.sched_getaffinity(0))
_CALIBRATION_BATCHES = 10
_BATCH = 32
_PATIENCE_SECONDS = 600
_VECTORS = 200


@dataclass(frozen=True)
class Subject:
    """A model to make smaller, and the rows to do it with."""

    name: str
    folder: Path
    dataset: Path
    model_ref: str
    dataset_ref: str
    seed: int = 0


@dataclass(frozen=True)
class Measured:
    """What one way came to on one model."""

    model: str
    way: str
    ours: bool
    seed: int
    stored_bytes: int
    times_smaller: float
    quality: float
    """Accuracy, or the mean cosine to the parent's vectors where there are no classes."""
    parent_quality: float
    n: int
    low: float
    """The 95 % interval of what quality changed by, row by row; of a cosine, its own."""
    high: float
    p_value: float | None
    latency_ms: float
    parent_latency_ms: float


@dataclass(frozen=True)
class Absent:
    """A way that gave nothing to measure, and why."""

    model: str
    way: str
    seed: int
    reason: str


# --- what is made smaller ------------------------------------------------------------------------

SEEDS: Mapping[str, int] = {"digits-cnn": 3, "MiniLM": 1, "R8": 3, "IMDb": 3}
"""The models, and how many times each is trained; MiniLM comes trained."""


def measure_model(
    name: str, seed: int, folder: Path, *, only: str = ""
) -> Iterator[Measured | Absent]:
    """Train a model, make it smaller in every way there is, and measure that.

    `only` is an expression that finds the names of the ways that are wanted.
    """
    subject = _subject(name, folder, seed)
    if subject is None:
        yield Absent(name, "all", seed, "its texts are not to be had")
        return
    for way, steps in _ours(subject).items():
        if not re.search(only, way):
            continue
        recipe = {**compress(subject.model_ref, subject.dataset_ref), "seed": seed, "steps": steps}
        inputs = {"model": subject.folder, "dataset": subject.dataset}
        job = write_job(folder / re.sub(r"\W+", "-", way), recipe, **inputs)
        yield _told(_run_way(subject, way, Path(sys.executable), job))
    for way, (environment, requirements) in _PEERS.items():
        if not re.search(only, way) or (name != "MiniLM" and way in _OF_MATRICES):
            continue
        python: Path | None = Path(sys.executable)
        if environment is not None:
            python = make_environment(environment, *requirements, alone=environment == "torchao")
        if python is None:
            yield Absent(name, way, seed, f"{requirements[0]} cannot be installed")
        else:
            yield _told(_run_way(subject, way, python, folder / "model.onnx"))


def _told(found: Measured | Absent) -> Measured | Absent:
    said = (
        f"no: {found.reason}"
        if isinstance(found, Absent)
        else f"{found.times_smaller:.2f}x, {found.quality:.4f} of {found.parent_quality:.4f}"
    )
    print(f"  {found.model}, {found.way}: {said}", file=sys.stderr, flush=True)
    return found


def _subject(name: str, place: Path, seed: int) -> Subject | None:
    if name == "MiniLM":
        docs = lay_out(place / "docs", _some_docs())
        minilm = samples.encoder_files()["model.safetensors"].parent
        return Subject(name, minilm, docs, samples.ENCODER, samples.DOCS)
    if name == "digits-cnn":
        files, recipe = samples.digits_files(), samples.TRAIN_DIGITS
    else:
        found = news_files() if name == "R8" else reviews_files()
        if found is None:
            return None
        files, recipe = found, _LEARN_NEWS if name == "R8" else _LEARN_REVIEWS
    dataset = lay_out(place / "data", files)
    steps = [{**recipe["steps"][0], "seed": seed}]
    trained = run(place / "train", {**recipe, "steps": steps}, dataset=dataset)
    return Subject(name, trained.files, dataset, recipe["output"], recipe["dataset"], seed)


def _some_docs() -> dict[str, bytes]:
    """Give the documentation with few rows to test on; a mean of cosines needs no more."""
    files = samples.docs_files()
    head, *rows = csv.reader(io.StringIO(files["test.csv"].decode()))
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows[:_VECTORS]])
    return {**files, "test.csv": out.getvalue().encode()}


_LEARN_NEWS = {
    "kind": "train",
    "schema": 1,
    "dataset": "samples/texts",
    "output": "samples/classifier",
    "architecture": {"name": "text_classifier", "dropout": 0.4},
    "steps": [{"method": "train", "epochs": 5, "batch_size": 32, "learning_rate": 0.003}],
}
_LEARN_REVIEWS = {
    **_LEARN_NEWS,
    "architecture": {"name": "text_classifier", "dropout": 0.4, "max_length": 128},
}


def _ours(subject: Subject) -> Mapping[str, list[dict[str, Any]]]:
    """List the recipes to try on a model."""
    if subject.name == "MiniLM":
        exact = {
            "method": "quantize_weights",
            "bits": 4,
            "algorithm": "gptq",
            "calibration_rows": 1024,
        }
        return {
            "int8": [INT8],
            "weights in 8 bits, coded": [
                {"method": "quantize_weights", "bits": 8, "block_size": 128},
                CODE,
            ],
            "shared in 6 bits, coded": [{"method": "cluster", "bits": 6}, CODE],
            "int4 by GPTQ, coded": [exact, CODE],
        }
    budget = {"epochs": 3, "control": False, "batch_size": 32}
    sparse = {"method": "prune_magnitude", "sparsity": 0.9, "schedule": "gradual", **budget}
    shared = {"method": "cluster", "bits": 4, **budget, "epochs": 1}
    if subject.name == "digits-cnn":
        return {
            "int8": [INT8],
            "int8, convolutions too, coded": [{**INT8, "convolutions": True}, CODE],
            "int8, calibrated": [{"method": "quantize_static"}],
            "90 % pruned, shared in 4 bits, coded": [{**sparse, "epochs": 5}, shared, CODE],
        }
    words = {**sparse, "embeddings": "frequency"}
    return {
        "int8": [INT8],
        "int4": [{"method": "quantize_weights", "bits": 4}],
        "dense, trained as long as the pruned": [{"method": "fine_tune", **budget, "epochs": 4}],
        "70 % pruned, and of the words, shared in 4 bits, coded": [
            {**words, "sparsity": 0.7},
            shared,
            CODE,
        ],
        "90 % pruned, and of the words, shared in 4 bits, coded": [words, shared, CODE],
    }


# --- measuring -----------------------------------------------------------------------------------


def _quality(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Say what became of quality: by accuracy where there are classes, else by the cosine."""
    if "accuracy" not in metrics:
        cosine = metrics["cosine_to_parent"]
        return {
            "quality": cosine["value"],
            "parent_quality": 1.0,
            "p_value": None,
            **{name: cosine[name] for name in ("n", "low", "high")},
        }
    accuracy, change = metrics["accuracy"], metrics["accuracy_change"]
    return {
        "quality": accuracy["value"],
        "parent_quality": accuracy["details"][PARENT]["value"],
        "p_value": metrics["agreement_with_parent"]["details"]["mcnemar_p"],
        **{name: change[name] for name in ("n", "low", "high")},
    }


def _run_way(subject: Subject, way: str, python: Path, file: Path) -> Measured | Absent:
    """Make and measure a model in a process of its own; `file` is a job of ours, or a graph."""
    seed = subject.seed
    command = [python, "-m", "benchmarks.compressed.rows", way, subject.folder, subject.dataset]
    try:
        done = subprocess.run(
            [*command, file],
            # Some packages leave notes of their own where they run.
            cwd=subject.folder.parent,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Absent(subject.name, way, seed, f"not done after {_PATIENCE_SECONDS} s")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Absent(subject.name, way, seed, reason[:200])
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Measured(**{**said, "model": subject.name, "seed": seed})


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
    measure = measure_classes if child.answers == "classes" else measure_fidelity
    metrics: list[Metric] = measure(contest, held_out)
    (rows,) = _some_rows(child, dataset, 1, batch=1)
    feeds = {1: child.feeder.feeds(rows, held_out.split)}
    time = evaluate.latency(contest.runtimes, feeds, device="cpu", threads=_THREADS)[0]
    return Measured(
        model=subject.name,
        way=way,
        ours=ours,
        seed=subject.seed,
        stored_bytes=stored,
        times_smaller=parent.folder.weights_bytes / stored,
        latency_ms=time.value,
        parent_latency_ms=time.details[PARENT]["value"],
        **_quality({metric.metric: asdict(metric) for metric in metrics}),
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


def _nbits(_subject: Subject, _parent: Runtime, graph: Path) -> Path:
    import onnx  # noqa: PLC0415 - of some ways alone
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415
        MatMulNBitsQuantizer,
    )

    quantizer = MatMulNBitsQuantizer(onnx.load(graph))
    quantizer.process()
    target = graph.with_suffix(".nbits.onnx")
    onnx.save(quantizer.model.model, target)
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


def _nncf_weights(_subject: Subject, _parent: Runtime, graph: Path) -> Path:
    import nncf  # noqa: PLC0415 - of one environment alone
    import onnx  # noqa: PLC0415

    target = graph.with_suffix(".weights.onnx")
    onnx.save(nncf.compress_weights(onnx.load(graph)), target)
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


_NNCF = ("nncf", ("nncf==3.4.0",))
_PEERS: Mapping[str, tuple[str | None, tuple[str, ...]]] = {
    "ONNX Runtime, quantize_dynamic": (None, ()),
    "ONNX Runtime, MatMulNBits int4": (None, ()),
    "NNCF, quantize": _NNCF,
    "NNCF, compress_weights": _NNCF,
    "torchao, int8 weight-only": ("torchao", ("torchao==0.18.0",)),
    "Neural Compressor, RTN int4": (
        "neural-compressor",
        ("neural-compressor-pt==3.10", "accelerate"),
    ),
}
_OF_MATRICES = {"ONNX Runtime, MatMulNBits int4", "NNCF, compress_weights"}
"""What is of no use elsewhere: the one leaves the rest as it is; what the other makes of
convolutions, ONNX Runtime does not run."""
_OF_GRAPHS: Mapping[str, Callable[[Subject, Runtime, Path], Path]] = {
    "ONNX Runtime, quantize_dynamic": _onnxruntime,
    "ONNX Runtime, MatMulNBits int4": _nbits,
    "NNCF, quantize": _nncf,
    "NNCF, compress_weights": _nncf_weights,
}
_OF_MODULES: Mapping[str, Callable[[torch.nn.Module], Any]] = {
    "torchao, int8 weight-only": _torchao,
    "Neural Compressor, RTN int4": _neural_compressor,
}


def main(way: str, folder: Path, dataset: Path, file: Path) -> None:
    """Make one model smaller, by a job of ours or as another package does it, and measure that."""
    prepare(device="cpu", threads=_THREADS)
    subject = Subject("", folder, dataset, "samples/model@1", "samples/data@1")
    parent = _open(folder)
    ours = way not in _PEERS
    make = _by_job if ours else _by_graph if way in _OF_GRAPHS else _by_module
    child, stored = make(way, subject, parent, file)
    print(json.dumps(asdict(_measure(subject, way, child, parent, stored, ours=ours))))


def _by_job(_way: str, _subject: Subject, _parent: Runtime, file: Path) -> tuple[Runtime, int]:
    """Do what a job of ours does, up to its report."""
    from workers.ml.compress import run  # noqa: PLC0415 - the others' environments need it not
    from workers.ml.compress.bench import open_bench  # noqa: PLC0415

    job = read_job(file, Events(io.StringIO()), Interrupt())
    assert isinstance(job.recipe, recipes.CompressRecipe)
    job.start_over()
    bench = open_bench(job, job.recipe)
    run.check(bench)
    done = [run.apply_step(step, bench, at) for at, step in enumerate(job.recipe.steps)]
    run.write_result(bench, done)
    child = _open(job.files)
    return child, child.folder.weights_bytes


def _by_graph(way: str, subject: Subject, parent: Runtime, file: Path) -> tuple[Runtime, int]:
    if not file.is_file():
        _export(parent, file)
    made = _OF_GRAPHS[way](subject, parent, file)
    return _of_graph(parent, made), made.stat().st_size


def _by_module(way: str, subject: Subject, parent: Runtime, _file: Path) -> tuple[Runtime, int]:
    engine, again = parent.engine, _open(subject.folder).engine
    assert isinstance(engine, TorchEngine)
    assert isinstance(again, TorchEngine)
    module = _OF_MODULES[way](again.module)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    own = TorchEngine(module, engine.input_names, next(iter(_outputs(parent))), "cpu")
    return dataclasses.replace(parent, engine=own), buffer.tell()


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
