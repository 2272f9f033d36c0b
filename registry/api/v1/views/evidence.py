"""What is known of versions: numbers, measured or declared, and who signed them."""

import orjson
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry import signing
from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent, no_content
from registry.api.v1.views.versions import named_version
from registry.models import Evaluation, Signature
from registry.pages import Page, check_limit, newest_first
from registry.services import signatures, tuning, versions
from registry.services.diffs import visible_datasets


class EvaluationList(Resource):
    @operation(
        "list_{kind}_evaluations",
        "List the numbers of a version, newest first.",
        {200: schemas.EvaluationPage},
        query=schemas.EvaluationQuery,
        gives=("Link",),
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        asked = self.query(schemas.EvaluationQuery)
        rows = Evaluation.objects.filter(version=self.version()).select_related(
            "created_by", "dataset_version__repository__namespace"
        )
        if asked.metric:
            rows = rows.filter(metric=asked.metric)
        found, after = newest_first(rows, "evaluations", check_limit(asked.limit), asked.cursor)
        seen = visible_datasets(self.actor, found)
        return page_response(
            request, Page([wire.evaluation_body(row, seen) for row in found], after)
        )

    @operation(
        "declare_{kind}_evaluation",
        "Declare a number about a version.",
        {201: schemas.Evaluation},
        body=schemas.NewEvaluation,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, /, **_: str) -> Response:
        version = self.version()
        new = self.body(schemas.NewEvaluation)
        dataset = named_version(self.actor, "dataset", new.dataset) if new.dataset else None
        spec = versions.EvaluationSpec(**{**new.model_dump(), "dataset": dataset})
        (row,) = versions.add_evaluations(actor=self.actor, version=version, evaluations=[spec])
        address = reverse(
            f"api:{self.kind}-evaluations",
            args=[version.repository.namespace.slug, version.repository.name, version.number],
        )
        return created(
            wire.evaluation_body(row, frozenset([dataset.pk] if dataset else [])), address
        )


class TuningList(Resource):
    @operation(
        "list_{kind}_tunings",
        "List how a version is served best on each kind of machine, as jobs measured it.",
        {200: schemas.TuningList},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        rows = tuning.tunings_of(self.version())
        return Response({"items": [wire.tuning_body(row) for row in rows]})


class SignatureList(Resource):
    @operation(
        "list_{kind}_signatures",
        "List who signed a version; this installation signs each that is ready.",
        {200: schemas.SignatureList},
        public=True,
    )
    def get(self, request: Request, **_: str) -> Response:
        rows = Signature.objects.filter(version=self.version()).select_related("created_by")
        ordered = rows.order_by("-own", "-pk")
        return Response({"items": [wire.signature_body(row) for row in ordered]})

    @operation(
        "add_{kind}_signature",
        "Add a signature of your own; it is checked against the files first.",
        {201: schemas.Signature},
        body=schemas.NewSignature,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, /, **_: str) -> Response:
        version = self.version()
        new = self.body(schemas.NewSignature)
        signature = signatures.add_signature(
            actor=self.actor,
            version=version,
            bundle=orjson.dumps(new.bundle),
            public_key=new.public_key,
        )
        place = version.repository
        address = reverse(
            f"api:{self.kind}-signature",
            args=[place.namespace.slug, place.name, version.number, signature.pk],
        )
        return created(wire.signature_body(signature), address)


class SignatureOne(Resource):
    @operation(
        "get_{kind}_signature",
        "Get the bundle of a signature, as `model_signing verify` reads it.",
        {200: signing.MEDIA_TYPE},
        public=True,
    )
    def get(self, request: Request, signature: int, **_: str) -> HttpResponse:
        found = signatures.find_signature(self.version(), signature)
        return HttpResponse(found.bundle, content_type=signing.MEDIA_TYPE)

    @operation("delete_{kind}_signature", "Delete a signature that a client added.", {204: None})
    def delete(self, request: Request, signature: int, **_: str) -> HttpResponseBase:
        version = self.version()
        found = signatures.find_signature(version, signature)
        signatures.delete_signature(actor=self.actor, version=version, signature=found)
        return no_content()


class SigningKey(Resource):
    @operation(
        "get_signing_key",
        "Get the public half of the key that this installation signs versions with, as PEM.",
        {200: "application/x-pem-file"},
        public=True,
    )
    def get(self, request: Request) -> HttpResponse:
        pem = signing.installation_key().public_pem
        return HttpResponse(pem, content_type="application/x-pem-file")
