"""Safetensors files as the library of that name writes them."""

import json

import numpy as np
import torch
from safetensors.numpy import save as save_numpy
from safetensors.torch import save

from tests.attacks.corpus import good

FILE = "model.safetensors"
NUMPY = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
TORCH = {
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


def of_numpy(name, dtype):
    @good(
        "safetensors", FILE, called=f"numpy's {name}", parameters=6, tensors={"w": [name, [2, 3]]}
    )
    def make():
        return save_numpy({"w": np.zeros((2, 3), dtype)})


def of_torch(name, dtype):
    @good(
        "safetensors", FILE, called=f"torch's {name}", parameters=6, tensors={"w": [name, [2, 3]]}
    )
    def make():
        return save({"w": torch.zeros(2, 3).to(dtype)})


for one in NUMPY.items():
    of_numpy(*one)
for one in TORCH.items():
    of_torch(*one)


@good("safetensors", FILE, parameters=0, tensors={})
def no_tensors():
    return save({})


@good("safetensors", FILE, parameters=0, tensors={"w": ["F32", [0, 7]]})
def an_empty_tensor():
    return save({"w": torch.zeros(0, 7)})


@good("safetensors", FILE, parameters=1, tensors={"scale": ["F32", []]})
def a_scalar():
    return save({"scale": torch.tensor(2.5)})


@good("safetensors", FILE, parameters=1, tensors={"w": ["U8", [1] * 20]})
def a_tensor_of_twenty_dimensions():
    return save_numpy({"w": np.zeros([1] * 20, np.uint8)})


@good("safetensors", FILE, parameters=2, metadata={"format": "pt", "作者": "某人"})
def a_metadata_in_two_languages():
    return save({"w": torch.zeros(2)}, metadata={"format": "pt", "作者": "某人"})


@good(
    "safetensors", FILE, parameters=3, tensors={"层.0.权重": ["F32", [1]], "naïve 🧠": ["F32", [2]]}
)
def names_beyond_ascii():
    return save({"层.0.权重": torch.zeros(1), "naïve 🧠": torch.zeros(2)})


@good("safetensors", FILE, parameters=5000)
def five_thousand_tensors():
    return save({f"layers.{number}.weight": torch.zeros(1) for number in range(5000)})


@good("safetensors", FILE, parameters=40)
def a_state_dict_of_several_types():
    return save(
        {
            "embed": torch.zeros(5, 4, dtype=torch.bfloat16),
            "norm": torch.zeros(4),
            "positions": torch.zeros(8, dtype=torch.int64),
            "mask": torch.zeros(2, 4, dtype=torch.bool),
        }
    )


@good("safetensors", "model-00001-of-00002.safetensors", parameters=7)
def shards_with_their_index():
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 28}, "weight_map": {"a": names[0], "b": names[1]}}
    return {
        names[0]: save({"a": torch.zeros(3)}),
        names[1]: save({"b": torch.zeros(2, 2)}),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }


@good("safetensors", "onnx/adapter.safetensors", parameters=4)
def in_a_folder():
    return save({"lora_A.weight": torch.zeros(2, 2)})


@good("safetensors", "weights.bin", parameters=4)
def by_a_name_that_promises_nothing():
    return save({"w": torch.zeros(4)})
