"""`manage.py up`: start every part in order, keep it running, stop all of it on Ctrl-C."""

import contextlib
import errno
import fcntl
import http.client
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from config.environment import BadSetting, env_text
from config.local.account import ServerError, spawn
from config.local.addresses import Addresses
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
READY_SECONDS = 60.0
EXTERNAL_SECONDS = 5.0
TICK_SECONDS = 0.1
# Long enough for a job to write a checkpoint.
WORKER_GRACE_SECONDS = 25.0
# Long enough for calls of models to be answered.
SERVING_GRACE_SECONDS = 30.0
STOP_SECONDS = 90.0


class Stopped(Exception):  # noqa: N818 - a wish, not an error
    """Somebody asked for the end while the parts were still starting."""


def say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads on: no reason to stop serving
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


@dataclass
class Installation:
    """What runs on this machine: the settings that place it, and its children in start order."""

    home: Path
    host: str
    port: int
    # Every port, by the variable that sets it.
    ports: dict[str, int]
    samples: bool
    encoder: bool
    environment: dict[str, str]
    children: list[Child] = field(default_factory=list)
    wanted: threading.Event = field(default_factory=threading.Event)

    def stop_on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """Ask for the end; asked twice, stop waiting for anybody."""
        if self.wanted.is_set():
            for child in self.children:
                child.kill()
        self.wanted.set()

    def tick(self) -> None:
        """Start again what died, then wait a moment; raise when the end is wanted."""
        for child in self.children:
            if said := child.watch():
                say(said)
        if self.wanted.wait(TICK_SECONDS):
            raise Stopped

    def wait_for(self, what: str, problem: Callable[[], str], seconds: float) -> None:
        patience = time.monotonic() + seconds
        while found := problem():
            if time.monotonic() > patience:
                raise ServerError(f"{what}: {found}")
            self.tick()

    def start(self, child: Child) -> None:
        self.children.append(child)
        child.start()

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def stop(self) -> None:
        for child in reversed(self.children):
            child.stop()


def main(verb: str) -> int:
    """Run `up` or `down`, and return the exit status."""
    try:
        return up() if verb == "up" else down()
    except (BadSetting, ServerError) as error:
        sys.stderr.write(f"modelyard: {str(error).removeprefix('modelyard: ')}\n")
        return 1


def up() -> int:
    installation = read_installation()
    with only_one(installation.home):
        for variable, port in installation.ports.items():
            check_port(installation.host, port, variable)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, installation.stop_on_signal)
        try:
            start_servers(installation)
            run_once(installation, "prepare")
            start_web(installation)
            start_workers(installation)
            start_serving(installation)
            if installation.encoder:
                start_encoder(installation)
            announce(installation)
            while True:
                installation.tick()
        except Stopped:
            say("Stopping.")
        finally:
            installation.wanted.set()
            installation.stop()
    return 0


