"""Measure one loaded version, beside others where there are some, and put the numbers in order."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid
from workers.ml import compare, evaluate
from workers.ml.compare import Differences
from workers.ml.data import (
    ClassColumn,
    Dataset,
    Labels,
    Rows,
    Split,
    check_columns,
    find_labels,
    read_classes,
)
from workers.ml.evaluate import MAX_PROBES, Where
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.runtime import Runtime
from workers.ml.job import Job
from workers.ml.probes import NOWHERE, SENTENCES, probe_rows
from workers.ml.report import Metric

CHILD = "this"
PARENT = "parent"


@dataclass(frozen=True)
class Contest:
    """The version that is measured, first, and those that it is measured against."""

    runtimes: Mapping[str, Runtime]
    job: Job
    sample: list[dict[str, Any]] = field(default_factory=list)
    """Rows with the answers of both, for the report of the job: it is for those who see them."""

    @property
    def child(self) -> Runtime:
        return self.runtimes[CHILD]

    @property
    def parent(self) -> Runtime | None:
        return self.runtimes.get(PARENT)


@dataclass(frozen=True)
class HeldOut:
    """The rows to measure quality on."""

    dataset: Dataset
    split_name: str
    label_column: str
    batch_size: int = 64

    @property
    def split(self) -> Split:
        return self.dataset.split(self.split_name)

    def classes(self, labels: Labels) -> ClassColumn:
        check_columns(self.split, [self.label_column])
        return read_classes(self.dataset, self.split, self.label_column, labels)

    def where(self, device: str) -> Where:
        return Where(self.split_name, self.dataset.ref, device)


def measure_classes(contest: Contest, held_out: HeldOut) -> list[Metric]:
    """Measure accuracy, and with a parent its accuracy and how often both agree."""
    names = [name for name in (CHILD, PARENT) if name in contest.runtimes]
    labels = _labels(contest.child, held_out)
    total, done = held_out.split.count(), 0
    blocks = []
    differences = Differences(labels)
    for batch in evaluate.answer_side_by_side(
        {name: contest.runtimes[name] for name in names},
        held_out.classes(labels),
        batch_size=held_out.batch_size,
    ):
        blocks.append((batch.actual, batch.predicted))
        if PARENT in names:
            differences.add(
                batch.rows, batch.numbers, batch.actual, *(batch.scores[n] for n in names)
            )
        done += held_out.batch_size
        contest.job.events.progress(
            done=min(done, total), total=total, unit="rows", step="evaluate"
        )
    predictions = evaluate.collect(blocks, names)
    where = held_out.where(contest.job.device)
    child = evaluate.accuracy(predictions, CHILD, labels, where)
    if PARENT not in names:
        return [child]
    parent = evaluate.accuracy(predictions, PARENT, labels, where)
    priced = replace(child, details={**child.details, **evaluate.beside_parent(child, parent)})
    agreed = evaluate.agreement(predictions, CHILD, PARENT, where)
    contest.sample.extend(differences.sample())
    worst = compare.worst_class(
        predictions.actual,
        predictions.predicted[CHILD],
        predictions.predicted[PARENT],
        labels,
        priced,
    )
    return [
        priced,
        compare.accuracy_change(priced, agreed),
        agreed,
        differences.metric(priced),
        *([worst] if worst else []),
    ]


def _labels(runtime: Runtime, held_out: HeldOut) -> Labels:
    """Take the model's own classes; the dataset's where the model came without names."""
    if runtime.labels:
        return Labels(runtime.labels)
    return find_labels(held_out.dataset, held_out.split, held_out.label_column)


def measure_fidelity(contest: Contest, held_out: HeldOut | None) -> list[Metric]:
    """Compare the child's vectors with its parent's on texts of the dataset, or built-in ones."""
    assert contest.parent is not None
    split, rows, where, probes = _probe(contest, held_out)
    vectors: dict[str, list[NDArray[Any]]] = {CHILD: [], PARENT: []}
    count = len(next(iter(rows.values())))
    for low in range(0, count, 32):
        part = {name: values[low : low + 32] for name, values in rows.items()}
        for name, blocks in vectors.items():
            blocks.append(contest.runtimes[name].run(part, split))
        contest.job.events.progress(
            done=min(low + 32, count), total=count, unit="rows", step="compare"
        )
    child, parent = (np.concatenate(vectors[name]) for name in (CHILD, PARENT))
    first = next(iter(rows.values()))
    if contest.child.answers == "embedding" and isinstance(first, list):
        contest.sample.extend(compare.neighbours_sample(first, child, parent))
    return [evaluate.fidelity(child, parent, where, probes)]


def _probe(contest: Contest, held_out: HeldOut | None) -> tuple[Split, Rows, Where, str]:
    device = contest.job.device
    columns = contest.child.feeder.columns
    if held_out is not None:
        split = held_out.split
        check_columns(split, columns)
        for rows in split.batches(columns, MAX_PROBES):
            return split, rows, held_out.where(device), f"{held_out.split_name} rows"
    count = len(SENTENCES)
    where = Where("built-in", None, device)
    kind = "sentences" if contest.child.answers == "embedding" else "random inputs"
    return NOWHERE, probe_rows(contest.child, count), where, f"{count} built-in {kind}"


def measure_cost(contest: Contest, *, held_out: HeldOut | None) -> list[Metric]:
    """Measure what running takes: time, bytes, parameters, memory."""
    job, child, parent = contest.job, contest.child, contest.parent
    split, rows = _latency_rows(child, held_out)
    feeds = evaluate.latency_feeds(child, rows, split)
    parent_folder = parent.folder if parent else None
    metrics = evaluate.latency(contest.runtimes, feeds, device=job.device, threads=job.threads)
    metrics += evaluate.cpu_seconds(_pair(contest), feeds) if job.device == "cpu" else []
    metrics += evaluate.size_metrics(child.folder, parent_folder, device=job.device)
    metrics += _counted(contest, feeds)
    metrics += evaluate.memory_metric(
        child.folder.version,
        parent_folder.version if parent_folder else None,
        device="cpu",
        threads=job.threads,
    )
    return metrics


def _pair(contest: Contest) -> dict[str, Runtime]:
    return {name: run for name, run in contest.runtimes.items() if name in {CHILD, PARENT}}


def _counted(contest: Contest, feeds: Mapping[int, Feeds]) -> list[Metric]:
    """Count; a graph that cannot be run in the open is said to be so, and costs no report."""
    if 1 not in feeds:
        return []
    try:
        return evaluate.counted_metrics(
            contest.child, contest.parent, feeds[1], device=contest.job.device
        )
    except Invalid as error:
        contest.job.events.log(error)
        return []


def _latency_rows(runtime: Runtime, held_out: HeldOut | None) -> tuple[Split, Rows]:
    """Take real rows where there are any; what a model costs depends on how long texts are."""
    most = max(evaluate.LATENCY_BATCHES)
    if held_out is not None and set(runtime.feeder.columns) <= set(held_out.split.columns()):
        for rows in held_out.split.batches(runtime.feeder.columns, most):
            return held_out.split, rows
    return NOWHERE, probe_rows(runtime, most)
