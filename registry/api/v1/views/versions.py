"""Versions: registered, listed, read, described, tagged, compared, traced."""

from collections.abc import Sequence

from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.standing import standing_headers
from registry.api.v1 import schemas, wire
from registry.api.v1.comparison import compare_versions, line_up, weights_body
from registry.api.v1.openapi import operation
from registry.api.v1.requests import wrong_field
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.models import (
    Actor,
    Artifact,
    Blob,
    LineageEdge,
    Screening,
    Version,
    VersionState,
)
from registry.pages import Page, check_limit, decode_cursor, encode_cursor
from registry.recipes import parse_reference
from registry.services import beside, blobs, catalog, deletion, diffs, exports, versions
from registry.services.lineage import trace
from registry.services.savings import find_shared


def named_version(actor: Actor, kind: str, text: str) -> Version:
    """Find the version that `ns/name@3` names."""
    reference = parse_reference(text)
    repository = catalog.find_repository(actor, kind, reference.namespace, reference.name)
    return catalog.find_version(actor, repository, reference.version)


def _find_blobs(actor: Actor, files: Sequence[schemas.NewFile]) -> dict[str, Blob]:
    found: dict[str, Blob] = {}
    for position, file in enumerate(files):
        where = f"files.{position}"
        if (file.upload is None) == (file.sha256 is None):
            raise wrong_field(
                where,
                "one_of",
                "Name either the upload or the sha256 of bytes that are here already.",
            )
        if file.path in found:
            raise wrong_field(
                f"{where}.path",
                "repeated",
                "The path {path!r} stands there twice.",
                path=file.path[:200],
            )
        if file.upload is not None:
            found[file.path] = blobs.find_uploaded_blob(actor, str(file.upload))
        else:
            found[file.path] = blobs.find_readable_blob(actor, file.sha256 or "")
    return found