def read_installation() -> Installation:
    """Read the settings, which refuse a bad value, and nothing of the rest of Django."""
    from config import settings  # noqa: PLC0415 - reads the environment as it is imported

    addresses = Addresses(settings.HOME_DIR)
    environment = {**os.environ, "MODELYARD_HOME": str(addresses.home), "PYTHONUNBUFFERED": "1"}
    return Installation(
        home=addresses.home,
        host=settings.BIND,
        port=settings.WEB_PORT,
        ports={
            "MODELYARD_PORT": settings.WEB_PORT,
            "MODELYARD_INFER_PORT": settings.INFER_PORT,
            "MODELYARD_GRPC_PORT": settings.GRPC_PORT,
        },
        samples=settings.SAMPLES,
        encoder=settings.ENCODER,
        environment=environment,
    )


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the lock of the data folder; refuse when another `up` has it."""
    home.mkdir(mode=0o711, parents=True, exist_ok=True)
    with (home / "supervisor.lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ServerError(
                f"already running in {home} (process {file.read().strip()}); "
                "./dev down stops it, or set MODELYARD_HOME to another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)


def check_port(host: str, port: int, variable: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            in_use = error.errno in {errno.EADDRINUSE, errno.EACCES}
            raise BadSetting(
                variable if in_use else "MODELYARD_BIND",
                f"cannot listen on {host}:{port}: {error.strerror}",
            ) from error


def start_servers(installation: Installation) -> None:
    """Start the embedded servers, or see that the ones named in the environment answer."""
    addresses = Addresses(installation.home)
    database, broker = env_text("DATABASE_URL"), env_text("REDIS_URL")
    if not database:
        start_server(installation, prepare_postgres(addresses))
    if not broker:
        start_server(installation, prepare_valkey(addresses))
    if database:
        installation.wait_for("DATABASE_URL", lambda: database_problem(database), EXTERNAL_SECONDS)
    else:
        admin_url = addresses.database("postgres")
        installation.wait_for("postgres", lambda: database_problem(admin_url), READY_SECONDS)
        make_database(addresses)
    patience = EXTERNAL_SECONDS if broker else READY_SECONDS
    broker = broker or addresses.redis_url
    installation.wait_for("REDIS_URL", lambda: broker_problem(broker), patience)
    installation.environment["DATABASE_URL"] = database or addresses.database_url
    installation.environment["REDIS_URL"] = broker


def start_server(installation: Installation, server: Server) -> None:
    installation.start(
        Child(
            name=server.name,
            command=server.command,
            log=installation.log(server.name),
            account=server.account,
            stop_signal=server.stop_signal,
        )
    )


def run_once(installation: Installation, verb: str) -> None:
    """Run one of our own commands to its end; a failure ends the start with its last words."""
    log = installation.log(verb)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    with log.open("wb") as output:
        process = spawn(
            [sys.executable, ROOT / "manage.py", verb],
            output=output,
            environment=installation.environment,
            folder=ROOT,
        )
    try:
        while process.poll() is None:
            installation.tick()
    except Stopped:
        process.terminate()
        process.wait()
        raise
    if process.returncode != 0:
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ServerError(f"{words[-1] if words else f'{verb} failed'}; see {log}")


def start_web(installation: Installation) -> None:
    """Start the web server and wait for its first answer, with the machine to itself."""
    for name in ("MODELYARD_ADMIN_TOKEN", "MODELYARD_ADMIN_TOKEN_FILE"):
        installation.environment.pop(name, None)  # used by now; no other part needs to know it
    # Where the web server's processes add up their numbers for Prometheus.
    numbers = installation.home / "metrics"
    shutil.rmtree(numbers, ignore_errors=True)
    numbers.mkdir()
    installation.environment["PROMETHEUS_MULTIPROC_DIR"] = str(numbers)
    installation.start(program(installation, "web", web_command(installation), 10.0))
    installation.wait_for(
        f"the web server does not answer; see {installation.log('web')}",
        lambda: health_problem(address_of(installation), installation.port),
        READY_SECONDS,
    )


def start_workers(installation: Installation) -> None:
    celery = (sys.executable, "-m", "celery", "--app", "config.celery")
    worker = (*celery, *worker_options())
    installation.start(program(installation, "worker", worker, WORKER_GRACE_SECONDS))
    beat = (*celery, *beat_options(installation))
    installation.start(program(installation, "beat", beat, 5.0))
    if installation.samples:
        seed = program(installation, "seed", (sys.executable, "manage.py", "seed"), 5.0)
        seed.once = True
        installation.start(seed)


def start_serving(installation: Installation) -> None:
    """Start the inference server; models load in the background, and nothing waits for them."""
    command = (sys.executable, "-m", "workers.serving")
    installation.start(program(installation, "serving", command, SERVING_GRACE_SECONDS))


def start_encoder(installation: Installation) -> None:
    """Start what gives searches their meaning; until it answers they go by their words."""
    command = (sys.executable, "-m", "workers.encoder")
    installation.start(program(installation, "encoder", command, 5.0))


def program(installation: Installation, name: str, command: tuple[str, ...], grace: float) -> Child:
    return Child(
        name=name,
        command=command,
        log=installation.log(name),
        environment=installation.environment,
        folder=ROOT,
        grace_seconds=grace,
    )


def web_command(installation: Installation) -> tuple[str, ...]:
    workers = min(os.cpu_count() or 1, 4)
    # Left to itself it takes uvloop where that is installed, as the inference server wants it.
    options = (
        f"--interface asgi --loop asyncio --no-ws --host {installation.host} "
        f"--port {installation.port} --workers {workers} --respawn-failed-workers "
        "--workers-kill-timeout 5s"
    )
    return (sys.executable, "-m", "granian", *options.split(), "config.asgi:application")


def worker_options() -> tuple[str, ...]:
    """Serve every queue; each thread waits for one job's own process, so threads are enough."""
    jobs_at_once = max(1, (os.cpu_count() or 1) // 2)
    options = (
        f"worker --pool threads --concurrency {jobs_at_once} --queues default,cpu,gpu,webhooks "
        "--hostname worker@%h --loglevel INFO --without-gossip --without-mingle"
    )
    return tuple(options.split())


def beat_options(installation: Installation) -> tuple[str, ...]:
    return ("beat", "--schedule", str(installation.home / "beat-schedule"), "--loglevel", "INFO")


def address_of(installation: Installation) -> str:
    """Name the host that this machine itself can ask."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
    return everywhere.get(installation.host, installation.host)


def announce(installation: Installation) -> None:
    """Say where to look and how to sign in."""
    home = shlex.quote(str(installation.home))
    host = address_of(installation)
    site = f"http://{f'[{host}]' if ':' in host else host}"
    address = f"{site}:{installation.port}"
    models = f"{site}:{installation.ports['MODELYARD_INFER_PORT']}"
    say(
        f"\nModelyard is ready: {address}/  (API: {address}/api/docs)\n"
        f"  sign in as    admin, with the password in {home}/admin-password\n"
        f"  call models   {models}/v2 (gRPC: port {installation.ports['MODELYARD_GRPC_PORT']})\n"
        f"  for programs  the token in {home}/admin-token\n"
        f"  logs          {home}/logs\n"
        "  stop          Ctrl-C"
    )
    if installation.samples:
        say("Samples that are missing arrive in the background.")


def health_problem(host: str, port: int) -> str:
    """Say why the web server is not healthy; nothing when it is."""
    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        connection.close()
    return "" if status == http.client.OK else f"/healthz answers {status}"


def down() -> int:
    """Stop the `up` that runs in the data folder, and wait until it has ended."""
    home = read_installation().home
    lock = home / "supervisor.lock"
    if not lock.exists() or not (number := lock.read_text(encoding="ascii").strip()):
        say(f"Nothing runs in {home}.")
        return 0
    patience = time.monotonic() + STOP_SECONDS
    with lock.open("a+", encoding="ascii") as file:
        asked = False
        while time.monotonic() < patience:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not asked:
                    os.kill(int(number), signal.SIGTERM)
                    asked = True
                time.sleep(TICK_SECONDS)
                continue
            say(f"Stopped what ran in {home}." if asked else f"Nothing runs in {home}.")
            return 0
    raise ServerError(f"process {number} in {home} has not stopped after {STOP_SECONDS:g} s")
