"""Which server, and with which token: from the call, the environment, or the user's own file."""

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from modelyard.errors import NotConfigured
from modelyard.state import config_folder, read_json, write_json

URL_VARIABLE = "MODELYARD_URL"
TOKEN_VARIABLE = "MODELYARD_TOKEN"  # noqa: S105 - the name of a variable
_TOKEN = re.compile(r"[\x21-\x7e]{1,1000}")


class Server(NamedTuple):
    """Where to send requests, and the token that goes with them."""

    url: str
    token: str


def find_server(url: str | None = None, token: str | None = None) -> Server:
    """Choose the server and its token: what is given, then the environment, then the file.

    Raises:
        NotConfigured: no server is named anywhere, or a name or a token cannot be one.

    """
    kept = _Kept()
    named = url or os.environ.get(URL_VARIABLE) or kept.default
    if not named:
        raise NotConfigured(
            f"No server is named: set {URL_VARIABLE}, or run `modelyard login --url https://...`."
        )
    address = check_url(named)
    secret = token if token is not None else os.environ.get(TOKEN_VARIABLE, "")
    return Server(address, check_token(secret.strip() or kept.tokens.get(address, "")))


def check_url(url: str) -> str:
    """Give an address back in its plain form, without what has no place there."""
    try:
        parts = urlsplit(url.strip())
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = None
    if not valid or parts.username is not None or parts.query or parts.fragment:
        raise NotConfigured(
            f"{url[:200]!r} is no address of a server; write one such as https://models.example.org"
        )
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def check_token(token: str) -> str:
    if token and not _TOKEN.fullmatch(token):
        raise NotConfigured("The token has characters in it that no token has; copy it again.")
    return token


def is_on_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def remember(server: Server) -> Path:
    """Keep a server and its token, readable by this user alone, and make it the default."""
    kept = _Kept()
    kept.tokens[server.url] = server.token
    return kept.write(server.url)


def forget(url: str) -> bool:
    """Remove the token of a server; say whether there was one."""
    kept = _Kept()
    known = kept.tokens.pop(url, None) is not None
    if known:
        kept.write(kept.default)
    return known


class _Kept:
    """The file with the tokens, one for each server."""

    def __init__(self) -> None:
        self.path = config_folder() / "servers.json"
        content = read_json(self.path)
        default, tokens = content.get("default"), content.get("tokens")
        self.default = default if isinstance(default, str) else ""
        self.tokens = {
            url: token
            for url, token in (tokens if isinstance(tokens, dict) else {}).items()
            if isinstance(token, str)
        }

    def write(self, default: str) -> Path:
        write_json(self.path, {"default": default, "tokens": self.tokens})
        return self.path
