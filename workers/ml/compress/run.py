"""A compression job: version in, smaller variant out, and what it costs."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from registry import recipes
from registry.errors import Invalid
from workers.ml import environment, myz, structure
from workers.ml.cards import read_card, write_card
from workers.ml.compress import adapter
from workers.ml.compress.activations import check_calibration
from workers.ml.compress.aware import train_quantized_step
from workers.ml.compress.bench import Bench, open_bench
from workers.ml.compress.distill import check_student, distill_step
from workers.ml.compress.fixed_point import fixed_point_step
from workers.ml.compress.fuse import fuse_step
from workers.ml.compress.learn import check_rows, measure_controls
from workers.ml.compress.low_rank import svd_step
from workers.ml.compress.merge import merge_step
from workers.ml.compress.pack import check_packing, pack_linear_step, refuse_packed
from workers.ml.compress.prune import fine_tune_step, prune_movement_step
from workers.ml.compress.quantize import quantize_dynamic_step, quantize_static_step
from workers.ml.compress.resume import keep_state, take_up
from workers.ml.compress.slim import prune_structured_step
from workers.ml.compress.sparse_graph import check_untrained, cluster_step, prune_step
from workers.ml.compress.weight_only import quantize_weights_step
from workers.ml.formats import (
    ONNX,
    SIDE_FILES,
    ModelFolder,
    open_model,
    save_config,
    save_module,
)
from workers.ml.graphs import inspect_onnx
from workers.ml.guards import refuse_guessing, warnings_of
from workers.ml.infer.engines import OnnxEngine, ProgramEngine, TorchEngine
from workers.ml.infer.runtime import EMBEDDING, Runtime, load_runtime
from workers.ml.job import Job
from workers.ml.measure import (
    CHILD,
    PARENT,
    Contest,
    measure_classes,
    measure_cost,
    measure_fidelity,
)
from workers.ml.report import Metric, Report

_EXPORTED = "onnx_float32"

# A step changes what is on the bench, and gives what is worth keeping in the report.
Handler = Callable[[Any, Bench], Mapping[str, Any]]


def _export_onnx(step: recipes.ExportOnnx, bench: Bench) -> Mapping[str, Any]:  # noqa: ARG001 - a handler's shape
    if bench.module is None:
        raise Invalid("The model is in ONNX already.", code="already_onnx")
    bench.export()
    return {}


def _code(step: recipes.Code, bench: Bench) -> Mapping[str, Any]:  # noqa: ARG001 - see above
    bench.coded = True
    return {}


_HANDLERS: dict[str, Handler] = {
    "cluster": cluster_step,
    "code": _code,
    "export_onnx": _export_onnx,
    "quantize_dynamic": quantize_dynamic_step,
    "quantize_static": quantize_static_step,
    "quantize_weights": quantize_weights_step,
    "pack_linear": pack_linear_step,
    "fixed_point": fixed_point_step,
    "train_quantized": train_quantized_step,
    "fuse": fuse_step,
    "merge": merge_step,
    "prune_magnitude": prune_step,
    "prune_structured": prune_structured_step,
    "prune_movement": prune_movement_step,
    "fine_tune": fine_tune_step,
    "svd": svd_step,
    "distill": distill_step,
    "extract_lora": adapter.extract_step,
}
# What the card of a result calls it.
_QUANTIZING: dict[str, tuple[str, ...]] = {
    "quantize_dynamic": ("int8", "quantized"),
    "quantize_static": ("int8", "quantized"),
    "quantize_weights": ("quantized",),
    "train_quantized": ("int8", "quantized"),
    "pack_linear": ("quantized",),
    "fixed_point": ("quantized",),
}
_TAGS = {
    **_QUANTIZING,
    "prune_magnitude": ("pruned",),
    "prune_structured": ("pruned",),
    "prune_movement": ("pruned",),
    "svd": ("low-rank",),
    "extract_lora": ("lora",),
    "distill": ("distilled",),
}
_NEED_A_MODULE = {
    "merge": "Merging",
    "train_quantized": "Training with rounding",
    "prune_structured": "Structured pruning",
    "prune_movement": "Movement pruning",
    "fine_tune": "Fine-tuning",
    "svd": "A low rank",
    "distill": "Distillation",
    "extract_lora": "An adapter",
    "pack_linear": "Packing weights",
}


def run(job: Job, recipe: recipes.CompressRecipe) -> Report:
    """Apply the steps in order, write the new version, measure it beside its parent."""
    bench = open_bench(job, recipe)
    stages = len(recipe.steps) + 1
    check(bench)
    done = take_up(bench)
    for number, step in enumerate(recipe.steps[len(done) :], len(done)):
        job.events.progress(done=number, total=stages, unit="stages", step=step.method)
        done.append(apply_step(step, bench, number))
        if bench.has_trained and bench.module is not None:
            keep_state(bench, done, write_files)
    write_result(bench, done)
    job.events.progress(done=stages - 1, total=stages, unit="stages", step="evaluate")
    report = finish(bench, done)
    shutil.rmtree(bench.folder)
    job.events.progress(done=stages, total=stages, unit="stages", step="done")
    return report


def methods() -> frozenset[str]:
    """Give the methods that there is a handler for."""
    return frozenset(_HANDLERS)


def apply_step(step: recipes.CompressStep, bench: Bench, number: int) -> dict[str, Any]:
    """Do one step to what is on the bench; give what is worth keeping of it in the report."""
    bench.number, bench.has_trained = number, False
    return {"method": step.method, **_HANDLERS[step.method](step, bench)}


def finish(bench: Bench, done: list[dict[str, Any]]) -> Report:
    """Measure the files that were written beside the parent, and write their card."""
    report = _measure(bench, done)
    _write_card(bench, report)
    return report


def check(bench: Bench) -> None:
    """Refuse what can be known to fail before any step has worked."""
    refuse_packed(bench)
    for step in bench.recipe.steps:
        if step.method in _NEED_A_MODULE:
            bench.need_module(_NEED_A_MODULE[step.method])
        if isinstance(step, recipes.PruneMagnitude | recipes.Cluster) and bench.module is None:
            check_untrained(step)
        if getattr(step, "needs_rows", False):
            check_rows(bench)
        if instead := getattr(step, "works_uncalibrated", ""):
            check_calibration(bench, instead)
        if isinstance(step, recipes.Distill):
            check_student(step, bench)
        if isinstance(step, recipes.PackLinear):
            check_packing(step, bench)


def write_result(bench: Bench, done: list[dict[str, Any]]) -> None:
    """Write the files of the new version, coded where a step asked for it; the notes tell of it."""
    write_files(bench, bench.job.files)
    if bench.coded:
        done[-1] = {**done[-1], **asdict(myz.pack_folder(bench.job.files))}


def write_files(bench: Bench, target: Path) -> None:
    """Write the new version's files, without its card, as what is on the bench stands."""
    if bench.adapter is not None:
        adapter.save_adapter(bench.adapter, target)
        return
    _write_model(bench, target)


