"""Pruning: exactly the zeros that were asked for, really smaller tensors, and nothing redone."""

import json

import pytest
import torch
from safetensors.torch import save_file

from registry import recipes
from registry.errors import RegistryError
from tests.workers.ml.little import (
    CNN,
    LSTM,
    equal,
    infer_recipe,
    read_state,
    run_job,
    train_recipe,
    write_encoder,
)
from tests.workers.ml.test_training import StopAfter
from workers.ml.architectures import build
from workers.ml.architectures.sentence_encoder import load_sentence_encoder
from workers.ml.compress import low_rank, prune, slim
from workers.ml.formats import load_module, open_model, read_config, save_module
from workers.ml.infer.runtime import load_runtime
from workers.ml.interrupt import Interrupted
from workers.ml.probes import NOWHERE
from workers.ml.structure import factored, resized, stored_names, with_change

BUDGET = {"batch_size": 16, "learning_rate": 0.01, "checkpoint_interval": 5, "epochs": 2}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def cnn(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("cnn")
    return run_job(folder, train_recipe(epochs=4), dataset=digits).files


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = write_encoder(tmp_path_factory.mktemp("encoder"))
    state = read_state(folder / WEIGHTS)
    # As they are initialised, layers hardly change what comes in; here they are to matter.
    louder = {n: 6 * t if "layer" in n and t.ndim > 1 else t.clone() for n, t in state.items()}
    save_file(louder, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def steps(*steps, dataset="alice/little@1", **changes):
    recipe = {"kind": "compress", "model": "alice/tiny@1", "steps": list(steps), **changes}
    return {**recipe, "dataset": dataset} if dataset else recipe


def zeros(files, *, leave=("bias",)):
    state = read_state(files / WEIGHTS)
    matrices = {n: t for n, t in state.items() if t.ndim > 1 and not n.endswith(leave)}
    return sum(int((t == 0).sum()) for t in matrices.values()), sum(
        t.numel() for t in matrices.values()
    )


def refusal(*args, **kwargs):
    with pytest.raises(RegistryError) as caught:
        run_job(*args, **kwargs)
    return caught.value


# --- masks --------------------------------------------------------------------------------------


def weights(**shapes):
    torch.manual_seed(0)
    return {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.37, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_exactly_the_smallest_share_falls(sparsity, scope):
    given = weights(a=(31, 7), b=(5, 3, 2, 2))
    masks = prune.magnitude_masks(given, sparsity, scope)
    counts = {name: int((~mask).sum()) for name, mask in masks.items()}
    if scope == "layer":
        assert counts == {"a": round(sparsity * 217), "b": round(sparsity * 60)}
    else:
        assert sum(counts.values()) == round(sparsity * 277)
        kept = torch.cat([given[n][m].abs() for n, m in masks.items()])
        gone = torch.cat([given[n][~m].abs() for n, m in masks.items()])
        assert gone.numel() == 0 or kept.min() >= gone.max()


def test_equal_weights_fall_in_order():
    given = {"a": torch.nn.Parameter(torch.ones(2, 4))}
    mask = prune.magnitude_masks(given, 0.5, "global")["a"]
    assert mask.tolist() == [[False] * 4, [True] * 4]


def test_a_pattern_keeps_the_largest_of_each_group_along_the_inputs():
    given = weights(linear=(6, 8), conv=(3, 4, 3, 3))
    masks = prune.pattern_masks(given, 2, 4)
    groups = masks["linear"].view(6, 2, 4)
    assert bool((groups.sum(-1) == 2).all())
    assert bool((masks["conv"].sum(1) == 2).all())
    best = given["linear"].detach().abs().view(6, 2, 4).topk(2).indices
    assert bool(groups.gather(-1, best).all())


def test_the_curve_is_cubic_and_ends_at_its_sparsity():
    curve = [prune.cubic(at, 100, 0.8) for at in range(101)]
    assert curve[0] == 0
    assert curve[50] == pytest.approx(0.8 * (1 - 0.125))
    assert curve[100] == 0.8
    assert curve == sorted(curve)
    assert prune.cubic(120, 100, 0.8) == 0.8


def test_rare_words_lose_their_rows():
    table = torch.nn.Embedding(6, 3)
    mask = prune.frequency_mask(table, torch.tensor([9, 1, 5, 0, 7, 1]), 0.5)
    assert mask.any(1).tolist() == [True, False, True, False, True, False]
    assert mask.shape == table.weight.shape


def test_norms_biases_and_what_is_left_out_are_no_weights():
    module = build(recipes.TextClassifier(**{**LSTM, "vocabulary_size": 16}), classes=3)
    names = prune.weights_of(prune.layers_of(module)).keys()
    assert names == {
        "forwards.0.weight_ih_l0",
        "forwards.0.weight_hh_l0",
        "classes.weight",
    }
    assert prune.weights_of(prune.layers_of(module, ["forwards"])).keys() == {"classes.weight"}
    with pytest.raises(RegistryError, match="No layer is called nonsense"):
        prune.layers_of(module, ["nonsense"])


def test_movement_keeps_what_grows_and_drops_what_shrinks():
    weight = torch.nn.Parameter(torch.tensor([[4.0, 0.1, -3.0, 0.2]]))
    hooks = prune.MovementPruning({"w": weight}, 0.5)
    optimizer = torch.optim.SGD([weight], lr=0.01)
    target = torch.tensor([[1.0, 2.0, -1.0, 3.0]])
    for at in range(1, 13):
        optimizer.zero_grad()
        ((weight - target) ** 2).sum().backward()
        hooks.on_gradients()
        optimizer.step()
        hooks.after_step(at, 12)
    assert hooks.is_whole(12, 12)
    assert (weight[0] != 0).tolist() == [False, True, False, True]


# --- structured ---------------------------------------------------------------------------------


def test_channels_and_units_go_and_products_fall():
    module = build(recipes.DigitsCnn(**{**CNN, "channels": 4, "hidden_size": 16}), classes=4)
    image = [torch.zeros(2, 28, 28, dtype=torch.uint8)]
    before = slim.count_products(module, image)
    assert before == (26 * 26 * 4 * 9 + 24 * 24 * 8 * 4 * 9 + 8 * 144 * 16 + 16 * 4)
    done = slim.slim(module, image, 0.5)
    assert done.units == {"first": [4, 2], "second": [8, 4], "hidden": [16, 8]}
    assert done.left == {"classes": "gives the answer"}
    shapes = {name: list(t.shape) for name, t in module.state_dict().items()}
    assert shapes["second.weight"] == [4, 2, 3, 3]
    assert shapes["hidden.weight"] == [8, 4 * 144]
    assert shapes["classes.weight"] == [4, 8]
    assert slim.count_products(module, image) == (
        26 * 26 * 2 * 9 + 24 * 24 * 4 * 2 * 9 + 4 * 144 * 8 + 8 * 4
    )


def test_units_that_nothing_reads_go_without_a_trace():
    module = build(recipes.DigitsCnn(**{**CNN, "channels": 4, "hidden_size": 8}), classes=4)
    with torch.no_grad():
        for layer, gone in ((module.hidden, [1, 5, 6]), (module.first, [2])):
            layer.weight[gone] = 0
            layer.bias[gone] = 0
        module.classes.weight[:, [1, 5, 6]] = 0
        module.second.weight[:, [2]] = 0
    image = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8)
    module.eval()
    expected = module(image)
    done = slim.slim(module, [image], 0.25, exclude=["second"])
    assert done.units == {"first": [4, 3], "hidden": [8, 6]}
    assert done.left["second"] == "left out by name"
    assert torch.allclose(module(image), expected, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"bidirectional": True, "layers": 2}])
