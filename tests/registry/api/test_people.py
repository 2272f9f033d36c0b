"""Tokens, namespaces, members, the audit log and whoami over REST."""

from datetime import timedelta

import pytest
from django.utils import timezone

from registry.models import Event, Membership, Role
from registry.services import jobs
from tests.factories import NamespaceFactory, make_member, make_model, make_version
from tests.registry.api.conftest import ALL_SCOPES, Api, api_of, problem_of

pytestmark = pytest.mark.django_db


def test_a_token_for_one_place_names_no_other(api, alice):
    Membership.objects.create(namespace=NamespaceFactory(slug="team"), user=alice, role="owner")
    make_model(alice, "one", namespace="team")
    assert len(api.get("whoami").json()["namespaces"]) == 2
    for place in ({"namespace": "team"}, {"model": "team/one"}):
        for scopes in (["read"], ["write"]):
            made = api.post("tokens", {"name": "x", "scopes": scopes, **place}).json()
            body = Api(made["token"]).get("whoami").json()
            assert [one["slug"] for one in body["namespaces"]] == ["team"]


def test_whoami(api, alice, anonymous):
    body = api.get("whoami").json()
    assert body["username"] == "alice"
    assert body["namespaces"] == [{"slug": "alice", "role": "owner"}]
    assert body["token"]["name"] == "test"
    problem_of(anonymous.get("whoami"), 401, "unauthenticated")


def test_a_token_is_made_listed_and_revoked(api):
    made = api.post("tokens", {"name": "laptop", "scopes": ["read"]})
    assert made.status_code == 201
    secret = made.json()["token"]
    theirs = Api(secret)
    assert theirs.get("whoami").json()["scopes"] == ["read"]
    listed = api.get("tokens").json()["items"]
    assert [token["name"] for token in listed] == ["laptop", "test"]
    assert "token" not in listed[0]
    assert secret not in api.get("tokens").content.decode()
    assert api.delete(f"tokens/{made.json()['id']}").status_code == 204
    problem_of(theirs.get("whoami"), 401, "unauthenticated")
    problem_of(api.delete(f"tokens/{made.json()['id']}"), 404, "token_not_found")
    problem_of(api.delete(f"tokens/{10**30}"), 404, "token_not_found")


def test_a_token_can_be_limited(api, alice):
    make_model(alice, "one", visibility="private")
    make_model(alice, "two", visibility="private")
    made = api.post("tokens", {"name": "ci", "model": "alice/one"}).json()
    limited = Api(made["token"])
    assert limited.get("models/alice/one").status_code == 200
    problem_of(limited.get("models/alice/two"), 404, "model_not_found")
    assert made["model"] == "alice/one"
    body = {"name": "x", "model": "alice/one", "namespace": "alice"}
    assert api.post("tokens", body).status_code == 400


@pytest.mark.parametrize("place", [{"model": "alice/one"}, {"namespace": "alice"}])
def test_a_limited_token_reaches_no_other_token_and_makes_no_namespace(alice, place):
    make_model(alice, "one")
    api = api_of(alice)
    other = api.post("tokens", {"name": "other"}).json()
    made = api.post("tokens", {"name": "ci", "scopes": list(ALL_SCOPES), **place}).json()
    limited = Api(made["token"])
    assert [token["name"] for token in limited.get("tokens").json()["items"]] == ["ci"]
    problem_of(limited.delete(f"tokens/{other['id']}"), 404, "token_not_found")
    problem_of(limited.post("namespaces", {"slug": "elsewhere"}), 403, "denied")
    assert limited.delete(f"tokens/{made['id']}").status_code == 204


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": 5},
        {"scopes": ["everything"]},
        {"scopes": []},
        {"scopes": "read"},
        {"expires_at": 5},
        {"expires_at": "tomorrow"},
        {"expires_at": "2030-01-01T00:00:00"},
        {"expires_at": "2000-01-01T00:00:00Z"},
        {"model": "noslash"},
    ],
)
def test_a_wrong_token_is_refused(api, change):
    refused = api.post("tokens", {"name": "x", **change})
    assert refused.status_code == 400
    assert refused.json()["errors"]


