"""The numbers of every report: quality with its uncertainty, latency, size and memory.

A version and its parent are measured side by side in one run, on the same rows, so that the price
of a change is seen and not the difference between two days.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.ml import cost
from workers.ml.data import ClassColumn, Column, Labels, Rows, Split, check_columns
from workers.ml.environment import cpu_flags
from workers.ml.formats import ModelFolder
from workers.ml.graphs import inspect_onnx
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.runtime import Runtime
from workers.ml.packed import weights_in
from workers.ml.report import Metric
from workers.ml.statistics import bootstrap_mean, mcnemar, unit, wilson
from workers.ml.structure import packed_names, read_structure

MAX_PROBES = 512
LATENCY_BATCHES = (1, 8, 32)
_LATENCY_SECONDS = 1.5
_LATENCY_RUNS = 200
_LATENCY_BLOCK = 10
_WARM_UP_RUNS = 5
_FOOTPRINT_SECONDS = 300
_CONFUSION_CLASSES = 20
_ENERGY_SECONDS = 0.3
_ENERGY_RUNS = 50


# --- quality ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Where:
    """What a quality was measured on."""

    split: str
    dataset: str | None
    device: str


@dataclass(frozen=True)
class Predictions:
    """The true classes, and what each model said for the same rows."""

    actual: NDArray[np.int64]
    predicted: dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Answered:
    """A batch of labelled rows: where they stand in their split, and each model's class scores."""

    rows: Rows
    numbers: NDArray[np.int64]
    actual: NDArray[np.int64]
    scores: dict[str, NDArray[Any]]

    @property
    def predicted(self) -> dict[str, NDArray[np.int64]]:
        return {name: scores.argmax(1) for name, scores in self.scores.items()}


def answer_side_by_side(
    runtimes: Mapping[str, Runtime], classes: ClassColumn, *, batch_size: int
) -> Iterator[Answered]:
    """Run every model over every labelled row of the split, a batch at a time."""
    first = next(iter(runtimes.values()))
    split = classes.split
    columns = [*first.feeder.columns, classes.column]
    check_columns(split, columns)
    row = 0
    for rows in split.batches(columns, batch_size):
        actual = classes.numbers(rows[classes.column], first_row=row)
        scores = {name: runtime.run(rows, split) for name, runtime in runtimes.items()}
        known = np.flatnonzero(actual >= 0)
        yield Answered(
            {name: take(rows[name], known) for name in first.feeder.columns},
            row + known,
            actual[known],
            {name: numbers[known] for name, numbers in scores.items()},
        )
        row += len(actual)


def predict_side_by_side(
    runtimes: Mapping[str, Runtime], classes: ClassColumn, *, batch_size: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]]:
    """Give the true classes of each batch and what every model takes them for."""
    for batch in answer_side_by_side(runtimes, classes, batch_size=batch_size):
        yield batch.actual, batch.predicted


def take(values: Column, places: NDArray[np.int64]) -> Column:
    """Pick some rows of a column."""
    return values[places] if isinstance(values, np.ndarray) else [values[at] for at in places]


def collect(
    batches: Iterable[tuple[NDArray[np.int64], dict[str, NDArray[np.int64]]]],
    names: Sequence[str],
) -> Predictions:
    blocks = list(batches)
    empty = np.empty(0, dtype=np.int64)
    return Predictions(
        np.concatenate([empty, *(actual for actual, _ in blocks)]),
        {name: np.concatenate([empty, *(said[name] for _, said in blocks)]) for name in names},
    )


def accuracy(predictions: Predictions, name: str, labels: Labels, where: Where) -> Metric:
    """Tell the share of right answers, its interval, and the share that guessing would get."""
    actual, said = predictions.actual, predictions.predicted[name]
    n, right = len(actual), int((actual == said).sum())
    low, high = wilson(right, n)
    counts = np.bincount(actual, minlength=len(labels))
    details: dict[str, Any] = {
        "correct": right,
        "interval": "Wilson, 95 %",
        "majority_class": float(counts.max() / max(1, n)),
        "recall": {
            labels.names[k]: float((said[actual == k] == k).mean())
            for k in np.flatnonzero(counts)[:100]
        },
    }
    if len(labels) <= _CONFUSION_CLASSES:
        confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        np.add.at(confusion, (actual, said), 1)
        details["confusion"] = {"labels": labels.names, "rows_actual": confusion.tolist()}
    return Metric(
        metric="accuracy",
        value=right / max(1, n),
        unit="share",
        n=n,
        low=low,
        high=high,
        split=where.split,
        dataset=where.dataset,
        device=where.device,
        details=details,
    )


def beside_parent(child: Metric, parent: Metric) -> dict[str, Any]:
    """Say what the parent got on the same rows, for the details of the child's number."""
    return {
        "parent": {"value": parent.value, "low": parent.low, "high": parent.high},
        "difference": child.value - parent.value,
    }


