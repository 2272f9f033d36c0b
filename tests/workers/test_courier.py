"""The couriers of a worker: they come when they are called, and by themselves."""

from ipaddress import ip_network

import pytest

from registry.models import Delivery, DeliveryState, Role
from registry.services import webhooks
from tests.factories import NamespaceFactory, actor_of, make_member
from tests.local.waiting import wait_until
from tests.receiver import listening
from workers import courier

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def receiver(settings):
    with listening() as running:
        settings.WEBHOOK_PORTS = frozenset({running.port})
        settings.WEBHOOK_NETWORKS = [ip_network("127.0.0.1/32")]
        yield running


@pytest.fixture
def couriers():
    group = courier.Couriers()
    group.start()
    yield group
    group.stop()
    group.join(10)


def test_they_deliver_when_they_are_woken_and_what_was_waiting_before(receiver, couriers):
    team = NamespaceFactory(slug="team")
    owner = actor_of(make_member(team, Role.OWNER))
    webhook = webhooks.create_webhook(
        actor=owner, namespace=team, url=receiver.url, events=["alias.moved"]
    )
    for _ in range(3):
        webhooks.send_test(actor=owner, webhook=webhook)
    couriers.wake()
    receiver.wait_for(3)
    delivered = Delivery.objects.filter(state=DeliveryState.DELIVERED)
    wait_until(lambda: delivered.count() == 3, "three deliveries")
    names = [headers["webhook-id"] for headers, _ in receiver.messages]
    assert names == sorted(set(names))


def test_a_delivery_that_breaks_ends_no_courier(receiver, couriers, monkeypatch):
    """As the call of an address once did that one parser took and another did not."""
    team = NamespaceFactory(slug="team")
    owner = actor_of(make_member(team, Role.OWNER))
    webhook = webhooks.create_webhook(
        actor=owner, namespace=team, url=receiver.url, events=["alias.moved"]
    )
    post = courier.fetch.post
    monkeypatch.setattr(courier.fetch, "post", lambda *_args: 1 / 0)
    webhooks.send_test(actor=owner, webhook=webhook)
    couriers.wake()
    broken = Delivery.objects.exclude(problem="")
    wait_until(broken.exists, "the attempt")
    assert "could not be made" in broken.get().problem
    monkeypatch.setattr(courier.fetch, "post", post)
    webhook.refresh_from_db()
    webhook.busy_until = None
    webhook.save()
    for _ in range(4):
        webhooks.send_test(actor=owner, webhook=webhook)
    couriers.wake()
    receiver.wait_for(4)
    assert all(thread.is_alive() for thread in couriers._threads)
