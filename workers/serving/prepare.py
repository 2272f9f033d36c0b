"""Turns a version into an ONNX file: `python -m workers.serving.prepare in out`, in the sandbox.

What is an ONNX file already, coded or not, is taken as it is. A torch model is exported, and the
export is held against torch on batches of several sizes. out/report.json says what came of it.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from registry.errors import RegistryError
from workers.ml import device
from workers.ml.export.onnx import export_onnx, verify
from workers.ml.formats import open_model
from workers.ml.infer.engines import OnnxEngine, TorchEngine
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.runtime import EMBEDDING, Runtime, load_runtime
from workers.ml.probes import NOWHERE, probe_rows

REPORT = "report.json"
_ROWS = (2, 1, 5)


def main(source: Path, target: Path) -> None:
    """Write the ONNX file, or the reason why there is none."""
    try:
        report = _prepare(source, target / "model.onnx")
    except RegistryError as error:
        report = {"onnx": False, "reason": error.detail}
    (target / REPORT).write_text(json.dumps(report), encoding="utf-8")


def _prepare(source: Path, file: Path) -> dict[str, Any]:
    device.prepare(device="cpu", threads=1)
    folder = open_model(source)
    if folder.is_onnx:
        shutil.copyfile(folder.weights, file)
        return {"onnx": True, "reason": ""}
    runtime = load_runtime(folder, device="cpu", threads=1)
    assert isinstance(runtime.engine, TorchEngine)
    probes = [_feeds(runtime, rows) for rows in _ROWS]
    name = EMBEDDING if runtime.answers == "embedding" else "logits"
    try:
        export_onnx(runtime.engine, probes[0], name, file)
    except RegistryError:
        raise
    except Exception as error:  # noqa: BLE001 - exporters raise whatever their compilers do
        return {"onnx": False, "reason": f"{type(error).__name__}: {error}"[:500]}
    agreement = verify(runtime.engine, OnnxEngine(file, device="cpu", threads=1), probes)
    return {"onnx": True, "reason": "", "off_by": agreement.largest_absolute}


def _feeds(runtime: Runtime, rows: int) -> Feeds:
    return runtime.feeder.feeds(probe_rows(runtime, rows), NOWHERE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
