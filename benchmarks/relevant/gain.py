"""How good an order is: discounted gain, beside that of the best order there is."""

import math
from collections.abc import Mapping, Sequence


def ndcg(found: Sequence[str], grades: Mapping[str, int], *, depth: int = 10) -> float:
    """Give nDCG at `depth` of what was found, the best first; 1 is the best order, 0 none of it.

    A grade counts for 2^grade - 1, divided by the binary logarithm of one more than its place; what
    was found twice counts once, where it stands first.
    """
    best = sorted(grades.values(), reverse=True)[:depth]
    places = list(dict.fromkeys(found))[:depth]
    most = _gain(best)
    return _gain([grades.get(name, 0) for name in places]) / most if most else 0.0


def _gain(grades: Sequence[int]) -> float:
    return sum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(grades))
