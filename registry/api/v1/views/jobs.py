"""Background jobs: submitted, listed, followed, cancelled, resumed; what they may be asked."""

from uuid import UUID

from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from registry.api.pagination import page_response
from registry.api.v1 import schemas, wire
from registry.api.v1.openapi import TEXT, operation
from registry.api.v1.renderers import TextRenderer
from registry.api.v1.requests import wrong_field
from registry.api.v1.resource import Resource, created, idempotent
from registry.errors import Invalid, NotFound
from registry.models import Job, JobEvent, JobState, Worker
from registry.pages import Page, check_limit, decode_cursor, decode_moment, encode_cursor
from registry.permissions import require_scope
from registry.recipes import RECIPES, recipe_schema
from registry.services import jobs
from registry.services.estimates import estimate_job
from registry.services.workers import LIVE_SECONDS

_LOG_LINES = 10_000


class JobList(Resource):
    @operation(
        "list_jobs",
        "List the jobs you may see, newest first.",
        {200: schemas.JobPage},
        query=schemas.JobQuery,
        gives=("Link",),
    )
    def get(self, request: Request) -> Response:
        require_scope(self.actor, "read")
        asked = self.query(schemas.JobQuery)
        if asked.state and asked.state not in JobState.values:
            choices = ", ".join(JobState.values)
            raise wrong_field("state", "not_a_choice", "Choose one of {choices}.", choices=choices)
        wanted = {
            "state": asked.state,
            "kind": asked.kind,
            "namespace__slug__iexact": asked.namespace,
        }
        rows = Job.objects.visible_to(self.actor).with_names(self.actor)
        rows = rows.filter(**{name: value for name, value in wanted.items() if value})
        rows = rows.filter(parent=asked.part_of) if asked.part_of else rows.whole()
        return page_response(request, _job_page(rows, asked.limit, asked.cursor))

    @operation(
        "submit_job",
        "Queue a job; follow it at its Location.",
        {202: schemas.Job},
        body=schemas.NewJob,
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request) -> Response:
        job = jobs.submit_job(actor=self.actor, recipe=self.body(schemas.NewJob).recipe)
        return created(wire.job_body(job), reverse("api:job", args=[job.pk]), status=202)


class JobEstimate(Resource):
    @operation(
        "estimate_job",
        "Say what a recipe would take as a job, and on what grounds; nothing is queued.",
        {200: schemas.Estimate},
        body=schemas.NewJob,
    )
    def post(self, request: Request) -> Response:
        recipe = self.body(schemas.NewJob).recipe
        return Response(wire.estimate_body(estimate_job(actor=self.actor, recipe=recipe)))


def _job_page(rows: QuerySet[Job], limit: int | None, cursor: str) -> Page:
    """Give jobs newest first; a job's id is random, so its time comes first in the cursor."""
    if cursor:
        stamp, key = decode_cursor(cursor, "jobs", str, str)
        try:
            moment, last = decode_moment(stamp), UUID(key)
        except ValueError as error:
            raise Invalid("The cursor is not one of ours.", code="bad_cursor") from error
        rows = rows.filter(Q(created_at__lt=moment) | Q(created_at=moment, pk__lt=last))
    wanted = check_limit(limit)
    found = list(rows.order_by("-created_at", "-pk")[: wanted + 1])
    kept = found[:wanted]
    after = None
    if len(found) > wanted:
        after = encode_cursor("jobs", kept[-1].created_at.isoformat(), str(kept[-1].pk))
    return Page(wire.job_bodies(kept), after)


class JobOne(Resource):
    @operation("get_job", "Read one job.", {200: schemas.Job})
    def get(self, request: Request, job: str) -> Response:
        require_scope(self.actor, "read")
        return Response(wire.job_body(jobs.find_job(self.actor, job)))


class JobLog(Resource):
    renderer_classes = [TextRenderer]

    @operation("read_job_log", "Read what a job has said, a line each.", {200: TEXT})
    def get(self, request: Request, job: str) -> Response:
        require_scope(self.actor, "read")
        said = JobEvent.objects.filter(
            job=jobs.find_job(self.actor, job), type__in=["log", "state"]
        )
        newest = list(said.order_by("-id").values_list("at", "type", "data")[:_LOG_LINES])
        lines = [
            f"{at:%Y-%m-%dT%H:%M:%S.%fZ} {data.get('message' if kind == 'log' else 'state', '')}\n"
            for at, kind, data in reversed(newest)
        ]
        return Response("".join(lines))


class JobCancel(Resource):
    @operation("cancel_job", "Cancel a job.", {202: schemas.Job}, headers=("Idempotency-Key",))
    @idempotent
    def post(self, request: Request, job: str) -> Response:
        require_scope(self.actor, "jobs")
        found = jobs.find_job(self.actor, job)
        jobs.cancel_job(actor=self.actor, job=found)
        return _accepted(self, job)


class JobResume(Resource):
    @operation(
        "resume_job",
        "Queue a failed or cancelled job once more, from its last checkpoint.",
        {202: schemas.Job},
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, job: str) -> Response:
        require_scope(self.actor, "jobs")
        found = jobs.find_job(self.actor, job)
        jobs.resume_job(actor=self.actor, job=found)
        return _accepted(self, job)


class JobReproduce(Resource):
    @operation(
        "reproduce_job",
        "Run a job that succeeded once more and compare the bytes; the new job keeps no version.",
        {202: schemas.Job},
        headers=("Idempotency-Key",),
    )
    @idempotent
    def post(self, request: Request, job: str) -> Response:
        require_scope(self.actor, "jobs")
        again = jobs.reproduce_job(actor=self.actor, job=jobs.find_job(self.actor, job))
        return _accepted(self, str(again.pk))


def _accepted(view: Resource, job: str) -> Response:
    found = jobs.find_job(view.actor, job)
    return created(wire.job_body(found), reverse("api:job", args=[found.pk]), status=202)


class RecipeList(Resource):
    @operation("list_recipes", "List the kinds of jobs.", {200: schemas.RecipeKinds}, public=True)
    def get(self, request: Request) -> Response:
        items = [
            {
                "kind": kind,
                "title": (schema := recipe_schema(kind)).get("title", kind),
                "description": schema.get("description", ""),
                "produces": recipe.produces,
            }
            for kind, recipe in RECIPES.items()
        ]
        return Response({"items": items, "next_cursor": None})


class RecipeOne(Resource):
    @operation(
        "get_recipe",
        "Read the JSON Schema of a kind of recipe.",
        {200: schemas.RecipeSchema},
        public=True,
    )
    def get(self, request: Request, kind: str) -> Response:
        if kind not in RECIPES:
            raise NotFound(
                "There is no kind of recipe {kind!r}; there are {kinds}.",
                code="recipe_not_found",
                kind=kind,
                kinds=", ".join(RECIPES),
            )
        return Response(recipe_schema(kind))


class WorkerList(Resource):
    @operation("list_workers", "See the workers and their devices.", {200: schemas.WorkerList})
    def get(self, request: Request) -> Response:
        require_scope(self.actor, "read")
        now = timezone.now()
        items = [
            {
                "name": worker.name,
                "queues": worker.queues,
                "devices": worker.devices,
                "sandbox": worker.sandbox or None,
                "is_alive": (now - worker.seen_at).total_seconds() < LIVE_SECONDS,
                "started_at": worker.started_at,
                "seen_at": worker.seen_at,
            }
            for worker in Worker.objects.order_by("name")[:1000]
        ]
        return Response({"items": items, "next_cursor": None})
