"""Encrypted blobs read like plain ones, and nothing that was tampered with is ever given."""

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import boto3
import pytest
from hypothesis import HealthCheck, example, settings
from hypothesis import given as given_any
from hypothesis import strategies as st

from registry.encryption import BadMasterKeyError, parse_master_keys, plain_bytes_of
from registry.encryption.container import (
    BATCH,
    BLOCK_BYTES,
    HEADER_BYTES,
    SEALED_BLOCK_BYTES,
    sealed_bytes_of,
)
from registry.errors import NotFound, Unavailable
from registry.storage import storage_at

OLD, NEW = "01" * 32, base64.b64encode(bytes(range(32))).decode()
BATCH_BYTES = BLOCK_BYTES * BATCH


@pytest.fixture
def open_store(tmp_path):
    """Open the same folder with other master keys."""

    def opened(keys=OLD):
        return storage_at((tmp_path / "store").as_uri(), spool=tmp_path, master_keys=keys)

    return opened


@pytest.fixture
def bucket(s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    name = f"models-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    yield client, name
    client.close()


def files(store, folder):
    return sorted(path for path in (store.spool / folder).rglob("*") if path.is_file())


def container(store):
    (path,) = files(store, "sealed")
    return path


def overwrite(path, content):
    path.chmod(0o644)
    path.write_bytes(content)


def flip(content, offset):
    changed = bytearray(content)
    changed[offset] ^= 1
    return bytes(changed)


NOISE = os.urandom(BATCH_BYTES + BLOCK_BYTES + 77)


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    store = storage_at(folder.as_uri(), spool=folder, master_keys=OLD)
    edges = {0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, BATCH_BYTES, len(NOISE)}
    return store, {size: store.put([NOISE[:size]]).sha256 for size in edges}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given_any(data=st.data())
def test_any_range_of_any_length_is_the_plain_slice(many_sizes, data):
    store, blobs = many_sizes
    size = data.draw(st.sampled_from(sorted(blobs)))
    edge = st.sampled_from([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BATCH_BYTES, size - 1, size])
    point = (edge | st.integers(0, size + 9)).filter(lambda value: value >= 0)
    start, end = data.draw(point), data.draw(st.none() | point)
    plain = NOISE[:size][start:end]
    assert b"".join(store.open(blobs[size], start=start, end=end)) == plain
    assert store.size(blobs[size]) == size


@given_any(st.integers(0, 1 << 45))
@example(0)
@example(BLOCK_BYTES)
def test_the_length_of_a_container_tells_that_of_its_content(size):
    assert plain_bytes_of(sealed_bytes_of(size)) == size


def test_nothing_plain_lies_on_the_disk(open_store):
    store = open_store()
    text = b"the quick brown fox " * 40_000
    stored = store.put([text])
    assert stored.sha256 == hashlib.sha256(text).hexdigest()
    found = [path for path in store.spool.rglob("*") if path.is_file()]
    assert [path.relative_to(store.spool).parts[0] for path in sorted(found)] == ["keys", "sealed"]
    assert not any(b"quick" in path.read_bytes() for path in found)


def test_the_same_bytes_are_sealed_once(open_store):
    store = open_store()
    first = store.put([b"same"])
    before = container(store).read_bytes()
    assert open_store().put([b"same"]) == first
    assert container(store).read_bytes() == before
    assert len(files(store, "keys")) == 1


def test_every_container_has_a_key_of_its_own(open_store):
    store = open_store()
    first = store.put([b"same"])
    before = container(store).read_bytes()
    store.delete(first.sha256)
    store.put([b"same"])
    assert container(store).read_bytes() != before


def test_sending_the_bytes_again_heals_what_was_damaged(open_store):
    store = open_store()
    stored = store.put([NOISE])
    overwrite(container(store), flip(container(store).read_bytes(), -1))
    assert store.put([NOISE]) == stored
    assert store.read(stored.sha256) == NOISE


HEADER_FIELDS = {"magic": 0, "version": 8, "padding": 12, "file id": 20, "length": 39, "digest": 50}


@pytest.mark.parametrize("offset", HEADER_FIELDS.values(), ids=HEADER_FIELDS)
def test_a_changed_header_opens_nothing(open_store, offset):
    store = open_store()
    stored = store.put([NOISE])
    overwrite(container(store), flip(container(store).read_bytes(), offset))
    with pytest.raises(Unavailable) as refusal:
        open_store().open(stored.sha256)
    assert refusal.value.reason == "stored_bytes_damaged"
    assert stored.sha256 in refusal.value.detail


def all_of(store, sha256, *, at_once):
    """Read as a download does, what is in memory without changing threads, or in turn."""
    blocks = store.open(sha256)
    while content := (at_once and blocks.ready()) or next(blocks, b""):
        yield content


@pytest.mark.parametrize("block", [0, 3, BATCH, BATCH + 1])
@pytest.mark.parametrize("place", ["first byte", "tag"])
@pytest.mark.parametrize("at_once", [True, False], ids=["without waiting", "in turn"])
def test_nothing_of_a_changed_block_is_given(open_store, block, place, at_once):
    store = open_store()
    stored = store.put([NOISE])
    content = container(store).read_bytes()
    start = HEADER_BYTES + block * SEALED_BLOCK_BYTES
    end = min(start + SEALED_BLOCK_BYTES, len(content))
    overwrite(container(store), flip(content, start if place == "first byte" else end - 1))
    given = []
    with pytest.raises(Unavailable, match=f"block {block} "):
        given.extend(all_of(store, stored.sha256, at_once=at_once))
    given = b"".join(given)
    assert NOISE.startswith(given)
    assert len(given) <= block * BLOCK_BYTES
    # The blocks that nobody touched can be read all the same.
    other = 1 if block != 1 else 2
    start = other * BLOCK_BYTES
    assert store.read(stored.sha256, start=start, end=start + 9) == NOISE[start : start + 9]


def cut_short(content, _other):
    return content[:-SEALED_BLOCK_BYTES]


def one_byte_less(content, _other):
    return content[:-1]


def made_longer(content, _other):
    return content + content[-SEALED_BLOCK_BYTES:]


def swapped(content, _other):
    first, second = HEADER_BYTES, HEADER_BYTES + SEALED_BLOCK_BYTES
    third = second + SEALED_BLOCK_BYTES
    return content[:first] + content[second:third] + content[first:second] + content[third:]


def of_another_file(content, other):
    end = HEADER_BYTES + SEALED_BLOCK_BYTES
    return content[:HEADER_BYTES] + other[HEADER_BYTES:end] + content[end:]


def cut_to_nothing(_content, _other):
    return b""


@pytest.mark.parametrize(
    "change", [cut_short, one_byte_less, made_longer, swapped, of_another_file, cut_to_nothing]
)
def test_blocks_that_are_missing_moved_or_foreign_do_not_open(open_store, change):
    store = open_store()
    other = store.put([NOISE[1:]])
    (foreign,) = files(store, "sealed")
    stored = store.put([NOISE])
    (path,) = [path for path in files(store, "sealed") if path != foreign]
    overwrite(path, change(path.read_bytes(), foreign.read_bytes()))
    with pytest.raises(Unavailable) as refusal:
        b"".join(store.open(stored.sha256))
    assert refusal.value.reason == "stored_bytes_damaged"
    assert store.read(other.sha256) == NOISE[1:]


def test_a_container_under_another_name_does_not_open(open_store):
    store = open_store()
    first, second = store.put([b"first"]), store.put([b"other"])
    for folder in ("sealed", "keys"):
        (here,) = (store.spool / folder / first.sha256[:2]).glob(f"{first.sha256}*")
        name = here.name.replace(first.sha256, second.sha256)
        here.rename(store.spool / folder / second.sha256[:2] / name)
    with pytest.raises(Unavailable, match="damaged"):
        open_store().read(second.sha256)
    with pytest.raises(NotFound):
        open_store().read(first.sha256)


def test_an_empty_blob_is_authenticated_too(open_store):
    store = open_store()
    stored = store.put([])
    assert store.read(stored.sha256) == b""
    overwrite(container(store), flip(container(store).read_bytes(), -1))
    with pytest.raises(Unavailable, match="damaged"):
        store.read(stored.sha256)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[]",
        b'{"version": 2, "key": "local:x", "wrapped": ""}',
        b'{"version": 1, "key": "local:x"}',
        b'{"version": 1, "key": "local:x", "wrapped": "?"}',
    ],
)
def test_a_sidecar_that_is_none_is_said(open_store, content):
    store = open_store()
    stored = store.put([b"data"])
    overwrite(files(store, "keys")[0], content)
    with pytest.raises(Unavailable, match="sidecar"):
        open_store().read(stored.sha256)


