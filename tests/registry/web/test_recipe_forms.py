"""Recipes of several steps, written on the page of a new job."""

import re
from typing import Annotated, Literal

import pytest
from django.core.exceptions import ValidationError
from onnx import TensorProto, helper
from pydantic import BaseModel, Field

from registry.models import Job
from registry.recipes import recipe_schema
from registry.services.jobs import submit_job
from registry.web.recipe_fields import make_field
from tests.factories import actor_of, make_version

pytestmark = pytest.mark.django_db

NEW = "/jobs/new?kind=compress"
TWO = {
    "model": "olga/digits-cnn@2",
    "variant": "small",
    "steps.0.method": "export_onnx",
    "steps.1.method": "quantize_dynamic",
    "steps.1.per_channel": "on",
    "device": "cpu",
}


def methods_on(response):
    return re.findall(
        r'<input type="hidden" name="steps\.\d\.method" value="(\w+)"', response.content.decode()
    )


def checked(response, name):
    (box,) = re.findall(rf'<input type="checkbox" name="{name}"[^>]*>', response.content.decode())
    return "checked" in box


def test_steps_are_sent_in_their_order(as_owner, model):
    response = as_owner.post(NEW, TWO)
    assert response.status_code == 302, response.content.decode()
    steps = Job.objects.get().recipe["steps"]
    assert [step["method"] for step in steps] == ["export_onnx", "quantize_dynamic"]
    assert (steps[1]["per_channel"], steps[1]["reduce_range"]) == (True, False)


@pytest.mark.parametrize(
    ("action", "methods"),
    [
        ("add:export_onnx", ["export_onnx", "quantize_dynamic", "export_onnx"]),
        ("up:1", ["quantize_dynamic", "export_onnx"]),
        ("down:0", ["quantize_dynamic", "export_onnx"]),
        ("up:0", ["export_onnx", "quantize_dynamic"]),
        ("remove:0", ["quantize_dynamic"]),
        ("remove:7", ["export_onnx", "quantize_dynamic"]),
        ("nonsense", ["export_onnx", "quantize_dynamic"]),
    ],
)
def test_buttons_change_the_steps_and_submit_nothing(as_owner, model, action, methods):
    response = as_owner.post(NEW, {**TWO, "do": action})
    assert response.status_code == 200
    assert methods_on(response) == methods
    assert not Job.objects.exists()


def test_what_was_typed_moves_with_its_step(as_owner, model):
    moved = as_owner.post(NEW, {**TWO, "do": "up:1"})
    assert checked(moved, "steps.0.per_channel")
    assert not checked(moved, "steps.0.reduce_range"), "it was switched off by hand"
    assert 'value="small"' in moved.content.decode()
    assert re.search(r'<h3 id="step-0-h" tabindex="-1" autofocus', moved.content.decode())


def test_new_step_begins_with_its_defaults(as_owner, model):
    added = as_owner.post(NEW, {**TWO, "do": "add:quantize_dynamic"})
    assert checked(added, "steps.2.reduce_range")
    assert not checked(added, "steps.1.reduce_range")


def test_typing_is_not_judged_before_it_is_sent(as_owner, model):
    response = as_owner.post(NEW, {**TWO, "variant": "Has Spaces", "do": "up:1"})
    assert response.status_code == 200
    assert 'value="Has Spaces"' in response.content.decode()
    assert 'class="errors"' not in response.content.decode()


def test_last_step_cannot_be_removed(as_owner, model):
    one = {key: value for key, value in TWO.items() if not key.startswith("steps.1")}
    response = as_owner.post(NEW, {**one, "do": "remove:0"})
    assert methods_on(response) == ["export_onnx"]
    assert 'value="remove:0"' not in response.content.decode()


def test_a_recipe_has_at_most_eight_steps(as_owner, model):
    full = {f"steps.{at}.method": "export_onnx" for at in range(8)}
    response = as_owner.post(NEW, {"model": "olga/digits-cnn@2", **full, "do": "add:export_onnx"})
    assert methods_on(response) == ["export_onnx"] * 8
    assert 'value="add:export_onnx"' not in response.content.decode()
    over = {**full, "steps.8.method": "export_onnx"}
    refused = as_owner.post(NEW, {"model": "olga/digits-cnn@2", "device": "auto", **over})
    assert refused.status_code == 422
    assert "Takes at most 8 item(s)" in refused.content.decode()


