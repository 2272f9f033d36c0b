"""Intervals, paired tests and decisions: against known values, and by simulation."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.ml.statistics import (
    bootstrap_mean,
    cosines,
    judge,
    mcnemar,
    neighbour_overlap,
    score_bounds,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (95, 100, 0.8882, 0.9785), (10, 10, 0.7225, 1)],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_wilson_always_holds_the_share(first, second):
    successes, n = min(first, second), max(first, second)
    low, high = wilson(successes, n)
    assert 0 <= low <= high <= 1
    if n:
        assert low - 1e-12 <= successes / n <= high + 1e-12


def test_mcnemar_is_exact():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(1, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(8, 2) == pytest.approx(2 * 56 / 1024)
    assert mcnemar(20, 20) == 1.0


@pytest.mark.parametrize(("lost", "won"), [(2100, 1900), (2000, 2001), (1900, 2400), (100, 4000)])
def test_mcnemar_is_the_same_however_many_rows_differ(lost, won):
    ways = [1]
    for k in range(min(lost, won)):
        ways.append(ways[-1] * (lost + won - k) // (k + 1))
    exact = 2 * sum(ways) / 2 ** (lost + won)
    assert mcnemar(lost, won) == mcnemar(won, lost) == pytest.approx(min(1.0, exact), rel=1e-9)


def test_mcnemar_takes_no_time_for_a_million_rows():
    # By whole numbers it would take hours.
    assert mcnemar(500_000, 500_000) == 1.0
    z = (2000 - 1) / 1e6**0.5
    expected = 2 * (1 - NormalDist().cdf(z))
    assert mcnemar(501_000, 499_000) == pytest.approx(expected, rel=1e-3)


def test_the_bootstrap_holds_the_mean_and_is_repeatable():
    values = np.random.default_rng(0).normal(5, 1, 400)
    low, high = bootstrap_mean(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert bootstrap_mean(values) == (low, high)


# --- the difference of paired proportions ---------------------------------------------------------


def most_likely(lost, won, n, difference):
    """Find the score statistic the slow way: the best fit among all that differ by so much."""
    shares = np.linspace(max(0.0, -difference), (1 - difference) / 2, 2_000_001)
    kept = 1 - 2 * shares - difference
    with np.errstate(divide="ignore", invalid="ignore"):
        fit = (n - lost - won) * np.log(kept)
        fit += lost * np.log(shares + difference) if lost else 0
        fit += won * np.log(shares) if won else 0
    wins = shares[np.nanargmax(fit)]
    variance = n * (2 * wins + difference - difference**2)
    return (lost - won - n * difference) / np.sqrt(variance)


@pytest.mark.parametrize(("lost", "won", "n"), [(12, 2, 50), (5, 9, 44), (1, 0, 44), (30, 25, 900)])
def test_the_score_bounds_are_where_the_score_test_turns(lost, won, n):
    low, high = score_bounds(lost, won, n)
    assert most_likely(lost, won, n, high) == pytest.approx(-1.959964, abs=1e-3)
    assert most_likely(lost, won, n, low) == pytest.approx(1.959964, abs=1e-3)


def test_the_score_bounds_of_rows_that_never_differ():
    z = 1.959963984540054
    low, high = score_bounds(0, 0, 200)
    assert high == pytest.approx(z * z / (200 + z * z))
    assert low == pytest.approx(-high)
    assert score_bounds(0, 0, 0) == (-1.0, 1.0)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 3000))
def test_the_score_bounds_hold_the_difference_and_turn_with_the_sides(lost, won, same):
    n = lost + won + same
    low, high = score_bounds(lost, won, n)
    assert -1 <= low <= (lost - won) / n <= high <= 1
    assert score_bounds(won, lost, n) == pytest.approx((-high, -low), abs=1e-9)
    wider = score_bounds(lost, won, n, confidence=0.99)
    assert wider[0] <= low
    assert wider[1] >= high


# --- decisions ------------------------------------------------------------------------------------


def turns(lost, won, n):
    return np.array([1] * lost + [-1] * won + [0] * (n - lost - won))


def test_answers_that_never_turn_need_enough_rows_to_say_so():
    few = judge(turns(0, 0, 100), 0.01)
    assert (few.verdict, few.value) == ("undecided", 0.0)
    assert judge(turns(0, 0, few.needs_rows), 0.01).verdict == "met"
    # The upper bound is z^2 / (n + z^2): 268 rows are the fewest that bring it below a hundredth.
    assert judge(turns(0, 0, 267), 0.01).verdict == "undecided"
    assert judge(turns(0, 0, 268), 0.01).verdict == "met"


def test_a_decision_follows_the_bound_and_not_the_mean():
    assert judge(turns(12, 10, 1000), 0.02).verdict == "met"
    barely = judge(turns(12, 4, 1000), 0.01)
    assert (barely.verdict, barely.value) == ("undecided", 0.008)
    assert barely.low < 0.008 < barely.high
    assert barely.needs_rows > 10_000
    assert judge(turns(60, 10, 1000), 0.01).verdict == "failed"
    assert judge(turns(60, 10, 1000), 0.01).needs_rows is None


def test_as_many_rows_as_it_asks_for_decide():
    asked = judge(turns(9, 6, 600), 0.015)
    assert asked.verdict == "undecided"
    more = asked.needs_rows
    lost, won = round(more * 9 / 600), round(more * 6 / 600)
    assert judge(turns(lost, won, more), 0.015).verdict == "met"


def test_a_loss_right_at_the_margin_is_never_decided():
    found = judge(turns(20, 10, 1000), 0.01)
    assert (found.verdict, found.needs_rows) == ("undecided", None)


def test_no_rows_decide_nothing():
    nothing = judge(np.empty(0, dtype=np.int64), 0.01)
    assert (nothing.verdict, nothing.n) == ("undecided", 0)
    assert nothing.needs_rows >= 268
    assert judge(np.zeros(19), 0.01).verdict == "undecided"
    assert judge(np.zeros(19), 0.01).needs_rows == 20


def test_distances_are_judged_by_the_bootstrap_of_their_mean():
    losses = np.random.default_rng(1).normal(0.008, 0.004, 400)
    assert judge(losses, 0.01).verdict == "met"
    assert judge(losses, 0.006).verdict == "failed"
    close = judge(losses[:40], float(losses[:40].mean()) + 0.0004)
    assert close.verdict == "undecided"
    assert close.needs_rows > 40


@given(
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(0, 2000),
    st.floats(0, 0.3, allow_nan=False),
)
@settings(max_examples=60)
def test_a_decision_agrees_with_its_bounds(lost, won, same, margin):
    found = judge(turns(lost, won, lost + won + same), margin)
    assert found == judge(turns(lost, won, lost + won + same)[::-1], margin)
    assert (found.verdict == "met") == (found.n > 0 and found.high <= margin)
    assert (found.verdict == "failed") == (found.n > 0 and found.low > margin)
    if found.needs_rows is not None:
        assert found.verdict == "undecided"
        assert found.needs_rows > found.n
    # A margin that is met is met by every wider one.
    if found.verdict == "met":
        wider = judge(turns(lost, won, lost + won + same), min(1.0, margin + 0.1))
        assert wider.verdict == "met"


@pytest.mark.parametrize(
    ("share_lost", "share_won", "margin", "low", "high"),
    [
        # Right at the margin: accepting is the error that may happen one time in twenty.
        (0.05, 0.03, 0.02, 0.02, 0.08),
        (0.012, 0.002, 0.01, 0.02, 0.08),
        # As good as its parent: accepted nearly always where there are rows enough.
        (0.01, 0.01, 0.02, 0.97, 1.0),
        # Far worse: never.
        (0.08, 0.01, 0.02, 0.0, 0.001),
    ],
)
def test_how_often_a_pair_is_accepted(share_lost, share_won, margin, low, high):
    drawn = np.random.default_rng(7)
    trials, n = 800, 1500
    counts = drawn.multinomial(n, [share_lost, share_won, 1 - share_lost - share_won], trials)
    accepted = [score_bounds(*pair[:2], n, confidence=0.9)[1] <= margin for pair in counts]
    assert low <= np.mean(accepted) <= high
    assert (
        judge(turns(*counts[0][:2], n), margin).high
        == score_bounds(*counts[0][:2], n, confidence=0.9)[1]
    )


def test_how_often_a_bootstrap_bound_errs():
    drawn = np.random.default_rng(3)
    truth = 0.01
    wrong = [
        bootstrap_mean(drawn.gamma(4, truth / 4, 150), confidence=0.9)[1] < truth
        for _ in range(300)
    ]
    assert 0.02 <= np.mean(wrong) <= 0.11


# --- vectors --------------------------------------------------------------------------------------


def test_neighbours_are_counted_row_by_row():
    line = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [0.0, 1.0], [0.1, 1.0]])
    assert neighbour_overlap(line, line * 3, 2).tolist() == [1.0] * 5
    swapped = line[[0, 3, 2, 1, 4]]
    assert neighbour_overlap(swapped, line, 1).tolist() == [0.0, 0.0, 0.0, 0.0, 0.0]
    assert neighbour_overlap(swapped, line, 10).tolist() == [1.0] * 5
    assert neighbour_overlap(line[:1], line[:1], 3).tolist() == [1.0]


def test_cosines_do_not_depend_on_length():
    vectors = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)
    assert cosines(vectors * 7, vectors) == pytest.approx(np.ones(6))
    assert cosines(-vectors, vectors) == pytest.approx(-np.ones(6))
    assert cosines(vectors * 0, vectors).tolist() == [0.0] * 6
