"""Fifty versions of one model made at once, and how soon a revoked token opens no door any more."""

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from benchmarks.installation import Installation, running
from benchmarks.report import Figure, keep

AT_ONCE = 50
ROUNDS = 3
PATIENCE = 60.0
MODELS = "/api/v1/models"
ONE = f"{MODELS}/admin/doors"
TUS = {"Tus-Resumable": "1.0.0"}
UPLOAD_BYTES = 1 << 30


def client_of(place: Installation, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=place.url, headers=headers, timeout=PATIENCE)


def create_at_once(place: Installation) -> list[Figure]:
    """Let fifty clients begin together; every number from 1 must be there once."""
    start = threading.Barrier(AT_ONCE)

    def create(number: int) -> tuple[int, float]:
        with client_of(place, place.token) as client:
            client.get("/healthz")
            start.wait()
            began = time.perf_counter()
            answer = client.post(f"{ONE}/versions", json={"message": f"number {number}"})
            answer.raise_for_status()
            return answer.json()["number"], time.perf_counter() - began

    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(create, range(AT_ONCE)))
    numbers = sorted(number for number, _ in made)
    times = sorted(seconds * 1000 for _, seconds in made)
    label = f"{AT_ONCE} version creations at once"
    gaps = len(set(range(1, AT_ONCE + 1)) ^ set(numbers)) + AT_ONCE - len(set(numbers))
    return [
        Figure(what=f"{label}: missing, foreign and repeated numbers", value=gaps, unit=""),
        Figure(what=f"{label}: median", value=statistics.median(times), unit="ms"),
        Figure(what=f"{label}: slowest", value=times[-1], unit="ms"),
    ]


# --- Doors: each begins with a good token and returns once it is no longer good ------------------


def rest(client: httpx.Client, ready: threading.Event) -> None:
    while client.get("/api/v1/whoami").status_code == 200:
        ready.set()


def events(client: httpx.Client, ready: threading.Event) -> None:
    job = client.post("/api/v1/jobs", json={"recipe": RECIPE}).raise_for_status().json()["id"]
    with client.stream("GET", f"/api/v1/jobs/{job}/events") as answer:
        for line in answer.iter_lines():
            if line == "event: state":
                ready.set()


def upload(client: httpx.Client, ready: threading.Event) -> None:
    headers = {**TUS, "Upload-Length": str(UPLOAD_BYTES), "Upload-Metadata": "filename YS5iaW4="}
    address = client.post("/api/v1/uploads", headers=headers).headers["location"]

    def pieces() -> Iterator[bytes]:
        while True:
            yield bytes(64 * 1024)
            ready.set()
            time.sleep(0.01)

    kind = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    try:
        client.patch(address, headers=kind, content=pieces())
    except httpx.TransportError:
        # The server closed the connection on a client that went on sending.
        return


def download(client: httpx.Client, ready: threading.Event) -> None:
    with client.stream("GET", f"{ONE}/versions/latest/files/large.bin") as answer:
        try:
            for _ in answer.iter_raw(64 * 1024):
                ready.set()
                time.sleep(0.01)
        except httpx.TransportError:
            return
    raise RuntimeError("the download came to its end")


def page(client: httpx.Client, ready: threading.Event) -> None:
    while client.get("/settings/tokens").status_code == 200:
        ready.set()


RECIPE = {
    "kind": "train",
    "schema": 1,
    "dataset": "admin/rows",
    "output": "admin/trained",
    "architecture": {"name": "text_classifier"},
    "steps": [{"method": "train", "epochs": 1000}],
}
DOORS: dict[str, Callable[[httpx.Client, threading.Event], None]] = {
    "REST": rest,
    "events of a job": events,
    "resumable upload under way": upload,
    "download under way": download,
}


def time_revocation(
    client: httpx.Client,
    door: Callable[[httpx.Client, threading.Event], None],
    end: Callable[[], Any],
) -> float:
    """Give the seconds from the end of the token to the end of what it opened."""
    ready = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        open_door = pool.submit(door, client, ready)
        while not ready.wait(0.05):
            if open_door.done():
                open_door.result()
                raise RuntimeError("the door never opened")
        end()
        began = time.perf_counter()
        open_door.result(PATIENCE)
    return time.perf_counter() - began


def revoke_at_doors(place: Installation, admin: httpx.Client) -> list[Figure]:
    figures = []
    for name, door in DOORS.items():
        taken = []
        for _ in range(ROUNDS):
            new = {"name": "bench", "scopes": ["read", "write", "jobs"]}
            token = admin.post("/api/v1/tokens", json=new).raise_for_status().json()
            address = f"/api/v1/tokens/{token['id']}"
            with client_of(place, token["token"]) as client:
                taken.append(
                    time_revocation(
                        client,
                        door,
                        lambda address=address: admin.delete(address).raise_for_status(),
                    )
                )
        figures.append(figure(name, max(taken)))
    with client_of(place, "") as browser:
        sign_in(place, browser)
        figures.append(figure("page", time_revocation(browser, page, lambda: sign_out(browser))))
    return figures


def figure(door: str, seconds: float) -> Figure:
    return Figure(what=f"revoked until refused, {door}", value=seconds, unit="s", aim="< 5")


def sign_in(place: Installation, browser: httpx.Client) -> None:
    password = (place.home / "admin-password").read_text(encoding="utf-8").strip()
    browser.get("/login").raise_for_status()
    send_form(browser, "/login", username="admin", login="admin", password=password)
    if "sessionid" not in browser.cookies:
        raise RuntimeError("signing in did not work")


def sign_out(browser: httpx.Client) -> None:
    with httpx.Client(base_url=browser.base_url, cookies=dict(browser.cookies)) as other:
        send_form(other, "/logout")


def send_form(browser: httpx.Client, path: str, **fields: str) -> None:
    token = {"csrfmiddlewaretoken": browser.cookies["csrftoken"]}
    answer = browser.post(path, data={**token, **fields}, headers={"Origin": str(browser.base_url)})
    if answer.status_code not in {200, 302}:
        raise RuntimeError(f"{path}: {answer.status_code}")


def fill(admin: httpx.Client) -> None:
    admin.post(MODELS, json={"namespace": "admin", "name": "doors"}).raise_for_status()
    rows = "text,label\n" + "".join(f"words of row {row},{row % 2}\n" for row in range(200))
    admin.post("/api/v1/datasets", json={"namespace": "admin", "name": "rows"}).raise_for_status()
    admin.post(
        "/api/v1/datasets/admin/rows/versions", files={"file": ("train.csv", rows.encode())}
    ).raise_for_status()


def main() -> int:
    with running() as place, client_of(place, place.token) as admin:
        fill(admin)
        figures = create_at_once(place)
        admin.post(
            f"{ONE}/versions", files={"file": ("large.bin", bytes(256 << 20))}
        ).raise_for_status()
        figures += revoke_at_doors(place, admin)
    keep("doors", figures, rounds=ROUNDS)
    for one in figures:
        print(f"{one.what:75} {one.value:9.2f} {one.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
