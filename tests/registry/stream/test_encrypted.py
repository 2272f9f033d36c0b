"""The same streams over encrypted blobs: whole, in ranges, damaged, and without the master key."""

import hashlib
import os

import httpx
import pytest

from registry.encryption.container import BATCH, BLOCK_BYTES, HEADER_BYTES, SEALED_BLOCK_BYTES
from tests.factories import make_token
from tests.registry.stream.conftest import WebServer

# Each test starts a server of its own.
pytestmark = pytest.mark.slow

KEY = "a7" * 32
DATA = os.urandom(3 * BATCH * BLOCK_BYTES + 12345)
FILE = "/api/v1/models/alice/classifier/versions/1/files/weights.bin"


@pytest.fixture
def start(server, tmp_path):
    started = []

    def start_with(key):
        home = {"MODELYARD_HOME": str(tmp_path / "home"), "MODELYARD_MASTER_KEY": key}
        other = WebServer({**server.environment, **home}, tmp_path / "web.log")
        other.start()
        started.append(other)
        return other

    yield start_with
    for other in started:
        other.stop()


@pytest.fixture
def connect(alice):
    clients = []

    def connected(server):
        headers = {"Authorization": f"Bearer {make_token(alice)}"}
        clients.append(httpx.Client(base_url=server.url, headers=headers, timeout=60))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


@pytest.fixture
def encrypted(start, connect, model):
    """Start a server with a master key and send it one file, in two pieces."""
    client = connect(start(KEY))
    tus = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
    half = len(DATA) // 2
    length = {"Upload-Length": str(len(DATA))}
    begun = client.post("/api/v1/uploads", content=DATA[:half], headers={**tus, **length})
    assert begun.status_code == 201, begun.text
    upload = begun.headers["location"]
    sent = client.patch(upload, content=DATA[half:], headers={**tus, "Upload-Offset": str(half)})
    assert sent.status_code == 204, sent.text
    files = [{"path": "weights.bin", "upload": upload.rpartition("/")[2]}]
    url = "/api/v1/models/alice/classifier/versions"
    assert client.post(url, json={"files": files}).status_code == 201
    return client


@pytest.fixture
def sealed(encrypted, tmp_path):
    digest = hashlib.sha256(DATA).hexdigest()
    return tmp_path / "home" / "storage" / "sealed" / digest[:2] / digest


RANGES = [
    ("0-0", 0, 1),
    ("5-", 5, len(DATA)),
    ("-7", len(DATA) - 7, len(DATA)),
    (f"{BLOCK_BYTES - 2}-{BATCH * BLOCK_BYTES + 2}", BLOCK_BYTES - 2, BATCH * BLOCK_BYTES + 3),
]


def test_ranges_of_an_encrypted_file(encrypted):
    for asked, start, end in RANGES:
        answer = encrypted.get(FILE, headers={"Range": f"bytes={asked}"})
        assert answer.status_code == 206
        assert answer.content == DATA[start:end]
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"


def test_the_whole_file_and_what_is_said_of_it(encrypted, sealed, tmp_path):
    answer = encrypted.get(FILE)
    assert answer.content == DATA
    assert answer.headers["etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
    assert sealed.stat().st_size > len(DATA)
    stored = [path for path in (tmp_path / "home" / "storage").rglob("*") if path.is_file()]
    assert not any(DATA[:64] in path.read_bytes() for path in stored)


def test_a_download_stops_before_a_block_that_was_tampered_with(encrypted, sealed):
    content = bytearray(sealed.read_bytes())
    content[HEADER_BYTES + (BATCH + 3) * SEALED_BLOCK_BYTES] ^= 1
    sealed.chmod(0o644)
    sealed.write_bytes(content)
    pieces: list[bytes] = []
    with encrypted.stream("GET", FILE) as answer, pytest.raises(httpx.RemoteProtocolError):
        pieces.extend(answer.iter_bytes())
    received = b"".join(pieces)
    assert DATA.startswith(received)
    assert len(received) <= (BATCH + 3) * BLOCK_BYTES
    # A range that begins in the block is refused before anything is promised.
    start = (BATCH + 3) * BLOCK_BYTES
    refusal = encrypted.get(FILE, headers={"Range": f"bytes={start}-"})
    assert refusal.status_code == 503
    assert refusal.json()["code"] == "stored_bytes_damaged"
    behind = encrypted.get(FILE, headers={"Range": f"bytes={start + BLOCK_BYTES}-"})
    assert behind.content == DATA[start + BLOCK_BYTES :]


def test_without_the_master_key_a_file_is_there_and_cannot_be_read(encrypted, start, connect):
    client = connect(start(""))
    assert client.head(FILE).headers["content-length"] == str(len(DATA))
    answer = client.get(FILE)
    assert answer.status_code == 503
    assert answer.json()["code"] == "master_key_missing"
    assert "MODELYARD_MASTER_KEY" in answer.json()["detail"]
    assert client.get("/readyz").status_code == 503
