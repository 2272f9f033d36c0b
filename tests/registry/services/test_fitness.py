"""Recipes that cannot end well with the versions they name: refused by field, before they wait."""

import json

import pytest
from onnx import TensorProto, helper

from registry.errors import Conflict, Invalid
from registry.models import Job
from registry.services import jobs
from registry.services.workers import register_worker
from tests.factories import UserFactory, actor_of, make_model, make_version
from tests.workers.tiny import safetensors

pytestmark = pytest.mark.django_db

CNN = {
    "architecture": {"name": "digits_cnn", "channels": 2, "hidden_size": 8},
    "labels": [str(digit) for digit in range(10)],
}
ENCODER = {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 4}
CNN_SHAPES = {
    "first.weight": [2, 1, 3, 3],
    "first.bias": [2],
    "second.weight": [4, 2, 3, 3],
    "second.bias": [4],
    "hidden.weight": [8, 576],
    "hidden.bias": [8],
    "classes.weight": [10, 8],
    "classes.bias": [10],
}
GPTQ = {"method": "quantize_weights", "algorithm": "gptq"}
LEARNING = {"method": "prune_magnitude", "epochs": 1}


def _count(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def weights(shapes):
    return safetensors(
        **{name: ("F32", shape, bytes(4 * _count(shape))) for name, shape in shapes.items()}
    )


def graph():
    """Write an ONNX file that takes rows of four numbers."""
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], [0.5] * 16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    body = helper.make_graph([node], "g", [port], [out], [weight])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()


def images(count=4, *, dtype="U8", side=28, label="label"):
    each = {"U8": 1, "F32": 4}[dtype] * side * side
    columns = {
        "image": (dtype, [count, side, side], bytes(each * count)),
        label: ("I64", [count], bytes(8 * count)),
    }
    return safetensors(**columns)


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def cnn(alice):
    files = {"config.json": json.dumps(CNN).encode(), "model.safetensors": weights(CNN_SHAPES)}
    return make_version(alice, make_model(alice, "cnn"), files)


@pytest.fixture
def encoder(alice):
    files = {
        "config.json": json.dumps(ENCODER).encode(),
        "model.safetensors": weights({"encoder.layer.0.weight": [4, 4]}),
    }
    return make_version(alice, make_model(alice, "encoder"), files)


@pytest.fixture
def exported(alice):
    return make_version(alice, make_model(alice, "exported"), {"model.onnx": graph()})


def rows(owner, name="rows", **files):
    named = {path.replace("__", "."): content for path, content in files.items()}
    return make_version(owner, make_model(owner, name, kind="dataset"), named)


@pytest.fixture
def digits(alice):
    return rows(alice, train__safetensors=images(), test__safetensors=images())


@pytest.fixture
def texts(alice):
    table = b"text,label\nhello,a\n"
    return rows(alice, "texts", train__csv=table, test__csv=table)


def compress(*steps, model="alice/cnn", dataset="alice/rows", **changes):
    return {"kind": "compress", "model": model, "dataset": dataset, "steps": list(steps), **changes}


def search(model="alice/cnn", dataset="alice/rows", **step):
    return {
        "kind": "search",
        "model": model,
        "dataset": dataset,
        "steps": [{"method": "search", **step}],
    }


def refused(user, recipe):
    """Give the code of the refusal, the fields that it names and its words."""
    with pytest.raises(Invalid) as caught:
        jobs.submit_job(actor=actor_of(user), recipe=recipe)
    assert not Job.objects.exists()
    fields = list(dict.fromkeys(error.field for error in caught.value.errors))
    return caught.value.reason, fields, caught.value.detail


def accepted(user, recipe):
    return jobs.submit_job(actor=actor_of(user), recipe=recipe)


def test_what_fits_is_queued(alice, cnn, digits, encoder, texts, exported):
    accepted(alice, compress(LEARNING, {"method": "quantize_static"}, {"method": "code"}))
    accepted(alice, compress({"method": "distill", "hidden_size": 4}))
    accepted(alice, search(max_accuracy_loss=0.01))
    accepted(alice, search("alice/encoder", "alice/texts", min_cosine=0.99))
    accepted(alice, search("alice/encoder", "alice/texts", max_accuracy_loss=0.1, probe=True))
    accepted(alice, compress({"method": "quantize_weights"}, model="alice/exported", dataset=None))
    accepted(
        alice,
        compress({"method": "distill", "layers": 1}, model="alice/encoder", dataset="alice/texts"),
    )


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({"min_cosine": 0.99}, ["steps.0.min_cosine"]),
        ({"min_neighbour_overlap": 0.9}, ["steps.0.min_neighbour_overlap"]),
        ({"max_accuracy_loss": 0.01, "probe": True}, ["steps.0.probe"]),
    ],
)
def test_a_classifier_has_no_cosine(alice, cnn, digits, asked, fields):
    code, named, said = refused(alice, search(**asked))
    assert (code, named) == ("unfit_goal", fields)
    assert "alice/cnn@1 answers classes" in said


