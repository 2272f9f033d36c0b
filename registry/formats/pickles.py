"""Recognises pickles in every wrapping, without ever loading one."""

import bz2
import lzma
import zlib
from collections.abc import Callable

from registry.errors import Text
from registry.formats import lz4
from registry.formats.facts import Facts, ReadRange
from registry.formats.opcodes import Walked, walk_pickle

PEEK_BYTES = 64 * 1024
MAX_WRAPPINGS = 4
_OLD_JOBLIB = b"ZF0x"
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LOADS_CODE = Text("A pickle can run any code as it is loaded; it is kept but never loaded here.")
UNSEEN = Text("Compressed; what is inside is not checked beyond its beginning.")
_SEALED = Text(
    "Compressed in a way that is not looked into; it may hold a pickle and counts as one."
)
_TOO_DEEP = Text(
    "Compressed more than {limit} times over; it is never unpacked here.", limit=MAX_WRAPPINGS
)

_HIGHEST_PROTOCOL = 5
_MEMORY_BYTES = 64 << 20
_Unwrap = Callable[[bytes], bytes | None]
# Ends of names, before that of the compression, behind which data is usual and a pickle is not.
_DATA_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".md", ".parquet", ".arrow")


def recognise_pickle(head: bytes, size: int, read: ReadRange, *, name: str = "") -> Facts | None:
    """Tell whether a file that begins like this is a pickle, compressed or not."""
    if head.startswith(TORCH_LEGACY):
        return Facts(format="torch-legacy", executable=True, findings=(LOADS_CODE,))
    if head.startswith(_OLD_JOBLIB):
        return Facts(format="joblib", executable=True, findings=(LOADS_CODE,))
    if is_pickle(head, size, read):
        return Facts(format="pickle", executable=True, findings=(LOADS_CODE,))
    return _recognise_wrapped(head, name, depth=0)


def is_pickle(head: bytes, size: int, read: ReadRange) -> bool:
    """Tell a pickle by its protocol mark or, where there is none, by a walk over its opcodes."""
    if len(head) >= 2 and head[0] == 0x80 and head[1] <= _HIGHEST_PROTOCOL:
        return True
    return _does_something(walk_pickle(size, read), head)


def begins_as_pickle(head: bytes, size: int) -> bool:
    """Tell a file in an archive by its first bytes: a pickle, as it is or compressed."""
    if head.startswith((TORCH_LEGACY, _OLD_JOBLIB)):
        return True
    known = _recognise_wrapped(head, "", depth=0)
    if known is not None:
        return known.format == "pickle"
    if is_pickle(head, len(head), lambda start, end: head[start:end]):
        return True
    walked = walk_pickle(len(head), lambda start, end: head[start:end])
    return walked.ran_out and len(head) < size and bool(walked.imports)


def _is_inner_pickle(inner: bytes) -> bool:
    """Tell it by the first bytes alone; a walk that needs more of them counts as one."""
    if is_pickle(inner, len(inner), lambda start, end: inner[start:end]):
        return True
    walked = walk_pickle(len(inner), lambda start, end: inner[start:end])
    return walked.ran_out and len(inner) >= PEEK_BYTES


def _does_something(walked: Walked, head: bytes) -> bool:
    """Judge a walk: a text may begin like a pickle, but it names nothing and calls nothing."""
    if walked.cut:
        return True
    if not walked.imports:
        return False
    return walked.whole or walked.calls_count > 0 or b"\0" in head or not head.isascii()


def _recognise_wrapped(head: bytes, name: str, *, depth: int) -> Facts | None:
    for magic, wrapping, unwrap in _WRAPPINGS:
        if head.startswith(magic):
            return _inside(head, wrapping, unwrap, name, depth)
    if _begins_as_zlib(head):
        return _inside(head, "zlib", _unpack_zlib, name, depth)
    return None


def _begins_as_zlib(head: bytes) -> bool:
    return len(head) > 2 and head[0] & 0x8F == 8 and int.from_bytes(head[:2], "big") % 31 == 0


def _unpack_zlib(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, PEEK_BYTES)


def _unpack_lzma(data: bytes) -> bytes:
    return lzma.LZMADecompressor(memlimit=_MEMORY_BYTES).decompress(data, PEEK_BYTES)


def _inside(head: bytes, wrapping: str, unwrap: _Unwrap, name: str, depth: int) -> Facts | None:
    try:
        inner = unwrap(head)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError):
        return None
    return _sealed(wrapping, name) if inner is None else _judge(inner, wrapping, name, depth)


def _judge(inner: bytes, wrapping: str, name: str, depth: int) -> Facts | None:
    # A text may begin like a compressed stream does ("x"); only one that yields bytes is one.
    if not inner:
        return None
    if depth + 1 >= MAX_WRAPPINGS:
        return _wrapped(wrapping, "compressed", _TOO_DEEP, executable=True)
    if inner.startswith((TORCH_LEGACY, _OLD_JOBLIB)) or _is_inner_pickle(inner):
        return _wrapped(wrapping, "pickle", LOADS_CODE, executable=True)
    deeper = _recognise_wrapped(inner, name.rpartition(".")[0], depth=depth + 1)
    if deeper is not None:
        return deeper
    return _wrapped(wrapping, "compressed", UNSEEN, executable=False)


def _sealed(wrapping: str, name: str) -> Facts:
    """Judge what cannot be looked into here: by default it may be anything."""
    known = name.lower().rpartition(".")[0].endswith(_DATA_ENDINGS)
    return _wrapped(wrapping, "compressed", UNSEEN if known else _SEALED, executable=not known)


def _wrapped(wrapping: str, kind: str, finding: Text, *, executable: bool) -> Facts:
    return Facts(
        format=kind,
        executable=executable,
        metadata={"compression": wrapping},
        findings=(finding,),
    )


# What is inside, first bytes only; an unpacker that cannot tell gives None.
_WRAPPINGS: tuple[tuple[bytes, str, _Unwrap], ...] = (
    (b"\x1f\x8b", "gzip", lambda data: zlib.decompressobj(31).decompress(data, PEEK_BYTES)),
    (b"BZh", "bz2", lambda data: bz2.BZ2Decompressor().decompress(data, PEEK_BYTES)),
    (b"\xfd7zXZ\0", "xz", _unpack_lzma),
    (b"\x5d\0", "lzma", _unpack_lzma),
    (lz4.MAGIC, "lz4", lambda data: lz4.unpack_head(data, PEEK_BYTES)),
    (b"\x02\x21\x4c\x18", "lz4", lambda _: None),
    (b"\x28\xb5\x2f\xfd", "zstd", lambda _: None),
    (b"\xff\x06\0\0sNaPpY", "snappy", lambda _: None),
    (b"\x89LZO\0", "lzo", lambda _: None),
    (b"7z\xbc\xaf\x27\x1c", "7z", lambda _: None),
    (b"Rar!\x1a\x07", "rar", lambda _: None),
)
