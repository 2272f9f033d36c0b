"""Checkpoints: everything that the next step depends on, in one safetensors file.

A file appears under its name only when it is whole and on disk; there is never a pickle.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

KEPT = 2
_NAME = re.compile(r"step-(\d{12})\.safetensors")
_META = "state"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of a step and forget all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:012d}.safetensors"
    partial = target.with_suffix(".partial")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, partial, metadata={_META: json.dumps({**state, "step": step})})
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(target)
    sync_folder(folder)
    for _, old in _checkpoints(folder)[:-KEPT]:
        old.unlink()
    return target


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read the newest checkpoint that is whole."""
    for _, file in reversed(_checkpoints(folder)):
        try:
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                state = json.loads((opened.metadata() or {})[_META])
                return {name: opened.get_tensor(name) for name in names}, state
        except (SafetensorError, OSError, KeyError, ValueError):
            # A disk that lost power can keep a name and lose the bytes; the one before will do.
            continue
    return None


def pack_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take an optimizer's state apart into tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            key = f"{number}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                values[key] = value
    return tensors, values


def unpack_optimizer(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Put the state back; the settings of the groups come from the recipe."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values}.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_state(device: str) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if device == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    matches = [(_NAME.fullmatch(file.name), file) for file in folder.glob("step-*.safetensors")]
    return sorted((int(match[1]), file) for match, file in matches if match)


def sync_tree(folder: Path) -> None:
    """Bring every file below a folder to the disk, and their names."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as written:
                os.fsync(written.fileno())


def sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
