"""Files that arrive many at a time."""

import threading

import pytest
from django.db import connection

from registry.models import Upload
from registry.services.uploads import record_uploads
from registry.storage import default_storage
from tests.factories import UserFactory, actor_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def record():
    """Record files of one person, in a thread of its own; what it raised comes back with it."""
    user = UserFactory()
    failed = []

    def record(files):
        try:
            record_uploads(actor=actor_of(user), files=files)
        except Exception as error:  # noqa: BLE001 - for the test to see
            failed.append(error)
        finally:
            connection.close()

    def start(files):
        thread = threading.Thread(target=record, args=(files,))
        thread.start()
        return thread

    start.failed = failed
    return start


def stored(count):
    return {f"{n}.txt": default_storage().put([b"file %d" % n]) for n in range(count)}


def test_forms_with_the_same_files_in_another_order_never_wait_for_each_other(record):
    files = stored(150)
    backwards = dict(reversed(files.items()))
    threads = [record(files), record(backwards), record(files), record(backwards)]
    for thread in threads:
        thread.join()
    assert record.failed == []
    assert Upload.objects.count() == 600


def test_a_form_of_very_many_files_holds_few_locks_at_a_time(record):
    """A database has some thousands of locks for everybody."""
    thread = record(stored(400))
    most = 0
    while thread.is_alive():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
                " WHERE locktype = 'advisory' AND datname = current_database()"
            )
            most = max(most, cursor.fetchone()[0])
    assert record.failed == []
    assert 0 < most <= 110


def test_uploads_come_back_in_the_order_of_their_files():
    files = stored(5)
    rows = record_uploads(actor=actor_of(UserFactory()), files=files)
    assert [row.filename for row in rows] == list(files)
    assert [row.blob.sha256 for row in rows] == [one.sha256 for one in files.values()]
