"""Those who serve the same models: this project, three others, and a bare loop, by turns."""

import base64
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks.compressed.environments import make_environment, site_packages
from benchmarks.installation import Installation, free_port, running
from benchmarks.served.asking import (
    BINARY,
    FORMS,
    GRPC,
    JSON,
    http_request,
    plain_body,
    protocol_body,
    protocol_message,
)
from benchmarks.served.caller import tree_of
from benchmarks.served.graphs import FOLDER, ROOT, Graph

PEERS = Path(__file__).resolve().parent / "peers"
START_SECONDS = 120.0
OURS, BARE = "Modelyard", "bare ONNX Runtime"


class Contender:
    """One that takes its turn; `root` is the process that it and its children run under."""

    name: str
    root = 0

    def pause(self) -> None:
        """Keep a server that only waits from taking anything from the others."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if not self.root:
            return
        for pid in tree_of(self.root):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Server(Contender, ABC):
    """One that serves; `forms` are those it can be called in."""

    forms: Sequence[str] = FORMS
    token = ""
    port = 0
    grpc_port = 0

    @abstractmethod
    def http(self, graph: Graph, form: str) -> bytes:
        """Write a whole request."""

    def grpc(self, graph: Graph) -> bytes:
        return protocol_message(self.model(graph), graph.row)

    def model(self, graph: Graph) -> str:
        return graph.name

    def plan(self, graph: Graph, form: str, clients: int, seconds: float) -> dict[str, Any]:
        request = self.grpc(graph) if form == GRPC else self.http(graph, form)
        return {
            "port": self.grpc_port if form == GRPC else self.port,
            "request": base64.b64encode(request).decode(),
            "clients": clients,
            "seconds": seconds,
            "root": self.root,
            "grpc": form == GRPC,
            "token": self.token,
        }


class Ours(Server):
    """A whole installation; the processes of its inference server are what is counted."""

    name = OURS

    def __init__(self, place: Installation) -> None:
        self.place = place
        self.port, self.grpc_port, self.token = place.infer_port, place.grpc_port, place.token
        self.root = _serving_pid(place.pid)

    def http(self, graph: Graph, form: str) -> bytes:
        body, json_bytes = protocol_body(graph.row, form)
        path = f"/v2/models/{self.model(graph)}/infer"
        return http_request(path, body, json_bytes=json_bytes, token=self.token)

    def model(self, graph: Graph) -> str:
        return f"admin/{graph.name}"

    def pause(self) -> None:
        """Go on: its database and its workers hear from it."""

    def resume(self) -> None:
        """See above."""

    def deploy(self, graphs: Mapping[str, Graph]) -> None:
        with self.client() as client:
            for name, one in graphs.items():
                register(client, name, one.file.read_bytes())
                deployment = {"model": f"admin/{name}", "version": "1"}
                client.post("/api/v1/deployments", json=deployment).raise_for_status()
        for name in graphs:
            self.wait_for(name)

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.place.url, headers=headers, timeout=120)

    def wait_for(self, name: str, version: str = "") -> None:
        """Wait until a model answers."""
        suffix = f"/versions/{version}" if version else ""
        address = f"{self.place.infer_url}/v2/models/admin/{name}{suffix}/ready"
        headers = {"Authorization": f"Bearer {self.token}"}
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with suppress(httpx.TransportError):
                if httpx.get(address, headers=headers).status_code == 200:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"{name} is not ready")


class Peer(Server):
    """A server of others in a process that it is given."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, grpc_port: int) -> None:
        self.process = process
        self.root, self.port, self.grpc_port = process.pid, port, grpc_port

    def http(self, graph: Graph, form: str) -> bytes:
        body, json_bytes = protocol_body(graph.row, form)
        return http_request(f"/v2/models/{graph.name}/infer", body, json_bytes=json_bytes)


class MlServer(Peer):
    """MLServer with a custom runtime: its HTTP takes JSON alone, its gRPC raw tensors too."""

    name = "MLServer"
    forms = (JSON, GRPC)
    parallel_workers = 1


class MlServerAlone(MlServer):
    """The same without the worker process that it has by default: models run in the server."""

    name = "MLServer, one process"
    parallel_workers = 0


class LitServe(Peer):
    """LitServe speaks JSON alone: bytes travel as base64 in it."""

    name = "LitServe"
    forms = (JSON, BINARY)

    def http(self, graph: Graph, form: str) -> bytes:
        body = plain_body(graph.row, form)
        return http_request(f"/{graph.name}", body, json_bytes=None)


class TritonServer(Peer):
    """The server of Triton's wheel; it computes in Python, for the wheel has no other backend."""

    name = "Triton"

    def pause(self) -> None:
        """Go on: its processes take each other for dead where one stands still."""

    def resume(self) -> None:
        """See above."""


class Bare(Contender):
    """No server at all: one row after the other through ONNX Runtime, in one thread."""

    name = BARE

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def run(self, graph: Graph, seconds: float) -> dict[str, Any]:
        return ask(self.process, {"model": graph.name, "seconds": seconds})


