"""Canaries that widen by themselves: judged by what replicas counted, step by step."""

from datetime import timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from registry import queue
from registry.models import Alias, Deployment, Event
from registry.services.canaries import Counted, judge, review_canaries
from registry.services.deployments import deploy, promote, roll_back, split_traffic
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
    """A serving process that says what it counted, and the clock of the worker that looks."""

    def __init__(self):
        self.now = timezone.now()
        self.counts = {}

    def answers(self, deployment, requests, failures=0, mean_ms=2.0):
        before = self.counts.get(deployment.pk, counted(0))
        self.counts[deployment.pk] = before + counted(requests, failures, mean_ms)

    def forget(self):
        """Begin anew, as a process that was restarted."""
        self.counts = {}

    def review(self, seconds=61.0):
        self.now += timedelta(seconds=seconds)
        models = [
            {
                "deployment_id": key,
                "state": "ready",
                "success_count": one.requests - one.failures,
                "success_ns": one.total_ns,
                "success_squares": one.squares,
                "fail_count": one.failures,
            }
            for key, one in self.counts.items()
        ]
        queue.report_replica("canary-test", {"id": "canary-test", "models": models}, 30)
        return review_canaries(now=self.now)


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
    roll_back(actor=actor_of(owner), endpoint=live.endpoint)
    assert weights() == [("live", 99), ("canary", 1)]
    assert traffic.review() == 0


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


def test_without_word_from_serving_nothing_moves(canary, traffic):
    queue.report_replica("canary-test", {"id": "canary-test", "models": []}, 30)
    traffic.review()
    assert traffic.review(seconds=86_400) == 0
    assert weights() == [("live", 99), ("canary", 1)]
