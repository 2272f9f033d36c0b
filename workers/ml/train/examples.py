"""A split in memory, as the training loop takes it: any rows, by number, as a batch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.ml.vocabulary import PADDING, Vocabulary


class Examples(Protocol):
    """Rows with their classes."""

    labels: NDArray[np.int64]

    def batch(self, rows: NDArray[np.int64]) -> Tensor: ...


class ImageExamples:
    """Images of one size."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(images))
        self.labels = labels

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
        self._ends = np.cumsum([len(words) for words in encoded])
        self.labels = labels

    def batch(self, rows: NDArray[np.int64]) -> Tensor:
        starts = np.where(rows > 0, self._ends[rows - 1], 0)
        return pad([self._words[a:b] for a, b in zip(starts, self._ends[rows], strict=True)])


def pad(texts: Sequence[NDArray[np.int32]]) -> Tensor:
    """Fill up to the longest text of the batch."""
    tokens_BL = np.full((len(texts), max(map(len, texts))), PADDING, dtype=np.int64)
    for row, words in zip(tokens_BL, texts, strict=True):
        row[: len(words)] = words
    return torch.from_numpy(tokens_BL)
