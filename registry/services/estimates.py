"""What a job will probably take, told before it is submitted; each figure with its grounds.

Nothing is written and no model is opened: figures come from what earlier jobs took, and from
headers that were read when files came in. What neither of them tells is said to be unknown.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from django.conf import settings
from django.utils import timezone

from registry.errors import Text
from registry.models import Actor, Attempt, Job, JobState, Namespace, Worker
from registry.recipes import (
    CompressRecipe,
    Recipe,
    SearchRecipe,
    TrainRecipe,
    TuneRecipe,
)
from registry.services import jobs, quotas, sizes
from registry.services.headers import ModelHead, head_of, splits_of
from registry.services.jobs import Prepared
from registry.services.sizes import Range
from registry.services.workers import LIVE_SECONDS

_LOOKED_AT: Final = 50
_COUNTED: Final = 3
# What the libraries of a job hold before it has opened anything.
_LIBRARIES_BYTES: Final = 250_000_000
# To measure one version that a search keeps, beside its parent.
_MEASURING_SECONDS: Final = 60
# A compiled program alone takes one and a half million.
_PROGRAM_BYTES: Final = 3_000_000
_PIECES_BYTES: Final = (50_000_000, 300_000_000)
_NO_FILES: Final = Text("It measures, and makes no files.")


@dataclass(frozen=True)
class Figure:
    """A number that is probably in a range, and what that rests on; None where nobody knows."""

    low: float | None
    high: float | None
    grounds: Text

    @property
    def is_exact(self) -> bool:
        return self.low is not None and self.low == self.high


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What comes before it in the queue."""

    before: int
    running: int
    workers: int
    grounds: Text


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a job will probably take."""

    recipe: Recipe
    queue: str
    seconds: Figure
    read_bytes: Figure
    result_bytes: Figure
    memory_bytes: Figure
    memory_limit_bytes: int | None
    waiting: Waiting
    fits_quota: bool | None
    quota_grounds: Text

    @property
    def fits_memory(self) -> bool | None:
        """Whether it will get by with the memory that a job may have; None where nobody knows."""
        return _fits(self.memory_bytes, self.memory_limit_bytes)


def estimate_job(*, actor: Actor, recipe: object) -> Estimate:
    """Say what a recipe would take as a job; refuse what submitting it would refuse.

    Raises:
        RegistryError: as `registry.services.jobs.submit_job`.

    """
    asked = jobs.prepare_job(actor=actor, recipe=recipe)
    jobs.require_few_waiting(actor)
    head = _head(asked)
    past = _past_jobs(actor, asked)
    result = _result(asked, head, past)
    limit = _memory_limit(asked.queue)
    fits, why = _quota(asked, result)
    return Estimate(
        recipe=asked.recipe,
        queue=asked.queue,
        seconds=_seconds(asked, past),
        read_bytes=_read(asked, head),
        result_bytes=result,
        memory_bytes=_memory(asked, head, past),
        memory_limit_bytes=limit,
        waiting=_waiting(asked),
        fits_quota=fits,
        quota_grounds=why,
    )


def _head(asked: Prepared) -> ModelHead | None:
    version = asked.inputs.get("model")
    trains = asked.recipe.kind in {"compress", "search", "export"}
    return None if version is None else head_of(version, trainable=trains)


# --- Earlier jobs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Took:
    """An earlier job: how long its last attempt took, what it held and made."""

    seconds: float
    memory_bytes: float | None
    result_bytes: int | None
    budget_seconds: float


@dataclass(frozen=True)
class _Past:
    """Earlier jobs that are most like the one asked about, the newest first."""

    jobs: Sequence[_Took]
    like: str
    spread: Range

    def range_of(self, number: Callable[[_Took], float | None]) -> tuple[int, Range] | None:
        """Give how many tell a number, and between which two it lay."""
        found = [value for job in self.jobs if (value := number(job)) is not None]
        return (len(found), Range(min(found), max(found))) if found else None


# From the most alike to the least: how far the next one may lie from those before.
_SPREADS: Final = {
    "same": Range(0.7, 1.5),
    "steps": Range(0.5, 2.0),
    "kind": Range(0.2, 5.0),
}
_NONE: Final = _Past((), "none", Range(1, 1))


def _past_jobs(actor: Actor, asked: Prepared) -> _Past:
    """Find jobs of this kind with the same model, or the same dataset where none is read."""
    first = asked.inputs.get("model") or asked.inputs["dataset"]
    rows = (
        Job.objects.visible_to(actor)
        .with_names(actor)
        .filter(
            kind=asked.recipe.kind,
            state=JobState.SUCCEEDED,
            queue=asked.queue,
            inputs__repository_id=first.repository_id,
        )
        .distinct()
        .order_by("-finished_at")[:_LOOKED_AT]
    )
    wanted = asked.recipe.to_json()
    alike: dict[str, list[Job]] = {"same": [], "steps": [], "kind": []}
    for job in rows:
        alike[_likeness(job.recipe, wanted)].append(job)
    for like, found in alike.items():
        if took := _took(found[:_COUNTED]):
            return _Past(took, like, _SPREADS[like])
    return _NONE


def _likeness(recipe: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say how much an earlier recipe is like the wanted one."""
    names = ("model", "dataset", "steps", "architecture", "train_split", "test_split")
    if all(recipe.get(name) == wanted.get(name) for name in names):
        return "same"
    return "steps" if _work(recipe) == _work(wanted) else "kind"


