import json
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from registry.errors import Denied, NotFound
from registry.models import ANONYMOUS, Event, Role
from registry.services import audit_log as module
from registry.services.audit import record_event
from registry.services.audit_log import audit_log, json_lines
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_admin,
    make_member,
    make_model,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def team():
    return NamespaceFactory(slug="team")


@pytest.fixture
def event(team):
    return record_event(ANONYMOUS, "test.happen", namespace=team, target="it", answer=42)


@pytest.mark.parametrize("change", [{"action": "x"}, {"actor": "x"}, {"data": {}}, {"target": ""}])
def test_no_line_can_be_changed(event, change):
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Event.objects.filter(pk=event.pk).update(**change)
    event.refresh_from_db()
    assert (event.action, event.data) == ("test.happen", {"answer": 42})


def test_no_line_can_be_deleted(event):
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Event.objects.filter(pk=event.pk).delete()
    assert Event.objects.filter(pk=event.pk).exists()


def test_a_line_is_not_given_to_somebody_else(event):
    with pytest.raises(IntegrityError), transaction.atomic():
        Event.objects.filter(pk=event.pk).update(namespace=NamespaceFactory(slug="other"))


def test_the_log_outlives_what_it_speaks_of(team):
    user = UserFactory()
    event = record_event(actor_of(user), "test.happen", namespace=team)
    name = user.username
    user.memberships.all().delete()
    user.delete()
    event.refresh_from_db()
    assert (event.user_id, event.actor) == (None, name)


def test_maintainers_read_the_log_of_their_namespaces(team, event):
    elsewhere = record_event(ANONYMOUS, "test.happen", namespace=NamespaceFactory())
    maintainer = actor_of(make_member(team, Role.MAINTAINER))
    assert event in audit_log(maintainer)
    assert elsewhere not in audit_log(maintainer)
    contributor = actor_of(make_member(team, Role.CONTRIBUTOR))
    assert event not in audit_log(contributor)
    with pytest.raises(Denied):
        audit_log(contributor, namespace="team")
    with pytest.raises(NotFound):
        audit_log(maintainer, namespace="nowhere")
    assert {event, elsewhere} <= set(audit_log(actor_of(make_admin())))


def test_it_is_narrowed_by_action_family_and_time(team, event):
    other = record_event(ANONYMOUS, "thing.happen", namespace=team)
    admin = actor_of(make_admin())
    assert list(audit_log(admin, namespace="team", action="test.happen")) == [event]
    assert list(audit_log(admin, namespace="team", action="thing.")) == [other]
    later = timezone.now() + timedelta(seconds=1)
    assert list(audit_log(admin, namespace="team", since=later)) == []
    assert set(audit_log(admin, namespace="team", until=later)) == {event, other}


def test_it_is_written_out_whole_and_in_order(team, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 3)
    owner = make_member(team, Role.OWNER)
    for number in range(7):
        make_model(owner, f"model{number}", namespace="team")
    lines = b"".join(json_lines(audit_log(actor_of(owner), namespace="team"))).splitlines()
    told = [json.loads(line) for line in lines]
    assert [one["target"] for one in told] == [f"team/model{number}" for number in range(7)]
    assert [one["id"] for one in told] == sorted(one["id"] for one in told)
    assert told[0]["actor"] == owner.username
