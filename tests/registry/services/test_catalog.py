import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from registry.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    Invalid,
    NotFound,
    PreconditionFailed,
    Unauthenticated,
)
from registry.models import ANONYMOUS, Event, Grant, Repository, Role, Tag
from registry.services import catalog, namespaces, versions
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_admin,
    make_member,
    make_model,
    make_version,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice():
    return UserFactory(username="alice")


def test_registration_is_recorded_and_found_without_case(alice):
    model = make_model(alice, "Digits", summary="Digits", tags={"team": "vision"})
    found = catalog.find_repository(ANONYMOUS, "model", "ALICE", "digits")
    assert found == model
    assert model.refs.get().name == "main"
    assert len(model.revisions.get().commit) == 40
    event = Event.objects.get(action="model.register")
    assert (event.actor, event.target) == ("alice", "alice/Digits")
    assert "team vision" in found.search_text


def test_a_name_is_taken_in_any_case_but_free_for_the_other_kind(alice):
    make_model(alice, "digits")
    with pytest.raises(AlreadyExists, match="alice/DIGITS already exists"):
        make_model(alice, "DIGITS")
    assert make_model(alice, "digits", kind="dataset").kind == "dataset"


@pytest.mark.parametrize(
    "name", ["a/b", "", ".hidden", "a..b", "a--b", "x" * 97, "weights.git", "a b", "é", "a\0b"]
)
def test_bad_names_are_refused_by_field(alice, name):
    with pytest.raises(Invalid) as refusal:
        make_model(alice, name)
    assert refusal.value.errors[0].field == "name"
    assert not Repository.objects.exists()


def test_only_members_register(alice):
    team = NamespaceFactory(slug="vision")
    with pytest.raises(NotFound, match="no namespace 'vision'"):
        make_model(alice, namespace="vision")
    reader = make_member(team, Role.READER)
    with pytest.raises(Denied):
        make_model(reader, namespace="vision")
    assert make_model(make_member(team, Role.CONTRIBUTOR), namespace="vision")
    with pytest.raises(Denied, match="role contributor on vision"):
        make_model(alice, "other", namespace="vision")
    with pytest.raises(Unauthenticated):
        catalog.register_repository(actor=ANONYMOUS, kind="model", namespace="vision", name="x")
    with pytest.raises(NotFound, match="no namespace 'nobody'"):
        make_model(alice, namespace="nobody")


def test_visibility_hides_from_strangers(alice):
    private = make_model(alice, "secret", visibility="private")
    internal = make_model(alice, "house", visibility="internal")
    stranger = actor_of(UserFactory())
    assert set(Repository.objects.visible_to(ANONYMOUS)) == set()
    assert set(Repository.objects.visible_to(stranger)) == {internal}
    assert set(Repository.objects.visible_to(actor_of(alice))) == {private, internal}
    assert set(Repository.objects.visible_to(actor_of(make_admin()))) == {private, internal}
    with pytest.raises(NotFound) as hidden:
        catalog.find_repository(stranger, "model", "alice", "secret")
    with pytest.raises(NotFound) as absent:
        catalog.find_repository(stranger, "model", "alice", "absent")
    assert hidden.value.detail.replace("secret", "X") == absent.value.detail.replace("absent", "X")


def test_a_grant_opens_one_repository(alice):
    private = make_model(alice, "secret", visibility="private")
    make_model(alice, "other", visibility="private")
    bob = UserFactory()
    Grant.objects.create(repository=private, user=bob, role=Role.CONTRIBUTOR)
    actor = actor_of(bob)
    assert set(Repository.objects.visible_to(actor)) == {private}
    catalog.set_tag(actor=actor, repository=private, key="seen", value="yes")
    with pytest.raises(Denied):
        catalog.describe_repository(
            actor=actor, repository=private, changes={"visibility": "public"}
        )


def test_rename_leaves_a_redirect(alice):
    model = make_model(alice, "old-name")
    renamed = catalog.describe_repository(
        actor=actor_of(alice), repository=model, changes={"name": "new-name"}
    )
    assert catalog.find_repository(ANONYMOUS, "model", "alice", "old-name") == renamed
    taken = make_model(alice, "old-name")
    assert catalog.find_repository(ANONYMOUS, "model", "alice", "old-name") == taken


def test_describing_checks_the_etag_and_the_fields(alice):
    model = make_model(alice)
    stale = model.etag
    changed = catalog.describe_repository(
        actor=actor_of(alice), repository=model, changes={"summary": "new"}, expected_etag=stale
    )
    assert changed.summary == "new"
    with pytest.raises(PreconditionFailed):
        catalog.describe_repository(
            actor=actor_of(alice), repository=model, changes={"summary": "x"}, expected_etag=stale
        )
    with pytest.raises(Invalid, match="'owner' cannot be changed"):
        catalog.describe_repository(
            actor=actor_of(alice), repository=model, changes={"owner": "me"}
        )
    with pytest.raises(Invalid, match=r"U\+0000"):
        catalog.describe_repository(
            actor=actor_of(alice), repository=model, changes={"summary": "a\0b"}
        )


def test_tags_belong_to_a_model_or_to_a_version(alice):
    actor, model = actor_of(alice), make_model(alice)
    version = make_version(alice, model)
    catalog.set_tag(actor=actor, repository=model, key="stage", value="one")
    catalog.set_tag(actor=actor, repository=model, key="stage", value="two")
    catalog.set_tag(actor=actor, repository=model, version=version, key="stage", value="three")
    assert sorted(Tag.objects.values_list("value", flat=True)) == ["three", "two"]
    catalog.delete_tag(actor=actor, repository=model, key="stage")
    with pytest.raises(NotFound, match="no tag 'stage'"):
        catalog.delete_tag(actor=actor, repository=model, key="stage")


