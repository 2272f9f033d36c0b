"""Batch inference: every row of a dataset through a version, into a file of predictions.

Rows stream, so memory stays flat; what is written is counted in a small file beside it, so a
stopped job goes on where it was. Several jobs may compute a part of the rows each; the job that
they are parts of puts their files together.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import orjson
import yaml
from numpy.typing import NDArray

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml import environment
from workers.ml.data import (
    STRANGE,
    ClassColumn,
    Column,
    Dataset,
    Labels,
    Split,
    check_columns,
    open_dataset,
    read_classes,
)
from workers.ml.formats import open_model
from workers.ml.infer.parquet import write_parquet
from workers.ml.infer.runtime import Answer, Runtime, Values, load_runtime
from workers.ml.job import Job, Part, PartDone
from workers.ml.report import Metric, Report
from workers.ml.statistics import probabilities, wilson

FILE_NAME = "predictions.jsonl"
PARQUET_NAME = "predictions.parquet"
_STATE = "predictions.json"
# Counted up when rows are written in another way: one file has rows of one way.
_FORMAT = 1
_SAVE_SECONDS = 2.0
# Floats are written by the fewest digits that give the same number of their dtype, integers and
# texts as they are, and what is not finite as null.
_AS_IT_IS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
_BATCHES_PER_BLOCK = 8


class Span(NamedTuple):
    """Rows of a split that follow each other, from `start` up to but without `stop`."""

    split: str
    start: int
    stop: int


def spans_of(counts: Mapping[str, int], part: Part) -> list[Span]:
    """Cut all rows of all splits into parts of like size, in order; give the rows of one part."""
    total = sum(counts.values())
    low, high = (total * at // part.of for at in (part.at, part.at + 1))
    spans = []
    first = 0
    for name, count in counts.items():
        start, stop = max(low - first, 0), min(high - first, count)
        if start < stop:
            spans.append(Span(name, start, stop))
        first += count
    return spans


@dataclass
class Done:
    """How far the job is: spans that are whole, rows of the next, bytes on disk, right answers.

    `strange` counts rows whose label is no class of the model, `unclear` those where it gave
    numbers that are not finite. `outputs` are those that each row has something of, once there was
    one to see.
    """

    format: int = _FORMAT
    outputs: list[str] | None = None
    spans: int = 0
    rows: int = 0
    rows_in_all: int = 0
    size_bytes: int = 0
    known: int = 0
    right: int = 0
    strange: int = 0
    unclear: int = 0


@dataclass(frozen=True)
class Predicted:
    """What is said of predictions, of all of them or of a part."""

    rows: int
    known: int
    right: int
    # Of the attempt that ended it, without what earlier ones had done already.
    fresh_rows: int
    seconds: float
    engine: str
    answers: Answer
    labels: list[str]
    splits: list[str]
    strange: int = 0
    unclear: int = 0
    # What says none is of a worker that knew of no other way to write rows.
    format: int = 0


def run(job: Job, recipe: recipes.InferRecipe) -> Report:
    """Predict, then describe the predictions as a dataset of their own."""
    (step,) = recipe.steps
    if job.parts:
        path, predicted = _join(job, job.parts)
    else:
        path, predicted = _predict(job, step)
    report = _report(job, predicted, path.stat().st_size)
    if job.part.of > 1:
        _give(job, path)
        return report
    columns = _first_columns(path)
    name = _keep(job, path, step, predicted)
    _describe(job, recipe, name, predicted, report, columns)
    return report


def _predict(job: Job, step: recipes.Predict) -> tuple[Path, Predicted]:
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
    counts = {name: _rows_of(dataset.split(name), step.max_rows) for name in names}
    writer = _Writer(job, runtime, dataset, step)
    started = time.perf_counter()
    done, fresh = writer.run(spans_of(counts, job.part))
    return job.checkpoints / FILE_NAME, Predicted(
        rows=done.rows_in_all,
        known=done.known,
        right=done.right,
        fresh_rows=fresh,
        seconds=time.perf_counter() - started,
        engine=runtime.engine.name,
        answers=runtime.answers,
        labels=runtime.labels,
        splits=names,
        strange=done.strange,
        unclear=done.unclear,
        format=done.format,
    )


def _rows_of(split: Split, limit: int | None) -> int:
    count = split.count()
    return min(count, limit) if limit is not None else count


def _join(job: Job, parts: Sequence[PartDone]) -> tuple[Path, Predicted]:
    """Put the files of the parts after one another, and count what they say together."""
    try:
        said = [Predicted(**part.summary["predicted"]) for part in parts]
    except (KeyError, TypeError) as error:
        raise Invalid("A part of the job said nothing of its rows.", code="bad_part") from error
    if len({one.format for one in said}) > 1:
        raise Invalid(
            "Workers of different releases computed parts of the job; start it again.",
            code="bad_part",
        )
    path = job.checkpoints / FILE_NAME
    with path.open("wb") as out:
        for at, part in enumerate(parts):
            with part.path.open("rb") as lines:
                shutil.copyfileobj(lines, out, 1 << 20)
            job.events.progress(done=at + 1, total=len(parts), unit="parts", step="join")
    return path, Predicted(
        rows=sum(one.rows for one in said),
        known=sum(one.known for one in said),
        right=sum(one.right for one in said),
        fresh_rows=sum(one.fresh_rows for one in said),
        seconds=sum(one.seconds for one in said),
        engine=said[0].engine,
        answers=said[0].answers,
        labels=said[0].labels,
        splits=said[0].splits,
        strange=sum(one.strange for one in said),
        unclear=sum(one.unclear for one in said),
        format=said[0].format,
    )


def _keep(job: Job, path: Path, step: recipes.Predict, predicted: Predicted) -> str:
    """Move the predictions to where the new version's files go, in the form that was asked for."""
    if step.format == "parquet":
        is_vectors = predicted.answers == "embedding"
        target = job.files / PARQUET_NAME
        write_parquet(path, target, job.events, predicted.rows, is_vectors=is_vectors)
        (job.checkpoints / _STATE).unlink(missing_ok=True)
        path.unlink()
        return PARQUET_NAME
    _give(job, path)
    return FILE_NAME


