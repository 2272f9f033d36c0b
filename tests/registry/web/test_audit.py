import json

import pytest

from registry.models import Role
from tests.factories import NamespaceFactory, make_member, make_model


@pytest.fixture
def owner(db):
    return make_member(NamespaceFactory(slug="team"), Role.OWNER)


@pytest.fixture
def visitor(client, owner):
    client.force_login(owner)
    return client


def test_the_log_is_read_and_narrowed(visitor, owner):
    make_model(owner, namespace="team")
    page = visitor.get("/settings/audit").content.decode()
    assert "model.register" in page
    assert "team/classifier" in page
    assert "model.register" not in visitor.get("/settings/audit?action=job.").content.decode()


@pytest.mark.parametrize("query", ["namespace=nowhere", "since=yesterday", "action=" + "x" * 65])
def test_what_cannot_be_asked_is_said(visitor, query):
    assert visitor.get(f"/settings/audit?{query}").status_code == 422


def test_it_is_read_page_by_page_and_taken_away_whole(visitor, owner):
    for number in range(51):
        make_model(owner, f"model{number}", namespace="team")
    first = visitor.get("/settings/audit?action=model.register").content.decode()
    assert first.count("model.register</td>") == 50
    assert "cursor=" in first
    answer = visitor.get("/settings/audit/export?action=model.register")
    assert answer["Content-Type"] == "application/x-ndjson"
    lines = b"".join(answer.streaming_content).splitlines()
    assert len(lines) == 51
    assert json.loads(lines[0])["target"] == "team/model0"
