"""Requests per second and latency of the hot reads, against the real server over keep-alive.

Each client is a process with one connection and as little Python as possible around its clock. It
runs on the same machine as the server, so with eight clients it takes a part of the cores.
"""

import json
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import NamedTuple
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from benchmarks.installation import ROOT, Installation, environment, running
from benchmarks.report import Figure, keep
from config.local.addresses import Addresses

SIZES = (1000, 20_000)
CLIENTS = (1, 8)
SECONDS = float(os.environ.get("BENCH_SECONDS", "6"))
WARM_UP = 100


class Connection:
    """One keep-alive connection that sends prepared requests and reads answers by their length."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        received = self._socket.recv(1 << 18)
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = received[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(received[:2000].decode(errors="replace"))
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(received) < end + 4 + length:
            received += self._more()
        return received[end + 4 :]

    def _more(self) -> bytes:
        block = self._socket.recv(1 << 18)
        if not block:
            raise ConnectionError("the server closed the connection")
        return block


def prepare(installation: Installation, path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{installation.port}\r\n"
        f"Authorization: Bearer {installation.token}\r\nAccept: application/json\r\n\r\n"
    ).encode()


def run_client(
    port: int, requests: list[bytes], seed: int, start: Barrier, answers: "Queue[list[float] | str]"
) -> None:
    """Ask for `SECONDS`; tell how many milliseconds each answer took, or what went wrong."""
    chance = random.Random(seed)
    try:
        connection = Connection(port)
        for _ in range(WARM_UP):
            connection.ask(chance.choice(requests))
        order = chance.choices(requests, k=100_000)
        start.wait(60)
        answers.put(_ask_all(connection, order))
    except (OSError, RuntimeError, ValueError) as error:
        start.abort()
        answers.put(f"{type(error).__name__}: {error}")


def _ask_all(connection: Connection, order: list[bytes]) -> list[float]:
    taken = []
    end = time.perf_counter() + SECONDS
    for request in order:
        before = time.perf_counter()
        connection.ask(request)
        after = time.perf_counter()
        taken.append((after - before) * 1000)
        if after > end:
            break
    return taken


class Measured(NamedTuple):
    """Requests per second; median, 95th percentile and the server's CPU time in milliseconds."""

    rate: float
    median: float
    slow: float
    cpu: float


def measure(installation: Installation, requests: list[bytes], clients: int) -> Measured:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(clients)
    answers: Queue[list[float] | str] = context.Queue()
    processes = [
        context.Process(
            target=run_client, args=(installation.port, requests, number, start, answers)
        )
        for number in range(clients)
    ]
    before = installation.cpu_seconds()
    for process in processes:
        process.start()
    seen = [answers.get(timeout=SECONDS * 10 + 60) for _ in processes]
    for process in processes:
        process.join()
    if failed := [said for said in seen if isinstance(said, str)]:
        raise RuntimeError(failed[0])
    everything = [taken for timed in seen if not isinstance(timed, str) for taken in timed]
    cuts = statistics.quantiles(everything, n=100)
    asked = len(everything) + clients * WARM_UP
    cpu = (installation.cpu_seconds() - before) * 1000 / asked
    return Measured(len(everything) / SECONDS, cuts[49], cuts[94], cpu)


def all_names(installation: Installation, count: int) -> list[str]:
    """Read the names of the loaded models through the API itself."""
    names: list[str] = []
    cursor = ""
    while len(names) < min(count, 2000):
        query = urlencode({"limit": 100, "sort": "name", "owner": "", "cursor": cursor})
        request = Request(
            f"{installation.url}/api/v1/models?{query}",
            headers={"Authorization": f"Bearer {installation.token}"},
        )
        with urlopen(request) as answer:
            page = json.load(answer)
        names += [f"{item['namespace']}/{item['name']}" for item in page["items"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    return names


def substrings(names: list[str], chance: random.Random) -> list[str]:
    """Cut pieces of six to ten characters out of names: what somebody typed so far."""
    pieces = []
    for name in names:
        text = name.partition("/")[2]
        length = min(chance.randint(6, 10), len(text))
        at = chance.randrange(len(text) - length + 1)
        pieces.append(text[at : at + length].strip("-"))
    return pieces


def workloads(installation: Installation, count: int) -> dict[str, list[bytes]]:
    chance = random.Random(7)
    names = all_names(installation, count)
    make: Callable[[str], bytes] = lambda path: prepare(installation, path)  # noqa: E731
    return {
        "get by alias": [
            make(f"/api/v1/models/{name}/versions/@champion") for name in names[:1000]
        ],
        "list, first page": [make("/api/v1/models?limit=20")],
        "search for a substring": [
            make(f"/api/v1/models?limit=20&q={quote(piece)}")
            for piece in substrings(names[:1000], chance)
        ],
    }


def fill(installation: Installation, count: int) -> None:
    addresses = Addresses(installation.home)
    subprocess.run(
        [sys.executable, "-m", "benchmarks.load", str(count)],
        cwd=ROOT,
        check=True,
        env={
            **environment(installation.home, installation.port),
            "DATABASE_URL": addresses.database_url,
            "REDIS_URL": addresses.redis_url,
        },
    )


AIMS = {("get by alias", 20_000, 1): "< 5", ("search for a substring", 20_000, 1): "< 15"}


def main() -> None:
    figures = []
    for count in SIZES:
        with running() as installation:
            fill(installation, count)
            for name, requests in workloads(installation, count).items():
                for clients in CLIENTS:
                    seen = measure(installation, requests, clients)
                    plural = "client" if clients == 1 else "clients"
                    what = f"{name}, {count:,} models, {clients} {plural}"
                    aim = AIMS.get((name, count, clients), "")
                    figures += [
                        Figure(what=f"{what}: p50", value=seen.median, unit="ms", aim=aim),
                        Figure(what=f"{what}: p95", value=seen.slow, unit="ms"),
                        Figure(what=f"{what}: server CPU", value=seen.cpu, unit="ms/request"),
                        Figure(what=what, value=seen.rate, unit="requests/s"),
                    ]
                    print(f"{what}: {seen}", file=sys.stderr, flush=True)
    keep("api", figures)


if __name__ == "__main__":
    main()
