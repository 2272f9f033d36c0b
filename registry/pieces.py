"""Where a piece of a text may be: the known words that hold it, as a query of whole words.

The index of whole words answers in milliseconds what one of letters takes a tenth of a second for,
among a million long texts. What is found so is compared with the piece itself where its words
alone do not say enough.

It is looked for in names, summaries and tags alone: else a piece would find a card exactly where
somebody's name has that word, be it one that only others may see.
"""

from collections.abc import Collection, Iterable, Sequence
from functools import reduce
from itertools import pairwise, product
from operator import and_
from typing import Final, NamedTuple

from django.contrib.postgres.search import SearchQuery as WordQuery
from django.contrib.postgres.search import SearchQueryCombinable
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import StrIndex
from django.db.models.lookups import GreaterThan

from registry.lexicon import CONCEPT_PREFIX, is_common, pair_number, words_of
from registry.models import SearchWord
from registry.models.catalog import WEIGHTS_OF_TEXT

# A piece that more words hold is looked for by its letters.
_MOST_WORDS: Final = 256
_MOST_PAIRS: Final = 512
_SHORTEST: Final = 3
_FEW_WORDS: Final = 8
# Longer than this nobody types a piece of something.
_LONGEST: Final = 100


class Held(NamedTuple):
    """`words` finds all that may hold the text; if they are not `enough`, more than what does.

    So does any of each `pairs`, which fewer rows have. A single word that `is_unknown` stands in no
    text, nor in a word of one.
    """

    words: SearchQueryCombinable
    is_enough: bool
    is_unknown: bool
    pairs: Sequence[Sequence[int]] = ()

    @property
    def rows(self) -> Q:
        """Give what finds the rows that may hold the text, by the narrower of the two.

        A row without any pair was written by a release that knew none: a name has one at least.
        """
        if not self.pairs:
            return Q(search_vector=self.words)
        paired = reduce(and_, (Q(word_pairs__overlap=any_of) for any_of in self.pairs))
        return paired | Q(word_pairs=[])


def holding(text: str) -> Held | None:
    """Give what finds the lower-case text in a `search_text`; None where no words can tell."""
    pieces = words_of(text) if text.isascii() and len(text) <= _LONGEST else []
    found: list[set[str]] = []
    common: list[set[str]] = []
    meant: list[set[str]] = []
    words: list[str] | None = None
    for place, piece in enumerate(pieces):
        begins = place > 0 or not text.startswith(piece)
        ends = place < len(pieces) - 1 or not text.endswith(piece)
        words = _words_with(piece, begins=begins, ends=ends)
        # A bare number is meant as it stands where it does not go on.
        meant.append({piece, *(words or ())} if words is not None or (begins and ends) else set())
        if words is not None:
            # What nearly every text has tells nothing beside other words.
            tells = not any(map(is_common, words or [piece]))
            (found if tells else common).append({piece, *words})
    # One of very many words tells little beside others, and takes the index long to look for.
    asked = [each for each in found if len(each) <= _FEW_WORDS] or found or common
    if not asked:
        return None
    if pieces == [text]:
        return Held(_typed_or_any_of(text, words or ()), is_enough=True, is_unknown=not words)
    # What is found is compared with the text, whoever's words have led there.
    return Held(
        reduce(and_, map(_any_of, asked)),
        is_enough=False,
        is_unknown=False,
        pairs=_pairs_of(text, meant),
    )


def beginning(word: str) -> SearchQueryCombinable | None:
    """Give what finds the known words that begin so, or None where no words can tell.

    Where they are too many to name the index is asked for the beginning, which finds the same.
    """
    if not word.isascii():
        return None
    words = _words_with(word, begins=True, ends=False)
    if words is not None:
        return _typed_or_any_of(word, words)
    # Tokens of concepts begin with two letters as well, and stand among the terms.
    weights = "A" if CONCEPT_PREFIX.startswith(word) else WEIGHTS_OF_TEXT
    begun = WordQuery(f"'{word}':*{weights}", config="simple", search_type="raw")
    return WordQuery(word, config="simple") | begun


def having_any_of(words: Iterable[str]) -> SearchQueryCombinable:
    """Give what finds rows whose `search_text` has one of these words; cards do not count."""
    return _any_of(words, marked=f":{WEIGHTS_OF_TEXT}")


def says(text: str) -> Q:
    """Compare a row's text with this one; there is an index for it, and this goes past that."""
    return Q(GreaterThan(StrIndex(F("search_text"), Value(text)), 0))


def _pairs_of(text: str, meant: Sequence[Collection[str]]) -> list[list[int]]:
    """Give for each place where two words meet what stands for these, where all can be named.

    A text that has a space is left to its words: only what stands together has numbers.
    """
    if len(text.split()) > 1:
        return []
    return [
        [pair_number(word, following) for word, following in product(before, after)]
        for before, after in pairwise(meant)
        if 0 < len(before) * len(after) <= _MOST_PAIRS
    ]


def _words_with(piece: str, *, begins: bool, ends: bool) -> list[str] | None:
    """Give known words with this piece, where it `begins` or `ends` them; None if not all are."""
    if piece.isdigit():
        # Bare numbers are not known, nor does the database take "-4" for "4".
        return None
    if begins and ends:
        return []
    known: QuerySet[SearchWord] = SearchWord.objects.all()
    if begins:
        known = known.filter(word__startswith=piece)
    elif ends and len(piece) >= _SHORTEST - 1:
        known = known.filter(word__endswith=piece)
    elif not ends and len(piece) >= _SHORTEST:
        known = known.filter(word__contains=piece)
    else:
        return None
    words = list(known.values_list("word", flat=True)[: _MOST_WORDS + 1])
    return words if len(words) <= _MOST_WORDS else None


def _any_of(words: Iterable[str], *, marked: str = "") -> SearchQueryCombinable:
    named = " | ".join(f"'{word}'{marked}" for word in sorted(words))
    return WordQuery(named, config="simple", search_type="raw")


def _typed_or_any_of(typed: str, words: Collection[str]) -> SearchQueryCombinable:
    whole = WordQuery(typed, config="simple")
    others = set(words) - {typed}
    return whole | having_any_of(others) if others else whole
