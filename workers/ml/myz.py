"""Write and read `.myz` files: the tensors of a model, each coded as small as it gets.

What comes back is the same file, byte for byte: a safetensors file of the same tensors, or the
same ONNX graph. docs/formats/myz.md describes the format; registry/formats/myz.py checks headers.
"""

import hashlib
import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid
from registry.formats import myz, onnx, safetensors
from registry.formats.facts import ReadRange, Tensor, malformed
from registry.formats.myz import Entry, Header, Stream
from workers.ml.compress import entropy
from workers.ml.compress.entropy import Bytes, Coded

MYZ: Final = "model.myz"
WEIGHTS: Final = "model.safetensors"
ONNX: Final = "model.onnx"

# What a stream costs in the header, about.
_STREAM_BYTES: Final = 10
# The reader allows more for each tensor; the header of each takes a few bytes for the rest.
_FREE_BYTES: Final = 4096
_SAMPLE: Final = 1 << 16
_SPARSE: Final = 0.9
# A tensor that is smaller stays in its graph.
_APART_BYTES: Final = 256
_COPY_BYTES: Final = 1 << 20
TYPES: Final = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    12: "U32",
    13: "U64",
    14: "C64",
    15: "C128",
    16: "BF16",
    17: "F8_E4M3",
    18: "F8_E4M3FNUZ",
    19: "F8_E5M2",
    20: "F8_E5M2FNUZ",
    21: "U4",
    22: "I4",
    23: "F4",
    24: "F8_E8M0",
    25: "U2",
    26: "I2",
}
# How many steps the largest number of a row is from zero, as quantization to 8 and 4 bits has it.
_STEPS: Final = (127, 64, 63, 8, 7)
_ROTATED: Final = frozenset({"F32", "BF16"})

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Given:
    """A tensor to code: its bytes as they lie in a file, little end first."""

    tensor: Tensor
    data: Bytes
    at: int = 0


@dataclass(frozen=True)
class Form:
    """How one tensor is coded."""

    places: str
    values: str
    count: int
    streams: Mapping[str, Coded]

    @property
    def cost(self) -> int:
        return sum(len(coded.data) + _STREAM_BYTES for coded in self.streams.values())


@dataclass(frozen=True)
class Written:
    """What a file came to, in bytes, and how many tensors took which form."""

    size: int
    decoded_bytes: int
    forms: Mapping[str, int]
    coders: Mapping[str, int]


# --- writing -------------------------------------------------------------------------------------


def pack(source: Path, target: Path) -> Written:
    """Code a safetensors or an ONNX file.

    Raises:
        Invalid: it is neither, or keeps weights in other files.

    """
    with source.open("rb") as file:
        size = source.stat().st_size
        read = _reader(file)
        if source.suffix == ".onnx":
            return _pack_graph(size, read, target)
        return _pack_state(size, read, target)


def pack_folder(folder: Path) -> Written:
    """Put a coded file in the place of the weights in a folder."""
    (source,) = [folder / name for name in (WEIGHTS, ONNX) if (folder / name).is_file()]
    written = pack(source, folder / MYZ)
    source.unlink()
    return written


def _pack_state(size: int, read: ReadRange, target: Path) -> Written:
    safetensors.read_safetensors(size, read)
    (length,) = struct.unpack("<Q", read(0, 8))
    said = json.loads(read(8, 8 + length))
    metadata = said.pop("__metadata__", {})
    named = sorted(said.items(), key=lambda item: item[1]["data_offsets"])
    start = 8 + length

    def given() -> Iterator[Given]:
        for name, about in named:
            low, high = about["data_offsets"]
            data = np.frombuffer(read(start + low, start + high), np.uint8)
            yield Given(Tensor(name, about["dtype"], tuple(about["shape"])), data)

    return write(given(), target, metadata=metadata)


def write(tensors: Iterable[Given], target: Path, *, metadata: Mapping[str, str]) -> Written:
    """Code tensors, one at a time, in the smallest of the ways there are."""
    with tempfile.TemporaryFile(dir=target.parent) as body:
        entries = [_write_tensor(given, body) for given in tensors]
        header = {"kind": "state", "metadata": dict(metadata), "tensors": entries}
        return _write_file(header, body, target)