def _write_model(bench: Bench, target: Path) -> None:
    given = bench.given
    for name in SIDE_FILES:
        if (given.path / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given.path / name, target / name)
    config = _config(bench)
    if bench.module is not None:
        save_module(bench.module, config, target)
    else:
        shutil.copyfile(bench.need_file(), target / ONNX)
        save_config(config, target)


def _config(bench: Bench) -> dict[str, Any]:
    """Keep what the parent's config.json says, and add what the next job needs."""
    parent = bench.parent
    config = {**bench.given.config, **bench.config}
    config.pop(structure.KEY, None)
    if bench.structure and bench.module is not None:
        config[structure.KEY] = bench.structure
    if isinstance(parent.engine, ProgramEngine) and parent.answers == "classes":
        config.setdefault("signature", _signature(parent.engine, len(parent.labels)))
    config["compression"] = [_describe(step, bench.job) for step in bench.recipe.steps]
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


def _signature(engine: ProgramEngine, classes: int) -> dict[str, Any]:
    inputs = [
        {
            "name": name,
            "dtype": str(dtype),
            "shape": [-1 if axis is None else axis for axis in axes],
        }
        for name, (dtype, axes) in engine.inputs().items()
    ]
    return {
        "inputs": inputs,
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, classes]}],
    }


def _describe(step: Any, job: Job) -> dict[str, Any]:
    """Say what a step was, for everybody who sees the result: without names they may not know."""
    described: dict[str, Any] = step.model_dump(mode="json")
    if isinstance(step, recipes.Merge):
        described["others"] = _merged(job)
    if isinstance(step, recipes.ExtractLora):
        described["base"] = job.input(recipes.BASE).title
    return described


def _merged(job: Job) -> list[str]:
    return [given.title for role, given in job.inputs.items() if role.startswith(recipes.OTHER)]


