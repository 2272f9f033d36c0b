"""Blobs in pieces give the bytes that they are, or none, whatever shares them and fails."""

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from array import array
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import NotFound, StorageFull, Unavailable
from registry.storage import LocalStorage, Piece, coding, storage_at
from tests.registry.test_storage import MASTER_KEY, bad_sector

EMPTY = {"blobs": 0, "segments": 0, "segmented": 0, "making": 0}


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "store")


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


def pieces_of(parts):
    return [Piece(hashlib.sha256(part).digest(), len(part)) for part in parts]


def nothing(_count):
    """Go on."""


def put_in_pieces(storage, parts):
    sha256 = storage.put(parts).sha256
    storage.segments.adopt(storage.segments.draft(sha256, pieces_of(parts), nothing))
    return sha256


def count_files(storage):
    """Count the files that take room, by the folder whose names lead to them."""
    found = {}
    for name in EMPTY:
        paths = [path for path in (storage.spool / name).rglob("*") if path.is_file()]
        found[name] = len([path for path in paths if path.name != "list"])
    return found


def path_of(storage, part):
    name = digest_of(part)
    return storage.spool / "segments" / name[:2] / name


def spoil(path, content):
    path.chmod(0o644)
    written_at = path.stat().st_ctime_ns
    # Clocks of file systems are coarse: a list that was read is known by when it changed.
    while path.stat().st_ctime_ns == written_at:
        path.write_bytes(content)


