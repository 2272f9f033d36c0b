"""The audit log: who did what, narrowed, page by page, or taken away as JSON lines."""

from datetime import UTC, datetime, time
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from registry.errors import RegistryError
from registry.pages import newest_first
from registry.services.audit_log import audit_log, json_lines
from registry.web.forms import show_refusal
from registry.web.visitor import actor_of, signed_in

_ON_A_PAGE = 50


class AuditForm(forms.Form):
    """What of the log is wanted."""

    namespace = forms.CharField(label=_("Namespace"), required=False, max_length=64)
    action = forms.CharField(
        label=_("Action"),
        required=False,
        max_length=64,
        widget=forms.TextInput(attrs={"placeholder": "version."}),
    )
    since = forms.DateField(
        label=_("From"), required=False, widget=forms.DateInput(attrs={"type": "date"})
    )
    until = forms.DateField(
        label=_("Before"), required=False, widget=forms.DateInput(attrs={"type": "date"})
    )

    def narrowing(self) -> dict[str, Any]:
        given = self.cleaned_data
        return {
            "namespace": given["namespace"],
            "action": given["action"],
            "since": _midnight(given["since"]),
            "until": _midnight(given["until"]),
        }


def _midnight(day: Any) -> datetime | None:
    return datetime.combine(day, time.min, tzinfo=UTC) if day else None


@never_cache
@signed_in
@require_safe
def audit_page(request: HttpRequest) -> HttpResponse:
    form = AuditForm(request.GET)
    context: dict[str, Any] = {"form": form, "events": []}
    try:
        if form.is_valid():
            context |= _page(request, form)
    except RegistryError as error:
        show_refusal(form, error)
    return render(request, "account/audit.html", context, status=422 if form.errors else 200)


def _page(request: HttpRequest, form: AuditForm) -> dict[str, Any]:
    rows = audit_log(actor_of(request), **form.narrowing())
    cursor = request.GET.get("cursor", "")
    kept, after = newest_first(rows, "events", _ON_A_PAGE, cursor)
    asked = {name: request.GET[name] for name in form.fields if request.GET.get(name)}
    return {
        "events": kept,
        "older": f"?{urlencode({**asked, 'cursor': after})}" if after else "",
        "newest": f"?{urlencode(asked)}" if cursor else "",
        "export": f"{reverse('web:audit-export')}?{urlencode(asked)}",
    }


@never_cache
@signed_in
@require_safe
def export(request: HttpRequest) -> HttpResponseBase:
    form = AuditForm(request.GET)
    if not form.is_valid():
        return render(request, "account/audit.html", {"form": form, "events": []}, status=422)
    return StreamingHttpResponse(
        json_lines(audit_log(actor_of(request), **form.narrowing())),
        content_type="application/x-ndjson",
        headers={"Content-Disposition": 'attachment; filename="events.jsonl"'},
    )