def _give(job: Job, path: Path) -> None:
    """Move the rows out of the checkpoints, which say no more from then on that they are there.

    The worker may still fail to store them, and then the job starts over.
    """
    (job.checkpoints / _STATE).unlink(missing_ok=True)
    path.replace(job.files / FILE_NAME)


class _Writer:
    """Appends predictions to a file that can be cut back to its last counted row."""

    def __init__(self, job: Job, runtime: Runtime, dataset: Dataset, step: recipes.Predict) -> None:
        self._job = job
        self._runtime = runtime
        self._dataset = dataset
        self._step = step
        self._labels = Labels(runtime.labels) if runtime.answers == "classes" else None
        self._state_file = job.checkpoints / _STATE

    def run(self, spans: Sequence[Span]) -> tuple[Done, int]:
        path = self._job.checkpoints / FILE_NAME
        path.touch()
        done = _read_state(self._state_file)
        if path.stat().st_size < done.size_bytes:
            done = Done()  # the rows that it counts are gone
        before = done.rows_in_all
        total = sum(span.stop - span.start for span in spans)
        if before:
            self._job.events.log(Text("Resumed after row {row}.", row=before))
        with path.open("r+b") as out, self._job.interrupt.deferred():
            out.truncate(done.size_bytes)
            out.seek(done.size_bytes)
            saved_at = time.monotonic()
            for span in spans[done.spans :]:
                for lines in self._predict(span, done):
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
                done.spans, done.rows = done.spans + 1, 0
            self._save(out, done)
        return done, done.rows_in_all - before

    def _predict(self, span: Span, done: Done) -> Iterator[bytes]:
        split = self._dataset.split(span.split)
        columns = list(self._runtime.feeder.columns)
        classes = None
        if self._labels is not None and self._step.label_column in split.columns():
            classes = read_classes(self._dataset, split, self._step.label_column, self._labels)
            columns.append(classes.column)
        block = self._step.batch_size * _BATCHES_PER_BLOCK
        for rows in split.batches(columns, block, start=span.start + done.rows):
            first = span.start + done.rows
            size = min(len(rows[columns[0]]), span.stop - first)
            if size <= 0:
                return
            rows = {column: values[:size] for column, values in rows.items()}  # noqa: PLW2901
            outputs = self._runtime.answer_block(
                rows, split, self._step.batch_size, names=done.outputs
            )
            # Every row of the job has the same columns.
            done.outputs = list(outputs)
            records = self._records(outputs, _actual(classes, rows, done), done)
            done.rows += size
            done.rows_in_all += size
            yield b"".join(
                orjson.dumps({"split": span.split, "row": first + at, **record}, option=_AS_IT_IS)
                for at, record in enumerate(records)
            )

    def _records(
        self, outputs: Mapping[str, Values], actual: NDArray[np.int64] | None, done: Done
    ) -> Iterator[dict[str, Any]]:
        columns = _columns(outputs, self._runtime)
        if self._labels is None:
            clear = np.logical_and.reduce([_finite(values) for values in columns.values()])
            done.unclear += int((~clear).sum())
            return _beside(columns)
        first = next(iter(outputs.values()))
        scores = probabilities(np.asarray(first))
        clear = _finite(scores)
        done.unclear += int((~clear).sum())
        if actual is not None:
            done.right += int((clear & (scores.argmax(1) == actual)).sum())
        classes = _classes(scores, clear, self._labels.names, actual)
        if not columns:
            return classes
        return ({**one, **more} for one, more in zip(classes, _beside(columns), strict=True))

    def _save(self, out: IO[bytes], done: Done) -> None:
        out.flush()
        os.fsync(out.fileno())
        done.size_bytes = out.tell()
        partial = self._state_file.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(done)), encoding="utf-8")
        partial.replace(self._state_file)
        self._job.events.checkpoint(done.rows_in_all)


