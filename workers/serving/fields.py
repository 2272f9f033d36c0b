"""Named fields on their way into a model, and its numbers on their way back as words.

It runs in the process of the model, beside numbers that came in as they are; it loads no torch.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid
from workers.ml.statistics import probabilities
from workers.ml.texts import clean_text, load_tokenizer, longest_text, pool
from workers.ml.vocabulary import PADDING, Vocabulary, load_vocabulary

Array = NDArray[Any]
Rows = Sequence[Mapping[str, Any]]
_WORD_PIECES = {"input_ids", "attention_mask", "token_type_ids"}
# Texts that share a run are padded to the longest of them, by a quarter at most.
_PADDING_SHARE = 1.25
_SHORT = 16


@dataclass(frozen=True)
class Input:
    """What the model takes under a name; a free axis is -1."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass
class Fields:
    """How rows of fields are fed to a model, as its config.json tells."""

    kind: str
    inputs: list[Input]
    outputs: list[str]
    labels: list[str]
    column: str = ""
    max_length: int = 0
    vocabulary: Vocabulary | None = None
    tokenizer: Any = None
    names: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        columns = [self.column] if self.column else [one.name for one in self.inputs]
        return {"kind": self.kind, "columns": columns, "labels": self.labels}

    def feeds(self, rows: Rows) -> list[Array]:
        """Turn rows into the model's inputs, in its order."""
        if self.kind == "image":
            return [np.stack([_image(row, self.column, at) for at, row in enumerate(rows)])]
        if self.kind == "words":
            return [self._words(rows)]
        if self.kind == "wordpieces":
            return self.pieces([_text(row, self.column, at) for at, row in enumerate(rows)])
        return [_stacked(rows, one) for one in self.inputs]

    def answers(self, outputs: Sequence[Array], feeds: Sequence[Array]) -> list[Any]:
        """Say what the model answered, one JSON value a row."""
        first = outputs[0]
        if self.kind == "wordpieces":
            return [{"embedding": vector} for vector in self.vectors(first, feeds)]
        if len(self.labels) > 1 and first.shape[1:] == (len(self.labels),):
            return list(self._classes(first))
        count = len(first) if first.ndim else 1
        if any(output.ndim == 0 or len(output) != count for output in outputs):
            return [_named(self.outputs, [_plain(output) for output in outputs])]
        return [_named(self.outputs, [_plain(one[at]) for one in outputs]) for at in range(count)]

    def vectors(self, output: Array, feeds: Sequence[Array]) -> NDArray[np.float32]:
        """Make one vector a text; an encoder that gives one for each token is averaged."""
        if output.ndim == 3:
            output = pool(output, feeds[self.names.index("attention_mask")])
        return np.ascontiguousarray(output, np.float32)

    def pieces(self, texts: Sequence[str]) -> list[Array]:
        return self.padded([one.ids for one in self._encode(texts)])

    def _encode(self, texts: Sequence[str]) -> Any:
        if self.tokenizer is None:
            raise Invalid("This model takes no texts.", code="unsupported_input")
        return self.tokenizer.encode_batch([clean_text(text) for text in texts])

    def tokens(self, inputs: Sequence[Any]) -> list[list[int]]:
        """Give the token ids of texts, or check those that came as numbers."""
        if all(isinstance(one, str) for one in inputs):
            return [
                [number for number, kept in zip(one.ids, one.attention_mask, strict=True) if kept]
                for one in self._encode(inputs)
            ]
        size = 0 if self.tokenizer is None else self.tokenizer.get_vocab_size()
        for one in inputs:
            ids = one if isinstance(one, list) else [-1]
            if not ids or not all(type(number) is int and 0 <= number < size for number in ids):
                raise Invalid(
                    "An input is a text, or a list of token numbers below {size}.",
                    code="bad_input",
                    size=size,
                )
        return [one[: self.max_length] for one in inputs]

    def padded(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Fill token ids up to the longest row, as the model's inputs."""
        longest = max(map(len, rows), default=0)
        ids = np.full((len(rows), longest), self._pad_id, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        dtypes = {one.name: one.dtype for one in self.inputs}
        return [known[name].astype(dtypes[name], copy=False) for name in self.names]

    @property
    def _pad_id(self) -> int:
        padding = self.tokenizer.padding if self.tokenizer else None
        return int(padding["pad_id"]) if padding else 0

    def _words(self, rows: Rows) -> Array:
        assert self.vocabulary is not None
        texts = [clean_text(_text(row, self.column, at)) for at, row in enumerate(rows)]
        words = [self.vocabulary.encode(text, self.max_length) for text in texts]
        tokens_BL = np.full((len(words), max(map(len, words))), PADDING, np.int64)
        for row_L, numbers in zip(tokens_BL, words, strict=True):
            row_L[: len(numbers)] = numbers
        return tokens_BL.astype(self.inputs[0].dtype, copy=False)

    def _classes(self, output_BK: Array) -> Iterator[dict[str, Any]]:
        for scores_K in probabilities(output_BK):
            best = int(scores_K.argmax())
            yield {
                "label": self.labels[best],
                "label_index": best,
                "score": float(scores_K[best]),
                "scores": {
                    label: float(score) for label, score in zip(self.labels, scores_K, strict=True)
                },
            }


def read_fields(
    path: Path, config: Mapping[str, Any], inputs: list[Input], outputs: list[str]
) -> Fields:
    """Find out from config.json how a version is fed; what it does not say is fed as tensors."""
    said = config.get("preprocessing")
    preprocessing = said if isinstance(said, dict) else {}
    listed = config.get("labels")
    labels = [str(label) for label in listed] if isinstance(listed, list) else []
    columns = preprocessing.get("columns")
    columns = columns if isinstance(columns, dict) else {}
    kind = preprocessing.get("kind")
    names = [one.name for one in inputs]
    fields = Fields("tensors", inputs, outputs, labels, names=names)
    if kind == "image" and len(inputs) == 1:
        fields.kind, fields.column = "image", str(columns.get("image", "image"))
    elif kind == "words" and len(inputs) == 1:
        fields.kind, fields.column = "words", str(columns.get("text", "text"))
        length = preprocessing.get("max_length")
        fields.max_length = length if isinstance(length, int) and 1 <= length <= 4096 else 256
        fields.vocabulary = load_vocabulary(path)
    elif {"input_ids", "attention_mask"} <= set(names) <= _WORD_PIECES:
        pad = config.get("pad_token_id")
        fields.max_length = longest_text(path, dict(config))
        if (path / "tokenizer.json").is_file():
            fields.kind, fields.column = "wordpieces", str(columns.get("text", "text"))
            fields.tokenizer = load_tokenizer(
                path, max_length=fields.max_length, pad_id=pad if isinstance(pad, int) else 0
            )
    return fields


def group_by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield places of rows of like length, so that little is computed for padding."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    group: list[int] = []
    limit = 0.0
    for at in order:
        length = len(rows[at])
        if group and (length > limit or len(group) >= size):
            yield group
            group = []
        if not group:
            limit = max(length * _PADDING_SHARE, length + 2 if length < _SHORT else 0)
        group.append(at)
    if group:
        yield group


def _image(row: Mapping[str, Any], column: str, at: int) -> NDArray[np.uint8]:
    value = _value(row, column, at)
    try:
        if isinstance(value, str):
            data = base64.b64decode(value, validate=True)
            return np.frombuffer(data, np.uint8).reshape(28, 28)
        numbers = np.array(value)
        if numbers.dtype.kind in "iu" and numbers.min() >= 0 and numbers.max() <= 255:
            return numbers.astype(np.uint8).reshape(28, 28)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        pass  # said below, as for a value that is no image at all
    raise Invalid(
        "Field {column!r} of row {row} must be 28 x 28 numbers from 0 to 255, or the 784 bytes in "
        "base64.",
        code="bad_input",
        column=column,
        row=at,
    )


def _text(row: Mapping[str, Any], column: str, at: int) -> str:
    value = _value(row, column, at)
    if isinstance(value, str):
        return value
    raise Invalid(
        "Field {column!r} of row {row} must be a text.", code="bad_input", column=column, row=at
    )


def _value(row: Mapping[str, Any], column: str, at: int) -> Any:
    if not isinstance(row, dict) or column not in row:
        raise Invalid(
            "Row {row} lacks the field {column!r}.", code="bad_input", column=column, row=at
        )
    return row[column]


def _stacked(rows: Rows, one: Input) -> Array:
    values = [_value(row, one.name, at) for at, row in enumerate(rows)]
    inner = one.shape[1:]
    try:
        if one.dtype.kind == "O":
            stacked = np.array(values, dtype=object)
        else:
            numbers = np.array(values)
            whole = numbers.dtype.kind in "biu"
            fits = whole or (numbers.dtype.kind == "f" and one.dtype.kind == "f")
            stacked = numbers.astype(one.dtype) if fits else np.empty(0, one.dtype)
    except (ValueError, TypeError, OverflowError):
        stacked = np.empty(0, one.dtype)
    if len(one.shape) == 1 and stacked.ndim == 2 and stacked.shape[1] == 1:
        stacked = stacked[:, 0]
    fits = stacked.ndim == len(one.shape) and all(
        wanted in {-1, found} for wanted, found in zip(inner, stacked.shape[1:], strict=True)
    )
    if fits and len(stacked) == len(values):
        return np.ascontiguousarray(stacked)
    raise Invalid(
        "Field {column!r} of each row must be {dtype} of the shape {shape}.",
        code="bad_input",
        column=one.name,
        dtype="text" if one.dtype.kind == "O" else one.dtype,
        shape=list(inner),
    )


def _named(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
