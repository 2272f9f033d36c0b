"""What steps have done, kept beside the checkpoints: a job that goes on redoes no finished step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from registry.errors import Invalid, Text
from workers.ml.architectures.sentence_encoder import load_sentence_encoder
from workers.ml.compress.bench import Bench, Control
from workers.ml.formats import load_module, load_program, open_model, save_module
from workers.ml.train.checkpoint import sync_folder, sync_tree

_DONE = "done"
_STATE = "bench.json"

WriteFiles = Callable[[Bench, Path], None]


def keep_state(bench: Bench, notes: list[dict[str, Any]], write_files: WriteFiles) -> None:
    """Write the module as it stands after so many steps; older states go."""
    folder = bench.job.checkpoints / f"{_DONE}-{len(notes)}"
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_files(bench, partial)
    for name, control in bench.controls.items():
        (partial / name).mkdir()
        save_module(control.module, control.config, partial / name)
    state = {
        "recipe": bench.recipe.model_dump(mode="json"),
        "notes": notes,
        "structure": bench.structure,
        "config": bench.config,
        "controls": sorted(bench.controls),
    }
    (partial / _STATE).write_text(json.dumps(state), encoding="utf-8")
    sync_tree(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    sync_folder(folder.parent)
    for old in bench.job.checkpoints.iterdir():
        if old != folder and old.is_dir() and _is_older(old.name, len(notes)):
            shutil.rmtree(old)
    bench.job.events.log(Text("Kept what {count} step(s) have done.", count=len(notes)))


def _is_older(name: str, count: int) -> bool:
    """Tell whether a folder belongs to a step that is done: `done-1`, or a run's `0-fine_tune`."""
    if name.startswith(f"{_DONE}-"):
        return True
    number, dash, _ = name.partition("-")
    return bool(dash) and number.isdecimal() and int(number) < count


def take_up(bench: Bench) -> list[dict[str, Any]]:
    """Put the bench where a former attempt left it; give the notes of the steps that are done.

    Raises:
        Invalid: what was kept belongs to another recipe.

    """
    folders = sorted(
        bench.job.checkpoints.glob(f"{_DONE}-[1-8]"), key=lambda folder: folder.name, reverse=True
    )
    for folder in folders:
        try:
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if state["recipe"] != bench.recipe.model_dump(mode="json"):
            raise Invalid(
                "The checkpoint belongs to another recipe or dataset.", code="bad_checkpoint"
            )
        try:
            module = _load(folder)
            controls = {name: _control(folder / name) for name in state["controls"]}
        except Invalid as damaged:
            # A disk that lost power can keep a name and lose the bytes: those steps are done again.
            bench.job.events.log(
                Text("What was kept of finished steps is of no use: {why}", why=damaged)
            )
            continue
        bench.module, bench.controls = module, controls
        bench.structure, bench.config = state["structure"], state["config"]
        notes: list[dict[str, Any]] = state["notes"]
        bench.job.events.log(Text("Resumed after {count} finished step(s).", count=len(notes)))
        return notes
    return []


def _load(folder: Path) -> nn.Module:
    kept = open_model(folder)
    if kept.is_program:
        return load_program(kept)
    return load_sentence_encoder(folder) if kept.is_transformer else load_module(kept)[0]


def _control(folder: Path) -> Control:
    kept = open_model(folder)
    return Control(_load(folder), kept.config)