@pytest.mark.parametrize("offset", [0, 12, -1])
def test_a_changed_wrapped_key_does_not_open(open_store, offset):
    store = open_store()
    stored = store.put([b"data"])
    (path,) = files(store, "keys")
    sidecar = json.loads(path.read_bytes())
    wrapped = flip(base64.b64decode(sidecar["wrapped"]), offset)
    overwrite(path, json.dumps({**sidecar, "wrapped": base64.b64encode(wrapped).decode()}).encode())
    with pytest.raises(Unavailable, match="damaged"):
        open_store().read(stored.sha256)


def test_a_lost_sidecar_is_said(open_store):
    store = open_store()
    stored = store.put([b"data"])
    files(store, "keys")[0].unlink()
    again = open_store()
    assert not again.exists(stored.sha256)
    with pytest.raises(Unavailable, match="the sidecar with its key is gone"):
        again.read(stored.sha256)


@pytest.mark.parametrize("keys", ["", NEW], ids=["no key", "another key"])
def test_a_missing_master_key_is_named(open_store, tmp_path, keys):
    stored = open_store().put([b"data"])
    other = open_store(keys)
    for act in (
        lambda: other.open(stored.sha256),
        lambda: other.materialise(stored.sha256, tmp_path / "target"),
        other.check,
    ):
        with pytest.raises(Unavailable, match="MODELYARD_MASTER_KEY lacks the master key local:"):
            act()
    assert other.size(stored.sha256) == 4
    assert not (tmp_path / "target").exists()
    open_store().check()


