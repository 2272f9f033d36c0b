"""A search: candidates are tried on held-out rows, and those that nothing beats become versions.

Candidates are chosen on validation rows alone, by a confidence bound of what they lose row by row
against their parent; what is kept is measured once on the test split. See `ladder` for what is
tried, `trials` for how a candidate is made and measured, `statistics` for how it is judged.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from registry import recipes
from registry.errors import Invalid, Text, pack
from workers.ml.compress import ladder
from workers.ml.compress.child import Child, NotDone, Workshop
from workers.ml.compress.ladder import Rung, Steps
from workers.ml.job import Job
from workers.ml.report import Metric, Report, Variant
from workers.ml.statistics import Judgement, judge

_SLICE_ROWS = 128
_SURE = 0.999
_LEAST_SECONDS = 60.0
_FINISH_SECONDS = 900.0
_REPEATS = 12
_SMALLER = 0.95
"""What is not smaller than this share of its parent is no smaller version."""
_FAMILY_TRIALS = 10
_ALIKE = 1.01
"""Sizes that differ by no more count as equal."""
_DRIFT = 0.05
"""How much a machine's pace changes between two candidates, for all that is done against it."""
_LONGEST_NAME = 40


@dataclass
class Candidate:
    """One candidate, and what is known of it."""

    name: str
    steps: Steps
    bytes: int | None = None
    latency_ms: float | None = None
    latency_bounds: tuple[float, float] | None = None
    parent_latency_ms: float | None = None
    judged: dict[str, Judgement] = field(default_factory=dict)
    verdict: str = "undecided"
    code: str = ""
    why: Text = field(default_factory=lambda: Text(""))
    seconds: float = 0.0
    built_in: int | None = None
    """The generation of the workshop that has its files."""

    @property
    def loss(self) -> float:
        """What it loses by the first measure: answers, or distance to the parent."""
        first = next(iter(self.judged.values()), None)
        return first.value if first else math.inf

    @property
    def pace(self) -> tuple[float, float]:
        """Tell between what it takes of its parent's time; the two were timed in turns.

        Nothing where it was not timed.
        """
        if not self.latency_bounds or not self.parent_latency_ms:
            return 0.0, math.inf
        low, high = self.latency_bounds
        parent = self.parent_latency_ms
        return (1 - _DRIFT) * low / parent, (1 + _DRIFT) * high / parent

    def end(self, verdict: str, code: str, why: Text) -> None:
        self.verdict, self.code, self.why = verdict, code, why

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "steps": [dict(step) for step in self.steps],
            "bytes": self.bytes,
            "latency_ms": self.latency_ms,
            "latency_bounds": self.latency_bounds,
            "parent_latency_ms": self.parent_latency_ms,
            "quality": {name: asdict(judged) for name, judged in self.judged.items()},
            "verdict": self.verdict,
            "code": self.code,
            "reason": self.why.detail,
            "said": pack(self.why),
            "seconds": round(self.seconds, 2),
        }


def run(job: Job, recipe: recipes.SearchRecipe) -> Report:
    """Search within the budget, and make versions of what is worth having.

    Raises:
        Invalid: nothing met the goal (the report is written all the same), or the goal does not
            fit the model or the dataset.

    """
    workshop = Child(job, job.out / "work")
    try:
        return Search(job, recipe, workshop).run()
    except NotDone as refused:
        raise Invalid(refused.why.template, code=refused.code, **refused.why.values) from None
    finally:
        workshop.stop()
        shutil.rmtree(job.out / "work", ignore_errors=True)


