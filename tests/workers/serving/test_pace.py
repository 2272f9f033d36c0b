"""Who waits awake, and that nobody does for more than one caller."""

import asyncio
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.serving import yard as y
from workers.serving import pace as p
from workers.serving.pace import Pace

SOON = 100_000
RUN = 40_000


class Clocked:
    """A pace with a clock that goes by what is told."""

    def __init__(self):
        self.pace = Pace()
        self.now = p.REST_NS

    def one(self, whose="a", *, after=SOON, is_alone=True, others=False, run_ns=RUN):
        """Run one batch of a queue; give whether anybody waits awake for the next."""
        self.now += after
        awake = self.pace.begin(whose, self.now, is_alone=is_alone)
        self.now += RUN
        self.pace.end(whose, self.now, run_ns=run_ns, others_wait=others)
        return awake

    def some(self, count, **how):
        return [self.one(**how) > 0 for _ in range(count)]


def test_one_caller_is_waited_for_awake_after_a_while():
    clocked = Clocked()
    assert not any(clocked.some(p.STREAK))
    awake = [clocked.one() for _ in range(p.ROUND - p.STREAK)]
    # For twice as long as it mostly takes to ask again.
    assert all(awake)
    assert 2 * SOON <= awake[-1] < 3 * SOON


def test_now_and_then_it_is_seen_whether_there_are_others():
    clocked = Clocked()
    awake = clocked.some(4 * p.ROUND)
    assert 4 * (p.STREAK - 1) <= awake.count(False) <= 4 * (p.STREAK + 1)


def test_who_takes_long_between_two_calls_is_waited_for_asleep():
    assert not any(Clocked().some(3 * p.ROUND, after=2 * p.LONGEST_PAUSE_NS))
    assert not any(Clocked().some(3 * p.ROUND, run_ns=2 * p.LONGEST_RUN_NS))
    clocked = Clocked()
    clocked.some(2 * p.STREAK)
    assert not clocked.one(after=p.REST_NS + 1)
    assert not any(clocked.some(p.STREAK - 1))
    assert clocked.one()


@given(
    st.lists(
        st.tuples(
            st.integers(0, p.STREAK - 2),
            st.sampled_from(
                [
                    {"whose": "b"},
                    {"is_alone": False},
                    {"others": True},
                    {"after": p.REST_NS + 1},
                ]
            ),
        ),
        max_size=8,
    )
)
def test_nobody_waits_awake_where_there_are_others(parts):
    clocked = Clocked()
    for count, event in parts:
        assert not any(clocked.some(count))
        assert not clocked.one(**event)


@pytest.mark.parametrize("how", ["ends", "is forgotten"])
def test_nobody_waits_awake_while_another_model_computes(how):
    clocked = Clocked()
    clocked.some(2 * p.STREAK)
    clocked.pace.begin("b", clocked.now, is_alone=True)
    assert not any(clocked.some(3 * p.ROUND))
    if how == "ends":
        clocked.pace.end("b", clocked.now, run_ns=RUN, others_wait=False)
    else:
        clocked.pace.forget("b")
    clocked.some(p.STREAK)
    assert clocked.one()


def test_who_has_gone_is_not_waited_for():
    clocked = Clocked()
    clocked.some(2 * p.STREAK)
    clocked.pace.begin("a", clocked.now + SOON, is_alone=True)
    clocked.pace.forget("a")
    assert not any(clocked.some(p.STREAK))
    assert clocked.one()


def test_a_model_that_is_called_time_after_time_answers_and_comes_to_rest(yard, monkeypatch):
    """However slow the machine is just now."""
    monkeypatch.setattr("workers.serving.pace.LONGEST_PAUSE_NS", 10**9)
    monkeypatch.setattr("workers.serving.pace.REST_NS", 10**9)
    monkeypatch.setattr("workers.serving.pace.LONGEST_RUN_NS", 10**9)

    async def go():
        yard.route("a/mlp", yard.version("a/mlp", 1, y.mlp()))
        async with yard.plane() as plane:
            one = y.floats(np.ones((1, 16)))
            (expected,) = (await y.ask(plane, "a/mlp", one))[1]
            process = next(one for one in plane.fleet.all if one.is_ready).process
            heard = []
            listen = process.hear_awake

            def hear_awake(ns):
                listen(ns)
                heard.append("end" if process.ended else "nothing" if process._verb else "answer")

            monkeypatch.setattr(process, "hear_awake", hear_awake)
            monkeypatch.setattr(Pace, "patience_ns", 10**9)
            states = []
            for _ in range(p.STREAK + 50):
                assert np.array_equal((await y.ask(plane, "a/mlp", one))[1][0], expected)
                states.append(_state_of(process.pid))
            assert len(heard) >= 40
            assert set(heard) == {"answer"}
            assert states[-40:].count("R") >= 20
            # It sleeps once nothing comes any more, until it is called again.
            await y.until(lambda: _state_of(process.pid) == "S")
            assert np.array_equal((await y.ask(plane, "a/mlp", one))[1][0], expected)
            # Its end is heard by who looks for its answer, and the request goes to the next one.
            os.kill(process.pid, signal.SIGSTOP)
            asking = asyncio.create_task(y.ask(plane, "a/mlp", one))
            threading.Timer(0.1, os.kill, (process.pid, signal.SIGKILL)).start()
            assert np.array_equal((await asking)[1][0], expected)
            assert heard[-1] == "end"

    asyncio.run(go())


def _state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
