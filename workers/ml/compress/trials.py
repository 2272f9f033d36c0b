"""`python -m workers.ml.compress.trials JOB WORK`: tries candidates, as a process of its own.

A candidate is an ONNX file or a module that may come from a stranger: it may run for ever, or take
the process down. So a search asks a child for each step, and ends it when its time is up. Requests
are lines of JSON on stdin, answers are lines among the events on stdout.
"""

import copy
import json
import shutil
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from registry import recipes
from registry.errors import Invalid, RegistryError, Text, pack
from workers.ml import environment, evaluate
from workers.ml.compress import run
from workers.ml.compress.bench import Bench, open_bench
from workers.ml.compress.pack import refuse_packed
from workers.ml.data import (
    Dataset,
    Labels,
    Rows,
    Split,
    check_columns,
    divide,
    find_labels,
    read_classes,
)
from workers.ml.device import prepare
from workers.ml.drawn import SomeRows, join, take
from workers.ml.events import Events
from workers.ml.formats import open_model
from workers.ml.infer.feeders import WordPieceFeeder, WordsFeeder
from workers.ml.infer.runtime import Runtime, load_runtime
from workers.ml.interrupt import Interrupt
from workers.ml.job import Job, read_job
from workers.ml.linear_probe import fit_and_predict
from workers.ml.program import Program
from workers.ml.statistics import cosines, neighbour_overlap

MAX_ROWS = 5000
MAX_PROBED_ROWS = 2000
MAX_VECTOR_ROWS = 512
_MAX_HELD_BYTES = 1 << 30
_NEIGHBOURS = 10
_BATCH = 32
_KEPT_PREFIXES = 8
# Latencies at three batch sizes, and two processes that load a model to weigh it.
_FINISH_SECONDS = 20.0


@dataclass(frozen=True)
class _Held:
    """Rows to choose by, in memory and shuffled, so that the first of them are a fair sample."""

    split: Split
    rows: Rows
    labels: NDArray[np.int64]
    """The class of each row; empty where no class is asked for."""

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))


@dataclass(frozen=True)
class _Learned:
    """What a probe learns from: rows of the training split, and how many classes there are."""

    held: _Held
    classes: int


