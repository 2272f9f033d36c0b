"""What a failing database means for whoever asked."""

from django.conf import settings
from django.db import InterfaceError, OperationalError
from psycopg.errors import QueryCanceled

from registry.errors import Unavailable


def refusal_of(error: BaseException | None) -> Unavailable | None:
    """Give the refusal for an error of the database that passes, or None for any other error."""
    if not isinstance(error, OperationalError | InterfaceError):
        return None
    if isinstance(error.__cause__, QueryCanceled):
        return Unavailable(
            "This takes the database longer than {seconds} seconds and was stopped; ask for less.",
            code="too_slow",
            seconds=settings.STATEMENT_SECONDS,
        )
    return Unavailable("The database cannot be reached; try again.", code="database_unavailable")
