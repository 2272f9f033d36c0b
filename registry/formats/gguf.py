"""Reads the header of a GGUF file: metadata, and where its tensors lie."""

import struct
from collections.abc import Iterable, Iterator
from typing import Any

from registry.errors import Text
from registry.formats.cursor import Cursor
from registry.formats.facts import (
    Facts,
    ReadRange,
    Tensor,
    Tensors,
    bounded_metadata,
    malformed,
    plain,
)

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_KEYS = 10_000
MAX_TENSORS = 100_000
MAX_TEXTS = 1_000_000
# Of all texts and arrays in arrays together: each is a step here, whose bytes may be none.
MAX_VALUES = 1_500_000
MAX_NESTING = 4

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# ggml type: name, elements in a block, bytes of a block
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


def read_gguf(size: int, read: ReadRange) -> Facts:
    cursor = Cursor(read, size, what="GGUF", budget=MAX_HEADER_BYTES)
    if cursor.take(4) != MAGIC:
        raise malformed("The GGUF file does not begin as one.")
    version = cursor.unpack("<I")
    if version not in {2, 3}:
        raise malformed(
            "The GGUF file has the unknown version {version}; 2 and 3 are read.", version=version
        )
    tensors_count = cursor.unpack("<Q")
    keys_count = cursor.unpack("<Q")
    if tensors_count > MAX_TENSORS or keys_count > MAX_KEYS:
        raise malformed(
            "The GGUF header claims {tensors_count} tensors and {keys_count} keys; at most "
            "{max_tensors} and {max_keys} are read.",
            tensors_count=tensors_count,
            keys_count=keys_count,
            max_tensors=MAX_TENSORS,
            max_keys=MAX_KEYS,
        )
    metadata = _read_metadata(cursor, keys_count)
    spans = [_read_tensor(cursor) for _ in range(tensors_count)]
    _check_names(tensor for _, _, tensor in spans)
    _check_spans(spans, cursor, metadata.get("general.alignment", 32))
    tensors = Tensors.of(tensor for _, _, tensor in spans)
    findings = (
        (
            Text(
                "The file carries a chat template; render it only in a sandboxed Jinja environment."
            ),
        )
        if "tokenizer.chat_template" in metadata
        else ()
    )
    return Facts(
        format="gguf",
        parameters_count=tensors.elements_count,
        tensors=tensors,
        metadata=bounded_metadata({"gguf.version": version, **metadata}),
        findings=findings,
    )


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    steps = iter(range(MAX_VALUES))
    for _ in range(count):
        key = _read_text(cursor, 65_535)
        if key in metadata:
            raise malformed("The GGUF key {key!r} stands twice.", key=key[:80])
        metadata[key] = _read_value(cursor, cursor.unpack("<I"), 0, steps)
    return metadata


def _read_value(cursor: Cursor, kind: int, depth: int, steps: Iterator[int]) -> Any:
    if kind == _STRING:
        return _read_text(cursor, 16 * 1024 * 1024)
    if kind == _ARRAY:
        return _read_array(cursor, depth, steps)
    if kind not in _SCALARS:
        raise malformed("The GGUF metadata has the unknown value type {kind}.", kind=kind)
    value = cursor.unpack(_SCALARS[kind])
    # NaN and infinity are no JSON and nobody needs them here.
    return value if value - value == 0 else None


def _read_array(cursor: Cursor, depth: int, steps: Iterator[int]) -> str:
    kind, count = cursor.unpack("<I"), cursor.unpack("<Q")
    if depth >= MAX_NESTING:
        raise malformed("The GGUF metadata has arrays nested too deep.")
    if kind in _SCALARS:
        cursor.skip(count * struct.calcsize(_SCALARS[kind]))
        return f"{count} values"
    if count > MAX_TEXTS:
        raise malformed(
            "A GGUF array claims {count} items; at most {limit} are read.",
            count=count,
            limit=MAX_TEXTS,
        )
    for _ in range(count):
        if next(steps, None) is None:
            raise malformed("The GGUF metadata has too many values to check.")
        if kind == _STRING:
            cursor.skip(cursor.unpack("<Q"))
        else:
            _read_value(cursor, kind, depth + 1, steps)
    return f"{count} values"


def _read_tensor(cursor: Cursor) -> tuple[int, int, Tensor]:
    name = _read_text(cursor, 65_535)
    rank = cursor.unpack("<I")
    if rank > 8:
        raise malformed(
            "The GGUF tensor {name!r} claims {rank} dimensions.", name=name[:80], rank=rank
        )
    shape = tuple(cursor.unpack("<Q") for _ in range(rank))
    kind = cursor.unpack("<I")
    offset = cursor.unpack("<Q")
    if kind not in _TYPES:
        raise malformed(
            "The GGUF tensor {name!r} has the unknown type {kind}.", name=name[:80], kind=kind
        )
    dtype, block, block_bytes = _TYPES[kind]
    tensor = Tensor(name[:500], dtype, shape)
    if shape and shape[0] % block:
        raise malformed(
            "The GGUF tensor {name!r} has rows that are no multiple of {block}.",
            name=name[:80],
            block=block,
        )
    return offset, offset + tensor.elements_count // block * block_bytes, tensor


def _check_names(tensors: Iterable[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise malformed("The GGUF tensor {name!r} stands twice.", name=tensor.name[:80])
        seen.add(tensor.name)


def _check_spans(spans: list[tuple[int, int, Tensor]], cursor: Cursor, alignment: Any) -> None:
    """Require tensors that lie side by side, each on its boundary: no gap hides anything."""
    if type(alignment) is not int or not 1 <= alignment <= 65_536:
        raise malformed("The GGUF alignment is out of bounds.")
    data_start = -(-cursor.position // alignment) * alignment
    reached = 0
    for start, end, tensor in sorted(spans, key=lambda span: span[:2]):
        if start % alignment:
            raise malformed(
                "The GGUF tensor {name!r} is not aligned to {alignment} bytes.",
                name=tensor.name[:80],
                alignment=alignment,
            )
        if start < reached:
            raise malformed(
                "The GGUF tensor {name!r} overlaps the one before it.", name=tensor.name[:80]
            )
        if start > reached:
            raise malformed(
                "The GGUF tensor {name!r} leaves a gap before it.", name=tensor.name[:80]
            )
        if data_start + end > cursor.size:
            raise malformed(
                "The GGUF tensor {name!r} ends beyond the file; the file is cut short.",
                name=tensor.name[:80],
            )
        reached = -(-end // alignment) * alignment
    # A file of metadata alone need not be filled up, nor need the last tensor.
    if cursor.size > max(data_start + reached, cursor.position):
        raise malformed(
            "The GGUF file has something after its last tensor, from byte {position} on.",
            position=data_start + reached,
        )


def _read_text(cursor: Cursor, limit: int) -> str:
    length = cursor.unpack("<Q")
    if length > limit:
        raise malformed(
            "A GGUF text claims {length} bytes; at most {limit} are read.",
            length=length,
            limit=limit,
        )
    return plain(cursor.take(length))
