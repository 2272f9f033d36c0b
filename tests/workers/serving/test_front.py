"""`python -m workers.serving.front` before three serving processes, of which some go."""

import gzip
import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import httpx
import numpy as np
import pytest

from tests.factories import make_token
from tests.workers.serving import yard as y
from tests.workers.serving.servers import CALL, deploy, outputs, wait_until
from workers.serving.protos import inference_pb2 as pb
from workers.serving.rpc import SERVICE

pytestmark = pytest.mark.slow
CALLERS = 4


@pytest.fixture
def model(owner):
    repository, _ = deploy(owner, "double", y.linear(2.0))
    return repository.full_name


@pytest.fixture
def token(owner):
    return make_token(owner)


@pytest.fixture
def replicas(start, model, token):
    found = [start(wait=False) for _ in range(3)]
    for one in found:
        wait_until(partial(answers, one.wait(), model, token))
    yield found
    for one in found:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)


@pytest.fixture
def front(start, replicas):
    one = start(module="workers.serving.front")
    wait_until(lambda: numbers(one, "replica_up") == [1, 1, 1])
    return one


def answers(replica, model, token):
    """Say whether a process has loaded the model, which it does after it is ready itself."""
    headers = {"Authorization": f"Bearer {token}"}
    url = f"{replica.url}/v2/models/{model}/ready"
    return httpx.get(url, headers=headers, timeout=30).status_code == 200


def numbers(front, name):
    lines = httpx.get(f"{front.url}/metrics", timeout=30).text.splitlines()
    return [int(one.split()[-1]) for one in lines if one.startswith(f"modelyard_front_{name}")]


def raw_request(model, values):
    data = np.asarray(values, np.float32)
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[data.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=data.shape)
    return message.SerializeToString()


class Load:
    """Callers of both protocols, who go on until they are told to stop and keep every answer."""

    def __init__(self, front, model, token):
        self.front, self.model, self.token = front, model, token
        self.stop = threading.Event()
        self.answered = 0
        self.seen = set()
        self._pool = ThreadPoolExecutor(2 * CALLERS)

    def __enter__(self):
        self._calls = [
            self._pool.submit(caller) for caller in (self._http, self._grpc) for _ in range(CALLERS)
        ]
        return self

    def __exit__(self, *_):
        self.stop.set()
        self._pool.shutdown()
        for call in self._calls:
            call.result()

    def _http(self):
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(headers=headers, timeout=60) as client:
            while not self.stop.is_set():
                answer = client.post(f"{self.front.url}/v2/models/{self.model}/infer", json=CALL)
                said = answer.json()["outputs"][0]["data"] if answer.is_success else answer.text
                self.seen.add((answer.status_code, str(said)))
                self.answered += 1

    def _grpc(self):
        metadata = [("authorization", f"Bearer {self.token}")]
        body = raw_request(self.model, [[3.0]])
        with grpc.insecure_channel(f"127.0.0.1:{self.front.grpc_port}") as channel:
            call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            while not self.stop.is_set():
                try:
                    answer = pb.ModelInferResponse.FromString(
                        call(body, timeout=60, metadata=metadata)
                    )
                    value = np.frombuffer(answer.raw_output_contents[0], np.float32)
                    self.seen.add((200, str(value.tolist())))
                except grpc.RpcError as error:
                    self.seen.add((error.code(), error.details()))
                self.answered += 1

    def more(self, count=60):
        """Wait for so many further answers."""
        before = self.answered
        wait_until(lambda: self.answered >= before + count)


def test_replicas_may_go_and_hang_and_come_back_without_a_failed_call(
    start, replicas, front, model, token
):
    wait_until(lambda: outputs(front.call(model, token)) == [6.0])
    with Load(front, model, token) as load:
        load.more(200)
        # On a busy machine one may have been left out for a moment.
        wait_until(lambda: is_even(numbers(front, "answers_total")))
        gone, hung, _ = replicas
        os.kill(gone.process.pid, signal.SIGKILL)
        gone.process.wait(30)
        load.more()
        wait_until(lambda: sum(numbers(front, "replica_up")) == 2)
        os.kill(hung.process.pid, signal.SIGSTOP)
        wait_until(lambda: sum(numbers(front, "replica_up")) == 1)
        load.more()
        os.kill(hung.process.pid, signal.SIGCONT)
        wait_until(lambda: sum(numbers(front, "replica_up")) == 2)
        start()
        wait_until(lambda: sum(numbers(front, "replica_up")) == 3)
        load.more(200)
    assert load.seen == {(200, "[6.0]")}
    assert numbers(front, "retries_total")[0] > 0


def is_even(spread):
    return min(spread) > max(spread) / 4


def test_everything_passes_through_as_it_came(front, replicas, model, token):
    # Three servers take long to start: both protocols share them.
    over_http(front, replicas, model, token)
    over_grpc(front, model, token)
    odd_heads(front, replicas[0], token)


