"""A split in memory, as the training loop takes it: any rows, by number, as a batch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.ml.vocabulary import PADDING, Vocabulary

_POOLED_BATCHES = 50


class Examples(Protocol):
    """Rows with their classes."""

    labels: NDArray[np.int64]
    lengths: NDArray[np.int64] | None

    def batch(self, rows: NDArray[np.int64]) -> Tensor: ...


class ImageExamples:
    """Images of one size."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.lengths: NDArray[np.int64] | None
        self._images = torch.from_numpy(np.ascontiguousarray(images))
        self.labels = labels
        self.lengths = None

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        return self._images[torch.from_numpy(rows)]


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

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        return pad([self._words[a:b] for a, b in zip(starts, self._ends[rows], strict=True)])


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
