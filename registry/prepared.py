"""Questions that many requests ask: Django writes their SQL once, PostgreSQL plans it once."""

from collections.abc import Sequence
from datetime import date
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import DEFAULT_DB_ALIAS, connection
from django.db.models import QuerySet, Value


class Parameter(Value):
    """A place in a question, filled by name each time that it is asked."""

    @property
    def name(self) -> str:
        return str(self.value)

    def as_sql(self, compiler: Any, connection: Any) -> Any:  # noqa: ARG002 - Django's signature
        return "%s", [self]


class Question:
    """The `values()` of a query set that holds `Parameter`s, kept as SQL.

    To find one row among six tables takes PostgreSQL a tenth of a millisecond; to plan that, ten
    times as long, and so does Django to write the SQL. Keep a question where it is asked again:
    what does not stand in it as a `Parameter` stays as it was when it was put.
    """

    def __init__(self, rows: QuerySet[Any, Any]) -> None:
        compiler = rows.query.get_compiler(DEFAULT_DB_ALIAS)
        self._names = list(rows.query.selected or ())
        self._sql = ""
        try:
            self._sql, self._parameters = compiler.as_sql()
        except EmptyResultSet:
            # Nothing can match, whatever is asked.
            return
        if any(isinstance(one, date) for one in self._parameters):
            raise TypeError("A moment in a kept question grows old; let the database say Now().")
        converters = compiler.get_converters([column for column, *_ in compiler.select or ()])
        self._converters = [(self._names[at], *how) for at, how in converters.items()]

    def first(self, **given: Any) -> dict[str, Any] | None:
        """Give the first row of the answer."""
        return next(iter(self.all(**given)), None)

    def all(self, **given: Any) -> list[dict[str, Any]]:
        """Give the rows of the answer, as the query set would."""
        if not self._sql:
            return []
        parameters = [
            given[one.name] if isinstance(one, Parameter) else one for one in self._parameters
        ]
        # Ours, in registry.database.
        with connection.planning_cursor() as cursor:  # type: ignore[attr-defined]
            cursor.execute(self._sql, parameters)
            return [self._row(found) for found in cursor.fetchall()]

    def _row(self, found: Sequence[Any]) -> dict[str, Any]:
        row = dict(zip(self._names, found, strict=True))
        for name, converters, column in self._converters:
            for convert in converters:
                row[name] = convert(row[name], column, connection)
        return row
