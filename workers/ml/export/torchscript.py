"""TorchScript: a traced module, without what the tracer notes about this machine."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from workers.ml.export.subject import Opened, Subject

_NOTES = ".debug_pkl"
# As torch lays archives out, so that it can map tensors into memory.
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30


def write(subject: Subject, file: Path) -> None:
    """Write the traced module."""
    jit: Any = torch.jit
    with torch.no_grad():
        traced = jit.trace(subject.module, subject.example(fixed_length=False), check_trace=False)
    noted = file.with_suffix(".noted")
    jit.save(traced, str(noted))
    _without_notes(noted, file)
    noted.unlink()


def open_again(file: Path) -> Opened:
    jit: Any = torch.jit
    opened: Opened = jit.load(str(file), map_location="cpu")
    return opened


def _without_notes(source: Path, target: Path) -> None:
    """Copy an archive without the places in source files that its lines came from."""
    with zipfile.ZipFile(source) as taken, zipfile.ZipFile(target, "w") as written:
        for entry in taken.infolist():
            if entry.filename.endswith(_NOTES):
                continue
            copied = zipfile.ZipInfo(entry.filename)
            at = written.start_dir + _LOCAL_HEADER_BYTES + len(entry.filename.encode())
            fill = -(at + 4) % _ALIGNMENT
            copied.extra = struct.pack("<2sH", b"FB", fill) + bytes(fill)
            written.writestr(copied, taken.read(entry))
