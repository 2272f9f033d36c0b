"""The page of one model or dataset: its card, history, files, numbers, origin and use."""

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.errors import Conflict, NotFound, RegistryError
from registry.models import Artifact, Repository, Version
from registry.permissions import allowed, require
from registry.recommend import similar_to
from registry.services import catalog
from registry.services.blobs import RUNNABLE
from registry.services.deployments import deployments_of, list_endpoints
from registry.services.lineage import trace
from registry.services.reproduction import KINDS
from registry.services.versions import read_card
from registry.web import ancestry, charts, history, wording
from registry.web.forms import AliasForm, DescribeForm, RegisterForm, TagForm, show_refusal
from registry.web.markdown import render_markdown
from registry.web.refusals import keep_typed, take_typed, words_of
from registry.web.serving import calls
from registry.web.snippets import snippets
from registry.web.undo import way_back
from registry.web.visitor import actor_of, anybody, signed_in

Details = dict[str, Any]


@require_safe
@anybody
def repository_page(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    page = RepositoryPage(request, kind, namespace, name)
    if page.repository.full_name != f"{namespace}/{name}":
        return redirect(f"{page.address}?{request.GET.urlencode()}".rstrip("?"))
    return render(request, f"repository/{page.tab}.html", page.context())


class RepositoryPage:
    """What the head and one tab of a repository's page show, read in a fixed number of queries."""

    def __init__(self, request: HttpRequest, kind: str, namespace: str, name: str) -> None:
        self.request = request
        self.actor = actor_of(request)
        self.repository = catalog.find_repository(self.actor, kind, namespace, name)
        self.tabs = ["card", "versions", "files", "metrics", "lineage", "similar", "use", "serve"]
        if kind == "dataset":
            self.tabs.remove("metrics")
            self.tabs.remove("serve")
        asked = request.GET.get("tab", "card")
        self.tab = asked if asked in self.tabs else "card"
        self.aliases = history.aliases_of(self.repository)
        self.latest = self._latest()
        if self.latest:
            self.latest.repository = self.repository

    @property
    def address(self) -> str:
        return address_of(self.repository)

    def _latest(self) -> Version | None:
        shown = Version.objects.filter(repository=self.repository).live()
        shown = shown.select_related("revision", "created_by", "job")
        if self.repository.latest_number:
            return shown.filter(number=self.repository.latest_number).first()
        return shown.order_by("-number").first()

    def context(self) -> Details:
        repository = self.repository
        titles = {
            "card": _("Card"),
            "versions": _("Versions"),
            "files": _("Files"),
            "metrics": _("Metrics"),
            "lineage": _("Lineage"),
            "similar": _("Similar"),
            "use": _("Use"),
            "serve": _("Serve"),
        }
        counts = {"versions": history.count(repository)}
        if self.latest:
            counts["files"] = self.latest.files_count
        details: Callable[[], Details] = getattr(self, f"_{self.tab}")
        return {
            "repository": repository,
            "kind": repository.kind,
            "plural": f"{repository.kind}s",
            "latest": self.latest,
            "aliases": self.aliases,
            "tags": list(repository.tags.filter(version=None).order_by("key")),
            "tab": self.tab,
            "tabs": [(key, titles[key], counts.get(key)) for key in self.tabs],
            "versions_count": counts["versions"],
            "may_write": allowed(self.actor, "write", repository),
            "may_own": allowed(self.actor, "own", repository),
            "may_maintain": allowed(self.actor, "maintain", repository),
            "followed": any(alias.followed for alias in self.aliases)
            or bool(repository.protected_aliases),
            "host": self.request.build_absolute_uri("/").rstrip("/"),
            **self._numbers(),
            **details(),
        }

    def _numbers(self) -> Details:
        """Read the numbers of the head: how good and quick the latest is, the smallest variant."""
        if self.latest is None or self.repository.kind == "dataset":
            return {}
        smallest = (
            history.newest(self.repository)
            .filter(files_count__gt=0)
            .usable()
            .exclude(pk=self.latest.pk)
            .order_by("size_bytes")
            .first()
        )
        if smallest and smallest.size_bytes >= self.latest.size_bytes:
            smallest = None
        found = history.numbers_of([self.latest])[self.latest.pk]
        return {
            "quality": history.quality_of(found),
            "latency": found.get(wording.LATENCY_METRIC),
            "smallest": smallest,
            "smaller": history.ratio_text(self.latest.size_bytes, smallest.size_bytes)
            if smallest
            else "",
        }

    def _shown(self) -> Version:
        """Choose the version that `?version=` names, else the latest."""
        asked = self.request.GET.get("version", "")
        if asked:
            return catalog.find_version(self.actor, self.repository, asked)
        if self.latest is None:
            raise NotFound("{repository} has no version yet.", repository=self.repository)
        return self.latest

    def _snippets(self) -> Details:
        if self.latest is None:
            return {}
        alias = next((a.name for a in self.aliases if a.version_id == self.latest.pk), "")
        paths = list(
            Artifact.objects.filter(revision_id=self.latest.revision_id)
            .order_by("path")
            .values_list("path", flat=True)[:200]
        )
        host = self.request.build_absolute_uri("/").rstrip("/")
        return {
            "snippets": snippets(
                host, self.repository, self.latest, paths, alias, self._converted(paths)
            )
        }

    def _converted(self, paths: list[str]) -> list[str]:
        """List what the sandbox made of the latest version, which has nothing else to run."""
        if self.latest is None or RUNNABLE.isdisjoint(self.latest.formats):
            return []
        if any(path.endswith(tuple(f".{one}" for one in RUNNABLE)) for path in paths):
            return []
        made = self.latest.derivatives.converted().order_by("path")
        return list(made.values_list("path", flat=True))

    def _similar(self) -> Details:
        similar = similar_to(self.actor, self.repository)
        return {"similar": similar, "by_words": not all(one.by_meaning for one in similar)}

    def _card(self) -> Details:
        card = read_card(self.actor, self.latest) if self.latest else None
        parents, children = history.lineage(self.actor, self.latest) if self.latest else ([], [])
        typed = take_typed(self.request)
        return {
            "card": card,
            "card_html": render_markdown(card.body) if card else "",
            "jobs": history.running_jobs(self.actor, self.repository),
            "parents": parents,
            "children": children[:6],
            **self._glance(),
            "typed": typed,
            "tag_form": TagForm(initial=typed.get("tag")),
            "alias_form": AliasForm(
                initial={"version": self.repository.latest_number, **typed.get("alias", {})}
            ),
            **self._snippets(),
        }

    def _glance(self) -> Details:
        """Show the newest versions below the card, and the picture where numbers allow one."""
        found = history.history(self.repository, self.aliases)
        return {
            "history": found,
            "rows": found.rows[:6],
            "axis": self.axis,
            "chart": history.quality_chart(found.rows, found.quality_metric, self.axis),
            "chart_y": _axis_name(found.quality_metric),
        }

    @property
    def axis(self) -> str:
        return "latency" if self.request.GET.get("x") == "latency" else "size"

    def _versions(self) -> Details:
        before = self.request.GET.get("before", "")
        archived = self.request.GET.get("archived") == "1"
        since = int(before[:9]) if before.isdecimal() else None
        if (origin := self._origin()) is not None:
            found = history.history_below(
                self.repository, self.aliases, origin, since, archived=archived
            )
        else:
            found = history.history(self.repository, self.aliases, since, archived=archived)
        return {
            "history": found,
            "archived": archived,
            "axis": self.axis,
            "chart": history.quality_chart(
                found.rows, found.quality_metric, self.axis, charts.WIDE
            ),
            "chart_y": _axis_name(found.quality_metric),
            "jobs": history.running_jobs(self.actor, self.repository),
        }

    def _origin(self) -> Version | None:
        """Find the version whose variants alone are asked for."""
        number = self.request.GET.get("below", "")
        return catalog.find_version(self.actor, self.repository, number) if number else None

    def _files(self) -> Details:
        if self.latest is None:
            return {}
        shown = self._shown()
        return {
            "shown": shown,
            "files": list(
                Artifact.objects.filter(revision_id=shown.revision_id)
                .select_related("blob")
                .prefetch_related("blob__inspections")
                .order_by("path")[:1000]
            ),
        }

    def _metrics(self) -> Details:
        found = history.history(self.repository, self.aliases)
        rows = [row for row in found.rows if row.numbers]
        metrics = sorted({metric for row in rows for metric in row.numbers})
        return {
            "rows": rows,
            "metrics": metrics,
            "axis": self.axis,
            "history": found,
            "chart": history.quality_chart(rows, found.quality_metric, self.axis, charts.WIDE),
            "chart_y": _axis_name(found.quality_metric),
        }

    def _lineage(self) -> Details:
        if self.latest is None:
            return {}
        shown = self._shown()
        shown.repository = self.repository
        graph = trace(self.actor, shown)
        return {
            "shown": shown,
            "graph": graph,
            "drawing": ancestry.drawing_of(graph),
            "reproducible": KINDS,
        }

    def _use(self) -> Details:
        return self._snippets()

    def _serve(self) -> Details:
        endpoints = list(list_endpoints(self.actor, repository=self.repository))
        if not endpoints:
            return {"endpoints": []}
        rows = deployments_of(endpoints[0])
        answering = max(rows, key=lambda one: one.weight, default=None)
        serves = answering.serves if answering else None
        host = self.request.build_absolute_uri("/")
        return {"endpoints": endpoints, "snippets": calls(host, endpoints[0], serves)}


def _axis_name(metric: str) -> str:
    return wording.metric_name(metric) + (", %" if metric in wording.SHARES else "")


def address_of(repository: Repository, page: str = "repository") -> str:
    return reverse(
        f"web:{page}",
        kwargs={
            "kind": repository.kind,
            "namespace": repository.namespace.slug,
            "name": repository.name,
        },
    )


# --- Writing: parse, one service, back to the page ------------------------------------------------


@signed_in
@require_http_methods(["GET", "POST"])
def register(request: HttpRequest, kind: str) -> HttpResponse:
    actor = actor_of(request)
    form = RegisterForm(catalog.namespaces_writable_by(actor), request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            repository = catalog.register_repository(actor=actor, kind=kind, **form.cleaned_data)
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("%(name)s is registered.") % {"name": repository})
            return redirect(address_of(repository, "new-version"))
    return render(request, "repository/register.html", {"form": form, "kind": kind})


@signed_in
@require_http_methods(["GET", "POST"])
def settings_page(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    require(actor, "write", repository)
    form = DescribeForm(request.POST) if request.method == "POST" else DescribeForm.of(repository)
    if request.method == "POST" and form.is_valid():
        try:
            repository = catalog.describe_repository(
                actor=actor, repository=repository, changes=form.changes(repository)
            )
        except RegistryError as error:
            show_refusal(form, error)
        else:
            messages.success(request, _("Saved."))
            return redirect(address_of(repository))
    context = {
        "form": form,
        "repository": repository,
        "kind": kind,
        "may_own": allowed(actor, "own", repository),
    }
    return render(request, "repository/settings.html", context)


@signed_in
@require_POST
def delete(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    actor = actor_of(request)
    repository = catalog.find_repository(actor, kind, namespace, name)
    if request.POST.get("confirm", "") != repository.full_name:
        messages.error(
            request,
            _("Nothing was deleted: type the full name, %(name)s, to confirm.")
            % {"name": repository},
        )
        return redirect(address_of(repository, "repository-settings"))
    try:
        catalog.delete_repository(actor=actor, repository=repository)
    except Conflict as error:
        messages.error(request, words_of(error))
        return redirect(address_of(repository, "repository-settings"))
    messages.success(request, _("%(name)s is deleted.") % {"name": repository})
    request.session["undo"] = way_back(repository)
    return redirect(reverse("web:repositories", kwargs={"kind": kind}))


class _Change:
    """One small change of a repository: found, made, answered by going back to its page."""

    def __init__(self, request: HttpRequest, kind: str, namespace: str, name: str) -> None:
        self.request = request
        self.actor = actor_of(request)
        self.repository = catalog.find_repository(self.actor, kind, namespace, name)

    def version(self) -> Version | None:
        number = self.request.POST.get("version", "")
        return catalog.find_version(self.actor, self.repository, number) if number else None

    def done(self, message: str, undo: tuple[str, dict[str, Any]] | None = None) -> HttpResponse:
        messages.success(self.request, message)
        if undo:
            page, fields = undo
            self.request.session["undo"] = {
                "action": address_of(self.repository, page),
                "fields": {key: value for key, value in fields.items() if value is not None},
            }
        return self.back()

    def refused(self, error: RegistryError, form: str = "", *typed: str) -> HttpResponse:
        """Go back to the page with the reason, and with what was typed into the form there."""
        messages.error(self.request, words_of(error))
        page = self.back()
        if form:
            keep_typed(self.request, page.url, form, typed)
        return page

    def back(self) -> HttpResponseRedirect:
        number = self.request.POST.get("page", "")
        if number.isdecimal():
            return redirect(f"{address_of(self.repository)}/versions/{int(number[:9])}")
        return redirect(address_of(self.repository))


@signed_in
@require_POST
def set_tag(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    change = _Change(request, kind, namespace, name)
    key, value = request.POST.get("key", "").strip(), request.POST.get("value", "").strip()
    try:
        catalog.set_tag(
            actor=change.actor,
            repository=change.repository,
            version=change.version(),
            key=key,
            value=value,
        )
    except RegistryError as error:
        return change.refused(error, "tag", "key", "value")
    return change.done(_("The tag %(key)s is set.") % {"key": key})


@signed_in
@require_POST
def delete_tag(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    change = _Change(request, kind, namespace, name)
    version, key = change.version(), request.POST.get("key", "")
    try:
        checked = catalog.check_tag_key(key)
        tag = change.repository.tags.filter(version=version, key=checked).first()
        catalog.delete_tag(
            actor=change.actor, repository=change.repository, version=version, key=key
        )
    except RegistryError as error:
        return change.refused(error)
    fields = {
        "key": key,
        "value": tag.value if tag else "",
        "version": version and version.number,
        "page": version and version.number,
    }
    return change.done(_("The tag %(key)s is deleted.") % {"key": key}, ("set-tag", fields))


@signed_in
@require_POST
def set_alias(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    change = _Change(request, kind, namespace, name)
    alias = request.POST.get("alias", "").strip().removeprefix("@")
    try:
        version = catalog.find_version(
            change.actor, change.repository, request.POST.get("version", "").strip()
        )
        catalog.set_alias(
            actor=change.actor,
            repository=change.repository,
            alias=alias,
            version=version,
            reason=request.POST.get("reason", ""),
        )
    except RegistryError as error:
        return change.refused(error, "alias", "alias", "version", "reason")
    said = {"alias": alias, "number": version.number}
    return change.done(_("The alias @%(alias)s points at version %(number)s.") % said)


@signed_in
@require_POST
def delete_alias(request: HttpRequest, kind: str, namespace: str, name: str) -> HttpResponse:
    change = _Change(request, kind, namespace, name)
    alias = request.POST.get("alias", "")
    try:
        number = catalog.find_alias(change.repository, alias).version.number
        catalog.delete_alias(actor=change.actor, repository=change.repository, alias=alias)
    except RegistryError as error:
        return change.refused(error)
    fields = {"alias": alias, "version": number, "page": request.POST.get("page")}
    return change.done(
        _("The alias @%(alias)s is deleted.") % {"alias": alias}, ("set-alias", fields)
    )
