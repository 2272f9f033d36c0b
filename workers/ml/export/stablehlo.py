"""StableHLO for XLA, on TPUs for one: the program as an artifact that `jax.export` loads.

torchax, which knows ATen's operators in terms of JAX, is no dependency: a worker that has it beside
its torch can write such files.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch._ops import OpOverloadPacket

from registry.errors import Invalid
from workers.ml.export.programs import trace
from workers.ml.export.subject import MAX_BATCH, Opened, Subject

PLATFORMS = ("cpu", "cuda", "tpu")


def write(subject: Subject, file: Path) -> None:
    """Write the program with its weights, lowered for every platform.

    Raises:
        Invalid: a package is missing.

    """
    jax, torchax = _packages()
    program = trace(subject)
    states, function = torchax.exported_program_to_jax(program)

    # Not the places in source files that operations come from.
    jax.config.update("jax_traceback_in_locations_limit", 0)

    def answer(*inputs: Any) -> Any:
        return function(states, inputs)[0]

    bounds = [f"batch <= {MAX_BATCH}"]
    if subject.longest is not None and not subject.is_recurrent:
        # Up to here its table of positions is at least as long as a text.
        bounds.append(f"sequence <= {subject.longest}")
    scope = jax.export.SymbolicScope(bounds)
    inputs = [
        jax.ShapeDtypeStruct(
            jax.export.symbolic_shape(", ".join(map(str, shape)), scope=scope),
            tensor.numpy().dtype,
        )
        for tensor, shape in zip(
            subject.example(fixed_length=subject.is_recurrent),
            subject.shapes(fixed_length=subject.is_recurrent),
            strict=True,
        )
    ]
    exported = jax.export.export(jax.jit(answer), platforms=PLATFORMS)(*inputs)
    file.write_bytes(exported.serialize())


def open_again(file: Path) -> Opened:
    jax, _ = _packages()
    exported = jax.export.deserialize(bytearray(file.read_bytes()))

    def call(*tensors: Tensor) -> Any:
        return np.asarray(exported.call(*(tensor.numpy() for tensor in tensors)))

    return call


def _packages() -> tuple[Any, Any]:
    try:
        jax = importlib.import_module("jax")
        importlib.import_module("jax.export")
        with _any_overload():
            torchax = importlib.import_module("torchax.export")
    except ModuleNotFoundError as error:
        raise Invalid(
            "StableHLO is written with the packages torchax and jax, and the worker lacks "
            "{package}: install both beside its torch.",
            code="missing_package",
            package=str(error.name),
        ) from error
    return jax, torchax


@contextmanager
def _any_overload() -> Iterator[None]:
    """Let torchax be imported by a torch that no longer has every overload that its tables name.

    A name stands for one that is gone; no program has such an operator, so nobody looks it up.
    """
    known = OpOverloadPacket.__getattr__

    def find(packet: Any, name: str) -> Any:
        try:
            return known(packet, name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return f"{packet}.{name}"

    OpOverloadPacket.__getattr__ = find  # type: ignore[method-assign] # given back below
    try:
        yield
    finally:
        OpOverloadPacket.__getattr__ = known  # type: ignore[method-assign] # as it was
