"""How sure a measured number is: intervals, paired tests, and whether enough rows were looked at.

Plain functions of arrays. Models are compared on the same rows, so what counts is the difference
row by row: a hundred rows on which both err the same way say nothing about which one is better.
Whatever draws at random draws from a fixed seed, so that the same numbers give the same answer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054
_BOOTSTRAP_ROUNDS = 2000
_BOOTSTRAP_BLOCK = 2_000_000
_FEWEST_FOR_BOOTSTRAP = 20
_POWER = 0.8
_SURE = 1e-4
_MOST_ROWS = 1_000_000_000
_MOST_WHOLE = 4000
_NOTHING = 1e-17

Verdict = Literal["met", "failed", "undecided"]


# --- scores -------------------------------------------------------------------------------------


def probabilities(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Turn scores [rows, classes] into probabilities; what sums to one already stays.

    Rows that hold no number say nothing of the others: theirs are not finite either.
    """
    exact = scores.astype(np.float64)
    whole = exact[np.isfinite(exact).all(1)]
    if len(whole) and (whole >= 0).all() and np.allclose(whole.sum(1), 1, atol=_SURE):
        return exact
    with np.errstate(invalid="ignore"):
        powers = np.exp(exact - exact.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


# --- intervals ----------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Bound a proportion at 95 %; honest near 0 and 1, where the normal interval is not."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    middle = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_mean(values: NDArray[Any], *, confidence: float = 0.95) -> tuple[float, float]:
    """Bound a mean from both sides by drawing the rows again and again, from a fixed seed.

    `values` is a float array [rows]. For a bound on one side alone at 95 %, ask for 90 % and take
    that side. Resamples of paired differences keep the pairs together.
    """
    means = _resampled_means(values)
    left = (1 - confidence) / 2
    low, high = np.quantile(means, [left, 1 - left])
    return float(low), float(high)


def _resampled_means(values: NDArray[Any]) -> NDArray[np.float64]:
    drawn = np.random.default_rng(0)
    n = len(values)
    block = max(1, _BOOTSTRAP_BLOCK // max(1, n))
    means = [
        values[drawn.integers(0, n, (min(block, _BOOTSTRAP_ROUNDS - done), n))].mean(1)
        for done in range(0, _BOOTSTRAP_ROUNDS, block)
    ]
    return np.concatenate(means).astype(np.float64)


# --- pairs --------------------------------------------------------------------------------------


def mcnemar(lost: int, won: int) -> float:
    """Return the exact two-sided p-value that losses and wins are equally likely.

    Of many rows the whole numbers grow too long: those are summed up as floats.
    """
    n, fewer = lost + won, min(lost, won)
    return min(1.0, 2 * (_tail(n, fewer) if n <= _MOST_WHOLE else _tail_of_many(n, fewer)))


def _tail(n: int, most: int) -> float:
    """Give the chance of at most so many heads in n throws."""
    ways = total = 1
    for k in range(most):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return total / (1 << n)


def _tail_of_many(n: int, most: int) -> float:
    """Do the same from the likeliest number down, until what follows adds nothing."""
    likeliest = math.lgamma(n + 1) - math.lgamma(most + 1) - math.lgamma(n - most + 1)
    share = total = 1.0
    for k in range(most, 0, -1):
        share *= k / (n - k + 1)
        total += share
        if share < total * _NOTHING:
            break
    return total * math.exp(likeliest - n * math.log(2))


def score_bounds(
    lost: float, won: float, n: float, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Bound the difference of two paired proportions from both sides.

    Of `n` rows, `lost` are those that only the first model has right and `won` those that only the
    second has; the difference is (lost - won) / n, what the second model is worse by. The bounds
    invert the score test of Tango (1998), "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design": at a difference of nought that is
    McNemar's test, and unlike the bootstrap it stays honest where no row differs at all.
    """
    if n <= 0:
        return -1.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (lost - won) / n
    high = _root(lambda at: _score(lost, won, n, at) + z, middle, 1.0)
    low = _root(lambda at: _score(lost, won, n, at) - z, middle, -1.0)
    return low, high


def _score(lost: float, won: float, n: float, difference: float) -> float:
    """Give Tango's statistic: how many standard errors the data lie above `difference`."""
    # The most likely share of wins, given that the shares differ by exactly `difference`.
    a = 2 * n
    b = -lost - won + (2 * n - lost + won) * difference
    c = -won * difference * (1 - difference)
    wins = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * wins + difference * (1 - difference))
    distance = lost - won - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def _root(function: Callable[[float], float], near: float, far: float) -> float:
    """Halve the way from `near` to `far` until the sign changes; `far` where it never does."""
    sign = function(near) > 0
    if (function(far) > 0) == sign:
        return far
    for _ in range(80):
        middle = (near + far) / 2
        if (function(middle) > 0) == sign:
            near = middle
        else:
            far = middle
    return (near + far) / 2


# --- decisions ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """Whether a mean loss is at most a margin, as far as the rows can tell."""

    verdict: Verdict
    value: float
    low: float
    high: float
    """Each bound holds by itself at the confidence asked for, so both together at less."""
    n: int
    margin: float
    needs_rows: int | None
    """How many rows would decide, four times in five, if the rest looks like these rows; None
    where they decide already, or where no number would: the loss lies right at the margin."""
    method: str


def judge(losses: NDArray[Any], margin: float, *, confidence: float = 0.95) -> Judgement:
    """Decide whether the mean of `losses` is at most `margin`.

    `losses` is an array [rows] of what each row lost from the parent to the child. Whole numbers
    are answers that turned: 1 where only the parent is right, -1 where only the child is, 0
    elsewhere; they are judged by the score bounds of paired proportions. Floats, such as one minus
    a cosine, are judged by the bootstrap of their mean.

    "met" says that the upper bound is within the margin, "failed" that the lower bound is beyond
    it, each at `confidence` on its own side; everything between is "undecided".
    """
    n = len(losses)
    turned = losses.dtype.kind in "iub"
    method = "score bounds of the paired difference" if turned else "bootstrap of the mean"
    if n == 0 or (not turned and n < _FEWEST_FOR_BOOTSTRAP):
        value = float(losses.mean()) if n else 0.0
        return Judgement(
            "undecided", value, -1.0, 1.0, n, margin, _fewest(margin, turned, confidence), method
        )
    two_sided = 2 * confidence - 1
    if turned:
        lost, won = int((losses > 0).sum()), int((losses < 0).sum())
        low, high = score_bounds(lost, won, n, confidence=two_sided)
        value = (lost - won) / n
        needed = _rows_for_turns(lost / n, won / n, n, margin, confidence)
    else:
        low, high = bootstrap_mean(losses, confidence=two_sided)
        value = float(losses.mean())
        needed = _rows_for_mean(value, float(losses.std(ddof=1)), margin, confidence)
    verdict: Verdict = "met" if high <= margin else "failed" if low > margin else "undecided"
    if verdict != "undecided":
        needed = None
    elif needed is not None:
        needed = max(needed, n + 1)
    return Judgement(verdict, value, low, high, n, margin, needed, method)


def _power_confidence(confidence: float) -> float:
    """Give the two-sided confidence at which the rows seen so far would decide with power."""
    normal = NormalDist()
    z = normal.inv_cdf(confidence) + normal.inv_cdf(_POWER)
    return 2 * normal.cdf(z) - 1


def _fewest(margin: float, turned: bool, confidence: float) -> int | None:  # noqa: FBT001 - which kind of rows
    if not turned:
        return _FEWEST_FOR_BOOTSTRAP
    return _rows_for_turns(0.0, 0.0, 1, margin, confidence)


def _rows_for_turns(
    lost: float, won: float, n: int, margin: float, confidence: float
) -> int | None:
    wide = _power_confidence(confidence)
    below = lost - won <= margin

    def decides(rows: float) -> bool:
        low, high = score_bounds(lost * rows, won * rows, rows, confidence=wide)
        return high <= margin if below else low > margin

    few, many = max(1, n), max(1, n)
    while not decides(many):
        few, many = many, many * 2
        if many > _MOST_ROWS:
            return None
    while many - few > max(1, many // 1000):
        middle = (few + many) // 2
        few, many = (few, middle) if decides(middle) else (middle, many)
    return many


def _rows_for_mean(value: float, spread: float, margin: float, confidence: float) -> int | None:
    distance = abs(margin - value)
    if distance == 0:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(confidence) + normal.inv_cdf(_POWER)
    rows = (z * spread / distance) ** 2
    return None if rows > _MOST_ROWS else math.ceil(rows)


# --- vectors ------------------------------------------------------------------------------------


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """Flatten each row of [rows, ...] and scale it to length one; a zero row stays zero."""
    flat = vectors.reshape(len(vectors), -1).astype(np.float64)
    return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))


def cosines(child: NDArray[Any], parent: NDArray[Any]) -> NDArray[np.float64]:
    """Give the cosine of each row's two vectors, [rows], from two arrays [rows, ...]."""
    return np.asarray((unit(child) * unit(parent)).sum(1))


def neighbour_overlap(child: NDArray[Any], parent: NDArray[Any], k: int) -> NDArray[np.float64]:
    """Give, for each row, the share of its `k` nearest other rows that both models agree on.

    It is what a search over the rows sees of a change. Arrays are [rows, ...]; the work grows with
    the square of the rows. With `k` or fewer other rows, all of them are neighbours.
    """
    n = len(parent)
    k = min(k, n - 1)
    if k < 1:
        return np.ones(n)
    near = [_nearest(unit(vectors), k) for vectors in (child, parent)]
    shared = [len(np.intersect1d(*pair)) / k for pair in zip(*near, strict=True)]
    return np.asarray(shared, dtype=np.float64)


def _nearest(vectors: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    found = []
    for low in range(0, len(vectors), 512):
        alike = vectors[low : low + 512] @ vectors.T
        rows = np.arange(len(alike))
        alike[rows, low + rows] = -np.inf
        found.append(np.argsort(-alike, axis=1, kind="stable")[:, :k])
    return np.concatenate(found)
