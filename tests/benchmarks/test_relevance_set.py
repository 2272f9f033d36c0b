"""The relevance set: how gain is counted, and what the set promises."""

import math

import pytest

from benchmarks.relevant.gain import ndcg
from benchmarks.relevant.needs import MODELS, grades, needs
from benchmarks.relevant.plausible import plausible_models, uses

GRADES = {"a": 3, "b": 2, "c": 3, "e": 1, "f": 2}


def test_gain_by_hand():
    """Judged 3, 2, 3, 0, 1, 2: the example of Wikipedia, with gains of 2^grade - 1."""
    found = ["a", "b", "c", "d", "e", "f"]
    gain = 7 + 3 / math.log2(3) + 7 / 2 + 1 / math.log2(6) + 3 / math.log2(7)
    best = 7 + 7 / math.log2(3) + 3 / 2 + 3 / math.log2(5) + 1 / math.log2(6)
    assert ndcg(found, GRADES) == pytest.approx(gain / best)
    assert ndcg(found, GRADES) == pytest.approx(0.9488107485678985)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (["a", "c", "b", "f", "e"], 1.0),
        (["c", "a", "f", "b", "e"], 1.0),
        ([], 0.0),
        (["x", "y"], 0.0),
        (["a", "a", "c", "b", "f", "e"], 1.0),
        (["x", "a"], 0.3026),
    ],
)
def test_gain_at_its_edges(found, expected):
    assert ndcg(found, GRADES) == pytest.approx(expected, abs=1e-3)


def test_what_stands_below_the_depth_counts_for_nothing():
    assert ndcg([*"bcdefghijk", "a"], {"a": 3}) == 0.0
    assert ndcg(["a"], {}) == 0.0


def test_the_set_is_large_and_the_same_each_time():
    models = list(plausible_models(MODELS))
    assert len({model.full_name for model in models}) == MODELS >= 300
    assert models == list(plausible_models(MODELS + 10))[:MODELS]
    assert {model.card_language for model in models} == {"en", "zh"}
    assert len({model.task for model in models}) >= 20
    assert all(near in uses() for use in uses().values() for near in use.near)


def test_each_need_is_served_by_some_models_and_not_by_most():
    models = list(plausible_models(MODELS))
    assert len({need.q for need in needs()}) == len(needs()) >= 60
    assert {need.language for need in needs()} == {"en", "zh", "mixed"}
    for need in needs():
        found = grades(need, models)
        assert 3 in found.values(), need.q
        assert len(found) < MODELS / 5, need.q
