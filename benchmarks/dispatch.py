"""From submitting a job over the API to its running state, as a client sees it.

One job at a time on an idle worker: the request, the row, the message, the claim. The clock stops
when a poll over keep-alive reads `running`; the job is cancelled then, and the next one waits
until it is.
"""

import http.client
import json
import statistics
import time
from typing import Any

from benchmarks.installation import Installation, running
from benchmarks.report import Figure, keep

ROUNDS = 30
WARM_UP = 3
RECIPE = {
    "kind": "train",
    "schema": 1,
    "dataset": "admin/bench",
    "output": "admin/trained",
    "architecture": {"name": "text_classifier"},
    "steps": [{"method": "train", "epochs": 1000}],
}


class Client:
    """The API over one keep-alive connection."""

    def __init__(self, installation: Installation) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", installation.port, timeout=30)
        self._headers = {"Authorization": f"Bearer {installation.token}"}

    def ask(
        self, method: str, path: str, body: bytes | None = None, media_type: str = ""
    ) -> dict[str, Any]:
        headers = self._headers | ({"Content-Type": media_type} if media_type else {})
        self._connection.request(method, f"/api/v1/{path}", body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:1000]!r}")
        return json.loads(content) if content else {}

    def send(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        return self.ask("POST", path, json.dumps(content).encode(), "application/json")

    def wait_for(self, job: str, states: set[str], *, pause: float) -> None:
        patience = time.monotonic() + 60
        while (state := self.ask("GET", f"jobs/{job}")["state"]) not in states:
            if state in {"failed", "succeeded"} or time.monotonic() > patience:
                raise RuntimeError(f"the job is {state}")
            time.sleep(pause)


def register_dataset(client: Client) -> None:
    rows = "text,label\n" + "".join(f"words of row {row},{row % 2}\n" for row in range(200))
    client.send("datasets", {"namespace": "admin", "name": "bench"})
    form = (
        '--edge\r\nContent-Disposition: form-data; name="train.csv"; filename="train.csv"\r\n'
        f"Content-Type: text/csv\r\n\r\n{rows}\r\n--edge--\r\n"
    )
    client.ask(
        "POST",
        "datasets/admin/bench/versions",
        form.encode(),
        "multipart/form-data; boundary=edge",
    )


def time_dispatch(client: Client) -> float:
    """Give the milliseconds until a job runs."""
    started = time.perf_counter()
    job = client.send("jobs", {"recipe": RECIPE})["id"]
    client.wait_for(job, {"running"}, pause=0.005)
    passed = (time.perf_counter() - started) * 1000
    client.ask("POST", f"jobs/{job}/cancel")
    client.wait_for(job, {"cancelled"}, pause=0.1)
    return passed


def wait_for_worker(client: Client) -> None:
    patience = time.monotonic() + 120
    while not any(worker["is_alive"] for worker in client.ask("GET", "workers")["items"]):
        if time.monotonic() > patience:
            raise TimeoutError("no worker came up")
        time.sleep(0.2)


def main() -> None:
    with running() as installation:
        client = Client(installation)
        wait_for_worker(client)
        register_dataset(client)
        took = [time_dispatch(client) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    keep(
        "dispatch",
        [
            Figure(
                what="submit to running, median",
                value=statistics.median(took),
                unit="ms",
                aim="< 500",
            ),
            Figure(
                what="submit to running, 95th percentile",
                value=statistics.quantiles(took, n=20)[-1],
                unit="ms",
            ),
        ],
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
