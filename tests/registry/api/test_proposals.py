"""Protected aliases: proposed, compared, approved, declined, withdrawn, and raced for."""

import json
import threading

import pytest
from django.db import connection

from registry.models import Alias, Event, Role
from registry.services import jobs, proposals, versions
from registry.services.versions import EvaluationSpec
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_member,
    make_model,
    make_version,
)
from tests.registry.api.conftest import api_of, problem_of

pytestmark = pytest.mark.django_db
ONE = "models/team/classifier"
PROPOSALS = f"{ONE}/proposals"


@pytest.fixture
def people(db):
    team = NamespaceFactory(slug="team")
    return {role.value: make_member(team, role) for role in Role}


@pytest.fixture
def model(people):
    repository = make_model(people["owner"], namespace="team")
    for _ in range(3):
        make_version(people["owner"], repository)
    return repository


@pytest.fixture
def apis(people, model):
    return {name: api_of(user) for name, user in people.items()}


def propose(api, version=2, alias="production", **more):
    return api.post(PROPOSALS, {"alias": alias, "version": version, **more})


def test_a_contributor_is_shown_the_way_to_a_proposal(apis):
    contributor, maintainer = apis["contributor"], apis["maintainer"]
    for alias in ("production", "Production"):
        refused = contributor.put(f"{ONE}/aliases/{alias}", {"version": 1})
        body = problem_of(refused, 403, "alias_protected")
        assert "POST /api/v1/models/team/classifier/proposals" in body["detail"]
    assert contributor.put(f"{ONE}/aliases/champion", {"version": 1}).status_code == 200
    assert maintainer.put(f"{ONE}/aliases/production", {"version": 1}).status_code == 200
    problem_of(contributor.delete(f"{ONE}/aliases/production"), 403, "alias_protected")
    assert maintainer.delete(f"{ONE}/aliases/production").status_code == 204


def test_an_approval_moves_the_alias_and_is_kept(apis, people):
    made = propose(apis["contributor"], message="Two points better.")
    assert made.status_code == 201
    body = made.json()
    assert (body["number"], body["state"], body["present"]) == (1, "open", None)
    address = made["Location"]
    problem_of(
        apis["contributor"].post(f"{address}/approve", {"expected_version": None}), 403, "denied"
    )
    done = apis["maintainer"].post(f"{address}/approve", {"expected_version": None, "note": "Go."})
    body = done.json()
    assert (body["state"], body["present"], body["replaced"]) == ("approved", 2, None)
    assert (body["decided_by"], body["note"]) == (people["maintainer"].username, "Go.")
    assert Alias.objects.get(name="production").version.number == 2
    assert Event.objects.get(action="alias.set").data["proposal"] == 1
    again = apis["maintainer"].post(f"{address}/approve", {"expected_version": 2})
    problem_of(again, 409, "proposal_decided")
    assert apis["reader"].get(address).json()["state"] == "approved"


def test_an_approver_must_have_seen_where_the_alias_is(apis):
    first = propose(apis["contributor"], 2)["Location"]
    apis["maintainer"].put(f"{ONE}/aliases/production", {"version": 1})
    stale = apis["maintainer"].post(f"{first}/approve", {"expected_version": None})
    problem_of(stale, 412, "precondition_failed")
    assert problem_of(apis["maintainer"].post(f"{first}/approve", {}), 400, "invalid")
    assert apis["maintainer"].get(first).json()["present"] == 1
    done = apis["maintainer"].post(f"{first}/approve", {"expected_version": 1}).json()
    assert (done["replaced"], done["present"]) == (1, 2)
    moved = apis["maintainer"].put(
        f"{ONE}/aliases/production", {"version": 3, "expected_version": 1}
    )
    problem_of(moved, 412, "precondition_failed")


def test_a_proposal_can_ask_to_delete(apis):
    problem_of(propose(apis["contributor"], None), 404, "alias_not_found")
    apis["maintainer"].put(f"{ONE}/aliases/production", {"version": 1})
    address = propose(apis["contributor"], None)["Location"]
    apis["maintainer"].post(f"{address}/approve", {"expected_version": 1})
    assert not Alias.objects.filter(name="production").exists()


