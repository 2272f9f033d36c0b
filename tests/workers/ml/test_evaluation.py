"""Measured numbers and their uncertainty."""

import json
import math

import numpy as np
import pytest

from registry.formats.card import parse_card
from workers.ml import environment
from workers.ml.cards import write_card
from workers.ml.data import Labels
from workers.ml.evaluate import (
    Predictions,
    Where,
    accuracy,
    agreement,
    fidelity,
)
from workers.ml.events import Events
from workers.ml.report import Metric, Report

WHERE = Where("test", "a/b@1", "cpu")


def test_accuracy_counts_recall_and_confusion():
    predictions = Predictions(
        np.array([0, 0, 1, 1, 1]), {"this": np.array([0, 1, 1, 1, 0]), "parent": np.zeros(5, int)}
    )
    found = accuracy(predictions, "this", Labels(["no", "yes"]), WHERE)
    assert found.value == 0.6
    assert found.n == 5
    assert found.details["recall"] == {"no": 0.5, "yes": pytest.approx(2 / 3)}
    assert found.details["confusion"]["rows_actual"] == [[1, 1], [1, 2]]
    assert found.details["majority_class"] == 0.6
    both = agreement(predictions, "this", "parent", WHERE)
    assert both.value == 0.4
    assert (both.details["lost"], both.details["won"]) == (1, 2)


def test_fidelity_of_equal_vectors_is_one():
    vectors = np.random.default_rng(0).standard_normal((20, 8))
    same = fidelity(vectors, vectors * 3, WHERE, "rows")
    assert same.value == pytest.approx(1)
    assert same.details["same_nearest_neighbour"] == 1.0
    assert fidelity(vectors, -vectors, WHERE, "rows").value == pytest.approx(-1)


def test_a_report_is_json_without_nan(tmp_path):
    metric = Metric("loss", math.nan, details={"parts": (1.0, math.inf)})
    Report("train", [metric], {}, "done").write(tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["metrics"][0]["value"] is None
    assert written["metrics"][0]["details"]["parts"] == [1.0, None]
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def test_a_card_is_read_as_it_was_written(tmp_path):
    metric = Metric("accuracy", 0.5, "share", n=2, low=0.1, high=0.9, split="test")
    report = Report("train", [metric], {"cpu": "a CPU", "threads": 2}, "done")
    head = {"license": "mit", "pipeline_tag": "x", "tags": ["a: b", "- c"], "language": []}
    write_card(tmp_path, head=head, title="t", paragraphs=["What it is."], report=report)
    card = parse_card((tmp_path / "README.md").read_text())
    assert (card.license, card.task, tuple(card.tags)) == ("mit", "x", ("a: b", "- c"))
    assert card.summary == "What it is."
    assert "| accuracy (test) | 0.5000 | 0.1000 to 0.9000 | 2 |  |" in card.body
    assert not card.problems


def test_progress_is_told_rarely_but_its_end_always(tmp_path):
    with (tmp_path / "said").open("w+") as stream:
        events = Events(stream)
        for done in range(1001):
            events.progress(done=done, total=1000, unit="rows", step="x")
        events.metric("loss", math.nan, 1)
        stream.seek(0)
        lines = [json.loads(line) for line in stream]
    assert lines[-1]["done"] == 1000
    assert len(lines) < 20


def test_the_machine_is_described():
    described = environment.describe(device="cpu", threads=2)
    assert described["threads"] == 2
    assert set(described["cpu_flags"]) <= set(environment.TELLING_FLAGS)
    assert {"cpu", "torch", "onnxruntime", "python"} <= described.keys()
