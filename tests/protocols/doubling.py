"""A data plane that doubles numbers, for tests of the protocols alone, and its servers."""

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import uvloop

from registry.errors import Denied, NotFound, NotLoaded, RateLimited, Unauthenticated
from registry.models import ANONYMOUS, Actor
from tests.ports import free_port
from workers.serving.budget import Bounds
from workers.serving.codec import NUMPY
from workers.serving.listener import Listener
from workers.serving.messages import (
    Counters,
    Embedded,
    InferResponse,
    ModelMetadata,
    Predicted,
    Tensor,
    TensorSpec,
)
from workers.serving.passage import Front
from workers.serving.rest import Rest
from workers.serving.rpc import serve_calls

MODEL = "lab/double"
TOKEN = "my_token"
# Of a caller who may call until "lab/last" was asked.
LAST_TOKEN = "my_last_token"
BODY_BYTES = 4 * 1024 * 1024
MAX_CALLS = 64


class Doubling:
    """Knows one model for everybody, and one for who has the token."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self.last = None
        self.loaded = True
        self.tokens = {TOKEN}
        self.patience_seconds = 30.0
        # How often somebody asked for what is not loaded, and whether it has been meanwhile.
        self.wakings = 0
        self.has_woken = False

    def live(self):
        return True

    def ready(self):
        return True

    def server_metadata(self):
        return {"name": "modelyard", "version": "1", "extensions": ["binary_tensor_data"]}

    async def identify(self, authorization, address):
        if authorization is None:
            self.address = address
            return ANONYMOUS
        if authorization.removeprefix("Bearer ") not in self.tokens:
            raise Unauthenticated("The token is not known.")
        return Actor(user_id=1, username="ann")

    def _find(self, actor, model, version):
        if model == "lab/busy":
            raise RateLimited("Wait {retry_after} s.", retry_after=7)
        if model == "lab/refused":
            raise Denied("Not with this token.")
        if model == "lab/asleep" and not self.has_woken:
            self.wakings += 1
            raise NotLoaded("It comes in {retry_after} s.", retry_after=60)
        if model == "lab/broken":
            raise ZeroDivisionError
        known = {MODEL, "lab/slow", "lab/last", "lab/asleep"} | (
            set() if actor.is_anonymous else {"lab/secret"}
        )
        if model not in known or version not in {"", "3", "@production"}:
            raise NotFound("There is no model {name} that you may call.", name=model)

    def patience(self, actor, model):
        self._find(actor, model, "")
        return self.patience_seconds

    async def infer(self, request):
        self.last = request
        self._find(request.actor, request.model, request.version)
        if request.model == "lab/slow":
            self.started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.model == "lab/last":
            self.tokens.discard(LAST_TOKEN)
        outputs = [self._double(one) for one in request.inputs]
        if request.outputs:
            outputs = [one for one in outputs if one.name in request.outputs]
        said = {"modelyard_version": "3", "modelyard_batch_size": 1, "modelyard_queue_us": 2}
        return InferResponse(request.model, "3", request.id, outputs, said)

    def _double(self, tensor):
        name = tensor.name.replace("x", "y")
        if tensor.datatype not in NUMPY:
            return replace(tensor, name=name)
        values = np.frombuffer(tensor.data, NUMPY[tensor.datatype])
        return Tensor(name, tensor.datatype, tensor.shape, (values + values).tobytes())

    async def predict(self, actor, model, version, rows, deadline):
        self._find(actor, model, version)
        return Predicted(model, "3", [{"label": str(one)} for one in rows], {})

    async def embed(self, actor, model, version, inputs, dimensions, deadline):
        self._find(actor, model, version)
        vectors = np.array([[len(one), 0.5, 0.25] for one in inputs], "f4")
        tokens = sum(map(len, inputs))
        return Embedded(model, "3", vectors[:, :dimensions], tokens, {})

    async def model_ready(self, actor, model, version):
        self._find(actor, model, version)
        return self.loaded

    async def model_metadata(self, actor, model, version):
        self._find(actor, model, version)
        return ModelMetadata(
            model,
            ["3"],
            "onnxruntime_onnx",
            [TensorSpec("x", "FP32", (-1, 2))],
            [TensorSpec("y", "FP32", (-1, 2))],
        )

    async def model_config(self, actor, model, version):
        self._find(actor, model, version)
        tensor = {"data_type": "TYPE_FP32", "dims": [2]}
        return {
            "name": model,
            "platform": "onnxruntime_onnx",
            "max_batch_size": 32,
            "input": [{"name": "x", **tensor}],
            "output": [{"name": "y", **tensor}],
        }

    async def statistics(self, actor, model, version):
        if model is not None:
            self._find(actor, model, version)
        timed = {"count": 5, "ns": 5_000_000}
        return [
            {
                "name": MODEL,
                "version": "3",
                "last_inference": 1,
                "inference_count": 6,
                "execution_count": 4,
                "inference_stats": {"success": timed, "queue": timed, "compute_infer": timed},
                "batch_stats": [{"batch_size": 1, "compute_infer": timed}],
                "memory_usage": [{"type": "CPU", "id": 0, "byte_size": 100}],
            }
        ]

    def counters(self, actor):
        said = Counters(MODEL, "3", pending=2, inferences=6, executions=4)
        said.success.add(5_000_000, 5)
        return [said]

    async def index(self, actor, *, ready_only):
        return [{"name": MODEL, "version": "3", "state": "READY", "reason": ""}]

    async def load(self, actor, model):
        self._find(actor, model, "")
        self.loaded = True

    async def unload(self, actor, model):
        self._find(actor, model, "")
        self.loaded = False


class Served:
    """Both servers in a thread, as the process of the data plane has them in one loop."""

    def __init__(self) -> None:
        self.plane = Doubling()
        self.bounds = Bounds(BODY_BYTES, 4 * BODY_BYTES)
        self.rest = Rest(self.plane, self.bounds)
        self.port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def rpc(self):
        return serve_calls(self.plane, self.bounds, max_calls=MAX_CALLS)

    async def begin(self):
        self.loop = asyncio.get_running_loop()

    async def end(self):
        await self.rest.reader.close()


class Fronted:
    """A front before replicas, each a plane that doubles."""

    def __init__(self, *served) -> None:
        self.bounds = Bounds(BODY_BYTES, 4 * BODY_BYTES)
        self.port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._served = served

    @property
    def rest(self):
        return self.front

    def rpc(self):
        return self.front.serve_calls(max_calls=MAX_CALLS)

    async def begin(self):
        self.loop = asyncio.get_running_loop()
        self.front = Front(self.bounds)
        self.front.pool.hear([self.status(one) for one in self._served])
        await self.front.pool.check_all()
        assert len(self.front.pool.up) == len(self._served)

    def status(self, served, *loaded):
        """Say what a replica says of itself."""
        one = {"version": 3, "state": "ready", "pending": 0}
        return {
            "id": str(served.port),
            "address": "127.0.0.1",
            "rest_port": served.port,
            "grpc_port": served.grpc_port,
            "models": [{"endpoint": name, **one} for name in loaded],
        }

    async def end(self):
        await self.front.close()


@contextmanager
def serving(served=None):
    served = served or Served()
    up = threading.Event()
    stop: list = []

    async def run():
        await served.begin()
        rpc = served.rpc()
        await rpc.start("127.0.0.1", served.grpc_port)
        http = Listener(served.rest, max_connections=1024)
        await http.start("127.0.0.1", served.port)
        ended = asyncio.Event()
        stop.extend([asyncio.get_running_loop(), ended])
        up.set()
        await ended.wait()
        await http.stop(10)
        await rpc.stop(10)
        await served.end()

    def in_loop():
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=in_loop, daemon=True)
    thread.start()
    assert up.wait(30)
    try:
        yield served
    finally:
        stop[0].call_soon_threadsafe(stop[1].set)
        thread.join(30)
