"""Programs of torch.export: as a `.pt2` file, and compiled by AOTInductor for this machine."""

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

        with _without_modes():
            _inductor.aoti_compile_and_package(trace(subject), package_path=str(file))


@contextmanager
def _without_modes() -> Iterator[None]:
    """Let the compiler copy its files without their modes, which the sandbox lets nobody change."""
    known = shutil.copymode
    shutil.copymode = lambda *_args, **_options: None
    try:
        yield
    finally:
        shutil.copymode = known
