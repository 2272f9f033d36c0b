"""Training inside a compression: its rows, its goal, and the controls that get the same budget.

A model with classes learns from labels. A sentence encoder has none: it learns to give the vectors
that its parent gives.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml import evaluate
from workers.ml.compress.bench import Bench, Control
from workers.ml.data import (
    ClassColumn,
    Labels,
    check_columns,
    divide,
    load_split,
    load_tensors,
    load_texts,
    read_classes,
)
from workers.ml.drawn import SomeRows, draw, draw_rows
from workers.ml.infer.engines import TorchEngine
from workers.ml.infer.feeders import (
    Feeder,
    ImageFeeder,
    TensorFeeder,
    WordPieceFeeder,
    WordsFeeder,
)
from workers.ml.infer.runtime import Runtime
from workers.ml.measure import CHILD, Contest, HeldOut
from workers.ml.program import Program
from workers.ml.report import Metric
from workers.ml.statistics import bootstrap_mean
from workers.ml.train.examples import (
    Examples,
    ImageExamples,
    TaughtExamples,
    TensorExamples,
    TextExamples,
    WordPieceExamples,
)
from workers.ml.train.goals import Classify, Goal, MatchVectors
from workers.ml.train.hooks import Hooks
from workers.ml.train.loop import Place, Training

DENSE = "dense_control"
_CONTROLS = {
    DENSE: Text("dense control"),
    "scratch_control": Text("student trained from scratch"),
    "labels_control": Text("student trained on labels alone"),
}
_ANSWER_BATCH = 64
_LABELS_AT_ONCE = 8192


@dataclass(frozen=True)
class Lessons:
    """What a module learns from."""

    train: Examples
    validation: Examples | None
    goal: Goal

    @property
    def without_labels(self) -> bool:
        return isinstance(self.goal, MatchVectors)


def check_rows(bench: Bench) -> None:
    """Refuse, before any work, rows that nothing can be learned from.

    Raises:
        Invalid, NotFound: no dataset, no such split, no column of labels where they are needed.

    """
    split = bench.training_split()
    columns = list(bench.parent.feeder.columns)
    if bench.parent.answers == "classes":
        columns.append(_label_column(bench))
    check_columns(split, columns)


def open_lessons(bench: Bench, budget: recipes.Budget) -> Lessons:
    """Read the training split as a step's budget asks, a part of it held out for validation."""
    check_rows(bench)
    examples, goal = _read(bench, budget)
    train_rows, held_out = divide(
        len(examples.labels), budget.validation_fraction, bench.recipe.seed
    )
    train = Some(examples, train_rows)
    validation = Some(examples, held_out) if len(held_out) else None
    return Lessons(train, validation, goal)


def _read(bench: Bench, budget: recipes.Budget) -> tuple[Examples, Goal]:
    split, feeder = bench.training_split(), bench.parent.feeder
    if bench.parent.answers == "classes":
        return _read_labelled(_classes(bench, budget), feeder), Classify()
    if budget.max_rows is not None:
        split = draw_rows(split, budget.max_rows, bench.recipe.seed)
    if not isinstance(feeder, WordPieceFeeder) or isinstance(parent_module(bench), Program):
        raise Invalid(
            "This model has neither classes nor word pieces, so nothing here can train it.",
            code="cannot_train",
        )
    texts = load_texts(split, feeder.columns[0])
    examples = _pieces(texts, feeder)
    return TaughtExamples(examples, answers_of(parent_module(bench), examples, bench)), (
        MatchVectors()
    )


