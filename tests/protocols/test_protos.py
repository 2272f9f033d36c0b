"""The messages that we keep are those that the .proto files say and that clients send."""

import json
import subprocess
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.json_format import MessageToDict

from workers.serving import protos
from workers.serving.protos import inference_pb2, model_config_pb2
from workers.serving.protos.__main__ import generate

HERE = Path(protos.__file__).parent

# In a process of its own: two copies of one message cannot be loaded side by side.
PEER = """
import json
from google.protobuf import descriptor_pb2
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2, service_pb2

found = []
for module in (service_pb2, model_config_pb2):
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    found.append(MessageToDict(file))
print(json.dumps(found))
"""


def test_the_modules_are_what_the_proto_files_make(tmp_path):
    generate(tmp_path)
    made = sorted(tmp_path.rglob("*_pb2.py*"))
    assert len(made) == 4
    for path in made:
        assert path.read_bytes() == (HERE / path.name).read_bytes(), path.name


def test_names_and_numbers_are_those_of_the_client():
    run = subprocess.run([sys.executable, "-c", PEER], capture_output=True, check=True)
    for module, theirs in zip(
        (inference_pb2, model_config_pb2), json.loads(run.stdout), strict=True
    ):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        ours = MessageToDict(file)
        for key in ("package", "messageType", "enumType"):
            assert ours.get(key) == theirs.get(key)
        for mine, its in zip(ours.get("service", []), theirs.get("service", []), strict=True):
            assert [_call(one) for one in mine["method"]] == [_call(one) for one in its["method"]]


def _call(method):
    return {name: value for name, value in method.items() if name != "options"}