class Search:
    """One search, from the first candidate to the report."""

    def __init__(self, job: Job, recipe: recipes.SearchRecipe, workshop: Workshop) -> None:
        (self.goal,) = recipe.steps
        self.job = job
        self.recipe = recipe
        self.workshop = workshop
        self.tried: list[Candidate] = []
        self.about: dict[str, Any] = {}
        self._out_of_time = False
        self._finish_seconds = 0.0
        """What measuring one version at the end is thought to take, and then what it took."""
        self._deadline = time.monotonic() + self.goal.budget_minutes * 60

    def run(self) -> Report:
        self.about = self._start()
        self._finish_seconds = float(self.about["finish_seconds"])
        self.job.events.log(
            Text(
                "Choosing on {rows} rows held out of {split}, by {measures}.",
                rows=self.about["rows"],
                split=self.goal.train_split,
                measures=", ".join(self.about["measures"]),
            )
        )
        for candidate in self._candidates():
            self._try(candidate)
            self._tell(candidate)
        kept = self._choose()
        if not kept:
            return self._give_up()
        return self._finish(kept)

    def _start(self) -> dict[str, Any]:
        limit = max(_LEAST_SECONDS, self._left() / 2)
        try:
            return self.workshop.start(limit=limit)
        except NotDone as refused:
            if refused.code != "time_limit":
                raise
            why = Text(
                "The model did not answer for the rows to choose by within {limit} seconds; give "
                "the search more minutes, or hold a smaller part of the rows out.",
                limit=round(limit),
            )
            raise NotDone("time_limit", why) from None

    # --- candidates ------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Candidate]:
        """Give what to try next, until there is nothing left, or no time."""
        methods = self.about["methods"]
        kind = {name: bool(self.about[name]) for name in ("is_graph", "labelled")}
        rungs = list(ladder.rungs(methods, **kind))
        families = ladder.families(methods, **kind, has_words=bool(self.about["has_words"]))
        planned = len(rungs) + _FAMILY_TRIALS * len(families)
        total = min(self.goal.most_candidates, planned)
        for candidate in self._in_order(rungs, families, planned):
            done = len(self.tried)
            self._out_of_time = self._left_to_try() < min(5.0, 3.0 * self.goal.budget_minutes)
            if done >= self.goal.most_candidates or self._out_of_time:
                return
            self.job.events.progress(
                done=min(done, total - 1), total=total, unit="candidates", step="search"
            )
            self.tried.append(candidate)
            yield candidate

    def _in_order(
        self, rungs: list[Rung], families: list[ladder.Family], planned: int
    ) -> Iterator[Candidate]:
        spared: set[str] = set()
        for rung in rungs:
            met = {tried.name for tried in self.tried if tried.verdict == "met"}
            lost = {tried.name for tried in self.tried if tried.code == "lost_too_much"}
            if rung.unless in met | spared:
                spared.add(rung.name)
            elif rung.like not in lost:
                yield Candidate(rung.name, rung.steps)
        if families:
            yield from self._turn_dials(families, planned - len(rungs))

    def _turn_dials(self, families: list[ladder.Family], most: int) -> Iterator[Candidate]:
        """Let an optimiser (a tree-structured Parzen estimator) turn what has a dial."""
        import optuna  # noqa: PLC0415 - takes a second, and only families need it

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.TPESampler(
            seed=self.goal.seed, n_startup_trials=2 * len(families)
        )
        study = optuna.create_study(sampler=sampler)
        by_name = {family.name: family for family in families}
        for family in families:
            middle = {
                f"{family.name}/{place}": type(low)((low + high) / 2)
                for place, (low, high) in family.dials.items()
            }
            study.enqueue_trial({"family": family.name, **middle})
        known: dict[str, float] = {}
        repeats = 0
        while len(known) < most and repeats < _REPEATS:
            trial = study.ask()
            name = trial.suggest_categorical("family", list(by_name))
            rung = by_name[name].at(_settings(trial, by_name[name]))
            if rung.name in known:
                repeats += 1
            else:
                candidate = Candidate(rung.name[:_LONGEST_NAME], rung.steps)
                yield candidate
                known[rung.name] = self._price(candidate)
            study.tell(trial, known[rung.name])

    def _price(self, candidate: Candidate) -> float:
        """Put a number on a candidate for the optimiser: what it costs, beyond that what it lacks.

        Whatever meets the goal is below one; whatever does not is above, by how far it is away.
        """
        if candidate.verdict == "met":
            return min(0.999, self._cost(candidate) / self._parent_cost(candidate))
        if not candidate.judged:
            return 3.0
        lacks = [_lacks(judged) for judged in candidate.judged.values()]
        return 1.0 + min(1.5, max(0.0, *lacks))

    def _cost(self, candidate: Candidate) -> float:
        """Give what the goal makes as small as it can."""
        if self.goal.goal == "fastest":
            return candidate.latency_ms or math.inf
        return float(candidate.bytes or math.inf)

    def _parent_cost(self, candidate: Candidate) -> float:
        if self.goal.goal == "fastest":
            return candidate.parent_latency_ms or math.inf
        return float(self.about["parent_bytes"])

    def _left(self) -> float:
        return self._deadline - time.monotonic()

    def _left_to_try(self) -> float:
        """Give the seconds left for candidates: measuring what is kept has its own, up to half."""
        met = sum(candidate.verdict == "met" for candidate in self.tried)
        kept = min(self.goal.most_variants, max(1, met))
        reserved = min(self.goal.budget_minutes * 60 / 2, kept * self._finish_seconds)
        return self._left() - reserved

    # --- one candidate ---------------------------------------------------------------------------

    def _try(self, candidate: Candidate) -> None:
        started = time.monotonic()
        left = self._left_to_try()
        limit = min(max(1.0, left), max(_LEAST_SECONDS, left / 2))
        until = started + limit

        def ask(do: str, **asked: Any) -> dict[str, Any]:
            return self.workshop.ask(
                do, limit=max(1.0, until - time.monotonic()), name=candidate.name, **asked
            )

        try:
            self._measure(candidate, ask)
        except NotDone as refused:
            if refused.code == "time_limit" and self._left_to_try() <= 1.0:
                why = Text("The time of the search was over before it was done.")
                refused = NotDone("out_of_time", why)
            candidate.end("error", refused.code, refused.why)
        candidate.seconds = time.monotonic() - started
        if candidate.verdict in {"failed", "error"}:
            self._drop(candidate)

    def _drop(self, candidate: Candidate) -> None:
        if candidate.built_in == self.workshop.generation:
            try:
                self.workshop.ask("drop", limit=_LEAST_SECONDS, name=candidate.name)
            except NotDone as refused:
                self.job.events.log(
                    Text("{candidate}: {why}", candidate=candidate.name, why=refused.why)
                )

    def _measure(self, candidate: Candidate, ask: Callable[..., dict[str, Any]]) -> None:
        """Build it and look at more and more of it, as long as it may still be good enough."""
        built = ask("build", steps=[dict(step) for step in candidate.steps])
        candidate.built_in = self.workshop.generation
        candidate.bytes = int(built["bytes"])
        if self._is_too_large(candidate):
            return
        rows = int(self.about["rows"])
        if rows > 2 * _SLICE_ROWS:
            self._judge(candidate, ask("losses", count=_SLICE_ROWS), confidence=_SURE)
            if self._failed_measure(candidate):
                return
        self._judge(candidate, ask("losses", count=rows), confidence=0.95)
        if self._failed_measure(candidate):
            return
        timed = ask("latency")
        candidate.latency_ms = float(timed["latency_ms"])
        candidate.parent_latency_ms = float(timed["parent_latency_ms"])
        low, high = timed["latency_bounds"]
        candidate.latency_bounds = float(low), float(high)
        if self._is_too_slow(candidate):
            return
        open_ = [
            (name, judged)
            for name, judged in candidate.judged.items()
            if self._limit(name) is not None and judged.verdict == "undecided"
        ]
        if open_:
            name, judged = open_[0]
            candidate.end("undecided", "too_few_rows", _undecided(name, judged))
        else:
            candidate.end("met", "met", Text("It met the goal."))

    def _judge(self, candidate: Candidate, said: Mapping[str, Any], *, confidence: float) -> None:
        for name, losses in said["losses"].items():
            kind = np.int64 if name in said["whole"] else np.float64
            limit = self._limit(name)
            margin = math.inf if limit is None else limit
            judged = judge(np.array(losses, dtype=kind), min(margin, 2.0), confidence=confidence)
            candidate.judged[name] = judged

    def _limit(self, measure: str) -> float | None:
        """Give the most that may be lost by a measure; None where nobody asked."""
        goal = self.goal
        if measure in {"accuracy", "probe"}:
            return goal.max_accuracy_loss
        if measure == "mistakes":
            return None if goal.min_accuracy is None else 1 - goal.min_accuracy
        least = goal.min_cosine if measure == "cosine" else goal.min_neighbour_overlap
        return None if least is None else 1 - least

    def _is_too_large(self, candidate: Candidate) -> bool:
        size, parent = candidate.bytes or 0, int(self.about["parent_bytes"])
        if self.goal.max_bytes is not None and size > self.goal.max_bytes:
            why = Text(
                "It has {size} bytes, more than {limit}.", size=size, limit=self.goal.max_bytes
            )
            candidate.end("failed", "too_large", why)
        elif self.goal.goal == "smallest" and size > parent * _SMALLER:
            why = Text(
                "Its {size} bytes save next to nothing: its parent has {parent}.",
                size=size,
                parent=parent,
            )
            candidate.end("failed", "not_smaller", why)
        return candidate.verdict == "failed"

    def _is_too_slow(self, candidate: Candidate) -> bool:
        limit = self.goal.max_latency_ms
        took, parent = candidate.latency_ms or math.inf, candidate.parent_latency_ms or math.inf
        if limit is not None and took > limit:
            why = Text("One row takes {took} ms, more than {limit}.", took=took, limit=limit)
            candidate.end("failed", "too_slow", why)
        elif self.goal.goal == "fastest" and took >= parent:
            why = Text(
                "One row takes {took} ms, no less than its parent's {parent}.",
                took=took,
                parent=parent,
            )
            candidate.end("failed", "not_faster", why)
        return candidate.verdict == "failed"

    def _failed_measure(self, candidate: Candidate) -> bool:
        for name, judged in candidate.judged.items():
            if self._limit(name) is not None and judged.verdict == "failed":
                candidate.end("failed", "lost_too_much", _lost(name, judged))
                return True
        return False

    def _tell(self, candidate: Candidate) -> None:
        measure, judged = next(iter(candidate.judged.items()), ("", None))
        self.job.events.candidate(
            candidate.why,
            name=candidate.name,
            bytes=candidate.bytes,
            latency_ms=candidate.latency_ms,
            measure=measure,
            loss=judged.value if judged else None,
            low=judged.low if judged else None,
            high=judged.high if judged else None,
            limit=self._limit(measure) if measure else None,
            n=judged.n if judged else None,
            verdict=candidate.verdict,
        )

    # --- the choice ------------------------------------------------------------------------------

    def _choose(self) -> list[Candidate]:
        """Keep what nothing else beats, the recommended first; say of the rest why not.

        Size, latency and loss count alike: what is beaten is beaten in all three. Of what is not,
        the goal's best comes first, then the fastest, then what loses least.
        """
        met = [candidate for candidate in self.tried if candidate.verdict == "met"]
        order = sorted(met, key=self._rank)
        front = [one for one in order if not any(_beats(other, one, order) for other in order)]
        if not front:
            # Measurements that leave much open may put each behind another.
            front = order[:1]
        if not front:
            return []
        best = [self._best(front), min(front, key=_speed), min(front, key=lambda one: one.loss)]
        front = list({one.name: one for one in [*best, *front]}.values())
        kept = front[: self.goal.most_variants]
        for candidate in order:
            winner = next((other for other in front if _beats(other, candidate, order)), None)
            if candidate in kept:
                why = Text("Nothing else is as small, as fast and as good at once.")
                candidate.end("met", "kept", why)
            elif winner is not None:
                why = Text(
                    "{winner} is no larger, no slower and loses no more.", winner=winner.name
                )
                candidate.end("met", "beaten", why)
            elif candidate in front:
                why = Text("No more than {count} versions are kept.", count=len(kept))
                candidate.end("met", "not_kept", why)
            else:
                why = Text("Others are no larger, no slower and lose no more.")
                candidate.end("met", "beaten", why)
        kept[0].end("met", "recommended", Text("It is the best for the goal."))
        return kept

    def _best(self, front: list[Candidate]) -> Candidate:
        """Choose by the goal; between what comes to the same there, the fastest, or the smallest.

        `front` has the goal's best first.
        """
        first = front[0]
        if self.goal.goal == "fastest":
            return min((one for one in front if not _is_faster(first, one)), key=_bytes)
        if self.goal.goal == "fits":
            return min((one for one in front if one.loss <= first.loss), key=_speed)
        return min((one for one in front if _bytes(one) <= _ALIKE * _bytes(first)), key=_speed)

    def _rank(self, candidate: Candidate) -> tuple[float, float]:
        by_cost = (self._cost(candidate), candidate.loss)
        return by_cost[::-1] if self.goal.goal == "fits" else by_cost

    # --- the end ---------------------------------------------------------------------------------

    def _finish(self, kept: list[Candidate]) -> Report:
        variants: list[Variant] = []
        described: dict[str, Any] = dict(self.about["environment"])
        for number, candidate in enumerate(kept):
            if variants and self._left() < self._finish_seconds:
                why = Text("The time was over before it could be measured on the test rows.")
                candidate.end("met", "not_measured", why)
                continue
            started = time.monotonic()
            self.job.events.progress(done=number, total=len(kept), unit="versions", step="evaluate")
            try:
                report = self._measure_finally(candidate)
            except NotDone as refused:
                candidate.end("error", refused.code, refused.why)
                self.job.events.log(
                    Text(
                        "{candidate} is left out: {why}", candidate=candidate.name, why=refused.why
                    )
                )
                continue
            variants.append(report)
            self._finish_seconds = time.monotonic() - started
        if not variants:
            return self._give_up()
        self.job.events.progress(done=len(kept), total=len(kept), unit="versions", step="done")
        best = variants[0]
        met = sum(candidate.verdict == "met" for candidate in self.tried)
        message = (
            f"{best.name} is recommended: {best.message}. "
            f"{met} of {len(self.tried)} candidates met the goal."
        )
        summary = self.summary(recommended=best.name)
        return Report("search", list(best.metrics), described, message, summary, variants)

    def _measure_finally(self, candidate: Candidate) -> Variant:
        """Measure what is kept on the test split, once, and lay its files out."""

        def ask(do: str, **asked: Any) -> dict[str, Any]:
            return self.workshop.ask(do, limit=_FINISH_SECONDS, name=candidate.name, **asked)

        if candidate.built_in != self.workshop.generation:
            ask("build", steps=[dict(step) for step in candidate.steps])
            candidate.built_in = self.workshop.generation
        said = ask("finish")["report"]
        tested = replace(candidate, judged={})
        self._judge(tested, ask("confirm"), confidence=0.95)
        source = self.job.out / "work" / "candidates" / candidate.name / "files"
        source.rename(self.job.files / candidate.name)
        metrics = [Metric(**metric) for metric in said["metrics"]]
        message = said["message"]
        if any(
            self._limit(name) is not None and judged.verdict == "failed"
            for name, judged in tested.judged.items()
        ):
            message += "; on the test rows it loses more than was asked for"
        summary = {
            **said["summary"],
            "variant": candidate.name,
            "chosen_on": {name: asdict(judged) for name, judged in candidate.judged.items()},
            "tested_on": {name: asdict(judged) for name, judged in tested.judged.items()},
        }
        return Variant(candidate.name, message, metrics, summary)

    def _give_up(self) -> Report:
        """Keep the table in the report and fail the job, naming what came nearest."""
        nearest = min(self.tried, key=_distance, default=None)
        summary = self.summary()
        message = f"None of {len(self.tried)} candidates met the goal."
        Report("search", [], dict(self.about["environment"]), message, summary).write(self.job.out)
        if nearest is None:
            raise Invalid(
                "The time was over before one candidate was tried; give the search more minutes.",
                code="nothing_met_the_goal",
            )
        raise Invalid(
            "None of the {count} candidates met the goal. The nearest is {name}: {missed}",
            code="nothing_met_the_goal",
            count=len(self.tried),
            name=nearest.name,
            missed=nearest.why,
        )

    def summary(self, *, recommended: str | None = None) -> dict[str, Any]:
        """Tell what was asked for, and of each candidate what became of it and why."""
        goal = self.goal
        return {
            "goal": goal.goal,
            "limits": {
                name: limit
                for name in (
                    "max_accuracy_loss",
                    "min_accuracy",
                    "min_cosine",
                    "min_neighbour_overlap",
                    "max_latency_ms",
                    "max_bytes",
                )
                if (limit := getattr(goal, name)) is not None
            },
            "measures": self.about["measures"],
            "rows": self.about["rows"],
            "parent_bytes": self.about["parent_bytes"],
            "recommended": recommended,
            "ended_by_time": self._out_of_time,
            "candidates": [candidate.to_json() for candidate in self.tried],
        }


