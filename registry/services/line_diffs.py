"""Texts compared line by line, for no more work than there is a budget for."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import Match, SequenceMatcher
from itertools import accumulate
from typing import Final, NamedTuple

CONTEXT: Final = 3


class TooDifferentError(Exception):
    """Comparing the lines would take more than is left for it."""


class Budget:
    """How many pairs of lines may be looked at, over several texts together."""

    def __init__(self, pairs: int) -> None:
        self.left = pairs

    def take(self, pairs: int) -> None:
        if pairs > self.left:
            raise TooDifferentError
        self.left -= pairs


class Line(NamedTuple):
    """A line of a text: `+`, `-`, ` ` or `@` for where it stands."""

    sign: str
    text: str


def changed_lines(
    old: Sequence[str], new: Sequence[str], budget: Budget, *, start: int = 0
) -> Iterator[Line]:
    """Give what changed with some lines around, as a unified diff does; `start` lines are before.

    Raises:
        TooDifferentError: the budget is not enough.

    """
    for group in _Matcher(old, new, budget).get_grouped_opcodes(CONTEXT):
        first, last = group[0], group[-1]
        where = (_range(first[1], last[2], start), _range(first[3], last[4], start))
        yield Line("@", f"-{where[0]} +{where[1]}")
        for what, old_from, old_to, new_from, new_to in group:
            if what == "equal":
                yield from (Line(" ", line) for line in old[old_from:old_to])
                continue
            yield from (Line("-", line) for line in old[old_from:old_to])
            yield from (Line("+", line) for line in new[new_from:new_to])


def _range(low: int, high: int, start: int) -> str:
    """Say where some lines stand, counted from one; what is empty stands after a line."""
    count = high - low
    first = start + low + (1 if count else 0)
    return str(first) if count == 1 else f"{first},{count}"


class _Matcher(SequenceMatcher[str]):
    """Matches lines; pays for each search of a match before it is made.

    A search looks at every line of its part of the old text, and at all places that have the same
    in the new one. How many searches there are depends on the texts: as many as they have lines,
    at worst, each of which goes through all the rest.
    """

    def __init__(self, old: Sequence[str], new: Sequence[str], budget: Budget) -> None:
        super().__init__(None, old, new)
        self._budget = budget
        # Documented, and unknown to the type stubs: where each line of the new text stands.
        places: Mapping[str, Sequence[int]] = vars(self)["b2j"]
        costs = (1 + len(places.get(line, ())) for line in old)
        self._costs_before = list(accumulate(costs, initial=0))

    def find_longest_match(
        self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None
    ) -> Match:
        end = len(self._costs_before) - 1 if ahi is None else ahi
        self._budget.take(self._costs_before[end] - self._costs_before[alo])
        return super().find_longest_match(alo, ahi, blo, bhi)
