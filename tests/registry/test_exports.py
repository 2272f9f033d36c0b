"""Packages for other servers, held against what those servers read."""

import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import tarfile
from datetime import UTC, datetime

import onnx
import pytest
import yaml
from google.protobuf import text_format
from onnx import TensorProto, helper

from registry.errors import Conflict
from registry.exports import EXPORTS, Port, Served, Source, StoredFile
from tests.local.waiting import wait_until
from tests.registry.stream.conftest import free_port
from workers.serving.protos.model_config_pb2 import DataType, ModelConfig


def graph():
    """Write a model that adds one to rows of two numbers."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    made = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"])],
        "add",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [one],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(made, opset_imports=opset, ir_version=8).SerializeToString()


CONTENT = {
    "README.md": b"# Adds one",
    "config.json": b"{}",
    "model.onnx": graph(),
    "weights.data": b"abc",
}


def source(content=CONTENT, **changes):
    known = {
        "namespace": "lab",
        "name": "adds_one",
        "number": 3,
        "address": "https://models.example/api/v1/models/lab/adds_one/versions/3/exports",
        "created_at": datetime(2026, 1, 2, tzinfo=UTC),
        "message": "first",
        "licenses": ("apache-2.0",),
        "parameters_count": 1,
        "files": tuple(
            StoredFile(path, hashlib.sha256(body).hexdigest(), len(body))
            for path, body in content.items()
        ),
        "inputs": (Port("x", "FP32", (-1, 2)),),
        "outputs": (Port("y", "FP32", (-1, 2)),),
    }
    return Source(**{**known, **changes})


def bytes_of(package, content=CONTENT):
    stored = {hashlib.sha256(body).hexdigest(): body for body in content.values()}
    sent = b"".join(
        stored[part.sha256] if isinstance(part, StoredFile) else part for part in package.parts()
    )
    assert len(sent) == package.size_bytes
    return sent


def files_of(file, **changes):
    package = EXPORTS[file](source(**changes))
    with tarfile.open(fileobj=io.BytesIO(bytes_of(package))) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar.getmembers()}


def test_triton_reads_its_configuration():
    found = files_of("triton.tar")
    assert set(found) == {
        "adds_one/config.pbtxt",
        "adds_one/3/model.onnx",
        "adds_one/3/weights.data",
    }
    assert found["adds_one/3/model.onnx"] == CONTENT["model.onnx"]
    config = text_format.Parse(found["adds_one/config.pbtxt"], ModelConfig())
    assert (config.name, config.platform, config.max_batch_size) == (
        "adds_one",
        "onnxruntime_onnx",
        32,
    )
    assert config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [3]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("x", DataType.TYPE_FP32, [2])
    ]


SERVED = Served(threads=2, max_batch_size=16, device_class="AMD EPYC\n, 2 cores")


def test_exports_go_by_what_was_measured():
    found = files_of("triton.tar", served=SERVED)["adds_one/config.pbtxt"]
    config = text_format.Parse(found, ModelConfig())
    assert config.max_batch_size == 16
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert list(config.dynamic_batching.preferred_batch_size) == [16]
    assert b"\n# Threads and batch as measured on AMD EPYC , 2 cores\n" in found
    settings = json.loads(files_of("mlserver.tar", served=SERVED)["adds_one/model-settings.json"])
    assert settings["max_batch_size"] == 16
    assert settings["parameters"]["extra"] == {"threads": 2}
    about = json.loads(files_of("standalone.tar", served=SERVED)["adds_one-v3/model.json"])
    assert about["threads"] == 2
    resource = yaml.safe_load(bytes_of(EXPORTS["kserve.yaml"](source(served=SERVED))))
    model = resource["spec"]["predictor"]["model"]
    assert model["resources"]["limits"]["cpu"] == "2"
    assert "AMD EPYC" in resource["metadata"]["annotations"]["modelyard/measured-on"]
    # Where nobody has measured anything, they are as ever.
    settings = json.loads(files_of("mlserver.tar")["adds_one/model-settings.json"])
    assert "max_batch_size" not in settings


def test_triton_is_told_when_there_are_no_rows():
    inputs = (Port('a "b"\n多\\', "INT64", (4,)), Port("t", "BYTES", ()), Port("odd", "", (-1,)))
    found = files_of("triton.tar", inputs=inputs)
    config = text_format.Parse(found["adds_one/config.pbtxt"], ModelConfig())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [(one.name, DataType.Name(one.data_type), list(one.dims)) for one in config.input] == [
        ('a "b"\n多\\', "TYPE_INT64", [4]),
        ("t", "TYPE_STRING", [1]),
        ("odd", "TYPE_INVALID", [-1]),
    ]
    assert config.input[1].HasField("reshape")


@pytest.mark.parametrize("name", ["adds_one", "A.B__c", "x" * 120, "9-lives"])
def test_kserve_gets_a_resource_with_a_name_that_kubernetes_takes(name):
    package = EXPORTS["kserve.yaml"](source(name=name))
    resource = yaml.safe_load(bytes_of(package))
    assert resource["kind"] == "InferenceService"
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", resource["metadata"]["name"])
    model = resource["spec"]["predictor"]["model"]
    assert model["storageUri"].endswith("/versions/3/exports/triton.tar")
    assert model["protocolVersion"] == "v2"


def test_mlserver_gets_its_settings_and_a_runtime():
    found = files_of("mlserver.tar")
    settings = json.loads(found["adds_one/model-settings.json"])
    assert settings["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    module, _, _ = settings["implementation"].partition(".")
    compile(found[f"adds_one/{module}.py"], "onnx_model", "exec")
    assert settings["parameters"]["uri"] == "./model.onnx"
    assert found["adds_one/model.onnx"] == CONTENT["model.onnx"]


def test_modelpack_is_an_oci_layout_whose_digests_are_right():
    found = files_of("modelpack.tar")
    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    for path, content in found.items():
        if path.startswith("blobs/sha256/"):
            assert path.removeprefix("blobs/sha256/") == hashlib.sha256(content).hexdigest()

    def blob(named):
        content = found[f"blobs/{named['digest'].replace(':', '/')}"]
        assert len(content) == named["size"]
        return content

    (named,) = json.loads(found["index.json"])["manifests"]
    manifest = json.loads(blob(named))
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    files = {one["annotations"]["org.cncf.model.filepath"]: one for one in manifest["layers"]}
    assert {path: blob(one) for path, one in files.items()} == CONTENT
    assert files["model.onnx"]["mediaType"] == "application/vnd.cncf.model.weight.v1.raw"
    assert files["README.md"]["mediaType"] == "application/vnd.cncf.model.doc.v1.raw"
    config = json.loads(blob(manifest["config"]))
    assert config["config"] == {"format": "onnx", "paramSize": "1"}
    assert config["modelfs"]["diffIds"] == [one["digest"] for one in manifest["layers"]]
    assert config["descriptor"]["licenses"] == ["apache-2.0"]


def test_packages_are_the_same_each_time():
    for exporter in EXPORTS.values():
        assert bytes_of(exporter(source())) == bytes_of(exporter(source()))


@pytest.mark.parametrize("file", [one for one in EXPORTS if one != "modelpack.tar"])
def test_what_is_no_graph_is_refused_with_the_way_out(file):
    weights = {"model.safetensors": b"a"}
    with pytest.raises(Conflict, match="no ONNX file"):
        EXPORTS[file](source(weights))
    several = {"a.onnx": b"a", "b.onnx": b"b"}
    with pytest.raises(Conflict, match="several ONNX files"):
        EXPORTS[file](source(several))
    EXPORTS[file](source({"deep/other.onnx": b"a"}))


def test_modelpack_takes_any_file_but_not_none():
    EXPORTS["modelpack.tar"](source({"model.safetensors": b"a"}))
    with pytest.raises(Conflict):
        EXPORTS["modelpack.tar"](source({}))


# Triton's client, in a process of its own, for it shares names with the server's messages.
CLIENT = """
import sys
import numpy as np
import tritonclient.http as client