def agreement(predictions: Predictions, child: str, parent: str, where: Where) -> Metric:
    """Tell how often two models say the same, and whether those that differ lean one way."""
    first, second = predictions.predicted[child], predictions.predicted[parent]
    n, same = len(first), int((first == second).sum())
    low, high = wilson(same, n)
    lost = int(((second == predictions.actual) & (first != predictions.actual)).sum())
    won = int(((first == predictions.actual) & (second != predictions.actual)).sum())
    return Metric(
        metric="agreement_with_parent",
        value=same / max(1, n),
        unit="share",
        n=n,
        low=low,
        high=high,
        split=where.split,
        dataset=where.dataset,
        device=where.device,
        details={"lost": lost, "won": won, "mcnemar_p": mcnemar(lost, won)},
    )


def fidelity(child: NDArray[Any], parent: NDArray[Any], where: Where, probes: str) -> Metric:
    """Tell how close a model's vectors are to its parent's: the cosine, row by row."""
    first, second = unit(child), unit(parent)
    cosine = (first * second).sum(1)
    low, high = bootstrap_mean(cosine)
    return Metric(
        metric="cosine_to_parent",
        value=float(cosine.mean()),
        unit="cosine",
        n=len(cosine),
        low=low,
        high=high,
        split=where.split,
        dataset=where.dataset,
        device=where.device,
        details={
            "interval": "bootstrap of the mean, 95 %",
            "smallest": float(cosine.min()),
            "quantile_05": float(np.quantile(cosine, 0.05)),
            "same_nearest_neighbour": _same_neighbour(first, second),
            "probes": probes,
        },
    )


