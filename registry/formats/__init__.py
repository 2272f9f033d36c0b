"""Bounded readers of file headers: what a file is and says, without loading any of it."""

from registry.formats.facts import Facts, Port, Tensor, Tensors
from registry.formats.inspection import inspect

__all__ = ["Facts", "Port", "Tensor", "Tensors", "inspect"]
