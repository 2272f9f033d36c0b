"""Background jobs: the list, the form of a new one, and the page that shows one live."""

from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

from django.contrib import messages
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from registry.errors import Invalid, NotFound, RegistryError
from registry.models import Actor, Job, JobEvent, JobState, Kind, Repository
from registry.pages import decode_cursor, decode_moment, encode_cursor
from registry.recipes import RECIPES, parse_reference
from registry.services.catalog import find_repository, find_version, namespaces_writable_by
from registry.services.estimates import estimate_job
from registry.services.jobs import cancel_job, find_job, reproduce_job, resume_job, submit_job
from registry.services.lineage import data_of
from registry.services.quotas import why_waiting
from registry.services.reproduction import KINDS
from registry.web import charts, estimates, recipe_forms, reports, searches, wording
from registry.web.comparisons import MAKERS, results_of
from registry.web.profiles import profile_of
from registry.web.recipe_forms import Draft, Pattern, RecipeForm
from registry.web.refusals import attempt, words_of
from registry.web.tunings import tuning_of
from registry.web.visitor import actor_of, signed_in

PAGE: Final = 20
ESTIMATE: Final = "estimate"
_LOG_LINES: Final = 300
_METRIC_POINTS: Final = 20_000
_REPRODUCTIONS: Final = 10
_SUGGESTED: Final = 60
# What is measured on the data that a model is about; a batch inference is of other data.
_MEASURES: Final = frozenset({"compress", "search", "evaluate", "profile"})


@require_safe
@signed_in
def job_list(request: HttpRequest) -> HttpResponse:
    asked = {name: request.GET.get(name, "") for name in ("state", "kind")}
    actor = actor_of(request)
    found = Job.objects.visible_to(actor).whole().with_names(actor)
    found = found.order_by("-created_at", "-pk")
    for name, value in asked.items():
        if value:
            found = found.filter(**{name: value[:32].replace("\0", "")})
    if cursor := request.GET.get("cursor", ""):
        found = found.filter(_after(cursor))
    rows = list(found[: PAGE + 1])
    last = rows[PAGE - 1] if len(rows) > PAGE else None
    context = {
        "jobs": rows[:PAGE],
        "asked": asked,
        "states": [(state.value, wording.state_name(state.value)) for state in JobState],
        "kinds": [(kind, str(wording.JOB_KINDS.get(kind, kind))) for kind in RECIPES],
        "older": encode_cursor("recent", last.created_at.isoformat(), str(last.pk)) if last else "",
        "host": request.build_absolute_uri("/").rstrip("/"),
    }
    return render(request, "job/list.html", context)


def _after(cursor: str) -> Q:
    moment, key = decode_cursor(cursor, "recent", str, str)
    try:
        bound, job_id = decode_moment(moment), UUID(key)
    except ValueError as error:
        raise Invalid("The cursor is not one of ours.") from error
    return Q(created_at__lt=bound) | Q(created_at=bound, pk__lt=job_id)


