"""A part of a split is a fair sample, whatever order its rows lie in."""

import io

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.workers.ml.little import (
    compress_recipe,
    write_cnn,
    write_digits,
    write_job,
    write_lstm,
    write_texts,
)
from workers.ml import profile
from workers.ml.compress.bench import open_bench
from workers.ml.compress.learn import open_lessons
from workers.ml.drawn import draw
from workers.ml.events import Events
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.interrupt import Interrupt
from workers.ml.job import read_job


@pytest.fixture
def by_class(tmp_path):
    """Write images whose classes lie one behind the other."""
    folder = write_digits(tmp_path / "digits", train=2000)
    file = folder / "train.safetensors"
    rows = load_file(file)
    order = np.argsort(rows["label"], kind="stable")
    save_file({name: values[order] for name, values in rows.items()}, file)
    return folder


def begin(folder, recipe, *, model, dataset):
    path = write_job(folder, recipe, model=model, dataset=dataset)
    job = read_job(path, Events(io.StringIO()), Interrupt())
    job.start_over()
    return job


def fine_tune(seed=0):
    steps = [{"method": "fine_tune", "max_rows": 64, "validation_fraction": 0.25}]
    return {**compress_recipe(), "steps": steps, "seed": seed}


def bands(images):
    """Tell the class of each image, which is where it is bright."""
    rows = np.asarray(images).reshape(-1, 28, 28).mean(2)[:, :24]
    return set(rows.reshape(-1, 4, 6).mean(2).argmax(1).tolist())


def test_ranges_are_set_by_rows_of_every_class(tmp_path, by_class):
    model = write_cnn(tmp_path / "model")
    seen = []
    for number, seed in enumerate((0, 0, 1)):
        job = begin(tmp_path / str(number), fine_tune(seed), model=model, dataset=by_class)
        (name,) = (bench := open_bench(job, job.recipe)).parent.feeder.columns
        images = np.concatenate([feeds[name] for feeds in bench.calibration(40)])
        assert len(images) == 40
        assert bands(images) == {0, 1, 2, 3}
        seen.append(images)
        assert sum(len(feeds[name]) for feeds in bench.calibration(5000)) == 2000
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_a_part_to_learn_from_has_every_class(tmp_path, by_class):
    model = write_cnn(tmp_path / "model")
    job = begin(tmp_path / "job", fine_tune(), model=model, dataset=by_class)
    lessons = open_lessons(open_bench(job, job.recipe), job.recipe.steps[0])
    assert (len(lessons.train.labels), len(lessons.validation.labels)) == (48, 16)
    assert set(lessons.train.labels.tolist()) == {0, 1, 2, 3}


def test_a_part_to_learn_from_is_drawn_from_the_rows_that_have_a_class(tmp_path):
    texts = write_texts(tmp_path / "texts", train=600)
    head, *lines = (texts / "train.csv").read_text().splitlines()
    lines = [
        line if at % 5 == 0 else line.rpartition(",")[0] + "," for at, line in enumerate(lines)
    ]
    (texts / "train.csv").write_text("\n".join([head, *lines]) + "\n")
    model = write_lstm(tmp_path / "model")
    job = begin(tmp_path / "job", fine_tune(), model=model, dataset=texts)
    lessons = open_lessons(open_bench(job, job.recipe), job.recipe.steps[0])
    assert len(lessons.train.labels) + len(lessons.validation.labels) == 64


def test_layers_are_tried_on_rows_of_every_class(tmp_path, by_class):
    recipe = {
        "kind": "profile",
        "model": "alice/tiny@1",
        "dataset": "alice/little@1",
        "steps": [{"method": "profile", "max_rows": 32, "split": "train"}],
    }
    model = write_cnn(tmp_path / "model")
    job = begin(tmp_path / "job", recipe, model=model, dataset=by_class)
    runtime = load_runtime(open_model(model), device="cpu", threads=1)
    trial = profile._trial_rows(job, job.recipe.steps[0], runtime)
    assert trial.count == len(trial.actual) == 32
    assert set(trial.actual.tolist()) == {0, 1, 2, 3}


def test_no_more_is_drawn_than_there_is():
    assert draw(5, None, 0).tolist() == draw(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    drawn = draw(1000, 100, 0)
    assert len(set(drawn.tolist())) == 100
    assert (np.diff(drawn) > 0).all()
