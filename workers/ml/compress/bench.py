"""The model on the bench: as it stands between two steps, what it came from, data to work with."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml.data import Dataset, Split, check_columns, open_dataset
from workers.ml.drawn import draw_rows
from workers.ml.evaluate import latency_feeds
from workers.ml.export.onnx import Agreement, export_onnx, verify
from workers.ml.formats import ModelFolder, open_model
from workers.ml.infer.engines import OnnxEngine, TorchEngine
from workers.ml.infer.feeders import Feeds
from workers.ml.infer.runtime import EMBEDDING, Runtime, load_runtime
from workers.ml.job import Job
from workers.ml.measure import HeldOut
from workers.ml.probes import NOWHERE, probe_rows
from workers.ml.structure import read_structure

_CALIBRATION_BATCH = 32


@dataclass(frozen=True)
class Control:
    """A module to compare the result with, and the config.json that it could be loaded by."""

    module: nn.Module
    config: dict[str, Any]


@dataclass(frozen=True)
class Adapter:
    """What a version holds that is an adapter to another one; `config` is its adapter_config."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]


@dataclass
class Bench:
    """What the steps of a compression work on.

    A model is a torch module until a step needs a graph; from then on it is an ONNX file. The
    parent is only ever run: no step changes it.
    """

    job: Job
    recipe: recipes.CompressRecipe
    given: ModelFolder
    parent: Runtime
    module: nn.Module | None
    file: Path | None
    """The ONNX file as it stands; None while the model is a module."""
    dataset: Dataset | None
    held_out: HeldOut | None
    exported: Path | None = None
    """The float32 graph, where the parent came without one."""
    agreement: Agreement | None = None
    structure: list[dict[str, Any]] = field(default_factory=list)
    """What changed the shape of the module, in order; config.json keeps it for whoever loads it."""
    config: dict[str, Any] = field(default_factory=dict)
    """What the result's config.json says otherwise than the parent's, such as fewer layers."""
    controls: dict[str, Control] = field(default_factory=dict)
    """Modules that had the same training without the compression, to measure beside the result."""
    adapter: Adapter | None = None
    """What is kept in place of the module, which then is the base with the adapter applied."""
    number: int = 0
    """Of the step at work, from zero."""
    has_trained: bool = False
    """Whether the step at work trained, so that its result is worth keeping."""
    coded: bool = False
    """Whether the version is to hold a myz file in place of what it came out as."""
    started: float = field(default_factory=time.perf_counter)
    _steps: int = 0

    @property
    def folder(self) -> Path:
        """Where steps keep what they need in between; it goes with the job's end."""
        return self.job.out / "work"

    @property
    def output_name(self) -> str:
        return EMBEDDING if self.parent.answers == "embedding" else "logits"

    def new_file(self, name: str) -> Path:
        """Name a file that no other step has."""
        self._steps += 1
        folder = self.folder / str(self._steps)
        folder.mkdir(parents=True)
        return folder / name

    def need_module(self, what: str) -> nn.Module:
        """Give the torch module to change.

        Raises:
            Invalid: the model is an ONNX file, by now or from the start.

        """
        if self.module is None:
            raise Invalid(
                "{what} needs the weights of a torch model, and this one is an ONNX file: choose "
                "the version that it was made from, or put this step before those that export it.",
                code="needs_module",
                what=what,
            )
        return self.module

    def need_file(self) -> Path:
        """Give the ONNX file, exporting the module where it is one still."""
        if self.file is None:
            self.export()
        assert self.file is not None
        return self.file

    def export(self) -> None:
        """Turn the module into ONNX and prove that both compute the same."""
        assert self.module is not None
        engine = self.parent.engine
        assert isinstance(engine, TorchEngine)
        changed = TorchEngine(self.module, engine.input_names, self.output_name, "cpu")
        target = self.new_file("model.onnx")
        feeds = latency_feeds(self.parent, probe_rows(self.parent, 32), NOWHERE)
        export_onnx(changed, feeds[32], self.output_name, target)
        exported = OnnxEngine(target, device="cpu", threads=self.job.threads)
        self.agreement = verify(changed, exported, list(feeds.values()))
        self.job.events.log(
            Text(
                "Exported to ONNX; the largest difference to torch is {difference}.",
                difference=f"{self.agreement.largest_absolute:.2g}",
            )
        )
        self.module, self.file = None, target
        self.exported = self.exported or target

    def calibration(self, count: int) -> Iterator[Feeds]:
        """Yield the inputs of up to `count` rows to set ranges by, drawn from the training split.

        Raises:
            Invalid: there is no dataset, or none of its splits may be used for it.

        """
        split = draw_rows(self.training_split(), count, self.recipe.seed)
        columns = self.parent.feeder.columns
        check_columns(split, columns)
        for block in split.batches(columns, _CALIBRATION_BATCH):
            yield self.parent.feeder.feeds(block, split)

    def training_split(self) -> Split:
        """Give the rows that a step may learn from: never those that the result is measured on.

        Raises:
            Invalid, NotFound: there is no dataset, no such split, or nothing else to measure on.

        """
        if self.dataset is None:
            raise Invalid(
                "This recipe needs a dataset to learn from: name one, with a split {split}.",
                code="missing_input",
                split=self.recipe.train_split,
            )
        split = self.dataset.split(self.recipe.train_split)
        if self.held_out is not None and self.held_out.split_name == self.recipe.train_split:
            raise Invalid(
                "The dataset has no split {test} to measure on, and its rows to learn from would "
                "not do: add one.",
                code="missing_split",
                test=self.recipe.test_split,
            )
        return split


def open_bench(job: Job, recipe: recipes.CompressRecipe) -> Bench:
    """Load the parent and the dataset; refuse before the work what would fail after it."""
    given = open_model(job.input("model").path, trainable=True)
    columns = given.columns
    parent = load_runtime(given, device=job.device, threads=job.threads, columns=columns)
    dataset = None
    if "dataset" in job.inputs:
        named = job.input("dataset")
        dataset = open_dataset(named.path, named.ref)
    engine = parent.engine
    module = copy.deepcopy(engine.module) if isinstance(engine, TorchEngine) else None
    bench = Bench(
        job=job,
        recipe=recipe,
        given=given,
        parent=parent,
        module=module,
        file=None if module is not None else given.weights,
        dataset=dataset,
        held_out=_held_out(dataset, recipe, parent, columns),
        structure=read_structure(given.config),
    )
    bench.folder.mkdir()
    return bench


def _held_out(
    dataset: Dataset | None,
    recipe: recipes.CompressRecipe,
    parent: Runtime,
    columns: dict[str, str],
) -> HeldOut | None:
    if dataset is None:
        return None
    name = recipe.measured_split(dataset.splits)
    held_out = HeldOut(dataset, name, columns.get("label", "label"))
    needed = [*parent.feeder.columns]
    if parent.answers == "classes":
        needed.append(held_out.label_column)
    check_columns(held_out.split, needed)
    return held_out
