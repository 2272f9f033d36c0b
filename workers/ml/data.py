"""Read a dataset version: its splits in safetensors, Parquet, CSV, JSON lines; clean, label, bound.

A split is read in batches and never held whole, unless somebody asks for `Split.load`.
"""

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from registry.errors import Invalid, NotFound
from workers.ml.architectures import MAX_CLASSES
from workers.ml.formats import damaged
from workers.ml.texts import MAX_CHARACTERS, clean_text

Column = NDArray[Any] | list[str | None]
Rows = Mapping[str, Column]

MAX_ROWS = 20_000_000
MAX_LOADED_BYTES = 8 * 1024**3
MAX_LINE_CHARACTERS = 16_000_000
# What a label column says of a row that has no class, and of one that has none of ours.
MISSING, STRANGE = -1, -2
_MOST_NUMBERED = 100_000
_BLOCK = 1024
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


class Split(Protocol):
    """One part of a dataset, such as train or test."""

    @property
    def file(self) -> Path: ...

    def columns(self) -> list[str]: ...

    def count(self) -> int:
        """Count the rows; files of text are read through once for it."""
        ...

    def batches(self, columns: Sequence[str], size: int, *, start: int = 0) -> Iterator[Rows]:
        """Yield the rows from `start` on, `size` at a time."""
        ...


@dataclass(frozen=True)
class TensorSplit:
    """A safetensors file whose tensors are the columns; the first axis counts rows."""

    file: Path

    def columns(self) -> list[str]:
        return sorted(self._shapes())

    def count(self) -> int:
        counts = {shape[0] if shape else -1 for shape in self._shapes().values()}
        if len(counts) != 1 or -1 in counts:
            raise Invalid(
                "Every tensor in {file} must have the same number of rows; found {counts}.",
                code="bad_dataset",
                file=self.file.name,
                counts=sorted(counts),
            )
        (count,) = counts
        if count > MAX_ROWS:
            raise _too_many_rows(self.file)
        return count

    def batches(self, columns: Sequence[str], size: int, *, start: int = 0) -> Iterator[Rows]:
        check_columns(self, columns)
        count = self.count()
        with safe_open(self.file, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in columns}
            for low in range(start, count, size):
                yield {name: found[low : min(low + size, count)] for name, found in slices.items()}

    def _shapes(self) -> dict[str, list[int]]:
        try:
            with safe_open(self.file, framework="np") as tensors:
                slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
                for name, found in slices.items():
                    if found.get_dtype() not in _DTYPES:
                        raise Invalid(
                            "Column {name!r} of {file} has the type {found}; use one of {dtypes}.",
                            code="bad_dataset",
                            name=name,
                            file=self.file.name,
                            found=found.get_dtype(),
                            dtypes=", ".join(_DTYPES),
                        )
                return {name: found.get_shape() for name, found in slices.items()}
        except (SafetensorError, OSError) as error:
            raise damaged(self.file, error) from error


@dataclass(frozen=True)
class ParquetSplit:
    """A Parquet file; whole columns of numbers are arrays, all others are read as text."""

    file: Path

    def columns(self) -> list[str]:
        with self._opened() as opened:
            return list(opened.schema_arrow.names)

    def count(self) -> int:
        with self._opened() as opened:
            count: int = opened.metadata.num_rows
        if count > MAX_ROWS:
            raise _too_many_rows(self.file)
        return count

    def batches(self, columns: Sequence[str], size: int, *, start: int = 0) -> Iterator[Rows]:
        check_columns(self, columns)
        with self._opened() as opened:
            first = 0
            for group in range(opened.metadata.num_row_groups):
                count = opened.metadata.row_group(group).num_rows
                if first + count > start:
                    yield from self._batches(opened, group, columns, size, max(start - first, 0))
                first += count

    def _batches(
        self, opened: pq.ParquetFile, group: int, columns: Sequence[str], size: int, skip: int
    ) -> Iterator[Rows]:
        try:
            for batch in opened.iter_batches(size, row_groups=[group], columns=list(columns)):
                kept = batch.slice(skip)
                skip = max(skip - batch.num_rows, 0)
                if kept.num_rows:
                    yield {name: _arrow_column(kept.column(name)) for name in columns}
        except (pa.ArrowException, OSError) as error:
            raise damaged(self.file, error) from error

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            opened = pq.ParquetFile(self.file)
        except (pa.ArrowException, OSError) as error:
            raise damaged(self.file, error) from error
        with opened:
            yield opened


