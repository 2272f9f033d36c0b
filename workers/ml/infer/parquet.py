"""Predictions as Parquet: a column for each field, written in groups of rows."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.ml.events import Events

_ROWS_A_GROUP = 16_384
# What a column holds where no row says anything of it.
_TYPES: dict[str, pa.DataType] = {
    "split": pa.string(),
    "row": pa.int64(),
    "label": pa.string(),
    "label_index": pa.int64(),
    "score": pa.float64(),
    "actual": pa.string(),
}
_FIRST = ("split", "row")


def write_parquet(
    lines: Path, target: Path, events: Events, total: int, *, is_vectors: bool = False
) -> None:
    """Write the JSON objects of `lines` as a Parquet file with every field that any of them has.

    Memory holds one group of rows; all are read once before, for the fields and their types.
    `is_vectors` says that there are embeddings, which need no more than half of the bits.
    """
    schema = _schema_of(lines)
    if is_vectors and "embedding" in schema.names:
        vectors = pa.field("embedding", pa.list_(pa.float32()))
        schema = schema.set(schema.get_field_index("embedding"), vectors)
    done = 0
    with target.open("wb") as out, pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for records in _groups(lines):
            writer.write_table(pa.Table.from_pylist(records, schema=schema))
            done += len(records)
            events.progress(done=done, total=total, unit="rows", step="write")


def _groups(lines: Path) -> Iterator[list[dict[str, Any]]]:
    with lines.open("rb") as source:
        while block := list(itertools.islice(source, _ROWS_A_GROUP)):
            yield [json.loads(line) for line in block]


def _schema_of(lines: Path) -> pa.Schema:
    """Find the fields of all objects, in the order in which they come, and what each holds."""
    types: dict[str, pa.DataType] = {name: pa.null() for name in _FIRST}
    for records in _groups(lines):
        for name in dict.fromkeys(itertools.chain.from_iterable(records)):
            found = _type_of([record.get(name) for record in records])
            types[name] = _wider(types.get(name, pa.null()), found)
    return pa.schema([(name, _settled(name, found)) for name, found in types.items()])


def _type_of(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except OverflowError:
        # Whole numbers beyond 63 bits come from one type alone.
        kind, value = pa.uint64(), next(value for value in values if value is not None)
        while isinstance(value, list):
            kind, value = pa.list_(kind), value[0] if value else None
        return kind


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Give the type that holds what either does."""
    if pa.types.is_null(one) or one.equals(other):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_wider(one.value_type, other.value_type))
    if {one, other} == {pa.int64(), pa.uint64()}:
        return pa.uint64()
    fields = [pa.schema([("", one)]), pa.schema([("", other)])]
    return pa.unify_schemas(fields, promote_options="permissive").field(0).type


def _settled(name: str, kind: pa.DataType) -> pa.DataType:
    """Take for numbers what holds nothing but nulls and is known by no name."""
    if pa.types.is_list(kind):
        return pa.list_(_settled("", kind.value_type))
    return _TYPES.get(name, pa.float64()) if pa.types.is_null(kind) else kind