def over_http(front, replicas, model, token):
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=front.url, headers=headers, timeout=60) as client:
        path = f"/v2/models/{model}"
        assert client.get(f"{path}/ready").status_code == 200
        assert client.get(f"{path}?x=%2F").json()["name"] == model
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/models/no/such").status_code == 404
        assert client.post(f"{path}/infer", content=b"{").status_code == 400
        packed = gzip.compress(httpx.Request("POST", "http://a", json=CALL).content)
        answer = client.post(f"{path}/infer", content=packed, headers={"content-encoding": "gzip"})
        assert outputs(answer) == [6.0]
        # Longer than what is kept to be sent again, with and without its length said.
        large = np.arange(2_000_000, dtype=np.float32)
        shape = {"name": "x", "datatype": "FP32", "shape": [1, 2_000_000]}
        shape["parameters"] = {"binary_data_size": 8_000_000}
        asked = {"inputs": [shape], "parameters": {"binary_data_output": True}}
        head = json.dumps(asked).encode()
        sizes = {"inference-header-content-length": str(len(head))}
        body = head + large.tobytes()
        for content in (body, iter([body[:3_000_000], body[3_000_000:]])):
            answer = client.post(f"{path}/infer", content=content, headers=sizes)
            length = int(answer.headers["inference-header-content-length"])
            found = np.frombuffer(answer.content[length:], np.float32)
            assert np.array_equal(found, 2 * large)
        assert client.post(f"{path}/infer", content=bytes(70_000_000)).status_code == 413
        page = {"origin": "https://elsewhere.example"}
        answer = client.post(f"{path}/infer", json=CALL, headers=page)
        assert answer.headers.get_list("access-control-allow-origin") == ["*"]
        # What each process does for itself is asked of all.
        assert client.post(f"/v2/repository/models/{model}/unload").status_code == 200
        for one in replicas:
            said = httpx.get(f"{one.url}{path}/ready", headers=headers, timeout=30)
            assert said.status_code == 503
        assert client.post(f"/v2/repository/models/{model}/load").status_code == 200
        for one in replicas:
            assert httpx.get(f"{one.url}{path}/ready", headers=headers, timeout=30).is_success
        message = raw_request(model, [[3.0]])
        frame = b"\0" + len(message).to_bytes(4, "big") + message
        kind = {"content-type": "application/grpc-web+proto"}
        answer = client.post(f"/{SERVICE}/ModelInfer", content=frame, headers=kind)
        assert b"grpc-status: 0" in answer.content


def test_a_stream_ends_where_its_process_hangs(front, replicas, model, token):
    """It is not begun again elsewhere: some of it was answered already."""
    metadata = [("authorization", f"Bearer {token}")]
    goes_on = threading.Event()

    def asked():
        yield raw_request(model, [[1.0]])
        goes_on.wait(120)
        yield raw_request(model, [[2.0]])

    with grpc.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers = stream(asked(), timeout=240, metadata=metadata)
        first = pb.ModelStreamInferResponse.FromString(next(answers)).infer_response
        assert np.frombuffer(first.raw_output_contents[0], np.float32).tolist() == [2.0]
        for one in replicas:
            os.kill(one.process.pid, signal.SIGSTOP)
        goes_on.set()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "went away" in ended.value.details()


def odd_heads(front, replica, token):
    """Send heads whose words decide nothing of where a call goes; see the answers of no front."""
    targets = [
        *(b"*", b"//elsewhere.example/x", b"@elsewhere.example/x", b"http://elsewhere.example:1/x"),
        *(
            b"/%2e%2e/x?%zz",
            b"/a%20b?c d",
            b"/\xc3\xa9?\xc3\xa9",
            b"/\xff",
            b"/x#y",
            b"/%00%0d%0a?%0d%0a",
        ),
    ]
    headers = [
        b"x: \xe9",
        b"x: \x7f",
        b"x: \x01",
        b"content-encoding: br",
        b"te: gzip",
        b"cookie: a",
    ]
    for target, header in [*((one, b"") for one in targets), *((b"/x", one) for one in headers)]:
        lines = [b"GET " + target + b" HTTP/1.1", b"Host: a", b"Connection: close"]
        lines += [b"Authorization: Bearer " + token.encode(), *([header] if header else [])]
        head = b"\r\n".join([*lines, b"", b""])
        found = [status_of(port, head) for port in (front.port, replica.port)]
        assert found[0] == found[1] in {400, 404}, (target, header)


def status_of(port, head):
    with socket.create_connection(("127.0.0.1", port), 30) as one:
        one.sendall(head)
        answer = b"".join(iter(lambda: one.recv(65536), b""))
    return int(answer.split(b" ")[1])


def over_grpc(front, model, token):
    metadata = [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers = stream(
            iter([raw_request(model, [[float(at)]]) for at in range(5)]),
            timeout=60,
            metadata=metadata,
        )
        found = [
            np.frombuffer(
                pb.ModelStreamInferResponse.FromString(one).infer_response.raw_output_contents[0],
                np.float32,
            ).tolist()
            for one in answers
        ]
        assert found == [[0.0], [2.0], [4.0], [6.0], [8.0]]
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            call(raw_request(model, [[1.0]]), timeout=60)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.RpcError) as refused:
            call(raw_request(model, [1.0]), timeout=60, metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "takes" in refused.value.details()
        with pytest.raises(grpc.RpcError) as refused:
            call(b"\xff\xff", timeout=60, metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
