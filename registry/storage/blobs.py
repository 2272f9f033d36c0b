"""Blobs by digest, plain or encrypted, whatever the store is."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from registry.encryption import plain_bytes_of
from registry.encryption.container import damaged
from registry.encryption.keys import missing_key
from registry.errors import RegistryError, Text, Unavailable
from registry.storage.names import (
    SHA256,
    is_sealed,
    key_name,
    no_blob,
    plain_name,
    sealed_name,
    segmented_name,
)
from registry.storage.objects import BLOCK_BYTES, Absent, Blocks, HeldBlocks
from registry.storage.sealed import SealedBlobs, header_of
from registry.storage.spool import Sink, Stored, git_sha1, require_match


class Blobs(SealedBlobs):
    """Blobs by digest; their bytes arrive in the spool."""

    def check(self) -> None:
        """Raise Unavailable when blobs cannot be reached, or not be decrypted, right now."""
        self._check_store()
        name, _ = next(self._list("keys/"), ("", 0.0))
        with suppress(Absent):
            if name and (key := self._sidecar(name).key_id) not in (self.keys or ()):
                raise missing_key(key)

    def size(self, sha256: str) -> int:
        """Give the length of a blob; raise NotFound for one that is not here."""
        for name in self._names(sha256):
            with suppress(Absent):
                length = self._length(name)
                return plain_bytes_of(length) if is_sealed(name) else length
        raise no_blob(sha256)

    def exists(self, sha256: str) -> bool:
        """Say whether a blob is here, with its key where it takes one."""
        if not SHA256.fullmatch(sha256):
            return False
        for name in self._names(sha256):
            with suppress(Absent):
                if not is_sealed(name):
                    self._length(name)
                    return True
                with closing(self._open(name)) as found:
                    header = header_of(found, sha256)
                self._length(key_name(header))
                return True
        return False

    def is_whole(self, sha256: str) -> bool:
        """Say whether a blob is stored plain and in one piece."""
        try:
            self._length(plain_name(sha256))
        except Absent:
            return False
        return True

    def modified_at(self, sha256: str) -> float | None:
        """Give when the bytes were last put here, in seconds since 1970."""
        times = []
        for name in dict.fromkeys(self._names(sha256)):
            with suppress(Absent):
                times.append(self._written_at(name))
        return max(times, default=None)

    def inventory(self) -> Iterator[tuple[str, float]]:
        """Give the digests of all that is here, and when they were put here; some come twice."""
        yield from self.plain_inventory()
        yield from self._inventory("sealed/")

    def plain_inventory(self) -> Iterator[tuple[str, float]]:
        """Give the same of what is stored plain."""
        yield from self._inventory("blobs/")
        if self.has_pieces:
            yield from self._inventory("segmented/")

    def _inventory(self, folder: str) -> Iterator[tuple[str, float]]:
        for name, modified_at in self._list(folder):
            sha256 = name.rpartition("/")[2]
            if SHA256.fullmatch(sha256):
                yield sha256, modified_at

    def delete(self, sha256: str) -> None:
        """Remove a blob; removing one that is not here is no error."""
        for name in dict.fromkeys(self._names(sha256)):
            self._remove(name)
        for name, _ in list(self._list(f"keys/{sha256[:2]}/{sha256}.")):
            self._remove(name)

    def materialise(self, sha256: str, target: Path) -> None:
        """Put the bytes at `target`, read-only; an older file there is replaced."""
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in self._names(sha256):
            with suppress(Absent):
                if is_sealed(name):
                    self._decrypt_to(sha256, name, target)
                else:
                    self._copy_out(name, target)
                return
        raise self._lost(sha256)

    def open(self, sha256: str, *, start: int = 0, end: int | None = None) -> Blocks:
        """Yield bytes `start` to `end` (exclusive) in blocks.

        Raises:
            NotFound: they are not here.
            Unavailable: they are encrypted and cannot be decrypted; a block that was tampered with
                says so when it is reached, and nothing of it is given.

        """
        for name in self._names(sha256):
            with suppress(Absent), closing(self._open(name)) as found:
                if is_sealed(name):
                    return self._open_sealed(sha256, found, start, end)
                stop = found.size_bytes if end is None else min(end, found.size_bytes)
                if not 0 <= start < stop:
                    return HeldBlocks(b"")
                return found.blocks(start, stop, BLOCK_BYTES)
        raise self._lost(sha256)

    def read(self, sha256: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Give a small range at once, for headers."""
        return b"".join(self.open(sha256, start=start, end=end))

    def put(
        self, chunks: Iterable[bytes], *, sha256: str | None = None, size_bytes: int | None = None
    ) -> Stored:
        """Store the chunks under their digest, hashing them in the same pass."""
        sink = self.open_sink()
        try:
            for chunk in chunks:
                sink.write(chunk)
            return self.keep_sink(sink, sha256=sha256, size_bytes=size_bytes)
        finally:
            self.drop_sink(sink)

    def open_sink(self) -> Sink:
        """Begin a blob whose bytes come from elsewhere; end with `keep_sink`, then `drop_sink`."""
        return self._new_sink(hashlib.sha256())

    def keep_sink(
        self, sink: Sink, *, sha256: str | None = None, size_bytes: int | None = None
    ) -> Stored:
        sink.commit()
        digest: str = sink.digest.hexdigest()
        require_match(digest, sink.offset, sha256=sha256, size_bytes=size_bytes)
        stored = Stored(digest, sink.offset, git_sha1(sink.path, sink.offset))
        sink.close()
        self._keep(sink.path, digest)
        return stored

    def _keep(self, path: Path, sha256: str) -> None:
        """Move a complete, flushed file of the spool under its digest."""
        if self.keys is None:
            self._keep_plain(path, sha256)
            return
        if self._is_sealed_whole(sha256):
            self._touch(sealed_name(sha256))
        else:
            self._seal(path, sha256)
        path.unlink()

    def _keep_plain(self, path: Path, sha256: str) -> None:
        """Keep bytes that are not encrypted; where they are in pieces, as long as these are good.

        Bytes that are damaged where they lie are healed by those that came: a whole blob is read
        first. The pieces are left to whoever puts it together the next time, for they might be
        good ones by now.
        """
        if self.has_pieces and self._is_intact(segmented_name(sha256), sha256):
            self._touch(segmented_name(sha256))
            path.unlink()
            return
        self._place(path, plain_name(sha256))

    def _is_intact(self, name: str, sha256: str) -> bool:
        """Say whether what lies there, not encrypted, is the blob: every byte of it is read."""
        digest = hashlib.sha256()
        try:
            with (
                closing(self._open(name)) as found,
                closing(found.blocks(0, found.size_bytes, BLOCK_BYTES)) as blocks,
            ):
                for block in blocks:
                    digest.update(block)
        except (Absent, Unavailable, OSError):
            return False
        return digest.hexdigest() == sha256

    def _names(self, sha256: str) -> tuple[str, ...]:
        """Say where a blob may be, in the order to look; it may move while somebody looks."""
        plain, sealed = self._plain_names(sha256), sealed_name(sha256)
        return (*plain, sealed, *plain) if self.keys is None else (sealed, *plain, sealed)

    def _lost(self, sha256: str) -> RegistryError:
        """Say why a blob that is in none of its places cannot be read."""
        with suppress(Absent), closing(self._open(sealed_name(sha256))):
            return damaged(sha256, Text("the sidecar with its key is gone"))
        return no_blob(sha256)
