"""Reads what an ONNX file declares, by walking its protobuf fields; weights are never read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from registry.errors import Invalid, Text
from registry.formats.cursor import Cursor
from registry.formats.facts import (
    Facts,
    Port,
    ReadRange,
    Tensor,
    Tensors,
    bounded_metadata,
    in_figures,
    malformed,
    plain,
)
from registry.formats.paths import check_path

MAX_READ_BYTES = 256 * 1024 * 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_FIELDS = 2_000_000
MAX_INITIALIZERS = 200_000
# Of all weights together; those outside the file may claim any shape.
MAX_ELEMENTS = 1 << 48
MAX_PORTS = 1000
MAX_DIMENSIONS = 64
MAX_NESTING = 8
MAX_LISTED_FILES = 2000
STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "com.microsoft"})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1
# TensorProto.DataType: name, bits of an element (0: not fixed)
_TYPES = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    8: ("string", 0),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    14: ("complex64", 64),
    15: ("complex128", 128),
    16: ("bfloat16", 16),
    17: ("float8e4m3fn", 8),
    18: ("float8e4m3fnuz", 8),
    19: ("float8e5m2", 8),
    20: ("float8e5m2fnuz", 8),
    21: ("uint4", 4),
    22: ("int4", 4),
    23: ("float4e2m1", 4),
    24: ("float8e8m0", 8),
    25: ("uint2", 2),
    26: ("int2", 2),
}
# Fields of a tensor with its numbers: floats, doubles, and whole ones of any length.
_TYPED = frozenset({4, 5, 7, 10, 11})
_FIXED_WIDTHS = frozenset({4, 10})


class Field(NamedTuple):
    """One field of a message; the payload of a `_BYTES` field lies at start..end, unread."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class Walk:
    """The fields of a message, in order, without recursion into what nobody asked for."""

    def __init__(self, size: int, read: ReadRange) -> None:
        self.cursor = Cursor(read, size, what="ONNX", budget=MAX_READ_BYTES)
        self.fields_left = MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        position = start
        while position < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise malformed("The ONNX file has too many fields to check.")
            self.cursor.position = position
            tag = self._varint()
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise malformed(
                    "The ONNX file has a broken field at byte {position}.", position=position
                )
            found = self._field(number, wire)
            position = found.end
            if position > end:
                raise malformed(
                    "The ONNX file is cut short: field {number} ends at byte {position} of {end}.",
                    number=number,
                    position=position,
                    end=end,
                )
            yield found

    def bytes(self, found: Field) -> bytes:
        if found.wire != _BYTES:
            raise malformed("The ONNX field {number} is no text.", number=found.number)
        self.cursor.position = found.start
        return self.cursor.take(min(found.end - found.start, MAX_TEXT_BYTES))

    def text(self, found: Field) -> str:
        return plain(self.bytes(found))

    def inner(self, found: Field) -> Iterator[Field]:
        if found.wire != _BYTES:
            raise malformed("The ONNX field {number} is no message.", number=found.number)
        return self.fields(found.start, found.end)

    def numbers(self, found: Field) -> list[int]:
        """Read a repeated integer, packed or not."""
        if found.wire == _VARINT:
            return [_signed(found.value)]
        if found.wire != _BYTES or found.end - found.start > 4096:
            raise malformed(
                "The ONNX field {number} is no short list of numbers.", number=found.number
            )
        self.cursor.position = found.start
        numbers = []
        while self.cursor.position < found.end:
            numbers.append(_signed(self._varint()))
        return numbers

    def _field(self, number: int, wire: int) -> Field:
        cursor = self.cursor
        if wire == _VARINT:
            value = self._varint()
            return Field(number, wire, value, cursor.position, cursor.position)
        if wire in {_FIXED64, _FIXED32}:
            cursor.skip(8 if wire == _FIXED64 else 4)
            return Field(number, wire, 0, cursor.position, cursor.position)
        if wire != _BYTES:
            raise malformed(
                "The ONNX file has a broken field before byte {position}.", position=cursor.position
            )
        length = self._varint()
        start = cursor.position
        return Field(number, wire, 0, start, start + length)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte: int = self.cursor.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise malformed(
            "The ONNX file has a broken number before byte {position}.",
            position=self.cursor.position,
        )


@dataclass
class Found:
    """What the walk has seen so far."""

    metadata: dict[str, Any] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    graphs_count: int = 0
    nodes_count: int = 0
    initializers: list[Tensor] = field(default_factory=list)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    external: set[str] = field(default_factory=set)
    domains: set[str] = field(default_factory=set)
    own_domains: set[str] = field(default_factory=set)


def walk_onnx(size: int, read: ReadRange) -> Found:
    """Go through a whole file once, and give what it declares."""
    found = Found()
    _read_model(Walk(size, read), size, found)
    if "ir_version" not in found.metadata or found.graphs_count != 1 or not found.opsets:
        raise malformed("The ONNX file lacks its version, its operator set or its graph.")
    return found


