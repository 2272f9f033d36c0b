"""Refusals speak the language of the page: every template is known, filled in and translated."""

import ast
import json
import string

import pytest
from django.utils import translation
from django.utils.translation import gettext
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import (
    Conflict,
    FieldError,
    Invalid,
    NotFound,
    RegistryError,
    Text,
    pack,
    unpack,
)
from registry.models import JobEvent
from registry.services import jobs
from registry.services.jobs import log_line
from registry.services.texts import invalid_field
from registry.web.refusals import words_at, words_of
from tests.factories import actor_of
from tests.registry.web.messages import CATALOGUES, read_catalogue
from tests.registry.web.templates import fields_of, titles, trees, uses

CODE = trees()
USES = list(uses(CODE))


# --- The rule that every refusal keeps ----------------------------------------------------------


@pytest.mark.contract
def test_code_is_read_at_all():
    makers = {use.maker.name for use in USES}
    assert len(USES) > 400
    assert {"Invalid", "NotFound", "FieldError", "invalid_field", "malformed", "_bad"} <= makers
    assert ("registry/errors.py", "Not found") in set(titles(CODE))


@pytest.mark.contract
@pytest.mark.parametrize("use", USES, ids=lambda use: use.place)
def test_template_is_a_literal_whose_fields_get_values(use):
    if use.template is None:
        assert use.passes_on, "an f-string or a sum cannot be translated; give values by keyword"
        return
    if use.maker.name != "Wording":
        assert use.fields == use.values, "each field needs a value, and each value a field"
    assert all(name.isidentifier() for name in use.fields), "name the fields"


@pytest.mark.contract
@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_every_template_is_translated_with_its_fields(path):
    known = {message.id: message.string for message in read_catalogue(path) if not message.context}
    for template in {use.template for use in USES if use.template}:
        assert known.get(template), f"untranslated: {template}"
        assert fields_of(known[template]) == fields_of(template), template
    for _, title in titles(CODE):
        assert known.get(title), f"untranslated: {title}"


@pytest.mark.parametrize(
    "source",
    [
        "raise Invalid(f'The name {name} is taken.')",
        "raise Invalid('The name ' + name)",
        "raise Invalid('The name {name} is taken.')",
        "raise Invalid('The name is taken.', name=name)",
        "raise invalid_field('name', 'taken', detail)",
        "def _bad(template, /, **values):\n    return Invalid(template, **values)\n_bad('{name}')",
    ],
)
def test_rule_sees_what_breaks_it(source):
    base = ("registry/errors.py", "registry/services/texts.py")
    code = {**{place: CODE[place] for place in base}, "new.py": ast.parse(source)}
    found = [use for use in uses(code) if use.place.startswith("new.py")]
    assert found
    assert not all(
        use.passes_on if use.template is None else use.fields == use.values for use in found
    )


# --- What a reader sees -------------------------------------------------------------------------


@pytest.mark.django_db
def test_page_refuses_in_its_language_and_the_api_in_english(as_owner, model, owner):
    form = {"namespace": "olga", "name": "digits-cnn", "visibility": "public"}
    page = as_owner.post("/zh-hans/models/new", form).content.decode()
    assert "olga/digits-cnn 已存在；请为它添加版本，或另选名称。" in page
    assert "already exists" not in page
    page = as_owner.post("/models/new", form).content.decode()
    assert "olga/digits-cnn already exists; add a version to it" in page


@pytest.mark.django_db
def test_words_among_the_values_are_translated(as_stranger, model):
    response = as_stranger.post("/zh-hans/models/olga/digits-cnn/settings", {"name": "mine"})
    assert response.status_code == 403
    assert "此操作需要在 olga/digits-cnn 上具有贡献者角色；stan 的角色是无。" in (
        response.content.decode()
    )


def test_values_inside_values_are_translated():
    reason = Text("it has no files that a job could read.")
    error = Conflict("{version} cannot be read: {reason}", version="a/b@1", reason=reason)
    wrapped = Invalid("{problem}; choose one of {kinds}.", problem=error, kinds="x")
    assert error.detail == "a/b@1 cannot be read: it has no files that a job could read."
    with translation.override("zh-hans"):
        assert words_of(wrapped) == "无法读取 a/b@1：没有作业可以读取的文件。；请选择其中之一：x。"
    assert words_of(wrapped) == wrapped.detail


def test_language_follows_the_address():
    error = NotFound("{version} was deleted.", version="a/b@1")
    assert words_at("/zh-hans/uploads/1", error) == "a/b@1 已被删除。"
    assert words_at("/uploads/1", error) == "a/b@1 was deleted."


def test_kind_of_a_thing_is_a_word():
    error = NotFound(
        "There is no {kind} {namespace}/{name} that you may see.",
        kind="model",
        namespace="a",
        name="model",
    )
    with translation.override("zh-hans"):
        assert words_of(error) == "没有您可查看的模型 a/model。"


# --- Reasons that a job left in its row ---------------------------------------------------------


