"""Reads where a Parquet file says that its footer lies; its columns are never read."""

import struct

from registry.formats.facts import Facts, ReadRange, malformed

MAGIC = b"PAR1"
_TAIL = struct.Struct("<I4s")


def read_parquet(size: int, read: ReadRange) -> Facts:
    if size < len(MAGIC) + _TAIL.size:
        raise malformed("The Parquet file is cut short.")
    length, magic = _TAIL.unpack(read(size - _TAIL.size, size))
    if magic != MAGIC:
        raise malformed("The Parquet file does not end as one; it is cut short.")
    if not 0 < length <= size - len(MAGIC) - _TAIL.size:
        raise malformed(
            "The Parquet file claims a footer of {length} bytes, which is longer than the file or "
            "empty.",
            length=length,
        )
    return Facts(format="parquet")