def _classes(bench: Bench, budget: recipes.Budget) -> ClassColumn:
    """Read which class each row is of; of many rows a sample of those that have one."""
    split = bench.training_split()
    assert bench.dataset is not None
    classes = read_classes(bench.dataset, split, _label_column(bench), Labels(bench.parent.labels))
    if budget.max_rows is None or budget.max_rows >= split.count():
        return classes
    numbers: list[NDArray[np.int64]] = []
    row = 0
    for rows in split.batches([classes.column], _LABELS_AT_ONCE):
        numbers.append(classes.numbers(rows[classes.column], first_row=row))
        row += len(numbers[-1])
    known = np.flatnonzero(np.concatenate(numbers) >= 0)
    drawn = known[draw(len(known), budget.max_rows, bench.recipe.seed)]
    return replace(classes, split=SomeRows(split, drawn))


def _read_labelled(classes: ClassColumn, feeder: Feeder) -> Examples:
    if isinstance(feeder, TensorFeeder):
        return TensorExamples(*load_tensors(classes, dtypes=feeder.dtypes))
    images = isinstance(feeder, ImageFeeder)
    loaded = load_split(classes, input_column=feeder.columns[0], images=images)
    if isinstance(loaded.inputs, np.ndarray):
        return ImageExamples(loaded.inputs, loaded.labels)
    if not isinstance(feeder, WordsFeeder):
        raise Invalid(
            "This model has neither classes nor word pieces, so nothing here can train it.",
            code="cannot_train",
        )
    return TextExamples(loaded.inputs, loaded.labels, feeder.vocabulary, feeder.max_length)


def _pieces(texts: list[str], feeder: WordPieceFeeder) -> WordPieceExamples:
    padding = feeder.tokenizer.padding
    pieces: list[NDArray[np.int64]] = []
    types: list[NDArray[np.int64]] = []
    for low in range(0, len(texts), 1024):
        for found in feeder.tokenizer.encode_batch(texts[low : low + 1024]):
            length = sum(found.attention_mask)
            pieces.append(np.array(found.ids[:length], dtype=np.int64))
            types.append(np.array(found.type_ids[:length], dtype=np.int64))
    pad_id = int(padding["pad_id"]) if padding else 0
    return WordPieceExamples(pieces, types, feeder.input_names, pad_id)


def _label_column(bench: Bench) -> str:
    return bench.given.columns.get("label", "label")


