"""Signatures: the stock tool accepts ours, we accept its own, and nothing that was bent."""

import base64
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import signing
from registry.errors import Invalid

FILES = {
    "README.md": b"# A model\n",
    "config.json": b"{}",
    "weights/model-00001.safetensors": b"\x01" * 1000,
    "weights.txt": b"between a folder and its name",
    ".gitattributes": b"*.bin filter=lfs\n",
}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "model"
    for path, content in FILES.items():
        target = place / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return place


@pytest.fixture
def digests():
    return digests_of(FILES)


def digests_of(files):
    return {path: digest(content) for path, content in files.items()}


def digest(content):
    hashed = hashes.Hash(hashes.SHA256())
    hashed.update(content)
    return hashed.finalize().hex()


def stock(*words):
    """Run the tool that everybody else verifies with."""
    return subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def make_key(path, curve=None):
    key = ec.generate_private_key(curve or ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return key


def public_pem(key):
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def our_bundle(digests):
    return signing.sign("team/model@1", digests, signing.installation_key())


@pytest.mark.slow
def test_the_stock_tool_verifies_what_we_sign(folder, digests, tmp_path):
    signature, key = tmp_path / "model.sig", tmp_path / "key.pem"
    signature.write_text(our_bundle(digests))
    key.write_text(signing.installation_key().public_pem)
    asked = ("verify", "key", folder, "--signature", signature, "--public_key", key)
    assert stock(*asked).returncode == 0
    (folder / "config.json").write_bytes(b"{ }")
    refused = stock(*asked)
    assert refused.returncode != 0
    assert "config.json" in refused.stdout + refused.stderr


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_we_accept_what_the_stock_tool_signs_with_a_key(folder, digests, tmp_path, curve):
    private = tmp_path / "private.pem"
    key = make_key(private, curve())
    signature = tmp_path / "model.sig"
    made = stock("sign", "key", folder, "--private_key", private, "--signature", signature)
    assert made.returncode == 0, made.stderr
    bundle = signing.read_bundle(signature.read_bytes())
    signing.require_same_files(bundle, digests)
    signer = signing.find_signer(bundle, public_pem(key))
    assert signer == signing.Signer(
        method="key", fingerprint=signing.fingerprint_of(public_pem(key))
    )


def certificate_for(key, name):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.RFC822Name("ml@example.org")]), critical=False
        )
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def test_we_accept_what_the_stock_tool_signs_with_a_certificate(folder, digests, tmp_path):
    private, certificate = tmp_path / "private.pem", tmp_path / "certificate.pem"
    certificate.write_bytes(certificate_for(make_key(private), "Release team"))
    signature = tmp_path / "model.sig"
    made = stock(
        *("sign", "certificate", folder, "--private_key", private, "--signature", signature),
        *("--signing_certificate", certificate, "--certificate_chain", certificate),
    )
    assert made.returncode == 0, made.stderr
    bundle = signing.read_bundle(signature.read_bytes())
    signing.require_same_files(bundle, digests)
    signer = signing.find_signer(bundle)
    assert signer.method == "certificate"
    assert signer.identity == "ml@example.org"
    assert "Release team" in signer.issuer


def test_the_key_of_an_installation_is_made_once_and_is_nobody_elses(settings, tmp_path):
    settings.HOME_DIR = tmp_path / "new"
    first = signing.installation_key()
    kept = settings.HOME_DIR / "signing-key.pem"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert signing.read_private_key(kept.read_text()).public_key() == first.private.public_key()
    assert list(settings.HOME_DIR.iterdir()) == [kept]


def test_a_key_that_cannot_be_kept_is_a_refusal_that_names_the_setting(settings, tmp_path):
    (tmp_path / "file").write_text("in the way")
    settings.HOME_DIR = tmp_path / "file"
    with pytest.raises(signing.Unavailable, match="MODELYARD_SIGNING_KEY_FILE"):
        signing.installation_key()


# --- Bundles that were bent -------------------------------------------------------------------


def resigned(digests, change):
    """Sign a statement that `change` has altered, so that only the statement is wrong."""
    bundle = json.loads(our_bundle(digests))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    key = signing.installation_key()
    kind = "application/vnd.in-toto+json"
    framed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    signature = key.private.sign(framed, ec.ECDSA(hashes.SHA256()))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(bundle).encode()


def edited(digests, change):
    bundle = json.loads(our_bundle(digests))
    change(bundle)
    return json.dumps(bundle).encode()


def repeat_resource(statement):
    statement["predicate"]["resources"] *= 2


