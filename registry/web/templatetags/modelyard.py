"""Filters and tags of the pages: numbers with units, times, addresses."""

import json
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from django import template
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from registry.errors import Text, unpack
from registry.models import (
    DirectUpload,
    Endpoint,
    Evaluation,
    Inspection,
    Job,
    Repository,
    Screening,
    Version,
)
from registry.services.blobs import inspection_of
from registry.web import history, wording
from registry.web.refusals import stored_words, words_of

register = template.Library()

register.filter("inspection", inspection_of)
register.filter("size", wording.size_text)
register.filter("count", wording.count_text)
register.filter("duration", wording.duration_text)
register.filter("metric_name", wording.metric_name)
register.filter("task_name", wording.task_name)
register.filter("family_name", wording.family_name)


@register.filter
def grouped(number: int | None) -> str:
    return wording.NOTHING if number is None else f"{number:,}"


@register.filter
def capped(number: int, most: int = history.COUNTED) -> str:
    """Write a count that was cut off where nobody reads on."""
    return f"{most:,}+" if number > most else grouped(number)


@register.filter
def library_name(library: str) -> str:
    return wording.LIBRARIES.get(library.lower(), library)


@register.filter
def license_name(license_id: str) -> str:
    return wording.LICENSES.get(license_id.lower(), license_id)


@register.filter
def kind_title(kind: str) -> str:
    return str(wording.KINDS[kind])


@register.filter
def kind_word(kind: str) -> str:
    """Name the kind of one thing: a model, a dataset or a namespace."""
    return str(_("namespace") if kind == "namespace" else wording.WORDS["kind"].get(kind, kind))


@register.filter
def fact_name(key: str) -> str:
    """Name what our readers count in a file; a file's own metadata keeps its keys."""
    return str(wording.FACTS.get(key, key))


@register.filter
def failure(job: Job) -> str:
    """Say why a job failed."""
    return stored_words(job.error_said, job.error_detail)


@register.filter
def refused_upload(direct: DirectUpload) -> str:
    """Say why what arrived in the bucket cannot be used."""
    return words_of(unpack(direct.error_said)) if direct.error_said else ""


@register.filter
def standing(version: Version) -> str:
    """Say why a version is in its state: what people typed stays as it is."""
    return stored_words(version.state_reason_said, version.state_reason)


@register.filter
def findings(inspection: Inspection | None) -> list[str]:
    """List what was found in a file."""
    if inspection is None:
        return []
    said = inspection.findings_said or [None] * len(inspection.findings)
    return [
        stored_words(packed, in_catalogue(detail))
        for packed, detail in zip(said, inspection.findings, strict=True)
    ]


@register.filter
def unconverted(screening: Screening | None) -> list[tuple[str, str]]:
    """List the files that the sandbox could not convert, each with why."""
    if screening is None:
        return []
    said = screening.reasons_said or {}
    return [
        (path, stored_words(said.get(path), reason))
        for path, reason in screening.reasons.items()
        if path
    ]


@register.filter
def words(said: Text) -> str:
    return words_of(said)


@register.filter
def access_role(role: str | None) -> str:
    return str(wording.WORDS["role"].get(role, role)) if role else ""


@register.filter
def visibility_name(visibility: str) -> str:
    return str(wording.VISIBILITIES.get(visibility, visibility))


@register.filter
def role_name(role: str) -> str:
    return str(wording.ROLES.get(role, role))


@register.filter
def unit_name(unit: str) -> str:
    return wording.unit_name(unit)


@register.filter
def job_kind(kind: str) -> str:
    return str(wording.JOB_KINDS.get(kind, kind))


@register.filter
def evaluation_value(evaluation: Evaluation) -> str:
    return wording.value_text(evaluation.value, evaluation.unit, evaluation.metric)


@register.filter
def measured(value: float, metric: str) -> str:
    return wording.value_text(value, "", metric)


@register.filter
def interval(evaluation: Evaluation) -> str:
    return wording.interval_text(
        evaluation.low, evaluation.high, evaluation.unit, evaluation.metric
    )


@register.filter
def report_value(metric: dict[str, Any]) -> str:
    value = metric.get("value")
    if not isinstance(value, int | float):
        return wording.NOTHING
    return wording.value_text(value, str(metric.get("unit", "")), str(metric.get("metric", "")))


@register.filter
def report_interval(metric: dict[str, Any]) -> str:
    return wording.interval_text(
        metric.get("low"),
        metric.get("high"),
        str(metric.get("unit", "")),
        str(metric.get("metric", "")),
    )


@register.filter
def pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@register.filter
def names(table: Any) -> str:
    return ", ".join(str(key) for key in table) if table else ""


@register.filter
def pairs(table: Any) -> list[tuple[str, Any]]:
    """List a file's own metadata, as far as a page has room for it."""
    if not isinstance(table, dict):
        return []
    plain = [(key, value) for key, value in table.items() if not isinstance(value, dict | list)]
    return plain[:8]


@register.filter
def tensor_rows(tensors: Any) -> list[dict[str, Any]]:
    return list((tensors or {})["items"])[:500] if tensors else []


