"""What exporters are given and give, and how a folder travels as a tar of known length."""

import tarfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import TypeAlias

from registry.errors import Conflict

TAR = "application/x-tar"
_BLOCK = 512

# How the readers of files call types, and how the Open Inference Protocol does.
_DATATYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a version, whose bytes lie in the storage."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a model; -1 in a shape is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """How ONNX Runtime serves a version best, and on which machines that was measured."""

    threads: int = 1
    max_batch_size: int = 32
    # Empty where nobody has measured it.
    device_class: str = ""
    # Whether a row was seen to have the same answer beside others as alone, and to gain by it.
    joins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is known of a version to those that export it; `address` is where its exports are."""

    namespace: str
    name: str
    number: int
    address: str
    created_at: datetime
    message: str
    licenses: tuple[str, ...]
    parameters_count: int | None
    files: tuple[StoredFile, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    served: Served = Served()

    @property
    def reference(self) -> str:
        return f"{self.namespace}/{self.name}@{self.number}"

    @property
    def is_batchable(self) -> bool:
        """Whether the first axis of all that goes in and out is one of rows."""
        ports = (*self.inputs, *self.outputs)
        return bool(ports) and all(one.shape[:1] == (-1,) for one in ports)


Content: TypeAlias = bytes | StoredFile


@dataclass(frozen=True, slots=True)
class Package:
    """A file that leaves: a tar of what `entries` name, or the bytes of its one entry."""

    name: str
    media_type: str
    entries: tuple[tuple[str, Content], ...]

    def parts(self) -> Iterator[Content]:
        """Give what to send, in order."""
        if self.media_type == TAR:
            return tar_parts(self.entries)
        return iter([content for _, content in self.entries])

    @property
    def size_bytes(self) -> int:
        return sum(map(_size_of, self.parts()))


Exporter: TypeAlias = Callable[[Source], Package]


def tar_parts(entries: Sequence[tuple[str, Content]]) -> Iterator[Content]:
    """Write a tar that is the same each time: no times, no owners, the order as given."""
    for path, content in entries:
        header = tarfile.TarInfo(path)
        header.size = _size_of(content)
        yield header.tobuf(tarfile.PAX_FORMAT)
        yield content
        yield bytes(-header.size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _size_of(content: Content) -> int:
    return content.size_bytes if isinstance(content, StoredFile) else len(content)


def port_of(name: str, dtype: str, shape: Sequence[int | str]) -> Port:
    """Read a declared input or output; sizes that only have a name are any size."""
    sizes = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)
    return Port(name, _DATATYPES.get(dtype, ""), sizes)


def require_tensors(source: Source, *, without: Container[str] = ()) -> None:
    """See that everything that goes in or out is a tensor that a target has a name for.

    Raises:
        Conflict: it is not, or has an axis of no size.

    """
    for port in (*source.inputs, *source.outputs):
        if not port.datatype or port.datatype in without or 0 in port.shape:
            raise Conflict(
                "{name!r} of {version} is no tensor that this target takes: export the graph with "
                "plain numbers or texts, without maps (ZipMap) and empty axes.",
                code="no_tensor",
                name=port.name,
                version=source.reference,
            )


def _is_weights(path: PurePosixPath) -> bool:
    """Tell whether this may be the weights of a graph beside it, as exporters call them."""
    return (
        path.suffix in {".data", ".bin", ".weight", ".weights", ".bias"}
        or path.suffix.startswith(".onnx_data")
        or path.name.startswith(("onnx__", "model.onnx"))
    )


def onnx_files(source: Source) -> tuple[tuple[str, StoredFile], ...]:
    """Give the ONNX file under the name model.onnx, and what lies beside it for its weights.

    Raises:
        Conflict: there is none, or nobody can tell which.

    """
    found = [one for one in source.files if one.path.lower().endswith(".onnx")]
    named = [one for one in found if one.path == "model.onnx"] or found
    if not found:
        raise Conflict(
            "{version} has no ONNX file, which this package is made of; start a compression job "
            "with the one step Export, and take the version that it makes.",
            code="no_onnx",
            version=source.reference,
        )
    if len(named) > 1:
        raise Conflict(
            "{version} has several ONNX files; register the one to export as a version of its own.",
            code="several_onnx",
            version=source.reference,
        )
    graph = named[0]
    folder = PurePosixPath(graph.path).parent
    beside = [
        (str(PurePosixPath(one.path).relative_to(folder)), one)
        for one in source.files
        if one is not graph
        and PurePosixPath(one.path).is_relative_to(folder)
        and one not in found
        and _is_weights(PurePosixPath(one.path))
    ]
    return (("model.onnx", graph), *beside)
