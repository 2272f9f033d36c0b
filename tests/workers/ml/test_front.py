"""The benchmark of compression: whose ways are ahead of whose."""

from dataclasses import replace

import pytest

from benchmarks.compressed.front import ahead_of, figures, ways_of
from benchmarks.compressed.rows import Measured

OURS = Measured(
    model="R8",
    way="int8",
    ours=True,
    seed=0,
    stored_bytes=1000,
    times_smaller=4.0,
    quality=0.950,
    parent_quality=0.951,
    n=2000,
    low=-0.004,
    high=0.002,
    p_value=0.5,
    latency_ms=1.0,
    parent_latency_ms=2.0,
)
THEIRS = replace(OURS, way="theirs", ours=False)


@pytest.mark.parametrize(
    ("stored_bytes", "quality", "ahead"),
    [
        (1000, 0.950, False),
        (2000, 0.954, False),  # half a point is what may be lost
        (2000, 0.956, True),
        (999, 0.940, True),
        (2000, 0.940, False),
    ],
)
def test_a_way_is_ahead_where_none_of_ours_is_as_small_and_as_good(stored_bytes, quality, ahead):
    other = replace(THEIRS, stored_bytes=stored_bytes, quality=quality)
    assert bool(ahead_of(ways_of([OURS, other]), "R8")) == ahead


def test_another_model_of_ours_covers_nothing():
    assert ahead_of(ways_of([replace(OURS, model="IMDb"), THEIRS]), "R8")


def test_seeds_are_averaged_and_the_worse_interval_counts():
    runs = [OURS, replace(OURS, seed=1, stored_bytes=1100, quality=0.940, low=-0.012)]
    (way,) = ways_of(runs)
    assert (way.stored_bytes, way.low, way.high) == (1050, -0.012, 0.002)
    assert way.quality == pytest.approx(0.945)
    aims = {figure.what: figure.met for figure in figures(runs) if figure.aim}
    assert aims == {
        "R8: ways of others that none of ours is as small and as good as": True,
        "R8 int8: times smaller": True,
        "R8 int8: points of accuracy to the parent, lower end of 95 %, worst seed": False,
    }