def test_lstm_units_go_from_both_ways_and_all_layers(changes):
    given = recipes.TextClassifier(**{**LSTM, "vocabulary_size": 16, **changes})
    module = build(given, classes=3).eval()
    dead = [0, 3, 4, 7]
    with torch.no_grad():
        for lstm in [*module.forwards, *module.backwards]:
            rows = [unit + gate * 8 for unit in dead for gate in range(4)]
            for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
                lstm.get_parameter(name)[rows] = 0
            lstm.weight_hh_l0[:, dead] = 0
    tokens = torch.randint(1, 16, (5, 7))
    expected = module(tokens)
    done = slim.slim(module, [tokens], 0.5)
    assert all(pair == [8, 4] for pair in done.units.values())
    assert len(done.units) == (4 if changes else 1)
    # A unit whose gates are all zero keeps a state of zero, so nobody misses it.
    assert torch.allclose(module(tokens), expected, atol=1e-5)


def test_heads_and_intermediate_units_of_a_transformer_go(encoder):
    runtime = load_runtime(open_model(encoder), device="cpu", threads=1)
    module = runtime.engine.module
    tokens = [torch.ones(2, 5, dtype=torch.int64) for _ in module.input_names]
    before = slim.count_products(module, tokens)
    done = slim.slim(module, tokens, 0.5)
    layer = "encoder.encoder.layer.1"
    assert done.units[f"{layer}.attention.self.query"] == [2, 1]
    assert done.units[f"{layer}.intermediate.dense"] == [64, 32]
    assert done.left[f"{layer}.output.dense"] == "tied to a residual stream"
    state = module.state_dict()
    assert list(state[f"{layer}.attention.self.value.weight"].shape) == [16, 32]
    assert list(state[f"{layer}.attention.output.dense.weight"].shape) == [32, 16]
    pooler = 32 * 32
    assert slim.count_products(module, tokens) - pooler == (before - pooler) // 2


