"""One server, one world and one sandbox for all uploads: hundreds of cases, no table emptied."""

import pytest
from django.core.management import call_command
from django.db import connection

from tests.attacks.doors import Door
from tests.factories import UserFactory, make_model
from tests.registry.stream.conftest import running_server
from workers.screening import Screener

__all__ = ["_django_db_helper", "door", "running_server", "screener"]


@pytest.fixture
def _django_db_helper():
    """Leave the tables alone between two cases; `door` empties them when all are done."""


@pytest.fixture(scope="module")
def door(running_server, django_db_blocker):
    """Give Alice's and Bob's tools; the rows that they make stay until the module is over."""
    with django_db_blocker.unblock():
        with connection.cursor() as cursor:
            # As in the tests of the streams: the server counts when it likes, and gives way.
            cursor.execute("SET deadlock_timeout = '60s'")
        alice, bob = UserFactory(username="alice"), UserFactory(username="bob")
        make_model(alice, "classifier")
        one = Door(running_server, alice, bob)
        yield one
        one.close()
        call_command("flush", verbosity=0, interactive=False, inhibit_post_migrate=True)
        connection.close()


@pytest.fixture(scope="session")
def screener():
    """Give the sandbox as a worker has it; its server starts with the first file that needs it."""
    one = Screener()
    yield one
    one._inspector.stop()
