"""What a job will find in its inputs, as far as the headers and first lines of files tell.

The rules are those by which the workers open files (`workers/ml`: formats, data, infer/runtime);
what only opening tells stays unknown here, and nobody concludes anything from it.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Final, Literal, NamedTuple

from registry.models import Artifact, Blob, Inspection, Verdict, Version
from registry.services.blobs import inspection_of
from registry.storage import default_storage

Answers = Literal["classes", "embedding", "tensors"]
Reads = Literal["image", "words", "wordpieces", "tensors"]
_READ_BYTES: Final = 256 * 1024
_JSON_ROWS: Final = 100
OF_ARCHITECTURE: Final[Mapping[str, Reads]] = {"digits_cnn": "image", "text_classifier": "words"}
"""What rows become for architectures of this registry."""
_PROGRAM: Final = "program.safetensors"
_DESCRIBING: Final = frozenset({"json", "text"})


class _File(NamedTuple):
    blob: Blob
    inspection: Inspection | None


@dataclass(frozen=True)
class Shape:
    """A tensor of the weights, or a column of rows."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelHead:
    """A version of a model, seen from outside."""

    version: Version
    weights: Inspection | None
    weights_bytes: int
    """Of the file that is opened."""
    files_bytes: int
    """Of everything that a job reads."""
    beside_bytes: int
    """Of what describes the weights and goes with every version made from it."""

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.version.config
        return config

    @property
    def _facts(self) -> Mapping[str, Any]:
        return self.weights.facts if self.weights else {}

    @property
    def is_graph(self) -> bool | None:
        """Whether the weights are an ONNX graph, coded or not; None where nobody knows."""
        if self.weights is None:
            return None
        if self.weights.format == "myz":
            held = _table(self._facts.get("metadata")).get("holds")
            return None if held is None else held == "graph"
        return self.weights.format == "onnx"

    @property
    def is_program(self) -> bool:
        """Whether the weights are those of a user's exported program, with its graph as data."""
        return self.weights is not None and _is_program(self.weights)

    @property
    def is_encoder(self) -> bool:
        """Whether it is laid out as Transformers writes encoders."""
        if self.is_graph is not False or self.is_program:
            return False
        return isinstance(self.config.get("model_type"), str)

    @property
    def architecture(self) -> Mapping[str, Any]:
        """What config.json says of an architecture of ours; empty where it is none."""
        said = {} if self.is_program else _table(self.config.get("architecture"))
        return said if said.get("name") in OF_ARCHITECTURE else {}

    @property
    def reads(self) -> Reads | None:
        """Tell what rows become for this model; None where nobody knows."""
        if self.is_graph is None:
            return None
        if self.is_graph or self.is_program:
            return self._reads_of_graph
        if self.is_encoder:
            return "wordpieces"
        return OF_ARCHITECTURE.get(str(self.architecture.get("name")))

    @property
    def _reads_of_graph(self) -> Reads | None:
        kind = _table(self.config.get("preprocessing")).get("kind")
        names = {port["name"] for port in self.inputs}
        if kind in {"image", "words"}:
            return "image" if kind == "image" else "words"
        if kind == "wordpieces" or "input_ids" in names:
            return "wordpieces"
        return "tensors" if names else None

    @property
    def answers(self) -> Answers | None:
        reads = self.reads
        if reads in {"image", "words"}:
            return "classes"
        if reads == "wordpieces":
            return "embedding"
        if reads is None:
            return None
        return "classes" if len(self.labels) > 1 else "tensors"

    @property
    def labels(self) -> Sequence[Any]:
        labels = self.config.get("labels")
        return labels if isinstance(labels, list) else []

    @property
    def inputs(self) -> Sequence[Mapping[str, Any]]:
        """List what the graph itself takes."""
        ports = self._facts.get("inputs")
        return ports if isinstance(ports, list) else []

    @property
    def columns(self) -> dict[str, str]:
        """Give the columns that it was made with, by their role."""
        said = _table(_table(self.config.get("preprocessing")).get("columns"))
        return {role: name for role, name in said.items() if isinstance(name, str)}

    def columns_read(self, named: Mapping[str, str]) -> list[str]:
        """Name the columns that rows need; `named` says what a recipe calls texts and images."""
        reads = self.reads
        if reads == "image":
            return [named.get("image", "image")]
        if reads in {"words", "wordpieces"}:
            return [named.get("text", "text")]
        return [str(port["name"]) for port in self.inputs] if reads == "tensors" else []

    @property
    def tensors(self) -> Sequence[Shape] | None:
        """List the tensors of the weights; None where the header listed only some of them."""
        found = _table(self._facts.get("tensors"))
        if not found or found.get("truncated"):
            return None
        return [
            Shape(str(item["name"]), str(item["dtype"]), tuple(item["shape"]))
            for item in found.get("items", ())
        ]

    @property
    def dtypes(self) -> Mapping[str, int]:
        """Count the numbers of each type."""
        found = _table(_table(self._facts.get("tensors")).get("dtypes"))
        return {str(name): int(count) for name, count in found.items()}

    @property
    def is_packed(self) -> bool:
        """Whether linear layers hold whole numbers, which nothing can train or change."""
        changes = self.config.get("structure")
        return not self.is_graph and any(
            isinstance(change, Mapping) and change.get("change") == "packed"
            for change in (changes if isinstance(changes, list) else [])
        )

    @property
    def quantized_by(self) -> Sequence[str]:
        """Name the methods that have rounded a graph already, as its config.json tells."""
        steps = self.config.get("compression")
        methods = [
            str(step.get("method"))
            for step in (steps if isinstance(steps, list) else [])
            if isinstance(step, Mapping)
        ]
        rounding = ("quantize_", "train_quantized", "fixed_point")
        return [name for name in methods if name.startswith(rounding)] if self.is_graph else []


