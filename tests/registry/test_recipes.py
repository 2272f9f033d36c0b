"""Recipes: what is accepted, what is refused, and in which words."""

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.recipes import (
    RECIPES,
    CompressRecipe,
    TrainRecipe,
    parse_recipe,
    parse_reference,
    recipe_schema,
)

COMPRESS: dict[str, Any] = {
    "kind": "compress",
    "schema": 1,
    "model": "samples/digits-cnn@1",
    "dataset": "samples/mnist-digits@1",
    "steps": [{"method": "quantize_dynamic", "per_channel": True, "reduce_range": True}],
}
TRAIN: dict[str, Any] = {
    "kind": "train",
    "schema": 1,
    "dataset": "samples/mnist-digits",
    "output": "samples/digits-cnn",
    "architecture": {"name": "digits_cnn"},
    "steps": [{"method": "train", "epochs": 3, "learning_rate": 0.01}],
}
INFER: dict[str, Any] = {
    "kind": "infer",
    "schema": 1,
    "model": "samples/digits-cnn@champion",
    "dataset": "samples/mnist-digits",
    "output": "alice/predictions",
    "steps": [{"method": "predict", "batch_size": 64, "split": "test"}],
}
EVALUATE: dict[str, Any] = {
    "kind": "evaluate",
    "schema": 1,
    "model": "samples/digits-cnn",
    "dataset": "samples/mnist-digits",
    "steps": [{"method": "evaluate"}],
}
PROFILE: dict[str, Any] = {
    "kind": "profile",
    "schema": 1,
    "model": "samples/digits-cnn",
    "steps": [{"method": "profile"}],
}
SEARCH: dict[str, Any] = {
    "kind": "search",
    "schema": 1,
    "model": "samples/digits-cnn",
    "dataset": "samples/mnist-digits",
    "steps": [{"method": "search", "goal": "smallest", "max_accuracy_loss": 0.01}],
}
DIFF: dict[str, Any] = {
    "kind": "diff",
    "schema": 1,
    "base": "samples/digits-cnn@1",
    "model": "samples/digits-cnn@2",
    "steps": [{"method": "diff"}],
}
TUNE: dict[str, Any] = {
    "kind": "tune",
    "schema": 1,
    "model": "samples/digits-cnn",
    "steps": [{"method": "tune", "threads": [1, 2], "max_wait_ms": 20}],
}
EXPORT: dict[str, Any] = {
    "kind": "export",
    "schema": 1,
    "model": "samples/digits-cnn@1",
    "steps": [{"method": "export", "target": "pt2"}],
}
ALL = [COMPRESS, TRAIN, INFER, EVALUATE, PROFILE, SEARCH, DIFF, TUNE, EXPORT]


def with_step(recipe: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {**recipe, "steps": [{**recipe["steps"][0], **changes}]}


def refused(data: object) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        parse_recipe(data)
    assert caught.value.detail
    return {error.field: error.code for error in caught.value.errors}


@pytest.mark.parametrize("data", ALL, ids=lambda data: data["kind"])
def test_a_recipe_survives_a_round_trip_and_is_hashable(data):
    recipe = parse_recipe(data)
    written = json.loads(json.dumps(recipe.to_json(), allow_nan=False))
    again = parse_recipe(written)
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert written["schema"] == 1


@pytest.mark.parametrize(
    ("data", "produces"),
    zip(
        ALL,
        [
            "new_variant",
            "model",
            "dataset",
            "evaluations",
            "evaluations",
            "new_variants",
            "evaluations",
            "evaluations",
            "export",
        ],
        strict=True,
    ),
)
def test_a_recipe_tells_what_it_produces(data, produces):
    assert parse_recipe(data).produces == produces


def test_references_name_roles_and_can_be_replaced_by_exact_ones():
    recipe = parse_recipe(INFER)
    assert recipe.references() == {
        "model": "samples/digits-cnn@champion",
        "dataset": "samples/mnist-digits",
    }
    exact = recipe.resolved({"model": "samples/digits-cnn@3", "dataset": "samples/mnist-digits@1"})
    assert exact.references()["model"] == "samples/digits-cnn@3"
    assert exact.steps == recipe.steps
    assert parse_recipe(TRAIN).references() == {"dataset": "samples/mnist-digits"}
    with pytest.raises(Invalid, match="refers to no model"):
        parse_recipe(TRAIN).resolved({"model": "a/b@1"})


def test_variant_is_named_after_the_last_method_unless_given():
    recipe = parse_recipe(COMPRESS)
    assert isinstance(recipe, CompressRecipe)
    assert recipe.variant_name == "int8"
    exported = parse_recipe({**COMPRESS, "steps": [{"method": "export_onnx"}]})
    assert isinstance(exported, CompressRecipe)
    assert exported.variant_name == "onnx"
    named = parse_recipe({**COMPRESS, "variant": "int8-small"})
    assert isinstance(named, CompressRecipe)
    assert named.variant_name == "int8-small"


@pytest.mark.parametrize(
    ("data", "device", "offered", "queue"),
    [
        (COMPRESS, "auto", True, "cpu"),
        (COMPRESS, "gpu", True, "gpu"),
        (TRAIN, "auto", True, "gpu"),
        (TRAIN, "auto", False, "cpu"),
        (TRAIN, "cpu", True, "cpu"),
        (TRAIN, "gpu", False, "gpu"),
        (INFER, "auto", True, "gpu"),
        (EVALUATE, "auto", False, "cpu"),
    ],
)
def test_queue_follows_need_and_offer(data, device, offered, queue):
    assert parse_recipe({**data, "device": device}).queue(gpu_offered=offered) == queue


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("samples/digits-cnn", "latest"),
        ("samples/digits-cnn@latest", "latest"),
        ("samples/digits-cnn@12", "12"),
        ("samples/digits-cnn@champion", "@champion"),
    ],
)
def test_reference_speaks_of_versions_as_the_registry_does(text, version):
    reference = parse_reference(text)
    assert (reference.namespace, reference.name) == ("samples", "digits-cnn")
    assert reference.version == version
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    ["", "digits", "a/b/c", "a/b@0", "a/b@", "../b", "a/..", "a/b@1\n", "a/b@@x", "a /b", "é/b"],
)
def test_a_malformed_reference_is_refused(text):
    with pytest.raises(Invalid) as caught:
        parse_reference(text)
    assert caught.value.reason == "bad_reference"
    assert refused({**COMPRESS, "model": text}) == {"model": "bad_reference"}