def test_a_token_expires(api, alice):
    soon = timezone.now() + timedelta(hours=1)
    made = api.post("tokens", {"name": "x", "expires_at": soon.isoformat()}).json()
    alice.tokens.filter(pk=made["id"]).update(expires_at=timezone.now())
    problem_of(Api(made["token"]).get("whoami"), 401, "unauthenticated")


def test_making_tokens_takes_the_scope_admin(alice):
    plain = api_of(alice, ("read", "write", "jobs"))
    problem_of(plain.get("tokens"), 403, "missing_scope")
    problem_of(plain.post("tokens", {"name": "x"}), 403, "missing_scope")


def test_namespaces_are_made_and_shared(api, alice, bob):
    made = api.post("namespaces", {"slug": "team", "display_name": "The team"})
    assert made.status_code == 201
    assert made["Location"] == "/api/v1/namespaces/team"
    assert made.json()["role"] == "owner"
    assert [space["slug"] for space in api.get("namespaces").json()["items"]] == ["team", "alice"]
    member = api.put("namespaces/team/members/bob", {"role": "contributor"})
    assert member.json()["role"] == "contributor"
    assert api_of(bob).post("models", {"namespace": "team", "name": "m"}).status_code == 201
    assert len(api_of(bob).get("namespaces/team/members").json()["items"]) == 2
    assert api.delete("namespaces/team/members/bob").status_code == 204
    problem_of(api_of(bob).get("namespaces/team/members"), 403, "denied")
    problem_of(api.delete("namespaces/team/members/alice"), 400, "last_owner")
    problem_of(api.put("namespaces/team/members/nobody", {"role": "reader"}), 404, "user_not_found")
    assert api.put("namespaces/team/members/bob", {"role": "king"}).status_code == 400
    problem_of(api.post("namespaces", {"slug": "TEAM"}), 409, "already_exists")
    assert api.post("namespaces", {"slug": "api"}).status_code == 400
    assert api.post("namespaces", {"slug": "a.b"}).status_code == 400
    assert api.get("namespaces/team").json()["display_name"] == "The team"
    problem_of(api.get("namespaces/absent"), 404, "namespace_not_found")


def test_the_audit_log_is_for_maintainers(api, alice, bob, admin):
    make_model(alice)
    team = NamespaceFactory(slug="team")
    maintainer = make_member(team, Role.MAINTAINER)
    reader = make_member(team, Role.READER)
    api_of(maintainer).post("models", {"namespace": "team", "name": "m"})
    events = api_of(maintainer).get("events").json()["items"]
    assert [event["target"] for event in events if event["namespace"] == "team"] == ["team/m"]
    named = api_of(maintainer).get("events", query={"namespace": "team", "action": "model."})
    (event,) = named.json()["items"]
    assert (event["action"], event["door"], event["actor"]) == (
        "model.register",
        "api",
        maintainer.username,
    )
    assert event["request_id"]
    assert event["ip"] == "127.0.0.1"
    problem_of(api_of(reader).get("events", query={"namespace": "team"}), 403, "denied")
    assert [
        e for e in api_of(reader).get("events").json()["items"] if e["namespace"] == "team"
    ] == []
    assert len(api_of(admin).get("events").json()["items"]) == min(20, Event.objects.count())
    first = api_of(admin).get("events", query={"limit": 1}).json()
    assert api_of(admin).get("events", query={"cursor": first["next_cursor"]}).json()["items"]
    everything = api_of(admin).get("events").content.decode()
    assert "my_" not in everything


