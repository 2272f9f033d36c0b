"""Sharing: grants, organisations, transfers, requests for access, and what a stranger learns."""

import pytest

from registry.models import AccessRequest, Event, Grant, Membership, Namespace, Role, Token
from registry.services import requests
from registry.services.versions import ParentSpec
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_member,
    make_model,
    make_version,
)
from tests.registry.api.conftest import Api, api_of, problem_of

pytestmark = pytest.mark.django_db
ONE = "models/team/secret"


@pytest.fixture
def people(db):
    team = NamespaceFactory(slug="team")
    return {role.value: make_member(team, role) for role in Role}


@pytest.fixture
def model(people):
    repository = make_model(people["owner"], "secret", namespace="team", visibility="private")
    make_version(people["owner"], repository)
    return repository


@pytest.fixture
def apis(people, model):
    return {name: api_of(user) for name, user in people.items()}


@pytest.fixture
def stranger(db):
    return UserFactory(username="stan")


def test_a_grant_opens_one_repository_and_closes_it_again(apis, stranger):
    theirs = api_of(stranger)
    problem_of(theirs.get(ONE), 404, "model_not_found")
    given = apis["maintainer"].put(f"{ONE}/grants/stan", {"role": "contributor"})
    assert given.json()["role"] == "contributor"
    assert theirs.get(ONE).status_code == 200
    assert theirs.post(f"{ONE}/versions", {"message": "x"}).status_code == 201
    assert theirs.get("namespaces/team").json()["role"] is None
    access = apis["maintainer"].get(f"{ONE}/access").json()
    row = next(one for one in access["items"] if one["username"] == "stan")
    assert (row["role"], row["by_namespace"], row["by_grant"]) == (
        "contributor",
        None,
        "contributor",
    )
    assert access["visibility"] == "private"
    assert apis["maintainer"].delete(f"{ONE}/grants/stan").status_code == 204
    problem_of(theirs.get(ONE), 404, "model_not_found")
    problem_of(theirs.get("namespaces/team"), 404, "namespace_not_found")
    problem_of(apis["maintainer"].delete(f"{ONE}/grants/stan"), 404, "grant_not_found")


def test_nobody_gives_or_takes_more_than_they_have(apis, people, stranger):
    problem_of(
        apis["maintainer"].put(f"{ONE}/grants/stan", {"role": "owner"}), 403, "above_own_role"
    )
    assert apis["owner"].put(f"{ONE}/grants/stan", {"role": "owner"}).status_code == 200
    problem_of(apis["maintainer"].delete(f"{ONE}/grants/stan"), 403, "above_own_role")
    problem_of(
        apis["maintainer"].put(f"{ONE}/grants/stan", {"role": "reader"}), 403, "above_own_role"
    )
    problem_of(apis["owner"].put(f"{ONE}/grants/nobody", {"role": "reader"}), 404, "user_not_found")
    # Their own they may give up, but a program that only reads does not do it for them.
    program = api_of(stranger, ("read", "write"))
    problem_of(program.delete(f"{ONE}/grants/stan"), 403, "missing_scope")
    assert api_of(stranger).delete(f"{ONE}/grants/stan").status_code == 204
    writer = api_of(people["maintainer"], ("read", "write"))
    problem_of(writer.put(f"{ONE}/grants/stan", {"role": "reader"}), 403, "missing_scope")


def test_an_organisation_is_left_renamed_and_deleted(apis, people, stranger):
    owner, reader = apis["owner"], apis["reader"]
    name = people["reader"].username
    assert reader.delete(f"namespaces/team/members/{name}").status_code == 204
    assert not Membership.objects.filter(user=people["reader"], namespace__slug="team").exists()
    last = people["owner"].username
    problem_of(owner.delete(f"namespaces/team/members/{last}"), 400, "last_owner")
    renamed = owner.patch("namespaces/team", {"display_name": "The team"})
    assert renamed.json()["display_name"] == "The team"
    problem_of(owner.delete("namespaces/team"), 409, "namespace_not_empty")
    token = api_of(people["owner"]).post("tokens", {"name": "x", "namespace": "team"}).json()
    assert owner.delete(ONE).status_code == 204
    assert owner.delete("namespaces/team").status_code == 204
    problem_of(owner.get("namespaces/team"), 404, "namespace_not_found")
    assert Token.objects.get(pk=token["id"]).revoked_at is not None
    # Its name is never free for somebody else.
    problem_of(api_of(stranger).post("namespaces", {"slug": "Team"}), 409, "already_exists")


def test_a_person_stays_the_owner_of_their_namespace(stranger):
    other = UserFactory(username="other")
    api = api_of(stranger)
    assert api.put("namespaces/stan/members/other", {"role": "owner"}).status_code == 200
    problem_of(api.delete("namespaces/stan/members/stan"), 400, "own_namespace")
    problem_of(api_of(other).delete("namespaces/stan/members/stan"), 400, "own_namespace")
    problem_of(api.delete("namespaces/stan"), 400, "invalid")


