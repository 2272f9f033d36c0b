"""How endpoints follow their model: renamed and moved with it, gone with it."""

from django.db import IntegrityError, transaction
from django.utils import timezone

from registry.errors import AlreadyExists, Conflict
from registry.models import Deployment, Endpoint, Repository


def follow_model(repository: Repository, *, name_before: str) -> None:
    """Let the endpoints of a locked model lie where it lies, and bear its name if they did.

    Raises:
        AlreadyExists: an endpoint of that name is there.

    """
    for endpoint in Endpoint.objects.filter(repository=repository):
        if endpoint.name.lower() == name_before.lower():
            endpoint.name = repository.name
        endpoint.namespace = repository.namespace
        endpoint.updated_at = timezone.now()
        try:
            with transaction.atomic():
                endpoint.save(update_fields=["name", "namespace", "updated_at"])
        except IntegrityError as error:
            raise AlreadyExists(
                "The endpoint {endpoint} exists already; delete it, or rename one of the models.",
                code="endpoint_already_exists",
                endpoint=endpoint.full_name,
            ) from error


def remove_endpoints(repository: Repository) -> None:
    """Remove the endpoints of a model that is being deleted; nothing is deployed at them."""
    Endpoint.objects.filter(repository=repository).delete()


def require_unfollowed(repository: Repository, alias: str) -> None:
    """Pass when no deployment follows an alias of a locked model.

    Raises:
        Conflict: one does.

    """
    following = Deployment.objects.filter(endpoint__repository=repository, alias=alias)
    found = following.select_related("endpoint__namespace").order_by("pk").first()
    if found is not None:
        raise Conflict(
            "A deployment at {endpoint} follows the alias {alias!r}; undeploy it first.",
            code="alias_deployed",
            endpoint=found.endpoint,
            alias=alias,
        )
