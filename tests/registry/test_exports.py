"""Packages for other servers, held against what those servers read."""

import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import onnx
import pytest
import yaml
from google.protobuf import text_format
from onnx import TensorProto, helper

from registry.errors import Conflict
from registry.exports import EXPORTS, Port, Served, Source, StoredFile
from tests.local.waiting import wait_until
from tests.ports import free_port
from tests.registry.published import kserve, modelpack
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
    # Nobody has seen yet whether a row's answer depends on those beside it.
    assert not config.HasField("dynamic_batching")
    assert list(config.version_policy.specific.versions) == [3]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("x", DataType.TYPE_FP32, [2])
    ]


SERVED = Served(threads=2, max_batch_size=16, device_class="AMD EPYC\n, 2 cores", joins=True)


def test_exports_go_by_what_was_measured():
    found = files_of("triton.tar", served=SERVED)["adds_one/config.pbtxt"]
    config = text_format.Parse(found, ModelConfig())
    # What is best is no bound of a request by itself.
    assert config.max_batch_size == 32
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


def test_requests_of_other_lengths_are_not_joined_where_they_would_be_mixed_up():
    inputs = (Port("input_ids", "INT64", (-1, -1)),)
    found = files_of("mlserver.tar", inputs=inputs, served=SERVED)
    assert "max_batch_size" not in json.loads(found["adds_one/model-settings.json"])
    alone = replace(SERVED, joins=False)
    for file, name in (("mlserver.tar", "model-settings.json"), ("triton.tar", "config.pbtxt")):
        text = files_of(file, served=alone)[f"adds_one/{name}"].decode()
        assert "dynamic_batching" not in text
        assert "max_batch_time" not in text


@pytest.mark.parametrize("port", [Port("odd", "", (-1,)), Port("odd", "FP32", (-1, 0))])
@pytest.mark.parametrize("file", ["triton.tar", "mlserver.tar", "kserve.yaml", "standalone.tar"])
def test_what_is_no_tensor_is_refused_by_name(file, port):
    with pytest.raises(Conflict, match=r"'odd'.*no tensor"):
        EXPORTS[file](source(outputs=(port,)))


def test_no_two_versions_have_the_same_resource():
    owners = [("team-a", "m"), ("team-b", "m"), ("team", "a-m"), ("team", "a.m"), ("Team", "a-m")]
    long = [("team", "x" * 60), ("team", "x" * 59 + "y")]
    found = {
        yaml.safe_load(bytes_of(EXPORTS["kserve.yaml"](source(namespace=space, name=name))))[
            "metadata"
        ]["name"]
        for space, name in (*owners, *long)
    }
    assert len(found) == len(owners) + len(long)
    assert "team-a-m-v3" in found
    assert all(len(one + "-predictor") <= 63 for one in found)


def test_weights_beside_a_graph_go_with_it():
    names = ("model.onnx_data", "model.onnx_data_1", "weights.bin", "layer.0.weight", "onnx__3")
    files = tuple(StoredFile(name, "0" * 64, 3 << 30) for name in ("model.onnx", *names, "a.md"))
    package = EXPORTS["standalone.tar"](source(files=files))
    held = {path.rpartition("/")[2] for path, _ in package.entries}
    assert {"model.onnx", *names} <= held
    assert "a.md" not in held
    resource = yaml.safe_load(bytes_of(EXPORTS["kserve.yaml"](source(files=files))))
    asked = resource["spec"]["predictor"]["model"]["resources"]
    assert (asked["requests"]["memory"], asked["limits"]["memory"]) == ("19Gi", "38Gi")


def test_triton_is_told_when_there_are_no_rows():
    inputs = (Port('a "b"\n多\\', "INT64", (4,)), Port("t", "BYTES", (1,)))
    found = files_of("triton.tar", inputs=inputs)
    config = text_format.Parse(found["adds_one/config.pbtxt"], ModelConfig())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert [(one.name, DataType.Name(one.data_type), list(one.dims)) for one in config.input] == [
        ('a "b"\n多\\', "TYPE_INT64", [4]),
        ("t", "TYPE_STRING", [1]),
    ]
    assert not config.input[1].HasField("reshape")


def test_triton_takes_no_single_value_of_a_model_without_rows():
    """Its own server says so: "scalar tensors are not supported" there."""
    with pytest.raises(Conflict, match=r"'t'.*single value"):
        files_of("triton.tar", inputs=(Port("a", "INT64", (4,)), Port("t", "FP32", ())))
    found = files_of("triton.tar", inputs=(Port("t", "FP32", (-1,)),))
    config = text_format.Parse(found["adds_one/config.pbtxt"], ModelConfig())
    assert config.max_batch_size > 0
    assert config.input[0].HasField("reshape")


