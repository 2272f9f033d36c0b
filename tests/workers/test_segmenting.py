"""What files share is stored once, in the background, and every file stays what it is."""

import errno
import hashlib
import json
import os
import random
import struct
import threading
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from registry.errors import Denied, RegistryError
from registry.models import Blob, Event, Layout, Namespace, Outline, Role, Tally, Version
from registry.services import catalog, custody, savings, versions
from registry.services.blobs import record_blob
from registry.services.collection import collect_garbage
from registry.storage import MAX_PIECE_BYTES, default_storage
from tests.factories import (
    UserFactory,
    actor_of,
    make_member,
    make_model,
    make_token,
    make_version,
)
from workers import gear
from workers.cutting import cut
from workers.gear import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, cut_chunks
from workers.segmenting import Segmenter

MIB = 1 << 20
NOW = timedelta(0)


@pytest.fixture(autouse=True)
def _own_storage(settings, tmp_path):
    settings.STORAGE_URL = (tmp_path / "store").as_uri()
    settings.MASTER_KEYS = ""
    settings.SEGMENT_AFTER_SECONDS = 60


@pytest.fixture
def alice(transactional_db):
    yield UserFactory(username="alice")
    connections.close_all()


def weights(**tensors):
    header, data = {}, b""
    for name, (dtype, raw) in tensors.items():
        width = {"F32": 4, "BF16": 2, "U8": 1}[dtype]
        header[name] = {
            "dtype": dtype,
            "shape": [len(raw) // width],
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def put(data):
    return record_blob(default_storage().put([data]))


def segment():
    """Let all that is there be old, and work until there is nothing to do."""
    for rows in (Blob.objects, Version.objects):
        rows.update(created_at=timezone.now() - timedelta(days=1))
    rounds = 0
    while Segmenter(bytes_a_second=1e12).run_once():
        rounds += 1
    return rounds


def disk_bytes():
    """Add up what the files take, each once however many names it has."""
    files = [path.stat() for path in default_storage().spool.rglob("*") if path.is_file()]
    return sum({found.st_ino: found.st_size for found in files}.values())


def layout_of(blob):
    return Blob.objects.get(pk=blob.pk).layout


def test_a_frozen_encoder_is_stored_once(alice):
    model = make_model(alice)
    encoder = {f"layer{n}": ("F32", os.urandom(MIB)) for n in range(4)}
    files = [weights(**encoder, head=("F32", os.urandom(200_000))) for _ in range(3)]
    made = [make_version(alice, model, {"model.safetensors": data}) for data in files]
    before = disk_bytes()
    assert segment()
    blobs = [one.revision.artifacts.get(path="model.safetensors").blob for one in made]
    assert {blob.layout for blob in blobs} == {Layout.SEGMENTED}
    # Two of three encoders are gone; what is left besides are lists of some hundred bytes.
    assert before - 8 * MIB <= disk_bytes() < before - 8 * MIB + 10_000
    for blob, data in zip(blobs, files, strict=True):
        assert not default_storage().is_whole(blob.sha256)
        assert default_storage().read(blob.sha256) == data
    assert [one.problem for one in custody.verify_blobs() if one.problem] == []


def test_a_file_that_shares_little_stays_whole_until_one_comes_that_does(alice):
    body = os.urandom(3 * MIB)
    first = put(weights(body=("U8", body)))
    other = put(os.urandom(3 * MIB))
    assert segment() == 0
    assert {layout_of(first), layout_of(other)} == {Layout.SEEN}
    # Another kind of file with the same tensor in it, and the tensor elsewhere.
    again = put(weights(before=("U8", os.urandom(100_000)), body=("U8", body)))
    assert segment()
    assert {layout_of(first), layout_of(again)} == {Layout.SEGMENTED}
    assert layout_of(other) == Layout.SEEN
    assert default_storage().is_whole(other.sha256)


def test_files_that_are_no_weights_share_what_was_not_changed(alice):
    # Always the same: where noise is cut is chance, and how much a change costs with it.
    data = random.Random(1).randbytes(12 * MIB)
    changed = data[: 5 * MIB] + b"some bytes more" + data[5 * MIB :]
    blobs = [put(data), put(changed)]
    before = disk_bytes()
    segment()
    assert {layout_of(blob) for blob in blobs} == {Layout.SEGMENTED}
    # The piece with the change, and no other, is there twice: at most 4 MiB and a chunk.
    assert disk_bytes() < before - 7 * MIB
    assert default_storage().read(blobs[1].sha256) == changed


def test_recent_small_and_unused_files_are_left_alone(alice, settings):
    body = os.urandom(2 * MIB)
    blobs = [put(body + bytes([number]) * 10) for number in range(2)]
    assert Segmenter(bytes_a_second=1e12).run_once() == 0
    assert {layout_of(blob) for blob in blobs} == {Layout.WHOLE}
    small = put(os.urandom(5000))
    settings.SEGMENT_AFTER_SECONDS = 0
    assert segment() == 0
    settings.SEGMENT_AFTER_SECONDS = 60
    Blob.objects.filter(pk=blobs[0].pk).update(condemned_at=timezone.now())
    assert segment() == 0
    assert layout_of(small) == Layout.WHOLE
    assert not Outline.objects.filter(blob__in=[small, blobs[0]]).exists()


def test_encrypted_files_stay_whole(alice, settings):
    settings.MASTER_KEYS = "5e" * 32
    body = os.urandom(2 * MIB)
    blobs = [put(body + bytes([number])) for number in range(2)]
    assert segment() == 0
    assert {layout_of(blob) for blob in blobs} == {Layout.WHOLE}


def test_a_file_system_without_links_keeps_files_whole(alice, monkeypatch):
    def link(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    body = os.urandom(2 * MIB)
    blobs = [put(body + bytes([number])) for number in range(2)]
    monkeypatch.setattr(os, "link", link)
    assert segment() == 0
    assert {layout_of(blob) for blob in blobs} == {Layout.WHOLE}
    assert not Outline.objects.exists()


def test_a_file_that_cannot_be_read_does_not_keep_the_others(alice, caplog):
    body = ("U8", os.urandom(2 * MIB))
    bad, *good = (put(weights(b=body, n=("U8", bytes([n]) * 9))) for n in range(3))
    path = next((default_storage().spool / "blobs").rglob(bad.sha256))
    path.unlink()
    # As good as a bad sector: it opens, and reading fails.
    path.mkdir()
    assert segment()
    assert bad.sha256 in caplog.text
    assert {layout_of(blob) for blob in good} == {Layout.SEGMENTED}


LIES = {
    "a header beyond the file": struct.pack("<Q", 1 << 40),
    "a header that is no JSON": struct.pack("<Q", 100) + b"{" + b"x" * 99,
    "tensors that overlap": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_not_believed(alice, lie):
    body = os.urandom(6 * MIB)
    start = LIES[lie]
    if not start:
        entry = {"dtype": "U8", "shape": [MIB], "data_offsets": [0, MIB]}
        text = json.dumps({"a": entry, "b": entry}).encode()
        start = struct.pack("<Q", len(text)) + text
    blobs = [put(start + body), put(start + body + b"more")]
    segment()
    assert {layout_of(blob) for blob in blobs} == {Layout.SEGMENTED}
    assert default_storage().read(blobs[0].sha256) == start + body


def test_a_file_that_was_damaged_is_left_and_named(alice, caplog):
    body = os.urandom(2 * MIB)
    blobs = [put(body + bytes([number])) for number in range(2)]
    path = next((default_storage().spool / "blobs").rglob(blobs[0].sha256))
    path.chmod(0o644)
    path.write_bytes(body + b"x")
    assert segment() == 0
    assert blobs[0].sha256 in caplog.text
    assert {layout_of(blob) for blob in blobs} == {Layout.SEEN}
    assert [one.sha256 for one in custody.verify_blobs() if one.problem] == [blobs[0].sha256]


def test_a_damaged_piece_is_found_and_healed_by_sending_the_file_again(alice):
    body, data = os.urandom(3 * MIB), [b"", b""]
    data = [weights(head=("U8", os.urandom(70_000)), body=("U8", body)) for _ in range(2)]
    blobs = [put(one) for one in data]
    segment()
    name = hashlib.sha256(body).hexdigest()
    path = default_storage().spool / "segments" / name[:2] / name
    path.chmod(0o644)
    path.write_bytes(bytes(3 * MIB))
    problems = {one.sha256 for one in custody.verify_blobs() if one.problem}
    assert problems == {blob.sha256 for blob in blobs}
    for one in data:
        put(one)
    assert {layout_of(blob) for blob in blobs} == {Layout.WHOLE}
    assert [one.problem for one in custody.verify_blobs() if one.problem] == []
    assert segment()
    assert {layout_of(blob) for blob in blobs} == {Layout.SEGMENTED}
    assert [one.problem for one in custody.verify_blobs() if one.problem] == []
    collect_garbage(undo=NOW, keep=NOW)


def test_a_database_that_is_older_than_the_disk_costs_no_bytes(alice):
    body = os.urandom(3 * MIB)
    data = [weights(head=("U8", os.urandom(70_000)), body=("U8", body)) for _ in range(3)]
    kept = put(data[0])
    others = [put(one) for one in data[1:]]
    versions.create_version(actor=actor_of(alice), repository=make_model(alice), files={"m": kept})
    segment()
    # As a backup would have it that was taken before: nothing is known of pieces.
    Outline.objects.all().delete()
    Blob.objects.update(layout=Layout.WHOLE)
    collect()
    assert not Blob.objects.filter(pk__in=[blob.pk for blob in others]).exists()
    assert default_storage().read(kept.sha256) == data[0]
    assert segment() == 0
    assert layout_of(kept) == Layout.SEGMENTED
    again = put(data[2])
    assert segment()
    assert layout_of(again) == Layout.SEGMENTED
    assert [one.problem for one in custody.verify_blobs() if one.problem] == []


class Bustle:
    """Versions that come and go while one thread puts together and another collects."""

    def __init__(self, user):
        self.actor = actor_of(user)
        self.model = make_model(user)
        self.encoder = os.urandom(2 * MIB)
        self.over = threading.Event()
        self.failures = []
        self.kept = []

    def thread(self, work, *arguments):
        return threading.Thread(target=self.run, args=(work, *arguments))

    def run(self, work, *arguments):
        try:
            work(*arguments)
        except BaseException as failure:  # noqa: BLE001 - shown at the end
            self.failures.append(failure)
        finally:
            connections.close_all()

    def write(self, number):
        for turn in range(5):
            head = bytes([number, turn]) * 50_000
            data = weights(e=("U8", self.encoder), h=("U8", head))
            version = self.register(data)
            if turn % 2:
                versions.delete_version(actor=self.actor, version=version)
            else:
                self.kept.append(data)

    def register(self, data):
        for _ in range(100):
            try:
                return versions.create_version(
                    actor=self.actor, repository=self.model, files={"m.safetensors": put(data)}
                )
            except RegistryError as error:
                # Refused, so nothing was promised: send it again.
                assert error.reason == "bytes_collected"  # noqa: PT017
        raise AssertionError("the bytes never stayed")

    def put_together(self):
        while not self.over.is_set():
            Segmenter(bytes_a_second=1e12).run_once()

    def collect(self):
        while not self.over.is_set():
            collect()


def collect():
    """Collect at once: the first round condemns what the second one removes."""
    for _ in range(2):
        list(collect_garbage(undo=NOW, keep=NOW))


def test_nothing_acknowledged_is_lost_beside_collectors(alice, settings):
    # Whatever has just come is old enough.
    settings.SEGMENT_AFTER_SECONDS = -60
    bustle = Bustle(alice)
    background = [bustle.thread(bustle.put_together), bustle.thread(bustle.collect)]
    writers = [bustle.thread(bustle.write, number) for number in range(2)]
    for thread in (*background, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    bustle.over.set()
    for thread in background:
        thread.join()
    assert bustle.failures == []
    assert len(bustle.kept) == 6
    collect()
    while Segmenter(bytes_a_second=1e12).run_once():
        pass
    collect()
    for data in bustle.kept:
        assert default_storage().read(hashlib.sha256(data).hexdigest()) == data
    assert {sha256 for sha256, _ in default_storage().inventory()} == {
        hashlib.sha256(data).hexdigest() for data in bustle.kept
    }
    assert disk_bytes() < 2 * MIB + 6 * 100_000 + 20_000


def test_what_was_purged_leaves_the_disk_but_for_what_others_have(alice):
    encoder = os.urandom(2 * MIB)
    files = [weights(e=("U8", encoder), h=("U8", os.urandom(90_000))) for _ in range(2)]
    models = [make_model(alice, name) for name in ("one", "two")]
    for model, data in zip(models, files, strict=True):
        make_version(alice, model, {"m.safetensors": data})
    segment()
    catalog.delete_repository(actor=actor_of(alice), repository=models[0])
    collect()
    left = b"".join(p.read_bytes() for p in default_storage().spool.rglob("*") if p.is_file())
    assert files[0][-90_000:] not in left
    assert default_storage().read(hashlib.sha256(files[1]).hexdigest()) == files[1]


# --- What it saves -------------------------------------------------------------------------------


def halves(megabytes):
    """Make weights as they are: their upper bytes are nearly all the same."""
    count = megabytes * MIB // 2
    upper = bytes(0x3C if number < 200 else number for number in os.urandom(count))
    return b"".join(bytes(pair) for pair in zip(os.urandom(count), upper, strict=True))


def test_weights_are_compressed_where_everybody_who_has_them_asks_for_it(alice):
    bob = UserFactory(username="bob")
    models = [make_model(alice), make_model(bob)]
    both, mine = (weights(w=("BF16", halves(4)), o=("U8", os.urandom(9))) for _ in range(2))
    version = make_version(alice, models[0], {"both.safetensors": both, "mine.safetensors": mine})
    make_version(bob, models[1], {"both.safetensors": both})
    assert segment() == 0
    actor, space = actor_of(alice), models[0].namespace
    savings.set_compression(actor=actor, namespace=space, compress_weights=True)
    assert segment()
    artifacts = version.revision.artifacts
    blobs = {path: artifacts.get(path=f"{path}.safetensors").blob for path in ("both", "mine")}
    assert {path: blob.layout for path, blob in blobs.items()} == {
        "both": Layout.SEEN,
        "mine": Layout.SEGMENTED,
    }
    assert disk_bytes() < 4 * MIB * 0.8 + 4 * MIB + 20_000
    assert default_storage().read(blobs["mine"].sha256) == mine
    savings.set_compression(
        actor=actor_of(bob), namespace=models[1].namespace, compress_weights=True
    )
    assert segment()
    assert layout_of(blobs["both"]) == Layout.SEGMENTED
    assert default_storage().read(blobs["both"].sha256) == both
    assert Tally.objects.get(name=Tally.SAVED_BYTES).value > 8 * MIB * 0.2
    # What a namespace is told is what its files share, and these share a header.
    space.refresh_from_db()
    assert space.saved_bytes < 1000
    assert Event.objects.filter(action="namespace.storage", target="alice").count() == 1


def tuned(encoder, megabytes=2):
    """Give a fine-tune: an encoder that others have, and a head of its own, in bfloat16."""
    return weights(encoder=("BF16", encoder), head=("BF16", halves(megabytes)))


def compress(user, model, *, on=True):
    savings.set_compression(actor=actor_of(user), namespace=model.namespace, compress_weights=on)


def sweep():
    """Remove what was set aside for those who read it."""
    list(collect_garbage(undo=NOW, keep=NOW, strays=True))


def saved_in_all():
    return Tally.objects.get(name=Tally.SAVED_BYTES).value


def plain_halves(blobs):
    segments = default_storage().segments
    return sum(one.piece.size_bytes for blob in blobs for one in segments.uncoded(blob.sha256))


def test_what_is_in_pieces_already_is_coded_once_it_is_asked_for(alice):
    model, encoder = make_model(alice), halves(4)
    data = [tuned(encoder) for _ in range(3)]
    for one in data:
        make_version(alice, model, {"model.safetensors": one})
    assert segment()
    blobs = list(Blob.objects.filter(size_bytes__gte=MIB).order_by("pk"))
    assert {blob.layout for blob in blobs} == {Layout.SEGMENTED}
    before, saved = disk_bytes(), saved_in_all()
    assert plain_halves(blobs) == 3 * 6 * MIB
    compress(alice, model)
    assert segment()
    assert plain_halves(blobs) == 0
    sweep()
    # Of an encoder and three heads, a third or so is gone, and is counted at once.
    assert disk_bytes() < before - 10 * MIB * 0.2
    assert saved_in_all() > saved + 10 * MIB * 0.2
    assert {layout_of(blob) for blob in blobs} == {Layout.SEGMENTED}
    for blob, content in zip(blobs, data, strict=True):
        assert not default_storage().is_whole(blob.sha256)
        assert default_storage().read(blob.sha256) == content
    assert [one.problem for one in custody.verify_blobs() if one.problem] == []
    # Asked again, nothing is left to do; and nothing is taken back.
    compress(alice, model)
    assert segment() == 0
    assert {layout_of(blob) for blob in blobs} == {Layout.SEGMENTED}
    compress(alice, model, on=False)
    assert segment() == 0
    assert plain_halves(blobs) == 0


def test_what_others_keep_plain_is_not_stored_twice(alice):
    bob = UserFactory(username="bob")
    mine, theirs, encoder = make_model(alice), make_model(bob), halves(4)
    for number in range(2):
        make_version(alice, mine, {"model.safetensors": tuned(encoder, 4 + number)})
    make_version(bob, theirs, {"model.safetensors": tuned(encoder)})
    assert segment()
    before = disk_bytes()
    blobs = list(Blob.objects.filter(size_bytes__gte=MIB).order_by("pk"))
    compress(alice, mine)
    assert segment()
    # Their heads are coded; the encoder, which bob has too, lies there plain, and once.
    assert plain_halves(blobs[:2]) == 2 * 4 * MIB
    sweep()
    assert disk_bytes() < before - 9 * MIB * 0.2
    compress(bob, theirs)
    assert segment()
    assert plain_halves(blobs) == 0
    sweep()
    assert disk_bytes() < before - 15 * MIB * 0.2
    assert [one.problem for one in custody.verify_blobs() if one.problem] == []


def test_new_files_do_not_wait_for_all_that_is_to_be_coded(alice, monkeypatch):
    monkeypatch.setattr("registry.services.segments._ANEW_AT_ONCE", 1)
    model, encoder = make_model(alice), halves(2)
    for _ in range(3):
        make_version(alice, model, {"model.safetensors": tuned(encoder)})
    assert segment()
    old = list(Blob.objects.filter(size_bytes__gte=MIB).order_by("pk"))
    compress(alice, model)
    late = make_version(alice, model, {"model.safetensors": tuned(encoder)})
    Blob.objects.update(created_at=timezone.now() - timedelta(days=1))
    assert Segmenter(bytes_a_second=1e12).run_once() == 2
    blob = late.revision.artifacts.get(path="model.safetensors").blob
    assert layout_of(blob) == Layout.SEGMENTED
    assert plain_halves(old) > 0
    assert segment()
    assert plain_halves([*old, blob]) == 0


def test_coding_that_was_cut_short_is_begun_anew(alice, monkeypatch):
    model, encoder = make_model(alice), halves(2)
    data = [tuned(encoder) for _ in range(2)]
    for one in data:
        make_version(alice, model, {"model.safetensors": one})
    assert segment()
    blobs = list(Blob.objects.filter(size_bytes__gte=MIB).order_by("pk"))
    compress(alice, model)
    storage = type(default_storage().segments)
    for name in ("draft", "copy_whole", "place_whole", "adopt"):
        real = getattr(storage, name)

        def dies(self, *given, real=real, **more):
            real(self, *given, **more)
            raise OSError(errno.EIO, "cut short")

        with monkeypatch.context() as patched:
            patched.setattr(storage, name, dies)
            assert Segmenter(bytes_a_second=1e12).run_once() == 0
        for blob, content in zip(blobs, data, strict=True):
            assert default_storage().read(blob.sha256) == content
            assert layout_of(blob) == Layout.WHOLE
    segment()
    assert {layout_of(blob) for blob in blobs} == {Layout.SEGMENTED}
    assert plain_halves(blobs) == 0
    for blob, content in zip(blobs, data, strict=True):
        assert not default_storage().is_whole(blob.sha256)
        assert default_storage().read(blob.sha256) == content


@pytest.mark.parametrize("is_coded", [False, True])
def test_what_was_healed_is_put_together_again_where_weights_are_compressed(alice, is_coded):
    """A piece went missing that lay plain, or coded."""
    model, encoder = make_model(alice), halves(2)
    data = [tuned(encoder) for _ in range(2)]
    for one in data:
        make_version(alice, model, {"model.safetensors": one})
    assert segment()
    if is_coded:
        compress(alice, model)
        assert segment()
    blobs = list(Blob.objects.filter(size_bytes__gte=MIB).order_by("pk"))
    folder = default_storage().spool / "segmented" / blobs[0].sha256[:2] / blobs[0].sha256
    max(folder.iterdir(), key=lambda path: path.stat().st_size).unlink()
    compress(alice, model)
    assert [one.sha256 for one in custody.verify_blobs() if one.problem] == [blobs[0].sha256]
    put(data[0])
    segment()
    sweep()
    assert {layout_of(blob) for blob in blobs} == {Layout.SEGMENTED}
    assert plain_halves(blobs) == 0
    for blob, content in zip(blobs, data, strict=True):
        assert not default_storage().is_whole(blob.sha256)
        assert default_storage().read(blob.sha256) == content
    assert disk_bytes() < 6 * MIB * 0.8 + 20_000


def test_what_is_in_pieces_is_known_to_be_though_nobody_wants_it_coded_any_more(alice):
    model = make_model(alice)
    compress(alice, model)
    data = weights(w=("BF16", halves(4)))
    version = make_version(alice, model, {"model.safetensors": data})
    assert segment()
    blob = version.revision.artifacts.get(path="model.safetensors").blob
    assert layout_of(blob) == Layout.SEGMENTED
    compress(alice, model)
    compress(alice, model, on=False)
    assert segment() == 0
    assert layout_of(blob) == Layout.SEGMENTED
    # Sent again because it is damaged, it takes no more room than before it was coded.
    piece = default_storage().spool / "segmented" / blob.sha256[:2] / blob.sha256
    max(piece.iterdir(), key=lambda path: path.stat().st_size).unlink()
    put(data)
    segment()
    sweep()
    assert default_storage().read(blob.sha256) == data
    assert disk_bytes() < len(data) + 20_000


def test_only_owners_say_how_weights_lie(alice):
    space = make_model(alice).namespace
    for role in (Role.READER, Role.MAINTAINER):
        member = actor_of(make_member(space, role))
        assert not savings.read_savings(actor=member, namespace=space).compress_weights
        with pytest.raises(Denied):
            savings.set_compression(actor=member, namespace=space, compress_weights=True)
    with pytest.raises(Denied):
        savings.read_savings(actor=actor_of(UserFactory()), namespace=space)


def test_saved_bytes_are_those_among_what_one_may_see(alice, client):
    """Two namespaces that have the same bytes learn nothing of each other."""
    bob = UserFactory(username="bob")
    body, other = os.urandom(3 * MIB), os.urandom(2 * MIB)
    model = make_model(alice)
    files = [
        weights(b=("U8", body), h=("U8", os.urandom(70_000 + number)), o=("U8", other[number:]))
        for number in range(2)
    ]
    made = [make_version(alice, model, {"m.safetensors": data}) for data in files]
    hidden = make_model(bob, "hidden", visibility="private")
    same = weights(h=("U8", os.urandom(80_000)), o=("U8", other))
    secret = make_version(bob, hidden, {"m.safetensors": same})
    segment()
    blobs = Blob.objects.filter(size_bytes__gte=MIB)
    assert {blob.layout for blob in blobs} == {Layout.SEGMENTED}
    savings.recount_savings()
    spaces = {space.slug: space.saved_bytes for space in Namespace.objects.all()}
    assert spaces == {"alice": 3 * MIB, "bob": 0}
    assert 5 * MIB - 10_000 < Tally.objects.get(name=Tally.SAVED_BYTES).value <= 5 * MIB
    assert told_to(alice, made[1]) == (3 * MIB, savings.Shared(made[0], 3 * MIB))
    assert told_to(alice, made[0])[1] is None
    assert told_to(bob, secret) == (0, None)

    client.force_login(alice)
    page = client.get("/models/alice/classifier/versions/2").content.decode()
    assert "Shares 3.1 MB with <a" in page
    told = client.get("/api/v1/models/alice/classifier/versions/2/storage").json()
    assert told["shared"]["number"] == 1
    assert told["shared"]["size_bytes"] == 3 * MIB
    assert told["size_bytes"] == made[1].size_bytes
    bearer = {"authorization": f"Bearer {make_token(alice)}"}
    assert client.get("/api/v1/namespaces/alice/storage", headers=bearer).json() == {
        "compress_weights": False,
        "saved_bytes": 3 * MIB,
    }
    assert '<b class="num">3.1 MB</b>' in client.get("/namespaces/alice").content.decode()
    assert "modelyard_storage_saved_bytes 5" in client.get("/metrics").content.decode()


def told_to(user, version):
    """Give what somebody is told of their savings, and of what a version shares."""
    savings.recount_savings()
    return (
        Namespace.objects.get(slug=user.username).saved_bytes,
        savings.find_shared(actor_of(user), Version.objects.get(pk=version.pk)),
    )


@pytest.mark.parametrize("is_stored", [False, True])
def test_what_others_store_changes_nothing_that_one_is_told(alice, is_stored):
    """Somebody guesses what others have, and sends it with a little that they know is shared."""
    bob = UserFactory(username="bob")
    guesses = [os.urandom(3 * MIB) for _ in range(2)]
    if is_stored:
        hidden = make_model(bob, "hidden", visibility="private")
        for guess in guesses:
            secret = weights(g=("U8", guess), h=("U8", os.urandom(70_000)))
            make_version(bob, hidden, {"m.safetensors": secret})
        segment()
    little, model = os.urandom(900_000), make_model(alice)
    files = [
        weights(g=("U8", guess), f=("U8", os.urandom(MIB)), a=("U8", little)) for guess in guesses
    ]
    made = [make_version(alice, model, {"m.safetensors": data}) for data in files]
    segment()
    mine = Blob.objects.filter(artifacts__revision__versions__in=made)
    layouts = {blob.layout for blob in mine.filter(size_bytes__gte=MIB)}
    # How they lie does tell it, so it is told to nobody.
    assert layouts == {Layout.SEGMENTED if is_stored else Layout.SEEN}
    assert told_to(alice, made[1]) == (0, None)


def test_bytes_that_others_had_before_are_not_known_any_sooner(alice):
    bob, body = UserFactory(username="bob"), os.urandom(3 * MIB)
    data = [weights(b=("U8", body), h=("U8", os.urandom(80_000))) for _ in range(2)]
    make_version(bob, make_model(bob, "hidden", visibility="private"), {"m": data[1]})
    model = make_model(alice)
    make_version(alice, model, {"m.safetensors": data[0]})
    segment()
    guessed = make_version(alice, model, {"m.safetensors": data[1]})
    assert told_to(alice, guessed) == (0, None)
    segment()
    saved, shared = told_to(alice, guessed)
    assert saved == shared.size_bytes >= 3 * MIB


def test_what_is_found_to_be_shared_is_told_before_it_is_put_together(alice):
    body, model = os.urandom(3 * MIB), make_model(alice)
    data = [weights(b=("U8", body), h=("U8", os.urandom(80_000 + n))) for n in range(2)]
    made = [make_version(alice, model, {"m.safetensors": one}) for one in data]
    segment()
    Blob.objects.update(layout=Layout.SEEN)
    saved, shared = told_to(alice, made[1])
    assert saved == shared.size_bytes == 3 * MIB


def test_with_a_master_key_nothing_is_said_to_be_shared(alice, settings):
    body, model = os.urandom(3 * MIB), make_model(alice)
    data = [weights(b=("U8", body), h=("U8", os.urandom(80_000 + n))) for n in range(2)]
    made = [make_version(alice, model, {"m.safetensors": one}) for one in data]
    segment()
    assert told_to(alice, made[1])[0]
    settings.MASTER_KEYS = "5e" * 32
    list(custody.encrypt_blobs())
    assert told_to(alice, made[1]) == (0, None)
    assert saved_in_all() == 0


def test_a_file_that_both_versions_have_is_shared_as_a_whole(alice):
    model, data = make_model(alice), os.urandom(2 * MIB)
    first = make_version(alice, model, {"a.bin": data})
    second = make_version(alice, model, {"b.bin": data, "c.bin": b"more"})
    assert savings.find_shared(actor_of(alice), second) == savings.Shared(first, 2 * MIB)


def test_the_page_of_a_namespace_sets_how_weights_lie(alice, client):
    make_model(alice)
    client.force_login(alice)
    client.post("/namespaces/alice/change", {"change": "storage", "compress_weights": "on"})
    assert Namespace.objects.get(slug="alice").compress_weights
    assert "checked" in client.get("/namespaces/alice").content.decode()
    client.post("/namespaces/alice/change", {"change": "storage"})
    assert not Namespace.objects.get(slug="alice").compress_weights


# --- Where to cut --------------------------------------------------------------------------------


def reading(data):
    return lambda start, end: data[start:end]


def test_weights_are_cut_at_tensors():
    data = weights(
        small1=("F32", bytes(400)),
        large=("F32", bytes(100_000)),
        small2=("F32", bytes(400)),
        small3=("F32", bytes(800)),
        half=("BF16", bytes(600)),
        huge=("BF16", bytes(MAX_PIECE_BYTES + 2)),
    )
    header = len(data) - 102_202 - MAX_PIECE_BYTES
    lengths, widths, last = [], [], 0
    for end, width in cut(len(data), reading(data)):
        lengths.append(end - last)
        widths.append(width)
        last = end
    assert lengths == [header, 400, 100_000, 1200, 600, MAX_PIECE_BYTES, 2]
    assert widths == [0, 0, 0, 0, 2, 2, 2]
    assert last == len(data)


def test_chunks_are_those_of_xet():
    """Compared with the rolling hash as its protocol writes it down, byte by byte."""
    data = os.urandom(700_000) + bytes(300_000) + b"abc" * 100_000
    words, expected, value, last = [int(word) for word in gear._GEAR], [], 0, 0
    for at, byte in enumerate(data, 1):
        value = ((value << 1) + words[byte]) & (2**64 - 1)
        length = at - last
        border = not value & 0xFFFF_0000_0000_0000 and length >= MIN_CHUNK_BYTES
        if border or length == MAX_CHUNK_BYTES or at == len(data):
            expected.append(at)
            value, last = 0, at
    assert [end for end, _ in cut_chunks(0, len(data), reading(data))] == expected


def test_pieces_by_content_cover_the_file_and_are_short_enough():
    for data in (b"", b"x", bytes(9 * MIB), os.urandom(9 * MIB)):
        ends = [one.end for one in cut(len(data), reading(data))]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        assert sum(lengths) == len(data)
        assert all(0 < length <= 4 * MIB + MAX_CHUNK_BYTES for length in lengths)