parts_of_files = st.lists(
    st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(
    pool=st.lists(st.binary(min_size=1, max_size=300), min_size=6, max_size=6),
    files=parts_of_files,
    span=st.tuples(st.integers(0, 2500), st.integers(0, 2500)),
    going=st.integers(0, 3),
)
def test_any_file_of_any_parts_gives_any_range(pool, files, span, going):
    """And still does when one that shares parts with it is gone."""
    with TemporaryDirectory() as folder:
        storage = LocalStorage(Path(folder))
        made = {}
        for file in files:
            parts = [pool[number] for number in file]
            if digest_of(b"".join(parts)) not in made:
                made[put_in_pieces(storage, parts)] = b"".join(parts)
        gone = list(made)[going % len(made)]
        storage.delete(gone)
        assert not storage.exists(gone)
        del made[gone]
        start, end = min(span), max(span)
        for sha256, data in made.items():
            assert not storage.is_whole(sha256)
            assert storage.exists(sha256)
            assert storage.size(sha256) == len(data)
            assert storage.read(sha256) == data
            assert storage.read(sha256, start=start, end=end) == data[start:end]
            assert all_ready(storage.open(sha256, start=start)) == data[start:]
        kept = {hashlib.sha256(path.read_bytes()).hexdigest() for path in names_in(storage)}
        assert kept <= {digest_of(part) for part in pool}
        assert {sha256 for sha256, _ in storage.inventory()} == set(made)
        for sha256 in made:
            storage.delete(sha256)
        assert count_files(storage) == EMPTY


def names_in(storage):
    return [path for path in (storage.spool / "segments").rglob("*") if path.is_file()]


def all_ready(blocks):
    """Read as a download does: what is at hand first, then the rest."""
    given_bytes = []
    with closing(blocks):
        while block := blocks.ready():
            given_bytes.append(block)
        return b"".join([*given_bytes, *blocks])


def test_what_two_blobs_share_lies_there_once(storage):
    encoder, head, other = os.urandom(3 << 20), os.urandom(1000), os.urandom(1000)
    first = put_in_pieces(storage, [encoder, head])
    second = put_in_pieces(storage, [other, encoder])
    assert count_files(storage) == {"blobs": 0, "segments": 3, "segmented": 4, "making": 0}
    assert path_of(storage, encoder).stat().st_nlink == 3
    storage.delete(first)
    assert storage.read(second) == other + encoder
    assert count_files(storage) == {"blobs": 0, "segments": 2, "segmented": 2, "making": 0}
    storage.delete(second)
    assert count_files(storage) == EMPTY


def test_a_reader_of_the_whole_file_goes_on_while_it_is_replaced(storage):
    parts = [os.urandom(3 << 20), os.urandom(3 << 20)]
    sha256 = storage.put(parts).sha256
    with closing(storage.open(sha256)) as blocks:
        began = next(blocks)
        storage.segments.adopt(storage.segments.draft(sha256, pieces_of(parts), nothing))
        assert not storage.is_whole(sha256)
        assert b"".join([began, *blocks]) == b"".join(parts)


def test_jobs_get_a_file_of_their_own(storage, tmp_path):
    sha256 = put_in_pieces(storage, [b"one", b"two"])
    storage.materialise(sha256, tmp_path / "job" / "model")
    found = tmp_path / "job" / "model"
    assert (found.read_bytes(), found.stat().st_nlink) == (b"onetwo", 1)


# --- What is not as it was -----------------------------------------------------------------------


def test_a_piece_that_is_missing_or_short_is_named_before_a_byte_is_given(storage):
    gone, kept = os.urandom(5000), os.urandom(5000)
    sha256 = put_in_pieces(storage, [kept, gone])
    inside = storage.spool / "segmented" / sha256[:2] / sha256 / digest_of(gone)
    spoil(inside, gone[:-1])
    with pytest.raises(Unavailable, match=digest_of(gone)) as failed:
        storage.open(sha256)
    assert failed.value.reason == "stored_bytes_damaged"
    inside.unlink()
    with pytest.raises(Unavailable, match=f"{digest_of(gone)} is missing"):
        storage.open(sha256, start=9999)
    # What lies elsewhere is still there.
    assert storage.read(sha256, end=5000) == kept


@pytest.mark.parametrize("spoiled", [b"", b"MYPIECES", os.urandom(400)])
def test_a_list_that_was_changed_is_not_followed(storage, spoiled):
    sha256 = put_in_pieces(storage, [b"one", b"two"])
    spoil(storage.spool / "segmented" / sha256[:2] / sha256 / "list", spoiled)
    with pytest.raises(Unavailable, match="list of its pieces"):
        storage.open(sha256)
    assert storage.modified_at(sha256) is not None
    storage.delete(sha256)
    assert not storage.exists(sha256)


def test_the_list_of_another_blob_is_not_followed(storage):
    first = put_in_pieces(storage, [b"one", b"two"])
    second = put_in_pieces(storage, [b"two", b"one"])
    lists = [storage.spool / "segmented" / one[:2] / one / "list" for one in (first, second)]
    spoil(lists[0], lists[1].read_bytes())
    with pytest.raises(Unavailable, match="another blob"):
        storage.open(first)


@pytest.mark.parametrize("end", [b"", b"x"])
def test_a_file_that_changed_under_us_stays_as_it_is(storage, end):
    parts = [b"first part", b"second part"]
    sha256 = storage.put(parts).sha256
    spoil(storage.spool / "blobs" / sha256[:2] / sha256, b"".join(parts)[:-1] + end)
    with pytest.raises(Unavailable, match="changed since"):
        storage.segments.draft(sha256, pieces_of(parts), nothing)
    assert storage.is_whole(sha256)
    assert count_files(storage) == {**EMPTY, "blobs": 1}


def test_pieces_that_are_not_the_blob_never_replace_it(storage):
    sha256 = storage.put([b"one", b"two"]).sha256
    with pytest.raises(Unavailable, match="another digest"):
        storage.segments.draft(sha256, pieces_of([b"one"]), nothing)
    assert storage.read(sha256) == b"onetwo"
    assert count_files(storage) == {**EMPTY, "blobs": 1}


def test_a_damaged_piece_is_not_taken_over(storage):
    shared = os.urandom(9000)
    first = put_in_pieces(storage, [shared, b"one"])
    spoil(path_of(storage, shared), bytes(9000))
    second = put_in_pieces(storage, [shared, b"two"])
    assert storage.read(second) == shared + b"two"
    assert storage.read(first) != shared + b"one"
    # Sent again, the first is whole; put together again, it has the good piece.
    storage.put([shared, b"one"])
    assert storage.read(first) == shared + b"one"
    pieces = pieces_of([shared, b"one"])
    storage.segments.adopt(storage.segments.draft(first, pieces, nothing))
    assert not storage.is_whole(first)
    assert storage.read(first) == shared + b"one"


@pytest.mark.parametrize("is_coded", [False, True])
def test_a_piece_that_the_disk_does_not_read_is_not_taken_over(storage, monkeypatch, is_coded):
    put_it = put_coded if is_coded else put_in_pieces
    first = put_it(storage, [HALVES, b"one"])
    path = path_of(storage, HALVES)
    bad_sector(monkeypatch, path.with_name(f"{path.name}.z") if is_coded else path)
    with pytest.raises(Unavailable, match=f"{first}.*Input/output error") as refused:
        storage.read(first)
    assert refused.value.reason == "stored_bytes_damaged"
    second = put_it(storage, [HALVES, b"two"])
    assert storage.read(second) == HALVES + b"two"
    storage.put([HALVES, b"one"])
    assert storage.read(first) == HALVES + b"one"


def test_bytes_that_are_in_pieces_are_not_stored_again(storage):
    sha256 = put_in_pieces(storage, [b"one", b"two"])
    listed = storage.spool / "segmented" / sha256[:2] / sha256 / "list"
    os.utime(listed, (1, 1))
    storage.put([b"onetwo"])
    assert not storage.is_whole(sha256)
    # The collector leaves them to whoever has just sent them.
    assert storage.modified_at(sha256) > 1


def test_a_full_disk_leaves_the_whole_blob_and_nothing_else(storage, monkeypatch):
    parts = [os.urandom(9000), os.urandom(9000)]
    sha256 = storage.put(parts).sha256
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        storage.segments.draft(sha256, pieces_of(parts), nothing)
    assert storage.read(sha256) == b"".join(parts)
    assert count_files(storage) == {**EMPTY, "blobs": 1}


def test_a_piece_with_as_many_links_as_may_be_gets_a_further_file(storage, monkeypatch):
    shared = os.urandom(9000)
    first = put_in_pieces(storage, [shared, b"one"])
    real, full = os.link, path_of(storage, shared).stat().st_ino

    def link(source, target):
        if Path(source).stat().st_ino == full:
            raise OSError(errno.EMLINK, "Too many links")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    second = put_in_pieces(storage, [shared, b"two"])
    third = put_in_pieces(storage, [shared, b"three"])
    assert path_of(storage, shared).stat().st_nlink == 3
    for sha256, data in ((first, b"one"), (second, b"two"), (third, b"three")):
        assert storage.read(sha256) == shared + data
        storage.delete(sha256)
    assert count_files(storage) == EMPTY


# --- Coded ---------------------------------------------------------------------------------------


def halves(count, seed=0):
    """Make weights as they are: in bfloat16, close to zero."""
    numbers = random.Random(seed)
    words = array("f", [numbers.gauss(0, 0.04) for _ in range(count)]).tobytes()
    return b"".join(words[at + 2 : at + 4] for at in range(0, len(words), 4))


HALVES = halves(700_000)


def put_coded(storage, parts):
    sha256 = storage.put(parts).sha256
    pieces = [piece._replace(width=2 * (part in HALVES)) for piece, part in zip_pieces(parts)]
    draft = storage.segments.draft(sha256, pieces, nothing, coded=True)
    storage.segments.adopt(draft)
    return sha256


def zip_pieces(parts):
    return zip(pieces_of(parts), parts, strict=True)


@settings(max_examples=60, deadline=None)
@given(
    start=st.integers(0, 1_400_000 + 900),
    length=st.sampled_from([0, 1, 2, 3, 1000, 1 << 20, (1 << 20) + 1, 2_000_000]),
    after=st.integers(0, 3),
)
def test_any_range_of_coded_weights(coded_blob, start, length, after):
    storage, sha256, data = coded_blob
    start += after
    assert storage.read(sha256, start=start, end=start + length) == data[start : start + length]
    if length == 3:
        assert all_ready(storage.open(sha256, start=start)) == data[start:]


@pytest.fixture(scope="module")
def coded_blob(tmp_path_factory):
    storage = LocalStorage(tmp_path_factory.mktemp("coded") / "store")
    parts = [os.urandom(450), HALVES, os.urandom(450)]
    sha256 = put_coded(storage, parts)
    lies = storage.spool / "segmented" / sha256[:2] / sha256 / f"{digest_of(HALVES)}.z"
    assert lies.stat().st_size < 0.75 * len(HALVES)
    return storage, sha256, b"".join(parts)


def test_what_coding_does_not_shorten_lies_plain(storage):
    noise = os.urandom(200_000)
    sha256 = storage.put([noise]).sha256
    pieces = [pieces_of([noise])[0]._replace(width=2)]
    storage.segments.adopt(storage.segments.draft(sha256, pieces, nothing, coded=True))
    assert path_of(storage, noise).exists()
    assert storage.read(sha256) == noise


def test_coded_and_plain_pieces_are_shared_as_they_lie(storage):
    part, more = HALVES[:300_000], HALVES[300_000:600_000]
    coded = put_coded(storage, [part, b"one"])
    again = put_coded(storage, [b"two", part])
    coded_name = path_of(storage, part).with_name(f"{digest_of(part)}.z")
    assert coded_name.stat().st_nlink == 3
    # Who did not ask for it reads plain bytes; who did takes those that are there.
    plain = put_in_pieces(storage, [more, b"three"])
    late = put_coded(storage, [more, b"four"])
    assert path_of(storage, more).stat().st_nlink == 3
    for sha256, data in (
        (coded, part + b"one"),
        (again, b"two" + part),
        (plain, more + b"three"),
        (late, more + b"four"),
    ):
        assert storage.read(sha256) == data
        storage.delete(sha256)
    assert count_files(storage) == EMPTY


@pytest.mark.parametrize(
    "spoil_it",
    [
        lambda coded: coded[:-1],
        lambda coded: coded + b"x",
        lambda coded: b"",
        lambda coded: b"X" + coded[1:],
        lambda coded: coded[:8] + b"\xff\xff\xff\x7f" + coded[12:],
        lambda coded: coded[:16] + b"\xff" * 16 + coded[32:],
        lambda coded: coded[:-40] + bytes(40),
        lambda coded: coded[: len(coded) // 2] + b"\x00" + coded[len(coded) // 2 + 1 :],
        lambda coded: coded[:40] + bytes(200) + coded[240:],
    ],
)
def test_coded_weights_that_were_changed_give_an_error_and_no_bytes(storage, spoil_it):
    sha256 = put_coded(storage, [HALVES])
    path = storage.spool / "segmented" / sha256[:2] / sha256 / f"{digest_of(HALVES)}.z"
    spoil(path, spoil_it(path.read_bytes()))
    with pytest.raises(Unavailable, match=f"{digest_of(HALVES)}.z does not unpack") as failed:
        storage.read(sha256)
    assert failed.value.reason == "stored_bytes_damaged"
    # The next blob that has these weights brings good bytes.
    other = put_coded(storage, [HALVES, b"more"])
    assert storage.read(other) == HALVES + b"more"


@given(st.binary(max_size=5000))
def test_what_is_no_coded_piece_is_refused(raw):
    with pytest.raises(coding.NotAsCoded):
        coding.decode(b"MYPLANES" + raw, 1000)


# --- Interrupted, and side by side ---------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from registry.storage import LocalStorage, Piece, segments
import hashlib
storage = LocalStorage(Path(sys.argv[1]))
parts = [b"a" * 70000, b"b" * 70000, b"c" * 70000]
sha256 = storage.put(parts).sha256
print(sha256, flush=True)
pieces = [Piece(hashlib.sha256(part).digest(), len(part)) for part in parts]
left = [int(sys.argv[2])]
def dying(real):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("link", "fsync", "unlink", "utime", "rename"):
    setattr(os, name, dying(getattr(os, name)))
storage.segments.adopt(storage.segments.draft(sha256, pieces, lambda count: None))
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(script, folder, steps):
    """Run a script that is killed after so many steps; give the digest that it wrote before."""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(steps)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    return ran.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(26))
def test_killed_at_any_step_a_blob_is_whole_or_in_pieces(tmp_path, steps):
    sha256, data = die(DYING, tmp_path, steps), b"a" * 70000 + b"b" * 70000 + b"c" * 70000
    storage = LocalStorage(tmp_path)
    assert storage.read(sha256) == data
    # Begun anew, it comes to its end; what the dead process left is swept.
    if storage.is_whole(sha256):
        pieces = pieces_of([data[:70000], data[70000:140000], data[140000:]])
        storage.segments.adopt(storage.segments.draft(sha256, pieces, nothing))
    assert storage.read(sha256) == data
    storage.segments.sweep(before=2**40)
    assert count_files(storage) == {"blobs": 0, "segments": 3, "segmented": 3, "making": 0}
    storage.delete(sha256)
    assert count_files(storage) == EMPTY


RECODING = (
    DYING.replace(
        'parts = [b"a" * 70000, b"b" * 70000, b"c" * 70000]',
        'parts = [b"ab" * 70000, b"cd" * 70000]',
    )
    .replace(
        "pieces = [Piece(hashlib.sha256(part).digest(), len(part)) for part in parts]",
        """pieces = [Piece(hashlib.sha256(part).digest(), len(part), 2) for part in parts]
nothing = lambda count: None
storage.segments.adopt(storage.segments.draft(sha256, pieces, nothing))
anew = {one.piece.sha256 for one in storage.segments.uncoded(sha256)}""",
    )
    .replace(
        "storage.segments.adopt(storage.segments.draft(sha256, pieces, lambda count: None))",
        """draft = storage.segments.draft(sha256, pieces, nothing, coded=True, anew=anew)
copy = storage.segments.copy_whole(sha256, nothing)
storage.segments.place_whole(copy)
storage.segments.adopt(draft)""",
    )
)


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(30))
def test_killed_at_any_step_of_coding_anew_nothing_is_lost(tmp_path, steps):
    sha256, parts = die(RECODING, tmp_path, steps), [b"ab" * 70000, b"cd" * 70000]
    storage = LocalStorage(tmp_path)
    assert storage.read(sha256) == b"".join(parts)
    segments = storage.segments
    segments.sweep(before=2**40)
    assert storage.read(sha256) == b"".join(parts)
    pieces = [piece._replace(width=2) for piece in pieces_of(parts)]
    anew = {one.piece.sha256 for one in segments.uncoded(sha256)}
    draft = segments.draft(sha256, pieces, nothing, coded=True, anew=anew) if anew else None
    if draft is not None:
        if not storage.is_whole(sha256):
            segments.place_whole(segments.copy_whole(sha256, nothing))
        segments.adopt(draft)
    elif storage.is_whole(sha256):
        segments.adopt(segments.draft(sha256, pieces, nothing, coded=True))
    assert not storage.is_whole(sha256)
    assert segments.uncoded(sha256) == []
    assert storage.read(sha256) == b"".join(parts)
    segments.sweep(before=2**40)
    assert count_files(storage) == {"blobs": 0, "segments": 2, "segmented": 2, "making": 0}