def head_of(version: Version, *, trainable: bool = False) -> ModelHead:
    """Look at the version of a model as a job would find it; compressions take what can train."""
    files = _files_of(version)
    opened = files.get(_opened(files, trainable=trainable) or "")
    return ModelHead(
        version=version,
        weights=opened.inspection if opened else None,
        weights_bytes=opened.blob.size_bytes if opened else 0,
        files_bytes=sum(file.blob.size_bytes for file in files.values()),
        beside_bytes=sum(
            file.blob.size_bytes
            for path, file in files.items()
            if path != "README.md" and file.inspection and file.inspection.format in _DESCRIBING
        ),
    )


def _opened(files: Mapping[str, _File], *, trainable: bool) -> str | None:
    """Choose the file whose weights a job opens."""
    program = files.get(_PROGRAM)
    is_program = program and program.inspection and _is_program(program.inspection)
    if is_program and (trainable or "model.onnx" not in files):
        return _PROGRAM
    for path in ("model.safetensors", "model.myz", "model.onnx"):
        if path in files:
            return path
    graphs = [path for path in sorted(files) if path.endswith(".onnx")]
    top = [path for path in graphs if "/" not in path]
    below = [path for path in graphs if path.startswith("onnx/") and path.count("/") == 1]
    found = top or below
    return found[0] if len(found) == 1 else None


def _files_of(version: Version) -> dict[str, _File]:
    """Map the paths of what a job may open; what can run code never reaches one."""
    rows = Artifact.objects.filter(revision_id=version.revision_id)
    made = version.derivatives.converted().order_by("pk")
    files = {
        row.path: _File(row.blob, inspection_of(row))
        for found in (made, rows)
        for row in found.select_related("blob").prefetch_related("blob__inspections")
    }
    return {
        path: file
        for path, file in files.items()
        if file.inspection is None or file.inspection.verdict != Verdict.QUARANTINED
    }


