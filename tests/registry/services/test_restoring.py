"""An old version registered once more as the newest: its files, its rights, its room."""

import pytest

from registry.errors import Conflict, Denied, NamespaceFull, NotFound
from registry.models import Artifact, Blob, Event, Namespace, Tag, VersionState
from registry.services import quotas
from registry.services.versions import describe_version, restore_as_new
from tests.factories import (
    UserFactory,
    actor_of,
    make_admin,
    make_member,
    make_model,
    make_version,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    repository = make_model(alice, "net")
    make_version(alice, repository, tags={"seed": "7"}, source="s3://somewhere")
    make_version(alice, repository, {"README.md": b"# Other"}, message="Worse")
    return repository


def first(repository):
    return repository.versions.select_related("repository__namespace").get(number=1)


def test_files_and_tags_are_there_again_and_the_bytes_once(alice, model):
    old, blobs = first(model), Blob.objects.count()
    made = restore_as_new(actor=actor_of(alice), version=old, message="Version 2 is worse")
    assert (made.number, made.variant, made.state) == (3, "", VersionState.READY)
    assert made.message == "Restores version 1: Version 2 is worse"
    assert Blob.objects.count() == blobs
    paths = [
        dict(Artifact.objects.filter(revision=one.revision).values_list("path", "blob"))
        for one in (old, made)
    ]
    assert paths[0] == paths[1]
    assert Tag.objects.get(version=made, key="seed").value == "7"
    assert made.source == "s3://somewhere"
    assert [edge.parent for edge in made.parent_edges.all()] == [old]
    model.refresh_from_db()
    assert (model.latest_number, model.task) == (3, "image-classification")
    assert Event.objects.filter(action="version.create").latest("pk").data["restores"] == 1


def test_a_variant_comes_back_on_the_main_line(alice, model):
    beside = make_version(alice, model, {"README.md": b"# Small"}, variant="int8")
    made = restore_as_new(actor=actor_of(alice), version=beside)
    assert (made.variant, made.message) == ("", "Restores version 3.")


def test_the_newest_is_there_already(alice, model):
    made = restore_as_new(actor=actor_of(alice), version=first(model))
    with pytest.raises(Conflict, match="newest"):
        restore_as_new(actor=actor_of(alice), version=made)


def test_who_may_not_write_may_not_restore(alice, model):
    with pytest.raises(Denied):
        restore_as_new(actor=actor_of(UserFactory()), version=first(model))
    assert model.versions.count() == 2


def test_an_archived_one_takes_a_maintainer(alice, model):
    describe_version(actor=actor_of(alice), version=first(model), changes={"state": "archived"})
    helper = make_member(model.namespace, "contributor")
    with pytest.raises(NotFound, match="archived"):
        restore_as_new(actor=actor_of(helper), version=first(model))
    made = restore_as_new(actor=actor_of(alice), version=first(model))
    assert made.state == VersionState.READY


def test_what_can_run_code_is_held_again(alice, model):
    pickled = b"\x80\x04cos\nsystem\n(S'true'\ntR."
    held = make_version(alice, model, {"model.pkl": pickled})
    make_version(alice, model, {"README.md": b"# Good"})
    made = restore_as_new(actor=actor_of(alice), version=held)
    assert made.state == held.state
    assert made.state in {VersionState.QUARANTINED, VersionState.PENDING}


def test_a_full_namespace_takes_no_more(alice, model):
    space = Namespace.objects.get(slug="alice")
    changes = {"versions": 2}
    quotas.set_quotas(actor=actor_of(make_admin()), namespace=space, changes=changes)
    with pytest.raises(NamespaceFull):
        restore_as_new(actor=actor_of(alice), version=first(model))
    assert model.versions.count() == 2
