"""Canaries that widen by themselves: judged by what replicas counted, step by step."""

from datetime import timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from registry import queue
from registry.errors import Conflict
from registry.models import Alias, Deployment, Event
from registry.services.canaries import Counted, judge, review_canaries
from registry.services.deployments import (
    deploy,
    deployments_of,
    promote,
    roll_back,
    split_traffic,
)
from registry.web.serving import history_of
from tests.factories import UserFactory, actor_of, make_model, make_version

pytestmark = pytest.mark.django_db
MS = 1_000_000


def counted(requests, failures=0, mean_ms=2.0, spread_ms=0.0):
    answered = requests - failures
    return Counted(
        requests=requests,
        failures=failures,
        total_ns=int(answered * mean_ms * MS),
        squares=int(answered * (mean_ms**2 + spread_ms**2) * 1e6),
    )


@pytest.mark.parametrize(
    ("canary", "others", "seconds", "verdict"),
    [
        (counted(50), counted(5000), 60, "widen"),
        (counted(49), counted(5000), 3600, "wait"),
        (counted(500), counted(5000), 59, "wait"),
        # Nothing to compare with: it answers well.
        (counted(50), counted(0), 60, "widen"),
        (counted(100, 30), counted(5000), 1, "roll_back"),
        (counted(10, 10), counted(5000), 1, "roll_back"),
        # The first request fails: that may be chance.
        (counted(1, 1), counted(5000), 60, "wait"),
        # One failure of ten may be chance; it is no reason to widen either.
        (counted(10, 1), counted(5000), 60, "wait"),
        (counted(60, 2), counted(5000), 60, "wait"),
        # It may be slower than so few others show.
        (counted(52, mean_ms=40), counted(49), 75, "wait"),
        (counted(52), counted(50), 75, "widen"),
        (counted(52), counted(60, 60), 75, "widen"),
        # What fails everywhere is not the canary's fault.
        (counted(100, 30), counted(5000, 1500), 60, "widen"),
        (counted(100, mean_ms=3.1), counted(5000), 1, "roll_back"),
        (counted(100, mean_ms=2.9), counted(5000), 60, "widen"),
        (counted(20, mean_ms=30), counted(5000), 60, "wait"),
        # One answer that hung on a busy machine is no evidence, of many that were slow it is.
        (counted(139, mean_ms=7.6, spread_ms=40), counted(9000, mean_ms=2.9), 60, "wait"),
        (counted(139, mean_ms=7.6, spread_ms=4), counted(9000, mean_ms=2.9), 60, "roll_back"),
        (counted(139, mean_ms=7.6, spread_ms=4), counted(60, spread_ms=20), 60, "wait"),
        (counted(9000, mean_ms=3.0, spread_ms=40), counted(9000, mean_ms=2.9), 60, "widen"),
    ],
)
def test_what_a_canary_has_earned(canary, others, seconds, verdict):
    assert judge(canary, others, seconds=seconds) == verdict


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_more_failures_never_help(requests, failures):
    failures = min(failures, requests)
    order = {"roll_back": 0, "wait": 1, "widen": 2}
    fewer = judge(counted(requests, max(0, failures - 1)), counted(1000, 10), seconds=600)
    more = judge(counted(requests, failures), counted(1000, 10), seconds=600)
    assert order[more] <= order[fewer]


class Traffic:
    """Serving processes that say what they counted, and the clock of the worker that looks."""

    def __init__(self):
        self.now = timezone.now()
        self.started = {"one": self.now - timedelta(days=1)}
        self.counts = {}
        # What each process says of a deployment that it cannot load.
        self.failed = {}

    def answers(self, deployment, requests, failures=0, mean_ms=2.0, at="one"):
        place = at, deployment.pk, _number(deployment)
        self.counts[place] = self.counts.get(place, counted(0)) + counted(
            requests, failures, mean_ms
        )

    def forget(self):
        """Begin anew, as a process that was restarted."""
        self.counts = {}

    def review(self, seconds=61.0, silent=(), late=0):
        """Look after so many seconds; who is late still serves what an alias led to before."""
        self.now += timedelta(seconds=seconds)
        for name in self.started:
            if name in silent:
                queue.report_replica(f"canary-{name}", {"id": f"canary-{name}"}, 0.001)
                continue
            models = []
            for row in Deployment.objects.all():
                number = late if late and row.alias else _number(row)
                one = self.counts.get((name, row.pk, number), counted(0))
                models.append(
                    {
                        "deployment_id": row.pk,
                        "version": number,
                        "state": "failed" if (name, row.pk) in self.failed else "ready",
                        "reason": self.failed.get((name, row.pk), ""),
                        "trial": {
                            "answered": one.requests - one.failures,
                            "ns": one.total_ns,
                            "squares": one.squares,
                            "failed": one.failures,
                        },
                    }
                )
            said = {
                "id": f"canary-{name}",
                "started_at": self.started[name].timestamp(),
                "models": models,
            }
            queue.report_replica(f"canary-{name}", said, 30)
        return review_canaries(now=self.now)


