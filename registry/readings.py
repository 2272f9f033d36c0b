"""How the words of a query may be meant: as they stand, mistyped, or any of them.

A reading is a condition over repositories and what to rank them by. Each next one is wider, and is
taken only where the one before it finds nothing that the asker may see.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from typing import Final

from django.contrib.postgres.search import SearchQuery as WordQuery
from django.contrib.postgres.search import SearchQueryCombinable, TrigramSimilarity
from django.db import connection, transaction
from django.db.models import Q
from rapidfuzz.distance import OSA

from registry.lexicon import Sought, concept_token, is_chinese, pairs_of, read_words
from registry.models import SearchWord
from registry.models.catalog import RepositoryQuerySet
from registry.query_language import Asked, Words

AS_WRITTEN: Final = "as_written"
SOME_WORDS: Final = "some_words"
# No word is found; what is, lies near what the words say (registry/meaning.py).
BY_MEANING: Final = "by_meaning"
_TRIGRAM: Final = 3
_SIMILARITY: Final = 0.2
_CANDIDATES: Final = 60
_TRIED: Final = 3
_MOST_PARTS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Reading:
    """`how`: as_written, corrected, some_words or by_meaning.

    `text` is what was looked for, as it would be typed.
    """

    how: str
    text: str
    condition: Q
    # One for each part of the query, for ranking.
    parts: Sequence[SearchQueryCombinable] = ()


def readings(asked: Asked, among: RepositoryQuerySet) -> Iterator[Reading]:
    """Give the readings of the words, the strictest first; `among` is what may be found at all."""
    fixed = what_stands(asked)
    phrases = _phrases(asked)
    tokens = [one.text.lower() for one in asked.words if not one.together and not one.negated]
    sought = _without_common(read_words(tokens))[:_MOST_PARTS]
    ranked = [_text_query(one.text) for one in phrases]
    yield Reading(
        how=AS_WRITTEN,
        text=asked.text,
        condition=reduce(and_, map(_condition, sought), fixed),
        parts=[*ranked, *map(_query, sought)],
    )
    mended = _corrected(sought, among.filter(fixed)) if sought else None
    if mended:
        yield Reading(
            how="corrected",
            text=" ".join([*(f'"{one.text}"' for one in phrases), *map(_typed, mended)]),
            condition=reduce(and_, map(_condition, mended), fixed),
            parts=[*ranked, *map(_query, mended)],
        )
        sought = mended
    if len(sought) > 1:
        parts = [_query(one) for one in sought]
        yield Reading(
            how=SOME_WORDS,
            text=" ".join([*(f'"{one.text}"' for one in phrases), *map(_typed, sought)]),
            condition=fixed & Q(search_vector=reduce(or_, parts)),
            parts=[*ranked, *parts],
        )


def what_stands(asked: Asked) -> Q:
    """Give what holds in every reading: phrases in quotes, and what is not wanted."""
    return reduce(and_, map(_phrase, _phrases(asked)), _negated(asked))


def _phrases(asked: Asked) -> list[Words]:
    return [one for one in asked.words if one.together and not one.negated]


def _negated(asked: Asked) -> Q:
    kept = Q()
    for one in asked.words:
        if one.negated:
            found = (
                [_phrase(one)] if one.together else map(_condition, read_words([one.text.lower()]))
            )
            kept &= ~reduce(and_, found, Q())
    return kept


def _without_common(sought: Sequence[Sought]) -> list[Sought]:
    return [one for one in sought if not one.is_common] or list(sought)


def _typed(one: Sought) -> str:
    return " ".join(one.words)


# --- Conditions ---------------------------------------------------------------------------------


def _condition(one: Sought) -> Q:
    literal = reduce(and_, map(_word, one.words))
    return reduce(or_, (Q(search_vector=_concept(name)) for name in one.concepts), literal)


def _word(word: str) -> Q:
    if is_chinese(word) or len(word) < _TRIGRAM:
        # No trigram finds these: whole words, the pairs of a longer one, or how a word begins.
        return Q(search_vector=_word_query(word))
    return Q(search_text__contains=word) | Q(search_vector=_word_query(word))


def _phrase(one: Words) -> Q:
    text = one.text.lower()
    if is_chinese(text):
        parts = [_word_query(pair) for run in re.findall(r"\w+", text) for pair in pairs_of(run)]
        found = reduce(and_, (Q(search_vector=part) for part in parts), Q())
        return found & (Q(search_text__contains=text) | Q(card_text__icontains=text))
    return Q(search_text__contains=text) | Q(
        search_vector=WordQuery(text, config="english", search_type="phrase")
    )


def _query(one: Sought) -> SearchQueryCombinable:
    literal = reduce(and_, map(_word_query, one.words))
    return reduce(or_, map(_concept, one.concepts), literal)


def _text_query(text: str) -> SearchQueryCombinable:
    return WordQuery(text, config="english") | WordQuery(text, config="simple")


def _word_query(word: str) -> SearchQueryCombinable:
    plain = WordQuery(word, config="simple")
    if is_chinese(word):
        if len(word) == 1:
            return plain | _beginning(word)
        pairs = pairs_of(word)
        return plain | reduce(and_, (WordQuery(pair, config="simple") for pair in pairs))
    if len(word) < _TRIGRAM and word.isalnum() and len(word) > 1:
        return plain | _beginning(word)
    return plain | WordQuery(word, config="english")


def _beginning(word: str) -> WordQuery:
    return WordQuery(f"{word}:*", config="simple", search_type="raw")


def _concept(name: str) -> WordQuery:
    return WordQuery(concept_token(name), config="simple")


# --- Mistyped words -----------------------------------------------------------------------------


def _corrected(sought: Sequence[Sought], among: RepositoryQuerySet) -> list[Sought] | None:
    """Put the nearest word that finds something in the place of each that finds nothing."""
    mended: list[Sought] = []
    for one in sought:
        (word, *more) = one.words
        if more or one.concepts or is_chinese(word) or _finds([one], among):
            mended.append(one)
            continue
        mended += next((found for found in map(_read, _near(word)) if _finds(found, among)), [one])
    return mended if mended != list(sought) else None


def _read(word: str) -> list[Sought]:
    return read_words([word])


def _finds(sought: Sequence[Sought], among: RepositoryQuerySet) -> bool:
    return bool(among.filter(reduce(and_, map(_condition, sought))).whichever("pk", limit=1))


def _near(word: str) -> list[str]:
    """Give known words that differ by few letters: one up to five letters, two above."""
    most = 1 if len(word) <= 5 else 2
    if not 4 <= len(word) <= 32:
        return []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('pg_trgm.similarity_threshold', %s, true)", [str(_SIMILARITY)]
        )
        alike = list(
            SearchWord.objects.filter(word__trigram_similar=word)
            .annotate(alike=TrigramSimilarity("word", word))
            .order_by("-alike", "word")
            .values_list("word", flat=True)[:_CANDIDATES]
        )
    near = [(OSA.distance(word, one, score_cutoff=most), one) for one in alike]
    return [one for distance, one in sorted(near) if distance <= most][:_TRIED]
