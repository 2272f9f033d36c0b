"""How the words of a query may be meant: as they stand, mistyped, or any of them.

A reading is a condition over repositories and what to rank them by. Each next one is wider, and is
taken only where the one before it finds nothing that the asker may see.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from itertools import islice
from operator import and_, or_
from typing import Final, NamedTuple

from django.contrib.postgres.search import SearchQuery as WordQuery
from django.contrib.postgres.search import SearchQueryCombinable, TrigramSimilarity
from django.db import connection, transaction
from django.db.models import Q
from rapidfuzz.distance import OSA

from registry.lexicon import (
    Sought,
    chinese_in,
    concept_token,
    is_chinese,
    pairs_of,
    read_words,
)
from registry.models import Repository, SearchWord
from registry.models.catalog import RepositoryQuerySet
from registry.pieces import beginning, having_any_of, holding, says
from registry.query_language import Asked, Words

AS_WRITTEN: Final = "as_written"
CORRECTED: Final = "corrected"
SOME_WORDS: Final = "some_words"
# No word is found; what is, lies near what the words say (registry/meaning.py).
BY_MEANING: Final = "by_meaning"
_TRIGRAM: Final = 3
_FEW: Final = 200
_SIMILARITY: Final = 0.2
# Those that only others may see are among them, and must push out no other.
_CANDIDATES: Final = 500
_SHORTEST_MEANT: Final = 4
_TRIED: Final = 3
_MOST_PARTS: Final = 12
_NOTHING: Final = Q(pk__in=())


@dataclass(frozen=True, kw_only=True)
class Reading:
    """`how`: as_written, corrected, some_words or by_meaning.

    `text` is what was looked for, as it would be typed. What is found has to have the `unproved`
    words of it; else these may be words that the asker may not see.
    """

    how: str
    text: str
    condition: Q
    # One for each part of the query, for ranking.
    parts: Sequence[SearchQueryCombinable] = ()
    unproved: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of what is sought, and the condition that it sets, which follows from it."""

    sought: Sought
    condition: Q = field(compare=False)
    # It may be in a text in another form at most, as its stem.
    is_unknown: bool = field(compare=False)


def readings(
    asked: Asked,
    visible: RepositoryQuerySet,
    among: RepositoryQuerySet,
    *,
    with_meaning: bool = False,
) -> Iterator[Reading]:
    """Give the readings of the words, the strictest first.

    `among` is what may be found at all; a word that something `visible` has is none that was
    mistyped, though none of these have it. The last one is any of the words, or `with_meaning`
    these together with what lies near what they say.
    """
    fixed = what_stands(asked)
    phrases = _phrases(asked)
    tokens = [one.text.lower() for one in asked.words if not one.together and not one.negated]
    sought = [_part(one) for one in _without_common(read_words(tokens))[:_MOST_PARTS]]
    ranked = [_text_query(one.text) for one in phrases]

    def reading(
        how: str, parts: Sequence[_Part], condition: Q, unproved: Sequence[str] = ()
    ) -> Reading:
        text = " ".join([*(f'"{one.text}"' for one in phrases), *map(_typed, parts)])
        queries = [*ranked, *(_query(one.sought) for one in parts)]
        return Reading(how=how, text=text, condition=condition, parts=queries, unproved=unproved)

    lost = [one for one in sought if one.is_unknown and not _finds(one.condition, visible)]
    written = reading(AS_WRITTEN, sought, _NOTHING if lost else _all_of(sought, fixed))
    yield replace(written, text=asked.text)
    kept = among.filter(fixed)
    # The likeliest is tried unproved: that of the words near a lost one the nearest is meant, and
    # the others are right. What it finds proves it, and is mostly all that anybody has to look at.
    near = cache(_near)
    guess = _mended(sought, lambda one: one in lost, lambda word: map(_read, near(word)[:1]))
    if guess != sought:
        new = [word for one in guess if one not in sought for word in one.sought.words]
        yield reading(CORRECTED, guess, _all_of(guess, fixed), new)

    def proved(word: str) -> Iterator[list[_Part]]:
        # What others wrote takes no place among the few that are tried.
        seen = (one for one in near(word) if has_word(one, visible))
        found = map(_read, islice(seen, _TRIED))
        return (parts for parts in found if _finds(_all_of(parts, Q()), kept))

    mended = _mended(sought, lambda one: one in lost or not _finds(one.condition, visible), proved)
    if mended != sought:
        yield reading(CORRECTED, mended, _all_of(mended, fixed))
    # Of the guess nothing is left here: it may name what the asker may not see.
    some = _all_of(mended, fixed)
    if len(mended) > 1:
        some = fixed & Q(search_vector=reduce(or_, (_query(one.sought) for one in mended)))
    if with_meaning:
        yield reading(BY_MEANING, mended, some)
    elif len(mended) > 1:
        yield reading(SOME_WORDS, mended, some)


def _part(one: Sought) -> _Part:
    found = [_word(word) for word in one.words]
    return _Part(
        sought=one,
        condition=_condition_of(one, [each.condition for each in found]),
        is_unknown=_may_be_mistyped(one) and all(each.is_unknown for each in found),
    )


