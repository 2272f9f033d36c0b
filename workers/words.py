"""Cleans what a process says that has opened files of strangers: its words are input like any."""

import math
import re
import string
from typing import Any

LONGEST = 4000
_MAX_VALUES = 20
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_FOLDERS = re.compile(r"(?<![\w/:.~-])/(?:[^\s/'\"`:,;()<>|]+/)+")


def clean_text(text: object, *, longest: int = LONGEST) -> str:
    """Take out what a database or a terminal would trip over, and the folders of this machine."""
    plain = str(text).encode("utf-8", "replace").decode()
    return _FOLDERS.sub("", _CONTROL.sub("", plain))[:longest]


def clean_said(said: object, *, depth: int = 3) -> dict[str, Any] | None:
    """Read a template and its values (`registry.errors.pack`).

    A template that does more than name its values is none of ours: `{a:>999999999}` is a large
    text, and `{a.b}` looks into things.
    """
    if not isinstance(said, dict) or depth == 0:
        return None
    template, values = clean_text(said.get("template")), said.get("values")
    if not isinstance(said.get("template"), str) or not isinstance(values, dict):
        return None
    if not _only_names(template):
        return None
    cleaned = {}
    for name, value in list(values.items())[:_MAX_VALUES]:
        if isinstance(value, dict):
            cleaned[name[:100]] = clean_said(value, depth=depth - 1) or ""
        else:
            number = finite(value)
            cleaned[name[:100]] = clean_text(value) if number is None else value
    return {"template": template, "values": cleaned}


def finite(value: object) -> float | None:
    """Give a number that a row can hold, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _only_names(template: str) -> bool:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        return False
    return all(name is None or (name.isidentifier() and not spec) for _, name, spec, _ in parts)
