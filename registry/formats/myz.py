"""Reads the header of a `.myz` file: the tensors of a model, each coded in its own way.

docs/formats/myz.md describes the format. The workers decode by what this reader has checked.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from registry.errors import Text
from registry.formats import safetensors
from registry.formats.bounded_json import parse_json
from registry.formats.facts import (
    Facts,
    Port,
    ReadRange,
    Tensor,
    Tensors,
    bounded_metadata,
    in_figures,
    malformed,
)

MAGIC: Final = b"\x93MYZ\r\n\x1a\n"
VERSION: Final = 1
PREFIX_BYTES: Final = len(MAGIC) + 12
MAX_CODED_HEADER_BYTES: Final = 8 * 1024 * 1024
MAX_HEADER_BYTES: Final = 32 * 1024 * 1024
MAX_TENSORS: Final = 100_000
MAX_RANK: Final = safetensors.MAX_RANK
MAX_DIMENSION: Final = safetensors.MAX_DIMENSION
MAX_PORTS: Final = 1000
MAX_NAME: Final = 4096
# How much longer than its code anything may be when it is decoded: no file is a bomb.
FREE_BYTES: Final = 64 * 1024
FACTOR: Final = 1024

# Those of safetensors but for the six-bit ones, and those that only ONNX has.
DTYPE_BITS: Final = {
    **{name: bits for name, bits in safetensors.DTYPE_BITS.items() if bits != 6},
    "U2": 2,
    "I2": 2,
    "U4": 4,
    "I4": 4,
    "C128": 128,
}
CODERS: Final = frozenset({"raw", "huffman", "zstd", "planes"})
PLACES: Final = {"all": None, "bitmask": "mask", "gaps": "gaps"}
VALUES: Final = {
    "plain": (),
    "codebook": ("codebook",),
    "scaled8": ("scales",),
    "scaled16": ("scales",),
}
MAX_SHARED: Final = 256
_NAMED: Final = frozenset({"name", "dtype", "shape"})
_DESCRIBED: Final = _NAMED | {"places", "values", "streams", "sha256"}
_HEX: Final = frozenset("0123456789abcdef")


class Stream(NamedTuple):
    """A run of coded bytes: how they are coded, how long they are then, and as they lie here."""

    coder: str
    size: int
    length: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor, and the streams that it is put together from.

    In a graph, `at` is where its bytes go between those of the graph; a tensor without streams
    stands there already.
    """

    tensor: Tensor
    places: str = "all"
    values: str = "plain"
    count: int = 0
    sha256: str = ""
    at: int = 0
    streams: Mapping[str, Stream]

    @property
    def size(self) -> int:
        """Tell how many bytes the tensor has when it is decoded."""
        return tensor_bytes(self.tensor)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the file holds; every length in it is checked against the file and each other."""

    kind: str
    metadata: Mapping[str, str]
    graph: Stream | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Tell how many bytes everything has when it is decoded."""
        graph = self.graph.size if self.graph else 0
        return graph + sum(entry.size for entry in self.entries if entry.streams)


