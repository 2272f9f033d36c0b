from datetime import timedelta
from functools import partial
from ipaddress import ip_network

import orjson
import pytest
from django.utils import timezone
from standardwebhooks import Webhook as StandardWebhook

from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.models import Delivery, DeliveryState, Event, Membership, Role, Webhook
from registry.services import (
    catalog,
    deployments,
    jobs,
    proposals,
    sharing,
    versions,
    webhooks,
)
from registry.services.announcements import EVENTS
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_admin,
    make_member,
    make_model,
    make_version,
)
from tests.receiver import listening
from workers.courier import deliver_one

pytestmark = pytest.mark.django_db
URL = "https://hooks.example.org/modelyard"


@pytest.fixture
def team():
    return NamespaceFactory(slug="team")


@pytest.fixture
def owner(team):
    return make_member(team, Role.OWNER)


@pytest.fixture
def webhook(team, owner):
    return webhooks.create_webhook(
        actor=actor_of(owner), namespace=team, url=URL, events=list(EVENTS)
    )


@pytest.fixture
def receiver(settings):
    with listening() as running:
        settings.WEBHOOK_PORTS = frozenset({443, running.port})
        settings.WEBHOOK_NETWORKS = [ip_network("127.0.0.1/32")]
        yield running


def told(webhook):
    return list(webhook.deliveries.order_by("pk").values_list("event", flat=True))


# --- Who may, and what is told --------------------------------------------------------------


def test_owners_hear_of_a_namespace_and_maintainers_of_a_model(team, owner):
    maintainer = make_member(team, Role.MAINTAINER)
    model = make_model(owner, namespace="team")
    with pytest.raises(Denied):
        webhooks.create_webhook(
            actor=actor_of(maintainer), namespace=team, url=URL, events=["alias.moved"]
        )
    made = webhooks.create_webhook(
        actor=actor_of(maintainer),
        namespace=team,
        repository=model,
        url=URL,
        events=["alias.moved"],
    )
    assert webhooks.find_webhook(actor_of(maintainer), made.pk) == made
    contributor = make_member(team, Role.CONTRIBUTOR)
    for stranger in (contributor, UserFactory()):
        with pytest.raises(NotFound):
            webhooks.find_webhook(actor_of(stranger), made.pk)


def test_maintainers_do_not_see_what_tells_of_the_whole_namespace(team, webhook):
    maintainer = make_member(team, Role.MAINTAINER)
    with pytest.raises(NotFound):
        webhooks.find_webhook(actor_of(maintainer), webhook.pk)
    assert webhooks.find_webhook(actor_of(make_admin()), webhook.pk) == webhook


def test_what_happens_is_told_in_the_same_transaction(team, owner, webhook):
    model = make_model(owner, namespace="team")
    version = make_version(owner, model)
    catalog.set_alias(actor=actor_of(owner), repository=model, alias="champion", version=version)
    assert told(webhook) == ["version.created", "alias.moved"]
    moved = webhook.deliveries.get(event="alias.moved").payload
    assert moved["type"] == "alias.moved"
    assert moved["data"]["name"] == "classifier"
    assert moved["data"]["version"] == 1
    assert moved["data"]["actor"] == owner.username


def test_other_places_and_other_events_are_not_told(team, owner, webhook):
    webhooks.change_webhook(
        actor=actor_of(owner), webhook=webhook, changes={"events": ["alias.moved"]}
    )
    make_version(owner, make_model(owner, namespace="team"))
    make_version(owner, make_model(owner, "elsewhere"))
    assert told(webhook) == []


def test_a_webhook_of_one_model_hears_of_no_other(team, owner):
    model, other = (make_model(owner, name, namespace="team") for name in ("one", "two"))
    webhook = webhooks.create_webhook(
        actor=actor_of(owner), namespace=team, repository=model, url=URL, events=list(EVENTS)
    )
    make_version(owner, other)
    assert told(webhook) == []
    make_version(owner, model)
    assert told(webhook) == ["version.created"]