class Trials:
    """Makes candidates and measures what they lose on rows that none of them learned from."""

    def __init__(self, job: Job, recipe: recipes.SearchRecipe, work: Path) -> None:
        (self.search,) = recipe.steps
        self.recipe = recipe
        self.work = work
        self.job = replace(job, out=work)
        self._runtimes: OrderedDict[str, Runtime] = OrderedDict()
        self._prefixes: OrderedDict[str, Bench] = OrderedDict()
        self._done: dict[str, list[dict[str, Any]]] = {}
        self._benches: dict[str, Bench] = {}
        self._took: dict[str, float] = {}
        self._tested: tuple[_Held, NDArray[Any]] | None = None
        self._nodes = 0
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        self._bench = self._open()
        self._runtime = self._bench.parent
        self._held, self._learned = self._hold_out()
        started = time.perf_counter()
        self._parent = self._answers(self._runtime, self._held)
        self._took_parent = time.perf_counter() - started
        if self._runtime.answers != "classes" and not np.isfinite(self._parent).all():
            raise Invalid(
                "Some of the model's own answers are not finite numbers, so nothing can be told "
                "to be like them.",
                code="not_finite",
            )

    def about(self) -> dict[str, Any]:
        """Say what there is to search: the parent's size, the rows to choose by, the methods."""
        return {
            "rows": len(self._held),
            "parent_bytes": self._bench.given.weights_bytes,
            "is_graph": self._bench.module is None,
            "answers": self._runtime.answers,
            "measures": [name for name, _ in self._measures()],
            "methods": sorted(run.methods() - _unfit(self._bench.module)),
            "labelled": self._runtime.answers == "classes",
            "has_words": isinstance(self._runtime.feeder, WordsFeeder | WordPieceFeeder)
            and _has_table(self._bench.module),
            "finish_seconds": self._finish_seconds(),
            "environment": environment.describe(device=self.job.device, threads=self.job.threads),
        }

    def _finish_seconds(self) -> float:
        """Reckon what measuring one version on the test split takes, from the parent's answers."""
        tested = min(self._test_split().count(), MAX_ROWS)
        return _FINISH_SECONDS + 4 * self._took_parent * tested / max(1, len(self._held))

    # --- making ----------------------------------------------------------------------------------

    def build(self, name: str, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a candidate's files; steps that an earlier one began with are not done again."""
        started = time.perf_counter()
        recipe = self._compression(name, steps)
        try:
            bench, done = self._begin(recipe)
            job = replace(self.job, out=self.work / "candidates" / name)
            shutil.rmtree(job.out, ignore_errors=True)
            job.files.mkdir(parents=True)
            bench.job, bench.recipe = job, recipe
            run.write_result(bench, done)
            folder = open_model(job.files)
            if bench.adapter is None:
                # Its files hold it now, and hundreds of candidates may wait for the end.
                bench.module = None
            self._benches[name], self._done[name] = bench, done
        finally:
            self._sweep()
        self._took[name] = time.perf_counter() - started
        return {"bytes": folder.weights_bytes}

    def _sweep(self) -> None:
        """Delete the working files that no kept state and no candidate stands on."""
        stands_on = {
            value
            for bench in (*self._prefixes.values(), *self._benches.values())
            for value in vars(bench).values()
            if isinstance(value, Path)
        }
        for node in (self.work / "nodes").glob("*"):
            if not any(file.is_relative_to(node) for file in stands_on):
                shutil.rmtree(node)

    def _begin(self, recipe: recipes.CompressRecipe) -> tuple[Bench, list[dict[str, Any]]]:
        """Do the steps from the longest beginning that is known; keep each state on the way."""
        keys = [
            json.dumps([step.model_dump(mode="json") for step in recipe.steps[: at + 1]])
            for at in range(len(recipe.steps))
        ]
        known = max((at + 1 for at, key in enumerate(keys) if key in self._prefixes), default=0)
        bench = self._fork(self._prefixes[keys[known - 1]] if known else self._bench)
        done = list(self._done[keys[known - 1]]) if known else []
        bench.recipe = recipe
        if not known:
            run.check(bench)
        for number in range(known, len(keys)):
            key = keys[number]
            done = [*done, run.apply_step(recipe.steps[number], bench, number)]
            # The step is done, and who wants it again takes what it left on the bench.
            shutil.rmtree(bench.job.checkpoints)
            bench.job.checkpoints.mkdir()
            self._prefixes[key], self._done[key] = self._fork(bench), done
        for key in keys:
            self._prefixes.move_to_end(key)
        while len(self._prefixes) > _KEPT_PREFIXES:
            key, _ = self._prefixes.popitem(last=False)
            del self._done[key]
        return bench, done

    def _fork(self, bench: Bench) -> Bench:
        """Copy what stands on the bench, so that two candidates can go on from it apart."""
        self._nodes += 1
        twin = copy.copy(bench)
        out = self.work / "nodes" / str(self._nodes)
        # Of its own too: a training goes on from what it finds among the checkpoints.
        twin.job = replace(self.job, out=out, checkpoints=out / "checkpoints")
        twin.folder.mkdir(parents=True)
        twin.job.checkpoints.mkdir()
        for name, value in vars(bench).items():
            if name != "parent" and isinstance(value, nn.Module):
                setattr(twin, name, copy.deepcopy(value))
            elif isinstance(value, list | dict):
                setattr(twin, name, copy.copy(value))
        return twin

    # --- measuring -------------------------------------------------------------------------------

    def losses(self, name: str, count: int) -> dict[str, Any]:
        """Tell what each of the first `count` rows loses, by each measure that the recipe asks for.

        Whole numbers are answers that turned, others distances; see `statistics.judge`.
        """
        count = min(count, len(self._held))
        runtime = self._load(name)
        answers = self._answers(runtime, self._held, count)
        if (np.isfinite(self._parent[:count]) & ~np.isfinite(answers)).any():
            raise Invalid("Some of its answers are not finite numbers.", code="not_finite")
        found = {
            measure: tell(answers, self._parent[:count], runtime)
            for measure, tell in self._measures()
        }
        return {
            "losses": {measure: losses.tolist() for measure, losses in found.items()},
            "whole": [name for name, losses in found.items() if losses.dtype.kind == "i"],
        }

    def latency(self, name: str) -> dict[str, Any]:
        """Time a candidate at batch 1, taking turns with its parent."""
        runtimes = {"this": self._load(name), "parent": self._runtime}
        one = take(self._held.rows, np.arange(1))
        feeds = {1: self._runtime.feeder.feeds(one, self._held.split)}
        median, *_ = evaluate.latency(
            runtimes, feeds, device=self.job.device, threads=self.job.threads
        )
        return {
            "latency_ms": median.value,
            "latency_bounds": median.details["bounds"],
            "parent_latency_ms": median.details["parent"]["value"],
        }

    def finish(self, name: str) -> dict[str, Any]:
        """Measure a candidate once on the test split, as any compression is, and write its card."""
        bench = self._benches[name]
        self._runtimes.clear()
        bench.started = time.perf_counter() - self._took[name]
        report = run.finish(bench, self._done[name])
        return {"report": asdict(report)}

    def confirm(self, name: str) -> dict[str, Any]:
        """Tell what each row of the test split loses: rows that were never looked at before."""
        if self._tested is None:
            split = self._test_split()
            held = self._hold(split, self._shuffled(split.count()))
            self._tested = held, self._answers(self._runtime, held)
        chosen = self._held, self._parent
        self._held, self._parent = self._tested
        try:
            return self.losses(name, len(self._held))
        finally:
            self._held, self._parent = chosen

    def drop(self, name: str) -> dict[str, Any]:
        """Forget a candidate that is not worth keeping."""
        self._runtimes.pop(name, None)
        self._benches.pop(name, None)
        self._done.pop(name, None)
        self._took.pop(name, None)
        shutil.rmtree(self.work / "candidates" / name, ignore_errors=True)
        self._sweep()
        return {}

    def _load(self, name: str) -> Runtime:
        if name not in self._runtimes:
            self._runtimes.clear()
            self._runtimes[name] = load_runtime(
                open_model(self.work / "candidates" / name / "files"),
                device=self.job.device,
                threads=self.job.threads,
                columns=self._bench.given.columns,
            )
        return self._runtimes[name]

    def _answers(self, runtime: Runtime, held: _Held, count: int | None = None) -> NDArray[Any]:
        rows = take(held.rows, np.arange(len(held) if count is None else count))
        return runtime.run_block(rows, held.split, _BATCH)

    def _measures(self) -> list[tuple[str, "_Measure"]]:
        """List what the recipe wants to be judged by; without a wish, what suits the model."""
        asked = self.search
        if self._runtime.answers == "classes":
            lost: list[tuple[str, _Measure]] = [("accuracy", self._lost_answers)]
            wrong: list[tuple[str, _Measure]] = [("mistakes", self._wrong_answers)]
            return lost + wrong if asked.min_accuracy is not None else lost
        found: list[tuple[str, _Measure]] = []
        if asked.probe:
            found.append(("probe", self._lost_by_probe))
        if asked.min_neighbour_overlap is not None:
            found.append(("neighbours", _lost_neighbours))
        if asked.min_cosine is not None or not found:
            found.append(("cosine", _lost_cosine))
        return found

    def _lost_answers(
        self, child: NDArray[Any], parent: NDArray[Any], _runtime: Runtime
    ) -> NDArray[Any]:
        actual = self._held.labels[: len(child)]
        right = [(scores.argmax(1) == actual).astype(np.int64) for scores in (parent, child)]
        return np.asarray(right[0] - right[1])

    def _wrong_answers(
        self, child: NDArray[Any], _parent: NDArray[Any], _runtime: Runtime
    ) -> NDArray[Any]:
        """Tell what is lost against somebody who is always right: the rows answered wrongly."""
        return np.asarray(child.argmax(1) != self._held.labels[: len(child)], dtype=np.int64)

    def _lost_by_probe(
        self, child: NDArray[Any], parent: NDArray[Any], runtime: Runtime
    ) -> NDArray[Any]:
        assert self._learned is not None
        held, actual = self._learned.held, self._held.labels[: len(child)]
        right = []
        for said, engine in ((parent, self._runtime), (child, runtime)):
            vectors = engine.run_block(held.rows, held.split, _BATCH)
            answers = fit_and_predict(vectors, held.labels, said, classes=self._learned.classes)
            right.append((answers == actual).astype(np.int64))
        return np.asarray(right[0] - right[1])

    # --- rows ------------------------------------------------------------------------------------

    def _compression(
        self, name: str | None, steps: Sequence[Mapping[str, Any]]
    ) -> recipes.CompressRecipe:
        """Write the recipe that would make one candidate, for who wants to make it again."""
        recipe = recipes.parse_recipe(
            {
                "kind": "compress",
                "schema": 1,
                "model": self.recipe.model,
                "dataset": self.recipe.dataset,
                "device": self.recipe.device,
                "variant": name,
                "steps": [dict(step) for step in steps],
                "train_split": self.search.train_split,
                "test_split": self.search.test_split,
                "seed": self.search.seed,
            }
        )
        assert isinstance(recipe, recipes.CompressRecipe)
        return recipe

    def _open(self) -> Bench:
        bench = open_bench(self.job, self._compression(None, [{"method": "export_onnx"}]))
        dataset = bench.dataset
        assert dataset is not None  # the recipe must name one
        self._check(bench)
        whole = dataset.split(self.search.train_split)
        dataset.split(self.search.test_split)
        learned, chosen = divide(whole.count(), self.search.validation_fraction, self.search.seed)
        self._chosen = chosen
        splits: dict[str, Split] = {
            **dataset.splits,
            self.search.train_split: SomeRows(whole, learned),
        }
        bench.dataset = replace(dataset, splits=splits)
        self._whole = whole
        return bench

    def _check(self, bench: Bench) -> None:
        """Refuse goals that this model cannot be judged by."""
        refuse_packed(bench)
        asked, classes = self.search, bench.parent.answers == "classes"
        vectors = asked.min_cosine is not None or asked.min_neighbour_overlap is not None
        if classes and (vectors or asked.probe):
            raise Invalid(
                "This model answers classes: say how much accuracy may be lost, not how alike "
                "vectors must stay.",
                code="unfit_goal",
            )
        answers = asked.max_accuracy_loss is not None or asked.min_accuracy is not None
        if not classes and answers and not asked.probe:
            raise Invalid(
                "This model answers vectors, which have no accuracy: ask for a cosine or an "
                "overlap of neighbours, or switch the probe on, which needs a labelled dataset.",
                code="unfit_goal",
            )
        dataset = bench.dataset
        assert dataset is not None
        if classes or asked.probe:
            for name in (asked.train_split, asked.test_split):
                check_columns(dataset.split(name), [self._label_column(bench)])

    def _label_column(self, bench: Bench) -> str:
        return bench.given.columns.get("label", self.search.label_column)

    def _hold_out(self) -> tuple[_Held, _Learned | None]:
        held = self._hold(self._whole, self._chosen[self._shuffled(len(self._chosen))])
        if not self.search.probe:
            return held, None
        dataset = self._bench.dataset
        assert dataset is not None
        learning = dataset.split(self.search.train_split)
        order = self._shuffled(learning.count())
        return held, _Learned(self._hold(learning, order), len(self._labels()))

    def _shuffled(self, count: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.search.seed, 0xC0DE)).permutation(count)

    def _labels(self) -> Labels:
        if self._runtime.labels:
            return Labels(self._runtime.labels)
        dataset: Dataset | None = self._bench.dataset
        assert dataset is not None
        return find_labels(dataset, self._whole, self._label_column(self._bench))

    def _hold(self, split: Split, wanted: NDArray[np.int64]) -> _Held:
        """Read rows into memory, in the order of `wanted`, leaving out those without a class."""
        bench, classes = self._bench, self._runtime.answers == "classes"
        labelled = classes or self.search.probe
        most = MAX_ROWS if classes else MAX_PROBED_ROWS if labelled else MAX_VECTOR_ROWS
        columns = list(self._runtime.feeder.columns)
        label = self._label_column(bench)
        check_columns(split, [*columns, *([label] if labelled else [])])
        labels = self._labels() if labelled else None
        asked = list(dict.fromkeys([*columns, *([label] if labelled else [])]))
        rows = _read(split, asked, np.sort(wanted[:most]))
        rows = take(rows, np.argsort(np.argsort(wanted[:most])))
        if labels is None:
            return _Held(split, rows, np.empty(0, dtype=np.int64))
        assert bench.dataset is not None
        numbers = read_classes(bench.dataset, split, label, labels).numbers(rows[label])
        known = np.flatnonzero(numbers >= 0)
        if not len(known):
            raise Invalid(
                "{file} has no row that can be used.", code="empty_split", file=split.file.name
            )
        inputs = {name: rows[name] for name in columns}
        return _Held(split, take(inputs, known), numbers[known])

    def _test_split(self) -> Split:
        dataset = self._bench.dataset
        assert dataset is not None
        return dataset.split(self.search.test_split)