def test_an_encoder_has_no_accuracy_without_a_probe(alice, encoder, texts):
    recipe = search("alice/encoder", "alice/texts", max_accuracy_loss=0.01)
    assert refused(alice, recipe)[:2] == ("unfit_goal", ["steps.0.max_accuracy_loss"])
    recipe = search("alice/encoder", "alice/texts", min_accuracy=0.9)
    assert refused(alice, recipe)[:2] == ("unfit_goal", ["steps.0.min_accuracy"])


def test_accuracy_needs_labels_in_both_splits(alice, cnn):
    rows(
        alice,
        train__safetensors=images(label="target"),
        test__safetensors=images(),
    )
    code, fields, said = refused(alice, search(max_accuracy_loss=0.01))
    assert (code, fields) == ("missing_column", ["dataset"])
    assert "train.safetensors of alice/rows@1 has no column 'label'" in said
    assert "'image', 'target'" in said


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (search(max_accuracy_loss=0.01, test_split="dev"), "steps.0.test_split"),
        (search(max_accuracy_loss=0.01, train_split="dev"), "steps.0.train_split"),
        (compress(LEARNING, train_split="dev"), "train_split"),
        (compress({"method": "quantize_dynamic"}, test_split="tset"), "test_split"),
        (
            {
                "kind": "evaluate",
                "model": "alice/cnn",
                "dataset": "alice/rows",
                "steps": [{"split": "dev"}],
            },
            "steps.0.split",
        ),
    ],
)
def test_a_split_that_is_not_there(alice, cnn, digits, recipe, field):
    code, fields, said = refused(alice, recipe)
    assert (code, fields) == ("missing_split", [field])
    assert "test, train" in said


def test_rows_to_learn_from_are_not_measured_on(alice, cnn):
    rows(alice, train__safetensors=images())
    for step in (LEARNING, {"method": "quantize_static"}, GPTQ):
        assert refused(alice, compress(step))[:2] == ("missing_split", ["test_split"])
    accepted(alice, compress({"method": "quantize_dynamic"}))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"side": 32}, "U8 [4, 32, 32]"),
        ({"dtype": "F32"}, "F32 [4, 28, 28]"),
    ],
)
def test_calibration_rows_have_the_shape_and_type_of_the_model(alice, cnn, made, says):
    rows(alice, train__safetensors=images(**made), test__safetensors=images())
    code, fields, said = refused(alice, compress({"method": "quantize_static"}))
    assert (code, fields) == ("bad_column", ["dataset"])
    assert says in said


@pytest.mark.parametrize(
    ("dtype", "shape", "code"),
    [("F32", [3, 5], "bad_column"), ("I64", [3, 4], "bad_column"), ("F32", [3, 4], None)],
)
def test_the_rows_of_a_graph_fit_its_inputs(alice, exported, dtype, shape, code):
    raw = bytes({"F32": 4, "I64": 8}[dtype] * _count(shape))
    part = safetensors(x=(dtype, shape, raw))
    rows(alice, train__safetensors=part, test__safetensors=part)
    recipe = compress({"method": "quantize_static"}, model="alice/exported")
    if code is None:
        accepted(alice, recipe)
    else:
        assert refused(alice, recipe)[:2] == (code, ["dataset"])


def test_texts_are_not_read_from_tensors_nor_images_from_texts(alice, cnn, digits, encoder, texts):
    recipe = search("alice/encoder", "alice/rows", min_cosine=0.9)
    assert refused(alice, recipe)[:2] == ("bad_column", ["dataset"])
    code, fields, said = refused(
        alice, compress({"method": "quantize_static"}, dataset="alice/texts")
    )
    assert (code, fields) == ("missing_column", ["dataset"])
    assert "'image'" in said


@pytest.mark.parametrize("method", ["prune_structured", "svd"])
def test_a_graph_has_no_weights_to_change(alice, exported, method):
    step = {"method": method} | ({"epochs": 0} if "prune" in method else {})
    code, fields, said = refused(alice, compress(step, model="alice/exported", dataset=None))
    assert (code, fields) == ("needs_module", ["steps.0.method"])
    assert "alice/exported@1" in said


def test_the_weights_of_a_graph_are_pruned_and_shared_at_once(alice, exported):
    steps = ({"method": "prune_magnitude", "epochs": 0}, {"method": "cluster", "epochs": 0})
    recipe = compress(*steps, model="alice/exported", dataset=None)
    assert jobs.submit_job(actor=actor_of(alice), recipe=recipe).state == "queued"


