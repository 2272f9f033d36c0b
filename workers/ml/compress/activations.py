"""What goes into the layers of an ONNX graph, summed up over calibration rows."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from registry.errors import Invalid
from workers.ml.compress.bench import Bench
from workers.ml.data import check_columns
from workers.ml.infer.engines import OnnxEngine
from workers.ml.infer.feeders import Feeds, TensorFeeder

_MEMORY = 1 << 30
"""Bytes of curvature held at once; more layers take more passes over the rows."""
Rows = Callable[[], Iterator[Feeds]]


def check_calibration(bench: Bench, instead: str) -> None:
    """Refuse, before any work, what cannot be calibrated; `instead` needs no rows.

    Raises:
        Invalid, NotFound: there is no dataset, no such split, or it has not the model's columns.

    """
    if bench.dataset is None:
        raise Invalid(
            "Calibration needs a dataset with a split {split}; {instead} needs none.",
            code="missing_input",
            split=bench.recipe.train_split,
            instead=instead,
        )
    check_columns(bench.training_split(), bench.parent.feeder.columns)
    _check_columns(bench)


def calibration_rows(bench: Bench, count: int, file: Path) -> Rows:
    """Give a function that yields the inputs of `count` rows, checked against what a file takes.

    Raises:
        Invalid: there is no dataset, or its rows are of another shape or type than the model takes.

    """
    engine = OnnxEngine(file, device="cpu", threads=bench.job.threads)
    expected = engine.inputs()

    def rows() -> Iterator[Feeds]:
        found = False
        for feeds in bench.calibration(count):
            for name, (dtype, axes) in expected.items():
                _check(name, feeds[name], dtype, axes)
            found = True
            yield feeds
        if not found:
            raise Invalid(
                "The split {split} has no row to calibrate on.",
                code="empty_split",
                split=bench.recipe.train_split,
            )

    return rows


def _check_columns(bench: Bench) -> None:
    """Compare the columns themselves: a feeder would turn one kind of number into another."""
    feeder = bench.parent.feeder
    split = bench.training_split()
    if not isinstance(feeder, TensorFeeder):
        return
    for rows in split.batches(feeder.columns, 1):
        for name, dtype in feeder.dtypes.items():
            values = rows[name]
            if isinstance(values, np.ndarray) and values.dtype.kind != dtype.kind:
                raise _unlike(name, values.dtype, list(values.shape[1:]), dtype, "such numbers")
        return


def _check(
    name: str,
    values: NDArray[np.generic],
    dtype: np.dtype[np.generic],
    axes: list[int | str | None],
) -> None:
    fits = len(values.shape) == len(axes) and all(
        not isinstance(size, int) or size in (found, -1)
        for size, found in zip(axes, values.shape, strict=False)
    )
    if values.dtype != dtype or not fits:
        raise _unlike(name, values.dtype, list(values.shape), dtype, axes)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise Invalid(
            "Column {name!r} has numbers that are not finite; no range can be set by them.",
            code="bad_calibration",
            name=name,
        )


def _unlike(name: str, found: object, shape: object, dtype: object, axes: object) -> Invalid:
    return Invalid(
        "The calibration rows do not fit the model: input {name!r} takes {dtype} {axes}, and the "
        "dataset gives {found} {shape}.",
        code="bad_calibration",
        name=name,
        dtype=dtype,
        axes=axes,
        found=found,
        shape=shape,
    )


def curvatures(
    file: Path, names: Sequence[str], widths: dict[str, int], rows: Rows, *, threads: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield X^T X (float64 [K, K], float32 above 4,096) of each named tensor over all rows.

    `widths` says how long the last axis of each is. As many are summed up at once as fit into a
    gigabyte.
    """
    left = list(dict.fromkeys(names))
    while left:
        part, left = _part(left, widths)
        engine = _reading(file, part, threads)
        sums = {
            name: torch.zeros(widths[name], widths[name], dtype=_type(widths[name]))
            for name in part
        }
        for feeds in rows():
            found = engine.run(feeds)
            for name in part:
                x_RK = torch.from_numpy(found[name]).reshape(-1, widths[name]).to(sums[name].dtype)
                sums[name].addmm_(x_RK.T, x_RK)
        yield from sums.items()


def _type(width: int) -> torch.dtype:
    return torch.float64 if width <= 4096 else torch.float32


def _part(names: list[str], widths: dict[str, int]) -> tuple[list[str], list[str]]:
    size = taken = 0
    for name in names:
        size += widths[name] ** 2 * _type(widths[name]).itemsize
        if taken and size > _MEMORY:
            break
        taken += 1
    return names[:taken], names[taken:]


def _reading(file: Path, names: Sequence[str], threads: int) -> OnnxEngine:
    """Load the file with tensors in between among its outputs."""
    model = onnx.load(file, load_external_data=False)
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in present
    )
    target = file.with_name(f"{file.stem}.reading.onnx")
    target.write_bytes(model.SerializeToString(deterministic=True))
    return OnnxEngine(target, device="cpu", threads=threads)
