"""Which words say the same, in English and in Chinese; how Chinese is cut into words.

Texts are indexed and queries are read by the same two rules, so that 句子向量 finds a card that
says "sentence embeddings", and the other way round. Nothing here knows of a database.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

import rjieba

_CONCEPTS: Final = Path(__file__).with_name("concepts.txt")
# Words that every second card has: a query goes on without them when it has others.
# fmt: off
_COMMON: Final = frozenset([
    "a", "an", "and", "are", "as", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or",
    "our", "that", "the", "this", "to", "with", "which", "who", "i", "me", "my", "we", "model",
    "models", "want", "need", "needs", "find", "looking", "something", "myself", "ours",
    "ourselves", "you", "your", "yours", "yourself", "yourselves", "he", "him", "his", "himself",
    "she", "her", "hers", "herself", "its", "itself", "they", "them", "their", "theirs",
    "themselves", "what", "whom", "these", "those", "am", "was", "were", "be", "been", "being",
    "have", "has", "had", "having", "do", "does", "did", "doing", "but", "if", "because", "until",
    "while", "about", "against", "between", "into", "through", "during", "before", "after", "above",
    "below", "up", "down", "out", "off", "over", "under", "again", "further", "then", "once",
    "here", "there", "when", "where", "why", "how", "all", "any", "both", "each", "few", "more",
    "most", "other", "some", "such", "no", "nor", "not", "only", "own", "same", "so", "than", "too",
    "very", "can", "will", "just", "should", "now", "many", "much", "could", "would", "might",
    "may", "like", "help", "get", "whether",
    "的", "了", "和", "与", "或", "是", "在", "用", "把", "我", "我们", "想", "想要", "需要",
    "一个", "一种", "可以", "能", "找", "模型", "适合", "用于", "用来", "进行",
])
# fmt: on
# A token that no text holds by itself, so that a concept is found by one whole word.
CONCEPT_PREFIX: Final = "concept"
_CHINESE: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+")
_WORDS: Final = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+|[^\\W_\u3400-\u4dbf\u4e00-\u9fff]+")
# Each begins where a word begins, and gives nothing back: else a long word takes quadratic time.
_BESIDE_CHINESE: Final = re.compile(
    "(?<=[\u3400-\u4dbf\u4e00-\u9fff])[^\\W_\u3400-\u4dbf\u4e00-\u9fff]++"
    "|(?<![^\\W_\u3400-\u4dbf\u4e00-\u9fff])[^\\W_\u3400-\u4dbf\u4e00-\u9fff]++"
    "(?=[\u3400-\u4dbf\u4e00-\u9fff])"
)
_PHRASE: Final = 4
_CHINESE_PHRASE: Final = 8
_SHORTEST: Final = 4
_LONGEST: Final = 32
# Longer than this is no word of a name, a summary or a tag, which each have a limit.
LONGEST_KNOWN: Final = 1000
_MOST_BYTES: Final = 2000
# PostgreSQL takes what such a character joins for one path, address or number.
_JOINED: Final = re.compile(r"[^\w\s,;!?()\"'-]\S")
# `apache-2.0` it takes apart as it should.
_PLAINLY_JOINED: Final = re.compile(r"(?:[a-z]+-)+[0-9]+(?:\.[0-9]+)+")
_INDEXED_CHARACTERS: Final = 100_000


def is_chinese(text: str) -> bool:
    return _CHINESE.search(text) is not None


def chinese_in(text: str) -> list[str]:
    """Give the runs of Chinese in a text; what else is in it parts them."""
    return _CHINESE.findall(text)


def terms_of(text: str) -> str:
    """Give what a text is indexed by beside its own words: concepts, and Chinese words.

    Of Chinese, the dictionary's words, the shorter words within them, and each pair of
    neighbours: a query that is cut elsewhere still finds them. A word that touches Chinese is one
    with it for the database, so it stands here by itself.
    """
    lowered = text[:_INDEXED_CHARACTERS].lower()
    terms: dict[str, None] = {}
    for piece in _pieces(lowered):
        for start in range(len(piece)):
            for _, names in _phrases_at(piece, start):
                terms.update(dict.fromkeys(concept_token(name) for name in names))
    for run in _CHINESE.findall(lowered):
        terms.update(dict.fromkeys(rjieba.cut_for_search(run)))
        terms.update(dict.fromkeys(pairs_of(run)))
    terms.update(dict.fromkeys(_BESIDE_CHINESE.findall(lowered)))
    return " ".join(terms)


def english_of(text: str) -> str:
    """Put the names of concepts in the place of Chinese; the rest of the Chinese is left out.

    For what reads English alone. What is English already stays as it stands.
    """
    return " ".join(_CHINESE.sub(lambda run: f" {_concepts_in(run[0])} ", text).split())


def _concepts_in(run: str) -> str:
    said: dict[str, None] = {}
    at = 0
    while at < len(run):
        size, names = max(_phrases_at(run, at), default=(1, ()))
        said.update(dict.fromkeys(name.replace("-", " ") for name in names))
        if nearer := _beside().get(run[at : at + size]):
            said[nearer] = None
        at += size
    return ", ".join(said)


def concept_token(name: str) -> str:
    return CONCEPT_PREFIX + re.sub(r"[^a-z0-9]", "", name)


def pairs_of(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)] or [run]


def concepts_named(phrase: str) -> tuple[str, ...]:
    """Give the concepts that a phrase names as a whole."""
    plain = phrase if is_chinese(phrase) else " ".join(_WORDS.findall(phrase))
    return _known().get(plain) or _known().get(plain.removesuffix("s"), ())


def is_common(word: str) -> bool:
    return word in _COMMON


class Sought(NamedTuple):
    """A part of what somebody types: its words, and the concepts that they name together."""

    words: tuple[str, ...]
    concepts: tuple[str, ...] = ()

    @property
    def is_common(self) -> bool:
        return all(map(is_common, self.words)) and not self.concepts


def read_words(tokens: Sequence[str]) -> list[Sought]:
    """Cut what somebody looks for into parts that all have to be found, in the fewest words.

    A token of English stays as it was typed; one that has Chinese in it is cut.
    """
    found: list[Sought] = []
    at = 0
    while at < len(tokens):
        if is_chinese(tokens[at]):
            found += _read_chinese(tokens[at])
            at += 1
            continue
        size, names = _phrase_of_tokens(tokens, at)
        found.append(Sought(tuple(tokens[at : at + size]), names))
        at += size
    return found


def _phrase_of_tokens(tokens: Sequence[str], start: int) -> tuple[int, tuple[str, ...]]:
    for size in range(min(_PHRASE, len(tokens) - start), 0, -1):
        if names := concepts_named(" ".join(tokens[start : start + size])):
            return size, names
    return 1, ()


def _read_chinese(token: str) -> Iterator[Sought]:
    for piece in _pieces(token):
        if not is_chinese(piece[0]):
            yield from read_words(piece)
            continue
        at = unknown = 0
        while at < len(piece):
            size, names = max(_phrases_at(piece, at), default=(0, ()))
            if size:
                yield from (Sought((word,)) for word in rjieba.cut("".join(piece[unknown:at])))
                yield Sought(("".join(piece[at : at + size]),), names)
                unknown = at + size
            at += size or 1
        yield from (Sought((word,)) for word in rjieba.cut("".join(piece[unknown:])))


def pieces_of(name: str) -> str:
    """Cut a name where letters end; PostgreSQL takes `team/model` for one path."""
    return " ".join(_WORDS.findall(name.lower()))


def search_terms_of(full_name: str, text: str) -> str:
    """Give what a repository is found by beside the words of its searched text.

    With these, a whole word finds each word that a piece of the text may be in.
    """
    pieces = pieces_of(full_name)
    others = joined_words(text) - set(pieces.split())
    return " ".join(part for part in (pieces, *sorted(others), terms_of(text)) if part)


def joined_words(text: str) -> set[str]:
    """Give the words that the database's own parser would not tell apart from what is beside."""
    return {
        word
        for token in text.lower().split()
        if _JOINED.search(token) and not _PLAINLY_JOINED.fullmatch(token)
        for word in _WORDS.findall(token)
        if not is_chinese(word)
    }