@pytest.mark.parametrize("method", ["prune_magnitude", "cluster"])
def test_a_graph_is_not_trained(alice, exported, digits, method):
    step = {"method": method, "epochs": 1}
    code, fields, said = refused(alice, compress(step, model="alice/exported"))
    assert (code, fields[0]) == ("needs_module", "steps.0.method")
    assert "epochs to 0" in said


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        (["quantize_weights", "svd"], "needs_module"),
        (["quantize_weights", "cluster"], "already_quantized"),
        (["export_onnx", "export_onnx"], "already_onnx"),
        (["quantize_weights", "quantize_dynamic"], "already_quantized"),
        (["fixed_point", "fuse"], "already_quantized"),
    ],
)
def test_the_order_of_steps_is_followed(alice, cnn, steps, code):
    recipe = compress(*({"method": name} for name in steps), dataset=None)
    assert refused(alice, recipe)[:2] == (code, ["steps.1.method"])


def test_a_variant_that_is_quantized_is_not_quantized_again(alice):
    config = {"compression": [{"method": "quantize_dynamic"}]}
    files = {"config.json": json.dumps(config).encode(), "model.onnx": graph()}
    make_version(alice, make_model(alice, "small"), files)
    recipe = compress({"method": "quantize_weights"}, model="alice/small", dataset=None)
    code, fields, said = refused(alice, recipe)
    assert (code, fields) == ("already_quantized", ["steps.0.method"])
    assert "quantize_dynamic" in said


@pytest.mark.parametrize(
    ("asked", "code", "field"),
    [
        ({"hidden_size": 64}, "student_too_large", "hidden_size"),
        ({"channels": 3}, "student_too_large", "channels"),
        ({"layers": 1}, "bad_student", "layers"),
        ({"embedding_size": 4}, "bad_student", "embedding_size"),
        ({"hidden_weight": 1.0}, "bad_student", "hidden_weight"),
    ],
)
def test_a_student_is_smaller_than_its_teacher(alice, cnn, digits, asked, code, field):
    found = refused(alice, compress({"method": "distill", **asked}))
    assert found[:2] == (code, [f"steps.0.{field}"])


def test_a_student_has_fewer_layers_than_its_teacher(alice, encoder, texts):
    step = {"method": "distill", "layers": 2}
    recipe = compress(step, model="alice/encoder", dataset="alice/texts")
    assert refused(alice, recipe)[:2] == ("student_too_large", ["steps.0.layers"])


def test_only_like_weights_are_merged(alice, cnn, exported):
    wide = CNN_SHAPES | {"hidden.weight": [9, 576], "hidden.bias": [9]}
    files = {"config.json": json.dumps(CNN).encode(), "model.safetensors": weights(wide)}
    make_version(alice, make_model(alice, "wide"), files)
    for other, code in (
        ("alice/wide", "cannot_merge"),
        ("alice/exported", "needs_module"),
        ("alice/cnn", "cannot_merge"),
    ):
        step = {"method": "merge", "others": [other]}
        assert refused(alice, compress(step, dataset=None))[:2] == (code, ["steps.0.others.0"])


def test_weights_of_other_libraries_are_not_pruned(alice):
    gguf = b"GGUF" + (3).to_bytes(4, "little") + bytes(16)
    make_version(alice, make_model(alice, "gguf"), {"model.gguf": gguf})
    recipe = compress({"method": "prune_magnitude", "epochs": 0}, model="alice/gguf", dataset=None)
    code, fields, said = refused(alice, recipe)
    assert (code, fields) == ("not_runnable", ["model"])
    assert "safetensors" in said


def test_pruning_everything_is_refused(alice, cnn):
    step = {"method": "prune_magnitude", "sparsity": 1.0, "epochs": 0}
    assert refused(alice, compress(step, dataset=None))[1] == ["steps.0.sparsity"]


def test_a_graph_is_not_trained_further(alice, exported, texts):
    recipe = {
        "kind": "train",
        "model": "alice/exported",
        "dataset": "alice/texts",
        "output": "alice/more",
        "steps": [{}],
    }
    assert refused(alice, recipe)[:2] == ("unknown_architecture", ["model"])


def test_columns_of_json_lines_are_those_of_the_first_rows(alice, encoder):
    lines = b"".join(json.dumps({"sentence": str(row)}).encode() + b"\n" for row in range(3))
    rows(alice, "said", train__jsonl=lines, test__jsonl=lines)
    code, _fields, said = refused(alice, search("alice/encoder", "alice/said", min_cosine=0.9))
    assert code == "missing_column"
    assert "'sentence'" in said


# --- Packed weights ------------------------------------------------------------------------------


FOUR = {"method": "pack_linear", "bits": 4}


