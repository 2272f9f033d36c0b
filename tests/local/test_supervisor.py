"""`manage.py up` and `down`: refusals in one line, restarts, external servers, an orderly end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import psycopg
import pytest

from config.local import for_tests
from config.local.addresses import Addresses
from config.local.servers import broker_problem, make_database
from tests.local.waiting import has_ended, wait_until
from tests.ports import free_port

# These start whole installations.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def environment(home, port, **more):
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MODELYARD_", "DATABASE_", "REDIS_", "DJANGO_", "PYTEST_"))
    }
    return {
        **ours,
        "MODELYARD_HOME": str(home),
        "MODELYARD_PORT": str(port),
        "MODELYARD_INFER_PORT": str(free_port()),
        "MODELYARD_GRPC_PORT": str(free_port()),
        "MODELYARD_SAMPLES": "0",
        "MODELYARD_ENCODER": "0",
        **more,
    }


def manage(verb, home, port, **more):
    return subprocess.run(
        [sys.executable, ROOT / "manage.py", verb],
        env=environment(home, port, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def port():
    return free_port()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MODELYARD_PORT", "eighty", "is not a whole number"),
        ("MODELYARD_PORT", "70000", "is not between 1 and 65535"),
        ("MODELYARD_SAMPLES", "maybe", "is neither 1 nor 0"),
        ("MODELYARD_STORAGE_URL", "ftp://nowhere", "must look like"),
        ("MODELYARD_SECRET_KEY", "short", "is shorter than 32 characters"),
        ("MODELYARD_SECRET_KEY_FALLBACKS", "short", "holds a key that is shorter than 32"),
        ("MODELYARD_SECRET_KEY_FILE", "/no/such/file", "cannot read"),
        ("MODELYARD_SIGNING_KEY", "no key", "cannot be used as a signing key"),
        ("DATABASE_URL", "sqlite:///x", "must look like postgresql://"),
        ("REDIS_URL", "amqp://x", "must look like redis://"),
        ("MODELYARD_BIND", "no.such.address.invalid", "cannot listen on"),
    ],
)
def test_a_bad_value_stops_the_start_with_one_line_that_names_it(
    tmp_path, port, name, value, words
):
    ended = manage("up", tmp_path / "home", port, **{name: value})
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"modelyard: {name}: ")
    assert words in ended.stderr


@pytest.mark.parametrize(
    "variable", ["MODELYARD_PORT", "MODELYARD_INFER_PORT", "MODELYARD_GRPC_PORT"]
)
def test_a_port_in_use_is_named(tmp_path, port, variable):
    taken = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        other.listen()
        ended = manage("up", tmp_path / "home", port, **{variable: str(taken)})
    assert ended.returncode == 1
    assert ended.stderr == (
        f"modelyard: {variable}: cannot listen on 127.0.0.1:{taken}: Address already in use\n"
    )


def test_an_external_database_that_does_not_answer_is_named(tmp_path, port, monkeypatch):
    url = f"postgresql://modelyard@127.0.0.1:{port}/modelyard"
    ended = manage("up", tmp_path / "home", port, DATABASE_URL=url, REDIS_URL="redis://127.0.0.1:1")
    assert ended.returncode == 1
    assert "modelyard: DATABASE_URL: " in ended.stderr
    assert not (tmp_path / "home" / "postgres").exists()
    assert not (tmp_path / "home" / "valkey").exists()


def test_down_where_nothing_runs_says_so(tmp_path, port):
    ended = manage("down", tmp_path / "home", port)
    assert ended.returncode == 0
    assert "Nothing runs in" in ended.stdout


class Running:
    """An `up` in the background, and what it has said."""

    def __init__(self, home, port, **more):
        self.home, self.port = home, port
        self.output = home.parent / "up.log"
        self.started_at = time.monotonic()
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "manage.py", "up"],
                env=environment(home, port, **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def said(self):
        return self.output.read_text()

    def healthy(self):
        assert self.process.poll() is None, self.said()
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=3) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ready(self):
        wait_until(self.healthy, "a healthy answer", seconds=90)
        wait_until(lambda: "is ready" in self.said() or self.process.poll() is not None, "a word")
        return time.monotonic() - self.started_at

    def children(self):
        """Map the names of the children to their process ids, by the logs they write."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == self.process.pid:
                    found[(folder / "fd" / "1").readlink().stem] = int(folder.name)
            except (OSError, ValueError):
                continue
        return found

    def end(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(90)


@pytest.fixture
def run_up(tmp_path, port):
    made = []

    def run(**more):
        made.append(Running(tmp_path / "home", port, **more))
        return made[-1]

    yield run
    for running in made:
        if running.process.poll() is None:
            running.end()


@pytest.mark.e2e
@pytest.mark.slow
def test_up_from_nothing_to_a_second_start(run_up, port):
    running = run_up(MODELYARD_ADMIN_TOKEN="a-token-of-our-choice")
    running.ready()
    home = running.home
    assert f"http://127.0.0.1:{port}/" in running.said()
    assert "admin-password" in running.said()
    password = (home / "admin-password").read_text().strip()
    assert password not in running.said()
    for name in ("admin-password", "postgres-password", "valkey-password", "secret-key"):
        assert (home / name).stat().st_mode & 0o777 == 0o600

    second = manage("up", home, port)
    assert second.returncode == 1
    assert f"modelyard: already running in {home} (process {running.process.pid})" in second.stderr

    children = running.children()
    assert {"postgres", "valkey", "web", "worker", "beat", "serving"} <= set(children)
    for name in ("web", "valkey"):
        os.kill(children[name], signal.SIGKILL)
    wait_until(lambda: running.children().get("web", children["web"]) != children["web"], "web")
    wait_until(running.healthy, "a healthy answer")
    assert "web ended with status -9; starting it again" in running.said()
    wait_until(lambda: not broker_problem(Addresses(home).redis_url), "the broker")

    children = running.children()
    assert running.end() == 0
    assert all(has_ended(number) for number in children.values())

    again = run_up()
    assert again.ready() < 30  # and 10 on a machine that does nothing else
    assert (home / "admin-password").read_text().strip() == password
    stopped = manage("down", home, port)
    assert stopped.returncode == 0, stopped.stderr
    assert again.process.wait(5) == 0


@pytest.mark.e2e
@pytest.mark.slow
def test_servers_that_run_elsewhere_are_used_instead_of_embedded_ones(run_up, external_database):
    running = run_up(DATABASE_URL=external_database, REDIS_URL=os.environ["REDIS_URL"])
    running.ready()
    assert {"web", "worker", "beat", "serving"} == set(running.children())
    assert not (running.home / "postgres").exists()
    assert not (running.home / "valkey").exists()
    with psycopg.connect(external_database) as database:
        row = database.execute("SELECT username FROM registry_user").fetchone()
    assert row == ("admin",)
    assert running.end() == 0


@pytest.fixture
def external_database():
    """Give the URL of an empty database on the server of the tests."""
    servers = Addresses(for_tests.FOLDER)
    name = f"external_{os.getpid()}"
    make_database(servers, name)
    yield servers.database(name)
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.e2e
@pytest.mark.slow
def test_a_bad_admin_token_stops_the_start(tmp_path, port):
    ended = manage("up", tmp_path / "home", port, MODELYARD_ADMIN_TOKEN="short")
    assert ended.returncode == 1
    assert "modelyard: MODELYARD_ADMIN_TOKEN: " in ended.stderr
    assert ended.stderr.count("\n") == 1
