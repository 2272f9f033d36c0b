"""Recognises pickles in every wrapping, without ever loading one."""

import bz2
import io
import lzma
import pickletools
import re
import zlib
from collections.abc import Callable

from registry.formats.facts import Facts

PEEK_BYTES = 64 * 1024
MAX_OPCODES = 20_000
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LOADS_CODE = "A pickle can run any code as it is loaded; it is kept but never loaded here."

_CODE = frozenset({"GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "REDUCE", "BUILD"})
_DOTTED = re.compile(r"[A-Za-z_][\w.]*")
_WRAPPINGS: tuple[tuple[bytes, str, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", lambda data: zlib.decompressobj(31).decompress(data, PEEK_BYTES)),
    (b"\x78", "zlib", lambda data: zlib.decompressobj().decompress(data, PEEK_BYTES)),
    (b"BZh", "bz2", lambda data: bz2.BZ2Decompressor().decompress(data, PEEK_BYTES)),
    (
        b"\xfd7zXZ\0",
        "xz",
        lambda data: lzma.LZMADecompressor(memlimit=64 << 20).decompress(data, PEEK_BYTES),
    ),
    (
        b"\x5d\0\0",
        "lzma",
        lambda data: lzma.LZMADecompressor(memlimit=64 << 20).decompress(data, PEEK_BYTES),
    ),
)


def recognise_pickle(head: bytes) -> Facts | None:
    """Tell whether a file that begins like this is a pickle, compressed or not."""
    if head.startswith(TORCH_LEGACY):
        return Facts(format="torch-legacy", executable=True, findings=(LOADS_CODE,))
    if head.startswith(b"ZF0x"):
        return Facts(format="joblib", executable=True, findings=(LOADS_CODE,))
    if is_pickle(head):
        return Facts(format="pickle", executable=True, findings=(LOADS_CODE,))
    for magic, wrapping, unwrap in _WRAPPINGS:
        if head.startswith(magic):
            return _inside(head, wrapping, unwrap)
    return None


def is_pickle(head: bytes) -> bool:
    """Tell a pickle by its protocol mark, or, for protocols 0 and 1, by a walk over its opcodes."""
    if len(head) >= 2 and head[0] == 0x80 and 1 <= head[1] <= 5:
        return True
    return _names_code(head)


def _names_code(head: bytes) -> bool:
    named = False
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(head))):
            if opcode.name in {"GLOBAL", "INST"} and not _is_global(argument):
                return False
            named = named or opcode.name in _CODE
            if opcode.name == "STOP":
                return named
            if count > MAX_OPCODES:
                break
    # Whatever the walk stumbles over, it is no complete pickle; what it saw so far decides.
    except Exception:  # noqa: BLE001
        return named and len(head) >= PEEK_BYTES
    return named


def _is_global(argument: object) -> bool:
    parts = str(argument).split(" ")
    return len(parts) == 2 and all(_DOTTED.fullmatch(part) for part in parts)


def _inside(head: bytes, wrapping: str, unwrap: Callable[[bytes], bytes]) -> Facts | None:
    try:
        inner = unwrap(head)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError):
        return None
    # A text may begin like a compressed stream does ("x"); only one that yields bytes is one.
    if not inner:
        return None
    if is_pickle(inner) or inner.startswith(TORCH_LEGACY):
        return Facts(
            format="pickle",
            executable=True,
            metadata={"compression": wrapping},
            findings=(LOADS_CODE,),
        )
    return Facts(
        format="compressed",
        metadata={"compression": wrapping},
        findings=("Compressed; what is inside is not checked beyond its beginning.",),
    )