def _work(recipe: Mapping[str, Any]) -> Any:
    """Keep of a recipe what tells how much there is to do."""
    counted = ("method", "epochs", "max_rows", "calibration_rows", "algorithm", "control")
    steps = recipe.get("steps")
    listed = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    dataset = str(recipe.get("dataset") or "").partition("@")[0]
    return dataset, [[step.get(name) for name in counted] for step in listed]


def _took(found: Sequence[Job]) -> list[_Took]:
    ended = Attempt.objects.filter(job__in=found, outcome="succeeded").exclude(ended_at=None)
    times = {
        attempt.job_id: (attempt.ended_at - attempt.started_at).total_seconds()
        for attempt in ended
        if attempt.ended_at is not None
    }
    return [
        _Took(
            seconds=times[job.pk],
            memory_bytes=_number(job.report.get("job_memory_bytes")),
            result_bytes=sum(made.size_bytes for made in job.versions.all()) or None,
            budget_seconds=_budget(job.recipe),
        )
        for job in found
        if job.pk in times
    ]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _budget(recipe: Mapping[str, Any]) -> float:
    steps = recipe.get("steps")
    first = steps[0] if isinstance(steps, list) and steps else {}
    return 60 * (_number(first.get("budget_minutes")) or 0) if isinstance(first, dict) else 0


# --- Figures -------------------------------------------------------------------------------------


def _seconds(asked: Prepared, past: _Past) -> Figure:
    took = past.range_of(lambda job: job.seconds)
    if isinstance(asked.recipe, SearchRecipe):
        return _seconds_of_search(asked.recipe, past)
    if isinstance(asked.recipe, TuneRecipe):
        return _seconds_of_tuning(asked.recipe, took)
    if took is None:
        return Figure(
            None,
            None,
            Text("No job of this kind with this model or dataset has run that you may see."),
        )
    count, found = took
    wide = found.times(past.spread)
    return Figure(wide.low, wide.high, _grounds_of_time(past.like, count, found))


def _grounds_of_time(like: str, count: int, found: Range) -> Text:
    low, high = _figure(found.low), _figure(found.high)
    if like == "same":
        return Text(
            "The last {count} job(s) with this very recipe took {low} to {high} s.",
            count=count,
            low=low,
            high=high,
        )
    if like == "steps":
        return Text(
            "The last {count} job(s) with such steps on this model took {low} to {high} s.",
            count=count,
            low=low,
            high=high,
        )
    return Text(
        "The last {count} job(s) of this kind on this model, with other steps or data, took {low} "
        "to {high} s.",
        count=count,
        low=low,
        high=high,
    )


def _seconds_of_search(recipe: SearchRecipe, past: _Past) -> Figure:
    (step,) = recipe.steps
    budget = 60 * step.budget_minutes
    took = past.range_of(lambda job: job.seconds)
    if took is None:
        return Figure(
            None,
            budget + _MEASURING_SECONDS,
            Text(
                "It takes at most {minutes} minutes, measuring what it keeps included, and ends "
                "earlier when everything was tried. The last measurement may take a minute more.",
                minutes=_figure(step.budget_minutes),
            ),
        )
    count, found = took
    over = past.range_of(lambda job: max(0.0, job.seconds - job.budget_seconds))
    after = over[1].high if over else 0.0
    return Figure(
        min(found.low, budget) * past.spread.low,
        budget + max(after * past.spread.high, _MEASURING_SECONDS),
        Text(
            "It takes at most {minutes} minutes, measuring what it keeps included. The last "
            "{count} search(es) of this model took {low} to {high} s.",
            minutes=_figure(step.budget_minutes),
            count=count,
            low=_figure(found.low),
            high=_figure(found.high),
        ),
    )


