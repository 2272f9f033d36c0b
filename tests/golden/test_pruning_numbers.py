"""Numbers of pruning, low rank and distillation that must not move; see test_ml_numbers.

What is drawn from a seeded generator or is plain counting is held exactly, losses to a tolerance.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from registry import recipes
from tests.workers.ml.little import run_job, train_recipe, write_digits
from workers.ml import evaluate
from workers.ml.architectures import build
from workers.ml.compress import low_rank, prune, slim

GOLDEN = json.loads((Path(__file__).parent / "pruning_numbers.json").read_text())
BUDGET = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "control": False}


@pytest.fixture(autouse=True)
def hasty_measurements(monkeypatch):
    monkeypatch.setattr(evaluate, "_LATENCY_SECONDS", 0.01)
    monkeypatch.setattr(evaluate, "_footprint", lambda path, threads: 1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def cnn(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("cnn")
    return run_job(folder, train_recipe(epochs=2), dataset=digits).files


def digest(masks):
    joined = b"".join(np.packbits(mask.numpy()).tobytes() for mask in masks.values())
    return hashlib.sha256(joined).hexdigest()[:16]


def weights():
    """Draw whole numbers, so that ties and order are the same on every machine."""
    drawn = np.random.default_rng(5)
    shapes = {"a.weight": (32, 48), "b.weight": (16, 8, 3, 3)}
    return {
        name: torch.nn.Parameter(torch.from_numpy(drawn.integers(-999, 1000, shape)).float())
        for name, shape in shapes.items()
    }


def test_masks():
    found = {
        "global": digest(prune.magnitude_masks(weights(), 0.9, "global")),
        "layer": digest(prune.magnitude_masks(weights(), 0.37, "layer")),
        "2:4": digest(prune.pattern_masks(weights(), 2, 4)),
        "1:8": digest(prune.pattern_masks(weights(), 1, 8)),
    }
    assert found == GOLDEN["masks"]


def test_the_default_cnn_at_half_its_width():
    module = build(recipes.DigitsCnn(name="digits_cnn"), classes=10)
    image = [torch.zeros(1, 28, 28, dtype=torch.uint8)]
    found = {"products_before": slim.count_products(module, image)}
    slim.slim(module, image, 0.5)
    found["products_after"] = slim.count_products(module, image)
    found["parameters_after"] = sum(parameter.numel() for parameter in module.parameters())
    assert found == GOLDEN["slim"]


def test_the_default_cnn_at_a_low_rank():
    module = build(recipes.DigitsCnn(name="digits_cnn"), classes=10)
    done = low_rank.factor_layers(module, lambda weight: low_rank.rank_for_ratio(weight, 0.5))
    assert done.ranks == GOLDEN["low_rank"]["ranks"]
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == GOLDEN["low_rank"]["parameters"]
    assert done.errors["hidden"] == pytest.approx(GOLDEN["low_rank"]["error"], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "step", "curve"),
    [
        ("gradual", {"method": "prune_magnitude", "sparsity": 0.9, "schedule": "gradual"}, ""),
        ("l1", {"method": "prune_magnitude", "sparsity": 0.9, "l1": 1e-3}, ""),
        ("movement", {"method": "prune_movement", "sparsity": 0.5}, ""),
        (
            "distill",
            {"method": "distill", "channels": 1, "temperatures": [4.0], "mixes": [0.7]},
            "distill_T4_mix0.7_",
        ),
    ],
)
def test_losses(tmp_path, cnn, digits, name, step, curve):
    recipe = {"kind": "compress", "model": "alice/tiny@1", "dataset": "alice/little@1"}
    recipe["steps"] = [{**step, **BUDGET}]
    result = run_job(tmp_path / "job", recipe, model=cnn, dataset=digits)
    losses = [value for _, value in result.curve(f"{curve}train_loss")]
    assert losses == pytest.approx(GOLDEN["losses"][name], rel=5e-3), name