def test_declined_and_withdrawn_move_nothing(apis):
    declined = propose(apis["contributor"], 2)["Location"]
    withdrawn = propose(apis["contributor"], 3)["Location"]
    problem_of(propose(apis["maintainer"], 3), 409, "proposal_already_open")
    body = apis["maintainer"].post(f"{declined}/decline", {"note": "Too slow."}).json()
    assert (body["state"], body["note"]) == ("declined", "Too slow.")
    problem_of(apis["maintainer"].post(f"{withdrawn}/withdraw"), 403, "denied")
    assert apis["contributor"].post(f"{withdrawn}/withdraw").json()["state"] == "withdrawn"
    assert not Alias.objects.exists()
    listed = apis["reader"].get(PROPOSALS, query={"state": "declined"}).json()["items"]
    assert [one["number"] for one in listed] == [1]


def test_an_approval_looks_at_the_version_once_more(apis, people, model):
    address = propose(apis["contributor"], 2)["Location"]
    version = model.versions.get(number=2)
    owner = actor_of(people["owner"])
    versions.describe_version(actor=owner, version=version, changes={"state": "archived"})
    refused = apis["maintainer"].post(f"{address}/approve", {"expected_version": None})
    problem_of(refused, 409, "version_not_ready")
    assert apis["maintainer"].get(address).json()["state"] == "open"
    problem_of(propose(apis["contributor"], 2, "canary"), 409, "version_not_ready")


def test_a_second_pair_of_eyes_where_the_repository_asks_for_it(apis):
    wanted = {"aliases": ["prod*", "production"], "second_approver": True}
    problem_of(apis["contributor"].put(f"{ONE}/protection", wanted), 403, "denied")
    problem_of(apis["maintainer"].put(f"{ONE}/protection", wanted), 403, "denied")
    assert apis["owner"].put(f"{ONE}/protection", wanted).json() == wanted
    address = propose(apis["maintainer"], alias="prod-eu")["Location"]
    approval = {"expected_version": None}
    problem_of(apis["maintainer"].post(f"{address}/approve", approval), 403, "own_proposal")
    assert apis["owner"].post(f"{address}/approve", approval).status_code == 200
    # Nobody goes around it: not by moving the alias, nor by asking for less first.
    for name in ("maintainer", "owner"):
        moved = apis[name].put(f"{ONE}/aliases/prod-eu", {"version": 1})
        problem_of(moved, 403, "second_approver_needed")
        problem_of(apis[name].delete(f"{ONE}/aliases/prod-eu"), 403, "second_approver_needed")
    for less in ({**wanted, "second_approver": False}, {**wanted, "aliases": []}):
        problem_of(apis["maintainer"].put(f"{ONE}/protection", less), 403, "denied")
    assert apis["maintainer"].put(f"{ONE}/aliases/canary", {"version": 1}).status_code == 200
    assert Alias.objects.get(name="prod-eu").version.number == 2
    assert apis["owner"].put(f"{ONE}/protection", {"aliases": []}).status_code == 200


@pytest.mark.parametrize("pattern", ["", "a b", "[abc]", "a/b", "x" * 256])
def test_patterns_that_are_none(apis, pattern):
    body = {"aliases": [pattern]}
    assert apis["owner"].put(f"{ONE}/protection", body).status_code == 400
    assert apis["reader"].get(f"{ONE}/protection").json()["aliases"] == ["production"]


def test_what_was_measured_stands_beside_the_request(apis, people, model):
    owner = actor_of(people["owner"])
    recipe = {"kind": "compress", "model": f"{model}@1", "schema": 1}
    job = jobs.submit_job(actor=owner, recipe={**recipe, "steps": [{"method": "quantize_dynamic"}]})
    for number, accuracy, latency in ((1, 0.9, 5.0), (2, 0.92, 6.0)):
        specs = [
            EvaluationSpec(metric="accuracy", value=accuracy),
            EvaluationSpec(metric="latency_p50_batch1", value=latency, unit="ms"),
        ]
        version = model.versions.get(number=number)
        versions.add_evaluations(actor=owner, version=version, evaluations=specs, job=job)
    declared = [EvaluationSpec(metric="accuracy", value=1.0)]
    version = model.versions.get(number=2)
    versions.add_evaluations(actor=owner, version=version, evaluations=declared)
    apis["owner"].put(f"{ONE}/aliases/production", {"version": 1})
    metrics = propose(apis["contributor"], 2).json()["metrics"]
    found = {one["metric"]: (one["before"], one["after"], one["better"]) for one in metrics}
    assert found == {
        "accuracy": (0.9, 0.92, True),
        "latency_p50_batch1": (5.0, 6.0, False),
    }


