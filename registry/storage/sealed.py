"""Blobs that lie encrypted: how they get there, how they are read, whose key they have."""

import hashlib
import logging
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from registry.encryption import (
    SETTING,
    DataKey,
    Header,
    KeyRing,
    Sealed,
    Sidecar,
    new_header,
    seal_file,
)
from registry.encryption.container import BATCH, HEADER_BYTES, SEALED_BLOCK_BYTES, damaged
from registry.encryption.keys import missing_key
from registry.errors import RegistryError, Text, Unavailable
from registry.storage.files import only_damage
from registry.storage.names import key_name, plain_name, sealed_name, segmented_name
from registry.storage.objects import Absent, Blocks, HeldBlocks, Objects, StoredBlocks, StoredObject
from registry.storage.spool import Spool, out_of_space

logger = logging.getLogger(__name__)


_SIDECAR_BYTES = 64 * 1024


class Treated(NamedTuple):
    """A blob that was to be encrypted, or its key to be wrapped anew, and what kept it from that.

    One that is damaged does not keep the others.
    """

    sha256: str
    changed: bool = False
    problem: str = ""


class UnsealedBlocks(Blocks):
    """The plain bytes of a container; the first are decrypted before anybody asks for them."""

    def __init__(self, stored: StoredBlocks, sealed: Sealed, start: int, end: int) -> None:
        self._stored = stored
        self._unsealing = sealed.unseal(stored.fill, start, end)
        self._first = b""
        try:
            self._first = self._take(BATCH)
        except BaseException:
            self.close()
            raise

    def __next__(self) -> bytes:
        first, self._first = self._first, b""
        block = first or self._take(BATCH)
        if not block:
            self.close()
            raise StopIteration
        return block

    def ready(self) -> bytes:
        if self._first or not self._stored.at_hand(self._unsealing.next_sealed_bytes):
            first, self._first = self._first, b""
            return first
        return self._take(1)

    def close(self) -> None:
        self._stored.close()

    def _take(self, blocks: int) -> bytes:
        try:
            return bytes(self._unsealing.look(blocks))
        except RegistryError as error:
            logger.error("%s", error.detail)  # noqa: TRY400 - its words say all there is
            raise


