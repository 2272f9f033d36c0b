"""A split in memory, as the training loop takes it: any rows, by number, as a batch."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.ml.vocabulary import PADDING, Vocabulary

_POOLED_BATCHES = 50


class Examples(Protocol):
    """Rows with their classes; zeros where there are none."""

    labels: NDArray[np.int64]
    lengths: NDArray[np.int64] | None

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Give the inputs of a module for these rows."""
        ...

    def targets(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Give what the goal compares the module's answers with."""
        ...


class ImageExamples:
    """Images of one size."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.lengths: NDArray[np.int64] | None
        self._images = torch.from_numpy(np.ascontiguousarray(images))
        self.labels = labels
        self.lengths = None

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return (self._images[torch.from_numpy(rows)],)

    def targets(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(self.labels[rows]),)


class TensorExamples:
    """Rows of plain tensors, one for each input of a module."""

    def __init__(self, tensors: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> None:
        self.lengths: NDArray[np.int64] | None = None
        self._tensors = [torch.from_numpy(np.ascontiguousarray(tensor)) for tensor in tensors]
        self.labels = labels

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        places = torch.from_numpy(rows)
        return tuple(tensor[places] for tensor in self._tensors)

    def targets(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(self.labels[rows]),)


class TextExamples:
    """Texts as numbered words, one after the other in a flat array."""

    def __init__(
        self,
        texts: Sequence[str],
        labels: NDArray[np.int64],
        vocabulary: Vocabulary,
        max_length: int,
    ) -> None:
        encoded = [np.array(vocabulary.encode(text, max_length), np.int32) for text in texts]
        self._words = np.concatenate(encoded)
        self.lengths: NDArray[np.int64] | None = np.array([len(words) for words in encoded])
        self._ends = np.cumsum(self.lengths)
        self.labels = labels

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        return (pad([self._words[a:b] for a, b in zip(starts, self._ends[rows], strict=True)]),)

    def targets(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(self.labels[rows]),)


class WordPieceExamples:
    """Texts as numbered word pieces, for a Transformers encoder; they have no classes.

    `labels` only counts the rows. Batches are the encoder's inputs, padded to the longest text.
    """

    def __init__(
        self,
        pieces: Sequence[NDArray[np.int64]],
        types: Sequence[NDArray[np.int64]],
        input_names: Sequence[str],
        pad_id: int,
    ) -> None:
        self._pieces, self._types = pieces, types
        self._input_names = list(input_names)
        self._pad_id = pad_id
        self.lengths: NDArray[np.int64] | None = np.array([len(text) for text in pieces])
        self.labels = np.zeros(len(pieces), dtype=np.int64)

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        longest = max(len(self._pieces[row]) for row in rows)
        shape = (len(rows), longest)
        named = {
            "input_ids": np.full(shape, self._pad_id, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
            "token_type_ids": np.zeros(shape, dtype=np.int64),
        }
        for at, row in enumerate(rows):
            length = len(self._pieces[row])
            named["input_ids"][at, :length] = self._pieces[row]
            named["attention_mask"][at, :length] = 1
            named["token_type_ids"][at, :length] = self._types[row]
        return tuple(torch.from_numpy(named[name]) for name in self._input_names)

    def targets(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        del rows
        return ()


class TaughtExamples:
    """Other examples, with what a teacher answers to each row as one more target."""

    def __init__(self, examples: Examples, answers: NDArray[np.float32]) -> None:
        self._examples = examples
        self._answers = torch.from_numpy(answers)
        self.labels, self.lengths = examples.labels, examples.lengths

    def batch(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return self._examples.batch(rows)

    def targets(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        return (*self._examples.targets(rows), self._answers[torch.from_numpy(rows)])


def draw_batches(examples: Examples, size: int, seed: tuple[int, int]) -> list[NDArray[np.int64]]:
    """Divide the rows into batches at random; the same seed gives the same batches.

    Texts of like length go together, as far as fifty batches drawn at random have them: padding
    costs as much as words.
    """
    drawn = np.random.default_rng(seed)
    order = drawn.permutation(len(examples.labels))
    if examples.lengths is None:
        return _cut(order, size)
    pools = _cut(order, size * _POOLED_BATCHES)
    alike = [pool[np.argsort(examples.lengths[pool], kind="stable")] for pool in pools]
    batches = [batch for pool in alike for batch in _cut(pool, size)]
    return [batches[at] for at in drawn.permutation(len(batches))]


def _cut(order: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [order[at : at + size] for at in range(0, len(order), size)]


def pad(texts: Sequence[NDArray[np.int32]]) -> Tensor:
    """Fill up to the longest text of the batch."""
    tokens_BL = np.full((len(texts), max(map(len, texts))), PADDING, dtype=np.int64)
    for row, words in zip(tokens_BL, texts, strict=True):
        row[: len(words)] = words
    return torch.from_numpy(tokens_BL)
