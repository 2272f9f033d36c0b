"""A real web server over the rows and files of the tests."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from django.db import connection

from tests.factories import UserFactory, make_model, make_token
from tests.ports import free_port

ROOT = Path(__file__).parents[3]


class WebServer:
    """One granian with one worker, started again at the same port after `kill`."""

    def __init__(self, environment, log):
        self.environment = environment
        self.log = log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        options = f"--interface asgi --loop asyncio --no-ws --host 127.0.0.1 --port {self.port}"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "granian", *options.split(), "config.asgi:application"],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                return httpx.get(f"{self.url}/api/v1/whoami", timeout=5)
            except httpx.TransportError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def worker_pid(self):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        pids = [
            pid
            for pid in children.split()
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            or b"granian" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        return int(pids[-1])

    def kill(self):
        os.killpg(self.process.pid, 9)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


@pytest.fixture(scope="session")
def running_server(django_db_setup, tmp_path_factory):
    from django.conf import settings  # noqa: PLC0415 - ready only now

    name = settings.DATABASES["default"]["NAME"]
    url = os.environ["DATABASE_URL"].replace("/modelyard?", f"/{name}?")
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "DATABASE_URL": url,
        "MODELYARD_MAX_UPLOAD_BYTES": str(256 << 20),
    }
    server = WebServer(environment, tmp_path_factory.mktemp("web") / "web.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running_server, transactional_db):
    # The server counts downloads when it likes, also while the tables are emptied after a test.
    # Should the two stand in each other's way, it is the server that gives way and tries again.
    with connection.cursor() as cursor:
        cursor.execute("SET deadlock_timeout = '60s'")
    return running_server


@pytest.fixture
def alice(transactional_db):
    return UserFactory(username="alice")


@pytest.fixture
def bob(transactional_db):
    return UserFactory(username="bob")


@pytest.fixture
def model(alice):
    return make_model(alice, "classifier")


@pytest.fixture
def client(server, alice):
    """Send requests with a token of Alice."""
    headers = {"Authorization": f"Bearer {make_token(alice)}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture
def stranger(server):
    """Send requests without a token."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of sixteen megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root, where it may mount, can make a small file system to fill")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