def test_each_event_reaches_who_listens(team, owner, live, receiver):
    model = make_model(owner, namespace="team")
    version, other = make_version(owner, model), make_version(owner, model)
    actor, writer = actor_of(owner), actor_of(make_member(team, Role.CONTRIBUTOR))
    versions.describe_version(actor=actor, version=version, changes={"message": "First."})
    catalog.set_alias(actor=actor, repository=model, alias="champion", version=version)
    catalog.delete_alias(actor=actor, repository=model, alias="champion")
    for decide in (
        partial(proposals.approve_proposal, actor=actor, expected_version=None),
        partial(proposals.decline_proposal, actor=actor),
        partial(proposals.withdraw_proposal, actor=writer),
    ):
        asked = version if decide.func is proposals.approve_proposal else other
        decide(
            proposal=proposals.propose_alias(
                actor=writer, repository=model, alias="production", version=asked
            )
        )
    recipe = {
        "kind": "compress",
        "schema": 1,
        "model": "team/classifier@2",
        "steps": [{"method": "quantize_dynamic"}],
    }
    jobs.cancel_job(actor=actor, job=jobs.submit_job(actor=actor, recipe=recipe))
    deployments.deploy(actor=actor, model="team/classifier", version="1")
    versions.delete_version(actor=actor, version=other)
    while deliver_one():
        pass
    came = [orjson.loads(body) for _, body in receiver.messages]
    assert {one["type"] for one in came} == set(EVENTS)
    decided = [one["data"] for one in came if one["type"] == "approval.decided"]
    assert [one["action"] for one in decided] == [
        "alias.approve",
        "alias.decline",
        "alias.withdraw",
    ]
    assert [one["proposal"] for one in decided] == [1, 2, 3]
    assert decided[0]["target"] == "team/classifier@production"


def test_the_end_of_a_job_is_told(team, owner, webhook):
    make_version(owner, make_model(owner, namespace="team"))
    recipe = {
        "kind": "compress",
        "schema": 1,
        "model": "team/classifier@1",
        "steps": [{"method": "quantize_dynamic"}],
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    jobs.cancel_job(actor=actor_of(owner), job=job)
    (delivery,) = webhook.deliveries.filter(event="job.finished")
    assert delivery.payload["data"]["state"] == "cancelled"
    assert delivery.payload["data"]["job"] == str(job.pk)


@pytest.mark.parametrize(
    ("url", "events"),
    [("http://x:22/", ["alias.moved"]), ("nonsense", ["alias.moved"]), (URL, []), (URL, ["x"])],
)
def test_what_cannot_work_is_refused_at_once(team, owner, url, events):
    with pytest.raises(Invalid):
        webhooks.create_webhook(actor=actor_of(owner), namespace=team, url=url, events=events)
    assert not Webhook.objects.exists()


def test_a_namespace_has_no_end_of_webhooks(team, owner):
    for _ in range(20):
        webhooks.create_webhook(
            actor=actor_of(owner), namespace=team, url=URL, events=["alias.moved"]
        )
    with pytest.raises(Conflict):
        webhooks.create_webhook(
            actor=actor_of(owner), namespace=team, url=URL, events=["alias.moved"]
        )


def test_the_secret_is_nowhere_in_the_rows_and_changes_when_asked(owner, webhook):
    secret = webhooks.secret_of(webhook)
    assert secret.startswith("whsec_")
    changed = webhooks.replace_secret(actor=actor_of(owner), webhook=webhook)
    assert webhooks.secret_of(changed) != secret
    rows = [*Webhook.objects.values(), *Event.objects.values()]
    assert secret.removeprefix("whsec_") not in str(rows)


# --- Deliveries -------------------------------------------------------------------------------


@pytest.fixture
def live(webhook, owner, receiver):
    return webhooks.change_webhook(
        actor=actor_of(owner), webhook=webhook, changes={"url": receiver.url}
    )


def let_time_pass():
    """Make everything due that waits."""
    Delivery.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    Webhook.objects.update(busy_until=None)


def test_a_delivery_is_signed_as_the_standard_says(owner, live, receiver):
    delivery = webhooks.send_test(actor=actor_of(owner), webhook=live)
    assert deliver_one()
    assert not deliver_one()
    ((headers, body),) = receiver.messages
    lowered = {name.lower(): value for name, value in headers.items()}
    verified = StandardWebhook(webhooks.secret_of(live)).verify(body.decode(), lowered)
    assert verified["type"] == "ping"
    assert orjson.loads(body) == delivery.payload
    delivery.refresh_from_db()
    assert (delivery.state, delivery.status) == (DeliveryState.DELIVERED, 204)


def test_receivers_accept_their_secret_while_an_older_key_is_kept(owner, live, receiver, settings):
    held = webhooks.secret_of(live)
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another key of an installation, long enough"
    webhooks.send_test(actor=actor_of(owner), webhook=live)
    assert deliver_one()
    ((headers, body),) = receiver.messages
    lowered = {name.lower(): value for name, value in headers.items()}
    assert webhooks.secret_of(live) != held
    for secret in (held, webhooks.secret_of(live)):
        assert StandardWebhook(secret).verify(body.decode(), lowered)["type"] == "ping"


def test_a_failure_is_tried_again_later_and_given_up_in_the_end(owner, live, receiver):
    receiver.status = 500
    delivery = webhooks.send_test(actor=actor_of(owner), webhook=live)
    assert deliver_one()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.status) == (DeliveryState.WAITING, 500)
    assert delivery.due_at > timezone.now()
    assert not deliver_one()
    for _ in webhooks.RETRY_SECONDS:
        let_time_pass()
        assert deliver_one()
    delivery.refresh_from_db()
    assert delivery.state == DeliveryState.FAILED
    assert delivery.attempts_count == len(webhooks.RETRY_SECONDS) + 1
    live.refresh_from_db()
    assert live.is_active