KINDS = {
    "bert": ("BertConfig", {}),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
    ),
    "roberta": ("RobertaConfig", {}),
    "mpnet": ("MPNetConfig", {}),
    "electra": ("ElectraConfig", {"embedding_size": 16}),
    "deberta": ("DebertaV2Config", {}),
    "albert": ("AlbertConfig", {"embedding_size": 16}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_encoders_of_many_kinds_are_slimmed_factored_and_loaded_again(tmp_path, kind):
    import transformers  # noqa: PLC0415 - takes seconds

    name, changes = KINDS[kind]
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    given = changes if "dim" in changes else {**sizes, "intermediate_size": 64, **changes}
    config = getattr(transformers, name)(vocab_size=128, max_position_embeddings=40, **given)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    module = load_sentence_encoder(tmp_path / "model")
    tokens = [torch.randint(3, 100, (2, 6)) for _ in module.input_names]
    for at, name in enumerate(module.input_names):
        if name != "input_ids":
            tokens[at] = (
                (tokens[at] < 50).long() if name == "token_type_ids" else tokens[at] * 0 + 1
            )
    before = slim.count_products(module, tokens)
    slimmed = slim.slim(module, tokens, 0.5)
    changes = with_change([], resized(stored_names(module, slimmed.resized)))
    thin = low_rank.factor_layers(module, lambda weight: low_rank.rank_for_ratio(weight, 0.5))
    changes = with_change(changes, factored(stored_names(module, list(thin.ranks))))
    assert slim.count_products(module, tokens) < before / 2
    (tmp_path / "small").mkdir()
    save_module(
        module, {**read_config(tmp_path / "model"), "structure": changes}, tmp_path / "small"
    )
    again = load_sentence_encoder(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(again(*tokens), module.eval()(*tokens))


def test_parts_of_one_output_are_not_torn_apart():
    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.both = torch.nn.Linear(8, 12)
            self.out = torch.nn.Linear(6, 5)
            self.last = torch.nn.Linear(5, 2)

        def forward(self, x):
            gate, value = self.both(x).chunk(2, dim=-1)
            return self.last(torch.relu(self.out(torch.sigmoid(gate) * value)))

    done = slim.slim(Gated(), [torch.randn(3, 8)], 0.5)
    assert done.units == {"out": [5, 3]}
    assert "must stay alike" in done.left["both"]


# --- jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "one_shot"},
        {"schedule": "gradual"},
        {"scope": "layer", "l1": 1e-4},
        {"pattern": "2:4", "exclude": ["first", "second"], "sparsity": 0.1},
    ],
    ids=["one_shot", "gradual", "l1", "pattern"],
)
def test_a_pruned_cnn_has_its_zeros_and_a_control_beside_it(tmp_path, cnn, digits, change):
    step = {"method": "prune_magnitude", "sparsity": 0.75, **BUDGET, **change}
    result = run_job(tmp_path / "job", steps(step), model=cnn, dataset=digits)
    (notes,) = result.report["summary"]["steps"]
    gone, total = zeros(result.files)
    assert notes["zeros"] == gone
    if "pattern" in change:
        assert notes["sparsity"] == 0.5
        assert notes["weights"] == 576 * 8 + 8 * 4
    else:
        assert notes["weights"] == total
        assert gone == pytest.approx(0.75 * total, abs=4)
    assert notes["fine_tuning"]["validation"][-1]["accuracy"] > 0.5
    control = result.metric("accuracy_of_dense_control")
    assert control["n"] == 40
    gap = result.metric("gap_to_dense_control")
    assert gap["value"] == pytest.approx(result.metric("accuracy")["value"] - control["value"])
    assert gap["low"] <= gap["value"] <= gap["high"]
    config = json.loads((result.files / "config.json").read_text())
    assert "structure" not in config
    predicted = run_job(tmp_path / "infer", infer_recipe(), model=result.files, dataset=digits)
    assert predicted.metric("accuracy")["value"] == result.metric("accuracy")["value"]