def _number(deployment):
    present = deployments_of(deployment.endpoint)
    return next(one.serves.number for one in present if one.pk == deployment.pk)


@pytest.fixture
def owner():
    return UserFactory(username="olga")


@pytest.fixture
def model(owner):
    repository = make_model(owner)
    for _ in range(2):
        make_version(owner, repository)
    return repository


@pytest.fixture
def live(owner, model):
    return deploy(actor=actor_of(owner), model="olga/classifier", version="1")


@pytest.fixture
def canary(owner, live):
    return deploy(
        actor=actor_of(owner), model="olga/classifier", version="2", role="canary", widens=True
    )


@pytest.fixture
def traffic():
    return Traffic()


def weights():
    return list(Deployment.objects.order_by("pk").values_list("role", "weight"))


def test_a_canary_that_does_well_widens_until_it_answers_everything(live, canary, traffic):
    assert weights() == [("live", 99), ("canary", 1)]
    # What was counted before the step is not evidence.
    traffic.answers(live, 10_000)
    traffic.answers(canary, 10_000, failures=10_000)
    assert traffic.review() == 0
    seen = []
    for _ in range(4):
        traffic.answers(live, 1000)
        traffic.answers(canary, 60)
        assert traffic.review(seconds=10) == 0
        assert traffic.review() == 1
        seen.append(weights())
        traffic.review(seconds=1)
    assert seen == [
        [("live", 95), ("canary", 5)],
        [("live", 75), ("canary", 25)],
        [("live", 50), ("canary", 50)],
        [("live", 0), ("live", 100)],
    ]
    traffic.answers(canary, 1000, failures=1000)
    assert traffic.review() == 0
    first = Event.objects.filter(action="canary.widen").earliest("pk").data
    assert (first["before"], first["weight"]) == (1, 5)
    assert first["evidence"]["canary"] == {"requests": 60, "failures": 0, "mean_ms": 2.0}
    assert first["evidence"]["others"]["requests"] == 1000


@pytest.mark.parametrize("bad", [{"failures": 30}, {"mean_ms": 9.0}])
def test_a_canary_that_does_worse_gives_its_requests_back(owner, live, canary, traffic, bad):
    traffic.review()
    traffic.answers(live, 1000)
    traffic.answers(canary, 60, **bad)
    assert traffic.review(seconds=5) == 1
    assert weights() == [("live", 100), ("canary", 0)]
    said = Event.objects.get(action="canary.roll_back").data
    assert said["evidence"]["canary"]["requests"] == 60
    traffic.answers(canary, 1000)
    assert traffic.review() == 0
    # By hand it may be tried again, and then stays where it was put.
    again = {live.pk: 99, canary.pk: 1}
    split_traffic(actor=actor_of(owner), endpoint=live.endpoint, weights=again)
    assert traffic.review() == 0


@pytest.mark.parametrize("steps", [1, 4])
def test_one_step_back_leads_out_of_what_a_canary_did_by_itself(
    owner, live, canary, traffic, steps
):
    for _ in range(steps):
        traffic.review()
        traffic.answers(live, 1000)
        traffic.answers(canary, 60)
        assert traffic.review() == 1
    before = live.endpoint.updated_at
    live.endpoint.refresh_from_db()
    assert live.endpoint.updated_at > before
    roll_back(actor=actor_of(owner), endpoint=live.endpoint)
    assert [weight for _, weight in weights()] == [100, 0]
    assert not Deployment.objects.exclude(trial={}).exists()