def test_a_success_after_failures_is_a_success(owner, live, receiver):
    receiver.status = 503
    delivery = webhooks.send_test(actor=actor_of(owner), webhook=live)
    deliver_one()
    receiver.status = 200
    let_time_pass()
    deliver_one()
    delivery.refresh_from_db()
    assert (delivery.state, delivery.status) == (DeliveryState.DELIVERED, 200)


def test_an_address_that_is_gone_is_not_called_again(owner, live, receiver):
    receiver.status = 410
    webhooks.send_test(actor=actor_of(owner), webhook=live)
    waiting = webhooks.send_test(actor=actor_of(owner), webhook=live)
    deliver_one()
    live.refresh_from_db()
    assert not live.is_active
    assert "410" in live.inactive_reason
    waiting.refresh_from_db()
    assert waiting.state == DeliveryState.FAILED
    with pytest.raises(Conflict):
        webhooks.send_test(actor=actor_of(owner), webhook=live)
    again = webhooks.change_webhook(
        actor=actor_of(owner), webhook=live, changes={"is_active": True}
    )
    assert again.inactive_reason == ""


def test_too_many_failures_in_a_row_switch_it_off(owner, live, receiver):
    receiver.status = 500
    for _ in range(webhooks.MAX_FAILURES):
        delivery = webhooks.send_test(actor=actor_of(owner), webhook=live)
        Delivery.objects.filter(pk=delivery.pk).update(attempts_count=len(webhooks.RETRY_SECONDS))
        assert deliver_one()
    live.refresh_from_db()
    assert not live.is_active
    stopped = Event.objects.get(action="webhook.stop")
    assert (stopped.actor, stopped.namespace_id) == ("courier", live.namespace_id)
    assert stopped.data["reason"] == live.inactive_reason