def test_what_is_under_way_is_not_swept(storage):
    parts = [b"one", b"two"]
    sha256 = storage.put(parts).sha256
    with storage.segments.turn() as mine:
        assert mine
        draft = storage.segments.draft(sha256, pieces_of(parts), nothing)
        with storage.segments.turn() as another:
            assert not another
        storage.segments.sweep(before=2**40)
        storage.segments.adopt(draft)
    assert storage.read(sha256) == b"onetwo"
    storage.segments.sweep(before=2**40)
    assert storage.read(sha256) == b"onetwo"


def test_a_draft_that_lost_a_piece_does_not_replace_the_whole(storage):
    parts = [b"one", b"two"]
    sha256 = storage.put(parts).sha256
    draft = storage.segments.draft(sha256, pieces_of(parts), nothing)
    (draft.folder / digest_of(b"two")).unlink()
    with pytest.raises(Unavailable, match="missing"):
        storage.segments.adopt(draft)
    assert storage.read(sha256) == b"onetwo"
    storage.segments.adopt(storage.segments.draft(sha256, pieces_of(parts), nothing))
    assert not storage.is_whole(sha256)
    assert storage.read(sha256) == b"onetwo"


def test_nothing_is_lost_where_blobs_come_and_go_at_once(storage):
    """Four put together and remove blobs of the same parts, while somebody sweeps all the time."""
    pool = [os.urandom(3000) for _ in range(5)]
    failures, over = [], threading.Event()

    def come_and_go(number):
        try:
            for turn in range(25):
                parts = [bytes([number, turn]), *pool[turn % 2 :], *pool[: number + 1]]
                sha256 = put_in_pieces(storage, parts)
                kept = put_in_pieces(storage, [*parts, b"kept"])
                assert storage.read(sha256) == b"".join(parts)
                storage.delete(sha256)
                assert storage.read(kept) == b"".join([*parts, b"kept"])
                storage.delete(kept)
        except BaseException as failure:  # noqa: BLE001 - shown below
            failures.append(failure)

    def sweep():
        while not over.is_set():
            for path in names_in(storage):
                # As `sweep` does with what is old; drafts are left to those who make them.
                storage.segments._forget(path)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    sweeper = threading.Thread(target=sweep)
    for thread in (*threads, sweeper):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    sweeper.join()
    assert failures == []
    assert count_files(storage) == EMPTY


