"""Programs of torch.export: as a `.pt2` file, and compiled by AOTInductor for this machine."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from registry.errors import Invalid
from workers.ml.export.subject import Opened, Subject
from workers.ml.infer.engines import PACKAGE_INPUTS

MOST = 1 << 31
_COMPILERS = ("c++", "g++", "clang++")


def trace(subject: Subject) -> Any:
    """Export the module, with its first axis free, and that of texts where that can be."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            subject.module,
            subject.example(fixed_length=subject.is_recurrent),
            dynamic_shapes=subject.dynamic_shapes(),
        )
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            # Where in the source files of this machine it came from.
            node.meta.pop("stack_trace", None)
    return program


def write(subject: Subject, file: Path) -> None:
    torch.export.save(trace(subject), str(file))


def open_again(file: Path) -> Opened:
    opened: Opened = torch.export.load(str(file)).module()
    return opened


def compile_package(subject: Subject, file: Path) -> None:
    """Compile the program into a package with machine code, by the compiler of this machine.

    Raises:
        Invalid: there is no C++ compiler.

    """
    if not any(shutil.which(os.environ.get("CXX") or name) for name in _COMPILERS):
        raise Invalid(
            "AOTInductor compiles the model, and the worker has no C++ compiler ({names}): install "
            "one there, such as g++.",
            code="missing_compiler",
            names=", ".join(_COMPILERS),
        )
    with tempfile.TemporaryDirectory(prefix="inductor-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        # A pool of compiling processes gains nothing for one model, and outlives it.
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        from torch import _inductor  # noqa: PLC0415 - reads the environment as it is imported

        program = trace(subject)
        said = {PACKAGE_INPUTS: json.dumps(_inputs_of(program))}
        with _without_modes():
            _inductor.aoti_compile_and_package(
                program,
                package_path=str(file),
                inductor_configs={"aot_inductor.metadata": said},
            )


def _inputs_of(program: Any) -> list[dict[str, Any]]:
    """Say what each input has to be: an axis is a size, or a name with the least and the most.

    One row alone is what the export was held to; of other axes torch takes one for a fixed size.
    """
    listed = []
    for name in program.graph_signature.user_inputs:
        (node,) = [one for one in program.graph.nodes if one.name == name]
        value = node.meta["val"]
        axes: list[Any] = []
        for at, size in enumerate(value.shape):
            if isinstance(size, int):
                axes.append(size)
                continue
            bounds = program.range_constraints[size.node.expr]
            axes.append([str(size), 2 if at else 1, min(int(bounds.upper), MOST)])
        listed.append({"dtype": str(value.dtype).removeprefix("torch."), "axes": axes})
    return listed


@contextmanager
def _without_modes() -> Iterator[None]:
    """Let the compiler copy its files without their modes, which the sandbox lets nobody change."""
    known = shutil.copymode
    shutil.copymode = lambda *_args, **_options: None
    try:
        yield
    finally:
        shutil.copymode = known
