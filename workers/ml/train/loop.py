"""The training loop: one goal over seeded batches, measured, checkpointed, resumable.

It knows nothing of files of models or datasets: it gets a module, examples and a goal. The order
of the rows and the learning rate are pure functions of the seed and the step, so what a checkpoint
must carry is small: weights, optimizer, random state, and the sums of the curves.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from registry import recipes
from registry.errors import Invalid, Text
from registry.recipes import MAX_SAMPLES_SEEN
from workers.ml.events import Events
from workers.ml.interrupt import Interrupt
from workers.ml.train import checkpoint
from workers.ml.train.examples import Examples, draw_batches
from workers.ml.train.goals import Classify, Goal, Tensors
from workers.ml.train.hooks import Hooks
from workers.ml.train.optimize import build_optimizer, clip, learning_rate, set_learning_rate
from workers.ml.train.precision import choose_precision

_CURVE_POINTS = 200
_VALIDATION_BATCH = 256


@dataclass
class Progress:
    """Where the run stands; all of it goes into a checkpoint."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a run happens and whom it tells."""

    checkpoints: Path
    device: str
    events: Events
    interrupt: Interrupt
    name: str = "train"
    """What the run is called where its progress is told."""
    curves: str = ""
    """What its curves begin with, where a job has several runs."""


