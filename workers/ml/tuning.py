"""Tuning: a version served with each setting in turn, and the one that serves it best here.

All settings are measured once in each round, in an order of its own, so that what else this machine
does meanwhile hits all of them alike. Two settings are compared round by round, and of those that
cannot be told apart the one that takes the fewest threads and the smallest batch is best.
"""

import json
import math
import random
import shutil
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from registry import recipes
from registry.errors import Invalid, RegistryError, Text, pack
from workers.ml import environment
from workers.ml.formats import open_model
from workers.ml.job import Job
from workers.ml.report import Report
from workers.ml.served import ServedModel, Silent, end, said_by
from workers.ml.statistics import bootstrap_mean
from workers.ml.workload import Batch, Workload

ONNX, TORCH, COMPILED = "onnxruntime", "torch", "aotinductor"
_PREPARE = (sys.executable, "-P", "-s", "-m", "workers.serving.prepare")
_PREPARE_SECONDS = 900.0
# In one round a setting is run for so long, and at least and at most so often.
_SLICE_SECONDS = 0.05
_LEAST_RUNS, _MOST_RUNS = 4, 60
_QUICK = 25
# What takes so long by itself is run once a round.
_SLOW_SECONDS = 0.25
# So few rounds tell no two settings apart that differ by less than a tenth.
_FEW_ROUNDS, _ROUGHLY = 3, 0.10
# What is hardly better is not worth another thread, or a longer wait.
_HARDLY = 0.02
# What the processes of a job hold together, and each beside its weights.
_HELD_BYTES = 1 << 30
_PROCESS_BYTES = 200 * 1024 * 1024
_KEPT_INPUT_BYTES = 4 * 1024 * 1024
_WAITED_BATCHES = 2


class Setting(NamedTuple):
    """One way to serve a version."""

    runtime: str
    threads: int
    batch_size: int


@dataclass
class Tried:
    """What was measured of one setting: seconds for a batch, and why there is no more of it."""

    setting: Setting
    # What three of four turns take longer than, by the number of the round: what else the machine
    # does only ever adds, so that the quick turns tell most of the model.
    rounds: dict[int, float] = field(default_factory=dict)
    samples: list[float] = field(default_factory=list)
    reason: Text | None = None

    @property
    def has_lasted(self) -> bool:
        """Whether it answered in every round: what crashed in one is nothing to serve by."""
        return bool(self.rounds) and self.reason is None

    @property
    def seconds(self) -> float:
        return float(np.median([*self.rounds.values()]))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.samples, 95))

    @property
    def wait_ms(self) -> float:
        """Say how long a caller of a busy model waits: for one batch, and then for its own."""
        return 1000 * _WAITED_BATCHES * self.p95

    @property
    def rate(self) -> float:
        return self.setting.batch_size / self.seconds

    def said(self) -> dict[str, Any]:
        """Describe it for the report."""
        given = {**self.setting._asdict()}
        if self.reason is not None:
            given |= {"reason": self.reason.detail, "said": pack(self.reason)}
        if not self.rounds:
            return given
        seconds = [*self.rounds.values()]
        return given | {
            "rows_per_second": _short(self.rate),
            "low": _short(self.setting.batch_size / max(seconds)),
            "high": _short(self.setting.batch_size / min(seconds)),
            "batch_ms": _short(1000 * self.seconds),
            "p95_ms": _short(1000 * self.p95),
            "wait_ms": _short(self.wait_ms),
            "rounds": len(seconds),
            "runs": len(self.samples),
        }


@dataclass(frozen=True)
class Choice:
    """The best setting, those as good, and whether it keeps the limit."""

    best: Tried
    alike: frozenset[Setting]
    within_limit: bool


