"""One loaded version: rows in, answers out, whatever its format and preprocessing."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid
from workers.ml.architectures import KINDS
from workers.ml.architectures.sentence_encoder import load_sentence_encoder
from workers.ml.data import Rows, Split
from workers.ml.formats import ModelFolder, load_module, load_program
from workers.ml.infer.engines import Engine, OnnxEngine, ProgramEngine, TorchEngine
from workers.ml.infer.feeders import (
    Feeder,
    Feeds,
    ImageFeeder,
    TensorFeeder,
    WordPieceFeeder,
    WordsFeeder,
)
from workers.ml.texts import load_tokenizer, longest_text, pool
from workers.ml.vocabulary import load_vocabulary

Answer = Literal["classes", "embedding", "tensors"]
# What an output says of rows: a tensor, or a list of whatever else a graph may give.
Values = NDArray[Any] | list[Any]
EMBEDDING = "sentence_embedding"
DEFAULT_COLUMNS = {"image": "image", "text": "text", "label": "label"}


@dataclass(frozen=True)
class Runtime:
    """A model ready to run."""

    folder: ModelFolder
    engine: Engine
    feeder: Feeder
    answers: Answer

    @property
    def labels(self) -> list[str]:
        return self.folder.labels

    def run(self, rows: Rows, split: Split) -> NDArray[Any]:
        """Compute class scores, unit vectors, or the first output as it is."""
        return self.compute(self.feeder.feeds(rows, split))

    def run_block(self, rows: Rows, split: Split, batch_size: int) -> NDArray[Any]:
        """Run many rows in batches; texts of like length together, as padding costs like words."""
        order, batches = self._batches(rows, batch_size)
        return _in_order([self.run(batch, split) for batch in batches], order)

    def answer_block(
        self, rows: Rows, split: Split, batch_size: int, *, names: Sequence[str] | None = None
    ) -> dict[str, Values]:
        """Run many rows in batches, as `run_block`, and keep every output under its name.

        The first is what `compute` makes of it. What says nothing of single rows is left out, and
        what is there beside an embedding, which is of tokens. Given `names`, those outputs are
        kept: one that has no value for each row of a batch is None in all of them.
        """
        order, batches = self._batches(rows, batch_size)
        found = [self._answers(self.feeder.feeds(batch, split)) for batch in batches]
        if names is None:
            names = [name for name in found[0] if all(one[name] is not None for one in found)]
        return {
            name: _restored([_values_or_none(one, name) for one in found], order) for name in names
        }

    def _batches(self, rows: Rows, batch_size: int) -> tuple[NDArray[np.int64], Iterator[Rows]]:
        """Cut rows into batches of like length; give the order in which they are taken, too."""
        lengths = [
            [len(value or "") for value in rows[column]]
            for column in self.feeder.columns
            if isinstance(rows[column], list)
        ]
        count = len(next(iter(rows.values())))
        order = np.argsort(lengths[0], kind="stable") if lengths else np.arange(count)
        places = (order[low : low + batch_size] for low in range(0, count, batch_size))
        return order, (_take(rows, some) for some in places)

    def compute(self, feeds: Feeds) -> NDArray[Any]:
        return self._first(next(iter(self.engine.run(feeds).values())), feeds)

    def _answers(self, feeds: Feeds) -> dict[str, Values | None]:
        """Give what may say something of single rows; None where it does not for these."""
        outputs = self.engine.run(feeds)
        first = next(iter(outputs))
        outputs[first] = self._first(outputs[first], feeds)
        if self.answers == "embedding":
            return {first: outputs[first]}
        count = len(next(iter(feeds.values())))
        shape = _shape_of(outputs[first])
        if shape[:1] != (count,):
            raise Invalid(
                "The output {name!r} has the shape {shape} for {rows} rows; predictions take "
                "one value for each row.",
                code="bad_config",
                name=first,
                shape=list(shape),
                rows=count,
            )
        return {
            name: outputs[name] if _shape_of(outputs[name])[:1] == (count,) else None
            for name in self.engine.row_outputs
        }

    def _first(self, output: NDArray[Any], feeds: Feeds) -> NDArray[Any]:
        if self.answers == "embedding" and output.ndim == 3:
            return pool(output, feeds["attention_mask"])
        if self.answers == "classes" and output.shape[1:] != (len(self.labels),):
            raise Invalid(
                "The model answers {shape} numbers a row for {labels} labels.",
                code="bad_config",
                shape=list(output.shape[1:]),
                labels=len(self.labels),
            )
        return output


def _values_or_none(answers: dict[str, Values | None], name: str) -> Values:
    """Give what an output says of a batch, or None for each row, as many as the first one has."""
    values, first = answers.get(name), next(iter(answers.values()))
    assert first is not None
    return values if values is not None else [None] * len(first)


def _shape_of(values: Values) -> tuple[int, ...]:
    return values.shape if isinstance(values, np.ndarray) else (len(values),)


def _restored(parts: Sequence[Values], order: NDArray[np.int64]) -> Values:
    """Put the values of batches back into the order of the rows."""
    tensors = [part for part in parts if isinstance(part, np.ndarray)]
    if len(tensors) == len(parts) and len({part.shape[1:] for part in tensors}) == 1:
        return _in_order(tensors, order)
    # Of another size in each batch, or no tensor at all, such as a map of classes.
    values: list[Any] = [None] * len(order)
    for place, value in zip(order, itertools.chain.from_iterable(parts), strict=True):
        values[place] = value
    return values


def _in_order(parts: Sequence[NDArray[Any]], order: NDArray[np.int64]) -> NDArray[Any]:
    joined = np.concatenate(parts)
    restored = np.empty_like(joined)
    restored[order] = joined
    return restored


def load_runtime(
    folder: ModelFolder, *, device: str, threads: int, columns: dict[str, str] | None = None
) -> Runtime:
    """Load a version; `columns` says which columns of the dataset to read."""
    named = {**DEFAULT_COLUMNS, **(columns or {})}
    if folder.is_onnx:
        return _fed(folder, named, OnnxEngine(folder.weights, device=device, threads=threads))
    if folder.is_program:
        return _fed(folder, named, ProgramEngine(load_program(folder), "logits", device))
    if folder.is_transformer:
        encoder = load_sentence_encoder(folder.path)
        engine: Engine = TorchEngine(encoder, encoder.input_names, EMBEDDING, device)
        feeder: Feeder = _word_pieces(folder, named["text"], encoder.input_names)
        return Runtime(folder, engine, feeder, "embedding")
    module, parameters = load_module(folder)
    kind = KINDS[parameters.name]
    engine = TorchEngine(module, [kind.input_name], "logits", device)
    return Runtime(folder, engine, _feeder(folder, kind.preprocessing, named), "classes")


def _fed(folder: ModelFolder, named: dict[str, str], engine: OnnxEngine | ProgramEngine) -> Runtime:
    """Feed what says itself what it takes, as config.json asks, or else column by column."""
    kind = folder.preprocessing.get("kind")
    if kind in {"image", "words"}:
        feeder = _feeder(folder, kind, named)
        return Runtime(folder, engine, replace(feeder, input_name=_only(kind, engine)), "classes")
    if kind == "wordpieces" or "input_ids" in engine.input_names:
        return Runtime(
            folder, engine, _word_pieces(folder, named["text"], engine.input_names), "embedding"
        )
    dtypes = {name: dtype for name, (dtype, _) in engine.inputs().items()}
    answers: Answer = "classes" if len(folder.labels) > 1 else "tensors"
    return Runtime(folder, engine, TensorFeeder(dtypes), answers)


def _only(kind: str, engine: OnnxEngine | ProgramEngine) -> str:
    """Name the one input that images or words go to, whatever its author called it."""
    inputs = engine.inputs()
    if len(inputs) != 1:
        raise Invalid(
            "The preprocessing {preprocessing} feeds one input, and this model takes "
            "{input_names}.",
            code="unsupported_input",
            preprocessing=kind,
            input_names=", ".join(inputs),
        )
    ((name, (dtype, axes)),) = inputs.items()
    if kind == "image" and (dtype != np.uint8 or len(axes) != 3):
        raise Invalid(
            "Images are fed as uint8 [rows, 28, 28], and the input {name!r} is {dtype} {axes}: "
            "let the model itself scale them, or leave the preprocessing out and feed columns.",
            code="unsupported_input",
            name=name,
            dtype=dtype.name,
            axes=axes,
        )
    return name


def _feeder(folder: ModelFolder, kind: str, named: dict[str, str]) -> ImageFeeder | WordsFeeder:
    if kind == "image":
        return ImageFeeder(named["image"])
    max_length = folder.preprocessing.get("max_length")
    if not isinstance(max_length, int) or not 1 <= max_length <= 4096:
        raise Invalid("preprocessing.max_length must be 1 to 4096.", code="bad_config")
    return WordsFeeder(named["text"], load_vocabulary(folder.path), max_length)


def _word_pieces(folder: ModelFolder, column: str, input_names: Sequence[str]) -> Feeder:
    known = {"input_ids", "attention_mask", "token_type_ids"}
    if not {"input_ids", "attention_mask"} <= set(input_names) <= known:
        raise Invalid(
            "A text encoder takes {known}; this one takes {input_names}.",
            code="unsupported_input",
            known=", ".join(sorted(known)),
            input_names=", ".join(input_names),
        )
    pad_id = folder.config.get("pad_token_id")
    tokenizer = load_tokenizer(
        folder.path,
        max_length=longest_text(folder.path, folder.config),
        pad_id=pad_id if isinstance(pad_id, int) else 0,
    )
    return WordPieceFeeder(column, tokenizer, list(input_names))


def _take(rows: Rows, places: NDArray[np.int64]) -> Rows:
    return {
        name: values[places] if isinstance(values, np.ndarray) else [values[at] for at in places]
        for name, values in rows.items()
    }
