"""A protected alias moves to what fits its callers, or because a maintainer says why."""

import json

import pytest

from registry.errors import Conflict, Denied, Invalid
from registry.models import Alias, Event
from registry.services import catalog, proposals
from registry.services.compatibility import why_incompatible
from registry.services.diffs import compare_signatures
from tests.factories import UserFactory, actor_of, make_member, make_model, make_version

pytestmark = pytest.mark.django_db


def ports(**shapes):
    return [{"name": name, "dtype": "float32", "shape": list(shapes[name])} for name in shapes]


def files(*, inputs=None, labels=("cat", "dog")):
    signature = {"inputs": inputs or ports(image=[None, 28]), "outputs": ports(logits=[None, 2])}
    config = {"signature": signature, "labels": list(labels)}
    return {"config.json": json.dumps(config).encode()}


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    repository = make_model(alice, "net")
    for content in (files(), files(), files(inputs=ports(image=[None, 32]))):
        make_version(alice, repository, content)
    actor = actor_of(alice)
    proposals.protect_aliases(
        actor=actor, repository=repository, aliases=["champion"], second_approver=False
    )
    repository.refresh_from_db()
    move(alice, repository, 1)
    return repository


def version(repository, number):
    return repository.versions.select_related("repository__namespace").get(number=number)


def move(user, repository, number, alias="champion", **more):
    return catalog.set_alias(
        actor=actor_of(user),
        repository=repository,
        alias=alias,
        version=version(repository, number),
        **more,
    )


def at(repository):
    return Alias.objects.get(repository=repository, name="champion").version.number


def test_what_fits_moves_and_what_does_not_takes_a_reason(alice, model):
    move(alice, model, 2)
    with pytest.raises(Conflict, match="where callers send") as refusal:
        move(alice, model, 3)
    assert refusal.value.reason == "incompatible_signature"
    assert at(model) == 2
    move(alice, model, 3, reason="Every caller has changed")
    assert at(model) == 3
    said = Event.objects.filter(action="alias.set").latest("pk").data
    assert said["reason"] == "Every caller has changed"
    assert "image" in said["incompatible"]


def test_an_alias_that_was_deleted_is_still_what_its_callers_know(alice, model):
    catalog.delete_alias(actor=actor_of(alice), repository=model, alias="champion")
    catalog.describe_repository(
        actor=actor_of(alice), repository=model, changes={"name": "renamed"}
    )
    model.refresh_from_db()
    with pytest.raises(Conflict, match="does not fit callers") as refusal:
        move(alice, model, 3)
    assert refusal.value.reason == "incompatible_signature"
    move(alice, model, 2)
    assert at(model) == 2


def test_an_alias_that_is_not_protected_moves_freely(alice, model):
    move(alice, model, 1, alias="candidate")
    move(alice, model, 3, alias="candidate")


def test_a_reason_is_a_maintainers(alice, model):
    helper = make_member(model.namespace, "contributor")
    with pytest.raises(Denied):
        move(helper, model, 3, reason="I want it")
    asked = proposals.propose_alias(
        actor=actor_of(helper), repository=model, alias="champion", version=version(model, 3)
    )
    decide = {"actor": actor_of(alice), "proposal": asked, "expected_version": 1}
    with pytest.raises(Conflict, match="does not fit callers"):
        proposals.approve_proposal(**decide)
    proposals.approve_proposal(**decide, reason="They know")
    assert at(model) == 3


def test_labels_are_part_of_what_callers_know(alice, model):
    swapped = make_version(alice, model, files(labels=("dog", "cat")))
    more = make_version(alice, model, files(labels=("cat", "dog", "cow")))
    unnamed = make_version(alice, model, files(labels=()))
    first = version(model, 1)
    assert "label 0 is 'dog'" in why_incompatible(first, swapped).detail
    assert "3 labels" in why_incompatible(first, more).detail
    assert "no labels, where callers know 2" in why_incompatible(first, unnamed).detail
    assert why_incompatible(unnamed, first) is None
    with pytest.raises(Conflict):
        move(alice, model, swapped.number)


def test_labels_by_number_compare_too(alice, model):
    named = {"id2label": {"0": "a", "1": "b", "10": "c"}}
    one = make_version(alice, model, {"config.json": json.dumps(named).encode()})
    named["id2label"]["10"] = "d"
    two = make_version(alice, model, {"config.json": json.dumps(named).encode()})
    assert "label 10 is 'd'" in why_incompatible(one, two).detail


def described(user, repository, **config):
    return make_version(user, repository, {"config.json": json.dumps(config).encode()})


def test_labels_have_the_numbers_that_they_are_named_by(alice, model):
    listed = described(alice, model, labels=["cat", "dog"])
    same = described(alice, model, id2label={"1": "dog", "0": "cat"})
    moved = described(alice, model, id2label={"5": "cat", "7": "dog"})
    far = described(alice, model, id2label={"1000000000": "cat", "10000000000": "dog"})
    assert why_incompatible(listed, same) is None
    assert why_incompatible(same, listed) is None
    assert "no label 0, where callers know 'cat'" in why_incompatible(same, moved).detail
    assert "no label 5" in why_incompatible(moved, far).detail


def test_a_signature_is_not_lost_without_a_reason(alice, model):
    silent = described(alice, model, labels=["cat", "dog"])
    with pytest.raises(Conflict, match="does not say what it takes") as refusal:
        move(alice, model, silent.number)
    assert refusal.value.reason == "incompatible_signature"
    move(alice, model, silent.number, reason="All callers read the card")
    assert at(model) == silent.number
    told = compare_signatures(actor_of(alice), version(model, 1), silent)
    assert (told.accepts, told.why.detail) == (
        False,
        "it does not say what it takes and gives, which callers rely on",
    )
    # Nobody knows what callers of that one send.
    move(alice, model, 1)


def test_one_name_for_two_inputs_is_no_signature(alice, model):
    twice = ports(image=[None, 28]) * 2
    with pytest.raises(Invalid, match="two of inputs have the name 'image'"):
        make_version(alice, model, files(inputs=twice))
    old = version(model, 2)
    old.signature = {"inputs": twice, "outputs": ports(logits=[None, 2])}
    assert "the input 'image' twice" in why_incompatible(version(model, 1), old).detail