def _seconds_of_tuning(recipe: TuneRecipe, took: tuple[int, Range] | None) -> Figure:
    (step,) = recipe.steps
    budget = 60 * step.budget_minutes
    return Figure(
        min(took[1].low, budget) * _SPREADS["steps"].low if took else None,
        budget + step.patience_seconds + _MEASURING_SECONDS,
        Text(
            "It measures for at most {minutes} minutes and ends earlier after its last round; a "
            "batch at hand, and an export to ONNX before it, come on top.",
            minutes=_figure(step.budget_minutes),
        ),
    )


def _read(asked: Prepared, head: ModelHead | None) -> Figure:
    """Add up the files that are laid out for the job."""
    size, refs = 0, {version.ref for version in asked.inputs.values()}
    for role, version in asked.inputs.items():
        if role == "model" and head is not None:
            size += head.files_bytes
        else:
            size += splits_of(version).files_bytes
    return Figure(
        size,
        size,
        Text("All files of {versions}.", versions=", ".join(sorted(refs))),
    )


def _result(asked: Prepared, head: ModelHead | None, past: _Past) -> Figure:
    recipe = asked.recipe
    if recipe.produces in {"evaluations", "export"}:
        writes = recipe.produces == "export"
        return _result_of_export(head) if writes else Figure(0, 0, _NO_FILES)
    made = past.range_of(lambda job: job.result_bytes)
    if past.like == "same" and made is not None:
        count, found = made
        return Figure(
            0.98 * found.low,
            1.02 * found.high,
            Text("The last {count} job(s) with this very recipe made as much.", count=count),
        )
    if isinstance(recipe, TrainRecipe):
        return _result_of_training(asked, recipe, head)
    if head is None or not isinstance(recipe, CompressRecipe | SearchRecipe):
        return _result_of_rows(past)
    if isinstance(recipe, CompressRecipe):
        return _result_of_steps(recipe, head)
    return _result_of_search(recipe, head)


def _result_of_export(head: ModelHead | None) -> Figure:
    count = head.version.parameters_count if head else None
    if head is None or count is None:
        return Figure(None, None, Text("What the file takes is seen once it is written."))
    return Figure(
        4 * count,
        4.4 * count + _PROGRAM_BYTES,
        Text(
            "The {count} parameters of {version} in 32 bits, and the program.",
            count=_counted(count),
            version=head.version.ref,
        ),
    )


def _result_of_rows(past: _Past) -> Figure:
    made = past.range_of(lambda job: job.result_bytes)
    if made is None:
        unknown = Text("How many rows there are, and how long, is seen as they run.")
        return Figure(None, None, unknown)
    count, found = made
    wide = found.times(past.spread)
    said = Text("The last {count} job(s) of this kind made so much.", count=count)
    return Figure(wide.low, wide.high, said)


def _result_of_steps(recipe: CompressRecipe, head: ModelHead) -> Figure:
    size = sizes.result_of(recipe, head)
    if size is None:
        return Figure(
            None, None, Text("The header of {version} lists no weights.", version=head.version.ref)
        )
    return Figure(
        *size.size_bytes,
        Text(
            "From {count} parameters of {version} at {low} to {high} bits each, and what stands "
            "beside them.",
            count=_counted(size.count),
            version=head.version.ref,
            low=f"{size.bits.low:.1f}",
            high=f"{size.bits.high:.1f}",
        ),
    )


def _result_of_search(recipe: SearchRecipe, head: ModelHead) -> Figure:
    (step,) = recipe.steps
    most = min(head.weights_bytes, step.max_bytes or head.weights_bytes)
    beside = head.files_bytes - head.weights_bytes
    return Figure(
        None,
        step.most_variants * (1.1 * most + beside + 100_000),
        Text(
            "Up to {count} version(s), each hardly larger than {version} or than the limit; how "
            "much smaller is what the search finds out.",
            count=step.most_variants,
            version=head.version.ref,
        ),
    )


def _result_of_training(asked: Prepared, recipe: TrainRecipe, head: ModelHead | None) -> Figure:
    if recipe.architecture is None and head is not None:
        return Figure(
            0.95 * head.weights_bytes,
            1.05 * (head.weights_bytes + head.beside_bytes) + 48_000,
            Text("As large as {version}, which it goes on with.", version=head.version.ref),
        )
    assert recipe.architecture is not None  # the recipe has one or a model
    labels = splits_of(asked.inputs["dataset"]).labels
    size = sizes.trained_size(recipe.architecture, len(labels) or None)
    return Figure(
        *size,
        Text("From the sizes of the architecture, in 32 bits; a vocabulary may come out smaller."),
    )


