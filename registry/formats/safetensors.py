"""Reads the header of a safetensors file and checks it against the bytes that follow."""

import struct
from typing import Any

from registry.errors import Text
from registry.formats.bounded_json import parse_json
from registry.formats.facts import (
    Facts,
    ReadRange,
    Tensor,
    Tensors,
    bounded_metadata,
    in_figures,
    malformed,
)

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_RANK = 64
MAX_DIMENSION = 2**63 - 1
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


def read_safetensors(size: int, read: ReadRange) -> Facts:
    _, metadata, spans = _read_header(size, read)
    tensors = Tensors.of(tensor for _, _, tensor in spans)
    return Facts(
        format="safetensors",
        parameters_count=tensors.elements_count,
        tensors=tensors,
        metadata=bounded_metadata(metadata),
    )


def read_borders(size: int, read: ReadRange) -> list[tuple[int, str]]:
    """Give where the header ends and each tensor, in the order of the file, with its dtype.

    Raises:
        Invalid: it is no safetensors file, or its header is not true.

    """
    begin, _, spans = _read_header(size, read)
    ends = sorted((end, tensor.dtype) for start, end, tensor in spans if end > start)
    return [(begin, ""), *((begin + end, dtype) for end, dtype in ends)]


def _read_header(
    size: int, read: ReadRange
) -> tuple[int, dict[str, Any], list[tuple[int, int, Tensor]]]:
    """Give where the tensors begin, what the metadata says, and where each tensor lies."""
    if size < 8:
        raise malformed("The safetensors file is shorter than the 8 bytes of its header's length.")
    length = struct.unpack("<Q", read(0, 8))[0]
    if length > MAX_HEADER_BYTES:
        raise malformed(
            "The safetensors header claims {length} bytes; at most {limit} are read.",
            length=length,
            limit=MAX_HEADER_BYTES,
        )
    if length > size - 8:
        raise malformed(
            "The safetensors header claims {length} bytes and {found} follow; the file is cut "
            "short.",
            length=length,
            found=size - 8,
        )
    raw = read(8, 8 + length)
    if not raw.startswith(b"{"):
        raise malformed("The safetensors header does not begin with '{{'.")
    header = parse_json(raw, what=Text("The safetensors header"), max_depth=8)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise malformed("The safetensors __metadata__ must map text to text.")
    spans = [_span(name, entry) for name, entry in header.items()]
    _check_tiling(spans, size - 8 - length)
    return 8 + length, metadata, spans


def _span(name: str, entry: Any) -> tuple[int, int, Tensor]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise malformed(
            "The safetensors tensor {name!r} must have exactly dtype, shape and data_offsets.",
            name=name[:200],
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise malformed(
            "The safetensors tensor {name!r} has the unknown dtype {dtype!r}.",
            name=name[:200],
            dtype=str(dtype)[:40],
        )
    if not _is_counts(shape) or len(shape) > MAX_RANK:
        raise malformed(
            "The safetensors tensor {name!r} has a shape that is no short list of sizes.",
            name=name[:200],
        )
    if not _is_counts(offsets) or len(offsets) != 2:
        raise malformed(
            "The safetensors tensor {name!r} has data_offsets that are not two byte positions.",
            name=name[:200],
        )
    tensor = Tensor(name[:500], dtype, tuple(shape))
    bits = tensor.elements_count * DTYPE_BITS[dtype]
    start, end = offsets
    if bits % 8 or end - start != bits // 8:
        raise malformed(
            "The safetensors tensor {name!r} of dtype {dtype} and shape {shape} needs {needed} "
            "bytes but its data_offsets span {span}.",
            name=name[:200],
            dtype=dtype,
            shape=shape[:8],
            needed=in_figures(bits / 8 if bits % 8 and bits < 1 << 53 else bits // 8),
            span=end - start,
        )
    return start, end, tensor


def _check_tiling(spans: list[tuple[int, int, Tensor]], data_bytes: int) -> None:
    """Require tensors that lie side by side and fill the file exactly: no gap hides anything."""
    reached = 0
    for start, end, tensor in sorted(spans, key=lambda span: span[:2]):
        if start != reached:
            name = tensor.name[:200]
            if start < reached:
                raise malformed(
                    "The safetensors tensor {name!r} overlaps the one before it.", name=name
                )
            raise malformed("The safetensors tensor {name!r} leaves a gap before it.", name=name)
        reached = end
    if reached != data_bytes:
        raise malformed(
            "The safetensors tensors end at byte {reached} of {data_bytes}; the file is cut short "
            "or has something after them.",
            reached=reached,
            data_bytes=data_bytes,
        )


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MAX_DIMENSION
        for item in value
    )
