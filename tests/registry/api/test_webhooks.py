import pytest

from registry.models import Role
from registry.services import webhooks
from tests.factories import NamespaceFactory, make_member, make_model, make_version
from tests.registry.api.conftest import api_of, problem_of

URL = "https://hooks.example.org/modelyard"


@pytest.fixture
def owner(db):
    return make_member(NamespaceFactory(slug="team"), Role.OWNER)


@pytest.fixture
def api(owner):
    return api_of(owner)


def test_a_webhook_is_made_changed_and_deleted(api):
    made = api.post("webhooks", {"namespace": "team", "url": URL, "events": ["alias.moved"]})
    assert made.status_code == 201
    body = made.json()
    assert body.pop("secret").startswith("whsec_")
    assert api.get(made["Location"]).json() == body
    assert [one["id"] for one in api.get("webhooks").json()["items"]] == [body["id"]]
    changed = api.patch(made["Location"], {"events": ["version.created"], "is_active": False})
    assert changed.json()["events"] == ["version.created"]
    assert changed.json()["is_active"] is False
    assert api.delete(made["Location"]).status_code == 204
    problem_of(api.get(made["Location"]), 404, "webhook_not_found")


def test_a_secret_is_shown_when_it_is_made_and_never_again(api):
    body = api.post("webhooks", {"namespace": "team", "url": URL, "events": ["alias.moved"]})
    made = body.json()
    address = f"webhooks/{made['id']}"
    assert made["secret"] not in api.get(address).content.decode()
    replaced = api.post(f"{address}/secret").json()
    assert replaced["secret"] != made["secret"]


def test_the_log_says_what_was_sent_and_it_can_be_sent_again(api, owner):
    model = make_model(owner, namespace="team")
    given = {"model": "team/classifier", "url": URL, "events": ["version.created"]}
    webhook = api.post("webhooks", given).json()
    make_version(owner, model)
    log = f"webhooks/{webhook['id']}/deliveries"
    (sent,) = api.get(log).json()["items"]
    assert (sent["event"], sent["state"]) == ("version.created", "waiting")
    webhooks.end_delivery(webhooks.claim_delivery(), status=500, duration_ms=12)
    (tried,) = api.get(log).json()["items"]
    assert (tried["status"], tried["attempts"], tried["duration_ms"]) == (500, 1, 12)
    assert tried["due_at"] > sent["due_at"]
    again = api.post(f"{log}/{sent['id']}/redeliver")
    assert again.status_code == 202
    assert again.json()["payload"] == sent["payload"]
    assert api.post(f"webhooks/{webhook['id']}/test").json()["event"] == "ping"
    assert len(api.get(log, query={"limit": "2"}).json()["items"]) == 2


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"namespace": "team", "url": "http://x:22", "events": ["alias.moved"]}, "bad_url"),
        ({"namespace": "team", "url": URL, "events": ["alias.flown"]}, "bad_choice"),
        ({"namespace": "team", "url": URL, "events": []}, "invalid"),
        ({"url": URL, "events": ["alias.moved"]}, "one_of"),
        ({"namespace": "team", "model": "a/b", "url": URL, "events": ["alias.moved"]}, "one_of"),
        ({"model": "team/none", "url": URL, "events": ["alias.moved"]}, "model_not_found"),
    ],
)
def test_what_cannot_work_is_refused(api, body, code):
    answer = api.post("webhooks", body)
    problem_of(answer, 404 if code == "model_not_found" else 400, code)
    assert api.get("webhooks").json()["items"] == []


def test_a_long_number_is_nobodys_webhook(api):
    problem_of(api.get(f"webhooks/{2**70}"), 404, "webhook_not_found")