def _pack_graph(size: int, read: ReadRange, target: Path) -> Written:
    found = onnx.walk_onnx(size, read)
    if found.external:
        raise _weights_outside()
    graph = bytearray()
    reached = 0
    entries: list[dict[str, Any]] = []
    with tempfile.TemporaryFile(dir=target.parent) as body:
        for tensor, low, high in _initializers(size, read):
            if high - low < _APART_BYTES:
                entries.append(_named(tensor))
                continue
            graph += read(reached, low)
            data = np.frombuffer(read(low, high), np.uint8)
            given = Given(tensor, data, at=len(graph))
            entries.append({**_write_tensor(given, body), "at": given.at})
            reached = high
        graph += read(reached, size)
        coded = _pick(entropy.encode(np.frombuffer(bytes(graph), np.uint8)))
        header = {
            "kind": "graph",
            "metadata": {},
            "graph": _stream_json(coded),
            "inputs": [port._asdict() for port in _fed(found)],
            "outputs": [port._asdict() for port in found.outputs],
            "tensors": entries,
        }
        return _write_file(header, body, target, first=coded.data)


def _fed(found: onnx.Found) -> list[Any]:
    weights = {tensor.name for tensor in found.initializers}
    return [port for port in found.inputs if port.name not in weights]


def _initializers(size: int, read: ReadRange) -> Iterator[tuple[Tensor, int, int]]:
    """Give the weights of a graph, and where their raw bytes lie, if they do."""
    walk = onnx.Walk(size, read)
    for item in walk.fields(0, size):
        if item.number != 7:
            continue
        for part in walk.inner(item):
            if part.number != 5:
                continue
            shape: list[int] = []
            fields = {}
            for field in walk.inner(part):
                fields[field.number] = field
                if field.number == 1:
                    shape.extend(walk.numbers(field))
            kind = TYPES.get(fields[2].value if 2 in fields else 0)
            if kind is None:
                continue
            name = walk.text(fields[8]) if 8 in fields else ""
            low, high = (fields[9].start, fields[9].end) if 9 in fields else (0, 0)
            yield Tensor(name, kind, tuple(shape)), low, high


def _write_tensor(given: Given, body: IO[bytes]) -> dict[str, Any]:
    form = code_tensor(given.tensor, given.data)
    for coded in form.streams.values():
        body.write(coded.data)
    return {
        **_named(given.tensor),
        "places": form.places,
        "values": form.values,
        **({"count": form.count} if form.places != "all" else {}),
        "sha256": hashlib.sha256(given.data.data).hexdigest(),
        "streams": {key: _stream_json(coded) for key, coded in form.streams.items()},
    }