class Some:
    """Some rows of other examples."""

    def __init__(self, examples: Examples, rows: NDArray[np.int64]) -> None:
        self._examples, self._rows = examples, rows
        self.labels = examples.labels[rows]
        self.lengths = None if examples.lengths is None else examples.lengths[rows]

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return self._examples.batch(self._rows[rows])

    def targets(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return self._examples.targets(self._rows[rows])


def in_order(examples: Examples) -> Iterator[NDArray[np.int64]]:
    """Yield all rows in batches, texts of like length together."""
    rows = np.arange(len(examples.labels))
    if examples.lengths is not None:
        rows = np.argsort(examples.lengths, kind="stable")
    for low in range(0, len(rows), _ANSWER_BATCH):
        yield rows[low : low + _ANSWER_BATCH]


@torch.no_grad()
def answers_of(module: nn.Module, examples: Examples, bench: Bench) -> NDArray[np.float32]:
    """Compute what a module answers to every row: float32 [rows, answers]."""
    device = bench.job.device
    module = module.to(device).eval()
    total, answers = len(examples.labels), None
    done = 0
    for rows in in_order(examples):
        found = (
            module(*(tensor.to(device) for tensor in examples.batch(rows))).float().cpu().numpy()
        )
        if answers is None:
            answers = np.empty((total, *found.shape[1:]), dtype=np.float32)
        answers[rows] = found
        done += len(rows)
        bench.job.events.progress(done=done, total=total, unit="rows", step="teacher")
    assert answers is not None
    return answers


def parent_module(bench: Bench) -> nn.Module:
    """Give the parent's module; it is run and copied, never changed."""
    engine = bench.parent.engine
    assert isinstance(engine, TorchEngine)
    return engine.module


def train_module(
    bench: Bench,
    module: nn.Module,
    lessons: Lessons,
    budget: recipes.Budget,
    *,
    name: str,
    hooks: Hooks | None = None,
    goal: Goal | None = None,
) -> dict[str, Any]:
    """Train a module for a budget, resumable at any point; give what the report keeps of it."""
    job = bench.job
    bench.has_trained = True
    place = Place(
        checkpoints=job.checkpoints / f"{bench.number}-{name}",
        device=job.device,
        events=job.events,
        interrupt=job.interrupt,
        name=name,
        curves="" if name == "fine_tune" else f"{name}_",
    )
    recipe = recipes.Train(
        epochs=budget.epochs,
        batch_size=budget.batch_size,
        learning_rate=budget.learning_rate,
        weight_decay=budget.weight_decay,
        validation_fraction=budget.validation_fraction,
        checkpoint_interval=budget.checkpoint_interval,
        seed=bench.recipe.seed,
    )
    training = Training(
        module,
        lessons.train,
        lessons.validation,
        recipe,
        place,
        goal=goal or lessons.goal,
        hooks=hooks,
    )
    training.run()
    module.cpu()
    return {
        "epochs": budget.epochs,
        "steps": training.total_steps,
        "rows": len(lessons.train.labels),
        "best_epoch": training.progress.best_epoch or budget.epochs,
        "validation": training.progress.history,
    }


def train_dense_control(
    bench: Bench, lessons: Lessons, budget: recipes.Budget
) -> dict[str, Any] | None:
    """Give the parent the same extra training, so that the price of a change is seen alone.

    Without labels there is none to train: the parent is what is learned from.
    """
    if not budget.control or lessons.without_labels or budget.epochs == 0:
        return None
    before = bench.controls.get(DENSE)
    control = copy.deepcopy(before.module if before else parent_module(bench))
    notes = train_module(bench, control, lessons, budget, name=DENSE)
    bench.controls[DENSE] = Control(control.eval(), bench.given.config)
    return notes


def measure_controls(bench: Bench, contest: Contest, held_out: HeldOut) -> list[Metric]:
    """Measure every control on the rows that the result is measured on, and the gap to it.

    The gap is of the same rows, so its interval is that of the differences row by row.
    """
    engine = bench.parent.engine
    if not bench.controls or not isinstance(engine, TorchEngine):
        return []
    labels = Labels(contest.child.labels)
    classes = held_out.classes(labels)
    runtimes = {CHILD: contest.child}
    for name, control in bench.controls.items():
        own = TorchEngine(control.module, engine.input_names, bench.output_name, bench.job.device)
        runtimes[name] = Runtime(bench.given, own, bench.parent.feeder, bench.parent.answers)
    batches = evaluate.predict_side_by_side(runtimes, classes, batch_size=held_out.batch_size)
    predictions = evaluate.collect(batches, list(runtimes))
    where = held_out.where(bench.job.device)
    right = predictions.predicted[CHILD] == predictions.actual
    metrics = []
    for name in bench.controls:
        measured = evaluate.accuracy(predictions, name, labels, where)
        metrics.append(replace(measured, metric=f"accuracy_of_{name}", details={}))
        gaps = right.astype(float) - (predictions.predicted[name] == predictions.actual)
        low, high = bootstrap_mean(gaps) if len(gaps) else (0.0, 0.0)
        bench.job.events.log(
            Text(
                "{gap} to the {control} on {rows} rows ({low} to {high}): {verdict}.",
                gap=f"{gaps.mean():+.4f}",
                control=_CONTROLS.get(name, name),
                rows=len(gaps),
                low=f"{low:+.4f}",
                high=f"{high:+.4f}",
                verdict=Text("a difference")
                if low > 0 or high < 0
                else Text("no difference that so few rows show"),
            )
        )
        metrics.append(
            Metric(
                f"gap_to_{name}",
                float(gaps.mean()) if len(gaps) else 0.0,
                "share",
                n=len(gaps),
                low=low,
                high=high,
                split=where.split,
                dataset=where.dataset,
                device=where.device,
                details={"interval": "bootstrap of the paired differences, 95 %"},
            )
        )
    return metrics
