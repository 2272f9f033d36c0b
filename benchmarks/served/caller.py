"""`python -m benchmarks.served.caller`: many clients in one process, told by lines of JSON.

Each client sends its request again as soon as the answer is there, over bare sockets under one
`epoll`; the same for every contender. What the processes of the contender computed meanwhile is
read from /proc at the edges of the time that counts.
"""

import base64
import json
import os
import select
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.served.asking import outputs_of
from benchmarks.served.connections import PATIENCE_SECONDS, Connection, GrpcConnection
from workers.serving.protos import inference_pb2 as messages

WARM_SECONDS = 0.2


def tree_of(root: int) -> list[int]:
    """Give a process and all below it."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (process / "stat").read_text(encoding="ascii", errors="replace")
            parents[int(process.name)] = int(stat.rpartition(")")[2].split()[1])
    ours = {root}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sorted(ours)


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
            ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Callers:
    """Clients, each of which asks again as soon as it has its answer."""

    def __init__(self, clients: Sequence[Connection]) -> None:
        self.poll = select.epoll()
        self.known = {one.socket.fileno(): one for one in clients}
        self.taken: list[float] = []
        self.bad = 0
        self.first = b""
        for number, one in self.known.items():
            self.poll.register(number, select.EPOLLIN)
            self.ask(one)

    def ask(self, one: Connection) -> None:
        one.ask()
        one.began = time.perf_counter()
        self._send(one)

    def _send(self, one: Connection) -> None:
        if not one.send():
            self.poll.modify(one.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def go_on(self, seconds: float) -> None:
        """Call for so long."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            events = self.poll.poll(PATIENCE_SECONDS)
            if not events:
                raise TimeoutError("no answer came")
            for number, event in events:
                self._look_at(self.known[number], event)

    def _look_at(self, one: Connection, event: int) -> None:
        if event & select.EPOLLOUT and one.send():
            self.poll.modify(one.socket.fileno(), select.EPOLLIN)
        if not event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        answer = one.read()
        if answer is None:
            self._send(one)
            return
        self.taken.append(time.perf_counter() - one.began)
        self.first = self.first or answer.data
        self.bad += not answer.good
        self.ask(one)

    def close(self) -> None:
        for one in self.known.values():
            one.socket.close()
        self.poll.close()


def over_http(port: int, request: bytes, clients: int, seconds: float, root: int) -> dict[str, Any]:
    said, first = _call([Connection(port, request) for _ in range(clients)], seconds, root)
    head, _, body = first.partition(b"\r\n\r\n")
    return {**said, "answer": _read_answer(head, body)}


def over_grpc(
    port: int, request: bytes, clients: int, seconds: float, root: int, token: str
) -> dict[str, Any]:
    said, first = _call(
        [GrpcConnection(port, request, token) for _ in range(clients)], seconds, root
    )
    answer: list[float] | str = first[:300].decode(errors="replace")
    if not said["bad"]:
        response = messages.ModelInferResponse.FromString(first)
        answer = np.frombuffer(response.raw_output_contents[0], np.float32).tolist()
    return {**said, "answer": answer}


def _call(clients: Sequence[Connection], seconds: float, root: int) -> tuple[dict[str, Any], bytes]:
    """Measure the calls of these clients; give the first answer too."""
    callers = Callers(clients)
    try:
        pids = tree_of(root)
        callers.go_on(WARM_SECONDS)
        callers.taken.clear()
        before, began = cpu_seconds(pids), time.perf_counter()
        callers.go_on(seconds)
        spent, cpu = time.perf_counter() - began, cpu_seconds(pids) - before
    finally:
        callers.close()
    return _measured(len(callers.taken), callers.bad, callers.taken, spent, cpu), callers.first


def _read_answer(head: bytes, body: bytes) -> list[float] | str:
    """Read what was computed, for whoever wants to know that all compute the same."""
    said = [
        int(line.partition(b":")[2])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"inference-header-content-length:")
    ]
    with suppress(ValueError, KeyError, TypeError):
        return [float(one) for one in outputs_of(body, said[0] if said else None)]
    return (head[:200] + body[:300]).decode(errors="replace")


def _measured(done: int, bad: int, taken: list[float], spent: float, cpu: float) -> dict[str, Any]:
    return {
        "done": done,
        "bad": bad,
        "rate": done / spent,
        "cpu_us": cpu / done * 1e6 if done else 0.0,
        "p50_ms": statistics.median(taken) * 1e3 if taken else 0.0,
    }


def main() -> None:
    for line in sys.stdin:
        plan = json.loads(line)
        request = base64.b64decode(plan["request"])
        asked = (plan["port"], request, plan["clients"], plan["seconds"], plan["root"])
        try:
            said = over_grpc(*asked, plan["token"]) if plan["grpc"] else over_http(*asked)
        except (OSError, ValueError, StopIteration) as error:
            said = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
