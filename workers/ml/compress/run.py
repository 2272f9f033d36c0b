"""A compression job: version in, smaller variant out, and what it costs."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import recipes
from registry.errors import Invalid
from workers.ml import environment
from workers.ml.cards import read_card, write_card
from workers.ml.compress.quantize import inspect_onnx, quantize
from workers.ml.data import check_columns, open_dataset
from workers.ml.evaluate import latency_feeds
from workers.ml.export.onnx import Agreement, export_onnx, verify
from workers.ml.formats import ONNX, SIDE_FILES, ModelFolder, open_model, save_config
from workers.ml.infer.engines import OnnxEngine, TorchEngine
from workers.ml.infer.runtime import EMBEDDING, Runtime, load_runtime
from workers.ml.job import Job
from workers.ml.measure import (
    CHILD,
    PARENT,
    Contest,
    HeldOut,
    measure_classes,
    measure_cost,
    measure_fidelity,
)
from workers.ml.probes import NOWHERE, probe_rows
from workers.ml.report import Metric, Report

_EXPORTED = "onnx_float32"
_STAGES = 4


@dataclass
class _Work:
    """The file as it stands between two steps, and what is known about how it came to be."""

    file: Path
    exported: Path | None = None
    agreement: Agreement | None = None


def run(job: Job, recipe: recipes.CompressRecipe) -> Report:
    """Apply the steps in order, write the new version, measure it beside its parent."""
    given = open_model(job.input("model").path)
    columns = given.columns
    parent = load_runtime(given, device=job.device, threads=job.threads, columns=columns)
    held_out = _held_out(job, parent, columns)
    workshop = job.out / "work"
    workshop.mkdir()
    work = _Work(given.weights)
    for number, step in enumerate(recipe.steps):
        job.events.progress(done=number, total=_STAGES, unit="stages", step=step.method)
        _apply(job, step, parent, work, workshop / str(number))
    _write_files(job, recipe, given, parent, work.file)
    job.events.progress(done=_STAGES - 2, total=_STAGES, unit="stages", step="evaluate")
    child = load_runtime(
        open_model(job.files), device=job.device, threads=job.threads, columns=columns
    )
    runtimes = {CHILD: child, PARENT: parent}
    if work.exported is not None and work.exported != work.file:
        engine = OnnxEngine(work.exported, device=job.device, threads=job.threads)
        runtimes[_EXPORTED] = Runtime(child.folder, engine, child.feeder, child.answers)
    report = _report(job, recipe, Contest(runtimes, job), held_out, work)
    _write_card(job, recipe, report)
    shutil.rmtree(workshop)
    job.events.progress(done=_STAGES, total=_STAGES, unit="stages", step="done")
    return report


def _held_out(job: Job, parent: Runtime, columns: dict[str, str]) -> HeldOut | None:
    if "dataset" not in job.inputs:
        return None
    given = job.input("dataset")
    dataset = open_dataset(given.path, given.ref)
    name = "test" if "test" in dataset.splits else next(iter(dataset.splits))
    held_out = HeldOut(dataset, name, columns.get("label", "label"))
    needed = [*parent.feeder.columns]
    if parent.answers == "classes":
        needed.append(held_out.label_column)
    # Fail before the work, not after it.

    check_columns(held_out.split, needed)
    return held_out


def _apply(
    job: Job, step: recipes.CompressStep, parent: Runtime, work: _Work, folder: Path
) -> None:
    folder.mkdir()
    target = folder / ONNX
    if work.file.suffix != ".onnx":
        _export(job, parent, work, target if step.method == "export_onnx" else folder / "f32.onnx")
    elif step.method == "export_onnx":
        raise Invalid("The model is in ONNX already.", code="already_onnx")
    if isinstance(step, recipes.QuantizeDynamic):
        quantize(step, work.file, target)
        work.file = target


def _export(job: Job, parent: Runtime, work: _Work, target: Path) -> None:
    engine = parent.engine
    assert isinstance(engine, TorchEngine)
    feeds = latency_feeds(parent, probe_rows(parent, 32), NOWHERE)
    output = EMBEDDING if parent.answers == "embedding" else "logits"
    export_onnx(engine, feeds[32], output, target)
    plain = TorchEngine(engine.module, engine.input_names, output, "cpu")
    exported = OnnxEngine(target, device="cpu", threads=job.threads)
    work.agreement = verify(plain, exported, list(feeds.values()))
    engine.module.to(job.device)
    job.events.log(
        f"Exported to ONNX; the largest difference to torch is "
        f"{work.agreement.largest_absolute:.2g}."
    )
    work.file = work.exported = target


def _write_files(
    job: Job, recipe: recipes.CompressRecipe, given: ModelFolder, parent: Runtime, weights: Path
) -> None:
    shutil.copyfile(weights, job.files / ONNX)
    for name in SIDE_FILES:
        if (given.path / name).is_file():
            (job.files / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given.path / name, job.files / name)
    save_config(_config(recipe, given, parent), job.files)


def _config(recipe: recipes.CompressRecipe, given: ModelFolder, parent: Runtime) -> dict[str, Any]:
    """Keep what the parent's config.json says, and add what the next job needs."""
    config = dict(given.config)
    config["compression"] = [step.model_dump(mode="json") for step in recipe.steps]
    if parent.answers == "embedding":
        config.setdefault("task", "feature-extraction")
        config.setdefault("preprocessing", {"kind": "wordpieces", "columns": {"text": "text"}})
        if "signature" not in config and isinstance(parent.engine, TorchEngine):
            config["signature"] = {
                "inputs": [
                    {"name": name, "dtype": "int64", "shape": [-1, -1]}
                    for name in parent.engine.input_names
                ],
                "outputs": [
                    {
                        "name": EMBEDDING,
                        "dtype": "float32",
                        "shape": [-1, int(config.get("hidden_size", -1))],
                    }
                ],
            }
    return config