@pytest.mark.parametrize(
    "name", ["adds_one", "A.B__c", "x" * 120, "9-lives", "2024." + "x" * 120, "_x", "___"]
)
def test_kserve_gets_a_resource_with_a_name_that_kubernetes_takes(name):
    package = EXPORTS["kserve.yaml"](source(name=name))
    resource = yaml.safe_load(bytes_of(package))
    assert resource["kind"] == "InferenceService"
    # As its webhook asks for; the Service that it makes has a longer name.
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", resource["metadata"]["name"])
    assert len(resource["metadata"]["name"] + "-predictor") <= 63
    assert kserve.problems(resource) == []
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


def test_what_kserve_does_not_know_is_seen():
    resource = yaml.safe_load(bytes_of(EXPORTS["kserve.yaml"](source())))
    model = resource["spec"]["predictor"]["model"]
    model["storageURI"] = model.pop("storageUri")
    model["resources"]["limits"]["cpu"] = 1
    del model["modelFormat"]
    assert sorted(kserve.problems(resource)) == [
        ".spec.predictor.model.modelFormat: required",
        ".spec.predictor.model.resources.limits.cpu: 1 is no str",
        ".spec.predictor.model.storageURI: not in V1beta1ModelSpec",
    ]


def test_modelpack_is_an_oci_layout_whose_digests_are_right():
    manifest, configuration, contents = modelpack.read_layout(files_of("modelpack.tar"))
    assert contents == CONTENT
    types = {one.annotations[modelpack.FILEPATH]: one.media_type for one in manifest.layers}
    assert types["model.onnx"] == "application/vnd.cncf.model.weight.v1.raw"
    assert types["README.md"] == "application/vnd.cncf.model.doc.v1.raw"
    assert configuration.config.format == "onnx"
    assert configuration.descriptor.licenses == ["apache-2.0"]


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (None, None),
        (1, None),
        (50, "0.1K"),
        (999, "1K"),
        (84_550, "84.5K"),
        (22_713_216, "22.7M"),
        (6_700_000_000, "6.7B"),
    ],
)
def test_modelpack_counts_parameters_as_its_specification_does(count, written):
    found = files_of("modelpack.tar", parameters_count=count)
    _, configuration, _ = modelpack.read_layout(found)
    assert configuration.config.param_size == written


def test_a_modelpack_that_was_changed_is_seen():
    found = files_of("modelpack.tar")
    (path,) = [path for path, body in found.items() if body == CONTENT["model.onnx"]]
    with pytest.raises(AssertionError):
        modelpack.read_layout({**found, path: b"other"})
    with pytest.raises(AssertionError):
        modelpack.read_layout({**found, "more": b""})


# MLServer itself, in the environment that benchmarks/serving makes for it.
MLSERVER = Path(__file__).parents[2] / "var/bench/mlserver/bin/python"
ML_LOADER = """
import asyncio, sys

import numpy as np
from mlserver.repository import SchemalessModelRepository
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest


async def main(folder):
    (settings,) = await SchemalessModelRepository(folder).list()
    assert isinstance(settings, ModelSettings)
    assert (settings.name, settings.parameters.version) == ("adds_one", "3")
    assert settings.inputs[0].shape == [-1, 2]
    model = settings.implementation(settings)
    assert await model.load()
    tensor = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    said = await model.predict(InferenceRequest(inputs=[tensor]))
    assert said.outputs[0].shape == [2, 2]
    assert list(said.outputs[0].data) == [2, 3, 4, 5]


asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.skipif(not MLSERVER.exists(), reason="MLServer is where benchmarks/serving put it")
def test_mlserver_loads_the_folder_and_answers(tmp_path):
    for path, content in files_of("mlserver.tar").items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    subprocess.run([MLSERVER, "-c", ML_LOADER, tmp_path], check=True, cwd=tmp_path)


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
        _bad_input(port)
        server.terminate()
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.communicate()


def _bad_input(port):
    def said(data, **more):
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data, **more}
        body = json.dumps({"inputs": [tensor], "parameters": None}).encode()
        return _sent(
            port,
            b"POST /v2/models/adds_one/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
        )

    assert '"data": [null, 3.0]' in said([float("inf"), 2])
    assert "does not fit into UINT8" in said([300, -1], datatype="UINT8")
    # What follows a body that nobody reads is no request.
    inner = b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n"
    for head in (
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(inner),
        b"POST /v2/models/adds_one/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v2/models/adds_one/infer HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    ):
        assert _sent(port, head + inner).count("HTTP/1.1 ") == 1, head


def _sent(port, data):
    """Send bytes as they are; give all that comes back before the other side closes."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(1 << 16), b"")).decode()


def _answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
