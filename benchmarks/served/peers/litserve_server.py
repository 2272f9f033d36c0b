"""LitServe in front of ONNX Runtime, run by the environment that has LitServe."""

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import onnxruntime


class Onnx(litserve.LitAPI):
    """Named fields in, the first output out, as LitServe's own examples do it."""

    def __init__(self, file: str, **more: Any) -> None:
        self.file = file
        super().__init__(**more)

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's own
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            self.file, options, providers=["CPUExecutionProvider"]
        )
        self.dtypes = {
            one.name: {"tensor(float)": "f4", "tensor(uint8)": "u1", "tensor(int64)": "i8"}[
                one.type
            ]
            for one in self.session.get_inputs()
        }

    def decode_request(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.read(name, request[name]) for name in self.dtypes}

    def read(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            data = base64.b64decode(value["data"])
            return np.frombuffer(data, value["dtype"]).reshape(value["shape"])
        return np.array(value, self.dtypes[name])

    def predict(self, feeds: Mapping[str, Any]) -> Any:
        return self.session.run(None, feeds)[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"outputs": [{"name": "y", "shape": output.shape, "data": output.ravel().tolist()}]}


if __name__ == "__main__":
    port, *files = sys.argv[1:]
    apis = [Onnx(file, api_path=f"/{Path(file).stem}") for file in files]
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), log_level="error", generate_client_file=False)
