"""Searches that people keep, each for themselves."""

from typing import Any
from urllib.parse import parse_qsl, urlencode

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from registry.errors import AlreadyExists, Denied, NotFound, QuotaExceeded
from registry.models import Actor, Kind, SavedSearch
from registry.permissions import require_scope
from registry.search import SearchQuery, check_query
from registry.services.texts import check_text, invalid_field

MAX_SAVED = 100
# What of an address is part of a search; a place in its pages is not.
PARAMETERS = ("q", "sort", "label", "task", "library", "license", "format", "owner")
_LONGEST = 2000
_MOST_FIELDS = 50


def kept_by(actor: Actor) -> QuerySet[SavedSearch]:
    """Give the searches that a person keeps; none to a token that is limited to one place."""
    if actor.is_anonymous or actor.is_limited:
        return SavedSearch.objects.none()
    return SavedSearch.objects.filter(user_id=actor.person_id)


def save_search(*, actor: Actor, kind: str, name: object, query: str) -> SavedSearch:
    """Keep a search under a name; `query` is what stands behind `?` in the address of its page.

    Raises:
        Invalid: the name is empty, or the query is none that a page understands.
        Denied: the token is limited to one place; a search looks everywhere.
        AlreadyExists: another search of theirs has the name.
        QuotaExceeded: they keep as many as one may.

    """
    require_scope(actor, "write")
    if actor.is_limited:
        raise Denied("A token that is limited to one place cannot keep searches.")
    if kind not in Kind.values:
        raise invalid_field("kind", "bad_choice", "Search for a model or a dataset.")
    title = check_text("name", name, max_length=100)
    if not title:
        raise invalid_field("name", "required", "Give the search a name.")
    plain = _check_query(query)
    if kept_by(actor).count() >= MAX_SAVED:
        raise QuotaExceeded(
            "You keep {limit} searches, which is as many as one may; delete one first.",
            limit=MAX_SAVED,
        )
    try:
        with transaction.atomic():
            return SavedSearch.objects.create(
                user_id=actor.person_id, kind=kind, name=title, query=plain
            )
    except IntegrityError as error:
        raise AlreadyExists(
            "You keep a search named {name} already.", code="name_taken", name=title
        ) from error


def delete_search(*, actor: Actor, search_id: int) -> None:
    """Forget one of the actor's searches.

    Raises:
        NotFound: they keep none with this id.

    """
    require_scope(actor, "write")
    deleted, _ = kept_by(actor).filter(pk=search_id).delete()
    if not deleted:
        raise NotFound("You keep no search {search}.", code="search_not_found", search=search_id)


def _check_query(query: str) -> str:
    if len(query) > _LONGEST:
        raise invalid_field(
            "query", "too_long", "A search has at most {limit} characters.", limit=_LONGEST
        )
    check_text("query", query, max_length=_LONGEST)
    try:
        given: dict[str, Any] = dict(
            parse_qsl(query.removeprefix("?"), max_num_fields=_MOST_FIELDS)
        )
    except ValueError as error:
        raise invalid_field(
            "query", "too_long", "A search has at most {limit} fields.", limit=_MOST_FIELDS
        ) from error
    if unknown := sorted(given.keys() - PARAMETERS):
        raise invalid_field(
            "query",
            "unknown",
            "{name} is no part of a search; there are {choices}.",
            name=unknown[0],
            choices=", ".join(PARAMETERS),
        )
    if not given:
        raise invalid_field("query", "required", "Search for something before you keep it.")
    check_query(SearchQuery(**given))
    return urlencode({name: given[name] for name in PARAMETERS if name in given})
