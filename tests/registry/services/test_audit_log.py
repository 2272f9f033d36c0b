import ast
import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone

from registry.errors import Denied, NotFound
from registry.models import ANONYMOUS, AuditAction, Event, Kind, Role, Upload
from registry.services import announcements, uploads
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
    return record_event(ANONYMOUS, AuditAction.TAG_SET, namespace=team, target="it", answer=42)


@pytest.mark.parametrize("change", [{"action": "x"}, {"actor": "x"}, {"data": {}}, {"target": ""}])
def test_no_line_can_be_changed(event, change):
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Event.objects.filter(pk=event.pk).update(**change)
    event.refresh_from_db()
    assert (event.action, event.data) == (AuditAction.TAG_SET, {"answer": 42})


def test_no_line_can_be_deleted(event):
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Event.objects.filter(pk=event.pk).delete()
    assert Event.objects.filter(pk=event.pk).exists()


def test_a_line_is_not_given_to_somebody_else(event):
    with pytest.raises(IntegrityError), transaction.atomic():
        Event.objects.filter(pk=event.pk).update(namespace=NamespaceFactory(slug="other"))


def test_the_log_outlives_what_it_speaks_of(team):
    user = UserFactory()
    event = record_event(actor_of(user), AuditAction.TAG_SET, namespace=team)
    name = user.username
    user.memberships.all().delete()
    user.delete()
    event.refresh_from_db()
    assert (event.user_id, event.actor) == (None, name)


def test_maintainers_read_the_log_of_their_namespaces(team, event):
    elsewhere = record_event(ANONYMOUS, AuditAction.TAG_SET, namespace=NamespaceFactory())
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
    other = record_event(ANONYMOUS, AuditAction.JOB_SUBMIT, namespace=team)
    admin = actor_of(make_admin())
    assert list(audit_log(admin, namespace="team", action="tag.set")) == [event]
    assert list(audit_log(admin, namespace="team", action="job.")) == [other]
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


def test_what_is_lost_of_uploads_is_said():
    actor = actor_of(UserFactory(username="alice"))
    given_up = uploads.begin_upload(actor=actor, length=4, filename="a.bin")
    uploads.begin_upload(actor=actor, length=8, filename="b.bin")
    uploads.cancel_upload(actor=actor, upload=given_up)
    Upload.objects.update(expires_at=timezone.now())
    assert uploads.expire_uploads() == 1
    cancelled, expired = Event.objects.filter(action__startswith="upload.").order_by("pk")
    assert (cancelled.action, cancelled.actor, cancelled.target) == (
        "upload.cancel",
        "alice",
        "a.bin",
    )
    assert (expired.action, expired.target) == ("upload.expire", "b.bin")
    assert expired.data == {"username": "alice", "length_bytes": 8}


# --- Which actions there are ---------------------------------------------------------------------

ROOT = Path(__file__).parents[3]
# What names actions without recording any.
LISTS = {Path(announcements.__file__), ROOT / "registry" / "models" / "audit.py"}


def recorded():
    """Give the actions that the code names where it records: by member, or by kind and verb."""
    for path in {*(ROOT / "registry").rglob("*.py"), *(ROOT / "workers").rglob("*.py")} - LISTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id="AuditAction"), attr=name) if name.isupper():
                    yield AuditAction[name]
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="AuditAction"), attr="of_kind"),
                    args=[_, ast.Constant(value=verb)],
                ):
                    yield from (AuditAction.of_kind(kind, verb) for kind in Kind.values)


@pytest.mark.contract
def test_every_action_is_recorded_somewhere():
    assert set(AuditAction) - set(recorded()) == set()


@pytest.mark.contract
def test_every_name_is_its_action():
    assert [one.name for one in AuditAction] == [
        one.upper().replace(".", "_") for one in AuditAction
    ]


@pytest.mark.contract
def test_what_is_announced_is_what_one_can_subscribe_to():
    told = {*announcements.OF_ACTION.values(), announcements.JOB_FINISHED}
    assert told == set(announcements.EVENTS)