def words_in(text: str) -> set[str]:
    """Give the words that a piece of one is looked up among."""
    return {word for word in _WORDS.findall(text.lower()) if _may_be_known(word)}


def known_among(lexemes: Iterable[str]) -> set[str]:
    """Give those of an index's own words that a piece of one is looked up among."""
    return {word for word in lexemes if _WORDS.fullmatch(word) and _may_be_known(word)}


def _may_be_known(word: str) -> bool:
    """Leave out Chinese, bare numbers, what is endless, and the tokens of concepts."""
    return (
        len(word) <= LONGEST_KNOWN
        and len(word.encode()) <= _MOST_BYTES
        and not word.isdigit()
        and not is_chinese(word)
        and word not in _concept_tokens()
    )


def word_pairs_in(text: str) -> list[int]:
    """Give the numbers of the words that stand side by side in a text, with no space between.

    Signs such as those of `mini²` are letters of a word here, and for the database mostly not: what
    it takes for words has numbers as well.
    """
    pairs: set[tuple[str, str]] = set()
    for token in text.lower().split():
        pairs.update(pairwise(_WORDS.findall(token)))
        if not token.isascii():
            pairs.update(pairwise(_WORDS.findall("".join(map(_without_sign, token)))))
    return sorted({pair_number(*pair) for pair in pairs if not is_chinese("".join(pair))})