def _all_of(parts: Sequence[_Part], fixed: Q) -> Q:
    return reduce(and_, (one.condition for one in parts), fixed)


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
                [_phrase(one)]
                if one.together
                else [_part(each).condition for each in read_words([one.text.lower()])]
            )
            kept &= ~reduce(and_, found, Q())
    return kept


def _without_common(sought: Sequence[Sought]) -> list[Sought]:
    return [one for one in sought if not one.is_common] or list(sought)


def _typed(one: _Part) -> str:
    return " ".join(one.sought.words)


# --- Conditions ---------------------------------------------------------------------------------


class _Found(NamedTuple):
    """The whole words that find a word, or a condition where more has to be looked at."""

    condition: SearchQueryCombinable | Q
    is_unknown: bool = False


def _condition_of(one: Sought, found: Sequence[SearchQueryCombinable | Q]) -> Q:
    """Give where these words, or pieces of words, are: one look at one index if that can be."""
    concepts = [_concept(name) for name in one.concepts]
    queries = [each for each in found if not isinstance(each, Q)]
    if len(queries) == len(found):
        return Q(search_vector=reduce(or_, concepts, reduce(and_, queries)))
    literal = reduce(and_, (each for each in found if isinstance(each, Q)))
    literal = reduce(and_, (Q(search_vector=each) for each in queries), literal)
    return reduce(or_, (Q(search_vector=each) for each in concepts), literal)


def _word(word: str) -> _Found:
    whole = _word_query(word)
    if is_chinese(word) or len(word) < _TRIGRAM:
        # No piece finds these: whole words, the pairs of a longer one, or how a word begins.
        begun = beginning(word) if len(word) > 1 and word.isalnum() else None
        return _Found(begun or whole)
    held = holding(word)
    if held and held.is_enough:
        return _Found(held.words | WordQuery(word, config="english"), held.is_unknown)
    if held:
        # Rows that have it as whole words are few, most of the time, and need no other look.
        rows = Repository.objects.filter(search_vector=whole).whichever("pk", limit=_FEW + 1)
        if len(rows) <= _FEW:
            written = says(word) & held.rows
            return _Found(written | Q(pk__in=[key for (key,) in rows]) if rows else written)
    return _Found(Q(search_text__contains=word) | Q(search_vector=whole))


def _phrase(one: Words) -> Q:
    text = one.text.lower()
    if is_chinese(text):
        # What is no Chinese is compared as it stands; so is a character by itself, which may end
        # a word, beside anything longer.
        runs = chinese_in(text)
        pairs = [pair for run in runs if len(run) > 1 for pair in pairs_of(run)]
        found = reduce(and_, (Q(search_vector=_word_query(one)) for one in pairs or runs), Q())
        return found & (Q(search_text__contains=text) | Q(card_text__icontains=text))
    phrase = Q(search_vector=WordQuery(text, config="english", search_type="phrase"))
    held = holding(text)
    if held:
        either = held.words | WordQuery(text, config="english")
        return Q(search_vector=either) & (says(text) | phrase)
    return Q(search_text__contains=text) | phrase


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


def _may_be_mistyped(one: Sought) -> bool:
    (word, *more) = one.words
    return not (more or one.concepts or is_chinese(word))


def _mended(
    sought: Sequence[_Part],
    is_wrong: Callable[[_Part], bool],
    meant: Callable[[str], Iterator[list[_Part]]],
) -> list[_Part]:
    """Put the first that may be `meant` in the place of each that `is_wrong`."""
    mended: list[_Part] = []
    for one in sought:
        if not _may_be_mistyped(one.sought) or not is_wrong(one):
            mended.append(one)
            continue
        mended += next(meant(one.sought.words[0]), [one])
    return mended


def _read(word: str) -> list[_Part]:
    return [_part(one) for one in read_words([word])]


def has_word(word: str, rows: RepositoryQuerySet) -> bool:
    """Say whether one of the rows has this very word in what the known words are taken from.

    A card that has it, or another form of it, does not tell that anybody may know the word.
    """
    return _finds(Q(search_vector=having_any_of([word])), rows)


def _finds(condition: Q, among: RepositoryQuerySet) -> bool:
    return bool(among.filter(condition).whichever("pk", limit=1))


def _near(word: str) -> list[str]:
    """Give known words that differ by few letters: one up to five letters, two above."""
    most = 1 if len(word) <= 5 else 2
    if not 4 <= len(word) <= 32:
        return []
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('pg_trgm.similarity_threshold', %s, true)", [str(_SIMILARITY)]
        )
        alike = list(
            SearchWord.objects.filter(word__trigram_similar=word)
            .annotate(alike=TrigramSimilarity("word", word))
            .order_by("-alike", "word")
            .values_list("word", flat=True)[:_CANDIDATES]
        )
    near = [
        (OSA.distance(word, one, score_cutoff=most), one)
        for one in alike
        if len(one) >= _SHORTEST_MEANT
    ]
    return [one for distance, one in sorted(near) if distance <= most]