def test_pruning_without_training_needs_no_dataset(tmp_path, cnn):
    step = {"method": "prune_magnitude", "sparsity": 0.5, "epochs": 0}
    result = run_job(tmp_path / "job", steps(step, dataset=None), model=cnn)
    gone, total = zeros(result.files)
    assert gone == round(total / 2)
    before = read_state(cnn / WEIGHTS)
    for name, tensor in read_state(result.files / WEIGHTS).items():
        kept = tensor != 0
        assert torch.equal(tensor[kept], before[name][kept])


def test_a_slim_cnn_runs_trains_and_is_exported(tmp_path, cnn, digits):
    step = {"method": "prune_structured", "share": 0.5, **BUDGET}
    slimmed = run_job(tmp_path / "slim", steps(step), model=cnn, dataset=digits)
    (notes,) = slimmed.report["summary"]["steps"]
    assert notes["after"]["products"] < 0.5 * notes["before"]["products"]
    assert slimmed.metric("parameters")["value"] == 10 + 20 + 2 * 144 * 4 + 4 + 5 * 4
    config = json.loads((slimmed.files / "config.json").read_text())
    assert config["structure"] == [
        {"change": "resize", "layers": ["classes", "first", "hidden", "second"]}
    ]
    again = {**train_recipe(epochs=3), "architecture": None, "model": "alice/tiny@1"}
    trained = run_job(tmp_path / "train", again, model=slimmed.files, dataset=digits)
    assert trained.metric("accuracy")["value"] >= slimmed.metric("accuracy")["value"]
    assert trained.metric("parameters")["value"] == slimmed.metric("parameters")["value"]
    exported = run_job(
        tmp_path / "onnx", steps({"method": "export_onnx"}), model=trained.files, dataset=digits
    )
    assert exported.metric("accuracy")["value"] == trained.metric("accuracy")["value"]
    assert "structure" not in json.loads((exported.files / "config.json").read_text())
    twice = run_job(tmp_path / "twice", steps(step), model=slimmed.files, dataset=digits)
    assert twice.metric("parameters")["value"] == 10 + 10 + 144 * 2 + 2 + 3 * 4


def test_steps_follow_one_another_and_keep_what_was_done(tmp_path, cnn, digits):
    recipe = steps(
        {"method": "prune_structured", "share": 0.25, **BUDGET, "control": False},
        {"method": "prune_magnitude", "sparsity": 0.5, **BUDGET},
        {"method": "fine_tune", **BUDGET},
        {"method": "export_onnx"},
    )
    result = run_job(tmp_path / "job", recipe, model=cnn, dataset=digits)
    done = result.report["summary"]["steps"]
    assert [notes["method"] for notes in done] == [
        "prune_structured",
        "prune_magnitude",
        "fine_tune",
        "export_onnx",
    ]
    graph = load_runtime(open_model(result.files), device="cpu", threads=1)
    assert graph.engine.name == "onnxruntime/cpu"
    from onnx import load, numpy_helper  # noqa: PLC0415 - beside its one use

    stored = [numpy_helper.to_array(t) for t in load(result.files / "model.onnx").graph.initializer]
    matrices = [array for array in stored if array.ndim > 1]
    # The later fine-tuning left every zero where it was.
    assert sum(int((array == 0).sum()) for array in matrices) == done[1]["zeros"]


