"""Turns files that can run code into files that cannot; runs inside the sandbox and nowhere else.

It reads one open file and writes another one. Whatever it answers is a stranger's word: the worker
reads the new file with the readers of headers before it counts.
"""

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch

from registry.errors import RegistryError, Saying, Text
from registry.formats.facts import ReadRange
from registry.formats.opcodes import walk_pickle
from registry.formats.safetensors import MAX_HEADER_BYTES
from workers.ml.export.program import NotDescribed, describe
from workers.ml.program import METADATA, Program

CONVERTIBLE = frozenset({"torch-zip", "torch-legacy", "torchscript", "pt2", "npz"})
MAX_TENSORS = 100_000
MAX_NESTING = 8
MAX_PICKLES = 16
MAX_PICKLE_BYTES = 16 * 1024 * 1024
# Beyond this a protobuf message cannot go; larger models keep their weights as safetensors.
MAX_ONNX_BYTES = 1900 * 1024 * 1024
OPSET = 18
# The kind to ask for when an exported program is wanted as what a job can train.
PROGRAM = "program"
_SAME = 1e-4

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
}
# Under which names people save the weights beside everything else of a checkpoint.
_USUAL_NAMES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "weights",
    "net",
)
# What rebuilding tensors takes; anything else that a pickle imports is worth a look.
_HARMLESS = (
    *("torch._utils._rebuild_", "torch.storage.", "torch.serialization._get_layout"),
    *("collections.OrderedDict", "torch.Size", "torch.device", "_codecs.encode"),
    # What TorchScript calls the classes it carries itself; they are no modules of Python's.
    *("__torch__.", "torch.jit._pickle.", "torch._tensor._rebuild"),
    *("torch.nn.parameter.Parameter", "torch.Tensor", "torch._tensor._rebuild_from_type_v2"),
    *("numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.ndarray", "numpy.dtype"),
)
# How torch says it, which raises no MemoryError.
_NO_MEMORY = "can't allocate memory"
_STORAGES = ("Storage", "float32", "float16", "bfloat16", "float64", "int64", "int32", "int8")


class Refused(RegistryError):  # noqa: N818 - an answer, not an error
    """The file holds nothing that can be converted; the reason is for people."""


@dataclass
class Report:
    """What came out: `format` is that of the new file, empty where there is none."""

    format: str = ""
    toolchain: str = ""
    reason: Text | RegistryError | None = None
    imports: list[str] = field(default_factory=list)
    notes: list[Text] = field(default_factory=list)

    def to_json(self) -> bytes:
        reason = None if self.reason is None else Saying.of(self.reason)._asdict()
        notes = [Saying.of(note)._asdict() for note in self.notes]
        return json.dumps({**vars(self), "reason": reason, "notes": notes}).encode()


def examine(kind: str, source: BinaryIO, size: int) -> Report:
    """Name what the pickles in a file import; nothing of it is loaded."""
    report = Report()
    walks = 0
    for data in _pickles(kind, source, size):
        position = 0
        while position < len(data) and walks < MAX_PICKLES:
            walks += 1
            walked = walk_pickle(len(data), _reader(data), start=position)
            report.imports += [name for name in walked.imports if name not in report.imports]
            if not walked.whole:
                break
            position = walked.position
    strange = [name for name in report.imports if not _is_harmless(name)]
    if strange:
        report.notes.append(Text("It imports {names}.", names=_listed(strange, 10)))
    elif report.imports:
        report.notes.append(Text("It imports only what rebuilding tensors takes."))
    return report


def convert(
    kind: str, source: BinaryIO, size: int, sink: BinaryIO, *, hints: Mapping[str, Any]
) -> Report:
    """Write the weights, or the program, of a file to `sink` in a format that runs nothing.

    `hints` may hold the `signature` that the version declares: inputs to export a program with.

    Where nothing comes of it, the report has no format and says why.
    """
    report = examine(kind, source, size)
    source.seek(0)
    try:
        report.format = _CONVERTERS[kind](_Task(source, size, sink, hints, report.notes))
    except (Refused, NotDescribed) as error:
        report.reason = error
    except pickle.UnpicklingError:
        strange = [name for name in report.imports if not _is_harmless(name)]
        report.reason = (
            Text("It is more than tensors: it imports {names}.", names=_listed(strange, 5))
            if strange
            else Text("Its pickle does more than rebuild tensors.")
        )
    # A stranger's file may make its loader raise anything at all.
    except Exception as error:  # noqa: BLE001
        report.reason = (
            Text("It needs more memory to open than a file of its size may.")
            if isinstance(error, MemoryError) or _NO_MEMORY in str(error)
            else Text("Its reader stopped. {error}", error=_first_line(error))
        )
    report.toolchain = f"torch-{torch.__version__}"
    return report


