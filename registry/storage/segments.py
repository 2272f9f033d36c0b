"""Blobs in pieces: a list, and links to files that other blobs may link to as well.

    segments/ab/abcd…               a piece, found by the SHA-256 of its bytes
    segments/ab/abcd….z             the same, coded: see `registry.storage.coding`
    segmented/ab/abcd…/list         what pieces a blob is made of, in their order
    segmented/ab/abcd…/{sha256}     its pieces: further names of the same files
    making/                         what is being put together, and what is being taken apart

The file system itself counts who uses a piece: a blob holds each of its pieces by a name of its
own, and a piece is gone when the last of these is. So there is no count that could be wrong, and
nothing that removes one blob can take bytes from another, whenever it is interrupted and whatever
runs beside it. The names below segments/ only help to find a piece; one that no blob uses any more
has a single link, and is removed.

A blob's folder is put together elsewhere, read back in full against the blob's digest, and appears
by one rename. It never changes after that.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import struct
import threading
import uuid
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Self

from registry.encryption.container import damaged
from registry.errors import Text, Unavailable
from registry.storage.coding import WIDTH, CodedBlocks, NotAsCoded, decode, encode
from registry.storage.files import FileBlocks, LocalObject, unreadable
from registry.storage.names import no_blob, plain_name, segmented_name
from registry.storage.objects import BLOCK_BYTES, StoredBlocks, StoredObject
from registry.storage.spool import out_of_space, sync_folder

logger = logging.getLogger(__name__)

# A piece goes through memory as a whole when it is written, or compared with one that is there.
MAX_PIECE_BYTES = 16 << 20

_MAGIC = b"MYPIECES"
_VERSION = 1
_HEAD = struct.Struct(">8sB7xQQ32s")
_ENTRY = struct.Struct(">IB32s")
_DIGEST_BYTES = 32
# Two million pieces: more than the largest file has, and little enough to be read at once.
_LIST_BYTES = 80 << 20
_LIST = "list"
# How many lists a process keeps, of so many pieces at most: some 20 MB.
_KEPT_LISTS = 64
_KEPT_PIECES = 1024
_CODED = 0x80
_ENDING = ".z"
_NAME = re.compile(r"[0-9a-f]{64}(\.z)?")


class Piece(NamedTuple):
    """Some bytes of a blob that lie together.

    `width` is that of the numbers in it, where they are known to be weights of 2 bytes; 0 says
    nothing. In a list, it also says whether the piece lies there coded.
    """

    sha256: bytes
    size_bytes: int
    width: int = 0

    @property
    def is_coded(self) -> bool:
        return bool(self.width & _CODED)

    @property
    def name(self) -> str:
        return self.sha256.hex() + (_ENDING if self.is_coded else "")


class Uncoded(NamedTuple):
    """A piece of halves that lies plain in a blob's folder, and how many other blobs hold it."""

    piece: Piece
    others: int


class Draft(NamedTuple):
    """A blob's folder before it stands under its digest."""

    sha256: str
    folder: Path


def pack_pieces(pieces: Iterable[Piece]) -> bytes:
    return b"".join(_ENTRY.pack(one.size_bytes, one.width, one.sha256) for one in pieces)


def unpack_pieces(packed: bytes) -> list[Piece]:
    return [Piece(sha256, size, width) for size, width, sha256 in _ENTRY.iter_unpack(packed)]


