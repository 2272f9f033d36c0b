"""The gRPC-Web client of connectrpc against the program: http://host:port namespace/model token."""

import sys

import numpy as np
import pytest
from connectrpc.client import ConnectClientSync
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType
from tritonclient.grpc import service_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
URL, MODEL, TOKEN = sys.argv[1:]
BEARER = {"authorization": f"Bearer {TOKEN}"}


def method(name, sends, gives, kind=StreamType.UNARY):
    return MethodInfo(
        name=name,
        service_name=SERVICE,
        input=sends,
        output=gives,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )


READY = method("ModelReady", pb.ModelReadyRequest, pb.ModelReadyResponse)
INFER = method("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
STREAM = method(
    "ModelStreamInfer", pb.ModelInferRequest, pb.ModelStreamInferResponse, StreamType.SERVER_STREAM
)


def question(values, *, raw, shape=None):
    data = np.asarray(values, np.float32)
    message = pb.ModelInferRequest(model_name=MODEL, id="7")
    one = message.inputs.add(name="x", datatype="FP32", shape=shape or data.shape)
    if raw:
        message.raw_input_contents.append(data.tobytes())
    else:
        one.contents.fp32_contents.extend(data.ravel().tolist())
    return message


def numbers(answer, *, raw):
    if raw:
        return np.frombuffer(answer.raw_output_contents[0], np.float32).tolist()
    return list(answer.outputs[0].contents.fp32_contents)


for packed in (None, GzipCompression()):
    web = ConnectClientSync(
        URL,
        codec=google_protobuf_binary_codec(),
        protocol=ProtocolType.GRPC_WEB,
        send_compression=packed,
    )
    ready = web.execute_unary(
        request=pb.ModelReadyRequest(name=MODEL), method=READY, headers=BEARER
    )
    assert ready.ready
    for raw in (True, False):
        for values in ([[1.5, 2.0]], np.ones((1, 100_000))):
            answer = web.execute_unary(
                request=question(values, raw=raw), method=INFER, headers=BEARER
            )
            assert numbers(answer, raw=raw) == (2 * np.asarray(values)).ravel().tolist()
            assert answer.id == "7"
            assert answer.parameters["modelyard_batch_size"].int64_param >= 1
    stream = web.execute_server_stream(
        request=question([[4.0]], raw=True), method=STREAM, headers=BEARER
    )
    assert [numbers(one.infer_response, raw=True) for one in stream] == [[8.0]]
    for message, headers, code in (
        (question([[1.0]], raw=True), {}, Code.NOT_FOUND),
        (question([[1.0]], raw=True), {"authorization": "Bearer x"}, Code.UNAUTHENTICATED),
        (question([[1.0]], raw=True, shape=[1, 10**9]), BEARER, Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(ConnectError) as caught:
            web.execute_unary(request=message, method=INFER, headers=headers)
        assert caught.value.code is code
    web.close()
sys.stdout.write("done\n")
