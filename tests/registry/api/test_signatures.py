import orjson
import pytest

from registry import signing
from registry.services import signatures
from registry.storage import default_storage
from tests.factories import make_model, make_version
from tests.registry.api.conftest import api_of, problem_of
from tests.registry.test_signing import make_key, public_pem, stock

ONE = "models/alice/classifier/versions/1/signatures"


@pytest.fixture
def version(alice):
    return make_version(alice, make_model(alice))


@pytest.fixture
def key(tmp_path):
    private = make_key(tmp_path / "private.pem")
    return signing.SigningKey(private=private, public_pem=public_pem(private))


@pytest.fixture
def bundle(version, key):
    return orjson.loads(signing.sign("mine", signatures.signed_files(version), key))


def test_a_stranger_verifies_a_public_version_with_the_stock_tool(version, anonymous, tmp_path):
    folder, signature, key = tmp_path / "model", tmp_path / "model.sig", tmp_path / "key.pem"
    folder.mkdir()
    for file in anonymous.get("models/alice/classifier/versions/1/files").json()["items"]:
        (folder / file["path"]).write_bytes(default_storage().read(file["sha256"]))
    (made,) = anonymous.get(ONE).json()["items"]
    signature.write_bytes(anonymous.get(f"{ONE}/{made['id']}").content)
    answer = anonymous.get("signing-key")
    assert answer["Content-Type"] == "application/x-pem-file"
    key.write_bytes(answer.content)
    checked = stock("verify", "key", folder, "--signature", signature, "--public_key", key)
    assert checked.returncode == 0, checked.stderr


def test_a_bundle_of_a_client_is_shown_beside_ours(version, api, bundle, key):
    made = api.post(ONE, {"bundle": bundle, "public_key": key.public_pem})
    assert made.status_code == 201
    assert made.json()["created_by"] == "alice"
    assert [one["own"] for one in api.get(ONE).json()["items"]] == [True, False]
    assert orjson.loads(api.get(made["Location"]).content) == bundle
    assert api.delete(made["Location"]).status_code == 204
    problem_of(api.get(made["Location"]), 404, "signature_not_found")


def test_bundles_that_do_not_hold_are_refused(version, api, bundle, key):
    problem_of(api.post(ONE, {"bundle": bundle}), 400, "public_key_missing")
    problem_of(api.post(ONE, {"bundle": {}}), 400, "bad_signature_bundle")
    other = signing.installation_key().public_pem
    problem_of(api.post(ONE, {"bundle": bundle, "public_key": other}), 400, "bad_signature")


def test_signatures_of_what_one_may_not_see_do_not_exist(alice, bob, bundle, key):
    make_version(alice, make_model(alice, "hidden", visibility="private"))
    address = ONE.replace("classifier", "hidden")
    stranger = api_of(bob)
    absent = ONE.replace("classifier", "absent")
    for ask in (stranger.get, lambda path: stranger.post(path, {"bundle": bundle})):
        hidden, missing = ask(address).json(), ask(absent).json()
        assert hidden["code"] == missing["code"] == "model_not_found"
