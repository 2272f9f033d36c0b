"""Charts place what they are given, and nothing where there is nothing to see."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.web.charts import Measured, curve, scatter, short


def point(name, x, y):
    return Measured(name=name, x=x, y=y, family=1)


def test_front_is_what_nothing_beats():
    chart = scatter([point("big", 10, 95), point("small", 1, 90), point("bad", 5, 89)])
    assert {dot.name for dot in chart.dots if dot.on_front} == {"big", "small"}
    assert chart.front.startswith("M")


@pytest.mark.parametrize("points", [[], [point("one", 1, 1)], [point("zero", 0, 1)] * 3])
def test_too_little_makes_no_chart(points):
    assert scatter(points) is None


@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 4), min_size=2, max_size=5
    )
)
def test_any_numbers_make_a_chart_or_none(numbers):
    scatter(
        Measured(name="v", x=x, y=y, low=low, high=high, family=0) for x, y, low, high in numbers
    )
    curve("loss", [(step, y) for step, (_, y, _, _) in enumerate(numbers)])


def test_a_number_beyond_all_axes_leaves_the_others_their_chart():
    points = [point("a", 1.0, 91.0), point("b", 2.0, 95.0), point("c", 3.0, 1e307)]
    assert [dot.name for dot in scatter(points).dots] == ["a", "b"]


def test_equal_points_still_make_a_chart():
    chart = scatter([point("a", 2, 90), point("b", 2, 90)])
    assert all(math.isfinite(float(dot.x)) and math.isfinite(float(dot.y)) for dot in chart.dots)


def test_long_curves_are_thinned_and_keep_their_end():
    drawn = curve("loss", [(step, 1 / (step + 1)) for step in range(20_000)])
    assert drawn.path.count("L") < 600
    assert drawn.steps == 19_999
    assert drawn.last == short(1 / 20_000)


def test_curves_leave_out_what_is_no_number():
    assert curve("loss", [(1, math.nan), (2, math.inf)]) is None
    assert curve("loss", [(1, math.nan), (2, 3.0)]).last == "3"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.00001, "1.0e-05"), (0.1234, "0.123"), (12.34, "12.3"), (1280, "1,280"), (5, "5")],
)
def test_numbers_are_short(value, text):
    assert short(value) == text


def test_ticks_of_small_numbers_differ():
    drawn = curve("learning_rate", [(step, 0.0005 - step * 1e-6) for step in range(40)])
    texts = [tick.text for tick in drawn.y_ticks]
    assert len(set(texts)) == len(texts) > 1
    assert all(len(text) <= 8 for text in texts)


def test_each_point_of_the_front_has_its_name_in_a_crowd():
    """As a search drew it: what was recommended stood at the edge, beside two others."""
    made = {
        "shared-coded": (562_857, 0.20),
        "int4-coded": (573_437, 0.40),
        "weights8-embeddings4-coded": (578_481, 0.89),
        "int4": (627_017, 0.40),
        "weights8-embeddings4": (635_385, 0.89),
        "fixed6-coded": (645_102, 0.0),
        "fixed8-coded": (901_387, 0.10),
        "int8-coded": (907_852, -0.20),
        "int8": (1_070_304, -0.20),
        "weights8": (1_172_116, -0.10),
    }
    points = [
        Measured(name=name, x=size, y=at, family=1, low=at - 0.7, high=at + 1.0)
        for name, (size, at) in made.items()
    ]
    chart = scatter(points)
    front = {dot.name: dot.label_y for dot in chart.dots if dot.on_front}
    assert list(front)[:1] == ["shared-coded"]
    assert all(front.values())
