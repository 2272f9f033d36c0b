"""The client as its users have it, a server of ours, and a line between them that can break."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.factories import make_token
from tests.local.waiting import wait_until
from tests.registry.stream.conftest import alice, bob, running_server, server

__all__ = ["alice", "bob", "running_server", "server"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Give the SDK in this process, and every command, a home folder of their own."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith(("XDG_", "MODELYARD_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    return folder


class Command:
    """The command line, run as its own process."""

    def __init__(self, home, url, token):
        self.environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "client/src"),
            "PYTHONWARNINGS": "error",
        }
        if url:
            self.environment["MODELYARD_URL"] = url
        if token:
            self.environment["MODELYARD_TOKEN"] = token

    def start(self, *arguments, **changes):
        return subprocess.Popen(
            [sys.executable, "-m", "modelyard", *map(str, arguments)],
            env={**self.environment, **changes},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, status=0, given="", **changes):
        """Run a command; check its exit status, and that it never fell over."""
        process = self.start(*arguments, **changes)
        out, err = process.communicate(given, timeout=120)
        assert process.returncode == status, (arguments, process.returncode, out, err)
        assert "Traceback" not in err, err
        return Said(out, err)

    def json(self, *arguments, **more):
        return json.loads(self.run(*arguments, "--format", "json", **more).out)


class Said:
    """What a command printed, and what it said beside."""

    def __init__(self, out, err):
        self.out = out
        self.err = err


@pytest.fixture
def token(alice):
    return make_token(alice)


@pytest.fixture
def command(home, server, token):
    return Command(home, server.url, token)


class Pair:
    """Two connections that belong together; closed once nothing moves on either."""

    def __init__(self, *ends):
        self.ends = ends
        self.movers = 2
        self.lock = threading.Lock()

    def shut(self):
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def leave(self):
        self.shut()
        with self.lock:
            self.movers -= 1
            if self.movers == 0:
                for end in self.ends:
                    end.close()


class Relay:
    """A line to the server that counts, and that stops or breaks where a test wants it to.

    `hold_at(bytes)` lets so many bytes through to the server, then no more until `release`;
    `break_at(bytes)` closes all connections once so many passed. `up=False` counts what comes
    back instead.
    """

    def __init__(self, port):
        self.port = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.moved = {"up": 0, "down": 0}
        self.limits = {"up": None, "down": None}
        self.breaks = {"up": None, "down": None}
        self.reached = threading.Event()
        self.may_go = threading.Event()
        self.lock = threading.Lock()
        self.pairs = []
        self.swallow = None
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                near.close()
                continue
            pair = Pair(near, far)
            with self.lock:
                self.pairs.append(pair)
            for source, target, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(
                    target=self.move, args=(pair, source, target, way), daemon=True
                ).start()

    def move(self, pair, source, target, way):
        try:
            while data := source.recv(1 << 16):
                self.pass_on(data, target, way)
        except OSError:
            # One side is gone; the other is told below.
            pass
        pair.leave()

    def pass_on(self, data, target, way):
        limit, end = self.limits[way], self.breaks[way]
        if limit is not None and self.moved[way] >= limit:
            self.reached.set()
            self.may_go.wait(60)
        if end is not None and self.moved[way] >= end:
            self.breaks[way] = None
            self.reached.set()
            self.cut()
            return
        if self.swallow is not None and self.swallow in data:
            self.swallow = None
            self.reached.set()
            self.cut()
            return
        target.sendall(data)
        with self.lock:
            self.moved[way] += len(data)

    def cut(self):
        with self.lock:
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            pair.shut()

    def wait(self, process):
        """Wait until the line stopped or broke; a process that ended before says why."""
        wait_until(lambda: self.reached.is_set() or process.poll() is not None, "the line", 120)
        assert self.reached.is_set(), (process.returncode, process.communicate())

    def hold_at(self, count, way="up"):
        self.limits[way] = self.moved[way] + count

    def break_at(self, count, way="up"):
        self.breaks[way] = self.moved[way] + count

    def release(self):
        self.limits = {"up": None, "down": None}
        self.may_go.set()
        self.cut()
        self.may_go = threading.Event()
        self.reached = threading.Event()

    def count(self):
        """Give what moved since the last time."""
        moved, self.moved = self.moved, {"up": 0, "down": 0}
        return moved

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.release()


@pytest.fixture
def relay(server):
    line = Relay(server.port)
    yield line
    line.close()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


class Impostor:
    """A server of somebody else's: answers what a test tells it to."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        impostor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                impostor.asked.append((self.command, self.path, dict(self.headers), body))
                found = impostor.answers.get((self.command, self.path.partition("?")[0]))
                status, headers, content = (
                    found(self)
                    if callable(found)
                    else found
                    or (
                        404,
                        {"content-type": "application/problem+json"},
                        json.dumps({"detail": "There is no such thing.", "code": "not_found"}),
                    )
                )
                content = content.encode() if isinstance(content, str) else content
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

            def log_message(self, *_):
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        poll = {"poll_interval": 0.01}
        threading.Thread(target=self.server.serve_forever, kwargs=poll, daemon=True).start()

    def say(self, path, content, *, method="GET", status=200, **headers):
        """Answer with JSON, bytes as they are, or with what a function gives."""
        if callable(content):
            self.answers[method, f"/api/v1{path}"] = content
            return
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("content-type", "application/json")
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[method, f"/api/v1{path}"] = (status, given, content)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def impostor():
    server = Impostor()
    yield server
    server.close()


@pytest.fixture
def lost(home, impostor):
    """Give the command line, sent to the impostor."""
    return Command(home, impostor.url, "my_secret")
