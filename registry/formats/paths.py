"""Which names a file inside a version may have, so that it can be laid out on any system."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from registry.errors import Invalid

MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_DEPTH = 32

_FORBIDDEN = frozenset('<>:"|?*\\')
_DEVICES = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE
)
# Control, format (bidirectional and invisible), private, surrogate and unassigned characters.
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def check_path(path: str) -> str:
    """Give the path back when it is safe to use; raise Invalid that says what is wrong."""
    if not path:
        raise _bad(path, "The path {path} is empty.")
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad(path, "The path {path} has a broken character in it.") from None
    if len(encoded) > MAX_PATH_BYTES:
        raise _bad(path, "The path {path} is longer than {limit} bytes.", limit=MAX_PATH_BYTES)
    _check_characters(path)
    if not unicodedata.is_normalized("NFC", path):
        raise _bad(path, "The path {path} is not in Unicode normal form C.")
    names = path.split("/")
    if len(names) > MAX_DEPTH:
        raise _bad(path, "The path {path} lies deeper than {limit} folders.", limit=MAX_DEPTH)
    for name in names:
        _check_name(path, name)
    if names[0].lower() == ".git":
        raise _bad(path, "The path {path} lies in .git, which is git's own.")
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Refuse two names that are one on some system, and a name that is file and folder at once."""
    files: dict[str, str] = {}
    for path in paths:
        key = _same_on_some_system(check_path(path))
        if key in files:
            raise _bad(
                path,
                "The path {path} differs from {other!r} only in case or in form.",
                other=files[key],
            )
        files[key] = path
    for key, path in files.items():
        parts = key.split("/")
        for depth in range(1, len(parts)):
            if (folder := "/".join(parts[:depth])) in files:
                raise _bad(
                    path,
                    "The path {path} lies below {other!r}, which is a file.",
                    other=files[folder],
                )


def _check_characters(path: str) -> None:
    for character in path:
        if character in _FORBIDDEN:
            raise _bad(
                path,
                "The path {path} has {character!r} in it; use / between folders and plain names.",
                character=character,
            )
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES:
            raise _bad(
                path,
                "The path {path} has the invisible character U+{character:04X} in it.",
                character=ord(character),
            )


def _check_name(path: str, name: str) -> None:
    if name == "":
        raise _bad(
            path, "The path {path} begins or ends with / or has // in it; paths are relative."
        )
    if name in {".", ".."}:
        raise _bad(
            path,
            "The path {path} has {name!r} in it; paths name a file below the version.",
            name=name,
        )
    if len(name.encode()) > MAX_NAME_BYTES:
        raise _bad(
            path, "The path {path} has a name longer than {limit} bytes.", limit=MAX_NAME_BYTES
        )
    if name != name.strip() or name.endswith("."):
        raise _bad(
            path, "The path {path} has a name that begins or ends with a space or ends with a dot."
        )
    if _DEVICES.fullmatch(name):
        raise _bad(path, "The path {path} has the device name {name!r} in it.", name=name)


def _same_on_some_system(path: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def _bad(path: str, template: str, /, **values: Any) -> Invalid:
    shown = ascii(path if len(path) <= 80 else path[:80] + "...")
    return Invalid(template, code="bad_path", path=shown, **values)
