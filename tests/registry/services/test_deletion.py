"""What was deleted comes back whole, for those who may, and nothing that is in use can go."""

from datetime import timedelta

import pytest
from django.utils import timezone

from registry.errors import Conflict, Denied, NotFound, Unauthenticated
from registry.models import ANONYMOUS, Event, Namespace, Repository, Role, Version
from registry.services import catalog, deletion, versions
from tests.factories import UserFactory, actor_of, make_member, make_model, make_version

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice():
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    return make_model(alice, "digits")


def delete(owner, repository):
    catalog.delete_repository(actor=actor_of(owner), repository=repository)


def find_deleted(actor, name="digits", **which):
    return deletion.find_deleted_repository(actor, "model", "alice", name, **which)


def test_a_repository_comes_back_with_all_it_had(alice, model):
    actor = actor_of(alice)
    make_version(alice, model)
    catalog.set_tag(actor=actor, repository=model, key="team", value="vision")
    delete(alice, model)
    with pytest.raises(NotFound):
        catalog.find_repository(actor, "model", "alice", "digits")
    deletion.restore_repository(actor=actor, repository=find_deleted(actor))
    found = catalog.find_repository(actor, "model", "ALICE", "Digits")
    assert (found.pk, found.latest_number) == (model.pk, 1)
    assert found.tags.get().value == "vision"
    assert make_version(alice, found, {"a.json": b"{}"}).number == 2
    assert Event.objects.filter(action="model.restore", repository_id=model.pk).exists()
    # A second click changes nothing.
    assert deletion.restore_repository(actor=actor, repository=model) == found


def test_a_name_that_was_taken_meanwhile_needs_another(alice, model):
    actor = actor_of(alice)
    delete(alice, model)
    newer = make_model(alice, "Digits")
    old = find_deleted(actor)
    with pytest.raises(Conflict, match="under another name") as refusal:
        deletion.restore_repository(actor=actor, repository=old)
    assert refusal.value.reason == "name_taken"
    deletion.restore_repository(actor=actor, repository=old, name="digits-2019")
    assert catalog.find_repository(actor, "model", "alice", "digits-2019").pk == model.pk
    assert catalog.find_repository(actor, "model", "alice", "digits").pk == newer.pk


def test_of_several_with_one_name_the_last_or_the_named_one_comes_back(alice, model):
    actor = actor_of(alice)
    delete(alice, model)
    second = make_model(alice, "digits")
    delete(alice, second)
    assert find_deleted(actor) == second
    assert find_deleted(actor, deleted_id=model.pk) == model
    with pytest.raises(NotFound):
        find_deleted(actor, deleted_id=0)


def test_who_may_bring_a_repository_back(alice, model):
    space = Namespace.objects.get(slug="alice")
    delete(alice, model)
    for role in (Role.READER, Role.CONTRIBUTOR):
        with pytest.raises(NotFound):
            find_deleted(actor_of(make_member(space, role)))
    with pytest.raises(NotFound):
        find_deleted(actor_of(UserFactory()))
    with pytest.raises(Unauthenticated):
        find_deleted(ANONYMOUS)
    maintainer = actor_of(make_member(space, Role.MAINTAINER))
    with pytest.raises(Denied):
        deletion.restore_repository(actor=maintainer, repository=find_deleted(maintainer))


def test_a_version_comes_back_under_its_number(alice, model):
    actor = actor_of(alice)
    first, second = make_version(alice, model), make_version(alice, model, {"a.json": b"{}"})
    versions.delete_version(actor=actor, version=second)
    model.refresh_from_db()
    assert model.latest_number == first.number
    found = deletion.find_deleted_version(actor, model, "2")
    assert deletion.restore_version(actor=actor, version=found).ref == "alice/digits@2"
    model.refresh_from_db()
    assert model.latest_number == 2
    assert catalog.find_version(actor, model, "latest") == second
    assert deletion.restore_version(actor=actor, version=found) == second
    for number in ("2", "3", "x", "9" * 30):
        with pytest.raises(NotFound):
            deletion.find_deleted_version(actor, model, number)


def test_what_was_purged_does_not_come_back(alice, model):
    actor = actor_of(alice)
    version = make_version(alice, model, {"a.json": b"{}"})
    versions.delete_version(actor=actor, version=version)
    found = deletion.find_deleted_version(actor, model, "1")
    Version.objects.filter(pk=version.pk).delete()
    with pytest.raises(NotFound, match="too long ago"):
        deletion.restore_version(actor=actor, version=found)
    delete(alice, model)
    gone = find_deleted(actor)
    gone.pk = 0
    with pytest.raises(NotFound, match="too long ago"):
        deletion.restore_repository(actor=actor, repository=gone)


def test_what_is_named_or_read_cannot_vanish(alice, model):
    actor = actor_of(alice)
    version = make_version(alice, model)
    catalog.set_alias(actor=actor, repository=model, alias="champion", version=version)
    for act in (
        lambda: versions.delete_version(actor=actor, version=version),
        lambda: delete(alice, model),
    ):
        with pytest.raises(Conflict, match="alice/digits@1 has the alias 'champion'") as refusal:
            act()
        assert refusal.value.reason == "version_aliased"
    assert list(Version.objects.held()) == [version]
    catalog.delete_alias(actor=actor, repository=model, alias="champion")
    assert list(Version.objects.held()) == []
    delete(alice, model)


def test_the_list_of_what_was_deleted(alice, settings):
    actor, space = actor_of(alice), Namespace.objects.get(slug="alice")
    now = timezone.now()
    kept = make_model(alice, "kept")
    for number in range(5):
        gone = make_model(alice, f"gone{number}")
        delete(alice, gone)
        at = now - timedelta(minutes=number // 2)
        Repository.objects.filter(pk=gone.pk).update(deleted_at=at)
        version = make_version(alice, kept, {"a.json": b"{}"})
        versions.delete_version(actor=actor, version=version)
        Version.objects.filter(pk=version.pk).update(deleted_at=at)
    whole, after = deletion.list_deleted(actor, space, limit=100)
    assert after is None
    assert len(whole) == 10
    assert [one.deleted_at for one in whole] == sorted(
        (one.deleted_at for one in whole), reverse=True
    )
    assert whole[-1].size_bytes == 2
    assert whole[0].restorable_until == now + timedelta(days=settings.UNDO_DAYS)
    for limit in (1, 3, 4):
        found, cursor = [], ""
        while cursor is not None:
            page, cursor = deletion.list_deleted(actor, space, limit=limit, cursor=cursor)
            found += page
        assert found == whole
    with pytest.raises(Denied):
        deletion.list_deleted(actor_of(make_member(space, Role.CONTRIBUTOR)), space)
    maintainer = actor_of(make_member(space, Role.MAINTAINER))
    assert len(deletion.list_deleted(maintainer, space)[0]) == 10