def test_a_transfer_takes_both_sides_and_leaves_a_redirect(apis, people, model):
    lab = NamespaceFactory(slug="lab")
    owner = apis["owner"]
    problem_of(owner.post(f"{ONE}/transfer", {"namespace": "lab"}), 404, "namespace_not_found")
    Membership.objects.create(namespace=lab, user=people["owner"], role=Role.READER)
    problem_of(owner.post(f"{ONE}/transfer", {"namespace": "lab"}), 403, "denied")
    Membership.objects.filter(namespace=lab).update(role=Role.CONTRIBUTOR)
    problem_of(
        apis["maintainer"].post(f"{ONE}/transfer", {"namespace": "lab"}), 404, "namespace_not_found"
    )
    make_model(people["owner"], "secret", namespace="lab")
    problem_of(owner.post(f"{ONE}/transfer", {"namespace": "lab"}), 409, "already_exists")
    assert owner.patch(ONE, {"name": "moved"}).status_code == 200
    grant = Grant.objects.create(repository=model, user=people["reader"], role=Role.READER)
    moved = owner.post("models/team/moved/transfer", {"namespace": "lab"})
    assert (moved.json()["namespace"], moved.json()["name"]) == ("lab", "moved")
    # Both old names lead there, for whoever still sees it; grants stayed, roles did not.
    for name in ("team/moved", "team/secret"):
        assert owner.get(f"models/{name}").json()["namespace"] == "lab"
        assert apis["reader"].get(f"models/{name}").status_code == 200
        problem_of(apis["maintainer"].get(f"models/{name}"), 404, "model_not_found")
    assert grant.repository_id == model.pk
    assert "lab/moved" in [
        f"{one['namespace']}/{one['name']}"
        for one in owner.get("models", query={"q": "lab/moved"}).json()["items"]
    ]
    assert Event.objects.filter(action="model.transfer").count() == 2


def ask(api, **fields):
    return api.post("requests", {"namespace": "team", "name": "secret", **fields})


def approve(api, number, *, role="reader", **fields):
    return api.post(f"requests/{number}/approve", {"expected_role": role, **fields})


def test_a_request_is_seen_and_approved_by_those_who_may_share(apis, stranger):
    theirs = api_of(stranger)
    asked = ask(theirs, role="contributor", message="For the demo.")
    assert asked.status_code == 202
    number = asked.json()["id"]
    for name in ("reader", "contributor"):
        problem_of(apis[name].get(f"requests/{number}"), 404, "request_not_found")
    (seen,) = apis["maintainer"].get("requests", query={"to_decide": "true"}).json()["items"]
    assert (seen["username"], seen["message"]) == ("stan", "For the demo.")
    done = approve(apis["maintainer"], number, role="contributor", note="Welcome.")
    assert done.json()["state"] == "approved"
    assert theirs.get(ONE).status_code == 200
    told = theirs.get(f"requests/{number}").json()
    assert (told["state"], told["note"]) == ("approved", "Welcome.")
    again = apis["maintainer"].post(f"requests/{number}/decline", {})
    problem_of(again, 409, "request_decided")


def test_an_approval_never_takes_a_role_away(apis, people):
    writer = api_of(people["contributor"])
    number = writer.post("requests", {"kind": "namespace", "namespace": "team"}).json()["id"]
    problem_of(approve(apis["maintainer"], number), 404, "request_not_found")
    assert approve(apis["owner"], number).status_code == 200
    held = Membership.objects.get(user=people["contributor"], namespace__slug="team")
    assert held.role == "contributor"


def test_nobody_approves_their_own_request_or_gives_more_than_they_have(apis, stranger):
    number = ask(api_of(stranger), role="owner").json()["id"]
    problem_of(approve(api_of(stranger), number, role="owner"), 404, "request_not_found")
    problem_of(approve(apis["maintainer"], number, role="owner"), 403, "above_own_role")
    assert AccessRequest.objects.get().state == "open"
    assert not Grant.objects.exists()


def test_a_request_is_approved_only_as_it_was_seen(apis, stranger):
    number = ask(api_of(stranger), role="reader").json()["id"]
    assert ask(api_of(stranger), role="owner").json()["id"] == number
    problem_of(approve(apis["owner"], number, role="reader"), 412, "precondition_failed")
    problem_of(apis["owner"].post(f"requests/{number}/approve", {}), 400, "invalid")
    assert not Grant.objects.exists()
    assert approve(apis["owner"], number, role="owner").status_code == 200
    assert Grant.objects.get().role == "owner"


def test_an_asker_has_no_say_in_their_own_request(apis):
    number = ask(apis["maintainer"], role="owner").json()["id"]
    assert apis["maintainer"].get("requests", query={"to_decide": "true"}).json()["items"] == []
    for way, body in (("approve", {"expected_role": "owner"}), ("decline", {}), ("ignore", None)):
        refused = apis["maintainer"].post(f"requests/{number}/{way}", body)
        problem_of(refused, 404, "request_not_found")
    assert apis["owner"].get("requests", query={"to_decide": "true"}).json()["items"]
    assert apis["maintainer"].post(f"requests/{number}/withdraw").status_code == 200


