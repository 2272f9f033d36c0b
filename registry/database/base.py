"""The engine that the settings name; Django finds `DatabaseWrapper` here."""

import select
from typing import Any

from django.db.backends.postgresql import base
from psycopg import Connection, Error
from psycopg_pool import ConnectionPool


class DatabaseWrapper(base.DatabaseWrapper):
    """A connection of Django's."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Connection:
        """Take a connection out of the pool, but none that the server has closed meanwhile.

        To ask the server each time (`CONN_HEALTH_CHECKS`) costs every request a round trip. But
        a server says nothing unasked, except when it hangs up.
        """
        while True:
            taken: Connection = super().get_new_connection(conn_params)
            if not _has_something_to_say(taken):
                return taken
            try:
                ConnectionPool.check_connection(taken)
            except Error:
                self.pool.putconn(taken)
            else:
                return taken

    def planning_cursor(self: Any) -> Any:
        """Open a cursor whose statements the server plans once; those of Django's are not kept."""
        self.ensure_connection()
        with self.wrap_database_errors:
            cursor = base.ServerBindingCursor(self.connection)  # type: ignore[call-arg]
            return self._prepare_cursor(cursor)


def _has_something_to_say(connection: Connection) -> bool:
    watch = select.poll()
    watch.register(connection.fileno(), select.POLLIN)
    return bool(watch.poll(0))
