"""Bytes by the SHA-256 that this server computed, on a local disk or in an S3 bucket.

Callers name a digest and never see a path, nor whether the bytes are encrypted where they lie. This
package must not know models, requests or people.
"""

from registry.storage.incoming import Incoming
from registry.storage.local import LocalStorage
from registry.storage.location import Location, default_storage, storage_at
from registry.storage.objects import BLOCK_BYTES, READY_BYTES, Blocks
from registry.storage.s3 import S3Storage
from registry.storage.spool import Sink, Stored
from registry.storage.uploads import Storage

__all__ = [
    "BLOCK_BYTES",
    "READY_BYTES",
    "Blocks",
    "Incoming",
    "LocalStorage",
    "Location",
    "S3Storage",
    "Sink",
    "Storage",
    "Stored",
    "default_storage",
    "storage_at",
]