def rotated(store):
    """Give of each key whether it was wrapped anew."""
    found = list(store.rotate_keys())
    assert [one.problem for one in found if one.problem] == []
    return [one.changed for one in found]


def test_rotation_rewrites_sidecars_and_no_blob(open_store):
    store = open_store()
    stored = [store.put([bytes([number]) * 1000]) for number in range(5)]
    before = [path.read_bytes() for path in files(store, "sealed")]
    both = open_store(f"{NEW} {OLD}")
    assert rotated(both) == [True] * 5
    assert rotated(both) == [False] * 5
    assert [path.read_bytes() for path in files(store, "sealed")] == before
    only_new = open_store(NEW)
    only_new.check()
    for number, blob in enumerate(stored):
        assert only_new.read(blob.sha256) == bytes([number]) * 1000
    with pytest.raises(Unavailable):
        open_store(OLD).read(stored[0].sha256)


def test_rotation_goes_on_where_it_stopped(open_store):
    store = open_store()
    for number in range(4):
        store.put([bytes([number])])
    both = open_store(f"{NEW} {OLD}")
    begun = both.rotate_keys()
    next(begun)
    next(begun)
    begun.close()
    assert sum(rotated(both)) == 2


def test_rotation_beside_readers_and_writers(open_store):
    store = open_store()
    stored = store.put([NOISE])
    wrong, over = [], threading.Event()

    def read():
        while not over.is_set():
            fresh = open_store(f"{NEW},{OLD}")
            if fresh.read(stored.sha256, start=5, end=5000) != NOISE[5:5000]:
                wrong.append("read")
            fresh.put([NOISE[:99]])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for first, second in [(NEW, OLD), (OLD, NEW)] * 5:
        list(open_store(f"{first}\n{second}").rotate_keys())
    over.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    list(open_store(f"{NEW},{OLD}").rotate_keys())
    assert open_store(NEW).read(stored.sha256) == NOISE


