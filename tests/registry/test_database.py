"""Connections of the pool: used without asking, replaced when the server closed them."""

import os
import tempfile

import psycopg
import pytest
from django.db import close_old_connections, connection

from registry.models import User

pytestmark = pytest.mark.django_db(transaction=True)


def backend():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def terminate(pids):
    parameters = connection.get_connection_params()
    with psycopg.connect(
        **{name: parameters[name] for name in ("dbname", "user", "password", "host")},
        autocommit=True,
    ) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) AS pid", [pids]
        )


def test_connections_that_the_server_closed_are_replaced():
    before = backend()
    close_old_connections()
    terminate([before])
    assert User.objects.count() == 0
    assert backend() != before


def take(line=None):
    """Take a connection out of the pool anew, or the one with this line."""
    for _ in range(100):
        connection.close()
        connection.ensure_connection()
        if line in {None, connection.connection.pgconn}:
            return connection.connection.pgconn
    raise AssertionError("the pool has another connection each time")


def test_taking_a_connection_says_nothing_to_the_server():
    line = take()
    with tempfile.TemporaryFile() as trace:
        line.trace(trace.fileno())
        try:
            take(line)
            silent = os.fstat(trace.fileno()).st_size
            User.objects.count()
        finally:
            line.untrace()
        spoken = os.fstat(trace.fileno()).st_size
    assert silent == 0
    assert spoken > 0
