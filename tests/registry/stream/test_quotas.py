"""An upload that cannot fit where it is to go is refused before its first byte."""

import base64
import hashlib

import httpx
import pytest

from registry.models import Artifact, Namespace, Upload, Version
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    make_member,
    make_model,
    make_token,
    make_version,
)

CONTENT = b"x" * 100


@pytest.fixture
def filled(alice, model):
    """Alice's namespace holds 100 of 250 bytes, one of two versions."""
    made = make_version(alice, model, {"a.txt": CONTENT})
    Namespace.objects.filter(slug="alice").update(quota_bytes=250, quota_versions=2)
    return made


def begin(client, length, *, concat="", **metadata):
    pairs = (
        f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in metadata.items()
    )
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(length)}
    headers |= {"Upload-Metadata": ",".join(pairs)} | ({"Upload-Concat": concat} if concat else {})
    answer = client.post("/api/v1/uploads", headers=headers)
    return answer.status_code, answer.json()["code"] if answer.content else ""


def test_a_file_that_cannot_fit_is_refused_as_it_begins(client, filled):
    full = (403, "bytes_quota_exceeded")
    assert begin(client, 151, namespace="alice") == full
    assert Upload.objects.count() == 0
    assert begin(client, 150, namespace="Alice") == (201, "")
    # Nothing is known of where this one goes; it is the version that is refused.
    assert begin(client, 151) == (201, "")
    # Of a part the whole counts.
    assert begin(client, 10, concat="partial", namespace="alice", total="151") == full
    assert begin(client, 10, concat="partial", namespace="alice", total="150") == (201, "")
    assert begin(client, 10, namespace="alice", total="many") == (400, "invalid")


def test_bytes_that_are_there_already_take_nothing(client, filled):
    Namespace.objects.filter(slug="alice").update(quota_bytes=100)
    known = hashlib.sha256(CONTENT).hexdigest()
    assert begin(client, 100, namespace="alice", sha256=known) == (201, "")
    other = hashlib.sha256(b"y").hexdigest()
    assert begin(client, 100, namespace="alice", sha256=other) == (403, "bytes_quota_exceeded")
    assert begin(client, 100, namespace="alice", sha256="\0" * 64)[0] == 403


def test_a_namespace_that_is_full_of_versions_takes_no_upload_and_no_form(client, filled):
    address = "/api/v1/models/alice/classifier/versions"
    assert client.post(address, files={"a.txt": CONTENT}).status_code == 201
    assert begin(client, 1, namespace="alice") == (403, "versions_quota_exceeded")
    refused = client.post(address, files={"b.txt": b"y"})
    assert (refused.status_code, refused.json()["code"]) == (403, "versions_quota_exceeded")
    assert (Version.objects.count(), Artifact.objects.count()) == (2, 2)


def test_a_form_that_does_not_fit_leaves_nothing(client, filled):
    address = "/api/v1/models/alice/classifier/versions"
    refused = client.post(address, files={"b.txt": b"y" * 151})
    assert (refused.status_code, refused.json()["code"]) == (403, "bytes_quota_exceeded")
    assert Version.objects.get() == filled
    assert client.post(address, files={"b.txt": b"y" * 150}).status_code == 201


def test_only_those_who_may_add_to_a_namespace_hear_of_its_quota(server, alice, filled):
    """A grant on one repository is enough; of digests only members learn."""
    team = NamespaceFactory(slug="team", quota_bytes=10)
    reader, granted = make_member(team, "reader"), UserFactory()
    owner = make_member(team, "owner")
    shared = make_model(owner, "shared", namespace="team", visibility="private")
    make_version(owner, shared, {"a.txt": b"0123456789"})
    shared.grants.create(user=granted, role="contributor")
    digest = hashlib.sha256(b"0123456789").hexdigest()
    expected = {
        reader: (403, "denied"),
        alice: (404, "namespace_not_found"),
        granted: (403, "bytes_quota_exceeded"),
        owner: (201, ""),
    }
    for user, answer in expected.items():
        headers = {"Authorization": f"Bearer {make_token(user)}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
            assert begin(client, 10, namespace="team", sha256=digest) == answer
