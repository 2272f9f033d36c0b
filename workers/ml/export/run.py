"""The job that writes a version as a file of torch or of JAX, and proves that it is the same."""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import Invalid, RegistryError, Text
from registry.recipes import ExportRecipe
from workers.ml import environment
from workers.ml.export import programs, stablehlo, torchscript
from workers.ml.export.subject import Opened, Subject, difference, subject_of
from workers.ml.formats import open_model
from workers.ml.infer.engines import open_package
from workers.ml.infer.runtime import load_runtime
from workers.ml.infer.sessions import first_line
from workers.ml.job import Job
from workers.ml.report import Report


class _Way(NamedTuple):
    """How one target is written and opened again."""

    write: Callable[[Subject, Path], None]
    open_again: Callable[[Path], Opened]
    traces_steps: bool
    """Whether a model that reads step by step keeps any length of text."""


_WAYS: Mapping[str, _Way] = {
    "torchscript": _Way(torchscript.write, torchscript.open_again, traces_steps=True),
    "pt2": _Way(programs.write, programs.open_again, traces_steps=False),
    "aotinductor": _Way(programs.compile_package, open_package, traces_steps=False),
    "stablehlo": _Way(stablehlo.write, stablehlo.open_again, traces_steps=False),
}


def run(job: Job, recipe: ExportRecipe) -> Report:
    """Write the file, open it again, and compare its answers with the version's own.

    Raises:
        Invalid: the model cannot be written so, or what was written computes something else.

    """
    given = job.input("model")
    way, file = _WAYS[recipe.target], job.files / recipe.file
    job.events.progress(done=0, total=2, unit="", step=recipe.kind)
    folder = open_model(given.path, trainable=True)
    subject = subject_of(load_runtime(folder, device="cpu", threads=job.threads))
    fixed = subject.is_recurrent and not way.traces_steps
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            way.write(subject, file)
            job.interrupt.check()
            job.events.progress(done=1, total=2, unit="", step="evaluate")
            off = difference(subject, way.open_again(file), fixed_length=fixed)
    except RegistryError:
        raise
    except Exception as error:
        # Tracers and compilers raise whatever their parts raise.
        raise Invalid(
            "torch cannot write this model as {target}: {problem}",
            code="export_failed",
            target=recipe.target,
            problem=f"{type(error).__name__}: {first_line(error)}",
        ) from error
    shapes = subject.shapes(fixed_length=fixed)
    summary: dict[str, Any] = {
        "target": recipe.target,
        "file": file.name,
        "off_by": off,
        "inputs": [
            {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": shape}
            for name, tensor, shape in zip(
                subject.input_names, subject.example(fixed_length=fixed), shapes, strict=True
            )
        ],
        "output": subject.output_name,
    }
    said = [f"{one['name']} {one['dtype']} {one['shape']}" for one in summary["inputs"]]
    job.events.log(
        Text(
            "It takes {inputs}, and is off by {difference:.2g}.",
            inputs="; ".join(said),
            difference=off,
        )
    )
    job.events.progress(done=2, total=2, unit="", step="done")
    described = environment.describe(device="cpu", threads=job.threads)
    message = f"{file.name} of {given.title}"
    return Report("export", [], described, message, summary)
