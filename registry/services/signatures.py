"""Signatures over versions: made here for every version that is ready, or brought by a client."""

import time
from collections.abc import Mapping

from django.db import transaction
from django.db.models import Exists, OuterRef

from registry import signing
from registry.errors import AlreadyExists, Conflict, Denied, NotFound
from registry.models import Actor, Artifact, AuditAction, Signature, Version
from registry.permissions import allowed, require
from registry.services.audit import record_event
from registry.services.texts import check_text

_MAX_CLIENT_SIGNATURES = 20
_BATCH = 200


def signed_files(version: Version) -> dict[str, str]:
    """Map the paths of a version to the SHA-256 of their bytes."""
    files = Artifact.objects.filter(revision_id=version.revision_id)
    return dict(files.values_list("path", "blob__sha256"))


def sign_version(version: Version, files: Mapping[str, str] | None = None) -> Signature | None:
    """Sign a version with this installation's key, once; nothing to sign gives None.

    `files` (path to SHA-256) spares a query where the caller has them at hand.
    """
    files = signed_files(version) if files is None else files
    if not files or not version.is_usable:
        return None
    key = signing.installation_key()
    signature, _ = Signature.objects.get_or_create(
        version=version,
        own=True,
        fingerprint=key.fingerprint,
        defaults={
            "method": Signature.Method.KEY,
            "public_key": key.public_pem,
            "bundle": signing.sign(version.ref, files, key),
        },
    )
    return signature


def sign_unsigned(*, seconds: float = 120) -> int:
    """Sign what is ready and has no signature by the present key, after a change of key or a crash.

    What is left after `seconds` waits for the next time: a worker has other things to do. Returns
    how many versions were signed.
    """
    until = time.monotonic() + seconds
    fingerprint = signing.installation_key().fingerprint
    by_present_key = Signature.objects.filter(
        version=OuterRef("pk"), own=True, fingerprint=fingerprint
    )
    unsigned = (
        Version.objects.usable()
        .filter(~Exists(by_present_key), files_count__gt=0)
        .select_related("repository__namespace")
    )
    count = 0
    for version in unsigned.iterator(chunk_size=_BATCH):
        count += sign_version(version) is not None
        if time.monotonic() > until:
            break
    return count


def add_signature(
    *, actor: Actor, version: Version, bundle: bytes, public_key: object = ""
) -> Signature:
    """Keep a signature that a client made, after checking it against the files of the version.

    `public_key` (PEM) is needed when the bundle was made with a bare key.

    Raises:
        Invalid: it is no such bundle, signs other files, or does not hold.
        AlreadyExists: this signer has signed the version already.
        Conflict: the version has as many signatures as it may.

    """
    require(actor, "write", version.repository)
    pem = check_text("public_key", public_key, max_length=10_000)
    read = signing.read_bundle(bundle)
    signing.require_same_files(read, signed_files(version))
    signer = signing.find_signer(read, f"{pem}\n" if pem else "")
    with transaction.atomic():
        Version.objects.select_for_update(of=("self",)).get(pk=version.pk)
        others = Signature.objects.filter(version=version, own=False)
        if others.filter(fingerprint=signer.fingerprint).exists():
            raise AlreadyExists(
                "{version} already has a signature by {fingerprint}…; delete that one first.",
                code="signature_exists",
                version=version.ref,
                fingerprint=signer.fingerprint[:16],
            )
        if others.count() >= _MAX_CLIENT_SIGNATURES:
            raise Conflict(
                "{version} has {limit} signatures; delete one first.",
                version=version.ref,
                limit=_MAX_CLIENT_SIGNATURES,
            )
        signature = Signature.objects.create(
            version=version,
            method=signer.method,
            fingerprint=signer.fingerprint,
            identity=signer.identity,
            issuer=signer.issuer,
            public_key=signing.plain_pem(pem) if signer.method == Signature.Method.KEY else "",
            bundle=bundle.decode(),
            created_by_id=actor.person_id,
        )
        record_event(
            actor,
            AuditAction.SIGNATURE_ADD,
            repository=version.repository,
            target=version.ref,
            fingerprint=signer.fingerprint,
            method=signer.method,
        )
    return signature


def find_signature(version: Version, signature_id: int) -> Signature:
    """Find one signature of a version.

    Raises:
        NotFound: the version has no such signature.

    """
    found = Signature.objects.filter(version=version, pk=signature_id).first()
    if found is None:
        raise NotFound(
            "{version} has no signature {signature}.",
            code="signature_not_found",
            version=version.ref,
            signature=signature_id,
        )
    return found


def delete_signature(*, actor: Actor, version: Version, signature: Signature) -> None:
    """Take a client's signature away: whoever added it may, and maintainers.

    Raises:
        Denied: it is this installation's own, or somebody else's.

    """
    require(actor, "write", version.repository)
    if signature.own:
        raise Denied("The signature of this installation stays with the version.")
    mine = signature.created_by_id == actor.user_id
    if not mine and not allowed(actor, "maintain", version.repository):
        raise Denied("Only who added this signature, or a maintainer, may delete it.")
    with transaction.atomic():
        signature.delete()
        record_event(
            actor,
            AuditAction.SIGNATURE_DELETE,
            repository=version.repository,
            target=version.ref,
            fingerprint=signature.fingerprint,
        )