def failed_job(owner, model, why, said):
    recipe = {
        "kind": "compress",
        "schema": 1,
        "model": "olga/digits-cnn",
        "steps": [{"method": "export_onnx"}],
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    claim = jobs.claim_job(worker="w", queues=["cpu"])
    jobs.fail_job(claim, code="bad_column", detail=why, said=said)
    return job


@pytest.mark.django_db
def test_failed_job_says_why_in_the_language_of_the_page(as_owner, owner, model):
    why = NotFound("There is no {kind} {namespace}/{name} that you may see.", **DIGITS)
    job = failed_job(owner, model, why.detail, pack(why))
    words = "没有您可查看的数据集 olga/digits。"
    assert words in as_owner.get(f"/zh-hans/jobs/{job.pk}").content.decode()
    assert why.detail in as_owner.get(f"/jobs/{job.pk}").content.decode()
    job.refresh_from_db()
    assert job.error_detail == "There is no dataset olga/digits that you may see."


DIGITS = {"kind": "dataset", "namespace": "olga", "name": "digits"}
HOSTILE = {"template": "{a:>1000000000}", "values": {"a": "x"}}


@pytest.mark.django_db
@pytest.mark.parametrize(
    "said",
    [
        None,
        HOSTILE,
        {"template": "{a.__class__}", "values": {"a": "x"}},
        {"template": "{version} was deleted.", "values": {"version": HOSTILE}},
    ],
)
def test_template_that_no_code_of_ours_holds_is_never_filled_in(as_owner, owner, model, said):
    job = failed_job(owner, model, "Plain words.", said)
    assert "Plain words." in as_owner.get(f"/zh-hans/jobs/{job.pk}").content.decode()


TEXTS = st.text(st.characters(codec="utf-8")) | st.sampled_from(
    ["{", "}", "{}", "{{", "{name}", "{0.__class__}", "%", "%s", "%(name)s", "<b>", "{value!r:>9}"]
)


@given(TEXTS)
def test_values_are_only_values(value):
    error = invalid_field("name", "bad_name", "{field} must be text.", field=value)
    assert error.detail == f"{value} must be text."
    assert error.errors[0].detail == error.detail
    with translation.override("zh-hans"):
        assert words_of(error) == f"{value} 必须是文本。"
        assert words_of(error.errors[0]) == words_of(error)


@given(TEXTS, TEXTS)
def test_a_field_error_may_hold_any_text(field, value):
    problem = FieldError(field, "bad", "{value!r} is not one of {choices}.", value=value, choices=1)
    assert problem.detail == f"{value!r} is not one of 1."


@given(TEXTS, st.integers() | st.floats())
def test_what_is_packed_reads_the_same_again(text, number):
    inner = Text("{problem}", problem=text)
    said = Text(
        "{value!r} is not one of {choices}: {inner}", value=text, choices=number, inner=inner
    )
    packed = json.loads(json.dumps(pack(said), allow_nan=False))
    assert unpack(packed).detail == said.detail


def test_refusal_without_its_value_still_says_something():
    assert RegistryError("{name} is missing {0} {").detail == "{name} is missing {0} {"


def test_values_are_said_while_they_can_be_asked():
    class Row:
        said = 0

        def __str__(self):
            Row.said += 1
            return "a/b"

    error = NotFound("{version} was deleted.", version=Row())
    assert error.values == {"version": "a/b"}
    assert Row.said == 1


@pytest.mark.parametrize("title", sorted({title for _, title in titles(CODE)}))
def test_titles_are_translated(title):
    with translation.override("zh-hans"):
        assert gettext(title) != title


def test_braces_of_every_translation_can_be_read():
    for path in CATALOGUES:
        for message in read_catalogue(path):
            if "python-brace-format" in message.flags and isinstance(message.string, str):
                assert list(string.Formatter().parse(message.string))


# --- Lines of a job's log -------------------------------------------------------------------------


def test_the_log_of_a_job_is_in_the_language_of_the_page(as_owner, owner, model):
    recipe = {
        "kind": "compress",
        "model": "olga/digits-cnn@2",
        "steps": [{"method": "quantize_dynamic"}],
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    claim = jobs.claim_job(worker="w", queues=["cpu"])
    said = Text("Resumed after step {step}.", step=40)
    odd = {"template": "Call {name}: {pk} & <b>now</b>", "values": {"name": "me", "pk": 1}}
    lines = [
        log_line(said),
        {"message": "Plain words of a process.", "level": "error"},
        {"message": "Made up words.", "level": "info", "said": odd},
    ]
    jobs.record_events(claim, [jobs.Message("log", line) for line in lines])
    chinese = as_owner.get(f"/zh-hans/jobs/{job.pk}").content.decode()
    assert "从第 40 步之后继续。" in chinese
    assert "Plain words of a process." in chinese
    assert "Made up words." in chinese, "only templates of the catalogue are filled in"
    assert "Call me" not in chinese
    english = as_owner.get(f"/jobs/{job.pk}").content.decode()
    assert "Resumed after step 40." in english
    first = JobEvent.objects.filter(job=job, type="log").earliest("pk")
    assert first.data["message"] == "Resumed after step 40.", "programs read English"
    jobs.cancel_job(actor=actor_of(owner), job=job)
    chinese = as_owner.get(f"/zh-hans/jobs/{job.pk}").content.decode()
    assert "olga 要求取消。" in chinese
