"""Makes of a version what serves it: `python -m workers.serving.prepare in out onnx`, sandboxed.

`onnx` is a graph: what is one already, coded or not, is taken as it is, a torch model is exported.
`aotinductor` is a torch model as machine code for this processor. Either is held against torch on
batches of several sizes. out/report.json says what came of it.
"""

import json
import shutil
import sys
from pathlib import Path

from registry.errors import Invalid, RegistryError
from workers.ml import device
from workers.ml.export import programs
from workers.ml.export.onnx import export_onnx, verify
from workers.ml.export.subject import difference, subject_of
from workers.ml.formats import open_model
from workers.ml.infer.engines import OnnxEngine, TorchEngine, open_package
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.runtime import EMBEDDING, Runtime, load_runtime
from workers.ml.probes import NOWHERE, probe_rows

REPORT = "report.json"
# What the machine lacks may be there tomorrow.
_NOT_OF_THE_MODEL = frozenset({"missing_compiler"})
_ROWS = (2, 1, 5)


def main(source: Path, target: Path, kind: str) -> None:
    """Write the file, or the reason why there is none."""
    prepare, name = {"onnx": (_export, "model.onnx"), "aotinductor": (_compile, "model.pt2")}[kind]
    device.prepare(device="cpu", threads=1)
    try:
        off = prepare(source, target / name)
        report = {"made": True, "reason": "", "off_by": off}
    except RegistryError as error:
        again = error.reason in _NOT_OF_THE_MODEL
        report = {"made": False, "reason": error.detail, "again": again}
    except (MemoryError, OSError) as error:
        report = {"made": False, "reason": f"{type(error).__name__}: {error}"[:500], "again": True}
    except Exception as error:  # noqa: BLE001 - exporters raise whatever their compilers do
        report = {"made": False, "reason": f"{type(error).__name__}: {error}"[:500]}
    (target / REPORT).write_text(json.dumps(report), encoding="utf-8")


def _compile(source: Path, file: Path) -> float:
    subject = subject_of(load_runtime(open_model(source), device="cpu", threads=1))
    if subject.is_recurrent:
        raise Invalid(
            "AOTInductor compiles a model that reads step by step for one length of text only.",
            code="unsupported_operator",
        )
    programs.compile_package(subject, file)
    return difference(subject, open_package(file), fixed_length=False)


def _export(source: Path, file: Path) -> float:
    folder = open_model(source)
    if folder.is_onnx:
        shutil.copyfile(folder.weights, file)
        return 0.0
    runtime = load_runtime(folder, device="cpu", threads=1)
    assert isinstance(runtime.engine, TorchEngine)
    probes = [_feeds(runtime, rows) for rows in _ROWS]
    name = EMBEDDING if runtime.answers == "embedding" else "logits"
    export_onnx(runtime.engine, probes[0], name, file)
    graph = OnnxEngine(file, device="cpu", threads=1)
    return verify(runtime.engine, graph, probes).largest_absolute


def _feeds(runtime: Runtime, rows: int) -> Feeds:
    return runtime.feeder.feeds(probe_rows(runtime, rows), NOWHERE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
