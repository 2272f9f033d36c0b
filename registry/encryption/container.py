"""The container of an encrypted blob: a header, then blocks that can each be read alone.

    offset  bytes
    0       8    magic `MYSEALED`
    8       1    version, 1: AES-256-GCM over blocks of 256 KiB
    9       7    zero
    16      16   file id, random; names the sidecar that holds the wrapped key
    32      8    length of the plain bytes, big-endian
    40      32   SHA-256 of the plain bytes
    72           blocks: ciphertext, then its tag of 16 bytes; the last one may be shorter

The key belongs to this one file, so a block's number is nonce enough. The whole header and the
number are authenticated with each block: a block that was changed, moved, left out or taken from
another file does not open, nor does a file under another digest, or one that was cut.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from registry.errors import Text, Unavailable

BLOCK_BYTES = 256 * 1024
TAG_BYTES = 16
SEALED_BLOCK_BYTES = BLOCK_BYTES + TAG_BYTES
# How many blocks go through memory at once. Larger pieces cost more than they save: the allocator
# gives them back to the system each time, and fresh pages are dear (four times slower with 8).
BATCH = 2

_MAGIC = b"MYSEALED"
_VERSION = 1
_LAYOUT = struct.Struct(">8sB7x16sQ32s")
HEADER_BYTES = _LAYOUT.size


class Header(NamedTuple):
    """What stands before the blocks, and is authenticated with each of them."""

    file_id: bytes
    size_bytes: int
    digest: bytes

    def pack(self) -> bytes:
        return _LAYOUT.pack(_MAGIC, _VERSION, self.file_id, self.size_bytes, self.digest)

    @classmethod
    def parse(cls, raw: bytes, *, sha256: str, sealed_bytes: int) -> Self:
        """Read the header of the container that should hold `sha256`.

        Raises:
            Unavailable: it is none of ours, or not of these bytes, or of another length.

        """
        if len(raw) != HEADER_BYTES:
            raise damaged(sha256, Text("its header is cut short"))
        magic, version, file_id, size_bytes, digest = _LAYOUT.unpack(raw)
        if magic != _MAGIC or version != _VERSION:
            raise damaged(sha256, Text("its header is not one of this release"))
        header = cls(file_id, size_bytes, digest)
        # The seven zero bytes are the only ones that unpacking skips.
        if header.pack() != raw or digest.hex() != sha256:
            raise damaged(sha256, Text("its header is not that of these bytes"))
        if sealed_bytes != sealed_bytes_of(size_bytes):
            raise damaged(sha256, Text("its length is not the one that its header names"))
        return header


def new_header(*, sha256: str, size_bytes: int) -> Header:
    return Header(os.urandom(16), size_bytes, bytes.fromhex(sha256))


def sealed_bytes_of(size_bytes: int) -> int:
    """Give the length of the container of so many plain bytes."""
    return HEADER_BYTES + size_bytes + TAG_BYTES * _count(size_bytes)


def plain_bytes_of(sealed_bytes: int) -> int:
    """Give the length of what a container of so many bytes holds, without opening it."""
    body = max(TAG_BYTES, sealed_bytes - HEADER_BYTES)
    return body - TAG_BYTES * -(-body // SEALED_BLOCK_BYTES)


def seal_file(
    source: int,
    header: Header,
    key: bytes,
    write: Callable[[memoryview], None],
    look: Callable[[memoryview], None] | None = None,
) -> None:
    """Write the container of the open file `source`; `look` sees the plain bytes on their way.

    A key must never seal twice: its nonces are the numbers of the blocks.
    """
    cipher, prefix = AESGCM(key), header.pack()
    write(memoryview(prefix))
    plain = memoryview(bytearray(BLOCK_BYTES * BATCH))
    sealed = memoryview(bytearray(SEALED_BLOCK_BYTES * BATCH))
    number, count = 0, _count(header.size_bytes)
    while number < count:
        start = number * BLOCK_BYTES
        length = _fill(source, plain[: header.size_bytes - start], start)
        if look is not None:
            look(plain[:length])
        written = 0
        for block in _cut(plain[:length], BLOCK_BYTES):
            end = written + len(block) + TAG_BYTES
            cipher.encrypt_into(
                _nonce(number), block, prefix + _number(number), sealed[written:end]
            )
            written = end
            number += 1
        write(sealed[:written])


class Sealed:
    """A container that is open for reading: its header and its key."""

    def __init__(self, header: Header, cipher: AESGCM) -> None:
        self.header = header
        self._cipher = cipher
        self._prefix = header.pack()
        self._sha256 = header.digest.hex()

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Say which bytes of the container hold the plain bytes `start` to `end`."""
        first, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        return (
            HEADER_BYTES + first * SEALED_BLOCK_BYTES,
            min(HEADER_BYTES + last * SEALED_BLOCK_BYTES, sealed_bytes_of(self.header.size_bytes)),
        )

    def unseal(self, chunks: Iterable[bytes], start: int, end: int) -> Iterator[bytes]:
        """Yield the plain bytes `start` to `end` out of the chunks of that span.

        Raises:
            Unavailable: a block does not open; nothing of it or behind it is given.

        """
        plain = memoryview(bytearray(BLOCK_BYTES * BATCH))
        number = start // BLOCK_BYTES
        last = -(-end // BLOCK_BYTES)
        for piece in _regroup(chunks):
            base, filled = number * BLOCK_BYTES, 0
            for block in _cut(memoryview(piece), SEALED_BLOCK_BYTES):
                length = max(0, len(block) - TAG_BYTES)
                self._open(number, block, plain[filled : filled + length])
                filled += length
                number += 1
            yield bytes(plain[max(0, start - base) : min(filled, end - base)])
        if number != last:
            raise damaged(self._sha256, Text("it ends before block {number}", number=number))

    def check_empty(self, block: bytes) -> None:
        """Open the one block of a blob without bytes, which has nothing but its tag."""
        self._open(0, memoryview(block), memoryview(bytearray()))

    def _open(self, number: int, block: memoryview, target: memoryview) -> None:
        try:
            self._cipher.decrypt_into(_nonce(number), block, self._prefix + _number(number), target)
        except (InvalidTag, ValueError):
            raise damaged(
                self._sha256, Text("block {number} does not open", number=number)
            ) from None


def damaged(sha256: str, reason: Text) -> Unavailable:
    return Unavailable(
        "The stored bytes of {sha256} are damaged: {reason}. Restore them from a backup, or upload "
        "the file again.",
        code="stored_bytes_damaged",
        sha256=sha256,
        reason=reason,
    )


def _count(size_bytes: int) -> int:
    """Count the blocks; a blob without bytes has one too, whose tag vouches for its header."""
    return max(1, -(-size_bytes // BLOCK_BYTES))


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _number(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _cut(view: memoryview, length: int) -> Iterator[memoryview]:
    """Cut into pieces; nothing at all is one piece too."""
    for offset in range(0, max(1, len(view)), length):
        yield view[offset : offset + length]


def _fill(descriptor: int, target: memoryview, offset: int) -> int:
    filled = 0
    while filled < len(target):
        count = os.preadv(descriptor, [target[filled:]], offset + filled)
        if not count:
            raise Unavailable("A file of the spool became shorter while it was read; try again.")
        filled += count
    return filled


def _regroup(chunks: Iterable[bytes]) -> Iterator[bytes | bytearray]:
    """Yield the same bytes cut between blocks; chunks that come so already are not copied."""
    most = SEALED_BLOCK_BYTES * BATCH
    rest = bytearray()
    for chunk in chunks:
        if not rest and len(chunk) <= most and len(chunk) % SEALED_BLOCK_BYTES == 0:
            yield chunk
            continue
        rest += chunk
        while len(rest) >= most:
            yield rest[:most]
            del rest[:most]
    if rest:
        yield rest
