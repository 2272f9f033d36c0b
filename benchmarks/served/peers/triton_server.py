"""Triton with functions of its Python backend, which its wheel binds, in front of ONNX Runtime."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}


def bind(triton: Triton, file: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def tensors(ports: Sequence[Any]) -> list[Tensor]:
        return [
            Tensor(
                name=one.name,
                dtype=TYPES[one.type],
                shape=tuple(size if isinstance(size, int) else -1 for size in one.shape[1:]),
            )
            for one in ports
        ]

    names = [one.name for one in session.get_outputs()]

    @batch
    def compute(**feeds: Any) -> dict[str, Any]:
        return dict(zip(names, session.run(None, feeds), strict=True))

    triton.bind(
        model_name=Path(file).stem,
        infer_func=compute,
        inputs=tensors(session.get_inputs()),
        outputs=tensors(session.get_outputs()),
        config=ModelConfig(
            max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0)
        ),
    )


if __name__ == "__main__":
    http_port, grpc_port, *files = sys.argv[1:]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(http_port),
        grpc_address="127.0.0.1",
        grpc_port=int(grpc_port),
        allow_metrics=False,
    )
    # All of the protocol, for it is compared with ours.
    open_to_all = TritonSecurityConfig(restricted_endpoints=[])
    with Triton(config=config, security_config=open_to_all) as server:
        for one in files:
            bind(server, one)
        server.serve()
