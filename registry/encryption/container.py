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
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from registry.errors import Text, Unavailable

BLOCK_BYTES = 256 * 1024
TAG_BYTES = 16
SEALED_BLOCK_BYTES = BLOCK_BYTES + TAG_BYTES
# How many blocks go through memory at once: more would not stay in the processor's cache.
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

    def unseal(self, fill: Callable[[memoryview], int], start: int, end: int) -> "Unsealing":
        """Begin to read the plain bytes `start` to `end`; `fill` gives the bytes of that span."""
        return Unsealing(self, fill, start, end)

    def check_empty(self, block: bytes) -> None:
        """Open the one block of a blob without bytes, which has nothing but its tag."""
        self.open_block(0, memoryview(block), memoryview(bytearray()))

    def open_block(self, number: int, block: memoryview, target: memoryview) -> None:
        """Decrypt one block into `target`; raise Unavailable for one that was tampered with."""
        try:
            self._cipher.decrypt_into(_nonce(number), block, self._prefix + _number(number), target)
        except (InvalidTag, ValueError):
            raise damaged(
                self._sha256, Text("block {number} does not open", number=number)
            ) from None


class Unsealing:
    """Plain bytes on their way out of a container, through two buffers that are used again.

    Only blocks whose tag was right leave it. Not safe for two threads at once.
    """

    def __init__(
        self, sealed: Sealed, fill: Callable[[memoryview], int], start: int, end: int
    ) -> None:
        self._sealed = sealed
        self._fill = fill
        self._start = start
        self._end = end
        self._number = start // BLOCK_BYTES
        self._last = -(-end // BLOCK_BYTES)
        most = min(BATCH, self._last - self._number)
        self._raw = memoryview(bytearray(SEALED_BLOCK_BYTES * most))
        self._plain = memoryview(bytearray(BLOCK_BYTES * most))

    @property
    def next_sealed_bytes(self) -> int:
        """Say how much of the container the next block takes."""
        first, last = self._sealed.span(
            self._number * BLOCK_BYTES, min((self._number + 1) * BLOCK_BYTES, self._end)
        )
        return last - first

    def look(self, blocks: int = BATCH) -> memoryview:
        """Give the next plain bytes where they lie until the next call; none at the end.

        Raises:
            Unavailable: a block does not open; nothing of it or behind it is given.

        """
        count = min(blocks, self._last - self._number)
        if count <= 0:
            return self._plain[:0]
        base, filled = self._number * BLOCK_BYTES, 0
        got = self._fill(self._raw[: SEALED_BLOCK_BYTES * count])
        if not got:
            raise damaged(
                self._sealed.header.digest.hex(),
                Text("it ends before block {number}", number=self._last),
            )
        for block in _cut(self._raw[:got], SEALED_BLOCK_BYTES):
            length = max(0, len(block) - TAG_BYTES)
            self._sealed.open_block(self._number, block, self._plain[filled : filled + length])
            filled += length
            self._number += 1
        return self._plain[max(0, self._start - base) : min(filled, self._end - base)]


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
