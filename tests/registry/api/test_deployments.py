"""Endpoints over REST: deployed, split, promoted, rolled back, and how they follow a model."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from registry import queue
from registry.models import Deployment, Endpoint, Event, Namespace, Role, Version
from registry.routes import read_routes
from registry.services.catalog import find_repository
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
ENDPOINT = "endpoints/team/classifier"


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


@pytest.fixture
def api(apis):
    return apis["maintainer"]


def deploy(api, version="1", status=201, **more):
    body = {"model": "team/classifier", "version": version, **more}
    made = api.post("deployments", body)
    assert made.status_code == status, made.content
    return made.json()


def split(api):
    """Say who answers how much, by the number of the version."""
    found = api.get(ENDPOINT).json()["deployments"]
    return {one["version"]: (one["role"], one["weight"]) for one in found}


def test_the_first_deployment_makes_the_endpoint_and_takes_all(api):
    made = deploy(api, options={"max_batch_size": 8})
    assert (made["version"], made["role"], made["weight"]) == (1, "live", 100)
    assert made["options"]["max_batch_size"] == 8
    endpoint = api.get(ENDPOINT).json()
    assert (endpoint["model"], len(endpoint["deployments"])) == ("team/classifier", 1)
    assert Api().get(ENDPOINT).status_code == 200
    (route,) = read_routes()
    assert (route.name, route.deployments[0].options.max_batch_size) == ("team/classifier", 8)


def test_only_maintainers_deploy(apis):
    for name in ("reader", "contributor"):
        body = {"model": "team/classifier", "version": "1"}
        problem_of(apis[name].post("deployments", body), 403, "denied")
    assert not Endpoint.objects.exists()


def test_a_canary_takes_its_part_of_all_others(api):
    deploy(api)
    deploy(api, "2", weight=30)
    deploy(api, "3", role="canary", weight=5)
    assert split(api) == {1: ("live", 67), 2: ("live", 28), 3: ("canary", 5)}


def test_only_a_canary_widens(api):
    deploy(api)
    body = {"model": "team/classifier", "version": "2", "widens": True}
    problem_of(api.post("deployments", body), 400, "not_allowed")
    assert deploy(api, "2", role="canary", widens=True)["widens"] is True
    assert [one["widens"] for one in api.get(ENDPOINT).json()["deployments"]] == [False, True]


def test_promoted_and_rolled_back(api):
    deploy(api)
    second = deploy(api, "2")
    assert split(api) == {1: ("live", 100), 2: ("live", 0)}
    promoted = api.post(f"{ENDPOINT}/deployments/{second['id']}/promote")
    assert promoted.status_code == 200
    assert split(api) == {1: ("live", 0), 2: ("live", 100)}
    assert api.post(f"{ENDPOINT}/roll-back").status_code == 200
    assert split(api) == {1: ("live", 100), 2: ("live", 0)}
    # And forth again, with a reason, which stays.
    api.post(f"{ENDPOINT}/roll-back", {"reason": " It misread sevens. "})
    assert split(api) == {1: ("live", 0), 2: ("live", 100)}
    events = Event.objects.filter(action="endpoint.roll_back").order_by("pk")
    assert [one.data.get("reason") for one in events] == [None, "It misread sevens."]


@pytest.mark.parametrize("reason", ["x" * 2001, "a\u202eb", 5])
def test_a_reason_to_roll_back_is_a_text_within_bounds(api, reason):
    deploy(api)
    second = deploy(api, "2")
    api.post(f"{ENDPOINT}/deployments/{second['id']}/promote")
    assert api.post(f"{ENDPOINT}/roll-back", {"reason": reason}).status_code == 400
    assert split(api) == {1: ("live", 0), 2: ("live", 100)}


def test_a_split_may_say_why(api):
    first, second = deploy(api), deploy(api, "2")
    weights = {str(first["id"]): 50, str(second["id"]): 50}
    api.put(f"{ENDPOINT}/traffic", {"weights": weights, "reason": "To compare them."})
    assert Event.objects.get(action="endpoint.split").data["reason"] == "To compare them."


def test_a_shadow_answers_nobody_until_it_is_promoted(api):
    problem_of(
        api.post(
            "deployments",
            {"model": "team/classifier", "version": "2", "role": "shadow", "weight": 5},
        ),
        400,
        "not_allowed",
    )
    shadow = deploy(api, "2", role="shadow")
    assert split(api) == {2: ("shadow", 0)}
    first = deploy(api, "1")
    assert split(api)[1] == ("live", 100)
    weights = {"weights": {str(shadow["id"]): 100}}
    problem_of(api.put(f"{ENDPOINT}/traffic", weights), 400, "not_allowed")
    promote = f"{ENDPOINT}/deployments/{shadow['id']}/promote"
    problem_of(api.post(promote), 409, "shadow_undecided")
    assert api.post(promote, {"reason": "Tried elsewhere."}).status_code == 200
    assert split(api) == {2: ("live", 100), 1: ("live", 0)}
    said = Event.objects.get(action="deployment.promote").data
    assert (said["reason"], said["shadow"]["compared"]) == ("Tried elsewhere.", 0)
    assert first["weight"] == 100


def test_traffic_comes_to_a_hundred(api):
    first, second = deploy(api), deploy(api, "2")
    halves = {str(first["id"]): 50, str(second["id"]): 50}
    assert api.put(f"{ENDPOINT}/traffic", {"weights": halves}).status_code == 200
    assert split(api) == {1: ("live", 50), 2: ("live", 50)}
    for wrong in ({str(first["id"]): 99}, {}, {str(first["id"]): 101}):
        refused = api.put(f"{ENDPOINT}/traffic", {"weights": wrong})
        assert refused.status_code == 400
    unknown = {"weights": {"999999999": 100}}
    problem_of(api.put(f"{ENDPOINT}/traffic", unknown), 404, "deployment_not_found")
    assert split(api) == {1: ("live", 50), 2: ("live", 50)}


def test_a_split_that_somebody_else_changed_is_not_overwritten(api):
    first = deploy(api)
    etag = api.get(ENDPOINT)["ETag"]
    deploy(api, "2")
    sent = api.put(
        f"{ENDPOINT}/traffic", {"weights": {str(first["id"]): 100}}, headers={"If-Match": etag}
    )
    problem_of(sent, 412, "precondition_failed")


def test_what_answers_is_not_undeployed_before_another_does(api):
    first, second = deploy(api), deploy(api, "2")
    refused = api.delete(f"{ENDPOINT}/deployments/{first['id']}")
    problem_of(refused, 409, "deployment_answers")
    assert api.delete(f"{ENDPOINT}/deployments/{second['id']}").status_code == 204
    # The last one may go.
    assert api.delete(f"{ENDPOINT}/deployments/{first['id']}").status_code == 204
    assert split(api) == {}
    problem_of(api.post(f"{ENDPOINT}/roll-back"), 409, "nothing_to_roll_back")


def test_the_same_version_is_deployed_once(api):
    deploy(api)
    body = {"model": "team/classifier", "version": "1", "role": "canary"}
    problem_of(api.post("deployments", body), 409, "already_deployed")


def test_what_serves_does_not_vanish(api, apis):
    deploy(api)
    owner = apis["owner"]
    for path in ("models/team/classifier/versions/1", "models/team/classifier"):
        problem_of(owner.delete(path), 409, "version_deployed")
    archived = owner.patch("models/team/classifier/versions/1", {"state": "archived"})
    problem_of(archived, 409, "version_deployed")
    api.delete(ENDPOINT)
    assert owner.delete("models/team/classifier").status_code == 204
    assert not Endpoint.objects.exists()


def test_an_alias_that_is_followed_moves_but_does_not_go(api):
    address = "models/team/classifier/aliases/best"
    api.put(address, {"version": 1})
    made = deploy(api, "@best")
    assert (made["alias"], made["version"]) == ("best", 1)
    api.put(address, {"version": 3})
    assert read_routes()[0].deployments[0].number == 3
    problem_of(api.delete(address), 409, "alias_deployed")
    api.delete(f"{ENDPOINT}/deployments/{made['id']}")
    assert api.delete(address).status_code == 204


def test_an_endpoint_follows_its_model(apis, people):
    api = apis["owner"]
    deploy(api)
    deploy(api, "1", endpoint="other")
    api.patch("models/team/classifier", {"name": "renamed"})
    names = {one["name"] for one in api.get("endpoints?model=team/renamed").json()["items"]}
    assert names == {"renamed", "other"}
    lab = NamespaceFactory(slug="lab")
    lab.memberships.create(user=people["owner"], role=Role.OWNER)
    taken = make_model(people["owner"], "second", namespace="lab")
    make_version(people["owner"], taken)
    api.post("deployments", {"model": "lab/second", "version": "1", "endpoint": "other"})
    refused = api.post("models/team/renamed/transfer", {"namespace": "lab"})
    problem_of(refused, 409, "endpoint_already_exists")
    assert Namespace.objects.get(repositories__name="renamed").slug == "team"
    api.delete("endpoints/lab/other")
    assert api.post("models/team/renamed/transfer", {"namespace": "lab"}).status_code == 200
    assert api.get("endpoints/lab/renamed").json()["model"] == "lab/renamed"


def test_another_name_takes_the_namespace(people, model):
    guest = UserFactory()
    model.grants.create(user=guest, role=Role.MAINTAINER)
    api = api_of(guest)
    problem_of(api.post("endpoints", {"model": "team/classifier", "name": "x"}), 403, "denied")
    assert api.post("endpoints", {"model": "team/classifier"}).status_code == 201
    again = api.post("endpoints", {"model": "team/classifier"})
    problem_of(again, 409, "endpoint_already_exists")


def test_hidden_models_have_hidden_endpoints(apis, people):
    hidden = make_model(people["owner"], "hidden", namespace="team", visibility="private")
    make_version(people["owner"], hidden)
    made = apis["maintainer"].post("deployments", {"model": "team/hidden", "version": "1"})
    number = made.json()["id"]
    stranger = api_of(UserFactory())
    for path in (
        "endpoints/team/hidden",
        "endpoints/team/hidden/standing",
        f"endpoints/team/hidden/deployments/{number}",
    ):
        problem_of(stranger.get(path), 404, "endpoint_not_found")
    assert stranger.get("endpoints").json()["items"] == []
    assert len(apis["reader"].get("endpoints?namespace=team").json()["items"]) == 1


def signature(*inputs, outputs=(("logits", "float32", [None, 10]),)):
    def ports(given):
        return [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in given]

    return {"inputs": ports(inputs), "outputs": ports(outputs)}


IMAGE = ("image", "float32", ["batch", 1, 28, 28])


@pytest.mark.parametrize(
    ("candidate", "problem"),
    [
        (signature(IMAGE), None),
        (signature(("image", "float32", [-1, 1, None, 28])), None),
        ({}, None),
        (signature(IMAGE, ("mask", "bool", [-1])), "needs the input 'mask'"),
        (signature(("picture", "float32", [-1, 1, 28, 28])), "needs the input 'picture'"),
        (signature(("image", "float16", [-1, 1, 28, 28])), "is float16[?, 1, 28, 28]"),
        (signature(("image", "float32", [-1, 3, 28, 28])), "is float32[?, 3, 28, 28]"),
        (signature(("image", "float32", [1, 1, 28, 28])), "is float32[1, 1, 28, 28]"),
        (signature(("image", "float32", [-1, 784])), "is float32[?, 784]"),
        (signature(), "does not know the input 'image'"),
        (signature(IMAGE, outputs=()), "does not give the output 'logits'"),
        (
            signature(IMAGE, outputs=(("logits", "float32", [None, 11]),)),
            "output 'logits' is float32[?, 11]",
        ),
    ],
)
def test_a_version_that_callers_do_not_fit_is_refused(api, model, candidate, problem):
    Version.objects.filter(repository=model, number=1).update(signature=signature(IMAGE))
    Version.objects.filter(repository=model, number=2).update(signature=candidate)
    deploy(api)
    body = {"model": "team/classifier", "version": "2"}
    if problem is None:
        assert api.post("deployments", body).status_code == 201
        return
    refused = problem_of(api.post("deployments", body), 409, "incompatible_signature")
    assert problem in refused["detail"]
    assert api.post("deployments", {**body, "reason": "Callers know."}).status_code == 201
    said = Event.objects.filter(action="deployment.create").latest("pk").data
    assert (said["reason"], problem in said["incompatible"]) == ("Callers know.", True)


def test_an_alias_takes_its_deployment_along_only_to_what_fits(apis, api, model):
    text = ("text", *IMAGE[1:])
    for number, port in ((1, IMAGE), (2, text)):
        Version.objects.filter(repository=model, number=number).update(signature=signature(port))
    alias = "models/team/classifier/aliases/champion"
    assert api.put(alias, {"version": 1}).status_code == 200
    deploy(api, "@champion")
    for caller in (api, apis["contributor"]):
        problem_of(caller.put(alias, {"version": 2}), 409, "incompatible_signature")
    asked = {"version": 2, "reason": "Callers know."}
    problem_of(apis["contributor"].put(alias, asked), 409, "incompatible_signature")
    assert split(api) == {1: ("live", 100)}
    assert api.put(alias, asked).status_code == 200
    assert split(api) == {2: ("live", 100)}


def test_a_namespace_has_as_many_deployments_as_it_may(api, model):
    Namespace.objects.filter(slug="team").update(quota_deployments=1)
    deploy(api)
    body = {"model": "team/classifier", "version": "2"}
    problem_of(api.post("deployments", body), 403, "deployments_quota_exceeded")
    assert Deployment.objects.count() == 1
    quota = api.get("namespaces/team/quota").json()["deployments"]
    assert quota == {"used": 1, "limit": 1, "own": 1}


def test_a_model_brings_no_more_deployments_than_fit_where_it_moves(apis, people):
    api = apis["owner"]
    deploy(api)
    deploy(api, "2")
    lab = NamespaceFactory(slug="lab", quota_deployments=2)
    lab.memberships.create(user=people["owner"], role=Role.OWNER)
    make_version(people["owner"], make_model(people["owner"], "second", namespace="lab"))
    api.post("deployments", {"model": "lab/second", "version": "1"})
    move = "models/team/classifier/transfer"
    problem_of(api.post(move, {"namespace": "lab"}), 403, "deployments_quota_exceeded")
    assert api.get(ENDPOINT).json()["model"] == "team/classifier"
    assert api.get("namespaces/lab/quota").json()["deployments"]["used"] == 1
    lab.quota_deployments = 3
    lab.save()
    assert api.post(move, {"namespace": "lab"}).status_code == 200
    assert api.get("namespaces/lab/quota").json()["deployments"]["used"] == 3


def test_endpoints_are_listed_in_the_same_number_of_queries_however_many(api, apis, people, model):
    def queries():
        with CaptureQueriesContext(connection) as seen:
            found = api.get("endpoints?namespace=team").json()["items"]
        return len(seen), {
            one["name"]: [(row["version"], row["alias"]) for row in one["deployments"]]
            for one in found
        }

    api.put("models/team/classifier/aliases/champion", {"version": 2})
    deploy(api, "@champion")
    few, _ = queries()
    for number in range(4):
        other = make_model(people["owner"], f"other-{number}", namespace="team")
        make_version(people["owner"], other)
        api.put(f"models/team/other-{number}/aliases/champion", {"version": 1})
        for version in ("1", "@champion"):
            body = {"model": f"team/other-{number}", "version": version}
            assert api.post("deployments", body).status_code == 201
    apis["owner"].post("endpoints", {"model": "team/classifier", "name": "empty"})
    many, found = queries()
    assert many == few
    others = {f"other-{number}": [(1, None), (1, "champion")] for number in range(4)}
    assert found == {"classifier": [(2, "champion")], "empty": [], **others}


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0},
        {"deadline_ms": 10**9},
        {"unknown": 1},
        {"runtime": "abacus"},
        {"max_batch_size": "many"},
    ],
)
def test_options_are_bounded(api, wrong):
    body = {"model": "team/classifier", "version": "1", "options": wrong}
    problem = problem_of(api.post("deployments", body), 400, "invalid")
    assert problem["errors"][0]["field"] == f"options.{next(iter(wrong))}"


def test_options_change(api):
    made = deploy(api)
    address = f"{ENDPOINT}/deployments/{made['id']}"
    changed = api.patch(address, {"options": {"idle_seconds": 60}})
    assert changed.json()["options"]["idle_seconds"] == 60
    assert read_routes()[0].deployments[0].options.idle_seconds == 60
    assert api.patch(ENDPOINT, {"sticky": True}).json()["sticky"] is True
    assert read_routes()[0].sticky


def test_what_replicas_say_is_shown_with_what_it_is_about(api, people):
    mine = deploy(api)
    other = make_model(people["owner"], "other", namespace="team")
    make_version(people["owner"], other)
    theirs = api.post("deployments", {"model": "team/other", "version": "1"}).json()
    counted = {"success_count": 3, "fail_count": 1, "success_ns": 7_500_000}
    said = {
        "id": "here-1",
        "host": "here",
        "started_at": timezone.now().timestamp(),
        "models": [
            {"deployment_id": mine["id"], "state": "ready", "runtime": "onnxruntime", **counted},
            {"deployment_id": theirs["id"], "state": "failed", "reason": "secret"},
        ],
    }
    queue.report_replica("here-1", said, 30)
    body = api.get(f"{ENDPOINT}/standing")
    (replica,) = [one for one in body.json()["replicas"] if one["id"] == "here-1"]
    (one,) = replica["deployments"]
    assert (one["state"], one["requests"], one["failures"], one["mean_ms"]) == ("ready", 4, 1, 2.5)
    assert b"secret" not in body.content


def test_changes_are_announced_to_serving_and_to_webhooks(
    api, people, django_capture_on_commit_callbacks
):
    owner = api_of(people["owner"])
    owner.post(
        "webhooks",
        {
            "namespace": "team",
            "url": "https://hooks.example.org/",
            "events": ["deployment.changed"],
        },
    )
    listener = queue.RouteListener()
    listener.wait(0.01)
    with django_capture_on_commit_callbacks(execute=True):
        deploy(api)
    assert listener.wait(10)
    listener.close()
    repository = find_repository(actor_of(people["owner"]), "model", "team", "classifier")
    sent = repository.namespace.webhooks.get().deliveries.get()
    assert (sent.event, sent.payload["data"]["version"]) == ("deployment.changed", 1)