def _actual(
    classes: ClassColumn | None, rows: Mapping[str, Column], done: Done
) -> NDArray[np.int64] | None:
    """Give the true classes, where there are any; what is no class of the model ends no job."""
    if classes is None:
        return None
    actual = classes.numbers(rows[classes.column], lenient=True)
    done.known += int((actual >= 0).sum())
    done.strange += int((actual == STRANGE).sum())
    return actual


def _columns(outputs: Mapping[str, Values], runtime: Runtime) -> dict[str, Values]:
    """Name the columns of outputs: the only one as it always was, several by their own names.

    The classes of a first output have columns of their own. A name that such a column or the place
    of the row has already is written with `output_` before it.
    """
    names = list(outputs)
    if runtime.answers == "embedding":
        return {"embedding": outputs[names[0]]}
    taken = {"split", "row"}
    if runtime.answers == "classes":
        taken |= {"label", "label_index", "score", "actual"}
        names = names[1:]
    elif len(runtime.engine.row_outputs) == 1:
        return {"output": outputs[names[0]]}
    columns: dict[str, Values] = {}
    for name in names:
        own = name
        while own in taken:
            own = f"output_{own}"
        taken.add(own)
        columns[own] = outputs[name]
    return columns


def _beside(columns: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Put what several outputs say of one row beside each other."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, map(_plain, values), strict=True))


def _finite(values: Values) -> NDArray[np.bool_]:
    """Say of each row whether all its numbers are finite; what is no number is clear."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind != "f":
            return np.ones(len(values), np.bool_)
        return np.asarray(np.isfinite(values.reshape(len(values), -1)).all(1))
    return np.array([_is_finite(value) for value in values], np.bool_)


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    found = np.asarray(value)
    return found.dtype.kind != "f" or bool(np.isfinite(found).all())


def _classes(
    scores_BK: NDArray[np.float64],
    clear_B: NDArray[np.bool_],
    names: list[str],
    actual: NDArray[np.int64] | None,
) -> Iterator[dict[str, Any]]:
    for at, scores_K in enumerate(scores_BK):
        best = int(scores_K.argmax())
        record: dict[str, Any] = {"label": None, "label_index": None, "score": None}
        if clear_B[at]:
            record = {"label": names[best], "label_index": best, "score": float(scores_K[best])}
        if actual is not None:
            record["actual"] = names[actual[at]] if actual[at] >= 0 else None
        yield record


def _plain(value: Any) -> Any:
    """Give a value as it is written: floats and arrays keep their dtype, which says how."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.kind in "OUS" else np.ascontiguousarray(value)
    if isinstance(value, np.generic) and value.dtype.kind != "f":
        return value.item()
    return value


def _read_state(file: Path) -> Done:
    try:
        state: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # Rows of another release may be written in another way.
        return Done(**state) if state.get("format") == _FORMAT else Done()
    except (OSError, ValueError, TypeError, AttributeError):
        return Done()


def _report(job: Job, predicted: Predicted, size_bytes: int) -> Report:
    names = predicted.splits
    split = names[0] if len(names) == 1 else "all"
    where: dict[str, Any] = {
        "split": split,
        "dataset": job.input("dataset").ref,
        "device": job.device,
    }
    metrics = []
    message = f"{predicted.rows} predictions of {job.input('model').title}"
    if predicted.known:
        low, high = wilson(predicted.right, predicted.known)
        share = predicted.right / predicted.known
        metrics.append(
            Metric("accuracy", share, "share", n=predicted.known, low=low, high=high, **where)
        )
        message += f", accuracy {share:.4f} (n={predicted.known})"
    if predicted.strange:
        message += f", {predicted.strange} labels that are no class of the model"
    if predicted.unclear:
        message += f", {predicted.unclear} rows with answers that are not finite"
    covers = "reading, computing, writing"
    metrics.append(
        Metric(
            "throughput",
            predicted.fresh_rows / max(predicted.seconds, 1e-9),
            "rows/s",
            n=predicted.rows,
            details={
                "engine": predicted.engine,
                "covers": f"{covers}; of one part" if job.parts else covers,
            },
            **where,
        )
    )
    described = environment.describe(device=job.device, threads=job.threads)
    summary: dict[str, Any] = {
        "rows": predicted.rows,
        "rows_of_no_class": predicted.strange,
        "rows_not_finite": predicted.unclear,
        "size_bytes": size_bytes,
        "splits": names,
    }
    if job.part.of > 1:
        summary["predicted"] = asdict(predicted)
    if job.parts:
        summary["parts"] = len(job.parts)
    return Report("infer", metrics, described, message, summary)


def _first_columns(path: Path) -> list[str]:
    """Name the columns of predictions by the first of them, if there is any."""
    with path.open("rb") as lines:
        first = lines.readline()
    return list(json.loads(first)) if first else []


def _describe(
    job: Job,
    recipe: recipes.InferRecipe,
    name: str,
    predicted: Predicted,
    report: Report,
    columns: Sequence[str],
) -> None:
    """Write dataset.json and a card, so that the predictions are a dataset like any other."""
    kinds = {
        "classes": {"label": "string", "label_index": "int64", "score": "float64"},
        "embedding": {"embedding": "list[float64]"},
        "tensors": {} if columns else {"output": "list"},
    }
    known = {"split": "string", "row": "int64", **kinds[predicted.answers]}
    others = {column: "list" for column in columns if column not in {*known, "actual"}}
    described = {
        "task": "predictions",
        "labels": predicted.labels,
        "columns": {**known, **others},
        "splits": {"predictions": predicted.rows},
    }
    for role, given in job.inputs.items():
        if given.may_be_named:
            described[role] = given.ref
    if predicted.known or predicted.strange:
        described["columns"]["actual"] = "string"  # type: ignore[index]  # the dict above
    text = json.dumps(described, ensure_ascii=False, indent=2)
    (job.files / "dataset.json").write_text(text + "\n", encoding="utf-8")
    head: dict[str, Any] = {"tags": ["predictions"]}
    if (model := job.input("model")).may_be_named:
        head["base_model"] = model.repository
    if (dataset := job.input("dataset")).may_be_named:
        head["source_datasets"] = [dataset.repository]
    rows = "One row each" if name == PARQUET_NAME else "One JSON object a line"
    card = (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {recipe.output.split('/')[1]}\n\n"
        f"{report.message} over {dataset.title}. {rows} in "
        f"`{name}`: the split and number of the row, and what the model answered.\n"
    )
    (job.files / "README.md").write_text(card, encoding="utf-8")