class Listing:
    """What a blob is made of, as its list says it; checked before anything is read by it."""

    def __init__(self, sha256: str, pieces: Sequence[Piece]) -> None:
        self.sha256 = sha256
        self.pieces = pieces
        self.ends = list(accumulate(piece.size_bytes for piece in pieces))
        self.size_bytes = self.ends[-1] if self.ends else 0

    def pack(self) -> bytes:
        digest = bytes.fromhex(self.sha256)
        head = _HEAD.pack(_MAGIC, _VERSION, self.size_bytes, len(self.pieces), digest)
        content = head + pack_pieces(self.pieces)
        return content + hashlib.sha256(content).digest()

    @classmethod
    def parse(cls, raw: bytes, sha256: str) -> Self:
        """Read the list of the blob `sha256`; raise Unavailable for any other."""
        content, digest = raw[:-_DIGEST_BYTES], raw[-_DIGEST_BYTES:]
        if len(content) < _HEAD.size or hashlib.sha256(content).digest() != digest:
            raise damaged(sha256, Text("the list of its pieces is not as it was written"))
        magic, version, size, count, of = _HEAD.unpack_from(content)
        if magic != _MAGIC or version != _VERSION:
            raise damaged(sha256, Text("the list of its pieces is not one of this release"))
        listing = cls(sha256, unpack_pieces(content[_HEAD.size :]))
        if not all(0 < piece.size_bytes <= MAX_PIECE_BYTES for piece in listing.pieces):
            raise damaged(sha256, Text("the list of its pieces names one of no possible length"))
        if of.hex() != sha256 or size != listing.size_bytes or count != len(listing.pieces):
            raise damaged(sha256, Text("the list of its pieces is that of another blob"))
        return listing

    def spans(self, start: int, end: int) -> Iterator[tuple[Piece, int, int]]:
        """Give the pieces that hold `start` to `end`, and what of each."""
        at = bisect_right(self.ends, start)
        while start < end:
            piece, last = self.pieces[at], self.ends[at]
            first = last - piece.size_bytes
            yield piece, start - first, min(end, last) - first
            start, at = last, at + 1