def _report(
    job: Job,
    recipe: recipes.CompressRecipe,
    contest: Contest,
    held_out: HeldOut | None,
    work: _Work,
) -> Report:
    metrics: list[Metric] = []
    if contest.child.answers == "classes" and held_out is not None:
        metrics += measure_classes(contest, held_out)
    else:
        metrics += measure_fidelity(contest, held_out)
    metrics += measure_cost(contest, held_out=held_out)
    contents = inspect_onnx(work.file)
    summary: dict[str, Any] = {
        "variant": recipe.variant_name,
        "operators": contents.operators,
        "weight_bytes_by_type": contents.weight_bytes,
    }
    if work.agreement is not None:
        summary["export"] = {
            "largest_absolute_difference": work.agreement.largest_absolute,
            "largest_relative_difference": work.agreement.largest_relative,
        }
    described = environment.describe(device=job.device, threads=job.threads)
    return Report("compress", metrics, described, _message(metrics), summary)


def _message(metrics: list[Metric]) -> str:
    """Sum the trade up in one line, for the history."""
    by_name = {metric.metric: metric for metric in metrics}
    size = by_name["stored_bytes"]
    parts = [f"{size.details['times_smaller']:.2f}x smaller"]
    if quality := by_name.get("accuracy"):
        before = quality.details["parent"]["value"]
        parts.append(f"accuracy {quality.value:.4f} (was {before:.4f}, n={quality.n})")
    if cosine := by_name.get("cosine_to_parent"):
        parts.append(f"cosine to parent {cosine.value:.4f} (n={cosine.n})")
    if fast := by_name.get("latency_p50_batch1"):
        parts.append(f"p50 {fast.value:.2f} ms (was {fast.details['parent']['value']:.2f})")
    return ", ".join(parts)


def _write_card(job: Job, recipe: recipes.CompressRecipe, report: Report) -> None:
    parent = job.input("model")
    card = read_card(parent.path)
    methods = [step.method for step in recipe.steps]
    quantized = any(isinstance(step, recipes.QuantizeDynamic) for step in recipe.steps)
    head = {
        "base_model": parent.repository,
        "base_model_relation": "quantized" if quantized else "converted",
        "license": card.license,
        "pipeline_tag": card.task,
        "language": list(card.language),
        "library_name": "onnx",
        "tags": ["onnx", *(["int8", "quantized"] if quantized else [])],
    }
    title = f"{recipes.parse_reference(parent.ref).name} ({recipe.variant_name})"
    paragraphs = [
        f"A variant of {parent.title}, made by {', '.join(methods).replace('_', ' ')}.",
        report.message + ".",
    ]
    write_card(job.files, head=head, title=title, paragraphs=paragraphs, report=report)