def read_onnx(size: int, read: ReadRange) -> Facts:
    found = walk_onnx(size, read)
    named = {tensor.name for tensor in found.initializers}
    tensors = Tensors.of(found.initializers)
    if tensors.elements_count > MAX_ELEMENTS:
        raise malformed(
            "The ONNX file claims weights of {count} elements.",
            count=in_figures(tensors.elements_count),
        )
    return Facts(
        format="onnx",
        parameters_count=tensors.elements_count,
        tensors=tensors,
        # Files before IR version 4 list their weights among the inputs.
        inputs=tuple(port for port in found.inputs if port.name not in named),
        outputs=tuple(found.outputs),
        metadata={
            **bounded_metadata(found.metadata),
            "opset": found.opsets.get("", found.opsets.get("ai.onnx")),
            "opsets": found.opsets,
            "nodes_count": found.nodes_count,
            **_external(found),
        },
        findings=_findings(found),
    )


def _external(found: Found) -> dict[str, Any]:
    """Name the files beside the graph that it refers to, as paths from its own folder."""
    if not found.external:
        return {}
    listed = sorted(found.external)[:MAX_LISTED_FILES]
    return {"external": {"count": len(found.external), "paths": listed}}


def _findings(found: Found) -> tuple[Text, ...]:
    findings = []
    if found.external:
        names = ", ".join(sorted(found.external)[:5])
        findings.append(
            Text(
                "Weights lie outside the file, in {names}; upload those files beside it.",
                names=names,
            )
        )
    if strange := sorted(found.domains - found.own_domains - STANDARD_DOMAINS):
        names = ", ".join(strange[:5])
        findings.append(Text("Uses operators of {names}, which need an extension.", names=names))
    return tuple(findings)


def _read_model(walk: Walk, size: int, found: Found) -> None:
    texts = {2: "producer_name", 3: "producer_version", 4: "domain"}
    for item in walk.fields(0, size):
        if item.number == 1:
            _require_ir_version(item)
            found.metadata["ir_version"] = item.value
        elif item.number in texts:
            found.metadata[texts[item.number]] = walk.text(item)
        elif item.number == 5:
            found.metadata["model_version"] = _signed(item.value)
        elif item.number == 7:
            found.graphs_count += 1
            _read_graph(walk, item, found, 0)
        elif item.number == 8:
            _read_opset(walk, item, found)
        elif item.number == 14:
            key, value = _entry(walk, item)
            found.metadata.setdefault(f"metadata.{key}", value)
        elif item.number in {20, 25}:
            _read_beside(walk, item, found)
        elif item.number not in {6, 26}:
            raise malformed(
                "The ONNX file has the unknown field {number} in its model.", number=item.number
            )


def _read_beside(walk: Walk, item: Field, found: Found) -> None:
    """Look through the graphs to train with (20) and a function (25): weights may hide there."""
    for part in walk.inner(item):
        if item.number == 20 and part.number in {1, 2}:
            _read_graph(walk, part, found, 1)
        elif item.number == 25 and part.number == 7:
            _read_node(walk, part, found, 0)
        elif item.number == 25 and part.number == 10:
            # What its operators do is said here, in those of other domains.
            found.own_domains.add(walk.text(part))


def _require_ir_version(item: Field) -> None:
    if item.wire != _VARINT or not 1 <= item.value <= 1000:
        raise malformed("The ONNX file has no sensible IR version.")


def _read_opset(walk: Walk, item: Field, found: Found) -> None:
    domain, version = "", 0
    for part in walk.inner(item):
        if part.number == 1:
            domain = walk.text(part)
        elif part.number == 2:
            version = part.value
    if not 1 <= version <= 100_000 or len(found.opsets) >= 100:
        raise malformed(
            "The ONNX operator set {domain!r} has no sensible version.", domain=domain[:80]
        )
    found.opsets[domain] = version


def _read_graph(  # noqa: C901 - one branch a field
    walk: Walk, graph: Field, found: Found, depth: int
) -> None:
    if depth > MAX_NESTING:
        raise malformed("The ONNX graph has graphs nested too deep.")
    for item in walk.inner(graph):
        if item.number == 1:
            _read_node(walk, item, found, depth)
        elif item.number == 2 and depth == 0:
            found.metadata["graph"] = walk.text(item)
        elif item.number == 5:
            if len(found.initializers) >= MAX_INITIALIZERS:
                raise malformed(
                    "The ONNX graph has more than {limit} weights.", limit=MAX_INITIALIZERS
                )
            tensor = _read_tensor(walk, item, found)
            if depth == 0:
                found.initializers.append(tensor)
        elif item.number == 15:
            _read_sparse(walk, item, found)
        elif item.number in {11, 12} and depth == 0:
            ports = found.inputs if item.number == 11 else found.outputs
            # Old files list all weights here; those come last, after what people feed.
            if len(ports) < MAX_PORTS:
                ports.append(_read_port(walk, item))