with client.InferenceServerClient(sys.argv[1]) as server:
    assert server.is_server_ready() and server.is_model_ready("adds_one", "3")
    assert not server.is_model_ready("other")
    assert server.get_model_metadata("adds_one")["inputs"][0]["shape"] == [-1, 2]
    values = np.array([[1, 2], [3, 4]], "f4")
    for binary in (True, False):
        one = client.InferInput("x", [2, 2], "FP32")
        one.set_data_from_numpy(values, binary_data=binary)
        for outputs in (None, [client.InferRequestedOutput("y", binary_data=False)]):
            found = server.infer("adds_one", [one], outputs=outputs, request_id="7")
            assert np.array_equal(found.as_numpy("y"), values + 1)
    short = client.InferInput("x", [2, 2], "FP32")
    short.set_data_from_numpy(values)
    short._shape = [3, 2]
    try:
        server.infer("adds_one", [short])
    except client.InferenceServerException as error:
        assert error.status() == "400"
    else:
        raise AssertionError
"""


def test_the_standalone_folder_serves_itself(tmp_path):
    found = files_of("standalone.tar")
    for path, content in found.items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    folder = tmp_path / "adds_one-v3"
    assert {one.name for one in folder.iterdir()} >= {"Dockerfile", "README.md", "server.py"}
    onnx.checker.check_model(str(folder / "model.onnx"))
    port = free_port()
    # Alone in its folder: nothing of the registry is there to be imported.
    server = subprocess.Popen(
        [sys.executable, "-I", "server.py", "--port", str(port)],
        cwd=folder,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: _answers(port) or server.poll() is not None, "the server")
        assert server.poll() is None, server.stderr.read()
        subprocess.run([sys.executable, "-c", CLIENT, f"127.0.0.1:{port}"], check=True)
    finally:
        server.kill()
        server.communicate()


def _answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
