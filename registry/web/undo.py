"""The way back that a page offers right after a deletion."""

from typing import Any

from django.urls import reverse

from registry.models import Repository, Version


def way_back(thing: Repository | Version) -> dict[str, Any]:
    """Say what the button Undo sends after a deletion."""
    repository = thing if isinstance(thing, Repository) else thing.repository
    kind = "repository" if isinstance(thing, Repository) else "version"
    return {
        "action": reverse("web:restore", args=[repository.namespace.slug]),
        "fields": {"what": f"{kind}:{thing.pk}"},
    }
