"""The database of a test process and the browser; the servers come with config.settings_test."""

import asyncio
import functools
import os
import shutil
import signal
import subprocess
import sys

import pytest
from django.db import connection
from django.test import TransactionTestCase

from tests.slow import slow_tests

# Playwright leaves an event loop in the thread of the tests, which then use the database as before.
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
MADE_BY_MIGRATING = {"django_content_type", "auth_permission"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def django_db_modify_db_settings_parallel_suffix():
    """Leave the database's name alone: config.settings_test names one for each process."""


def _empty_the_tables(self):
    """Delete what a test wrote: 13 ms, where `flush` takes 160 to truncate and to make anew.

    As truncating does, wait for what a server is still writing. Triggers rest meanwhile: those of
    foreign keys have nothing to keep, and the audit log refuses to be shortened.
    """
    names = set(connection.introspection.django_table_names(only_existing=True))
    tables = sorted(map(connection.ops.quote_name, names - MADE_BY_MIGRATING))
    deletions = "; ".join(f"DELETE FROM {table}" for table in tables)
    with connection.cursor() as cursor:
        cursor.execute(
            "BEGIN; SET LOCAL session_replication_role = replica;"
            f"LOCK TABLE {', '.join(tables)} IN EXCLUSIVE MODE; {deletions}; COMMIT"
        )


TransactionTestCase._fixture_teardown = _empty_the_tables


@functools.cache
def missing_for_browsers():
    """Name the packages without which no browser test can start."""
    missing = [] if CHROMIUM else ["chromium"]
    driver = [sys.executable, "-m", "playwright", "--version"]
    if subprocess.run(driver, capture_output=True, check=False).returncode != 0:
        missing.append("libatomic1")
    return " ".join(missing)


def pytest_configure():
    # What a shell puts into the background ignores Ctrl-C, and so do its children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave what takes long, or asks a web server in a process of its own, to the whole run."""
    slow = slow_tests()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if test in slow or "running_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if "playwright" in getattr(item, "fixturenames", ()) and (missing := missing_for_browsers()):
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse(f"no browser on this machine: apt-get install {missing} fonts-noto-cjk")


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    arguments = [
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    return {**browser_type_launch_args, "executable_path": CHROMIUM, "args": arguments}


@pytest.fixture(autouse=True)
def _no_loop_of_a_browser(request):
    """Playwright leaves its event loop marked as running in the thread of the tests."""
    if "playwright" in request.fixturenames:
        yield
        return
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    yield
    asyncio._set_running_loop(loop)


@pytest.fixture
def process_environment(transactional_db, settings):
    """Environment of a server or worker process that is to share this test's rows and files."""
    name = settings.DATABASES["default"]["NAME"]
    url = os.environ["DATABASE_URL"].replace("/modelyard?", f"/{name}?")
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings", "DATABASE_URL": url}