def _arrow_column(values: pa.Array) -> Column:
    kind = values.type
    if (pa.types.is_integer(kind) or pa.types.is_floating(kind)) and not values.null_count:
        return np.asarray(values.to_numpy(zero_copy_only=False))
    return [_as_text(value) for value in values.to_pylist()]


@dataclass(frozen=True)
class TextSplit:
    """A CSV file with a header, or a file of one JSON object a line."""

    file: Path

    def columns(self) -> list[str]:
        """Name the columns; of JSON lines, those that the first hundred rows have."""
        if self.file.suffix == ".csv":
            with self._reading() as lines:
                return _csv_header(self.file, lines)
        first = itertools.islice(self._records(), 100)
        return list(dict.fromkeys(name for record in first for name in record))

    def count(self) -> int:
        count = 0
        for count, _ in enumerate(self._records(), 1):
            if count > MAX_ROWS:
                raise _too_many_rows(self.file)
        return count

    def batches(self, columns: Sequence[str], size: int, *, start: int = 0) -> Iterator[Rows]:
        check_columns(self, columns)
        records = itertools.islice(self._records(), start, None)
        while block := list(itertools.islice(records, size)):
            yield {name: [record.get(name) for record in block] for name in columns}

    def _reading(self) -> Any:
        return self.file.open(encoding="utf-8-sig", errors="replace", newline="")

    def _records(self) -> Iterator[dict[str, str | None]]:
        read = _csv_records if self.file.suffix == ".csv" else _json_records
        with self._reading() as lines:
            yield from read(self.file, lines)


def _csv_header(file: Path, lines: Iterator[str]) -> list[str]:
    csv.field_size_limit(MAX_CHARACTERS)
    try:
        header = next(csv.reader(lines), [])
    except csv.Error as error:
        raise damaged(file, error) from error
    names = [name.strip() for name in header]
    if not any(names):
        raise Invalid(
            "{file} has no header line with column names.", code="bad_dataset", file=file.name
        )
    return names


def _csv_records(file: Path, lines: Iterator[str]) -> Iterator[dict[str, str | None]]:
    names = _csv_header(file, lines)
    try:
        for values in csv.reader(lines):
            if values:
                yield dict(itertools.zip_longest(names, values[: len(names)]))
    except csv.Error as error:
        raise damaged(file, error) from error


def _json_records(file: Path, lines: Any) -> Iterator[dict[str, str | None]]:
    for number in itertools.count(1):
        line = lines.readline(MAX_LINE_CHARACTERS)
        if not line:
            return
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Invalid(
                "Line {number} of {file} is not a JSON value: {problem}",
                code="malformed_file",
                number=number,
                file=file.name,
                problem=error,
            ) from error
        if not isinstance(record, dict):
            raise Invalid(
                "Line {number} of {file} is no object.",
                code="malformed_file",
                number=number,
                file=file.name,
            )
        yield {_whole(name): _as_text(value) for name, value in record.items()}


def _as_text(value: object) -> str | None:
    if value is None:
        return None
    return _whole(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    )


def _whole(text: str) -> str:
    """Leave out half characters, which an escape can bring in and no file could hold again."""
    return text.encode("utf-8", "replace").decode()


# --- a dataset ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """A dataset version laid out as files."""

    path: Path
    ref: str
    splits: dict[str, Split]
    description: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """The names of the classes, where dataset.json has them."""
        labels = self.description.get("labels")
        return [str(label) for label in labels] if isinstance(labels, list) else []

    def split(self, name: str) -> Split:
        found = self.splits.get(name)
        if found is None:
            raise NotFound(
                "The dataset {dataset} has no split {name!r}; it has {splits}.",
                code="missing_split",
                dataset=self.ref,
                name=name,
                splits=", ".join(self.splits),
            )
        return found


