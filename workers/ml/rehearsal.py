"""Does each conversion once on files of its own making, so that all it needs is loaded by then.

A confined process can open nothing any more, not even a module of Python.
"""

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from workers.ml import convert


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.stack(image)
        return answer


def rehearse() -> None:
    """Convert a tiny file of every kind; raise where this installation cannot."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    module = _Tiny().eval()
    image = torch.zeros(1, 1, 4, 4)
    ports = [{"name": "image", "dtype": "float32", "shape": [1, 1, 4, 4]}]
    for kind, data in _samples(module, image).items():
        said = convert.convert(
            kind,
            io.BytesIO(data),
            len(data),
            io.BytesIO(),
            hints={"signature": {"inputs": ports}},
        )
        if not said.format:
            raise RuntimeError(f"{kind} files cannot be converted here: {said.reason}")


def _samples(module: nn.Module, image: torch.Tensor) -> dict[str, bytes]:
    state = module.state_dict()
    made: dict[str, bytes] = {}
    for kind, is_zip in (("torch-zip", True), ("torch-legacy", False)):
        out = io.BytesIO()
        torch.save(state, out, _use_new_zipfile_serialization=is_zip)
        made[kind] = out.getvalue()
    arrays = io.BytesIO()
    np.savez_compressed(arrays, weight=np.zeros((2, 2), dtype="float32"))
    made["npz"] = arrays.getvalue()
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, image), script)  # type: ignore[no-untyped-call]
    made["torchscript"] = script.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.pt2"
        rows = torch.export.Dim("rows", min=1, max=8)
        program = torch.export.export(
            module, (image.repeat(2, 1, 1, 1),), dynamic_shapes=({0: rows},)
        )
        torch.export.save(program, path)
        made["pt2"] = made[convert.PROGRAM] = path.read_bytes()
    return made