def test_what_is_ignored_looks_to_its_asker_like_what_does_not_exist(apis, stranger):
    theirs = api_of(stranger)
    real, unreal = ask(theirs), ask(theirs, name="nothing")
    apis["maintainer"].post(f"requests/{real.json()['id']}/ignore")
    hidden = {"id", "name", "created_at"}
    seen = [
        {key: value for key, value in one.items() if key not in hidden}
        for one in theirs.get("requests").json()["items"]
    ]
    assert seen[0] == seen[1]
    assert {key: value for key, value in real.json().items() if key not in hidden} == {
        key: value for key, value in unreal.json().items() if key not in hidden
    }
    for number in (real.json()["id"], unreal.json()["id"]):
        assert theirs.post(f"requests/{number}/withdraw").json()["state"] == "withdrawn"


def test_open_requests_are_limited_and_not_doubled(stranger):
    theirs = api_of(stranger)
    assert ask(theirs).json()["id"] == ask(theirs, role="owner").json()["id"]
    for at in range(requests.MAX_OPEN - 1):
        assert ask(theirs, name=f"n{at}").status_code == 202
    problem_of(ask(theirs, name="one-too-many"), 429, "quota_exceeded")


@pytest.mark.parametrize(
    "body",
    [
        {"namespace": ""},
        {"namespace": "team", "kind": "model"},
        {"namespace": "team", "name": "x", "role": "king"},
        {"namespace": "team", "name": "x", "kind": "job"},
    ],
)
def test_requests_that_are_none(stranger, body):
    assert api_of(stranger).post("requests", body).status_code == 400


# --- What a stranger learns ----------------------------------------------------------------------


def test_an_organisation_with_private_things_only_does_not_exist(apis, stranger, people):
    theirs = api_of(stranger)
    for api in (theirs, Api()):
        problem_of(api.get("namespaces/team"), 404, "namespace_not_found")
    problem_of(theirs.get("namespaces/team/members"), 404, "namespace_not_found")
    assert theirs.get("namespaces/alice").status_code == 404
    assert api_of(people["reader"]).get("namespaces/stan").json()["kind"] == "person"
    problem_of(Api().get("namespaces/stan"), 404, "namespace_not_found")
    make_model(people["owner"], "open", namespace="team")
    assert Api().get("namespaces/team").status_code == 200


def test_search_counts_nothing_that_one_may_not_see(apis, people, stranger):
    make_model(people["owner"], "hidden", namespace="team", visibility="private", task="spying")
    for api in (api_of(stranger), Api()):
        for query in ({}, {"q": "secret"}, {"owner": "team"}, {"task": "spying"}):
            body = api.get("models", query=query).json()
            assert body["items"] == []
            assert body["facets"]["total"] == 0
            assert all(not body["facets"][name] for name in ("task", "owner", "format", "license"))
    facets = apis["reader"].get("models").json()["facets"]
    assert {"value": "spying", "count": 1} in facets["task"]


def test_an_old_name_of_a_hidden_model_leads_strangers_nowhere(apis, stranger):
    apis["owner"].patch(ONE, {"name": "renamed"})
    assert apis["reader"].get(ONE).json()["name"] == "renamed"
    old, never = (api_of(stranger).get(f"models/team/{name}") for name in ("secret", "secreu"))
    assert old.status_code == never.status_code == 404
    bodies = [one.json() for one in (old, never)]
    for body, name in zip(bodies, ("secret", "secreu"), strict=True):
        body["detail"] = body["detail"].replace(name, "IT")
        body["instance"] = body["instance"].replace(name, "IT")
        body.pop("request_id")
    assert bodies[0] == bodies[1]


def test_lineage_of_what_is_open_names_no_hidden_parent(apis, people, stranger, model):
    child = make_model(people["owner"], "child", namespace="team")
    parent = ParentSpec(version=model.versions.get(number=1), role="weights")
    make_version(people["owner"], child, parents=[parent])
    seen = api_of(stranger).get("models/team/child/lineage").json()
    assert seen["parents"] == []
    assert len(apis["reader"].get("models/team/child/lineage").json()["parents"]) == 1


def test_the_audit_log_of_a_namespace_is_for_its_maintainers(apis, stranger):
    ask(api_of(stranger))
    theirs = api_of(stranger).get("events").json()["items"]
    assert not any(one["target"].startswith("team") for one in theirs)
    actions = [one["action"] for one in apis["maintainer"].get("events").json()["items"]]
    assert "access.request" in actions


def test_a_deleted_namespace_hides_from_its_administrator_too(admin, people):
    Namespace.objects.filter(slug="team").update(deleted_at="2026-01-01T00:00:00Z")
    problem_of(api_of(admin).get("namespaces/team"), 404, "namespace_not_found")
    assert "team" not in [one["slug"] for one in api_of(admin).get("namespaces").json()["items"]]
    assert actor_of(people["owner"]).roles