class _Listings:
    """The lists that were read last: a file that is read in ranges is opened for each of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int, int, int], Listing] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, sha256: str, found: os.stat_result, read: Callable[[], bytes]) -> Listing:
        """Give the list of a blob that lies in the file `found`; parse it if it is another one."""
        key = (sha256, found.st_dev, found.st_ino, found.st_ctime_ns, found.st_size)
        with self._lock:
            if (listing := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return listing
        listing = Listing.parse(read(), sha256)
        if len(listing.pieces) <= _KEPT_PIECES:
            with self._lock:
                self._kept[key] = listing
                while len(self._kept) > _KEPT_LISTS:
                    self._kept.popitem(last=False)
        return listing


_LISTINGS = _Listings()


class SegmentedObject(StoredObject):
    """A blob in pieces, opened: its list was read, its folder is held whatever becomes of it."""

    def __init__(self, folder: Path, sha256: str) -> None:
        self._sha256 = sha256
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            found = os.stat(_LIST, dir_fd=self._folder)
            self.modified_at = found.st_mtime
            self.listing = _LISTINGS.get(sha256, found, self._read_list)
        except BaseException:
            self.close()
            raise
        self.size_bytes = self.listing.size_bytes

    def _read_list(self) -> bytes:
        listed = os.open(_LIST, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        with os.fdopen(listed, "rb") as file:
            try:
                return file.read(_LIST_BYTES)
            except OSError as error:
                raise unreadable(self._sha256, error) from error

    def read(self, start: int, end: int) -> bytes:
        with closing(self.blocks(start, end, BLOCK_BYTES)) as blocks:
            return b"".join(blocks)

    def blocks(self, start: int, end: int, step: int) -> StoredBlocks:
        """Begin to read; that every piece is there with its length is known by then."""
        spans = list(self.listing.spans(start, min(end, self.size_bytes)))
        for piece, _, _ in spans:
            try:
                length = os.stat(piece.name, dir_fd=self._folder).st_size
            except FileNotFoundError:
                raise _missing(self.listing.sha256, piece) from None
            if length != piece.size_bytes and not piece.is_coded:
                raise damaged(
                    self.listing.sha256,
                    Text("its piece {piece} has another length", piece=piece.name),
                )
        return SegmentedBlocks(self.listing.sha256, os.dup(self._folder), spans, step)

    def sizes(self) -> dict[bytes, int]:
        """Give the pieces of the blob and the room that each takes."""
        return {
            piece.sha256: os.stat(piece.name, dir_fd=self._folder).st_size
            for piece in self.listing.pieces
        }

    def close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


class SegmentedBlocks(StoredBlocks):
    """A range of a blob in pieces: one piece is open at a time."""

    def __init__(
        self, sha256: str, folder: int, spans: Sequence[tuple[Piece, int, int]], step: int
    ) -> None:
        self._sha256 = sha256
        self._folder = folder
        self._spans = iter(spans)
        self._step = step
        self._name = ""
        self._piece: FileBlocks | CodedBlocks | None = None

    def __next__(self) -> bytes:
        with self._named():
            if (piece := self._open_next()) is not None:
                return next(piece)
        self.close()
        raise StopIteration

    def fill(self, target: memoryview) -> int:
        filled = 0
        with self._named():
            while filled < len(target) and (piece := self._open_next()) is not None:
                count = piece.fill(target[filled:])
                if not count:
                    raise damaged(self._sha256, Text("one of its pieces ends too early"))
                filled += count
        return filled

    def ready(self) -> bytes:
        with self._named():
            piece = self._open_next()
            return b"" if piece is None else piece.ready()

    def close(self) -> None:
        if self._piece is not None:
            self._piece.close()
            self._piece = None
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __del__(self) -> None:
        self.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except NotAsCoded:
            raise damaged(
                self._sha256, Text("its piece {piece} does not unpack", piece=self._name)
            ) from None

    def _open_next(self) -> FileBlocks | CodedBlocks | None:
        """Give the piece that is being read, or the next one; None at the end."""
        if self._folder < 0:
            return None
        if self._piece is not None and self._piece.left_bytes > 0:
            return self._piece
        if self._piece is not None:
            self._piece.close()
            self._piece = None
        for piece, start, end in self._spans:
            self._name = piece.name
            try:
                descriptor = os.open(piece.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
            except FileNotFoundError:
                raise _missing(self._sha256, piece) from None
            if piece.is_coded:
                self._piece = CodedBlocks(self._sha256, descriptor, piece.size_bytes, start, end)
            else:
                self._piece = FileBlocks(self._sha256, descriptor, start, end, self._step)
            return self._piece
        return None


class Segments:
    """The blobs in pieces below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._making = root / "making"
        for folder in ("segments", "segmented", "making"):
            (root / folder).mkdir(exist_ok=True)

    def open(self, sha256: str) -> SegmentedObject:
        """Open a blob; raise FileNotFoundError for one that is not in pieces."""
        return SegmentedObject(self._root / segmented_name(sha256), sha256)

    def written_at(self, sha256: str) -> float:
        """Give when a blob was put together; raise FileNotFoundError."""
        return (self._root / segmented_name(sha256) / _LIST).stat().st_mtime

    def has(self, sha256: str) -> bool:
        """Say whether a blob is in pieces."""
        return (self._root / segmented_name(sha256)).is_dir()

    def holds(self, piece: Piece, *, coded: bool = False) -> bool:
        """Say whether some blob has stored this piece already, coded or not if `coded`."""
        return any(self._known(one.name).exists() for one in _forms(piece, coded=coded))

    def stored_bytes(self) -> int:
        """Add up the room that all pieces take, each once."""
        folders = (self._root / "segments").iterdir()
        return sum(path.stat().st_size for folder in folders for path in folder.iterdir())

    def can_link(self) -> bool:
        """Say whether the file system knows hard links at all."""
        first, second = (self._making / uuid.uuid4().hex for _ in range(2))
        with out_of_space():
            first.touch()
        try:
            os.link(first, second)
            return first.stat().st_nlink > 1
        except OSError as error:
            logger.info("Files stay whole, for their file system does not link them: %s", error)
            return False
        finally:
            first.unlink(missing_ok=True)
            second.unlink(missing_ok=True)

    def list(self) -> Iterator[tuple[str, float]]:
        """Give the digests of the blobs in pieces, and when each was put together."""
        for folder in sorted((self._root / "segmented").iterdir()):
            for path in sorted(folder.iterdir()):
                with suppress(FileNotFoundError):
                    yield path.name, self.written_at(path.name)

    def touch(self, sha256: str) -> None:
        with suppress(FileNotFoundError):
            os.utime(self._root / segmented_name(sha256) / _LIST)

    # --- Putting together -----------------------------------------------------------------------

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Give whether it is this process's turn to put blobs together; it ends with the process.

        Two at once would do no harm, but the disk has others to serve.
        """
        descriptor = os.open(self._making, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def draft(
        self,
        sha256: str,
        pieces: Sequence[Piece],
        went_on: Callable[[int], None],
        *,
        coded: bool = False,
        anew: Container[bytes] = (),
    ) -> Draft:
        """Put a blob together of what is there and what is not yet; then read all of it back.

        With `coded`, pieces that consist of halves are coded where that gains something; those of
        `anew` even where they are there plain already. `went_on` is told of bytes that were gone
        through, and may raise what ends it.

        Raises:
            NotFound: the blob is not there; or it is in pieces, and nothing is to be made anew.
            Unavailable: it does not consist of these pieces, or what was put together is not the
                blob: it was changed, or the disk does not keep what it is given.
            StorageFull: there is no room for it.

        """
        draft = Draft(sha256, self._making / uuid.uuid4().hex)
        try:
            with (
                closing(self._source(sha256) if anew else self._whole(sha256)) as source,
                out_of_space(),
            ):
                draft.folder.mkdir()
                listed, start = list[Piece](), 0
                for piece in pieces:
                    content = source.read(start, start + piece.size_bytes)
                    forms = _forms(piece, coded=coded)
                    listed.append(self._add(draft, forms, content, anew=piece.sha256 in anew))
                    start += piece.size_bytes
                    went_on(len(content))
                _write_new(draft.folder / _LIST, Listing(sha256, listed).pack())
                sync_folder(draft.folder)
            self._verify(draft, went_on)
        except BaseException:
            self.drop(draft)
            raise
        return draft

    def adopt(self, draft: Draft) -> None:
        """Let a draft stand under its digest, once and for all, and remove the whole blob.

        Raises:
            NotFound: there is no whole blob any more.

        """
        self._whole(draft.sha256).close()
        target = self._root / segmented_name(draft.sha256)
        target.parent.mkdir(exist_ok=True)
        # When it was put there counts, not when work on it began.
        os.utime(draft.folder / _LIST)
        if target.exists():
            # Left by a process that died before it removed the whole: nobody has read it since.
            self.retire(draft.sha256)
        draft.folder.rename(target)
        sync_folder(target.parent)
        sync_folder(target.parent.parent)
        with closing(self.open(draft.sha256)) as found:
            # Nobody takes a draft apart that is being made; this would see it.
            found.blocks(0, found.size_bytes, BLOCK_BYTES).close()
        (self._root / plain_name(draft.sha256)).unlink()

    def room_of(self, draft: Draft) -> int:
        """Add up the room that the pieces of a draft take, others' among them."""
        with closing(SegmentedObject(draft.folder, draft.sha256)) as found:
            return sum(found.sizes().values())

    def drop(self, draft: Draft) -> None:
        """Remove a draft that was not adopted."""
        self._take_apart(draft.folder)

    # --- Coding what lies plain -----------------------------------------------------------------

    def uncoded(self, sha256: str) -> Sequence[Uncoded]:
        """Give the pieces of halves that lie plain in a blob; none where it is not in pieces."""
        try:
            found = self.open(sha256)
        except FileNotFoundError:
            return []
        folder = self._root / segmented_name(sha256)
        # What it was made of before, kept for those who read it still.
        aside = list(self._making.glob(f"{sha256}.*"))
        with closing(found):
            halves = {one.sha256: one for one in found.listing.pieces if one.width == WIDTH}
        plain = list[Uncoded]()
        for piece in halves.values():
            try:
                links = (folder / piece.name).stat().st_nlink
            except FileNotFoundError:
                raise _missing(sha256, piece) from None
            # One name leads to it from here, and one from where pieces are found.
            own = 2 + sum((one / piece.name).exists() for one in aside)
            plain.append(Uncoded(piece, max(0, links - own)))
        return plain

    def is_coded(self, piece: Piece) -> bool:
        """Say whether some blob has this piece coded."""
        return self._known(_forms(piece, coded=True)[0].name).exists()

    def room(self, sha256: str) -> int:
        """Add up the room that the pieces of a blob take, others' among them."""
        with closing(self.open(sha256)) as found:
            return sum(found.sizes().values())

    def copy_whole(self, sha256: str, went_on: Callable[[int], None]) -> Draft:
        """Write a blob that is in pieces out as one file, which stands nowhere yet.

        Raises:
            NotFound: it is not there.
            Unavailable: its pieces are not the blob any more.
            StorageFull: there is no room for it.

        """
        copy = Draft(sha256, self._making / uuid.uuid4().hex)
        try:
            with closing(self._source(sha256)) as source, out_of_space():
                written = _write_out(source, copy.folder, went_on)
            _require_same(sha256, written)
        except BaseException:
            self.drop(copy)
            raise
        return copy

    def place_whole(self, copy: Draft) -> None:
        """Let the copy of a blob stand beside its pieces, so that these may be replaced."""
        target = self._root / plain_name(copy.sha256)
        target.parent.mkdir(exist_ok=True)
        os.utime(copy.folder)
        copy.folder.rename(target)
        sync_folder(target.parent)
        sync_folder(target.parent.parent)

    def _source(self, sha256: str) -> StoredObject:
        """Open a blob as it lies: whole if it does, else in pieces."""
        try:
            return LocalObject(self._root / plain_name(sha256))
        except FileNotFoundError:
            pass
        try:
            return self.open(sha256)
        except FileNotFoundError:
            raise no_blob(sha256) from None

    def _whole(self, sha256: str) -> LocalObject:
        try:
            return LocalObject(self._root / plain_name(sha256))
        except FileNotFoundError:
            raise no_blob(sha256) from None

    def _add(self, draft: Draft, forms: Sequence[Piece], content: bytes, *, anew: bool) -> Piece:
        """Put a piece into a blob's folder, as a link or written anew; give how it is listed."""
        if hashlib.sha256(content).digest() != forms[0].sha256:
            raise damaged(draft.sha256, Text("they have changed since they were cut into pieces"))
        for form in forms:
            if (draft.folder / form.name).exists():
                return form  # this blob has it more than once
        if anew and len(forms) > 1 and not self._known(forms[0].name).exists():
            # What gains nothing by it is linked as it lies.
            forms = forms[:1] if encode(content) is not None else forms[1:]
        full = False
        for form in forms:
            own = draft.folder / form.name
            linked = _link(self._known(form.name), own)
            if linked and _is_as_written(own, form, content):
                return form
            # What lies there may be damaged: this blob brings good bytes, and so do those after it.
            own.unlink(missing_ok=True)
            full = full or linked is not False
        written = encode(content) if forms[0].is_coded else None
        form = forms[-1] if written is None else forms[0]
        own = draft.folder / form.name
        _write_new(own, content if written is None else written)
        self._publish(own, self._known(form.name), replace=full)
        return form

    def _publish(self, own: Path, known: Path, *, replace: bool) -> None:
        """Let other blobs find a piece."""
        if not known.parent.is_dir():
            known.parent.mkdir(exist_ok=True)
            sync_folder(known.parent.parent)
        if replace:
            other = self._making / uuid.uuid4().hex
            os.link(own, other)
            other.rename(known)
        else:
            # Somebody else may just have written the same: then theirs is found.
            with suppress(FileExistsError):
                os.link(own, known)

    def _verify(self, draft: Draft, went_on: Callable[[int], None]) -> None:
        digest = hashlib.sha256()
        with (
            closing(SegmentedObject(draft.folder, draft.sha256)) as found,
            closing(found.blocks(0, found.size_bytes, BLOCK_BYTES)) as blocks,
        ):
            for block in blocks:
                digest.update(block)
                went_on(len(block))
        _require_same(draft.sha256, digest.hexdigest())

    # --- Taking apart ---------------------------------------------------------------------------

    def remove(self, sha256: str) -> None:
        """Remove a blob in pieces, and the pieces that no other uses; no error if there is none.

        Whoever is reading it is cut short.
        """
        gone = self._set_aside(sha256)
        if gone is not None:
            self._take_apart(gone)

    def retire(self, sha256: str) -> None:
        """Remove a blob in pieces that is stored in another way too, as `sweep` comes by.

        Until then whoever reads it goes on.
        """
        self._set_aside(sha256)

    def sweep(self, *, before: float) -> int:
        """Remove what processes that died have left, and what was set aside; give how much."""
        removed = 0
        with self.turn() as mine:
            # Otherwise some of it may be work that is under way.
            for path in self._making.iterdir() if mine else ():
                # A folder's time does not change when it is renamed; that of its inode does.
                if path.stat().st_ctime < before:
                    self._take_apart(path)
                    removed += 1
        for folder in (self._root / "segments").iterdir():
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    found = path.stat()
                    if found.st_nlink == 1 and found.st_mtime < before:
                        path.unlink()
                        removed += 1
        return removed

    def _set_aside(self, sha256: str) -> Path | None:
        gone = self._making / f"{sha256}.{uuid.uuid4().hex}"
        try:
            (self._root / segmented_name(sha256)).rename(gone)
        except FileNotFoundError:
            return None
        return gone

    def _take_apart(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            for path in folder.iterdir():
                path.unlink(missing_ok=True)
                if _NAME.fullmatch(path.name):
                    self._forget(self._known(path.name))
            folder.rmdir()

    def _forget(self, known: Path) -> None:
        """Remove the name of a piece that no blob has.

        One that somebody takes into a blob at this moment stays theirs: only its name here goes,
        and with it the chance that the next blob finds it.
        """
        with suppress(FileNotFoundError):
            if known.stat().st_nlink == 1:
                known.unlink()

    def _known(self, name: str) -> Path:
        return self._root / "segments" / name[:2] / name


def _forms(piece: Piece, *, coded: bool) -> list[Piece]:
    """Give how a piece may lie in the store, the preferred way first."""
    plain = piece._replace(width=piece.width & ~_CODED)
    if not coded or plain.width != WIDTH:
        return [plain]
    return [plain._replace(width=plain.width | _CODED), plain]


def _is_as_written(path: Path, form: Piece, content: bytes) -> bool:
    try:
        found = path.read_bytes()
        return (decode(found, form.size_bytes) if form.is_coded else found) == content
    except (NotAsCoded, OSError):
        return False


def _link(known: Path, own: Path) -> bool | None:
    """Give whether a piece was there to be linked; None where its file has links enough."""
    try:
        os.link(known, own)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        return None
    return True


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that survives a power cut once its folder was flushed, and never changes."""
    with path.open("xb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())
    path.chmod(0o444)


def _write_out(source: StoredObject, path: Path, went_on: Callable[[int], None]) -> str:
    """Write a blob into a new file, which survives a power cut; give the digest of its bytes."""
    digest = hashlib.sha256()
    with (
        closing(source.blocks(0, source.size_bytes, BLOCK_BYTES)) as blocks,
        path.open("xb", buffering=0) as file,
    ):
        for block in blocks:
            digest.update(block)
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]
            went_on(len(block))
        os.fsync(file.fileno())
    path.chmod(0o444)
    return digest.hexdigest()


def _require_same(sha256: str, found: str) -> None:
    if found != sha256:
        raise damaged(sha256, Text("they have another digest by now"))


def _missing(sha256: str, piece: Piece) -> Unavailable:
    return damaged(sha256, Text("its piece {piece} is missing", piece=piece.name))