def test_members_see_the_quotas_and_administrators_set_them(api, alice, admin):
    make_version(alice, make_model(alice, "m"), {"a.txt": b"x" * 10})
    nothing = {"limit": None, "own": None}
    assert api.get("namespaces/alice/quota").json() == {
        "bytes": {"used": 10, **nothing},
        "versions": {"used": 1, **nothing},
        "jobs": {"used": 0, **nothing},
        "deployments": {"used": 0, **nothing},
    }
    problem_of(api.patch("namespaces/alice/quota", {"bytes": 5}), 403, "denied")
    theirs = api_of(admin)
    changed = theirs.patch("namespaces/alice/quota", {"bytes": 15, "jobs": 0})
    assert changed.json()["bytes"] == {"used": 10, "limit": 15, "own": 15}
    assert changed.json()["jobs"] == {"used": 0, "limit": None, "own": 0}
    assert api.get("namespaces/alice/quota").json() == changed.json()
    # What is not named stays as it is; null takes an own limit back.
    again = theirs.patch("namespaces/alice/quota", {"versions": 1, "jobs": None})
    assert again.json()["bytes"]["own"] == 15
    assert again.json()["jobs"]["own"] is None
    full = problem_of(
        api.post("models/alice/m/versions", {"message": "x"}), 403, "versions_quota_exceeded"
    )
    assert full["title"] == "No room left in the namespace"
    assert full["type"] == "urn:modelyard:problem:namespace_full"
    for bad in ({"bytes": -1}, {"bytes": "1"}, {"bytes": 1 << 61}, {"files": 1}, {"jobs": 1.5}):
        problem_of(theirs.patch("namespaces/alice/quota", bad), 400, "invalid")


@pytest.mark.parametrize("place", [{"model": "alice/one"}, {"namespace": "alice"}])
def test_a_limited_token_reaches_no_saved_search(api, alice, place):
    kept = api.post("searches", {"name": "plan", "query": "q=merger"}).json()
    make_model(alice, "one")
    made = api.post("tokens", {"name": "ci", "scopes": ["read", "write"], **place}).json()
    limited = Api(made["token"])
    assert limited.get("searches").json()["items"] == []
    problem_of(limited.delete(f"searches/{kept['id']}"), 404, "search_not_found")
    problem_of(limited.post("searches", {"name": "x", "query": "q=a"}), 403, "denied")
    assert [one["name"] for one in api.get("searches").json()["items"]] == ["plan"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("sort=foo", "bad_filter"),
        ("sort=relevance", "bad_filter"),
        ("sort=relevance&q=task:translation", "bad_filter"),
        ("q=%00x", "bad_filter"),
        ("owner=a%00", "bad_filter"),
        ("q=nothing:5", "bad_query"),
    ],
)
def test_a_search_that_its_page_would_refuse_is_not_kept(api, query, code):
    problem_of(api.post("searches", {"name": "bad", "query": query}), 400, code)
    assert api.get("searches").json()["items"] == []
    assert api.client.get(f"/models?{query}").status_code == 400


def test_a_search_of_very_many_fields_is_refused_by_field(api):
    wanted = {"kind": "model", "name": "many", "query": "q=a&" + "q=b&" * 60}
    problem = problem_of(api.post("searches", wanted), 400, "too_long")
    assert problem["errors"][0]["field"] == "query"


def test_a_job_says_what_it_waits_for(api, alice, admin):
    make_version(alice, make_model(alice, "classifier"))
    api_of(admin).patch("namespaces/alice/quota", {"jobs": 1})
    recipe = {"kind": "compress", "schema": 1, "model": "alice/classifier"}
    recipe["steps"] = [{"method": "quantize_dynamic"}]
    first, second = (api.post("jobs", {"recipe": recipe}).json() for _ in range(2))
    assert (first["waits"], second["waits"]) == (None, None)
    jobs.claim_job(worker="w", queues=["cpu"])
    said = "Waits: 1 of 1 jobs of alice run."
    assert [job["waits"] for job in api.get("jobs").json()["items"]] == [said, None]
    assert api.get(f"jobs/{second['id']}").json()["waits"] == said
    assert api.get("namespaces/alice/quota").json()["jobs"]["used"] == 1