# --- Pickles, looked at ---------------------------------------------------------------------------


def _reader(data: bytes) -> ReadRange:
    return lambda start, end: data[start:end]


def _pickles(kind: str, source: BinaryIO, size: int) -> Iterator[bytes]:
    if zipfile.is_zipfile(source):
        source.seek(0)
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if name.endswith((".pkl", ".pickle"))]
            for name in names[:MAX_PICKLES]:
                with archive.open(name) as entry:
                    yield entry.read(MAX_PICKLE_BYTES)
    elif kind in {"pickle", "torch-legacy", "joblib", "npy"}:
        source.seek(0)
        yield source.read(min(size, MAX_PICKLE_BYTES))


def _is_harmless(name: str) -> bool:
    return name.startswith(_HARMLESS) or (
        name.startswith("torch.") and name.endswith(_STORAGES) and name.count(".") == 1
    )


def _listed(found: list[str], shown: int) -> str | Text:
    names = ", ".join(found[:shown])
    if len(found) <= shown:
        return names
    return Text("{names} and {count} more", names=names, count=len(found) - shown)


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- Weights --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One file to convert."""

    source: BinaryIO
    size: int
    sink: BinaryIO
    hints: Mapping[str, Any]
    notes: list[Text]


def _convert_checkpoint(task: _Task) -> str:
    loaded = torch.load(task.source, map_location="cpu", weights_only=True)
    _write_tensors(_find_weights(loaded, task.notes), task.size, task.sink)
    return "safetensors"


def _find_weights(loaded: Any, notes: list[Text]) -> dict[str, torch.Tensor]:
    """Choose the weights of a checkpoint that may hold an optimizer and much else."""
    if isinstance(loaded, torch.Tensor):
        return {"tensor": loaded}
    if not isinstance(loaded, Mapping):
        raise Refused("It holds no dictionary of tensors.")
    for name in _USUAL_NAMES:
        inner = loaded.get(name)
        if isinstance(inner, Mapping) and any(isinstance(v, torch.Tensor) for v in inner.values()):
            notes.append(
                Text("Its weights were taken from {name!r}; the rest was left out.", name=name)
            )
            loaded = inner
            break
    tensors: dict[str, torch.Tensor] = {}
    left_out: list[str] = []
    _flatten("", loaded, tensors, left_out, 0)
    if not tensors:
        raise Refused("It holds no tensors.")
    if left_out:
        notes.append(Text("Left out, for it is no tensor: {names}.", names=_listed(left_out, 5)))
    return tensors


def _flatten(
    prefix: str, value: Any, tensors: dict[str, torch.Tensor], left_out: list[str], depth: int
) -> None:
    if depth > MAX_NESTING:
        raise Refused("It is nested deeper than {limit} levels.", limit=MAX_NESTING)
    if isinstance(value, torch.Tensor):
        if len(tensors) >= MAX_TENSORS:
            raise Refused("It holds more than {limit} tensors.", limit=MAX_TENSORS)
        tensors[prefix] = value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            _flatten(name, inner, tensors, left_out, depth + 1)
    elif prefix:
        left_out.append(prefix[:80])


def _write_tensors(
    tensors: Mapping[str, torch.Tensor],
    size: int,
    sink: BinaryIO,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file; tensors that share their bytes each get their own.

    Two names for the same weights are usual, and both are asked for when they are loaded.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    offset = 0
    limit = 2 * size + (1 << 20)
    for name, tensor in tensors.items():
        length = _checked_length(name, tensor)
        if offset + length > limit:
            raise Refused(
                "Its tensors need more than {limit} bytes, which is more than twice the file: "
                "many share their bytes.",
                limit=limit,
            )
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + length],
        }
        offset += length
    text = json.dumps(header).encode()
    if len(text) > MAX_HEADER_BYTES:
        raise Refused("Its header would take {size} bytes.", size=len(text))
    text += b" " * (-len(text) % 8)
    sink.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        if tensor.numel():
            plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            sink.write(plain.numpy().data)


def _checked_length(name: str, tensor: torch.Tensor) -> int:
    """Give a tensor's bytes; one that claims more than its storage has unfolds to anything."""
    shown = name[:80]
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise Refused("The tensor {name!r} is sparse, quantized or without bytes.", name=shown)
    if tensor.dtype not in _DTYPES:
        raise Refused(
            "The tensor {name!r} is of {dtype}, which safetensors does not have.",
            name=shown,
            dtype=tensor.dtype,
        )
    length = tensor.numel() * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if length > held:
        raise Refused(
            "The tensor {name!r} claims {length} bytes and has {held}.",
            name=shown,
            length=length,
            held=held,
        )
    return length


