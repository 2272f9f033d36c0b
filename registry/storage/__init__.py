"""Bytes by the SHA-256 that this server computed, on a local disk or in an S3 bucket.

Callers name a digest and never see a path, nor whether the bytes are encrypted where they lie. This
package must not know models, requests or people.
"""

from registry.storage.files import only_damage, unreadable
from registry.storage.incoming import Incoming
from registry.storage.local import LocalStorage
from registry.storage.location import Location, default_storage, storage_at
from registry.storage.objects import BLOCK_BYTES, READY_BYTES, Blocks
from registry.storage.s3 import S3Storage
from registry.storage.sealed import Treated
from registry.storage.segments import (
    MAX_PIECE_BYTES,
    Draft,
    Piece,
    Segments,
    Uncoded,
    pack_pieces,
    unpack_pieces,
)
from registry.storage.spool import Sink, Stored
from registry.storage.uploads import Storage

__all__ = [
    "BLOCK_BYTES",
    "MAX_PIECE_BYTES",
    "READY_BYTES",
    "Blocks",
    "Draft",
    "Incoming",
    "LocalStorage",
    "Location",
    "Piece",
    "S3Storage",
    "Segments",
    "Sink",
    "Storage",
    "Stored",
    "Treated",
    "Uncoded",
    "default_storage",
    "only_damage",
    "pack_pieces",
    "storage_at",
    "unpack_pieces",
    "unreadable",
]