@pytest.mark.parametrize("fields", [{"steps.0.method": "x\0y"}, {"do": "add:polish"}])
def test_unknown_method_is_refused(as_owner, model, fields):
    response = as_owner.post(NEW, {**TWO, **fields})
    assert response.status_code == 400
    assert "is no method of this kind of job" in response.content.decode()


def test_every_method_of_the_union_is_offered(as_owner):
    page = as_owner.get(NEW).content.decode()
    mapping = recipe_schema("compress")["properties"]["steps"]["items"]["discriminator"]["mapping"]
    assert set(re.findall(r'value="add:(\w+)"', page)) == set(mapping)


def test_every_method_can_be_drawn_and_redrawn(as_owner):
    mapping = recipe_schema("compress")["properties"]["steps"]["items"]["discriminator"]["mapping"]
    for method in mapping:
        page = as_owner.get(f"{NEW}&way={method}")
        assert methods_on(page) == [method]
        again = as_owner.post(NEW, {"steps.0.method": method, "do": f"add:{method}"})
        assert methods_on(again) == [method, method]


# --- fields from the schema -----------------------------------------------------------------------


class Wide(BaseModel):
    ratios: Annotated[tuple[float, ...], Field(max_length=3)] = (0.5, 0.9)
    ranks: tuple[int, ...] | None = None
    layers: tuple[str, ...] = ()
    bits: Literal[4, 8] = 8
    mode: Literal["fast", "slow"] | None = None
    kinds: tuple[Literal["conv", "linear"], ...] = ("conv",)
    share: float | None = Field(default=None, gt=0, lt=1)


def field_of(name):
    part = Wide.model_json_schema()["properties"][name]
    options = [option for option in part.get("anyOf", [part]) if option.get("type") != "null"]
    nullable = len(options) < len(part.get("anyOf", [part]))
    return make_field({**options[0], **part}, required=False, nullable=nullable)


@pytest.mark.parametrize(
    ("name", "sent", "value"),
    [
        ("ratios", "0.5, 0.9;1", [0.5, 0.9, 1.0]),
        ("ratios", "", []),
        ("ranks", "4 8\n16", [4, 8, 16]),
        ("layers", "encoder.*\n\n  head \n", ["encoder.*", "head"]),
        ("bits", "4", 4),
        ("mode", "", None),
        ("mode", "slow", "slow"),
        ("kinds", ["conv", "linear"], ["conv", "linear"]),
        ("share", "", None),
        ("share", "0.25", 0.25),
    ],
)
def test_form_values_have_the_types_of_the_recipe(name, sent, value):
    assert field_of(name).clean(sent) == value


@pytest.mark.parametrize(
    ("name", "sent"),
    [("ratios", "half"), ("ranks", "1.5"), ("bits", "5"), ("kinds", ["lstm"]), ("share", "x")],
)
def test_wrong_values_are_refused_at_the_field(name, sent):
    with pytest.raises(ValidationError):
        field_of(name).clean(sent)


def test_defaults_of_lists_are_shown_as_they_are_typed():
    assert field_of("ratios").prepare_value((0.5, 0.9)) == "0.5, 0.9"
    assert field_of("layers").prepare_value(["a", "b"]) == "a\nb"


def test_an_estimate_is_shown_beside_what_was_typed(as_owner, model):
    response = as_owner.post(NEW, {**TWO, "do": "estimate"})
    page = response.content.decode()
    assert response.status_code == 200
    assert not Job.objects.exists()
    assert "Nothing was queued" in page
    assert "parameters of olga/digits-cnn@2" in page
    assert "not known" in page
    assert methods_on(response) == ["export_onnx", "quantize_dynamic"]
    assert 'value="small"' in page


def test_an_estimate_reads_in_chinese(as_owner, model):
    page = as_owner.post(f"/zh-hans{NEW}", {**TWO, "do": "estimate"}).content.decode()
    assert "估算" in page
    assert "Nothing was queued" not in page
    assert "serves the queue" not in page


def test_an_estimate_names_wrong_fields(as_owner, model):
    response = as_owner.post(NEW, {**TWO, "model": "olga/absent", "do": "estimate"})
    assert response.status_code == 422
    assert "Nothing was queued" not in response.content.decode()