def _convert_arrays(task: _Task) -> str:
    source, size, notes = task.source, task.size, task.notes
    tensors: dict[str, torch.Tensor] = {}
    total = 0
    with zipfile.ZipFile(source) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > 20 * size + (1 << 20):
            raise Refused("Its arrays are packed more than twenty times over.")
    source.seek(0)
    with np.load(source, allow_pickle=False) as arrays:
        for name in arrays.files[:MAX_TENSORS]:
            array = np.ascontiguousarray(arrays[name])
            if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8:
                notes.append(
                    Text(
                        "Left out, for its type: {name} ({dtype}).",
                        name=name[:80],
                        dtype=array.dtype,
                    )
                )
                continue
            native = array.astype(array.dtype.newbyteorder("="), copy=False)
            tensors[name] = torch.from_numpy(native)
            total += array.nbytes
    if not tensors:
        raise Refused("It holds no arrays of numbers.")
    _write_tensors(tensors, max(size, total), task.sink)
    return "safetensors"


# --- Programs -------------------------------------------------------------------------------------


def _convert_script(task: _Task) -> str:
    module = torch.jit.load(task.source, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    example = _example_inputs(task.hints)
    if example is not None:
        try:
            out = io.BytesIO()
            ports = task.hints["signature"]["inputs"]
            names = [str(port["name"]) for port in ports]
            torch.onnx.export(
                module,
                example,
                out,  # type: ignore[arg-type] # as the older exporter takes it
                dynamo=False,
                input_names=names,
                dynamic_axes={
                    name: {axis: f"{name}_{axis}" for axis in _open_axes(port["shape"])}
                    for name, port in zip(names, ports, strict=True)
                },
                opset_version=OPSET,
            )
            _write_program(out.getvalue(), task.sink)
        except Exception as error:  # noqa: BLE001 - then its weights alone
            task.notes.append(_no_onnx(error))
        else:
            return "onnx"
    else:
        task.notes.append(
            Text("It declares no inputs to export it with, so only its weights were taken.")
        )
    return _write_state(module.state_dict(), task)


def _convert_program(task: _Task) -> str:
    program = torch.export.load(task.source)
    try:
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
        assert exported is not None
        _write_program(exported.model_proto.SerializeToString(), task.sink)
    except Exception as error:  # noqa: BLE001 - then its weights alone
        task.notes.append(_no_onnx(error))
        return _write_state(program.state_dict, task)
    return "onnx"


def _describe_program(task: _Task) -> str:
    """Write an exported program as plain data, once it is known to compute the same."""
    opened = torch.export.load(task.source)
    said, tensors = describe(opened)
    module = Program(said, {name: list(found.shape) for name, found in tensors.items()})
    module.load_state_dict(tensors, strict=True)
    example = module.eval().example()
    with torch.no_grad():
        expected, found = opened.module()(*example), module(*example)
    expected = expected[0] if isinstance(expected, tuple | list) else expected
    largest = float(expected.double().abs().max()) if expected.numel() else 0.0
    if not torch.allclose(expected.double(), found.double(), atol=_SAME * max(1.0, largest)):
        raise Refused("Step by step it computes something else.")
    metadata = {"format": "pt", METADATA: module.to_json()}
    _write_tensors(tensors, task.size, task.sink, metadata)
    return "safetensors"


def _no_onnx(error: Exception) -> Text:
    return Text("No ONNX could be made of it ({error}).", error=_first_line(error))


def _write_state(state: Mapping[str, Any], task: _Task) -> str:
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise Refused("It holds no weights.")
    _write_tensors(tensors, task.size, task.sink)
    return "safetensors"


def _write_program(raw: bytes, sink: BinaryIO) -> None:
    if len(raw) > MAX_ONNX_BYTES:
        raise Refused("It is too large for one ONNX file.")
    sink.write(raw)


def _open_axes(shape: Iterable[object]) -> list[int]:
    return [at for at, size in enumerate(shape) if not (isinstance(size, int) and size > 0)]


def _example_inputs(hints: Mapping[str, Any]) -> tuple[torch.Tensor, ...] | None:
    """Make zeros of the declared shapes; a dimension that is open is one."""
    signature = hints.get("signature")
    ports = signature.get("inputs") if isinstance(signature, Mapping) else None
    if not ports or len(ports) > 100:
        return None
    made = []
    for port in ports:
        dtype = getattr(torch, str(port.get("dtype")), None)
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in port["shape"]]
        if not isinstance(dtype, torch.dtype) or np.prod(shape, dtype=object) > 1 << 28:
            return None
        made.append(torch.zeros(shape, dtype=dtype))
    return tuple(made)


_CONVERTERS: Mapping[str, Callable[[_Task], str]] = {
    "torch-zip": _convert_checkpoint,
    "torch-legacy": _convert_checkpoint,
    "npz": _convert_arrays,
    "torchscript": _convert_script,
    "pt2": _convert_program,
    PROGRAM: _describe_program,
}