def _same_neighbour(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Tell for what share of rows the nearest other row stays the same: what a search sees."""
    if len(first) < 3:
        return None
    nearest = []
    for vectors in (first, second):
        alike = vectors @ vectors.T
        np.fill_diagonal(alike, -np.inf)
        nearest.append(alike.argmax(1))
    return float((nearest[0] == nearest[1]).mean())


# --- latency ------------------------------------------------------------------------------------


def latency(
    runtimes: Mapping[str, Runtime], feeds: Mapping[int, Feeds], *, device: str, threads: int
) -> list[Metric]:
    """Time the computation, without reading and tokenising, at each batch size.

    The models take turns, so that a busy machine is unfair to all of them alike. The first one
    is the one reported; the others stand in its details.
    """
    metrics = []
    for batch, fed in feeds.items():
        times = _take_turns(runtimes, fed)
        child, *others = times
        for name, share in (("p50", 0.5), ("p95", 0.95)):
            bounds = {"bounds": median_bounds(times[child])} if name == "p50" else {}
            metrics.append(
                Metric(
                    metric=f"latency_{name}_batch{batch}",
                    value=_milliseconds(times[child], share),
                    unit="ms",
                    n=len(times[child]),
                    device=device,
                    details={
                        "batch": batch,
                        "threads": threads,
                        "cpu_flags": list(cpu_flags()),
                        "engine": runtimes[child].engine.name,
                        "input": {key: list(value.shape) for key, value in fed.items()},
                        **bounds,
                        **{
                            other: {
                                "value": _milliseconds(times[other], share),
                                "engine": runtimes[other].engine.name,
                            }
                            for other in others
                        },
                    },
                )
            )
    return metrics


def _take_turns(runtimes: Mapping[str, Runtime], feeds: Feeds) -> dict[str, list[float]]:
    for runtime in runtimes.values():
        for _ in range(_WARM_UP_RUNS):
            runtime.compute(feeds)
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    end = time.perf_counter() + _LATENCY_SECONDS * len(runtimes)
    for _ in range(_LATENCY_RUNS // _LATENCY_BLOCK):
        for name, runtime in runtimes.items():
            runtime.compute(feeds)  # untimed: the other model has just used the caches
            for _ in range(_LATENCY_BLOCK):
                start = time.perf_counter()
                runtime.compute(feeds)
                times[name].append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return times


def median_bounds(times: list[float]) -> list[float]:
    """Give the milliseconds that the median lies between, at 95 %: two of the times in order."""
    ordered, count = sorted(times), len(times)
    away = 0.98 * count**0.5
    low, high = int(count / 2 - away), int(count / 2 + away)
    return [round(ordered[min(max(0, at), count - 1)] * 1000, 4) for at in (low, high)]


def _milliseconds(times: list[float], share: float) -> float:
    return round(float(np.quantile(times, share)) * 1000, 4)


def latency_feeds(runtime: Runtime, rows: Rows, split: Split) -> dict[int, Feeds]:
    """Cut the same rows to each batch size; a single text is not padded to its neighbours."""
    most = min(len(values) for values in rows.values())
    return {
        batch: runtime.feeder.feeds({name: values[:batch] for name, values in rows.items()}, split)
        for batch in LATENCY_BATCHES
        if batch <= most
    }


def cpu_seconds(runtimes: Mapping[str, Runtime], feeds: Mapping[int, Feeds]) -> list[Metric]:
    """Tell the processor's time for a thousand rows, in the largest batch: what energy follows.

    Time of all threads together; waiting costs nothing.
    """
    if not feeds:
        return []
    batch = max(feeds)
    child, *others = (
        (name, _cpu_time(runtime, feeds[batch])) for name, runtime in runtimes.items()
    )
    return [
        Metric(
            "cpu_seconds_per_1000_rows",
            child[1] / batch * 1000,
            "s",
            details={
                "batch": batch,
                **{name: {"value": seconds / batch * 1000} for name, seconds in others},
            },
        )
    ]


def _cpu_time(runtime: Runtime, feeds: Feeds) -> float:
    runtime.compute(feeds)
    start, runs = time.process_time(), 0
    while True:
        runtime.compute(feeds)
        runs += 1
        spent = time.process_time() - start
        if spent >= _ENERGY_SECONDS or runs >= _ENERGY_RUNS:
            return spent / runs


# --- size ---------------------------------------------------------------------------------------


def count_parameters(folder: ModelFolder) -> tuple[int, dict[str, Any]]:
    """Count the numbers a model has learned, and say in what types they are stored."""
    if folder.is_onnx:
        contents = inspect_onnx(folder.weights)
        return contents.parameters, {"bytes_by_type": contents.weight_bytes}
    from safetensors import safe_open  # noqa: PLC0415 - beside its one use

    count = 0
    kinds: dict[str, int] = {}
    packed = packed_names(read_structure(folder.config))
    with safe_open(folder.weights, framework="np") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - not a dict
            found = tensors.get_slice(name)
            size = math.prod(found.get_shape())
            layer, _, kind = name.rpartition(".")
            count += size * (weights_in(kind, found.get_dtype()) if layer in packed else 1)
            kinds[found.get_dtype()] = kinds.get(found.get_dtype(), 0) + size
    return count, {"parameters_by_type": kinds}


def size_metrics(child: ModelFolder, parent: ModelFolder | None, *, device: str) -> list[Metric]:
    """Tell the stored bytes and the parameters, with the parent's beside them."""
    parameters, kinds = count_parameters(child)
    bytes_details: dict[str, Any] = {"file": child.stored.name}
    if parent is not None:
        before, _ = count_parameters(parent)
        kinds["parent"] = {"value": before}
        bytes_details["parent"] = {
            "value": parent.weights_bytes,
            "file": parent.stored.name,
        }
        bytes_details["times_smaller"] = round(parent.weights_bytes / child.weights_bytes, 3)
    return [
        Metric("stored_bytes", child.weights_bytes, "bytes", device=device, details=bytes_details),
        Metric("parameters", parameters, "count", device=device, details=kinds),
        _wire_metric(child, parent, device),
    ]


def _wire_metric(child: ModelFolder, parent: ModelFolder | None, device: str) -> Metric:
    details: dict[str, Any] = {"coded_by": f"zstd, level {cost.WIRE_LEVEL}"}
    if parent is not None:
        details["parent"] = {"value": cost.wire_bytes(parent.stored)}
    size = cost.wire_bytes(child.stored)
    return Metric("wire_bytes_zstd3", size, "bytes", device=device, details=details)


def counted_metrics(
    child: Runtime, parent: Runtime | None, feeds: Feeds, *, device: str
) -> list[Metric]:
    """Count weights that are not zero, and multiply-accumulates for one row."""
    nonzero: dict[str, Any] = {}
    macs = cost.count_macs(child, feeds)
    counted: dict[str, Any] = {"input": {key: list(value.shape) for key, value in feeds.items()}}
    if macs.not_counted:
        counted["not_counted"] = macs.not_counted
    if parent is not None:
        nonzero["parent"] = {"value": cost.count_nonzero(parent)}
        counted["parent"] = {"value": cost.count_macs(parent, feeds).total}
    return [
        Metric("nonzero", cost.count_nonzero(child), "count", device=device, details=nonzero),
        Metric("macs_per_row", macs.total, "count", device=device, details=counted),
    ]


def memory_metric(child: Path, parent: Path | None, *, device: str, threads: int) -> list[Metric]:
    """Tell the memory that loading and running takes, each model in a process of its own."""
    peak = _footprint(child, threads)
    if peak is None:
        return []
    details: dict[str, Any] = {"batch": max(LATENCY_BATCHES), "threads": threads}
    if parent is not None and (before := _footprint(parent, threads)) is not None:
        details["parent"] = {"value": before}
    return [Metric("peak_memory", peak, "bytes", device=device, details=details)]


def _footprint(path: Path, threads: int) -> int | None:
    command = [
        sys.executable,
        "-P",
        "-s",
        "-m",
        "workers.ml.footprint",
        str(path.resolve()),
        str(threads),
    ]
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, check=True, timeout=_FOOTPRINT_SECONDS
        )
        return int(json.loads(done.stdout)["peak_bytes"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        # Inside a strict sandbox there may be no second process; then there is no such number.
        return None
