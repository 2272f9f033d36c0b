"""Words as numbers: the vocabulary that a text classifier is trained with and shipped with."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from registry.errors import Invalid

PADDING = 0
UNKNOWN = 1
_RESERVED = ("<padding>", "<unknown>")
_WORD = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_", re.UNICODE)
_CHARACTERS_PER_WORD = 40
FILE_NAME = "vocabulary.json"


class Vocabulary:
    """A fixed list of words; a word's number is its place in it."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(words)
        self._number = {word: number for number, word in enumerate(self.words)}
        if self.words[: len(_RESERVED)] != _RESERVED or len(self._number) != len(self.words):
            raise Invalid(
                "{file} must be a list of different words that starts with {reserved}.",
                code="bad_vocabulary",
                file=FILE_NAME,
                reserved=", ".join(_RESERVED),
            )

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, text: str, max_length: int) -> list[int]:
        """Turn the first words of a text into numbers; never none: every row needs a state."""
        words = split_words(text, max_length)
        return [self._number.get(word, UNKNOWN) for word in words] or [UNKNOWN]

    def save(self, folder: Path) -> None:
        text = json.dumps(self.words, ensure_ascii=False, indent=0)
        (folder / FILE_NAME).write_text(text, encoding="utf-8")


def split_words(text: str, max_length: int) -> list[str]:
    """Split into lower-case words, single digits and single marks.

    Digits stand alone and words are cut, so that numbers and random strings do not eat the
    vocabulary.
    """
    bounded = unicodedata.normalize("NFKC", text[: max_length * _CHARACTERS_PER_WORD]).lower()
    words = []
    for match in _WORD.finditer(bounded):
        words.append(match.group()[:_CHARACTERS_PER_WORD])
        if len(words) == max_length:
            break
    return words


def build_vocabulary(texts: Iterable[str], *, size: int, max_length: int) -> Vocabulary:
    """Keep the most frequent words; ties are broken by spelling, so the order is certain."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text, max_length))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary([*_RESERVED, *ranked[: size - len(_RESERVED)]])


def load_vocabulary(folder: Path) -> Vocabulary:
    try:
        words = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Invalid(
            "The model needs a readable {file}: {problem}",
            code="bad_vocabulary",
            file=FILE_NAME,
            problem=error,
        ) from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise Invalid("{file} must be a list of words.", code="bad_vocabulary", file=FILE_NAME)
    return Vocabulary(words)
