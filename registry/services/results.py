"""What a job made becomes a version, with its parents and its measured numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.errors import Conflict, Invalid, NotFound
from registry.models import (
    Actor,
    Blob,
    Derivative,
    Job,
    Kind,
    LineageRole,
    Purpose,
    Repository,
    Version,
    Visibility,
)
from registry.recipes import (
    BASE,
    OTHER,
    DiffRecipe,
    EvaluateRecipe,
    ExportRecipe,
    InferRecipe,
    ProfileRecipe,
    Recipe,
    TrainRecipe,
    TuneRecipe,
    parse_reference,
)
from registry.services.catalog import find_repository, lock_repository, register_repository
from registry.services.quotas import take_export
from registry.services.tuning import keep_tuning
from registry.services.versions import (
    EvaluationSpec,
    ParentSpec,
    add_evaluations,
    create_version,
)
from registry.services.weights import keep_known, pair_of

_SECRECY = (Visibility.PUBLIC, Visibility.INTERNAL, Visibility.PRIVATE)


@dataclass(frozen=True, kw_only=True)
class Made:
    """One of several versions that a job made: a variant of the version that it read."""

    variant: str
    files: Mapping[str, Blob]
    evaluations: Sequence[EvaluationSpec] = ()
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job leaves behind: files that are stored already, numbers, and its whole report.

    A job that makes several versions has them in `variants`, the recommended one first, and
    nothing in `files`.
    """

    files: Mapping[str, Blob] = field(default_factory=dict)
    evaluations: Sequence[EvaluationSpec] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    variants: Sequence[Made] = ()


def keep_outcome(
    *,
    actor: Actor,
    job: Job,
    recipe: Recipe,
    inputs: Mapping[str, Version],
    outcome: Outcome,
) -> Version:
    """Write the rows that a recipe's result calls for; give the version that it is about.

    The caller's transaction holds them together: of several versions, all are there or none.
    """
    if isinstance(recipe, _ABOUT_ONE):
        _keep_about(actor=actor, job=job, recipe=recipe, inputs=inputs, outcome=outcome)
        return inputs["model"]
    if recipe.kind == "search":
        versions = [_keep_variant(actor, job, inputs, made) for made in outcome.variants]
        return versions[0]
    if recipe.kind == "compress":
        made = Made(
            variant=recipe.variant_name,
            files=outcome.files,
            evaluations=outcome.evaluations,
            message=outcome.message,
        )
        version = _keep_variant(actor, job, inputs, made)
        _keep_beside(actor, job, inputs["model"], version)
        return version
    return create_version(
        actor=actor,
        repository=_find_output(actor, recipe, inputs),
        files=outcome.files,
        message=outcome.message,
        parents=[
            ParentSpec(version=version, role=_ROLES[role]) for role, version in inputs.items()
        ],
        job=job,
        # Numbers of a batch of predictions speak of the model; they stay in the job's report.
        evaluations=outcome.evaluations if recipe.kind == "train" else (),
    )


_ABOUT_ONE = DiffRecipe | TuneRecipe | ExportRecipe | EvaluateRecipe | ProfileRecipe


def _keep_about(
    *,
    actor: Actor,
    job: Job,
    recipe: DiffRecipe | TuneRecipe | ExportRecipe | EvaluateRecipe | ProfileRecipe,
    inputs: Mapping[str, Version],
    outcome: Outcome,
) -> None:
    """Keep what a job found out about the version that it read, or wrote of it."""
    version = inputs["model"]
    match recipe:
        case DiffRecipe():
            _keep_diff(actor, job, inputs)
        case TuneRecipe():
            keep_tuning(actor=actor, version=version, job=job, said=outcome.report.get("summary"))
        case ExportRecipe():
            _keep_export(version, recipe, outcome)
        case EvaluateRecipe() | ProfileRecipe():
            add_evaluations(actor=actor, version=version, evaluations=outcome.evaluations, job=job)


