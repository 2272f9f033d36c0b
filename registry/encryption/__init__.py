"""Encryption at rest: sealed containers of blobs, and the master keys that wrap their keys.

It must not know where blobs are kept, nor rows, requests or settings.
"""

from registry.encryption.container import (
    Header,
    Sealed,
    new_header,
    plain_bytes_of,
    seal_file,
    sealed_bytes_of,
)
from registry.encryption.keys import (
    SETTING,
    BadMasterKeyError,
    DataKey,
    KeyRing,
    Sidecar,
    parse_master_keys,
)

__all__ = [
    "SETTING",
    "BadMasterKeyError",
    "DataKey",
    "Header",
    "KeyRing",
    "Sealed",
    "Sidecar",
    "new_header",
    "parse_master_keys",
    "plain_bytes_of",
    "seal_file",
    "sealed_bytes_of",
]
