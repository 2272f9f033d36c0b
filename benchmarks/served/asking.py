"""Requests as each door and each contender wants them, ready to be sent again and again."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from workers.serving.protos import inference_pb2 as messages

JSON, BINARY, GRPC = "JSON", "binary", "gRPC"
FORMS = (JSON, BINARY, GRPC)
_NAMES = {"float32": "FP32", "uint8": "UINT8", "int64": "INT64"}


def protocol_body(row: Mapping[str, Any], form: str) -> tuple[bytes, int | None]:
    """Write a call of the Open Inference Protocol: its body, and how much of it is JSON."""
    inputs, raw = [], b""
    for name, value in row.items():
        one = {"name": name, "shape": list(value.shape), "datatype": _NAMES[value.dtype.name]}
        if form == BINARY:
            one["parameters"] = {"binary_data_size": value.nbytes}
            raw += value.tobytes()
        else:
            one["data"] = value.ravel().tolist()
        inputs.append(one)
    if form != BINARY:
        return json.dumps({"inputs": inputs}).encode(), None
    said = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    head = json.dumps(said).encode()
    return head + raw, len(head)


def protocol_message(model: str, row: Mapping[str, Any]) -> bytes:
    """Write the same call as a gRPC message."""
    request = messages.ModelInferRequest(model_name=model)
    for name, value in row.items():
        request.inputs.add(name=name, datatype=_NAMES[value.dtype.name], shape=value.shape)
        request.raw_input_contents.append(value.tobytes())
    return bytes(request.SerializeToString())


def plain_body(row: Mapping[str, Any], form: str) -> bytes:
    """Write named fields: lists of numbers, or their bytes as text where JSON alone is spoken."""
    if form == JSON:
        return json.dumps({name: value.tolist() for name, value in row.items()}).encode()
    packed = {
        name: {
            "dtype": value.dtype.name,
            "shape": value.shape,
            "data": base64.b64encode(value.tobytes()).decode(),
        }
        for name, value in row.items()
    }
    return json.dumps(packed).encode()


def http_request(path: str, body: bytes, *, json_bytes: int | None, token: str = "") -> bytes:
    """Write a whole HTTP request of a connection that stays open."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if json_bytes is None:
        lines.append("Content-Type: application/json")
    else:
        lines.append("Content-Type: application/octet-stream")
        lines.append(f"Inference-Header-Content-Length: {json_bytes}")
    return ("\r\n".join([*lines, "", ""])).encode() + body


def outputs_of(answer: bytes, json_bytes: int | None) -> Any:
    """Read the first output of the protocol's answer as one flat array."""
    said = json.loads(answer[:json_bytes] if json_bytes else answer)
    first = said["outputs"][0]
    if "data" in first:
        return np.ravel(np.array(first["data"], np.float64))
    size = first["parameters"]["binary_data_size"]
    assert json_bytes is not None
    return np.frombuffer(answer[json_bytes : json_bytes + size], np.float32).astype(np.float64)