def test_whether_callers_can_be_given_it_stands_beside_the_request(apis, people, model):
    assert propose(apis["contributor"], None, alias="gone").status_code == 404
    fresh = propose(apis["contributor"], 1).json()
    assert fresh["signature"] is None
    apis["owner"].post(f"{ONE}/proposals/1/decline", {})
    apis["owner"].put(f"{ONE}/aliases/production", {"version": 1})
    assert propose(apis["contributor"], 2).json()["signature"] == {"accepts": None, "why": None}
    for labels in (["cat", "dog"], ["dog", "cat"]):
        config = json.dumps({"labels": labels}).encode()
        make_version(people["owner"], model, {"config.json": config})
    apis["owner"].put(f"{ONE}/aliases/production", {"version": 4})
    found = propose(apis["contributor"], 5).json()
    assert found["signature"]["accepts"] is False
    assert "'dog', where callers know 'cat'" in found["signature"]["why"]
    # Once it is decided, the version that it replaced is what it is compared with.
    decided = f"{ONE}/proposals/{found['number']}"
    body = {"expected_version": 4, "reason": "Callers know."}
    assert apis["owner"].post(f"{decided}/approve", body).status_code == 200
    assert apis["reader"].get(decided).json()["signature"] == found["signature"]


@pytest.mark.django_db(transaction=True)
def test_of_two_approvals_at_once_one_holds():
    team = NamespaceFactory(slug="team")
    owners = [make_member(team, Role.MAINTAINER) for _ in range(4)]
    model = make_model(owners[0], namespace="team")
    version = make_version(owners[0], model)
    writer = make_member(team, Role.CONTRIBUTOR)
    proposal = proposals.propose_alias(
        actor=actor_of(writer), repository=model, alias="production", version=version
    )
    start, outcomes = threading.Barrier(len(owners)), []

    def approve(user):
        start.wait()
        try:
            proposals.approve_proposal(
                actor=actor_of(user), proposal=proposal, expected_version=None
            )
            outcomes.append("approved")
        except Exception as error:  # noqa: BLE001 - looked at below
            outcomes.append(getattr(error, "reason", repr(error)))
        finally:
            connection.close()

    threads = [threading.Thread(target=approve, args=[user]) for user in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["approved"] + ["proposal_decided"] * 3
    assert Event.objects.filter(action="alias.set").count() == 1


def test_proposals_of_a_hidden_model_do_not_exist(people):
    hidden = make_model(people["owner"], "hidden", namespace="team", visibility="private")
    version = make_version(people["owner"], hidden)
    proposals.propose_alias(
        actor=actor_of(people["contributor"]), repository=hidden, alias="x", version=version
    )
    stranger = api_of(UserFactory())
    for path in ("proposals", "proposals/1", "protection"):
        problem_of(stranger.get(f"models/team/hidden/{path}"), 404, "model_not_found")


def test_who_pulls_a_deprecated_version_is_told(apis, anonymous):
    reason = 'It confuses 3 with 8, "mostly"; 请用版本 2。'
    change = {"state": "deprecated", "state_reason": reason}
    assert apis["contributor"].patch(f"{ONE}/versions/1", change).status_code == 200
    answer = anonymous.get(f"{ONE}/versions/1")
    notice = answer["X-Modelyard-Notice"]
    assert notice.startswith('deprecated;reason=%"It confuses 3 with 8, %22mostly%22; %e8%af%b7')
    assert notice.isascii()
    assert answer["Deprecation"].startswith("@1")
    assert answer.json()["state_reason"] == reason
    fresh = anonymous.get(f"{ONE}/versions/2")
    assert "X-Modelyard-Notice" not in fresh
    assert "Deprecation" not in fresh


def test_archived_versions_are_left_out_of_lists(apis, anonymous):
    assert apis["maintainer"].patch(f"{ONE}/versions/3", {"state": "archived"}).status_code == 200

    def numbers(**query):
        return [
            one["number"] for one in anonymous.get(f"{ONE}/versions", query=query).json()["items"]
        ]

    assert numbers() == [2, 1]
    assert numbers(with_archived="true") == [3, 2, 1]
    assert numbers(state="archived") == [3]
    assert anonymous.get(f"{ONE}/versions/latest").json()["number"] == 2
    assert anonymous.get(f"{ONE}/versions/3")["X-Modelyard-Notice"] == "archived"