def ask(process: subprocess.Popen[bytes], plan: Mapping[str, Any]) -> dict[str, Any]:
    """Say a line of JSON to a helper and read its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(plan).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the helper has ended")
    return dict(json.loads(line))


def register(client: httpx.Client, name: str, content: bytes) -> None:
    """Make a version of a model of the administrator's, and the model where it is missing."""
    if client.get(f"/api/v1/models/admin/{name}").status_code == 404:
        new = {"namespace": "admin", "name": name}
        client.post("/api/v1/models", json=new).raise_for_status()
    client.post(
        f"/api/v1/models/admin/{name}/versions", files={"file": ("model.onnx", content)}
    ).raise_for_status()


@contextmanager
def all_contenders(
    graphs: Mapping[str, Graph], wanted: Sequence[str]
) -> Iterator[tuple[list[Contender], dict[str, str]]]:
    """Start all that can be had; give them, and why others are missing."""
    absent: dict[str, str] = {}
    found: list[Contender] = []
    with ExitStack() as stack:
        ours = Ours(stack.enter_context(running()))
        ours.deploy(graphs)
        found.append(ours)
        for kind, start in (
            (MlServer, partial(_start_mlserver, MlServer.parallel_workers)),
            (MlServerAlone, partial(_start_mlserver, MlServerAlone.parallel_workers)),
            (LitServe, _start_litserve),
            (TritonServer, _start_triton),
        ):
            if kind.name not in wanted:
                continue
            port, grpc_port = free_port(), free_port()
            try:
                command, environment, ready = start(graphs, port, grpc_port)
            except LookupError as error:
                absent[kind.name] = str(error)
                continue
            process = stack.enter_context(_process(kind.name, command, environment))
            peer = kind(process, port, grpc_port)
            if reason := _wait(process, f"http://127.0.0.1:{port}{ready}"):
                absent[kind.name] = reason
                continue
            found.append(peer)
            peer.pause()
            stack.callback(peer.resume)
        process = stack.enter_context(helper("benchmarks.served.bare"))
        assert process.stdout is not None
        process.stdout.readline()
        found.append(Bare(process))
        yield found, absent


@contextmanager
def helper(module: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module of ours that is told by lines."""
    process = subprocess.Popen(
        [sys.executable, "-m", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


@contextmanager
def _process(
    name: str, command: Sequence[str | Path], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    with (FOLDER / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=FOLDER,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        pids = tree_of(process.pid)
        for number in (signal.SIGCONT, signal.SIGTERM):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(10)


def _wait(process: subprocess.Popen[bytes], address: str) -> str:
    """Wait until a server answers; say what is wrong where it does not."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            if httpx.get(address, timeout=5).status_code == 200:
                return ""
        if process.poll() is not None:
            return f"It ended with status {process.returncode}."
        time.sleep(0.1)
    return f"It was not ready after {START_SECONDS:g} s."


Started = tuple[list[str | Path], dict[str, str], str]


def _environment(name: str, *requirements: str) -> Path:
    python = make_environment(name, *requirements)
    if python is None:
        raise LookupError(f"{requirements[0]} cannot be installed here.")
    return python


def _start_mlserver(
    workers: int, graphs: Mapping[str, Graph], port: int, grpc_port: int
) -> Started:
    python = _environment("mlserver", "mlserver==1.7.1", "uvloop==0.21.0")
    folder = FOLDER / f"mlserver-{workers}"
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_endpoint": None,
        "parallel_workers": workers,
        "debug": False,
    }
    for name, one in graphs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        said = {
            "name": name,
            "implementation": "mlserver_runtime.Onnx",
            "parameters": {"uri": str(one.file)},
        }
        (folder / name / "model-settings.json").write_text(json.dumps(said))
    (folder / "settings.json").write_text(json.dumps(settings))
    command = [python.parent / "mlserver", "start", folder]
    return command, {"PYTHONPATH": str(PEERS)}, "/v2/health/ready"


def _start_litserve(graphs: Mapping[str, Graph], port: int, _: int) -> Started:
    python = _environment("litserve", "litserve[zmq]==0.2.19", "pyzmq")
    files = [one.file for one in graphs.values()]
    return [python, PEERS / "litserve_server.py", str(port), *files], {}, "/health"


def _start_triton(graphs: Mapping[str, Graph], port: int, grpc_port: int) -> Started:
    python = _environment("triton", "nvidia-pytriton==0.7.0")
    files = [one.file for one in graphs.values()]
    command = [python, PEERS / "triton_server.py", str(port), str(grpc_port), *files]
    # The server in the wheel is linked with libraries of the wheel, and with Python's own.
    libraries = [site_packages(python) / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
    return command, environment, f"/v2/models/{[*graphs][-1]}/ready"


def _serving_pid(supervisor: int) -> int:
    """Find the inference server, which is started after the pages."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        for pid in tree_of(supervisor):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", b"workers.serving"]:
                    return pid
        time.sleep(0.1)
    raise TimeoutError("the inference server does not run")
