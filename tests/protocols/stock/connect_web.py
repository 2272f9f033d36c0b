"""The gRPC-Web client of connectrpc, which shares nothing with us: http://host:port."""

import sys

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
MODEL = "lab/double"


def method(name, sends, gives, kind=StreamType.UNARY):
    return MethodInfo(
        name=name,
        service_name=SERVICE,
        input=sends,
        output=gives,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kind,
    )


LIVE = method("ServerLive", pb.ServerLiveRequest, pb.ServerLiveResponse)
INFER = method("ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
LOGS = method("LogSettings", pb.LogSettingsRequest, pb.LogSettingsResponse)
STREAM = method(
    "ModelStreamInfer", pb.ModelInferRequest, pb.ModelStreamInferResponse, StreamType.SERVER_STREAM
)


def question(model=MODEL, size=2):
    message = pb.ModelInferRequest(model_name=model, id="7")
    one = message.inputs.add(name="x", datatype="FP32", shape=[size])
    one.contents.fp32_contents.extend([1.5] * size)
    return message


def refusal(client, message, **more):
    with pytest.raises(ConnectError) as caught:
        client.execute_unary(request=message, method=INFER, **more)
    return caught.value.code


for packed in (None, GzipCompression()):
    web = ConnectClientSync(
        sys.argv[1],
        codec=google_protobuf_binary_codec(),
        protocol=ProtocolType.GRPC_WEB,
        send_compression=packed,
    )
    assert web.execute_unary(request=pb.ServerLiveRequest(), method=LIVE).live
    for size in (2, 50_000):
        answer = web.execute_unary(request=question(size=size), method=INFER, timeout_ms=20_000)
        assert list(answer.outputs[0].contents.fp32_contents) == [3] * size
        assert answer.id == "7"
    assert refusal(web, question("lab/nothing")) is Code.NOT_FOUND
    assert refusal(web, question("lab/secret")) is Code.NOT_FOUND
    token = {"authorization": "Bearer my_token"}
    web.execute_unary(request=question("lab/secret"), method=INFER, headers=token)
    bad = {"authorization": "Bearer other"}
    assert refusal(web, question(), headers=bad) is Code.UNAUTHENTICATED
    assert refusal(web, question("lab/busy")) is Code.RESOURCE_EXHAUSTED
    assert refusal(web, pb.ModelInferRequest(model_name=MODEL)) is Code.INVALID_ARGUMENT
    assert refusal(web, question("lab/slow"), timeout_ms=200) is Code.DEADLINE_EXCEEDED
    found = list(web.execute_server_stream(request=question(), method=STREAM))
    assert [list(one.infer_response.outputs[0].contents.fp32_contents) for one in found] == [[3, 3]]
    with pytest.raises(ConnectError) as caught:
        web.execute_unary(request=pb.LogSettingsRequest(), method=LOGS)
    assert caught.value.code is Code.UNIMPLEMENTED
    web.close()
sys.stdout.write("done\n")