def _unfit(module: nn.Module | None) -> frozenset[str]:
    """Name methods that this kind of module refuses, whatever else is asked of them."""
    return frozenset({"prune_structured"}) if isinstance(module, Program) else frozenset()


def _has_table(module: nn.Module | None) -> bool:
    """Tell whether a module of texts has a table of their words."""
    modules = () if module is None else module.modules()
    return any(isinstance(one, nn.Embedding) for one in modules)


_Measure = Callable[[NDArray[Any], NDArray[Any], Runtime], NDArray[Any]]


def _lost_cosine(child: NDArray[Any], parent: NDArray[Any], _runtime: Runtime) -> NDArray[Any]:
    return np.asarray(1 - cosines(child, parent))


def _lost_neighbours(child: NDArray[Any], parent: NDArray[Any], _runtime: Runtime) -> NDArray[Any]:
    return np.asarray(1 - neighbour_overlap(child, parent, _NEIGHBOURS))


def _read(split: Split, columns: Sequence[str], wanted: NDArray[np.int64]) -> Rows:
    blocks = []
    size = 0
    for block in SomeRows(split, wanted).batches(columns, 256):
        blocks.append(block)
        size += sum(value.nbytes for value in block.values() if isinstance(value, np.ndarray))
        if size > _MAX_HELD_BYTES:
            raise Invalid(
                "The rows of {file} are too large to choose by; hold a smaller part of them out.",
                code="too_large",
                file=split.file.name,
            )
    if not blocks:
        raise Invalid(
            "{file} has no row that can be used.", code="empty_split", file=split.file.name
        )
    return join(blocks)


