"""What a job made becomes a version, with its parents and its measured numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.errors import NotFound
from registry.models import (
    Actor,
    Blob,
    Job,
    Kind,
    LineageRole,
    Repository,
    Version,
    Visibility,
)
from registry.recipes import (
    OTHER,
    EvaluateRecipe,
    InferRecipe,
    ProfileRecipe,
    Recipe,
    TrainRecipe,
    parse_reference,
)
from registry.services.catalog import find_repository, register_repository
from registry.services.versions import (
    EvaluationSpec,
    ParentSpec,
    add_evaluations,
    create_version,
)

_SECRECY = (Visibility.PUBLIC, Visibility.INTERNAL, Visibility.PRIVATE)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job leaves behind: files that are stored already, numbers, and its whole report."""

    files: Mapping[str, Blob] = field(default_factory=dict)
    evaluations: Sequence[EvaluationSpec] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""


def keep_outcome(
    *,
    actor: Actor,
    job: Job,
    recipe: Recipe,
    inputs: Mapping[str, Version],
    outcome: Outcome,
) -> Version:
    """Write the rows that a recipe's result calls for; give the version that it is about."""
    if isinstance(recipe, EvaluateRecipe | ProfileRecipe):
        add_evaluations(
            actor=actor, version=inputs["model"], evaluations=outcome.evaluations, job=job
        )
        return inputs["model"]
    if recipe.kind == "compress":
        return create_version(
            actor=actor,
            repository=inputs["model"].repository,
            files=outcome.files,
            message=outcome.message,
            variant=recipe.variant_name,
            parents=_parents_of_variant(inputs),
            job=job,
            evaluations=outcome.evaluations,
        )
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


def _parents_of_variant(inputs: Mapping[str, Version]) -> list[ParentSpec]:
    """Name the version that a variant was made from first, then those that were merged into it."""
    merged = [version for role, version in inputs.items() if role.startswith(OTHER)]
    return [
        ParentSpec(version=inputs["model"], role=LineageRole.WEIGHTS),
        *(ParentSpec(version=version, role=LineageRole.MERGED) for version in merged),
    ]


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
