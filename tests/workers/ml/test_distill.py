"""Low rank and distillation: the best approximation, the loss of the paper, students that load."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from registry import recipes
from registry.errors import RegistryError
from tests.workers.ml.little import (
    LSTM,
    equal,
    infer_recipe,
    read_state,
    run_job,
    train_recipe,
    write_cnn,
    write_encoder,
    write_texts,
)
from tests.workers.ml.test_training import StopAfter
from workers.ml.architectures import build
from workers.ml.architectures.sentence_encoder import load_sentence_encoder
from workers.ml.compress import distill, low_rank
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.interrupt import Interrupted
from workers.ml.probes import NOWHERE

BUDGET = {"batch_size": 16, "learning_rate": 0.01, "checkpoint_interval": 5, "epochs": 2}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def cnn(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("cnn")
    recipe = train_recipe({"name": "digits_cnn", "channels": 4, "hidden_size": 16}, epochs=4)
    return run_job(folder, recipe, dataset=digits).files


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("encoder"))
    state = read_state(folder / WEIGHTS)
    louder = {n: 6 * t if "layer" in n and t.ndim > 1 else t.clone() for n, t in state.items()}
    save_file(louder, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def steps(*steps, dataset="alice/little@1", **changes):
    recipe = {"kind": "compress", "model": "alice/tiny@1", "steps": list(steps), **changes}
    return {**recipe, "dataset": dataset} if dataset else recipe


def refusal(*args, **kwargs):
    with pytest.raises(RegistryError) as caught:
        run_job(*args, **kwargs)
    return caught.value


# --- low rank -----------------------------------------------------------------------------------


def of_rank(rank, *, wide=12, deep=20, seed=0):
    torch.manual_seed(seed)
    return torch.randn(wide, rank) @ torch.randn(rank, deep)


def test_a_matrix_of_low_rank_is_given_back():
    matrix = of_rank(3)
    down, up = low_rank.truncate(matrix, 3)
    assert (down.shape, up.shape) == ((3, 20), (12, 3))
    assert torch.allclose(up @ down, matrix, atol=1e-5)
    again = low_rank.truncate(matrix.clone(), 3)
    assert torch.equal(again.down, down)


def test_what_is_lost_is_what_the_small_singular_values_hold():
    matrix = of_rank(12)
    values = torch.linalg.svdvals(matrix)
    down, up = low_rank.truncate(matrix, 5)
    assert float((matrix - up @ down).norm()) == pytest.approx(float(values[5:].norm()), rel=1e-4)


def test_ranks_by_energy_and_by_ratio():
    left, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    squared = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.03, 0.01], dtype=torch.float64)
    matrix = left @ torch.diag(squared.sqrt()) @ right
    expected = {0.4: 1, 0.5: 1, 0.6: 2, 0.75: 2, 0.9: 3, 0.95: 4, 0.999: 6}
    assert {at: low_rank.rank_for_energy(matrix, at) for at in expected} == expected
    assert low_rank.rank_for_ratio(torch.empty(100, 50), 0.5) == 16
    assert low_rank.rank_for_ratio(torch.empty(4, 4), 0.1) == 1
    assert low_rank.rank_for_energy(torch.zeros(3, 3), 0.9) == 1


def test_layers_that_would_not_shrink_are_left_and_named():
    module = build(recipes.DigitsCnn(name="digits_cnn", channels=2, hidden_size=16), classes=4)
    with torch.no_grad():
        module.hidden.weight.copy_(of_rank(3, wide=16, deep=576))
    image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    expected = module.eval()(image)
    done = low_rank.factor_layers(module, lambda weight: low_rank.rank_for_energy(weight, 0.99999))
    assert done.ranks == {"hidden": 3}
    assert done.errors["hidden"] < 1e-2
    assert done.left["classes"].detail == "needs rank 4, and saves nothing from 4"
    assert module.hidden.down.weight.shape == (3, 576)
    assert torch.allclose(module(image), expected, atol=0.05 * float(expected.detach().abs().max()))
    with pytest.raises(RegistryError, match="is low rank already"):
        low_rank.factor_layers(module, lambda _weight: 1, ["classes"])


def test_a_fine_tune_becomes_adapters_and_comes_back():
    torch.manual_seed(1)
    base = {"a.weight": torch.randn(8, 6), "a.bias": torch.randn(8), "n": torch.tensor(3)}
    tuned = {**base, "a.weight": base["a.weight"] + of_rank(2, wide=8, deep=6)}
    tuned["a.bias"] = base["a.bias"] + 1
    adapters = low_rank.extract_lora(base, tuned, 2)
    assert adapters.stored().keys() == {"a.lora_A.weight", "a.lora_B.weight", "a.bias.diff"}
    assert adapters.stored()["a.lora_A.weight"].shape == (2, 6)
    assert adapters.errors["a.weight"] < 1e-5
    back = low_rank.apply_lora(base, adapters)
    assert all(torch.allclose(back[name], tuned[name], atol=1e-5) for name in tuned)
    coarse = low_rank.extract_lora(base, tuned, 1)
    assert 0 < coarse.errors["a.weight"] < 1
    with pytest.raises(RegistryError, match=r"'a\.bias'"):
        low_rank.extract_lora(base, {**tuned, "a.bias": torch.zeros(9)}, 1)


@pytest.mark.parametrize(
    "choice", [{"by": "rank", "rank": 2}, {"by": "ratio", "ratio": 0.3}, {"energy": 0.6}]
)
def test_a_factored_cnn_runs_trains_and_is_pruned(tmp_path, cnn, digits, choice):
    step = {"method": "svd", **choice}
    result = run_job(tmp_path / "job", steps(step), model=cnn, dataset=digits)
    (notes,) = result.report["summary"]["steps"]
    assert notes["parameters"][1] == result.metric("parameters")["value"] < notes["parameters"][0]
    assert "hidden" in notes["ranks"]
    again = {**train_recipe(epochs=2), "architecture": None, "model": "alice/tiny@1"}
    trained = run_job(tmp_path / "train", again, model=result.files, dataset=digits).files
    slim = {"method": "prune_structured", "share": 0.25, "epochs": 0}
    more = run_job(tmp_path / "slim", steps(slim), model=trained, dataset=digits)
    changes = json.loads((more.files / "config.json").read_text())["structure"]
    assert [change["change"] for change in changes] == ["low_rank", "resize"]
    predicted = run_job(tmp_path / "infer", infer_recipe(), model=more.files, dataset=digits)
    assert predicted.metric("accuracy")["value"] == more.metric("accuracy")["value"]


def test_a_factored_encoder_is_loaded_again(tmp_path, encoder, texts):
    recipe = steps({"method": "svd", "by": "ratio", "ratio": 0.6, "exclude": ["*.query"]})
    result = run_job(tmp_path / "job", recipe, model=encoder, dataset=texts)
    (notes,) = result.report["summary"]["steps"]
    assert notes["left"]["encoder.encoder.layer.0.attention.self.query"] == "left out by name"
    state = read_state(result.files / WEIGHTS)
    assert list(state["encoder.layer.0.output.dense.down.weight"].shape) == [12, 64]
    assert 0.5 < result.metric("cosine_to_parent")["value"] < 1


# --- distillation -------------------------------------------------------------------------------


def test_the_loss_is_the_one_of_the_paper():
    student = torch.tensor([[1.0, 0.0]])
    teacher = torch.tensor([[0.0, 2.0]])
    labels = torch.tensor([1])
    hard = math.log(math.exp(1.0) + 1)
    soft_student = [1 / (1 + math.exp(-0.25)), 1 / (1 + math.exp(0.25))]
    soft_teacher = [1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.5))]
    soft = sum(t * math.log(t / s) for t, s in zip(soft_teacher, soft_student, strict=True))
    found = distill.distillation_loss(student, teacher, labels, temperature=4.0, mix=0.3)
    assert float(found) == pytest.approx(0.3 * 16 * soft + 0.7 * hard, rel=1e-5)
    same = distill.distillation_loss(teacher, teacher, labels, temperature=2.0, mix=1.0)
    assert float(same) == pytest.approx(0, abs=1e-7)


def test_a_smaller_cnn_learns_from_its_parent_beside_a_control(tmp_path, cnn, digits):
    step = {"method": "distill", "channels": 2, "hidden_size": 8, **BUDGET}
    result = run_job(tmp_path / "job", steps(step), model=cnn, dataset=digits)
    (notes,) = result.report["summary"]["steps"]
    assert result.metric("parameters")["value"] == notes["student_parameters"]
    assert notes["student_parameters"] == 2 * 10 + 4 * 19 + 576 * 8 + 8 + 9 * 4
    tried = [(run["temperature"], run["mix"]) for run in notes["runs"]]
    assert tried == [(1.0, 0.5), (1.0, 0.9), (4.0, 0.5), (4.0, 0.9)]
    assert (notes["chosen"]["temperature"], notes["chosen"]["mix"]) in tried
    said = [event["message"] for event in result.events if event.get("event") == "log"]
    # Whether it helped is said once, by the rows that nobody chose on.
    assert "helped" not in notes
    assert not any("validation" in line for line in said)
    measured = result.metric("gap_to_scratch_control")
    differs = measured["low"] > 0 or measured["high"] < 0
    (line,) = [line for line in said if "to the student trained from scratch" in line]
    assert ("no difference" in line) != differs
    gap = measured["value"]
    own = result.metric("accuracy")["value"]
    assert gap == pytest.approx(own - result.metric("accuracy_of_scratch_control")["value"])
    config = json.loads((result.files / "config.json").read_text())
    assert config["architecture"]["channels"] == 2
    predicted = run_job(tmp_path / "infer", infer_recipe(), model=result.files, dataset=digits)
    assert predicted.metric("accuracy")["value"] == own


def test_a_pruned_model_learns_from_its_parent_and_keeps_its_zeros(tmp_path, cnn, digits):
    recipe = steps(
        {"method": "prune_structured", "share": 0.5, "epochs": 0},
        {"method": "prune_magnitude", "sparsity": 0.5, "epochs": 0},
        {"method": "distill", "temperatures": [2.0], "mixes": [1.0], **BUDGET},
    )
    result = run_job(tmp_path / "job", recipe, model=cnn, dataset=digits)
    state = read_state(result.files / WEIGHTS)
    zeros = sum(int((tensor == 0).sum()) for tensor in state.values() if tensor.ndim > 1)
    assert zeros == result.report["summary"]["steps"][1]["zeros"]
    assert result.metric("accuracy_of_labels_control")["n"] == 40


@pytest.mark.parametrize(
    "stop", [60, pytest.param(40, marks=pytest.mark.slow), pytest.param(90, marks=pytest.mark.slow)]
)
def test_a_stopped_distillation_ends_like_an_unbroken_one(tmp_path, cnn, digits, stop):
    sweep = {"temperatures": [1.0, 3.0], "mixes": [0.7]}
    recipe = steps(
        {"method": "distill", "channels": 2, **sweep, **BUDGET},
        {"method": "fine_tune", **BUDGET},
    )
    whole = run_job(tmp_path / "whole", recipe, model=cnn, dataset=digits)
    with pytest.raises(Interrupted):
        run_job(tmp_path / "job", recipe, model=cnn, dataset=digits, interrupt=StopAfter(stop))
    resumed = run_job(tmp_path / "job", recipe, model=cnn, dataset=digits)
    assert any("Resumed after" in event.get("message", "") for event in resumed.events)
    assert equal(read_state(whole.files / WEIGHTS), read_state(resumed.files / WEIGHTS))
    assert whole.report["summary"]["steps"] == resumed.report["summary"]["steps"]
    for name in ("accuracy_of_scratch_control", "accuracy_of_dense_control"):
        assert whole.metric(name)["value"] == resumed.metric(name)["value"]


def test_a_smaller_text_classifier_learns_from_its_parent(tmp_path, texts):
    model = run_job(tmp_path / "train", train_recipe(LSTM, epochs=8), dataset=texts).files
    sizes = {"hidden_size": 4, "embedding_size": 4}
    one = {"temperatures": [2.0], "mixes": [0.5]}
    step = {"method": "distill", **sizes, **one, **BUDGET, "epochs": 8}
    result = run_job(tmp_path / "job", steps(step), model=model, dataset=texts)
    assert result.metric("accuracy")["value"] > 0.5
    assert (result.files / "vocabulary.json").exists()


@pytest.mark.parametrize(
    "weights", [{}, {"hidden_weight": 1.0, "attention_weight": 1.0}], ids=["vectors", "inside"]
)
def test_an_encoder_with_fewer_layers_learns_its_parents_vectors(tmp_path, encoder, texts, weights):
    budget = {**BUDGET, "learning_rate": 0.002, "epochs": 3}
    step = {"method": "distill", "layers": 1, **weights, **budget}
    cosine = {}
    for name, change in (("job", {}), ("raw", {"epochs": 1, "learning_rate": 1e-9})):
        result = run_job(tmp_path / name, steps({**step, **change}), model=encoder, dataset=texts)
        cosine[name] = result.metric("cosine_to_parent")["value"]
    assert cosine["job"] > cosine["raw"]
    config = json.loads((result.files / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    from transformers import AutoModel  # noqa: PLC0415 - takes seconds

    _, loading = AutoModel.from_pretrained(result.files, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


def test_the_first_and_last_layers_are_kept_and_changes_follow(tmp_path, encoder):
    found = load_sentence_encoder(encoder)
    student, kept = distill.fewer_layers(found, 1)
    assert kept == [0]
    assert len(student.encoder.encoder.layer) == 1
    with pytest.raises(RegistryError, match="would not be smaller"):
        distill.fewer_layers(found, 2)
    recipe = steps(
        {"method": "prune_structured", "share": 0.5, "epochs": 0},
        {"method": "svd", "by": "rank", "rank": 4},
        {"method": "distill", "layers": 1, **BUDGET, "epochs": 1},
    )
    dataset = write_texts(tmp_path / "texts")
    files = run_job(tmp_path / "job", recipe, model=encoder, dataset=dataset).files
    structure = json.loads((files / "config.json").read_text())["structure"]
    names = [name for change in structure for name in change["layers"]]
    assert names
    assert all("layer.0." in name for name in names)
    runtime = load_runtime(open_model(files), device="cpu", threads=1)
    assert runtime.run({"text": ["the cat"]}, NOWHERE).shape == (1, 32)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"temperatures": [0.0]}, "greater than 0"),
        ({"mixes": []}, "at least 1"),
        ({"validation_fraction": 0.0}, "hold rows out"),
        ({"temperatures": [1.0] * 8, "mixes": [0.5] * 8}, "too many"),
        ({"method": "svd", "energy": 1.0}, "less than 1"),
        ({"method": "svd", "by": "luck"}, "Must be"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_queued(step, words):
    with pytest.raises(RegistryError, match=words):
        recipes.parse_recipe(steps({"method": "distill", **step}))


@pytest.mark.parametrize(
    ("step", "code"),
    [
        ({"channels": 8, "hidden_size": 64}, "student_too_large"),
        ({"layers": 2}, "bad_student"),
        ({"hidden_weight": 1.0}, "bad_student"),
        ({"method": "svd", "by": "rank", "rank": 5000}, "nothing_to_factor"),
    ],
)
def test_what_cannot_be_a_student_says_why(tmp_path, cnn, digits, step, code):
    first = {"method": "prune_magnitude", "epochs": 0}
    recipe = steps(first, {"method": "distill", **step})
    assert refusal(tmp_path / "job", recipe, model=cnn, dataset=digits).reason == code


@pytest.mark.parametrize(
    ("step", "code"),
    [({"layers": 2}, "student_too_large"), ({"channels": 2}, "bad_student")],
)
def test_an_encoder_is_no_student_of_itself(tmp_path, encoder, texts, step, code):
    recipe = steps({"method": "distill", **step})
    assert refusal(tmp_path / "job", recipe, model=encoder, dataset=texts).reason == code


def test_a_student_needs_rows_to_learn_from(tmp_path, digits):
    with pytest.raises(RegistryError, match="name a dataset"):
        recipes.parse_recipe(steps({"method": "distill"}, dataset=None))
    recipe = steps({"method": "distill", **BUDGET}, train_split="dev")
    model = write_cnn(tmp_path / "model")
    assert refusal(tmp_path / "job", recipe, model=model, dataset=digits).reason == "missing_split"
