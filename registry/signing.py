"""Signatures of models in the OpenSSF format: made with this installation's key, read from others.

A signature is a Sigstore bundle (v0.3) around a DSSE envelope around an in-toto statement (v1) that
lists every file of a version with its SHA-256 (https://github.com/ossf/model-signing-spec), so the
stock `model_signing verify` accepts it. Only digests are signed: no file is read again. This module
must not know models or people.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings

from registry.errors import Invalid, Text, Unavailable
from registry.formats.bounded_json import parse_json
from registry.kept import keep_secret

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES = 4 * 1024 * 1024
# What `model_signing` leaves out unless it is told otherwise.
GIT_PATHS = (".git", ".gitattributes", ".github", ".gitignore")

_MEDIA_TYPES = re.compile(r"application/vnd\.dev\.sigstore\.bundle(\.v0\.[0-9]\+json|\+json;.*)")
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SIGNATURE_ENDINGS = (".sig", ".sigstore", ".sigstore.json")
_HASHES: Mapping[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
_MAX_CERTIFICATES = 10


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """The private half that signs what is published here, and its public half as PEM."""

    private: ec.EllipticCurvePrivateKey
    public_pem: str

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.public_pem)


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who made a signature, as far as the bundle itself shows.

    `method` is `key`, `certificate` (a chain of the signer's own) or `sigstore` (a short-lived
    certificate for an identity). `identity` is what the certificate says: who vouches for it is
    for the reader to check.
    """

    method: str
    fingerprint: str
    identity: str = ""
    issuer: str = ""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A signature as it came: what was signed, by what, not yet believed."""

    payload: bytes
    signature: bytes
    name: str
    files: Mapping[str, str]
    ignored: Sequence[str]
    key_hint: str
    certificates: Sequence[x509.Certificate]
    short_lived: bool


# --- The key of this installation ------------------------------------------------------------


def installation_key() -> SigningKey:
    """Give the key that signs versions: `MODELYARD_SIGNING_KEY`, else one made once and kept.

    Raises:
        Unavailable: there is none, and none can be made.

    """
    try:
        pem = settings.SIGNING_KEY or _kept_key(settings.HOME_DIR / "signing-key.pem")
        return _read_key(pem)
    except (OSError, ValueError) as error:
        raise Unavailable(
            "The key that signs versions cannot be read or made: {problem}. The administrator can "
            "set MODELYARD_SIGNING_KEY_FILE, or make the data folder writable.",
            code="signing_key_missing",
            problem=error,
        ) from error


@cache
def _kept_key(path: Path) -> str:
    return keep_secret(path, _new_key)


def _new_key() -> str:
    private = ec.generate_private_key(ec.SECP256R1())
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@cache
def _read_key(pem: str) -> SigningKey:
    private = read_private_key(pem)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return SigningKey(private=private, public_pem=public.decode())


def read_private_key(pem: str) -> ec.EllipticCurvePrivateKey:
    """Read a PEM private key.

    Raises:
        ValueError: it is none, or not of a curve that `model_signing` takes.

    """
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise ValueError("it is no elliptic-curve key (P-256, P-384 or P-521)")
    return key


def fingerprint_of(public_pem: str) -> str:
    """Give the SHA-256 of a public key's PEM text, the hint that bundles carry."""
    return hashlib.sha256(public_pem.encode()).hexdigest()


def plain_pem(public_pem: str) -> str:
    """Write a public key in PEM anew, without what may stand around it; nothing for no key."""
    try:
        key = serialization.load_pem_public_key(public_pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        return ""
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


# --- Signing ---------------------------------------------------------------------------------


def sign(name: str, files: Mapping[str, str], key: SigningKey) -> str:
    """Sign `files` (path to SHA-256) as the model `name`; give the bundle as JSON text."""
    payload = json.dumps(_statement(name, files)).encode()
    signature = key.private.sign(_framed(payload), ec.ECDSA(_HASHES[key.private.curve.name]))
    return json.dumps(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": key.fingerprint},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def _statement(name: str, files: Mapping[str, str]) -> dict[str, Any]:
    signed = sorted((path for path in files if not _is_below(path, GIT_PATHS)), key=PurePosixPath)
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(files[path] for path in signed)}}],
        "predicateType": _PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(GIT_PATHS),
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": files[path]} for path in signed
            ],
        },
    }