BENT_STATEMENTS = {
    "another type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "another predicate": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "no predicate": lambda s: s.pop("predicate"),
    "two subjects": lambda s: s.update(subject=s["subject"] * 2),
    "root digest": lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
    "shards": lambda s: s["predicate"]["serialization"].update(method="shards"),
    "another hash": lambda s: s["predicate"]["serialization"].update(hash_type="blake3"),
    "digest of another hash": lambda s: s["predicate"]["resources"][0].update(algorithm="md5"),
    "digest that is none": lambda s: s["predicate"]["resources"][0].update(digest="zz"),
    "a file twice": repeat_resource,
    "resources that are none": lambda s: s["predicate"].update(resources=[1, 2]),
    "ignoring a number": lambda s: s["predicate"]["serialization"].update(ignore_paths=3),
}
BENT_BUNDLES = {
    "media type": lambda b: b.update(mediaType="application/json"),
    "no envelope": lambda b: b.pop("dsseEnvelope"),
    "a message instead": lambda b: b.update(dsseEnvelope="text"),
    "payload type": lambda b: b["dsseEnvelope"].update(payloadType="text/plain"),
    "payload not base64": lambda b: b["dsseEnvelope"].update(payload="%%%"),
    "payload not JSON": lambda b: b["dsseEnvelope"].update(payload="aGk="),
    "no signature": lambda b: b["dsseEnvelope"].update(signatures=[]),
    "two signatures": lambda b: b["dsseEnvelope"].update(
        signatures=b["dsseEnvelope"]["signatures"] * 2
    ),
    "no material": lambda b: b.pop("verificationMaterial"),
    "certificate that is none": lambda b: b.update(
        verificationMaterial={"certificate": {"rawBytes": "aGk="}}
    ),
    "eleven certificates": lambda b: b.update(
        verificationMaterial={"x509CertificateChain": {"certificates": [{}] * 11}}
    ),
}


@pytest.mark.parametrize("change", BENT_STATEMENTS.values(), ids=BENT_STATEMENTS)
def test_a_statement_of_another_shape_is_refused(digests, change):
    with pytest.raises(Invalid) as refusal:
        signing.read_bundle(resigned(digests, change))
    assert refusal.value.reason == "bad_signature_bundle"


@pytest.mark.parametrize("change", BENT_BUNDLES.values(), ids=BENT_BUNDLES)
def test_a_bundle_of_another_shape_is_refused(digests, change):
    with pytest.raises(Invalid):
        signing.read_bundle(edited(digests, change))


def test_a_bundle_that_is_too_large_is_not_even_parsed():
    with pytest.raises(Invalid, match="larger than"):
        signing.read_bundle(b" " * (signing.MAX_BUNDLE_BYTES + 1))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({**FILES, "config.json": b"changed"}, "config.json"),
        ({**FILES, "extra.bin": b"new"}, "does not sign 'extra.bin'"),
        ({path: FILES[path] for path in FILES if path != "README.md"}, "README.md"),
    ],
)
def test_other_files_than_were_signed_are_named(digests, files, words):
    bundle = signing.read_bundle(our_bundle(digests).encode())
    with pytest.raises(Invalid, match=words) as refusal:
        signing.require_same_files(bundle, digests_of(files))
    assert refusal.value.reason == "signature_mismatch"


def test_ignoring_everything_signs_nothing():
    """A bundle may leave out Git's files and itself, whatever it says that it ignores."""

    def ignore_all(statement):
        statement["predicate"]["serialization"]["ignore_paths"] = ["weights", "model.sig"]

    signed = digests_of({"README.md": FILES["README.md"]})
    bundle = signing.read_bundle(resigned(signed, ignore_all))
    signing.require_same_files(bundle, {**signed, "model.sig": "0" * 64})
    with pytest.raises(Invalid, match="weights/a"):
        signing.require_same_files(bundle, {**signed, "weights/a.bin": "0" * 64})


def test_a_signature_holds_for_its_own_key_only(digests, tmp_path):
    bundle = signing.read_bundle(our_bundle(digests).encode())
    stranger = public_pem(make_key(tmp_path / "other.pem"))
    with pytest.raises(Invalid) as refusal:
        signing.find_signer(bundle, stranger)
    assert refusal.value.reason == "bad_signature"
    with pytest.raises(Invalid, match="public_key"):
        signing.find_signer(bundle)
    with pytest.raises(Invalid) as refusal:
        signing.find_signer(bundle, "no key at all")
    assert refusal.value.reason == "bad_public_key"
    edwards = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(Invalid, match="elliptic-curve"):
        signing.find_signer(bundle, public_pem(edwards))


def test_a_payload_changed_after_signing_is_refused(digests):
    def lie(bundle):
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        statement["subject"][0]["name"] = "somebody/else@1"
        payload = base64.b64encode(json.dumps(statement).encode()).decode()
        bundle["dsseEnvelope"]["payload"] = payload

    bundle = signing.read_bundle(edited(digests, lie))
    with pytest.raises(Invalid) as refusal:
        signing.find_signer(bundle, signing.installation_key().public_pem)
    assert refusal.value.reason == "bad_signature"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["mediaType", "dsseEnvelope", "verificationMaterial", "_type"]), JSON)
def test_no_bundle_breaks_the_reader(member, value):
    digests = digests_of(FILES)
    raw = (
        resigned(digests, lambda s: s.update(predicate=value))
        if member == "_type"
        else edited(digests, lambda b: b.update({member: value}))
    )
    try:
        bundle = signing.read_bundle(raw)
        signing.require_same_files(bundle, digests)
        signing.find_signer(bundle, signing.installation_key().public_pem)
    except Invalid:
        return
    # Without a hint the signature still speaks for itself.
    assert member == "verificationMaterial"
