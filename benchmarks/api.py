"""Requests per second and latency of reads, against the real server over keep-alive.

`API_SIZES=1000000 python -m benchmarks api` measures that size anew and keeps the rest;
`API_MEANING=1` gives the models vectors too, and measures searches with the encoder. Each client
is a process with one connection and as little Python as possible around its clock. It runs on the
same machine as the server, so with eight clients it takes a part of the cores.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import NamedTuple
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from benchmarks.installation import ROOT, Installation, environment, running
from benchmarks.relevant.needs import needs
from benchmarks.report import Figure, keep, kept
from benchmarks.vocabulary import (
    CHINESE,
    FAMILIES,
    LANGUAGES,
    LIBRARIES,
    LONG_HISTORY,
    SUBJECTS,
    TASKS,
    slug_of,
)
from benchmarks.vocabulary import (
    SIZES as SIZE_NAMES,
)
from config.local.addresses import Addresses

# How many models, and how many versions each of them has.
VERSIONS = {1000: 2, 20_000: 2, 1_000_000: 5}
SIZES = (1000, 20_000)
HISTORY = 200_000
CLIENTS = (1, 8)
# Pieces of so many names are looked for; what more models than that hold is no selective search.
_PIECES = 200
SELECTIVE = 1000
SECONDS = float(os.environ.get("BENCH_SECONDS", "6"))
WARM_UP = 200


class Connection:
    """One keep-alive connection that sends prepared requests and reads answers by their length."""

    def __init__(self, port: int) -> None:
        # Searches that the registry broke off after their second.
        self.refused = 0
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        self._socket.sendall(request)
        received = self._socket.recv(1 << 18)
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = received[:end].lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        while len(received) < end + 4 + length:
            received += self._more()
        if not head.startswith(b"http/1.1 200"):
            if b"search_too_broad" not in received:
                raise RuntimeError(received[:2000].decode(errors="replace"))
            self.refused += 1
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
    port: int,
    requests: list[bytes],
    seed: int,
    start: Barrier,
    answers: "Queue[tuple[list[float], int] | str]",
) -> None:
    """Ask for `SECONDS`; tell how many milliseconds each answer took, or what went wrong."""
    chance = random.Random(seed)
    try:
        connection = Connection(port)
        # What is measured is a server that has met such requests: each was asked before.
        for request in list(dict.fromkeys(requests))[:WARM_UP]:
            connection.ask(request)
        order = chance.choices(requests, k=100_000)
        connection.refused = 0
        start.wait(60)
        answers.put((_ask_all(connection, order), connection.refused))
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
    """Requests per second; median, 95th percentile and the server's CPU time in milliseconds.

    `refused` is the share of the searches that were broken off after a second.
    """

    rate: float
    median: float
    slow: float
    cpu: float
    refused: float


def measure(installation: Installation, requests: list[bytes], clients: int) -> Measured:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(clients)
    answers: Queue[tuple[list[float], int] | str] = context.Queue()
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
    timed = [said for said in seen if not isinstance(said, str)]
    everything = [taken for times, _ in timed for taken in times]
    refused = sum(count for _, count in timed) / len(everything)
    cuts = statistics.quantiles(everything, n=100)
    asked = len(everything) + clients * WARM_UP
    cpu = (installation.cpu_seconds() - before) * 1000 / asked
    return Measured(len(everything) / SECONDS, cuts[49], cuts[94], cpu, refused)


def all_names(installation: Installation, count: int) -> list[str]:
    """Read the names of the loaded models through the API itself."""
    names: list[str] = []
    cursor = ""
    while len(names) < min(count, 2000):
        query = urlencode({"limit": 100, "sort": "updated", "owner": "", "cursor": cursor})
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
    """Cut pieces of eight to fourteen characters out of names: what somebody typed so far."""
    pieces = []
    for name in names:
        text = name.partition("/")[2]
        length = min(chance.randint(8, 14), len(text))
        at = chance.randrange(len(text) - length + 1)
        pieces.append(text[at : at + length].strip("-"))
    return pieces


def by_matches(installation: Installation, pieces: list[str]) -> tuple[list[str], list[str]]:
    """Tell apart what few models hold and what more than a thousand do."""
    connection = Connection(installation.port)
    few: list[str] = []
    many: list[str] = []
    for piece in dict.fromkeys(pieces):
        query = urlencode({"limit": 1, "q": piece})
        page = json.loads(connection.ask(prepare(installation, f"/api/v1/models?{query}")))
        (many if page.get("facets", {}).get("total", SELECTIVE + 1) > SELECTIVE else few).append(
            piece
        )
    return few, many


def mistyped(word: str, chance: random.Random) -> str:
    at = chance.randrange(1, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def searches(chance: random.Random) -> dict[str, list[str]]:
    """Make up what people look for, a hundred of each kind."""

    def of(*parts: Sequence[str]) -> list[str]:
        return [" ".join(chance.choice(part) for part in parts) for _ in range(100)]

    long = [family for family in FAMILIES if len(family) > 5]
    return {
        "three words": of(FAMILIES, SIZE_NAMES, SUBJECTS),
        "a phrase": [f'"{family} for"' for family in of(FAMILIES, SIZE_NAMES)],
        "a mistyped word and another": [
            f"{mistyped(family, chance)} {chance.choice(SUBJECTS)}" for family in of(long)
        ],
        "Chinese and a name": of(FAMILIES, SIZE_NAMES, list(CHINESE.values())),
        "fields": [
            f"task:{task} library:{chance.choice(LIBRARIES)} label:{chance.choice(LANGUAGES)}"
            f" params:<{chance.choice((100, 500, 900))}M"
            for task in of(TASKS)
        ],
        "words, fields and measurements": [
            f"{words} task:{chance.choice(TASKS)} accuracy:>0.9 latency:<20ms"
            for words in of(FAMILIES, SUBJECTS)
        ],
        "one common word (broad)": of(SUBJECTS),
        "a word of every model (broad)": ["tuned"],
        "one field (broad)": [f"task:{task}" for task in of(TASKS)],
        "a measurement (broad)": [f"accuracy:>0.{digit}" for digit in of("56789")],
    }


def workloads(installation: Installation, count: int) -> dict[str, list[bytes]]:
    chance = random.Random(7)
    names = all_names(installation, count)[:1000]
    make: Callable[[str], bytes] = lambda path: prepare(installation, path)  # noqa: E731
    versions, last = VERSIONS[count], HISTORY
    few, many = by_matches(installation, substrings(names[:_PIECES], chance))
    history = f"/api/v1/models/{slug_of(0)}/{LONG_HISTORY}/versions"
    return {
        "get by alias": [make(f"/api/v1/models/{name}/versions/@champion") for name in names],
        "list, first page": [make("/api/v1/models?limit=20")],
        **{
            f"search for {kind}": [make(f"/api/v1/models?limit=20&q={quote(q)}") for q in asked]
            for kind, asked in {
                "a substring": few,
                "a substring of more than a thousand (broad)": many,
                **searches(chance),
            }.items()
            if asked
        },
        f"history of {versions} versions": [
            make(f"/api/v1/models/{name}/versions") for name in names
        ],
        f"history of {last:,} versions": [make(history)],
        f"history of {last:,} versions, deep inside": [
            make(f"{history}?{urlencode({'cursor': cursor})}")
            for cursor in deep_cursors(installation, history)
        ],
        "diff of two versions": [
            make(f"/api/v1/models/{name}/versions/2/diff/1") for name in names
        ],
        f"diff of two versions of {last:,}": [
            make(f"{history}/{number}/diff/{number // 2}")
            for number in chance.sample(range(2, last), 100)
        ],
    }


def deep_cursors(installation: Installation, history: str) -> list[str]:
    """Follow a history for fifty pages of a hundred at most; give the cursors of the last ten."""
    cursors = [""]
    while cursors[-1] is not None and len(cursors) <= 50:
        query = urlencode({"limit": 100, "cursor": cursors[-1]})
        request = Request(
            f"{installation.url}{history}?{query}",
            headers={"Authorization": f"Bearer {installation.token}"},
        )
        with urlopen(request) as answer:
            cursors.append(json.load(answer)["next_cursor"])
    return [cursor for cursor in cursors[-10:] if cursor]


def fill(installation: Installation, count: int) -> None:
    asked = (str(count), "--versions", str(VERSIONS[count]), "--history", str(HISTORY))
    subprocess.run(
        [sys.executable, "-m", "benchmarks.load", *asked],
        cwd=ROOT,
        check=True,
        env=inside(installation),
    )


def inside(installation: Installation) -> dict[str, str]:
    """Give the environment of a program that works on the data of an installation."""
    addresses = Addresses(installation.home)
    return {
        **environment(installation.home, installation.port),
        "DATABASE_URL": addresses.database_url,
        "REDIS_URL": addresses.redis_url,
    }


@contextmanager
def encoding(installation: Installation) -> Iterator[None]:
    """Run the encoder of an installation that was started without, and give all models vectors."""
    command = [sys.executable, "-m", "workers.encoder"]
    with subprocess.Popen(command, cwd=ROOT, env=inside(installation)) as encoder:
        try:
            until = time.monotonic() + 120
            while not (installation.home / "encoder.sock").exists():
                if encoder.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("the encoder does not run")
                time.sleep(0.1)
            subprocess.run(
                [sys.executable, "-m", "benchmarks.vectors"],
                cwd=ROOT,
                check=True,
                env=inside(installation),
            )
            yield
        finally:
            encoder.terminate()


def aim_of(name: str, count: int, clients: int, *, slow: bool) -> str:
    if clients > 1 or count == SIZES[0]:
        return ""
    if slow:
        selective = name.startswith("search") and "(broad)" not in name
        return "< 50" if count == max(VERSIONS) and selective else ""
    return {"get by alias": "< 5", "search for a substring": "< 15"}.get(name, "")


def by_meaning(installation: Installation) -> dict[str, list[bytes]]:
    """Ask for words, and for needs as somebody would put them."""
    asked = {
        "three words": searches(random.Random(7))["three words"],
        "a need (broad)": [need.q for need in needs()],
    }
    return {
        f"search by meaning for {kind}": [
            prepare(installation, f"/api/v1/models?limit=20&q={quote(q)}") for q in texts
        ]
        for kind, texts in asked.items()
    }


def measure_all(
    installation: Installation, count: int, asked: Mapping[str, list[bytes]]
) -> Iterator[Figure]:
    for name, requests in asked.items():
        for clients in CLIENTS:
            seen = measure(installation, requests, clients)
            plural = "client" if clients == 1 else "clients"
            what = f"{name}, {count:,} models, {clients} {plural}"
            print(f"{what}: {seen}", file=sys.stderr, flush=True)
            median, slow = (aim_of(name, count, clients, slow=slow) for slow in (False, True))
            yield Figure(what=f"{what}: p50", value=seen.median, unit="ms", aim=median)
            yield Figure(what=f"{what}: p95", value=seen.slow, unit="ms", aim=slow)
            yield Figure(what=f"{what}: server CPU", value=seen.cpu, unit="ms/request")
            yield Figure(what=what, value=seen.rate, unit="requests/s")
            if seen.refused:
                yield Figure(what=f"{what}: broken off", value=seen.refused * 100, unit="%")


def keep_size(count: int, figures: Iterable[Figure]) -> None:
    """Keep what was measured with so many models, beside what was measured with others."""
    others = [one for one in kept("api") if f", {count:,} models, " not in one.what]
    keep("api", [*others, *figures])


def main() -> None:
    named = os.environ.get("API_SIZES")
    for count in SIZES if named is None else map(int, named.split(",")):
        with running() as installation:
            fill(installation, count)
            figures = list(measure_all(installation, count, workloads(installation, count)))
            if os.environ.get("API_MEANING") == "1":
                with encoding(installation):
                    figures += measure_all(installation, count, by_meaning(installation))
            keep_size(count, figures)


if __name__ == "__main__":
    main()
