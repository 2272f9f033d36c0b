"""Deleting on a page, thinking better of it, and the list of what can be brought back."""

import re

import pytest

from registry.models import Namespace, Repository, Role, Version
from registry.services import catalog
from tests.factories import actor_of, make_member, make_model, make_version
from tests.registry.web.conftest import signed_in

DELETED = "/namespaces/olga/deleted"
UNDO = re.compile(
    r'action="(/namespaces/olga/deleted/restore)".*?name="what" value="(\w+:\d+)"', re.DOTALL
)


@pytest.fixture
def plain(owner):
    repository = make_model(owner, "plain")
    make_version(owner, repository, {"a.json": b"{}"})
    return repository


def after(client, answer):
    assert answer.status_code == 302
    return client.get(answer["Location"], follow=True).content.decode()


def test_a_model_deleted_by_mistake_is_one_click_away(as_owner, plain):
    gone = as_owner.post("/models/olga/plain/delete", {"confirm": "olga/plain"})
    page = after(as_owner, gone)
    address, what = UNDO.search(page).groups()
    assert as_owner.get("/models/olga/plain").status_code == 404
    back = as_owner.post(address, {"what": what})
    assert back["Location"].endswith("/models/olga/plain")
    assert "It is back." in after(as_owner, back)


def test_a_version_deleted_by_mistake_is_one_click_away(as_owner, plain):
    gone = as_owner.post("/models/olga/plain/versions/1/delete", {"confirm": "olga/plain@1"})
    address, what = UNDO.search(after(as_owner, gone)).groups()
    back = as_owner.post(address, {"what": what})
    assert back["Location"].endswith("/models/olga/plain/versions/1")
    assert Version.objects.live().filter(repository=plain).exists()
    # A second click says that there is nothing left to do.
    assert "It is back already" in after(as_owner, as_owner.post(address, {"what": what}))


def test_the_list_brings_back_under_another_name(as_owner, owner, plain):
    catalog.delete_repository(actor=actor_of(owner), repository=plain)
    make_model(owner, "plain")
    page = as_owner.get(DELETED).content.decode()
    assert "olga/plain" in page
    what = {"what": f"repository:{plain.pk}"}
    page = after(as_owner, as_owner.post(f"{DELETED}/restore", {**what, "name": "plain"}))
    assert "bring this one back under another name" in page
    back = as_owner.post(f"{DELETED}/restore", {**what, "name": "plain-old"})
    assert back["Location"].endswith("/models/olga/plain-old")
    assert "Nothing was deleted here lately" in as_owner.get(DELETED).content.decode()


def test_the_list_is_for_those_who_maintain(owner, plain, as_stranger):
    catalog.delete_repository(actor=actor_of(owner), repository=plain)
    space = Namespace.objects.get(slug="olga")
    what = {"what": f"repository:{plain.pk}"}
    for client in (as_stranger, signed_in(make_member(space, Role.CONTRIBUTOR))):
        assert client.get(DELETED).status_code == 403
        assert client.post(f"{DELETED}/restore", what).status_code == 403
    maintainer = signed_in(make_member(space, Role.MAINTAINER))
    assert "olga/plain" in maintainer.get(DELETED).content.decode()
    page = after(maintainer, maintainer.post(f"{DELETED}/restore", what))
    assert "This needs the role owner" in page
    assert Repository.objects.get(pk=plain.pk).deleted_at is not None


@pytest.mark.parametrize("what", ["", "repository:x", "version:", "x:1", "repository:" + "9" * 40])
def test_nonsense_brings_nothing_back(as_owner, plain, what):
    page = after(as_owner, as_owner.post(f"{DELETED}/restore", {"what": what}))
    assert "It is back already, or was deleted too long ago." in page


def test_a_model_with_an_alias_stays_and_says_why(as_owner, model):
    gone = as_owner.post("/models/olga/digits-cnn/delete", {"confirm": "olga/digits-cnn"})
    assert "has the alias" in after(as_owner, gone)
    assert as_owner.get("/models/olga/digits-cnn").status_code == 200


def test_the_list_in_chinese(as_owner, owner, plain):
    catalog.delete_repository(actor=actor_of(owner), repository=plain)
    page = as_owner.get(f"/zh-hans{DELETED}").content.decode()
    assert "最近删除" in page
