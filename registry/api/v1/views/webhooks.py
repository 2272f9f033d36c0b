"""Webhooks: whom to tell about what, a way to try them, and the log of what was sent."""

from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.models import Actor, Delivery, Namespace, Repository, Webhook
from registry.pages import Page, check_limit, newest_first
from registry.permissions import require_scope
from registry.services import catalog, namespaces, webhooks
from registry.services.texts import invalid_field


def _address(webhook: Webhook) -> str:
    return reverse("api:webhook", args=[webhook.pk])


def _with_secret(webhook: Webhook) -> dict[str, object]:
    return {**wire.webhook_body(webhook), "secret": webhooks.secret_of(webhook)}


def _place(actor: Actor, new: schemas.NewWebhook) -> tuple[Namespace, Repository | None]:
    given = [("model", new.model), ("dataset", new.dataset)]
    named = [(kind, name) for kind, name in given if name]
    if len(named) + (new.namespace is not None) != 1:
        raise invalid_field("namespace", "one_of", "Name one of namespace, model and dataset.")
    for kind, full_name in named:
        slug, _, name = full_name.partition("/")
        repository = catalog.find_repository(actor, kind, slug, name)
        return repository.namespace, repository
    return namespaces.find_namespace(actor, new.namespace or ""), None


class WebhookList(Resource):
    keeps_answers = False

    @operation(
        "list_webhooks",
        "List the webhooks of what you own or maintain, newest first.",
        {200: schemas.WebhookPage},
        query=schemas.WebhookQuery,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        require_scope(self.actor, "write")
        asked = self.query(schemas.WebhookQuery)
        rows = webhooks.managed_by(self.actor)
        if asked.namespace:
            rows = rows.filter(namespace=namespaces.find_namespace(self.actor, asked.namespace))
        found, after = newest_first(rows, "webhooks", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([wire.webhook_body(row) for row in found], after))

    @operation(
        "create_webhook",
        "Make a webhook; its secret is shown this once.",
        {201: schemas.MadeWebhook},
        body=schemas.NewWebhook,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        new = self.body(schemas.NewWebhook)
        namespace, repository = _place(self.actor, new)
        webhook = webhooks.create_webhook(
            actor=self.actor,
            namespace=namespace,
            repository=repository,
            url=new.url,
            events=new.events,
        )
        return created(_with_secret(webhook), _address(webhook))


class WebhookResource(Resource):
    """An address below one webhook."""

    def webhook(self) -> Webhook:
        require_scope(self.actor, "write")
        return webhooks.find_webhook(self.actor, self.kwargs["webhook"])


class WebhookOne(WebhookResource):
    @operation("get_webhook", "Get a webhook.", {200: schemas.Webhook})
    def get(self, request: Request, **_: int) -> Response:
        return Response(wire.webhook_body(self.webhook()))

    @operation(
        "change_webhook",
        "Change where it goes and what it hears, or switch it on or off.",
        {200: schemas.Webhook},
        body=schemas.WebhookChanges,
    )
    def patch(self, request: Request, **_: int) -> Response:
        webhook = webhooks.change_webhook(
            actor=self.actor, webhook=self.webhook(), changes=self.changes(schemas.WebhookChanges)
        )
        return Response(wire.webhook_body(webhook))

    @operation("delete_webhook", "Delete a webhook and its log.", {204: None})
    def delete(self, request: Request, **_: int) -> HttpResponseBase:
        webhooks.delete_webhook(actor=self.actor, webhook=self.webhook())
        return no_content()


class WebhookSecret(WebhookResource):
    keeps_answers = False

    @operation(
        "replace_webhook_secret",
        "Give a webhook another secret; it is shown this once.",
        {200: schemas.MadeWebhook},
    )
    def post(self, request: Request, **_: int) -> Response:
        webhook = webhooks.replace_secret(actor=self.actor, webhook=self.webhook())
        return Response(_with_secret(webhook))


class WebhookTest(WebhookResource):
    @operation(
        "test_webhook", "Send a `ping`; its delivery says how it went.", {202: schemas.Delivery}
    )
    def post(self, request: Request, **_: int) -> Response:
        webhook = self.webhook()
        delivery = webhooks.send_test(actor=self.actor, webhook=webhook)
        log = reverse("api:webhook-deliveries", args=[webhook.pk])
        return created(wire.delivery_body(delivery), log, status=202)


class DeliveryList(WebhookResource):
    @operation(
        "list_deliveries",
        "Read what was sent to a webhook and how it went, newest first; kept for a month.",
        {200: schemas.DeliveryPage},
        query=schemas.Paging,
        gives=("Link",),
    )
    def get(self, request: Request, **_: int) -> Response:
        asked = self.query(schemas.Paging)
        rows = Delivery.objects.filter(webhook=self.webhook())
        found, after = newest_first(rows, "deliveries", check_limit(asked.limit), asked.cursor)
        return page_response(request, Page([wire.delivery_body(row) for row in found], after))


class DeliveryAgain(WebhookResource):
    @operation("redeliver", "Send the message of a delivery again.", {202: schemas.Delivery})
    def post(self, request: Request, *, delivery: int, **_: int) -> Response:
        webhook = self.webhook()
        again = webhooks.redeliver(actor=self.actor, webhook=webhook, delivery_id=delivery)
        log = reverse("api:webhook-deliveries", args=[webhook.pk])
        return created(wire.delivery_body(again), log, status=202)
