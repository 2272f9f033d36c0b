"""Namespaces that go while something is put into them, and names that two take at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from django.db import connection, connections, transaction

from registry.errors import AlreadyExists, NotFound
from registry.models import ANONYMOUS, Grant, Membership, Namespace, Repository, Role, User
from registry.services import catalog, deletion, namespaces, people, requests, sharing
from tests.factories import PASSWORD, NamespaceFactory, UserFactory, actor_of, make_model
from tests.local.waiting import wait_until

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s"


@pytest.fixture
def olga():
    return UserFactory(username="olga")


@pytest.fixture
def team(olga):
    space = NamespaceFactory(slug="team")
    Membership.objects.create(namespace=space, user=olga, role=Role.OWNER)
    return space


def register(actor, _team):
    return catalog.register_repository(actor=actor, kind="model", namespace="team", name="late")


def transfer(actor, team):
    model = Repository.objects.get(name="elsewhere")
    return sharing.transfer_repository(actor=actor, repository=model, namespace=team)


def add(actor, team):
    return namespaces.set_member(actor=actor, namespace=team, username="olga", role=Role.OWNER)


def somebody_waits():
    with connection.cursor() as cursor:
        # A transaction goes on seeing what it saw first of the others.
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(WAITING, [connection.settings_dict["NAME"]])
        return cursor.fetchone()[0] > 0


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("put", [register, transfer, add])
def test_nothing_comes_into_a_namespace_that_is_being_deleted(olga, team, put):
    make_model(olga, "elsewhere")
    actor = actor_of(olga)

    def try_it():
        try:
            return put(actor, team)
        except NotFound as refusal:
            return refusal
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            namespaces.delete_namespace(actor=actor, namespace=team)
            came = pool.submit(try_it)
            wait_until(somebody_waits, "the lock")
        assert came.result().reason == "namespace_not_found"
    assert not Repository.objects.filter(namespace=team).exists()
    assert not Membership.objects.filter(namespace=team).exists()


@pytest.mark.django_db(transaction=True)
def test_asking_again_undoes_no_decision_that_is_being_made(olga, team):
    asker = actor_of(UserFactory(username="stan"))
    ask = partial(requests.request_access, actor=asker, kind="namespace", namespace="team")
    first = ask()

    def ask_again():
        try:
            return ask(role=Role.OWNER)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            requests.decline_request(actor=actor_of(olga), request=first, note="No.")
            second = pool.submit(ask_again)
            wait_until(somebody_waits, "the lock")
        assert second.result().pk != first.pk
    first.refresh_from_db()
    assert (first.state, first.note, first.role) == ("declined", "No.", "reader")


@pytest.mark.django_db
def test_nothing_is_brought_back_into_a_deleted_namespace(olga, team):
    model = make_model(olga, "plan", namespace="team")
    friend = UserFactory()
    Grant.objects.create(repository=model, user=friend, role=Role.OWNER)
    catalog.delete_repository(actor=actor_of(olga), repository=model)
    namespaces.delete_namespace(actor=actor_of(olga), namespace=team)
    with pytest.raises(NotFound):
        deletion.restore_repository(actor=actor_of(friend), repository=model)
    model.refresh_from_db()
    assert model.deleted_at is not None


@pytest.mark.django_db(transaction=True)
def test_two_who_take_one_name_at_once():
    begun = threading.Barrier(4)

    def sign_up(name):
        try:
            begun.wait()
            return people.sign_up(actor=ANONYMOUS, username=name, password=f"{PASSWORD} {name}")
        except AlreadyExists as refusal:
            return refusal
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        came = list(pool.map(sign_up, ["nora", "Nora", "NORA", "nora"]))
    assert sum(isinstance(one, User) for one in came) == 1
    assert sum(isinstance(one, AlreadyExists) for one in came) == 3
    assert User.objects.count() == Namespace.objects.count() == 1


@pytest.mark.django_db
def test_a_name_with_nul_is_nobodys(olga, team):
    actor = actor_of(olga)
    with pytest.raises(NotFound):
        namespaces.set_member(actor=actor, namespace=team, username="\0", role=Role.READER)
    with pytest.raises(NotFound):
        namespaces.remove_member(actor=actor, namespace=team, username="\0")