# --- the process ----------------------------------------------------------------------------------


def answer(trials: Trials, request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a request asks; a refusal is an answer too."""
    asked = dict(request)
    do = getattr(trials, str(asked.pop("do")))
    started = time.monotonic()
    try:
        return {"ok": do(**asked), "seconds": time.monotonic() - started}
    except RegistryError as error:
        return {"refused": {"code": error.reason, "said": pack(error)}}
    except MemoryError:
        said = Text("The job needs more memory than it may use.")
        return {"refused": {"code": "out_of_memory", "said": pack(said)}}
    except Exception as error:  # noqa: BLE001 - one candidate; the traceback goes to the job's log
        traceback.print_exc()
        told = Text("{error}: {problem}", error=type(error).__name__, problem=str(error)[:500])
        return {"refused": {"code": "internal", "said": pack(told)}}


class _Answers(Events):
    """Events, and answers among them."""

    def answer(self, said: Mapping[str, Any]) -> None:
        self._say(event="answer", **said)


def main(path: Path, work: Path) -> None:
    events = _Answers.on_stdout()
    job = read_job(path, events, Interrupt())
    assert isinstance(job.recipe, recipes.SearchRecipe)
    prepare(device=job.device, threads=job.threads)
    try:
        trials = Trials(job, job.recipe, work)
    except RegistryError as error:
        events.answer({"refused": {"code": error.reason, "said": pack(error)}})
        return
    events.answer({"ok": trials.about()})
    for line in sys.stdin:
        events.answer(answer(trials, json.loads(line)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
