"""A training job: dataset version in, model version out, with its curves and its numbers."""

import shutil
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml import environment
from workers.ml.architectures import KINDS, build
from workers.ml.cards import read_card, write_card
from workers.ml.data import (
    Dataset,
    Labels,
    Loaded,
    check_columns,
    divide,
    find_labels,
    load_split,
    open_dataset,
    read_classes,
)
from workers.ml.formats import describe_module, load_module, open_model, save_module
from workers.ml.guards import warnings_of
from workers.ml.infer.runtime import load_runtime
from workers.ml.job import Job
from workers.ml.measure import CHILD, PARENT, Contest, HeldOut, measure_classes, measure_cost
from workers.ml.report import Metric, Report
from workers.ml.structure import KEY, packed_names, read_structure
from workers.ml.train.examples import Examples, ImageExamples, TextExamples
from workers.ml.train.loop import Place, Training
from workers.ml.vocabulary import Vocabulary, build_vocabulary, load_vocabulary


@dataclass(frozen=True)
class _Plan:
    """What is trained on what."""

    module: nn.Module
    parameters: recipes.Architecture
    labels: Labels
    vocabulary: Vocabulary | None
    train: Examples
    validation: Examples | None
    dropped: int
    structure: list[dict[str, Any]]


def run(job: Job, recipe: recipes.TrainRecipe) -> Report:
    """Train to the end, write the model with its best weights, measure it on the test split."""
    (step,) = recipe.steps
    given = job.input("dataset")
    dataset = open_dataset(given.path, given.ref)
    plan = _plan(job, recipe, step, dataset)
    rows = len(plan.train.labels)
    job.events.log(
        Text(
            "Training {architecture} on {rows} rows of {dataset}, {classes} classes; {dropped} "
            "rows were empty and left out.",
            architecture=plan.parameters.name,
            rows=rows,
            dataset=given.ref,
            classes=len(plan.labels),
            dropped=plan.dropped,
        )
    )
    place = Place(job.checkpoints, job.device, job.events, job.interrupt)
    training = Training(plan.module, plan.train, plan.validation, step, place)
    first_step, started = training.progress.step, time.perf_counter()
    training.run()
    seconds = time.perf_counter() - started
    config = describe_module(plan.parameters, plan.labels.names, _columns(plan.parameters, step))
    if plan.structure:
        config[KEY] = plan.structure
    save_module(training.module, config, job.files)
    if plan.vocabulary is not None:
        plan.vocabulary.save(job.files)
    metrics = _measure(job, step, dataset) + _curves(training, given.ref, job.device)
    steps_done = training.total_steps - first_step
    summary: dict[str, Any] = {
        "steps": training.total_steps,
        "rows": rows,
        "rows_dropped": plan.dropped,
        "precision": training.precision.name,
        "best_epoch": training.progress.best_epoch or step.epochs,
        "validation": training.progress.history,
        "seconds": round(seconds, 2),
        "steps_in_this_attempt": steps_done,
        "warnings": warnings_of([{"method": "train", "validation": training.progress.history}]),
    }
    described = environment.describe(device=job.device, threads=job.threads)
    message = _message(plan.parameters.name, step, metrics)
    report = Report("train", metrics, described, message, summary)
    _write_card(job, recipe, plan.parameters, report)
    shutil.rmtree(job.out / "work", ignore_errors=True)
    return report


def _plan(job: Job, recipe: recipes.TrainRecipe, step: recipes.Train, dataset: Dataset) -> _Plan:
    split = dataset.split(step.train_split)
    module, parameters, labels, vocabulary = None, recipe.architecture, None, None
    structure: list[dict[str, Any]] = []
    if recipe.model is not None:
        folder = open_model(job.input("model").path)
        if folder.is_onnx or folder.is_transformer or folder.is_program:
            raise Invalid(
                "Only models of this registry's architectures ({kinds}) can be trained further.",
                code="unknown_architecture",
                kinds=", ".join(KINDS),
            )
        module, parameters = load_module(folder)
        structure = read_structure(folder.config)
        if packed_names(structure):
            raise Invalid(
                "The weights of this model are packed and cannot be trained: choose the version "
                "that it was made from.",
                code="already_quantized",
            )
        labels = Labels(folder.labels)
        if isinstance(parameters, recipes.TextClassifier):
            vocabulary = load_vocabulary(folder.path)
    assert parameters is not None
    columns = _columns(parameters, step)
    images = KINDS[parameters.name].preprocessing == "image"
    input_column = columns["image" if images else "text"]
    check_columns(split, [input_column, step.label_column])
    labels = labels or find_labels(dataset, split, step.label_column)
    classes = read_classes(dataset, split, step.label_column, labels)
    loaded = load_split(classes, input_column=input_column, images=images)
    train_rows, validation_rows = divide(len(loaded.labels), step.validation_fraction, step.seed)
    if isinstance(parameters, recipes.TextClassifier) and vocabulary is None:
        vocabulary = build_vocabulary(
            (loaded.inputs[row] for row in train_rows),
            size=parameters.vocabulary_size,
            max_length=parameters.max_length,
        )
        # A small dataset has fewer words than asked for; rows that nothing uses are not stored.
        parameters = parameters.model_copy(update={"vocabulary_size": max(16, len(vocabulary))})
    return _Plan(
        module=module or build(parameters, classes=len(labels), seed=step.seed),
        parameters=parameters,
        labels=labels,
        vocabulary=vocabulary,
        train=_examples(loaded, train_rows, parameters, vocabulary),
        validation=_examples(loaded, validation_rows, parameters, vocabulary)
        if len(validation_rows)
        else None,
        dropped=loaded.dropped,
        structure=structure,
    )