GRADUAL = {"method": "prune_magnitude", "sparsity": 0.6, "schedule": "gradual"}
MOVEMENT = {"method": "prune_movement", "sparsity": 0.6}
STRUCTURED = {"method": "prune_structured", "share": 0.5}


@pytest.mark.parametrize(
    ("first", "stop"),
    [
        pytest.param(GRADUAL, 17, id="tuning"),
        pytest.param(MOVEMENT, 17, id="movement"),
        pytest.param(STRUCTURED, 40, id="control"),
        pytest.param(GRADUAL, 70, id="second step"),
        pytest.param(STRUCTURED, 70, id="second step, slim", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_job_ends_like_an_unbroken_one(tmp_path, cnn, digits, first, stop):
    recipe = steps({**first, **BUDGET}, {"method": "fine_tune", **BUDGET})
    whole = run_job(tmp_path / "whole", recipe, model=cnn, dataset=digits)
    with pytest.raises(Interrupted):
        run_job(tmp_path / "job", recipe, model=cnn, dataset=digits, interrupt=StopAfter(stop))
    resumed = run_job(tmp_path / "job", recipe, model=cnn, dataset=digits)
    said = " ".join(event.get("message", "") for event in resumed.events)
    assert "Resumed after" in said
    assert ("Resumed after 1 finished step(s)." in said) == (stop == 70)
    assert equal(read_state(whole.files / WEIGHTS), read_state(resumed.files / WEIGHTS))
    assert whole.report["summary"]["steps"] == resumed.report["summary"]["steps"]
    for name in ("accuracy_of_dense_control", "gap_to_dense_control"):
        assert whole.metric(name)["value"] == resumed.metric(name)["value"]


def test_a_damaged_state_of_finished_steps_is_made_again(tmp_path, cnn, digits):
    budget = {**BUDGET, "epochs": 1, "control": False}
    recipe = steps({**GRADUAL, **budget}, {"method": "fine_tune", **budget})
    whole = run_job(tmp_path / "job", recipe, model=cnn, dataset=digits)
    kept = tmp_path / "job" / "checkpoints" / "done-2" / WEIGHTS
    kept.write_bytes(kept.read_bytes()[:99])
    again = run_job(tmp_path / "job", recipe, model=cnn, dataset=digits)
    assert any("is of no use" in event.get("message", "") for event in again.events)
    assert equal(read_state(whole.files / WEIGHTS), read_state(again.files / WEIGHTS))
    other = steps({**GRADUAL, **budget, "sparsity": 0.5}, {"method": "fine_tune", **budget})
    refused = refusal(tmp_path / "job", other, model=cnn, dataset=digits)
    assert refused.reason == "bad_checkpoint"


def test_a_pruned_text_classifier_loses_rare_words_and_learns(tmp_path, texts):
    model = run_job(tmp_path / "train", train_recipe(LSTM, epochs=8), dataset=texts).files
    step = {
        "method": "prune_magnitude",
        "sparsity": 0.5,
        "embeddings": "frequency",
        **BUDGET,
        "epochs": 4,
    }
    recipe = steps(step, {"method": "prune_structured", "share": 0.5, **BUDGET})
    result = run_job(tmp_path / "job", recipe, model=model, dataset=texts)
    state = read_state(result.files / WEIGHTS)
    rows = (state["embedding.weight"] == 0).all(1).sum()
    assert rows >= round(len(state["embedding.weight"]) / 2)
    assert list(state["forwards.0.weight_hh_l0"].shape) == [16, 4]
    assert result.metric("accuracy")["value"] > 0.5
    again = {**train_recipe(epochs=1), "architecture": None, "model": "alice/tiny@1"}
    run_job(tmp_path / "again", again, model=result.files, dataset=texts)


@pytest.mark.parametrize(
    "step",
    [
        {"method": "prune_magnitude", "sparsity": 0.5, "schedule": "gradual"},
        {"method": "prune_movement", "sparsity": 0.3},
        {"method": "prune_structured", "share": 0.5},
    ],
    ids=["gradual", "movement", "structured"],
)
def test_an_encoder_learns_without_labels_and_stays_what_transformers_writes(
    tmp_path, encoder, texts, step
):
    budget = {**BUDGET, "learning_rate": 0.002, "epochs": 3}
    result = run_job(tmp_path / "job", steps({**step, **budget}), model=encoder, dataset=texts)
    cosine = result.metric("cosine_to_parent")["value"]
    untuned = run_job(
        tmp_path / "raw",
        steps({**step, **budget, "epochs": 1, "learning_rate": 1e-9}),
        model=encoder,
        dataset=texts,
    )
    assert cosine > untuned.metric("cosine_to_parent")["value"]
    state = read_state(result.files / WEIGHTS)
    assert "embeddings.word_embeddings.weight" in state
    assert json.loads((result.files / "config.json").read_text())["model_type"] == "bert"
    if step["method"] == "prune_structured":
        assert list(state["encoder.layer.0.intermediate.dense.weight"].shape) == [32, 32]
    else:
        from transformers import AutoModel  # noqa: PLC0415 - takes seconds

        _, loading = AutoModel.from_pretrained(result.files, output_loading_info=True)
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]


@pytest.mark.slow
def test_a_slim_encoder_is_exported(tmp_path, encoder, texts):
    recipe = steps(
        {"method": "prune_structured", "share": 0.5, "epochs": 0}, {"method": "export_onnx"}
    )
    result = run_job(tmp_path / "job", recipe, model=encoder, dataset=texts)
    assert result.report["summary"]["export"]["largest_relative_difference"] < 1e-4
    assert "structure" not in json.loads((result.files / "config.json").read_text())


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.0}, "greater than 0"),
        ({"epochs": 0, "schedule": "gradual"}, "give it epochs"),
        ({"epochs": 0, "l1": 0.1}, "give it epochs"),
        ({"pattern": "4:4"}, "keeps all weights"),
        ({"pattern": "2:4", "schedule": "gradual"}, "cut at once"),
        ({"pattern": "2-4"}, "Must match"),
        ({"exclude": ["a b"]}, "Must match"),
        ({"method": "prune_structured", "share": 1.0}, "less than 1"),
        ({"method": "prune_movement", "epochs": 0}, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_queued(step, words):
    with pytest.raises(RegistryError, match=words):
        recipes.parse_recipe(steps({"method": "prune_magnitude", **step}))


def test_what_needs_a_module_comes_before_what_exports_it():
    late = steps({"method": "export_onnx"}, {"method": "prune_magnitude"})
    with pytest.raises(RegistryError, match="put it before export_onnx"):
        recipes.parse_recipe(late)


@pytest.mark.parametrize(
    "step",
    [
        {"method": "fine_tune"},
        {"method": "quantize_static"},
        {"method": "quantize_weights", "algorithm": "gptq"},
    ],
)
def test_one_split_is_not_looked_at_and_measured_on(step):
    with pytest.raises(RegistryError, match="name two splits"):
        recipes.parse_recipe(steps(step, test_split="train"))


def test_rows_that_were_learned_from_are_not_measured_on(tmp_path, cnn, digits):
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("train.safetensors", "dataset.json"):
        (alone / name).write_bytes((digits / name).read_bytes())
    for step in ({"method": "fine_tune", **BUDGET}, {"method": "quantize_static"}):
        refused = refusal(tmp_path / step["method"], steps(step), model=cnn, dataset=alone)
        assert refused.reason == "missing_split"
        assert "to measure on" in refused.detail
    # What looks at no rows may be measured on any, but not on those of a name misspelt.
    misspelt = steps({"method": "quantize_dynamic"}, test_split="tset")
    refused = refusal(tmp_path / "misspelt", misspelt, model=cnn, dataset=alone)
    assert refused.reason == "missing_split"
    assert "has no split 'tset'" in refused.detail


def test_learning_needs_a_dataset_named():
    with pytest.raises(RegistryError, match="name a dataset"):
        recipes.parse_recipe(steps({"method": "prune_magnitude"}, dataset=None))


@pytest.mark.parametrize(
    ("change", "step", "code"),
    [
        ({"train_split": "dev"}, {}, "missing_split"),
        ({}, {"pattern": "2:4"}, "bad_pattern"),
        ({}, {"exclude": ["nothing"]}, "no_such_layer"),
        ({}, {"exclude": ["*"]}, "nothing_to_prune"),
        ({}, {"method": "prune_structured", "exclude": ["*"]}, "nothing_to_prune"),
    ],
)
def test_what_cannot_be_pruned_says_why(tmp_path, cnn, digits, change, step, code):
    recipe = steps({"method": "prune_magnitude", **step}, **change)
    refused = refusal(tmp_path / "job", recipe, model=cnn, dataset=digits)
    assert refused.reason == code
    if code == "bad_pattern":
        assert "1 inputs of first" in refused.detail


def test_rows_without_labels_and_onnx_files_are_refused_before_the_work(tmp_path, cnn, digits):
    bare = tmp_path / "bare"
    bare.mkdir()
    images = read_state(digits / "train.safetensors")["image"]
    save_file({"image": images}, bare / "train.safetensors")
    (bare / "test.safetensors").write_bytes((digits / "test.safetensors").read_bytes())
    recipe = steps(
        {"method": "prune_magnitude", "epochs": 0, "sparsity": 0.5},
        {"method": "fine_tune", **BUDGET},
    )
    refused = refusal(tmp_path / "job", recipe, model=cnn, dataset=bare)
    assert refused.reason == "missing_column"
    assert "label" in refused.detail
    export = steps({"method": "export_onnx"})
    exported = run_job(tmp_path / "export", export, model=cnn, dataset=digits).files
    refused = refusal(tmp_path / "onnx", recipe, model=exported, dataset=digits)
    assert refused.reason == "needs_module"


# --- files that lie -----------------------------------------------------------------------------


@pytest.fixture
def slimmed(tmp_path, cnn):
    step = {"method": "prune_structured", "share": 0.5, "epochs": 0}
    return run_job(tmp_path / "slimmed", steps(step, dataset=None), model=cnn).files


@pytest.mark.parametrize(
    ("structure", "code"),
    [
        ([], "weights_mismatch"),
        ([{"change": "resize", "layers": ["first", "second"]}], "weights_mismatch"),
        ([{"change": "resize", "layers": ["third"]}], "bad_config"),
        ([{"change": "resize", "layers": ["dropout"]}], "bad_config"),
        ([{"change": "resize", "layers": [""]}], "bad_config"),
        ([{"change": "grow", "layers": []}], "bad_config"),
        ([{"change": "resize"}], "bad_config"),
        ({"first": 2}, "bad_config"),
        ([{"change": "low_rank", "layers": ["hidden"]}], "weights_mismatch"),
        ([{"change": "low_rank", "layers": ["first"]}], "bad_config"),
        ([{"change": "resize", "layers": []}] * 65, "bad_config"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(slimmed, structure, code):
    config = json.loads((slimmed / "config.json").read_text())
    (slimmed / "config.json").write_text(json.dumps({**config, "structure": structure}))
    with pytest.raises(RegistryError) as caught:
        load_module(open_model(slimmed))
    assert caught.value.reason == code


def test_layers_that_do_not_fit_each_other_are_refused(slimmed):
    state = read_state(slimmed / WEIGHTS)
    state["classes.weight"] = torch.zeros(4, 7)
    save_file(state, slimmed / WEIGHTS)
    with pytest.raises(RegistryError, match="do not fit each other"):
        load_module(open_model(slimmed))


def test_a_changed_encoder_is_bounded_by_its_file(tmp_path, encoder):
    step = {"method": "prune_structured", "share": 0.5, "epochs": 0}
    files = run_job(tmp_path / "job", steps(step, dataset=None), model=encoder).files
    config = json.loads((files / "config.json").read_text())
    claims = [
        {"vocab_size": 10**12},
        {"structure": [{"change": "resize", "layers": ["encoder.layer.9"]}]},
        {"structure": "all"},
        {"structure": [{"change": "resize", "layers": ["encoder.layer.0.intermediate.dense"]}]},
    ]
    for claim in claims:
        (files / "config.json").write_text(json.dumps({**config, **claim}))
        with pytest.raises(RegistryError) as caught:
            load_runtime(open_model(files), device="cpu", threads=1)
        assert caught.value.reason in {"weights_mismatch", "bad_config"}
    (files / "config.json").write_text(json.dumps(config))
    runtime = load_runtime(open_model(files), device="cpu", threads=1)
    assert runtime.run({"text": ["the cat"]}, NOWHERE).shape == (1, 32)
