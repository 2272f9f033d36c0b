"""Rows as the dictionaries that go out; the hot reads take them straight from SQL."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar

from django.contrib.postgres.expressions import ArraySubquery
from django.db.models import F, Model, OuterRef, Q
from django.db.models.functions import JSONObject, Left, Lower

from registry.errors import Text, unpack
from registry.models import (
    Actor,
    Alias,
    AliasProposal,
    Artifact,
    Delivery,
    DeliveryState,
    Deployment,
    DeploymentRole,
    Derivative,
    DirectUpload,
    Endpoint,
    Evaluation,
    Job,
    Namespace,
    Repository,
    SavedSearch,
    Signature,
    Tag,
    Token,
    Tuning,
    Verdict,
    Version,
    Webhook,
)
from registry.models.catalog import LISTED_CHARACTERS
from registry.pages import Page, check_limit, decode_cursor, encode_cursor
from registry.prepared import Parameter, Question
from registry.recommend import Similar, Suited
from registry.routes import read_options
from registry.services.blobs import inspection_of, sandbox_inspection_of
from registry.services.deletion import Deleted
from registry.services.direct import parts_count
from registry.services.estimates import Estimate, Figure
from registry.services.exports import Way
from registry.services.gate import evidence_of
from registry.services.lineage import Graph
from registry.services.quotas import QUOTAS, Quota, why_waiting
from registry.services.replicas import Replica
from registry.services.savings import Shared

Row = dict[str, Any]
T = TypeVar("T", bound=Model)
# Beyond so many files a page of versions ends early.
_FILES_ON_A_PAGE = 5_000

_REPOSITORY_COLUMNS = (
    "name",
    "visibility",
    "summary",
    "task",
    "library",
    "license",
    "base_model",
    "labels",
    "formats",
    "parameters_count",
    "size_bytes",
    "created_at",
    "updated_at",
)


# --- Models and datasets ---------------------------------------------------------------------


def repository_body(kind: str, row: Mapping[str, Any]) -> Row:
    """Render a row of a search."""
    return {
        "kind": kind,
        "namespace": row["namespace"],
        **{name: row[name] for name in _REPOSITORY_COLUMNS},
        "tags": row["tags"],
        "latest_version": row["latest_number"],
        "downloads": row["downloads_count"],
        "quality": {"metric": row["quality_metric"], "value": row["quality"]}
        if row["quality"] is not None
        else None,
    }


def one_repository(repository: Repository) -> Row:
    row = {name: getattr(repository, name) for name in _REPOSITORY_COLUMNS}
    row["namespace"] = repository.namespace.slug
    row["latest_number"] = repository.latest_number
    row["downloads_count"] = repository.downloads_count
    row["quality"], row["quality_metric"] = repository.quality, repository.quality_metric
    row["tags"] = dict(
        Tag.objects.filter(repository=repository, version=None)
        .order_by("key")
        .values_list("key", "value")
    )
    return repository_body(repository.kind, row)


def similar_body(similar: Similar) -> Row:
    return {
        "repository": one_repository(similar.repository),
        "score": round(similar.score, 4),
        "reasons": [reason.detail for reason in similar.reasons],
    }


def suited_body(suited: Suited) -> Row:
    return {
        "namespace": suited.row["namespace"],
        "name": suited.row["name"],
        "reasons": [reason.detail for reason in suited.reasons],
    }


def search_body(search: SavedSearch) -> Row:
    return {name: getattr(search, name) for name in ("id", "kind", "name", "query", "created_at")}


def alias_body(alias: Alias) -> Row:
    return {
        "alias": alias.name,
        "version": alias.version.number,
        "updated_at": alias.updated_at,
    }


def proposal_body(proposal: AliasProposal, present: int | None) -> Row:
    by, decided_by = proposal.proposed_by, proposal.decided_by
    return {
        **{name: getattr(proposal, name) for name in _PROPOSAL_COLUMNS},
        "version": proposal.version.number if proposal.version else None,
        "present": present,
        "replaced": proposal.replaced.number if proposal.replaced else None,
        "proposed_by": by.username if by else None,
        "decided_by": decided_by.username if decided_by else None,
    }


_PROPOSAL_COLUMNS = ("number", "alias", "message", "state", "note", "created_at", "decided_at")


# --- Versions --------------------------------------------------------------------------------

_VERSION_COLUMNS = (
    "number",
    "variant",
    "state",
    "state_reason",
    "state_changed_at",
    "stage",
    "source",
    "message",
    "formats",
    "signature",
    "files_count",
    "parameters_count",
    "size_bytes",
    "created_at",
    "updated_at",
)
_VERSION_NAMES = {
    "kind": F("repository__kind"),
    "namespace": F("repository__namespace__slug"),
    "name": F("repository__name"),
    "commit": F("revision__commit"),
    "author": F("created_by__username"),
}


@cache
def _version_rows(*, listed: bool = False) -> Any:
    """Read versions with their names, aliases and tags in one statement.

    Kept ready, for half the cost of a read is putting the query together. In lists the values of
    tags are cut.
    """
    value = Left("value", LISTED_CHARACTERS) if listed else F("value")
    aliases = Alias.objects.filter(version_id=OuterRef("pk")).order_by("name").values("name")
    tags = Tag.objects.filter(version_id=OuterRef("pk")).order_by("key")
    return Version.objects.alias(
        slug_lower=Lower("repository__namespace__slug"), name_lower=Lower("repository__name")
    ).values(
        *_VERSION_COLUMNS,
        "pk",
        "revision_id",
        "job_id",
        **_VERSION_NAMES,
        alias_names=ArraySubquery(aliases),
        tag_pairs=ArraySubquery(tags.values(pair=JSONObject(key="key", value=value))),
    )


def _version_body(row: Mapping[str, Any], files: list[Row]) -> Row:
    return {
        **{name: row[name] for name in ("kind", "namespace", "name", *_VERSION_COLUMNS)},
        "revision": row["commit"],
        "files": files,
        "aliases": row["alias_names"],
        "tags": {tag["key"]: tag["value"] for tag in row["tag_pairs"]},
        "job": row["job_id"],
        "created_by": row["author"],
    }


def version_etag(row: Mapping[str, Any]) -> str:
    """Give the same tag as `Version.etag`, from a row."""
    return Version.etag_of(row["pk"], row["updated_at"])


def find_version_row(
    actor: Actor, kind: str, namespace: str, name: str, reference: str
) -> Mapping[str, Any] | None:
    """Find a version under its present name in one statement; None sends to the slower way."""
    asked: str | int = reference
    if reference.isascii() and reference.isdecimal() and len(reference) <= 9:
        way, asked = "number", int(reference)
    elif reference.startswith("@"):
        way, asked = "alias", reference[1:]
    elif reference == "latest":
        way = "latest"
    else:
        return None
    question = _version_question(actor.without_visit, kind, way)
    return question.first(namespace=namespace.lower(), name=name.lower(), asked=asked)


@lru_cache(maxsize=512)
def _version_question(actor: Actor, kind: str, way: str) -> Question:
    """Put the question for one version, for everybody with exactly the rights of `actor`."""
    reference = {
        "number": Q(number=Parameter("asked")),
        "alias": Q(aliases__name=Parameter("asked")),
        "latest": Q(number=F("repository__latest_number")),
    }[way]
    versions = (
        _version_rows()
        .visible_to(actor)
        .filter(
            reference,
            repository__kind=kind,
            slug_lower=Parameter("namespace"),
            name_lower=Parameter("name"),
        )
    )
    return Question(versions.order_by("pk")[:1])


def version_row(version: Version) -> Mapping[str, Any]:
    row: Mapping[str, Any] = _version_rows().get(pk=version.pk)
    return row


@cache
def _files_question() -> Question:
    return Question(_file_rows().filter(revision_id=Parameter("revision")))


def _file_rows(*more: str) -> Any:
    names = {"size_bytes": F("blob__size_bytes"), "sha256": F("blob__sha256")}
    return Artifact.objects.order_by("path").values(*more, "path", **names)


def one_version(row: Mapping[str, Any]) -> Row:
    return _version_body(row, _files_question().all(revision=row["revision_id"]))


def files_of(revisions: Iterable[int]) -> dict[int, list[Row]]:
    files: dict[int, list[Row]] = {}
    for row in _file_rows("revision_id").filter(revision_id__in=list(revisions)):
        files.setdefault(row.pop("revision_id"), []).append(row)
    return files


def inspected_file(artifact: Artifact) -> Row:
    """Render a file with what was found in it; its inspections come with it."""
    inspection, inside = inspection_of(artifact), sandbox_inspection_of(artifact)
    findings = [*(inspection.findings if inspection else ()), *(inside.findings if inside else ())]
    return {
        "path": artifact.path,
        "size_bytes": artifact.blob.size_bytes,
        "sha256": artifact.blob.sha256,
        "format": inspection.format if inspection else "opaque",
        "verdict": inspection.verdict if inspection else Verdict.OPAQUE,
        "findings": findings,
        "imports": inside.facts.get("imports", []) if inside else [],
    }


def derivative_body(derivative: Derivative) -> Row:
    return {
        "path": derivative.path,
        "purpose": derivative.purpose,
        "source_path": derivative.source_path,
        "toolchain": derivative.toolchain,
        "size_bytes": derivative.blob.size_bytes,
        "sha256": derivative.blob.sha256,
        "created_at": derivative.created_at,
    }


def export_body(version: Version, way: Way) -> Row:
    name = version.repository.full_name
    return {
        "file": way.file,
        "url": f"/api/v1/models/{name}/versions/{version.number}/exports/{way.file}",
        "available": way.refusal is None,
        "detail": way.refusal.detail if way.refusal else "",
        "takes_job": way.takes_job,
        "can_be_made": way.can_be_made,
        "can_be_deleted": way.can_be_deleted,
        "runs_code": way.runs_code,
        "job": way.job.pk if way.job else None,
        "size_bytes": way.made.blob.size_bytes if way.made else None,
        "sha256": way.made.blob.sha256 if way.made else None,
        "toolchain": way.made.toolchain if way.made else "",
    }


def live_versions(repository: Repository) -> Any:
    """Read what `version_page` shows of a repository; still to be narrowed."""
    return _version_rows(listed=True).live().filter(repository=repository)


def version_page(versions: Any, limit: int | None, cursor: str) -> Page:
    """Give versions newest first, with their files; a page with very many files ends early."""
    if cursor:
        (number,) = decode_cursor(cursor, "versions", int)
        versions = versions.filter(number__lt=number)
    wanted = check_limit(limit)
    rows = list(versions.order_by("-number")[: wanted + 1])
    kept = rows[:wanted]
    files_count = 0
    for position, row in enumerate(kept):
        files_count += row["files_count"]
        if position and files_count > _FILES_ON_A_PAGE:
            kept = kept[:position]
            break
    files = files_of(row["revision_id"] for row in kept)
    items = [_version_body(row, files.get(row["revision_id"], [])) for row in kept]
    more = len(rows) > len(kept)
    return Page(items, encode_cursor("versions", items[-1]["number"]) if more else None)


def version_name(version: Version) -> Row:
    return {
        "kind": version.repository.kind,
        "namespace": version.repository.namespace.slug,
        "name": version.repository.name,
        "number": version.number,
        "variant": version.variant,
    }


def graph_body(graph: Graph) -> Row:
    return {
        "version": version_name(graph.root),
        "nodes": [
            {**version_name(version), "step": graph.steps[key]}
            for key, version in graph.nodes.items()
        ],
        "edges": [
            {
                "child": graph.nodes[edge.child].ref,
                "parent": graph.nodes[edge.parent].ref,
                "relation": edge.relation,
                "role": edge.role,
                "job": edge.job.pk if edge.job else None,
                "recipe": edge.job.recipe if edge.job else None,
                "verified": edge.verified,
                "reproduction": edge.reproduction.pk if edge.reproduction else None,
            }
            for edge in graph.edges
        ],
        "bases": [name for name, _base in graph.bases],
        "truncated": graph.is_cut,
    }


def deleted_body(deleted: Deleted) -> Row:
    return {
        "id": deleted.id,
        "kind": deleted.repository.kind,
        "namespace": deleted.repository.namespace.slug,
        "name": deleted.repository.name,
        "number": deleted.number,
        "size_bytes": deleted.size_bytes,
        "deleted_at": deleted.deleted_at,
        "restorable_until": deleted.restorable_until,
    }


def tuning_body(row: Tuning) -> Row:
    return {
        "device_class": row.device_class,
        "runtime": row.runtime,
        "threads": row.threads,
        "max_batch_size": row.max_batch_size,
        "summary": row.summary,
        "job": row.job_id,
        "created_by": row.created_by.username if row.created_by else None,
        "measured_at": row.measured_at,
    }


def evaluation_body(evaluation: Evaluation, visible: frozenset[int]) -> Row:
    """Render a number; the dataset behind it is named only to those who may see it."""
    dataset = evaluation.dataset_version
    named = dataset is not None and dataset.pk in visible
    return {
        "metric": evaluation.metric,
        "value": evaluation.value,
        "unit": evaluation.unit,
        "split": evaluation.split,
        "n": evaluation.n,
        "low": evaluation.low,
        "high": evaluation.high,
        "device": evaluation.device,
        "details": evaluation.details,
        "measured": evaluation.measured,
        "dataset": dataset.ref if dataset is not None and named else None,
        "job": evaluation.job_id,
        "created_by": evaluation.created_by.username if evaluation.created_by else None,
        "created_at": evaluation.created_at,
    }


def signature_body(signature: Signature) -> Row:
    return {
        "id": signature.pk,
        "own": signature.own,
        "method": signature.method,
        "fingerprint": signature.fingerprint,
        "identity": signature.identity,
        "issuer": signature.issuer,
        "public_key": signature.public_key,
        "created_by": signature.created_by.username if signature.created_by else None,
        "created_at": signature.created_at,
    }


# --- Jobs and people ---------------------------------------------------------------------------


def job_body(job: Job) -> Row:
    return job_bodies([job])[0]


def job_bodies(jobs: Sequence[Job]) -> list[Row]:
    reasons = why_waiting(jobs)
    return [_job_body(job, reasons.get(job.pk)) for job in jobs]


def _job_body(job: Job, waits: Text | None) -> Row:
    error = {"code": job.error_code, "detail": job.error_detail} if job.error_code else None
    return {
        "id": job.pk,
        "kind": job.kind,
        "namespace": job.namespace.slug,
        "state": job.state,
        "waits": waits.detail if waits else None,
        "queue": job.queue,
        "recipe": job.recipe,
        "reproduces": job.reproduces_id,
        "part_of": job.parent_id,
        "part": job.part,
        "progress": {
            "done": job.progress.get("done", 0),
            "total": job.progress.get("total"),
            "unit": job.progress.get("unit", ""),
            "step": job.progress.get("step", ""),
        },
        "result": _result_body(job.result) if job.result else None,
        "results": [version_name(version) for version in job.results],
        "error": error,
        "report": job.shown_report,
        "attempts": job.attempts_count,
        "max_attempts": job.max_attempts,
        "worker": job.worker,
        "cancel_requested": job.cancel_requested_at is not None,
        "created_by": job.created_by.username if job.created_by else None,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }


def estimate_body(estimate: Estimate) -> Row:
    return {
        "recipe": estimate.recipe.to_json(),
        "queue": estimate.queue,
        "seconds": _figure_body(estimate.seconds),
        "read_bytes": _bytes_body(estimate.read_bytes),
        "result_bytes": _bytes_body(estimate.result_bytes),
        "memory_bytes": {
            **_bytes_body(estimate.memory_bytes),
            "limit": estimate.memory_limit_bytes,
            "fits": estimate.fits_memory,
        },
        "waiting": {
            "before": estimate.waiting.before,
            "running": estimate.waiting.running,
            "workers": estimate.waiting.workers,
            "grounds": estimate.waiting.grounds.detail,
        },
        "quota": {"fits": estimate.fits_quota, "grounds": estimate.quota_grounds.detail},
    }


def _figure_body(figure: Figure) -> Row:
    return {"low": figure.low, "high": figure.high, "grounds": figure.grounds.detail}


def _bytes_body(figure: Figure) -> Row:
    """Say whole bytes: what is estimated to a share of one is no more exact for it."""
    low, high = (None if one is None else round(one) for one in (figure.low, figure.high))
    return {"low": low, "high": high, "grounds": figure.grounds.detail}


# --- Serving ---------------------------------------------------------------------------------


def endpoint_body(endpoint: Endpoint, deployments: Iterable[Deployment]) -> Row:
    return {
        "namespace": endpoint.namespace.slug,
        "name": endpoint.name,
        "model": endpoint.repository.full_name,
        "sticky": endpoint.sticky,
        "deployments": [deployment_body(one) for one in deployments],
        "created_by": endpoint.created_by.username if endpoint.created_by else None,
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
    }


def deployment_body(row: Deployment) -> Row:
    evidence = evidence_of(row)
    return {
        "id": row.pk,
        "version": row.serves.number if row.serves else None,
        "alias": row.alias or None,
        "role": row.role,
        "weight": row.weight,
        "widens": row.role == DeploymentRole.CANARY and bool(row.trial),
        "shadow": evidence.described() if evidence else None,
        "options": read_options(row.options).model_dump(mode="json"),
        "created_by": row.created_by.username if row.created_by else None,
        "created_at": row.created_at,
    }


def replica_body(replica: Replica) -> Row:
    return {
        "id": replica.id,
        "host": replica.host,
        "started_at": replica.started_at,
        "deployments": [
            {
                "deployment": one.deployment_id,
                "state": one.state,
                "detail": one.detail,
                "runtime": one.runtime,
                "threads": one.threads,
                "max_batch_size": one.max_batch_size,
                "memory_bytes": one.memory_bytes,
                "pending": one.pending,
                "requests": one.requests,
                "failures": one.failures,
                "mean_ms": one.mean_ms,
            }
            for one in replica.standings
        ],
    }


def quota_body(quotas: Mapping[str, Quota]) -> Row:
    return {what: quotas[what]._asdict() for what in QUOTAS}


def storage_body(namespace: Namespace) -> Row:
    return {
        "compress_weights": namespace.compress_weights,
        "saved_bytes": namespace.saved_bytes,
    }


def version_storage_body(version: Version, shared: Shared | None) -> Row:
    found = shared and {**version_name(shared.version), "size_bytes": shared.size_bytes}
    return {"size_bytes": version.size_bytes, "shared": found}


def _result_body(version: Version) -> Row:
    return {key: value for key, value in version_name(version).items() if key != "variant"}


def token_body(token: Token) -> Row:
    place = token.repository
    full_name = place.full_name if place else None
    return {
        "id": token.pk,
        "name": token.name,
        "prefix": token.prefix,
        "scopes": token.scopes,
        "namespace": token.namespace.slug if token.namespace else None,
        "model": full_name if place and place.kind == "model" else None,
        "dataset": full_name if place and place.kind == "dataset" else None,
        "limited": token.namespace_id is not None or token.repository_id is not None,
        "created_at": token.created_at,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
    }


def webhook_body(webhook: Webhook) -> Row:
    place = webhook.repository
    return {
        "id": webhook.pk,
        "namespace": webhook.namespace.slug,
        "model": place.full_name if place and place.kind == "model" else None,
        "dataset": place.full_name if place and place.kind == "dataset" else None,
        "url": webhook.url,
        "events": webhook.events,
        "is_active": webhook.is_active,
        "inactive_reason": webhook.inactive_reason,
        "created_by": webhook.created_by.username if webhook.created_by else None,
        "created_at": webhook.created_at,
        "updated_at": webhook.updated_at,
    }


def delivery_body(delivery: Delivery) -> Row:
    waits = delivery.state == DeliveryState.WAITING
    return {
        "id": delivery.pk,
        "event": delivery.event,
        "state": delivery.state,
        "attempts": delivery.attempts_count,
        "status": delivery.status,
        "problem": delivery.problem,
        "duration_ms": delivery.duration_ms,
        "payload": delivery.payload,
        "due_at": delivery.due_at if waits else None,
        "created_at": delivery.created_at,
        "ended_at": delivery.ended_at,
    }


def direct_upload_body(direct: DirectUpload) -> Row:
    upload = direct.upload
    said = direct.error_said
    return {
        "id": direct.pk,
        "state": direct.state,
        "filename": upload.filename,
        "length_bytes": upload.length_bytes,
        "part_size_bytes": direct.part_bytes,
        "parts_count": parts_count(direct),
        "sha256": upload.blob.sha256 if upload.blob else None,
        "error": {"code": direct.error_code, "detail": unpack(said).detail} if said else None,
        "expires_at": upload.expires_at,
    }