def run(job: Job, recipe: recipes.TuneRecipe) -> Report:
    """Tune a version; nothing of it changes, and no file is made.

    Raises:
        Invalid: no runtime can serve it, or no setting was measured.

    """
    (step,) = recipe.steps
    deadline = time.monotonic() + 60 * step.budget_minutes
    work = job.out / "work"
    work.mkdir()
    notes: list[Text] = []
    programs = _programs(job, step, work, deadline, notes)
    bench = Bench(job, step, programs, deadline, notes)
    try:
        bench.measure()
    finally:
        bench.close()
        shutil.rmtree(work, ignore_errors=True)
    tried = [one for one in bench.tried.values() if one.has_lasted]
    choice = choose(tried, step.objective, step.max_wait_ms) if tried else None
    report = _report(job, step, bench, choice)
    if choice is None:
        # What was tried can be read all the same.
        report.write(job.out)
        raise Invalid(
            "No setting of {count} could be measured: {problem}",
            code="nothing_measured",
            count=len(bench.tried),
            problem=next((one.reason for one in bench.tried.values() if one.reason), ""),
        )
    return report


def _report(job: Job, step: recipes.Tune, bench: "Bench", choice: Choice | None) -> Report:
    device_class = _device_class(job)
    ordered = sorted(bench.tried.values(), key=lambda one: one.setting)
    best = choice.best.setting if choice else None
    summary: dict[str, Any] = {
        "device": job.device,
        "device_class": device_class,
        "objective": step.objective,
        "max_wait_ms": step.max_wait_ms,
        "batchable": bench.batchable,
        "workload": bench.described_workload(),
        "rounds": bench.rounds,
        "tried": [
            {
                **one.said(),
                "chosen": one.setting == best,
                "alike": choice is not None and one.setting in choice.alike,
            }
            for one in ordered
        ],
    }
    message = f"{job.input('model').title} could not be tuned"
    if choice is not None and best is not None:
        summary["chosen"] = {
            "runtime": best.runtime,
            "threads": best.threads,
            "max_batch_size": best.batch_size,
            "rows_per_second": _short(choice.best.rate),
            "batch_ms": _short(1000 * choice.best.seconds),
            "wait_ms": _short(choice.best.wait_ms),
            "within_limit": choice.within_limit,
        }
        message = (
            f"{job.input('model').title} tuned: {best.runtime}, threads: {best.threads}, rows at "
            f"once: {best.batch_size}"
        )
        bench.notes += _notes_on(choice)
    summary["warnings"] = [{"detail": one.detail, "said": pack(one)} for one in bench.notes]
    described = environment.describe(device=job.device, threads=job.threads)
    return Report("tune", [], described, message, summary)


def _notes_on(choice: Choice) -> Iterator[Text]:
    others = len(choice.alike) - 1
    if others:
        yield Text(
            "{count} other setting(s) cannot be told apart from the chosen one; it takes the "
            "fewest threads, then the smallest batch.",
            count=others,
        )
    if not choice.within_limit:
        yield Text("No setting keeps the limit; the chosen one comes nearest to it.")


def _device_class(job: Job) -> str:
    if job.device != "cuda":
        return environment.class_of_cpu()
    import torch  # noqa: PLC0415 - only for its name of the device

    return torch.cuda.get_device_name()


# --- What can run it ------------------------------------------------------------------------------


def _programs(
    job: Job, step: recipes.Tune, work: Path, deadline: float, notes: list[Text]
) -> dict[str, Path | None]:
    """Map the runtimes that can serve the version to the file that they are given beside it.

    Raises:
        Invalid: none can.

    """
    source = job.input("model").path
    opened = open_model(source)
    found: dict[str, Path | None] = {}
    why: list[Text] = []
    plain = opened.is_onnx and opened.weights.is_relative_to(source)
    for runtime in dict.fromkeys(step.runtimes):
        if runtime == ONNX and plain:
            found[ONNX] = opened.weights
        elif runtime != ONNX and opened.is_onnx:
            why.append(Text("The version is an ONNX file, which torch does not run."))
        elif runtime == TORCH:
            found[TORCH] = None
        elif runtime == COMPILED and job.device == "cuda":
            notes.append(Text("AOTInductor compiles for processors here, and not for GPUs."))
        elif made := _made(runtime, source, work, deadline, notes):
            found[runtime] = made
    if not found:
        raise Invalid(
            "None of the runtimes that were asked for can serve {version}: {problem}",
            code="cannot_be_served",
            version=job.input("model").ref,
            problem=[*notes, *why][-1],
        )
    return found


