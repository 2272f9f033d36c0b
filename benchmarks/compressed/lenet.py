"""Deep Compression on its own two networks: pruned, shared, coded, decoded and measured again."""

import copy
import io
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.compressed.digits import Digits, Images, Labels
from registry import recipes
from workers.ml import myz
from workers.ml.compress.distill import AnswerLikeTeacher
from workers.ml.compress.learn import Lessons
from workers.ml.compress.prune import KeepZeros, MagnitudePruning, layers_of, weights_of
from workers.ml.compress.share import Sharing, share_tensor
from workers.ml.events import Events
from workers.ml.interrupt import Interrupt
from workers.ml.train.examples import ImageExamples, TaughtExamples
from workers.ml.train.goals import Classify
from workers.ml.train.hooks import Hooks
from workers.ml.train.loop import Place, Training


class LeNet300(nn.Module):
    """784-300-100-10 units: 266,610 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10)

    def forward(self, images_BHW: Tensor) -> Tensor:
        x_BF = _scaled(images_BHW).flatten(1)
        x_BF = functional.relu(self.fc1(x_BF))
        x_BF = functional.relu(self.fc2(x_BF))
        logits_BK: Tensor = self.fc3(x_BF)
        return logits_BK


class LeNet5(nn.Module):
    """Caffe's LeNet-5, as the paper has it: 431,080 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, images_BHW: Tensor) -> Tensor:
        x_BCHW = _scaled(images_BHW).unsqueeze(1)
        x_BCHW = functional.max_pool2d(functional.relu(self.conv1(x_BCHW)), 2)
        x_BCHW = functional.max_pool2d(functional.relu(self.conv2(x_BCHW)), 2)
        x_BF = functional.relu(self.fc1(x_BCHW.flatten(1)))
        logits_BK: Tensor = self.fc2(x_BF)
        return logits_BK


def _scaled(images: Tensor) -> Tensor:
    return (images.to(torch.float32) / 255 - 0.1307) / 0.3081


@dataclass(frozen=True)
class Plan:
    """What a network is put through; chosen on the rows to tune on."""

    name: str
    network: type[nn.Module]
    aim: int
    epochs: int
    prune_epochs: int
    tune_epochs: int
    share_epochs: int
    sparsity: float
    bits: tuple[int, ...]
    """Of the values that each layer shares."""
    teaching: tuple[float, float] | None = None
    """Temperature and mix, where the dense control teaches what is made smaller."""


PLANS = (
    Plan("LeNet-300-100", LeNet300, 40, 8, 16, 16, 8, 0.915, (4, 5, 5), (4.0, 0.9)),
    Plan("LeNet-5", LeNet5, 39, 3, 3, 3, 1, 0.94, (5, 5, 5, 5)),
)


@dataclass(frozen=True)
class Outcome:
    """One seed of one network."""

    seed: int
    dense_bytes: int
    coded_bytes: int
    parameters: int
    nonzero: int
    accuracy: float
    control_accuracy: float
    dense_accuracy: float
    decode_ms: float
    seconds: float

    @property
    def times_smaller(self) -> float:
        return self.dense_bytes / self.coded_bytes

    @property
    def gap(self) -> float:
        """Tell the points of accuracy to the dense control; negative where less is right."""
        return 100 * (self.accuracy - self.control_accuracy)


