"""`python -m benchmarks.served.caller`: many clients in one process, told by lines of JSON.

Each client sends its request again as soon as the answer is there. Bare sockets under one `epoll`
for HTTP, and gRPC's own client for gRPC; the same for every contender. What the processes of the
contender computed meanwhile is read from /proc at the edges of the time that counts.
"""

import asyncio
import base64
import json
import os
import select
import socket
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.served.asking import outputs_of

WARM_SECONDS = 0.2
PATIENCE_SECONDS = 20.0
_READ_BYTES = 1 << 20


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


class Connection:
    """One client: what it still has to send, and what has come back."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)  # noqa: FBT003 - its only argument
        self.left = memoryview(b"")
        self.received = bytearray()
        self.wanted = 0
        self.began = 0.0

    def send(self) -> bool:
        """Send what goes now; say whether that was all."""
        while self.left:
            try:
                self.left = self.left[self.socket.send(self.left) :]
            except BlockingIOError:
                return False
        return True

    def read(self) -> bytes | None:
        """Take what has come; give the whole answer once it is there."""
        part = self.socket.recv(_READ_BYTES)
        if not part:
            raise ConnectionError("the server closed the connection")
        self.received += part
        if not self.wanted:
            head, mark, _ = self.received.partition(b"\r\n\r\n")
            if not mark:
                return None
            length = next(
                int(line.partition(b":")[2])
                for line in bytes(head).lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            self.wanted = len(head) + 4 + length
        if len(self.received) < self.wanted:
            return None
        answer = bytes(self.received)
        self.received.clear()
        self.wanted = 0
        return answer


class Callers:
    """Clients over HTTP, each of which asks again as soon as it has its answer."""

    def __init__(self, port: int, request: bytes, clients: int) -> None:
        self.request = request
        self.poll = select.epoll()
        self.known: dict[int, Connection] = {}
        for _ in range(clients):
            one = Connection(port)
            self.known[one.socket.fileno()] = one
            self.poll.register(one.socket.fileno(), select.EPOLLIN)
        self.taken: list[float] = []
        self.bad = 0
        self.first = b""
        for one in self.known.values():
            self.ask(one)

    def ask(self, one: Connection) -> None:
        one.left, one.began = memoryview(self.request), time.perf_counter()
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
            return
        self.taken.append(time.perf_counter() - one.began)
        self.first = self.first or answer
        self.bad += not answer.startswith(b"HTTP/1.1 200")
        self.ask(one)

    def close(self) -> None:
        for one in self.known.values():
            one.socket.close()
        self.poll.close()


def over_http(port: int, request: bytes, clients: int, seconds: float, root: int) -> dict[str, Any]:
    callers = Callers(port, request, clients)
    try:
        pids = tree_of(root)
        callers.go_on(WARM_SECONDS)
        callers.taken.clear()
        before, began = cpu_seconds(pids), time.perf_counter()
        callers.go_on(seconds)
        spent, cpu = time.perf_counter() - began, cpu_seconds(pids) - before
    finally:
        callers.close()
    head, _, body = callers.first.partition(b"\r\n\r\n")
    taken = callers.taken
    measured = _measured(len(taken), callers.bad, taken, spent, cpu)
    return {**measured, "answer": _read_answer(head, body)}


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


def over_grpc(
    port: int, request: bytes, clients: int, seconds: float, root: int, token: str
) -> dict[str, Any]:
    return asyncio.run(_over_grpc(port, request, clients, seconds, root, token))


async def _over_grpc(
    port: int, request: bytes, clients: int, seconds: float, root: int, token: str
) -> dict[str, Any]:
    import grpc  # noqa: PLC0415 - of one form alone
    import numpy as np  # noqa: PLC0415

    from workers.serving.protos import inference_pb2 as messages  # noqa: PLC0415

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    pids = tree_of(root)
    taken: list[float] = []
    answers: list[bytes] = []
    counting, bad = False, 0
    stopping = False
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def client() -> None:
            nonlocal bad
            while not stopping:
                began = time.perf_counter()
                try:
                    answer = await call(request, metadata=metadata, timeout=PATIENCE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    bad += 1
                    if not answers:
                        answers.append(str(error.details()).encode())
                    await asyncio.sleep(0.01)
                    continue
                if not answers:
                    answers.append(answer)
                if counting:
                    taken.append(time.perf_counter() - began)

        tasks = [asyncio.create_task(client()) for _ in range(clients)]
        await asyncio.sleep(WARM_SECONDS)
        before, began, counting = cpu_seconds(pids), time.perf_counter(), True
        await asyncio.sleep(seconds)
        counting = False
        spent, cpu, done = time.perf_counter() - began, cpu_seconds(pids) - before, len(taken)
        stopping = True
        await asyncio.gather(*tasks)
    answer: list[float] | str = answers[0][:300].decode(errors="replace") if answers else ""
    if not bad and answers:
        response = messages.ModelInferResponse.FromString(answers[0])
        answer = np.frombuffer(response.raw_output_contents[0], np.float32).tolist()
    return {**_measured(done, bad, taken, spent, cpu), "answer": answer}


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