def test_what_does_not_fit_is_said_beside_its_field(as_owner, owner, model):
    config = b'{"compression": [{"method": "fixed_point"}], "labels": ["a", "b"]}'
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_model(helper.make_graph([node], "g", [port], [out]))
    files = {"config.json": config, "model.onnx": graph.SerializeToString()}
    make_version(owner, model, files)
    typed = {"model": "olga/digits-cnn@4", "steps.0.method": "export_onnx", "device": "cpu"}
    response = as_owner.post(f"/zh-hans{NEW}", typed)
    assert response.status_code == 422
    # Above the form, and in its step.
    assert response.content.decode().count("模型已经是 ONNX 格式") == 2
    assert not Job.objects.exists()


def values_on(page):
    """Give what is filled into the fields of a page."""
    inputs = re.findall(r"<(?:input|select|textarea)[^>]*>", page)
    return {
        name[1]: value[1] if (value := re.search(r'value="([^"]*)"', tag)) else ""
        for tag in inputs
        if (name := re.search(r'name="([^"]+)"', tag)) and 'type="hidden"' not in tag
    }


def test_another_like_it_keeps_all_steps_and_their_numbers(as_owner, model):
    as_owner.post(
        NEW,
        {
            **TWO,
            "steps.0.method": "svd",
            "steps.0.by": "rank",
            "steps.0.rank": "7",
            "steps.0.energy": "0.95",
            "steps.0.ratio": "0.5",
            "steps.0.exclude": "hidden\nclasses",
            "train_split": "train",
            "test_split": "dev",
            "seed": "5",
        },
    )
    job = Job.objects.get()
    as_owner.post(f"/jobs/{job.pk}/cancel")
    (address,) = set(
        re.findall(r'href="(/jobs/new\?[^"]+)"', as_owner.get(f"/jobs/{job.pk}").content.decode())
    )
    response = as_owner.get(address.replace("&amp;", "&"))
    assert methods_on(response) == ["svd", "quantize_dynamic"]
    page = response.content.decode()
    filled = values_on(page)
    assert (filled["model"], filled["variant"]) == ("olga/digits-cnn@2", "small")
    assert (filled["steps.0.rank"], filled["test_split"], filled["seed"]) == ("7", "dev", "5")
    assert '<option value="rank" selected>' in page
    assert "hidden\nclasses</textarea>" in page
    assert checked(response, "steps.1.per_channel")
    assert not checked(response, "steps.1.reduce_range")


def test_another_like_a_search_keeps_its_goal(as_owner, owner, model, dataset):
    step = {"method": "search", "goal": "fastest", "max_accuracy_loss": 0.02, "budget_minutes": 3.5}
    recipe = {
        "kind": "search",
        "model": "olga/digits-cnn",
        "dataset": "olga/digits",
        "steps": [step],
    }
    job = submit_job(actor=actor_of(owner), recipe=recipe)
    page = as_owner.get(f"/jobs/new?kind=search&like={job.pk}").content.decode()
    filled = values_on(page)
    assert filled["steps.0.max_accuracy_loss"] == "0.02"
    assert filled["steps.0.budget_minutes"] == "3.5"
    assert filled["dataset"] == "olga/digits@1"
    assert '<option value="fastest" selected>' in page
    # Another goal brings its own limits; the rest stays.
    page = as_owner.get(f"/jobs/new?kind=search&way=fits&like={job.pk}").content.decode()
    assert values_on(page)["steps.0.max_bytes"] == "8000000"
    assert values_on(page)["steps.0.budget_minutes"] == "3.5"


def test_what_another_kind_of_job_has_no_place_for_is_left_out(as_owner, model):
    as_owner.post(NEW, TWO)
    like = Job.objects.get().pk
    page = as_owner.get(f"/jobs/new?kind=evaluate&like={like}").content.decode()
    assert values_on(page)["model"] == "olga/digits-cnn@2"


def test_a_job_that_one_may_not_see_is_no_pattern(as_stranger, as_owner, model):
    as_owner.post(NEW, TWO)
    hidden = as_stranger.get(f"{NEW}&like={Job.objects.get().pk}")
    missing = as_stranger.get(f"{NEW}&like=6e1b9ae0-0000-4000-8000-000000000000")
    assert (hidden.status_code, missing.status_code) == (404, 404)