def test_many_writers_of_the_same_bytes_leave_one_that_opens(open_store):
    stored = open_store().put([NOISE])
    writers = [threading.Thread(target=lambda: open_store().put([NOISE])) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert open_store().read(stored.sha256) == NOISE


def test_plain_blobs_stay_readable_and_are_encrypted_later(open_store, tmp_path):
    plain = open_store("")
    stored = plain.put([NOISE])
    store = open_store()
    assert store.read(stored.sha256) == NOISE
    begun = store.open(stored.sha256)
    first = next(begun)
    assert store.encrypt(stored.sha256)
    assert not store.encrypt(stored.sha256)
    assert store.drop_plain(stored.sha256)
    assert not store.drop_plain(stored.sha256)
    assert files(store, "blobs") == []
    assert first + b"".join(begun) == NOISE
    assert store.read(stored.sha256) == NOISE
    store.materialise(stored.sha256, tmp_path / "out" / "file")
    assert (tmp_path / "out" / "file").read_bytes() == NOISE
    assert not store.encrypt("0" * 64)


def test_damaged_plain_bytes_are_never_sealed(open_store):
    stored = open_store("").put([b"weights"])
    overwrite(files(open_store(""), "blobs")[0], b"WEIGHTS")
    with pytest.raises(Unavailable, match="another digest"):
        open_store().encrypt(stored.sha256)
    assert files(open_store(), "sealed") == []
    assert not open_store().drop_plain(stored.sha256)


DYING_WRITER = """
import os, signal, sys
from pathlib import Path
import registry.storage
storage = registry.storage.storage_at(sys.argv[1], spool=Path("/"), master_keys=sys.argv[3])
place, step = storage._place, int(sys.argv[4])
def dying(path, name):
    global step
    if step == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    step -= 1
    place(path, name)
storage._place = dying
storage.finish_upload(sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("step", [0, 1, 2], ids=["before the key", "before the container", "after"])
def test_an_upload_survives_kill_9_while_it_is_sealed(open_store, step):
    store = open_store()
    upload_id = str(uuid.uuid4())
    store.begin_upload(upload_id)
    store.append_upload(upload_id, 0, [NOISE])
    done = subprocess.run(
        [sys.executable, "-c", DYING_WRITER, store.spool.as_uri(), upload_id, OLD, str(step)],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL
    again = open_store()
    assert again.upload_offset(upload_id) == len(NOISE)
    stored = again.finish_upload(upload_id)
    assert open_store().read(stored.sha256) == NOISE
    again.discard_upload(upload_id)
    assert files(again, "uploads") == []


def test_deleting_takes_the_keys_along(open_store):
    store = open_store()
    stored = store.put([b"data"])
    store.put([b"data"])
    store.delete(stored.sha256)
    assert files(store, "sealed") + files(store, "keys") == []
    assert not store.exists(stored.sha256)


def test_what_is_here_and_since_when(open_store):
    plain = open_store("").put([b"plain"])
    store = open_store()
    sealed = store.put([b"sealed"])
    assert sorted(sha256 for sha256, _ in store.inventory()) == sorted(
        [plain.sha256, sealed.sha256]
    )
    assert store.modified_at("0" * 64) is None
    os.utime(container(store), (5, 5))
    assert store.modified_at(sealed.sha256) == 5
    store.put([b"sealed"])
    assert store.modified_at(sealed.sha256) > 5


# --- In a bucket -----------------------------------------------------------------------------


def test_a_bucket_holds_nothing_plain(bucket, s3_endpoint, tmp_path):
    client, name = bucket
    url = f"s3://{name}/team?endpoint={s3_endpoint}"
    plain = storage_at(url, spool=tmp_path)
    early = plain.put([NOISE[::-1]])
    store = storage_at(url, spool=tmp_path, master_keys=OLD)
    stored = store.put([NOISE])
    assert store.encrypt(early.sha256)
    assert store.drop_plain(early.sha256)
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=name)["Contents"]]
    assert sorted({key.split("/")[1] for key in keys}) == ["keys", "sealed"]
    start, end = BLOCK_BYTES - 3, BATCH_BYTES + 9
    assert store.read(stored.sha256, start=start, end=end) == NOISE[start:end]
    assert store.read(early.sha256) == NOISE[::-1]
    sealed = f"team/sealed/{stored.sha256[:2]}/{stored.sha256}"
    content = client.get_object(Bucket=name, Key=sealed)["Body"].read()
    client.put_object(Bucket=name, Key=sealed, Body=flip(content, -1))
    with pytest.raises(Unavailable, match="damaged"):
        store.read(stored.sha256)
    assert store.read(stored.sha256, end=10) == NOISE[:10]
    both = storage_at(url, spool=tmp_path, master_keys=f"{NEW} {OLD}")
    assert rotated(both) == [True, True]
    after = storage_at(url, spool=tmp_path, master_keys=NEW)
    assert after.read(early.sha256, end=99) == NOISE[::-1][:99]
    for opened in (plain, store, both, after):
        opened._client.close()


# --- Master keys -----------------------------------------------------------------------------


@pytest.fixture
def kms(bucket, s3_endpoint):
    client = boto3.client("kms", endpoint_url=s3_endpoint, region_name="us-east-1")
    yield client
    client.close()


def test_a_key_service_wraps_and_unwraps(kms, s3_endpoint, open_store):
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    setting = f"kms://{key}?endpoint={s3_endpoint}&region=us-east-1"
    store = open_store(setting)
    stored = store.put([b"weights"])
    again = open_store(setting)
    assert again.read(stored.sha256) == b"weights"
    sidecar = json.loads(files(store, "keys")[0].read_bytes())
    assert sidecar["key"] == f"kms:{key}"
    moved = open_store(f"{NEW} {setting}")
    assert rotated(moved) == [True]
    assert open_store(NEW).read(stored.sha256) == b"weights"
    for opened in (store, again, moved):
        for wrapper in opened.keys._keys.values():
            if made := getattr(wrapper, "_made", None):
                made.close()


def test_a_key_service_that_refuses_or_is_down_is_said(kms, s3_endpoint, open_store):
    unknown = open_store(f"kms://{uuid.uuid4()}?endpoint={s3_endpoint}")
    with pytest.raises(Unavailable, match="refused the master key kms:"):
        unknown.put([b"weights"])
    unknown.keys.current._made.close()
    down = open_store("kms://key?endpoint=http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="MODELYARD_MASTER_KEY does not answer"):
        down.put([b"weights"])
    down.keys.current._made.close()
    assert files(down, "sealed") + files(down, "keys") + files(down, "incoming") == []


def test_keys_may_stand_in_lines_with_comments():
    text = f"# since spring\n{NEW}\n\n{OLD} # until spring\nkms://alias/a?region=eu-west-1"
    names = [key.key_id for key in parse_master_keys(text)]
    assert len(names) == 3
    assert names[2] == "kms:alias/a"
    assert parse_master_keys(" \n") == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("secret", "key 1 is neither 32 bytes in hex or base64"),
        (f"{OLD} {'ab' * 31}", "key 2 is neither"),
        (f"{OLD},{OLD}", "the same key twice"),
        ("kms://", "names no key"),
        ("kms://a?endpont=x", "unknown option 'endpont'"),
        ("kms://a?endpoint=ftp://x", "must begin with http"),
    ],
)
def test_a_bad_master_key_is_one_line_without_the_key(text, problem):
    with pytest.raises(BadMasterKeyError, match=problem) as refusal:
        parse_master_keys(text)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert OLD not in str(refusal.value)


@pytest.mark.parametrize("name", ["MODELYARD_MASTER_KEY", "MODELYARD_MASTER_KEY_FILE"])
def test_a_bad_master_key_stops_the_start_with_one_line(tmp_path, name):
    empty = tmp_path / "empty"
    empty.write_text("# nothing yet\n")
    value = "nonsense" if name == "MODELYARD_MASTER_KEY" else str(empty)
    done = subprocess.run(
        [sys.executable, "-c", "import config.settings"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, name: value, "MODELYARD_HOME": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"modelyard: {name}: ")
    assert done.stderr.count("\n") == 1