def _memory(asked: Prepared, head: ModelHead | None, past: _Past) -> Figure:
    if asked.recipe.kind == "diff":
        return Figure(*_PIECES_BYTES, Text("It reads the weights piece by piece."))
    held = past.range_of(lambda job: job.memory_bytes)
    if held is not None:
        count, found = held
        return Figure(
            0.8 * found.low,
            found.high * (1.3 if past.like == "same" else 2.0),
            Text(
                "The last {count} job(s) of this kind on this model held up to {most} MB.",
                count=count,
                most=round(found.high / 1e6),
            ),
        )
    if head is None or head.version.parameters_count is None:
        return Figure(
            _LIBRARIES_BYTES, None, Text("At least what the libraries take; the rest is unknown.")
        )
    copies = 1 if asked.recipe.produces in {"evaluations", "dataset"} else 2
    return Figure(
        _LIBRARIES_BYTES + copies * 4 * head.version.parameters_count,
        None,
        Text(
            "At least the libraries and {copies} time(s) the {count} parameters in 32 bits; rows "
            "and gradients come on top.",
            copies=copies,
            count=_counted(head.version.parameters_count),
        ),
    )


def _fits(figure: Figure, limit: float | None) -> bool | None:
    if limit is None:
        return True
    if figure.high is not None and figure.high <= limit:
        return True
    return False if figure.low is not None and figure.low > limit else None


# --- Where it would run --------------------------------------------------------------------------


def _serving(queue: str) -> Sequence[Worker]:
    alive = timezone.now() - timedelta(seconds=LIVE_SECONDS)
    return list(Worker.objects.filter(seen_at__gt=alive, queues__contains=queue))


def _memory_limit(queue: str) -> int | None:
    """Give what the smallest worker of a queue lets one job have."""
    told = [
        device.get("job_memory_bytes")
        for worker in _serving(queue)
        for device in worker.devices
        if isinstance(device, dict)
    ]
    found = [limit for limit in told if isinstance(limit, int) and limit > 0]
    return min(found) if found else settings.JOB_MAX_MEMORY_BYTES or None


def _waiting(asked: Prepared) -> Waiting:
    rows = Job.objects.filter(queue=asked.queue)
    before = rows.filter(state=JobState.QUEUED, priority__gte=0).count()
    running = rows.filter(state=JobState.RUNNING).count()
    workers = len(_serving(asked.queue))
    return Waiting(
        before=before,
        running=running,
        workers=workers,
        grounds=_why_it_waits(asked.namespace, asked.queue, before, running, workers),
    )


def _why_it_waits(
    namespace: Namespace, queue: str, before: int, running: int, workers: int
) -> Text:
    if not workers:
        return Text("No worker serves the queue {queue} right now.", queue=queue)
    limit = quotas.limit_of(namespace, quotas.JOBS)
    own = quotas.running_jobs(namespace)
    if limit is not None and own >= limit:
        return Text(
            "Waits: {running} of {limit} jobs of {namespace} run.",
            running=own,
            limit=limit,
            namespace=namespace.slug,
        )
    if not before and not running:
        return Text("Nothing runs or waits before it; it starts at once.")
    return Text(
        "{before} job(s) wait before it and {running} run; {workers} worker(s) serve the queue "
        "{queue}.",
        before=before,
        running=running,
        workers=workers,
        queue=queue,
    )


def _quota(asked: Prepared, result: Figure) -> tuple[bool | None, Text]:
    """Say whether the namespace has room for the result; that it has some was checked before."""
    limit = quotas.limit_of(asked.namespace, quotas.BYTES)
    if result.high == 0:
        return True, _NO_FILES
    if limit is None:
        return True, Text("{namespace} has no limit of bytes.", namespace=asked.namespace.slug)
    left = max(0, limit - asked.namespace.used_bytes)
    return _fits(result, left), Text(
        "{namespace} has room for {left} more.",
        namespace=asked.namespace.slug,
        left=quotas.say_bytes(left),
    )


def _figure(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 100 else f"{number:.0f}"


def _counted(count: int) -> str:
    """Say a count in three digits: 22.7 M."""
    for unit, size in ((" B", 1e9), (" M", 1e6), (" k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
