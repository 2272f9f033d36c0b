"""The training loop: cross-entropy over seeded batches, measured, checkpointed, resumable.

It knows nothing of files of models or datasets: it gets a module and examples. The order of the
rows and the learning rate are pure functions of the seed and the step, so what a checkpoint must
carry is small: weights, optimizer, random state, and the sums of the curves.
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
from torch.nn import functional

from registry import recipes
from registry.errors import Invalid
from registry.recipes import MAX_SAMPLES_SEEN
from workers.ml.events import Events
from workers.ml.interrupt import Interrupt
from workers.ml.train import checkpoint
from workers.ml.train.examples import Examples, draw_batches
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


class Training:
    """One run over one training set."""

    def __init__(
        self,
        module: nn.Module,
        train: Examples,
        validation: Examples | None,
        step: recipes.Train,
        place: Place,
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
            self._place.events.log(f"Resumed after step {self.progress.step}.")
        saved_at = self.progress.step
        drawn_for, batches = -1, []
        self.module.train()
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
                    self._place.events.log(f"Stopped after step {saved_at}.")
                    return
        self._keep()

    def _take_step(self, rows: NDArray[np.int64]) -> None:
        progress, device = self.progress, self._place.device
        rate = learning_rate(
            self.recipe,
            progress.step,
            total=self.total_steps,
            steps_per_epoch=self._steps_per_epoch,
        )
        set_learning_rate(self._optimizer, rate)
        inputs = self._train.batch(rows).to(device)
        targets_B = torch.from_numpy(self._train.labels[rows]).to(device)
        self._optimizer.zero_grad()
        with self.precision.autocast():
            logits_BK = self.module(inputs)
        loss = functional.cross_entropy(
            logits_BK.float(), targets_B, label_smoothing=self.recipe.label_smoothing
        )
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch's gap
        self._scaler.unscale_(self._optimizer)
        clip(self.module, self.recipe.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        progress.step += 1
        self._note_loss(loss.item(), rate)

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
            events.metric("train_loss", progress.loss_sum / progress.loss_count, progress.step)
            events.metric("learning_rate", rate, progress.step)
            progress.loss_sum, progress.loss_count = 0.0, 0
        events.progress(done=progress.step, total=self.total_steps, unit="steps", step="train")

    def _end_epoch(self, epoch: int) -> None:
        progress, events = self.progress, self._place.events
        if self._validation is None:
            return
        loss, accuracy = self._validate(self._validation)
        events.metric("validation_loss", loss, progress.step)
        events.metric("validation_accuracy", accuracy, progress.step)
        progress.history.append({"epoch": epoch, "loss": loss, "accuracy": accuracy})
        if self.recipe.keep == "best" and loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = loss, epoch
            self._best = {
                name: value.detach().clone() for name, value in self.module.state_dict().items()
            }

    @torch.no_grad()
    def _validate(self, examples: Examples) -> tuple[float, float]:
        self.module.eval()
        loss = right = 0.0
        rows = np.arange(len(examples.labels))
        for start in range(0, len(rows), _VALIDATION_BATCH):
            part = rows[start : start + _VALIDATION_BATCH]
            targets_B = torch.from_numpy(examples.labels[part]).to(self._place.device)
            with self.precision.autocast():
                logits_BK = self.module(examples.batch(part).to(self._place.device)).float()
            loss += functional.cross_entropy(logits_BK, targets_B, reduction="sum").item()
            right += (logits_BK.argmax(1) == targets_B).sum().item()
        self.module.train()
        return loss / len(rows), right / len(rows)

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
