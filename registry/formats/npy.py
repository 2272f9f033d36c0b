"""Reads the header of a NumPy array file."""

import ast
import math
import re
from typing import Any

from registry.errors import Invalid, Text
from registry.formats.facts import Facts, ReadRange, Tensor, Tensors, in_figures, malformed

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
MAX_DEPTH = 32

_PLAIN_DTYPE = re.compile(r"[<>|=]?([biufcSUVmM?])(\d{0,9})(\[.{1,20}\])?")
# What a type has that names no width.
_USUAL_BYTES = {"?": 1, "b": 1, "c": 1, "i": 4, "f": 4, "S": 0, "U": 0, "V": 0}


def read_npy(size: int, read: ReadRange, *, name: str = "") -> Facts:
    """Read an array of `size` bytes; one that holds Python objects is a pickle inside."""
    head = read(0, min(size, 12))
    if not head.startswith(MAGIC) or len(head) < 10:
        raise malformed("The npy file does not begin as one.")
    if head[6] not in {1, 2, 3}:
        raise malformed("The npy file has the unknown version {version}.", version=head[6])
    prefix = 10 if head[6] == 1 else 12
    length = int.from_bytes(head[8:prefix], "little")
    if length > MAX_HEADER_BYTES:
        raise malformed(
            "The npy header claims {length} bytes; at most {limit} are read.",
            length=length,
            limit=MAX_HEADER_BYTES,
        )
    if prefix + length > size:
        raise malformed("The npy file is cut short inside its header.")
    header = _parse(read(prefix, prefix + length), head[6])
    descr, shape = header["descr"], header["shape"]
    if _holds_objects(descr, 0):
        return Facts(
            format="npy",
            executable=True,
            findings=(Text("The array holds Python objects, which are stored as a pickle."),),
        )
    expected = math.prod(shape) * _item_bytes(descr)
    if expected != size - prefix - length:
        raise malformed(
            "The npy array of dtype {dtype} and shape {shape} needs {expected} bytes and "
            "{found} follow its header.",
            dtype=str(descr)[:80],
            shape=str(shape)[:80],
            expected=in_figures(expected),
            found=size - prefix - length,
        )
    dtype = descr if isinstance(descr, str) else "structured"
    return Facts(format="npy", tensors=Tensors.of([Tensor(name, dtype, shape)]))


def _parse(raw: bytes, version: int) -> dict[str, Any]:
    try:
        text = raw.decode("utf-8" if version == 3 else "latin-1")
        header = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise malformed("The npy header is no plain Python literal.") from None
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise malformed("The npy header must have exactly descr, fortran_order and shape.")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not _are_sizes(shape):
        raise malformed("The npy header has a shape that is no short tuple of sizes.")
    if not isinstance(header["fortran_order"], bool):
        raise malformed("The npy header has a fortran_order that is neither True nor False.")
    return header


def _holds_objects(descr: Any, depth: int) -> bool:
    if isinstance(descr, str):
        return re.fullmatch(r"[<>|=]?O\d*", descr) is not None
    if isinstance(descr, list) and depth < MAX_DEPTH:
        fields = (part for part in descr if isinstance(part, tuple) and len(part) > 1)
        return any(_holds_objects(part[1], depth + 1) for part in fields)
    return False


def _item_bytes(descr: Any, depth: int = 0) -> int:
    """Count the bytes of an element: of a plain type, or of a structure of named fields."""
    if isinstance(descr, list) and depth < MAX_DEPTH:
        return sum(_field_bytes(part, depth) for part in descr)
    match = _PLAIN_DTYPE.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise _unknown(descr)
    kind, width = match.group(1), match.group(2)
    if not width:
        if kind not in _USUAL_BYTES:
            raise _unknown(descr)
        return _USUAL_BYTES[kind]
    return int(width) * (4 if kind == "U" else 1)


def _field_bytes(part: Any, depth: int) -> int:
    """Count the bytes of `(name, type)` or `(name, type, shape)`."""
    if not isinstance(part, tuple) or len(part) not in {2, 3}:
        raise _unknown(part)
    counts = part[2] if len(part) == 3 else ()
    if isinstance(counts, int):
        counts = (counts,)
    if not isinstance(counts, tuple) or not _are_sizes(counts):
        raise _unknown(part)
    return math.prod(counts) * _item_bytes(part[1], depth + 1)


def _are_sizes(values: tuple[Any, ...]) -> bool:
    return len(values) <= 64 and all(type(item) is int and 0 <= item < 2**63 for item in values)


def _unknown(descr: object) -> Invalid:
    return malformed("The npy header has the unknown dtype {dtype!r}.", dtype=str(descr)[:80])
