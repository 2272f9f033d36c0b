import json

import pytest

from registry import signing
from registry.errors import AlreadyExists, Denied, Invalid, NotFound
from registry.models import Event, Role, Signature, VersionState
from registry.services import signatures
from tests.factories import (
    UserFactory,
    actor_of,
    make_member,
    make_model,
    make_version,
)
from tests.registry.test_signing import make_key, public_pem

pytestmark = pytest.mark.django_db


@pytest.fixture
def alice():
    return UserFactory(username="alice")


@pytest.fixture
def version(alice):
    return make_version(alice, make_model(alice))


@pytest.fixture
def key(tmp_path):
    private = make_key(tmp_path / "private.pem")
    return signing.SigningKey(private=private, public_pem=public_pem(private))


def signed_by(key, version, name="mine"):
    return signing.sign(name, signatures.signed_files(version), key).encode()


def test_every_version_that_is_ready_is_signed_as_it_is_made(version):
    signature = version.signatures.get()
    assert signature.own
    bundle = signing.read_bundle(signature.bundle.encode())
    assert bundle.name == "alice/classifier@1"
    assert dict(bundle.files) == signatures.signed_files(version)
    key = signing.installation_key()
    assert signing.find_signer(bundle, key.public_pem).fingerprint == signature.fingerprint


def test_what_is_not_ready_or_has_no_files_is_not_signed(alice):
    model = make_model(alice)
    assert not make_version(alice, model, {}).signatures.exists()
    held = make_version(alice, model, {"model.pkl": b"\x80\x04K\x01."})
    assert held.state == VersionState.QUARANTINED
    assert not held.signatures.exists()


def test_what_was_left_unsigned_is_signed_later_and_only_once(version):
    version.signatures.all().delete()
    assert signatures.sign_unsigned() == 1
    assert signatures.sign_unsigned() == 0
    assert version.signatures.get().own


def test_signing_many_leaves_the_rest_for_the_next_time(alice):
    model = make_model(alice)
    versions = [make_version(alice, model) for _ in range(3)]
    for version in versions:
        version.signatures.all().delete()
    assert [signatures.sign_unsigned(seconds=0) for _ in range(4)] == [1, 1, 1, 0]


def test_a_new_key_signs_again_and_the_old_signature_stays(version, key, settings, tmp_path):
    settings.SIGNING_KEY = (tmp_path / "private.pem").read_text()
    assert signatures.sign_unsigned() == 1
    fingerprints = set(version.signatures.values_list("fingerprint", flat=True))
    assert key.fingerprint in fingerprints
    assert len(fingerprints) == 2


def test_a_signature_of_the_clients_own_is_checked_and_kept(alice, version, key):
    signature = signatures.add_signature(
        actor=actor_of(alice),
        version=version,
        bundle=signed_by(key, version),
        public_key=key.public_pem,
    )
    assert (signature.own, signature.method) == (False, "key")
    assert signature.fingerprint == key.fingerprint
    assert Event.objects.filter(action="signature.add", target=version.ref).exists()


def test_nobody_signs_twice_with_one_key(alice, version, key):
    given = {"version": version, "public_key": key.public_pem}
    signatures.add_signature(actor=actor_of(alice), bundle=signed_by(key, version), **given)
    with pytest.raises(AlreadyExists):
        signatures.add_signature(actor=actor_of(alice), bundle=signed_by(key, version), **given)


def test_a_signature_of_other_files_leaves_nothing_behind(alice, version, key):
    files = signatures.signed_files(version) | {"model.safetensors": "0" * 64}
    with pytest.raises(Invalid, match=r"model\.safetensors"):
        signatures.add_signature(
            actor=actor_of(alice),
            version=version,
            bundle=signing.sign("mine", files, key).encode(),
            public_key=key.public_pem,
        )
    assert not Signature.objects.filter(version=version, own=False).exists()


def test_readers_add_no_signature(version, key):
    reader = make_member(version.repository.namespace, Role.READER)
    with pytest.raises(Denied):
        signatures.add_signature(
            actor=actor_of(reader),
            version=version,
            bundle=signed_by(key, version),
            public_key=key.public_pem,
        )


def test_who_added_a_signature_or_maintains_the_model_may_take_it_away(alice, version, key):
    author = make_member(version.repository.namespace, Role.CONTRIBUTOR)
    other = make_member(version.repository.namespace, Role.CONTRIBUTOR)
    bundle = json.loads(signed_by(key, version))
    signature = signatures.add_signature(
        actor=actor_of(author),
        version=version,
        bundle=json.dumps(bundle).encode(),
        public_key=key.public_pem,
    )
    with pytest.raises(Denied):
        signatures.delete_signature(actor=actor_of(other), version=version, signature=signature)
    signatures.delete_signature(actor=actor_of(author), version=version, signature=signature)
    with pytest.raises(NotFound):
        signatures.find_signature(version, signature.pk or 0)
    own = version.signatures.get(own=True)
    with pytest.raises(Denied):
        signatures.delete_signature(actor=actor_of(alice), version=version, signature=own)
