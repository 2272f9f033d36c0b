"""Names: references such as `team/model@champion`, and the paths that are safe on a disk."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from modelyard.errors import BadName

# The folder inside a pulled folder that belongs to this client.
PRIVATE_FOLDER = ".modelyard"

_REFERENCE = re.compile(
    r"(?P<namespace>[A-Za-z0-9][A-Za-z0-9_-]{0,63})/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127})"
    r"(?:(?:@|:)(?P<version>[\w-]{1,255}))?"
)
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_MAX_PATH_BYTES = 1024
_MAX_NAME_BYTES = 255
_MAX_DEPTH = 32
_FORBIDDEN = frozenset('<>:"|?*\\')
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
_DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Reference:
    """A repository and, maybe, one of its versions as the user wrote it."""

    namespace: str
    name: str
    version: str = ""

    @property
    def repository(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def selector(self) -> str:
        """The version as an address of the API writes it."""
        if not self.version or self.version == "latest":
            return "latest"
        return self.version if _NUMBER.fullmatch(self.version) else f"@{self.version}"

    def __str__(self) -> str:
        return f"{self.repository}@{self.version}" if self.version else self.repository


def parse_reference(text: str) -> Reference:
    """Read `namespace/name`, alone or with `@alias`, `@3`, `:alias` or `:3`.

    Raises:
        BadName: the text is no such name.

    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise BadName(
            f"{text[:120]!r} names no model; write namespace/name, or namespace/name@version with "
            "a number, an alias or 'latest' as the version."
        )
    return Reference(match["namespace"], match["name"], match["version"] or "")


def segment(text: str) -> str:
    """Write a name as one part of an address, which it can never leave.

    Raises:
        BadName: it is one of those that mean another place.

    """
    if text in {"", ".", ".."} or "/" in text or not text.isprintable():
        raise BadName(f"{text[:120]!r} names nothing.")
    return quote(text, safe="@")


def check_path(path: str) -> str:
    """Give the path of a file in a version back if every system can lay it out safely.

    The server keeps the same rules; they are checked here because a server may be anybody's.

    Raises:
        BadName: saying what is wrong with it.

    """
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad(path, "has a broken character in it") from None
    if len(encoded) > _MAX_PATH_BYTES:
        raise _bad(path, f"is longer than {_MAX_PATH_BYTES} bytes")
    for character in path:
        if character in _FORBIDDEN:
            raise _bad(path, f"has the character {character!r} in it")
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES:
            raise _bad(path, f"has the invisible character U+{ord(character):04X} in it")
    if not unicodedata.is_normalized("NFC", path):
        raise _bad(path, "is not in Unicode normal form C")
    names = path.split("/")
    if len(names) > _MAX_DEPTH:
        raise _bad(path, f"lies deeper than {_MAX_DEPTH} folders")
    for name in names:
        _check_name(path, name)
    if names[0].lower() in {".git", PRIVATE_FOLDER}:
        raise _bad(path, f"lies in {names[0]}, which is not for files of a version")
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Check each path, and that no two of them would be one file on some system.

    Raises:
        BadName: naming the path.

    """
    known = Paths()
    for path in paths:
        known.add(path)


class Paths:
    """The paths of one folder, each checked as it comes, by itself and beside those before it."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        # Each folder, by the first file that lies in it.
        self._folders: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files.values())

    def add(self, path: str) -> None:
        """Take one more.

        Raises:
            BadName: naming the path.

        """
        key = _same_on_some_system(check_path(path))
        if key in self._files:
            raise _bad(path, f"differs from {self._files[key]!r} only in case or in form")
        if key in self._folders:
            raise _bad(self._folders[key], f"lies below {path!r}, which is a file")
        parts = key.split("/")
        folders = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        for folder in folders:
            if folder in self._files:
                raise _bad(path, f"lies below {self._files[folder]!r}, which is a file")
        for folder in folders:
            self._folders.setdefault(folder, path)
        self._files[key] = path


def _check_name(path: str, name: str) -> None:
    if name == "":
        raise _bad(path, "is empty, or begins or ends with /, or has // in it")
    if name in {".", ".."}:
        raise _bad(path, f"has {name!r} in it")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise _bad(path, f"has a name longer than {_MAX_NAME_BYTES} bytes")
    if name != name.strip() or name.endswith("."):
        raise _bad(path, "has a name that begins or ends with a space or ends with a dot")
    if _DEVICES.fullmatch(name):
        raise _bad(path, f"has the device name {name!r} in it")


def _same_on_some_system(path: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def _bad(path: str, reason: str) -> BadName:
    shown = ascii(path if len(path) <= 80 else path[:80] + "...")
    return BadName(f"The path {shown} {reason}.")