class Training:
    """One run over one training set."""

    def __init__(
        self,
        module: nn.Module,
        train: Examples,
        validation: Examples | None,
        step: recipes.Train,
        place: Place,
        *,
        goal: Goal | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        rows = len(train.labels)
        if rows * step.epochs > MAX_SAMPLES_SEEN:
            raise Invalid(
                "{epochs} epochs over {rows} rows are {examples} examples; the "
                "limit is {limit}. Train for fewer epochs.",
                code="too_costly",
                epochs=step.epochs,
                rows=rows,
                examples=step.epochs * rows,
                limit=MAX_SAMPLES_SEEN,
            )
        self.module = module.to(place.device)
        self.recipe = step
        self.progress = Progress()
        self._train = train
        self._validation = validation
        self._place = place
        self._goal: Goal = goal or Classify(step.label_smoothing)
        self._hooks = hooks or Hooks()
        self._steps_per_epoch = math.ceil(rows / step.batch_size)
        self.total_steps = self._steps_per_epoch * step.epochs
        self._best: dict[str, Tensor] = {}
        self._optimizer = build_optimizer(step, self.module)
        self.precision = choose_precision(step, place.device)
        self._scaler = self.precision.scaler()
        self._curve_every = max(1, self.total_steps // _CURVE_POINTS)

    def run(self) -> None:
        """Train to the end, from the last checkpoint where there is one.

        Leaves the weights to keep in `module`.
        """
        torch.manual_seed(self.recipe.seed)
        if self._resume():
            self._place.events.log(Text("Resumed after step {step}.", step=self.progress.step))
        saved_at = self.progress.step
        drawn_for, batches = -1, []
        self.module.train(self._goal.dropout)
        with self._place.interrupt.deferred():
            while self.progress.step < self.total_steps:
                epoch, position = divmod(self.progress.step, self._steps_per_epoch)
                if epoch != drawn_for:
                    seed = (self.recipe.seed, epoch)
                    batches = draw_batches(self._train, self.recipe.batch_size, seed)
                    drawn_for = epoch
                self._take_step(batches[position])
                if position == self._steps_per_epoch - 1:
                    self._end_epoch(epoch + 1)
                at = self.progress.step
                due = at % self.recipe.checkpoint_interval == 0 or at == self.total_steps
                if due or self._place.interrupt.requested:
                    self._save()
                    saved_at = at
                if self._place.interrupt.requested:
                    self._place.events.log(Text("Stopped after step {step}.", step=saved_at))
                    return
        self._keep()

    def _take_step(self, rows: NDArray[np.int64]) -> None:
        progress = self.progress
        rate = learning_rate(
            self.recipe,
            progress.step,
            total=self.total_steps,
            steps_per_epoch=self._steps_per_epoch,
        )
        set_learning_rate(self._optimizer, rate)
        inputs, targets = self._rows(self._train, rows)
        self._optimizer.zero_grad()
        with self.precision.autocast():
            loss = self._goal.loss(self.module, inputs, targets)
        penalty = self._hooks.penalty(self.module)
        if penalty is not None:
            loss = loss + penalty
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's gap
        self._scaler.unscale_(self._optimizer)
        self._hooks.on_gradients()
        clip(self.module, self.recipe.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        progress.step += 1
        self._hooks.after_step(progress.step, self.total_steps)
        self._note_loss(loss.item(), rate)

    def _rows(self, examples: Examples, rows: NDArray[np.int64]) -> tuple[Tensors, Tensors]:
        device = self._place.device
        inputs = tuple(tensor.to(device) for tensor in examples.batch(rows))
        return inputs, tuple(tensor.to(device) for tensor in examples.targets(rows))

    def _note_loss(self, loss: float, rate: float) -> None:
        progress, events = self.progress, self._place.events
        if not math.isfinite(loss):
            raise Invalid(
                "The loss became {loss} at step {step}: the training diverged. "
                "Lower the learning rate, or clip the gradients.",
                code="diverged",
                loss=loss,
                step=progress.step,
            )
        progress.loss_sum += loss
        progress.loss_count += 1
        if progress.step % self._curve_every == 0 or progress.step == self.total_steps:
            mean = progress.loss_sum / progress.loss_count
            events.metric(f"{self._place.curves}train_loss", mean, progress.step)
            events.metric(f"{self._place.curves}learning_rate", rate, progress.step)
            progress.loss_sum, progress.loss_count = 0.0, 0
        events.progress(
            done=progress.step, total=self.total_steps, unit="steps", step=self._place.name
        )

    def _end_epoch(self, epoch: int) -> None:
        progress, events = self.progress, self._place.events
        if self._validation is None:
            return
        loss, score = self._validate(self._validation)
        curves, name = self._place.curves, self._goal.score_name
        events.metric(f"{curves}validation_loss", loss, progress.step)
        events.metric(f"{curves}validation_{name}", score, progress.step)
        progress.history.append({"epoch": epoch, "loss": loss, name: score})
        whole = self._hooks.is_whole(progress.step, self.total_steps)
        if self.recipe.keep == "best" and whole and loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = loss, epoch
            self._best = {
                name: value.detach().clone() for name, value in self.module.state_dict().items()
            }

    @torch.no_grad()
    def _validate(self, examples: Examples) -> tuple[float, float]:
        self.module.eval()
        loss = score = 0.0
        rows = np.arange(len(examples.labels))
        for start in range(0, len(rows), _VALIDATION_BATCH):
            inputs, targets = self._rows(examples, rows[start : start + _VALIDATION_BATCH])
            with self.precision.autocast():
                of_batch = self._goal.assess(self.module, inputs, targets)
            loss += of_batch[0]
            score += of_batch[1]
        self.module.train(self._goal.dropout)
        return loss / len(rows), score / len(rows)

    def _keep(self) -> None:
        if self._best:
            self.module.load_state_dict(self._best)
        self.module.eval()

    def _save(self) -> None:
        optimizer_tensors, optimizer_values = checkpoint.pack_optimizer(self._optimizer)
        tensors = _flatten(
            {
                "module": self.module.state_dict(),
                "best": self._best,
                "optimizer": optimizer_tensors,
                "random": checkpoint.random_state(self._place.device),
                "hooks": self._hooks.tensors(),
            }
        )
        state = asdict(self.progress)
        if math.isinf(self.progress.best_loss):
            state["best_loss"] = None
        state.update(
            total_steps=self.total_steps,
            recipe=self.recipe.model_dump(mode="json"),
            optimizer=optimizer_values,
            scaler=self._scaler.state_dict(),
        )
        checkpoint.save_checkpoint(self._place.checkpoints, self.progress.step, tensors, state)
        self._place.events.checkpoint(self.progress.step)

    def _resume(self) -> bool:
        found = checkpoint.load_checkpoint(self._place.checkpoints)
        if found is None:
            return False
        flat, state = found
        if (state["recipe"], state["total_steps"]) != (
            self.recipe.model_dump(mode="json"),
            self.total_steps,
        ):
            raise Invalid(
                "The checkpoint belongs to another recipe or dataset.", code="bad_checkpoint"
            )
        groups = _unflatten(flat)
        self.module.load_state_dict(groups["module"])
        device = self._place.device
        self._best = {name: value.to(device) for name, value in groups.get("best", {}).items()}
        checkpoint.unpack_optimizer(
            self._optimizer, groups.get("optimizer", {}), state["optimizer"]
        )
        checkpoint.restore_random_state(groups["random"], device)
        self._hooks.restore(
            {name: value.to(device) for name, value in groups.get("hooks", {}).items()}
        )
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.progress = _read_progress(state)
        return True


def _read_progress(state: Mapping[str, Any]) -> Progress:
    names = Progress.__dataclass_fields__
    values = {name: state[name] for name in names}
    if values["best_loss"] is None:
        values["best_loss"] = math.inf
    return Progress(**values)


def _flatten(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{group}/{name}": tensor
        for group, named in groups.items()
        for name, tensor in named.items()
    }


def _unflatten(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, name = key.split("/", 1)
        groups.setdefault(group, {})[name] = tensor
    return groups