def test_a_webhook_that_is_switched_off_sends_nothing_more(owner, live, receiver):
    waiting = webhooks.send_test(actor=actor_of(owner), webhook=live)
    taken = webhooks.claim_delivery()
    later = webhooks.send_test(actor=actor_of(owner), webhook=live)
    webhooks.change_webhook(actor=actor_of(owner), webhook=live, changes={"is_active": False})
    # What was under way ends, and what another process wrote at the same moment stays.
    webhooks.end_delivery(taken, status=500)
    stray = Delivery.objects.create(webhook=live, event="ping", payload={})
    let_time_pass()
    assert not deliver_one()
    assert receiver.messages == []
    for delivery in (waiting, later):
        delivery.refresh_from_db()
        assert delivery.state == DeliveryState.FAILED
    webhooks.change_webhook(actor=actor_of(owner), webhook=live, changes={"is_active": True})
    assert deliver_one()
    stray.refresh_from_db()
    assert stray.state == DeliveryState.DELIVERED


def test_webhooks_of_a_model_move_with_it_and_wait_for_a_word(team, owner, receiver):
    lab = NamespaceFactory(slug="lab")
    Membership.objects.create(namespace=lab, user=owner, role=Role.OWNER)
    model = make_model(owner, namespace="team")
    made = webhooks.create_webhook(
        actor=actor_of(owner),
        namespace=team,
        repository=model,
        url=receiver.url,
        events=["version.created"],
    )
    make_version(owner, model)
    moved = sharing.transfer_repository(actor=actor_of(owner), repository=model, namespace=lab)
    assert not deliver_one()
    there = webhooks.find_webhook(actor_of(make_member(lab, Role.MAINTAINER)), made.pk)
    assert (there.namespace, there.is_active) == (lab, False)
    assert "moved" in there.inactive_reason
    with pytest.raises(NotFound):
        webhooks.find_webhook(actor_of(make_member(team, Role.OWNER)), made.pk)
    webhooks.change_webhook(actor=actor_of(owner), webhook=there, changes={"is_active": True})
    make_version(owner, moved)
    assert deliver_one()
    assert orjson.loads(receiver.messages[0][1])["data"]["namespace"] == "lab"


def test_one_courier_at_a_time_calls_a_webhook(owner, live):
    webhooks.send_test(actor=actor_of(owner), webhook=live)
    webhooks.send_test(actor=actor_of(owner), webhook=live)
    assert webhooks.claim_delivery() is not None
    assert webhooks.claim_delivery() is None


def test_what_a_dead_courier_held_is_taken_over_and_its_late_word_ignored(owner, live):
    webhooks.send_test(actor=actor_of(owner), webhook=live)
    lost = webhooks.claim_delivery()
    Webhook.objects.update(busy_until=timezone.now() - timedelta(seconds=1))
    taken = webhooks.claim_delivery()
    assert taken.delivery_id == lost.delivery_id
    webhooks.end_delivery(lost, problem="too late")
    assert Delivery.objects.get().problem == ""
    webhooks.end_delivery(taken, status=204)
    assert Delivery.objects.get().state == DeliveryState.DELIVERED


def test_a_message_can_be_sent_again(owner, live, receiver):
    first = webhooks.send_test(actor=actor_of(owner), webhook=live)
    deliver_one()
    again = webhooks.redeliver(actor=actor_of(owner), webhook=live, delivery_id=first.pk)
    deliver_one()
    assert again.pk != first.pk
    assert [orjson.loads(body) for _, body in receiver.messages] == [first.payload] * 2
    with pytest.raises(NotFound):
        webhooks.redeliver(actor=actor_of(owner), webhook=live, delivery_id=0)


def test_an_address_that_turned_inwards_is_not_called(owner, webhook, settings):
    """What resolved to a public address when it was entered may not do so for ever."""
    delivery = webhooks.send_test(actor=actor_of(owner), webhook=webhook)
    Webhook.objects.update(url="http://127.0.0.1/")
    settings.WEBHOOK_PORTS = frozenset({80})
    deliver_one()
    delivery.refresh_from_db()
    assert "not at a public address" in delivery.problem
    assert delivery.status is None


def test_old_deliveries_are_forgotten(owner, live):
    webhooks.send_test(actor=actor_of(owner), webhook=live)
    deliver_one()
    assert webhooks.forget_deliveries() == 0
    Delivery.objects.update(ended_at=timezone.now() - timedelta(days=31))
    assert webhooks.forget_deliveries() == 1
