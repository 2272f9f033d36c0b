"""Where the embedded servers of one data folder listen, and the passwords that open them."""

import hashlib
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from registry.kept import keep_secret

# A Unix socket address holds 107 bytes; the longest name that goes below `run` takes 35 of them.
_LONGEST_RUN_FOLDER = 70


@dataclass(frozen=True)
class Addresses:
    """The sockets, passwords and URLs of the servers that belong to one data folder."""

    home: Path

    @property
    def run(self) -> Path:
        """Hold the sockets, in the data folder unless its path is too long for a socket."""
        folder = self.home / "run"
        if len(os.fsencode(folder)) <= _LONGEST_RUN_FOLDER:
            return folder
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"modelyard-{os.geteuid()}-{name}"

    @property
    def postgres_sockets(self) -> Path:
        return self.run / "postgres"

    @property
    def valkey_socket(self) -> Path:
        return self.run / "valkey" / "valkey.sock"

    @property
    def database_url(self) -> str:
        return self.database("modelyard")

    def database(self, name: str) -> str:
        password = self.password("postgres")
        return f"postgresql://modelyard:{password}@/{name}?host={quote(str(self.postgres_sockets))}"

    @property
    def redis_url(self) -> str:
        return self.redis(0)

    def redis(self, number: int) -> str:
        return f"unix://:{self.password('valkey')}@{quote(str(self.valkey_socket))}?db={number}"

    def password(self, server: str) -> str:
        """Read the password of a server; the first reader makes it."""
        return kept_secret(self.home / f"{server}-password")


def kept_secret(path: Path, value: str = "") -> str:
    """Read the secret in `path`, or leave one there: `value`, or a new one."""
    return keep_secret(path, lambda: value or secrets.token_urlsafe(24))


def fill_environment() -> None:
    """Point a command at the embedded servers, where no other servers are named."""
    home = Path(os.environ.get("MODELYARD_HOME") or Path(__file__).parents[2] / "var").absolute()
    addresses = Addresses(home)
    if not _named("DATABASE_URL") and (home / "postgres").is_dir():
        os.environ["DATABASE_URL"] = addresses.database_url
    if not _named("REDIS_URL") and (home / "valkey").is_dir():
        os.environ["REDIS_URL"] = addresses.redis_url


def _named(variable: str) -> bool:
    return bool(os.environ.get(variable) or os.environ.get(f"{variable}_FILE"))
