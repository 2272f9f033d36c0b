"""Batch inference: every row of a dataset through a version, into predictions.jsonl.

Rows stream, so memory stays flat; what is written is counted in a small file beside it, so a
stopped job goes on where it was.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from registry import recipes
from workers.ml import environment
from workers.ml.data import (
    Column,
    Dataset,
    Labels,
    Split,
    check_columns,
    number_labels,
    open_dataset,
)
from workers.ml.formats import open_model
from workers.ml.infer.runtime import Runtime, load_runtime
from workers.ml.job import Job
from workers.ml.report import Metric, Report
from workers.ml.statistics import wilson

FILE_NAME = "predictions.jsonl"
_STATE = "predictions.json"
_SAVE_SECONDS = 2.0
_DECIMALS = 6
_BATCHES_PER_BLOCK = 8


@dataclass
class Done:
    """How far the job is: rows of which split, bytes on disk, answers that were right."""

    split: int = 0
    rows: int = 0
    rows_in_all: int = 0
    size_bytes: int = 0
    known: int = 0
    right: int = 0


def run(job: Job, recipe: recipes.InferRecipe) -> Report:
    """Predict, then describe the predictions as a dataset of their own."""
    (step,) = recipe.steps
    given = job.input("dataset")
    dataset = open_dataset(given.path, given.ref)
    columns = {"text": step.text_column, "image": step.image_column}
    runtime = load_runtime(
        open_model(job.input("model").path),
        device=job.device,
        threads=job.threads,
        columns=columns,
    )
    names = [step.split] if step.split is not None else list(dataset.splits)
    for name in names:
        check_columns(dataset.split(name), runtime.feeder.columns)
    writer = _Writer(job, runtime, dataset, step)
    started = time.perf_counter()
    done, fresh = writer.run(names)
    seconds = time.perf_counter() - started
    (job.checkpoints / FILE_NAME).replace(job.files / FILE_NAME)
    (job.checkpoints / _STATE).unlink()
    report = _report(job, runtime, names, done, fresh / max(seconds, 1e-9))
    _describe(job, recipe, runtime, done, report)
    return report


class _Writer:
    """Appends predictions to a file that can be cut back to its last counted row."""

    def __init__(self, job: Job, runtime: Runtime, dataset: Dataset, step: recipes.Predict) -> None:
        self._job = job
        self._runtime = runtime
        self._dataset = dataset
        self._step = step
        self._labels = Labels(runtime.labels) if runtime.answers == "classes" else None
        self._state_file = job.checkpoints / _STATE

    def run(self, names: list[str]) -> tuple[Done, int]:
        done = _read_state(self._state_file)
        before = done.rows_in_all
        limit = self._step.max_rows
        total = sum(self._rows_of(name) for name in names)
        if before:
            self._job.events.log(f"Resumed after row {before}.")
        path = self._job.checkpoints / FILE_NAME
        path.touch()
        with path.open("r+b") as out, self._job.interrupt.deferred():
            out.truncate(done.size_bytes)
            out.seek(done.size_bytes)
            saved_at = time.monotonic()
            for name in names[done.split :]:
                for lines in self._predict(name, done, limit):
                    out.write(lines)
                    self._job.events.progress(
                        done=done.rows_in_all, total=total, unit="rows", step="predict"
                    )
                    stop = self._job.interrupt.requested
                    if stop or time.monotonic() - saved_at > _SAVE_SECONDS:
                        saved_at = time.monotonic()
                        self._save(out, done)
                    if stop:
                        break
                if self._job.interrupt.requested:
                    break
                done.split, done.rows = done.split + 1, 0
            self._save(out, done)
        return done, done.rows_in_all - before

    def _rows_of(self, name: str) -> int:
        count = self._dataset.split(name).count()
        return min(count, self._step.max_rows) if self._step.max_rows else count

    def _predict(self, name: str, done: Done, limit: int | None) -> Iterator[bytes]:
        split = self._dataset.split(name)
        columns = list(self._runtime.feeder.columns)
        labelled = self._step.label_column in split.columns() and self._labels is not None
        if labelled:
            columns.append(self._step.label_column)
        block = self._step.batch_size * _BATCHES_PER_BLOCK
        for rows in split.batches(columns, block, start=done.rows):
            first = done.rows
            size = len(rows[columns[0]])
            if limit is not None:
                size = min(size, limit - first)
                if size <= 0:
                    return
                rows = {column: values[:size] for column, values in rows.items()}  # noqa: PLW2901
            output = self._runtime.run_block(rows, split, self._step.batch_size)
            actual = rows[self._step.label_column] if labelled else None
            records = self._records(output, split, actual, first, done)
            done.rows += size
            done.rows_in_all += size
            yield b"".join(
                json.dumps(
                    {"split": name, "row": first + at, **record},
                    ensure_ascii=False,
                    allow_nan=False,
                ).encode()
                + b"\n"
                for at, record in enumerate(records)
            )

    def _records(
        self, output: NDArray[Any], split: Split, actual: Column | None, first: int, done: Done
    ) -> Iterator[dict[str, Any]]:
        if self._labels is None:
            name = "embedding" if self._runtime.answers == "embedding" else "output"
            return ({name: _plain(vector)} for vector in output)
        known = None
        if actual is not None:
            known = number_labels(
                actual, self._labels, split, self._step.label_column, first_row=first
            )
            done.known += int((known >= 0).sum())
            done.right += int((output.argmax(1) == known).sum())
        return _classes(output, self._labels.names, known)

    def _save(self, out: IO[bytes], done: Done) -> None:
        out.flush()
        os.fsync(out.fileno())
        done.size_bytes = out.tell()
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(done)), encoding="utf-8")
        partial.replace(self._state_file)
        self._job.events.checkpoint(done.rows_in_all)


def _classes(
    logits_BK: NDArray[Any], names: list[str], actual: NDArray[np.int64] | None
) -> Iterator[dict[str, Any]]:
    scores_BK = np.exp(logits_BK - logits_BK.max(1, keepdims=True))
    scores_BK /= scores_BK.sum(1, keepdims=True)
    for at, scores_K in enumerate(scores_BK):
        best = int(scores_K.argmax())
        record = {
            "label": names[best],
            "label_index": best,
            "score": round(float(scores_K[best]), _DECIMALS),
        }
        if actual is not None:
            record["actual"] = names[actual[at]] if actual[at] >= 0 else None
        yield record


def _plain(vector: NDArray[Any]) -> Any:
    rounded = np.round(vector.astype(np.float64), _DECIMALS)
    return np.where(np.isfinite(rounded), rounded, 0.0).tolist()


def _read_state(file: Path) -> Done:
    try:
        state: Mapping[str, int] = json.loads(file.read_text(encoding="utf-8"))
        return Done(**state)
    except (OSError, ValueError, TypeError):
        return Done()


def _report(
    job: Job, runtime: Runtime, names: list[str], done: Done, rows_per_second: float
) -> Report:
    split = names[0] if len(names) == 1 else "all"
    where: dict[str, Any] = {
        "split": split,
        "dataset": job.input("dataset").ref,
        "device": job.device,
    }
    metrics = []
    message = f"{done.rows_in_all} predictions of {job.input('model').title}"
    if done.known:
        low, high = wilson(done.right, done.known)
        share = done.right / done.known
        metrics.append(
            Metric("accuracy", share, "share", n=done.known, low=low, high=high, **where)
        )
        message += f", accuracy {share:.4f} (n={done.known})"
    metrics.append(
        Metric(
            "throughput",
            rows_per_second,
            "rows/s",
            n=done.rows_in_all,
            details={"engine": runtime.engine.name, "covers": "reading, computing, writing"},
            **where,
        )
    )
    described = environment.describe(device=job.device, threads=job.threads)
    summary = {"rows": done.rows_in_all, "size_bytes": done.size_bytes, "splits": names}
    return Report("infer", metrics, described, message, summary)


def _describe(
    job: Job, recipe: recipes.InferRecipe, runtime: Runtime, done: Done, report: Report
) -> None:
    """Write dataset.json and a card, so that the predictions are a dataset like any other."""
    kinds = {
        "classes": {"label": "string", "label_index": "int64", "score": "float64"},
        "embedding": {"embedding": "list[float64]"},
        "tensors": {"output": "list"},
    }
    described = {
        "task": "predictions",
        "labels": runtime.labels,
        "columns": {"split": "string", "row": "int64", **kinds[runtime.answers]},
        "splits": {"predictions": done.rows_in_all},
    }
    for role, given in job.inputs.items():
        if given.may_be_named:
            described[role] = given.ref
    if done.known:
        described["columns"]["actual"] = "string"  # type: ignore[index]  # the dict above
    text = json.dumps(described, ensure_ascii=False, indent=2)
    (job.files / "dataset.json").write_text(text + "\n", encoding="utf-8")
    head: dict[str, Any] = {"tags": ["predictions"]}
    if (model := job.input("model")).may_be_named:
        head["base_model"] = model.repository
    if (dataset := job.input("dataset")).may_be_named:
        head["source_datasets"] = [dataset.repository]
    card = (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {recipe.output.split('/')[1]}\n\n"
        f"{report.message} over {dataset.title}. One JSON object a line in "
        f"`{FILE_NAME}`: the split and number of the row, and what the model answered.\n"
    )
    (job.files / "README.md").write_text(card, encoding="utf-8")
