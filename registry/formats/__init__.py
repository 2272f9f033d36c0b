"""Bounded readers of file headers: what a file is and says, without loading any of it."""

from registry.formats.card import Card, parse_card
from registry.formats.facts import Facts, Port, Tensor, Tensors
from registry.formats.inspection import GENERATION, INSPECTOR, SAFE_FORMATS, inspect
from registry.formats.paths import check_path, check_paths
from registry.formats.safetensors import read_borders

__all__ = [
    "GENERATION",
    "INSPECTOR",
    "SAFE_FORMATS",
    "Card",
    "Facts",
    "Port",
    "Tensor",
    "Tensors",
    "check_path",
    "check_paths",
    "inspect",
    "parse_card",
    "read_borders",
]
