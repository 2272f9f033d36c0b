"""The uploads of `tuspy`, the tus client of others, exactly as it is published."""

import gc
import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import requests
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed
from tusclient.storage.filestorage import FileStorage

from tests.registry.stream.test_upload import TUS, stored_bytes, upload_of

# It leaves the files that it opens to the collector of garbage.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PIECE = 700_000


@pytest.fixture(autouse=True)
def files_left_open():
    """Collect what it left open here, where the warning is expected, not in a later test."""
    yield
    gc.collect()


@pytest.fixture
def door(server, client):
    return TusClient(
        f"{server.url}/api/v1/uploads", headers={"Authorization": client.headers["authorization"]}
    )


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(3_000_000))
    return path


@pytest.mark.parametrize("options", [{}, {"chunk_size": PIECE}, {"upload_checksum": True}])
def test_a_file(door, path, options):
    with path.open("rb") as stream:
        metadata = {"filename": "weights.bin"}
        uploader = door.uploader(file_stream=stream, metadata=metadata, **options)
        uploader.upload()
    assert upload_of(uploader.url).filename == "weights.bin"
    assert stored_bytes(uploader.url) == path.read_bytes()


def test_an_empty_file(door, path):
    path.write_bytes(b"")
    with path.open("rb") as stream:
        uploader = door.uploader(file_stream=stream)
        uploader.upload()
    assert stored_bytes(uploader.url) == b""


def test_another_process_goes_on_where_one_was_stopped(door, path, tmp_path):
    kept = FileStorage(str(tmp_path / "urls.json"))
    options = {"chunk_size": PIECE, "store_url": True, "url_storage": kept}
    first = door.uploader(str(path), **options)
    first.upload(stop_at=2 * PIECE)
    again = door.uploader(str(path), **options)
    assert (again.url, again.offset) == (first.url, 2 * PIECE)
    again.upload()
    assert stored_bytes(again.url) == path.read_bytes()
    kept.close()


@pytest.mark.slow
def test_it_goes_on_after_the_server_died(server, door, path):
    uploader = door.uploader(str(path), chunk_size=PIECE)
    uploader.upload(stop_at=PIECE)
    server.kill()
    with pytest.raises((requests.RequestException, TusUploadFailed, ConnectionError)):
        uploader.upload_chunk()
    server.start()
    again = door.uploader(str(path), url=uploader.url, chunk_size=PIECE)
    assert again.offset == PIECE
    again.upload()
    assert stored_bytes(again.url) == path.read_bytes()


def test_parts_side_by_side(door, client, path, tmp_path):
    """Parts go up when a header says so; joining them is one request of its user."""
    data, parts = path.read_bytes(), []
    for number, start in enumerate(range(0, len(data), 1_000_000)):
        parts.append(tmp_path / f"part{number}")
        parts[-1].write_bytes(data[start : start + 1_000_000])
    partial = TusClient(door.url, headers={**door.headers, "Upload-Concat": "partial"})

    def send(part):
        with part.open("rb") as stream:
            uploader = partial.uploader(file_stream=stream, chunk_size=300_000)
            uploader.upload()
            return uploader.url

    with ThreadPoolExecutor(3) as pool:
        concat = "final;" + " ".join(pool.map(send, parts))
    answer = client.post("/api/v1/uploads", headers={**TUS, "Upload-Concat": concat})
    assert answer.status_code == httpx.codes.CREATED, answer.text
    assert stored_bytes(answer.headers["location"]) == data
