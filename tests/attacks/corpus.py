"""What a hostile upload is: bytes or a request, made by a small function, and the answer expected.

To add one, write a function into a module of `uploads/`. Its name says what the upload is, and a
decorator what must happen:

    @hostile("model.safetensors", refused("leaves a gap"))
    def a_gap_between_two_tensors():
        return safetensors(...)

A function that gives bytes is sent as the named file through the form and through tus. One that
takes `canary` may make its bytes call it: nothing ever does. `@request(...)` marks a function that
takes `door` and speaks HTTP itself; `@name(...)` a name (or several) that a file is to have.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Refused:
    """A problem document: its status, its code, and words of its detail."""

    says: str
    code: str
    status: int


@dataclass(frozen=True)
class Held:
    """Taken in and quarantined; `reason` is what the sandbox says for not converting it."""

    format: str
    finds: str
    imports: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Kept:
    """Taken in as what it is: opaque bytes or harmless text, with a finding that warns."""

    format: str
    finds: str = ""
    verdict: str = "opaque"
    # What the page of the model must not contain.
    absent: tuple[str, ...] = ()


Expected = Refused | Held | Kept


@dataclass(frozen=True)
class Case:
    """One hostile upload."""

    name: str
    expected: Expected
    make: Callable[..., Any]
    path: str = ""
    # Names that files are to have together; for the cases that are about names alone.
    names: tuple[str, ...] = ()
    doors: tuple[Refused, ...] = ()
    speaks: bool = field(default=False)

    def bytes(self, canary: Any) -> bytes:
        return self.make(canary) if inspect.signature(self.make).parameters else self.make()


@dataclass(frozen=True)
class Good:
    """A file that must pass, and what its inspection has to say of it."""

    name: str
    format: str
    path: str
    make: Callable[[], Any]
    facts: dict[str, Any]


HOSTILE: dict[str, Case] = {}
GOOD: dict[str, Good] = {}


def refused(says: str, code: str = "malformed_file", status: int = 400) -> Refused:
    return Refused(says, code, status)


def held(
    format_name: str, finds: str = "can run", *imports: str, reason: str = "can execute code"
) -> Held:
    return Held(format_name, finds, imports, reason)


def kept(
    format_name: str, finds: str = "", *, verdict: str = "opaque", absent: tuple[str, ...] = ()
) -> Kept:
    return Kept(format_name, finds, verdict, absent)


def hostile(
    path: str, expected: Expected
) -> Callable[[Callable[..., bytes]], Callable[..., bytes]]:
    """Mark a function that makes the bytes of a file."""

    def mark(make: Callable[..., bytes]) -> Callable[..., bytes]:
        _add(HOSTILE, Case(_name_of(make), expected, make, path=path))
        return make

    return mark


def request(expected: Expected) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function that speaks HTTP itself and gives the answer."""

    def mark(make: Callable[..., Any]) -> Callable[..., Any]:
        _add(HOSTILE, Case(_name_of(make), expected, make, speaks=True))
        return make

    return mark


def name(
    what: str, *names: str, says: str, form: Refused | None = None, json: Refused | None = None
) -> None:
    """Declare a name that no file may have, or names that no two files may have together.

    `form` and `json` are what those doors say where they stumble over it before it is a name.
    """
    expected = refused(says, "bad_path")
    doors = (form or expected, json or expected)
    _add(HOSTILE, Case(f"names: {what}", expected, lambda: b"x", names=names, doors=doors))


def good(
    format_name: str, path: str, *, called: str = "", **facts: Any
) -> Callable[[Callable[[], Any]], Any]:
    """Mark a function that makes a good file: its bytes, or all files by path that belong to it."""

    def mark(make: Callable[[], Any]) -> Callable[[], Any]:
        name = f"{format_name}: {called or make.__name__.replace('_', ' ')}"
        _add(GOOD, Good(name, format_name, path, make, facts))
        return make

    return mark


@cache
def hostile_cases() -> dict[str, Case]:
    """Load every module of `uploads/`."""
    _load("uploads")
    return HOSTILE


@cache
def good_files() -> dict[str, Good]:
    """Load every module of `good/`."""
    _load("good")
    return GOOD


def _load(folder: str) -> None:
    for path in sorted((HERE / folder).glob("*.py")):
        import_module(f"tests.attacks.{folder}.{path.stem}")


def _name_of(make: Callable[..., Any]) -> str:
    return f"{make.__module__.rpartition('.')[2]}: {make.__name__.replace('_', ' ')}"


def _add(known: dict[str, Any], case: Any) -> None:
    assert case.name not in known, case.name
    known[case.name] = case