class VersionList(Resource):
    @operation(
        "list_{kind}_versions",
        "List the versions of a {kind}, newest first.",
        {200: schemas.VersionPage},
        query=schemas.History,
        gives=("Link",),
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        asked = self.query(schemas.History)
        rows = wire.live_versions(self.repository())
        if not asked.with_variants:
            rows = rows.main_line()
        if asked.state:
            rows = rows.filter(state=_known_state(asked.state))
        elif not asked.with_archived:
            rows = rows.exclude(state=VersionState.ARCHIVED)
        return page_response(request, wire.version_page(rows, asked.limit, asked.cursor))

    @operation(
        "create_{kind}_version",
        "Register the next version of a {kind}.",
        {201: schemas.Version},
        body=schemas.NewVersion,
        headers=("Idempotency-Key",),
        gives=("ETag",),
    )
    @idempotent
    def post(self, request: Request, /, **_: str) -> Response:
        repository = self.repository()
        new = self.body(schemas.NewVersion)
        version = versions.create_version(
            actor=self.actor,
            repository=repository,
            files=_find_blobs(self.actor, new.files),
            parents=[
                versions.ParentSpec(
                    version=named_version(self.actor, parent.kind, parent.version),
                    role=parent.role,
                )
                for parent in new.parents
            ],
            **new.model_dump(include={"message", "variant", "source", "tags"}),
        )
        return _created(version)


def _created(version: Version) -> Response:
    row = wire.version_row(version)
    address = reverse(
        f"api:{version.repository.kind}-version",
        args=[row["namespace"], row["name"], version.number],
    )
    response = created(wire.one_version(row), address)
    response["ETag"] = wire.version_etag(row)
    return response


def _known_state(state: str) -> str:
    if state in VersionState.values:
        return state
    choices = ", ".join(VersionState.values)
    raise wrong_field("state", "not_a_choice", "Choose one of {choices}.", choices=choices)


class VersionOne(Resource):
    @operation(
        "get_{kind}_version",
        "Read one version of a {kind}.",
        {200: schemas.Version, 304: None},
        headers=("If-None-Match",),
        gives=("ETag", "Deprecation", "X-Modelyard-Notice"),
        public=True,
    )
    def get(self, request: Request, namespace: str, name: str, version: str) -> HttpResponseBase:
        row = wire.find_version_row(self.actor, self.kind, namespace, name, version)
        if row is None:
            row = wire.version_row(self.version())
        if unchanged := self.not_modified(wire.version_etag(row)):
            return unchanged
        headers = {"ETag": wire.version_etag(row), **standing_headers(**row)}
        return Response(wire.one_version(row), headers=headers)

    @operation(
        "describe_{kind}_version",
        "Change a version's message or state; its files are frozen.",
        {200: schemas.Version},
        body=schemas.VersionChanges,
        headers=("If-Match",),
        gives=("ETag",),
    )
    def patch(self, request: Request, **_: str) -> Response:
        version = versions.describe_version(
            actor=self.actor,
            version=self.version(),
            changes=self.changes(schemas.VersionChanges),
            expected_etag=self.if_match(),
        )
        row = wire.version_row(version)
        return Response(wire.one_version(row), headers={"ETag": wire.version_etag(row)})

    @operation(
        "delete_{kind}_version",
        "Delete a version; its number is never given again.",
        {204: None},
        headers=("If-Match",),
    )
    def delete(self, request: Request, **_: str) -> HttpResponseBase:
        versions.delete_version(
            actor=self.actor, version=self.version(), expected_etag=self.if_match()
        )
        return no_content()


class VersionRestore(Resource):
    @operation(
        "restore_{kind}_version",
        "Bring a deleted version back under its number.",
        {200: schemas.Version},
        gives=("ETag",),
    )
    def post(self, request: Request, version: str, **_: str) -> Response:
        found = deletion.find_deleted_version(self.actor, self.repository(), version)
        row = wire.version_row(deletion.restore_version(actor=self.actor, version=found))
        return Response(wire.one_version(row), headers={"ETag": wire.version_etag(row)})


class VersionAgain(Resource):
    @operation(
        "restore_{kind}_version_as_new",
        "Register the files and tags of an old version once more, as the newest.",
        {201: schemas.Version},
        body=schemas.RestoredVersion,
        headers=("Idempotency-Key",),
        gives=("ETag",),
    )
    @idempotent
    def post(self, request: Request, /, **_: str) -> Response:
        asked = self.body(schemas.RestoredVersion)
        return _created(
            versions.restore_as_new(actor=self.actor, version=self.version(), message=asked.message)
        )


class VersionTag(Resource):
    @operation(
        "tag_{kind}_version", "Set a tag of a version.", {200: schemas.Tag}, body=schemas.TagValue
    )
    def put(self, request: Request, key: str, **_: str) -> Response:
        value = self.body(schemas.TagValue).value
        version = self.version()
        tag = catalog.set_tag(
            actor=self.actor, repository=version.repository, version=version, key=key, value=value
        )
        return Response({"key": tag.key, "value": tag.value})

    @operation("untag_{kind}_version", "Delete a tag of a version.", {204: None})
    def delete(self, request: Request, key: str, **_: str) -> HttpResponseBase:
        version = self.version()
        catalog.delete_tag(
            actor=self.actor, repository=version.repository, version=version, key=key
        )
        return no_content()


class FileList(Resource):
    @operation(
        "list_{kind}_files",
        "List the files of a version.",
        {200: schemas.FileList},
        query=schemas.Paging,
        gives=("Link",),
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        asked = self.query(schemas.Paging)
        rows = Artifact.objects.filter(revision_id=self.version().revision_id)
        if asked.cursor:
            rows = rows.filter(path__gt=decode_cursor(asked.cursor, "files", str)[0])
        wanted = check_limit(asked.limit)
        rows = rows.select_related("blob").prefetch_related("blob__inspections")
        found = list(rows.order_by("path")[: wanted + 1])
        kept = found[:wanted]
        items = [wire.inspected_file(row) for row in kept]
        more = len(found) > wanted
        after = encode_cursor("files", kept[-1].path) if more else None
        return page_response(request, Page(items, after))


class DerivativeList(Resource):
    @operation(
        "list_{kind}_derivatives",
        "List what was made of a version's files: those converted to run without their code.",
        {200: schemas.DerivativeList},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        version = self.version()
        rows = version.derivatives.converted().select_related("blob").order_by("path", "pk")
        screening = Screening.objects.filter(version=version).first()
        return Response(
            {
                "items": [wire.derivative_body(row) for row in rows],
                "screening": screening.state if screening else None,
                "reasons": screening.reasons if screening else {},
            }
        )


class ExportList(Resource):
    @operation(
        "list_{kind}_exports",
        "List the forms in which a version can be taken to other servers.",
        {200: schemas.ExportList},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        version = self.version()
        address = request.build_absolute_uri("/").rstrip("/")
        found = exports.list_exports(self.actor, version, address)
        return Response({"items": [wire.export_body(version, one) for one in found]})

    @operation(
        "request_{kind}_export",
        "Have a file made that takes a job; where one makes it, follow its Location.",
        {200: schemas.Export, 202: schemas.Export},
        body=schemas.NewExport,
    )
    def post(self, request: Request, **_: str) -> Response:
        version = self.version()
        file = self.body(schemas.NewExport).file
        way = exports.request_export(actor=self.actor, version=version, file=file)
        body = wire.export_body(version, way)
        if way.job is None:
            return Response(body)
        return created(body, reverse("api:job", args=[way.job.pk]), status=202)


class ExportOne(Resource):
    @operation(
        "delete_{kind}_export",
        "Delete a file that a job has made; it can be made again.",
        {204: None},
    )
    def delete(self, request: Request, file: str, **_: str) -> HttpResponseBase:
        exports.delete_export(actor=self.actor, version=self.version(), file=file)
        return no_content()


class LineageOne(Resource):
    @operation(
        "trace_{kind}",
        "See what a version came from and what came from it.",
        {200: schemas.Lineage},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        version = self.version()
        seen = Version.objects.visible_to(self.actor).values("pk")
        names = "repository__namespace"
        parents = LineageEdge.objects.filter(child=version, parent__in=seen)
        children = LineageEdge.objects.filter(parent=version, child__in=seen)
        return Response(
            {
                "version": wire.version_name(version),
                "parents": [
                    {**wire.version_name(edge.parent), "role": edge.role, "job": edge.job_id}
                    for edge in parents.select_related(f"parent__{names}").order_by("pk")[:500]
                ],
                "children": [
                    {**wire.version_name(edge.child), "role": edge.role, "job": edge.job_id}
                    for edge in children.select_related(f"child__{names}").order_by("pk")[:500]
                ],
            }
        )


class VersionLineage(LineageOne):
    @operation(
        "trace_{kind}_version",
        "See what a version came from and what came from it.",
        {200: schemas.Lineage},
        public=True,
    )
    def get(self, request: Request, **kwargs: str) -> Response:
        return super().get(request, **kwargs)


class LineageGraph(Resource):
    @operation(
        "graph_{kind}_lineage",
        "Follow a version's origins and what came of it, across models, with each recipe.",
        {200: schemas.LineageGraph},
        query=schemas.GraphQuery,
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        graph = trace(self.actor, self.version(), depth=self.query(schemas.GraphQuery).depth)
        return Response(wire.graph_body(graph))


class VersionStorage(Resource):
    @operation(
        "get_{kind}_version_storage",
        "See what a version of a {kind} takes, and what of it is stored once with another one.",
        {200: schemas.VersionStorage},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        version = self.version()
        return Response(wire.version_storage_body(version, find_shared(self.actor, version)))


class VersionDiff(Resource):
    @operation(
        "compare_{kind}_versions",
        "See what changed between two versions of a {kind}.",
        {200: schemas.Diff},
        query=schemas.DiffQuery,
        public=True,
    )
    def get(self, request: Request, other: str, **_: str) -> Response:
        return Response(compare_versions(self.actor, *self.pair(other)))

    def pair(self, other: str) -> tuple[Version, Version]:
        """Find both versions: the other one of the same model, unless another is named."""
        before = self.version()
        named = self.query(schemas.DiffQuery).repository
        repository = before.repository
        if named:
            namespace, _, name = named.partition("/")
            repository = catalog.find_repository(self.actor, self.kind, namespace, name)
        return before, catalog.find_version(self.actor, repository, other)


class WeightsDiff(VersionDiff):
    @operation(
        "compare_{kind}_weights",
        "See tensor by tensor what is known of what became of the weights.",
        {200: schemas.WeightsDiff},
        query=schemas.DiffQuery,
        public=True,
    )
    def get(self, request: Request, other: str, **_: str) -> Response:
        found = diffs.compare_weights(self.actor, *self.pair(other))
        return Response(weights_body(found, tensors=True))

    @operation(
        "request_{kind}_weights_diff",
        "Have the weights of two versions compared; where a job computes it, follow its Location.",
        {200: schemas.WeightsDiff, 202: schemas.WeightsDiff},
        query=schemas.DiffQuery,
    )
    def post(self, request: Request, other: str, **_: str) -> Response:
        before, after = self.pair(other)
        found = diffs.request_weights(actor=self.actor, before=before, after=after)
        body = weights_body(found, tensors=True)
        if found.job is None:
            return Response(body)
        return created(body, reverse("api:job", args=[found.job.pk]), status=202)


class SideBySide(Resource):
    @operation(
        "line_up_{kind}_versions",
        "Set two to six versions beside each other, of this {kind} and of others.",
        {200: schemas.SideBySide},
        query=schemas.SideBySideQuery,
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        asked = self.query(schemas.SideBySideQuery)
        found = beside.find_all(self.actor, self.repository(), asked.version)
        return Response(line_up(self.actor, found, only_differences=asked.differences_only))