def _measure(bench: Bench, done: list[dict[str, Any]]) -> Report:
    job = bench.job
    child = load_runtime(
        _open_result(bench), device=job.device, threads=job.threads, columns=bench.given.columns
    )
    runtimes = {CHILD: child, PARENT: bench.parent}
    if bench.exported is not None and bench.exported != bench.file:
        engine = OnnxEngine(bench.exported, device=job.device, threads=job.threads)
        runtimes[_EXPORTED] = Runtime(child.folder, engine, child.feeder, child.answers)
    return _report(bench, Contest(runtimes, job), done)


def _open_result(bench: Bench) -> ModelFolder:
    """Open the new version; of an adapter, its base with what it adds, as large as it is."""
    if bench.adapter is None:
        return open_model(bench.job.files)
    applied = bench.folder / "applied"
    applied.mkdir()
    _write_model(bench, applied)
    return replace(open_model(applied), coded=bench.job.files / adapter.WEIGHTS)


def _report(bench: Bench, contest: Contest, done: list[dict[str, Any]]) -> Report:
    job, held_out = bench.job, bench.held_out
    metrics: list[Metric] = []
    if contest.child.answers == "classes" and held_out is not None:
        metrics += measure_classes(contest, held_out)
        refuse_guessing(metrics[0])
        metrics += measure_controls(bench, contest, held_out)
    else:
        metrics += measure_fidelity(contest, held_out)
    metrics += measure_cost(contest, held_out=held_out)
    metrics.append(Metric("job_seconds", time.perf_counter() - bench.started, "s"))
    summary: dict[str, Any] = {
        "variant": bench.recipe.variant_name,
        "steps": done,
        "compared": contest.sample,
        "warnings": warnings_of(done),
    }
    if bench.file is not None:
        contents = inspect_onnx(bench.file)
        summary["operators"] = contents.operators
        summary["weight_bytes_by_type"] = contents.weight_bytes
    if bench.agreement is not None:
        summary["export"] = {
            "largest_absolute_difference": bench.agreement.largest_absolute,
            "largest_relative_difference": bench.agreement.largest_relative,
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
    for name in sorted(name for name in by_name if name.startswith("gap_to_")):
        gap = by_name[name]
        parts.append(f"{gap.value:+.4f} to the {name.removeprefix('gap_to_').replace('_', ' ')}")
    if cosine := by_name.get("cosine_to_parent"):
        parts.append(f"cosine to parent {cosine.value:.4f} (n={cosine.n})")
    if fast := by_name.get("latency_p50_batch1"):
        parts.append(f"p50 {fast.value:.2f} ms (was {fast.details['parent']['value']:.2f})")
    return ", ".join(parts)


def _write_card(bench: Bench, report: Report) -> None:
    job, recipe = bench.job, bench.recipe
    parent = job.input("model")
    card = read_card(parent.path)
    methods = [step.method for step in recipe.steps]
    relation = "quantized" if any(method in _QUANTIZING for method in methods) else "converted"
    is_onnx = (job.files / ONNX).is_file()
    head = {
        "base_model": parent.repository,
        "base_model_relation": "merge" if "merge" in methods else relation,
        "license": card.license,
        "pipeline_tag": card.task,
        "language": list(card.language),
        "library_name": _library(bench),
        "tags": [
            *(["onnx"] if is_onnx else []),
            *sorted({tag for method in methods for tag in _TAGS.get(method, ())}),
        ],
    }
    if bench.adapter is not None:
        head |= {
            "base_model": job.input(recipes.BASE).repository,
            "base_model_relation": "adapter",
            "library_name": "peft",
        }
    title = f"{recipes.parse_reference(parent.ref).name} ({recipe.variant_name})"
    paragraphs = [
        f"A variant of {parent.title}, made by {', '.join(methods).replace('_', ' ')}.",
        report.message + ".",
    ]
    if bench.adapter is not None:
        base = job.input(recipes.BASE).title
        paragraphs.insert(1, f"It holds what was learned since {base}, and is used beside it.")
    if merged := _merged(job):
        paragraphs.insert(1, f"Merged into it: {', '.join(merged)}.")
    write_card(job.files, head=head, title=title, paragraphs=paragraphs, report=report)


def _library(bench: Bench) -> str:
    if bench.file is not None:
        return "onnx"
    return "transformers" if bench.given.is_transformer else "pytorch"
