"""Coded models as the workers write them."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from tests.attacks.corpus import good
from workers.ml import myz

FILE = "model.myz"


def coded(name, write):
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, name), Path(folder, FILE)
        write(source)
        myz.pack(source, target)
        return target.read_bytes()


def state(**tensors):
    return coded("model.safetensors", lambda file: save_file(tensors, file))


@good("myz", FILE, parameters=6, tensors={"w": ["F32", [2, 3]]})
def a_small_state():
    return state(w=torch.arange(6.0).reshape(2, 3))


@good("myz", FILE, parameters=0, tensors={})
def a_state_without_tensors():
    return state()


@good("myz", FILE, parameters=0, tensors={"w": ["F32", [0, 7]]})
def an_empty_tensor():
    return state(w=torch.zeros(0, 7))


@good("myz", FILE, parameters=1, tensors={"w": ["F64", []]})
def a_scalar():
    return state(w=torch.tensor(0.1, dtype=torch.float64))


@good("myz", FILE, parameters=90_000, tensors={"w": ["F32", [300, 300]]})
def a_tensor_of_few_and_shared_values():
    kept = torch.arange(90_000) % 97 == 0
    return state(w=torch.where(kept, torch.arange(90_000) % 7 - 3.0, 0.0).reshape(300, 300))


@good("myz", FILE, parameters=1_000_000, tensors={"w": ["F32", [1000, 1000]]})
def a_million_zeros():
    return state(w=torch.zeros(1000, 1000))


@good("myz", FILE, parameters=5000, tensors={"w": ["BF16", [5000]]})
def a_tensor_in_bfloat16():
    return state(w=torch.linspace(-1, 1, 5000).to(torch.bfloat16))


@good("myz", FILE, parameters=1203, tensors={"w": ["I8", [400, 3]], "b": ["F32", [3]]})
def a_graph():
    weights = [
        numpy_helper.from_array(np.arange(1200).astype(np.int8).reshape(400, 3), "w"),
        numpy_helper.from_array(np.zeros(3, np.float32), "b"),
    ]
    ports = [helper.make_tensor_value_info(name, 1, ["batch", 3]) for name in "xy"]
    node = helper.make_node("Add", ["x", "b"], ["y"])
    graph = helper.make_graph([node], "main", ports[:1], ports[1:], initializer=weights)
    return coded("model.onnx", lambda file: onnx.save(helper.make_model(graph), file))


def of_type(name, tensor):
    @good("myz", FILE, called=f"a tensor of {name}", parameters=6, tensors={"w": [name, [2, 3]]})
    def make():
        return state(w=tensor)


for dtype, kind in {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "F64": torch.float64,
}.items():
    of_type(dtype, torch.arange(6).reshape(2, 3).to(kind))