def test_a_canary_that_was_taken_back_does_not_come_back_by_one_step(owner, live, canary, traffic):
    traffic.review()
    traffic.answers(live, 1000)
    traffic.answers(canary, 60, failures=60)
    assert traffic.review() == 1
    roll_back(actor=actor_of(owner), endpoint=live.endpoint)
    assert weights() == [("live", 100), ("canary", 0)]


def test_a_canary_with_nothing_beside_it_is_not_taken_back(owner, model, traffic):
    canary = deploy(
        actor=actor_of(owner), model="olga/classifier", version="2", role="canary", widens=True
    )
    assert weights() == [("canary", 100)]
    # As a previous release left it.
    Deployment.objects.update(trial={"begun": True})
    traffic.review()
    traffic.answers(canary, 1000, failures=1000)
    assert traffic.review() == 0
    assert weights() == [("canary", 100)]


def test_whoever_gives_a_canary_everything_ends_its_trial(owner, live, canary, traffic):
    weighed = {canary.pk: 100}
    split_traffic(actor=actor_of(owner), endpoint=live.endpoint, weights=weighed)
    assert Deployment.objects.get(pk=canary.pk).trial == {}
    traffic.review()
    traffic.answers(canary, 1000, failures=1000)
    assert traffic.review() == 0
    assert weights() == [("live", 0), ("canary", 100)]


def test_a_step_does_not_begin_while_nothing_is_heard(live, canary, traffic):
    traffic.answers(live, 90_000)
    traffic.answers(canary, 900)
    for _ in range(3):
        assert traffic.review(silent=["one"]) == 0
    assert traffic.review() == 0
    assert traffic.review() == 0
    assert weights() == [("live", 99), ("canary", 1)]


def test_what_a_silent_process_counted_before_is_no_evidence(live, canary, traffic):
    traffic.started["two"] = traffic.started["one"]
    traffic.answers(live, 90_000, at="two")
    traffic.answers(canary, 900, failures=900, at="two")
    assert traffic.review(silent=["two"]) == 0
    assert traffic.review() == 0
    # But what has begun after the step has counted nothing else.
    traffic.started["three"] = traffic.now
    traffic.answers(live, 1000, at="two")
    traffic.answers(canary, 30, at="two")
    traffic.answers(canary, 30, at="three")
    assert traffic.review() == 1
    evidence = Event.objects.get(action="canary.widen").data["evidence"]
    assert evidence["canary"]["requests"] == 60
    assert evidence["others"]["requests"] == 1000


def test_an_alias_that_comes_back_brings_no_evidence_along(owner, model, live, traffic):
    alias = Alias.objects.create(
        repository=model, name="next", version=model.versions.get(number=2)
    )
    canary = deploy(
        actor=actor_of(owner), model="olga/classifier", version="@next", role="canary", widens=True
    )
    traffic.answers(canary, 5000)
    traffic.review()
    Alias.objects.update(version=make_version(owner, model))
    assert traffic.review() == 0
    Alias.objects.update(version=alias.version)
    assert traffic.review(late=3) == 0
    assert traffic.review() == 0
    assert traffic.review() == 0
    traffic.answers(canary, 60)
    assert traffic.review() == 1


def test_a_process_that_was_restarted_counts_from_nothing(live, canary, traffic):
    traffic.answers(live, 10_000)
    traffic.answers(canary, 500)
    traffic.review()
    traffic.forget()
    traffic.answers(live, 1000)
    traffic.answers(canary, 60)
    assert traffic.review() == 1
    evidence = Event.objects.get(action="canary.widen").data["evidence"]
    assert (evidence["canary"]["requests"], evidence["others"]["requests"]) == (60, 1000)


def test_an_alias_that_moves_begins_the_step_anew(owner, model, live, traffic):
    third = make_version(owner, model)
    Alias.objects.create(repository=model, name="next", version=model.versions.get(number=2))
    canary = deploy(
        actor=actor_of(owner), model="olga/classifier", version="@next", role="canary", widens=True
    )
    traffic.review()
    traffic.answers(canary, 60)
    Alias.objects.update(version=third)
    assert traffic.review() == 0
    traffic.answers(canary, 60)
    assert traffic.review() == 1


