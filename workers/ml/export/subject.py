"""What an exporter is given: a module, tensors to trace it with, and the axes that stay free."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from registry.errors import Invalid
from workers.ml.agreement import farthest
from workers.ml.infer.engines import ProgramEngine, TorchEngine
from workers.ml.infer.feeders import Feeds, WordsFeeder
from workers.ml.infer.runtime import EMBEDDING, Runtime
from workers.ml.probes import NOWHERE, probe_rows
from workers.ml.texts import longest_text

MAX_BATCH = 4096
TOLERANCE = 1e-5
"""The largest difference, relative to the largest answer, of an export that is the same model."""
_LONGEST_WORDS = 4096
# Batches of different sizes, whose texts are of different lengths too.
_ROWS = (2, 1, 5)

Opened = Callable[..., Any]
"""An export opened again: tensors in, a tensor out."""


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode on the CPU, and how it is called."""

    module: nn.Module
    input_names: list[str]
    output_name: str
    probes: tuple[tuple[tuple[Tensor, ...], NDArray[Any]], ...]
    """Inputs, and what the version answers to them."""
    longest: int | None
    """How many tokens a text may have; None where the inputs have no such axis."""
    is_recurrent: bool
    """Whether it reads texts step by step, which torch.export can only do for one length."""

    def shapes(self, *, fixed_length: bool) -> list[list[int | str]]:
        """Give the shapes that an export takes; a name is an axis of any size."""
        free = self._axes(fixed_length=fixed_length)
        return [
            [names.get(axis, size) for axis, size in enumerate(tensor.shape)]
            for tensor, names in zip(self.example(fixed_length=fixed_length), free, strict=True)
        ]

    def example(self, *, fixed_length: bool) -> tuple[Tensor, ...]:
        """Give what to trace with: two rows or more, for an axis of one would be a fixed one."""
        tensors, _ = self.probes[0]
        return self.padded(tensors) if fixed_length else tensors

    def padded(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Lengthen texts to the longest by padding, which changes no answer."""
        if self.longest is None:
            return tuple(tensors)
        longest = self.longest
        return tuple(nn.functional.pad(one, (0, longest - one.shape[1])) for one in tensors)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Say to torch.export which axes stay free."""
        batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
        dims: dict[str, Any] = {"batch": batch}
        if self.longest is not None:
            dims["sequence"] = torch.export.Dim("sequence", min=1, max=self.longest)
        free = self._axes(fixed_length=self.is_recurrent)
        said = tuple(
            {axis: dims.get(name, torch.export.Dim.DYNAMIC) for axis, name in names.items()}
            for names in free
        )
        # A module that takes *tensors takes their axes in a tuple.
        return (said,) if hasattr(self.module, "input_names") else said

    def _axes(self, *, fixed_length: bool) -> list[Mapping[int, str]]:
        ports = getattr(self.module, "ports", None)
        if ports is not None:
            return [
                {at: f"axis_{at}" if at else "batch" for at, n in enumerate(port.shape) if n < 0}
                for port in ports
            ]
        length = {} if self.longest is None or fixed_length else {1: "sequence"}
        return [{0: "batch", **length} for _ in self.input_names]


def subject_of(runtime: Runtime) -> Subject:
    """Take a loaded version as something to export.

    Raises:
        Invalid: it is an ONNX graph, which is no torch module any more.

    """
    engine = runtime.engine
    if not isinstance(engine, TorchEngine):
        raise Invalid(
            "The version is an ONNX graph, and no torch program can be made of one; choose the "
            "version that it was made from.",
            code="needs_module",
        )
    module = engine.module.eval()
    module.requires_grad_(requires_grad=False)
    return Subject(
        module,
        list(engine.input_names),
        EMBEDDING if runtime.answers == "embedding" else "logits",
        tuple(_probe(runtime, engine, rows) for rows in _ROWS),
        _longest(runtime),
        any(isinstance(part, nn.RNNBase) for part in module.modules()),
    )


def difference(subject: Subject, opened: Opened, *, fixed_length: bool) -> float:
    """Run an export on batches of several sizes, and give how far it is from the version.

    Raises:
        Invalid: it computes something else.

    """
    relative = 0.0
    for tensors, expected in subject.probes:
        given = subject.padded(tensors) if fixed_length else tensors
        with torch.no_grad():
            answer = opened(*given)
        found = np.asarray(answer[0] if isinstance(answer, tuple | list) else answer)
        if found.shape != expected.shape:
            raise Invalid(
                "The exported model answers {found} where torch answers {expected}.",
                code="export_failed",
                found=list(found.shape),
                expected=list(expected.shape),
            )
        relative = max(relative, farthest(expected, found)[1])
    if not relative <= TOLERANCE:
        raise Invalid(
            "The exported model is off by {relative:.2g}, more than {limit:g}.",
            code="export_failed",
            relative=relative,
            limit=TOLERANCE,
        )
    return relative


def _probe(
    runtime: Runtime, engine: TorchEngine, rows: int
) -> tuple[tuple[Tensor, ...], NDArray[Any]]:
    feeds: Feeds = runtime.feeder.feeds(probe_rows(runtime, rows), NOWHERE)
    (expected,) = engine.run(feeds).values()
    names = engine.input_names
    return tuple(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in names), expected


def _longest(runtime: Runtime) -> int | None:
    if isinstance(runtime.engine, ProgramEngine):
        return None
    if isinstance(runtime.feeder, WordsFeeder):
        return min(runtime.feeder.max_length, _LONGEST_WORDS)
    if "input_ids" in runtime.engine.input_names:
        return longest_text(runtime.folder.path, runtime.folder.config)
    return None
