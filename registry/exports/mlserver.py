"""A folder for MLServer: model-settings.json, the graph, and the few lines that run it there."""

import json
from pathlib import Path

from registry.exports.package import TAR, Package, Port, Source, onnx_files, require_tensors

_FILES = Path(__file__).parent / "files"
_REQUIREMENTS = "mlserver>=1.6\nnumpy\nonnxruntime>=1.22\n"


def mlserver_folder(source: Source) -> Package:
    """Lay a version out for `mlserver start`."""
    files = onnx_files(source)
    require_tensors(source, without={"BF16"})
    settings = {
        "name": source.name,
        "implementation": "onnx_model.OnnxModel",
        "platform": "onnx",
        "versions": [str(source.number)],
        "inputs": [_port(one) for one in source.inputs],
        "outputs": [_port(one) for one in source.outputs],
        "parameters": {
            "uri": "./model.onnx",
            "version": str(source.number),
            "extra": {"threads": source.served.threads},
        },
        **_batching(source),
    }
    written = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    code = (_FILES / "onnx_model.py.txt").read_bytes()
    return Package(
        "mlserver.tar",
        TAR,
        (
            (f"{source.name}/model-settings.json", written),
            (f"{source.name}/onnx_model.py", code),
            (f"{source.name}/requirements.txt", _REQUIREMENTS.encode()),
            *((f"{source.name}/{path}", file) for path, file in files),
        ),
    )


def _batching(source: Source) -> dict[str, object]:
    """Join requests as this registry does, where somebody has measured what that is good for.

    MLServer joins requests of different lengths too, and would mix up their rows.
    """
    free = any(-1 in port.shape[1:] for port in source.inputs)
    if not source.served.joins or not source.is_batchable or free:
        return {}
    # Without a window: MLServer begins a batch with what is there.
    return {"max_batch_size": source.served.max_batch_size, "max_batch_time": 0.001}


def _port(port: Port) -> dict[str, object]:
    return {"name": port.name, "datatype": port.datatype, "shape": list(port.shape)}