def open_dataset(path: Path, ref: str) -> Dataset:
    """Find the splits of a dataset: files named after them, such as train.csv."""
    splits: dict[str, Split] = {}
    for file in sorted([*path.glob("*"), *path.glob("data/*")]):
        if not file.is_file() or not file.resolve().is_relative_to(path.resolve()):
            continue
        if file.suffix == ".safetensors":
            splits.setdefault(file.stem, TensorSplit(file))
        elif file.suffix == ".parquet":
            splits.setdefault(file.stem, ParquetSplit(file))
        elif file.suffix in {".csv", ".jsonl"}:
            splits.setdefault(file.stem, TextSplit(file))
    if not splits:
        raise Invalid(
            "The dataset {dataset} has no file that can be read; add train.safetensors, "
            "train.parquet, train.csv or train.jsonl.",
            code="unsupported_format",
            dataset=ref,
        )
    return Dataset(path, ref, splits, _description(path))


def _description(path: Path) -> dict[str, Any]:
    file = path / "dataset.json"
    if not file.is_file():
        return {}
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(file, error) from error
    if not isinstance(described, dict):
        raise Invalid("dataset.json must be a JSON object.", code="bad_dataset")
    return described


def check_columns(split: Split, columns: Sequence[str]) -> None:
    """Refuse to start on a split that lacks a column, naming the ones it has."""
    present = split.columns()
    for column in columns:
        if column not in present:
            raise Invalid(
                "{file} has no column {column!r}; its columns are {columns}.",
                code="missing_column",
                file=split.file.name,
                column=column,
                columns=", ".join(map(repr, present)) or "none",
            )


def _too_many_rows(file: Path) -> Invalid:
    return Invalid(
        "{file} has more than {limit} rows.", code="too_large", file=file.name, limit=MAX_ROWS
    )


# --- labels -------------------------------------------------------------------------------------


