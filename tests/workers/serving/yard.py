"""Small models, stored and routed to, for a data plane without a database."""

import asyncio
import hashlib
import itertools
import json
import time
from contextlib import asynccontextmanager

import numpy as np
import onnx
from onnx import TensorProto, helper

from registry.models import Actor
from registry.routes import Deployed, Route, ServedFile, weights_digest
from registry.serving_options import SettledOptions
from registry.storage import LocalStorage
from workers.serving.dataplane import DataPlane
from workers.serving.messages import InferRequest, Tensor

ALICE = Actor(user_id=1, username="alice", roles={1: "owner"}, door="serving")
BOB = Actor(user_id=2, username="bob", door="serving")


def linear(factor=2.0, *, width="width", rows="rows"):
    """Give y = factor * x, as an ONNX file."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    return _saved(graph)


def mlp(sizes=(16, 32, 4), seed=0):
    drawn = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for at, (before, after) in enumerate(itertools.pairwise(sizes)):
        matrix = drawn.standard_normal((before, after)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{at}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{at}"], [f"h{at}"]))
        last = f"h{at}"
        if at < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [last], [f"r{at}"]))
            last = f"r{at}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", sizes[-1]])],
        weights,
    )
    return _saved(graph)


def looping():
    """Give a model that turns for as long as its input is above zero, and never lets go of it."""
    return _turning("ReduceMax", TensorProto.FLOAT, 1000.0, keepdims=0)


def looping_beyond(rows):
    """Give a model that never answers a batch of more than so many rows."""
    return _turning("Size", TensorProto.INT64, rows)


def _turning(measure, kind, limit, **attributes):
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Identity", ["held_in"], ["held_out"]),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("go_in", TensorProto.BOOL, []),
            value("held_in", TensorProto.FLOAT, ["rows", 1]),
        ],
        [value("go_out", TensorProto.BOOL, []), value("held_out", TensorProto.FLOAT, ["rows", 1])],
    )
    graph = helper.make_graph(
        [
            helper.make_node(measure, ["x"], ["most"], **attributes),
            helper.make_node("Greater", ["most", "limit"], ["go"]),
            helper.make_node("Loop", ["", "go", "x"], ["y"], body=body),
        ],
        "looping",
        [value("x", TensorProto.FLOAT, ["rows", 1])],
        [value("y", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor("limit", kind, [], [limit])],
    )
    return _saved(graph)


def counting():
    """Give y = x after as many turns of a loop."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Identity", ["held_in"], ["held_out"]),
        ],
        "body",
        [
            value("turn", TensorProto.INT64, []),
            value("go_in", TensorProto.BOOL, []),
            value("held_in", TensorProto.INT64, ["rows"]),
        ],
        [value("go_out", TensorProto.BOOL, []), value("held_out", TensorProto.INT64, ["rows"])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["turns"], keepdims=0),
            helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body),
        ],
        "counting",
        [value("x", TensorProto.INT64, ["rows"])],
        [value("y", TensorProto.INT64, ["rows"])],
    )
    return _saved(graph)


def gather():
    """Give a model that fails on a number beyond its table: y = table[x]."""
    return _looking_up(np.arange(10, dtype=np.float32), TensorProto.FLOAT)


def naming():
    """Give a text for each number."""
    return _looking_up(np.array(["", "one"], dtype=object), TensorProto.STRING)


def _looking_up(table, kind):
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("y", kind, ["rows"])],
        [onnx.numpy_helper.from_array(table, "table")],
    )
    return _saved(graph)


def normalising():
    """Give a model whose rows change each other: y = x / sum over all rows."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Div", ["x", "sum"], ["y"]),
        ],
        "normalising",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
    )
    return _saved(graph)


def unknown():
    """Give a model that nothing can run: of an operator that there is not."""
    graph = helper.make_graph(
        [helper.make_node("Unknown", ["x"], ["y"])],
        "unknown",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"])],
    )
    return _saved(graph)


def shouting():
    """Give texts back as they came."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "shouting",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["rows"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["rows"])],
    )
    return _saved(graph)


def _saved(graph):
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


class Yard:
    """Files in a store of their own, and the routes to what is made of them."""

    def __init__(self, root):
        self.root = root
        self.storage = LocalStorage(root / "storage")
        self.routes = {}
        self._ids = 0

    def version(self, name, number, files, *, role="live", weight=100, **options):
        if isinstance(files, bytes):
            files = {"model.onnx": files}
        served = []
        for path, content in files.items():
            data = json.dumps(content).encode() if isinstance(content, dict) else content
            stored = self.storage.put([data])
            assert stored.sha256 == hashlib.sha256(data).hexdigest()
            served.append(ServedFile(path=path, sha256=stored.sha256, size_bytes=len(data)))
        self._ids += 1
        return Deployed(
            id=self._ids,
            version_id=abs(hash((name, number))),
            repository=name,
            number=number,
            variant="",
            weights_sha256=weights_digest(served),
            role=role,
            weight=weight,
            options=SettledOptions(**options),
            files=tuple(served),
        )

    def route(self, name, *deployments, visibility="private", sticky=False):
        known = self.routes.get(name)
        number = known.endpoint_id if known else len(self.routes) + 1
        self.routes[name] = Route(
            name=name,
            endpoint_id=number,
            namespace_id=1,
            repository_id=number,
            visibility=visibility,
            sticky=sticky,
            deployments=deployments,
        )

    @asynccontextmanager
    async def plane(self, **options):
        """Run a data plane that goes by the routes given so far."""
        options = {"arena_bytes": 8 << 20, "memory_bytes": 4 << 30, **options}
        plane = DataPlane(root=self.root / "serving", storage=self.storage, **options)
        plane.apply([*self.routes.values()])
        try:
            yield plane
        finally:
            await plane.stop(grace_seconds=0.5)


def floats(values, name="x"):
    array = np.asarray(values, np.float32)
    return Tensor(name, "FP32", array.shape, array.tobytes())


def numbers(values, name="x"):
    array = np.asarray(values, np.int64)
    return Tensor(name, "INT64", array.shape, array.tobytes())


async def ask(plane, model, *inputs, actor=ALICE, version="", seconds=30.0):
    request = InferRequest(model, [*inputs], actor, time.monotonic() + seconds, version)
    response = await plane.infer(request)
    return response, [read(one) for one in response.outputs]


def read(tensor):
    dtypes = {"FP32": np.float32, "INT64": np.int64}
    return np.frombuffer(tensor.data, dtypes[tensor.datatype]).reshape(tensor.shape)


async def until(condition, seconds=30.0):
    """Wait until something holds; the clock only bounds how long a failing test takes."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of this test
            await asyncio.sleep(0.01)
