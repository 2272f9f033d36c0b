"""Postgres and Valkey for the tests: started by the first test process, stopped after the last.

A keeper process holds both servers while anybody holds the lock `users`. Each test process takes
a slot: a database, a Valkey number and a data folder of its own, so that test runs that overlap
(xdist workers, two terminals) never meet.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from config.local.account import ServerError
from config.local.addresses import Addresses
from config.local.catalogues import compile_catalogues
from config.local.process import Child
from config.local.servers import (
    Server,
    broker_problem,
    database_problem,
    make_database,
    prepare_postgres,
    prepare_valkey,
)

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "var" / "test"
SLOTS = 60
IDLE_SECONDS = 30.0
READY_SECONDS = 60.0
# Lost with the machine, and that is fine: the rows of tests are worth no fsync.
HASTE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=128MB")

_held: list[int] = []


def fill_environment() -> int:
    """Point Django at the test servers, which run when this returns; return our slot."""
    # An xdist worker inherits the variables of its controller, and needs a slot of its own.
    process = os.environ.get("PYTEST_XDIST_WORKER", "main")
    owner, _, number = os.environ.get("MODELYARD_TEST_SLOT", "").partition(":")
    if owner == process:
        return int(number)
    FOLDER.mkdir(parents=True, exist_ok=True)
    addresses = Addresses(FOLDER)
    _held.append(_lock("users", fcntl.LOCK_SH))
    starting = _lock("start", fcntl.LOCK_EX)
    if not _keeper_runs():
        _start_keeper(addresses)
    compile_catalogues()
    os.close(starting)
    slot = _take_slot()
    home = FOLDER / f"home-{slot}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o711)
    os.environ["DATABASE_URL"] = addresses.database_url
    os.environ["REDIS_URL"] = addresses.redis(slot)
    os.environ["MODELYARD_HOME"] = str(home)
    os.environ["MODELYARD_TEST_SLOT"] = f"{process}:{slot}"
    return slot


def _lock(name: str, kind: int) -> int:
    """Take a lock that lasts until the descriptor is closed, by hand or with the process."""
    descriptor = os.open(FOLDER / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def _take_slot() -> int:
    for slot in range(1, SLOTS):
        try:
            _held.append(_lock(f"slot-{slot}", fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            continue
        return slot
    raise ServerError(f"{SLOTS} test processes run already")


def _keeper_runs() -> bool:
    try:
        os.close(_lock("keeper", fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    return False


def _start_keeper(addresses: Addresses) -> None:
    log = FOLDER / "keeper.log"
    with log.open("wb") as output:
        started = subprocess.run(
            [sys.executable, "-m", "config.local.for_tests"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )
    if started.returncode != 0:
        said = log.read_text(encoding="utf-8", errors="replace")
        raise ServerError(f"the test servers of {addresses.home} did not start:\n{said}")


def main() -> None:
    """Leave a keeper behind, and return when its servers answer (or it has failed)."""
    outcome, told = os.pipe()
    if os.fork():
        os.close(told)
        sys.exit(0 if os.read(outcome, 1) else 1)
    os.close(outcome)
    _keep(told)


def _keep(ready: int) -> None:
    """Run both servers until nobody has used them for a while."""
    _lock("keeper", fcntl.LOCK_EX | fcntl.LOCK_NB)
    addresses = Addresses(FOLDER)
    postgres = prepare_postgres(addresses)
    haste = tuple(part for setting in HASTE for part in ("-c", setting))
    children = [_child(postgres, *haste), _child(prepare_valkey(addresses))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for child in children:
            child.start()
        _wait_until_ready(addresses, children)
        make_database(addresses)
        os.write(ready, b"1")
        os.close(ready)
        _watch_until_idle(children)
    finally:
        for child in reversed(children):
            child.stop()


def _child(server: Server, *more: str) -> Child:
    return Child(
        name=server.name,
        command=(*server.command, *more),
        log=FOLDER / "logs" / f"{server.name}.log",
        account=server.account,
        stop_signal=server.stop_signal,
    )


def _wait_until_ready(addresses: Addresses, children: list[Child]) -> None:
    patience = time.monotonic() + READY_SECONDS
    while problem := (
        database_problem(addresses.database("postgres")) or broker_problem(addresses.redis_url)
    ):
        for child in children:
            child.watch()
        if time.monotonic() > patience:
            raise ServerError(f"{problem}; see {FOLDER / 'logs'}")
        time.sleep(0.05)


def _watch_until_idle(children: list[Child]) -> None:
    last_use = time.monotonic()
    while True:
        for child in children:
            if said := child.watch():
                print(said, flush=True)  # noqa: T201 - the keeper's log
        try:
            users = _lock("users", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            last_use = time.monotonic()
        else:
            if time.monotonic() - last_use > IDLE_SECONDS:
                for child in children:
                    child.stop()
                return  # the lock goes with this process, after the servers have
            os.close(users)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