@signed_in
@require_http_methods(["GET", "POST"])
def new_job(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    kind = request.GET.get("kind", "")
    if kind not in RECIPES:
        return render(
            request, "job/choose.html", {"kinds": recipe_forms.kinds(), "given": request.GET}
        )
    ways = recipe_forms.ways(kind)
    begun = _begin(request, actor, kind)
    way = begun.way
    if ways and way not in {option.key for option in ways}:
        way = ways[0].key
    draft = Draft.of(kind, way, request.POST)
    if request.method != "POST" and begun.methods:
        draft = replace(draft, methods=begun.methods)
    action, estimate = request.POST.get("do", ""), None
    if action and action != ESTIMATE:
        draft = draft.changed(action)
        form = RecipeForm.drafted(kind, way, draft, auto_id="f-%s")
    else:
        form = RecipeForm(
            kind,
            way,
            request.POST or None,
            methods=draft.methods,
            initial=begun.initial,
            auto_id="f-%s",
        )
        if request.method == "POST" and form.is_valid():
            try:
                if action != ESTIMATE:
                    job = submit_job(actor=actor, recipe=form.recipe())
                    return redirect("web:job", job_id=job.pk)
                estimate = estimate_job(actor=actor, recipe=form.recipe())
            except RegistryError as error:
                form.show_refusal(error)
    context = {
        "form": form,
        "kind": kind,
        "way": way,
        "ways": ways,
        "touched": draft.touched,
        "kinds": recipe_forms.kinds(),
        "given": request.GET,
        "names": _names(actor),
        "estimate": estimates.lines_of(estimate) if estimate else None,
    }
    return render(request, "job/new.html", context, status=422 if form.errors else 200)


def _begin(request: HttpRequest, actor: Actor, kind: str) -> Pattern:
    """Find what the form begins with: another job's recipe, a goal, or names in the address."""
    named = {name: request.GET.get(name, "") for name in ("model", "dataset", "output")}
    given = {name: text for name, text in named.items() if text}
    way = request.GET.get("way", "")
    if like := request.GET.get("like", ""):
        begun = Pattern.of(find_job(actor, like).recipe, kind)
        goal = searches.fields_of(way) if kind == searches.KIND and way else {}
        return replace(begun, way=way or begun.way, initial={**begun.initial, **goal, **given})
    model = _named_model(actor, request.GET.get("model", ""))
    way = way or _usual_way(kind, model, continues="model" in request.GET)
    goal = searches.fields_of(way) if kind == searches.KIND else {}
    spaces = namespaces_writable_by(actor)
    output = f"{spaces[0].slug}/" if spaces else ""
    initial = {"output": output, **goal, **given}
    # What was sent says its dataset itself.
    if request.method != "POST" and "dataset" not in given:
        initial |= _usual_data(actor, kind, model, given.get("model", ""))
    return Pattern(way=way, methods=(), initial=initial)


def _named_model(actor: Actor, text: str) -> Repository | None:
    """Find the model that the address names, if there is one that the actor may see."""
    try:
        reference = parse_reference(text)
        return find_repository(actor, Kind.MODEL, reference.namespace, reference.name)
    except (Invalid, NotFound):
        return None


def _usual_data(
    actor: Actor, kind: str, model: Repository | None, reference: str
) -> dict[str, str]:
    """Suggest the dataset that a version was made with, to what measures it."""
    if kind not in _MEASURES or model is None:
        return {}
    try:
        version = find_version(actor, model, parse_reference(reference).version)
    except NotFound:
        return {}
    found = data_of(actor, version)
    return {"dataset": found.ref} if found else {}


def _usual_way(kind: str, model: Repository | None, *, continues: bool) -> str:
    if kind == searches.KIND:
        return searches.usual_goal(model.task if model else "")
    return recipe_forms.CONTINUE if kind == "train" and continues else ""


def _names(actor: Actor) -> dict[str, list[str]]:
    """Suggest names of models and datasets that have a version to work on."""
    rows = (
        Repository.objects.visible_to(actor)
        .exclude(latest_number=None)
        .order_by("-updated_at", "-pk")
        .values_list("kind", "namespace__slug", "name", "latest_number")
    )
    names: dict[str, list[str]] = {"model": [], "dataset": []}
    for kind, namespace, name, number in rows[:_SUGGESTED]:
        names[kind].append(f"{namespace}/{name}@{number}")
    return names


@never_cache
@require_safe
@signed_in
def job_page(request: HttpRequest, job_id: UUID) -> HttpResponse:
    actor = actor_of(request)
    job = find_job(actor, job_id)
    live = request.GET.get("part") == "live"
    made = results_of(actor, job)
    shown = {
        "job": job,
        "search": searches.search_of(job, request.GET.get("x", ""), made),
        **_progress(job),
    }
    response = render(request, "job/live.html" if live else "job/job.html", shown)
    if live and job.is_finished:
        # The page is loaded again, without what kept it live.
        response["HX-Refresh"] = "true"
    return response


@require_POST
@signed_in
def cancel(request: HttpRequest, job_id: UUID) -> HttpResponse:
    actor = actor_of(request)
    job = find_job(actor, job_id)
    change = partial(cancel_job, actor=actor, job=job)
    attempt(request, change, _("The job is being cancelled."))
    return redirect("web:job", job_id=job_id)


@require_POST
@signed_in
def resume(request: HttpRequest, job_id: UUID) -> HttpResponse:
    actor = actor_of(request)
    job = find_job(actor, job_id)
    change = partial(resume_job, actor=actor, job=job)
    attempt(request, change, _("The job goes on from its last checkpoint."))
    return redirect("web:job", job_id=job_id)


@require_POST
@signed_in
def reproduce(request: HttpRequest, job_id: UUID) -> HttpResponse:
    actor = actor_of(request)
    job = find_job(actor, job_id)
    try:
        again = reproduce_job(actor=actor, job=job)
    except RegistryError as error:
        messages.error(request, words_of(error))
        return redirect("web:job", job_id=job_id)
    messages.success(request, _("The recipe runs once more; the bytes are compared at its end."))
    return redirect("web:job", job_id=again.pk)


def _progress(job: Job) -> dict[str, Any]:
    events = JobEvent.objects.filter(job=job)
    metrics: dict[str, list[tuple[float, float]]] = {}
    for data in (
        events.filter(type="metric").order_by("pk").values_list("data", flat=True)[:_METRIC_POINTS]
    ):
        metrics.setdefault(str(data.get("name")), []).append(
            (float(data.get("step", 0)), float(data.get("value", 0)))
        )
    attempts = list(job.attempts.order_by("-fence")[:20])
    drawn = [
        charts.curve(wording.metric_name(name), points) for name, points in sorted(metrics.items())
    ]
    log = events.filter(type="log").order_by("-pk").values_list("at", "data")[:_LOG_LINES]
    return {
        "steps": _steps(job),
        "curves": [curve for curve in drawn if curve],
        "log": [
            (at, reports.said(data.get("said"), data.get("message")))
            for at, data in reversed(list(log))
        ],
        "attempts": attempts,
        "left": _time_left(job, attempts[0].started_at if attempts else None),
        "took": ((job.finished_at or timezone.now()) - job.started_at).total_seconds()
        if job.started_at
        else None,
        "inputs": list(
            job.inputs.select_related("repository__namespace").order_by("repository__kind", "pk")
        ),
        "percent": percent_of(job),
        "parts": list(job.children.order_by("part")),
        "compared_kinds": MAKERS,
        "profile": profile_of(job),
        "tuned": tuning_of(job),
        "can_resume": job.state in {JobState.FAILED, JobState.CANCELLED},
        "can_reproduce": job.kind in KINDS and job.state == JobState.SUCCEEDED and job.result,
        "reproductions": job.reproductions.select_related("result").order_by("-created_at")[
            :_REPRODUCTIONS
        ],
        "warnings": reports.warnings_of(job),
        "waits": words_of(waits) if (waits := why_waiting([job]).get(job.pk)) else "",
    }


def percent_of(job: Job) -> int | None:
    done, total = job.progress.get("done"), job.progress.get("total")
    if not isinstance(done, int | float) or not isinstance(total, int | float) or total <= 0:
        return None
    return max(0, min(100, int(100 * done / total)))


def _steps(job: Job) -> list[dict[str, str]]:
    """Make the stepper: what was done, what is being done, what is left."""
    stages = ["queued", *_stages_of(job), "done"]
    titles = {way.key: way.title for way in recipe_forms.ways(job.kind)}
    step = str(job.progress.get("step") or "")
    step = {"compare": "evaluate"}.get(step, step)
    if step and step not in stages:
        stages.insert(-1, step)
    if job.state == JobState.SUCCEEDED:
        now = len(stages)
    elif job.state == JobState.QUEUED or not job.started_at:
        now = 0
    else:
        now = stages.index(step) if step else 1
    ended = job.state in {JobState.FAILED, JobState.CANCELLED}
    return [
        {
            "name": wording.step_name(stage, titles),
            "state": "done" if at < now else "" if at > now else "failed" if ended else "now",
        }
        for at, stage in enumerate(stages)
    ]


def _stages_of(job: Job) -> list[str]:
    """List what a job of this kind goes through, in the words of its progress."""
    methods = [str(step.get("method", "")) for step in job.recipe.get("steps", [])]
    return [*methods, "evaluate"] if job.kind in {"compress", "train", "search"} else methods


def _time_left(job: Job, since: datetime | None) -> float | None:
    done, total = job.progress.get("done"), job.progress.get("total")
    if job.state != JobState.RUNNING or since is None or not done or not total:
        return None
    spent = timezone.now() - since
    if spent < timedelta(seconds=2) or done >= total:
        return None
    return float(spent.total_seconds() / done * (total - done))
