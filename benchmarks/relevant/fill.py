"""Registers plausible models through the services, cards, numbers and downloads included."""

from collections.abc import Iterable

from benchmarks.relevant.plausible import PlausibleModel
from registry.authenticate import Visit, actor_for_user
from registry.models import Actor, Namespace, Repository, User
from registry.services import catalog, namespaces, versions
from registry.services.blobs import record_blob
from registry.storage import default_storage


def fill(models: Iterable[PlausibleModel], *, user: User | None = None) -> dict[int, str]:
    """Register each as a model with one version; give their names by their keys."""
    owner = user or namespaces.create_user(username="relevance", password=None)
    actor = actor_for_user(owner, Visit(door="benchmark"))
    names: dict[int, str] = {}
    for model in models:
        if not Namespace.objects.filter(slug=model.owner).exists():
            namespaces.create_namespace(actor=actor, slug=model.owner)
            actor = actor_for_user(owner, Visit(door="benchmark"))
        names[_register(actor, model).pk] = model.full_name
    return names


def _register(actor: Actor, model: PlausibleModel) -> Repository:
    repository = catalog.register_repository(
        actor=actor,
        kind="model",
        namespace=model.owner,
        name=model.name,
        summary=model.summary,
    )
    versions.create_version(
        actor=actor,
        repository=repository,
        files={"README.md": record_blob(default_storage().put([model.card.encode()]))},
        evaluations=[versions.EvaluationSpec(metric="accuracy", value=model.quality)],
    )
    # What files and callers would make of it.
    Repository.objects.filter(pk=repository.pk).update(
        downloads_count=model.downloads, parameters_count=model.parameters
    )
    return repository
