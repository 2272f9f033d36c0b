"""`python -m workers.serving` as it runs: its ports, who may call, what it does when parts fail."""

import os
import queue
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
import httpx
import pytest
from django.utils import timezone

from registry.models import Alias, Token, Version, VersionState
from registry.queue import announce_routes, read_replicas
from tests.factories import make_token
from tests.workers.serving import yard as y
from tests.workers.serving.servers import CALL, deploy, outputs, wait_until
from workers.serving.protos import inference_pb2 as pb
from workers.serving.rpc import SERVICE, STREAM

# Each starts a server, and that starts models.
pytestmark = pytest.mark.slow


@pytest.fixture
def double(owner):
    """Give a deployed model that doubles its input, public to nobody."""
    return deploy(owner, "double", y.linear(2.0))


def test_a_model_answers_those_who_may_read_it_until_they_may_not(start, owner, double):
    repository, (version,) = double
    token = make_token(owner)
    server = start()
    name = repository.full_name
    answer = server.call(name, token)
    assert outputs(answer) == [6.0]
    assert answer.json()["model_version"] == str(version.number)
    refused = server.call(name)
    assert refused.status_code == 404
    nothing = server.call("alice/nothing")
    assert refused.json()["error"].replace("double", "nothing") == nothing.json()["error"]
    assert server.call(name, "my_" + "0" * 46).status_code == 401

    served = wait_until(lambda: [one for said in read_replicas() for one in said["models"]])
    assert served[0]["endpoint"] == name

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        said = queue.SimpleQueue()
        answers = channel.stream_stream(f"/{SERVICE}/{STREAM}")(
            iter(said.get, None), metadata=[("authorization", f"Bearer {token}")]
        )
        said.put(message(name))
        assert pb.ModelStreamInferResponse.FromString(next(answers)).infer_response.outputs
        Token.objects.update(revoked_at=timezone.now())
        began = time.monotonic()
        wait_until(lambda: server.call(name, token).status_code == 401)
        said.put(message(name))
        with pytest.raises(grpc.RpcError) as refused:
            next(answers)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - began < 5
        said.put(None)
    assert server.stop() == 0


def message(model):
    asked = pb.ModelInferRequest(model_name=model, raw_input_contents=[bytes(4)])
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    return asked.SerializeToString()


def test_an_alias_moves_under_load_without_a_failed_request(start, owner):
    repository, versions = deploy(owner, "moving", y.linear(2.0), y.linear(5.0))
    token = make_token(owner)
    server = start()
    name = repository.full_name
    stop = threading.Event()

    def caller(_):
        headers = {"Authorization": f"Bearer {token}"}
        seen = []
        with httpx.Client(headers=headers, timeout=30) as client:
            while not stop.is_set():
                answer = client.post(f"{server.url}/v2/models/{name}/infer", json=CALL)
                seen.append(
                    (
                        answer.status_code,
                        answer.json().get("model_version"),
                        *(answer.json()["outputs"][0]["data"] if answer.is_success else ()),
                    )
                )
        return seen

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(caller, at) for at in range(4)]
        try:
            assert outputs(server.call(name, token)) == [6.0]
            for version, expected in ((versions[1], 15.0), (versions[0], 6.0)):
                Alias.objects.update(version=version)
                announce_routes()
                wait_until(lambda e=expected: outputs(server.call(name, token)) == [e])
        finally:
            stop.set()
        seen = {one for call in calls for one in call.result()}
    numbers = [str(version.number) for version in versions]
    assert seen == {(200, numbers[0], 6.0), (200, numbers[1], 15.0)}


@pytest.mark.parametrize(
    "change",
    [
        {"state": VersionState.QUARANTINED},
        {"state": VersionState.ARCHIVED},
        {"deleted_at": timezone.now()},
    ],
    ids=["quarantined", "archived", "deleted"],
)
def test_what_is_withdrawn_answers_no_more_though_nothing_can_take_its_place(start, owner, change):
    repository, (bad, lost) = deploy(owner, "moving", y.linear(2.0), y.unknown())
    token = make_token(owner)
    server = start()
    name = repository.full_name
    assert outputs(server.call(name, token)) == [6.0]
    Alias.objects.update(version=lost)
    announce_routes()
    wait_until(lambda: [one for said in read_replicas() for one in said["models"] if one["reason"]])
    assert outputs(server.call(name, token)) == [6.0]
    Version.objects.filter(pk=bad.pk).update(**change)
    began = time.monotonic()
    wait_until(lambda: server.call(name, token).status_code == 503)
    assert time.monotonic() - began < 5


def test_while_the_database_is_away_what_is_known_goes_on(start, owner, double, home):
    repository, _ = double
    token, unused = make_token(owner), make_token(owner)
    url = os.environ["DATABASE_URL"]
    folder = parse_qs(urlsplit(url).query)["host"][0]
    with Gate(home / "gate", Path(folder)) as gate:
        from django.conf import settings  # noqa: PLC0415 - ready only now

        name = settings.DATABASES["default"]["NAME"]
        address = url.replace("/modelyard?", f"/{name}?").replace(folder, str(gate.folder))
        server = start(DATABASE_URL=address)
        model = repository.full_name
        assert outputs(server.call(model, token)) == [6.0]
        gate.close()
        ends = time.monotonic() + 3
        while time.monotonic() < ends:
            assert outputs(server.call(model, token)) == [6.0]
        assert server.call(model, unused).status_code == 503
        gate.open()
        wait_until(lambda: server.call(model, unused).status_code == 200)


def test_a_signal_lets_running_calls_end(start, owner):
    repository, _ = deploy(owner, "slow", y.counting())
    token = make_token(owner)
    server = start()
    model = repository.full_name
    body = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [200_000]}]}
    headers = {"Authorization": f"Bearer {token}"}
    quick = {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [3]}]}
    path = f"{server.url}/v2/models/{model}/infer"
    assert httpx.post(path, json=quick, headers=headers, timeout=60).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(httpx.post, path, json=body, headers=headers, timeout=60)
        statistics = f"{server.url}/metrics"
        wait_until(
            lambda: (
                call.done()
                or "pending_request_count" not in (text := httpx.get(statistics).text)
                or any(
                    line.endswith(" 1")
                    for line in text.splitlines()
                    if line.startswith("nv_inference_pending_request_count")
                )
            )
        )
        server.process.send_signal(signal.SIGTERM)
        assert call.result().status_code == 200
    assert server.process.wait(60) == 0


class Gate:
    """A socket in front of the database's own, that can be closed and opened again."""

    def __init__(self, folder, behind):
        self.folder = folder
        folder.mkdir()
        self._behind = str(behind / ".s.PGSQL.5432")
        self._pairs = []
        self._listener = None

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *_):
        self.close()

    def open(self):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / ".s.PGSQL.5432"))
        self._listener.listen(50)
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def close(self):
        (self.folder / ".s.PGSQL.5432").unlink(missing_ok=True)
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._pairs:
            with suppress(OSError):  # its other end may have closed it already
                one.shutdown(socket.SHUT_RDWR)
        self._pairs = []

    def _accept(self, listener):
        while True:
            try:
                theirs, _ = listener.accept()
            except OSError:
                return
            ours = socket.socket(socket.AF_UNIX)
            ours.connect(self._behind)
            self._pairs += [theirs, ours]
            for pair in ((theirs, ours), (ours, theirs)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source, target):
        with source:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                return
