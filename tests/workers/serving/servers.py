"""Serving processes for tests: the program with a folder of its own, and what it serves."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from registry.models import Alias, Deployment, Endpoint
from tests.factories import make_model, make_version
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
CALL = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3.0]}]}


def wait_until(condition, seconds=60):
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, "it did not come to hold"
        time.sleep(0.02)
    return found


class InferenceServer:
    """The program, with ports and a data folder of its own."""

    def __init__(self, environment, home, module="workers.serving"):
        self.port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "serving.log"
        self.environment = {
            **environment,
            "MODELYARD_STORAGE_URL": f"file://{os.environ['MODELYARD_HOME']}/storage",
            "MODELYARD_HOME": str(home),
            "MODELYARD_INFER_PORT": str(self.port),
            "MODELYARD_GRPC_PORT": str(self.grpc_port),
            "MODELYARD_SECRET_KEY": "of no use to anybody, and long enough for that",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait(self):
        """Wait until it is ready, which takes a busy machine a while."""
        wait_until(self.is_ready, seconds=240)
        return self

    def is_ready(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/v2/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def call(self, model, token=None, version=""):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        path = f"/v2/models/{model}{f'/versions/{version}' if version else ''}/infer"
        return httpx.post(self.url + path, json=CALL, headers=headers, timeout=30)

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


def deploy(owner, name, *contents):
    repository = make_model(owner, name, visibility="private")
    versions = [make_version(owner, repository, {"model.onnx": one}) for one in contents]
    Alias.objects.create(repository=repository, name="live", version=versions[0])
    endpoint = Endpoint.objects.create(
        namespace=repository.namespace, name=name, repository=repository
    )
    Deployment.objects.create(endpoint=endpoint, alias="live", weight=100)
    return repository, versions


def outputs(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"][0]["data"]