@pytest.mark.parametrize(
    ("data", "errors"),
    [
        ({}, {"kind": "required"}),
        ({"kind": "mine"}, {"kind": "not_a_choice"}),
        ({"kind": ["train"]}, {"kind": "not_a_choice"}),
        ({**TRAIN, "schema": 2}, {"schema": "not_a_choice"}),
        ({**TRAIN, "command": "rm"}, {"command": "unknown_field"}),
        (with_step(TRAIN, script="x"), {"steps.0.script": "unknown_field"}),
        (with_step(TRAIN, epochs=10**9), {"steps.0.epochs": "out_of_range"}),
        (with_step(TRAIN, epochs=10**40), {"steps.0.epochs": "out_of_range"}),
        (with_step(TRAIN, epochs=True), {"steps.0.epochs": "wrong_type"}),
        (with_step(TRAIN, epochs=1.5), {"steps.0.epochs": "wrong_type"}),
        (with_step(TRAIN, epochs="3"), {"steps.0.epochs": "wrong_type"}),
        (with_step(TRAIN, learning_rate=math.nan), {"steps.0.learning_rate": "not_finite"}),
        (with_step(TRAIN, learning_rate=math.inf), {"steps.0.learning_rate": "not_finite"}),
        (with_step(TRAIN, learning_rate=0), {"steps.0.learning_rate": "out_of_range"}),
        (with_step(TRAIN, optimizer="lion"), {"steps.0.optimizer": "not_a_choice"}),
        (with_step(TRAIN, method="distill"), {"steps.0.method": "not_a_choice"}),
        (with_step(COMPRESS, method="magic"), {"steps.0.method": "not_a_choice"}),
        (with_step(COMPRESS, quantize_dynamic=1), {"steps.0.quantize_dynamic": "unknown_field"}),
        ({**COMPRESS, "steps": [{}]}, {"steps.0.method": "required"}),
        ({**COMPRESS, "steps": []}, {"steps": "wrong_length"}),
        ({**COMPRESS, "steps": COMPRESS["steps"] * 9}, {"steps": "wrong_length"}),
        ({**COMPRESS, "steps": "quantize"}, {"steps": "wrong_type"}),
        ({**COMPRESS, "variant": "../x"}, {"variant": "bad_format"}),
        ({**TRAIN, "output": "samples/digits@3"}, {"output": "bad_name"}),
        ({**TRAIN, "architecture": {"name": "bert"}}, {"architecture.name": "not_a_choice"}),
        ({**TRAIN, "architecture": {}}, {"architecture.name": "required"}),
        (
            {**TRAIN, "architecture": {"name": "digits_cnn", "channels": 0}},
            {"architecture.channels": "out_of_range"},
        ),
        ({**TRAIN, "model": "samples/digits-cnn@1"}, {"": "inconsistent"}),
        ({**TRAIN, "architecture": None}, {"": "inconsistent"}),
        ({**TRAIN, "output\ud800": 1}, {"": "wrong_type"}),
    ],
)
def test_bad_recipes_name_the_field(data, errors):
    assert refused(data) == errors


