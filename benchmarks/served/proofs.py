"""What must not happen under load: an error while an alias moves, an answer of somebody else."""

import json
import resource
import socket
import threading
import time
from typing import Any

import numpy as np

from benchmarks.served.asking import http_request
from benchmarks.served.contenders import Ours, register
from benchmarks.served.graphs import WIDTH, mlp_bytes

CLIENTS, MOVES, PAUSE_SECONDS = 8, 10, 0.3
TOGETHER, MOST_ROWS = 960, 24
_TOLERANCE = 1e-4


class _Swapped:
    """Callers of an alias, what they have got, and what they should have."""

    name = "swapped"

    def __init__(self, ours: Ours) -> None:
        self.ours = ours
        self.row = np.random.default_rng(3).standard_normal((1, WIDTH)).astype(np.float32)
        self.expected: dict[str, Any] = {}
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.counts = {"requests": 0, "errors": 0, "wrong": 0}
        # The version that answered last; who was asked before a move may answer after it.
        self.last = ""

    def call(self) -> None:
        request = _mlp_request(self.ours, self.name, self.row, "")
        with socket.create_connection(("127.0.0.1", self.ours.port), timeout=30) as line:
            while not self.stopping.is_set():
                line.sendall(request)
                status, said = _read(line)
                with self.lock:
                    self.counts["requests"] += 1
                    self.counts["errors"] += status != 200
                    if status == 200:
                        self.last = said["model_version"]
                        self.counts["wrong"] += not _close(said, self.expected[self.last])

    def wait_for(self, version: str) -> bool:
        end = time.monotonic() + 30
        while self.last != version and time.monotonic() < end:
            time.sleep(0.01)
        return self.last == version


def swap_alias(ours: Ours) -> dict[str, Any]:
    """Move an alias to and fro while clients call by it."""
    swapped = _Swapped(ours)
    with ours.client() as client:
        for version, seed in (("1", 1), ("2", 2)):
            content, first, second = mlp_bytes(seed)
            register(client, swapped.name, content)
            swapped.expected[version] = np.maximum(swapped.row @ first, 0) @ second
        alias = f"/api/v1/models/admin/{swapped.name}/aliases/live"
        client.put(alias, json={"version": 1}).raise_for_status()
        deployment = {"model": f"admin/{swapped.name}", "version": "@live"}
        client.post("/api/v1/deployments", json=deployment).raise_for_status()
        ours.wait_for(swapped.name)
        threads = [threading.Thread(target=swapped.call) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        seen = 0
        for move in range(MOVES):
            version = 2 - move % 2
            client.put(alias, json={"version": version}).raise_for_status()
            seen += swapped.wait_for(str(version))
            time.sleep(PAUSE_SECONDS)
        swapped.stopping.set()
        for thread in threads:
            thread.join()
    return {**swapped.counts, "moves": MOVES, "moves_seen": seen}


def mix_sizes(ours: Ours) -> dict[str, Any]:
    """Send requests of different sizes all at once; each must get its own answer."""
    name = "mixed"
    content, first, second = mlp_bytes(4)
    with ours.client() as client:
        register(client, name, content)
        options = {"queue_size": 2 * TOGETHER}
        deployment = {"model": f"admin/{name}", "version": "1", "options": options}
        client.post("/api/v1/deployments", json=deployment).raise_for_status()
    ours.wait_for(name)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * TOGETHER), most))
    drawn = np.random.default_rng(5)
    rows = [
        drawn.standard_normal((1 + at % MOST_ROWS, WIDTH)).astype(np.float32)
        for at in range(TOGETHER)
    ]
    lines = [socket.create_connection(("127.0.0.1", ours.port), timeout=60) for _ in rows]
    began = time.perf_counter()
    for at, (line, row) in enumerate(zip(lines, rows, strict=True)):
        line.sendall(_mlp_request(ours, name, row, str(at)))
    errors = mixed = 0
    largest = 0
    for at, (line, row) in enumerate(zip(lines, rows, strict=True)):
        status, said = _read(line)
        line.close()
        errors += status != 200
        if status == 200:
            largest = max(largest, said["parameters"]["modelyard_batch_size"])
            mine = np.maximum(row @ first, 0) @ second
            mixed += said["id"] != str(at) or not _close(said, mine)
    spent = time.perf_counter() - began
    return {
        "requests": TOGETHER,
        "errors": errors,
        "mixed_up": mixed,
        "largest_batch": largest,
        "seconds": spent,
    }


def _mlp_request(ours: Ours, name: str, row: Any, number: str) -> bytes:
    tensor = {"name": "x", "shape": row.shape, "datatype": "FP32", "data": row.ravel().tolist()}
    body = json.dumps({"id": number, "inputs": [tensor]}).encode()
    path = f"/v2/models/admin/{name}/infer"
    return http_request(path, body, json_bytes=None, token=ours.token)


def _read(line: socket.socket) -> tuple[int, Any]:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(line)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(one.partition(b":")[2])
        for one in head.lower().split(b"\r\n")
        if one.startswith(b"content-length:")
    )
    while len(body) < length:
        body += _more(line)
    return int(head.split(b" ", 2)[1]), json.loads(body)


def _more(line: socket.socket) -> bytes:
    part = line.recv(65_536)
    if not part:
        raise ConnectionError("the server closed the connection")
    return part


def _close(said: Any, expected: Any) -> bool:
    output = said["outputs"][0]
    return output["shape"] == list(expected.shape) and bool(
        np.abs(np.array(output["data"]) - expected.ravel()).max() < _TOLERANCE
    )