@register.filter("json")
def as_json(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


@register.filter
def in_catalogue(text: str) -> str:
    """Say a sentence that a row keeps in English in the language of the page."""
    return _(text) if text else ""


@register.filter
def lookup(table: dict[str, Any], key: str) -> Any:
    return table.get(key)


@register.filter
def shape(sizes: Any) -> str:
    """Write a tensor's shape: [N, 1, 28, 28]."""
    if not isinstance(sizes, list | tuple):
        return "" if sizes is None else str(sizes)
    named = ("N" if size in (None, -1) else size for size in sizes)
    return "[" + ", ".join(str(size) for size in named) + "]"


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """Show a time relative to now, the absolute one in its title."""
    if moment is None:
        return wording.NOTHING
    utc = timezone.localtime(moment, timezone.get_fixed_timezone(0))
    return format_html(
        '<time datetime="{}" title="{} UTC">{}</time>',
        utc.isoformat(timespec="seconds"),
        utc.strftime("%Y-%m-%d %H:%M:%S"),
        wording.relative_time(moment),
    )


@register.filter
def short_digest(digest: str) -> str:
    return f"{digest[:8]}…{digest[-4:]}" if len(digest) > 16 else digest


@register.filter
def notice_tone(level: str) -> str:
    """Name the look of a message of Django's level."""
    return {"error": "bad", "warning": "warn"}.get(level, "good")


@register.simple_tag
def delta(text: str, tone: str) -> SafeString:
    """Write the difference from the version before; an empty one keeps the column straight."""
    return format_html('<span class="{}">{}</span>', f"delta {tone}" if text else "delta", text)


@register.simple_tag
def state_tag(state: str) -> SafeString:
    return format_html(
        '<span class="tag {}">{}</span>',
        wording.STATE_TONES.get(state, ""),
        wording.state_name(state),
    )


def plural_kind(repository: Repository) -> str:
    return f"{repository.kind}s"


@register.filter
def repository_url(repository: Repository) -> str:
    return page_url(repository, "repository")


@register.filter
def endpoint_url(endpoint: Endpoint) -> str:
    names = {"namespace": endpoint.namespace.slug, "name": endpoint.name}
    return reverse("web:endpoint", kwargs=names)


@register.filter
def playground_url(repository: Repository) -> str:
    """Lead to where a model is tried."""
    names = {"namespace": repository.namespace.slug, "name": repository.name}
    return reverse("web:playground", kwargs=names)


@register.filter
def deploy_url(version: Version) -> str:
    """Lead to the form that deploys a version."""
    asked = {"model": version.repository.full_name, "version": version.number}
    return f"{reverse('web:new-deployment')}?{urlencode(asked)}"


@register.filter
def deployment_role(role: str) -> str:
    return str(wording.DEPLOYMENT_ROLES.get(role, role))


@register.filter
def version_url(version: Version) -> str:
    return f"{repository_url(version.repository)}/versions/{version.number}"


@register.simple_tag
def diff_url(before: Version, after: Version) -> str:
    return history.pair_address("diff", before, after)


@register.filter
def page_url(shown: Repository | Version, page: str) -> str:
    """Give the address of a page or a form of one repository, or of one version."""
    repository = shown.repository if isinstance(shown, Version) else shown
    where: dict[str, Any] = {
        "kind": plural_kind(repository),
        "namespace": repository.namespace.slug,
        "name": repository.name,
    }
    if isinstance(shown, Version):
        where["number"] = shown.number
    return reverse(f"web:{page}", kwargs=where)


@register.filter
def another_url(job: Job) -> str:
    """Give the address of the form of a new job that begins as this one did."""
    return f"{reverse('web:new-job')}?{urlencode({'kind': job.kind, 'like': job.pk})}"


@register.filter
def export_title(file: str) -> str:
    """Say what a way out is for."""
    titles = {
        "triton.tar": _("Triton Inference Server: a model repository"),
        "kserve.yaml": _("KServe: an InferenceService"),
        "mlserver.tar": _("MLServer: a model folder"),
        "modelpack.tar": _("OCI registries: a ModelPack artifact"),
        "standalone.tar": _("On its own: a small server and a Dockerfile"),
        "torchscript.pt": _("torch: TorchScript"),
        "program.pt2": _("torch: an exported program"),
        "aotinductor.pt2": _("torch: compiled by AOTInductor"),
        "stablehlo.jaxexport": _("JAX, XLA and TPUs: StableHLO"),
    }
    return titles.get(file, file)


@register.simple_tag
def file_url(version: Version, path: str, part: str = "files") -> str:
    """Give the address of a file: one path for every language, served by `registry.stream`."""
    repository = version.repository
    return (
        f"/{plural_kind(repository)}/{repository.namespace.slug}/{repository.name}"
        f"/versions/{version.number}/{part}/{quote(path)}"
    )


@register.simple_tag
def version_name(version: Version) -> str:
    return version.variant or _("main line")


@register.inclusion_tag("components/copy.html")
def copy(text: object, label: str = "", *, mini: bool = False) -> dict[str, object]:
    return {"text": text, "label": label or _("Copy"), "mini": mini}
