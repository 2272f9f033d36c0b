"""The gate of a shadow: what replicas counted of it, and what that allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import queue
from registry.errors import Conflict
from registry.models import Deployment
from registry.services.deployments import deploy, promote
from registry.services.gate import evidence_of, judge
from registry.services.shadows import gather_evidence
from tests.factories import UserFactory, actor_of, make_model, make_version

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("agreed", "compared", "verdict"),
    [
        (0, 0, "undecided"),
        (1, 1, "undecided"),
        (100, 100, "undecided"),
        (200, 200, "allow"),
        (950, 1000, "undecided"),
        (990, 1000, "allow"),
        (900, 1000, "block"),
        (0, 3, "block"),
        (1, 2, "undecided"),
    ],
)
def test_counts_allow_block_or_do_not_say(agreed, compared, verdict):
    assert judge(agreed, compared) == verdict


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_one_more_agreement_never_makes_it_worse(agreed, differed):
    order = {"block": 0, "undecided": 1, "allow": 2}
    before = judge(agreed, agreed + differed)
    after = judge(agreed + 1, agreed + differed + 1)
    assert order[after] >= order[before]


@pytest.fixture
def owner():
    return UserFactory(username="olga")


@pytest.fixture
def shadow(owner):
    repository = make_model(owner)
    for _ in range(3):
        make_version(owner, repository)
    deploy(actor=actor_of(owner), model="olga/classifier", version="1")
    return deploy(actor=actor_of(owner), model="olga/classifier", version="2", role="shadow")


def tell(shadow, compared, agreed, *, replica="shadow-test", beside=None):
    live = shadow.endpoint.deployments.get(role="live").version_id
    counted = {
        "version_id": shadow.version_id,
        "beside_version_id": beside or live,
        "compared": compared,
        "agreed": agreed,
        "failed": 0,
        "live_ns": 1000 * compared,
        "shadow_ns": 500 * compared,
    }
    models = [{"deployment_id": shadow.pk, "state": "ready", "shadow": [counted]}]
    queue.report_replica(replica, {"id": replica, "models": models}, 30)
    gather_evidence()
    return evidence_of(Deployment.objects.get(pk=shadow.pk))


def test_a_shadow_that_agrees_may_be_promoted(owner, shadow):
    actor = actor_of(owner)
    assert tell(shadow, 40, 40).verdict == "undecided"
    with pytest.raises(Conflict, match="does not say yet") as refused:
        promote(actor=actor, deployment=shadow)
    assert refused.value.reason == "shadow_undecided"
    found = tell(shadow, 240, 239)
    assert (found.compared, found.agreed, found.latency_ratio) == (240, 239, 0.5)
    assert found.verdict == "allow"
    promote(actor=actor, deployment=shadow)
    assert Deployment.objects.get(pk=shadow.pk).role == "live"


def test_a_shadow_that_differs_is_blocked_unless_somebody_says_why(owner, shadow):
    assert tell(shadow, 100, 60).verdict == "block"
    with pytest.raises(Conflict) as refused:
        promote(actor=actor_of(owner), deployment=shadow)
    assert refused.value.reason == "shadow_blocked"
    promote(actor=actor_of(owner), deployment=shadow, reason="The labels changed.")
    assert evidence_of(Deployment.objects.get(pk=shadow.pk)) is None


def test_what_was_counted_is_added_up_once(shadow):
    tell(shadow, 10, 10)
    tell(shadow, 10, 10)
    tell(shadow, 15, 14)
    # One process began again, another came, and one speaks of a pair that is none any more.
    tell(shadow, 3, 3)
    tell(shadow, 7, 7, replica="shadow-other")
    found = tell(shadow, 99, 0, replica="shadow-third", beside=999_999)
    assert (found.compared, found.agreed) == (25, 24)


def test_another_live_version_begins_the_count_anew(owner, shadow):
    tell(shadow, 200, 200)
    third = deploy(actor=actor_of(owner), model="olga/classifier", version="3")
    promote(actor=actor_of(owner), deployment=third)
    gather_evidence()
    assert evidence_of(Deployment.objects.get(pk=shadow.pk)).compared == 0