def _made(
    runtime: str, source: Path, work: Path, deadline: float, notes: list[Text]
) -> Path | None:
    """Have the file made that a serving process would make."""
    kind, name = ("onnx", "model.onnx") if runtime == ONNX else (COMPILED, "model.pt2")
    left = max(10.0, min(_PREPARE_SECONDS, deadline - time.monotonic()))
    reason = "it took too long"
    (work / "report.json").unlink(missing_ok=True)
    process = subprocess.Popen(  # noqa: S603 - no shell, and a program of our own
        [*_PREPARE, str(source), str(work), kind],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        process.wait(left)
        said = json.loads((work / "report.json").read_text(encoding="utf-8"))
        if said.get("made") is True and (work / name).is_file():
            return work / name
        reason = str(said.get("reason") or reason)[:300]
    except (subprocess.TimeoutExpired, OSError, ValueError, AttributeError):
        pass  # the note says that there is none
    finally:
        end(process)
    if runtime == ONNX:
        notes.append(Text("It has no export to ONNX: {reason}", reason=reason))
    else:
        notes.append(Text("AOTInductor could not compile it: {reason}", reason=reason))
    return None


def threads_to_try(asked: Sequence[int], cores: int, notes: list[Text]) -> list[int]:
    """Choose how many threads to try; more than there are cores are left out.

    Raises:
        Invalid: nothing is left.

    """
    wanted = sorted(set(asked)) or [2**power for power in range(cores.bit_length())]
    fitting = [count for count in wanted if count <= cores]
    if not fitting:
        raise Invalid(
            "This machine has {cores} core(s); try no more threads than that.",
            code="too_many_threads",
            cores=cores,
        )
    if len(fitting) < len(wanted):
        notes.append(
            Text("This machine has {cores} core(s); more threads were not tried.", cores=cores)
        )
    return fitting


# --- Measuring ------------------------------------------------------------------------------------

_Process = tuple[str, int]


class Bench:
    """The processes of the settings, and what was measured of each."""

    def __init__(
        self,
        job: Job,
        step: recipes.Tune,
        programs: dict[str, Path | None],
        deadline: float,
        notes: list[Text],
    ) -> None:
        self.job, self.step, self.programs, self.deadline = job, step, programs, deadline
        self.notes = notes
        self.batchable = True
        self.rounds = 0
        sizes = sorted({*step.batch_sizes, *([1] if step.objective == "latency" else [])})
        threads = threads_to_try(step.threads, environment.usable_cores(), notes)
        self.tried = {
            setting: Tried(setting)
            for setting in (Setting(*each) for each in _product(programs, threads, sizes))
        }
        self._drawn = random.Random(step.seed)  # noqa: S311 - an order that can be repeated
        self._models: OrderedDict[_Process, ServedModel] = OrderedDict()
        self._workload: Workload | None = None
        self._batches: dict[int, list[Batch]] = {}
        # How many tokens the texts are that were run together, by how many those were.
        self._tokens: dict[int, list[int]] = {}
        source = job.input("model").path
        weights = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        self._most_alive = max(1, _HELD_BYTES // (_PROCESS_BYTES + 2 * weights))

    def measure(self) -> None:
        """Measure all settings, round by round, until there were enough or the time is over."""
        for number in range(self.step.repetitions):
            if not self._round(number):
                self.notes.append(
                    Text(
                        "The time was over after {rounds} of {wanted} rounds.",
                        rounds=self.rounds,
                        wanted=self.step.repetitions,
                    )
                )
                break
            self.rounds = number + 1
        for one in self.tried.values():
            if not one.rounds and one.reason is None:
                one.reason = Text("There was no time left to measure it.")

    def close(self) -> None:
        for model in self._models.values():
            model.close()

    def described_workload(self) -> dict[str, Any]:
        """Say what the model was given, for the report."""
        if self._workload is None:
            return {}
        said = self._workload.said()
        tokens = [count for counts in self._tokens.values() for count in counts]
        if tokens:
            said["tokens"] = {
                "least": min(tokens),
                "mean": _short(sum(tokens) / len(tokens)),
                "most": max(tokens),
            }
        return said

    def _round(self, number: int) -> bool:
        processes = sorted({one[:2] for one in self._open()})
        self._drawn.shuffle(processes)
        for process in processes:
            sizes = [one for one in self._open() if one[:2] == process]
            self._drawn.shuffle(sizes)
            for setting in sizes:
                self.job.interrupt.check()
                if time.monotonic() > self.deadline:
                    return False
                if self.tried[setting].reason is None:
                    self._try(setting, number)
                self._tell()
        return True

    def _open(self) -> list[Setting]:
        return [setting for setting, one in self.tried.items() if one.reason is None]

    def _tell(self) -> None:
        total = len(self.tried) * self.step.repetitions
        done = sum(
            self.step.repetitions if one.reason else len(one.rounds) for one in self.tried.values()
        )
        self.job.events.progress(done=done, total=total, unit="settings", step="tune")

    def _try(self, setting: Setting, number: int) -> None:
        one = self.tried[setting]
        try:
            model = self._model(setting)
            if one.reason is not None:
                return  # loading it has shown that it cannot be
            took = self._time(model, setting.batch_size)
        except Silent as error:
            one.reason = said_by(error)
            self._give_up_larger(setting)
        except RegistryError as error:
            one.reason = said_by(error)
        else:
            one.rounds[number] = float(np.percentile([np.mean(turn) for turn in took], _QUICK))
            one.samples += [seconds for turn in took for seconds in turn]

    def _give_up_larger(self, setting: Setting) -> None:
        """Leave out larger batches than one that took too long, with as many threads."""
        for other in self._open():
            if other[:2] == setting[:2] and other.batch_size > setting.batch_size:
                self.tried[other].reason = Text("A smaller batch did not answer in time.")

    def _model(self, setting: Setting) -> ServedModel:
        """Give the process of a setting, started where there is none.

        Raises:
            RegistryError: it cannot be had; then none of its settings can.

        """
        process = setting[:2]
        model = self._models.get(process)
        if model is not None and not model.is_closed:
            self._models.move_to_end(process)
            return model
        self._models.pop(process, None)
        while len(self._models) >= self._most_alive:
            _, oldest = self._models.popitem(last=False)
            oldest.close()
        model = ServedModel(
            self.job.input("model").path,
            onnx=self.programs[setting.runtime] if setting.runtime == ONNX else None,
            package=self.programs[setting.runtime] if setting.runtime == COMPILED else None,
            threads=setting.threads,
            batch_size=max(self.step.batch_sizes),
            gpu=self.job.device == "cuda",
            patience=self.step.patience_seconds,
        )
        try:
            model.open()
        except RegistryError as error:
            model.close()
            for other in self._open():
                if other[:2] == process:
                    self.tried[other].reason = said_by(error)
            raise
        self._models[process] = model
        if not model.batchable:
            self._keep_apart(process)
        return model

    def _keep_apart(self, process: _Process) -> None:
        """Leave out batches of a model whose requests are never joined."""
        self.batchable = False
        alone = Setting(*process, 1)
        self.tried.setdefault(alone, Tried(alone))
        for other in self._open():
            if other[:2] == process and other.batch_size > 1:
                self.tried[other].reason = Text(
                    "Requests to this model are never joined: its first axis is no free one, or a "
                    "row's answer depends on the others."
                )

    def _made(self, model: ServedModel, rows: int) -> list[Batch]:
        known = self._batches.get(rows)
        if known is not None:
            return known
        if self._workload is None:
            step = self.step
            self._workload = Workload(
                model.inputs,
                model.fed_by,
                model.column,
                words=step.text_words,
                free=step.free_size,
                seed=step.seed,
            )
        made = self._workload.turn(rows)
        if sum(batch.nbytes for batch in made) <= _KEPT_INPUT_BYTES:
            self._batches[rows] = made
        return made

    def _time(self, model: ServedModel, rows: int) -> list[list[float]]:
        """Run some batches in turn for a moment; the first turn only warms the caches.

        A turn has each length of text equally often, so that turns can be compared, and so can
        settings of more and of fewer rows.
        """
        batches = self._made(model, rows)
        first = [model.run(batch) for batch in batches]
        self._tokens.setdefault(rows, [count for ran in first for count in ran.tokens])
        least = 1 if max(ran.seconds for ran in first) > _SLOW_SECONDS else _LEAST_RUNS
        spent = 0.0
        took: list[list[float]] = []
        while len(took) < least or (spent < _SLICE_SECONDS and len(took) < _MOST_RUNS):
            took.append([model.run(batch).seconds for batch in batches])
            spent += sum(took[-1])
        return took


def _product(
    graphs: dict[str, Path | None], threads: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[str, int, int]]:
    for runtime in graphs:
        for count in threads:
            for size in sizes:
                yield runtime, count, size


# --- Choosing -------------------------------------------------------------------------------------


def choose(
    tried: Sequence[Tried], objective: Literal["throughput", "latency"], max_wait_ms: float | None
) -> Choice:
    """Choose among what was measured; of settings as good the one that takes least.

    For the quickest answer, runtime and threads are chosen by one row alone; the batch, which only
    matters under load, by what comes out of it then.
    """
    if objective == "latency":
        least = min(one.setting.batch_size for one in tried)
        quick = _best([one for one in tried if one.setting.batch_size == least])
        tried = [one for one in tried if one.setting[:2] == quick.best.setting[:2]]
        chosen = _within(tried, max_wait_ms)
        return Choice(chosen.best, chosen.alike | quick.alike, chosen.within_limit)
    return _within(tried, max_wait_ms)


def _within(tried: Sequence[Tried], max_wait_ms: float | None) -> Choice:
    kept = [one for one in tried if max_wait_ms is None or one.wait_ms <= max_wait_ms]
    if kept:
        return _best(kept)
    nearest = min(tried, key=lambda one: one.wait_ms)
    return Choice(nearest, frozenset([nearest.setting]), within_limit=False)


def _best(tried: Sequence[Tried]) -> Choice:
    fastest = max(tried, key=lambda one: one.rate)
    alike = [one for one in tried if one is fastest or not is_slower(one, fastest)]
    runtimes = list(dict.fromkeys(one.setting.runtime for one in tried))
    best = min(
        alike,
        key=lambda one: (
            one.setting.threads,
            one.setting.batch_size,
            runtimes.index(one.setting.runtime),
        ),
    )
    return Choice(best, frozenset(one.setting for one in alike), within_limit=True)


def is_slower(one: Tried, other: Tried) -> bool:
    """Say whether a setting is slower than another by more than chance, and worth telling."""
    common = sorted(one.rounds.keys() & other.rounds.keys())
    if len(common) < _FEW_ROUNDS:
        return one.rate < (1 - _ROUGHLY) * other.rate
    ours = [one.setting.batch_size / one.rounds[number] for number in common]
    theirs = [other.setting.batch_size / other.rounds[number] for number in common]
    differences = np.log(ours) - np.log(theirs)
    _, high = bootstrap_mean(differences)
    return bool(high < math.log1p(-_HARDLY))


def _short(value: float) -> float:
    """Keep four digits, which is more than a measurement is worth."""
    return float(f"{value:.4g}")
