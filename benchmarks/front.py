"""What the front costs: the CPU of one call on its way through, beside the call itself.

The same calls by turns straight to a serving process and through a front before it, which has that
one process to choose from. The front's CPU is that of its own process alone.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import httpx

from benchmarks.installation import ROOT, Installation, environment, free_port, running
from benchmarks.report import Figure, keep
from benchmarks.served.asking import FORMS
from benchmarks.served.contenders import Ours, ask, helper
from benchmarks.served.graphs import Graph, all_graphs
from config.local.addresses import Addresses

MODEL = "mlp"
CLIENTS = (1, 8)
ROUNDS = int(os.environ.get("FRONT_ROUNDS", "5"))
SECONDS = 0.8
_START_SECONDS = 60


class Through(Ours):
    """The same installation, called through a front; the front's process is what is counted."""

    name = "through the front"

    def __init__(self, place: Installation, process: int, port: int, grpc_port: int) -> None:
        super().__init__(place)
        self.root, self.port, self.grpc_port = process, port, grpc_port


def main() -> None:
    graphs = {MODEL: all_graphs()[MODEL]}
    figures: list[Figure] = []
    with (
        running() as place,
        _front(place) as through,
        helper("benchmarks.served.caller") as caller,
    ):
        straight = Ours(place)
        straight.deploy(graphs)
        for form in FORMS:
            for clients in CLIENTS:
                figures += _measure((straight, through), graphs[MODEL], form, clients, caller)
                keep("front", figures)


def _measure(
    both: Sequence[Ours],
    graph: Graph,
    form: str,
    clients: int,
    caller: "subprocess.Popen[bytes]",
) -> Iterator[Figure]:
    turns: dict[str, list[Mapping[str, Any]]] = {one.name: [] for one in both}
    for _ in range(ROUNDS):
        for one in both:
            turns[one.name].append(ask(caller, one.plan(graph, form, clients, SECONDS)))
    for found in turns.values():
        if failed := [said["error"] for said in found if "error" in said]:
            raise RuntimeError(failed[0])
    straight, through = (
        {
            what: statistics.median(said[what] for said in found)
            for what in ("rate", "cpu_us", "p50_ms")
        }
        for found in turns.values()
    )
    what = f"tiny MLP, {form}, {clients} {'client' if clients == 1 else 'clients'}"
    print(f"  {what}: {straight} {through}", file=sys.stderr, flush=True)
    for title, value, unit in (
        ("CPU of the front", through["cpu_us"], "µs/request"),
        ("CPU of the call itself", straight["cpu_us"], "µs/request"),
        ("p50 through the front", through["p50_ms"], "ms"),
        ("p50 straight", straight["p50_ms"], "ms"),
    ):
        yield Figure(what=f"{what}: {title}", value=round(value, 3), unit=unit)


@contextmanager
def _front(place: Installation) -> Iterator[Through]:
    port, grpc_port = free_port(), free_port()
    addresses = Addresses(place.home)
    servers = {"DATABASE_URL": addresses.database_url, "REDIS_URL": addresses.redis_url}
    ports = {"MODELYARD_INFER_PORT": str(port), "MODELYARD_GRPC_PORT": str(grpc_port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.serving.front"],
        cwd=ROOT,
        env=environment(place.home, place.port, **servers, **ports),
    )
    try:
        _wait(f"http://127.0.0.1:{port}/v2/health/ready", process)
        yield Through(place, process.pid, port, grpc_port)
    finally:
        process.terminate()
        process.wait(30)


def _wait(address: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(address).status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the front is not ready")