class Labels:
    """The classes of a task, and the number of each."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._number = {name: number for number, name in enumerate(self.names)}
        if len(self._number) != len(self.names):
            raise Invalid("Two classes have the same name.", code="bad_labels")
        if len(self.names) > MAX_CLASSES:
            raise Invalid("More than {limit} classes.", code="bad_labels", limit=MAX_CLASSES)
        whole = [_whole_number(name) for name in self.names]
        times = Counter(whole)
        self._alike = {one: number for number, one in enumerate(whole) if times[one] == 1}

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str) -> int | None:
        """Return the number of the class of this name; where names are numbers, 1.0 is 1."""
        found, whole = self._number.get(name), _whole_number(name)
        return self._alike.get(whole) if found is None and whole is not None else found


def _whole_number(text: str) -> int | None:
    """Read the number of a class, also as pandas writes it in a column with gaps: 1.0."""
    digits = text.removesuffix(".0")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else None


def find_labels(dataset: Dataset, split: Split, column: str) -> Labels:
    """Take the classes from dataset.json, or else from the values in the split."""
    if dataset.labels:
        return Labels(dataset.labels)
    seen: set[str] = set()
    for rows in split.batches([column], _BLOCK):
        values = rows[column]
        _check_label_column(values, split, column)
        seen.update(str(value).strip() for value in values if not _is_empty(value))
        if len(seen) > MAX_CLASSES:
            raise Invalid(
                "Column {column!r} of {file} has more than {limit} different "
                "values; that is no column of classes.",
                code="bad_labels",
                column=column,
                file=split.file.name,
                limit=MAX_CLASSES,
            )
    whole = [number for value in seen if (number := _whole_number(value)) is not None]
    if seen and len(whole) == len(seen) and max(whole) < _MOST_NUMBERED:
        return Labels([str(number) for number in range(max(whole) + 1)])
    return Labels(sorted(seen))


@dataclass(frozen=True)
class ClassColumn:
    """A column that says of which class each row is: by its name, or else by its number."""

    split: Split
    column: str
    labels: Labels
    """The classes that are asked for, those of the model."""
    counted: Labels
    """The classes in the order that numbers in the column count."""
    by_number: bool

    def numbers(
        self, values: Column, *, first_row: int = 0, lenient: bool = False
    ) -> NDArray[np.int64]:
        """Give the number of each row's class, MISSING where it has none.

        What is no class is refused, or with `lenient` STRANGE.
        """
        if not lenient:
            _check_label_column(values, self.split, self.column)
        elif isinstance(values, np.ndarray) and values.ndim != 1:
            return np.full(len(values), STRANGE)
        numbers = np.full(len(values), MISSING)
        for at, value in enumerate(values):
            if _is_empty(value):
                continue
            found = self._number(str(value).strip())
            if found is None and not lenient:
                raise self._no_class(value, first_row + at + 1)
            numbers[at] = STRANGE if found is None else found
        return numbers

    def _number(self, text: str) -> int | None:
        name = self._counted(text) if self.by_number else text
        return None if name is None else self.labels.find(name)

    def _counted(self, text: str) -> str | None:
        number = _whole_number(text)
        if number is None or number >= len(self.counted):
            return None
        return self.counted.names[number]

    def _no_class(self, value: object, row: int) -> Invalid:
        names = self.labels.names
        shown = [*map(repr, names[:12]), *(["..."] if len(names) > 12 else [])]
        meant = self._counted(str(value).strip()) if self.by_number else None
        return Invalid(
            "Row {row} of {file}: {value!r} is no class; the classes are {known}. A column holds "
            "names of classes, or else their numbers from 0 on.",
            code="bad_label",
            row=row,
            file=self.split.file.name,
            value=(meant or str(value))[:60],
            known=", ".join(shown),
        )


def read_classes(dataset: Dataset, split: Split, column: str, labels: Labels) -> ClassColumn:
    """Find out how a column says its classes: all of them by name, or else all by number.

    One value alone does not tell: 1 may be the class of that name, or the second one. Where all
    that a split holds may be read in both ways, the other splits decide.
    """
    counted = _counted(dataset, labels)
    read = _readings(split, column, counted)
    if all(name is not None and number is not None for name, number in read) and any(
        name != number for name, number in read
    ):
        for other in dataset.splits.values():
            if other != split and column in other.columns():
                read |= _readings(other, column, counted)
    named = all(name is not None for name, _ in read)
    numbered = all(number is not None for _, number in read)
    return ClassColumn(split, column, labels, counted, by_number=numbered and not named)


def _counted(dataset: Dataset, labels: Labels) -> Labels:
    """Give the classes that numbers in the dataset count: its own, where it names them.

    As many classes of altogether other names are the same ones in the same order.
    """
    if not dataset.labels:
        return labels
    own = Labels(dataset.labels)
    strangers = all(labels.find(name) is None for name in own.names)
    return labels if strangers and len(own) == len(labels) else own


def _readings(split: Split, column: str, counted: Labels) -> set[tuple[int | None, int | None]]:
    """Give what the values of a column are as names and as numbers; what is neither is left out."""
    read: set[tuple[int | None, int | None]] = set()
    for rows in split.batches([column], _BLOCK):
        values = rows[column]
        if isinstance(values, np.ndarray) and values.ndim != 1:
            break
        for text in {str(value).strip() for value in values}:
            number = _whole_number(text)
            within = number if number is not None and number < len(counted) else None
            read.add((counted.find(text), within))
    return read - {(None, None)}


def _check_label_column(values: Column, split: Split, column: str) -> None:
    if isinstance(values, np.ndarray) and (values.ndim != 1 or values.dtype.kind not in "iub"):
        raise Invalid(
            "Column {column!r} of {file} must hold one whole number a row, not {dtype} {shape}.",
            code="bad_column",
            column=column,
            file=split.file.name,
            dtype=values.dtype,
            shape=list(values.shape[1:]),
        )


# --- cleaning -----------------------------------------------------------------------------------


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def check_images(values: Column, split: Split, column: str) -> NDArray[np.uint8]:
    """Accept N x 28 x 28 bytes, with or without an axis for the one channel."""
    if isinstance(values, np.ndarray) and values.dtype == np.uint8:
        if values.shape[1:] == (28, 28):
            return values
        if values.shape[1:] in {(1, 28, 28), (28, 28, 1), (784,)}:
            return values.reshape(-1, 28, 28)
    found = f"{values.dtype} {list(values.shape)}" if isinstance(values, np.ndarray) else "text"
    raise Invalid(
        "Column {column!r} of {file} must be uint8 [rows, 28, 28], not {found}.",
        code="bad_column",
        column=column,
        file=split.file.name,
        found=found,
    )


def need_numbers(values: Column, split: Split, column: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Accept a column of numbers where the model takes `dtype`."""
    if isinstance(values, np.ndarray):
        return values
    raise Invalid(
        "Column {name!r} of {file} is text; the model takes {dtype}.",
        code="bad_column",
        name=column,
        file=split.file.name,
        dtype=dtype,
    )


