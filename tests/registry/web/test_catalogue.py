"""Both languages are complete: nothing untranslated, fuzzy, missing or left over."""

import re

import pytest

from registry.recipes import RECIPES
from registry.web.recipe_forms import RecipeForm, ways
from tests.registry.web.messages import CATALOGUES, read_catalogue, template_catalogue

# Marks of Latin text between Chinese characters, which have wide ones of their own.
NARROW = re.compile(r"[\u4e00-\u9fff](?:[,;:?!](?:\s|[\u4e00-\u9fff]|$)|\()")
PLACEHOLDER = re.compile(r"%\([a-z_]+\)[sd]|</?strong>")


def messages_of(catalogue):
    return {(message.context, message.id): message for message in catalogue if message.id}


def translations(message):
    return [message.string] if isinstance(message.string, str) else list(message.string)


def test_there_is_a_catalogue():
    assert [path.parts[-3] for path in CATALOGUES] == ["zh_Hans"]


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
@pytest.mark.slow
def test_catalogue_holds_every_text_and_no_other(path):
    kept, used = messages_of(read_catalogue(path)), messages_of(template_catalogue())
    way_out = "run: python -m tests.registry.web.messages, then translate what is empty"
    assert sorted(map(str, used.keys() - kept.keys())) == [], way_out
    assert sorted(map(str, kept.keys() - used.keys())) == [], way_out


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_every_text_is_translated(path):
    for message in messages_of(read_catalogue(path)).values():
        assert all(translations(message)), f"untranslated: {message.id}"
        assert not message.fuzzy, f"fuzzy: {message.id}"


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_translations_keep_the_placeholders(path):
    for message in messages_of(read_catalogue(path)).values():
        source = message.id if isinstance(message.id, str) else message.id[-1]
        for text in translations(message):
            assert sorted(PLACEHOLDER.findall(text)) == sorted(PLACEHOLDER.findall(source)), text


def test_chinese_has_chinese_punctuation():
    (path,) = CATALOGUES
    for message in messages_of(read_catalogue(path)).values():
        for text in translations(message):
            assert not NARROW.search(text), text


@pytest.mark.parametrize("kind", RECIPES)
def test_every_field_of_a_recipe_form_is_in_the_catalogue(kind):
    known = {message.id for message in template_catalogue()}
    for way in ways(kind) or [None]:
        form = RecipeForm(kind, way.key if way else "")
        for name, field in form.fields.items():
            assert str(field.label) in known, name