@pytest.mark.parametrize("data", [None, [], "train", 3])
def test_a_recipe_is_an_object(data):
    assert refused(data) == {}


def test_detail_names_the_first_field_and_counts_the_rest():
    with pytest.raises(Invalid) as caught:
        parse_recipe(with_step(TRAIN, epochs=0, batch_size=0))
    assert caught.value.detail == (
        "The train recipe is not valid. steps.0.epochs: Must be at least 1. (1 more)"
    )


def test_the_number_of_reported_errors_is_bounded():
    assert len(refused({**TRAIN, **{f"x{n}": 1 for n in range(1000)}})) == 50


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"max_accuracy_loss": None}, "Say what may be lost"),
        ({"goal": "fits"}, "how many bytes"),
        ({"max_accuracy_loss": None, "min_cosine": 0.9, "probe": True}, "A probe measures"),
        ({"min_cosine": 0.99}, "switch the probe on"),
        ({"min_accuracy": 0.9, "probe": True}, "without a probe"),
    ],
)
def test_a_search_needs_a_goal_that_can_be_judged(step, said):
    with pytest.raises(Invalid, match=said) as caught:
        parse_recipe(with_step(SEARCH, **step))
    assert [(error.field, error.code) for error in caught.value.errors] == [
        ("steps.0", "inconsistent")
    ]
    parse_recipe(with_step(SEARCH, goal="fits", max_bytes=8_000_000, max_accuracy_loss=None))
    parse_recipe(with_step(SEARCH, min_cosine=0.99, probe=True))
    parse_recipe(with_step(SEARCH, min_accuracy=0.95, max_accuracy_loss=None))


def test_a_search_needs_a_dataset():
    assert refused({**SEARCH, "dataset": None}) == {"dataset": "wrong_type"}


def test_a_frozen_recipe_cannot_be_changed():
    recipe = parse_recipe(TRAIN)
    assert isinstance(recipe, TrainRecipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.output = "x/y"  # type: ignore[misc]  # the point of the test


def walk_objects(schema):
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from walk_objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from walk_objects(value)


@pytest.mark.parametrize("kind", [None, *RECIPES])
def test_schema_is_closed_and_every_number_is_bounded(kind):
    schema = json.loads(json.dumps(recipe_schema(kind)))
    for node in walk_objects(schema):
        if node.get("type") == "object":
            assert node["additionalProperties"] is False
        if node.get("type") in {"integer", "number"} and not {"const", "enum"} & node.keys():
            assert {"minimum", "exclusiveMinimum"} & node.keys(), node
            assert {"maximum", "exclusiveMaximum"} & node.keys(), node
        if node.get("type") == "string" and not {"const", "enum"} & node.keys():
            assert {"maxLength", "pattern"} & node.keys(), node


@pytest.mark.parametrize("kind", RECIPES)
def test_every_field_has_a_label_for_the_form(kind):
    schema = recipe_schema(kind)
    for model in [schema, *schema["$defs"].values()]:
        assert model["title"]
        for field in model["properties"].values():
            assert field["title"] != ""


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
keys = st.sampled_from(
    ["kind", "schema", "steps", "model", "dataset", "output", "method", "architecture", "name"]
)
values = st.recursive(
    scalars | st.sampled_from([*RECIPES, "a/b", "digits_cnn", "train", "quantize_dynamic"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(max_size=8), inner, max_size=6)
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(values)
def test_any_value_is_a_recipe_or_a_plain_refusal(data):
    try:
        parse_recipe(data)
    except Invalid as invalid:
        assert invalid.detail.encode()  # noqa: PT017 - either outcome is fine, no other is


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.sampled_from(ALL),
    st.dictionaries(st.sampled_from(["epochs", "learning_rate", "batch_size", "x"]), values),
)
def test_any_step_value_is_accepted_within_bounds_or_refused(data, changes):
    try:
        recipe = parse_recipe(with_step(data, **changes))
    except Invalid:
        return
    json.dumps(recipe.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget_minutes": 0},
        {"budget_minutes": 1e9},
        {"threads": [0]},
        {"threads": [1_000_000]},
        {"threads": [1] * 9},
        {"batch_sizes": []},
        {"batch_sizes": [0]},
        {"batch_sizes": [1_000_000]},
        {"runtimes": []},
        {"runtimes": ["tvm"]},
        {"objective": "beauty"},
        {"max_wait_ms": 0},
        {"repetitions": 1},
        {"patience_seconds": 1e6},
        {"free_size": 10**9},
        {"text_words": []},
        {"text_words": [0]},
        {"text_words": [10**6]},
        {"text_words": [1] * 9},
    ],
)
def test_what_a_tuning_may_try_is_bounded(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        parse_recipe(with_step(TUNE, **wrong))