def test_whoever_takes_its_requests_away_ends_its_trial(owner, live, canary, traffic):
    actor = actor_of(owner)
    split_traffic(actor=actor, endpoint=live.endpoint, weights={live.pk: 100})
    split_traffic(actor=actor, endpoint=live.endpoint, weights={live.pk: 90, canary.pk: 10})
    traffic.review()
    traffic.answers(canary, 100)
    assert traffic.review() == 0
    promote(actor=actor, deployment=canary)
    assert Deployment.objects.get(pk=canary.pk).trial == {}


# --- Not loaded ----------------------------------------------------------------------------------


def test_a_canary_that_cannot_be_loaded_is_taken_back(live, canary, traffic):
    traffic.failed["one", canary.pk] = "Its weights are cut short."
    assert traffic.review() == 0
    # The first attempts may fail for reasons that pass.
    assert traffic.review(seconds=10) == 0
    traffic.answers(live, 1000)
    assert traffic.review() == 1
    assert weights() == [("live", 100), ("canary", 0)]
    said = Event.objects.get(action="canary.roll_back").data
    assert (said["before"], said["cause"]) == (1, "load_failed")
    assert said["reason"] == "Its weights are cut short."
    assert Deployment.objects.get(pk=canary.pk).trial == {}
    (line,) = [one for one in history_of(live.endpoint) if "back to 0 %" in one.text]
    assert line.text == "v2 could not be loaded: from 1 % back to 0 %"
    assert (line.reason, line.evidence) == ("Its weights are cut short.", "")


def test_a_canary_that_one_process_can_load_goes_on(live, canary, traffic):
    traffic.started["two"] = traffic.started["one"]
    traffic.failed["one", canary.pk] = "No compiler is there."
    assert traffic.review() == 0
    assert traffic.review() == 0
    traffic.answers(live, 1000)
    traffic.answers(canary, 60, at="two")
    assert traffic.review() == 1
    assert weights() == [("live", 95), ("canary", 5)]


# --- Small shares --------------------------------------------------------------------------------


def deployed(owner, model, number, **more):
    while model.versions.count() < number:
        make_version(owner, model)
    actor = actor_of(owner)
    return deploy(actor=actor, model="olga/classifier", version=str(number), **more)


def test_a_canary_that_widens_takes_no_other_share_away(owner, model, live, canary, traffic):
    other = deployed(owner, model, 3, role="canary", widens=True)
    assert weights() == [("live", 98), ("canary", 1), ("canary", 1)]
    for percent in (5, 25, 50):
        traffic.review()
        traffic.answers(live, 1000)
        traffic.answers(other, 60)
        assert traffic.review() == 1
        assert weights() == [("live", 99 - percent), ("canary", 1), ("canary", percent)]
        assert Deployment.objects.get(pk=canary.pk).trial
    # The one that was let alone still goes on by itself.
    traffic.review()
    traffic.answers(live, 1000)
    traffic.answers(canary, 60)
    assert traffic.review() == 1
    assert Event.objects.filter(action="canary.widen").latest("pk").data["deployment"] == canary.pk


def test_a_small_live_share_outlasts_a_canary(owner, model, live, traffic):
    small = deployed(owner, model, 2)
    split_traffic(actor=actor_of(owner), endpoint=live.endpoint, weights={live.pk: 99, small.pk: 1})
    canary = deployed(owner, model, 3, role="canary", widens=True)
    assert weights() == [("live", 98), ("live", 1), ("canary", 1)]
    traffic.review()
    traffic.answers(live, 1000)
    traffic.answers(canary, 60, failures=60)
    assert traffic.review() == 1
    assert weights() == [("live", 99), ("live", 1), ("canary", 0)]


def test_a_share_that_leaves_others_nothing_is_refused(owner, model, live):
    small = deployed(owner, model, 2)
    split_traffic(actor=actor_of(owner), endpoint=live.endpoint, weights={live.pk: 99, small.pk: 1})
    with pytest.raises(Conflict) as refused:
        deployed(owner, model, 3, role="canary", weight=99)
    assert refused.value.reason == "no_share_left"
    assert weights() == [("live", 99), ("live", 1)]
    deployed(owner, model, 3, role="canary", weight=98)
    assert weights() == [("live", 1), ("live", 1), ("canary", 98)]


def test_without_word_from_serving_nothing_moves(canary, traffic):
    queue.report_replica("canary-test", {"id": "canary-test", "models": []}, 30)
    traffic.review()
    assert traffic.review(seconds=86_400) == 0
    assert weights() == [("live", 99), ("canary", 1)]