def worker(*gpus):
    register_worker(
        name="w",
        queues=["cpu", "gpu"] if gpus else ["cpu"],
        devices=[{"kind": "cpu", "name": "a CPU", "threads": 2}, *gpus],
    )


def gpu(name, *capability):
    told = {"capability": list(capability)} if capability else {}
    return {"kind": "gpu", "index": 0, "name": name, "memory_bytes": 1 << 33, **told}


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_four_bits_want_a_gpu(alice, cnn, digits, device):
    worker()
    code, fields, said = refused(alice, compress(FOUR, device=device))
    assert (code, fields) == ("no_int4", ["steps.0.bits"])
    assert "this job would run on cpu. Use quantize_weights" in said
    accepted(alice, compress({**FOUR, "bits": 8}, device=device))


def test_four_bits_want_a_gpu_with_tensor_cores(alice, cnn, digits):
    worker(gpu("Old Card", 7, 5))
    code, fields, said = refused(alice, compress(FOUR))
    assert (code, fields) == ("no_int4", ["steps.0.bits"])
    assert "would run on Old Card" in said


@pytest.mark.parametrize("card", [gpu("New Card", 9, 0), gpu("Unknown Card")])
def test_four_bits_wait_for_a_gpu_that_may_do(alice, cnn, digits, card):
    worker(card)
    assert accepted(alice, compress(FOUR)).queue == "gpu"


def test_who_asks_for_a_gpu_that_nobody_has_is_told_that(alice, cnn, digits):
    worker()
    with pytest.raises(Conflict) as caught:
        jobs.submit_job(actor=actor_of(alice), recipe=compress(FOUR, device="gpu"))
    assert caught.value.reason == "no_gpu"


@pytest.mark.parametrize(
    "recipe",
    [
        compress({"method": "quantize_dynamic"}),
        compress({"method": "pack_linear"}),
        search(max_accuracy_loss=0.01),
        {
            "kind": "train",
            "model": "alice/cnn",
            "dataset": "alice/rows",
            "output": "alice/more",
            "steps": [{"method": "train"}],
        },
    ],
    ids=["int8", "again", "search", "train"],
)
def test_what_is_packed_is_only_coded(alice, digits, recipe):
    config = {**CNN, "structure": [{"change": "packed", "layers": ["hidden"]}]}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights(CNN_SHAPES)}
    make_version(alice, make_model(alice, "cnn"), files)
    assert refused(alice, recipe)[:2] == ("already_quantized", ["model"])
    accepted(alice, compress({"method": "code"}))


# --- What a training names ------------------------------------------------------------------------


def training(architecture="digits_cnn", dataset="alice/rows", **step):
    return {
        "kind": "train",
        "dataset": dataset,
        "output": "alice/made",
        "architecture": {"name": architecture},
        "steps": [step],
    }


@pytest.mark.parametrize(
    ("recipe", "code_and_field", "says"),
    [
        (training(image_column="photo"), ("missing_column", "image_column"), "'image', 'label'"),
        (training(label_column="digit"), ("missing_column", "label_column"), "no column 'digit'"),
        (training(train_split="dev"), ("missing_split", "train_split"), "test, train"),
        (
            training("text_classifier", "alice/texts", text_column="body"),
            ("missing_column", "text_column"),
            "train.csv of alice/texts@1 has no column 'body'; it has 'text', 'label'",
        ),
    ],
)
def test_a_training_names_columns_that_are_there(
    alice, digits, texts, recipe, code_and_field, says
):
    code, field = code_and_field
    reason, fields, said = refused(alice, recipe)
    assert (reason, fields) == (code, [f"steps.0.{field}"])
    assert says in said


def test_a_training_that_goes_on_names_columns_that_are_there(alice, cnn, digits):
    recipe = {**training(label_column="digit"), "architecture": None, "model": "alice/cnn"}
    assert refused(alice, recipe)[:2] == ("missing_column", ["steps.0.label_column"])
    accepted(alice, {**recipe, "steps": [{}]})


def test_a_training_needs_no_rows_to_measure_on(alice, texts):
    rows(alice, train__safetensors=images())
    accepted(alice, training())
    accepted(alice, training("text_classifier", "alice/texts"))


def test_rows_to_measure_a_training_on_have_its_columns(alice):
    rows(alice, train__safetensors=images(), test__safetensors=images(label="digit"))
    code, fields, said = refused(alice, training())
    assert (code, fields) == ("missing_column", ["steps.0.label_column"])
    assert "test.safetensors of alice/rows@1" in said


def test_columns_that_nobody_knows_are_no_reason(alice):
    rows(alice, train__csv=b"text,label\n" + b'"' + b"x" * 300_000)
    accepted(alice, training("text_classifier"))