def _keep_diff(actor: Actor, job: Job, inputs: Mapping[str, Version]) -> None:
    """Keep what became of the weights by what was compared; of the job only the counts stay."""
    said = job.report.get("summary")
    pair = pair_of(actor, inputs[BASE], inputs["model"])
    if pair.weights is None:
        raise Conflict("{problem}", code="nothing_to_compare", problem=pair.why)
    keep_known(pair.weights, said)
    if isinstance(said, dict):
        job.report["summary"] = {key: said[key] for key in said if key != "tensors"}


def _keep_export(version: Version, recipe: ExportRecipe, outcome: Outcome) -> None:
    """Keep the file beside the version; where another job was faster, its file stays.

    Raises:
        NamespaceFull: the namespace has no room for it.

    """
    if set(outcome.files) != {recipe.file}:
        raise Invalid("The job left other files than {file}.", code="no_result", file=recipe.file)
    lock_repository(version.repository)
    made, is_new = Derivative.objects.get_or_create(
        version=version,
        purpose=Purpose.EXPORTED,
        path=recipe.file,
        defaults={"blob": outcome.files[recipe.file], "toolchain": _toolchain(recipe, outcome)},
    )
    if is_new:
        take_export(made)


def _toolchain(recipe: ExportRecipe, outcome: Outcome) -> str:
    """Say what wrote a file; one that was compiled only runs on machines like that one."""
    said = outcome.report.get("environment")
    told = said if isinstance(said, dict) else {}
    words = f"torch {told.get('torch', '')}"
    if recipe.target == "aotinductor":
        words += f", {told.get('cpu', '')}"
    return re.sub(r"[^ -~]", "", words)[:200].strip()


def _keep_beside(actor: Actor, job: Job, parent: Version, version: Version) -> None:
    """Keep what a job says that it did to the weights, if it does."""
    summary = job.report.get("summary")
    said = summary.get("weights") if isinstance(summary, dict) else None
    pair = pair_of(actor, parent, version) if said else None
    if pair is not None and pair.weights is not None and not pair.weights.are_equal:
        keep_known(pair.weights, said)
    if said:
        job.report["summary"] = {key: summary[key] for key in summary if key != "weights"}


def _parents_of_variant(inputs: Mapping[str, Version]) -> list[ParentSpec]:
    """Name the version that a variant was made from first, then those that were merged into it."""
    merged = [version for role, version in inputs.items() if role.startswith(OTHER)]
    return [
        ParentSpec(version=inputs["model"], role=LineageRole.WEIGHTS),
        *(ParentSpec(version=version, role=LineageRole.MERGED) for version in merged),
        *(
            ParentSpec(version=version, role=LineageRole.WEIGHTS)
            for role, version in inputs.items()
            if role == BASE
        ),
    ]


def _keep_variant(actor: Actor, job: Job, inputs: Mapping[str, Version], made: Made) -> Version:
    return create_version(
        actor=actor,
        repository=inputs["model"].repository,
        files=made.files,
        message=made.message,
        variant=made.variant,
        parents=_parents_of_variant(inputs),
        job=job,
        evaluations=made.evaluations,
    )


_ROLES = {"model": LineageRole.WEIGHTS, "dataset": LineageRole.DATA}


def _find_output(
    actor: Actor, recipe: TrainRecipe | InferRecipe, inputs: Mapping[str, Version]
) -> Repository:
    """Find the repository that a recipe names, or register it as openly as its inputs are."""
    reference = parse_reference(recipe.output)
    kind = Kind.MODEL if recipe.kind == "train" else Kind.DATASET
    try:
        return find_repository(actor, kind, reference.namespace, reference.name)
    except NotFound:
        closed = max(
            (Visibility(version.repository.visibility) for version in inputs.values()),
            key=_SECRECY.index,
        )
        return register_repository(
            actor=actor,
            kind=kind,
            namespace=reference.namespace,
            name=reference.name,
            visibility=closed,
        )
