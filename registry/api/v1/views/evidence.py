"""Numbers about versions: measured by jobs, declared from outside."""

from django.urls import reverse
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.comparison import visible_datasets
from registry.api.v1.openapi import operation
from registry.api.v1.resource import Resource, created, idempotent
from registry.api.v1.views.versions import named_version
from registry.models import Evaluation
from registry.pages import Page
from registry.services import versions


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
        found, after = wire.newest_first(rows, "evaluations", asked.limit, asked.cursor)
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