@dataclass(frozen=True)
class SplitHead:
    """A part of a dataset: a file of columns."""

    path: str
    found: _File

    @property
    def file(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def is_tensors(self) -> bool:
        return self.path.endswith(".safetensors")

    @property
    def _facts(self) -> Mapping[str, Any]:
        return self.found.inspection.facts if self.found.inspection else {}

    @cached_property
    def tensors(self) -> Mapping[str, Shape]:
        """Give the columns of a file of tensors."""
        if not self.is_tensors:
            return {}
        found = _table(self._facts.get("tensors"))
        return {
            str(item["name"]): Shape(str(item["name"]), str(item["dtype"]), tuple(item["shape"]))
            for item in found.get("items", ())
        }

    @cached_property
    def columns(self) -> Sequence[str] | None:
        """Name all columns; None where that takes more than a first look."""
        if self.is_tensors:
            found = _table(self._facts.get("tensors"))
            return None if not found or found.get("truncated") else list(self.tensors)
        if self.path.endswith(".parquet"):
            return None  # they stand at the end of the file, in a form of its own
        size = self.found.blob.size_bytes
        raw = default_storage().read(self.found.blob.sha256, start=0, end=min(size, _READ_BYTES))
        is_whole = size <= _READ_BYTES
        text = raw.decode("utf-8-sig", "replace")
        lines = text if is_whole else text[: text.rfind("\n") + 1]
        read = _csv_columns if self.path.endswith(".csv") else _json_columns
        return read(lines, is_whole=is_whole)

    @property
    def rows_count(self) -> int | None:
        """Count the rows of a file of tensors; of others nobody knows before they are read."""
        counts = {column.shape[0] for column in self.tensors.values() if column.shape}
        return counts.pop() if len(counts) == 1 else None


@dataclass(frozen=True, kw_only=True)
class DatasetHead:
    """A version of a dataset, seen from outside."""

    version: Version
    splits: Mapping[str, SplitHead]
    files_bytes: int
    labels: Sequence[Any]
    """The classes that dataset.json names."""


def splits_of(version: Version) -> DatasetHead:
    """Find the splits of a dataset: files named after them, such as train.csv."""
    files = _files_of(version)
    splits: dict[str, SplitHead] = {}
    inner = [path for path in sorted(files) if path.startswith("data/") and path.count("/") == 1]
    for path in [*(path for path in sorted(files) if "/" not in path), *inner]:
        name = PurePosixPath(path)
        if name.suffix in {".safetensors", ".parquet", ".csv", ".jsonl"}:
            splits.setdefault(name.stem, SplitHead(path, files[path]))
    size = sum(file.blob.size_bytes for file in files.values())
    return DatasetHead(
        version=version,
        splits=splits,
        files_bytes=size,
        labels=_labels_of(files.get("dataset.json")),
    )


def _labels_of(described: _File | None) -> Sequence[Any]:
    if described is None or described.blob.size_bytes > _READ_BYTES:
        return []
    try:
        said = json.loads(default_storage().read(described.blob.sha256))
    except (ValueError, RecursionError):
        return []
    labels = _table(said).get("labels")
    return labels if isinstance(labels, list) else []


def _csv_columns(text: str, *, is_whole: bool) -> Sequence[str] | None:
    if not text and not is_whole:
        return None
    try:
        header = next(csv.reader(io.StringIO(text, newline="")), [])
    except csv.Error:
        return None
    return [name.strip() for name in header] or None


def _json_columns(text: str, *, is_whole: bool) -> Sequence[str] | None:
    """Name the columns that the first hundred rows have, where so many are at hand."""
    names: dict[str, None] = {}
    lines = [line for line in text.split("\n") if line.strip()][:_JSON_ROWS]
    if len(lines) < _JSON_ROWS and not is_whole:
        return None
    try:
        rows = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return None
    for row in rows:
        names |= dict.fromkeys(row if isinstance(row, dict) else ())
    return list(names) or None


def _is_program(weights: Inspection) -> bool:
    return "program" in _table(weights.facts.get("metadata"))


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
