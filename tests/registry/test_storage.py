"""The storage keeps what it promised, on a local disk and in an S3 bucket over HTTP."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from unittest.mock import Mock

import boto3
import pytest

from registry.errors import Conflict, Invalid, NotFound, StorageFull, Unavailable
from registry.storage import (
    BLOCK_BYTES,
    READY_BYTES,
    LocalStorage,
    Location,
    Storage,
    spool,
    storage_at,
)

MASTER_KEY = "5e" * 32


@pytest.fixture
def bucket_url(s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    bucket = f"models-{uuid.uuid4().hex[:8]}"
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    client.close()
    return f"s3://{bucket}/team/a?endpoint={s3_endpoint}"


@pytest.fixture
def s3_storage(bucket_url, tmp_path):
    opened = storage_at(bucket_url, spool=tmp_path / "spool")
    yield opened
    opened._client.close()


@pytest.fixture
def sealed_s3_storage(bucket_url, tmp_path):
    opened = storage_at(bucket_url, spool=tmp_path / "spool", master_keys=MASTER_KEY)
    yield opened
    opened._client.close()


@pytest.fixture
def local_storage(tmp_path):
    return storage_at((tmp_path / "store").as_uri(), spool=tmp_path / "unused")


@pytest.fixture
def sealed_local_storage(tmp_path):
    url = (tmp_path / "store").as_uri()
    return storage_at(url, spool=tmp_path / "unused", master_keys=MASTER_KEY)


@pytest.fixture(params=["local", "s3", "sealed_local", "sealed_s3"])
def storage(request) -> Storage:
    return request.getfixturevalue(f"{request.param}_storage")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def bad_sector(monkeypatch, path):
    """Let the disk fail wherever it is asked for the bytes of a file."""
    bad = path.stat().st_ino

    def failing(read):
        def call(descriptor, *more):
            if os.stat(descriptor).st_ino == bad:  # noqa: PTH116 - of a number, or of a path
                raise OSError(errno.EIO, "Input/output error")
            return read(descriptor, *more)

        return call

    for module, name in ((os, "pread"), (os, "preadv"), (Path, "read_bytes")):
        monkeypatch.setattr(module, name, failing(getattr(module, name)))


def leftovers(storage):
    return [
        path
        for path in storage.spool.rglob("*")
        if path.is_file() and not {"blobs", "sealed", "keys"} & set(path.parts)
    ]


def test_only_local_bytes_are_given_without_waiting(storage, request):
    """A bucket would hold up everybody; and what is encrypted never leaves as it lies."""
    data = os.urandom(READY_BYTES * 4 + 17)
    stored = storage.put([data])
    blocks = storage.open(stored.sha256, start=3, end=len(data) - 1)
    given = []
    while block := blocks.ready():
        given.append(block)
    # A container's first block is there before anybody asks.
    if "s3" in request.node.callspec.id:
        assert len(b"".join(given)) < len(data) / 2 + READY_BYTES
    # What was just written is in memory, unless another program needed the room.
    assert b"".join(given) + b"".join(blocks) == data[3:-1]
    assert blocks.ready() == b""


@pytest.mark.parametrize("kind", ["local", "sealed_local"])
def test_what_memory_lost_comes_from_the_disk(request, kind):
    storage = request.getfixturevalue(f"{kind}_storage")
    data = os.urandom(READY_BYTES * 8)
    stored = storage.put([data])
    folder = "blobs" if kind == "local" else "sealed"
    with (storage.spool / folder / stored.sha256[:2] / stored.sha256).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), READY_BYTES * 3, READY_BYTES * 3, os.POSIX_FADV_DONTNEED)
    blocks = storage.open(stored.sha256)
    given = []
    while block := blocks.ready() or next(blocks, b""):
        given.append(block)
    assert b"".join(given) == data


def test_bytes_come_back_whole_and_in_ranges(storage):
    data = os.urandom(BLOCK_BYTES * 2 + 17)
    stored = storage.put([data[:5], data[5:BLOCK_BYTES], data[BLOCK_BYTES:]])
    assert stored.sha256 == sha256(data)
    assert stored.size_bytes == storage.size(stored.sha256) == len(data)
    assert b"".join(storage.open(stored.sha256)) == data
    assert storage.read(stored.sha256, start=3, end=40) == data[3:40]
    assert storage.read(stored.sha256, start=len(data) - 4) == data[-4:]
    assert storage.read(stored.sha256, start=len(data) - 4, end=len(data) + 99) == data[-4:]
    assert storage.read(stored.sha256, start=len(data)) == b""
    assert max(map(len, storage.open(stored.sha256))) <= BLOCK_BYTES
    assert leftovers(storage) == []


def test_other_users_of_the_machine_are_kept_out(storage):
    storage.put([b"private"])
    assert storage.spool.stat().st_mode & 0o077 == 0


def test_an_empty_file_is_a_blob_too(storage):
    stored = storage.put([])
    assert stored.sha256 == sha256(b"")
    assert stored.git_sha1 == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert storage.read(stored.sha256) == b""


def test_small_blobs_are_named_as_git_names_them(storage, monkeypatch):
    assert storage.put([b"hello\n"]).git_sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"
    monkeypatch.setattr(spool, "GIT_SHA1_BYTES", 5)
    assert storage.put([b"hello\n"]).git_sha1 is None


def test_the_same_bytes_are_kept_once(storage):
    first = storage.put([b"same"])
    assert storage.put([b"sa", b"me"]) == first
    assert storage.read(first.sha256) == b"same"
    assert leftovers(storage) == []


@pytest.mark.parametrize("promise", [{"sha256": "0" * 64}, {"size_bytes": 3}])
def test_bytes_other_than_announced_are_refused(storage, promise):
    with pytest.raises(Invalid) as refusal:
        storage.put([b"data"], **promise)
    assert refusal.value.reason == "digest_mismatch"
    assert not storage.exists(sha256(b"data"))
    assert leftovers(storage) == []


def test_a_source_that_fails_leaves_nothing(storage):
    def broken():
        yield b"some"
        raise OSError(errno.EIO, "gone")

    with pytest.raises(OSError, match="gone"):
        storage.put(broken())
    assert leftovers(storage) == []


@pytest.mark.parametrize("name", ["0" * 64, "../../etc/passwd", "A" * 64, ""])
def test_what_is_not_here_is_not_found(storage, tmp_path, name):
    assert not storage.exists(name)
    for act in (
        lambda: storage.open(name),
        lambda: storage.read(name),
        lambda: storage.size(name),
        lambda: storage.materialise(name, tmp_path / "target"),
    ):
        with pytest.raises(NotFound):
            act()


@pytest.mark.parametrize("kind", ["local", "sealed_local"])
def test_what_the_disk_does_not_read_is_damaged_and_healed_by_sending_it_again(
    request, monkeypatch, kind
):
    storage, data = request.getfixturevalue(f"{kind}_storage"), os.urandom(70_000)
    stored = storage.put([data])
    path = next((storage.spool / ("blobs" if kind == "local" else "sealed")).rglob(stored.sha256))
    bad_sector(monkeypatch, path)
    with pytest.raises(Unavailable, match=f"{stored.sha256}.*Input/output error") as refused:
        storage.read(stored.sha256)
    assert refused.value.reason == "stored_bytes_damaged"
    storage.put([data])
    assert storage.read(stored.sha256) == data


@pytest.mark.parametrize("kind", ["local", "sealed_local"])
def test_a_file_that_the_disk_does_not_open_is_damaged(request, tmp_path, kind):
    storage = request.getfixturevalue(f"{kind}_storage")
    stored = storage.put([b"data"])
    path = next((storage.spool / ("blobs" if kind == "local" else "sealed")).rglob(stored.sha256))
    path.unlink()
    # In a circle: root opens anything else.
    path.symlink_to(path)
    for act in (storage.open, storage.read):
        with pytest.raises(Unavailable, match=f"{stored.sha256}.*symbolic links") as refused:
            act(stored.sha256)
        assert refused.value.reason == "stored_bytes_damaged"


def test_delete_is_final_and_repeatable(storage):
    stored = storage.put([b"data"])
    storage.delete(stored.sha256)
    storage.delete(stored.sha256)
    assert not storage.exists(stored.sha256)


def test_materialised_files_are_read_only(storage, tmp_path):
    stored = storage.put([b"weights"])
    target = tmp_path / "job" / "inputs" / "model.safetensors"
    storage.materialise(stored.sha256, target)
    storage.materialise(stored.sha256, target)
    assert target.read_bytes() == b"weights"
    assert target.stat().st_mode & 0o777 == 0o444


def test_materialise_links_and_copies_where_it_cannot(local_storage, tmp_path, monkeypatch):
    stored = local_storage.put([b"weights"])
    linked = tmp_path / "linked"
    local_storage.materialise(stored.sha256, linked)
    assert linked.stat().st_nlink == 2

    def other_disk(*_args):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    copied = tmp_path / "copied"
    local_storage.materialise(stored.sha256, copied)
    assert copied.read_bytes() == b"weights"
    assert (copied.stat().st_nlink, copied.stat().st_mode & 0o777) == (1, 0o444)


def test_a_full_disk_is_said_and_leaves_nothing(storage, monkeypatch):
    real_write = os.write

    def full(descriptor, data):
        if len(data) == 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(descriptor, data)

    upload_id = str(uuid.uuid4())
    storage.begin_upload(upload_id)
    storage.append_upload(upload_id, 0, [b"kept"])
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFull):
        storage.put([b"some", b"1234567"])
    with pytest.raises(StorageFull):
        storage.append_upload(upload_id, 4, [b"lost", b"1234567"])
    monkeypatch.undo()
    assert leftovers(storage) == [storage.spool / "uploads" / upload_id]
    assert storage.upload_offset(upload_id) == 4


def test_an_upload_goes_on_where_it_stopped(storage):
    upload_id = str(uuid.uuid4())
    storage.begin_upload(upload_id)
    storage.begin_upload(upload_id)
    assert storage.upload_offset(upload_id) == 0
    assert storage.append_upload(upload_id, 0, [b"one ", b"two "]) == 8
    assert storage.append_upload(upload_id, 8, [b"three"]) == 13
    assert storage.read_upload(upload_id, 4, 7) == b"two"
    stored = storage.finish_upload(upload_id, sha256=sha256(b"one two three"))
    assert storage.read(stored.sha256) == b"one two three"
    # Nobody knows yet that it is complete: the answer may have been lost.
    assert storage.upload_offset(upload_id) == 13
    assert storage.read_upload(upload_id, 4, 7) == b"two"
    assert storage.finish_upload(upload_id) == stored
    with pytest.raises(Conflict, match="complete"):
        storage.append_upload(upload_id, 13, [b"more"])
    storage.discard_upload(upload_id)
    assert storage.exists(stored.sha256)
    assert leftovers(storage) == []
    with pytest.raises(NotFound):
        storage.upload_offset(upload_id)
    with pytest.raises(NotFound):
        storage.finish_upload(upload_id)
    with pytest.raises(NotFound):
        storage.read_upload(upload_id, 0, 1)


def test_another_process_may_finish_an_upload(storage, tmp_path):
    upload_id = str(uuid.uuid4())
    storage.begin_upload(upload_id)
    storage.append_upload(upload_id, 0, [b"one "])
    storage._digests.clear()
    storage.append_upload(upload_id, 4, [b"two"])
    assert storage.finish_upload(upload_id).sha256 == sha256(b"one two")


def test_an_upload_with_other_bytes_than_announced_can_be_dropped(storage):
    upload_id = str(uuid.uuid4())
    storage.begin_upload(upload_id)
    storage.append_upload(upload_id, 0, [b"data"])
    with pytest.raises(Invalid):
        storage.finish_upload(upload_id, sha256="0" * 64)
    assert storage.upload_offset(upload_id) == 4
    storage.discard_upload(upload_id)
    assert leftovers(storage) == []


def test_one_writer_at_a_time_and_only_at_the_offset(local_storage):
    upload_id = str(uuid.uuid4())
    local_storage.begin_upload(upload_id)
    sink = local_storage.open_upload(upload_id, 0)
    with pytest.raises(Conflict) as busy:
        local_storage.append_upload(upload_id, 0, [b"x"])
    assert busy.value.reason == "upload_busy"
    with pytest.raises(Conflict):
        local_storage.finish_upload(upload_id)
    local_storage.close_upload(upload_id, sink, keep=True)
    with pytest.raises(Conflict) as apart:
        local_storage.append_upload(upload_id, 4, [b"x"])
    assert apart.value.reason == "offset_mismatch"


def test_what_arrived_before_the_line_broke_stays(local_storage):
    def broken():
        yield b"half"
        raise ConnectionResetError

    upload_id = str(uuid.uuid4())
    local_storage.begin_upload(upload_id)
    with pytest.raises(ConnectionResetError):
        local_storage.append_upload(upload_id, 0, broken())
    assert local_storage.upload_offset(upload_id) == 4


def test_a_provisional_part_counts_only_once_it_was_kept(local_storage):
    upload_id = str(uuid.uuid4())
    local_storage.begin_upload(upload_id)
    local_storage.append_upload(upload_id, 0, [b"good"])
    sink = local_storage.open_upload(upload_id, 4, provisional=True)
    sink.write(b"wrong")
    assert local_storage.upload_offset(upload_id) == 4
    assert local_storage.close_upload(upload_id, sink, keep=False) == 4
    sink = local_storage.open_upload(upload_id, 4, provisional=True)
    sink.write(b" right")
    assert local_storage.close_upload(upload_id, sink, keep=True) == 10
    assert local_storage.finish_upload(upload_id).sha256 == sha256(b"good right")


DYING_WRITER = """
import os, signal, sys
from pathlib import Path
from unittest.mock import Mock
import django.conf
from registry.storage import LocalStorage
storage = LocalStorage(Path(sys.argv[1]))
provisional = sys.argv[3] == "provisional"
sink = storage.open_upload(sys.argv[2], 4, provisional=provisional)
sink.write(b"after")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("kind", "offset"), [("plain", 9), ("provisional", 4)])
def test_an_upload_survives_kill_9(local_storage, kind, offset):
    upload_id = str(uuid.uuid4())
    local_storage.begin_upload(upload_id)
    local_storage.append_upload(upload_id, 0, [b"fore"])
    done = subprocess.run(
        [sys.executable, "-c", DYING_WRITER, str(local_storage.spool), upload_id, kind],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL
    again = LocalStorage(local_storage.spool)
    assert again.upload_offset(upload_id) == offset
    expected = b"foreafter"[:offset] + b" end"
    assert again.append_upload(upload_id, offset, [b" end"]) == len(expected)
    assert again.finish_upload(upload_id).sha256 == sha256(expected)


def parts_of(storage, *contents):
    ids = [str(uuid.uuid4()) for _ in contents]
    for part, content in zip(ids, contents, strict=True):
        storage.begin_upload(part)
        storage.append_upload(part, 0, [content])
    return ids


@pytest.mark.parametrize("by", ["kernel", "hand"])
def test_uploads_are_joined_in_order(local_storage, monkeypatch, by):
    if by == "hand":
        # As where the file system, or what the process runs in, cannot copy on its own.
        refusal = OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        monkeypatch.setattr(os, "copy_file_range", Mock(side_effect=refusal))
    contents = [os.urandom(5_000_001), b"", b"middle", os.urandom(3_000_000)]
    parts, whole = parts_of(local_storage, *contents), str(uuid.uuid4())
    local_storage.begin_upload(whole)
    data = b"".join(contents)
    assert local_storage.join_uploads(whole, parts) == len(data)
    assert local_storage.upload_offset(whole) == len(data)
    assert [local_storage.upload_offset(part) for part in parts] == list(map(len, contents))
    assert local_storage.finish_upload(whole).sha256 == sha256(data)
    assert local_storage.read(sha256(data)) == data


def test_a_join_that_fails_leaves_nothing_and_can_be_repeated(local_storage, monkeypatch):
    parts, whole = parts_of(local_storage, b"one ", b"two"), str(uuid.uuid4())
    local_storage.begin_upload(whole)
    with pytest.raises(NotFound, match="in progress"):
        local_storage.join_uploads(whole, [parts[0], str(uuid.uuid4())])
    assert local_storage.upload_offset(whole) == 0
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as disk:
        disk.setattr(os, "copy_file_range", Mock(side_effect=full))
        with pytest.raises(StorageFull):
            local_storage.join_uploads(whole, parts)
    assert local_storage.upload_offset(whole) == 0
    assert local_storage.join_uploads(whole, parts) == 7
    assert local_storage.finish_upload(whole).sha256 == sha256(b"one two")


DYING_JOINER = """
import os, signal, sys
from pathlib import Path
from unittest.mock import Mock
import registry.storage
from registry.storage import LocalStorage
storage = LocalStorage(Path(sys.argv[1]))
storage.close_upload = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
storage.join_uploads(sys.argv[2], sys.argv[3:])
"""


def test_a_join_killed_before_it_is_durable_does_not_count(local_storage):
    parts, whole = parts_of(local_storage, b"one ", b"two"), str(uuid.uuid4())
    local_storage.begin_upload(whole)
    done = subprocess.run(
        [sys.executable, "-c", DYING_JOINER, str(local_storage.spool), whole, *parts],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL
    again = LocalStorage(local_storage.spool)
    assert again.upload_offset(whole) == 0
    assert again.join_uploads(whole, parts) == 7
    assert again.finish_upload(whole).sha256 == sha256(b"one two")


def test_a_process_killed_between_digest_and_rename_loses_nothing(local_storage, monkeypatch):
    upload_id = str(uuid.uuid4())
    local_storage.begin_upload(upload_id)
    local_storage.append_upload(upload_id, 0, [b"data"])
    with monkeypatch.context() as patch:
        patch.setattr(local_storage, "_keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            local_storage.finish_upload(upload_id)
    again = LocalStorage(local_storage.spool)
    assert again.upload_offset(upload_id) == 4
    assert again.read(again.finish_upload(upload_id).sha256) == b"data"


@pytest.mark.parametrize("upload_id", ["../x", "", "0" * 36, "a/b"])
def test_upload_names_are_uuids(local_storage, upload_id):
    with pytest.raises(NotFound):
        local_storage.begin_upload(upload_id)


def test_only_old_remains_are_swept(local_storage):
    sink = local_storage.open_sink()
    sink.write(b"x")
    sink.close()
    upload_id = str(uuid.uuid4())
    local_storage.begin_upload(upload_id)
    assert local_storage.sweep_spool(older_than_seconds=60) == 0
    os.utime(sink.path, (1, 1))
    os.utime(local_storage.spool / "uploads" / upload_id, (1, 1))
    assert local_storage.sweep_spool(older_than_seconds=60) == 2
    assert leftovers(local_storage) == []


def test_many_writers_of_the_same_bytes(local_storage):
    data = os.urandom(300_000)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(local_storage.put([data]).sha256))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == {sha256(data)}
    assert len(results) == 8


def test_blocks_are_flushed_while_more_arrive(local_storage, monkeypatch):
    monkeypatch.setattr(spool, "_FLUSH_BYTES", 10)
    chunks = [os.urandom(8) for _ in range(50)]
    assert local_storage.put(chunks).sha256 == sha256(b"".join(chunks))


def test_a_large_blob_goes_to_s3_in_parts(s3_storage):
    data = os.urandom(17 * 1024 * 1024)
    stored = s3_storage.put([data])
    assert s3_storage.size(stored.sha256) == len(data)
    assert (
        s3_storage.read(stored.sha256, start=16 * 1024 * 1024 - 3, end=16 * 1024 * 1024 + 3)
        == (data[16 * 1024 * 1024 - 3 : 16 * 1024 * 1024 + 3])
    )


def test_readiness(storage, tmp_path):
    storage.check()


def test_a_bucket_that_is_not_there_is_said(s3_endpoint, s3_storage, tmp_path):
    other = storage_at(f"s3://absent-bucket?endpoint={s3_endpoint}", spool=tmp_path)
    with pytest.raises(Unavailable, match="absent-bucket"):
        other.check()
    with pytest.raises(Unavailable):
        other.put([b"x"])
    assert leftovers(other) == []
    other._client.close()


def test_a_storage_server_that_is_down_is_said(s3_storage, tmp_path, monkeypatch):
    other = storage_at("s3://models?endpoint=http://127.0.0.1:9", spool=tmp_path)
    monkeypatch.setattr(other._client.meta.config, "retries", {"max_attempts": 1})
    with pytest.raises(Unavailable, match="does not answer"):
        other.check()
    other._client.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file://relative/path", "file:///absolute/path"),
        ("file:relative", "file:///absolute/path"),
        ("/var/lib", "file:/// or s3://"),
        ("http://host/x", "file:/// or s3://"),
        ("s3://", "no bucket name"),
        ("s3://Bad_Bucket/x", "no bucket name"),
        ("s3://bucket/x?endpont=http://a", "unknown option 'endpont'"),
        ("s3://bucket/x?endpoint=a:9000", "the endpoint must begin"),
    ],
)
def test_a_bad_storage_url_is_one_clear_line(url, reason):
    with pytest.raises(ValueError, match="MODELYARD_STORAGE_URL") as error:
        Location.parse(url)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_storage_urls():
    assert Location.parse("file:///var/lib/model%20yard").path == Path("/var/lib/model yard")
    s3 = Location.parse("s3://bucket/some/prefix/?endpoint=http://127.0.0.1:9000&region=eu-west-1")
    assert (s3.bucket, s3.prefix, s3.endpoint, s3.region) == (
        "bucket",
        "some/prefix",
        "http://127.0.0.1:9000",
        "eu-west-1",
    )
