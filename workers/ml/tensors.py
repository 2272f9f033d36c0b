"""The tensors of files as numbers, read piece by piece: nothing holds a whole one in memory."""

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from registry.errors import Text
from registry.formats import safetensors
from registry.formats.bounded_json import parse_json
from registry.formats.facts import malformed
from registry.formats.weights import Chosen
from workers.ml import myz
from workers.ml.graph_weights import WIDEST_ROW, of_graph
from workers.ml.stored import Numbers, OpenFiles, ReadRange, Stored, computed, within

_MAX_TENSORS: Final = 1_000_000
_MATRIX: Final = 2


def open_tensors(
    folder: Path, chosen: Chosen, scratch: Path, files: OpenFiles
) -> dict[str, Stored]:
    """Give the tensors of some files by their names; of two with one name, the first.

    Where the files are of several components, each name begins with that of its component. A coded
    file is written out into `scratch` before. The tensors are read through `files`.

    Raises:
        Invalid: a file is malformed.

    """
    found: dict[str, Stored] = {}
    parts = chosen.parts or ("",) * len(chosen.paths)
    for at, (path, part) in enumerate(zip(chosen.paths, parts, strict=True)):
        for stored in _of_file(folder / path, chosen.format, scratch / str(at), files):
            if len(found) >= _MAX_TENSORS:
                raise malformed("The files hold more than {limit} tensors.", limit=_MAX_TENSORS)
            name = f"{part}:{stored.name}" if part else stored.name
            found.setdefault(name, replace(stored, name=name) if part else stored)
    _unpack_linear(found)
    return found


def _of_file(path: Path, format_name: str, scratch: Path, files: OpenFiles) -> Iterator[Stored]:
    if format_name == "myz":
        scratch.mkdir(parents=True, exist_ok=True)
        path = myz.unpack(path, scratch)
        format_name = path.suffix.removeprefix(".")
    read = files.reader(path)
    size = path.stat().st_size
    if format_name == "onnx":
        return iter(of_graph(path, size, files))
    return _of_state(size, read)


def _of_state(size: int, read: ReadRange) -> Iterator[Stored]:
    safetensors.read_safetensors(size, read)  # refuses what is malformed
    (length,) = struct.unpack("<Q", read(0, 8))
    header = parse_json(read(8, 8 + length), what=Text("The safetensors header"), max_depth=8)
    for name, said in header.items():
        if name == "__metadata__":
            continue
        low, high = (8 + length + offset for offset in said["data_offsets"])
        shape = tuple(said["shape"])
        yield Stored(name, said["dtype"], shape, high - low, within(read, low, high))


def _unpack_linear(found: dict[str, Stored]) -> None:
    """Let the weight of a packed layer (`workers.ml.packed`) stand where a linear layer has it."""
    for name, numbers in list(found.items()):
        layer = name.removesuffix(".numbers")
        scales, zeros = found.get(f"{layer}.scales"), found.get(f"{layer}.zeros")
        if layer == name or scales is None or f"{layer}.weight" in found:
            continue
        weight = _packed_weight(f"{layer}.weight", numbers, scales, zeros)
        if weight is not None:
            for part in ("numbers", "scales", "zeros"):
                found.pop(f"{layer}.{part}", None)
            found[weight.name] = weight


def _packed_weight(
    name: str, numbers: Stored, scales: Stored, zeros: Stored | None
) -> Stored | None:
    """Give what the numbers stand for; None where the shapes do not belong together."""
    bits = 8 if zeros is None else 4
    parts = [numbers, scales, *([] if zeros is None else [zeros])]
    if any(not one.is_numeric or one.is_computed or one.scaled for one in parts):
        return None
    if numbers.dtype != ("I8" if zeros is None else "U8"):
        return None
    if not len(numbers.shape) == len(scales.shape) == _MATRIX or not numbers.elements:
        return None
    rows, width, groups = *numbers.shape, scales.shape[1]
    width = width * 8 // bits
    if scales.shape[0] != rows or not groups or width % groups or width > WIDEST_ROW:
        return None
    if zeros is not None and (zeros.shape != scales.shape or zeros.dtype != "U8"):
        return None

    def between(start: int, end: int) -> Numbers:
        first, last = start // width, -(-end // width)
        if zeros is None:
            steps = numbers.between(first * width, last * width).reshape(
                -1, groups, width // groups
            )
        else:
            raw = numbers.raw(first * width // 2, last * width // 2)
            halves = np.stack([raw >> 4, raw & 15], axis=-1).astype(np.float64)
            middles = zeros.between(first * groups, last * groups).reshape(-1, groups, 1)
            steps = halves.reshape(-1, groups, width // groups) - middles
        scaled = steps * scales.between(first * groups, last * groups).reshape(-1, groups, 1)
        return np.asarray(scaled.reshape(-1)[start - first * width : end - first * width])

    return computed(name, f"I{bits}" if zeros is None else f"U{bits}", (rows, width), between)