def _named(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _stream_json(coded: Coded) -> list[Any]:
    return [coded.coder, coded.size, len(coded.data)]


def _write_file(
    header: Mapping[str, Any], body: IO[bytes], target: Path, *, first: bytes = b""
) -> Written:
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    coded = zlib.compress(raw, 9)
    with target.open("wb") as file:
        file.write(myz.MAGIC + struct.pack("<3I", myz.VERSION, len(coded), len(raw)) + coded)
        file.write(first)
        body.seek(0)
        shutil.copyfileobj(body, file, _COPY_BYTES)
    with target.open("rb") as file:
        # What is written is what can be read: the same checks, before anybody relies on it.
        checked = myz.read_header(target.stat().st_size, _reader(file))
    forms: dict[str, int] = {}
    coders: dict[str, int] = {}
    for entry in checked.entries:
        form = f"{entry.places} {entry.values}" if entry.streams else "graph"
        forms[form] = forms.get(form, 0) + 1
        for stream in entry.streams.values():
            coders[stream.coder] = coders.get(stream.coder, 0) + stream.length
    return Written(target.stat().st_size, checked.size, forms, coders)


# --- one tensor ----------------------------------------------------------------------------------


def code_tensor(tensor: Tensor, data: Bytes) -> Form:
    """Choose the smallest form for a tensor, by coding it in each that may be."""
    bits = myz.DTYPE_BITS.get(tensor.dtype)
    if bits is None:
        raise Invalid(
            "The tensor {name!r} is of {dtype}, numbers that fill no whole bytes, which a coded "
            "file does not hold: leave the step code out.",
            code="unsupported_dtype",
            name=tensor.name[:200],
            dtype=tensor.dtype,
        )
    if bits not in {8, 16, 32, 64}:
        # Several to a byte, or one in sixteen: what they are made of is not looked into.
        whole = entropy.encode(data, width=8 if bits == 128 else 1)
        return Form("all", "plain", tensor.elements_count, {"values": _pick(whole)})
    numbers = data.view(f"<u{bits // 8}")
    forms = [
        Form("all", values, len(numbers), streams)
        for values, streams in _code_values(tensor, numbers)
    ]
    kept = np.flatnonzero(numbers)
    if len(kept) < _SPARSE * len(numbers):
        places, placed = _code_places(kept, len(numbers))
        forms += [
            Form(places, values, len(kept), {**placed, **streams})
            for values, streams in _code_values(tensor, numbers[kept], kept)
        ]
    # Nobody is to take more from a file than its reader allows.
    allowed = [form for form in forms if _is_allowed(len(data), form)]
    return min(allowed or [_untouched(tensor, data)], key=lambda form: form.cost)


def _is_allowed(size: int, form: Form) -> bool:
    return size <= _FREE_BYTES + myz.FACTOR * sum(len(c.data) for c in form.streams.values())


def _untouched(tensor: Tensor, data: Bytes) -> Form:
    raw = Coded("raw", len(data), data.tobytes())
    return Form("all", "plain", tensor.elements_count, {"values": raw})


def _code_places(kept: NDArray[np.int64], elements: int) -> tuple[str, dict[str, Coded]]:
    """Say where the numbers lie, as a mask or as gaps, by what is smaller once it is coded."""
    mask = _pick(entropy.encode(entropy.mask_of(kept, elements)))
    gaps = _pick(entropy.encode(entropy.gaps_of(kept)))
    if len(gaps.data) < len(mask.data):
        return "gaps", {"gaps": gaps}
    return "bitmask", {"mask": mask}


def _code_values(
    tensor: Tensor, numbers: Numbers, at: NDArray[np.int64] | None = None
) -> Iterator[tuple[str, dict[str, Coded]]]:
    """Code the numbers in each way that gives them back; `at` says where those lie that are few."""
    width = numbers.dtype.itemsize
    rotate = tensor.dtype in _ROTATED
    shared = _shared(numbers) if width > 1 and len(numbers) else None
    if shared is not None:
        book, indices = shared
        yield (
            "codebook",
            {
                "codebook": _pick(_of_numbers(book, rotate=rotate)),
                "values": _pick(entropy.encode(indices)),
            },
        )
    scaled = _scaled(tensor, numbers, at) if tensor.dtype == "F32" and len(numbers) else None
    if scaled is not None:
        values, integers, scale = scaled
        yield (
            values,
            {"scales": _pick(_of_numbers(scale)), "values": _pick(_of_numbers(integers))},
        )
    if shared is None or len(numbers) < _SAMPLE:
        yield "plain", {"values": _pick(_of_numbers(numbers, rotate=rotate))}


def _of_numbers(numbers: Numbers, *, rotate: bool = False) -> list[Coded]:
    data = np.ascontiguousarray(numbers).view(np.uint8)
    return entropy.encode(data, width=numbers.dtype.itemsize, rotate=rotate)


def _pick(ways: Iterable[Coded]) -> Coded:
    """Take the smallest that the reader allows."""
    return next(coded for coded in ways if coded.size <= _FREE_BYTES + myz.FACTOR * len(coded.data))


def _shared(numbers: Numbers) -> tuple[Numbers, Bytes] | None:
    """Give the few different numbers there are and which is where; None where they are many."""
    book = np.unique(numbers[:_SAMPLE])
    if len(book) > myz.MAX_SHARED:
        return None
    indices = np.minimum(np.searchsorted(book, numbers), len(book) - 1)
    missed = book[indices] != numbers
    if missed.any():
        book = np.union1d(book, np.unique(numbers[missed][:_SAMPLE]))
        if len(book) > myz.MAX_SHARED:
            return None
        indices = np.minimum(np.searchsorted(book, numbers), len(book) - 1)
        if (book[indices] != numbers).any():
            return None
    return book, indices.astype(np.uint8)


def _scaled(
    tensor: Tensor, numbers: Numbers, at: NDArray[np.int64] | None
) -> tuple[str, Numbers, Numbers] | None:
    """Write floats as whole numbers times a scale; None where that is not exact.

    One power of two for all of them where that does, else a scale for each row of the first axis.
    """
    whole = _scaled_alike(numbers)
    if (whole and whole[0] == "scaled8") or len(tensor.shape) < 2 or tensor.shape[0] < 2:
        return whole
    values = numbers.view("<f4")
    if not np.isfinite(values).all():
        return None
    places = np.arange(len(values)) if at is None else at
    rows = places // (tensor.elements_count // tensor.shape[0])
    largest = np.zeros(tensor.shape[0], "<f4")
    np.maximum.at(largest, rows, np.abs(values))
    for steps in _STEPS:
        scales = (largest / np.float32(steps)).astype("<f4")
        scales[scales == 0] = 1.0
        with np.errstate(all="ignore"):
            integers = np.rint(values / scales[rows])
        if np.abs(integers).max() > np.iinfo(np.int8).max:
            continue
        small = integers.astype("<i1")
        if (_times(small, scales[rows]).view("<u4") == numbers).all():
            return "scaled8", small, scales
    return whole


def _scaled_alike(numbers: Numbers) -> tuple[str, Numbers, Numbers] | None:
    values = numbers.view("<f4")
    for part in (values[:_SAMPLE], values):
        if not np.isfinite(part).all() or not part.any():
            return None
        scale = _grain(part)
        with np.errstate(all="ignore"):
            integers = np.rint(part / scale)
        if not np.abs(integers).max() <= np.iinfo(np.int16).max:
            return None
    small = np.abs(integers).max() <= np.iinfo(np.int8).max
    whole = integers.astype("<i1" if small else "<i2")
    scales = np.array([scale], "<f4")
    if (_times(whole, scales).view("<u4") != numbers).any():
        return None
    return "scaled8" if small else "scaled16", whole, scales


def _grain(values: NDArray[np.float32]) -> np.float32:
    """Give the largest power of two that all values are multiples of."""
    mantissas, exponents = np.frexp(values[values != 0])
    whole = np.abs(mantissas * (1 << 24)).astype(np.int64)
    lowest = exponents - 24 + np.rint(np.log2(np.maximum(whole & -whole, 1))).astype(np.int64)
    return np.float32(2.0 ** max(int(lowest.min()), -120))


def _times(whole: Numbers, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return (whole.astype(np.float32) * scales).astype("<f4")


# --- reading -------------------------------------------------------------------------------------


def unpack(source: Path, folder: Path) -> Path:
    """Write the file that was coded into a folder, tensor by tensor; give its path.

    Raises:
        Invalid: the file is damaged, or more than the disk holds would come out of it.

    """
    with source.open("rb") as file:
        read = _reader(file)
        header = myz.read_header(source.stat().st_size, read)
        free = shutil.disk_usage(folder).free
        if header.size > free:
            raise Invalid(
                "{file} unpacks to {needed} bytes, and {free} are free.",
                code="too_large",
                file=source.name,
                needed=header.size,
                free=free,
            )
        if header.kind == "graph":
            return _unpack_graph(header, read, folder / ONNX)
        return _unpack_state(header, read, folder / WEIGHTS)


def read_tensors(source: Path) -> Iterator[tuple[Entry, Bytes]]:
    """Yield every tensor that is coded apart with its bytes, in the order of the file.

    Raises:
        Invalid: the file is damaged.

    """
    with source.open("rb") as file:
        read = _reader(file)
        header = myz.read_header(source.stat().st_size, read)
        for entry in header.entries:
            if entry.streams:
                yield entry, decode_tensor(entry, read)


def _unpack_state(header: Header, read: ReadRange, target: Path) -> Path:
    said: dict[str, Any] = {"__metadata__": dict(header.metadata)} if header.metadata else {}
    reached = 0
    for entry in header.entries:
        tensor = entry.tensor
        if tensor.dtype not in safetensors.DTYPE_BITS or tensor.name == "__metadata__":
            raise malformed(
                "The myz tensor {name!r} of dtype {dtype} cannot stand in a state.",
                name=tensor.name[:200],
                dtype=tensor.dtype,
            )
        said[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [reached, reached + entry.size],
        }
        reached += entry.size
    raw = json.dumps(said, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for entry in header.entries:
            file.write(decode_tensor(entry, read).data)
    return target


def _unpack_graph(header: Header, read: ReadRange, target: Path) -> Path:
    assert header.graph is not None
    graph = _decode_stream(header.graph, read)
    reached = 0
    with target.open("wb") as file:
        for entry in header.entries:
            if entry.streams:
                file.write(graph[reached : entry.at].data)
                file.write(decode_tensor(entry, read).data)
                reached = entry.at
        file.write(graph[reached:].data)
    with target.open("rb") as file:
        size, again = target.stat().st_size, _reader(file)
        # What was not to be seen from outside is looked at before anything loads it.
        if onnx.walk_onnx(size, again).external:
            raise _weights_outside()
        found = [tensor for tensor, _, _ in _initializers(size, again)]
    if found != [entry.tensor for entry in header.entries]:
        raise malformed("The myz header and the graph in it do not agree on their tensors.")
    return target


def decode_tensor(entry: Entry, read: ReadRange) -> Bytes:
    """Put one tensor together and compare it with its digest.

    Raises:
        Invalid: a stream is damaged, or what comes out is not what went in.

    """
    tensor = entry.tensor
    try:
        data = _decode(entry, {key: _decode_stream(s, read) for key, s in entry.streams.items()})
        whole = hashlib.sha256(data.data).hexdigest() == entry.sha256
    except Invalid:
        whole = False
    if not whole:
        raise malformed("The myz tensor {name!r} is damaged.", name=tensor.name[:200])
    return data


def _decode(entry: Entry, streams: Mapping[str, Bytes]) -> Bytes:
    tensor, elements = entry.tensor, entry.tensor.elements_count
    if entry.places == "all" and entry.values == "plain":
        return streams["values"]
    width = myz.DTYPE_BITS[tensor.dtype] // 8
    places = None
    if entry.places == "bitmask":
        places = entropy.places_of_mask(streams["mask"], elements, entry.count)
    elif entry.places == "gaps":
        places = entropy.places_of_gaps(streams["gaps"], elements, entry.count)
    values = _decode_values(entry, streams, places, width)
    if places is None:
        return np.ascontiguousarray(values).view(np.uint8)
    out = np.zeros(elements, values.dtype)
    out[places] = values
    return out.view(np.uint8)


def _decode_values(
    entry: Entry, streams: Mapping[str, Bytes], places: NDArray[np.int64] | None, width: int
) -> Numbers:
    values = streams["values"]
    if entry.values == "plain":
        return values.view(f"<u{width}")
    if entry.values == "codebook":
        book = streams["codebook"].view(f"<u{width}")
        if int(values.max(initial=0)) >= len(book):
            raise malformed("The coded data is damaged.")
        return book[values]
    scales = streams["scales"].view("<f4")
    whole = values.view("<i2" if entry.values == "scaled16" else "<i1")
    if len(scales) > 1:
        at = np.arange(entry.tensor.elements_count) if places is None else places
        scales = scales[at // (entry.tensor.elements_count // entry.tensor.shape[0])]
    with np.errstate(all="ignore"):
        return _times(whole, scales).view("<u4")


def _decode_stream(stream: Stream, read: ReadRange) -> Bytes:
    data = read(stream.offset, stream.offset + stream.length)
    return entropy.decode(stream.coder, data, stream.size)


def _weights_outside() -> Invalid:
    return Invalid(
        "The graph keeps weights in other files; save it as one file.", code="unsupported_format"
    )


def _reader(file: IO[bytes]) -> ReadRange:
    def read(start: int, end: int) -> bytes:
        file.seek(start)
        return file.read(end - start)

    return read
