"""Reads the header of a NumPy array file."""

import ast
import math
import re
from typing import Any

from registry.errors import Text
from registry.formats.facts import Facts, ReadRange, Tensor, Tensors, malformed

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000

_PLAIN_DTYPE = re.compile(r"[<>|=]?([biufcSUVmM?])(\d{0,9})(\[.{1,20}\])?")


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
    if _holds_objects(descr):
        return Facts(
            format="npy",
            executable=True,
            findings=(Text("The array holds Python objects, which are stored as a pickle."),),
        )
    item_bytes = _item_bytes(descr)
    expected = math.prod(shape) * item_bytes if item_bytes is not None else None
    if expected is not None and expected != size - prefix - length:
        raise malformed(
            "The npy array of dtype {dtype} and shape {shape} needs {expected} bytes and "
            "{found} follow its header.",
            dtype=descr,
            shape=shape,
            expected=expected,
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
    if (
        not isinstance(shape, tuple)
        or len(shape) > 64
        or not all(type(item) is int and 0 <= item < 2**63 for item in shape)
    ):
        raise malformed("The npy header has a shape that is no short tuple of sizes.")
    return header


def _holds_objects(descr: Any) -> bool:
    if isinstance(descr, str):
        return re.fullmatch(r"[<>|=]?O\d*", descr) is not None
    if isinstance(descr, (list, tuple)):
        return any(_holds_objects(part) for part in descr)
    return False


def _item_bytes(descr: Any) -> int | None:
    if isinstance(descr, list):
        return None
    match = _PLAIN_DTYPE.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise malformed("The npy header has the unknown dtype {dtype!r}.", dtype=str(descr)[:80])
    kind, width = match.group(1), match.group(2)
    if not width:
        return 1 if kind == "?" else None
    return int(width) * (4 if kind == "U" else 1)