def _read_node(walk: Walk, node: Field, found: Found, depth: int) -> None:
    found.nodes_count += 1
    for item in walk.inner(node):
        if item.number == 7:
            found.domains.add(walk.text(item))
        elif item.number == 5:
            for part in walk.inner(item):
                if part.number in {5, 10} and part.wire == _BYTES:
                    _read_tensor(walk, part, found)
                elif part.number in {6, 11} and part.wire == _BYTES:
                    _read_graph(walk, part, found, depth + 1)
                elif part.number in {22, 23} and part.wire == _BYTES:
                    _read_sparse(walk, part, found)


def _read_sparse(walk: Walk, sparse: Field, found: Found) -> None:
    for part in walk.inner(sparse):
        if part.number in {1, 2}:
            _read_tensor(walk, part, found)


def _read_tensor(walk: Walk, tensor: Field, found: Found) -> Tensor:
    shape: list[int] = []
    parts: dict[int, Field] = {}
    typed_bits = 0
    for item in walk.inner(tensor):
        parts[item.number] = item
        if item.number in _TYPED:
            typed_bits += _most_bits(item)
        if item.number == 1:
            # They may come in any number of fields.
            shape.extend(walk.numbers(item))
            if len(shape) > MAX_DIMENSIONS:
                raise malformed(
                    "The ONNX file has a tensor of more than {limit} dimensions.",
                    limit=MAX_DIMENSIONS,
                )
        elif item.number == 13:
            key, value = _raw_entry(walk, item)
            if key == b"location":
                found.external.add(_check_location(value))
    kind = parts[2].value if 2 in parts else 0
    name = walk.text(parts[8])[:500] if 8 in parts else ""
    raw_bytes = parts[9].end - parts[9].start if 9 in parts else None
    at_most = typed_bits // 8 if raw_bytes is None else raw_bytes
    external = 14 in parts and parts[14].value == _EXTERNAL
    if kind not in _TYPES or any(not 0 <= size < 2**63 for size in shape):
        raise malformed("The ONNX tensor {name!r} has no sensible type and shape.", name=name[:80])
    dtype, bits = _TYPES[kind]
    result = Tensor(name, dtype, tuple(shape))
    expected = -(-result.elements_count * bits // 8)
    exact = raw_bytes is not None
    if not external and bits and (at_most != expected if exact else at_most < expected):
        raise malformed(
            "The ONNX tensor {name!r} of type {dtype} and shape {shape} needs {expected} "
            "bytes but has {found}.",
            name=name[:80],
            dtype=dtype,
            shape=shape[:8],
            expected=in_figures(expected),
            found=at_most,
        )
    return result


def _most_bits(item: Field) -> int:
    """Give how many bits of a tensor a field of numbers can hold at most."""
    if item.wire in {_FIXED32, _FIXED64}:
        return 64 if item.wire == _FIXED64 else 32
    # A whole number of one byte may stand for an element of 64 bits.
    per_byte = 8 if item.number in _FIXED_WIDTHS else 64
    return per_byte * (item.end - item.start) if item.wire == _BYTES else 64


def _read_port(walk: Walk, port: Field) -> Port:
    name, dtype = "", "unknown"
    shape: list[int | str] = []
    for item in walk.inner(port):
        if item.number == 1:
            name = walk.text(item)[:500]
        elif item.number == 2:
            for kind in walk.inner(item):
                if kind.number == 1:
                    dtype, shape = _read_tensor_type(walk, kind)
    return Port(name, dtype, tuple(shape))


def _read_tensor_type(walk: Walk, kind: Field) -> tuple[str, list[int | str]]:
    dtype = "unknown"
    shape: list[int | str] = []
    for item in walk.inner(kind):
        if item.number == 1:
            dtype = _TYPES.get(item.value, ("unknown", 0))[0]
        elif item.number == 2:
            for dimension in walk.inner(item):
                if dimension.number == 1 and len(shape) < MAX_DIMENSIONS:
                    shape.append(_read_dimension(walk, dimension))
    return dtype, shape


def _read_dimension(walk: Walk, dimension: Field) -> int | str:
    for item in walk.inner(dimension):
        if item.number == 1:
            return _signed(item.value)
        if item.number == 2:
            return walk.text(item)[:80]
    return -1


def _entry(walk: Walk, item: Field) -> tuple[str, str]:
    key, value = _raw_entry(walk, item)
    return plain(key), plain(value)


def _raw_entry(walk: Walk, item: Field) -> tuple[bytes, bytes]:
    key = value = b""
    for part in walk.inner(item):
        if part.number == 1:
            key = walk.bytes(part)
        elif part.number == 2:
            value = walk.bytes(part)
    return key, value


def _check_location(location: bytes) -> str:
    """Check the whole of it: a text cut for display would hide where a long one leads."""
    try:
        return check_path(location.decode("utf-8", "surrogateescape"))
    except Invalid as refusal:
        raise malformed(
            "The ONNX file has weights in a file outside its folder: {problem}",
            problem=refusal,
        ) from None


def _signed(value: int) -> int:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >= 1 << 63 else value
