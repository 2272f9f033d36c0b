"""Lists and search say of a repository what its newest card says, whatever goes or comes."""

import pytest

from registry.models import Version
from registry.services import deletion, versions
from registry.services.catalog import describe_repository
from tests.factories import UserFactory, actor_of, make_model, make_version
from tests.registry.api.conftest import Api

pytestmark = pytest.mark.django_db

FACTS = ("license", "task", "library", "base_model")


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    return make_model(alice, "net")


def carded(alice, model, name, *, facts=FACTS, **more):
    keys = {"license": "license", "task": "pipeline_tag", "library": "library_name"}
    head = [f"{keys.get(fact, fact)}: {name}-{fact}" for fact in facts]
    return make_version(
        alice, model, {"README.md": "\n".join(["---", *head, "---", "Text"]).encode()}, **more
    )


def facts_of(model):
    """Read over REST what is said of the model, by the name of the card that says it."""
    body = Api().get("models/alice/net").json()
    return [body[fact].removesuffix(f"-{fact}") for fact in FACTS]


def found_by(query):
    items = Api().get("models", query={"q": query}).json()["items"]
    return [one["name"] for one in items]


def delete(alice, version):
    versions.delete_version(actor=actor_of(alice), version=version)


def put_state(alice, version, state):
    row = Version.objects.get(pk=version.pk)
    versions.describe_version(actor=actor_of(alice), version=row, changes={"state": state})


def test_what_was_deleted_says_nothing_any_more_and_then_again(alice, model):
    carded(alice, model, "old")
    new = carded(alice, model, "new")
    assert facts_of(model) == ["new"] * 4
    delete(alice, new)
    assert facts_of(model) == ["old"] * 4
    assert (found_by("license:old-license"), found_by("license:new-license")) == (["net"], [])
    assert (found_by("old-task"), found_by('"new-task"')) == (["net"], [])
    deletion.restore_version(actor=actor_of(alice), version=new)
    assert facts_of(model) == ["new"] * 4
    assert found_by("new-task") == ["net"]


def test_what_was_archived_says_nothing_any_more_and_then_again(alice, model):
    carded(alice, model, "old")
    new = carded(alice, model, "new")
    put_state(alice, new, "archived")
    assert facts_of(model) == ["old"] * 4
    delete(alice, Version.objects.get(pk=new.pk))
    assert facts_of(model) == ["old"] * 4
    deletion.restore_version(actor=actor_of(alice), version=new)
    assert facts_of(model) == ["old"] * 4, "it is archived still"
    put_state(alice, new, "ready")
    assert facts_of(model) == ["new"] * 4


def test_where_a_card_says_nothing_the_one_before_it_does(alice, model):
    carded(alice, model, "old")
    carded(alice, model, "mid", facts=("license",))
    delete(alice, carded(alice, model, "new"))
    assert facts_of(model) == ["mid", "old", "old", "old"]


def test_without_a_card_nothing_is_said(alice, model):
    make_version(alice, model, {"a.txt": b"1"})
    delete(alice, carded(alice, model, "new"))
    assert facts_of(model) == [""] * 4
    assert found_by('"new-task"') == []


def test_what_was_written_by_hand_stays(alice, model):
    carded(alice, model, "old")
    new = carded(alice, model, "new")
    describe_repository(actor=actor_of(alice), repository=model, changes={"license": "mine"})
    delete(alice, new)
    assert facts_of(model) == ["mine", "old", "old", "old"]
    model.refresh_from_db()
    describe_repository(actor=actor_of(alice), repository=model, changes={"task": "mine"})
    first = model.versions.get(number=1)
    versions.describe_version(actor=actor_of(alice), version=first, changes={"message": "x"})
    assert facts_of(model) == ["mine", "mine", "old", "old"]


def test_variants_and_older_versions_change_nothing(alice, model):
    first = carded(alice, model, "old")
    carded(alice, model, "new")
    delete(alice, carded(alice, model, "beside", variant="int8"))
    delete(alice, first)
    assert facts_of(model) == ["new"] * 4
