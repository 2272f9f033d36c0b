"""Which replica takes a call, and which is left out: by a clock of the test's own."""

import asyncio

import pytest

from registry.errors import Unavailable
from workers.serving import pool as p
from workers.serving.pool import Pool


class Yard:
    """Replicas that answer or not, as a test says, and a clock."""

    def __init__(self, *names):
        self.now = 1000.0
        self.silent = set()
        self.pool = Pool(self.answers, clock=lambda: self.now)
        self.pool.hear([status(name) for name in names])
        self.check()

    async def answers(self, replica):
        return replica.id not in self.silent

    def check(self):
        asyncio.run(self.pool.check_all())

    def __getitem__(self, name):
        return next(one for one in self.pool.all if one.id == name)

    def fail(self, name, count=p.FAILURES_IN_A_ROW):
        for _ in range(count):
            self.pool.count(self[name], failed=True)

    def picked(self, model="", count=200, **more):
        return {self.pool.pick(model, **more).id for _ in range(count)}


def status(name, *, pending=0, models=(), state="ready"):
    said = [
        {"endpoint": model, "version": 1, "state": state, "pending": pending} for model in models
    ]
    return {"id": name, "host": name, "rest_port": 1, "grpc_port": 2, "models": said}


def test_nobody_is_asked_before_it_has_answered():
    yard = Yard()
    with pytest.raises(Unavailable):
        yard.pool.pick()
    yard.silent.add("a")
    yard.pool.hear([status("a"), {"id": "of another release"}])
    yard.check()
    with pytest.raises(Unavailable):
        yard.pool.pick()
    yard.silent.clear()
    yard.check()
    assert yard.pool.pick().id == "a"


def test_the_less_busy_of_two_takes_a_call():
    yard = Yard("a", "b", "c")
    assert yard.picked() == {"a", "b", "c"}
    yard["a"].in_flight = 10
    assert yard.picked() == {"b", "c"}
    yard.pool.hear([status("b", pending=7, models=["x/y"])])
    counts = [yard.pool.pick().id for _ in range(300)]
    assert counts.count("c") > counts.count("b") > counts.count("a") == 0
    assert yard.picked(beside=[yard["b"], yard["c"]]) == {"a"}


def test_who_is_loading_the_model_is_preferred_where_nobody_has_it():
    yard = Yard("a", "b", "c")
    yard.pool.hear([status("b", models=["Lab/One"], state="loading")])
    assert yard.picked("lab/one") == {"b"}
    yard.pool.promise(yard["c"], "Lab/Two", 60)
    assert yard.picked("lab/two") == {"c"}
    assert yard.picked("lab/two", beside=[yard["c"]]) == {"a", "b"}
    yard.pool.hear([status("a", models=["lab/one", "lab/two"])])
    assert yard.picked("lab/one") == yard.picked("lab/two") == {"a"}
    assert yard.pool.has_loaded("Lab/Two", beside=[yard["b"]])
    assert not yard.pool.has_loaded("lab/two", beside=[yard["a"]])
    yard.pool.hear([status("a")])
    yard.now += 61
    yard.pool.hear([status("c")])
    assert yard.picked("lab/two") == {"a", "b", "c"}
    assert not yard["c"].promised


def test_what_a_replica_told_a_caller_counts_until_it_reports():
    yard = Yard("a", "b")
    yard.pool.promise(yard["a"], "lab/one", 60)
    yard.now += 3
    yard.pool.hear([status("a", models=["lab/one"], state="loading")])
    yard.now += 30
    assert yard.picked("lab/one") == {"a"}
    yard.pool.hear([status("a", models=["lab/one"], state="asleep")])
    assert yard.picked("lab/one") == {"a", "b"}


def test_who_has_the_model_loaded_is_preferred():
    yard = Yard("a", "b", "c")
    yard.pool.hear([status("b", models=["Lab/One"])])
    assert yard.picked("lab/one") == {"b"}
    assert yard.picked("lab/other") == {"a", "b", "c"}
    yard.silent.add("b")
    yard.check()
    yard.check()
    assert yard.picked("lab/one") == {"a", "c"}


def test_two_silences_take_a_replica_out_and_one_answer_brings_it_back():
    yard = Yard("a", "b")
    yard.silent.add("a")
    yard.check()
    assert yard.picked() == {"a", "b"}
    lost = yard["a"].down
    yard.check()
    assert lost.is_set()
    assert yard.picked() == {"b"}
    yard.silent.clear()
    yard.check()
    assert yard.picked() == {"a", "b"}
    assert not yard["a"].down.is_set()


def test_who_neither_reports_nor_answers_is_forgotten_and_who_answers_is_not():
    """Redis may be away: then nobody reports, and all go on."""
    yard = Yard("a", "b")
    yard.silent.add("a")
    for _ in range(3):
        yard.now += p.FORGOTTEN_SECONDS
        yard.pool.hear([])
        yard.check()
    assert {one.id for one in yard.pool.all} == {"b"}


def test_failures_in_a_row_eject_for_longer_each_time():
    yard = Yard("a", "b", "c")
    yard.fail("a", p.FAILURES_IN_A_ROW - 1)
    yard.pool.count(yard["a"], failed=False)
    yard.fail("a", p.FAILURES_IN_A_ROW - 1)
    assert yard.picked() == {"a", "b", "c"}
    yard.fail("a", 1)
    for times in (1, 2, 3):
        assert yard.picked() == {"b", "c"}
        yard.now += p.EJECTED_SECONDS * times - 0.1
        assert yard.picked() == {"b", "c"}
        yard.now += 0.2
        assert yard.picked() == {"a", "b", "c"}
        yard.fail("a")
    assert yard.pool.ejections == 4


def test_a_quiet_while_shortens_the_next_ejection():
    yard = Yard("a", "b", "c")
    yard.fail("a")
    yard.now += p.EJECTED_SECONDS + 0.1
    yard.fail("a")
    assert yard["a"].ejections == 2
    for _ in range(4):
        yard.now += p.INTERVAL_SECONDS + p.EJECTED_SECONDS
        yard.check()
    assert yard["a"].ejections == 0
    yard.fail("a")
    yard.now += p.EJECTED_SECONDS + 0.1
    assert yard.picked() == {"a", "b", "c"}


def test_a_large_share_of_failures_ejects_too():
    yard = Yard("a", "b", "c")
    for _ in range(p.LEAST_CALLS):
        yard.pool.count(yard["a"], failed=True)
        yard.pool.count(yard["a"], failed=False)
    assert yard.picked() == {"b", "c"}


def test_never_more_than_half_are_ejected_and_one_may_always_be():
    yard = Yard("a", "b", "c", "d", "e")
    for name in "abcde":
        yard.fail(name)
    assert sum(one.is_ejected(yard.now) for one in yard.pool.all) == 2
    yard = Yard("a")
    yard.fail("a")
    # Alone, it is still better than nobody.
    assert yard.picked() == {"a"}
