"""Merging: each algorithm does what its paper says, and what cannot be mixed is refused."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import recipes
from registry.errors import Invalid, RegistryError
from tests.workers.ml.little import (
    equal,
    read_state,
    run_job,
    write_cnn,
    write_lstm,
)
from workers.ml.compress.merge import average, slerp, task_arithmetic, ties


def state(*numbers):
    return {"w": torch.tensor(numbers, dtype=torch.float32), "steps": torch.tensor(7)}


def numbers(merged):
    assert int(merged["steps"]) == 7
    return merged["w"].tolist()


def test_a_mean_is_weighted():
    merged = average([state(0.0, 4.0), state(4.0, 0.0)], [3, 1])
    assert numbers(merged) == [1.0, 3.0]
    with pytest.raises(ValueError, match="more than zero"):
        average([state(1.0)], [0])


@given(st.floats(0, 1))
@settings(max_examples=30)
def test_an_arc_keeps_the_length_and_divides_the_angle(share):
    merged = numbers(slerp(state(1.0, 0.0), state(0.0, 1.0), share))
    assert math.hypot(*merged) == pytest.approx(1.0, abs=1e-6)
    assert math.atan2(merged[1], merged[0]) == pytest.approx(share * math.pi / 2, abs=1e-6)


def test_between_parallel_tensors_the_arc_is_a_line():
    assert numbers(slerp(state(1.0, 1.0), state(3.0, 3.0), 0.5)) == [2.0, 2.0]
    assert numbers(slerp(state(0.0, 0.0), state(1.0, 2.0), 0.5)) == [0.5, 1.0]


def test_task_vectors_add_up_and_can_be_unlearned():
    base, first, second = state(1.0, 1.0), state(2.0, 1.0), state(1.0, 3.0)
    assert numbers(task_arithmetic(base, [first, second], [1, 1])) == [2.0, 3.0]
    assert numbers(task_arithmetic(base, [first, second], [1, -1], 0.5)) == [1.5, 0.0]


def test_ties_trims_elects_and_averages_those_that_agree():
    base = state(0.0, 0.0, 0.0, 0.0)
    # Of four changes each keeps two: the first its 4 and -3, the second its 2 and 5.
    first, second = state(4.0, 0.1, -3.0, 0.2), state(2.0, 0.3, 5.0, 0.1)
    merged = ties(base, [first, second], [1, 1], density=0.5)
    # 4 and 2 agree: their mean. -3 against 5: plus wins, and only 5 counts.
    assert numbers(merged) == [3.0, 0.0, 5.0, 0.0]
    assert numbers(ties(base, [first, second], [1, 1], density=0.5, scale=2.0))[0] == 6.0


def test_ties_of_one_whole_fine_tune_is_that_fine_tune():
    base, tuned = state(1.0, 2.0, 3.0), state(1.5, 2.0, -3.0)
    assert numbers(ties(base, [tuned], [1], density=1.0)) == [1.5, 2.0, -3.0]


# --- as a job -------------------------------------------------------------------------------------


def recipe(*others, **step):
    # Without a dataset: a mean of models that were never trained knows no better than guessing.
    return {
        "kind": "compress",
        "model": "alice/tiny@1",
        "steps": [{"method": "merge", "others": list(others), **step}],
    }


def refusal(*args, **kwargs):
    with pytest.raises(RegistryError) as caught:
        run_job(*args, **kwargs)
    return caught.value


def test_versions_are_merged_into_a_model_that_loads(tmp_path):
    folders = [write_cnn(tmp_path / str(seed), seed=seed) for seed in range(3)]
    asked = recipe("alice/a@1", "alice/b@2")
    result = run_job(tmp_path / "job", asked, model=folders[0], others=folders[1:])
    merged = read_state(result.files / "model.safetensors")
    states = [read_state(folder / "model.safetensors") for folder in folders]
    for name, tensor in merged.items():
        mean = sum(found[name].double() for found in states) / 3
        assert torch.allclose(tensor.double(), mean, atol=1e-6)
    (notes,) = result.report["summary"]["steps"]
    assert [found["version"] for found in notes["merged"]] == ["alice/a@1", "alice/b@2"]
    assert notes["merged"][0]["distance"] > 0
    assert "alice/b@2" in (result.files / "README.md").read_text()


def test_hidden_versions_are_named_nowhere_in_the_files(tmp_path):
    folders = [write_cnn(tmp_path / str(seed), seed=seed) for seed in range(2)]
    asked = recipe("alice/secret@1")
    result = run_job(tmp_path / "job", asked, model=folders[0], others=folders[1:], named=False)
    for file in result.files.iterdir():
        assert b"secret" not in file.read_bytes(), file.name
    described = json.loads((result.files / "config.json").read_text())["compression"]
    assert described[0]["others"] == ["a model that is not public"]


@pytest.mark.slow
def test_merging_twice_gives_the_same_bytes_and_merging_with_oneself_changes_nothing(tmp_path):
    folders = [write_cnn(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    asked = recipe("alice/a@1", algorithm="ties", density=0.5)
    made = [
        run_job(tmp_path / name, asked, model=folders[0], others=folders[1:])
        for name in ("first", "second")
    ]
    files = [result.files / "model.safetensors" for result in made]
    assert files[0].read_bytes() == files[1].read_bytes()
    copy = write_cnn(tmp_path / "copy", seed=0)
    same = run_job(tmp_path / "same", asked, model=folders[0], others=[copy]).files
    assert equal(
        read_state(same / "model.safetensors"), read_state(folders[0] / "model.safetensors")
    )


def test_what_cannot_be_mixed_is_refused_by_name(tmp_path):
    model = write_cnn(tmp_path / "model")
    wider = write_cnn(tmp_path / "wider", hidden_size=16)
    said = refusal(tmp_path / "a", recipe("alice/wider@1"), model=model, others=[wider])
    assert said.reason == "cannot_merge"
    assert "alice/wider@1" in said.detail
    assert "[4, 16], not [4, 8]" in said.detail
    labelled = write_cnn(tmp_path / "labelled", classes=3)
    said = refusal(tmp_path / "b", recipe("alice/labelled@1"), model=model, others=[labelled])
    assert said.reason == "cannot_merge"
    assert "labels" in said.detail
    said = refusal(tmp_path / "c", recipe("alice/tiny@1"), model=model, others=[model])
    assert said.reason == "cannot_merge"
    assert "itself" in said.detail


def test_other_words_are_refused(tmp_path):
    model, other = write_lstm(tmp_path / "model"), write_lstm(tmp_path / "other", seed=1)
    words = json.loads((other / "vocabulary.json").read_text())
    (other / "vocabulary.json").write_text(json.dumps(words) + "\n\n")
    said = refusal(tmp_path / "job", recipe("alice/other@1"), model=model, others=[other])
    assert said.reason == "cannot_merge"
    assert "vocabulary.json" in said.detail


def test_a_file_without_a_module_is_refused(tmp_path):
    model = write_cnn(tmp_path / "model")
    export = {"kind": "compress", "model": "alice/tiny@1", "steps": [{"method": "export_onnx"}]}
    exported = run_job(tmp_path / "export", export, model=model).files
    asked = recipe("alice/onnx@1")
    for given_model, other in ((model, exported), (exported, model)):
        said = refusal(
            tmp_path / given_model.parent.name / "job", asked, model=given_model, others=[other]
        )
        assert said.reason == "needs_module"


@pytest.mark.parametrize(
    "step",
    [
        {"others": []},
        {"others": ["alice/a"] * 9},
        {"others": ["alice/a", "alice/b"], "algorithm": "slerp"},
        {"others": ["alice/a"], "weights": [1.0]},
        {"others": ["alice/a"], "algorithm": "ties", "weights": [1.0, 1.0]},
        {"others": ["alice/a"], "weights": [-1.0, 2.0]},
        {"others": ["alice/a"], "weights": [0.0, 0.0]},
        {"others": ["no reference"]},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(step):
    with pytest.raises(Invalid):
        recipes.parse_recipe(
            {"kind": "compress", "model": "alice/tiny", "steps": [{"method": "merge", **step}]}
        )


def test_references_have_roles_and_are_made_exact():
    parsed = recipes.parse_recipe(
        {
            "kind": "compress",
            "model": "alice/tiny",
            "steps": [
                {"method": "merge", "others": ["alice/a@champion", "alice/b"]},
                {"method": "export_onnx"},
            ],
        }
    )
    assert parsed.references() == {
        "model": "alice/tiny",
        "other_1": "alice/a@champion",
        "other_2": "alice/b",
    }
    assert parsed.field_of("other_2") == "steps.0.others.1"
    assert parsed.field_of("model") == "model"
    exact = parsed.resolved({"model": "alice/tiny@4", "other_1": "alice/a@2", "other_2": "bob/b@1"})
    assert exact.references() == {
        "model": "alice/tiny@4",
        "other_1": "alice/a@2",
        "other_2": "bob/b@1",
    }
    twice = {"method": "merge", "others": ["alice/a"]}
    with pytest.raises(Invalid, match="Merge once"):
        recipes.parse_recipe({"kind": "compress", "model": "alice/t", "steps": [twice, twice]})
