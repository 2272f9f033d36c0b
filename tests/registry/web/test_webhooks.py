import re

import pytest

from registry.models import Delivery, Membership, Role, Webhook
from registry.services import sharing, webhooks
from tests.factories import NamespaceFactory, actor_of, make_member, make_model

URL = "https://hooks.example.org/modelyard"
FORM = {"place": "team", "kind": "model", "url": URL, "events": ["alias.moved"]}


@pytest.fixture
def owner(db):
    return make_member(NamespaceFactory(slug="team"), Role.OWNER)


@pytest.fixture
def visitor(client, owner):
    client.force_login(owner)
    return client


@pytest.fixture
def webhook(visitor):
    visitor.post("/settings/webhooks", FORM)
    return Webhook.objects.get()


def test_a_webhook_is_made_and_its_secret_shown_once(visitor):
    page = visitor.post("/settings/webhooks", FORM).content.decode()
    webhook = Webhook.objects.get()
    assert webhooks.secret_of(webhook) in page
    later = visitor.get(f"/settings/webhooks/{webhook.pk}").content.decode()
    assert webhooks.secret_of(webhook) not in later
    assert URL in visitor.get("/settings/webhooks").content.decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "ftp://x"}, "不是以 https:// 或 http:// 开头"),
        ({"place": "nobody"}, "nobody"),
        ({"place": "team/none"}, "team/none"),
        ({"events": []}, "必填"),
    ],
)
def test_what_is_refused_is_said_in_the_language_of_the_page(visitor, change, words):
    answer = visitor.post("/zh-hans/settings/webhooks", {**FORM, **change})
    assert answer.status_code == 422
    assert words in answer.content.decode()
    assert not Webhook.objects.exists()


def test_a_repository_that_moved_is_watched_where_it_is(visitor, owner):
    elsewhere = NamespaceFactory(slug="new")
    Membership.objects.create(namespace=elsewhere, user=owner, role=Role.OWNER)
    repository = make_model(owner, "digits", namespace="team")
    sharing.transfer_repository(actor=actor_of(owner), repository=repository, namespace=elsewhere)
    visitor.post("/settings/webhooks", {**FORM, "place": "team/digits"})
    assert Webhook.objects.get().namespace.slug == "new"


def test_it_is_tried_and_the_log_shows_how_it_went(visitor, webhook):
    address = f"/settings/webhooks/{webhook.pk}"
    visitor.post(f"{address}/test")
    webhooks.end_delivery(webhooks.claim_delivery(), problem="The host name does not resolve.")
    assert "The host name does not resolve." in visitor.get(address).content.decode()
    assert "主机名无法解析。" in visitor.get(f"/zh-hans{address}").content.decode()
    (delivery,) = Delivery.objects.all()
    visitor.post(f"{address}/deliveries/{delivery.pk}/redeliver")
    assert Delivery.objects.count() == 2


def test_it_is_changed_switched_off_given_a_secret_and_deleted(visitor, webhook, owner):
    address = f"/settings/webhooks/{webhook.pk}"
    visitor.post(f"{address}/change", {"url": URL + "/2", "events": ["job.finished"]})
    visitor.post(f"{address}/switch", {"on": "0"})
    webhook.refresh_from_db()
    assert (webhook.url, webhook.events) == (URL + "/2", ["job.finished"])
    assert not webhook.is_active
    refused = visitor.post(f"{address}/test", follow=True).content.decode()
    assert "switched off" in refused
    page = visitor.post(f"{address}/secret").content.decode()
    webhook.refresh_from_db()
    assert webhooks.secret_of(webhook) in page
    visitor.post(f"{address}/delete")
    assert not Webhook.objects.exists()


def test_the_log_is_read_page_by_page(visitor, webhook, owner):
    for _ in range(21):
        webhooks.send_test(actor=actor_of(owner), webhook=webhook)
    first = visitor.get(f"/settings/webhooks/{webhook.pk}").content.decode()
    (older,) = re.findall(r'rel="next" href="([^"]+)"', first)
    second = visitor.get(f"/settings/webhooks/{webhook.pk}{older}").content.decode()
    assert second.count("webhook-deliveries") == 0
    assert second.count("/redeliver") == 1
