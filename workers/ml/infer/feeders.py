"""From the rows of a dataset to the arrays that a model takes: one feeder per preprocessing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from workers.ml.data import Rows, Split, check_images, check_texts, need_numbers
from workers.ml.texts import clean_text
from workers.ml.train.examples import pad
from workers.ml.vocabulary import Vocabulary

Feeds = Mapping[str, NDArray[Any]]


class Feeder(Protocol):
    """Turns rows into the inputs of a model."""

    @property
    def columns(self) -> list[str]:
        """The columns that it reads."""
        ...

    def feeds(self, rows: Rows, split: Split) -> Feeds: ...


@dataclass(frozen=True)
class ImageFeeder:
    column: str
    input_name: str = "image"

    @property
    def columns(self) -> list[str]:
        return [self.column]

    def feeds(self, rows: Rows, split: Split) -> Feeds:
        return {self.input_name: check_images(rows[self.column], split, self.column)}


@dataclass(frozen=True)
class WordsFeeder:
    column: str
    vocabulary: Vocabulary
    max_length: int
    input_name: str = "tokens"

    @property
    def columns(self) -> list[str]:
        return [self.column]

    def feeds(self, rows: Rows, split: Split) -> Feeds:
        texts = [clean_text(text) for text in check_texts(rows[self.column], split)]
        words = [np.array(self.vocabulary.encode(t, self.max_length), np.int32) for t in texts]
        return {self.input_name: pad(words).numpy()}


@dataclass(frozen=True)
class WordPieceFeeder:
    column: str
    tokenizer: Tokenizer
    input_names: Sequence[str]

    @property
    def columns(self) -> list[str]:
        return [self.column]

    def feeds(self, rows: Rows, split: Split) -> Feeds:
        texts = [clean_text(text) for text in check_texts(rows[self.column], split)]
        return self.encode(texts)

    def encode(self, texts: Sequence[str]) -> Feeds:
        encoded = self.tokenizer.encode_batch(list(texts))
        known = {
            "input_ids": np.array([text.ids for text in encoded], dtype=np.int64),
            "attention_mask": np.array([text.attention_mask for text in encoded], dtype=np.int64),
            "token_type_ids": np.array([text.type_ids for text in encoded], dtype=np.int64),
        }
        return {name: known[name] for name in self.input_names}


@dataclass(frozen=True)
class TensorFeeder:
    """Columns go in as they are, each to the input of its name."""

    dtypes: Mapping[str, np.dtype[Any]]

    @property
    def columns(self) -> list[str]:
        return list(self.dtypes)

    def feeds(self, rows: Rows, split: Split) -> Feeds:
        fed: dict[str, NDArray[Any]] = {}
        for name, dtype in self.dtypes.items():
            values = need_numbers(rows[name], split, name, dtype)
            fed[name] = values.astype(dtype, copy=False)
        return fed