# --- Encrypted, and in buckets -------------------------------------------------------------------


def test_a_blob_in_pieces_is_encrypted_like_any_other(storage, tmp_path):
    parts = [os.urandom(70_000), os.urandom(70_000)]
    shared = put_in_pieces(storage, parts)
    sha256 = put_in_pieces(storage, [*parts, b"more"])
    reading = storage.open(sha256)
    began = next(reading)
    sealed = storage_at(storage.spool.as_uri(), spool=tmp_path / "no", master_keys=MASTER_KEY)
    assert sealed.read(sha256) == b"".join(parts) + b"more"
    assert set(dict(sealed.plain_inventory())) == {shared, sha256}
    for one in (shared, sha256):
        assert sealed.encrypt(one)
        assert sealed.drop_plain(one)
    assert list(sealed.plain_inventory()) == []
    assert b"".join([began, *reading]) == b"".join(parts) + b"more"
    assert sealed.read(sha256) == b"".join(parts) + b"more"
    sealed.segments.sweep(before=2**40)
    assert count_files(sealed) == EMPTY
    with pytest.raises(NotFound):
        sealed.segments.draft(sha256, pieces_of(parts), nothing)


def test_a_bucket_keeps_blobs_whole(tmp_path):
    bucket = storage_at("s3://models?endpoint=http://127.0.0.1:1", spool=tmp_path / "spool")
    assert bucket.segments is None
    bucket._client.close()