class SealedBlobs(Spool, Objects):
    """The half of a storage that encrypts, where it has master keys."""

    keys: KeyRing | None

    def encrypt(self, sha256: str) -> bool:
        """Encrypt a blob that is stored plain; give whether there was one.

        The plain bytes stay until `drop_plain`.
        """
        if self._has_sealed(sha256):
            return False
        copy = self._incoming / uuid.uuid4().hex
        try:
            if not self._copy_plain(sha256, copy):
                return False
            self._seal(copy, sha256, verify=True)
        finally:
            copy.unlink(missing_ok=True)
        return True

    def drop_plain(self, sha256: str) -> bool:
        """Remove the plain copy of a blob that is stored encrypted; give whether there was one."""
        found = []
        for name in self._plain_names(sha256):
            with suppress(Absent):
                self._length(name)
                found.append(name)
        if not found or not self._has_sealed(sha256):
            return False
        for name in found:
            self._retire(name)
        return True

    def rotate_keys(self) -> Iterator[Treated]:
        """Wrap every blob's key with the current master key; yield what became of each.

        Safe beside readers and writers, and to repeat: a sidecar is replaced at once, and names a
        container that no other sidecar will ever name.
        """
        keys = self.require_keys()
        for name, _ in self._list("keys/"):
            sha256, _, file_id = name.rpartition("/")[2].partition(".")
            try:
                sidecar = self._sidecar(name)
                changed = sidecar.key_id != keys.current.key_id
                if changed:
                    context = bytes.fromhex(sha256) + bytes.fromhex(file_id)
                    self._put_small(name, keys.rewrap(sidecar, context).to_bytes())
            except Absent:
                continue
            except (Unavailable, OSError) as error:
                yield Treated(sha256, problem=only_damage(sha256, error).detail)
            else:
                yield Treated(sha256, changed=changed)

    def _plain_names(self, sha256: str) -> tuple[str, ...]:
        """Say where a blob may be that is not encrypted: it may be in pieces a moment later."""
        plain = plain_name(sha256)
        return (plain, segmented_name(sha256), plain) if self.has_pieces else (plain,)

    def _copy_plain(self, sha256: str, target: Path) -> bool:
        for name in self._plain_names(sha256):
            with suppress(Absent):
                self._copy_out(name, target)
                return True
        return False

    def _is_sealed_whole(self, sha256: str) -> bool:
        """Say whether every block of a container opens: then there is nothing to write again."""
        try:
            with (
                closing(self._open(sealed_name(sha256))) as found,
                closing(self._open_sealed(sha256, found, 0, None)) as blocks,
            ):
                for _ in blocks:
                    pass
        except (Absent, Unavailable, OSError):
            return False
        return True

    def _seal(self, path: Path, sha256: str, *, verify: bool = False) -> None:
        """Encrypt a file of the spool to its place: first the key, then the container.

        Two that do so at once make two containers with two keys; whichever is last stays, and its
        key is there.
        """
        keys = self.require_keys()
        header = new_header(sha256=sha256, size_bytes=path.stat().st_size)
        key = DataKey.make(header)
        sink = self._new_sink(None)
        digest = hashlib.sha256()
        try:
            with path.open("rb", buffering=0) as source:
                look = digest.update if verify else None
                seal_file(source.fileno(), header, key.secret, sink.write, look)
            sink.commit()
            sink.close()
            if verify and digest.hexdigest() != sha256:
                raise damaged(sha256, Text("they have another digest by now"))
            self._put_small(key_name(header), keys.wrap(key).to_bytes())
            self._place(sink.path, sealed_name(sha256))
        finally:
            self.drop_sink(sink)

    def _decrypt_to(self, sha256: str, name: str, target: Path) -> None:
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with closing(self._open(name)) as found:
                blocks = self._open_sealed(sha256, found, 0, None)
                with closing(blocks), out_of_space(), temporary.open("xb", buffering=0) as file:
                    for block in blocks:
                        file.write(block)
            temporary.chmod(0o444)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _open_sealed(self, sha256: str, found: StoredObject, start: int, end: int | None) -> Blocks:
        """Begin to decrypt; the first block comes at once, so that a refusal comes in time."""
        sealed = self._unlock(found, sha256)
        size = sealed.header.size_bytes
        end = size if end is None else min(end, size)
        if size == 0:
            sealed.check_empty(found.read(HEADER_BYTES, found.size_bytes))
        if not 0 <= start < end:
            return HeldBlocks(b"")
        stored = found.blocks(*sealed.span(start, end), SEALED_BLOCK_BYTES * BATCH)
        return UnsealedBlocks(stored, sealed, start, end)

    def _unlock(self, found: StoredObject, sha256: str) -> Sealed:
        header = header_of(found, sha256)
        if self.keys is not None and (sealed := self.keys.known(header)):
            return sealed
        sidecar = self._sidecar(key_name(header))
        if self.keys is None:
            raise missing_key(sidecar.key_id)
        return self.keys.open(header, sidecar)

    def _has_sealed(self, sha256: str) -> bool:
        try:
            with closing(self._open(sealed_name(sha256))) as found:
                self._length(key_name(header_of(found, sha256)))
        except Absent:
            return False
        return True

    def _sidecar(self, name: str) -> Sidecar:
        with closing(self._open(name)) as found:
            raw = found.read(0, min(found.size_bytes, _SIDECAR_BYTES))
        return Sidecar.parse(raw, name.rpartition("/")[2].partition(".")[0])

    def _put_small(self, name: str, content: bytes) -> None:
        sink = self._new_sink(None)
        try:
            sink.write(content)
            sink.commit()
            sink.close()
            self._place(sink.path, name)
        finally:
            self.drop_sink(sink)

    def require_keys(self) -> KeyRing:
        if self.keys is None:
            raise Unavailable(
                "{setting} names no master key, so nothing can be encrypted.",
                code="master_key_missing",
                setting=SETTING,
            )
        return self.keys


def header_of(found: StoredObject, sha256: str) -> Header:
    raw = found.read(0, min(HEADER_BYTES, found.size_bytes))
    return Header.parse(raw, sha256=sha256, sealed_bytes=found.size_bytes)