def tensor_bytes(tensor: Tensor) -> int:
    return -(-tensor.elements_count * DTYPE_BITS[tensor.dtype] // 8)


def most_bytes(coded: int) -> int:
    """Tell how many bytes at most may come out of `coded` bytes."""
    return FREE_BYTES + FACTOR * coded


def read_myz(size: int, read: ReadRange) -> Facts:
    header = read_header(size, read)
    tensors = Tensors.of(
        entry.tensor._replace(name=entry.tensor.name[:500]) for entry in header.entries
    )
    return Facts(
        format="myz",
        parameters_count=tensors.elements_count,
        tensors=tensors,
        inputs=header.inputs if header.kind == "graph" else None,
        outputs=header.outputs if header.kind == "graph" else None,
        metadata=bounded_metadata(
            {**header.metadata, "holds": header.kind, "decoded_bytes": header.size}
        ),
    )


def read_header(size: int, read: ReadRange) -> Header:
    """Read and check the header.

    Raises:
        Invalid: it is no such file, is cut short, or says what cannot be.

    """
    prefix = read(0, min(size, PREFIX_BYTES))
    if len(prefix) < PREFIX_BYTES or not prefix.startswith(MAGIC):
        raise malformed("The myz file does not begin as one, or is cut short.")
    version, coded, plain = (
        int.from_bytes(prefix[start : start + 4], "little") for start in range(8, 20, 4)
    )
    if version != VERSION:
        raise malformed(
            "The myz file has the unknown version {version}; {known} is read.",
            version=version,
            known=VERSION,
        )
    if coded > MAX_CODED_HEADER_BYTES or plain > MAX_HEADER_BYTES:
        raise malformed(
            "The myz header claims {coded} bytes, {plain} unpacked; at most {limit} are read.",
            coded=coded,
            plain=plain,
            limit=MAX_HEADER_BYTES,
        )
    if PREFIX_BYTES + coded > size:
        raise malformed(
            "The myz header claims {coded} bytes and {found} follow; the file is cut short.",
            coded=coded,
            found=size - PREFIX_BYTES,
        )
    raw = _inflate(read(PREFIX_BYTES, PREFIX_BYTES + coded), plain)
    return _Reading(PREFIX_BYTES + coded).header(raw, size)


def _inflate(data: bytes, size: int) -> bytes:
    unpacking = zlib.decompressobj()
    try:
        raw = unpacking.decompress(data, size + 1)
    except zlib.error:
        raise malformed("The myz header is no deflated text.") from None
    if len(raw) != size or not unpacking.eof or unpacking.unused_data:
        raise malformed("The myz header is not as long as it claims.")
    return raw


class _Reading:
    """Goes through the header in its order; the streams lie in the file in the same one."""

    def __init__(self, position: int) -> None:
        self._position = position

    def header(self, raw: bytes, size: int) -> Header:
        said = parse_json(raw, what=Text("The myz header"), max_depth=8)
        kind = str(said.get("kind")) if isinstance(said, dict) else ""
        expected = {"kind", "metadata", "tensors"}
        if kind == "graph":
            expected |= {"graph", "inputs", "outputs"}
        if kind not in {"state", "graph"} or said.keys() != expected:
            raise malformed("The myz header must say what it holds, a state or a graph.")
        metadata, tensors = said["metadata"], said["tensors"]
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise malformed("The myz metadata must map text to text.")
        if not isinstance(tensors, list) or len(tensors) > MAX_TENSORS:
            raise malformed("The myz header must list at most {limit} tensors.", limit=MAX_TENSORS)
        graph = self._stream("graph", said["graph"], "graph") if kind == "graph" else None
        entries = tuple(self._entry(item, graph) for item in tensors)
        places = [entry.at for entry in entries if entry.streams]
        if places != sorted(places):
            raise malformed("The myz tensors are not in the order of their graph.")
        if len({entry.tensor.name for entry in entries}) != len(entries):
            raise malformed("The myz header has two tensors of one name.")
        if self._position != size:
            raise malformed(
                "The myz tensors end at byte {reached} of {size}; the file is cut short or has "
                "something after them.",
                reached=self._position,
                size=size,
            )
        header = Header(
            kind=kind,
            metadata=metadata,
            graph=graph,
            inputs=_ports(said["inputs"]) if kind == "graph" else (),
            outputs=_ports(said["outputs"]) if kind == "graph" else (),
            entries=entries,
        )
        if header.size > most_bytes(size):
            raise malformed(
                "The myz file of {size} bytes claims to hold {claimed}, far more than it can.",
                size=size,
                claimed=in_figures(header.size),
            )
        return header

    def _entry(self, said: Any, graph: Stream | None) -> Entry:
        tensor = _tensor(said)
        name = tensor.name
        if graph and said.keys() == _NAMED:
            # A whole number of 64 bits may take a byte there.
            if tensor_bytes(tensor) > 8 * graph.size:
                raise malformed(
                    "The myz tensor {name!r} is too large for its graph.", name=name[:200]
                )
            return Entry(tensor=tensor, streams={})
        if said.keys() - {"count"} != (_DESCRIBED | {"at"} if graph else _DESCRIBED):
            raise malformed("The myz tensor {name!r} lacks what describes it.", name=name[:200])
        places, values, streams = said["places"], said["values"], said["streams"]
        if not isinstance(places, str) or not isinstance(values, str):
            raise _unknown_form(name)
        if places not in PLACES or values not in VALUES or not isinstance(streams, dict):
            raise _unknown_form(name)
        if ("count" in said) != (places != "all"):
            raise _unknown_form(name)
        count = said.get("count", tensor.elements_count)
        if type(count) is not int or not 0 <= count <= tensor.elements_count:
            raise malformed("The myz tensor {name!r} has more values than places.", name=name[:200])
        at, digest = said.get("at", 0), said["sha256"]
        if not is_count(at) or at > (graph.size if graph else 0):
            raise malformed("The myz tensor {name!r} lies beyond its graph.", name=name[:200])
        if not isinstance(digest, str) or len(digest) != 64 or not _HEX.issuperset(digest):
            raise malformed("The myz tensor {name!r} has no sha256.", name=name[:200])
        entry = Entry(
            tensor=tensor,
            places=places,
            values=values,
            count=count,
            sha256=digest,
            at=at,
            streams={key: self._stream(key, found, name) for key, found in streams.items()},
        )
        _check_streams(entry)
        return entry

    def _stream(self, key: str, said: Any, name: str) -> Stream:
        if (
            not isinstance(said, list)
            or len(said) != 3
            or not isinstance(said[0], str)
            or said[0] not in CODERS
            or not is_count(said[1])
            or not is_count(said[2])
        ):
            raise malformed(
                "The myz tensor {name!r} has a stream {key} that is not a coder and two lengths.",
                name=name[:200],
                key=key[:20],
            )
        coder, size, length = said
        if size > most_bytes(length) or (coder == "raw" and size != length):
            raise malformed(
                "The myz tensor {name!r} has a stream {key} of {length} bytes that claims to be "
                "{size}.",
                name=name[:200],
                key=key[:20],
                length=length,
                size=in_figures(size),
            )
        stream = Stream(coder, size, length, self._position)
        self._position += length
        return stream


def _tensor(said: Any) -> Tensor:
    if not isinstance(said, dict) or not {"name", "dtype", "shape"} <= said.keys():
        raise malformed("A myz tensor must have a name, a dtype and a shape.")
    name, dtype, shape = said["name"], said["dtype"], said["shape"]
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise malformed(
            "A myz tensor must have a name of at most {limit} characters.", limit=MAX_NAME
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise malformed(
            "The myz tensor {name!r} has the unknown dtype {dtype!r}.",
            name=name[:200],
            dtype=str(dtype)[:40],
        )
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(is_count, shape)):
        raise malformed(
            "The myz tensor {name!r} has a shape that is no short list of sizes.", name=name[:200]
        )
    return Tensor(name, dtype, tuple(shape))


def _check_streams(entry: Entry) -> None:
    """Require the streams that the form calls for, each as long as that makes it."""
    tensor, streams = entry.tensor, entry.streams
    bits = DTYPE_BITS[tensor.dtype]
    place = PLACES[entry.places]
    if streams.keys() != {*([place] if place else []), *VALUES[entry.values], "values"}:
        raise _unknown_form(tensor.name)
    if (place or entry.values != "plain") and bits not in {8, 16, 32, 64}:
        raise _unknown_form(tensor.name)
    if entry.values.startswith("scaled") and tensor.dtype != "F32":
        raise _unknown_form(tensor.name)
    expected = dict(_sizes(entry, bits))
    wrong = [key for key, sizes in expected.items() if streams[key].size not in sizes]
    if wrong:
        key = wrong[0]
        raise malformed(
            "The myz tensor {name!r} of dtype {dtype} and shape {shape} cannot have {found} bytes "
            "of {key}.",
            name=tensor.name[:200],
            dtype=tensor.dtype,
            shape=list(tensor.shape[:8]),
            found=in_figures(streams[key].size),
            key=key,
        )
    if entry.size > most_bytes(sum(stream.length for stream in streams.values())):
        raise malformed(
            "The myz tensor {name!r} claims {size} bytes, far more than its code can stand for.",
            name=tensor.name[:200],
            size=in_figures(entry.size),
        )


def _sizes(entry: Entry, bits: int) -> Iterator[tuple[str, range]]:
    """Give the lengths that each stream may have."""
    elements, count, item = entry.tensor.elements_count, entry.count, bits // 8
    if entry.places == "bitmask":
        yield "mask", _only(-(-elements // 8))
    elif entry.places == "gaps":
        # A gap beyond 254 takes a byte more for each 255.
        yield "gaps", range(count, count + elements // 255 + 1)
    if entry.values == "plain":
        yield "values", _only(entry.size if entry.places == "all" else count * item)
    elif entry.values == "codebook":
        yield "values", _only(count)
        yield "codebook", range(item, MAX_SHARED * item + 1, item)
    else:
        yield "values", _only(count * (2 if entry.values == "scaled16" else 1))
        rows = entry.tensor.shape[0] if entry.tensor.shape else 1
        yield "scales", range(4, 4 * max(rows, 1) + 1, 4 * max(rows - 1, 1))


def _only(size: int) -> range:
    return range(size, size + 1)


def _ports(said: Any) -> tuple[Port, ...]:
    if not isinstance(said, list) or len(said) > MAX_PORTS:
        raise malformed("The myz graph must list its inputs and outputs.")
    return tuple(map(_port, said))


def _port(said: Any) -> Port:
    if (
        not isinstance(said, dict)
        or said.keys() != {"name", "dtype", "shape"}
        or not isinstance(said["name"], str)
        or not isinstance(said["dtype"], str)
        or not isinstance(said["shape"], list)
        or len(said["shape"]) > MAX_RANK
        or not all(isinstance(size, str) or is_count(size) or size == -1 for size in said["shape"])
    ):
        raise malformed("The myz graph has an input or output without name, dtype and shape.")
    shape = tuple(size[:80] if isinstance(size, str) else size for size in said["shape"])
    return Port(said["name"][:500], said["dtype"][:40], shape)


def _unknown_form(name: str) -> Exception:
    return malformed("The myz tensor {name!r} is coded in an unknown way.", name=name[:200])


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_DIMENSION
