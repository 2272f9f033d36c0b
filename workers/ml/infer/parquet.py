"""Predictions as Parquet: a column for each field, written in groups of rows."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.ml.events import Events

_ROWS_A_GROUP = 16_384
_TYPES: dict[str, pa.DataType] = {
    "split": pa.string(),
    "row": pa.int64(),
    "label": pa.string(),
    "label_index": pa.int64(),
    "score": pa.float64(),
    "actual": pa.string(),
    "embedding": pa.list_(pa.float32()),
}


def write_parquet(lines: Path, target: Path, events: Events, total: int) -> None:
    """Write the JSON objects of `lines`, all of the same fields, as a Parquet file.

    Memory holds one group of rows. Fields that are not known by name take the type that their
    first group has.
    """
    done = 0
    with lines.open("rb") as source, target.open("wb") as out:
        schema, writer = pa.schema([]), None
        for block in iter(lambda: list(itertools.islice(source, _ROWS_A_GROUP)), []):
            records = [json.loads(line) for line in block]
            if writer is None:
                schema = _schema_of(records)
                writer = pq.ParquetWriter(out, schema, compression="zstd")
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
            done += len(records)
            events.progress(done=done, total=total, unit="rows", step="write")
        if writer is None:
            writer = pq.ParquetWriter(out, pa.schema([(name, _TYPES[name]) for name in _FIRST]))
        writer.close()


_FIRST = ("split", "row")


def _schema_of(records: list[dict[str, Any]]) -> pa.Schema:
    guessed = pa.Table.from_pylist(records).schema
    return pa.schema(
        [(name, _TYPES.get(name) or _numbers(guessed.field(name).type)) for name in guessed.names]
    )


def _numbers(kind: pa.DataType) -> pa.DataType:
    """Take for numbers what the first group has nothing but nulls of: later ones may have some."""
    if pa.types.is_list(kind):
        return pa.list_(_numbers(kind.value_type))
    return pa.float64() if pa.types.is_null(kind) else kind