def _examples(
    loaded: Loaded, rows: Any, parameters: recipes.Architecture, vocabulary: Vocabulary | None
) -> Examples:
    labels = loaded.labels[rows]
    if isinstance(loaded.inputs, np.ndarray):
        return ImageExamples(loaded.inputs[rows], labels)
    assert vocabulary is not None
    assert isinstance(parameters, recipes.TextClassifier)
    texts = [loaded.inputs[row] for row in rows]
    return TextExamples(texts, labels, vocabulary, parameters.max_length)


def _columns(parameters: recipes.Architecture, step: recipes.Train) -> dict[str, str]:
    if KINDS[parameters.name].preprocessing == "image":
        return {"image": step.image_column, "label": step.label_column}
    return {"text": step.text_column, "label": step.label_column}


def _measure(job: Job, step: recipes.Train, dataset: Dataset) -> list[Metric]:
    """Measure the model as it was written, so that what is stored is what was measured."""
    folder = open_model(job.files)
    columns = folder.columns
    child = load_runtime(folder, device=job.device, threads=job.threads, columns=columns)
    runtimes = {CHILD: child}
    if "model" in job.inputs:
        before = open_model(job.input("model").path)
        runtimes[PARENT] = load_runtime(
            before, device=job.device, threads=job.threads, columns=columns
        )
    contest = Contest(runtimes, job)
    held_out = None
    if step.test_split is not None and step.test_split in dataset.splits:
        held_out = HeldOut(dataset, step.test_split, step.label_column)
    quality = measure_classes(contest, held_out) if held_out else []
    return [*quality, *measure_cost(contest, held_out=held_out)]


def _curves(training: Training, dataset: str, device: str) -> list[Metric]:
    """Keep the validation numbers of the epoch whose weights were kept."""
    history = training.progress.history
    if not history:
        return []
    best = training.progress.best_epoch
    kept = history[best - 1] if best else history[-1]
    common: dict[str, Any] = {"split": "validation", "dataset": dataset, "device": device}
    details = {"epoch": kept["epoch"], "used_to_choose_the_epoch": bool(best)}
    return [
        Metric("validation_accuracy", kept["accuracy"], "share", details=details, **common),
        Metric("validation_loss", kept["loss"], "nats", details=details, **common),
    ]


def _message(name: str, step: recipes.Train, metrics: list[Metric]) -> str:
    trained = f"{name} trained for {step.epochs} epoch(s)"
    for metric in metrics:
        if metric.metric == "accuracy":
            return f"{trained}, accuracy {metric.value:.4f} on {metric.split} (n={metric.n})"
    return trained


def _write_card(
    job: Job, recipe: recipes.TrainRecipe, parameters: recipes.Architecture, report: Report
) -> None:
    dataset = job.input("dataset")
    head: dict[str, Any] = {
        "pipeline_tag": KINDS[parameters.name].task,
        "library_name": "pytorch",
        "datasets": [dataset.repository] if dataset.may_be_named else [],
        "tags": [parameters.name.replace("_", "-")],
    }
    if "model" in job.inputs:
        card = read_card(job.input("model").path)
        head["base_model"] = job.input("model").repository
        head["license"] = card.license
    paragraphs = [
        f"A {parameters.name.replace('_', ' ')} trained on {dataset.title}.",
        report.message + ".",
    ]
    title = recipe.output.split("/")[1]
    write_card(job.files, head=head, title=title, paragraphs=paragraphs, report=report)