def measure(plan: Plan, digits: Digits, seed: int, *, rows: str = "test") -> Outcome:
    """Train, prune, share, code and decode one network; and the dense one for just as long."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    dense = plan.network()
    labels = Lessons(ImageExamples(*digits.train), None, Classify())
    _train(dense, labels, plan.epochs, seed, rate=0.0015)
    small, control = copy.deepcopy(dense), copy.deepcopy(dense)
    _train(control, labels, plan.prune_epochs, seed + 1000, rate=0.0015)
    _train(control, labels, plan.tune_epochs, seed + 2000, rate=0.001)
    _train(control, labels, plan.share_epochs, seed + 3000, rate=0.0005)
    lessons = _taught(labels, control, digits, *plan.teaching) if plan.teaching else labels
    weights = weights_of(layers_of(small))
    pruning = MagnitudePruning(weights, plan.sparsity, "global", gradual=True)
    _train(small, lessons, plan.prune_epochs, seed + 1000, rate=0.0015, hooks=pruning)
    _train(small, lessons, plan.tune_epochs, seed + 2000, rate=0.001, hooks=KeepZeros(small))
    for weight, bits in zip(weights.values(), plan.bits, strict=True):
        share_tensor(weight.data, bits=bits)
    sharing = Sharing(small, smallest=1)
    _train(small, lessons, plan.share_epochs, seed + 3000, rate=0.0005, hooks=sharing)
    measured: tuple[Images, Labels] = getattr(digits, rows)
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as name:
        folder = Path(name)
        coded, decode_ms = _code(small, folder)
        decoded = plan.network()
        decoded.load_state_dict(load_file(folder / "again" / "model.safetensors"))
        save_file(_state(dense), folder / "dense.safetensors")
        outcome = Outcome(
            seed=seed,
            dense_bytes=(folder / "dense.safetensors").stat().st_size,
            coded_bytes=coded,
            parameters=sum(parameter.numel() for parameter in decoded.parameters()),
            nonzero=sum(int((parameter != 0).sum()) for parameter in decoded.parameters()),
            accuracy=_accuracy(decoded, *measured),
            control_accuracy=_accuracy(control, *measured),
            dense_accuracy=_accuracy(dense, *measured),
            decode_ms=decode_ms,
            seconds=time.perf_counter() - started,
        )
    print(
        f"  {plan.name}, seed {seed}: {outcome.times_smaller:.1f}x, "
        f"{100 * outcome.accuracy:.2f} % (control {100 * outcome.control_accuracy:.2f} %), "
        f"{outcome.seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return outcome


def _taught(
    labels: Lessons, teacher: nn.Module, digits: Digits, temperature: float, mix: float
) -> Lessons:
    """Add what the dense control answers to the rows that it has learned from too."""
    examples = TaughtExamples(labels.train, _answers(teacher, digits.train[0]))
    return Lessons(examples, None, AnswerLikeTeacher(temperature, mix))


def _train(
    module: nn.Module,
    lessons: Lessons,
    epochs: int,
    seed: int,
    *,
    rate: float,
    hooks: Hooks | None = None,
) -> None:
    step = recipes.Train(
        epochs=epochs,
        batch_size=256,
        learning_rate=rate,
        weight_decay=0.01,
        validation_fraction=0,
        keep="last",
        checkpoint_interval=100_000,
        seed=seed,
    )
    with tempfile.TemporaryDirectory(prefix="modelyard-bench-") as folder:
        place = Place(Path(folder), "cpu", Events(io.StringIO()), Interrupt())
        Training(module, lessons.train, None, step, place, goal=lessons.goal, hooks=hooks).run()
    module.eval()


def _code(module: nn.Module, folder: Path) -> tuple[int, float]:
    """Write the coded file, and what comes out of it into `again`; give its bytes and the time."""
    (folder / "again").mkdir()
    save_file(_state(module), folder / "model.safetensors")
    written = myz.pack(folder / "model.safetensors", folder / "model.myz")
    started = time.perf_counter()
    back = myz.unpack(folder / "model.myz", folder / "again")
    took = 1000 * (time.perf_counter() - started)
    assert back.read_bytes() == (folder / "model.safetensors").read_bytes()
    return written.size, took


def _state(module: nn.Module) -> Mapping[str, Any]:
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}


def _accuracy(module: nn.Module, images: Images, labels: Labels) -> float:
    return float((_answers(module, images).argmax(1) == labels).mean())


@torch.inference_mode()
def _answers(module: nn.Module, images: Images) -> NDArray[np.float32]:
    found = [
        module(torch.from_numpy(images[low : low + 1000])).numpy()
        for low in range(0, len(images), 1000)
    ]
    return np.concatenate(found)