@pytest.mark.parametrize("alias", ["latest", "LATEST", "v1", "12", "a b", "", "a/b", "x" * 256])
def test_bad_aliases_are_refused(alice, alias):
    model = make_model(alice)
    version = make_version(alice, model)
    with pytest.raises(Invalid) as refusal:
        catalog.set_alias(actor=actor_of(alice), repository=model, alias=alias, version=version)
    assert refusal.value.errors[0].field == "alias"


def test_an_alias_moves_and_protects_its_version(alice):
    actor, model = actor_of(alice), make_model(alice)
    first, second = make_version(alice, model), make_version(alice, model, message="second")
    catalog.set_alias(actor=actor, repository=model, alias="champion", version=first)
    assert catalog.find_version(actor, model, "@champion") == first
    with pytest.raises(Conflict, match="alias 'champion'"):
        versions.delete_version(actor=actor, version=first)
    with pytest.raises(PreconditionFailed):
        catalog.set_alias(
            actor=actor, repository=model, alias="champion", version=second, expected_version=2
        )
    catalog.set_alias(
        actor=actor, repository=model, alias="champion", version=second, expected_version=1
    )
    assert catalog.find_version(actor, model, "@champion") == second
    versions.delete_version(actor=actor, version=first)
    catalog.delete_alias(actor=actor, repository=model, alias="champion")
    with pytest.raises(NotFound):
        catalog.find_version(actor, model, "@champion")


def test_a_deleted_name_is_free_again_as_a_new_repository(alice):
    model = make_model(alice, "digits")
    catalog.delete_repository(actor=actor_of(alice), repository=model)
    with pytest.raises(NotFound):
        catalog.find_repository(actor_of(alice), "model", "alice", "digits")
    assert make_model(alice, "digits").pk != model.pk


def test_reserved_and_malformed_namespaces(alice):
    for slug in ("api", "static", "zh-hans", "a.b", "-a", ""):
        with pytest.raises(Invalid):
            namespaces.create_namespace(actor=actor_of(alice), slug=slug)
    team = namespaces.create_namespace(actor=actor_of(alice), slug="vision")
    with pytest.raises(AlreadyExists):
        namespaces.create_namespace(actor=actor_of(alice), slug="VISION")
    owner = actor_of(alice)
    namespaces.set_member(
        actor=owner, namespace=team, username=UserFactory(username="bob").username, role="reader"
    )
    with pytest.raises(Invalid, match="last owner"):
        namespaces.remove_member(actor=owner, namespace=team, username="alice")
    namespaces.remove_member(actor=owner, namespace=team, username="bob")


def test_the_database_itself_refuses_what_the_services_refuse(alice):
    model = make_model(alice)
    with pytest.raises(Exception, match="repository_name_is_plain"), connection.cursor() as cursor:
        cursor.execute("UPDATE registry_repository SET name = 'a/b' WHERE id = %s", [model.pk])


def test_a_write_starts_from_what_the_row_is_now(alice):
    actor = actor_of(alice)
    stale = make_model(alice, "classifier", summary="before")
    now = catalog.describe_repository(actor=actor, repository=stale, changes={"summary": "after"})
    catalog.set_tag(actor=actor, repository=stale, key="team", value="vision")
    assert "after" in Repository.objects.get(pk=stale.pk).search_text
    with pytest.raises(PreconditionFailed):
        catalog.delete_repository(actor=actor, repository=stale, expected_etag=stale.etag)
    catalog.delete_repository(actor=actor, repository=now)
    with pytest.raises(NotFound):
        catalog.set_tag(actor=actor, repository=stale, key="team", value="vision")
    with pytest.raises(NotFound):
        catalog.describe_repository(actor=actor, repository=stale, changes={"summary": "x"})
    with pytest.raises(NotFound):
        catalog.delete_repository(actor=actor, repository=stale)


def test_every_write_below_a_repository_locks_it_first(alice):
    actor, model = actor_of(alice), make_model(alice)
    version = make_version(alice, model)
    catalog.set_alias(actor=actor, repository=model, alias="champion", version=version)
    catalog.set_tag(actor=actor, repository=model, key="team", value="vision")
    writes = (
        lambda: catalog.set_alias(actor=actor, repository=model, alias="new", version=version),
        lambda: catalog.delete_alias(actor=actor, repository=model, alias="champion"),
        lambda: catalog.set_tag(actor=actor, repository=model, key="stage", value="x"),
        lambda: catalog.delete_tag(actor=actor, repository=model, key="team"),
        lambda: versions.delete_version(actor=actor, version=make_version(alice, model)),
    )
    for write in writes:
        with CaptureQueriesContext(connection) as queries:
            write()
        touched = [
            query["sql"]
            for query in queries
            if "FOR UPDATE" in query["sql"] or query["sql"].startswith(("UPDATE", "DELETE"))
        ]
        assert 'FOR UPDATE OF "registry_repository"' in touched[0], touched[0]


def test_a_version_is_deleted_as_it_was_read(alice):
    actor = actor_of(alice)
    stale = make_version(alice, make_model(alice))
    now = versions.describe_version(actor=actor, version=stale, changes={"message": "after"})
    with pytest.raises(PreconditionFailed):
        versions.delete_version(actor=actor, version=stale, expected_etag=stale.etag)
    versions.delete_version(actor=actor, version=now, expected_etag=now.etag)
    with pytest.raises(NotFound):
        versions.delete_version(actor=actor, version=stale)
