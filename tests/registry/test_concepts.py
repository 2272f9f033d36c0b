"""What was registered before a concept was known is found by it, once it is indexed again."""

from importlib import import_module
from types import SimpleNamespace

import pytest
from django.apps import apps
from django.db import connection
from django.utils import timezone

from registry.models import ANONYMOUS, CardVector, Repository
from registry.search import SearchQuery, search_repositories
from tests.factories import UserFactory, make_model, make_version

pytestmark = pytest.mark.django_db


def names(q):
    return [row["name"] for row in search_repositories(ANONYMOUS, "model", SearchQuery(q=q)).items]


def test_what_is_registered_is_indexed_by_new_concepts():
    alice = UserFactory(username="alice")
    glucose = make_model(alice, "glucose", summary="Foresees blood sugar of patients")
    other = make_model(alice, "other", summary="Nothing of the kind")
    assert names("血糖") == ["glucose"]
    rows = Repository.objects.filter(pk=glucose.pk)
    before = rows.get().search_terms
    assert "conceptbloodsugar" in before
    rows.update(search_terms=before.replace("conceptbloodsugar", ""))
    for row in (glucose, other):
        CardVector.objects.create(
            repository_id=row.pk,
            encoder="e",
            digest="d",
            read_at=timezone.now(),
            embedding=f"[{','.join(['0.1'] * 384)}]",
        )
    assert names("血糖") == []
    migration = import_module("registry.migrations.0036_more_concepts")
    migration.fill(apps, SimpleNamespace(connection=connection))
    assert names("血糖") == ["glucose"]
    # Its card is read to the encoder again, and no other.
    read = dict(CardVector.objects.values_list("repository_id", "read_at__year"))
    assert read[glucose.pk] == 1970
    assert read[other.pk] > 1970


def test_what_is_registered_is_found_by_pieces_of_words_and_beside_chinese():
    alice = UserFactory(username="alice")
    make_model(alice, "tool", summary="基于QuantBoost的工具")
    card = {"README.md": "用 bert 或resnet50做底座".encode()}
    make_version(alice, make_model(alice, "carded", summary="Nothing"), card)
    rows = Repository.objects.all()
    rows.update(search_terms="", card_terms="")
    assert names("ntboos") == names("resnet50") == names("工具") == []
    migration = import_module("registry.migrations.0038_marked_words")
    migration.fill(apps, SimpleNamespace(connection=connection))
    assert names("ntboos") == names("工具") == ["tool"]
    assert names("resnet50") == ["carded"]
