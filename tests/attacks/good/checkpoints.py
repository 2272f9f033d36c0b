"""Checkpoints as torch writes them: held, converted in the sandbox, and usable."""

from collections import OrderedDict

import torch
from torch import nn

from tests.attacks.corpus import good
from tests.workers import hostile as makers

FILE = "pytorch_model.bin"


def of_state(called, make, parameters, *, save=makers.torch_zip, path=FILE):
    @good("torch", path, called=called, parameters=parameters)
    def written():
        return save(make())


def layer():
    return nn.Linear(3, 2).state_dict()


def of_type(dtype):
    of_state(str(dtype), lambda: {"w": torch.zeros(4).to(dtype)}, 4)


of_state("a state dict", layer, 8)
of_state("a state dict, as long ago", layer, 8, save=makers.torch_legacy, path="model.pth")
of_state("a state dict by its usual name", layer, 8, path="model.pt")
of_state("a checkpoint of a training", lambda: {"state_dict": layer(), "epoch": 3, "lr": 0.1}, 8)
of_state("a model key", lambda: {"model": layer(), "optimizer": {"state": {}}}, 8)
of_state("an ordered dictionary", lambda: OrderedDict(layer()), 8)
of_state("shared weights", lambda: {"a": (w := torch.zeros(3)), "b": w}, 6)
of_state("a view", lambda: {"w": torch.zeros(4, 4)[1:, ::2]}, 6)
of_state("a transposed weight", lambda: {"w": torch.zeros(4, 2).t()}, 8)
of_state("a scalar", lambda: {"w": torch.tensor(1.0)}, 1)
of_state("an empty weight", lambda: {"w": torch.zeros(0, 3), "b": torch.zeros(1)}, 1)
of_state("a parameter", lambda: {"w": nn.Parameter(torch.zeros(3))}, 3)
for one in (torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool):
    of_type(one)
