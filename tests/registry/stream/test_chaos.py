"""The server is killed again and again under many uploads; nothing that it acknowledged is lost."""

import base64
import hashlib
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from registry.models import Upload
from registry.storage import default_storage
from tests.factories import make_model, make_token

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
UPLOADS = 200
AT_ONCE = 8
KILLS = 6
PIECE = 500_000


def encoded(text):
    return base64.b64encode(text.encode()).decode()


class Clock:
    """Counts requests, so that the server dies in the middle of some, however fast they are."""

    def __init__(self):
        self.requests = 0
        self._changed = threading.Condition()

    def tick(self):
        with self._changed:
            self.requests += 1
            self._changed.notify_all()

    def wait_for(self, requests, over):
        with self._changed:
            self._changed.wait_for(lambda: self.requests >= requests or over(), timeout=120)


class Sender:
    """Sends one file, asks for the offset after every break, and goes on."""

    def __init__(self, line, clock, chance):
        self.line = line
        self.clock = clock
        large = chance.random() < 0.15
        size = chance.randrange(1 << 20, 6 << 20) if large else chance.randrange(60_000)
        self.data = chance.randbytes(size)
        self.in_parts = chance.random() < 0.2
        self.with_checksums = chance.random() < 0.3
        self.address = ""
        self.lost = []

    def run(self):
        if not self.in_parts:
            self.address = self.send(self.data)
            return
        half = len(self.data) // 2
        parts = [
            self.send(piece, {"Upload-Concat": "partial"})
            for piece in (self.data[:half], self.data[half:])
        ]
        headers = {
            "Upload-Concat": f"final;{' '.join(parts)}",
            "Upload-Metadata": f"sha256 {encoded(hashlib.sha256(self.data).hexdigest())}",
        }
        self.address = self.until_answered("POST", "/api/v1/uploads", headers)["location"]

    def send(self, data, headers=None):
        headers = {"Upload-Length": str(len(data)), **(headers or {})}
        address = self.until_answered("POST", "/api/v1/uploads", headers)["location"]
        acknowledged = 0
        while True:
            offset = int(self.until_answered("HEAD", address)["upload-offset"])
            if offset < acknowledged:
                self.lost.append(f"{address}: {acknowledged} became {offset}")
            acknowledged = offset
            while acknowledged < len(data):
                answer = self.send_piece(address, acknowledged, data)
                if answer is None:
                    break
                acknowledged = int(answer["upload-offset"])
            else:
                return address

    def send_piece(self, address, offset, data):
        piece = data[offset : offset + PIECE]
        headers = {**BYTES, "Upload-Offset": str(offset)}
        if self.with_checksums:
            digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
            headers["Upload-Checksum"] = f"sha256 {digest}"
        return self.ask("PATCH", address, headers, piece)

    def until_answered(self, method, address, headers=None):
        """Ask again and again; none of these requests is worse for being done twice."""
        while (answer := self.ask(method, address, {**TUS, **(headers or {})})) is None:
            pass
        return answer

    def ask(self, method, address, headers, content=b""):
        """Give the headers of the answer, or None when the server died under the request."""
        self.clock.tick()
        try:
            answer = self.line.request(method, address, headers=headers, content=content)
        except httpx.TransportError:
            return None
        return answer.raise_for_status().headers


def check_what_can_be_seen():
    """Every blob in the storage and in the database is whole, whatever was going on."""
    storage = default_storage()
    for sha256, _ in storage.inventory():
        assert hashlib.sha256(storage.read(sha256)).hexdigest() == sha256
    for upload in Upload.objects.filter(completed_at__isnull=False).select_related("blob"):
        assert storage.size(upload.blob.sha256) == upload.length_bytes


@pytest.mark.slow
def test_uploads_under_a_server_that_dies(server, alice):
    chance = random.Random(2)
    clock = Clock()
    model = make_model(alice, "classifier")
    headers = {"Authorization": f"Bearer {make_token(alice)}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as line:
        senders = [Sender(line, clock, chance) for _ in range(UPLOADS)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            running = [pool.submit(sender.run) for sender in senders]
            for _ in range(KILLS):
                clock.wait_for(
                    clock.requests + chance.randrange(20, 120),
                    lambda: all(sending.done() for sending in running),
                )
                assert not all(sending.done() for sending in running), "they ended too early"
                server.kill()
                check_what_can_be_seen()
                server.start()
            for sending in running:
                sending.result(120)
        assert [loss for sender in senders for loss in sender.lost] == []
        check_what_can_be_seen()
        files = []
        for number, sender in enumerate(senders):
            upload = Upload.objects.select_related("blob").get(pk=sender.address.rsplit("/")[-1])
            assert upload.blob.sha256 == hashlib.sha256(sender.data).hexdigest()
            assert default_storage().read(upload.blob.sha256) == sender.data
            files.append({"path": f"{number}.bin", "upload": str(upload.pk)})
        url = f"/api/v1/models/{model.full_name}/versions"
        answer = line.post(url, json={"files": files})
        assert answer.status_code == httpx.codes.CREATED, answer.text
        for number in chance.sample(range(UPLOADS), 10):
            answer = line.get(f"{url}/1/files/{number}.bin")
            assert answer.content == senders[number].data