def _root(digests: Iterable[str]) -> str:
    """Hash the digests one after the other, as the format defines a model's own digest."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _framed(payload: bytes) -> bytes:
    """Frame what is signed: DSSE's pre-authentication encoding."""
    head = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} "
    return head.encode() + payload


def _is_below(path: str, places: Iterable[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(place) for place in places)


# --- Reading what others signed ----------------------------------------------------------------


def read_bundle(data: bytes) -> Bundle:
    """Read a bundle without believing it.

    Raises:
        Invalid: it is no bundle of a model signature over files with SHA-256.

    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise _unreadable("it is larger than {limit} bytes", limit=MAX_BUNDLE_BYTES)
    bundle = parse_json(data, what=Text("The signature bundle"))
    if not _MEDIA_TYPES.fullmatch(_text(bundle, "mediaType")):
        raise _unreadable("its mediaType is not that of a Sigstore bundle")
    envelope = _member(bundle, "dsseEnvelope", dict)
    if _text(envelope, "payloadType") != _PAYLOAD_TYPE:
        raise _unreadable("its payload is not {wanted}", wanted=_PAYLOAD_TYPE)
    signatures = _member(envelope, "signatures", list)
    if len(signatures) != 1:
        raise _unreadable("it needs exactly one signature")
    payload = _bytes(envelope, "payload")
    name, files, ignored = _read_statement(payload)
    material = _member(bundle, "verificationMaterial", dict)
    return Bundle(
        payload=payload,
        signature=_bytes(signatures[0], "sig"),
        name=name,
        files=files,
        ignored=ignored,
        key_hint=_key_hint(material),
        certificates=_certificates(material),
        short_lived="certificate" in material,
    )


def _read_statement(payload: bytes) -> tuple[str, Mapping[str, str], Sequence[str]]:
    statement = parse_json(payload, what=Text("The signed statement"))
    if _text(statement, "_type") != _STATEMENT_TYPE:
        raise _unreadable("its statement is not {wanted}", wanted=_STATEMENT_TYPE)
    if _text(statement, "predicateType") != _PREDICATE_TYPE:
        raise _unreadable("its statement is not of the type {wanted}", wanted=_PREDICATE_TYPE)
    subjects = _member(statement, "subject", list)
    if len(subjects) != 1:
        raise _unreadable("its statement needs exactly one subject")
    predicate = _member(statement, "predicate", dict)
    how = _member(predicate, "serialization", dict)
    if how.get("method") != "files" or how.get("hash_type") != "sha256":
        raise _unreadable(
            "it was made over shards or with another hash; sign files with SHA-256, "
            "which is the default of model_signing"
        )
    files: dict[str, str] = {}
    for resource in _member(predicate, "resources", list):
        path, digest = _text(resource, "name"), _text(resource, "digest")
        if resource.get("algorithm") != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise _unreadable("the digest of {path!r} is no SHA-256", path=path[:200])
        if path in files:
            raise _unreadable("it lists {path!r} twice", path=path[:200])
        files[path] = digest
    root = _text(_member(subjects[0], "digest", dict), "sha256")
    if root != _root(files.values()):
        raise _unreadable("the digests of its files do not add up to that of its subject")
    ignored = _member(how, "ignore_paths", list) if "ignore_paths" in how else []
    return (
        _text(subjects[0], "name")[:300],
        files,
        [one for one in ignored if isinstance(one, str)],
    )


def require_same_files(bundle: Bundle, files: Mapping[str, str]) -> None:
    """Pass when the bundle lists exactly `files` (path to SHA-256).

    Files of Git and signatures may be left out when the bundle says that it ignores them.

    Raises:
        Invalid: a file is missing on one side, or its digest differs.

    """
    for path, digest in bundle.files.items():
        if path not in files:
            raise _differs("it signs {path!r}, which is not in this version", path=path[:200])
        if files[path] != digest:
            raise _differs(
                "{path!r} has the digest {found}, and {digest} was signed",
                path=path,
                found=files[path],
                digest=digest,
            )
    for path in files:
        left_out = _is_below(path, bundle.ignored) and (
            _is_below(path, GIT_PATHS) or path.endswith(_SIGNATURE_ENDINGS)
        )
        if path not in bundle.files and not left_out:
            raise _differs("it does not sign {path!r}", path=path)


def find_signer(bundle: Bundle, public_pem: str = "") -> Signer:
    """Check the signature with `public_pem`, or with the certificate that the bundle carries.

    Raises:
        Invalid: the signature is not by that key, or there is no key to check it with.

    """
    if bundle.certificates:
        return _certified(bundle)
    if not public_pem:
        raise Invalid(
            "This signature was made with a key; send its public half as PEM in public_key.",
            code="public_key_missing",
        )
    try:
        key = serialization.load_pem_public_key(public_pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise Invalid("public_key is no public key in PEM.", code="bad_public_key") from None
    _require_signed(bundle, key)
    pem = key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    fingerprint = fingerprint_of(pem.decode())
    if bundle.key_hint and bundle.key_hint != fingerprint:
        raise _forged("the bundle names another key")
    return Signer(method="key", fingerprint=fingerprint)


def _certified(bundle: Bundle) -> Signer:
    leaf = bundle.certificates[0]
    try:
        key, identity, issuer = leaf.public_key(), _identity(leaf), leaf.issuer.rfc4514_string()
    except (ValueError, UnsupportedAlgorithm):
        raise _unreadable("its certificate cannot be read") from None
    _require_signed(bundle, key)
    return Signer(
        method="sigstore" if bundle.short_lived else "certificate",
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
        identity=identity[:300],
        issuer=issuer[:300],
    )


def _identity(certificate: x509.Certificate) -> str:
    """Name whom a certificate stands for: its e-mail or URI, else its subject."""
    with suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        for kind in (x509.RFC822Name, x509.UniformResourceIdentifier):
            for name in names.get_values_for_type(kind):
                return str(name)
    return certificate.subject.rfc4514_string()


def _require_signed(bundle: Bundle, key: object) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise Invalid(
            "The key is no elliptic-curve key of P-256, P-384 or P-521; others are not checked.",
            code="bad_public_key",
        )
    try:
        key.verify(bundle.signature, _framed(bundle.payload), ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        raise _forged("the signature is not by that key, or what it signs was changed") from None


def _key_hint(material: Mapping[str, Any]) -> str:
    key = material.get("publicKey")
    hint = key.get("hint") if isinstance(key, dict) else ""
    return hint if isinstance(hint, str) else ""


def _certificates(material: Mapping[str, Any]) -> Sequence[x509.Certificate]:
    chain = material.get("x509CertificateChain")
    if "certificate" in material:
        entries = [material["certificate"]]
    elif isinstance(chain, dict):
        entries = _member(chain, "certificates", list)
    else:
        entries = []
    if len(entries) > _MAX_CERTIFICATES:
        raise _unreadable("it has more than {limit} certificates", limit=_MAX_CERTIFICATES)
    try:
        return [x509.load_der_x509_certificate(_bytes(entry, "rawBytes")) for entry in entries]
    except ValueError:
        raise _unreadable("one of its certificates cannot be read") from None


def _member(parent: object, name: str, kind: type[Any]) -> Any:
    value = parent.get(name) if isinstance(parent, dict) else None
    if not isinstance(value, kind):
        raise _unreadable("{name} is missing or of another type", name=name)
    return value


def _text(parent: object, name: str) -> str:
    text: str = _member(parent, name, str)
    return text


def _bytes(parent: object, name: str) -> bytes:
    try:
        return base64.b64decode(_text(parent, name), validate=True)
    except (binascii.Error, ValueError):
        raise _unreadable("{name} is not base64", name=name) from None


def _unreadable(template: str, /, **values: Any) -> Invalid:
    return Invalid(
        "The signature bundle cannot be used: {why}.",
        code="bad_signature_bundle",
        why=Text(template, **values),
    )


def _differs(template: str, /, **values: Any) -> Invalid:
    return Invalid(
        "The signature is of other files: {why}. Sign the files exactly as they are here.",
        code="signature_mismatch",
        why=Text(template, **values),
    )


def _forged(template: str, /, **values: Any) -> Invalid:
    return Invalid(
        "The signature does not hold: {why}.", code="bad_signature", why=Text(template, **values)
    )
