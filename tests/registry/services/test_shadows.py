"""The gate of a shadow: what replicas counted of it, and what that allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import queue
from registry.errors import Conflict
from registry.models import Deployment, Event
from registry.routes import read_routes
from registry.services.catalog import set_alias
from registry.services.deployments import (
    change_deployment,
    deploy,
    deployments_of,
    promote,
    roll_back,
    split_traffic,
)
from registry.services.gate import evidence_of, judge
from registry.services.proposals import approve_proposal, propose_alias
from registry.services.shadows import gather_evidence
from registry.services.sharing import set_grant
from registry.serving_options import ServingOptions
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


def tell(shadow, compared, agreed, *, replica="shadow-test", beside=None, **more):
    live = shadow.endpoint.deployments.get(role="live").version_id
    pair = (shadow.version_id, beside or live)
    return count(shadow, compared, agreed, pair=pair, replica=replica, **more)


def count(shadow, compared, agreed, *, pair, replica, in_time=None, percent=200):
    counted = {
        "version_id": pair[0],
        "beside_version_id": pair[1],
        "compared": compared,
        "agreed": agreed,
        "failed": 0,
        "live_ns": 1000 * compared,
        "shadow_ns": 500 * compared,
        "timed": compared,
        "in_time": compared if in_time is None else in_time,
        "time_percent": percent,
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


def test_a_shadow_that_agrees_but_takes_too_long_is_blocked(owner, shadow):
    actor = actor_of(owner)
    found = tell(shadow, 400, 400, in_time=100)
    assert (found.agreement_verdict, found.latency_verdict) == ("allow", "block")
    with pytest.raises(Conflict, match="100 of 400 requests in at most 200 percent") as refused:
        promote(actor=actor, deployment=shadow)
    assert refused.value.reason == "shadow_too_slow"
    promote(actor=actor, deployment=shadow, reason="It is worth the wait.")
    said = Event.objects.filter(action="deployment.promote").latest("pk").data["shadow"]
    assert (said["in_time"], said["latency_verdict"], said["verdict"]) == (100, "block", "block")


@pytest.mark.parametrize(
    ("in_time", "timed", "verdict"),
    [
        (0, 0, "undecided"),
        (15, 15, "undecided"),
        (30, 30, "allow"),
        # One in ten may be the machine's doing, as long as it is not more.
        (180, 200, "allow"),
        (300, 400, "undecided"),
        (200, 400, "block"),
        (0, 4, "block"),
    ],
)
def test_both_shares_have_to_be_proven(shadow, in_time, timed, verdict):
    found = tell(shadow, timed, timed, in_time=in_time)
    assert found.latency_verdict == verdict
    assert found.verdict == (verdict if timed >= 200 or verdict == "block" else "undecided")


def test_another_limit_of_time_asks_for_times_anew(owner, shadow):
    assert tell(shadow, 400, 400).verdict == "allow"
    options = ServingOptions(shadow_time_percent=100)
    change_deployment(actor=actor_of(owner), deployment=shadow, options=options)
    changed = Deployment.objects.get(pk=shadow.pk)
    found = evidence_of(changed)
    assert (found.compared, found.timed, found.verdict) == (400, 0, "undecided")
    # What a process still counts by the limit of before says nothing, and is added up once.
    assert tell(changed, 500, 500).timed == 0
    found = tell(changed, 60, 60, in_time=20, percent=100)
    assert (found.compared, found.timed, found.in_time) == (460, 60, 20)
    change_deployment(actor=actor_of(owner), deployment=shadow, options=ServingOptions())
    found = tell(Deployment.objects.get(pk=shadow.pk), 520, 520)
    assert (found.compared, found.timed) == (580, 120)


def test_a_process_of_the_release_before_says_nothing_of_times(shadow):
    live = shadow.endpoint.deployments.get(role="live").version_id
    old = {"version_id": shadow.version_id, "beside_version_id": live, "compared": 9, "agreed": 9}
    models = [{"deployment_id": shadow.pk, "state": "ready", "shadow": [old]}]
    queue.report_replica("shadow-old", {"id": "shadow-old", "models": models}, 30)
    gather_evidence()
    found = evidence_of(Deployment.objects.get(pk=shadow.pk))
    assert (found.compared, found.timed) == (9, 0)


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


# --- Aliases that deployments follow -------------------------------------------------------------


IMAGE = {"name": "image", "dtype": "uint8", "shape": ["batch", 28, 28]}
TEXT = {"name": "text", "dtype": "int64", "shape": ["batch", 256]}


def signed(repository, number, *inputs):
    outputs = [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    signature = {"inputs": list(inputs), "outputs": outputs}
    repository.versions.filter(number=number).update(signature=signature)


@pytest.fixture
def followed(owner):
    """Deploy `champion`, at version 1; version 2 fits its callers, 3 not."""
    repository = make_model(owner)
    for _ in range(3):
        make_version(owner, repository)
    signed(repository, 1, IMAGE)
    signed(repository, 2, IMAGE)
    signed(repository, 3, TEXT)
    move(owner, repository, 1)
    return deploy(actor=actor_of(owner), model="olga/classifier", version="@champion")


def move(user, repository, number, **more):
    version = repository.versions.get(number=number)
    actor = actor_of(user)
    set_alias(actor=actor, repository=repository, alias="champion", version=version, **more)


def served_by(deployment):
    (route,) = read_routes()
    return next(one.number for one in route.deployments if one.id == deployment.pk)


@pytest.fixture
def colleague(owner, followed):
    user = UserFactory(username="carl")
    repository = followed.endpoint.repository
    set_grant(
        actor=actor_of(owner),
        repository=repository,
        role="contributor",
        username="carl",
    )
    return user


def test_a_followed_alias_moves_to_what_takes_what_callers_send(owner, followed, colleague):
    repository = followed.endpoint.repository
    move(colleague, repository, 2)
    assert served_by(followed) == 2
    said = Event.objects.filter(action="alias.set").latest("pk").data
    assert said["endpoints"] == [followed.endpoint_id]
    for user, reason in ((owner, ""), (colleague, ""), (colleague, "I know.")):
        with pytest.raises(Conflict) as refused:
            move(user, repository, 3, reason=reason)
        assert refused.value.reason == "incompatible_signature"
    assert served_by(followed) == 2
    move(owner, repository, 3, reason="Callers know.")
    assert served_by(followed) == 3
    said = Event.objects.filter(action="alias.set").latest("pk").data
    assert (said["reason"], "needs the input 'text'" in said["incompatible"]) == (
        "Callers know.",
        True,
    )


def test_an_alias_that_only_a_shadow_follows_moves_freely(owner, followed):
    repository = followed.endpoint.repository
    version = repository.versions.get(number=2)
    set_alias(actor=actor_of(owner), repository=repository, alias="next", version=version)
    deploy(actor=actor_of(owner), model="olga/classifier", version="@next", role="shadow")
    version = repository.versions.get(number=3)
    set_alias(actor=actor_of(owner), repository=repository, alias="next", version=version)


@pytest.mark.parametrize("tried", ["2", "@next"])
def test_a_followed_alias_moves_as_little_past_the_gate(owner, followed, tried):
    repository, actor = followed.endpoint.repository, actor_of(owner)
    version = repository.versions.get(number=2)
    set_alias(actor=actor, repository=repository, alias="next", version=version)
    trying = deploy(actor=actor, model="olga/classifier", version=tried, role="shadow")
    first = repository.versions.get(number=1).pk
    for agreed, reason in ((40, "shadow_undecided"), (10, "shadow_blocked")):
        # Another replica each: what is counted adds up.
        count(trying, 40, agreed, pair=(version.pk, first), replica=f"gate-{tried}-{agreed}")
        with pytest.raises(Conflict) as refused:
            move(owner, repository, 2)
        assert refused.value.reason == reason
    assert served_by(followed) == 1
    count(trying, 2000, 2000, pair=(version.pk, first), replica=f"gate-{tried}-more")
    move(owner, repository, 2)
    assert served_by(followed) == 2
    said = Event.objects.filter(action="alias.set").latest("pk").data
    assert said["shadow"]["verdict"] == "allow"


def test_what_was_counted_of_another_version_opens_no_gate(owner, followed):
    repository, actor = followed.endpoint.repository, actor_of(owner)
    versions = {one.number: one for one in repository.versions.all()}
    signed(repository, 3, IMAGE)
    set_alias(actor=actor, repository=repository, alias="next", version=versions[2])
    trying = deploy(actor=actor, model="olga/classifier", version="@next", role="shadow")
    pair = (versions[2].pk, versions[1].pk)
    count(trying, 400, 400, pair=pair, replica="gate-other")
    # It tries another one now; no replica has said anything of that.
    set_alias(actor=actor, repository=repository, alias="next", version=versions[3])
    for step in (
        lambda: move(owner, repository, 3),
        lambda: promote(actor=actor, deployment=trying),
    ):
        with pytest.raises(Conflict) as refused:
            step()
        assert refused.value.reason == "shadow_undecided"


def test_a_proposal_moves_no_followed_alias_past_its_callers(owner, followed, colleague):
    repository, actor = followed.endpoint.repository, actor_of(owner)
    proposal = propose_alias(
        actor=actor_of(colleague),
        repository=repository,
        alias="champion",
        version=repository.versions.get(number=3),
    )
    with pytest.raises(Conflict) as refused:
        approve_proposal(actor=actor, proposal=proposal, expected_version=1, note="Good.")
    assert refused.value.reason == "incompatible_signature"
    assert served_by(followed) == 1
    approve_proposal(actor=actor, proposal=proposal, expected_version=1, reason="They know.")
    assert served_by(followed) == 3


def test_what_does_not_fit_is_promoted_only_for_a_reason(owner, followed):
    actor, model = actor_of(owner), "olga/classifier"
    waiting = deploy(actor=actor, model=model, version="3", reason="It waits.")
    with pytest.raises(Conflict) as refused:
        promote(actor=actor, deployment=waiting)
    assert refused.value.reason == "incompatible_signature"
    promote(actor=actor, deployment=waiting, reason="Callers have changed.")
    assert Deployment.objects.get(pk=waiting.pk).weight == 100


# --- Every way to begin to answer ----------------------------------------------------------------


@pytest.fixture
def beside(owner, shadow):
    """Deploy what the shadow tries a second time, by an alias, with none of the traffic."""
    repository = shadow.endpoint.repository
    set_alias(
        actor=actor_of(owner),
        repository=repository,
        alias="next",
        version=repository.versions.get(number=2),
    )
    return deploy(actor=actor_of(owner), model="olga/classifier", version="@next")


def answers(deployment):
    return Deployment.objects.get(pk=deployment.pk).weight


def test_the_gate_of_a_shadow_holds_whatever_deployment_is_to_answer(owner, shadow, beside):
    actor, endpoint = actor_of(owner), shadow.endpoint
    (live,) = [one for one in deployments_of(endpoint) if one.weight]
    pair = (shadow.version_id, live.version_id)
    count(shadow, 100, 60, pair=pair, replica="gate-beside")
    for step in (
        lambda: promote(actor=actor, deployment=beside),
        lambda: split_traffic(actor=actor, endpoint=endpoint, weights={beside.pk: 100}),
    ):
        with pytest.raises(Conflict) as refused:
            step()
        assert refused.value.reason == "shadow_blocked"
    assert answers(beside) == 0
    parts = {live.pk: 90, beside.pk: 10}
    split_traffic(actor=actor, endpoint=endpoint, weights=parts, reason="Labels changed.")
    said = Event.objects.filter(action="endpoint.split").latest("pk").data
    assert (said["reason"], said["shadow"]["verdict"]) == ("Labels changed.", "block")
    # What answers already may be given more, or less, without being asked again.
    split_traffic(actor=actor, endpoint=endpoint, weights={live.pk: 10, beside.pk: 90})
    assert answers(beside) == 90


def test_what_a_shadow_tries_is_not_deployed_past_its_gate(owner, shadow):
    repository, actor = shadow.endpoint.repository, actor_of(owner)
    version = repository.versions.get(number=2)
    set_alias(actor=actor, repository=repository, alias="next", version=version)
    asked = {"actor": actor, "model": "olga/classifier", "version": "@next", "role": "canary"}
    with pytest.raises(Conflict) as refused:
        deploy(**asked)
    assert refused.value.reason == "shadow_undecided"
    assert not Deployment.objects.filter(alias="next").exists()
    tell(shadow, 400, 400)
    assert deploy(**asked).weight == 1


def test_traffic_is_not_split_onto_what_does_not_fit_callers(owner, followed):
    actor, endpoint = actor_of(owner), followed.endpoint
    waiting = deploy(actor=actor, model="olga/classifier", version="3", reason="It waits.")
    weights = {followed.pk: 99, waiting.pk: 1}
    with pytest.raises(Conflict) as refused:
        split_traffic(actor=actor, endpoint=endpoint, weights=weights)
    assert refused.value.reason == "incompatible_signature"
    assert answers(waiting) == 0
    split_traffic(actor=actor, endpoint=endpoint, weights=weights, reason="Callers know.")
    assert answers(waiting) == 1


def test_traffic_is_not_split_onto_what_serves_nothing(owner, followed):
    actor, endpoint = actor_of(owner), followed.endpoint
    other = deploy(actor=actor, model="olga/classifier", version="2")
    promote(actor=actor, deployment=other)
    endpoint.repository.aliases.all().delete()
    with pytest.raises(Conflict) as refused:
        split_traffic(actor=actor, endpoint=endpoint, weights={followed.pk: 100})
    assert refused.value.reason == "version_not_ready"


def test_a_way_back_is_never_closed(owner, followed):
    actor, endpoint = actor_of(owner), followed.endpoint
    other = deploy(actor=actor, model="olga/classifier", version="3", reason="It waits.")
    promote(actor=actor, deployment=other, reason="Callers have changed.")
    # Version 1 fits nobody who calls by now, and a shadow that tries it agrees with nothing.
    set_alias(
        actor=actor,
        repository=endpoint.repository,
        alias="first",
        version=endpoint.repository.versions.get(number=1),
    )
    asked = {"actor": actor, "model": "olga/classifier", "version": "@first"}
    trying = deploy(**asked, role="shadow", reason="To see.")
    pair = (trying.serves.pk, other.serves.pk)
    count(trying, 400, 0, pair=pair, replica="gate-back")
    roll_back(actor=actor, endpoint=endpoint)
    assert (answers(followed), answers(other)) == (100, 0)
    roll_back(actor=actor, endpoint=endpoint)
    assert (answers(followed), answers(other)) == (0, 100)


def test_a_way_back_does_not_lead_to_a_version_that_never_answered(owner, followed):
    actor, endpoint = actor_of(owner), followed.endpoint
    other = deploy(actor=actor, model="olga/classifier", version="2")
    promote(actor=actor, deployment=other)
    move(owner, endpoint.repository, 3, reason="Nobody is answered by it now.")
    with pytest.raises(Conflict) as refused:
        roll_back(actor=actor, endpoint=endpoint)
    assert refused.value.reason == "incompatible_signature"
    assert (answers(followed), answers(other)) == (0, 100)
    roll_back(actor=actor, endpoint=endpoint, reason="Callers know.")
    assert (answers(followed), answers(other)) == (100, 0)
    said = Event.objects.filter(action="endpoint.roll_back").latest("pk").data
    assert said["reason"] == "Callers know."


def test_what_is_deployed_without_traffic_leaves_the_way_back(owner, followed):
    actor, endpoint = actor_of(owner), followed.endpoint
    asked = {"actor": actor, "model": "olga/classifier"}
    other = deploy(**asked, version="2")
    promote(actor=actor, deployment=other)
    deploy(**asked, version="3", reason="It waits.")
    roll_back(actor=actor, endpoint=endpoint)
    assert (answers(followed), answers(other)) == (100, 0)


def test_what_the_last_release_remembered_is_gone_back_to(owner, followed):
    actor, endpoint = actor_of(owner), followed.endpoint
    other = deploy(actor=actor, model="olga/classifier", version="2")
    promote(actor=actor, deployment=other)
    endpoint.refresh_from_db()
    endpoint.previous = {key: value[:2] for key, value in endpoint.previous.items()}
    endpoint.save(update_fields=["previous"])
    roll_back(actor=actor, endpoint=endpoint)
    assert answers(followed) == 100
