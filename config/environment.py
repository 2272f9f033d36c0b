"""Typed readers of the environment; a bad value stops the start with one line that names it."""

import os
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class BadSetting(SystemExit):
    """One line on stderr and exit status 1, instead of a traceback."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"modelyard: {name}: {problem}")


def env_text(name: str, default: str = "") -> str:
    """Read `name`, or the content of the file that `name_FILE` points at."""
    if path := os.environ.get(f"{name}_FILE"):
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSetting(f"{name}_FILE", f"cannot read {path!r}: {error}") from error
    return os.environ.get(name, "") or default


def env_bool(name: str, *, default: bool) -> bool:
    text = env_text(name, "1" if default else "0").lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off"}:
        return False
    raise BadSetting(name, f"{text!r} is neither 1 nor 0")


def env_int(name: str, *, default: int, low: int, high: int) -> int:
    text = env_text(name, str(default))
    try:
        value = int(text)
    except ValueError as error:
        raise BadSetting(name, f"{text!r} is not a whole number") from error
    if not low <= value <= high:
        raise BadSetting(name, f"{value} is not between {low} and {high}")
    return value


def env_list(name: str, default: str) -> list[str]:
    return [part.strip() for part in env_text(name, default).split(",") if part.strip()]


def env_one_of(name: str, default: str, choices: Sequence[str]) -> str:
    text = env_text(name, default).lower()
    if text not in choices:
        raise BadSetting(name, f"{text!r} is none of {', '.join(choices)}")
    return text


def env_networks(name: str) -> list[IPv4Network | IPv6Network]:
    """Read addresses and networks, such as `10.0.0.0/8, ::1`."""
    try:
        return [ip_network(part) for part in env_list(name, "")]
    except ValueError as error:
        raise BadSetting(name, f"must list addresses or networks: {error}") from error


def env_issuer(name: str) -> str:
    """Read the address of an OpenID Connect provider; plain HTTP only within this machine."""
    text = env_text(name)
    url = urlsplit(text)
    local = url.scheme == "http" and url.hostname in {"localhost", "127.0.0.1", "::1"}
    good = (url.scheme == "https" or local) and url.hostname and not (url.query or url.fragment)
    if text and not (good and url.username is None):
        raise BadSetting(name, "must look like https://login.example.org, as the provider says it")
    return text


def env_grpc(name: str) -> str:
    """Read where callers reach gRPC: `grpcs://host:port` behind TLS, else `grpc://` or neither."""
    text = env_text(name)
    if not text:
        return ""
    problem = "must look like grpcs://models.example.org:443, grpc:// or host:port without TLS"
    try:
        url = urlsplit(text if "://" in text else f"grpc://{text}")
        has_port = url.port is not None and url.port > 0
    except ValueError as error:
        raise BadSetting(name, f"{problem}: {error}") from error
    plain = not (url.path.strip("/") or url.query or url.fragment) and "@" not in url.netloc
    if url.scheme not in {"grpc", "grpcs"} or not url.hostname or not has_port or not plain:
        raise BadSetting(name, problem)
    return f"{url.scheme}://{url.netloc}"


def env_ports(name: str, default: str) -> frozenset[int]:
    texts = env_list(name, default)
    try:
        ports = frozenset(map(int, texts))
    except ValueError as error:
        raise BadSetting(name, f"is no list of ports: {error}") from error
    if not all(1 <= port <= 65535 for port in ports):
        raise BadSetting(name, "has a port that is not between 1 and 65535")
    return ports


def env_database(name: str, default: str) -> dict[str, Any]:
    """Turn a `postgresql://` URL into Django's terms; a socket folder may stand in `?host=`."""
    url = urlsplit(env_text(name, default))
    if url.scheme not in {"postgresql", "postgres"}:
        raise BadSetting(name, "must look like postgresql://user:password@host:5432/database")
    query = {key: values[-1] for key, values in parse_qs(url.query).items()}
    try:
        port = url.port
    except ValueError as error:
        raise BadSetting(name, f"bad port: {error}") from error
    return {
        "ENGINE": "registry.database",
        "NAME": unquote(url.path.lstrip("/")) or "modelyard",
        "USER": unquote(url.username or "") or query.pop("user", ""),
        "PASSWORD": unquote(url.password or "") or query.pop("password", ""),
        "HOST": query.pop("host", "") or (url.hostname or ""),
        "PORT": query.pop("port", "") or (str(port) if port else ""),
        "OPTIONS": dict(query),
    }


def env_redis(name: str, default: str) -> str:
    url = env_text(name, default)
    if urlsplit(url).scheme not in {"redis", "rediss", "unix"}:
        raise BadSetting(name, "must look like redis://host:6379/0 or unix:///path/to/socket")
    return url


def env_storage(name: str, default: str) -> str:
    url = env_text(name, default)
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return url
    if parts.scheme == "s3" and parts.netloc:
        return url
    raise BadSetting(name, "must look like file:///path or s3://bucket/prefix?endpoint=https://…")


def env_old_secrets(name: str, *, shortest: int) -> list[str]:
    """Read secrets that were replaced, newest first, apart by spaces or lines."""
    secrets = env_text(name).split()
    if any(len(one) < shortest for one in secrets):
        raise BadSetting(name, f"holds a key that is shorter than {shortest} characters")
    return secrets


def env_signing_key(name: str) -> str:
    """Read a private key in PEM, or nothing where none is given."""
    text = env_text(name)
    if not text:
        return ""
    # Only an installation that brings its own key pays for the import at each start.
    from registry.signing import read_private_key  # noqa: PLC0415

    try:
        read_private_key(text)
    except ValueError as error:
        raise BadSetting(name, f"cannot be used as a signing key: {error}") from error
    return text


def env_master_keys(name: str) -> str:
    """Read the master keys that wrap the keys of blobs, or nothing where none is given."""
    text, path = env_text(name), os.environ.get(f"{name}_FILE")
    if not text and not path:
        return ""
    # Only an installation that encrypts pays for the import at each start.
    from registry.encryption import BadMasterKeyError, parse_master_keys  # noqa: PLC0415

    try:
        keys = parse_master_keys(text)
    except BadMasterKeyError as error:
        raise BadSetting(name, str(error)) from None
    if not keys:
        raise BadSetting(f"{name}_FILE" if path else name, "holds no key")
    return text
