"""Webhooks: made, tried, changed, and the log of what was sent."""

from functools import partial

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.errors import RegistryError
from registry.models import Actor, Delivery, Webhook
from registry.pages import newest_first
from registry.services import catalog, namespaces, webhooks
from registry.web.forms import NewWebhookForm, WebhookForm, show_refusal
from registry.web.refusals import attempt
from registry.web.visitor import actor_of, signed_in

_ON_A_PAGE = 20


@never_cache
@signed_in
@require_http_methods(["GET", "POST"])
def webhook_list(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    form = NewWebhookForm(request.POST or None, initial={"place": request.GET.get("about", "")})
    if request.method == "POST" and form.is_valid():
        try:
            webhook = _create(actor, form)
        except RegistryError as error:
            show_refusal(form, error)
        else:
            return _show(request, webhook, secret=webhooks.secret_of(webhook))
    rows = webhooks.managed_by(actor).order_by("-pk")
    context = {"form": form, "webhooks": rows}
    return render(request, "webhook/list.html", context, status=422 if form.errors else 200)


def _create(actor: Actor, form: NewWebhookForm) -> Webhook:
    given = form.cleaned_data
    slug, _slash, name = given["place"].partition("/")
    repository = catalog.find_repository(actor, given["kind"], slug, name) if name else None
    return webhooks.create_webhook(
        actor=actor,
        # Of a repository that moved, and was named as it was before, where it is now.
        namespace=repository.namespace if repository else namespaces.find_namespace(actor, slug),
        repository=repository,
        url=given["url"],
        events=given["events"],
    )


@never_cache
@signed_in
@require_safe
def webhook_page(request: HttpRequest, webhook_id: int) -> HttpResponse:
    return _show(request, webhooks.find_webhook(actor_of(request), webhook_id))


def _show(
    request: HttpRequest, webhook: Webhook, *, secret: str = "", form: WebhookForm | None = None
) -> HttpResponse:
    rows = Delivery.objects.filter(webhook=webhook)
    cursor = request.GET.get("cursor", "")
    kept, after = newest_first(rows, "deliveries", _ON_A_PAGE, cursor)
    context = {
        "webhook": webhook,
        "secret": secret,
        "form": form or WebhookForm(initial={"url": webhook.url, "events": webhook.events}),
        "deliveries": kept,
        "older": f"?cursor={after}" if after else "",
        "newest": reverse("web:webhook", args=[webhook.pk]) if cursor else "",
    }
    status = 422 if form is not None and form.errors else 200
    return render(request, "webhook/webhook.html", context, status=status)


@signed_in
@require_POST
def change(request: HttpRequest, webhook_id: int) -> HttpResponse:
    actor = actor_of(request)
    webhook = webhooks.find_webhook(actor, webhook_id)
    form = WebhookForm(request.POST)
    if form.is_valid():
        try:
            webhooks.change_webhook(actor=actor, webhook=webhook, changes=form.cleaned_data)
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("Saved."))
            return redirect("web:webhook", webhook_id=webhook.pk)
    return _show(request, webhook, form=form)


@signed_in
@require_POST
def switch(request: HttpRequest, webhook_id: int) -> HttpResponse:
    actor = actor_of(request)
    webhook = webhooks.find_webhook(actor, webhook_id)
    webhooks.change_webhook(
        actor=actor, webhook=webhook, changes={"is_active": request.POST.get("on") == "1"}
    )
    return redirect("web:webhook", webhook_id=webhook.pk)


@signed_in
@require_POST
def test(request: HttpRequest, webhook_id: int) -> HttpResponse:
    actor = actor_of(request)
    webhook = webhooks.find_webhook(actor, webhook_id)
    change = partial(webhooks.send_test, actor=actor, webhook=webhook)
    attempt(request, change, _("A test is on its way; reload to see how it went."))
    return redirect("web:webhook", webhook_id=webhook.pk)


@signed_in
@require_POST
def redeliver(request: HttpRequest, webhook_id: int, delivery_id: int) -> HttpResponse:
    actor = actor_of(request)
    webhook = webhooks.find_webhook(actor, webhook_id)
    change = partial(webhooks.redeliver, actor=actor, webhook=webhook, delivery_id=delivery_id)
    attempt(request, change, _("The message is on its way again."))
    return redirect("web:webhook", webhook_id=webhook.pk)


@never_cache
@signed_in
@require_POST
def secret(request: HttpRequest, webhook_id: int) -> HttpResponse:
    actor = actor_of(request)
    webhook = webhooks.find_webhook(actor, webhook_id)
    replaced = webhooks.replace_secret(actor=actor, webhook=webhook)
    return _show(request, replaced, secret=webhooks.secret_of(replaced))


@signed_in
@require_POST
def delete(request: HttpRequest, webhook_id: int) -> HttpResponse:
    actor = actor_of(request)
    webhook = webhooks.find_webhook(actor, webhook_id)
    webhooks.delete_webhook(actor=actor, webhook=webhook)
    messages.success(request, _("The webhook to %(url)s is deleted.") % {"url": webhook.url})
    return redirect("web:webhooks")