def _beats(other: Candidate, candidate: Candidate, order: list[Candidate]) -> bool:
    """Tell whether another is no worse in size, latency and loss; of equals, the first in order.

    Sizes that differ by a hundredth are equal, and so are latencies within what was measured: who
    is to be no slower has a median within the bounds of the other's.
    """
    larger = _bytes(other) > _ALIKE * _bytes(candidate)
    slower = _speed(other) > candidate.pace[1]
    if other is candidate or larger or slower or other.loss > candidate.loss:
        return False
    better = (
        _ALIKE * _bytes(other) < _bytes(candidate)
        or _is_faster(other, candidate)
        or other.loss < candidate.loss
    )
    return better or order.index(other) < order.index(candidate)


def _is_faster(one: Candidate, other: Candidate) -> bool:
    """Tell whether one was measured to be faster, beyond what the measurements leave open."""
    return one.pace[1] < other.pace[0]


def _bytes(candidate: Candidate) -> float:
    return float(candidate.bytes or math.inf)


def _speed(candidate: Candidate) -> float:
    """Tell what share of its parent's time it takes."""
    if not candidate.latency_ms or not candidate.parent_latency_ms:
        return math.inf
    return candidate.latency_ms / candidate.parent_latency_ms


def _settings(trial: Any, family: ladder.Family) -> dict[str, float]:
    """Draw a setting of each dial, coarse enough that two of them are worth telling apart."""
    drawn: dict[str, float] = {}
    for place, (low, high) in family.dials.items():
        name = f"{family.name}/{place}"
        if isinstance(low, int) and isinstance(high, int):
            drawn[place] = trial.suggest_int(name, low, high)
        else:
            drawn[place] = round(trial.suggest_float(name, low, high), 2)
    return drawn