@dataclass(frozen=True)
class Loaded:
    """A whole split in memory, cleaned: rows without content or without a class are left out."""

    inputs: NDArray[np.uint8] | list[str]
    labels: NDArray[np.int64]
    dropped: int


def load_split(classes: ClassColumn, *, input_column: str, images: bool) -> Loaded:
    """Read and clean a whole split, within the memory limit."""
    split = classes.split
    inputs: list[Any] = []
    numbers: list[NDArray[np.int64]] = []
    size = dropped = row = 0
    for rows in split.batches([input_column, classes.column], _BLOCK):
        found = classes.numbers(rows[classes.column], first_row=row)
        row += len(found)
        if images:
            block = check_images(rows[input_column], split, input_column)
            good = found >= 0
            inputs.append(block[good])
            size += block.nbytes
        else:
            texts = [clean_text(value) for value in check_texts(rows[input_column], split)]
            good = (found >= 0) & np.array([bool(text) for text in texts])
            inputs.extend(itertools.compress(texts, good))
            size += 2 * sum(map(len, texts))
        numbers.append(found[good])
        dropped += int((~good).sum())
        if size > MAX_LOADED_BYTES:
            raise Invalid(
                "{file} does not fit in {limit} GiB of memory.",
                code="too_large",
                file=split.file.name,
                limit=MAX_LOADED_BYTES // 1024**3,
            )
    targets = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64)
    if not len(targets):
        raise Invalid(
            "{file} has no row that can be used.", code="empty_split", file=split.file.name
        )
    return Loaded(np.concatenate(inputs) if images else inputs, targets, dropped)


def load_tensors(
    classes: ClassColumn, *, dtypes: Mapping[str, np.dtype[Any]]
) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Read columns of numbers and their classes, within the memory limit.

    Rows without a class are left out. The columns come in the order of `dtypes`, in these types.
    """
    split = classes.split
    blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in dtypes}
    numbers: list[NDArray[np.int64]] = []
    size = row = 0
    for rows in split.batches([*dtypes, classes.column], _BLOCK):
        found = classes.numbers(rows[classes.column], first_row=row)
        row += len(found)
        good = found >= 0
        for name, dtype in dtypes.items():
            values = need_numbers(rows[name], split, name, dtype)
            blocks[name].append(values[good].astype(dtype, copy=False))
            size += blocks[name][-1].nbytes
        numbers.append(found[good])
        if size > MAX_LOADED_BYTES:
            raise Invalid(
                "{file} does not fit in {limit} GiB of memory.",
                code="too_large",
                file=split.file.name,
                limit=MAX_LOADED_BYTES // 1024**3,
            )
    targets = np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64)
    if not len(targets):
        raise Invalid(
            "{file} has no row that can be used.", code="empty_split", file=split.file.name
        )
    return [np.concatenate(found) for found in blocks.values()], targets


def load_texts(split: Split, column: str) -> list[str]:
    """Read and clean the texts of a split, within the memory limit; empty ones are left out."""
    texts: list[str] = []
    size = 0
    for rows in split.batches([column], _BLOCK):
        block = [clean_text(value) for value in check_texts(rows[column], split)]
        texts.extend(text for text in block if text)
        size += 2 * sum(map(len, block))
        if size > MAX_LOADED_BYTES:
            raise Invalid(
                "{file} does not fit in {limit} GiB of memory.",
                code="too_large",
                file=split.file.name,
                limit=MAX_LOADED_BYTES // 1024**3,
            )
    if not texts:
        raise Invalid(
            "{file} has no row that can be used.", code="empty_split", file=split.file.name
        )
    return texts


def check_texts(values: Column, split: Split) -> Sequence[str | None]:
    if isinstance(values, np.ndarray):
        raise Invalid(
            "{file} holds tensors; a text model needs CSV or JSON lines.",
            code="bad_column",
            file=split.file.name,
        )
    return values


def divide(count: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw the rows held out for validation at random; the same seed draws the same rows."""
    order = np.random.default_rng((seed, 0x5EED)).permutation(count)
    held_out = min(round(count * fraction), count - 1)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