def _without_sign(character: str) -> str:
    is_sign = character.isalnum() and not (character.isalpha() or character.isdecimal())
    return " " if is_sign else character


def pair_number(word: str, following: str) -> int:
    """Give what stands for two words side by side: 32 bits with a sign, as few others have."""
    return crc32(f"{word} {following}".encode()) - 2**31


def words_of(text: str) -> list[str]:
    """Cut a text where letters and digits end, and where Chinese begins."""
    return _WORDS.findall(text)


def long_words_in(text: str) -> set[str]:
    """Give the English words that a mistyped word may have meant."""
    return {
        word
        for word in _WORDS.findall(text.lower())
        if _SHORTEST <= len(word) <= _LONGEST and not word.isdigit() and not is_chinese(word)
    }


def _pieces(text: str) -> Iterator[list[str]]:
    """Give runs of English as words and runs of Chinese as characters, in their order."""
    english: list[str] = []
    for match in _WORDS.finditer(text):
        if is_chinese(match[0]):
            yield from ([english] if english else [])
            english = []
            yield list(match[0])
        else:
            english.append(match[0])
    if english:
        yield english


def _phrases_at(piece: Sequence[str], start: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Find the phrases that begin here: of how many parts, and which concepts they name."""
    known, between, longest = (
        (_known(), "", _CHINESE_PHRASE) if is_chinese(piece[start]) else (_known(), " ", _PHRASE)
    )
    for size in range(1, min(longest, len(piece) - start) + 1):
        phrase = between.join(piece[start : start + size])
        if names := known.get(phrase) or known.get(phrase.removesuffix("s")):
            yield size, names


@cache
def _beside() -> dict[str, str]:
    """Give for a Chinese phrase the English one that stands at its place in the same line.

    A line lists what is said for one concept, in the same order in both languages: it says more
    than the name of the concept alone. Where one language has more, the last of the other stands.
    """
    found: dict[str, str] = {}
    for line in _lines():
        english = [phrase for phrase in line if not is_chinese(phrase)]
        for place, phrase in enumerate(phrase for phrase in line if is_chinese(phrase)):
            nearer = english[min(place, len(english) - 1)]
            found.setdefault(phrase, nearer.replace("-", " "))
    return found


def _lines() -> Iterator[list[str]]:
    for line in _CONCEPTS.read_text().splitlines():
        if line and not line.startswith("#"):
            yield line.split(", ")


@cache
def _concept_tokens() -> frozenset[str]:
    return frozenset(concept_token(name) for name, *_ in _lines())


@cache
def _known() -> dict[str, tuple[str, ...]]:
    """Find the concepts by their phrases; hyphens are spaces."""
    found: dict[str, tuple[str, ...]] = {}
    for name, *others in _lines():
        for phrase in (name, *others):
            plain = phrase if is_chinese(phrase) else " ".join(_WORDS.findall(phrase))
            if name not in found.get(plain, ()):
                found[plain] = (*found.get(plain, ()), name)
    return found