def _lacks(judged: Judgement) -> float:
    """Tell how far the bound is beyond what may be lost, in units of that."""
    return (judged.high - judged.margin) / max(judged.margin, 0.001)


def _distance(candidate: Candidate) -> tuple[int, float]:
    """Order what did not meet the goal by how near it came."""
    kinds = {"undecided": 0, "failed": 1, "error": 2}
    kind = kinds.get(candidate.verdict, 3)
    lacks = [_lacks(judged) for judged in candidate.judged.values()]
    return kind, max(lacks, default=math.inf)


def _lost(measure: str, judged: Judgement) -> Text:
    """Tell between what bounds a loss lies, and what was asked for."""
    n = judged.n
    if measure in {"cosine", "neighbours"}:
        low, high = round(1 - judged.high, 5), round(1 - judged.low, 5)
        asked = round(1 - judged.margin, 5)
        if measure == "cosine":
            return Text(
                "Its cosine to the parent is {low} to {high}, and {asked} was asked for (n={n}).",
                low=low,
                high=high,
                asked=asked,
                n=n,
            )
        return Text(
            "{low} to {high} of its neighbours stay, and {asked} was asked for (n={n}).",
            low=low,
            high=high,
            asked=asked,
            n=n,
        )
    if measure == "mistakes":
        return Text(
            "It has {low} to {high} of the answers right, and {asked} was asked for (n={n}).",
            low=round(1 - judged.high, 5),
            high=round(1 - judged.low, 5),
            asked=round(1 - judged.margin, 5),
            n=n,
        )
    low, high, asked = round(judged.low, 5), round(judged.high, 5), round(judged.margin, 5)
    if measure == "probe":
        return Text(
            "A probe of it loses {low} to {high} of the answers, and {asked} may be lost (n={n}).",
            low=low,
            high=high,
            asked=asked,
            n=n,
        )
    return Text(
        "It loses {low} to {high} of the answers, and {asked} may be lost (n={n}).",
        low=low,
        high=high,
        asked=asked,
        n=n,
    )


def _undecided(measure: str, judged: Judgement) -> Text:
    between = _lost(measure, judged)
    if judged.needs_rows is None:
        return Text("Undecided, and no number of rows would tell: {between}", between=between)
    return Text(
        "Undecided, needs about {rows} rows: {between}", rows=judged.needs_rows, between=between
    )
