"""How objects of the store are named, and what names nothing.

blobs/ab/abcd…           plain bytes
incoming/{upload}        what a client writes itself, in a bucket only: see `Incoming`
sealed/ab/abcd…          the same, encrypted: see `registry.encryption.container`
keys/ab/abcd….{file id}  the wrapped key of one such container
segmented/ab/abcd…/      plain bytes in pieces, on a local disk: see `registry.storage.segments`
"""

import re

from registry.encryption import Header
from registry.errors import NotFound

SHA256 = re.compile(r"[0-9a-f]{64}")
UPLOAD_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def plain_name(sha256: str) -> str:
    return f"blobs/{require_sha256(sha256)[:2]}/{sha256}"


def sealed_name(sha256: str) -> str:
    return f"sealed/{require_sha256(sha256)[:2]}/{sha256}"


def segmented_name(sha256: str) -> str:
    return f"segmented/{require_sha256(sha256)[:2]}/{sha256}"


def key_name(header: Header) -> str:
    sha256 = header.digest.hex()
    return f"keys/{sha256[:2]}/{sha256}.{header.file_id.hex()}"


def is_segmented(name: str) -> bool:
    return name.startswith("segmented/")


def is_sealed(name: str) -> bool:
    return name.startswith("sealed/")


def require_sha256(sha256: str) -> str:
    if not SHA256.fullmatch(sha256):
        raise no_blob(sha256)
    return sha256


def no_blob(sha256: str) -> NotFound:
    return NotFound("No stored bytes with sha256 {sha256}.", sha256=sha256[:64])


def no_upload(upload_id: str) -> NotFound:
    return NotFound(
        "No upload {upload} in progress.", code="upload_not_found", upload=upload_id[:36]
    )
